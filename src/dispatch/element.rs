//! The number types that logits may have.
#![forbid(unsafe_code)]

use crate::data::number::{Float, Number};
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
pub trait Element: Number<Float = <Self as Element>::Real> + sealed::Element {
    /// The type of losses, class weights and probability targets that go with such logits.
    type Real: Real;
}

/// A type that results have: `f32` or `f64`. Sealed.
pub trait Real: Element<Real = Self> + Float {}

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

/// What the public trait asks for, out of reach of other crates.
pub(crate) mod sealed {
    use crate::data::logits::Logits;
    use crate::data::number::Number;
    use crate::kernel::double::compare::AnyLogits;
    use crate::kernel::double::logprobs as double;
    use crate::kernel::part::Part;
    use crate::kernel::row_stats::{Found, NONE, Scratch};
    use crate::kernel::softmax::{self, LogSoftmax, LogSumExp, Softmax};
    use crate::kernel::transform::Transform;
    use crate::kernel::transpose::Transpose;
    use crate::kernel::{forward, train};
    use crate::simd::backend::Kernels;
    use crate::simd::{AnyRow, Lane, float_env};
    use half::slice::HalfFloatSliceExt;
    use half::{bf16, f16};

    /// The kernels of a type.
    ///
    /// Those that enter kernels are never inlined: every kernel is compiled in this crate, none in one
    /// that calls it.
    pub trait Element: Number {
        /// Enters the kernels for this type.
        #[doc(hidden)]
        #[expect(private_interfaces, reason = "other crates cannot call it")]
        fn train(kernels: Kernels, job: &mut train::Job<'_, Self>);

        #[doc(hidden)]
        #[expect(private_interfaces, reason = "other crates cannot call it")]
        fn softmax(kernels: Kernels, job: &mut softmax::Job<'_, Self>);

        #[doc(hidden)]
        #[expect(private_interfaces, reason = "other crates cannot call it")]
        fn log_softmax(kernels: Kernels, job: &mut softmax::Job<'_, Self>);

        #[doc(hidden)]
        #[expect(private_interfaces, reason = "other crates cannot call it")]
        fn logsumexp(kernels: Kernels, job: &mut softmax::LogSumExpJob<'_, Self>);

        /// Copies a transposed matrix, whatever the bits.
        #[doc(hidden)]
        #[expect(private_interfaces, reason = "other crates cannot call it")]
        fn transpose(kernels: Kernels, job: &mut Transpose<'_, Self>);

        /// The logit of a class as the transform leaves it before the temperature, with the bits of the kernels.
        #[doc(hidden)]
        #[expect(private_interfaces, reason = "other crates cannot call it")]
        fn raw(transform: &Transform<'_>, class: usize, x: Self) -> f64;

        /// What the temperature makes of that.
        #[doc(hidden)]
        #[expect(private_interfaces, reason = "other crates cannot call it")]
        fn cooled(transform: &Transform<'_>, raw: f64) -> f64;

        /// A row that statistics which can be merged are made of; `None` for a type without.
        #[doc(hidden)]
        #[expect(private_interfaces, reason = "other crates cannot call it")]
        fn any_row(row: &[Self]) -> Option<AnyRow<'_>>;

        /// What [`crate::LogProbs`] finds about a row: from its statistics, which are in `scratch`, or where there are
        /// none from the row.
        #[doc(hidden)]
        #[expect(private_interfaces, reason = "other crates cannot call it")]
        fn found<'s>(
            part: &Part<'_, &[Self]>,
            scratch: &'s mut Scratch<Self::Float>,
        ) -> Found<'s, Self::Float>;

        /// As what kernels for all types take.
        #[doc(hidden)]
        #[expect(private_interfaces, reason = "other crates cannot call it")]
        fn any(logits: Logits<'_, Self>) -> AnyLogits<'_>;

        /// Whether there is a kernel for the loss without options and gradient alone.
        #[doc(hidden)]
        const HAS_FORWARD: bool = false;

        /// That kernel. Does nothing where there is none.
        #[doc(hidden)]
        #[expect(private_interfaces, reason = "other crates cannot call it")]
        fn forward(_kernels: Kernels, _job: &mut forward::Job<'_, Self>) {}
    }

    /// What all types have.
    macro_rules! kernels {
        ($type:ty, $any:ident) => {
            #[inline(never)]
            fn train(kernels: Kernels, job: &mut train::Job<'_, $type>) {
                kernels.run(job);
            }
            #[inline(never)]
            fn softmax(kernels: Kernels, job: &mut softmax::Job<'_, $type>) {
                kernels.run(Softmax(job));
            }
            #[inline(never)]
            fn log_softmax(kernels: Kernels, job: &mut softmax::Job<'_, $type>) {
                kernels.run(LogSoftmax(job));
            }
            #[inline(never)]
            fn logsumexp(kernels: Kernels, job: &mut softmax::LogSumExpJob<'_, $type>) {
                kernels.run(LogSumExp(job));
            }
            fn any(logits: Logits<'_, $type>) -> AnyLogits<'_> {
                AnyLogits::$any(logits)
            }
        };
    }

    /// A row for each type that is computed in `f32`.
    macro_rules! single_precision {
        ($($type:ty: $any:ident, $transpose:expr;)*) => {$(
            #[expect(private_interfaces, reason = "other crates cannot call it")]
            impl Element for $type {
                kernels!($type, $any);

                #[inline(never)]
                fn transpose(kernels: Kernels, job: &mut Transpose<'_, $type>) {
                    $transpose(kernels, job);
                }
                fn raw(transform: &Transform<'_>, class: usize, x: $type) -> f64 {
                    transform.raw_f32(class, x.widen()).into()
                }
                fn cooled(transform: &Transform<'_>, raw: f64) -> f64 {
                    transform.cooled_f32(raw as f32).into()
                }
                fn any_row(row: &[$type]) -> Option<AnyRow<'_>> {
                    Some(AnyRow::$any(row))
                }
                fn found<'s>(
                    _: &Part<'_, &[$type]>,
                    scratch: &'s mut Scratch<f32>,
                ) -> Found<'s, f32> {
                    float_env::scope(|| scratch.stats.found())
                }

                const HAS_FORWARD: bool = true;

                #[inline(never)]
                fn forward(kernels: Kernels, job: &mut forward::Job<'_, $type>) {
                    if job.argmax {
                        kernels.run(forward::WithArgmax(job));
                    } else {
                        kernels.run(forward::LossAlone(job));
                    }
                }
            }
        )*};
    }
    single_precision! {
        f32: F32, |kernels: Kernels, job: &mut Transpose<'_, f32>| kernels.run(job);
        bf16: Bf16, transpose_bits;
        f16: F16, transpose_bits;
    }

    fn transpose_bits<T>(kernels: Kernels, job: &mut Transpose<'_, T>)
    where
        [T]: HalfFloatSliceExt,
    {
        kernels.run(&mut Transpose::<u16> {
            from: job.from.reinterpret_cast(),
            from_stride: job.from_stride,
            to: job.to.reinterpret_cast_mut(),
            to_stride: job.to_stride,
            rows: job.rows,
            columns: job.columns,
            outer: job.outer,
        });
    }

    #[expect(private_interfaces, reason = "other crates cannot call it")]
    impl Element for f64 {
        kernels!(f64, F64);

        #[inline(never)]
        fn transpose(_: Kernels, job: &mut Transpose<'_, f64>) {
            job.run_scalar();
        }
        fn raw(transform: &Transform<'_>, class: usize, x: f64) -> f64 {
            transform.one_raw(class, x).0
        }
        fn cooled(transform: &Transform<'_>, raw: f64) -> f64 {
            transform.cooled(raw)
        }
        fn any_row(_: &[f64]) -> Option<AnyRow<'_>> {
            None
        }
        fn found<'s>(part: &Part<'_, &[f64]>, scratch: &'s mut Scratch<f64>) -> Found<'s, f64> {
            let found = float_env::scope(|| double::run(part, &mut scratch.top));
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
    }
}
