//! Ten rows of logits of a real language model, embedded: `tests/real/README.md`.

use safetensors::{SafeTensorError, SafeTensors};

static BYTES: &[u8] = include_bytes!("../../tests/real/smollm2_gpl3_rows.safetensors");

/// Logits, targets, and what PyTorch computes from them in `f64`.
pub(crate) struct Real {
    pub(crate) rows: usize,
    pub(crate) vocab: usize,
    pub(crate) logits: Vec<f32>,
    pub(crate) targets: Vec<i64>,
    pub(crate) losses: Vec<f64>,
    pub(crate) mean_loss: f64,
    pub(crate) argmax: Vec<i64>,
}

impl Real {
    pub(crate) fn load() -> Result<Self, SafeTensorError> {
        let file = SafeTensors::deserialize(BYTES)?;
        let logits = file.tensor("logits")?;
        let f64s = |name| Ok::<_, SafeTensorError>(numbers(&file, name)?.map(f64::from_le_bytes));
        let i64s = |name| Ok::<_, SafeTensorError>(numbers(&file, name)?.map(i64::from_le_bytes));
        Ok(Real {
            rows: logits.shape()[0],
            vocab: logits.shape()[1],
            logits: numbers(&file, "logits")?.map(f32::from_le_bytes).collect(),
            targets: i64s("targets")?.collect(),
            losses: f64s("row_loss_f64")?.collect(),
            mean_loss: f64s("mean_loss_f64")?.sum(),
            argmax: i64s("argmax")?.collect(),
        })
    }
}

/// The elements of a tensor as bytes; nothing guarantees that they are aligned.
fn numbers<const N: usize>(
    file: &SafeTensors<'static>,
    name: &str,
) -> Result<impl Iterator<Item = [u8; N]>, SafeTensorError> {
    let (elements, _) = file.tensor(name)?.data().as_chunks::<N>();
    Ok(elements.iter().copied())
}
