//! Target ids of any of the usual integer types.
#![forbid(unsafe_code)]

use crate::Error;

/// One target id per row, borrowed in the integer type that the caller has.
///
/// Functions take `impl Into<Targets>`, so a plain `&[i64]`, `&[u32]`, `&vec` or array will do.
///
/// ```
/// use xent::{CrossEntropy, Logits};
///
/// let logits = Logits::new(&[1.0, 2.0, 3.0, 0.5, -1.0, 2.0], 2, 3)?;
/// let ce = CrossEntropy::new();
/// let loss = ce.forward(logits, &[2i64, 0])?;
/// assert_eq!(loss, ce.forward(logits, &[2i32, 0])?);
/// assert_eq!(loss, ce.forward(logits, &[2u32, 0])?);
/// assert_eq!(loss, ce.forward(logits, &vec![2usize, 0])?);
/// # Ok::<(), xent::Error>(())
/// ```
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Targets<'a> {
    /// As PyTorch has them.
    I64(&'a [i64]),
    /// As many tokenizers have them, with negative ids to ignore.
    I32(&'a [i32]),
    /// As candle and Rust tokenizers have them.
    U32(&'a [u32]),
    /// As Rust code indexes.
    Usize(&'a [usize]),
}

macro_rules! targets_from {
    ($($variant:ident $int:ty),*) => {$(
        impl<'a> From<&'a [$int]> for Targets<'a> {
            fn from(ids: &'a [$int]) -> Self {
                Targets::$variant(ids)
            }
        }
        impl<'a> From<&'a Vec<$int>> for Targets<'a> {
            fn from(ids: &'a Vec<$int>) -> Self {
                Targets::$variant(ids)
            }
        }
        impl<'a, const N: usize> From<&'a [$int; N]> for Targets<'a> {
            fn from(ids: &'a [$int; N]) -> Self {
                Targets::$variant(ids)
            }
        }
    )*};
}
targets_from!(I64 i64, I32 i32, U32 u32, Usize usize);

/// Evaluates an expression for the slice of whichever type it is.
macro_rules! for_slice {
    ($targets:expr, $ids:ident => $body:expr) => {
        match $targets {
            Targets::I64($ids) => $body,
            Targets::I32($ids) => $body,
            Targets::U32($ids) => $body,
            Targets::Usize($ids) => $body,
        }
    };
}

impl<'a> Targets<'a> {
    /// The number of targets.
    pub fn len(&self) -> usize {
        for_slice!(self, ids => ids.len())
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    #[cfg_attr(not(feature = "rayon"), allow(dead_code))]
    fn split_at(self, mid: usize) -> (Self, Self) {
        fn both<'a, T>(ids: &'a [T], mid: usize) -> (Targets<'a>, Targets<'a>)
        where
            Targets<'a>: From<&'a [T]>,
        {
            let (a, b) = ids.split_at(mid);
            (a.into(), b.into())
        }
        for_slice!(self, ids => both(ids, mid))
    }

    /// Every id as `i128`, which holds all of them.
    #[inline(always)]
    fn get(&self, i: usize) -> i128 {
        for_slice!(self, ids => ids[i] as i128)
    }
}

/// Targets that were checked: each is a class, or ignored.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TargetRows<'a> {
    targets: Targets<'a>,
    ignore_index: Option<i64>,
}

impl<'a> TargetRows<'a> {
    /// Checks one target per row, each a class or `ignore_index`, which is compared first.
    pub(crate) fn new(
        targets: Targets<'a>,
        ignore_index: Option<i64>,
        rows: usize,
        vocab: usize,
    ) -> Result<Self, Error> {
        if targets.len() != rows {
            return Err(Error::TargetCount { rows, targets: targets.len() });
        }
        let checked = TargetRows { targets, ignore_index };
        match (0..rows).find(|&row| checked.get(row).is_some_and(|class| class >= vocab)) {
            Some(row) => Err(Error::TargetOutOfRange { row, target: targets.get(row), vocab }),
            None => Ok(checked),
        }
    }

    /// The class of a row, or `None` to ignore it.
    #[inline(always)]
    pub(crate) fn get(&self, row: usize) -> Option<usize> {
        let id = self.targets.get(row);
        // A negative id becomes `usize::MAX`, which is no class of any slice.
        (Some(id) != self.ignore_index.map(i128::from))
            .then(|| usize::try_from(id).unwrap_or(usize::MAX))
    }

    #[cfg_attr(not(feature = "rayon"), allow(dead_code))]
    pub(crate) fn split_at(self, mid: usize) -> (Self, Self) {
        let (a, b) = self.targets.split_at(mid);
        (TargetRows { targets: a, ..self }, TargetRows { targets: b, ..self })
    }
}
