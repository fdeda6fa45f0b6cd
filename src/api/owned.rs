//! Options that own what they otherwise borrow.
#![forbid(unsafe_code)]

use crate::api::cross_entropy::CrossEntropy;
use crate::data::floats::Floats;
use crate::data::masks::AllowedTokens;
use crate::data::targets::Ignored;

/// A [`CrossEntropy`] with copies of its ignored ids, class weights, token weights and masks: for
/// what outlives the place that these come from, as the graph of an autograd library does, or
/// another thread.
///
/// ```
/// use xent::{CrossEntropy, Logits, OwnedCrossEntropy};
///
/// let owned = {
///     let weights: Vec<f32> = vec![1.0, 3.0]; // known at run time
///     OwnedCrossEntropy::from(&CrossEntropy::new().class_weights(&weights))
/// };
/// let logits = Logits::new(&[0.0_f32; 4], 2, 2)?;
/// assert_eq!(owned.options().forward(logits, &[0i64, 1])?, 2f64.ln());
/// # Ok::<(), xent::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct OwnedCrossEntropy {
    /// With nothing borrowed.
    rest: CrossEntropy<'static>,
    ignored: Vec<i64>,
    class_weights: Option<OwnedFloats>,
    token_weights: Option<OwnedFloats>,
    /// The words of masks, and how they are laid out.
    allowed_tokens: Option<(Vec<u32>, AllowedTokens<'static>)>,
}

impl OwnedCrossEntropy {
    /// The options, borrowed from here. Nothing is copied for it.
    pub fn options(&self) -> CrossEntropy<'_> {
        let allowed = self.allowed_tokens.as_ref();
        self.rest.with_copies(
            Ignored::all(&self.ignored),
            self.class_weights.as_ref().map(OwnedFloats::borrow),
            self.token_weights.as_ref().map(OwnedFloats::borrow),
            allowed.map(|(words, layout)| layout.over(words)),
        )
    }
}

impl From<&CrossEntropy<'_>> for OwnedCrossEntropy {
    fn from(options: &CrossEntropy<'_>) -> Self {
        let masks = |masks: AllowedTokens<'_>| (masks.words().to_vec(), masks.over(&[]));
        OwnedCrossEntropy {
            rest: options.with_copies(Ignored::NONE, None, None, None),
            ignored: options.ignored.ids().collect(),
            class_weights: options.class_weights.map(OwnedFloats::from),
            token_weights: options.token_weights.map(OwnedFloats::from),
            allowed_tokens: options.allowed().map(masks),
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
enum OwnedFloats {
    F32(Vec<f32>),
    F64(Vec<f64>),
}

impl OwnedFloats {
    fn borrow(&self) -> Floats<'_> {
        match self {
            OwnedFloats::F32(values) => values.into(),
            OwnedFloats::F64(values) => values.into(),
        }
    }
}

impl From<Floats<'_>> for OwnedFloats {
    fn from(values: Floats<'_>) -> Self {
        match values {
            Floats::F32(values) => OwnedFloats::F32(values.to_vec()),
            Floats::F64(values) => OwnedFloats::F64(values.to_vec()),
        }
    }
}
