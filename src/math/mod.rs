//! Arithmetic without vectors: every machine computes the same bits.

pub(crate) mod double_double;
pub(crate) mod exact;
mod functions;
pub(crate) mod spread;

pub use functions::*;
