//! The C functions against the Rust API, bit for bit: formats, strides, options, outputs.
#![allow(unsafe_code, reason = "calls functions of the C ABI")]

use half::{bf16, f16};
use proptest::prelude::*;
use std::ffi::{CStr, c_void};
use std::ptr::{null, null_mut};
use xent::{
    Compare, CompareOutputs, CrossEntropy, Element, Floats, Gradient, LogProbs, LogSumExp, Logits,
    LogitsMut, Reduction, RowOutputs, Sample, SequenceScore, Softmax, TokenOutputs,
};
use xent_c::*;

/// A type of logits, and how to make one of a number.
trait Number: Element {
    const DTYPE: i32;
    const OUT: i32;
    fn of(x: f32) -> Self;
    fn bits(x: Self) -> u64;
}

macro_rules! number {
    ($($type:ty: $dtype:literal $out:literal $of:expr, $bits:expr;)*) => {$(
        impl Number for $type {
            const DTYPE: i32 = $dtype;
            const OUT: i32 = $out;
            fn of(x: f32) -> Self {
                $of(x)
            }
            fn bits(x: Self) -> u64 {
                $bits(x)
            }
        }
    )*};
}
number! {
    f32: 1 1 |x| x, |x: f32| x.to_bits().into();
    f64: 2 2 f64::from, f64::to_bits;
    bf16: 3 1 bf16::from_f32, |x: bf16| x.to_bits().into();
    f16: 4 1 f16::from_f32, |x: f16| x.to_bits().into();
}

fn bits<T: Number>(all: &[T]) -> Vec<u64> {
    all.iter().map(|&x| T::bits(x)).collect()
}

#[derive(Clone, Debug)]
struct Case {
    rows: usize,
    classes: usize,
    pad: usize,
    by_classes: bool,
    x: Vec<f32>,
    targets: Vec<i32>,
    ignored: Vec<i64>,
    smoothing: f64,
    z_loss: f64,
    temperature: f64,
    softcap: Option<f64>,
    sum: bool,
    weighted: bool,
    threads: usize,
    top_k: usize,
}

fn cases() -> impl Strategy<Value = Case> {
    (1usize..9, 1usize..300, 0usize..5, any::<bool>(), any::<[bool; 5]>()).prop_flat_map(
        |(rows, classes, pad, by_classes, options)| {
            let logit = prop_oneof![
                20 => (-400i32..400).prop_map(|x| x as f32 / 16.0),
                1 => Just(f32::NEG_INFINITY),
            ];
            let target = prop_oneof![8 => 0..classes as i32, 1 => Just(-100)];
            let x = prop::collection::vec(logit, rows * classes);
            let targets = prop::collection::vec(target, rows);
            // Targets may be -100, and so it has to be among them.
            let others = prop::collection::vec(-1..classes as i64, 0..4);
            (x, targets, others).prop_map(move |(x, targets, others)| Case {
                rows,
                classes,
                pad,
                by_classes,
                x,
                targets,
                ignored: others.into_iter().chain([-100]).collect(),
                smoothing: if options[0] { 0.1 } else { 0.0 },
                z_loss: if options[1] { 1e-3 } else { 0.0 },
                temperature: if options[2] { 0.7 } else { 1.0 },
                softcap: options[3].then_some(20.0),
                sum: options[4],
                weighted: options[0] != options[4],
                // So little work stays on the calling thread: see `threads_change_no_bit`.
                threads: 0,
                top_k: classes.min(5),
            })
        },
    )
}

fn ok(status: xent_status) {
    // SAFETY: a text that stays valid until the next call that fails.
    let text = unsafe { CStr::from_ptr(xent_last_error_message()) };
    assert_eq!(status, xent_status::XENT_OK, "{text:?}");
}

fn zeroed<T>() -> T {
    // SAFETY: structures of numbers and pointers, for which all zero is valid.
    unsafe { std::mem::zeroed() }
}

fn floats<T>(data: &[T], dtype: i32) -> xent_floats {
    xent_floats { data: data.as_ptr().cast(), len: data.len(), dtype, reserved: 0 }
}

fn out<T>(to: &mut [T]) -> *mut c_void {
    to.as_mut_ptr().cast()
}

/// Memory of the logits, and as views of both APIs.
struct Memory<T> {
    data: Vec<T>,
    rows: usize,
    classes: usize,
    row_stride: usize,
    class_stride: usize,
}

impl<T: Number> Memory<T> {
    fn new(case: &Case) -> Self {
        let (rows, classes) = (case.rows, case.classes);
        let (row_stride, class_stride) = match case.by_classes {
            true => (1, rows + case.pad),
            false => (classes + case.pad, 1),
        };
        let len = (rows - 1) * row_stride + (classes - 1) * class_stride + 1;
        let mut data = vec![T::of(f32::NAN); len];
        for row in 0..rows {
            for class in 0..classes {
                data[row * row_stride + class * class_stride] =
                    T::of(case.x[row * classes + class]);
            }
        }
        Memory { data, rows, classes, row_stride, class_stride }
    }

    fn strides(&self) -> ([usize; 3], [usize; 3]) {
        ([1, self.rows, self.classes], [0, self.row_stride, self.class_stride])
    }

    fn rust(&self) -> Logits<'_, T> {
        let (shape, strides) = self.strides();
        Logits::strided(&self.data, shape, strides).unwrap()
    }

    fn rust_mut(&mut self) -> LogitsMut<'_, T> {
        let (shape, strides) = self.strides();
        LogitsMut::strided(&mut self.data, shape, strides).unwrap()
    }

    fn c(&self) -> xent_matrix {
        xent_matrix {
            data: self.data.as_ptr().cast(),
            rows: self.rows,
            classes: self.classes,
            row_stride: self.row_stride,
            class_stride: self.class_stride,
            dtype: T::DTYPE,
            reserved: 0,
        }
    }

    fn c_mut(&mut self) -> xent_matrix_mut {
        let data = out(&mut self.data);
        let xent_matrix { rows, classes, row_stride, class_stride, dtype, reserved, .. } = self.c();
        xent_matrix_mut { data, rows, classes, row_stride, class_stride, dtype, reserved }
    }
}

fn check<T: Number>(case: &Case)
where
    T::Real: Number,
    for<'a> Floats<'a>: From<&'a [T::Real]>,
{
    let (rows, classes) = (case.rows, case.classes);
    let x = Memory::<T>::new(case);
    let weights: Vec<T::Real> = (0..classes).map(|j| T::Real::of(0.5 + (j % 3) as f32)).collect();
    let mut ce = CrossEntropy::new()
        .ignore_indices(&case.ignored)
        .label_smoothing(case.smoothing)
        .z_loss(case.z_loss)
        .temperature(case.temperature);
    let mut options = null_mut();
    // SAFETY: all pointers are of live memory of the sizes given, here and below.
    unsafe {
        ok(xent_options_new(&mut options));
        let (ids, len) = (case.ignored.as_ptr(), case.ignored.len());
        ok(xent_options_set_ignore_indices(options, ids, len));
        ok(xent_options_set_label_smoothing(options, case.smoothing));
        ok(xent_options_set_z_loss(options, case.z_loss));
        ok(xent_options_set_temperature(options, case.temperature));
        ok(xent_options_set_threads(options, case.threads));
        if let Some(c) = case.softcap {
            ce = ce.softcap(c);
            ok(xent_options_set_softcap(options, c));
        }
        if case.sum {
            ce = ce.reduction(Reduction::Sum);
            ok(xent_options_set_reduction(options, 1, 0.0));
        }
        if case.weighted {
            ce = ce.class_weights(&weights[..]);
            ok(xent_options_set_class_weights(options, &floats(&weights, T::OUT)));
        }
    }
    let targets = xent_ids {
        data: case.targets.as_ptr().cast(),
        len: rows,
        stride: 0,
        sequence: 0,
        shift: 0,
        dtype: 1,
        reserved: 0,
    };
    let zero = T::Real::of(7.0);
    let zeros = || vec![zero; rows];

    // Losses.
    let mut loss = 0.0;
    // SAFETY: as above.
    ok(unsafe { xent_forward(options, &x.c(), &targets, &mut loss) });
    let expected = ce.forward(x.rust(), &case.targets).unwrap();
    assert_eq!(loss.to_bits(), expected.to_bits());
    let (mut a, mut b) = (zeros(), zeros());
    // SAFETY: as above.
    ok(unsafe { xent_forward_into(options, &x.c(), &targets, out(&mut a), rows, T::OUT) });
    ce.forward_into(x.rust(), &case.targets, &mut b).unwrap();
    assert_eq!(bits(&a), bits(&b));

    // Everything about rows, and gradients.
    let pair = LogSumExp { hi: zero, lo: zero };
    let [mut losses, mut logprobs, mut lse, mut z] = [zeros(), zeros(), zeros(), zeros()];
    let (mut saved, mut argmax) = (vec![pair; rows], vec![7i64; rows]);
    let [mut c_losses, mut c_logprobs, mut c_lse, mut c_z] = [zeros(), zeros(), zeros(), zeros()];
    let (mut c_saved, mut c_argmax) = (vec![zero; 2 * rows], vec![7i64; rows]);
    let mut gradient = Memory::<T>::new(case);
    let mut c_gradient = Memory::<T>::new(case);
    let mut call: xent_call = zeroed();
    call.size = size_of::<xent_call>();
    call.logits = x.c();
    call.targets = targets;
    call.gradient = c_gradient.c_mut();
    call.out_dtype = T::OUT;
    call.out_len = rows;
    call.losses = out(&mut c_losses);
    call.logprobs = out(&mut c_logprobs);
    call.logsumexp = out(&mut c_lse);
    call.z_losses = out(&mut c_z);
    call.saved = out(&mut c_saved);
    call.argmax = c_argmax.as_mut_ptr();
    let mut evaluation =
        xent_evaluation { size: size_of::<xent_evaluation>(), ..xent_evaluation::default() };
    // SAFETY: as above.
    ok(unsafe { xent_forward_backward(options, &call, 0.5, &mut evaluation) });
    let wanted = RowOutputs::new()
        .losses(&mut losses)
        .logprobs(&mut logprobs)
        .logsumexp(&mut lse)
        .z_losses(&mut z)
        .saved(&mut saved)
        .argmax(&mut argmax);
    let to = Gradient::new(gradient.rust_mut()).upstream(0.5);
    let expected = ce.forward_backward(x.rust(), &case.targets, to, wanted).unwrap();
    assert_eq!(bits(&c_gradient.data), bits(&gradient.data));
    for (c, rust) in [(&c_losses, &losses), (&c_logprobs, &logprobs), (&c_lse, &lse), (&c_z, &z)] {
        assert_eq!(bits(c), bits(rust));
    }
    let flat: Vec<_> = saved.iter().flat_map(|saved| [saved.hi, saved.lo]).collect();
    assert_eq!((bits(&c_saved), &c_argmax), (bits(&flat), &argmax));
    let numbers = [
        (evaluation.loss, expected.loss()),
        (evaluation.cross_entropy, expected.cross_entropy()),
        (evaluation.z_loss, expected.z_loss()),
        (evaluation.sum, expected.sum()),
        (evaluation.mean, expected.mean()),
        (evaluation.mean_stderr, expected.stderr()),
        (evaluation.perplexity, expected.perplexity()),
        (evaluation.perplexity_stderr, expected.perplexity_stderr()),
        (evaluation.bits_per_token, expected.bits_per_token()),
        (evaluation.accuracy, expected.accuracy().unwrap_or(f64::NAN)),
    ];
    for (c, rust) in numbers {
        assert!(c.to_bits() == rust.to_bits() || c.is_nan() && rust.is_nan(), "{c} {rust}");
    }
    assert_eq!(evaluation.correct, expected.correct().map_or(-1, |n| n as i64));
    assert_eq!((evaluation.count, evaluation.ignored), (expected.count(), expected.ignored()));

    // In place, and without a gradient.
    let mut call_in_place = call;
    let mut in_place = Memory::<T>::new(case);
    call_in_place.logits = zeroed();
    call_in_place.gradient = in_place.c_mut();
    // SAFETY: as above.
    ok(unsafe { xent_forward_backward_in_place(options, &call_in_place, 0.5, &mut evaluation) });
    assert_eq!(bits(&in_place.data), bits(&gradient.data));
    assert_eq!(
        (bits(&c_saved), evaluation.loss.to_bits()),
        (bits(&flat), expected.loss().to_bits())
    );
    call.gradient = zeroed();
    // SAFETY: as above.
    ok(unsafe { xent_evaluate(options, &call, &mut evaluation) });
    let evaluated = ce.evaluate(x.rust(), &case.targets, RowOutputs::new().argmax(&mut argmax));
    assert_eq!(evaluation.sum.to_bits(), evaluated.unwrap().sum().to_bits());
    assert_eq!((bits(&c_losses), &c_argmax), (bits(&losses), &argmax));

    // Sequences: the first row, none, and the others.
    let offsets = [0, 1, 1, rows];
    let mut scores = [SequenceScore::default(); 3];
    let mut c_scores = [xent_sequence_score::default(); 3];
    let mut call: xent_call = zeroed();
    call.size = size_of::<xent_call>();
    call.logits = x.c();
    call.targets = targets;
    // SAFETY: as above.
    ok(unsafe {
        xent_sequences(options, &call, offsets.as_ptr(), 4, c_scores.as_mut_ptr(), scores.len())
    });
    ce.sequences(x.rust(), &case.targets, &offsets, &mut scores).unwrap();
    for (c, rust) in c_scores.iter().zip(&scores) {
        assert_eq!(c.logprob.to_bits(), rust.logprob.to_bits());
        assert_eq!(c.tokens, rust.tokens as u64);
        assert_eq!(c.first_mismatch, rust.first_mismatch.map_or(-1, |row| row as i64));
    }

    // From what was saved, and in place.
    let mut again = Memory::<T>::new(case);
    let mut call: xent_call = zeroed();
    call.size = size_of::<xent_call>();
    call.targets = targets;
    call.gradient = again.c_mut();
    call.saved_from = floats(&c_saved, T::OUT);
    // SAFETY: as above.
    ok(unsafe { xent_backward_in_place(options, &call, 0.25) });
    let mut expected = Memory::<T>::new(case);
    ce.backward_in_place(expected.rust_mut(), &case.targets, &saved, 0.25).unwrap();
    assert_eq!(bits(&again.data), bits(&expected.data));
    let mut apart = Memory::<T>::new(case);
    call.logits = x.c();
    call.gradient = apart.c_mut();
    // SAFETY: as above.
    ok(unsafe { xent_backward(options, &call, 0.25) });
    assert_eq!(bits(&apart.data), bits(&expected.data));

    // Tokens and softmax, without the options that have no meaning there.
    // SAFETY: as above.
    ok(unsafe { xent_options_set_no_softcap(options) });
    let k = case.top_k;
    let (mut ids, mut c_ids) = (vec![7i64; rows * k], vec![7i64; rows * k]);
    let (mut top, mut c_top) = (vec![zero; rows * k], vec![zero; rows * k]);
    let (mut entropy, mut c_entropy, mut ranks, mut c_ranks) =
        (zeros(), zeros(), vec![7i64; rows], vec![7i64; rows]);
    let mut call: xent_token_call = zeroed();
    call.size = size_of::<xent_token_call>();
    call.logits = x.c();
    call.targets = targets;
    call.top_k = k;
    call.out_dtype = T::OUT;
    call.out_len = rows;
    call.top_ids = c_ids.as_mut_ptr();
    call.top_logprobs = out(&mut c_top);
    call.entropy = out(&mut c_entropy);
    call.ranks = c_ranks.as_mut_ptr();
    // SAFETY: as above.
    ok(unsafe { xent_tokens(options, &call) });
    let ask = LogProbs::new()
        .targets(&case.targets)
        .ignore_indices(&case.ignored)
        .top_k(k)
        .temperature(case.temperature);
    let wanted =
        TokenOutputs::new().top_k(&mut ids, &mut top).entropy(&mut entropy).ranks(&mut ranks);
    ask.run(x.rust(), wanted).unwrap();
    assert_eq!((&c_ids, bits(&c_top)), (&ids, bits(&top)));
    assert_eq!((bits(&c_entropy), &c_ranks), (bits(&entropy), &ranks));

    // Drawn tokens, for which a row is cut sooner.
    let sample = |i: usize| (i as u64 / 2, i as u64, 0.9);
    let samples: Vec<_> = (0..rows)
        .map(sample)
        .map(|(seed, position, t)| Sample::new(seed, position).temperature(t))
        .collect();
    let c_samples: Vec<_> = (0..rows)
        .map(sample)
        .map(|(seed, position, temperature)| xent_sample { seed, position, temperature })
        .collect();
    let (mut drawn, mut c_drawn) = (vec![7i64; rows], vec![7i64; rows]);
    let mut call: xent_token_call = zeroed();
    call.size = size_of::<xent_token_call>();
    call.logits = x.c();
    call.samples = c_samples.as_ptr();
    call.samples_len = rows;
    call.out_dtype = T::OUT;
    call.out_len = rows;
    call.sampled = c_drawn.as_mut_ptr();
    call.sampled_logprobs = out(&mut c_entropy);
    // SAFETY: as above.
    ok(unsafe { xent_tokens(options, &call) });
    let ask = LogProbs::new().sample(&samples).temperature(case.temperature);
    let wanted = TokenOutputs::new().sampled(&mut drawn).sampled_logprobs(&mut entropy);
    ask.run(x.rust(), wanted).unwrap();
    assert_eq!((&c_drawn, bits(&c_entropy)), (&drawn, bits(&entropy)));

    // Two models: the other has the classes in another order.
    let mut turned = case.clone();
    turned.x.reverse();
    let q = Memory::<T>::new(&turned);
    let [mut kl, mut c_kl, mut jsd, mut c_jsd] = [const { Vec::new() }; 4].map(|mut all| {
        all.resize(rows, 7.0f64);
        all
    });
    let mut call: xent_compare_call = zeroed();
    call.size = size_of::<xent_compare_call>();
    call.base = x.c();
    call.other = q.c();
    call.targets = targets;
    call.out_len = rows;
    call.kl = c_kl.as_mut_ptr();
    call.jsd = c_jsd.as_mut_ptr();
    // SAFETY: as above.
    ok(unsafe { xent_compare(options, &call) });
    let ask = Compare::new()
        .targets(&case.targets)
        .ignore_indices(&case.ignored)
        .temperature(case.temperature);
    let wanted = CompareOutputs::new().kl(&mut kl).jsd(&mut jsd);
    ask.divergences(x.rust(), q.rust(), wanted).unwrap();
    assert_eq!((bits(&c_kl), bits(&c_jsd)), (bits(&kl), bits(&jsd)));

    // SAFETY: as above.
    ok(unsafe { xent_options_set_temperature(options, 1.0) });
    let (mut p, mut c_p) = (vec![T::of(7.0); rows * classes], vec![T::of(7.0); rows * classes]);
    let len = rows * classes;
    // SAFETY: as above.
    ok(unsafe { xent_log_softmax(options, &x.c(), null(), out(&mut c_p), len, T::DTYPE) });
    Softmax::new().log_softmax(x.rust(), &mut p).unwrap();
    assert_eq!(bits(&c_p), bits(&p));
    // SAFETY: as above.
    ok(unsafe { xent_softmax(options, &x.c(), null(), out(&mut c_p), len, T::DTYPE) });
    Softmax::new().softmax(x.rust(), &mut p).unwrap();
    assert_eq!(bits(&c_p), bits(&p));
    // SAFETY: as above.
    ok(unsafe { xent_logsumexp(options, &x.c(), null(), out(&mut c_lse), rows, T::OUT) });
    Softmax::new().logsumexp(x.rust(), &mut lse).unwrap();
    assert_eq!(bits(&c_lse), bits(&lse));
    let mut in_place = Memory::<T>::new(case);
    // SAFETY: as above.
    ok(unsafe { xent_log_softmax_in_place(options, &in_place.c_mut(), null()) });
    let mut expected = Memory::<T>::new(case);
    Softmax::new().log_softmax_in_place(expected.rust_mut()).unwrap();
    assert_eq!(bits(&in_place.data), bits(&expected.data));
    let mut in_place = Memory::<T>::new(case);
    // SAFETY: as above.
    ok(unsafe { xent_softmax_in_place(options, &in_place.c_mut(), null()) });
    let mut expected = Memory::<T>::new(case);
    Softmax::new().softmax_in_place(expected.rust_mut()).unwrap();
    assert_eq!(bits(&in_place.data), bits(&expected.data));
    // SAFETY: nobody uses them any more.
    ok(unsafe { xent_options_free(options) });
}

/// Work that is spread over threads: over rows, and over parts of one long row. The Rust API has the threads of the process.
#[test]
fn threads_change_no_bit() {
    for (rows, classes, by_classes) in [(40, 4096, false), (40, 4096, true), (1, 600_000, false)] {
        let x = (0..rows * classes).map(|i| ((i * 7919) % 4093) as f32 / 128.0 - 16.0).collect();
        let targets = (0..rows).map(|i| if i == 3 { -100 } else { (i * 97 % classes) as i32 });
        let mut case = Case {
            rows,
            classes,
            pad: 3,
            by_classes,
            x,
            targets: targets.collect(),
            ignored: vec![0, -100, 97],
            smoothing: 0.1,
            z_loss: 1e-3,
            temperature: 0.7,
            softcap: Some(20.0),
            sum: false,
            weighted: true,
            threads: 0,
            top_k: 5,
        };
        for threads in [0, 1, 3] {
            case.threads = threads;
            check::<f32>(&case);
            check::<f64>(&case);
            check::<bf16>(&case);
            check::<f16>(&case);
        }
    }
}

proptest! {
    // Counterexamples are printed, and no file is left behind by tests.
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn c_and_rust_have_the_same_bits(case in cases()) {
        check::<f32>(&case);
        check::<f64>(&case);
        check::<bf16>(&case);
        check::<f16>(&case);
    }
}
