//! Cross-entropy over vocabulary rows, in one read of the logits.
#![doc = include_str!("../README.md")]
#![deny(missing_docs, unsafe_code)]
#![warn(clippy::undocumented_unsafe_blocks)]

mod backend;
mod cross_entropy;
mod error;
mod evaluation;
mod kernel;
mod logits;
mod math;
pub mod reference;
mod rows;
mod simd;
mod softmax;
mod targets;

pub use backend::Backend;
pub use cross_entropy::{CrossEntropy, EmptyMean, Reduction, RowOutputs};
pub use error::Error;
pub use evaluation::Evaluation;
pub use logits::{Logits, LogitsMut};
pub use softmax::Softmax;
pub use targets::Targets;

/// The largest error, in ULP, of `e^x` rounded to one `f32`, for every `f32` whose exponential is a
/// normal number: `tests/exp_accuracy.rs` tries them all.
///
/// Sums use it before it is rounded, in two parts, where its error is below 0.6 ULP.
pub const EXP_MAX_ULP: f64 = 1.03;

/// How far the loss of a row may be from the correctly rounded one, in units of the last place: at most
/// the next `f32` above or below. `tests/accuracy.rs` holds every backend to it.
pub const LOSS_MAX_ULP: u32 = 1;

/// Kernels by themselves, for the benches and the tests of this crate. Not part of the API.
#[doc(hidden)]
pub mod internals {
    use crate::{Backend, Error};

    /// `e^x` of every element, in place, for `x <= 88.02`.
    pub fn exp(backend: Backend, values: &mut [f32]) -> Result<(), Error> {
        Backend::kernels(Some(backend)).map(|kernels| kernels.exp(values))
    }

    /// The largest element: the time it takes is the limit of every kernel.
    pub fn read(backend: Backend, values: &[f32]) -> Result<f32, Error> {
        Backend::kernels(Some(backend)).map(|kernels| kernels.read(values))
    }

    /// The loss of one row, `target < logits.len()`, without any check of the arguments.
    pub fn row_loss(backend: Backend, logits: &[f32], target: usize) -> Result<f64, Error> {
        Backend::kernels(Some(backend)).map(|kernels| kernels.row_loss(logits, target))
    }
}
