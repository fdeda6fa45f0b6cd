//! Gradients that are written past the caches have the bits of those that are not, wherever their
//! rows begin and end.

use common::{Rng, for_each_backend, thin};
use xent::*;

/// Bytes from which a gradient is streamed.
const STREAM: usize = 32 << 20;

/// The gradient into memory that begins `offset` elements after another, in so many parts.
fn gradient<T: Element>(
    ce: &CrossEntropy<'_>,
    x: &[T],
    targets: &[i64],
    offset: usize,
    parts: usize,
) -> Vec<T> {
    let (rows, vocab) = (targets.len(), x.len() / targets.len());
    let mut memory = vec![T::default(); offset + x.len() + 9];
    let g = &mut memory[offset..][..x.len()];
    let each = rows.div_ceil(parts);
    let logits = x.chunks(each * vocab).zip(targets.chunks(each));
    for ((x, targets), g) in logits.zip(g.chunks_mut(each * vocab)) {
        assert_eq!(size_of_val(g) >= STREAM, parts == 1);
        let rows = targets.len();
        let to = Gradient::new(LogitsMut::new(g, rows, vocab).unwrap()).upstream(0.3);
        let logits = Logits::new(x, rows, vocab).unwrap();
        ce.forward_backward(logits, targets, to, RowOutputs::new()).unwrap();
    }
    // Nothing else was written.
    assert!(memory[..offset].iter().chain(&memory[offset + x.len()..]).all(|&g| g == T::default()));
    memory[offset..][..x.len()].to_vec()
}

fn check<T: Element>(backend: Backend, of: fn(f64) -> T, bits: fn(T) -> u64)
where
    for<'a> Floats<'a>: From<&'a Vec<T::Real>>,
    T::Real: From<f32>,
{
    // These have no streaming stores, nor has Arm.
    let is_plain = backend <= Backend::Portable;
    if thin() > 1 || is_plain && size_of::<T>() != 4 {
        println!("{backend}: left out");
        return;
    }
    let mut rng = Rng::new(3);
    // What is no whole number of vectors, and less than one.
    let vocabs: &[usize] = if is_plain { &[4099] } else { &[50_257, 131, 5] };
    for (i, &vocab) in vocabs.iter().enumerate() {
        let rows = (STREAM / size_of::<T>()).div_ceil(vocab) + 1;
        let mut x: Vec<T> = Vec::with_capacity(rows * vocab);
        x.extend((0..10_007).map(|_| of(8.0 * f64::from(rng.normal()))));
        for j in 10_007..rows * vocab {
            x.push(x[j - 10_007]);
        }
        let mut targets: Vec<i64> = (0..rows).map(|_| rng.below(vocab) as i64).collect();
        targets[1] = -100;
        x[2 * vocab] = of(f64::NAN);
        let weights: Vec<T::Real> = (0..vocab).map(|_| (rng.unit() as f32).into()).collect();
        let ce = || CrossEntropy::new().backend(backend).reduction(Reduction::Sum);
        let options = [
            ce(),
            ce().label_smoothing(0.1),
            ce().label_smoothing(0.1).class_weights(&weights),
            ce().softcap(30.0),
            ce().softcap(20.0).temperature(0.7).label_smoothing(0.1).class_weights(&weights),
        ];
        let all = match i {
            0 if !is_plain && size_of::<T>() > 2 => &options[..],
            0 if !is_plain => &options[..2],
            _ => &options[3..4],
        };
        for (k, ce) in all.iter().enumerate() {
            let want = gradient(ce, &x, &targets, 0, 3);
            let offsets: &[usize] = if k == 0 && !is_plain { &[0, 1, 7] } else { &[3] };
            for &offset in offsets {
                let got = gradient(ce, &x, &targets, offset, 1);
                let other = got.iter().zip(&want).position(|(&g, &w)| bits(g) != bits(w));
                let at = other.map(|j| (j / vocab, j % vocab));
                assert_eq!(at, None, "{backend}, {ce:?}, {vocab} classes, {offset}: row, class");
            }
        }
    }
}

#[test]
fn of_f64() {
    for_each_backend(|backend| check(backend, |x| x, f64::to_bits));
}

#[test]
fn of_f32() {
    for_each_backend(|backend| check(backend, |x| x as f32, |x| x.to_bits().into()));
}

#[test]
fn of_halves() {
    for_each_backend(|backend| {
        check(backend, bf16::from_f64, |x| x.to_bits().into());
        check(backend, f16::from_f64, |x| x.to_bits().into());
    });
}
