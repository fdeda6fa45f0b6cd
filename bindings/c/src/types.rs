//! What crosses the border: plain structures and numbers, as the header has them.
#![forbid(unsafe_code)]
#![allow(non_camel_case_types, reason = "their names in C")]

use std::ffi::c_void;

/// The type of logits and gradients, and of results and weights.
#[repr(i32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum xent_dtype {
    /// Nothing: for what is optional.
    XENT_NONE = 0,
    /// `float`. Results and weights are `float`.
    XENT_F32 = 1,
    /// `double`. Results and weights are `double`.
    XENT_F64 = 2,
    /// The upper half of a `float`, in a `uint16_t`. Results and weights are `float`.
    XENT_BF16 = 3,
    /// IEEE half precision, in a `uint16_t`. Results and weights are `float`.
    XENT_F16 = 4,
}

/// The type of class ids.
#[repr(i32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum xent_id_dtype {
    /// No ids: for what is optional.
    XENT_NO_IDS = 0,
    /// `int32_t`, as llama.cpp has tokens.
    XENT_I32 = 1,
    /// `int64_t`, as PyTorch has them.
    XENT_I64 = 2,
    /// `uint32_t`
    XENT_U32 = 3,
    /// `uint64_t`; where `size_t` has 64 bits.
    XENT_U64 = 4,
}

/// How the losses of the kept rows become one number.
#[repr(i32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum xent_reduction {
    /// Their sum divided by their weight: the number of rows, if there are no weights. The default.
    XENT_MEAN = 0,
    /// Their sum; 0 if there are none.
    XENT_SUM = 1,
    /// Their sum divided by a count: for gradient accumulation.
    XENT_MEAN_OVER = 2,
}

/// What the mean of no rows is, or of rows none of which weighs anything.
#[repr(i32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum xent_empty_mean {
    /// NaN, as in PyTorch. The default.
    XENT_EMPTY_MEAN_NAN = 0,
    /// 0
    XENT_EMPTY_MEAN_ZERO = 1,
}

/// The instructions to use.
#[repr(i32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum xent_backend {
    /// That of the environment variable XENT_BACKEND, or else the fastest that there is.
    XENT_BACKEND_AUTO = 0,
    /// Plain code, slow: what the others are compared with.
    XENT_BACKEND_SCALAR = 1,
    /// What the library was compiled for.
    XENT_BACKEND_PORTABLE = 2,
    /// NEON, of 64-bit Arm.
    XENT_BACKEND_NEON = 3,
    /// AVX2, FMA and F16C.
    XENT_BACKEND_AVX2 = 4,
    /// AVX-512 F, BW, DQ and VL.
    XENT_BACKEND_AVX512 = 5,
}

/// Bits of `xent_call::flags`: adds the gradient to what the matrix holds. Ignored rows stay as they are.
pub const XENT_ACCUMULATE: u32 = 1;
/// Bits of `xent_call::flags`: counts the rows whose argmax is the target. (With `argmax` they are counted anyway.)
pub const XENT_COUNT_CORRECT: u32 = 2;

/// Bits of `xent_filters::used`: `top_k` is to be used.
pub const XENT_FILTER_TOP_K: u32 = 1;
/// Bits of `xent_filters::used`: `top_p` is to be used.
pub const XENT_FILTER_TOP_P: u32 = 2;
/// Bits of `xent_filters::used`: `min_p` is to be used.
pub const XENT_FILTER_MIN_P: u32 = 4;

/// Bits of `xent_token_call::shard_flags`: shards shall know ranks.
pub const XENT_SHARD_RANKS: u32 = 1;
/// Bits of `xent_token_call::shard_flags`: shards shall know the entropy.
pub const XENT_SHARD_ENTROPY: u32 = 2;
/// Bits of `xent_token_call::shard_flags`: shards shall know the variance of the log-probabilities.
pub const XENT_SHARD_VARENTROPY: u32 = 4;

/// The most tokens that `xent_token_call::top_k` can ask for.
pub const XENT_MAX_TOP_K: usize = 128;

/// The bytes of the statistics of a row, see `xent_row_stats`.
pub const XENT_ROW_STATS_BYTES: usize = 1509;
const _: () = assert!(XENT_ROW_STATS_BYTES == xent::RowStats::BYTES);

/// A `[rows, classes]` matrix of logits in memory of the caller, which is read and nothing else.
///
/// Element `[i, j]` is `i * row_stride + j * class_stride` elements after `data`. What is in memory between the elements is
/// never read or written. `data` may be NULL if there are no elements. It must be aligned as its type.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct xent_matrix {
    /// The first element.
    pub data: *const c_void,
    /// How many rows.
    pub rows: usize,
    /// How many classes a row has: the size of the vocabulary.
    pub classes: usize,
    /// Elements from a row to the next; 0: `classes * class_stride`, rows next to each other. Less than `classes` is an error,
    /// unless it is 1 and classes are apart. Of one row it does not matter.
    pub row_stride: usize,
    /// Elements from a class to the next; 0: 1. Another than 1 takes a `row_stride` of 1, as of a matrix `[classes, rows]` in
    /// memory, or one row.
    pub class_stride: usize,
    /// An `xent_dtype`.
    pub dtype: i32,
    /// 0
    pub reserved: u32,
}

/// As `xent_matrix`, of a matrix that is written: a gradient, or logits in place. Rows may not overlap.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct xent_matrix_mut {
    /// The first element.
    pub data: *mut c_void,
    /// How many rows.
    pub rows: usize,
    /// How many classes a row has.
    pub classes: usize,
    /// Elements from a row to the next; 0: rows next to each other.
    pub row_stride: usize,
    /// Elements from a class to the next; 0: 1.
    pub class_stride: usize,
    /// An `xent_dtype`.
    pub dtype: i32,
    /// 0
    pub reserved: u32,
}

/// Class ids in memory of the caller.
///
/// As targets one per row. With a `sequence` they are the tokens of `[batch, sequence]` as they went into the model, and
/// the target of a row is the token `shift` places later, which nobody has to copy. The last `shift` rows of each sequence have
/// none and are ignored.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct xent_ids {
    /// The first id.
    pub data: *const c_void,
    /// How many ids.
    pub len: usize,
    /// Ids from one to the next; 0: 1. Ids that are apart are copied for the call.
    pub stride: usize,
    /// Tokens of a sequence; 0: targets are not shifted.
    pub sequence: usize,
    /// How many places later the target of a row is; 0 without `sequence`.
    pub shift: usize,
    /// An `xent_id_dtype`; `XENT_NO_IDS`: there are none, and the other members do not matter.
    pub dtype: i32,
    /// 0
    pub reserved: u32,
}

/// Real numbers in memory of the caller.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct xent_floats {
    /// The first number.
    pub data: *const c_void,
    /// How many numbers.
    pub len: usize,
    /// `XENT_F32` or `XENT_F64`; `XENT_NONE`: there are none, and the other members do not matter.
    pub dtype: i32,
    /// 0
    pub reserved: u32,
}

/// Which classes may be, a bit for each: what grammar-constrained decoders hold.
///
/// Bit `j % 32` of word `j / 32` of a row, the lowest first, is class `j`. The others are as if their logits were -inf.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct xent_allowed {
    /// The first word; NULL: all classes may be, and the other members do not matter.
    pub words: *const u32,
    /// How many words: `classes / 32` rounded up for each row, or once if there is one mask for all.
    pub len: usize,
    /// Words from a row to the next; 0: `classes / 32` rounded up.
    pub stride: usize,
    /// Not 0: one mask for all rows.
    pub same_for_all: u32,
    /// 0
    pub reserved: u32,
}

/// What is added to the logit of a token.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct xent_bias {
    /// The token.
    pub id: u32,
    /// Finite or -inf, which bans the token.
    pub value: f32,
}

/// What a call about losses works on. All zero but `size` and `logits` is a valid call.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct xent_call {
    /// `sizeof(xent_call)`
    pub size: usize,
    /// The logits. For calls in place `XENT_NONE`, as they are in `gradient`.
    pub logits: xent_matrix,
    /// A class id per row.
    pub targets: xent_ids,
    /// A weight per row, optional: its loss and what it counts in a mean are multiplied by it. Rows of weight 0 do not count in
    /// the statistics of `xent_evaluation`; those of any other weight each count once.
    pub token_weights: xent_floats,
    /// Which classes may be, optional.
    pub allowed: xent_allowed,
    /// Where the gradient goes: of the shape and type of the logits. In place: the logits.
    pub gradient: xent_matrix_mut,
    /// What the gradient of each row is multiplied by besides `upstream`, optional. Where either is 0 the gradient is 0, whatever
    /// the logits and the other are.
    pub upstream_rows: xent_floats,
    /// For `xent_backward`: what `saved` of an earlier call was filled with, two numbers a row.
    pub saved_from: xent_floats,
    /// `XENT_ACCUMULATE`, `XENT_COUNT_CORRECT`
    pub flags: u32,
    /// The type of the outputs that are not integers: `XENT_F32`, or `XENT_F64` for logits that are. Needed if there is one.
    pub out_dtype: i32,
    /// Elements of each output: the number of rows. Needed if there is one.
    pub out_len: usize,
    /// The loss of each row with all options; 0 for ignored rows. This and all that follow may be NULL.
    pub losses: *mut c_void,
    /// The log-probability of each target, whatever the weights and the smoothing.
    pub logprobs: *mut c_void,
    /// The logarithm of the sum of the exponentials of each row.
    pub logsumexp: *mut c_void,
    /// The z-loss of each row, which is part of its loss.
    pub z_losses: *mut c_void,
    /// What `xent_backward` needs to know about each row: two numbers, `2 * out_len` elements.
    pub saved: *mut c_void,
    /// The first class with the largest logit; -1 for ignored rows.
    pub argmax: *mut i64,
}

/// What a pass over logits and targets found out about all rows together. Statistics are over the rows that count: the kept
/// ones, but for those whose token weight is 0.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct xent_evaluation {
    /// `sizeof(xent_evaluation)`, to be set by the caller.
    pub size: usize,
    /// The loss with all options and the z-loss, reduced.
    pub loss: f64,
    /// The part of the loss that is not z-loss.
    pub cross_entropy: f64,
    /// The part of the loss that is z-loss.
    pub z_loss: f64,
    /// The sum of the negative log-probabilities of the targets, in nats, whatever the options; of the rows that count.
    pub sum: f64,
    /// The mean of these; NaN for no rows.
    pub mean: f64,
    /// Its standard error, as llama.cpp has it; NaN for fewer than two rows.
    pub mean_stderr: f64,
    /// `e^mean`
    pub perplexity: f64,
    /// Its standard error: `perplexity * mean_stderr`.
    pub perplexity_stderr: f64,
    /// `mean / ln 2`
    pub bits_per_token: f64,
    /// The share of the rows that count whose argmax is the target and whose log-probability is not NaN; NaN if it was not asked
    /// for, or for no rows.
    pub accuracy: f64,
    /// How many these are; -1 if it was not asked for.
    pub correct: i64,
    /// The number of rows that count: kept, and of a token weight other than 0.
    pub count: u64,
    /// The number of rows that do not count.
    pub ignored: u64,
}

/// The score of one sequence.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct xent_sequence_score {
    /// The sum of the log-probabilities of the targets, in nats; 0 for no tokens.
    pub logprob: f64,
    /// The number of rows that count.
    pub tokens: u64,
    /// The first of these whose target is not the most probable class, or whose log-probability is NaN, from the start of the
    /// sequence; -1 if there is none, so that greedy decoding would have produced the sequence.
    pub first_mismatch: i64,
}

/// How to draw a token of a row. The draw follows from this and the logits alone.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct xent_sample {
    /// Of a request.
    pub seed: u64,
    /// Of the token in its sequence: no two draws may share both numbers.
    pub position: u64,
    /// Finite and at least 0, which is the argmax.
    pub temperature: f64,
}

/// What is asked about the tokens of each row, and where the answers go. What has no buffer is not computed.
///
/// All zero but `size` and `logits` is a valid call that asks nothing.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct xent_token_call {
    /// `sizeof(xent_token_call)`
    pub size: usize,
    /// The logits.
    pub logits: xent_matrix,
    /// One token per row, optional: what log-probabilities and ranks are of.
    pub targets: xent_ids,
    /// `[rows, candidates_per_row]` tokens whose log-probabilities are wanted, optional. They cannot be shifted.
    pub candidates: xent_ids,
    /// How many of them each row has.
    pub candidates_per_row: usize,
    /// How many of the most probable tokens to find: at most `XENT_MAX_TOP_K`, and, but for `xent_row_stats`, the number of
    /// classes. 0 is off.
    pub top_k: usize,
    /// How to draw a token of each row, optional. NULL, as of `bias` and `bias_offsets`, goes with a length of 0.
    pub samples: *const xent_sample,
    /// How many: the number of rows.
    pub samples_len: usize,
    /// Which classes may be, optional.
    pub allowed: xent_allowed,
    /// What is added to the logits of some tokens, optional: in ascending order of the tokens.
    pub bias: *const xent_bias,
    /// How many entries.
    pub bias_len: usize,
    /// NULL: the entries are for all rows. Else row `i` has entries `bias_offsets[i]` to `bias_offsets[i + 1]`.
    pub bias_offsets: *const usize,
    /// How many: one more than there are rows.
    pub bias_offsets_len: usize,
    /// For `xent_row_stats`: `XENT_SHARD_RANKS`, `XENT_SHARD_ENTROPY`, `XENT_SHARD_VARENTROPY`.
    pub shard_flags: u32,
    /// The type of the outputs that are not integers: `XENT_F32`, or `XENT_F64` for logits that are. Needed if there is one.
    pub out_dtype: i32,
    /// Rows of each output: the number of rows. Needed if there is one.
    pub out_len: usize,
    /// The log-probability of each target. This and all that follow may be NULL.
    pub logprobs: *mut c_void,
    /// How many logits are at least that of the target, itself among them: vLLM's rank.
    pub ranks: *mut i64,
    /// One more than how many logits are above that of the target.
    pub strict_ranks: *mut i64,
    /// `[rows, candidates_per_row]` log-probabilities of the candidates.
    pub candidate_logprobs: *mut c_void,
    /// `[rows, top_k]` tokens with the largest logits, in descending order, of equals the lower id first.
    pub top_ids: *mut i64,
    /// `[rows, top_k]` log-probabilities of these. They are wanted together.
    pub top_logprobs: *mut c_void,
    /// The first token with the largest logit, or with a NaN if there is one.
    pub argmax: *mut i64,
    /// The entropy of each row in nats.
    pub entropy: *mut c_void,
    /// The variance of the log-probabilities.
    pub varentropy: *mut c_void,
    /// The logarithm of the sum of the exponentials of each row.
    pub logsumexp: *mut c_void,
    /// The tokens drawn for `samples`; -1 where there is none that could be.
    pub sampled: *mut i64,
    /// Their log-probabilities.
    pub sampled_logprobs: *mut c_void,
}

/// What `xent_draw` and `xent_row_stats_draw` leave of the most probable tokens, in the order of the members.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct xent_filters {
    /// `sizeof(xent_filters)`
    pub size: usize,
    /// Which are used: `XENT_FILTER_TOP_K`, `XENT_FILTER_TOP_P`, `XENT_FILTER_MIN_P`. The others do not matter.
    pub used: u32,
    /// 0
    pub reserved: u32,
    /// Leaves so many tokens. 0 is off, and so is the vocabulary or more.
    pub top_k: usize,
    /// Leaves as few as together have at least this probability, but at least 1. From 1 on it is off.
    pub top_p: f64,
    /// Leaves those that are at least so many times as probable as the most probable one. 0 is off.
    pub min_p: f64,
}

/// Two models compared, row by row: where the results go. What has no buffer is not computed.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct xent_compare_call {
    /// `sizeof(xent_compare_call)`
    pub size: usize,
    /// Logits of the base, P.
    pub base: xent_matrix,
    /// Logits of the other, Q, of the same shape.
    pub other: xent_matrix,
    /// One token per row, optional; rows whose target is ignored have 0 everywhere.
    pub targets: xent_ids,
    /// Which classes may be, optional.
    pub allowed: xent_allowed,
    /// Elements of each output: the number of rows. Needed if there is one.
    pub out_len: usize,
    /// `KL(P||Q)` of each row, in nats: llama.cpp's KLD. This and all that follow may be NULL.
    pub kl: *mut f64,
    /// `KL(Q||P)`, in nats.
    pub reverse_kl: *mut f64,
    /// The Jensen-Shannon divergence, in nats.
    pub jsd: *mut f64,
    /// The total variation, 0 to 1.
    pub total_variation: *mut f64,
    /// The log-probability of the target under P.
    pub base_logprobs: *mut f64,
    /// The log-probability of the target under Q.
    pub other_logprobs: *mut f64,
    /// The probability of the target under Q less that under P.
    pub delta_p: *mut f64,
    /// 1 where the most probable token is the same, else 0: also where the other results are NaN.
    pub same_top: *mut u8,
}

/// A part of a vocabulary.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct xent_shard {
    /// `sizeof(xent_shard)`
    pub size: usize,
    /// Its first class; it has those of the logits.
    pub first: usize,
    /// How many classes the whole vocabulary has.
    pub vocab: usize,
    /// The logits of the targets of all rows, for ranks: `target_logit` of the shards that have them. Or NULL.
    pub target_logits: *const f32,
    /// How many: the number of rows; 0 for NULL.
    pub target_logits_len: usize,
}

/// What the statistics of a row say. What is not known is NaN, 0 for a rank, -1 for an id.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct xent_row_summary {
    /// `sizeof(xent_row_summary)`, to be set by the caller.
    pub size: usize,
    /// The negative log-probability of the target.
    pub loss: f64,
    /// The logarithm of the sum of the exponentials.
    pub logsumexp: f64,
    /// In nats.
    pub entropy: f64,
    /// The variance of the log-probabilities.
    pub varentropy: f64,
    /// How many logits are at least that of the target.
    pub rank: u64,
    /// One more than how many are above it.
    pub strict_rank: u64,
    /// The first token with the largest logit.
    pub argmax: i64,
    /// The token that was drawn.
    pub sampled: i64,
    /// The logit of the target, which other shards need for its rank.
    pub target_logit: f32,
    /// `logsumexp` as `xent_backward` takes it from `saved_from`.
    pub saved_hi: f32,
    /// What rounding took from `saved_hi`.
    pub saved_lo: f32,
    /// 0
    pub reserved: u32,
}
