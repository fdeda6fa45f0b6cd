//! The loss as an operation of candle's graph.

use crate::view::{Float, Real, Saved, View, for_floats, with_ids};
use candle_core::op::BackpropOp;
use candle_core::{
    CpuStorage, CustomOp2, DType, Error, Layout, Result, Shape, Storage, Tensor, bail,
};
use rayon::prelude::*;
use std::hint::black_box;
use std::sync::OnceLock;
use xent::{
    CrossEntropy, Gradient, Ids, Logits, LogitsMut, OwnedCrossEntropy, Reduction, RowOutputs,
    Upstream,
};

/// Logits and targets to a loss, or to one of each row. It is applied once.
#[derive(Debug)]
pub(crate) struct Loss {
    /// Kept by the graph, so weights and masks are copies.
    options: OwnedCrossEntropy,
    per_token: bool,
    /// What the backward pass needs, if there is to be one.
    saved: Option<OnceLock<Saved>>,
}

impl Loss {
    pub(crate) fn reduced(options: &CrossEntropy<'_>, logits: &Tensor) -> Self {
        let saved = logits.track_op().then(OnceLock::new);
        Loss { options: options.into(), per_token: false, saved }
    }

    /// The reduction does not count: a sum's gradient is that of each row.
    pub(crate) fn per_token(options: &CrossEntropy<'_>, logits: &Tensor) -> Self {
        let options = options.clone().reduction(Reduction::Sum);
        Loss { per_token: true, ..Self::reduced(&options, logits) }
    }

    fn forward<T>(&self, logits: Logits<'_, T>, ids: Ids<'_>) -> Result<CpuStorage>
    where
        T: Float<Real: Real>,
    {
        let (options, rows) = (self.options.options(), logits.rows());
        let mut losses = vec![T::Real::default(); if self.per_token { rows } else { 0 }];
        let Some(keep) = &self.saved else {
            return match self.per_token {
                true => {
                    options.forward_into(logits, ids, &mut losses).map_err(Error::wrap)?;
                    Ok(T::Real::storage(losses))
                }
                false => options.forward(logits, ids).map(T::scalar).map_err(Error::wrap),
            };
        };
        let mut saved = vec![Default::default(); rows];
        let mut wanted = RowOutputs::new().saved(&mut saved);
        if self.per_token {
            wanted = wanted.losses(&mut losses);
        }
        let evaluation = options.evaluate(logits, ids, wanted).map_err(Error::wrap)?;
        // Nothing else can have set it: an operation is applied once.
        let _ = keep.set(T::Real::save(saved));
        Ok(if self.per_token { T::Real::storage(losses) } else { T::scalar(evaluation.loss()) })
    }

    fn backward<T>(
        &self,
        logits: Logits<'_, T>,
        ids: Ids<'_>,
        upstream: Upstream<'_>,
    ) -> Result<CpuStorage>
    where
        T: Float<Real: Real>,
    {
        let saved = self.saved.as_ref().and_then(OnceLock::get).and_then(T::Real::saved);
        let Some(saved) = saved else {
            bail!("nothing was saved of these logits: they were not tracked, or of another type")
        };
        let write = |to: Gradient<'_, T>| {
            let options = self.options.options();
            options.backward(logits, ids, saved, to.upstream(upstream)).map_err(Error::wrap)
        };
        Ok(gradient(logits.rows(), logits.vocab(), write)?.0)
    }
}

/// A new gradient, and what came of writing it.
fn gradient<T: Float, U>(
    rows: usize,
    vocab: usize,
    write: impl FnOnce(Gradient<'_, T>) -> Result<U>,
) -> Result<(CpuStorage, U)> {
    let mut gradient = T::zeros(rows * vocab);
    touch(&mut gradient);
    let to = LogitsMut::new(&mut gradient, rows, vocab).map_err(Error::wrap)?;
    let made = write(Gradient::new(to))?;
    Ok((T::storage(gradient), made))
}

/// Loss and gradient in one pass, outside of any graph.
pub(crate) fn loss_and_gradient<T: Float>(
    options: &CrossEntropy<'_>,
    logits: Logits<'_, T>,
    ids: Ids<'_>,
) -> Result<(CpuStorage, CpuStorage)> {
    let write = |to: Gradient<'_, T>| {
        options.forward_backward(logits, ids, to, RowOutputs::new()).map_err(Error::wrap)
    };
    let (gradient, evaluation) = gradient(logits.rows(), logits.vocab(), write)?;
    Ok((T::scalar(evaluation.loss()), gradient))
}

/// A contiguous tensor that no graph tracks.
pub(crate) fn constant(storage: CpuStorage, shape: impl Into<Shape>) -> Tensor {
    Tensor::from_storage(Storage::Cpu(storage), shape, BackpropOp::none(), false)
}

/// Bytes from which `xent` writes a gradient past the caches: `STREAM` of its `src/gradient.rs`, which is private there.
/// If the two differ, gradients between them are right, but slower to write.
const STREAM: usize = 32 << 20;

/// Bytes of a page, or of a part of one.
const PAGE: usize = 4 << 10;

/// Has the system map fresh pages, with all threads.
///
/// It clears each of them, through the caches, and stores past the caches have to wait for that where the gradient
/// itself is what touches a page first.
fn touch<T: Float>(memory: &mut [T]) {
    let page = PAGE / size_of::<T>();
    if size_of_val(memory) >= STREAM {
        memory.par_chunks_mut(256 * page).for_each(|pages| {
            // All of it will be overwritten. The compiler is not to know that this is zero already.
            pages.iter_mut().step_by(page).for_each(|x| *x = black_box(T::default()));
        });
    }
}

impl CustomOp2 for Loss {
    fn name(&self) -> &'static str {
        "xent"
    }

    fn cpu_fwd(
        &self,
        logits: &CpuStorage,
        layout: &Layout,
        targets: &CpuStorage,
        targets_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let view = View::new(layout)?;
        let storage = with_ids(
            targets,
            targets_layout,
            |ids| for_floats!(logits, x => self.forward(view.of(x)?, ids)),
        )?;
        let shape = if self.per_token { targets_layout.shape().clone() } else { ().into() };
        Ok((storage, shape))
    }

    fn bwd(
        &self,
        logits: &Tensor,
        targets: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        // A variable among the targets is enough for candle to ask.
        if !logits.track_op() {
            return Ok((None, None));
        }
        let upstream: Vec<f64> = grad.flatten_all()?.to_dtype(DType::F64)?.to_vec1()?;
        let (x, layout) = logits.storage_and_layout();
        let (ids, ids_layout) = targets.storage_and_layout();
        let (Storage::Cpu(x), Storage::Cpu(ids)) = (&*x, &*ids) else {
            return Err(crate::not_on_the_cpu());
        };
        let view = View::new(layout)?;
        let storage = with_ids(ids, ids_layout, |ids| {
            let upstream = match (self.per_token, &upstream[..]) {
                (false, &[upstream]) => upstream.into(),
                _ => Upstream::rows(&upstream),
            };
            for_floats!(x, x => self.backward(view.of(x)?, ids, upstream))
        })?;
        Ok((Some(constant(storage, logits.shape())), None))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Var};

    #[test]
    fn statistics_are_saved_for_tracked_logits_only() -> Result<()> {
        let logits = Tensor::zeros((3, 4), DType::BF16, &Device::Cpu)?;
        let variable = Var::from_tensor(&logits)?;
        let saved = |logits: &Tensor| Loss::reduced(&CrossEntropy::new(), logits).saved.is_some();
        assert!(!saved(&logits));
        assert!(!saved(&variable.detach()));
        assert!(saved(&variable));
        assert!(saved(&(variable.as_tensor() * 2.0)?));

        let loss = Loss::per_token(&CrossEntropy::new(), &variable);
        let (x, layout) = variable.storage_and_layout();
        let targets = CpuStorage::U32(vec![0, 1, 2]);
        let Storage::Cpu(x) = &*x else { panic!("it is on the CPU") };
        let (losses, shape) = loss.cpu_fwd(x, layout, &targets, &Layout::contiguous(3))?;
        assert_eq!((losses.as_slice::<f32>()?, shape.dims()), (&[4f32.ln(); 3][..], &[3][..]));
        let Some(Saved::F32(rows)) = loss.saved.as_ref().and_then(OnceLock::get) else {
            panic!("of bf16 they are in f32")
        };
        assert_eq!((rows.len(), size_of_val(&rows[..])), (3, 24));
        assert_eq!(rows[0].hi, 4f32.ln());
        Ok(())
    }
}
