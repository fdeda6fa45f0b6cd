//! What the fuzz targets check. See the README next to `Cargo.toml`.
//!
//! A target turns bytes into a case (`input`, `case`), brings it into memory in several ways (`layout`), calls
//! everything that there is on every backend, and compares: with the documentation (`case`), with each other
//! (`loss`, `softmax`, `logprobs`, `shards`, `compare`) and with the oracle (`oracle`, `naive`).

mod case;
pub mod compare;
mod disguise;
mod input;
mod layout;
pub mod logprobs;
pub mod loss;
pub mod misuse;
mod naive;
mod number;
mod oracle;
mod shards;
pub mod softmax;
mod threads;
