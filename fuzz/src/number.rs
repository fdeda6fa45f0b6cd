//! What the checks want to know of every type that logits may have.

use half::{bf16, f16};
use std::fmt::Debug;
use xent::Element;

/// A type of logits.
pub trait Logit: Number + Element<Real: Number> {}

impl<T: Number + Element<Real: Number>> Logit for T {}

pub trait Number: Copy + Debug + Send + Sync {
    const NAME: &'static str;

    /// The number with these bits, as many of them as it has.
    fn from_low_bits(bits: u64) -> Self;
    /// The nearest number.
    fn round(x: f64) -> Self;
    fn value(self) -> f64;
    fn bits(self) -> u64;
    /// The distance from 1 to the next number.
    fn epsilon() -> f64;
    fn largest() -> f64;

    /// Bits to compare by: every NaN is the same NaN, since its payload carries no meaning.
    fn key(self) -> u64 {
        if self.value().is_nan() { u64::MAX } else { self.bits() }
    }
}

macro_rules! number {
    ($($type:ident $bits:ident $round:expr, $value:expr;)*) => {$(
        impl Number for $type {
            const NAME: &'static str = stringify!($type);

            fn from_low_bits(bits: u64) -> Self {
                $type::from_bits(bits as $bits)
            }
            fn round(x: f64) -> Self {
                $round(x)
            }
            fn value(self) -> f64 {
                $value(self)
            }
            fn bits(self) -> u64 {
                self.to_bits().into()
            }
            fn epsilon() -> f64 {
                $type::EPSILON.into()
            }
            fn largest() -> f64 {
                $type::MAX.into()
            }
        }
    )*};
}
number! {
    f32 u32 |x| x as f32, f64::from;
    f64 u64 |x| x, |x| x;
    // By way of `f32`, since `from_f64` of the `half` crate does not look at the last 32 bits.
    bf16 u16 |x| bf16::from_f32(x as f32), bf16::to_f64;
    f16 u16 |x| f16::from_f32(x as f32), f16::to_f64;
}

pub fn keys<T: Number>(values: &[T]) -> Vec<u64> {
    values.iter().map(|x| x.key()).collect()
}

pub fn bits<T: Number>(values: &[T]) -> Vec<u64> {
    values.iter().map(|x| x.bits()).collect()
}
