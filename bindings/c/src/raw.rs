//! Where pointers become slices: all the `unsafe` that is not a call of something in here.
//!
//! What can be checked about a pointer is: NULL, alignment, that its elements end before the address space does, and that
//! nothing is written which something else of the same call reads or writes. What cannot is what the header asks of callers:
//! that the memory is there, and that nobody else writes it meanwhile.
#![allow(unsafe_code)]

use crate::status::Failure;
use crate::types::xent_dtype;
use half::{bf16, f16};
use std::ffi::c_void;
use std::marker::PhantomData;
use std::mem::{align_of, offset_of, size_of};
use std::ptr::NonNull;
use std::slice;
use xent::{Element, LogSumExp, Real, Sample};

/// Types that any bits are a value of.
///
/// # Safety
/// They are, there is no padding, and they have the layout that the header gives them.
pub(crate) unsafe trait Plain: Copy + Send + Sync + 'static {}

macro_rules! plain {
    ($($type:ty),*) => {$(
        // SAFETY: numbers; `bf16` and `f16` are transparent `u16`. The others are checked below.
        unsafe impl Plain for $type {}
    )*};
}
plain!(u8, i32, u32, i64, usize, f32, f64, bf16, f16);
plain!(Sample, (u32, f32), crate::types::xent_sequence_score);
// SAFETY: as checked below for both precisions.
unsafe impl<R: Float> Plain for LogSumExp<R> {}

/// What results are: `float` or `double`.
pub(crate) trait Float: Real + Plain {
    const DTYPE: xent_dtype;
    const NAME: &'static str;
}

impl Float for f32 {
    const DTYPE: xent_dtype = xent_dtype::XENT_F32;
    const NAME: &'static str = "XENT_F32";
}

impl Float for f64 {
    const DTYPE: xent_dtype = xent_dtype::XENT_F64;
    const NAME: &'static str = "XENT_F64";
}

/// What logits are.
pub(crate) trait Logit: Element<Real: Float> + Plain {
    const DTYPE: xent_dtype;
}

impl Logit for f32 {
    const DTYPE: xent_dtype = xent_dtype::XENT_F32;
}
impl Logit for f64 {
    const DTYPE: xent_dtype = xent_dtype::XENT_F64;
}
impl Logit for bf16 {
    const DTYPE: xent_dtype = xent_dtype::XENT_BF16;
}
impl Logit for f16 {
    const DTYPE: xent_dtype = xent_dtype::XENT_F16;
}

// The compiler may order the members of these as it likes: that it does as C would is checked whenever it compiles them.
const _: () = {
    assert!(size_of::<LogSumExp<f32>>() == 8);
    assert!(offset_of!(LogSumExp<f32>, hi) == 0 && offset_of!(LogSumExp<f32>, lo) == 4);
    assert!(size_of::<LogSumExp<f64>>() == 16);
    assert!(offset_of!(LogSumExp<f64>, hi) == 0 && offset_of!(LogSumExp<f64>, lo) == 8);
    assert!(size_of::<Sample>() == 24 && offset_of!(Sample, seed) == 0);
    assert!(offset_of!(Sample, position) == 8 && offset_of!(Sample, temperature) == 16);
    assert!(size_of::<(u32, f32)>() == 8);
    assert!(offset_of!((u32, f32), 0) == 0 && offset_of!((u32, f32), 1) == 4);
};

/// A structure whose first member is its size.
///
/// # Safety
/// `repr(C)`, the first member is a `usize`, and any bits are a value.
pub(crate) unsafe trait TellsSize: Copy {}

macro_rules! sized {
    ($($type:ident),*) => {$(
        // SAFETY: see their definitions: numbers and pointers, after `size`.
        unsafe impl TellsSize for crate::types::$type {}
    )*};
}
sized!(xent_call, xent_token_call, xent_compare_call, xent_filters, xent_shard);
sized!(xent_evaluation, xent_row_summary);

fn check<T>(what: &'static str, pointer: *const T) -> Result<(), Failure> {
    if pointer.is_null() {
        return Err(Failure::Null { what });
    }
    if !pointer.is_aligned() {
        let (address, align) = (pointer.addr(), align_of::<T>());
        return Err(Failure::Misaligned { what, address, align });
    }
    Ok(())
}

/// A plain structure.
///
/// # Safety
/// `pointer` is NULL or misaligned, or there is a `T` of which any bits are a value.
pub(crate) unsafe fn read<T: Copy>(what: &'static str, pointer: *const T) -> Result<T, Failure> {
    check(what, pointer)?;
    // SAFETY: neither NULL nor misaligned, so that there is a `T`.
    Ok(unsafe { pointer.read() })
}

/// The largest structure that a later version could have.
const MOST: usize = 1 << 16;

/// A structure that tells its size. One that is larger than what this version knows has to be 0 from there on.
///
/// # Safety
/// `pointer` is NULL or misaligned, or there are as many bytes as the first member says, and the first member.
pub(crate) unsafe fn read_sized<T: TellsSize>(
    what: &'static str,
    pointer: *const T,
) -> Result<T, Failure> {
    // SAFETY: passed on.
    let size = unsafe { check_size(what, pointer) }?;
    let known = size_of::<T>();
    // SAFETY: there are `size` bytes, at least `known`.
    let rest = unsafe { slice::from_raw_parts(pointer.cast::<u8>().add(known), size - known) };
    if rest.iter().any(|&byte| byte != 0) {
        return Err(Failure::Unknown { what, known });
    }
    // SAFETY: there are `known` bytes, aligned, of which any are a value.
    Ok(unsafe { pointer.read() })
}

/// The size that a structure says it has, which is at least that of `T`.
///
/// # Safety
/// As [`read_sized`].
unsafe fn check_size<T: TellsSize>(
    what: &'static str,
    pointer: *const T,
) -> Result<usize, Failure> {
    check(what, pointer)?;
    // SAFETY: aligned, not NULL, and the first member is a `usize`.
    let size = unsafe { pointer.cast::<usize>().read() };
    let expected = size_of::<T>();
    if !(expected..=MOST).contains(&size) {
        return Err(Failure::Size { what, size, expected });
    }
    Ok(size)
}

/// Where one result goes, once all is well.
pub(crate) struct Out<T>(NonNull<T>);

impl<T> Out<T> {
    /// # Safety
    /// `pointer` is NULL or misaligned, or a `T` can be written there until the call ends, which writes nothing else and
    /// keeps no slices. Where it does: [`Memory::one`].
    pub(crate) unsafe fn new(what: &'static str, pointer: *mut T) -> Result<Self, Failure> {
        check(what, pointer.cast_const())?;
        NonNull::new(pointer).map(Out).ok_or(Failure::Null { what })
    }

    pub(crate) fn set(self, value: T) {
        // SAFETY: whoever made it promised that it can be written, and nothing else of the call is there: `Memory` checked
        // it, or there is nothing else.
        unsafe { self.0.write(value) }
    }
}

/// A part of memory that a call reads or writes.
#[derive(Clone, Copy)]
struct Range {
    what: &'static str,
    start: usize,
    end: usize,
    written: bool,
}

/// All memory of one call, so that nothing is written which is not written alone.
pub(crate) struct Memory<'a> {
    ranges: [Range; MOST_RANGES],
    len: usize,
    /// The output that another function writes in place of the logits, if there is one that does.
    in_place: Option<&'static str>,
    slices: PhantomData<&'a mut [u8]>,
}

/// More than any call has inputs and outputs.
const MOST_RANGES: usize = 24;

impl<'a> Memory<'a> {
    pub(crate) fn new() -> Self {
        let nothing = Range { what: "", start: 0, end: 0, written: false };
        Memory { ranges: [nothing; MOST_RANGES], len: 0, in_place: None, slices: PhantomData }
    }

    /// For functions that have another beside them which writes this output in place of the logits: the text of an overlap
    /// then says so.
    pub(crate) fn with_in_place(output: &'static str) -> Self {
        Memory { in_place: Some(output), ..Memory::new() }
    }

    /// Takes note of a range, if it may be had with those before.
    fn add<T>(
        &mut self,
        what: &'static str,
        pointer: *const c_void,
        len: u128,
        written: bool,
    ) -> Result<usize, Failure> {
        let start = pointer.addr();
        let bytes = len.saturating_mul(size_of::<T>() as u128);
        let fits = bytes <= isize::MAX as u128 && start as u128 + bytes <= usize::MAX as u128;
        let end = if fits { start + bytes as usize } else { start };
        if len > 0 {
            check(what, pointer.cast::<T>())?;
        }
        if !fits {
            return Err(Failure::Extent { what, len, size: size_of::<T>() });
        }
        if len == 0 {
            return Ok(0);
        }
        let next = Range { what, start, end, written };
        let mut before = self.ranges[..self.len].iter();
        let overlaps = |range: &&Range| range.start < end && start < range.end;
        if let Some(other) = before.find(|range| (written || range.written) && overlaps(range)) {
            let (output, input) = if written { (what, other.what) } else { (other.what, what) };
            let there_is = self.in_place == Some(output) && input == "logits";
            let in_place = there_is && start == other.start;
            return Err(Failure::Overlap { output, other: input, in_place });
        }
        assert!(self.len < MOST_RANGES, "more inputs and outputs than there are");
        self.ranges[self.len] = next;
        self.len += 1;
        Ok(len as usize)
    }

    /// Numbers that are read.
    ///
    /// # Safety
    /// `pointer` is NULL or misaligned, or there are `len` elements, which are not written while `'a` lasts.
    pub(crate) unsafe fn input<T: Plain>(
        &mut self,
        what: &'static str,
        pointer: *const c_void,
        len: u128,
    ) -> Result<&'a [T], Failure> {
        let len = self.add::<T>(what, pointer, len, false)?;
        if len == 0 {
            return Ok(&[]);
        }
        // SAFETY: `add` checked that the pointer is neither NULL nor misaligned and that the elements fit into the address
        // space, and that this call writes none of them. The caller promises the rest. Any bits are a value.
        Ok(unsafe { slice::from_raw_parts(pointer.cast(), len) })
    }

    /// Numbers that are written.
    ///
    /// # Safety
    /// `pointer` is NULL or misaligned, or there are `len` elements, which nobody else reads or writes while `'a` lasts.
    pub(crate) unsafe fn output<T: Plain>(
        &mut self,
        what: &'static str,
        pointer: *mut c_void,
        len: u128,
    ) -> Result<&'a mut [T], Failure> {
        let len = self.add::<T>(what, pointer.cast_const(), len, true)?;
        if len == 0 {
            return Ok(&mut []);
        }
        // SAFETY: as in `input`; and `add` checked that nothing else of this call is in this memory.
        Ok(unsafe { slice::from_raw_parts_mut(pointer.cast(), len) })
    }

    /// Where one result goes, once all is well.
    ///
    /// # Safety
    /// `pointer` is NULL or misaligned, or a `T` can be written there until the call ends.
    pub(crate) unsafe fn one<T>(
        &mut self,
        what: &'static str,
        pointer: *mut T,
    ) -> Result<Out<T>, Failure> {
        self.add::<T>(what, pointer.cast_const().cast(), 1, true)?;
        NonNull::new(pointer).map(Out).ok_or(Failure::Null { what })
    }

    /// As [`Memory::one`], of a structure that tells its size, which comes with it.
    ///
    /// # Safety
    /// As [`read_sized`], and a `T` can be written there until the call ends.
    pub(crate) unsafe fn one_sized<T: TellsSize>(
        &mut self,
        what: &'static str,
        pointer: *mut T,
    ) -> Result<(Out<T>, usize), Failure> {
        // SAFETY: passed on.
        let size = unsafe { check_size(what, pointer) }?;
        // SAFETY: passed on.
        Ok((unsafe { self.one(what, pointer) }?, size))
    }

    /// As [`Memory::output`], of one that may be NULL for a caller that does not want it.
    ///
    /// # Safety
    /// As [`Memory::output`].
    pub(crate) unsafe fn optional<T: Plain>(
        &mut self,
        what: &'static str,
        pointer: *mut c_void,
        len: u128,
    ) -> Result<Option<&'a mut [T]>, Failure> {
        if pointer.is_null() {
            return Ok(None);
        }
        // SAFETY: passed on.
        unsafe { self.output(what, pointer, len) }.map(Some)
    }
}

/// What an [`Arc`](std::sync::Arc) holds, for as long as it may be asked for.
///
/// # Safety
/// Nobody uses it after the last owner of the slice is gone.
pub(crate) unsafe fn outlive<T>(slice: &[T]) -> &'static [T] {
    // SAFETY: it is a valid slice; for how long is what the caller promises.
    unsafe { slice::from_raw_parts(slice.as_ptr(), slice.len()) }
}

/// A handle that [`into_handle`] made.
///
/// # Safety
/// `pointer` is NULL, or a handle that is not freed while `'a` lasts, nor changed.
pub(crate) unsafe fn handle<'a, T>(pointer: *const T) -> Option<&'a T> {
    // SAFETY: the caller promises what a reference needs.
    unsafe { pointer.as_ref() }
}

/// A handle to be changed.
///
/// # Safety
/// `pointer` is NULL, or a handle that nobody else uses while `'a` lasts.
pub(crate) unsafe fn handle_mut<'a, T>(
    what: &'static str,
    pointer: *mut T,
) -> Result<&'a mut T, Failure> {
    // SAFETY: the caller promises what a reference needs.
    unsafe { pointer.as_mut() }.ok_or(Failure::Null { what })
}

pub(crate) fn into_handle<T>(value: T) -> *mut T {
    Box::into_raw(Box::new(value))
}

/// Frees a handle, or nothing for NULL.
///
/// # Safety
/// `pointer` is NULL or a handle, which nobody uses any more.
pub(crate) unsafe fn free_handle<T>(pointer: *mut T) {
    if !pointer.is_null() {
        // SAFETY: `into_handle` made it of a box, and it is used for the last time.
        drop(unsafe { Box::from_raw(pointer) });
    }
}
