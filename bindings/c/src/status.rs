//! What every function returns, and the text that goes with it.
#![allow(unsafe_code, reason = "names of the C ABI")]
#![allow(non_camel_case_types, reason = "their names in C")]

use std::any::Any;
use std::cell::RefCell;
use std::ffi::{CStr, CString, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// What became of a call. A number never changes its meaning; later versions may add others.
///
/// On every error but `XENT_ERROR_PANIC` all outputs are as they were, and `xent_last_error_message` says what was wrong, with row
/// and value.
#[repr(i32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum xent_status {
    /// All outputs are written.
    XENT_OK = 0,
    /// A pointer is NULL that must not be.
    XENT_ERROR_NULL_POINTER = 1,
    /// A pointer is not aligned as its type has to be.
    XENT_ERROR_MISALIGNED = 2,
    /// An output has memory in common with an input or with another output.
    XENT_ERROR_OVERLAP = 3,
    /// The member `size` of a structure, a reserved member or a bit of its flags is not what this library knows.
    XENT_ERROR_STRUCT = 4,
    /// A type that this function does not take, or no type.
    XENT_ERROR_DTYPE = 5,
    /// Shapes or strides are wrong, or do not go with each other.
    XENT_ERROR_SHAPE = 6,
    /// More elements than there are addresses, or than memory for their results.
    XENT_ERROR_OVERFLOW = 7,
    /// There is not one target per row.
    XENT_ERROR_TARGET_COUNT = 8,
    /// A target or a candidate is neither a class nor the ignore index.
    XENT_ERROR_TARGET_RANGE = 9,
    /// An output does not have the length that goes with the logits.
    XENT_ERROR_OUTPUT_LENGTH = 10,
    /// An input does not have the length that goes with the logits.
    XENT_ERROR_INPUT_LENGTH = 11,
    /// An option is out of its range, or it, an input or a flag has no meaning for this function.
    XENT_ERROR_OPTION = 12,
    /// Weights or results are not of the precision that goes with the logits.
    XENT_ERROR_PRECISION = 13,
    /// An output needs an input that was not given.
    XENT_ERROR_MISSING = 14,
    /// Offsets are not ascending, or do not take up all rows or entries.
    XENT_ERROR_OFFSETS = 15,
    /// This machine or this build cannot run the backend.
    XENT_ERROR_BACKEND = 16,
    /// A shard is not part of its vocabulary, shards overlap, leave a gap or do not belong together, or bytes are no
    /// statistics of a row.
    XENT_ERROR_SHARD = 17,
    /// No token can be drawn from what is known.
    XENT_ERROR_NOT_DRAWN = 18,
    /// Memory could not be allocated.
    XENT_ERROR_OUT_OF_MEMORY = 19,
    /// Threads could not be started.
    XENT_ERROR_THREADS = 20,
    /// A defect of this library. Outputs may be written in part. What was passed can be used again.
    XENT_ERROR_PANIC = 21,
    /// An error of a kind that this version of the binding does not know.
    XENT_ERROR_OTHER = 22,
}

use xent_status::*;

/// Why a call was refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error("{0}")]
    Core(#[from] xent::Error),
    #[error("`{what}` is NULL")]
    Null { what: &'static str },
    #[error("`{what}` at address {address:#x} is not aligned to {align} bytes")]
    Misaligned { what: &'static str, address: usize, align: usize },
    #[error("`{output}` overlaps `{other}`{}", if *.in_place { ": for a result in place there are functions `.._in_place`" } else { "" })]
    Overlap { output: &'static str, other: &'static str, in_place: bool },
    #[error("`{what}`: {len} elements of {size} bytes are more than an address can count")]
    Extent { what: &'static str, len: u128, size: usize },
    #[error(
        "`{what}`: size is {size} instead of {expected}; set its member `size` to the sizeof of the structure"
    )]
    Size { what: &'static str, size: usize, expected: usize },
    #[error(
        "`{what}` has something, after the {known} bytes that this library knows, that is not 0"
    )]
    Unknown { what: &'static str, known: usize },
    #[error("`{what}`: the reserved member is {value} instead of 0")]
    Reserved { what: &'static str, value: u32 },
    #[error("`{what}`: the flags {value:#x} have bits that this library does not know")]
    Flags { what: &'static str, value: u32 },
    #[error("`{what}`: dtype {value} is not {needed}")]
    Dtype { what: &'static str, value: i32, needed: &'static str },
    #[error("`{what}`: {value} is not {needed}")]
    Enum { what: &'static str, value: i32, needed: &'static str },
    #[error("`{what}` must be {needed} for these logits, not dtype {given}")]
    Precision { what: &'static str, needed: &'static str, given: i32 },
    #[error("`{what}` is given, but `{function}` makes no use of it")]
    Unused { what: &'static str, function: &'static str },
    #[error("`{what}` has {len} elements instead of {expected}")]
    OutputLength { what: &'static str, len: usize, expected: usize },
    #[error("`{what}` has {len} elements instead of {expected}")]
    InputLength { what: &'static str, len: usize, expected: usize },
    #[error("`{output}` needs `{needs}`{}", of_no_ids(needs))]
    Missing { output: &'static str, needs: &'static str },
    #[error("{option} = {} means nothing for {function}", number(*value))]
    Meaningless { option: &'static str, value: f64, function: &'static str },
    #[error("{threads} threads could not be started: {error}")]
    Threads { threads: usize, error: String },
    #[error("no memory for {len} elements of {size} bytes")]
    Memory { len: usize, size: usize },
}

fn of_no_ids(needs: &str) -> &'static str {
    if needs == "targets" { ", whose dtype is XENT_NO_IDS" } else { "" }
}

/// As errors of the library say it: with an exponent where zeros would be many.
fn number(x: f64) -> String {
    let text = format!("{x:?}");
    text.strip_suffix(".0").map(str::to_owned).unwrap_or(text)
}

impl Failure {
    fn status(&self) -> xent_status {
        match self {
            Failure::Core(error) => of_core(error),
            Failure::Null { .. } => XENT_ERROR_NULL_POINTER,
            Failure::Misaligned { .. } => XENT_ERROR_MISALIGNED,
            Failure::Overlap { .. } => XENT_ERROR_OVERLAP,
            Failure::Extent { .. } => XENT_ERROR_OVERFLOW,
            Failure::Size { .. }
            | Failure::Unknown { .. }
            | Failure::Reserved { .. }
            | Failure::Flags { .. } => XENT_ERROR_STRUCT,
            Failure::Dtype { .. } => XENT_ERROR_DTYPE,
            Failure::Enum { .. } | Failure::Meaningless { .. } | Failure::Unused { .. } => {
                XENT_ERROR_OPTION
            }
            Failure::Precision { .. } => XENT_ERROR_PRECISION,
            Failure::OutputLength { .. } => XENT_ERROR_OUTPUT_LENGTH,
            Failure::InputLength { .. } => XENT_ERROR_INPUT_LENGTH,
            Failure::Missing { .. } => XENT_ERROR_MISSING,
            Failure::Threads { .. } => XENT_ERROR_THREADS,
            Failure::Memory { .. } => XENT_ERROR_OUT_OF_MEMORY,
        }
    }
}

fn of_core(error: &xent::Error) -> xent_status {
    use xent::Error::*;
    match error {
        Length { .. }
        | StridedLength { .. }
        | Stride { .. }
        | StridedShape { .. }
        | Strides { .. }
        | Overlap { .. }
        | RowLength { .. }
        | Sequence { .. }
        | Shift { .. }
        | GradientShape { .. }
        | NoClasses { .. }
        | ComparedShape { .. } => XENT_ERROR_SHAPE,
        Overflow { .. } => XENT_ERROR_OVERFLOW,
        TargetCount { .. } => XENT_ERROR_TARGET_COUNT,
        TargetOutOfRange { .. } | CandidateOutOfRange { .. } | NotAToken { .. } => {
            XENT_ERROR_TARGET_RANGE
        }
        OutputLength { .. } => XENT_ERROR_OUTPUT_LENGTH,
        InputLength { .. } => XENT_ERROR_INPUT_LENGTH,
        Precision { .. } => XENT_ERROR_PRECISION,
        Option { .. }
        | Count { .. }
        | LogitBias { .. }
        | SampleTemperature { .. }
        | IgnoreIndexWithProbs { .. } => XENT_ERROR_OPTION,
        Missing { .. } => XENT_ERROR_MISSING,
        NoOffsets | OffsetOrder { .. } | OffsetBound { .. } => XENT_ERROR_OFFSETS,
        BackendUnavailable { .. } | UnknownBackend { .. } => XENT_ERROR_BACKEND,
        Shard { .. }
        | ShardOverlap { .. }
        | ShardOptions { .. }
        | ShardClasses { .. }
        | ShardSeams { .. }
        | ShardTarget { .. }
        | RowStatsBytes => XENT_ERROR_SHARD,
        TooFewTokens { .. } | NothingToSample { .. } => XENT_ERROR_NOT_DRAWN,
        _ => XENT_ERROR_OTHER,
    }
}

thread_local! {
    static LAST: RefCell<CString> = RefCell::new(CString::default());
}

/// Runs a function of the API: what it returns becomes a status and a text, and a panic does too.
///
/// Nothing that a panic may leave half done is used again: what is shared between calls, options and thread pools, is not
/// changed by them.
pub(crate) fn guard(f: impl FnOnce() -> Result<(), Failure>) -> xent_status {
    match catch_unwind(AssertUnwindSafe(f)) {
        Ok(Ok(())) => XENT_OK,
        Ok(Err(failure)) => refuse(&failure),
        Err(payload) => panicked(payload),
    }
}

#[cold]
fn refuse(failure: &Failure) -> xent_status {
    remember(failure.to_string());
    failure.status()
}

#[cold]
fn panicked(payload: Box<dyn Any + Send>) -> xent_status {
    let text = match (payload.downcast_ref::<&str>(), payload.downcast_ref::<String>()) {
        (Some(text), _) => text,
        (None, Some(text)) => text.as_str(),
        (None, None) => "no message",
    };
    remember(format!("a defect of xent: {text}"));
    // What was thrown may throw again when it is dropped.
    std::mem::forget(payload);
    XENT_ERROR_PANIC
}

fn remember(text: String) {
    let text = CString::new(text.replace('\0', " ")).unwrap_or_default();
    // At the end of a thread there may be no place left: then there is no text.
    let _ = LAST.try_with(|last| last.replace(text));
}

/// The text of the last call on this thread that was refused, in UTF-8: what was wrong, with row and value. Empty if there
/// was none.
///
/// It is valid until the next call on this thread that is refused, or until the thread ends.
#[unsafe(no_mangle)]
pub extern "C" fn xent_last_error_message() -> *const c_char {
    LAST.try_with(|last| last.borrow().as_ptr()).unwrap_or(c"".as_ptr())
}

/// What a status means, in English: a text that stays valid. "unknown status" for other numbers.
#[unsafe(no_mangle)]
pub extern "C" fn xent_status_string(status: i32) -> *const c_char {
    let text: &'static CStr = match status {
        0 => c"ok",
        1 => c"a pointer is NULL",
        2 => c"a pointer is misaligned",
        3 => c"an output overlaps other memory of the call",
        4 => c"a structure is of another version",
        5 => c"unsupported type",
        6 => c"wrong shape or strides",
        7 => c"too many elements",
        8 => c"not one target per row",
        9 => c"target out of range",
        10 => c"wrong length of an output",
        11 => c"wrong length of an input",
        12 => c"option out of range",
        13 => c"wrong precision",
        14 => c"an input is missing",
        15 => c"wrong offsets",
        16 => c"backend not available",
        17 => c"not a shard of the vocabulary",
        18 => c"no token can be drawn",
        19 => c"out of memory",
        20 => c"threads could not be started",
        21 => c"defect of the library",
        22 => c"other error",
        _ => c"unknown status",
    };
    text.as_ptr()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message() -> String {
        LAST.with(|last| last.borrow().to_string_lossy().into_owned())
    }

    #[test]
    fn panics_become_a_status() {
        assert_eq!(guard(|| panic!("row {}", 7)), XENT_ERROR_PANIC);
        assert_eq!(message(), "a defect of xent: row 7");
        assert_eq!(guard(|| std::panic::panic_any(5)), XENT_ERROR_PANIC);
        assert_eq!(message(), "a defect of xent: no message");
        // What throws when it is dropped.
        struct Bomb;
        impl Drop for Bomb {
            fn drop(&mut self) {
                panic!("again");
            }
        }
        assert_eq!(guard(|| std::panic::panic_any(Bomb)), XENT_ERROR_PANIC);
        // A call that succeeds leaves the text alone.
        assert_eq!(guard(|| Ok(())), XENT_OK);
        assert_eq!(message(), "a defect of xent: no message");
    }

    #[test]
    fn every_status_has_a_text() {
        let text = |status| {
            let mut bytes = Vec::new();
            // The texts are constants, which `xent_status_string` chooses from.
            let pointer = xent_status_string(status);
            bytes.push(pointer as usize);
            bytes
        };
        let unknown = text(XENT_ERROR_OTHER as i32 + 1);
        let mut seen = std::collections::HashSet::new();
        for status in 0..=XENT_ERROR_OTHER as i32 {
            assert_ne!(text(status), unknown);
            assert!(seen.insert(text(status)), "{status} has the text of another");
        }
        assert_eq!(text(-1), unknown);
    }
}
