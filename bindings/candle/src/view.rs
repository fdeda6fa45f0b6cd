//! What candle has in memory, as `xent` takes it.

use candle_core::{CpuStorage, Error, Layout, Result, Tensor, bail};
use half::vec::HalfBitsVecExt;
use half::{bf16, f16};
use xent::{Element, Ids, LogSumExp, Logits};

/// A type of logits that both sides have.
pub(crate) trait Float: Element {
    /// A scalar, rounded once.
    fn scalar(loss: f64) -> CpuStorage;
    /// Zeros that need not be written: fresh memory of the system is zero, and its pages are first touched by the
    /// threads that write the gradient.
    fn zeros(len: usize) -> Vec<Self>;
    fn storage(values: Vec<Self>) -> CpuStorage;
}

/// A type of results.
pub(crate) trait Real: Float {
    fn save(rows: Vec<LogSumExp<Self>>) -> Saved;
    /// `None` if they are of the other type.
    fn saved(saved: &Saved) -> Option<&[LogSumExp<Self>]>;
}

/// What the backward pass needs to know about each row.
#[derive(Debug)]
pub(crate) enum Saved {
    F32(Vec<LogSumExp<f32>>),
    F64(Vec<LogSumExp<f64>>),
}

macro_rules! real {
    ($($real:ident $variant:ident),*) => {$(
        impl Float for $real {
            fn scalar(loss: f64) -> CpuStorage {
                CpuStorage::$variant(vec![loss as $real])
            }
            fn zeros(len: usize) -> Vec<Self> {
                vec![0.0; len]
            }
            fn storage(values: Vec<Self>) -> CpuStorage {
                CpuStorage::$variant(values)
            }
        }
        impl Real for $real {
            fn save(rows: Vec<LogSumExp<Self>>) -> Saved {
                Saved::$variant(rows)
            }
            fn saved(saved: &Saved) -> Option<&[LogSumExp<Self>]> {
                match saved {
                    Saved::$variant(rows) => Some(rows),
                    _ => None,
                }
            }
        }
    )*};
}
real!(f32 F32, f64 F64);

macro_rules! half {
    ($($half:ident $variant:ident),*) => {$(
        impl Float for $half {
            fn scalar(loss: f64) -> CpuStorage {
                CpuStorage::$variant(vec![$half::from_f64(loss)])
            }
            fn zeros(len: usize) -> Vec<Self> {
                // Of integers: the standard library does not know that the zeros of other types are zero bytes, and
                // would write them, on one thread.
                vec![0u16; len].reinterpret_into()
            }
            fn storage(values: Vec<Self>) -> CpuStorage {
                CpuStorage::$variant(values)
            }
        }
    )*};
}
half!(bf16 BF16, f16 F16);

/// Evaluates an expression for the slice of whichever float type the storage has.
macro_rules! for_floats {
    ($storage:expr, $x:ident => $body:expr) => {
        match $storage {
            candle_core::CpuStorage::F32($x) => $body,
            candle_core::CpuStorage::F64($x) => $body,
            candle_core::CpuStorage::BF16($x) => $body,
            candle_core::CpuStorage::F16($x) => $body,
            other => Err($crate::view::not_a_float(other)),
        }
    };
}
pub(crate) use for_floats;

pub(crate) fn not_a_float(storage: &CpuStorage) -> Error {
    use candle_core::backend::BackendStorage;
    let dtype = storage.dtype().as_str();
    Error::msg(format!("logits must be f32, f64, bf16 or f16, not {dtype}"))
}

/// Shape and strides of logits as `[batch, time, vocab]`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct View {
    shape: [usize; 3],
    strides: [usize; 3],
    start: usize,
}

impl View {
    /// Of `[rows, vocab]` or `[batch, time, vocab]`.
    pub(crate) fn new(layout: &Layout) -> Result<Self> {
        let start = layout.start_offset();
        match (layout.dims(), layout.stride()) {
            (&[rows, vocab], &[row, class]) => {
                Ok(View { shape: [1, rows, vocab], strides: [0, row, class], start })
            }
            (&[batch, time, vocab], &[b, t, class]) => {
                Ok(View { shape: [batch, time, vocab], strides: [b, t, class], start })
            }
            (dims, _) => {
                bail!("logits must be [rows, vocab] or [batch, time, vocab], not {dims:?}")
            }
        }
    }

    /// Whether `xent` can read them where they are: classes, or the rows of a batch, are next to each other.
    pub(crate) fn is_readable(&self) -> bool {
        let ([batch, time, vocab], [_, row, class]) = (self.shape, self.strides);
        batch == 0 || time == 0 || vocab <= 1 || class == 1 || class != 0 && (row == 1 || time == 1)
    }

    pub(crate) fn of<T>(self, data: &[T]) -> Result<Logits<'_, T>> {
        let data = data.get(self.start..).unwrap_or_default();
        Logits::strided(data, self.shape, self.strides).map_err(Error::wrap)
    }
}

/// The logits, copied (and the copy recorded for autograd) if their strides are none that can be read.
pub(crate) fn readable(logits: &Tensor) -> Result<Tensor> {
    if View::new(logits.layout())?.is_readable() { Ok(logits.clone()) } else { logits.contiguous() }
}

/// Hands over class ids, in their order: as they are if they are contiguous and of a type that `xent` takes.
pub(crate) fn with_ids<U>(
    storage: &CpuStorage,
    layout: &Layout,
    f: impl FnOnce(Ids<'_>) -> Result<U>,
) -> Result<U> {
    use candle_core::backend::BackendStorage;

    fn part<'a, T: Copy>(ids: &'a [T], layout: &Layout) -> std::borrow::Cow<'a, [T]> {
        match layout.contiguous_offsets().and_then(|(start, end)| ids.get(start..end)) {
            Some(ids) => ids.into(),
            None => places(layout).map(|i| ids[i]).collect::<Vec<_>>().into(),
        }
    }
    fn widened<T: Copy, U: From<T>>(ids: &[T], layout: &Layout) -> Vec<U> {
        part(ids, layout).iter().map(|&id| id.into()).collect()
    }
    match storage {
        CpuStorage::I64(ids) => f((&*part(ids, layout)).into()),
        CpuStorage::I32(ids) => f((&*part(ids, layout)).into()),
        CpuStorage::U32(ids) => f((&*part(ids, layout)).into()),
        CpuStorage::I16(ids) => f((&widened::<i16, i32>(ids, layout)).into()),
        CpuStorage::U8(ids) => f((&widened::<u8, u32>(ids, layout)).into()),
        other => {
            let dtype = other.dtype().as_str();
            bail!("targets must be u8, u32, i16, i32 or i64, not {dtype}")
        }
    }
}

/// Where in its storage each element of a tensor is, in their order.
fn places(layout: &Layout) -> impl Iterator<Item = usize> {
    (0..layout.shape().elem_count()).map(|element| {
        let (mut rest, mut place) = (element, layout.start_offset());
        for (&n, &stride) in layout.dims().iter().zip(layout.stride()).rev() {
            place += rest % n * stride;
            rest /= n;
        }
        place
    })
}
