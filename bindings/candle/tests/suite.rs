//! All tests, in one program: candle is linked once.

mod against_candle;
mod common;
mod errors;
#[path = "../examples/support/evaluation.rs"]
mod evaluation;
mod graph;
#[path = "../examples/support/llama.rs"]
mod llama;
mod perplexity;
