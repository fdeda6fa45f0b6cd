//! The code of the examples, whose results are tested.

#[path = "../examples/support/bigram.rs"]
pub(crate) mod bigram;
#[path = "../examples/support/notebook.rs"]
pub(crate) mod notebook;
#[path = "../examples/support/real.rs"]
#[allow(dead_code, reason = "the example shows more of it")]
pub(crate) mod real;
