//! The types of numbers that a file may hold.
#![forbid(unsafe_code)]

use half::{bf16, f16};
use safetensors::Dtype;
use std::borrow::Cow;
use xent::Floats;

/// A type of tensors.
pub(crate) trait Stored: bytemuck::Pod {
    const DTYPE: Dtype;

    /// The elements of a tensor.
    fn read(bytes: &[u8]) -> Cow<'_, [Self]>;
}

/// A type of logits.
pub(crate) trait Logit: xent::Element<Real: Number> + Stored {}

impl<T: xent::Element<Real: Number> + Stored> Logit for T {}

/// A type of results, and of what goes with the logits class by class.
pub(crate) trait Number: xent::Real + Stored + serde::Serialize {
    /// Characters that hold every number of this type in its shortest form, or nearly.
    const WIDTH: usize;

    fn floats(values: &[Self]) -> Floats<'_>;
}

macro_rules! stored {
    ($($float:ident $dtype:ident),*) => {$(
        impl Stored for $float {
            const DTYPE: Dtype = Dtype::$dtype;
            fn read(bytes: &[u8]) -> Cow<'_, [Self]> {
                read(bytes, $float::from_le_bytes)
            }
        }
    )*};
}
stored!(f32 F32, f64 F64, bf16 BF16, f16 F16);

macro_rules! numbers {
    ($($float:ident $width:literal),*) => {$(
        impl Number for $float {
            const WIDTH: usize = $width;
            fn floats(values: &[Self]) -> Floats<'_> {
                values.into()
            }
        }
    )*};
}
numbers!(f32 14, f64 23);

/// The elements of a tensor, where they are if possible.
///
/// Nothing makes a writer align its tensors, although most do: elements that start at an odd address
/// are copied. So are all elements on a big-endian machine, since those of the file are not.
pub(crate) fn read<T: bytemuck::AnyBitPattern, const N: usize>(
    bytes: &[u8],
    from_le: fn([u8; N]) -> T,
) -> Cow<'_, [T]> {
    match bytemuck::try_cast_slice(bytes) {
        Ok(numbers) if cfg!(target_endian = "little") => Cow::Borrowed(numbers),
        _ => Cow::Owned(bytes.as_chunks().0.iter().map(|&element| from_le(element)).collect()),
    }
}
