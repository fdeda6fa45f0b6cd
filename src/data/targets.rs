//! What the model should have predicted: class ids of any of the usual integer types, or probabilities.
#![forbid(unsafe_code)]

use crate::data::error::Error;
use crate::data::floats::Floats;
use crate::data::number::Float;

/// The targets of a batch: one class id per row, or a distribution over the classes per row.
///
/// Functions take `impl Into<Targets>`, so a plain `&[i64]`, `&[u32]`, `&vec` or array of ids will do.
///
/// ```
/// use xent::{CrossEntropy, Logits, Targets};
///
/// let logits = Logits::new(&[1.0_f32, 2.0, 3.0, 0.5, -1.0, 2.0], 2, 3)?;
/// let ce = CrossEntropy::new();
/// let loss = ce.forward(logits, &[2i64, 0])?;
/// assert_eq!(loss, ce.forward(logits, &[2i32, 0])?);
/// assert_eq!(loss, ce.forward(logits, &[2u32, 0])?);
/// assert_eq!(loss, ce.forward(logits, &vec![2usize, 0])?);
///
/// let one_hot: [f32; 6] = [0.0, 0.0, 1.0, 1.0, 0.0, 0.0];
/// assert!((ce.forward(logits, Targets::probs(&one_hot))? - loss).abs() < 1e-7);
/// # Ok::<(), xent::Error>(())
/// ```
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Targets<'a> {
    /// One class id per row.
    Ids(Ids<'a>),
    /// One token id per row, which a row before it predicts; see [`Targets::shifted`].
    Shifted(ShiftedIds<'a>),
    /// `[rows, vocab]` probabilities, contiguous; see [`Targets::probs`].
    Probs(Floats<'a>),
    /// Some classes per row with their probabilities.
    Sparse(SparseProbs<'a>),
}

/// Tokens, of which a row predicts a later one: what [`Targets::shifted`] makes.
#[derive(Clone, Copy, Debug)]
pub struct ShiftedIds<'a> {
    ids: Ids<'a>,
    sequence: usize,
    shift: usize,
}

/// Class ids in the integer type that the caller has, borrowed.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Ids<'a> {
    /// As PyTorch has them.
    I64(&'a [i64]),
    /// As many tokenizers have them, with negative ids to ignore.
    I32(&'a [i32]),
    /// As candle and Rust tokenizers have them.
    U32(&'a [u32]),
    /// As Rust code indexes.
    Usize(&'a [usize]),
}

/// `k` class ids and their probabilities per row: what a teacher's top-k leaves of a distribution.
///
/// ```
/// use xent::{CrossEntropy, Logits, SparseProbs, Targets};
///
/// let logits = Logits::new(&[1.0_f32, 2.0, 3.0, 0.5, -1.0, 2.0], 2, 3)?;
/// let (ids, probs) = ([2u32, 1, 0, 2], [0.75_f32, 0.25, 0.5, 0.5]); // [rows, k]
/// let sparse = CrossEntropy::new().forward(logits, SparseProbs::new(&ids, &probs, 2))?;
/// let dense: [f32; 6] = [0.0, 0.25, 0.75, 0.5, 0.0, 0.5];
/// assert_eq!(sparse, CrossEntropy::new().forward(logits, Targets::probs(&dense))?);
/// # Ok::<(), xent::Error>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct SparseProbs<'a> {
    ids: Ids<'a>,
    probs: Floats<'a>,
    k: usize,
}

impl<'a> SparseProbs<'a> {
    /// `[rows, k]` ids and as many probabilities. Entries whose id is `ignore_index`, or one of
    /// [`ignore_indices`](crate::CrossEntropy::ignore_indices), do not count: rows may have fewer
    /// than `k`. An id that stands twice has both probabilities. A row without any has loss 0, and
    /// counts in a mean.
    ///
    /// Lengths and ids are checked when it is used, against the logits.
    pub fn new(ids: impl Into<Ids<'a>>, probs: impl Into<Floats<'a>>, k: usize) -> Self {
        SparseProbs { ids: ids.into(), probs: probs.into(), k }
    }
}

macro_rules! ids_from {
    ($($variant:ident $int:ty),*) => {$(
        impl<'a> From<&'a [$int]> for Ids<'a> {
            fn from(ids: &'a [$int]) -> Self {
                Ids::$variant(ids)
            }
        }
        impl<'a> From<&'a Vec<$int>> for Ids<'a> {
            fn from(ids: &'a Vec<$int>) -> Self {
                Ids::$variant(ids)
            }
        }
        impl<'a, const N: usize> From<&'a [$int; N]> for Ids<'a> {
            fn from(ids: &'a [$int; N]) -> Self {
                Ids::$variant(ids)
            }
        }
        impl<'a> From<&'a [$int]> for Targets<'a> {
            fn from(ids: &'a [$int]) -> Self {
                Targets::Ids(Ids::$variant(ids))
            }
        }
        impl<'a> From<&'a Vec<$int>> for Targets<'a> {
            fn from(ids: &'a Vec<$int>) -> Self {
                Targets::Ids(Ids::$variant(ids))
            }
        }
        impl<'a, const N: usize> From<&'a [$int; N]> for Targets<'a> {
            fn from(ids: &'a [$int; N]) -> Self {
                Targets::Ids(Ids::$variant(ids))
            }
        }
    )*};
}
ids_from!(I64 i64, I32 i32, U32 u32, Usize usize);

impl<'a> From<Ids<'a>> for Targets<'a> {
    fn from(ids: Ids<'a>) -> Self {
        Targets::Ids(ids)
    }
}

impl<'a> From<SparseProbs<'a>> for Targets<'a> {
    fn from(probs: SparseProbs<'a>) -> Self {
        Targets::Sparse(probs)
    }
}

impl<'a> Targets<'a> {
    /// The tokens of `[batch, sequence]`, as they went into the model: the target of a row is the token `shift`
    /// places later, without copying them. The last `shift` rows of each sequence have none and are ignored.
    /// What is never a target, the first `shift` tokens of a sequence, may be anything.
    ///
    /// ```
    /// use xent::{CrossEntropy, Logits, Targets};
    ///
    /// let x: Vec<f32> = (0..12).map(|x| (x * x % 7) as f32).collect();
    /// let (logits, ce) = (Logits::new(&x, 4, 3)?, CrossEntropy::new());
    /// let tokens = [0u32, 2, 1, 1]; // two sequences of two
    /// let loss = ce.forward(logits, Targets::shifted(&tokens, 2, 1))?;
    /// assert_eq!(loss, ce.forward(logits, &[2i64, -100, 1, -100])?);
    /// # Ok::<(), xent::Error>(())
    /// ```
    ///
    /// Functions that take these return [`Error::Sequence`] or [`Error::Shift`](Error::Shift) if the rows are no
    /// whole number of sequences, or `shift` is not less than `sequence`.
    pub fn shifted(ids: impl Into<Ids<'a>>, sequence: usize, shift: usize) -> Self {
        Targets::Shifted(ShiftedIds { ids: ids.into(), sequence, shift })
    }

    /// `[rows, vocab]` probabilities, contiguous. They need not sum to 1: the loss of a row is
    /// `-sum_j t[j] ln p[j]` whatever they are.
    ///
    /// There is no `From` for them, since a slice of numbers does not say what it is.
    pub fn probs(probs: impl Into<Floats<'a>>) -> Self {
        Targets::Probs(probs.into())
    }
}

/// Evaluates an expression for the slice of whichever type it is.
macro_rules! for_slice {
    ($targets:expr, $ids:ident => $body:expr) => {
        match $targets {
            Ids::I64($ids) => $body,
            Ids::I32($ids) => $body,
            Ids::U32($ids) => $body,
            Ids::Usize($ids) => $body,
        }
    };
}

impl<'a> Ids<'a> {
    /// The number of ids.
    pub fn len(&self) -> usize {
        for_slice!(self, ids => ids.len())
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn split_at(self, mid: usize) -> (Self, Self) {
        fn both<'a, T>(ids: &'a [T], mid: usize) -> (Ids<'a>, Ids<'a>)
        where
            Ids<'a>: From<&'a [T]>,
        {
            let (a, b) = ids.split_at(mid);
            (a.into(), b.into())
        }
        for_slice!(self, ids => both(ids, mid))
    }

    /// Ids `start..start + len`.
    #[inline(always)]
    fn part(self, start: usize, len: usize) -> Self {
        fn part<'a, T>(ids: &'a [T], start: usize, len: usize) -> Ids<'a>
        where
            Ids<'a>: From<&'a [T]>,
        {
            (&ids[start..start + len]).into()
        }
        for_slice!(self, ids => part(ids, start, len))
    }

    /// Every id as `i128`, which holds all of them.
    #[inline(always)]
    pub(crate) fn get(&self, i: usize) -> i128 {
        for_slice!(self, ids => ids[i] as i128)
    }
}

/// The ids that say to leave out: a row whose target is one of them, an entry of sparse probabilities.
///
/// Mostly it is one, which is here itself and costs one comparison. Of more the first is too.
#[derive(Clone, Copy)]
pub(crate) struct Ignored<'a> {
    first: Option<i64>,
    more: &'a [i64],
}

impl<'a> Ignored<'a> {
    pub(crate) const NONE: Self = Ignored { first: None, more: &[] };

    pub(crate) const fn one(id: i64) -> Self {
        Ignored { first: Some(id), more: &[] }
    }

    pub(crate) const fn all(ids: &'a [i64]) -> Self {
        match ids {
            [] => Self::NONE,
            [first, more @ ..] => Ignored { first: Some(*first), more },
        }
    }

    /// As the caller has them.
    pub(crate) fn ids(self) -> impl Iterator<Item = i64> + 'a {
        self.first.into_iter().chain(self.more.iter().copied())
    }

    /// The set of them: in order, each once.
    pub(crate) fn sorted(self) -> Vec<i64> {
        let mut ids: Vec<i64> = self.ids().collect();
        ids.sort_unstable();
        ids.dedup();
        ids
    }

    #[inline(always)]
    pub(crate) fn contains(&self, id: i128) -> bool {
        Some(id) == self.first.map(i128::from) || !self.more.is_empty() && self.more_contain(id)
    }

    // Out of the loops over targets, which have one id to look at as a rule.
    #[inline(never)]
    fn more_contain(&self, id: i128) -> bool {
        i64::try_from(id).is_ok_and(|id| self.more.contains(&id))
    }
}

impl std::fmt::Debug for Ignored<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.ids()).finish()
    }
}

/// As sets: neither order nor repetition tells two of them apart.
impl PartialEq for Ignored<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.more.is_empty() && other.more.is_empty() && self.first == other.first
            || self.sorted() == other.sorted()
    }
}

/// Targets that were checked: each is a class, or ignored. From row `first` on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TargetRows<'a> {
    ids: Ids<'a>,
    first: usize,
    shift: Option<Shift>,
    ignored: Ignored<'a>,
}

#[derive(Clone, Copy, Debug)]
struct Shift {
    by: usize,
    sequence: usize,
}

impl Shift {
    fn new(by: usize, sequence: usize, rows: usize) -> Result<Option<Self>, Error> {
        if rows == 0 {
            return Ok(None);
        }
        if rows.checked_rem(sequence) != Some(0) {
            return Err(Error::Sequence { rows, sequence });
        }
        if by >= sequence {
            return Err(Error::Shift { shift: by, sequence });
        }
        Ok((by > 0).then_some(Shift { by, sequence }))
    }

    fn apply(&self, row: usize) -> Option<usize> {
        (row % self.sequence + self.by < self.sequence).then_some(row + self.by)
    }
}

impl<'a> TargetRows<'a> {
    /// Checks one target per row, each a class or `ignored`, which is asked first.
    #[inline(always)]
    pub(crate) fn new(
        ids: Ids<'a>,
        ignored: Ignored<'a>,
        rows: usize,
        vocab: usize,
    ) -> Result<Self, Error> {
        Self::checked(ids, None, ignored, rows, vocab)
    }

    pub(crate) fn shifted(
        ShiftedIds { ids, sequence, shift }: ShiftedIds<'a>,
        ignored: Ignored<'a>,
        rows: usize,
        vocab: usize,
    ) -> Result<Self, Error> {
        let shift = Shift::new(shift, sequence, rows)?;
        Self::checked(ids, shift, ignored, rows, vocab)
    }

    #[inline(always)]
    fn checked(
        ids: Ids<'a>,
        shift: Option<Shift>,
        ignored: Ignored<'a>,
        rows: usize,
        vocab: usize,
    ) -> Result<Self, Error> {
        Targets::Ids(ids).check_len(rows, vocab)?;
        let checked = TargetRows { ids, first: 0, shift, ignored };
        match (0..rows).find(|&row| checked.get(row).is_some_and(|class| class >= vocab)) {
            Some(row) => {
                let id = shift.map_or(Some(row), |shift| shift.apply(row)).unwrap_or(row);
                Err(Error::TargetOutOfRange { row, target: ids.get(id), vocab })
            }
            None => Ok(checked),
        }
    }

    /// The class of a row, or `None` to ignore it.
    #[inline(always)]
    pub(crate) fn get(&self, row: usize) -> Option<usize> {
        let mut row = self.first + row;
        if let Some(shift) = &self.shift {
            row = shift.apply(row)?;
        }
        let id = self.ids.get(row);
        // A negative id becomes `usize::MAX`, which is no class of any slice.
        (!self.ignored.contains(id)).then(|| usize::try_from(id).unwrap_or(usize::MAX))
    }

    pub(crate) fn split_at(self, mid: usize) -> (Self, Self) {
        (self, TargetRows { first: self.first + mid, ..self })
    }
}

/// Targets of any kind, checked.
#[derive(Clone, Copy, Debug)]
pub(crate) enum AnyTargets<'a, R> {
    Ids(TargetRows<'a>),
    Dense { probs: &'a [R], vocab: usize },
    Sparse { ids: Ids<'a>, probs: &'a [R], k: usize, ignored: Ignored<'a> },
}

/// `t[j]` as the caller has it.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Given<'a, R> {
    Dense(&'a [R]),
    /// The probabilities of some classes, checked; those of the others are 0. An entry whose id
    /// is among `ignored` does not count.
    Sparse {
        ids: Ids<'a>,
        probs: &'a [R],
        ignored: Ignored<'a>,
    },
}

/// The target of one row.
#[derive(Clone, Copy, Debug)]
pub(crate) enum RowTarget<'a, R> {
    Ignored,
    Class(usize),
    Probs(Given<'a, R>),
}

impl<'a> Targets<'a> {
    /// For what probabilities are of no use to.
    pub(crate) fn ids_only(self) -> Result<Self, Error> {
        match self {
            Targets::Ids(_) | Targets::Shifted(_) => Ok(self),
            Targets::Probs(_) | Targets::Sparse(_) => {
                let (option, value) = ("targets", "probabilities".to_owned());
                Err(Error::Option { option, value, range: "a class id per row" })
            }
        }
    }

    /// That there are as many as rows of so many classes take, which bounds the number of rows by memory
    /// that exists, unless rows take none.
    pub(crate) fn check_len(&self, rows: usize, vocab: usize) -> Result<(), Error> {
        let product =
            |elements: usize| rows.checked_mul(elements).ok_or(Error::Overflow { rows, elements });
        match self {
            Targets::Ids(ids) | Targets::Shifted(ShiftedIds { ids, .. }) => match ids.len() {
                len if len == rows => Ok(()),
                targets => Err(Error::TargetCount { rows, targets }),
            },
            Targets::Probs(_) | Targets::Sparse(_) if vocab == 0 && rows > 0 => {
                Err(Error::NoClasses { rows })
            }
            Targets::Probs(probs) => {
                Error::check_input("target probabilities", probs.len(), product(vocab)?)
            }
            Targets::Sparse(SparseProbs { ids, probs, k }) => {
                let expected = product(*k)?;
                Error::check_input("sparse target ids", ids.len(), expected)?;
                Error::check_input("sparse target probabilities", probs.len(), expected)
            }
        }
    }
}

impl<'a, R: Float> AnyTargets<'a, R> {
    /// Checks them.
    pub(crate) fn new(
        targets: Targets<'a>,
        ignored: Ignored<'a>,
        rows: usize,
        vocab: usize,
    ) -> Result<Self, Error> {
        let real = |what, floats: Floats<'a>| {
            R::of(floats).ok_or(Error::Precision {
                what,
                needed: R::PRECISION,
                given: floats.precision(),
            })
        };
        targets.check_len(rows, vocab)?;
        match targets {
            Targets::Ids(ids) => TargetRows::new(ids, ignored, rows, vocab).map(AnyTargets::Ids),
            Targets::Shifted(ids) => {
                TargetRows::shifted(ids, ignored, rows, vocab).map(AnyTargets::Ids)
            }
            Targets::Probs(probs) => {
                if let Some(ignore_index) = ignored.ids().find(|&id| id >= 0) {
                    return Err(Error::IgnoreIndexWithProbs { ignore_index });
                }
                Ok(AnyTargets::Dense { probs: real("target probabilities", probs)?, vocab })
            }
            Targets::Sparse(SparseProbs { ids, probs, k }) => {
                let wrong = |i: &usize| {
                    let id = ids.get(*i);
                    !ignored.contains(id) && usize::try_from(id).map_or(true, |id| id >= vocab)
                };
                if let Some(i) = (0..ids.len()).find(wrong) {
                    return Err(Error::TargetOutOfRange { row: i / k, target: ids.get(i), vocab });
                }
                let probs = real("sparse target probabilities", probs)?;
                Ok(AnyTargets::Sparse { ids, probs, k, ignored })
            }
        }
    }

    /// What a row counts in a mean: the weight of its class; `None` if it is ignored.
    pub(crate) fn weight(&self, row: usize, weights: Option<&[R]>) -> Option<f64> {
        match self.get(row) {
            RowTarget::Ignored => None,
            RowTarget::Class(class) => Some(weights.map_or(1.0, |weights| weights[class].into())),
            RowTarget::Probs(_) => Some(1.0),
        }
    }

    #[inline(always)]
    pub(crate) fn get(&self, row: usize) -> RowTarget<'a, R> {
        match *self {
            AnyTargets::Ids(ids) => ids.get(row).map_or(RowTarget::Ignored, RowTarget::Class),
            AnyTargets::Dense { probs, vocab } => {
                RowTarget::Probs(Given::Dense(&probs[row * vocab..][..vocab]))
            }
            AnyTargets::Sparse { ids, probs, k, ignored } => RowTarget::Probs(Given::Sparse {
                ids: ids.part(row * k, k),
                probs: &probs[row * k..][..k],
                ignored,
            }),
        }
    }

    pub(crate) fn split_at(self, mid: usize) -> (Self, Self) {
        match self {
            AnyTargets::Ids(ids) => {
                let (a, b) = ids.split_at(mid);
                (AnyTargets::Ids(a), AnyTargets::Ids(b))
            }
            AnyTargets::Dense { probs, vocab } => {
                let (a, b) = probs.split_at(mid * vocab);
                (AnyTargets::Dense { probs: a, vocab }, AnyTargets::Dense { probs: b, vocab })
            }
            AnyTargets::Sparse { ids, probs, k, ignored } => {
                let ((ids_a, ids_b), (a, b)) = (ids.split_at(mid * k), probs.split_at(mid * k));
                (
                    AnyTargets::Sparse { ids: ids_a, probs: a, k, ignored },
                    AnyTargets::Sparse { ids: ids_b, probs: b, k, ignored },
                )
            }
        }
    }
}
