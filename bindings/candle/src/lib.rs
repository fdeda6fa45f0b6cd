//! Cross-entropy for [candle](candle_core), in one read of the logits.
#![doc = include_str!("../README.md")]
#![deny(missing_docs)]
#![forbid(unsafe_code)]

mod op;
mod view;

/// Its examples are tests. The file is a link to `docs/candle.md`, so that a package of this crate has it too.
#[cfg(doctest)]
#[doc = include_str!("../candle.md")]
struct Candle;

pub use xent;

use crate::op::Loss;
use crate::view::{View, for_floats, readable, with_ids};
use candle_core::{Error, Result, Storage, Tensor, bail};
use xent::{CrossEntropy, Evaluation, LogProbs, RowOutputs, TokenLogProbs};

/// The cross-entropy loss, in the place of `candle_nn::loss::cross_entropy`.
///
/// `logits` is `[N, V]` in f32, f64, bf16 or f16, `targets` `[N]` with class ids in u8, u32, i16, i32 or i64. The
/// result is a scalar of the type of the logits:
///
/// ```text
/// -1/N sum_i ln(e^x[i, t[i]] / sum_j e^x[i, j])
/// ```
///
/// It is differentiable once. Where logits are tracked, 8 bytes a row are saved for the backward pass (16 for f64),
/// which reads logits and targets again, and writes the gradient once; else nothing is. Logits of which neither classes
/// nor rows are next to each other are copied, and the graph keeps the copy.
///
/// # Values that change before the backward pass
/// The backward pass reads logits and targets as they are then, next to the logsumexp of the forward pass. So neither may
/// be overwritten in between ([`Var::set`](candle_core::Var::set), or the step of an optimizer before a second backward
/// pass, where the logits themselves are a variable or a view of one): the gradient would be that of neither. Logits that
/// a layer has computed are nobody's to overwrite.
///
/// # Special values
/// As [`CrossEntropy`] has them:
/// - -inf is a mask; a row with a NaN or +inf, or with nothing but -inf, makes the loss NaN, and its row of the
///   gradient, unless that is multiplied by 0; other rows of the gradient are what they are.
/// - A target of -100 is ignored, as in PyTorch: it does not count in N, and its row of the gradient is 0. For candle it
///   is an error.
/// - The largest number of the type of the targets (255 in u8, 4294967295 in u32) is padding for candle's `gather`: loss
///   0, but counted in N. Here it is a class like any other, so an error unless the vocabulary has it. To leave rows out,
///   see [`CrossEntropy::ignore_index`].
/// - Without rows the loss is NaN.
///
/// # Errors
/// If logits are not of rank 2 or targets are not `[N]`, for a target out of range, other types, and tensors that are
/// not on the CPU.
///
/// ```
/// use candle_core::{Device, Result, Tensor, Var};
/// # fn main() -> Result<()> {
/// let logits = Var::new(&[[1.0_f32, 2.0, 3.0], [0.5, -1.0, 2.0]], &Device::Cpu)?;
/// let targets = Tensor::new(&[0u32, 1], &Device::Cpu)?;
///
/// let loss = xent_candle::cross_entropy(&logits, &targets)?;
/// assert_eq!(loss.to_scalar::<f32>()?, 2.8244586);
/// let gradients = loss.backward()?;
/// assert_eq!(gradients.get(&logits).unwrap().dims(), [2, 3]);
/// # Ok(())
/// # }
/// ```
pub fn cross_entropy(logits: &Tensor, targets: &Tensor) -> Result<Tensor> {
    let dims = logits.dims();
    if dims.len() != 2 {
        bail!("cross_entropy expects logits [rows, vocab], not {dims:?}")
    }
    cross_entropy_with(&CrossEntropy::new(), logits, targets)
}

/// The cross-entropy loss with options: `ignore_index`, label smoothing, reduction, z-loss,
/// softcap, temperature, class weights, token weights and masks. Logits are differentiable through
/// all of them. Otherwise as [`cross_entropy`].
///
/// `logits` may also be `[batch, time, vocab]`, with targets `[batch, time]`. To predict the next token, shift the targets
/// and put -100 at their end, as below: these logits are read where they are, and their gradient is theirs. The forward
/// pass reads a `narrow` of the positions where it is, too, but candle's backward pass of `narrow` then pads the gradient
/// with zeros, which is a copy.
///
/// The options are borrowed for this call only: the graph has a copy of weights and masks, which
/// are constants for it. Class weights are in the precision of the results, f64 for f64 logits and
/// f32 for all others, whatever tensor they come from. For weights that have a gradient of their
/// own, multiply [`token_losses`] by them.
///
/// # Errors
/// As [`cross_entropy`], and those of [`CrossEntropy::forward`] for options.
///
/// ```
/// use candle_core::{Device, Result, Tensor};
/// use xent_candle::xent::CrossEntropy;
/// # fn main() -> Result<()> {
/// // Two sequences of three positions: of each the last has no next token.
/// let logits = Tensor::randn(0f32, 1., (2, 3, 5), &Device::Cpu)?;
/// let tokens = Tensor::new(&[[1i64, 4, 2], [3, 0, 0]], &Device::Cpu)?;
/// let none = Tensor::full(-100i64, (2, 1), &Device::Cpu)?;
/// let targets = Tensor::cat(&[&tokens.narrow(1, 1, 2)?, &none], 1)?;
///
/// let weights = Tensor::new(&[1.0f32, 2.0, 0.5, 1.0, 1.0], &Device::Cpu)?.to_vec1::<f32>()?;
/// let options = CrossEntropy::new().label_smoothing(0.1).z_loss(1e-4).class_weights(&weights);
/// let loss = xent_candle::cross_entropy_with(&options, &logits, &targets)?;
/// assert!(loss.to_scalar::<f32>()? > 0.0);
/// # Ok(())
/// # }
/// ```
pub fn cross_entropy_with(
    options: &CrossEntropy<'_>,
    logits: &Tensor,
    targets: &Tensor,
) -> Result<Tensor> {
    check(logits, targets)?;
    let logits = readable(logits)?;
    logits.apply_op2(targets, Loss::reduced(options, &logits))
}

/// The loss of each token, with the shape of `targets`: what [`cross_entropy_with`] reduces. The reduction of the
/// options does not count. 0 for ignored tokens.
///
/// In f64 for f64 logits and in f32 for all others: bf16 would leave two or three digits of them.
/// Differentiable: each row's gradient is multiplied by what comes back for its loss. Where that is
/// 0 the gradient is 0, also of a row with a NaN: losses that `where_cond` does not select, or that
/// are multiplied by 0, have no part in a step.
///
/// So this is also the way to a loss in f32 of bf16 and f16 logits (`mean_all`, or `sum_all` over the count where tokens
/// are ignored), which can be scaled without overflow, and to weights that are tensors.
///
/// # Errors
/// As [`cross_entropy_with`].
///
/// ```
/// use candle_core::{Device, Result, Tensor};
/// use xent_candle::xent::CrossEntropy;
/// # fn main() -> Result<()> {
/// let logits = Tensor::new(&[[1.0_f32, 2.0, 3.0], [0.5, -1.0, 2.0]], &Device::Cpu)?;
/// let targets = Tensor::new(&[0i64, -100], &Device::Cpu)?;
/// let losses = xent_candle::token_losses(&CrossEntropy::new(), &logits, &targets)?;
/// assert_eq!(losses.to_vec1::<f32>()?, [2.407606, 0.0]);
/// # Ok(())
/// # }
/// ```
pub fn token_losses(
    options: &CrossEntropy<'_>,
    logits: &Tensor,
    targets: &Tensor,
) -> Result<Tensor> {
    check(logits, targets)?;
    let logits = readable(logits)?;
    logits.apply_op2(targets, Loss::per_token(options, &logits))
}

/// The log-probability of each target, with the shape of `targets`: what policy gradients, DPO and distillation take
/// from `log_softmax` and `gather`. Differentiable, in the types of [`token_losses`]; 0 where the target is -100.
///
/// # Errors
/// As [`cross_entropy_with`].
///
/// ```
/// use candle_core::{Device, Result, Tensor};
/// # fn main() -> Result<()> {
/// let logits = Tensor::new(&[[1.0_f32, 2.0, 3.0], [0.5, -1.0, 2.0]], &Device::Cpu)?;
/// let targets = Tensor::new(&[2u32, 1], &Device::Cpu)?;
/// let logprobs = xent_candle::logprobs(&logits, &targets)?;
/// assert_eq!(logprobs.to_vec1::<f32>()?, [-0.40760598, -3.2413113]);
/// # Ok(())
/// # }
/// ```
pub fn logprobs(logits: &Tensor, targets: &Tensor) -> Result<Tensor> {
    // Not `neg`: the 0 of an ignored token should have no sign.
    token_losses(&CrossEntropy::new(), logits, targets)?.affine(-1., 0.)
}

/// Loss, perplexity with its standard error, bits, and accuracy, in f64, from one read of the logits. Those of several
/// batches become one with [`Evaluation::merge`]. Not differentiable.
///
/// # Errors
/// As [`cross_entropy_with`].
///
/// ```
/// use candle_core::{Device, Result, Tensor};
/// use xent_candle::xent::CrossEntropy;
/// # fn main() -> Result<()> {
/// let logits = Tensor::new(&[[2.0_f32, 0.0, 0.0], [0.0, 3.0, 0.0]], &Device::Cpu)?;
/// let targets = Tensor::new(&[0u32, 2], &Device::Cpu)?;
/// let evaluation = xent_candle::evaluate(&CrossEntropy::new(), &logits, &targets)?;
/// assert_eq!((evaluation.count(), evaluation.correct()), (2, Some(1)));
/// println!("perplexity {:.2} +/- {:.2}", evaluation.perplexity(), evaluation.perplexity_stderr());
/// # Ok(())
/// # }
/// ```
pub fn evaluate(
    options: &CrossEntropy<'_>,
    logits: &Tensor,
    targets: &Tensor,
) -> Result<Evaluation> {
    check(logits, targets)?;
    let logits = readable(logits)?;
    let (x, layout) = logits.storage_and_layout();
    let (ids, ids_layout) = targets.storage_and_layout();
    let (Storage::Cpu(x), Storage::Cpu(ids)) = (&*x, &*ids) else {
        return Err(not_on_the_cpu());
    };
    let view = View::new(layout)?;
    with_ids(ids, ids_layout, |ids| {
        for_floats!(x, x => options
            .evaluate(view.of(x)?, ids, RowOutputs::new().count_correct())
            .map_err(Error::wrap))
    })
}

/// Loss and gradient in one pass, outside of candle's graph, for who continues the backward pass by hand.
///
/// The loss is that of [`cross_entropy_with`], and the gradient `d loss / d logits`, of the shape and type of the logits,
/// contiguous. Both are constants of the graph, whatever the logits are. candle's `backward` makes a matrix of zeros for
/// each gradient and adds it to them; here nothing but the gradient is written. The options are borrowed for this call
/// only, so that weights and masks may be those of a batch.
///
/// What comes before the logits gets its gradients from the product of an output and its gradient, a constant:
///
/// ```
/// use candle_core::{Device, Result, Tensor, Var};
/// use xent_candle::xent::CrossEntropy;
/// # fn main() -> Result<()> {
/// let below = Var::randn(0f32, 1., (4, 8), &Device::Cpu)?; // in the place of a model
/// let head = Tensor::randn(0f32, 1., (5, 8), &Device::Cpu)?; // [vocab, width]
/// let targets = Tensor::new(&[1u32, 4, 2, 0], &Device::Cpu)?;
///
/// let states = below.tanh()?;
/// let logits = states.detach().matmul(&head.t()?)?;
/// let (loss, gradient) = xent_candle::loss_and_gradient(&CrossEntropy::new(), &logits, &targets)?;
/// assert!(loss.to_scalar::<f32>()? > 0.0);
///
/// let of_head = gradient.t()?.matmul(&states.detach())?; // [vocab, width], for the optimizer
/// let of_states = gradient.matmul(&head)?;
/// let gradients = (states * of_states)?.sum_all()?.backward()?; // the rest is candle's
/// assert_eq!(of_head.dims(), head.dims());
/// assert!(gradients.get(&below).is_some());
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// As [`cross_entropy_with`].
pub fn loss_and_gradient(
    options: &CrossEntropy<'_>,
    logits: &Tensor,
    targets: &Tensor,
) -> Result<(Tensor, Tensor)> {
    check(logits, targets)?;
    let logits = readable(&logits.detach())?;
    let (x, layout) = logits.storage_and_layout();
    let (ids, ids_layout) = targets.storage_and_layout();
    let (Storage::Cpu(x), Storage::Cpu(ids)) = (&*x, &*ids) else {
        return Err(not_on_the_cpu());
    };
    let view = View::new(layout)?;
    let (loss, gradient) = with_ids(
        ids,
        ids_layout,
        |ids| for_floats!(x, x => op::loss_and_gradient(options, view.of(x)?, ids)),
    )?;
    Ok((op::constant(loss, ()), op::constant(gradient, logits.shape())))
}

/// What an inference engine asks about rows of logits: log-probabilities of tokens and of the most probable ones, ranks,
/// entropy, a sample. Not differentiable. `logits` is `[rows, vocab]` or `[batch, time, vocab]`, and what is per row in
/// the request and in the result is in the order of the rows.
///
/// `R` is f32, for logits in f32, bf16 and f16, or f64 for those in f64.
///
/// # Errors
/// Those of [`LogProbs::collect`], for other types, and for tensors that are not on the CPU.
///
/// ```
/// use candle_core::{Device, Result, Tensor};
/// use xent_candle::xent::LogProbs;
/// # fn main() -> Result<()> {
/// let logits = Tensor::new(&[[1.0_f32, 3.0, 2.0, 0.0]], &Device::Cpu)?;
/// let request = LogProbs::new().targets(&[2u32]).top_k(2).ranks(true).entropy(true);
/// let found = xent_candle::token_logprobs::<f32>(&request, &logits)?;
/// assert_eq!((found.logprobs[0], found.ranks[0]), (-1.4401897, 2));
/// assert_eq!(found.top(0).collect::<Vec<_>>(), [(1, -0.4401897), (2, -1.4401897)]);
/// # Ok(())
/// # }
/// ```
pub fn token_logprobs<R: Results>(
    request: &LogProbs<'_>,
    logits: &Tensor,
) -> Result<TokenLogProbs<R>> {
    check_device(logits)?;
    R::collect(request, &readable(logits)?)
}

/// A type of results: f32 or f64. Sealed.
pub trait Results: sealed::Results {}
impl Results for f32 {}
impl Results for f64 {}

mod sealed {
    use super::*;

    pub trait Results: Sized {
        #[doc(hidden)]
        fn collect(request: &LogProbs<'_>, logits: &Tensor) -> Result<TokenLogProbs<Self>>;
    }

    macro_rules! results {
        ($($real:ident: $($variant:ident)*);*) => {$(
            impl Results for $real {
                fn collect(request: &LogProbs<'_>, logits: &Tensor) -> Result<TokenLogProbs<Self>> {
                    let (x, layout) = logits.storage_and_layout();
                    let view = View::new(layout)?;
                    match &*x {
                        $(Storage::Cpu(candle_core::CpuStorage::$variant(x)) => {
                            request.collect(view.of(x)?).map_err(Error::wrap)
                        })*
                        _ => bail!(
                            "logits are {}: results in {} are of those in{}",
                            logits.dtype().as_str(),
                            stringify!($real),
                            concat!($(" ", stringify!($variant)),*),
                        ),
                    }
                }
            }
        )*};
    }
    results!(f32: F32 BF16 F16; f64: F64);
}

/// That there is a target for each row, on the same device, which is the CPU.
fn check(logits: &Tensor, targets: &Tensor) -> Result<()> {
    check_device(logits)?;
    check_device(targets)?;
    View::new(logits.layout())?;
    let (rows, given) = (&logits.dims()[..logits.rank() - 1], targets.dims());
    if rows != given {
        bail!(
            "targets {given:?} do not go with logits {:?}: one for each of {rows:?}",
            logits.dims()
        )
    }
    Ok(())
}

fn check_device(tensor: &Tensor) -> Result<()> {
    if tensor.device().is_cpu() { Ok(()) } else { Err(not_on_the_cpu()) }
}

fn not_on_the_cpu() -> Error {
    Error::msg("xent is for CPUs: logits and targets must be there")
}
