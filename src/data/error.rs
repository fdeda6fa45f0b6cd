//! What a caller can get wrong.
#![forbid(unsafe_code)]

use crate::simd::backend::Backend;
use std::fmt::Debug;

/// Why a call was refused. Raised before any output is written.
///
/// ```
/// use xent::{CrossEntropy, Error, Logits};
///
/// let logits = Logits::new(&[0.0; 6], 2, 3).unwrap();
/// let error = CrossEntropy::new().forward(logits, &[0i64, 3]).unwrap_err();
/// assert_eq!(error, Error::TargetOutOfRange { row: 1, target: 3, vocab: 3 });
/// assert_eq!(error.to_string(), "row 1: target 3 is out of range for a vocabulary of 3");
/// ```
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A contiguous matrix has another number of elements than `rows * vocab`.
    #[error(
        "{rows} rows of {vocab} need {} elements, but the slice has {len}{}",
        *rows as u128 * *vocab as u128, of_padded_rows(*rows, *vocab, *len)
    )]
    Length {
        /// Rows of the matrix.
        rows: usize,
        /// Classes of a row.
        vocab: usize,
        /// Elements of the slice.
        len: usize,
    },
    /// A strided matrix does not fit into its slice.
    #[error(
        "{rows} rows of {vocab} at stride {stride} need {needed} elements, but the slice has {len}"
    )]
    StridedLength {
        /// Rows of the matrix.
        rows: usize,
        /// Classes of a row.
        vocab: usize,
        /// Elements from the start of a row to the start of the next.
        stride: usize,
        /// The smallest slice that would do.
        needed: usize,
        /// Elements of the slice.
        len: usize,
    },
    /// Rows would overlap.
    #[error("a row stride of {stride} is smaller than the vocabulary of {vocab}")]
    Stride {
        /// Elements from the start of a row to the start of the next.
        stride: usize,
        /// Classes of a row.
        vocab: usize,
    },
    /// A view does not fit into its slice.
    #[error(
        "shape {shape:?} with strides {strides:?} needs {needed} elements, but the slice has {len}"
    )]
    StridedShape {
        /// Batch, time and vocabulary.
        shape: [usize; 3],
        /// Elements from one to the next, of each.
        strides: [usize; 3],
        /// The smallest slice that would do.
        needed: u128,
        /// Elements of the slice.
        len: usize,
    },
    /// Neither the classes of a row nor the positions in time are next to each other.
    #[error("strides {strides:?} of shape {shape:?}: the last, or the one before, must be 1")]
    Strides {
        /// Batch, time and vocabulary.
        shape: [usize; 3],
        /// Elements from one to the next, of each.
        strides: [usize; 3],
    },
    /// Rows that are to be written overlap, or are in memory in another order.
    #[error("strides {strides:?} of shape {shape:?}: rows to be written must follow one another")]
    Overlap {
        /// Batch, time and vocabulary.
        shape: [usize; 3],
        /// Elements from one to the next, of each.
        strides: [usize; 3],
    },
    /// A row of a list is shorter than the vocabulary.
    #[error("row {row} has {len} elements, fewer than the vocabulary of {vocab}")]
    RowLength {
        /// The first such row.
        row: usize,
        /// Its length.
        len: usize,
        /// Classes of a row.
        vocab: usize,
    },
    /// Rows are no whole number of sequences.
    #[error("{rows} rows are no whole number of sequences of {sequence}")]
    Sequence {
        /// Rows of the matrix.
        rows: usize,
        /// Rows of a sequence.
        sequence: usize,
    },
    /// Targets are shifted by more than a sequence has.
    #[error("targets shifted by {shift} in sequences of {sequence}: no row has a target")]
    Shift {
        /// How far.
        shift: usize,
        /// Rows of a sequence.
        sequence: usize,
    },
    /// The number of elements does not fit into `usize`.
    #[error("{rows} rows of {elements} elements are more than an address can count")]
    Overflow {
        /// Rows of the matrix.
        rows: usize,
        /// Elements per row: the stride, or the vocabulary if there is no stride.
        elements: usize,
    },
    /// There is not one target per row.
    #[error("{targets} targets for {rows} rows{}", of_next_tokens(*rows, *targets))]
    TargetCount {
        /// Rows of the matrix.
        rows: usize,
        /// Targets given.
        targets: usize,
    },
    /// A target is neither a class nor an id to ignore. For an empty vocabulary every target is.
    #[error(
        "row {row}: target {target} is out of range for a vocabulary of {vocab}{}",
        of_ignored(*target)
    )]
    TargetOutOfRange {
        /// The first such row.
        row: usize,
        /// Its target.
        target: i128,
        /// Classes of a row.
        vocab: usize,
    },
    /// An output does not have the length that goes with the input.
    #[error("output `{output}` has {len} elements instead of {expected}")]
    OutputLength {
        /// Which output.
        output: &'static str,
        /// Its length.
        len: usize,
        /// The length it must have.
        expected: usize,
    },
    /// An input that goes with the logits does not have the length that goes with them.
    #[error("{what}: {len} values instead of {expected}{}", of_one_mask(what, *len, *expected))]
    InputLength {
        /// Which input.
        what: &'static str,
        /// Its length.
        len: usize,
        /// The length it must have.
        expected: usize,
    },
    /// Numbers that are used per class are not of the precision of the results.
    #[error("`{what}` must be {needed} for these logits, not {given}")]
    Precision {
        /// Which input.
        what: &'static str,
        /// The type it must have.
        needed: &'static str,
        /// The type it has.
        given: &'static str,
    },
    /// The gradient and the logits are not of the same shape.
    #[error("the gradient is {} x {}, but the logits are {} x {}", gradient.0, gradient.1, logits.0, logits.1)]
    GradientShape {
        /// Rows and classes of the gradient.
        gradient: (usize, usize),
        /// Rows and classes of the logits.
        logits: (usize, usize),
    },
    /// Probability targets for rows without classes.
    #[error("{rows} rows with probability targets have no classes")]
    NoClasses {
        /// Rows of the matrix.
        rows: usize,
    },
    /// An id to ignore is a class, but targets are probabilities and have no id.
    #[error("ignore_index {ignore_index} means nothing for probability targets")]
    IgnoreIndexWithProbs {
        /// The first such id.
        ignore_index: i64,
    },
    /// An option is out of its range.
    #[error("{option} = {value} is not {range}")]
    Option {
        /// The option.
        option: &'static str,
        /// Its value, as text (so that errors can be compared).
        value: String,
        /// What it must be.
        range: &'static str,
    },
    /// An output needs something that was not given.
    #[error("output `{output}` needs {needs}")]
    Missing {
        /// Which output.
        output: &'static str,
        /// What has to be given.
        needs: &'static str,
    },
    /// A candidate is not a class.
    #[error("row {row}: candidate {id} is out of range for a vocabulary of {vocab}")]
    CandidateOutOfRange {
        /// The first such row.
        row: usize,
        /// The candidate.
        id: i128,
        /// Classes of a row.
        vocab: usize,
    },
    /// What should be a token is none, as for a row that was ignored.
    #[error("row {row}: {id} is not a token")]
    NotAToken {
        /// The first such row.
        row: usize,
        /// The id.
        id: i128,
    },
    /// A token that is said to be chosen is not the target that log-probabilities were asked for.
    #[error(
        "row {row}: token {chosen} is said to be chosen, but the log-probability is that of target {target}; \
         ask with LogProbs::targets for the tokens that were chosen"
    )]
    ChosenToken {
        /// The first such row.
        row: usize,
        /// The token that is said to be chosen.
        chosen: i64,
        /// The target of the row.
        target: i64,
    },
    /// A logit bias cannot be used.
    #[error("logit bias, entry {entry} (token {id}, value {value}): {range}")]
    LogitBias {
        /// The first such entry.
        entry: usize,
        /// Its token.
        id: u32,
        /// Its value, as text (so that errors can be compared).
        value: String,
        /// What it must be.
        range: &'static str,
    },
    /// The temperature of a sample is not a number that it can be drawn at.
    #[error("row {row}: temperature {temperature} of a sample is not finite and at least 0")]
    SampleTemperature {
        /// The first such row.
        row: usize,
        /// The temperature, as text (so that errors can be compared).
        temperature: String,
    },
    /// Of the most probable tokens too few are known to draw among those that `option` leaves.
    #[error("{}", of_too_few(option, *known))]
    TooFewTokens {
        /// `top_k`, `top_p`, `min_p` or `no filter`.
        option: &'static str,
        /// How many are known.
        known: usize,
    },
    /// There is no token that could be drawn.
    #[error("no token can be drawn: {}", of_nothing(*known))]
    NothingToSample {
        /// How many are known.
        known: usize,
    },
    /// A shard is not a part of its vocabulary.
    #[error("a shard of {classes} classes from {first} on is not part of a vocabulary of {vocab}")]
    Shard {
        /// Its first class.
        first: usize,
        /// How many it has.
        classes: usize,
        /// Those of the whole vocabulary.
        vocab: usize,
    },
    /// What was merged is not the whole vocabulary.
    #[error(
        "row {row}: the shards that were merged have {classes} classes of a vocabulary of {vocab}"
    )]
    ShardClasses {
        /// The row.
        row: usize,
        /// How many were merged.
        classes: u64,
        /// Those of the whole vocabulary.
        vocab: usize,
    },
    /// The shards that were merged have as many classes as the vocabulary, but not each of them once.
    #[error("row {row}: the shards that were merged leave a gap or overlap")]
    ShardSeams {
        /// The row.
        row: usize,
    },
    /// Not one of the shards that were merged has the target, or more than one.
    #[error(
        "row {row}: {shards} of the shards that were merged have target {target}: they leave a gap or overlap"
    )]
    ShardTarget {
        /// The row.
        row: usize,
        /// Its target.
        target: usize,
        /// How many have it.
        shards: u32,
    },
    /// Two shards have classes in common. Each is given by its first class and the one beyond its last.
    #[error("the shards of classes {}..{} and {}..{} overlap", .a.0, .a.1, .b.0, .b.1)]
    ShardOverlap {
        /// Of the one.
        a: (usize, usize),
        /// Of the other.
        b: (usize, usize),
    },
    /// Two shards are no parts of one row: they were asked different things.
    #[error("the shards do not belong together: their {what} is {a} here and {b} there")]
    ShardOptions {
        /// In what they differ.
        what: &'static str,
        /// Of the one.
        a: String,
        /// Of the other.
        b: String,
    },
    /// Bytes that are no statistics of a row.
    #[error("these bytes are no statistics of a row, or of another version of this crate")]
    RowStatsBytes,
    /// The divisor of [`Reduction::MeanOver`](crate::Reduction::MeanOver) is not a positive number.
    #[error("a mean over {count} is not defined: the count must be finite and above 0")]
    Count {
        /// The divisor, as text (so that errors can be compared).
        count: String,
    },
    /// This CPU, or this build, cannot run the backend.
    #[error("backend `{requested}` is not available here; available: {}", names(available))]
    BackendUnavailable {
        /// The backend asked for.
        requested: Backend,
        /// Those that can be had.
        available: &'static [Backend],
    },
    /// There is no backend of that name.
    #[error("unknown backend `{name}`; available: {}", names(available))]
    UnknownBackend {
        /// The name given.
        name: String,
        /// Those that can be had.
        available: &'static [Backend],
    },
    /// Not even the offset where the first sequence begins.
    #[error("no offsets: n sequences have n + 1 of them")]
    NoOffsets,
    /// A sequence ends before it begins.
    #[error("offset {index} is {offset}, less than the {before} before it")]
    OffsetOrder {
        /// The first such offset.
        index: usize,
        /// The row it names.
        offset: usize,
        /// The one that the offset before it names.
        before: usize,
    },
    /// Sequences do not begin with the first row, or do not end with the last one.
    #[error("offset {index} is {offset} instead of {expected}: sequences must take up all rows")]
    OffsetBound {
        /// Which offset: the first or the last.
        index: usize,
        /// The row it names.
        offset: usize,
        /// 0, or the number of rows.
        expected: usize,
    },
    /// Two matrices that are compared are not of the same shape.
    #[error("the base is {} x {}, but the other is {} x {}", base.0, base.1, other.0, other.1)]
    ComparedShape {
        /// Rows and classes of the base.
        base: (usize, usize),
        /// Rows and classes of the other.
        other: (usize, usize),
    },
    /// Two models are compared at targets that are probabilities.
    #[error("models are compared at targets that are classes, not probabilities")]
    ComparedProbs,
}

impl Error {
    /// That a number can be a factor or a divisor of logits: it is used as an `f32` where these are.
    pub(crate) fn check_positive(option: &'static str, value: f64) -> Result<(), Error> {
        if value > 0.0 && value.is_finite() && (value as f32).is_normal() {
            return Ok(());
        }
        let range = "a positive number of the range of f32";
        Err(Error::Option { option, value: number(value), range })
    }

    /// That an input which goes with the logits is as long as it must be.
    pub(crate) fn check_input(
        what: &'static str,
        len: usize,
        expected: usize,
    ) -> Result<(), Error> {
        if len == expected { Ok(()) } else { Err(Error::InputLength { what, len, expected }) }
    }
}

/// A number as errors say it: in the shortest form that reads back as the same number, with an exponent where zeros
/// would be many.
pub(crate) fn number(x: impl Debug) -> String {
    let text = format!("{x:?}");
    match text.strip_suffix(".0") {
        Some(integer) => integer.to_owned(),
        None => text,
    }
}

fn of_padded_rows(rows: usize, vocab: usize, len: usize) -> String {
    match len.checked_div(rows) {
        Some(stride) if stride > vocab && stride.checked_mul(rows) == Some(len) => {
            format!("; for rows that begin {stride} elements apart use with_stride(.., {stride})")
        }
        _ => String::new(),
    }
}

fn of_next_tokens(rows: usize, targets: usize) -> &'static str {
    if targets.checked_add(1) == Some(rows) {
        "; where each row predicts the next token, give all tokens to Targets::shifted"
    } else {
        ""
    }
}

fn of_ignored(target: i128) -> String {
    if target < 0 { format!("; ignore_index({target}) ignores such rows") } else { String::new() }
}

/// What masks call their words.
pub(crate) const WORDS: &str = "words of allowed tokens";

fn of_one_mask(what: &str, len: usize, expected: usize) -> &'static str {
    let is_part = len > 0 && len < expected && expected.is_multiple_of(len);
    if what == WORDS && is_part {
        "; AllowedTokens::stride(0) has one mask for all rows"
    } else {
        ""
    }
}

fn of_too_few(option: &str, known: usize) -> String {
    match option {
        "no filter" => format!(
            "without top_k, top_p or min_p all tokens are needed, but only the {known} most probable are known; \
             set Sampler::top_k, or draw among all with LogProbs::sample"
        ),
        "top_k" => format!(
            "top_k needs more than the {known} most probable tokens; ask LogProbs::top_k for as many, or draw \
             among all with LogProbs::sample"
        ),
        _ => format!(
            "{option} needs more than the {known} most probable tokens; ask LogProbs::top_k for more, set \
             Sampler::top_k to at most {known}, or draw among all with LogProbs::sample"
        ),
    }
}

fn of_nothing(known: usize) -> String {
    match known {
        0 => "no token is known; ask LogProbs::top_k for the most probable ones".to_owned(),
        _ => format!("{known} are known, none with a finite log-probability, or one is NaN"),
    }
}

fn names(backends: &[Backend]) -> String {
    backends.iter().map(|b| b.name()).collect::<Vec<_>>().join(", ")
}
