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
pub use api::cross_entropy::{CrossEntropy, EmptyMean, Reduction, RowOutputs};
pub use api::evaluation::Evaluation;
pub use api::gradient::{Gradient, Upstream};
pub use api::logprobs::{LogProbs, Shard, TokenLogProbs, TokenOutputs};
pub use api::owned::OwnedCrossEntropy;
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
pub use dispatch::kernels::Backend;
pub use half::{bf16, f16};
pub use kernel::loss_stats::LossStats;
pub use kernel::row_stats::{RowStats, TopToken};
pub use rows::parallel::on_calling_thread;

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
