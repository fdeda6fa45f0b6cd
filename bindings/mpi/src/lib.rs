#![doc = include_str!("../README.md")]
#![deny(missing_docs, unsafe_code)]
#![warn(clippy::undocumented_unsafe_blocks)]

mod agreement;
mod error;
mod exchange;
mod vocab_parallel;

pub use error::Error;
pub use mpi;
pub use vocab_parallel::{VocabParallel, chunks, even};
pub use xent;
