//! All tests that can share a process, in one program: it is linked once.
//!
//! `cargo test -p xent-tests NAME` selects by module and by name. A test that asks who started the
//! global thread pool, or what was allocated, is a program of its own, beside this file.

mod accuracy;
mod arithmetic;
mod bounds;
mod compare;
mod conformance;
mod digest;
mod dispatch;
mod documents;
mod double;
mod edge_cases;
mod equivalence;
mod examples;
mod exp_accuracy;
mod float_env;
mod floors;
mod golden;
mod golden_data;
mod golden_half;
mod gradient;
mod gradient_bounds;
mod half;
mod ignored;
mod layouts;
mod logprobs;
mod misuse;
mod no_panics;
mod notebook;
#[cfg(feature = "serde")]
mod openai;
mod owned;
mod random;
mod rounding;
mod sampling;
mod sequences;
mod sharded;
mod shards;
mod statistics;
mod streaming;
mod top;
mod train_bigram;
mod training;
