//! Versions of library and ABI; build.rs and install.sh read them here.
#![allow(unsafe_code, reason = "functions of the C ABI")]

use std::ffi::{CStr, c_char};

/// The version of the ABI, of which the shared library has its name: programs that were built for it work with every later
/// library of the same number. The header's; `xent_abi_version` is the library's.
pub const XENT_ABI_VERSION: u32 = 1;

const VERSION: &CStr =
    match CStr::from_bytes_with_nul(concat!(env!("CARGO_PKG_VERSION"), "\0").as_bytes()) {
        Ok(version) => version,
        Err(_) => panic!("a version has no NUL in it"),
    };

/// The version of the library, as "0.1.0": a text that stays valid. The header has `XENT_VERSION`.
#[unsafe(no_mangle)]
pub extern "C" fn xent_version() -> *const c_char {
    VERSION.as_ptr()
}

/// The version of the ABI of the library: `XENT_ABI_VERSION` of the header it was built with.
#[unsafe(no_mangle)]
pub extern "C" fn xent_abi_version() -> u32 {
    XENT_ABI_VERSION
}
