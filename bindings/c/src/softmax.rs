//! Softmax, log-softmax and logsumexp.
#![allow(unsafe_code, reason = "functions of the C ABI; raw.rs has what is not a call")]

use crate::options::xent_options;
use crate::raw::{self, Logit, Memory};
use crate::status::{Failure, guard, xent_status};
use crate::types::*;
use crate::views::{self, for_dtype};
use std::ffi::c_void;
use xent::Softmax;

/// Softmax of each row into `out`: contiguous rows of the type of the logits, `out_len` elements, `rows * classes`.
///
/// Of the options only backend and threads are used; those that change logits are errors. `options` and `allowed` may be NULL.
///
/// # Safety
/// Pointers are NULL or valid, as are those in what they point to.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xent_softmax(
    options: *const xent_options,
    logits: *const xent_matrix,
    allowed: *const xent_allowed,
    out: *mut c_void,
    out_len: usize,
    out_dtype: i32,
) -> xent_status {
    // SAFETY: passed on.
    unsafe { out_of_place(options, logits, allowed, (out, out_len, out_dtype), false) }
}

/// As `xent_softmax`, of the logarithms: `x - ln(sum e^x)`.
///
/// # Safety
/// As `xent_softmax`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xent_log_softmax(
    options: *const xent_options,
    logits: *const xent_matrix,
    allowed: *const xent_allowed,
    out: *mut c_void,
    out_len: usize,
    out_dtype: i32,
) -> xent_status {
    // SAFETY: passed on.
    unsafe { out_of_place(options, logits, allowed, (out, out_len, out_dtype), true) }
}

/// As `xent_softmax`, over the logits themselves, in any layout.
///
/// # Safety
/// As `xent_softmax`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xent_softmax_in_place(
    options: *const xent_options,
    logits: *const xent_matrix_mut,
    allowed: *const xent_allowed,
) -> xent_status {
    // SAFETY: passed on.
    unsafe { in_place(options, logits, allowed, false) }
}

/// As `xent_log_softmax`, over the logits themselves, in any layout.
///
/// # Safety
/// As `xent_softmax`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xent_log_softmax_in_place(
    options: *const xent_options,
    logits: *const xent_matrix_mut,
    allowed: *const xent_allowed,
) -> xent_status {
    // SAFETY: passed on.
    unsafe { in_place(options, logits, allowed, true) }
}

/// `ln(sum e^x)` of each row into `out`, `out_len` elements, one a row: `XENT_F32`, or `XENT_F64` for logits that are. `options`
/// and `allowed` may be NULL.
///
/// # Safety
/// As `xent_softmax`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xent_logsumexp(
    options: *const xent_options,
    logits: *const xent_matrix,
    allowed: *const xent_allowed,
    out: *mut c_void,
    out_len: usize,
    out_dtype: i32,
) -> xent_status {
    guard(|| {
        let mut memory = Memory::new();
        // SAFETY: the caller promises that all of this is NULL or valid.
        let (options, logits, softmax) = unsafe {
            let options = xent_options::get(options);
            let softmax = softmax("xent_logsumexp", options, &mut memory, allowed)?;
            (options, raw::read("logits", logits)?, softmax)
        };
        for_dtype!("logits", logits.dtype, T => {
            views::check_precision::<<T as xent::Element>::Real>("out", out_dtype)?;
            // SAFETY: the same.
            let (x, out) = unsafe {(
                views::matrix::<T>(&mut memory, "logits", &logits)?,
                memory.output("out", out, out_len as u128)?,
            )};
            let shape = (x.rows(), x.vocab());
            options.run(shape, 0, || softmax.logsumexp(x, out)).map_err(Failure::from)
        })
    })
}

/// # Safety
/// As [`xent_softmax`].
unsafe fn softmax<'a>(
    function: &'static str,
    options: &xent_options,
    memory: &mut Memory<'a>,
    allowed: *const xent_allowed,
) -> Result<Softmax<'a>, Failure> {
    options.refuse_transform(function, false)?;
    let mut softmax = Softmax::new();
    if let Some(backend) = options.values().backend {
        softmax = softmax.backend(backend);
    }
    if !allowed.is_null() {
        // SAFETY: passed on.
        let allowed = unsafe { views::allowed(memory, &raw::read("allowed", allowed)?) }?;
        if let Some(allowed) = allowed {
            softmax = softmax.allowed_tokens(allowed);
        }
    }
    Ok(softmax)
}

/// # Safety
/// As [`xent_softmax`].
unsafe fn out_of_place(
    options: *const xent_options,
    logits: *const xent_matrix,
    allowed: *const xent_allowed,
    (out, len, dtype): (*mut c_void, usize, i32),
    log: bool,
) -> xent_status {
    guard(|| {
        let mut memory = Memory::with_in_place("out");
        let function = if log { "xent_log_softmax" } else { "xent_softmax" };
        // SAFETY: the caller promises that all of this is NULL or valid.
        let (options, logits, softmax) = unsafe {
            let options = xent_options::get(options);
            let softmax = softmax(function, options, &mut memory, allowed)?;
            (options, raw::read("logits", logits)?, softmax)
        };
        for_dtype!("logits", logits.dtype, T => {
            if dtype != <T as Logit>::DTYPE as i32 {
                let needed = "the dtype of the logits";
                return Err(Failure::Dtype { what: "out", value: dtype, needed });
            }
            // SAFETY: the same.
            let (x, out) = unsafe {(
                views::matrix::<T>(&mut memory, "logits", &logits)?,
                memory.output("out", out, len as u128)?,
            )};
            let shape = (x.rows(), x.vocab());
            let f = || if log { softmax.log_softmax(x, out) } else { softmax.softmax(x, out) };
            options.run(shape, 0, f).map_err(Failure::from)
        })
    })
}

/// # Safety
/// As [`xent_softmax`].
unsafe fn in_place(
    options: *const xent_options,
    logits: *const xent_matrix_mut,
    allowed: *const xent_allowed,
    log: bool,
) -> xent_status {
    guard(|| {
        let mut memory = Memory::new();
        let function = if log { "xent_log_softmax_in_place" } else { "xent_softmax_in_place" };
        // SAFETY: the caller promises that all of this is NULL or valid.
        let (options, logits, softmax) = unsafe {
            let options = xent_options::get(options);
            let softmax = softmax(function, options, &mut memory, allowed)?;
            (options, raw::read("logits", logits)?, softmax)
        };
        for_dtype!("logits", logits.dtype, T => {
            // SAFETY: the same.
            let x = unsafe { views::matrix_mut::<T>(&mut memory, "logits", &logits) }?;
            let shape = (x.rows(), x.vocab());
            let f = || if log { softmax.log_softmax_in_place(x) } else { softmax.softmax_in_place(x) };
            options.run(shape, 0, f).map_err(Failure::from)
        })
    })
}
