//! From an element type and a backend to the kernel that was compiled for both.

pub(crate) mod element;
pub(crate) mod entries;
pub mod internals;
pub(crate) mod selection;
