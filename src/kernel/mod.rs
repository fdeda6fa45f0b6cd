//! The kernels: each written once, over any [`Simd`](crate::simd::Simd) backend.
//!
//! `exp` is the exponential, `sum` the single pass over a row, `forward` and `softmax` what is done
//! with it; `transform`, `gradient`, `probs` and `train` are for trainers, `single` and `double` for
//! rows of up to 32 bits and of `f64`. Everything is `#[inline(always)]`: it is compiled into the entry functions of
//! `backend.rs`, which alone know the instruction set.
#![forbid(unsafe_code)]

pub(crate) mod blocks;
pub(crate) mod bytes;
pub(crate) mod double;
pub(crate) mod exp;
pub(crate) mod expsum;
pub(crate) mod forward;
pub(crate) mod gradient;
pub(crate) mod gumbel;
pub(crate) mod logprobs;
pub(crate) mod loss_stats;
pub(crate) mod outputs;
pub(crate) mod part;
pub(crate) mod pass;
pub(crate) mod probs;
pub(crate) mod read;
pub(crate) mod row;
pub(crate) mod row_stats;
pub(crate) mod single;
pub(crate) mod softmax;
pub(crate) mod sum;
pub(crate) mod top;
pub(crate) mod total;
pub(crate) mod train;
pub(crate) mod transform;
pub(crate) mod transpose;
