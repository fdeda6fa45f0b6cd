//! Validated views of what callers own: they hold invariants, and compute nothing.

pub(crate) mod bias;
pub(crate) mod columns;
pub(crate) mod error;
pub(crate) mod floats;
pub(crate) mod logits;
pub(crate) mod masks;
pub(crate) mod number;
pub(crate) mod saved;
pub(crate) mod targets;
