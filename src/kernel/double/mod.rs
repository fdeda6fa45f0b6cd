//! Rows of `f64`: results within 2 ULP of `f64`.
//!
//! The same ideas as for rows of `f32`, with fewer of their refinements: here arithmetic is the limit,
//! not memory, and a row ends in double-double (`math/double_double.rs`).

pub(crate) mod compare;
pub(crate) mod exp;
pub(crate) mod grad;
pub(crate) mod logprobs;
pub(crate) mod scan;
pub(crate) mod softmax;
pub(crate) mod sum;
pub(crate) mod train;
