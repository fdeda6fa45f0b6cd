//! Cross-entropy over vocabulary rows, in one read of the logits.
//!
//! The crate computes the loss at the end of every language model on CPUs, with hand-written
//! AVX-512, AVX2 and NEON kernels. A kernel reads each row of logits once. From that one read come
//! loss, perplexity, accuracy and gradient, or log-probabilities, ranks, the top k, entropy and
//! samples.
//!
//! ```
//! use xent::{CrossEntropy, Error, Logits, RowOutputs};
//!
//! fn score(logits: &[f32], targets: &[i64], vocab: usize) -> Result<(), Error> {
//!     let logits = Logits::new(logits, targets.len(), vocab)?;
//!     let wanted = RowOutputs::new().count_correct();
//!     let all = CrossEntropy::new().evaluate(logits, targets, wanted)?;
//!     println!("perplexity {:.2} +/- {:.2}", all.perplexity(), all.perplexity_stderr());
//!     Ok(())
//! }
//!
//! fn main() {
//!     if let Err(error) = score(&[1.0, 2.0, 3.0, 0.5, -1.0, 2.0], &[2, 1], 3) {
//!         eprintln!("{error}");
//!         std::process::exit(1);
//!     }
//! }
//! ```
//!
//! [`Error`] has its readable text in `Display`. A `main` that returns `Result<(), Error>` prints
//! the `Debug` form instead.
//!
//! # Which type for which job
//!
//! | job | type |
//! |---|---|
//! | loss, row losses, perplexity, accuracy | [`CrossEntropy`], [`RowOutputs`], [`Evaluation`] |
//! | gradient: new, added or in place | [`CrossEntropy::forward_backward`], [`Gradient`] |
//! | scores of ragged sequences | [`CrossEntropy::sequences`], [`SequenceScore`] |
//! | log-probabilities, ranks, top k, entropy | [`LogProbs`], [`TokenOutputs`], [`TokenLogProbs`] |
//! | sampling: all tokens, or top-k, top-p, min-p | [`Sample`], [`Sampler`] |
//! | two models compared: KL divergence and more | [`Compare`], [`Comparison`] |
//! | softmax, log-softmax, logsumexp | [`Softmax`] |
//! | logits where they are in memory, in any layout | [`Logits`], [`LogitsMut`] |
//! | class ids, shifted tokens, probabilities | [`Targets`], [`SparseProbs`] |
//! | masks of a grammar, logit bias | [`AllowedTokens`], [`LogitBias`] |
//! | a vocabulary in shards | [`RowStats`], [`ShardedCrossEntropy`], [`LossStats`] |
//! | the instruction set | [`Backend`] |
//! | an oracle for a kernel of your own | [`reference`](mod@reference) |
//! | JSON of the OpenAI API | [`openai`] |
//!
//! # Build
//!
//! Intrinsics are not inlined at optimisation level 0. In the dev profile every call takes 60 to
//! 110 times as long unless the `Cargo.toml` of your workspace says:
//!
//! ```toml
//! [profile.dev.package.xent]
//! opt-level = 3
//! ```
//!
//! The instruction set is chosen at run time, so no compiler flag is needed. [`Backend::available`]
//! lists what the machine can run. [`CrossEntropy::backend`] and the environment variable
//! `XENT_BACKEND` choose another one.
//!
//! # Features
//!
//! | feature | default | effect |
//! |---|---|---|
//! | `rayon` | yes | Large calls are spread over the rayon pool that they are called from. |
//! | `serde` | no | [`TokenLogProbs`] can be written and read; adds the module [`openai`]. |
//!
//! # Accuracy
//!
//! - The loss of a row and the log-probability of its target are the correctly rounded `f32` or the
//!   next one ([`LOSS_MAX_ULP`]), down to 1e-30 and below. For `f64` logits they are within 2 ULP
//!   of `f64`.
//! - Rows of [`bf16`](struct@bf16) and [`f16`](struct@f16) are widened exactly. Their losses are
//!   those of `f32`, bit for bit, and their gradients are rounded once.
//! - Reduced losses are sums in `f64`, in row order.
//! - The documentation of each type states its other bounds, and names the test that holds them.
//!
//! # Determinism
//!
//! The bits of a row's results depend on the row and on the options alone. Other rows, threads,
//! layout, alignment and the floating-point environment of the calling thread do not change them.
//! All backends with fused multiply-add return the same bits: `Scalar`, `Neon`, `Avx2` and
//! `Avx512`. `Portable` keeps the bounds where it was compiled without it.
//!
//! # Special values
//!
//! - A row whose target is the ignore index, -100 by default, takes no part in any result.
//! - A logit of -inf is a mask: its probability is exactly 0.
//! - A row with NaN or +inf, and a row of -inf alone, has loss NaN. Other rows are not affected.
//! - Every error is found before anything is written, and its text names the row and the value.
//!
//! # In the repository
//!
//! `docs/` has pages on inference engines, layouts, the options of other systems, measurements, C
//! and C++, candle and MPI. `kernels.md` explains each kernel. `cli/` is the command `xent`, which
//! scores files of logits.
//!
#![cfg_attr(not(feature = "serde"), doc = " [`openai`]: #features")]
#![deny(missing_docs, unsafe_code)]
#![warn(clippy::undocumented_unsafe_blocks)]

mod allowed;
mod backend;
mod bias;
mod bytes;
mod columns;
mod compare;
mod comparison;
mod cross_entropy;
mod element;
mod error;
mod evaluation;
mod floats;
mod gradient;
mod kernel;
mod logits;
mod logprobs;
mod loss_stats;
mod math;
#[cfg(feature = "serde")]
pub mod openai;
mod owned;
pub mod reference;
mod row_stats;
mod rows;
mod sample;
mod saved;
mod sequences;
mod sharded;
mod simd;
mod softmax;
mod targets;

/// Its examples are tests.
#[cfg(doctest)]
#[doc = include_str!("../docs/layouts.md")]
struct Layouts;

/// Its examples are tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

/// Its examples are tests.
#[cfg(doctest)]
#[doc = include_str!("../docs/inference.md")]
struct Inference;

/// Its examples are tests.
#[cfg(doctest)]
#[doc = include_str!("../docs/mpi.md")]
struct Mpi;

pub use allowed::AllowedTokens;
pub use backend::Backend;
pub use bias::LogitBias;
pub use compare::{Compare, CompareOutputs};
pub use comparison::{AtTargets, Comparison, Estimate};
pub use cross_entropy::{CrossEntropy, EmptyMean, Reduction, RowOutputs};
pub use element::{Element, Real};
pub use error::Error;
pub use evaluation::Evaluation;
pub use floats::Floats;
pub use gradient::{Gradient, Upstream};
pub use half::{bf16, f16};
pub use logits::{Logits, LogitsMut};
pub use logprobs::{LogProbs, Shard, TokenLogProbs, TokenOutputs};
pub use loss_stats::LossStats;
pub use owned::OwnedCrossEntropy;
pub use row_stats::{RowStats, TopToken};
pub use rows::on_calling_thread;
pub use sample::{Sample, Sampler};
pub use saved::LogSumExp;
pub use sequences::SequenceScore;
pub use sharded::ShardedCrossEntropy;
pub use softmax::Softmax;
pub use targets::{Ids, ShiftedIds, SparseProbs, Targets};

/// The largest error, in ULP, of `e^x` rounded to one `f32`, for every `f32` whose exponential is a
/// normal number: `tests/exp_accuracy.rs` tries them all.
///
/// Sums use it before it is rounded, in two parts, where its error is below 0.6 ULP.
pub const EXP_MAX_ULP: f64 = 1.03;

/// How far the loss of a row with a class id as target may be from the correctly rounded one, in units of
/// the last place: at most the next `f32` above or below. `tests/accuracy.rs` holds every backend to it.
pub const LOSS_MAX_ULP: u32 = 1;

/// Kernels by themselves, for the benches and the tests of this crate. Not part of the API.
#[doc(hidden)]
pub mod internals {
    use crate::{Backend, Error};
    use half::{bf16, f16};

    /// `e^x` of every element, in place, for `x <= 88.02`.
    pub fn exp(backend: Backend, values: &mut [f32]) -> Result<(), Error> {
        Backend::kernels(Some(backend)).map(|kernels| kernels.exp(values))
    }

    /// The largest element: the time it takes is the limit of every kernel.
    pub fn read(backend: Backend, values: &[f32]) -> Result<f32, Error> {
        Backend::kernels(Some(backend)).map(|kernels| kernels.read(values))
    }

    /// Every element times `factor`: the limit of kernels that overwrite their input.
    pub fn rewrite(backend: Backend, values: &mut [f32], factor: f32) -> Result<(), Error> {
        Backend::kernels(Some(backend)).map(|kernels| kernels.rewrite(values, factor))
    }

    /// Calls `f` in the floating-point environment that this crate computes in, and gives the caller's
    /// back: for the arithmetic of bindings. `f` runs no code of their callers, and waits for no other
    /// thread.
    pub fn in_default_float_env<R>(f: impl FnOnce() -> R) -> R {
        crate::simd::float_env::scope(f)
    }

    /// All numbers in `f32`.
    pub fn widen_bf16(backend: Backend, from: &[bf16], to: &mut [f32]) -> Result<(), Error> {
        Backend::kernels(Some(backend)).map(|kernels| kernels.widen_bf16(from, to))
    }

    /// All numbers in `f32`.
    pub fn widen_f16(backend: Backend, from: &[f16], to: &mut [f32]) -> Result<(), Error> {
        Backend::kernels(Some(backend)).map(|kernels| kernels.widen_f16(from, to))
    }

    /// All numbers rounded.
    pub fn narrow_bf16(backend: Backend, from: &[f32], to: &mut [bf16]) -> Result<(), Error> {
        Backend::kernels(Some(backend)).map(|kernels| kernels.narrow_bf16(from, to))
    }

    /// All numbers rounded.
    pub fn narrow_f16(backend: Backend, from: &[f32], to: &mut [f16]) -> Result<(), Error> {
        Backend::kernels(Some(backend)).map(|kernels| kernels.narrow_f16(from, to))
    }

    /// The loss of one row, `target < logits.len()`, without any check of the arguments.
    pub fn row_loss(backend: Backend, logits: &[f32], target: usize) -> Result<f64, Error> {
        Backend::kernels(Some(backend)).map(|kernels| kernels.row_loss(logits, target))
    }

    /// A bound of the error, in ULP, of [`exp_f64`] where multiply-add is fused.
    ///
    /// Relative to `1 + q >= 0.707`, in units of 2^-53: the rounding of `f` 0.25, of `q` 0.35, of `f^2` and
    /// the polynomial 0.18, the polynomial itself 0.09. That is 0.87 before the power of two and the
    /// correction become one `f64`, which adds half an ULP and which sums do not do. The worst that was
    /// seen in a million samples is 1.01.
    pub const EXP_F64_MAX_ULP: f64 = 1.37;

    pub use crate::kernel::double::grad::{Place, ScaledExp, Subtract};

    /// [`exp`], for `x <= 709.4`.
    pub fn exp_f64(backend: Backend, values: &mut [f64]) -> Result<(), Error> {
        Backend::kernels(Some(backend)).map(|kernels| kernels.exp_f64(values))
    }

    /// The sum of `x - from`, weighted if there are weights.
    pub fn sum_from_f64(
        backend: Backend,
        x: &[f64],
        weights: Option<&[f64]>,
        from: f64,
    ) -> Result<f64, Error> {
        Backend::kernels(Some(backend)).map(|kernels| kernels.sum_from_f64(x, weights, from))
    }

    /// The terms of a gradient; all slices must be of one length.
    pub fn scaled_exp_f64(
        backend: Backend,
        terms: &ScaledExp<'_>,
        place: Place<'_>,
    ) -> Result<(), Error> {
        Backend::kernels(Some(backend)).map(|kernels| kernels.scaled_exp_f64(terms, place))
    }
}
