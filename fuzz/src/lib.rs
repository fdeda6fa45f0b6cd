//! What the fuzz targets check. See the README next to `Cargo.toml`.
//!
//! A target turns bytes into a case (`input`, `case`), brings it into memory in several ways (`layout`), calls
//! everything that there is on every backend, and compares: with the documentation (`case`), with each other
//! (`loss`, `softmax`) and with the oracle (`oracle`).

mod case;
mod disguise;
mod input;
mod layout;
pub mod loss;
pub mod misuse;
mod number;
mod oracle;
pub mod softmax;
mod threads;
