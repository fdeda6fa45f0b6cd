//! What the calling thread, or a thread of a pool, has set its floating-point environment to
//! changes no bit of any result, raises no signal, and is as it was afterwards, sticky flags
//! included.
#![cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]

#[cfg(feature = "rayon")]
use common::fastest;
use common::{Kind, Rng, for_each_backend, thin};
use std::any::Any;
use std::hint::black_box;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use xent::*;

/// MXCSR.
#[cfg(target_arch = "x86_64")]
mod register {
    use std::arch::asm;

    pub(super) type Register = u32;

    const DEFAULT: Register = 0x1f80;
    const ZERO: Register = 0x40;
    const FLUSH: Register = 0x8000;
    const ROUNDED_TO_ZERO: Register = 0x6000;
    const INEXACT_WAS_RAISED: Register = 0x20;
    const MASKS: Register = 0x1f80;

    /// Each bit alone, and some together.
    pub(super) const SETTINGS: &[(&str, Register)] = &[
        ("flush to zero", DEFAULT | FLUSH),
        ("denormals are zero", DEFAULT | ZERO),
        ("both, and a flag", DEFAULT | FLUSH | ZERO | INEXACT_WAS_RAISED),
        ("rounding down", DEFAULT | 0x2000),
        ("rounding up", DEFAULT | 0x4000),
        ("rounding to zero", DEFAULT | ROUNDED_TO_ZERO),
        ("a signal for invalid operations", DEFAULT & !0x80),
        ("a signal for denormal operands", DEFAULT & !0x100),
        ("a signal for divisions by zero", DEFAULT & !0x200),
        ("a signal for overflow", DEFAULT & !0x400),
        ("a signal for underflow", DEFAULT & !0x800),
        ("a signal for inexact results", DEFAULT & !0x1000),
        ("signals for all", DEFAULT & !MASKS),
        ("everything", DEFAULT & !MASKS | FLUSH | ZERO | 0x4000),
    ];

    pub(super) fn read() -> Register {
        let mut register = 0;
        // SAFETY: it writes four bytes.
        unsafe { asm!("stmxcsr [{}]", in(reg) &raw mut register, options(nostack)) };
        register
    }

    pub(super) fn write(register: Register) {
        // SAFETY: it reads four bytes, of bits that every CPU knows. Until the register is what it
        // was before, tests do no arithmetic and call functions only that the compiler knows
        // nothing of.
        unsafe { asm!("ldmxcsr [{}]", in(reg) &raw const register, options(nostack)) };
    }
}

/// FPCR. (Many CPUs raise no signals, and ignore the bits that ask for them.)
#[cfg(target_arch = "aarch64")]
mod register {
    use std::arch::asm;

    pub(super) type Register = u64;

    pub(super) const SETTINGS: &[(&str, Register)] = &[
        ("flush to zero", 1 << 24),
        ("flush to zero of f16", 1 << 19),
        ("default NaN", 1 << 25),
        ("other f16", 1 << 26),
        ("rounding up", 1 << 22),
        ("rounding down", 2 << 22),
        ("rounding to zero", 3 << 22),
        ("signals", 0x9f00),
        ("everything", 0x9f00 | 1 << 19 | 3 << 22 | 1 << 24 | 1 << 25 | 1 << 26),
    ];

    pub(super) fn read() -> Register {
        let register;
        // SAFETY: anyone may read it.
        unsafe { asm!("mrs {}, fpcr", out(reg) register, options(nostack)) };
        register
    }

    pub(super) fn write(register: Register) {
        // SAFETY: anyone may write it. Until it is what it was before, tests do no arithmetic and
        // call functions only that the compiler knows nothing of.
        unsafe { asm!("msr fpcr, {}", in(reg) register, options(nostack)) };
    }
}

use register::{Register, SETTINGS};

/// What `f` returns while the register is set so, or what it panics with. It has to leave the
/// register as it is.
fn under<R>(setting: Register, f: &dyn Fn() -> R) -> Result<R, Box<dyn Any + Send>> {
    let f = black_box(f);
    let before = register::read();
    register::write(setting);
    // What the CPU made of it.
    let set = register::read();
    let result = catch_unwind(AssertUnwindSafe(f));
    let after = register::read();
    register::write(before);
    assert_eq!(after, set, "{after:#x} instead of {set:#x}");
    result
}

fn bits_under(setting: Register, f: &dyn Fn() -> Vec<u64>) -> Vec<u64> {
    under(setting, f).unwrap_or_else(|panic| resume_unwind(panic))
}

trait Bits: Copy {
    fn bits(self) -> u64;
}

macro_rules! bits_of {
    ($($type:ty: $bits:expr;)*) => {$(
        impl Bits for $type {
            fn bits(self) -> u64 {
                $bits(self)
            }
        }
    )*};
}
bits_of! {
    f32: |x: f32| x.to_bits().into();
    f64: f64::to_bits;
    bf16: |x: bf16| x.to_bits().into();
    f16: |x: f16| x.to_bits().into();
    i64: |x| x as u64;
    bool: u64::from;
}

fn bits<T: Bits>(values: &[T]) -> Vec<u64> {
    values.iter().map(|&x| x.bits()).collect()
}

/// An error as bits, or what there is if there is none.
fn outcome<T>(result: Result<T, Error>, of: impl FnOnce(T) -> Vec<u64>) -> Vec<u64> {
    match result {
        Ok(value) => of(value),
        Err(error) => error.to_string().bytes().map(u64::from).collect(),
    }
}

/// What everything is computed from.
struct Data<T: Element> {
    rows: usize,
    vocab: usize,
    x: Vec<T>,
    other: Vec<T>,
    class_weights: Vec<T::Real>,
    probs: Vec<T::Real>,
    targets: Vec<i64>,
    token_weights: Vec<f32>,
    upstream: Vec<f64>,
    words: Vec<u32>,
    bias: Vec<(u32, f32)>,
    samples: Vec<Sample>,
}

impl<T: Element> Data<T> {
    /// Rows with a sigma of 20, where many exponentials are subnormal, but for one of nothing but
    /// subnormal numbers, one whose classes are far apart, and one with NaN.
    fn new(rows: usize, vocab: usize, of: fn(f64) -> T, real: fn(f64) -> T::Real) -> Self {
        let mut rng = Rng::new(7);
        let mut row = |i: usize| -> Vec<f64> {
            let special = [Kind::Denormals, Kind::Spikes, Kind::Special];
            let mut row: Vec<f64> = match special.get(i) {
                Some(kind) => kind.row(&mut rng, vocab).into_iter().map(f64::from).collect(),
                None => (0..vocab).map(|_| 20.0 * f64::from(rng.normal())).collect(),
            };
            if i == 0 && size_of::<T>() == 8 {
                row.iter_mut().for_each(|x| *x = f64::from_bits(rng.bits() & !(0x7ff << 52)));
            }
            row
        };
        let x = (0..rows).flat_map(&mut row).map(of).collect();
        let other = (0..rows).flat_map(&mut row).map(of).collect();
        // Of subnormal numbers too.
        let small = |i: usize, x: f64| if i % 5 == 3 { x * 1e-39 } else { x };
        let mut unit = |i: usize| small(i, rng.unit());
        let class_weights = (0..vocab).map(|i| real(unit(i))).collect();
        let probs = (0..rows * vocab).map(|i| real(unit(i))).collect();
        let token_weights = (0..rows).map(|i| unit(i + 2) as f32).collect();
        let upstream = (0..rows).map(|i| small(i, unit(i))).collect();
        let targets = (0..rows).map(|i| if i == 4 { -100 } else { rng.below(vocab) as i64 });
        let targets = targets.collect();
        let words = (0..rows * vocab.div_ceil(32)).map(|_| rng.bits() as u32 | 1).collect();
        let bias = (0..vocab as u32).step_by(3).map(|id| (id, rng.normal() * 1e-38)).collect();
        let samples = [1.0, 0.7, 1e-320, 0.0, 1e300];
        let samples = (0..rows)
            .map(|i| Sample::new(42, i as u64).temperature(samples[i % samples.len()]))
            .collect();
        Data {
            rows,
            vocab,
            x,
            other,
            class_weights,
            probs,
            targets,
            token_weights,
            upstream,
            words,
            bias,
            samples,
        }
    }

    fn logits(&self) -> Logits<'_, T> {
        Logits::new(&self.x, self.rows, self.vocab).unwrap()
    }

    fn columns(&self) -> Logits<'_, T> {
        Logits::classes_first(&self.x, 1, self.vocab, self.rows).unwrap()
    }

    fn zeros(&self) -> Vec<T::Real> {
        vec![T::Real::default(); self.rows]
    }

    fn matrix(&self) -> Vec<T> {
        vec![T::default(); self.x.len()]
    }
}

type Operation<'a> = (String, Box<dyn Fn() -> Vec<u64> + Send + Sync + 'a>);

fn evaluation(e: &Evaluation) -> Vec<u64> {
    bits(&[
        e.loss(),
        e.cross_entropy(),
        e.z_loss(),
        e.sum(),
        e.mean(),
        e.stderr(),
        e.perplexity(),
        e.perplexity_stderr(),
        e.bits_per_token(),
        e.bits_per_byte(12_345_679),
        e.accuracy().unwrap_or(-1.0),
    ])
}

/// The options that matter, by name. All are used with all targets that they go with.
fn losses<'a, T: Element>(
    data: &'a Data<T>,
    backend: Backend,
) -> Vec<(&'static str, CrossEntropy<'a>)>
where
    Floats<'a>: From<&'a [T::Real]>,
{
    let ce = || CrossEntropy::new().backend(backend);
    let allowed = AllowedTokens::new(&data.words);
    vec![
        ("plain", ce()),
        ("sum", ce().reduction(Reduction::Sum)),
        ("mean over 3", ce().reduction(Reduction::MeanOver(3.0))),
        ("mean over 1e-310", ce().reduction(Reduction::MeanOver(1e-310))),
        ("smoothing", ce().label_smoothing(0.1)),
        ("smoothing 1e-310", ce().label_smoothing(1e-310)),
        ("class weights", ce().class_weights(&data.class_weights[..])),
        ("token weights", ce().token_weights(&data.token_weights)),
        ("z-loss", ce().z_loss(1e-4)),
        ("z-loss 1e-310", ce().z_loss(1e-310)),
        ("softcap", ce().softcap(30.0)),
        ("softcap of all", ce().softcap_of_all(5.0)),
        ("temperature", ce().temperature(0.7)),
        ("temperature 1e-40", ce().temperature(1e-40)),
        ("temperature 1e-310", ce().temperature(1e-310)),
        ("scale", ce().logit_scale(1.1e-38)),
        ("mask", ce().allowed_tokens(allowed)),
        (
            "all",
            ce().label_smoothing(0.1)
                .class_weights(&data.class_weights[..])
                .token_weights(&data.token_weights)
                .z_loss(1e-4)
                .softcap(30.0)
                .temperature(0.7)
                .allowed_tokens(allowed),
        ),
    ]
}

/// Everything that can be computed from rows of that type.
fn operations<'a, T>(data: &'a Data<T>, backend: Backend) -> Vec<Operation<'a>>
where
    T: Element<Real: Bits> + Bits,
    Floats<'a>: From<&'a [T::Real]>,
{
    let mut all: Vec<Operation<'a>> = Vec::new();
    let (rows, vocab) = (data.rows, data.vocab);
    let ids: Targets<'a> = (&data.targets).into();
    let probs = Targets::probs(&data.probs[..]);
    for (name, ce) in losses(data, backend) {
        for (kind, targets) in [("ids", ids), ("probabilities", probs)] {
            let each = ce.clone();
            all.push((
                format!("evaluate, {name}, {kind}"),
                Box::new(move || {
                    let [mut losses, mut logprobs, mut lse, mut z] = [0; 4].map(|_| data.zeros());
                    let mut argmax = vec![0; rows];
                    let mut saved = vec![LogSumExp::default(); rows];
                    let out = RowOutputs::new()
                        .losses(&mut losses)
                        .logprobs(&mut logprobs)
                        .logsumexp(&mut lse)
                        .z_losses(&mut z)
                        .saved(&mut saved)
                        .argmax(&mut argmax);
                    let mut found = outcome(each.evaluate(data.logits(), targets, out), |e| {
                        [evaluation(&e), evaluation(&e.merge(&e))].concat()
                    });
                    found.extend([losses, logprobs, lse, z].iter().flat_map(|x| bits(x)));
                    found.extend(bits(&argmax));
                    found.extend(saved.iter().flat_map(|saved| [saved.hi.bits(), saved.lo.bits()]));
                    found
                }),
            ));
            let each = ce.clone();
            all.push((
                format!("gradient, {name}, {kind}"),
                Box::new(move || {
                    let mut found = Vec::new();
                    for accumulate in [false, true] {
                        let mut g = data.other.clone();
                        let to = LogitsMut::new(&mut g, rows, vocab).unwrap();
                        let mut gradient = Gradient::new(to).upstream(1e-40);
                        if accumulate {
                            gradient = gradient.accumulate();
                        }
                        let out = RowOutputs::new();
                        let result = each.forward_backward(data.logits(), targets, gradient, out);
                        found.extend(outcome(result, |e| evaluation(&e)));
                        found.extend(bits(&g));
                    }
                    let mut g = data.x.clone();
                    let x = LogitsMut::new(&mut g, rows, vocab).unwrap();
                    let upstream = Upstream::rows(&data.upstream);
                    let out = RowOutputs::new();
                    let result = each.forward_backward_in_place(x, targets, upstream, out);
                    found.extend(outcome(result, |e| evaluation(&e)));
                    found.extend(bits(&g));
                    found
                }),
            ));
        }
        let each = ce.clone();
        all.push((
            format!("forward, backward, sequences, {name}"),
            Box::new(move || {
                let mut found = Vec::new();
                for logits in [data.logits(), data.columns()] {
                    found.extend(outcome(each.forward(logits, ids), |loss| vec![loss.bits()]));
                    let mut losses = data.zeros();
                    let result = each.forward_into(logits, ids, &mut losses);
                    found.extend(outcome(result, |()| bits(&losses)));
                    let mut saved = vec![LogSumExp::default(); rows];
                    let out = RowOutputs::new().saved(&mut saved);
                    found.extend(outcome(each.evaluate(logits, ids, out), |_| Vec::new()));
                    let mut g = data.matrix();
                    let to = LogitsMut::new(&mut g, rows, vocab).unwrap();
                    let gradient = Gradient::new(to).upstream(0.3);
                    let result = each.backward(logits, ids, &saved, gradient);
                    found.extend(outcome(result, |()| bits(&g)));
                }
                let result = each.score_sequences(data.logits(), ids, &[0, 2, 2, rows]);
                found.extend(outcome(result, |scores| {
                    let each = scores.iter().flat_map(|s| [s.logprob, s.mean(), s.perplexity()]);
                    each.map(f64::to_bits).collect()
                }));
                found
            }),
        ));
    }
    for masked in [false, true] {
        let mut softmax = Softmax::new().backend(backend);
        if masked {
            softmax = softmax.allowed_tokens(AllowedTokens::new(&data.words));
        }
        all.push((
            format!("softmax, mask {masked}"),
            Box::new(move || {
                let (mut p, mut log_p, mut lse) = (data.matrix(), data.matrix(), data.zeros());
                softmax.softmax(data.logits(), &mut p).unwrap();
                softmax.log_softmax(data.columns(), &mut log_p).unwrap();
                softmax.logsumexp(data.logits(), &mut lse).unwrap();
                let (mut in_place, mut log) = (data.x.clone(), data.x.clone());
                let of = |x| LogitsMut::new(x, rows, vocab).unwrap();
                softmax.softmax_in_place(of(&mut in_place)).unwrap();
                softmax.log_softmax_in_place(of(&mut log)).unwrap();
                let all = [p, log_p, in_place, log].map(|x| bits(&x)).concat();
                [all, bits(&lse)].concat()
            }),
        ));
    }
    let ask = LogProbs::new().backend(backend).targets(ids);
    let bias = LogitBias::new(&data.bias);
    let everything = ask
        .temperature(0.7)
        .logit_bias(bias)
        .allowed_tokens(AllowedTokens::new(&data.words))
        .sample(&data.samples);
    for (name, ask) in [
        ("plain", ask),
        ("sampled", ask.sample(&data.samples)),
        ("temperature 1.2e-38", ask.temperature(1.2e-38)),
        ("temperature 1e-40", ask.temperature(1e-40)),
        ("temperature 1e-310", ask.temperature(1e-310)),
        ("all", everything),
    ] {
        let k = vocab.min(9);
        all.push((
            format!("log-probabilities, {name}"),
            Box::new(move || {
                let ask = ask.top_k(k).ranks(true).entropy(true).varentropy(true);
                let ask = ask.candidates(&[0i64; 64][..rows], 1);
                outcome(ask.collect(data.logits()), |found| {
                    let reals = [
                        &found.logprobs,
                        &found.candidates,
                        &found.top_logprobs,
                        &found.entropy,
                        &found.varentropy,
                        &found.logsumexp,
                        &found.sampled_logprobs,
                    ];
                    let ids = [
                        &found.ranks,
                        &found.strict_ranks,
                        &found.top_ids,
                        &found.argmax,
                        &found.sampled,
                    ];
                    let mut all: Vec<u64> = reals.iter().flat_map(|x| bits(x)).collect();
                    all.extend(ids.iter().flat_map(|x| bits(x)));
                    // Of the last row, as the others need not have a token.
                    let ids = &found.top_ids[(rows - 1) * k..];
                    let logprobs = &found.top_logprobs[(rows - 1) * k..];
                    for sampler in [
                        Sampler::new().top_k(k),
                        Sampler::new().top_k(k).top_p(0.5),
                        Sampler::new().top_k(k).top_p(1e-310),
                        Sampler::new().top_k(k).min_p(1e-40),
                    ] {
                        for t in [1.0, 0.3, 1e-310, 0.0] {
                            let sample = Sample::new(7, 9).temperature(t);
                            let drawn = sampler.draw(ids, logprobs, vocab, sample);
                            all.extend(outcome(drawn, |id| vec![id.bits()]));
                        }
                    }
                    all
                })
            }),
        ));
    }
    for (name, compare) in [
        ("plain", Compare::new()),
        ("temperature 1e-40", Compare::new().temperature(1e-40)),
        ("beta 1e-310", Compare::new().beta(1e-310)),
        (
            "all",
            Compare::new()
                .temperature(0.7)
                .beta(0.3)
                .allowed_tokens(AllowedTokens::new(&data.words)),
        ),
    ] {
        let compare = compare.backend(backend).targets(ids);
        all.push((
            format!("comparison, {name}"),
            Box::new(move || {
                let other = Logits::new(&data.other, rows, vocab).unwrap();
                let zeros = || vec![0.0; rows];
                let (mut reverse, mut jsd, mut variation) = (zeros(), zeros(), zeros());
                let out = CompareOutputs::new()
                    .reverse_kl(&mut reverse)
                    .jsd(&mut jsd)
                    .total_variation(&mut variation);
                let mut found = outcome(compare.evaluate(data.logits(), other, out), |all| {
                    let at = all.at_targets().unwrap();
                    let estimates = [
                        all.mean_kl(),
                        all.same_top(),
                        at.base_perplexity(),
                        at.other_perplexity(),
                        at.log_ratio(),
                        at.ratio(),
                        at.difference(),
                        at.mean_delta_p(),
                        at.rms_delta_p(),
                        Estimate::of(all.kl()),
                        Estimate::of(&data.upstream),
                    ];
                    let mut found = bits(&[at.correlation()]);
                    found.extend(estimates.iter().flat_map(|e| bits(&[e.value, e.stderr])));
                    found.extend(bits(&all.kl_percentiles([0.0, 0.3, 1.0])));
                    found.extend(bits(&at.delta_p_percentiles([0.1, 1e-310])));
                    for values in [all.kl(), at.base_logprobs(), at.other_logprobs(), at.delta_p()]
                    {
                        found.extend(bits(values));
                    }
                    found
                });
                found.extend([reverse, jsd, variation].iter().flat_map(|x| bits(x)));
                found
            }),
        ));
    }
    all
}

/// What is merged of shards.
fn of_shards<'a, T>(data: &'a Data<T>, backend: Backend) -> Vec<Operation<'a>>
where
    T: Element<Real = f32> + Bits,
{
    let mut all: Vec<Operation<'a>> = Vec::new();
    let (rows, vocab) = (data.rows, data.vocab);
    let middle = vocab / 2;
    let halves = move || {
        let of = |first, len| {
            Logits::with_stride(&data.x[first..], rows, len, vocab).map(|x| (first, x)).unwrap()
        };
        [of(0, middle), of(middle, vocab - middle)]
    };
    for name in ["plain", "all"] {
        all.push((
            format!("statistics of shards, {name}"),
            Box::new(move || {
                let mut ask = LogProbs::new().backend(backend).targets(&data.targets);
                ask = ask.top_k(5).ranks(true).entropy(true).varentropy(true);
                if name == "all" {
                    ask = ask.temperature(0.7).sample(&data.samples);
                }
                let parts = halves().map(|(first, logits)| {
                    let mut stats = vec![RowStats::default(); rows];
                    let elsewhere = &data.token_weights;
                    let shard = Shard::new(first, vocab).target_logits(elsewhere);
                    ask.row_stats(logits, shard, &mut stats).unwrap();
                    stats
                });
                let mut found = Vec::new();
                for (a, b) in parts[0].iter().zip(&parts[1]) {
                    let merged = a.merge(b).unwrap();
                    let bytes = merged.to_bytes();
                    found.extend(bytes.iter().map(|&byte| u64::from(byte)));
                    let row = RowStats::from_bytes(&bytes).unwrap();
                    let reals = [row.loss(), row.logprob(), Some(row.logsumexp()), row.entropy()];
                    let more = [row.varentropy(), Some(row.logprob_of(1e-40))];
                    let reals = reals.into_iter().chain(more).map(|x| x.unwrap_or(f64::NAN));
                    found.extend(reals.map(f64::to_bits));
                    found.extend([row.rank(), row.strict_rank()].map(|x| x.unwrap_or(u64::MAX)));
                    let ids = [row.argmax(), row.sampled()].map(|x| x.unwrap_or(u32::MAX));
                    found.extend(ids.map(u64::from));
                    let singles = [row.target_logit().unwrap_or(0.0), row.saved().hi];
                    found.extend(bits(&singles));
                    found.push(row.saved().lo.bits());
                    for top in row.top_k() {
                        found.extend([top.id.into(), top.logit.bits(), top.logprob.bits()]);
                    }
                }
                found
            }),
        ));
    }
    for (name, ce) in losses(data, backend) {
        all.push((
            format!("loss of shards, {name}"),
            Box::new(move || {
                let targets = &data.targets;
                let mut stats = [0; 2].map(|_| vec![LossStats::default(); rows]);
                let mut found = Vec::new();
                for ((first, logits), stats) in halves().into_iter().zip(&mut stats) {
                    // A mask of the first half will do for both.
                    let ce = ce.clone().shard(Shard::new(first, vocab));
                    let result = ce.stats(logits, targets, stats);
                    found.extend(outcome(result, |()| Vec::new()));
                }
                let merged: Vec<_> =
                    stats[0].iter().zip(&stats[1]).map(|(a, b)| a.merge(b)).collect();
                for row in &merged {
                    let bytes = row.to_bytes();
                    found.extend(bytes.iter().map(|&byte| u64::from(byte)));
                    let row = LossStats::from_bytes(&bytes).unwrap();
                    found.extend(bits(&[row.loss().unwrap_or(0.5), row.logsumexp()]));
                    let singles = [row.saved().hi, row.saved().lo];
                    found.extend(bits(&singles));
                    found.push(row.target_logit().unwrap_or(0.0).bits());
                }
                let whole = ce.clone().shard(Shard::new(0, vocab));
                let mut saved = vec![LogSumExp::default(); rows];
                let mut losses = vec![0.0; rows];
                let out = RowOutputs::new().saved(&mut saved).losses(&mut losses);
                let result = whole.evaluate(&merged, targets, out);
                found.extend(outcome(result, |e| evaluation(&e)));
                found.extend(bits(&losses));
                let mut g = data.matrix();
                let to = Gradient::new(LogitsMut::new(&mut g, rows, vocab).unwrap());
                let result = whole.backward(data.logits(), targets, &saved, to);
                found.extend(outcome(result, |()| bits(&g)));
                found.extend(outcome(whole.fingerprint(rows, targets), |hash| vec![hash]));
                found
            }),
        ));
    }
    all
}

/// Every operation of every type, with each of the settings.
fn check_all<T>(data: &Data<T>, backend: Backend, more: Vec<Operation<'_>>)
where
    T: Element<Real: Bits> + Bits,
    for<'a> Floats<'a>: From<&'a [T::Real]>,
{
    for (name, f) in operations(data, backend).into_iter().chain(more) {
        let want = f();
        for &(setting, register) in SETTINGS {
            let got = bits_under(register, &f);
            assert!(got == want, "{backend}, {name}: other bits with {setting}");
        }
    }
}

fn f16_data(rows: usize, vocab: usize) -> Data<f16> {
    Data::new(rows, vocab, f16::from_f64, |x| x as f32)
}

fn bf16_data(rows: usize, vocab: usize) -> Data<bf16> {
    Data::new(rows, vocab, bf16::from_f64, |x| x as f32)
}

fn f32_data(rows: usize, vocab: usize) -> Data<f32> {
    Data::new(rows, vocab, |x| x as f32, |x| x as f32)
}

fn f64_data(rows: usize, vocab: usize) -> Data<f64> {
    Data::new(rows, vocab, |x| x, |x| x)
}

#[test]
fn bits_do_not_depend_on_the_environment() {
    for_each_backend(|backend| {
        // Two blocks, of those that are fast.
        let shapes = [(6, 67), (5, 1111)];
        let count = if backend <= Backend::Portable || thin() > 1 { 1 } else { 2 };
        for (rows, vocab) in shapes.into_iter().take(count) {
            let data = f32_data(rows, vocab);
            check_all(&data, backend, of_shards(&data, backend));
            let data = bf16_data(rows, vocab);
            check_all(&data, backend, of_shards(&data, backend));
            let data = f16_data(rows, vocab);
            check_all(&data, backend, of_shards(&data, backend));
            check_all(&f64_data(rows, vocab), backend, Vec::new());
        }
    });
}

/// Threads inherit the register from the one that starts them.
#[cfg(feature = "rayon")]
fn pool(setting: Register, threads: usize) -> rayon::ThreadPool {
    let build = || rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    let pool = under(setting, &build).unwrap_or_else(|panic| resume_unwind(panic));
    let before = register::read();
    register::write(setting);
    let set = register::read();
    register::write(before);
    assert!(pool.broadcast(|_| register::read()).iter().all(|&found| found == set));
    pool
}

/// As many classes as are cut into parts, and as many rows as are spread over threads.
#[cfg(feature = "rayon")]
#[test]
fn nor_on_that_of_the_threads() {
    if thin() > 1 {
        println!("left out: rows so long take minutes in an emulator");
        return;
    }
    let backend = fastest();
    let (wide, tall, double) = (f32_data(1, 270_000), f32_data(40, 5003), f64_data(16, 5003));
    let half = bf16_data(16, 5003);
    let mut all = operations(&tall, backend);
    all.extend(of_shards(&tall, backend));
    all.extend(operations(&double, backend));
    all.extend(operations(&half, backend));
    all.extend(
        operations(&wide, backend).into_iter().filter(|(name, _)| name.starts_with("log-prob")),
    );
    let want: Vec<_> = all.iter().map(|(_, f)| on_calling_thread(f)).collect();
    let last = SETTINGS.len() - 1;
    for (setting, register) in [0, 2, 5, last - 1, last].map(|i| SETTINGS[i]) {
        for threads in 1..=3 {
            let pool = pool(register, threads);
            for ((name, f), want) in all.iter().zip(&want).skip(threads - 1).step_by(3) {
                // Of a thread that has what programs start with, and of one that has another
                // setting than the pool.
                assert!(pool.install(f) == *want, "{name}: threads with {setting}");
                let other = SETTINGS[0].1;
                let got = under(other, &|| pool.install(f));
                assert!(got.unwrap() == *want, "{name}: threads with {setting}");
            }
            let set = pool.broadcast(|_| register::read());
            assert!(set.windows(2).all(|pair| pair[0] == pair[1]), "{setting}: {set:x?}");
        }
    }
}

/// Subnormal gradients by the ten thousand.
#[test]
fn the_gradient_of_a_batch() {
    for_each_backend(|backend| {
        let slow = backend <= Backend::Portable;
        let (rows, vocab) =
            if thin() > 1 { (1, 3001) } else { (if slow { 3 } else { 64 }, 50_257) };
        let mut rng = Rng::new(1);
        let x: Vec<f32> = (0..rows * vocab).map(|_| 20.0 * rng.normal()).collect();
        let targets: Vec<i64> = (0..rows).map(|_| rng.below(vocab) as i64).collect();
        let gradient = || {
            let logits = Logits::new(&x, rows, vocab).unwrap();
            let mut g = vec![0.0_f32; x.len()];
            let to = Gradient::new(LogitsMut::new(&mut g, rows, vocab).unwrap());
            let ce = CrossEntropy::new().backend(backend);
            let e = ce.forward_backward(logits, &targets, to, RowOutputs::new()).unwrap();
            [bits(&g), evaluation(&e)].concat()
        };
        let want = on_calling_thread(gradient);
        let subnormal = want.iter().filter(|&&g| f32::from_bits(g as u32).is_subnormal()).count();
        println!("{backend}: {subnormal} subnormal elements");
        for &(setting, register) in SETTINGS {
            assert!(bits_under(register, &gradient) == want, "{backend}: {setting}");
            let alone = || on_calling_thread(gradient);
            assert!(bits_under(register, &alone) == want, "{backend}: {setting}");
            #[cfg(feature = "rayon")]
            for threads in (1..=3).take(if backend == fastest() { 3 } else { 0 }) {
                let got = pool(register, threads).install(gradient);
                assert!(got == want, "{backend}: {threads} threads with {setting}");
            }
        }
    });
}

/// The oracle, plain functions, and arithmetic of the builder.
#[test]
fn everything_else() {
    let (x, y) = (f32_data(6, 67), f64_data(6, 67));
    let row = |i: usize| &x.x[i * 67..][..67];
    let row_f64 = |i: usize| &y.x[i * 67..][..67];
    let options =
        || reference::Options { label_smoothing: 0.1, z_loss: 1e-4, ..Default::default() };
    let mut all: Vec<Operation<'_>> = vec![
        (
            "the oracle".to_owned(),
            Box::new(|| {
                let mut found = Vec::new();
                for i in [0, 1, 4, 5] {
                    let reference::Row { loss, logsumexp, argmax } = reference::row(row(i), 3);
                    found.extend([loss.bits(), logsumexp.bits(), argmax as u64]);
                    found.extend(bits(&reference::softmax(row(i))));
                    found.extend(bits(&reference::log_softmax(row(i))));
                    found.extend(bits(&[
                        reference::entropy(row(i)),
                        reference::varentropy(row(i)),
                        reference::kl(row(i), row(5)),
                        reference::jsd(row(i), row(5), 0.3),
                        reference::total_variation(row(i), row(5)),
                        reference::ulp_error(row(i)[0], 1.0),
                    ]));
                    let target = reference::Target::Class(3);
                    found.push(reference::loss(row(i), target, &options()).cross_entropy.bits());
                    let upstream = [1e-310, 1.0];
                    found.extend(bits(&reference::gradient(row(i), target, &options(), upstream)));
                    found.push(reference::two_pass_f32(row(i), 3).bits());
                    let precise = reference::logsumexp_f64(row_f64(i));
                    found.extend(bits(&[precise.hi, precise.lo]));
                    let precise = reference::softmax_f64(row_f64(i));
                    found.extend(precise.iter().flat_map(|p| bits(&[p.hi, p.lo])));
                }
                let (sum, kept) = reference::cross_entropy(&x.x, 67, &x.targets, -100);
                found.extend([sum.bits(), kept as u64]);
                found
            }),
        ),
        (
            "sums of class weights".to_owned(),
            Box::new(|| {
                let weights = [1e-310, 0.1, 1e16, 0.3, -1e16, 5e-324];
                let ce = CrossEntropy::new().label_smoothing(0.3).class_weights(&weights);
                let logits = Logits::new(&y.x[..6], 1, 6).unwrap();
                outcome(ce.forward(logits, &[1i64]), |loss| vec![loss.bits()])
            }),
        ),
    ];
    #[cfg(feature = "serde")]
    {
        let samples: Vec<Sample> = (0..6).map(|i| Sample::new(1, i)).collect();
        let ids = [0i64; 6];
        let ask = LogProbs::new().targets(&ids).top_k(3).sample(&samples);
        let found = ask.collect(x.logits()).unwrap();
        all.push((
            "logprobs of a server".to_owned(),
            Box::new(move || {
                let set = register::read();
                // The code of the caller finds what the caller has set.
                let text = |id: i64| {
                    assert_eq!(register::read(), set);
                    [id as u8]
                };
                let choice = openai::ChoiceLogprobs::new(&found, &ids, text).unwrap();
                let mut all: Vec<f32> =
                    choice.content.iter().filter_map(|token| token.logprob).collect();
                for token in &choice.content {
                    all.extend(token.top_logprobs.iter().map(|top| top.logprob));
                }
                bits(&all)
            }),
        ));
    }
    for (name, f) in &mut all {
        let want = f();
        for &(setting, register) in SETTINGS {
            assert!(bits_under(register, f) == want, "{name}: other bits with {setting}");
        }
    }
}

/// `under` checks that the register is as it was.
#[test]
fn errors_and_panics_give_the_register_back() {
    let logits = Logits::new(&[1.0_f32, 2.0], 1, 2).unwrap();
    for &(_, register) in SETTINGS {
        let ce = CrossEntropy::new;
        let errors: [&dyn Fn() -> Result<f64, Error>; 5] = [
            &|| ce().forward(logits, &[2i64]),
            &|| ce().temperature(f64::NAN).forward(logits, &[0i64]),
            &|| ce().temperature(1e-310).forward(logits, &[0i64]),
            &|| ce().reduction(Reduction::MeanOver(-1e-310)).forward(logits, &[0i64]),
            &|| ce().label_smoothing(-1e-310).forward(logits, &[0i64]),
        ];
        for f in errors {
            assert_eq!(under(register, &f).unwrap(), f());
            assert!(f().is_err());
        }
        // In the middle of arithmetic, and in code of the caller.
        let panics: [&dyn Fn(); 2] = [&|| _ = reference::row(&[1.0_f32], 5), &|| {
            on_calling_thread(|| {
                ce().forward(logits, &[0i64]).unwrap();
                panic!("on purpose")
            })
        }];
        for f in panics {
            assert!(under(register, &f).is_err());
        }
    }
}

/// A thread that waits for others may run what else the caller has to do.
#[cfg(feature = "rayon")]
#[test]
fn tasks_of_the_caller_find_what_it_has_set() {
    use std::sync::atomic::{AtomicUsize, Ordering};
    let data = f32_data(16, 9001);
    let wide = f32_data(1, 300_000);
    let register = SETTINGS[0].1;
    let pool = pool(register, 3);
    let tasks = AtomicUsize::new(0);
    pool.install(|| {
        let set = register::read();
        rayon::scope(|scope| {
            for _ in 0..100 {
                scope.spawn(|_| {
                    CrossEntropy::new().forward(data.logits(), &data.targets).unwrap();
                    let ask = LogProbs::new().targets(&wide.targets);
                    let mut rank = [0];
                    ask.run(wide.logits(), TokenOutputs::new().ranks(&mut rank)).unwrap();
                    assert_eq!(register::read(), set);
                });
                for _ in 0..10 {
                    scope.spawn(|_| {
                        assert_eq!(register::read(), set);
                        tasks.fetch_add(1, Ordering::Relaxed);
                    });
                }
            }
        });
    });
    assert_eq!(tasks.into_inner(), 1000);
}
