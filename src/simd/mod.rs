//! Vectors: what every instruction set can do, and nothing about rows.

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;
pub(crate) mod backend;
#[cfg(feature = "scalar")]
pub(crate) mod conformance;
pub(crate) mod float_env;
pub(crate) mod half;
#[cfg(target_arch = "aarch64")]
pub(crate) mod neon;
pub(crate) mod portable;
#[cfg(feature = "scalar")]
pub(crate) mod scalar;
pub(crate) mod stream;
mod vectors;

pub(crate) use vectors::{AnyRow, LANES, LANES_64, Lane, Lanes, Lanes64, Local, Op, Simd};
