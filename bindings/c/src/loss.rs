//! Losses, their gradients, and scores of sequences.
#![allow(unsafe_code, reason = "functions of the C ABI; raw.rs has what is not a call")]

use crate::options::xent_options;
use crate::raw::{self, Logit, Memory};
use crate::status::{Failure, guard, xent_status};
use crate::types::*;
use crate::views::{self, for_dtype};
use std::ffi::c_void;
use xent::internals::in_default_float_env;
use xent::{
    CrossEntropy, Evaluation, Floats, Gradient, LogSumExp, RowOutputs, SequenceScore, Upstream,
};

/// The loss: cross-entropy of logits and targets, reduced as the options say. `options` may be NULL.
///
/// # Safety
/// Pointers are NULL or valid, as are those in what they point to.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xent_forward(
    options: *const xent_options,
    logits: *const xent_matrix,
    targets: *const xent_ids,
    loss: *mut f64,
) -> xent_status {
    guard(|| {
        let mut memory = Memory::new();
        // SAFETY: the caller promises that all of this is NULL or valid.
        let (options, logits, how, loss) = unsafe {
            let options = xent_options::get(options);
            let (logits, how) = (raw::read("logits", logits)?, raw::read("targets", targets)?);
            (options, logits, how, memory.one("loss", loss)?)
        };
        // SAFETY: the same.
        let ids = unsafe { views::ids(&mut memory, "targets", &how) }?;
        let ids = ids.ok_or(Failure::Missing { output: "loss", needs: "targets" })?;
        let targets = views::targets(&ids, &how)?;
        let value = for_dtype!("logits", logits.dtype, T => {
            // SAFETY: the same.
            let logits = unsafe { views::matrix::<T>(&mut memory, "logits", &logits) }?;
            let shape = (logits.rows(), logits.vocab());
            let ce = options.cross_entropy();
            options.run(shape, 0, || ce.forward(logits, targets)).map_err(Failure::from)
        })?;
        loss.set(value);
        Ok(())
    })
}

/// The loss of each row, unreduced, into `losses`; 0 for ignored rows. Does not allocate, unless classes or targets are apart.
///
/// `len` is the number of rows; `dtype` is `XENT_F32`, or `XENT_F64` for logits that are.
///
/// # Safety
/// As `xent_forward`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xent_forward_into(
    options: *const xent_options,
    logits: *const xent_matrix,
    targets: *const xent_ids,
    losses: *mut c_void,
    len: usize,
    dtype: i32,
) -> xent_status {
    guard(|| {
        // SAFETY: the caller promises that all of this is NULL or valid.
        let (options, logits, how) = unsafe {
            let options = xent_options::get(options);
            (options, raw::read("logits", logits)?, raw::read("targets", targets)?)
        };
        let mut memory = Memory::new();
        // SAFETY: the same.
        let ids = unsafe { views::ids(&mut memory, "targets", &how) }?;
        let ids = ids.ok_or(Failure::Missing { output: "losses", needs: "targets" })?;
        let targets = views::targets(&ids, &how)?;
        for_dtype!("logits", logits.dtype, T => {
            views::check_precision::<<T as xent::Element>::Real>("losses", dtype)?;
            // SAFETY: the same.
            let (logits, losses) = unsafe {(
                views::matrix::<T>(&mut memory, "logits", &logits)?,
                memory.output("losses", losses, len as u128)?,
            )};
            let shape = (logits.rows(), logits.vocab());
            let ce = options.cross_entropy();
            options.run(shape, 0, || ce.forward_into(logits, targets, losses)).map_err(Failure::from)
        })
    })
}

/// Everything that the pass over the rows can tell: sums for loss, perplexity and accuracy into `evaluation`, and the results
/// per row that the call asks for. `options` and `evaluation` may be NULL.
///
/// # Safety
/// As `xent_forward`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xent_evaluate(
    options: *const xent_options,
    call: *const xent_call,
    evaluation: *mut xent_evaluation,
) -> xent_status {
    // SAFETY: passed on.
    unsafe { run(Kind::Evaluate, options, call, 1.0, evaluation) }
}

/// Loss, and its gradient by the logits times `upstream`, into the matrix `gradient` of the call, for one read of the logits.
/// `options` and `evaluation` may be NULL.
///
/// # Safety
/// As `xent_forward`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xent_forward_backward(
    options: *const xent_options,
    call: *const xent_call,
    upstream: f64,
    evaluation: *mut xent_evaluation,
) -> xent_status {
    // SAFETY: passed on.
    unsafe { run(Kind::ForwardBackward, options, call, upstream, evaluation) }
}

/// As `xent_forward_backward`, in place: the logits are in `gradient` and are overwritten, and `logits` is `XENT_NONE`.
///
/// # Safety
/// As `xent_forward`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xent_forward_backward_in_place(
    options: *const xent_options,
    call: *const xent_call,
    upstream: f64,
    evaluation: *mut xent_evaluation,
) -> xent_status {
    // SAFETY: passed on.
    unsafe { run(Kind::ForwardBackwardInPlace, options, call, upstream, evaluation) }
}

/// The gradient alone, from what an earlier pass with the same options, logits and targets found out about each row:
/// `saved_from` is what `saved` was. No output per row may be asked for.
///
/// # Safety
/// As `xent_forward`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xent_backward(
    options: *const xent_options,
    call: *const xent_call,
    upstream: f64,
) -> xent_status {
    // SAFETY: passed on.
    unsafe { run(Kind::Backward, options, call, upstream, std::ptr::null_mut()) }
}

/// As `xent_backward`, in place of the logits, which are in `gradient`; `logits` is `XENT_NONE`.
///
/// # Safety
/// As `xent_forward`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xent_backward_in_place(
    options: *const xent_options,
    call: *const xent_call,
    upstream: f64,
) -> xent_status {
    // SAFETY: passed on.
    unsafe { run(Kind::BackwardInPlace, options, call, upstream, std::ptr::null_mut()) }
}

/// The score of each sequence of a ragged batch: sequence `i` is rows `offsets[i]` to `offsets[i + 1]`, as `cu_seqlens` of
/// variable-length attention has it. `n` sequences have `n + 1` offsets, from 0 to the number of rows, and `n` scores.
///
/// Of the call, logits, targets and allowed classes are used; token weights may not be given, and no output per row may be
/// asked for. Class weights, smoothing, z-loss and reduction have no part in scores.
///
/// # Safety
/// As `xent_forward`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xent_sequences(
    options: *const xent_options,
    call: *const xent_call,
    offsets: *const usize,
    offsets_len: usize,
    scores: *mut xent_sequence_score,
    scores_len: usize,
) -> xent_status {
    guard(|| {
        let function = Kind::Sequences.name();
        // SAFETY: the caller promises that all of this is NULL or valid.
        let (options, call) =
            unsafe { (xent_options::get(options), raw::read_sized("call", call)?) };
        check_unused(Kind::Sequences, &call)?;
        let mut memory = Memory::new();
        // SAFETY: the same.
        let (offsets, scores) = unsafe {
            (
                memory.input::<usize>("offsets", offsets.cast(), offsets_len as u128)?,
                memory.output::<xent_sequence_score>(
                    "scores",
                    scores.cast(),
                    scores_len as u128,
                )?,
            )
        };
        // SAFETY: the same.
        let ids = unsafe { views::ids(&mut memory, "targets", &call.targets) }?;
        let ids = ids.ok_or(Failure::Missing { output: function, needs: "targets" })?;
        let targets = views::targets(&ids, &call.targets)?;
        // SAFETY: the same.
        let ce = unsafe { cross_entropy(options, &mut memory, &call) }?;
        let mut found = Vec::new();
        if found.try_reserve_exact(scores.len()).is_err() {
            let (len, size) = (scores.len(), size_of::<SequenceScore>());
            return Err(Failure::Memory { len, size });
        }
        found.resize(scores.len(), SequenceScore::default());
        for_dtype!("logits", call.logits.dtype, T => {
            // SAFETY: the same.
            let logits = unsafe { views::matrix::<T>(&mut memory, "logits", &call.logits) }?;
            let shape = (logits.rows(), logits.vocab());
            let ce = ce.get();
            options
                .run(shape, 0, || ce.sequences(logits, targets, offsets, &mut found))
                .map_err(Failure::from)
        })?;
        for (to, from) in scores.iter_mut().zip(&found) {
            *to = xent_sequence_score {
                logprob: from.logprob,
                tokens: from.tokens as u64,
                first_mismatch: from.first_mismatch.map_or(-1, |row| row as i64),
            };
        }
        Ok(())
    })
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Evaluate,
    ForwardBackward,
    ForwardBackwardInPlace,
    Backward,
    BackwardInPlace,
    Sequences,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Evaluate => "xent_evaluate",
            Kind::ForwardBackward => "xent_forward_backward",
            Kind::ForwardBackwardInPlace => "xent_forward_backward_in_place",
            Kind::Backward => "xent_backward",
            Kind::BackwardInPlace => "xent_backward_in_place",
            Kind::Sequences => "xent_sequences",
        }
    }

    fn is_in_place(self) -> bool {
        matches!(self, Kind::ForwardBackwardInPlace | Kind::BackwardInPlace)
    }

    fn is_backward(self) -> bool {
        matches!(self, Kind::Backward | Kind::BackwardInPlace)
    }

    fn has_gradient(self) -> bool {
        !matches!(self, Kind::Evaluate | Kind::Sequences)
    }

    fn has_outputs(self) -> bool {
        !self.is_backward() && self != Kind::Sequences
    }
}

/// The options of a call: those of the options, or a copy with what the call adds.
enum Ce<'a> {
    Shared(&'a CrossEntropy<'a>),
    Own(Box<CrossEntropy<'a>>),
}

impl<'a> Ce<'a> {
    fn get(&self) -> &CrossEntropy<'a> {
        match self {
            Ce::Shared(ce) => ce,
            Ce::Own(ce) => ce,
        }
    }
}

/// # Safety
/// As [`Memory::input`], of what the call says.
unsafe fn cross_entropy<'a>(
    options: &'a xent_options,
    memory: &mut Memory<'a>,
    call: &xent_call,
) -> Result<Ce<'a>, Failure> {
    // SAFETY: passed on.
    let (weights, allowed) = unsafe {
        (
            views::floats(memory, "token_weights", &call.token_weights)?,
            views::allowed(memory, &call.allowed)?,
        )
    };
    if weights.is_none() && allowed.is_none() {
        return Ok(Ce::Shared(options.cross_entropy()));
    }
    let mut ce: CrossEntropy<'a> = options.cross_entropy().clone();
    if let Some(weights) = weights {
        ce = ce.token_weights(weights);
    }
    if let Some(allowed) = allowed {
        ce = ce.allowed_tokens(allowed);
    }
    Ok(Ce::Own(Box::new(ce)))
}

/// That nothing is set which would have no effect.
fn check_unused(kind: Kind, call: &xent_call) -> Result<(), Failure> {
    let known = match kind {
        _ if kind.is_in_place() && kind.is_backward() => 0,
        Kind::Backward => XENT_ACCUMULATE,
        Kind::ForwardBackward => XENT_ACCUMULATE | XENT_COUNT_CORRECT,
        Kind::Evaluate | Kind::ForwardBackwardInPlace => XENT_COUNT_CORRECT,
        _ => 0,
    };
    if call.flags & !(XENT_ACCUMULATE | XENT_COUNT_CORRECT) != 0 {
        return Err(Failure::Flags { what: "call", value: call.flags });
    }
    let flag = call.flags & !known;
    let gradient = kind.has_gradient();
    let outputs = kind.has_outputs();
    let none = xent_dtype::XENT_NONE as i32;
    let unused = [
        (flag & XENT_ACCUMULATE != 0, "XENT_ACCUMULATE"),
        (flag & XENT_COUNT_CORRECT != 0, "XENT_COUNT_CORRECT"),
        (kind == Kind::Sequences && call.token_weights.dtype != none, "token_weights"),
        (kind.is_in_place() && call.logits.dtype != none, "logits"),
        (!gradient && call.gradient.dtype != none, "gradient"),
        (!gradient && call.upstream_rows.dtype != none, "upstream_rows"),
        (!kind.is_backward() && call.saved_from.dtype != none, "saved_from"),
        (!outputs && !call.losses.is_null(), "losses"),
        (!outputs && !call.logprobs.is_null(), "logprobs"),
        (!outputs && !call.logsumexp.is_null(), "logsumexp"),
        (!outputs && !call.z_losses.is_null(), "z_losses"),
        (!outputs && !call.saved.is_null(), "saved"),
        (!outputs && !call.argmax.is_null(), "argmax"),
    ];
    match unused.into_iter().find(|&(is, _)| is) {
        Some((_, what)) => Err(Failure::Unused { what, function: kind.name() }),
        None => Ok(()),
    }
}

/// # Safety
/// As [`xent_forward`].
unsafe fn run(
    kind: Kind,
    options: *const xent_options,
    call: *const xent_call,
    upstream: f64,
    evaluation: *mut xent_evaluation,
) -> xent_status {
    guard(|| {
        let mut memory = match kind {
            Kind::ForwardBackward | Kind::Backward => Memory::with_in_place("gradient"),
            _ => Memory::new(),
        };
        // SAFETY: the caller promises that all of this is NULL or valid.
        let (options, call, out) = unsafe {
            let call: xent_call = raw::read_sized("call", call)?;
            let out = match evaluation.is_null() {
                true => None,
                false => Some(memory.one_sized("evaluation", evaluation)?),
            };
            (xent_options::get(options), call, out)
        };
        check_unused(kind, &call)?;
        let dtype = if kind.is_in_place() { call.gradient.dtype } else { call.logits.dtype };
        let what = if kind.is_in_place() { "gradient" } else { "logits" };
        let found = for_dtype!(what, dtype, T => {
            // SAFETY: the same.
            unsafe { run_as::<T>(kind, options, memory, &call, upstream) }
        })?;
        if let (Some((out, size)), Some(found)) = (out, found) {
            out.set(summary(&found, size));
        }
        Ok(())
    })
}

/// # Safety
/// As [`xent_forward`].
unsafe fn run_as<'a, T: Logit>(
    kind: Kind,
    options: &'a xent_options,
    mut memory: Memory<'a>,
    call: &xent_call,
    upstream: f64,
) -> Result<Option<Evaluation>, Failure> {
    let memory = &mut memory;
    // SAFETY: passed on.
    let (ids, ce) = unsafe {
        (views::ids(memory, "targets", &call.targets)?, cross_entropy(options, memory, call)?)
    };
    let ids = ids.ok_or(Failure::Missing { output: kind.name(), needs: "targets" })?;
    let (targets, ce) = (views::targets(&ids, &call.targets)?, ce.get());
    let logits = match kind.is_in_place() {
        true => None,
        // SAFETY: passed on.
        false => Some(unsafe { views::matrix::<T>(memory, "logits", &call.logits) }?),
    };
    let mut to = None;
    if kind.has_gradient() {
        if call.gradient.dtype != <T as Logit>::DTYPE as i32 {
            let (value, needed) = (call.gradient.dtype, "the dtype of the logits");
            return Err(Failure::Dtype { what: "gradient", value, needed });
        }
        // SAFETY: passed on.
        to = Some(unsafe { views::matrix_mut::<T>(memory, "gradient", &call.gradient) }?);
    }
    // SAFETY: passed on.
    let (each, outputs) = unsafe {
        (
            views::floats(memory, "upstream_rows", &call.upstream_rows)?,
            row_outputs::<T>(memory, call)?,
        )
    };
    let shape = match (&logits, &to) {
        (Some(logits), _) => (logits.rows(), logits.vocab()),
        (None, Some(to)) => (to.rows(), to.vocab()),
        (None, None) => (0, 0),
    };
    let scaled = match each {
        Some(each) => in_default_float_env(|| scaled(each, upstream))?,
        None => None,
    };
    let upstream = match (each, &scaled) {
        (_, Some(each)) => Upstream::rows(each),
        (Some(each), None) => Upstream::rows(each),
        (None, None) => upstream.into(),
    };
    let accumulate = call.flags & XENT_ACCUMULATE != 0;
    let gradient = |to| {
        let gradient = Gradient::new(to).upstream(upstream);
        if accumulate { gradient.accumulate() } else { gradient }
    };
    if kind.is_backward() {
        // SAFETY: passed on.
        let saved = unsafe { saved_from::<T>(memory, &call.saved_from, shape.0) }?;
        options.run(shape, 0, || match (logits, to) {
            (Some(logits), Some(to)) => ce.backward(logits, targets, saved, gradient(to)),
            (None, Some(to)) => ce.backward_in_place(to, targets, saved, upstream),
            (_, None) => Ok(()),
        })?;
        return Ok(None);
    }
    let evaluation = options.run(shape, 0, || match (logits, to) {
        (Some(logits), Some(to)) => ce.forward_backward(logits, targets, gradient(to), outputs),
        (Some(logits), None) => ce.evaluate(logits, targets, outputs),
        (None, Some(to)) => ce.forward_backward_in_place(to, targets, upstream, outputs),
        (None, None) => unreachable!("logits are in one of them"),
    })?;
    Ok(Some(evaluation))
}

/// Both upstream gradients as one, 0 where either is, as on such a row nothing depends; `None` if that is what the
/// rows have.
fn scaled(each: Floats<'_>, by: f64) -> Result<Option<Vec<f64>>, Failure> {
    if by == 1.0 {
        return Ok(None);
    }
    let mut product = Vec::new();
    if product.try_reserve_exact(each.len()).is_err() {
        return Err(Failure::Memory { len: each.len(), size: size_of::<f64>() });
    }
    let times = |x: f64| if x == 0.0 || by == 0.0 { 0.0 } else { x * by };
    match each {
        Floats::F32(each) => product.extend(each.iter().map(|&x| times(x.into()))),
        Floats::F64(each) => product.extend(each.iter().map(|&x| times(x))),
        _ => unreachable!("views::floats makes no others"),
    }
    Ok(Some(product))
}

/// # Safety
/// As [`Memory::input`], of what `saved` says.
unsafe fn saved_from<'a, T: Logit>(
    memory: &mut Memory<'a>,
    saved: &xent_floats,
    rows: usize,
) -> Result<&'a [LogSumExp<T::Real>], Failure> {
    let what = "saved_from";
    if saved.dtype == xent_dtype::XENT_NONE as i32 {
        return Err(Failure::Missing { output: "gradient", needs: what });
    }
    views::reserved(what, saved.reserved)?;
    views::check_precision::<T::Real>(what, saved.dtype)?;
    // That of core would be told in pairs, and by another name.
    let (len, expected) = (saved.len, rows.saturating_mul(2));
    if len != expected {
        return Err(Failure::InputLength { what, len, expected });
    }
    // SAFETY: passed on.
    unsafe { memory.input(what, saved.data, saved.len as u128 / 2) }
}

/// # Safety
/// As [`Memory::output`], of what the call says.
unsafe fn row_outputs<'a, T: Logit>(
    memory: &mut Memory<'a>,
    call: &xent_call,
) -> Result<RowOutputs<'a, T::Real>, Failure> {
    let len = call.out_len as u128;
    let reals = [call.losses, call.logprobs, call.logsumexp, call.z_losses, call.saved];
    if reals.iter().any(|out| !out.is_null()) {
        views::check_precision::<T::Real>("out_dtype", call.out_dtype)?;
    }
    let mut out = RowOutputs::new();
    // SAFETY: passed on.
    unsafe {
        if let Some(to) = memory.optional("losses", call.losses, len)? {
            out = out.losses(to);
        }
        if let Some(to) = memory.optional("logprobs", call.logprobs, len)? {
            out = out.logprobs(to);
        }
        if let Some(to) = memory.optional("logsumexp", call.logsumexp, len)? {
            out = out.logsumexp(to);
        }
        if let Some(to) = memory.optional("z_losses", call.z_losses, len)? {
            out = out.z_losses(to);
        }
        if let Some(to) = memory.optional("saved", call.saved, len)? {
            out = out.saved(to);
        }
        if let Some(to) = memory.optional("argmax", call.argmax.cast(), len)? {
            out = out.argmax(to);
        }
    }
    Ok(if call.flags & XENT_COUNT_CORRECT != 0 { out.count_correct() } else { out })
}

fn summary(e: &Evaluation, size: usize) -> xent_evaluation {
    xent_evaluation {
        size,
        loss: e.loss(),
        cross_entropy: e.cross_entropy(),
        z_loss: e.z_loss(),
        sum: e.sum(),
        mean: e.mean(),
        mean_stderr: e.stderr(),
        perplexity: e.perplexity(),
        perplexity_stderr: e.perplexity_stderr(),
        bits_per_token: e.bits_per_token(),
        accuracy: e.accuracy().unwrap_or(f64::NAN),
        correct: e.correct().map_or(-1, |correct| correct as i64),
        count: e.count(),
        ignored: e.ignored(),
    }
}
