//! Structures of the header as views of the Rust API.
#![allow(unsafe_code, reason = "passes on what callers promise; raw.rs makes use of it")]

use crate::raw::{Float, Logit, Memory};
use crate::status::Failure;
use crate::types::*;
use std::ffi::c_void;
use xent::{AllowedTokens, Error, Floats, Ids, Logits, LogitsMut, Targets};

/// Evaluates an expression for the type of logits that a number stands for.
macro_rules! for_dtype {
    ($what:expr, $dtype:expr, $type:ident => $body:expr) => {
        match $dtype {
            1 => {
                type $type = f32;
                $body
            }
            2 => {
                type $type = f64;
                $body
            }
            3 => {
                type $type = half::bf16;
                $body
            }
            4 => {
                type $type = half::f16;
                $body
            }
            value => {
                let needed = "XENT_F32, XENT_F64, XENT_BF16 or XENT_F16";
                Err(Failure::Dtype { what: $what, value, needed })
            }
        }
    };
}
pub(crate) use for_dtype;

pub(crate) fn reserved(what: &'static str, value: u32) -> Result<(), Failure> {
    if value == 0 { Ok(()) } else { Err(Failure::Reserved { what, value }) }
}

/// Strides, with those that are left to us, and how many elements there are from the first to the last.
struct Extent {
    elements: u128,
    row_stride: usize,
    class_stride: usize,
}

impl Extent {
    fn new(m: &xent_matrix) -> Result<Self, Failure> {
        let class_stride = m.class_stride.max(1);
        let row_stride = match m.row_stride {
            // That of one row says nothing.
            stride if stride == 0 || m.rows <= 1 => m
                .classes
                .checked_mul(class_stride)
                .ok_or(Error::Overflow { rows: m.rows, elements: m.classes })?,
            stride => stride,
        };
        if class_stride == 1 && row_stride < m.classes {
            return Err(Error::Stride { stride: row_stride, vocab: m.classes }.into());
        }
        // Neither product overflows; their sum is at most one too small to be represented.
        let rows = (m.rows as u128).saturating_sub(1) * row_stride as u128;
        let classes = (m.classes as u128).saturating_sub(1) * class_stride as u128;
        let elements = match m.rows == 0 || m.classes == 0 {
            true => 0,
            false => rows.saturating_add(classes).saturating_add(1),
        };
        Ok(Extent { elements, row_stride, class_stride })
    }
}

/// # Safety
/// As [`Memory::input`], of what `m` says.
pub(crate) unsafe fn matrix<'a, T: Logit>(
    memory: &mut Memory<'a>,
    what: &'static str,
    m: &xent_matrix,
) -> Result<Logits<'a, T>, Failure> {
    reserved(what, m.reserved)?;
    debug_assert_eq!(m.dtype, <T as Logit>::DTYPE as i32);
    let Extent { elements, row_stride, class_stride } = Extent::new(m)?;
    // SAFETY: passed on.
    let data = unsafe { memory.input(what, m.data, elements) }?;
    Ok(match class_stride {
        1 => Logits::with_stride(data, m.rows, m.classes, row_stride)?,
        _ => Logits::strided(data, [1, m.rows, m.classes], [0, row_stride, class_stride])?,
    })
}

/// # Safety
/// As [`Memory::output`], of what `m` says.
pub(crate) unsafe fn matrix_mut<'a, T: Logit>(
    memory: &mut Memory<'a>,
    what: &'static str,
    m: &xent_matrix_mut,
) -> Result<LogitsMut<'a, T>, Failure> {
    reserved(what, m.reserved)?;
    let Extent { elements, row_stride, class_stride } = Extent::new(&shared(m))?;
    // SAFETY: passed on.
    let data = unsafe { memory.output(what, m.data, elements) }?;
    Ok(match class_stride {
        1 => LogitsMut::with_stride(data, m.rows, m.classes, row_stride)?,
        _ => LogitsMut::strided(data, [1, m.rows, m.classes], [0, row_stride, class_stride])?,
    })
}

/// The same matrix, to be read.
pub(crate) fn shared(m: &xent_matrix_mut) -> xent_matrix {
    let xent_matrix_mut { data, rows, classes, row_stride, class_stride, dtype, reserved } = *m;
    xent_matrix { data, rows, classes, row_stride, class_stride, dtype, reserved }
}

/// Ids where the caller has them, or copied to be next to each other.
pub(crate) enum AnyIds<'a> {
    Borrowed(Ids<'a>),
    I32(Vec<i32>),
    I64(Vec<i64>),
    U32(Vec<u32>),
    Usize(Vec<usize>),
}

impl AnyIds<'_> {
    pub(crate) fn get(&self) -> Ids<'_> {
        match self {
            AnyIds::Borrowed(ids) => *ids,
            AnyIds::I32(ids) => ids.into(),
            AnyIds::I64(ids) => ids.into(),
            AnyIds::U32(ids) => ids.into(),
            AnyIds::Usize(ids) => ids.into(),
        }
    }
}

/// # Safety
/// As [`Memory::input`], of what `ids` says.
pub(crate) unsafe fn ids<'a>(
    memory: &mut Memory<'a>,
    what: &'static str,
    ids: &xent_ids,
) -> Result<Option<AnyIds<'a>>, Failure> {
    if ids.dtype == xent_id_dtype::XENT_NO_IDS as i32 {
        return Ok(None);
    }
    reserved(what, ids.reserved)?;
    let stride = ids.stride.max(1);
    let elements = match ids.len {
        0 => 0,
        len => (len as u128 - 1) * stride as u128 + 1,
    };
    macro_rules! of {
        ($type:ty, $variant:ident) => {{
            // SAFETY: passed on.
            let all = unsafe { memory.input::<$type>(what, ids.data, elements) }?;
            match stride {
                1 => AnyIds::Borrowed(all.into()),
                _ => AnyIds::$variant(every(all, stride, ids.len)?),
            }
        }};
    }
    Ok(Some(match ids.dtype {
        1 => of!(i32, I32),
        2 => of!(i64, I64),
        3 => of!(u32, U32),
        4 if size_of::<usize>() == 8 => of!(usize, Usize),
        value => {
            let needed = "XENT_I32, XENT_I64, XENT_U32 or XENT_U64";
            return Err(Failure::Dtype { what, value, needed });
        }
    }))
}

fn every<T: Copy>(all: &[T], stride: usize, len: usize) -> Result<Vec<T>, Failure> {
    let mut some = Vec::new();
    if some.try_reserve_exact(len).is_err() {
        return Err(Failure::Memory { len, size: size_of::<T>() });
    }
    some.extend(all.iter().step_by(stride));
    Ok(some)
}

/// Ids as targets, shifted if they are.
pub(crate) fn targets<'a>(ids: &'a AnyIds<'_>, how: &xent_ids) -> Result<Targets<'a>, Failure> {
    match (how.sequence, how.shift) {
        (0, 0) => Ok(ids.get().into()),
        // As core has it for sequences of no rows.
        (0, _) => Err(Error::Sequence { rows: how.len, sequence: 0 }.into()),
        (sequence, shift) => Ok(Targets::shifted(ids.get(), sequence, shift)),
    }
}

/// # Safety
/// As [`Memory::input`], of what `floats` says.
pub(crate) unsafe fn floats<'a>(
    memory: &mut Memory<'a>,
    what: &'static str,
    floats: &xent_floats,
) -> Result<Option<Floats<'a>>, Failure> {
    let xent_floats { data, len, dtype, reserved } = *floats;
    if dtype == xent_dtype::XENT_NONE as i32 {
        return Ok(None);
    }
    self::reserved(what, reserved)?;
    Ok(Some(match dtype {
        // SAFETY: passed on.
        1 => unsafe { memory.input::<f32>(what, data, len as u128) }?.into(),
        // SAFETY: passed on.
        2 => unsafe { memory.input::<f64>(what, data, len as u128) }?.into(),
        value => return Err(Failure::Dtype { what, value, needed: "XENT_F32 or XENT_F64" }),
    }))
}

/// # Safety
/// As [`Memory::input`], of what `allowed` says.
pub(crate) unsafe fn allowed<'a>(
    memory: &mut Memory<'a>,
    allowed: &xent_allowed,
) -> Result<Option<AllowedTokens<'a>>, Failure> {
    if allowed.words.is_null() {
        return Ok(None);
    }
    reserved("allowed", allowed.reserved)?;
    let words = allowed.words.cast::<c_void>();
    // SAFETY: passed on.
    let words = unsafe { memory.input("allowed", words, allowed.len as u128) }?;
    let mask = AllowedTokens::new(words);
    Ok(Some(match (allowed.same_for_all, allowed.stride) {
        (0, 0) => mask,
        (0, stride) => mask.stride(stride),
        _ => mask.stride(0),
    }))
}

/// That results are of the precision that goes with the logits.
pub(crate) fn check_precision<R: Float>(what: &'static str, given: i32) -> Result<(), Failure> {
    if given == R::DTYPE as i32 {
        return Ok(());
    }
    Err(Failure::Precision { what, needed: R::NAME, given })
}
