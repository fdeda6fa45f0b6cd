//! Softmax, log-softmax and logsumexp: out of place and in place, on every backend.

use crate::case::shape;
use crate::input::Input;
use crate::layout::Layout;
use crate::mask::Mask;
use crate::number::{Logit, Number, keys};
use crate::oracle::{argmax, distance, lse_error};
use crate::threads::with_threads;
use half::{bf16, f16};
use xent::reference::{self, Precise, ulp_error_f64};
use xent::{Backend, Softmax};

pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    match input.byte() % 4 {
        0 => check::<f32>(&mut input),
        1 => check::<f64>(&mut input),
        2 => check::<bf16>(&mut input),
        _ => check::<f16>(&mut input),
    }
}

fn check<T: Logit>(input: &mut Input<'_>) {
    let layouts = [Layout::any(input), Layout::any(input)];
    let (rows, vocab) = shape(input);
    let x: Vec<T> = (0..rows).flat_map(|_| input.row(vocab)).collect();
    let mask = input.one_in(3).then(|| Mask::any(input, rows, vocab));
    let (x, disguised) = match &mask {
        Some(mask) => {
            let mut masked = x.clone();
            mask.apply(&mut masked, vocab);
            (masked, x)
        }
        None => (x.clone(), x),
    };
    // What goes to other threads is too much for the oracle, and a third of it for one lane at a time.
    let is_large = rows * vocab > 30_000;
    let is_long = rows * vocab > 10_000;
    let available = Backend::available().iter().copied();
    let backends = available.filter(|&b| b != Backend::Scalar || !is_long);
    let mut want: Option<Results<T>> = None;
    for (i, backend) in backends.enumerate() {
        let got = |x: &[T], mask, layout, three| {
            with_threads(three, || Results::new(x, mask, [rows, vocab], backend, layout))
        };
        let results = got(&x, None, Layout::CONTIGUOUS, i % 2 == 0);
        let at = || format!("{backend}: {rows} x {vocab} of {}, {x:?}", T::NAME);
        let same = got(&disguised, mask.as_ref(), layouts[i % 2], i % 2 == 1);
        assert!(same.keys() == results.keys(), "layout or mask, {mask:?}, {}", at());
        if backend.is_bit_exact()
            && let Some(want) = &want
        {
            assert!(results.keys() == want.keys(), "bits, {}", at());
            continue;
        }
        if size_of::<T>() == 2 {
            is_f32_rounded(&x, rows, vocab, backend, &results, &at);
        } else if !is_large {
            for i in 0..rows {
                oracle(&x[i * vocab..][..vocab], i, &results, &at);
            }
        }
        if backend.is_bit_exact() {
            want = Some(results);
        }
    }
}

struct Results<T: Logit> {
    p: Vec<T>,
    log_p: Vec<T>,
    lse: Vec<T::Real>,
}

impl<T: Logit> Results<T> {
    fn new(
        x: &[T],
        mask: Option<&Mask>,
        [rows, vocab]: [usize; 2],
        backend: Backend,
        layout: Layout,
    ) -> Self {
        let mut softmax = Softmax::new().backend(backend);
        if let Some(mask) = mask {
            softmax = softmax.allowed_tokens(mask.allowed());
        }
        let placed = layout.place(x, rows, vocab);
        let mut p = vec![T::round(-77.0); rows * vocab];
        let mut log_p = p.clone();
        let mut lse = vec![T::Real::round(-77.0); rows];
        softmax.softmax(placed.logits(), &mut p).expect("all lengths fit");
        softmax.log_softmax(placed.logits(), &mut log_p).expect("all lengths fit");
        softmax.logsumexp(placed.logits(), &mut lse).expect("all lengths fit");
        assert!(keys(&placed.rows()) == keys(x));

        let mut place = layout.place(x, rows, vocab);
        softmax.softmax_in_place(place.logits_mut()).expect("the backend is available");
        assert!(keys(&place.rows()) == keys(&p), "softmax in place on {backend}: {x:?}");
        let mut place = layout.place(x, rows, vocab);
        softmax.log_softmax_in_place(place.logits_mut()).expect("the backend is available");
        assert!(keys(&place.rows()) == keys(&log_p), "log-softmax in place on {backend}: {x:?}");
        Results { p, log_p, lse }
    }

    fn keys(&self) -> [Vec<u64>; 3] {
        [keys(&self.p), keys(&self.log_p), keys(&self.lse)]
    }
}

/// 16 bits: the results of the same row in `f32`, rounded once.
fn is_f32_rounded<T: Logit>(
    x: &[T],
    rows: usize,
    vocab: usize,
    backend: Backend,
    got: &Results<T>,
    at: &dyn Fn() -> String,
) {
    let wide: Vec<f32> = x.iter().map(|x| x.value() as f32).collect();
    let wide = Results::new(&wide, None, [rows, vocab], backend, Layout::CONTIGUOUS);
    let rounded = |values: &[f32]| values.iter().map(|&x| T::round(x.into()).key()).collect();
    let want: [Vec<u64>; 3] = [rounded(&wide.p), rounded(&wide.log_p), keys(&wide.lse)];
    assert!(got.keys() == want, "not f32 rounded, {}", at());
}

fn oracle<T: Logit>(row: &[T], i: usize, results: &Results<T>, at: &dyn Fn() -> String) {
    let x: Vec<f64> = row.iter().map(|x| x.value()).collect();
    let lse = results.lse[i].value();
    let error = lse_error::<T::Real>(lse, &x);
    assert!(error <= 1.0, "logsumexp {lse:e} of row {i}, {error}, {}", at());
    let of_row =
        |values: &[T]| values[i * x.len()..][..x.len()].iter().map(|x| x.value()).collect();
    let (p, log_p): (Vec<f64>, Vec<f64>) = (of_row(&results.p), of_row(&results.log_p));
    if size_of::<T>() == 8 {
        double(&x, &p, &log_p, &|| format!("row {i}, {}", at()));
    } else {
        single(&x, &p, &log_p, &|| format!("row {i}, {}", at()));
    }
    if let Some(best) = x.get(argmax(&x)).filter(|best| best.is_finite()) {
        let top = p.iter().copied().fold(0.0, f64::max);
        let is_top = x.iter().zip(&p).all(|(x, &p)| x != best || p == top);
        assert!(is_top, "the largest is not the most probable, row {i}, {}", at());
    }
}

fn single(x: &[f64], p: &[f64], log_p: &[f64], at: &dyn Fn() -> String) {
    for (j, (&got, exact)) in p.iter().zip(reference::softmax(x)).enumerate() {
        // What is below the normal numbers may be cut off.
        let cut = got == 0.0 && exact < f64::from(f32::MIN_POSITIVE);
        let apart = distance(got as f32, exact as f32);
        assert!(cut || apart <= 2, "softmax, class {j}: {got:e} for {exact:e}, {}", at());
    }
    for (j, (&got, exact)) in log_p.iter().zip(reference::log_softmax(x)).enumerate() {
        let apart = distance(got as f32, exact as f32);
        assert!(apart <= 2, "log-softmax, class {j}: {got:e} for {exact:e}, {}", at());
    }
}

fn double(x: &[f64], p: &[f64], log_p: &[f64], at: &dyn Fn() -> String) {
    // Beside such a number the logarithm of a sum has the digits of one `f64`.
    let is_far = reference::logsumexp_f64(x).hi.abs() > 1e14;
    let bound = if is_far { 8.0 } else { 2.0 };
    for (j, (&got, exact)) in p.iter().zip(reference::softmax_f64(x)).enumerate() {
        // What is below the normal numbers may be cut off.
        let cut = got < 1e-290 && exact.hi < 1e-290;
        let error = ulp_error_f64(got, exact);
        assert!(cut || error <= bound, "softmax, class {j}: {got:e} for {exact:?}, {}", at());
    }
    for (j, (&got, exact)) in log_p.iter().zip(reference::log_softmax_f64(x)).enumerate() {
        let error = ulp_error_f64(got, exact);
        let Precise { hi, .. } = exact;
        assert!(error <= 2.0, "log-softmax, class {j}: {got:e} for {hi:e}, {error}, {}", at());
    }
}
