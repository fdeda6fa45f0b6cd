//! The C ABI of [`xent`]: what `include/xent.h` declares. The README of this folder says how to use it.
//!
//! Every function returns a status, and no panic crosses the border: it becomes a status too, for which panics have to unwind.
#![deny(missing_docs, unsafe_code)]
#![warn(clippy::undocumented_unsafe_blocks)]

#[cfg(not(panic = "unwind"))]
compile_error!("xent-c turns panics into a status, which takes `panic = \"unwind\"`");

mod loss;
mod options;
mod raw;
mod softmax;
mod status;
mod tokens;
mod types;
mod version;
mod views;

pub use loss::*;
pub use options::*;
pub use softmax::*;
pub use status::*;
pub use tokens::*;
pub use types::*;
pub use version::*;
