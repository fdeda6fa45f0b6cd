//! The number types of logits and results, as far as data and kernels have to know.

use half::{bf16, f16};

/// A type that logits may be stored in. Sealed: no other crate can name it.
pub trait Number: Copy + Default + Send + Sync + PartialOrd + std::fmt::Debug + 'static {
    /// The type of losses, class weights and probability targets that go with such logits: `f64` for `f64`,
    /// `f32` for the others. It is `Element::Real`.
    type Float: Float;
}

impl Number for f32 {
    type Float = f32;
}
impl Number for f64 {
    type Float = f64;
}
impl Number for bf16 {
    type Float = f32;
}
impl Number for f16 {
    type Float = f32;
}

/// A type that results have.
pub trait Float: Number<Float = Self> + Into<f64> + sealed::Float {}

impl Float for f32 {}
impl Float for f64 {}

mod sealed {
    use crate::data::floats::Floats;

    pub trait Float: Sized {
        #[doc(hidden)]
        const PRECISION: &'static str;
        /// How far log-probabilities of this type may be off, [`LogProbs`](crate::LogProbs) says: in ULP, times the ULP of
        /// 1.
        #[doc(hidden)]
        const LOGPROB_ERROR: f64;
        /// Rounded to nearest even.
        #[doc(hidden)]
        fn from_f64(x: f64) -> Self;
        /// The numbers, if they are of this type.
        #[doc(hidden)]
        fn of(floats: Floats<'_>) -> Option<&[Self]>;
    }

    impl Float for f32 {
        const PRECISION: &'static str = "f32";
        const LOGPROB_ERROR: f64 = 2.0 * f32::EPSILON as f64;
        #[inline(always)]
        fn from_f64(x: f64) -> f32 {
            x as f32
        }
        fn of(floats: Floats<'_>) -> Option<&[f32]> {
            match floats {
                Floats::F32(values) => Some(values),
                Floats::F64(_) => None,
            }
        }
    }

    impl Float for f64 {
        const PRECISION: &'static str = "f64";
        const LOGPROB_ERROR: f64 = 4.0 * f64::EPSILON;
        #[inline(always)]
        fn from_f64(x: f64) -> f64 {
            x
        }
        fn of(floats: Floats<'_>) -> Option<&[f64]> {
            match floats {
                Floats::F64(values) => Some(values),
                Floats::F32(_) => None,
            }
        }
    }
}
