/*
 * xent: cross-entropy, log-probabilities and gradients over vocabulary rows.
 *
 * Generated from the Rust source by `XENT_WRITE_HEADER=1 cargo test -p xent-c --test header`: do not edit.
 * How to use it, and what may change from version to version: bindings/c/README.md.
 *
 * Of every function: pointers are NULL where that is allowed, or valid for as many elements as the lengths and
 * strides beside them say, and nobody else writes what it reads, or touches what it writes, until it returns.
 * No function keeps a pointer. All may be called from any number of threads at once.
 *
 * Licence: MIT OR Apache-2.0
 */

#ifndef XENT_H
#define XENT_H

#include <stddef.h>
#include <stdint.h>

/* The version of this header. That of the library: xent_version(), xent_abi_version(). */
#define XENT_VERSION_MAJOR 0
#define XENT_VERSION_MINOR 1
#define XENT_VERSION_PATCH 0
#define XENT_VERSION "0.1.0"

// The version of the ABI, of which the shared library has its name: programs that were built for it work with every later
// library of the same number. The header's; `xent_abi_version` is the library's.
#define XENT_ABI_VERSION 1

// Bits of `xent_call::flags`: adds the gradient to what the matrix holds. Ignored rows stay as they are.
#define XENT_ACCUMULATE 1

// Bits of `xent_call::flags`: counts the rows whose argmax is the target. (With `argmax` they are counted anyway.)
#define XENT_COUNT_CORRECT 2

// Bits of `xent_filters::used`: `top_k` is to be used.
#define XENT_FILTER_TOP_K 1

// Bits of `xent_filters::used`: `top_p` is to be used.
#define XENT_FILTER_TOP_P 2

// Bits of `xent_filters::used`: `min_p` is to be used.
#define XENT_FILTER_MIN_P 4

// Bits of `xent_token_call::shard_flags`: shards shall know ranks.
#define XENT_SHARD_RANKS 1

// Bits of `xent_token_call::shard_flags`: shards shall know the entropy.
#define XENT_SHARD_ENTROPY 2

// Bits of `xent_token_call::shard_flags`: shards shall know the variance of the log-probabilities.
#define XENT_SHARD_VARENTROPY 4

// The most tokens that `xent_token_call::top_k` can ask for.
#define XENT_MAX_TOP_K 128

// The bytes of the statistics of a row, see `xent_row_stats`.
#define XENT_ROW_STATS_BYTES 1509

// What became of a call. A number never changes its meaning; later versions may add others.
//
// On every error but `XENT_ERROR_PANIC` all outputs are as they were, and `xent_last_error_message` says what was wrong, with row
// and value.
enum xent_status
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    // All outputs are written.
    XENT_OK = 0,
    // A pointer is NULL that must not be.
    XENT_ERROR_NULL_POINTER = 1,
    // A pointer is not aligned as its type has to be.
    XENT_ERROR_MISALIGNED = 2,
    // An output has memory in common with an input or with another output.
    XENT_ERROR_OVERLAP = 3,
    // The member `size` of a structure, a reserved member or a bit of its flags is not what this library knows.
    XENT_ERROR_STRUCT = 4,
    // A type that this function does not take, or no type.
    XENT_ERROR_DTYPE = 5,
    // Shapes or strides are wrong, or do not go with each other.
    XENT_ERROR_SHAPE = 6,
    // More elements than there are addresses, or than memory for their results.
    XENT_ERROR_OVERFLOW = 7,
    // There is not one target per row.
    XENT_ERROR_TARGET_COUNT = 8,
    // A target or a candidate is neither a class nor the ignore index.
    XENT_ERROR_TARGET_RANGE = 9,
    // An output does not have the length that goes with the logits.
    XENT_ERROR_OUTPUT_LENGTH = 10,
    // An input does not have the length that goes with the logits.
    XENT_ERROR_INPUT_LENGTH = 11,
    // An option is out of its range, or it, an input or a flag has no meaning for this function.
    XENT_ERROR_OPTION = 12,
    // Weights or results are not of the precision that goes with the logits.
    XENT_ERROR_PRECISION = 13,
    // An output needs an input that was not given.
    XENT_ERROR_MISSING = 14,
    // Offsets are not ascending, or do not take up all rows or entries.
    XENT_ERROR_OFFSETS = 15,
    // This machine or this build cannot run the backend.
    XENT_ERROR_BACKEND = 16,
    // A shard is not part of its vocabulary, shards overlap, leave a gap or do not belong together, or bytes are no
    // statistics of a row.
    XENT_ERROR_SHARD = 17,
    // No token can be drawn from what is known.
    XENT_ERROR_NOT_DRAWN = 18,
    // Memory could not be allocated.
    XENT_ERROR_OUT_OF_MEMORY = 19,
    // Threads could not be started.
    XENT_ERROR_THREADS = 20,
    // A defect of this library. Outputs may be written in part. What was passed can be used again.
    XENT_ERROR_PANIC = 21,
    // An error of a kind that this version of the binding does not know.
    XENT_ERROR_OTHER = 22,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum xent_status xent_status;
#else
typedef int32_t xent_status;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

// The type of logits and gradients, and of results and weights.
enum xent_dtype
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    // Nothing: for what is optional.
    XENT_NONE = 0,
    // `float`. Results and weights are `float`.
    XENT_F32 = 1,
    // `double`. Results and weights are `double`.
    XENT_F64 = 2,
    // The upper half of a `float`, in a `uint16_t`. Results and weights are `float`.
    XENT_BF16 = 3,
    // IEEE half precision, in a `uint16_t`. Results and weights are `float`.
    XENT_F16 = 4,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum xent_dtype xent_dtype;
#else
typedef int32_t xent_dtype;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

// The type of class ids.
enum xent_id_dtype
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    // No ids: for what is optional.
    XENT_NO_IDS = 0,
    // `int32_t`, as llama.cpp has tokens.
    XENT_I32 = 1,
    // `int64_t`, as PyTorch has them.
    XENT_I64 = 2,
    // `uint32_t`
    XENT_U32 = 3,
    // `uint64_t`; where `size_t` has 64 bits.
    XENT_U64 = 4,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum xent_id_dtype xent_id_dtype;
#else
typedef int32_t xent_id_dtype;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

// How the losses of the kept rows become one number.
enum xent_reduction
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    // Their sum divided by their weight: the number of rows, if there are no weights. The default.
    XENT_MEAN = 0,
    // Their sum; 0 if there are none.
    XENT_SUM = 1,
    // Their sum divided by a count: for gradient accumulation.
    XENT_MEAN_OVER = 2,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum xent_reduction xent_reduction;
#else
typedef int32_t xent_reduction;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

// What the mean of no rows is, or of rows none of which weighs anything.
enum xent_empty_mean
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    // NaN, as in PyTorch. The default.
    XENT_EMPTY_MEAN_NAN = 0,
    // 0
    XENT_EMPTY_MEAN_ZERO = 1,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum xent_empty_mean xent_empty_mean;
#else
typedef int32_t xent_empty_mean;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

// The instructions to use.
enum xent_backend
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    // That of the environment variable XENT_BACKEND, or else the fastest that there is.
    XENT_BACKEND_AUTO = 0,
    // Plain code, slow: what the others are compared with.
    XENT_BACKEND_SCALAR = 1,
    // What the library was compiled for.
    XENT_BACKEND_PORTABLE = 2,
    // NEON, of 64-bit Arm.
    XENT_BACKEND_NEON = 3,
    // AVX2, FMA and F16C.
    XENT_BACKEND_AVX2 = 4,
    // AVX-512 F, BW, DQ and VL.
    XENT_BACKEND_AVX512 = 5,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum xent_backend xent_backend;
#else
typedef int32_t xent_backend;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

// What calls have in common: created by `xent_options_new`, freed by `xent_options_free`.
//
// Any number of threads may use the same options at once. Nobody may set or free them meanwhile.
typedef struct xent_options xent_options;

// Real numbers in memory of the caller.
typedef struct xent_floats {
    // The first number.
    const void *data;
    // How many numbers.
    size_t len;
    // `XENT_F32` or `XENT_F64`; `XENT_NONE`: there are none, and the other members do not matter.
    int32_t dtype;
    // 0
    uint32_t reserved;
} xent_floats;

// A `[rows, classes]` matrix of logits in memory of the caller, which is read and nothing else.
//
// Element `[i, j]` is `i * row_stride + j * class_stride` elements after `data`. What is in memory between the elements is
// never read or written. `data` may be NULL if there are no elements. It must be aligned as its type.
typedef struct xent_matrix {
    // The first element.
    const void *data;
    // How many rows.
    size_t rows;
    // How many classes a row has: the size of the vocabulary.
    size_t classes;
    // Elements from a row to the next; 0: `classes * class_stride`, rows next to each other. Less than `classes` is an error,
    // unless it is 1 and classes are apart. Of one row it does not matter.
    size_t row_stride;
    // Elements from a class to the next; 0: 1. Another than 1 takes a `row_stride` of 1, as of a matrix `[classes, rows]` in
    // memory, or one row.
    size_t class_stride;
    // An `xent_dtype`.
    int32_t dtype;
    // 0
    uint32_t reserved;
} xent_matrix;

// Class ids in memory of the caller.
//
// As targets one per row. With a `sequence` they are the tokens of `[batch, sequence]` as they went into the model, and
// the target of a row is the token `shift` places later, which nobody has to copy. The last `shift` rows of each sequence have
// none and are ignored.
typedef struct xent_ids {
    // The first id.
    const void *data;
    // How many ids.
    size_t len;
    // Ids from one to the next; 0: 1. Ids that are apart are copied for the call.
    size_t stride;
    // Tokens of a sequence; 0: targets are not shifted.
    size_t sequence;
    // How many places later the target of a row is; 0 without `sequence`.
    size_t shift;
    // An `xent_id_dtype`; `XENT_NO_IDS`: there are none, and the other members do not matter.
    int32_t dtype;
    // 0
    uint32_t reserved;
} xent_ids;

// Which classes may be, a bit for each: what grammar-constrained decoders hold.
//
// Bit `j % 32` of word `j / 32` of a row, the lowest first, is class `j`. The others are as if their logits were -inf.
typedef struct xent_allowed {
    // The first word; NULL: all classes may be, and the other members do not matter.
    const uint32_t *words;
    // How many words: `classes / 32` rounded up for each row, or once if there is one mask for all.
    size_t len;
    // Words from a row to the next; 0: `classes / 32` rounded up.
    size_t stride;
    // Not 0: one mask for all rows.
    uint32_t same_for_all;
    // 0
    uint32_t reserved;
} xent_allowed;

// As `xent_matrix`, of a matrix that is written: a gradient, or logits in place. Rows may not overlap.
typedef struct xent_matrix_mut {
    // The first element.
    void *data;
    // How many rows.
    size_t rows;
    // How many classes a row has.
    size_t classes;
    // Elements from a row to the next; 0: rows next to each other.
    size_t row_stride;
    // Elements from a class to the next; 0: 1.
    size_t class_stride;
    // An `xent_dtype`.
    int32_t dtype;
    // 0
    uint32_t reserved;
} xent_matrix_mut;

// What a call about losses works on. All zero but `size` and `logits` is a valid call.
typedef struct xent_call {
    // `sizeof(xent_call)`
    size_t size;
    // The logits. For calls in place `XENT_NONE`, as they are in `gradient`.
    struct xent_matrix logits;
    // A class id per row.
    struct xent_ids targets;
    // A weight per row, optional: its loss and what it counts in a mean are multiplied by it. Rows of weight 0 do not count in
    // the statistics of `xent_evaluation`; those of any other weight each count once.
    struct xent_floats token_weights;
    // Which classes may be, optional.
    struct xent_allowed allowed;
    // Where the gradient goes: of the shape and type of the logits. In place: the logits.
    struct xent_matrix_mut gradient;
    // What the gradient of each row is multiplied by besides `upstream`, optional. Where either is 0 the gradient is 0, whatever
    // the logits and the other are.
    struct xent_floats upstream_rows;
    // For `xent_backward`: what `saved` of an earlier call was filled with, two numbers a row.
    struct xent_floats saved_from;
    // `XENT_ACCUMULATE`, `XENT_COUNT_CORRECT`
    uint32_t flags;
    // The type of the outputs that are not integers: `XENT_F32`, or `XENT_F64` for logits that are. Needed if there is one.
    int32_t out_dtype;
    // Elements of each output: the number of rows. Needed if there is one.
    size_t out_len;
    // The loss of each row with all options; 0 for ignored rows. This and all that follow may be NULL.
    void *losses;
    // The log-probability of each target, whatever the weights and the smoothing.
    void *logprobs;
    // The logarithm of the sum of the exponentials of each row.
    void *logsumexp;
    // The z-loss of each row, which is part of its loss.
    void *z_losses;
    // What `xent_backward` needs to know about each row: two numbers, `2 * out_len` elements.
    void *saved;
    // The first class with the largest logit; -1 for ignored rows.
    int64_t *argmax;
} xent_call;

// What a pass over logits and targets found out about all rows together. Statistics are over the rows that count: the kept
// ones, but for those whose token weight is 0.
typedef struct xent_evaluation {
    // `sizeof(xent_evaluation)`, to be set by the caller.
    size_t size;
    // The loss with all options and the z-loss, reduced.
    double loss;
    // The part of the loss that is not z-loss.
    double cross_entropy;
    // The part of the loss that is z-loss.
    double z_loss;
    // The sum of the negative log-probabilities of the targets, in nats, whatever the options; of the rows that count.
    double sum;
    // The mean of these; NaN for no rows.
    double mean;
    // Its standard error, as llama.cpp has it; NaN for fewer than two rows.
    double mean_stderr;
    // `e^mean`
    double perplexity;
    // Its standard error: `perplexity * mean_stderr`.
    double perplexity_stderr;
    // `mean / ln 2`
    double bits_per_token;
    // The share of the rows that count whose argmax is the target and whose log-probability is not NaN; NaN if it was not asked
    // for, or for no rows.
    double accuracy;
    // How many these are; -1 if it was not asked for.
    int64_t correct;
    // The number of rows that count: kept, and of a token weight other than 0.
    uint64_t count;
    // The number of rows that do not count.
    uint64_t ignored;
} xent_evaluation;

// The score of one sequence.
typedef struct xent_sequence_score {
    // The sum of the log-probabilities of the targets, in nats; 0 for no tokens.
    double logprob;
    // The number of rows that count.
    uint64_t tokens;
    // The first of these whose target is not the most probable class, or whose log-probability is NaN, from the start of the
    // sequence; -1 if there is none, so that greedy decoding would have produced the sequence.
    int64_t first_mismatch;
} xent_sequence_score;

// How to draw a token of a row. The draw follows from this and the logits alone.
typedef struct xent_sample {
    // Of a request.
    uint64_t seed;
    // Of the token in its sequence: no two draws may share both numbers.
    uint64_t position;
    // Finite and at least 0, which is the argmax.
    double temperature;
} xent_sample;

// What is added to the logit of a token.
typedef struct xent_bias {
    // The token.
    uint32_t id;
    // Finite or -inf, which bans the token.
    float value;
} xent_bias;

// What is asked about the tokens of each row, and where the answers go. What has no buffer is not computed.
//
// All zero but `size` and `logits` is a valid call that asks nothing.
typedef struct xent_token_call {
    // `sizeof(xent_token_call)`
    size_t size;
    // The logits.
    struct xent_matrix logits;
    // One token per row, optional: what log-probabilities and ranks are of.
    struct xent_ids targets;
    // `[rows, candidates_per_row]` tokens whose log-probabilities are wanted, optional. They cannot be shifted.
    struct xent_ids candidates;
    // How many of them each row has.
    size_t candidates_per_row;
    // How many of the most probable tokens to find: at most `XENT_MAX_TOP_K`, and, but for `xent_row_stats`, the number of
    // classes. 0 is off.
    size_t top_k;
    // How to draw a token of each row, optional. NULL, as of `bias` and `bias_offsets`, goes with a length of 0.
    const struct xent_sample *samples;
    // How many: the number of rows.
    size_t samples_len;
    // Which classes may be, optional.
    struct xent_allowed allowed;
    // What is added to the logits of some tokens, optional: in ascending order of the tokens.
    const struct xent_bias *bias;
    // How many entries.
    size_t bias_len;
    // NULL: the entries are for all rows. Else row `i` has entries `bias_offsets[i]` to `bias_offsets[i + 1]`.
    const size_t *bias_offsets;
    // How many: one more than there are rows.
    size_t bias_offsets_len;
    // For `xent_row_stats`: `XENT_SHARD_RANKS`, `XENT_SHARD_ENTROPY`, `XENT_SHARD_VARENTROPY`.
    uint32_t shard_flags;
    // The type of the outputs that are not integers: `XENT_F32`, or `XENT_F64` for logits that are. Needed if there is one.
    int32_t out_dtype;
    // Rows of each output: the number of rows. Needed if there is one.
    size_t out_len;
    // The log-probability of each target. This and all that follow may be NULL.
    void *logprobs;
    // How many logits are at least that of the target, itself among them: vLLM's rank.
    int64_t *ranks;
    // One more than how many logits are above that of the target.
    int64_t *strict_ranks;
    // `[rows, candidates_per_row]` log-probabilities of the candidates.
    void *candidate_logprobs;
    // `[rows, top_k]` tokens with the largest logits, in descending order, of equals the lower id first.
    int64_t *top_ids;
    // `[rows, top_k]` log-probabilities of these. They are wanted together.
    void *top_logprobs;
    // The first token with the largest logit, or with a NaN if there is one.
    int64_t *argmax;
    // The entropy of each row in nats.
    void *entropy;
    // The variance of the log-probabilities.
    void *varentropy;
    // The logarithm of the sum of the exponentials of each row.
    void *logsumexp;
    // The tokens drawn for `samples`; -1 where there is none that could be.
    int64_t *sampled;
    // Their log-probabilities.
    void *sampled_logprobs;
} xent_token_call;

// What `xent_draw` and `xent_row_stats_draw` leave of the most probable tokens, in the order of the members.
typedef struct xent_filters {
    // `sizeof(xent_filters)`
    size_t size;
    // Which are used: `XENT_FILTER_TOP_K`, `XENT_FILTER_TOP_P`, `XENT_FILTER_MIN_P`. The others do not matter.
    uint32_t used;
    // 0
    uint32_t reserved;
    // Leaves so many tokens. 0 is off, and so is the vocabulary or more.
    size_t top_k;
    // Leaves as few as together have at least this probability, but at least 1. From 1 on it is off.
    double top_p;
    // Leaves those that are at least so many times as probable as the most probable one. 0 is off.
    double min_p;
} xent_filters;

// A part of a vocabulary.
typedef struct xent_shard {
    // `sizeof(xent_shard)`
    size_t size;
    // Its first class; it has those of the logits.
    size_t first;
    // How many classes the whole vocabulary has.
    size_t vocab;
    // The logits of the targets of all rows, for ranks: `target_logit` of the shards that have them. Or NULL.
    const float *target_logits;
    // How many: the number of rows; 0 for NULL.
    size_t target_logits_len;
} xent_shard;

// What the statistics of a row say. What is not known is NaN, 0 for a rank, -1 for an id.
typedef struct xent_row_summary {
    // `sizeof(xent_row_summary)`, to be set by the caller.
    size_t size;
    // The negative log-probability of the target.
    double loss;
    // The logarithm of the sum of the exponentials.
    double logsumexp;
    // In nats.
    double entropy;
    // The variance of the log-probabilities.
    double varentropy;
    // How many logits are at least that of the target.
    uint64_t rank;
    // One more than how many are above it.
    uint64_t strict_rank;
    // The first token with the largest logit.
    int64_t argmax;
    // The token that was drawn.
    int64_t sampled;
    // The logit of the target, which other shards need for its rank.
    float target_logit;
    // `logsumexp` as `xent_backward` takes it from `saved_from`.
    float saved_hi;
    // What rounding took from `saved_hi`.
    float saved_lo;
    // 0
    uint32_t reserved;
} xent_row_summary;

// Two models compared, row by row: where the results go. What has no buffer is not computed.
typedef struct xent_compare_call {
    // `sizeof(xent_compare_call)`
    size_t size;
    // Logits of the base, P.
    struct xent_matrix base;
    // Logits of the other, Q, of the same shape.
    struct xent_matrix other;
    // One token per row, optional; rows whose target is ignored have 0 everywhere.
    struct xent_ids targets;
    // Which classes may be, optional.
    struct xent_allowed allowed;
    // Elements of each output: the number of rows. Needed if there is one.
    size_t out_len;
    // `KL(P||Q)` of each row, in nats: llama.cpp's KLD. This and all that follow may be NULL.
    double *kl;
    // `KL(Q||P)`, in nats.
    double *reverse_kl;
    // The Jensen-Shannon divergence, in nats.
    double *jsd;
    // The total variation, 0 to 1.
    double *total_variation;
    // The log-probability of the target under P.
    double *base_logprobs;
    // The log-probability of the target under Q.
    double *other_logprobs;
    // The probability of the target under Q less that under P.
    double *delta_p;
    // 1 where the most probable token is the same, else 0: also where the other results are NaN.
    uint8_t *same_top;
} xent_compare_call;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

// The version of the library, as "0.1.0": a text that stays valid. The header has `XENT_VERSION`.
const char *xent_version(void);

// The version of the ABI of the library: `XENT_ABI_VERSION` of the header it was built with.
uint32_t xent_abi_version(void);

// The text of the last call on this thread that was refused, in UTF-8: what was wrong, with row and value. Empty if there
// was none.
//
// It is valid until the next call on this thread that is refused, or until the thread ends.
const char *xent_last_error_message(void);

// What a status means, in English: a text that stays valid. "unknown status" for other numbers.
const char *xent_status_string(int32_t status);

// Creates options with the defaults, which are those of PyTorch: the ignore index is -100, the loss is the mean over the kept
// rows, and NaN if there are none; no weights, no smoothing, no z-loss, logits as they are; the fastest backend, and the
// threads of the pool of the process.
//
// Functions take NULL for these.
xent_status xent_options_new(struct xent_options **out);

// Creates options that are like others, NULL for the defaults. Class weights and threads are shared, and freed with the last
// options that use them.
xent_status xent_options_clone(const struct xent_options *options,
                               struct xent_options **out);

// Frees options; NULL is fine. Threads of their own end.
xent_status xent_options_free(struct xent_options *options);

// Sets the target of rows to leave out, the only one. It may be a class.
xent_status xent_options_set_ignore_index(struct xent_options *options, int64_t ignore_index);

// Sets the targets of rows to leave out: those of padding and of the end of the text, say. They
// are copied. They replace what was ignored before, -100 included. Each may be a class. No ids at
// all are `xent_options_set_no_ignore_index`. It should be a short list: a target is compared with
// one id after the other.
xent_status xent_options_set_ignore_indices(struct xent_options *options, const int64_t *ids, size_t len);

// No row is left out: every target has to be a class.
xent_status xent_options_set_no_ignore_index(struct xent_options *options);

// Sets how row losses become one number, an `xent_reduction`. `count` is the divisor of `XENT_MEAN_OVER`, finite and above 0;
// for the others it does not matter.
xent_status xent_options_set_reduction(struct xent_options *options,
                                       int32_t reduction,
                                       double count);

// Sets what the mean of no rows is, or of rows none of which weighs anything, an `xent_empty_mean`.
xent_status xent_options_set_empty_mean(struct xent_options *options, int32_t empty_mean);

// Moves the share `e` of each target's probability to all classes alike; 0 to 1.
xent_status xent_options_set_label_smoothing(struct xent_options *options, double e);

// Sets a weight per class, of any sign, which a row's loss is multiplied by; they are copied. `XENT_F32`, or `XENT_F64` for
// logits that are. NULL or `XENT_NONE`: no weights.
xent_status xent_options_set_class_weights(struct xent_options *options,
                                           const struct xent_floats *weights);

// Adds `factor * lse^2` to the loss of each kept row, with `lse` its logsumexp; finite and not negative.
xent_status xent_options_set_z_loss(struct xent_options *options, double factor);

// Logits are multiplied by this first; finite and above 0.
xent_status xent_options_set_logit_scale(struct xent_options *options, double scale);

// Logits are divided by this last; finite and above 0.
xent_status xent_options_set_temperature(struct xent_options *options, double temperature);

// Logits are bounded by `c tanh(x / c)`; finite and above 0. Masks stay masks: -inf stays -inf.
xent_status xent_options_set_softcap(struct xent_options *options, double c);

// As `xent_options_set_softcap`, but -inf becomes `-c` and +inf becomes `c`.
xent_status xent_options_set_softcap_of_all(struct xent_options *options, double c);

// Logits are not bounded.
xent_status xent_options_set_no_softcap(struct xent_options *options);

// Sets which threads calls run on: 0, a pool that all of the process share, which is started by the first call that needs it
// and has as many threads as there are CPUs (or as `RAYON_NUM_THREADS` says); 1, the thread that calls, and no other; more,
// that many threads, which these options and their clones have for themselves, and which are started now.
//
// Small calls stay on the calling thread. Results have the same bits for any number of threads. A process that has threads
// must not fork and go on with them.
xent_status xent_options_set_threads(struct xent_options *options,
                                     size_t threads);

// Sets the instructions to use, an `xent_backend`. `XENT_BACKEND_AUTO` is the default.
xent_status xent_options_set_backend(struct xent_options *options, int32_t backend);

// Tells whether this machine can run a backend: 1 or 0 into `available`. `XENT_BACKEND_AUTO` it can.
xent_status xent_backend_available(int32_t backend, int32_t *available);

// Tells which backend calls use that ask for none: an `xent_backend` into `backend`.
xent_status xent_backend_selected(int32_t *backend);

// The loss: cross-entropy of logits and targets, reduced as the options say. `options` may be NULL.
xent_status xent_forward(const struct xent_options *options,
                         const struct xent_matrix *logits,
                         const struct xent_ids *targets,
                         double *loss);

// The loss of each row, unreduced, into `losses`; 0 for ignored rows. Does not allocate, unless classes or targets are apart.
//
// `len` is the number of rows; `dtype` is `XENT_F32`, or `XENT_F64` for logits that are.
xent_status xent_forward_into(const struct xent_options *options,
                              const struct xent_matrix *logits,
                              const struct xent_ids *targets,
                              void *losses,
                              size_t len,
                              int32_t dtype);

// Everything that the pass over the rows can tell: sums for loss, perplexity and accuracy into `evaluation`, and the results
// per row that the call asks for. `options` and `evaluation` may be NULL.
xent_status xent_evaluate(const struct xent_options *options,
                          const struct xent_call *call,
                          struct xent_evaluation *evaluation);

// Loss, and its gradient by the logits times `upstream`, into the matrix `gradient` of the call, for one read of the logits.
// `options` and `evaluation` may be NULL.
xent_status xent_forward_backward(const struct xent_options *options,
                                  const struct xent_call *call,
                                  double upstream,
                                  struct xent_evaluation *evaluation);

// As `xent_forward_backward`, in place: the logits are in `gradient` and are overwritten, and `logits` is `XENT_NONE`.
xent_status xent_forward_backward_in_place(const struct xent_options *options,
                                           const struct xent_call *call,
                                           double upstream,
                                           struct xent_evaluation *evaluation);

// The gradient alone, from what an earlier pass with the same options, logits and targets found out about each row:
// `saved_from` is what `saved` was. No output per row may be asked for.
xent_status xent_backward(const struct xent_options *options, const struct xent_call *call, double upstream);

// As `xent_backward`, in place of the logits, which are in `gradient`; `logits` is `XENT_NONE`.
xent_status xent_backward_in_place(const struct xent_options *options, const struct xent_call *call, double upstream);

// The score of each sequence of a ragged batch: sequence `i` is rows `offsets[i]` to `offsets[i + 1]`, as `cu_seqlens` of
// variable-length attention has it. `n` sequences have `n + 1` offsets, from 0 to the number of rows, and `n` scores.
//
// Of the call, logits, targets and allowed classes are used; token weights may not be given, and no output per row may be
// asked for. Class weights, smoothing, z-loss and reduction have no part in scores.
xent_status xent_sequences(const struct xent_options *options,
                           const struct xent_call *call,
                           const size_t *offsets,
                           size_t offsets_len,
                           struct xent_sequence_score *scores,
                           size_t scores_len);

// Softmax of each row into `out`: contiguous rows of the type of the logits, `out_len` elements, `rows * classes`.
//
// Of the options only backend and threads are used; those that change logits are errors. `options` and `allowed` may be NULL.
xent_status xent_softmax(const struct xent_options *options,
                         const struct xent_matrix *logits,
                         const struct xent_allowed *allowed,
                         void *out,
                         size_t out_len,
                         int32_t out_dtype);

// As `xent_softmax`, of the logarithms: `x - ln(sum e^x)`.
xent_status xent_log_softmax(const struct xent_options *options,
                             const struct xent_matrix *logits,
                             const struct xent_allowed *allowed,
                             void *out,
                             size_t out_len,
                             int32_t out_dtype);

// As `xent_softmax`, over the logits themselves, in any layout.
xent_status xent_softmax_in_place(const struct xent_options *options,
                                  const struct xent_matrix_mut *logits,
                                  const struct xent_allowed *allowed);

// As `xent_log_softmax`, over the logits themselves, in any layout.
xent_status xent_log_softmax_in_place(const struct xent_options *options,
                                      const struct xent_matrix_mut *logits,
                                      const struct xent_allowed *allowed);

// `ln(sum e^x)` of each row into `out`, `out_len` elements, one a row: `XENT_F32`, or `XENT_F64` for logits that are. `options`
// and `allowed` may be NULL.
xent_status xent_logsumexp(const struct xent_options *options,
                           const struct xent_matrix *logits,
                           const struct xent_allowed *allowed,
                           void *out,
                           size_t out_len,
                           int32_t out_dtype);

// Answers what is asked about the tokens of each row, from one read of it: log-probabilities of given tokens and of the most
// probable ones, ranks, entropy, and a sample. Does not allocate, unless classes or ids are apart or a row is spread over threads.
//
// Of the options, the ignore index, the temperature, backend and threads are used; a logit scale or a softcap is an error;
// those of losses do not matter. `options` may be NULL.
xent_status xent_tokens(const struct xent_options *options,
                        const struct xent_token_call *call);

// Draws one of the most probable tokens: `n` ids and `float` log-probabilities in descending order, as `top_ids` and
// `top_logprobs` have them for a vocabulary of `vocab`. `filters` may be NULL for none.
//
// The result is that of the whole vocabulary, or `XENT_ERROR_NOT_DRAWN` if a filter would leave tokens that are not among
// those given, or if there is none that could be drawn. A sum of probabilities that reaches `top_p`, or a ratio that reaches
// `min_p`, but for the rounding of the log-probabilities (2 ULP of `float`) has reached it.
xent_status xent_draw(const struct xent_filters *filters,
                      const int64_t *ids,
                      const float *logprobs,
                      size_t n,
                      size_t vocab,
                      const struct xent_sample *sample,
                      int64_t *token);

// As `xent_draw`, of the statistics of a row of `vocab` classes, `XENT_ROW_STATS_BYTES` bytes, which were asked for `top_k` tokens
// and are merged if they are of shards. Filters decide with the logits and the sum that the pass over the row had, which are not
// rounded to `float`.
xent_status xent_row_stats_draw(const struct xent_filters *filters,
                                const uint8_t *stats,
                                size_t vocab,
                                const struct xent_sample *sample,
                                int64_t *token);

// Statistics of the rows of a vocabulary shard, `XENT_ROW_STATS_BYTES` bytes a row into `stats`, to be sent to wherever they
// are merged. `stats_len` is their number, that of the rows times `XENT_ROW_STATS_BYTES`.
//
// Targets, and ids that are found, are of the whole vocabulary; logits, bias and mask are those of the shard, counted from
// its first class. Asked for are log-probability, argmax and logsumexp, and by the call `top_k`, `samples` and `shard_flags`.
// No output and no candidates may be set. Logits are not `XENT_F64`.
xent_status xent_row_stats(const struct xent_options *options,
                           const struct xent_token_call *call,
                           const struct xent_shard *shard,
                           uint8_t *stats,
                           size_t stats_len);

// Merges the statistics of a row over two shards, `XENT_ROW_STATS_BYTES` bytes each, into `merged`, which may be either of
// them. In any order the result has the same bits. Shards that overlap, of other vocabularies or at other temperatures,
// are `XENT_ERROR_SHARD`. What has a gap says nothing until that is filled: see `xent_row_stats_check`.
xent_status xent_row_stats_merge(const uint8_t *a,
                                 const uint8_t *b,
                                 uint8_t *merged);

// Whether each class of the vocabulary was merged once into the statistics of row `row`, which an error names:
// `XENT_ERROR_SHARD` for a gap, or for classes that were merged twice.
xent_status xent_row_stats_check(const uint8_t *stats, size_t row);

// Tells what the statistics of a row say, `XENT_ROW_STATS_BYTES` bytes.
xent_status xent_row_stats_summary(const uint8_t *stats, struct xent_row_summary *summary);

// Tells the most probable tokens of a row, `XENT_ROW_STATS_BYTES` bytes of statistics: up to `k` of those that were asked for,
// in descending order. How many there are goes to `count`; what comes after them is not written.
xent_status xent_row_stats_top(const uint8_t *stats,
                               size_t k,
                               int64_t *ids,
                               float *logprobs,
                               size_t *count);

// Compares two models, row by row: divergences in nats, computed in `double` whatever the types of the logits, which may
// differ.
//
// Of the options, the ignore index, the temperature, backend and threads are used; a logit scale or a softcap is an error.
// `options` may be NULL.
xent_status xent_compare(const struct xent_options *options,
                         const struct xent_compare_call *call);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* XENT_H */
