//! The kernels: each written once, over any [`Simd`](crate::simd::Simd) backend.
//!
//! `exp` is the exponential, `sum` the single pass over a row, `forward` and `softmax` what is done
//! with it; `double` has all of these for rows of `f64`. Everything is `#[inline(always)]`: it is compiled into the entry functions of
//! `backend.rs`, which alone know the instruction set.
#![forbid(unsafe_code)]

pub(crate) mod double;
pub(crate) mod exp;
pub(crate) mod forward;
pub(crate) mod read;
pub(crate) mod softmax;
pub(crate) mod sum;
