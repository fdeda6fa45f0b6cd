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

mod api;
mod data;
mod dispatch;
mod kernel;
mod math;
pub mod reference;
mod rows;
mod simd;

#[cfg(feature = "serde")]
pub use api::openai;

pub use api::compare::{Compare, CompareOutputs};
pub use api::comparison::{AtTargets, Comparison, Estimate};
pub use api::cross_entropy::{CrossEntropy, RowOutputs};
pub use api::evaluation::Evaluation;
pub use api::gradient::{Gradient, Upstream};
pub use api::logprobs::{LogProbs, Shard, TokenLogProbs, TokenOutputs};
pub use api::owned::OwnedCrossEntropy;
pub use api::reduction::{EmptyMean, Reduction};
pub use api::sample::{Sample, Sampler};
pub use api::sequences::SequenceScore;
pub use api::sharded::ShardedCrossEntropy;
pub use api::softmax::Softmax;
pub use data::bias::LogitBias;
pub use data::error::Error;
pub use data::floats::Floats;
pub use data::logits::{Logits, LogitsMut};
pub use data::masks::AllowedTokens;
pub use data::saved::LogSumExp;
pub use data::targets::{Ids, ShiftedIds, SparseProbs, Targets};
pub use dispatch::element::{Element, Real};
#[doc(hidden)]
pub use dispatch::internals;
pub use half::{bf16, f16};
pub use kernel::loss_stats::LossStats;
pub use kernel::row_stats::{RowStats, TopToken};
pub use rows::parallel::on_calling_thread;
pub use simd::backend::Backend;

/// The largest error, in ULP, of `e^x` rounded to one `f32`, for every `f32` whose exponential is a
/// normal number: `tests/exp_accuracy.rs` tries them all.
///
/// Sums use it before it is rounded, in two parts, where its error is below 0.6 ULP.
pub const EXP_MAX_ULP: f64 = 1.03;

/// How far the loss of a row with a class id as target may be from the correctly rounded one, in units of
/// the last place: at most the next `f32` above or below. `tests/accuracy.rs` holds every backend to it.
pub const LOSS_MAX_ULP: u32 = 1;
