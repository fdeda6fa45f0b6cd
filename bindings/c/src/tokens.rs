//! What an inference engine asks about rows, statistics of vocabulary shards, and two models compared.
#![allow(unsafe_code, reason = "functions of the C ABI; raw.rs has what is not a call")]

use crate::options::xent_options;
use crate::raw::{self, Logit, Memory};
use crate::status::{Failure, guard, xent_status};
use crate::types::*;
use crate::views::{self, for_dtype};
use std::ffi::c_void;
use xent::{
    Compare, CompareOutputs, LogProbs, LogitBias, RowStats, Sample, Sampler, Shard, TokenOutputs,
};

/// Answers what is asked about the tokens of each row, from one read of it: log-probabilities of given tokens and of the most
/// probable ones, ranks, entropy, and a sample. Does not allocate, unless classes or ids are apart or a row is spread over threads.
///
/// Of the options, the ignore index, the temperature, backend and threads are used; a logit scale or a softcap is an error;
/// those of losses do not matter. `options` may be NULL.
///
/// # Safety
/// Pointers are NULL or valid, as are those in what they point to.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xent_tokens(
    options: *const xent_options,
    call: *const xent_token_call,
) -> xent_status {
    guard(|| {
        let function = "xent_tokens";
        // SAFETY: the caller promises that all of this is NULL or valid.
        let (options, call) =
            unsafe { (xent_options::get(options), raw::read_sized("call", call)?) };
        if call.shard_flags != 0 {
            return Err(Failure::Unused { what: "shard_flags", function });
        }
        // Only targets can be shifted.
        if call.candidates.dtype != xent_id_dtype::XENT_NO_IDS as i32 {
            for (value, what) in [
                (call.candidates.sequence, "candidates.sequence"),
                (call.candidates.shift, "candidates.shift"),
            ] {
                if value != 0 {
                    return Err(Failure::Unused { what, function });
                }
            }
        }
        // SAFETY: the same.
        for_dtype!("logits", call.logits.dtype, T => unsafe { answer::<T>(options, &call) })
    })
}

/// # Safety
/// As [`xent_tokens`].
unsafe fn answer<T: Logit>(options: &xent_options, call: &xent_token_call) -> Result<(), Failure> {
    let mut memory = Memory::new();
    let memory = &mut memory;
    // SAFETY: passed on.
    unsafe {
        let targets = views::ids(memory, "targets", &call.targets)?;
        let candidates = views::ids(memory, "candidates", &call.candidates)?;
        let mut ask = request("xent_tokens", options, memory, call)?;
        if let Some(ids) = &targets {
            ask = ask.targets(views::targets(ids, &call.targets)?);
        }
        if let Some(ids) = &candidates {
            ask = ask.candidates(ids.get(), call.candidates_per_row);
        }
        let logits = views::matrix::<T>(memory, "logits", &call.logits)?;
        let out = outputs::<T>(memory, call, logits.vocab())?;
        // Random numbers take longer than everything else.
        let cost = if call.samples.is_null() { 1 } else { 4 };
        let shape = (logits.rows(), logits.vocab());
        options.run(shape, cost, || ask.run(logits, out)).map_err(Failure::from)
    }
}

/// All but targets and candidates.
///
/// # Safety
/// As [`xent_tokens`].
unsafe fn request<'a>(
    function: &'static str,
    options: &'a xent_options,
    memory: &mut Memory<'a>,
    call: &xent_token_call,
) -> Result<LogProbs<'a>, Failure> {
    options.refuse_transform(function, true)?;
    let values = options.values();
    let mut ask = LogProbs::new()
        .temperature(values.temperature)
        .top_k(call.top_k)
        .ignore_indices(values.ignored.ids());
    if let Some(backend) = values.backend {
        ask = ask.backend(backend);
    }
    // SAFETY: passed on.
    unsafe {
        // A NULL that has a length is refused, here and below, not taken for nothing.
        if !call.samples.is_null() || call.samples_len > 0 {
            let (samples, len) = (call.samples.cast::<c_void>(), call.samples_len as u128);
            ask = ask.sample(memory.input::<Sample>("samples", samples, len)?);
        }
        if let Some(allowed) = views::allowed(memory, &call.allowed)? {
            ask = ask.allowed_tokens(allowed);
        }
        let per_row = !call.bias_offsets.is_null() || call.bias_offsets_len > 0;
        if !call.bias.is_null() || call.bias_len > 0 || per_row {
            let entries = memory.input("bias", call.bias.cast(), call.bias_len as u128)?;
            let bias = match per_row {
                false => LogitBias::new(entries),
                true => {
                    let len = call.bias_offsets_len as u128;
                    let offsets = memory.input("bias_offsets", call.bias_offsets.cast(), len)?;
                    LogitBias::per_row(entries, offsets)
                }
            };
            ask = ask.logit_bias(bias);
        }
    }
    Ok(ask)
}

/// # Safety
/// As [`Memory::output`], of what the call says.
unsafe fn outputs<'a, T: Logit>(
    memory: &mut Memory<'a>,
    call: &xent_token_call,
    classes: usize,
) -> Result<TokenOutputs<'a, T::Real>, Failure> {
    let reals = [
        call.logprobs,
        call.candidate_logprobs,
        call.top_logprobs,
        call.entropy,
        call.varentropy,
        call.logsumexp,
        call.sampled_logprobs,
    ];
    if reals.iter().any(|out| !out.is_null()) {
        views::check_precision::<T::Real>("out_dtype", call.out_dtype)?;
    }
    match (call.top_ids.is_null(), call.top_logprobs.is_null()) {
        (true, false) => {
            return Err(Failure::Missing { output: "top_logprobs", needs: "top_ids" });
        }
        (false, true) => {
            return Err(Failure::Missing { output: "top_ids", needs: "top_logprobs" });
        }
        // Results would be closer together than outputs of `top_k` a row say.
        (false, false) if call.top_k > classes && call.top_k <= XENT_MAX_TOP_K => {
            let (value, range) = (call.top_k.to_string(), "at most the number of classes");
            return Err(xent::Error::Option { option: "top_k", value, range }.into());
        }
        _ => {}
    }
    let len = call.out_len as u128;
    let times = |each: usize| len.saturating_mul(each as u128);
    let mut out = TokenOutputs::new();
    // SAFETY: passed on.
    unsafe {
        if let Some(to) = memory.optional("logprobs", call.logprobs, len)? {
            out = out.logprobs(to);
        }
        if let Some(to) = memory.optional("ranks", call.ranks.cast(), len)? {
            out = out.ranks(to);
        }
        if let Some(to) = memory.optional("strict_ranks", call.strict_ranks.cast(), len)? {
            out = out.strict_ranks(to);
        }
        let each = times(call.candidates_per_row);
        if let Some(to) = memory.optional("candidate_logprobs", call.candidate_logprobs, each)? {
            out = out.candidates(to);
        }
        let each = times(call.top_k);
        let ids = memory.optional("top_ids", call.top_ids.cast(), each)?;
        let logprobs = memory.optional("top_logprobs", call.top_logprobs, each)?;
        if let (Some(ids), Some(logprobs)) = (ids, logprobs) {
            out = out.top_k(ids, logprobs);
        }
        if let Some(to) = memory.optional("argmax", call.argmax.cast(), len)? {
            out = out.argmax(to);
        }
        if let Some(to) = memory.optional("entropy", call.entropy, len)? {
            out = out.entropy(to);
        }
        if let Some(to) = memory.optional("varentropy", call.varentropy, len)? {
            out = out.varentropy(to);
        }
        if let Some(to) = memory.optional("logsumexp", call.logsumexp, len)? {
            out = out.logsumexp(to);
        }
        if let Some(to) = memory.optional("sampled", call.sampled.cast(), len)? {
            out = out.sampled(to);
        }
        if let Some(to) = memory.optional("sampled_logprobs", call.sampled_logprobs, len)? {
            out = out.sampled_logprobs(to);
        }
    }
    Ok(out)
}

/// Draws one of the most probable tokens: `n` ids and `float` log-probabilities in descending order, as `top_ids` and
/// `top_logprobs` have them for a vocabulary of `vocab`. `filters` may be NULL for none.
///
/// The result is that of the whole vocabulary, or `XENT_ERROR_NOT_DRAWN` if a filter would leave tokens that are not among
/// those given, or if there is none that could be drawn. A sum of probabilities that reaches `top_p`, or a ratio that reaches
/// `min_p`, but for the rounding of the log-probabilities (2 ULP of `float`) has reached it.
///
/// # Safety
/// As `xent_tokens`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xent_draw(
    filters: *const xent_filters,
    ids: *const i64,
    logprobs: *const f32,
    n: usize,
    vocab: usize,
    sample: *const xent_sample,
    token: *mut i64,
) -> xent_status {
    guard(|| {
        // SAFETY: the caller promises that all of this is NULL or valid.
        unsafe {
            let sampler = read_filters(filters)?;
            let mut memory = Memory::new();
            let (token, sample) = (memory.one("token", token)?, raw::read("sample", sample)?);
            let ids = memory.input::<i64>("ids", ids.cast(), n as u128)?;
            let logprobs = memory.input::<f32>("logprobs", logprobs.cast(), n as u128)?;
            token.set(sampler.draw(ids, logprobs, vocab, of_sample(sample))?);
        }
        Ok(())
    })
}

/// As `xent_draw`, of the statistics of a row of `vocab` classes, `XENT_ROW_STATS_BYTES` bytes, which were asked for `top_k` tokens
/// and are merged if they are of shards. Filters decide with the logits and the sum that the pass over the row had, which are not
/// rounded to `float`.
///
/// # Safety
/// As `xent_tokens`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xent_row_stats_draw(
    filters: *const xent_filters,
    stats: *const u8,
    vocab: usize,
    sample: *const xent_sample,
    token: *mut i64,
) -> xent_status {
    guard(|| {
        // SAFETY: the caller promises that all of this is NULL or valid.
        unsafe {
            let sampler = read_filters(filters)?;
            let mut memory = Memory::new();
            let (token, sample) = (memory.one("token", token)?, raw::read("sample", sample)?);
            let stats = parse(&mut memory, "stats", stats)?;
            token.set(sampler.draw_row(&stats, vocab, of_sample(sample))?);
        }
        Ok(())
    })
}

fn of_sample(xent_sample { seed, position, temperature }: xent_sample) -> Sample {
    Sample::new(seed, position).temperature(temperature)
}

/// # Safety
/// `filters` is NULL, for none, or valid.
unsafe fn read_filters(filters: *const xent_filters) -> Result<Sampler, Failure> {
    if filters.is_null() {
        return Ok(Sampler::new());
    }
    // SAFETY: passed on.
    of_filters(&unsafe { raw::read_sized("filters", filters) }?)
}

fn of_filters(filters: &xent_filters) -> Result<Sampler, Failure> {
    let xent_filters { used, reserved, top_k, top_p, min_p, .. } = *filters;
    views::reserved("filters", reserved)?;
    if used & !(XENT_FILTER_TOP_K | XENT_FILTER_TOP_P | XENT_FILTER_MIN_P) != 0 {
        return Err(Failure::Flags { what: "filters", value: used });
    }
    let mut sampler = Sampler::new();
    if used & XENT_FILTER_TOP_K != 0 {
        sampler = sampler.top_k(top_k);
    }
    if used & XENT_FILTER_TOP_P != 0 {
        sampler = sampler.top_p(top_p);
    }
    if used & XENT_FILTER_MIN_P != 0 {
        sampler = sampler.min_p(min_p);
    }
    Ok(sampler)
}

/// Statistics of the rows of a vocabulary shard, `XENT_ROW_STATS_BYTES` bytes a row into `stats`, to be sent to wherever they
/// are merged. `stats_len` is their number, that of the rows times `XENT_ROW_STATS_BYTES`.
///
/// Targets, and ids that are found, are of the whole vocabulary; logits, bias and mask are those of the shard, counted from
/// its first class. Asked for are log-probability, argmax and logsumexp, and by the call `top_k`, `samples` and `shard_flags`.
/// No output and no candidates may be set. Logits are not `XENT_F64`.
///
/// # Safety
/// As `xent_tokens`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xent_row_stats(
    options: *const xent_options,
    call: *const xent_token_call,
    shard: *const xent_shard,
    stats: *mut u8,
    stats_len: usize,
) -> xent_status {
    guard(|| {
        // SAFETY: the caller promises that all of this is NULL or valid.
        let (options, call, shard) = unsafe {
            let call: xent_token_call = raw::read_sized("call", call)?;
            (xent_options::get(options), call, raw::read_sized("shard", shard)?)
        };
        let mut memory = Memory::new();
        // SAFETY: the same.
        let stats = unsafe { memory.output("stats", stats.cast(), stats_len as u128) }?;
        check_stats_call(&call)?;
        // SAFETY: the same.
        unsafe {
            let (options, call, shard) = (options, &call, &shard);
            match call.logits.dtype {
                1 => row_stats::<f32>(options, memory, call, shard, stats),
                3 => row_stats::<half::bf16>(options, memory, call, shard, stats),
                4 => row_stats::<half::f16>(options, memory, call, shard, stats),
                value => {
                    let needed = "XENT_F32, XENT_BF16 or XENT_F16";
                    Err(Failure::Dtype { what: "logits", value, needed })
                }
            }
        }
    })
}

fn check_stats_call(call: &xent_token_call) -> Result<(), Failure> {
    let function = "xent_row_stats";
    let known = XENT_SHARD_RANKS | XENT_SHARD_ENTROPY | XENT_SHARD_VARENTROPY;
    if call.shard_flags & !known != 0 {
        return Err(Failure::Flags { what: "shard_flags", value: call.shard_flags });
    }
    let unused = [
        (call.candidates.dtype != 0, "candidates"),
        (!call.logprobs.is_null(), "logprobs"),
        (!call.ranks.is_null(), "ranks"),
        (!call.strict_ranks.is_null(), "strict_ranks"),
        (!call.candidate_logprobs.is_null(), "candidate_logprobs"),
        (!call.top_ids.is_null(), "top_ids"),
        (!call.top_logprobs.is_null(), "top_logprobs"),
        (!call.argmax.is_null(), "argmax"),
        (!call.entropy.is_null(), "entropy"),
        (!call.varentropy.is_null(), "varentropy"),
        (!call.logsumexp.is_null(), "logsumexp"),
        (!call.sampled.is_null(), "sampled"),
        (!call.sampled_logprobs.is_null(), "sampled_logprobs"),
    ];
    match unused.into_iter().find(|&(is, _)| is) {
        Some((_, what)) => Err(Failure::Unused { what, function }),
        None => Ok(()),
    }
}

/// # Safety
/// As [`xent_row_stats`].
unsafe fn row_stats<'a, T: Logit<Real = f32>>(
    options: &'a xent_options,
    mut memory: Memory<'a>,
    call: &xent_token_call,
    of: &xent_shard,
    stats: &'a mut [u8],
) -> Result<(), Failure> {
    let memory = &mut memory;
    // SAFETY: passed on.
    unsafe {
        let targets = views::ids(memory, "targets", &call.targets)?;
        let mut ask = request("xent_row_stats", options, memory, call)?
            .ranks(call.shard_flags & XENT_SHARD_RANKS != 0)
            .entropy(call.shard_flags & XENT_SHARD_ENTROPY != 0)
            .varentropy(call.shard_flags & XENT_SHARD_VARENTROPY != 0);
        if let Some(ids) = &targets {
            ask = ask.targets(views::targets(ids, &call.targets)?);
        }
        let logits = views::matrix::<T>(memory, "logits", &call.logits)?;
        let mut shard = Shard::new(of.first, of.vocab);
        if !of.target_logits.is_null() || of.target_logits_len > 0 {
            let (data, len) = (of.target_logits.cast::<c_void>(), of.target_logits_len as u128);
            shard = shard.target_logits(memory.input("target_logits", data, len)?);
        }
        let rows = logits.rows();
        let (len, what) = (stats.len(), "stats");
        let Some(expected) = rows.checked_mul(XENT_ROW_STATS_BYTES) else {
            let (len, size) = (rows as u128, XENT_ROW_STATS_BYTES);
            return Err(Failure::Extent { what, len, size });
        };
        if len != expected {
            return Err(Failure::OutputLength { what, len, expected });
        }
        let mut found = Vec::new();
        if found.try_reserve_exact(rows).is_err() {
            return Err(Failure::Memory { len: rows, size: size_of::<RowStats>() });
        }
        found.resize(rows, RowStats::default());
        let cost = if call.samples.is_null() { 1 } else { 4 };
        let shape = (rows, logits.vocab());
        options.run(shape, cost, || ask.row_stats(logits, shard, &mut found))?;
        for (to, from) in stats.chunks_exact_mut(XENT_ROW_STATS_BYTES).zip(&found) {
            to.copy_from_slice(&from.to_bytes());
        }
    }
    Ok(())
}

/// # Safety
/// `bytes` is NULL, or there are `XENT_ROW_STATS_BYTES`.
unsafe fn parse(
    memory: &mut Memory<'_>,
    what: &'static str,
    bytes: *const u8,
) -> Result<RowStats, Failure> {
    // SAFETY: passed on.
    let bytes = unsafe { memory.input::<u8>(what, bytes.cast(), XENT_ROW_STATS_BYTES as u128) }?;
    let Some(bytes) = bytes.first_chunk() else { return Err(Failure::Null { what }) };
    Ok(RowStats::from_bytes(bytes)?)
}

/// Merges the statistics of a row over two shards, `XENT_ROW_STATS_BYTES` bytes each, into `merged`, which may be either of
/// them. In any order the result has the same bits. Shards that overlap, of other vocabularies or at other temperatures,
/// are `XENT_ERROR_SHARD`. What has a gap says nothing until that is filled: see `xent_row_stats_check`.
///
/// # Safety
/// As `xent_tokens`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xent_row_stats_merge(
    a: *const u8,
    b: *const u8,
    merged: *mut u8,
) -> xent_status {
    guard(|| {
        // SAFETY: the caller promises that all of this is NULL or valid. What is read is copied before anything is written.
        unsafe {
            let memory = &mut Memory::new();
            let all = parse(memory, "a", a)?.merge(&parse(memory, "b", b)?)?;
            let len = XENT_ROW_STATS_BYTES as u128;
            // By itself: it may be where one of them was.
            Memory::new()
                .output::<u8>("merged", merged.cast(), len)?
                .copy_from_slice(&all.to_bytes());
        }
        Ok(())
    })
}

/// Whether each class of the vocabulary was merged once into the statistics of row `row`, which an error names:
/// `XENT_ERROR_SHARD` for a gap, or for classes that were merged twice.
///
/// # Safety
/// As `xent_tokens`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xent_row_stats_check(stats: *const u8, row: usize) -> xent_status {
    guard(|| {
        // SAFETY: the caller promises that this is NULL or valid.
        unsafe { parse(&mut Memory::new(), "stats", stats)? }.check(row)?;
        Ok(())
    })
}

/// Tells what the statistics of a row say, `XENT_ROW_STATS_BYTES` bytes.
///
/// # Safety
/// As `xent_tokens`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xent_row_stats_summary(
    stats: *const u8,
    summary: *mut xent_row_summary,
) -> xent_status {
    guard(|| {
        let memory = &mut Memory::new();
        // SAFETY: the caller promises that all of this is NULL or valid.
        let ((out, size), stats) =
            unsafe { (memory.one_sized("summary", summary)?, parse(memory, "stats", stats)?) };
        let id = |id: Option<u32>| id.map_or(-1, i64::from);
        out.set(xent_row_summary {
            size,
            loss: stats.loss().unwrap_or(f64::NAN),
            logsumexp: stats.logsumexp(),
            entropy: stats.entropy().unwrap_or(f64::NAN),
            varentropy: stats.varentropy().unwrap_or(f64::NAN),
            rank: stats.rank().unwrap_or(0),
            strict_rank: stats.strict_rank().unwrap_or(0),
            argmax: id(stats.argmax()),
            sampled: id(stats.sampled()),
            target_logit: stats.target_logit().unwrap_or(f32::NAN),
            saved_hi: stats.saved().hi,
            saved_lo: stats.saved().lo,
            reserved: 0,
        });
        Ok(())
    })
}

/// Tells the most probable tokens of a row, `XENT_ROW_STATS_BYTES` bytes of statistics: up to `k` of those that were asked for,
/// in descending order. How many there are goes to `count`; what comes after them is not written.
///
/// # Safety
/// As `xent_tokens`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xent_row_stats_top(
    stats: *const u8,
    k: usize,
    ids: *mut i64,
    logprobs: *mut f32,
    count: *mut usize,
) -> xent_status {
    guard(|| {
        let mut memory = Memory::new();
        // SAFETY: the caller promises that all of this is NULL or valid.
        let (stats, ids, logprobs, count) = unsafe {
            (
                parse(&mut memory, "stats", stats)?,
                memory.output::<i64>("ids", ids.cast(), k as u128)?,
                memory.output::<f32>("logprobs", logprobs.cast(), k as u128)?,
                memory.one("count", count)?,
            )
        };
        let mut found = 0;
        for ((top, id), logprob) in stats.top_k().zip(ids).zip(logprobs) {
            (*id, *logprob) = (top.id.into(), top.logprob);
            found += 1;
        }
        count.set(found);
        Ok(())
    })
}

/// Compares two models, row by row: divergences in nats, computed in `double` whatever the types of the logits, which may
/// differ.
///
/// Of the options, the ignore index, the temperature, backend and threads are used; a logit scale or a softcap is an error.
/// `options` may be NULL.
///
/// # Safety
/// As `xent_tokens`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xent_compare(
    options: *const xent_options,
    call: *const xent_compare_call,
) -> xent_status {
    guard(|| {
        // SAFETY: the caller promises that all of this is NULL or valid.
        let (options, call) =
            unsafe { (xent_options::get(options), raw::read_sized("call", call)?) };
        for_dtype!("base", call.base.dtype, P => {
            for_dtype!("other", call.other.dtype, Q => {
                // SAFETY: the same.
                unsafe { compare::<P, Q>(options, &call) }
            })
        })
    })
}

/// # Safety
/// As [`xent_compare`].
unsafe fn compare<P: Logit, Q: Logit>(
    options: &xent_options,
    call: &xent_compare_call,
) -> Result<(), Failure> {
    options.refuse_transform("xent_compare", true)?;
    let values = options.values();
    let mut memory = Memory::new();
    let memory = &mut memory;
    // SAFETY: passed on.
    unsafe {
        let targets = views::ids(memory, "targets", &call.targets)?;
        let mut ask =
            Compare::new().temperature(values.temperature).ignore_indices(values.ignored.ids());
        if let Some(backend) = values.backend {
            ask = ask.backend(backend);
        }
        if let Some(ids) = &targets {
            ask = ask.targets(views::targets(ids, &call.targets)?);
        }
        if let Some(allowed) = views::allowed(memory, &call.allowed)? {
            ask = ask.allowed_tokens(allowed);
        }
        let base = views::matrix::<P>(memory, "base", &call.base)?;
        let other = views::matrix::<Q>(memory, "other", &call.other)?;
        let len = call.out_len as u128;
        let mut out = CompareOutputs::new();
        if let Some(to) = memory.optional("kl", call.kl.cast(), len)? {
            out = out.kl(to);
        }
        if let Some(to) = memory.optional("reverse_kl", call.reverse_kl.cast(), len)? {
            out = out.reverse_kl(to);
        }
        if let Some(to) = memory.optional("jsd", call.jsd.cast(), len)? {
            out = out.jsd(to);
        }
        if let Some(to) = memory.optional("total_variation", call.total_variation.cast(), len)? {
            out = out.total_variation(to);
        }
        if let Some(to) = memory.optional("base_logprobs", call.base_logprobs.cast(), len)? {
            out = out.base_logprobs(to);
        }
        if let Some(to) = memory.optional("other_logprobs", call.other_logprobs.cast(), len)? {
            out = out.other_logprobs(to);
        }
        if let Some(to) = memory.optional("delta_p", call.delta_p.cast(), len)? {
            out = out.delta_p(to);
        }
        // A `bool` may not be made of what is in memory.
        let same_top = memory.optional::<u8>("same_top", call.same_top.cast(), len)?;
        let mut same = Vec::new();
        if let Some(to) = &same_top {
            if same.try_reserve_exact(to.len()).is_err() {
                return Err(Failure::Memory { len: to.len(), size: 1 });
            }
            same.resize(to.len(), false);
            out = out.same_top(&mut same);
        }
        let shape = (base.rows(), base.vocab());
        options.run(shape, 0, || ask.divergences(base, other, out))?;
        if let Some(to) = same_top {
            for (to, &same) in to.iter_mut().zip(&same) {
                *to = same.into();
            }
        }
    }
    Ok(())
}
