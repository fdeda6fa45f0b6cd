//! Cross-entropy over vocabulary rows, in one read of the logits.
#![doc = include_str!("../README.md")]
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

/// Its examples are tests.
#[cfg(doctest)]
#[doc = include_str!("../docs/layouts.md")]
struct Layouts;

/// Its examples are tests.
#[cfg(doctest)]
#[doc = include_str!("../docs/mpi.md")]
struct Mpi;

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
pub use data::number::Real;
pub use data::saved::LogSumExp;
pub use data::targets::{Ids, ShiftedIds, SparseProbs, Targets};
pub use dispatch::element::Element;
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
