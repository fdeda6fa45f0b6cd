//! All tests of the command, in one program: it is linked once.

mod common;
mod compare;
mod documents;
mod errors;
mod layouts;
mod logprobs;
mod numbers;
mod options;
#[path = "../../tests/common/pages.rs"]
#[allow(dead_code, unreachable_pub, reason = "shared with other packages, which use more of it")]
mod pages;
mod rows;
mod text;
