//! Rows: spread over threads, and gathered from matrices whose classes come first.

pub(crate) mod panels;
pub(crate) mod parallel;
