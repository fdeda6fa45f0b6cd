//! Real numbers that go with logits: weights and probabilities.
#![forbid(unsafe_code)]

use crate::simd::float_env;

/// Numbers in the precision that the caller has, borrowed.
///
/// Functions take `impl Into<Floats>`, so a plain `&[f32]`, `&[f64]`, `&vec` or array will do. Class
/// weights and probability targets have to be of the precision that the logits are computed in
/// ([`Element::Real`](crate::Element::Real)): a conversion would cost a pass that nobody sees.
///
/// ```
/// use xent::{CrossEntropy, Error, Logits};
///
/// let logits = Logits::new(&[1.0_f32, 2.0], 1, 2)?;
/// let weighted = CrossEntropy::new().class_weights(&[0.5_f64, 1.0]);
/// let error = weighted.forward(logits, &[0i64]).unwrap_err();
/// assert_eq!(error.to_string(), "`class_weights` must be f32 for these logits, not f64");
/// # Ok::<(), xent::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Floats<'a> {
    /// Single precision.
    F32(&'a [f32]),
    /// Double precision.
    F64(&'a [f64]),
}

macro_rules! floats_from {
    ($($variant:ident $float:ty),*) => {$(
        impl<'a> From<&'a [$float]> for Floats<'a> {
            fn from(values: &'a [$float]) -> Self {
                Floats::$variant(values)
            }
        }
        impl<'a> From<&'a Vec<$float>> for Floats<'a> {
            fn from(values: &'a Vec<$float>) -> Self {
                Floats::$variant(values)
            }
        }
        impl<'a, const N: usize> From<&'a [$float; N]> for Floats<'a> {
            fn from(values: &'a [$float; N]) -> Self {
                Floats::$variant(values)
            }
        }
    )*};
}
floats_from!(F32 f32, F64 f64);

/// Evaluates an expression for the slice of whichever type it is.
macro_rules! for_floats {
    ($floats:expr, $values:ident => $body:expr) => {
        match $floats {
            Floats::F32($values) => $body,
            Floats::F64($values) => $body,
        }
    };
}

impl<'a> Floats<'a> {
    /// The number of values.
    pub fn len(&self) -> usize {
        for_floats!(self, values => values.len())
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    #[inline(always)]
    pub(crate) fn get(&self, i: usize) -> f64 {
        match self {
            Floats::F32(values) => f64::from(values[i]),
            Floats::F64(values) => values[i],
        }
    }

    /// The sum of all, in order.
    pub(crate) fn sum(&self) -> f64 {
        float_env::scope(|| (0..self.len()).map(|i| self.get(i)).sum())
    }

    pub(crate) fn precision(&self) -> &'static str {
        match self {
            Floats::F32(_) => "f32",
            Floats::F64(_) => "f64",
        }
    }

    pub(crate) fn split_at(self, mid: usize) -> (Self, Self) {
        fn both<'a, T>(values: &'a [T], mid: usize) -> (Floats<'a>, Floats<'a>)
        where
            Floats<'a>: From<&'a [T]>,
        {
            let (a, b) = values.split_at(mid);
            (a.into(), b.into())
        }
        for_floats!(self, values => both(values, mid))
    }
}
