//! What users call: options and results. It checks everything that callers can get wrong.

pub(crate) mod compare;
pub(crate) mod comparison;
pub(crate) mod cross_entropy;
pub(crate) mod evaluation;
pub(crate) mod gradient;
pub(crate) mod logprobs;
#[cfg(feature = "serde")]
pub mod openai;
pub(crate) mod owned;
pub(crate) mod reduction;
pub(crate) mod sample;
pub(crate) mod sequences;
pub(crate) mod sharded;
pub(crate) mod softmax;
