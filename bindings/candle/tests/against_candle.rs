//! The loss and its gradient are those of `candle_nn::loss::cross_entropy`, nearer to the truth.

use crate::common::{CPU, ids, logits, property, relative, trained, value, values};
use candle_core::{DType, Device, Result, Tensor};
use candle_nn::loss::cross_entropy as candle;
use proptest::prelude::*;
use xent_candle::xent::CrossEntropy;
use xent_candle::xent::reference::{self, Options, Target};
use xent_candle::{cross_entropy, loss_and_gradient};

/// How far a result may be from the truth, relative to the largest: half a unit of the last place for the loss of half
/// types, and a few for what is not rounded once.
fn tolerance(dtype: DType) -> f64 {
    match dtype {
        DType::BF16 => 2f64.powi(-8),
        DType::F16 => 2f64.powi(-11),
        DType::F32 => 3.0 * 2f64.powi(-24),
        // candle's own error.
        _ => 1e-12,
    }
}

type View = Box<dyn Fn(&Tensor) -> Result<Tensor>>;

/// A tensor, and a view of it that is `[rows, vocab]`.
fn viewed(layout: usize, rows: usize, vocab: usize, dtype: DType, seed: u64) -> (Tensor, View) {
    let of = |shape| logits(shape, dtype, seed);
    match layout {
        0 => (of((rows, vocab)), Box::new(|x| Ok(x.clone()))),
        // Padded, and not from the beginning.
        1 => {
            let view: View = Box::new(move |x| x.narrow(0, 1, rows)?.narrow(1, 2, vocab));
            (of((rows + 2, vocab + 3)), view)
        }
        2 => (of((vocab, rows)), Box::new(|x| x.t())),
        3 => {
            let view: View = Box::new(move |x| x.t()?.narrow(0, 2, rows)?.narrow(1, 1, vocab));
            (of((vocab + 1, rows + 2)), view)
        }
        // One row, again and again.
        4 => (of((1, vocab)), Box::new(move |x| x.broadcast_as((rows, vocab)))),
        // All classes alike.
        5 => (of((rows, 1)), Box::new(move |x| x.broadcast_as((rows, vocab)))),
        // Neither classes nor rows are next to each other: this is copied.
        _ => {
            let view: View =
                Box::new(move |x| x.reshape((rows, vocab, 2))?.narrow(2, 1, 1)?.squeeze(2));
            (of((rows, vocab * 2)), view)
        }
    }
}

/// Not `affine`, of which 0 has no gradient.
fn times(loss: &Tensor, factor: f64) -> Result<Tensor> {
    loss * Tensor::new(factor, CPU)?.to_dtype(loss.dtype())?
}

proptest! {
    #![proptest_config(property(300))]

    #[test]
    fn loss_and_gradient_are_those_of_candle_in_f64(
        rows in 1usize..7,
        vocab in 1usize..70,
        dtype in prop::sample::select(vec![DType::F32, DType::F64, DType::BF16, DType::F16]),
        target_type in prop::sample::select(vec![DType::U8, DType::U32, DType::I16, DType::I32, DType::I64]),
        layout in 0usize..7,
        strided_targets in any::<bool>(),
        factor in prop::sample::select(vec![1.0, 3.0, -0.5, 0.0, 1024.0]),
        seed in any::<u64>(),
    ) {
        let (base, view) = viewed(layout, rows, vocab, dtype, seed);
        let x = view(&base)?;
        let plain = ids(rows, vocab);
        let targets = match strided_targets {
            true => Tensor::stack(&[&plain, &plain], 1)?.to_dtype(target_type)?.narrow(1, 1, 1)?.squeeze(1)?,
            false => plain.to_dtype(target_type)?,
        };
        let in_f64 = x.contiguous()?.to_dtype(DType::F64)?;
        let (exact, exact_gradient) = trained(&in_f64, |x| candle(x, &plain))?;
        let exact = value(&exact);

        let loss = cross_entropy(&x, &targets)?;
        prop_assert_eq!((loss.dtype(), loss.dims()), (dtype, &[] as &[usize]));
        let bound = tolerance(dtype) * exact.abs().max(1e-30) + 1e-15;
        prop_assert!((value(&loss) - exact).abs() <= bound, "{} {exact}", value(&loss));

        // Of the view itself. The scale is the largest that a gradient can be, for a bound that is not that of a tiny one.
        let near = |found: &Tensor, exact: &Tensor, scale: f64, rounded: f64| {
            let smallest = if dtype == DType::F16 { 2f64.powi(-24) } else { 0.0 };
            for (g, exact) in values(found).iter().zip(values(exact)) {
                let bound = tolerance(dtype) * (exact.abs() + rounded * scale) + smallest * rounded.max(1.0);
                prop_assert!((g - exact).abs() <= bound, "{g:e} {exact:e}");
            }
            Ok(())
        };
        let (alone, gradient) = loss_and_gradient(&CrossEntropy::new(), &x, &targets)?;
        prop_assert_eq!(value(&alone), value(&loss));
        prop_assert_eq!((gradient.dtype(), gradient.dims()), (dtype, &[rows, vocab][..]));
        near(&gradient, &exact_gradient, 1.0 / rows as f64, 1e-7)?;

        // Of what it is a view of. What is tracked has the same bits.
        let (tracked, gradient) = trained(&base, |x| times(&cross_entropy(&view(x)?, &targets)?, factor))?;
        prop_assert_eq!(value(&tracked), value(&times(&loss, factor)?));
        let base = base.to_dtype(DType::F64)?;
        let (_, exact_gradient) = trained(&base, |x| times(&candle(&view(x)?.contiguous()?, &plain)?, factor))?;
        // Of a broadcast the gradient is a sum, which candle rounds at each step.
        let rounded = match layout {
            4 => 2.0 * rows as f64,
            5 => 2.0 * vocab as f64,
            _ => 1e-7,
        };
        near(&gradient, &exact_gradient, factor.abs(), rounded)?;
    }
}

/// The truth is in f64, from the oracle of `xent`; candle's gradient in f64 agrees with it to 1e-13.
#[test]
fn of_the_two_this_one_is_nearer() -> Result<()> {
    let (rows, vocab) = (64, 4_099);
    let x = logits((rows, vocab), DType::F32, 1);
    let targets = ids(rows, vocab);
    let numbers: Vec<f32> = x.flatten_all()?.to_vec1()?;
    let ids: Vec<i64> = targets.to_vec1()?;
    let row = |i: usize| &numbers[i * vocab..][..vocab];
    let losses = (0..rows).map(|i| reference::row(row(i), ids[i] as usize).loss);
    let exact = losses.sum::<f64>() / rows as f64;
    let up = 1.0 / rows as f64;
    let exact_gradient: Vec<f64> = (0..rows)
        .flat_map(|i| {
            let target = Target::Class(ids[i] as usize);
            reference::gradient(row(i), target, &Options::default(), [up, up])
        })
        .collect();
    let (_, in_f64) = trained(&x.to_dtype(DType::F64)?, |x| candle(x, &targets))?;
    assert!(relative(&values(&in_f64), &exact_gradient) < 1e-13);

    let (ours, our_gradient) = trained(&x, |x| cross_entropy(x, &targets))?;
    let (theirs, their_gradient) = trained(&x, |x| candle(x, &targets))?;
    let ulp = |loss: &Tensor| reference::ulp_error(loss.to_scalar().unwrap(), exact);
    let grad_ulp = |gradient: &Tensor| {
        let gradient: Vec<f32> = gradient.flatten_all().unwrap().to_vec1().unwrap();
        let errors =
            gradient.iter().zip(&exact_gradient).map(|(&g, &e)| reference::ulp_error(g, e));
        errors.fold(0.0, f64::max)
    };
    let (our_ulp, their_ulp) = (grad_ulp(&our_gradient), grad_ulp(&their_gradient));
    println!(
        "{rows} x {vocab}: loss off by {:.2} ULP, candle by {:.2}; gradient by {our_ulp:.2}, candle by {their_ulp:.0}",
        ulp(&ours),
        ulp(&theirs)
    );
    assert!(ulp(&ours) <= 0.5 + 1e-6);
    assert!(our_ulp <= 2.0 && their_ulp > 10.0 * our_ulp);
    Ok(())
}

/// A loss that is truly 1.87e-13 is 0 for candle, though its gradient is not.
#[test]
fn a_sure_token_has_a_loss() -> Result<()> {
    let x = Tensor::new(&[[30.0_f32, 0.0, 0.0]], CPU)?;
    let targets = Tensor::new(&[0u32], CPU)?;
    let exact = (2.0 * (-30f64).exp()).ln_1p();
    let (loss, gradient) = trained(&x, |x| cross_entropy(x, &targets))?;
    assert_eq!(loss.to_scalar::<f32>()?, exact as f32);
    let at_target = values(&gradient)[0];
    assert!((at_target / -exact - 1.0).abs() < 1e-6, "{at_target} {exact}");
    let (loss, gradient) = trained(&x, |x| candle(x, &targets))?;
    assert_eq!(value(&loss), 0.0);
    assert!((values(&gradient)[0] / -exact - 1.0).abs() < 1e-5);
    Ok(())
}

#[test]
fn sums_of_bf16_do_not_lose_their_digits() -> Result<()> {
    let (rows, vocab) = (8, 2_000);
    let x = logits((rows, vocab), DType::BF16, 3);
    let targets = ids(rows, vocab);
    let exact = value(&candle(&x.to_dtype(DType::F64)?, &targets)?);
    let off = |loss: &Tensor| (value(loss) / exact - 1.0).abs();
    let (ours, theirs) = (off(&cross_entropy(&x, &targets)?), off(&candle(&x, &targets)?));
    println!("bf16, 2,000 classes: off by {ours:.1e}, candle by {theirs:.1e}");
    assert!(ours <= 2f64.powi(-8) && theirs > 2.0 * ours);
    Ok(())
}

#[test]
fn without_rows_the_loss_is_nan() -> Result<()> {
    let x = Tensor::zeros((0, 5), DType::F32, &Device::Cpu)?;
    let targets = Tensor::zeros(0, DType::U32, &Device::Cpu)?;
    assert!(value(&cross_entropy(&x, &targets)?).is_nan());
    assert!(candle(&x, &targets).is_err());
    let (_, gradient) = trained(&x, |x| cross_entropy(x, &targets))?;
    assert_eq!(gradient.dims(), [0, 5]);
    Ok(())
}
