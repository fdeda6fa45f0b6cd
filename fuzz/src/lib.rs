//! What the fuzz targets check. See the README next to `Cargo.toml`.
//!
//! A target turns bytes into a case (`input`, `mask`, `case`, `question`), says it in other words
//! (`disguise`), brings it into memory in several ways (`layout`) and calls everything that there
//! is on every backend. It compares the results with the documentation (`case`, `question`,
//! `refusal`), with each other (`loss`, `softmax`, `logprobs`, `shards`, `compare`) and with the
//! oracle (`oracle`, `naive`). No two modules import each other, not by way of others either.

mod answer;
mod case;
pub mod compare;
mod disguise;
mod input;
mod layout;
pub mod logprobs;
pub mod loss;
mod mask;
pub mod misuse;
mod naive;
mod number;
mod oracle;
mod question;
mod refusal;
mod shards;
pub mod softmax;
mod threads;
