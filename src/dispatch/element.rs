//! The number types that logits may have.
#![forbid(unsafe_code)]

use crate::data::floats::Floats;
use half::{bf16, f16};

/// A type that logits may be stored in: `f32`, `f64`, or `bf16` and `f16` of the `half` crate.
///
/// What is computed from a row is in [`Element::Real`]: `f64` for `f64`, `f32` for the others. Sealed: each
/// type has kernels of its own.
///
/// Rows of [`bf16`](crate::bf16) and [`f16`](crate::f16) are widened as they are read, exactly: their losses
/// and statistics have the bits of those of a `f32` row with the same numbers. Gradients and softmax are of the
/// type of the logits, rounded to nearest even once, from `f32` (at a target from `f64`; where a gradient is
/// accumulated, from the sum in `f32`); subnormal numbers
/// are kept, and in `f16` what is 65,520 or more becomes infinite. Buffers of `u16` need no conversion:
/// `Logits::<bf16>::from_bits`, or for other layouts the slices that `half::slice::HalfBitsSliceExt` makes of them.
///
/// ```
/// use xent::{CrossEntropy, Logits};
///
/// let x = [1.0_f64, 2.0, 3.0];
/// let mut losses = [0.0_f64];
/// CrossEntropy::new().forward_into(Logits::new(&x, 1, 3)?, &[2i64], &mut losses)?;
/// assert_eq!(losses, [0.4076059644443803]);
/// # Ok::<(), xent::Error>(())
/// ```
pub trait Element: sealed::Element {
    /// The type of losses, class weights and probability targets that go with such logits.
    type Real: Real;
}

/// A type that results have: `f32` or `f64`. Sealed.
pub trait Real: Element<Real = Self> + Into<f64> + sealed::Real {}

impl Element for f32 {
    type Real = f32;
}
impl Element for f64 {
    type Real = f64;
}
impl Element for bf16 {
    type Real = f32;
}
impl Element for f16 {
    type Real = f32;
}
impl Real for f32 {}
impl Real for f64 {}

/// What the public traits ask for, out of reach of other crates.
pub(crate) mod sealed {
    use super::Floats;
    use crate::api::logprobs::{self, Found, Scratch};
    use crate::data::logits::Logits;
    use crate::dispatch::kernels::Kernels;
    use crate::kernel::double::compare::AnyLogits;
    use crate::kernel::logprobs::{AnyRow, Part};
    use crate::kernel::row_stats::{NONE, RowStats};
    use crate::kernel::softmax::AnyJob;
    use crate::kernel::transform::Transform;
    use crate::kernel::transpose::Transpose;
    use crate::kernel::{double, forward, softmax, train};
    use crate::simd::{Lane, float_env};
    use half::slice::HalfFloatSliceExt;
    use half::{bf16, f16};

    pub trait Element:
        Copy + Default + Send + Sync + PartialOrd + std::fmt::Debug + 'static
    {
        /// Enters the kernels for this type.
        #[doc(hidden)]
        #[expect(private_interfaces, reason = "other crates cannot call it")]
        fn train(kernels: Kernels, job: &mut train::Job<'_, Self>)
        where
            Self: super::Element;

        #[doc(hidden)]
        #[expect(private_interfaces, reason = "other crates cannot call it")]
        fn softmax(kernels: Kernels, job: &mut softmax::Job<'_, Self>)
        where
            Self: super::Element;

        #[doc(hidden)]
        #[expect(private_interfaces, reason = "other crates cannot call it")]
        fn log_softmax(kernels: Kernels, job: &mut softmax::Job<'_, Self>)
        where
            Self: super::Element;

        #[doc(hidden)]
        #[expect(private_interfaces, reason = "other crates cannot call it")]
        fn logsumexp(kernels: Kernels, job: &mut softmax::LogSumExpJob<'_, Self>)
        where
            Self: super::Element;

        /// Copies a transposed matrix, whatever the bits.
        #[doc(hidden)]
        #[expect(private_interfaces, reason = "other crates cannot call it")]
        fn transpose(kernels: Kernels, job: &mut Transpose<'_, Self>)
        where
            Self: super::Element;

        /// The logit of a class as the transform leaves it before the temperature, with the bits of the kernels.
        #[doc(hidden)]
        #[expect(private_interfaces, reason = "other crates cannot call it")]
        fn raw(transform: &Transform<'_>, class: usize, x: Self) -> f64;

        /// What the temperature makes of that.
        #[doc(hidden)]
        #[expect(private_interfaces, reason = "other crates cannot call it")]
        fn cooled(transform: &Transform<'_>, raw: f64) -> f64;

        /// What [`crate::LogProbs`] finds about a row, in so many parts.
        #[doc(hidden)]
        #[expect(private_interfaces, reason = "other crates cannot call it")]
        fn found<'s>(
            kernels: Kernels,
            part: &Part<'_, &[Self]>,
            parts: usize,
            scratch: &'s mut Scratch<Self::Real>,
        ) -> Found<'s, Self::Real>
        where
            Self: super::Element;

        /// The statistics that can be merged. Does nothing where there are none.
        #[doc(hidden)]
        #[expect(private_interfaces, reason = "other crates cannot call it")]
        fn row_stats(_: Kernels, _: &Part<'_, &[Self]>, _parts: usize, _: &mut RowStats) {}

        /// As what kernels for all types take.
        #[doc(hidden)]
        #[expect(private_interfaces, reason = "other crates cannot call it")]
        fn any(logits: Logits<'_, Self>) -> AnyLogits<'_>
        where
            Self: super::Element;

        /// Whether there is a kernel for the loss without options and gradient alone.
        #[doc(hidden)]
        const HAS_FORWARD: bool = false;

        /// That kernel. Does nothing where there is none.
        #[doc(hidden)]
        #[expect(private_interfaces, reason = "other crates cannot call it")]
        fn forward(_kernels: Kernels, _job: &mut forward::Job<'_, Self>)
        where
            Self: super::Element,
        {
        }
    }

    pub trait Real: Sized {
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

    macro_rules! single_precision {
        ($($type:ty: $any:ident $forward:ident $forward_argmax:ident $train:ident,
            $softmax:expr, $log_softmax:expr, $logsumexp:expr, $transpose:expr;)*) => {$(
            #[expect(private_interfaces, reason = "other crates cannot call it")]
            impl Element for $type {
                fn train(kernels: Kernels, job: &mut train::Job<'_, $type>) {
                    kernels.$train(job);
                }
                fn softmax(kernels: Kernels, job: &mut softmax::Job<'_, $type>) {
                    $softmax(kernels, job);
                }
                fn log_softmax(kernels: Kernels, job: &mut softmax::Job<'_, $type>) {
                    $log_softmax(kernels, job);
                }
                fn logsumexp(kernels: Kernels, job: &mut softmax::LogSumExpJob<'_, $type>) {
                    $logsumexp(kernels, job);
                }
                fn transpose(kernels: Kernels, job: &mut Transpose<'_, $type>) {
                    $transpose(kernels, job);
                }
                fn any(logits: Logits<'_, $type>) -> AnyLogits<'_> {
                    AnyLogits::$any(logits)
                }

                fn raw(transform: &Transform<'_>, class: usize, x: $type) -> f64 {
                    transform.raw_f32(class, x.widen()).into()
                }
                fn cooled(transform: &Transform<'_>, raw: f64) -> f64 {
                    transform.cooled_f32(raw as f32).into()
                }
                fn found<'s>(
                    kernels: Kernels,
                    part: &Part<'_, &[$type]>,
                    parts: usize,
                    scratch: &'s mut Scratch<f32>,
                ) -> Found<'s, f32> {
                    logprobs::row_stats(kernels, &part.of(AnyRow::$any(part.row)), parts, &mut scratch.stats);
                    float_env::scope(|| scratch.stats.found())
                }
                fn row_stats(
                    kernels: Kernels,
                    part: &Part<'_, &[$type]>,
                    parts: usize,
                    out: &mut RowStats,
                ) {
                    logprobs::row_stats(kernels, &part.of(AnyRow::$any(part.row)), parts, out);
                }

                const HAS_FORWARD: bool = true;

                #[inline(always)]
                fn forward(kernels: Kernels, job: &mut forward::Job<'_, $type>) {
                    if job.argmax {
                        kernels.$forward_argmax(job);
                    } else {
                        kernels.$forward(job);
                    }
                }
            }
        )*};
    }
    single_precision! {
        f32: F32 forward forward_argmax train,
            Kernels::softmax, Kernels::log_softmax, Kernels::logsumexp, Kernels::transpose_f32;
        bf16: Bf16 forward_bf16 forward_argmax_bf16 train_bf16,
            |kernels: Kernels, job| kernels.softmax_bf16(AnyJob::Softmax(job)),
            |kernels: Kernels, job| kernels.softmax_bf16(AnyJob::LogSoftmax(job)),
            |kernels: Kernels, job| kernels.softmax_bf16(AnyJob::LogSumExp(job)), transpose_bits;
        f16: F16 forward_f16 forward_argmax_f16 train_f16,
            |kernels: Kernels, job| kernels.softmax_f16(AnyJob::Softmax(job)),
            |kernels: Kernels, job| kernels.softmax_f16(AnyJob::LogSoftmax(job)),
            |kernels: Kernels, job| kernels.softmax_f16(AnyJob::LogSumExp(job)), transpose_bits;
    }

    fn transpose_bits<T>(kernels: Kernels, job: &mut Transpose<'_, T>)
    where
        [T]: HalfFloatSliceExt,
    {
        kernels.transpose_u16(&mut Transpose {
            from: job.from.reinterpret_cast(),
            from_stride: job.from_stride,
            to: job.to.reinterpret_cast_mut(),
            to_stride: job.to_stride,
            rows: job.rows,
            columns: job.columns,
            outer: job.outer,
        });
    }

    impl Real for f32 {
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

    #[expect(private_interfaces, reason = "other crates cannot call it")]
    impl Element for f64 {
        fn train(kernels: Kernels, job: &mut train::Job<'_, f64>) {
            kernels.train_f64(job);
        }
        fn softmax(kernels: Kernels, job: &mut softmax::Job<'_, f64>) {
            kernels.softmax_f64(job);
        }
        fn log_softmax(kernels: Kernels, job: &mut softmax::Job<'_, f64>) {
            kernels.log_softmax_f64(job);
        }
        fn logsumexp(kernels: Kernels, job: &mut softmax::LogSumExpJob<'_, f64>) {
            kernels.logsumexp_f64(job);
        }
        fn transpose(_: Kernels, job: &mut Transpose<'_, f64>) {
            job.run_scalar();
        }
        fn raw(transform: &Transform<'_>, class: usize, x: f64) -> f64 {
            transform.one_raw(class, x).0
        }
        fn cooled(transform: &Transform<'_>, raw: f64) -> f64 {
            transform.cooled(raw)
        }
        fn found<'s>(
            _: Kernels,
            part: &Part<'_, &[f64]>,
            _parts: usize,
            scratch: &'s mut Scratch<f64>,
        ) -> Found<'s, f64> {
            let found = float_env::scope(|| double::logprobs::run(part, &mut scratch.top));
            Found {
                distribution: found.distribution,
                logprob: None,
                logsumexp: found.logsumexp,
                ranks: found.ranks,
                top: scratch.top.entries(),
                argmax: if found.argmax == NONE { -1 } else { found.argmax.into() },
                max: found.max,
                drawn: found.drawn,
            }
        }
        fn any(logits: Logits<'_, f64>) -> AnyLogits<'_> {
            AnyLogits::F64(logits)
        }
    }

    impl Real for f64 {
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
