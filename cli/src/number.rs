//! The types of numbers that a file may hold.
#![forbid(unsafe_code)]

use half::{bf16, f16};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use std::borrow::Cow;
use std::ops::Range;
use xent::Floats;

/// A type of tensors.
pub(crate) trait Stored: bytemuck::Pod + Into<f64> {
    const DTYPE: Dtype;

    /// The elements of a tensor.
    fn read(bytes: &[u8]) -> Cow<'_, [Self]>;
}

/// A type of logits.
pub(crate) trait Logit: xent::Element<Real: Number> + Stored {}

impl<T: xent::Element<Real: Number> + Stored> Logit for T {}

/// Evaluates an expression with a name for the type of logits that tensors of a `Dtype` have.
macro_rules! for_logits {
    ($dtype:expr, $T:ident => $body:expr) => {
        match $dtype {
            safetensors::Dtype::BF16 => {
                type $T = half::bf16;
                $body
            }
            safetensors::Dtype::F16 => {
                type $T = half::f16;
                $body
            }
            safetensors::Dtype::F64 => {
                type $T = f64;
                $body
            }
            _ => {
                type $T = f32;
                $body
            }
        }
    };
}
pub(crate) use for_logits;

/// A type of results, and of what goes with the logits class by class.
pub(crate) trait Number: xent::Real + Stored + serde::Serialize {
    /// Characters that hold every number of this type in its shortest form, or nearly.
    const WIDTH: usize;

    /// The types whose numbers are all numbers of this one.
    const HOLDS: &'static [Dtype];

    fn floats(values: &[Self]) -> Floats<'_>;

    /// Elements of a tensor of one of these types: where they are if they are of this one, or else
    /// a copy.
    fn widened<'r>(reals: &'r Reals<'_>, range: Range<usize>) -> Cow<'r, [Self]>;

    /// The same of all elements, which may outlive `reals`.
    fn all(reals: Reals<'_>) -> Cow<'_, [Self]>;
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
    ($($float:ident $own:ident $width:literal $holds:expr),*) => {$(
        impl Number for $float {
            const WIDTH: usize = $width;
            const HOLDS: &'static [Dtype] = $holds;
            fn floats(values: &[Self]) -> Floats<'_> {
                values.into()
            }
            fn widened<'r>(reals: &'r Reals<'_>, range: Range<usize>) -> Cow<'r, [Self]> {
                match reals {
                    Reals::$own(x) => Cow::Borrowed(&x[range]),
                    // Via `f32`, which takes less time than a cast from a half type to `f64`.
                    Reals::BF16(x) => x[range].iter().map(|x| x.to_f32() as $float).collect(),
                    Reals::F16(x) => x[range].iter().map(|x| x.to_f32() as $float).collect(),
                    #[allow(unreachable_patterns, reason = "of the two, one is its own")]
                    Reals::F32(x) => x[range].iter().map(|&x| x as $float).collect(),
                    #[allow(unreachable_patterns, reason = "of the two, one is its own")]
                    Reals::F64(x) => x[range].iter().map(|&x| x as $float).collect(),
                }
            }
            fn all(reals: Reals<'_>) -> Cow<'_, [Self]> {
                match reals {
                    Reals::$own(x) => x,
                    other => Self::widened(&other, 0..other.len()).into_owned().into(),
                }
            }
        }
    )*};
}
numbers!(
    f32 F32 14 &[Dtype::F32, Dtype::BF16, Dtype::F16],
    f64 F64 23 &[Dtype::F64, Dtype::F32, Dtype::BF16, Dtype::F16]
);

/// Real numbers in the type that the file has them in.
#[derive(Debug)]
pub(crate) enum Reals<'a> {
    F32(Cow<'a, [f32]>),
    F64(Cow<'a, [f64]>),
    BF16(Cow<'a, [bf16]>),
    F16(Cow<'a, [f16]>),
}

impl<'a> Reals<'a> {
    pub(crate) const TYPES: [Dtype; 4] = [Dtype::F32, Dtype::F64, Dtype::BF16, Dtype::F16];

    /// `None` for other types.
    pub(crate) fn new(view: &TensorView<'a>) -> Option<Self> {
        let bytes = view.data();
        Some(match view.dtype() {
            Dtype::F32 => Reals::F32(f32::read(bytes)),
            Dtype::F64 => Reals::F64(f64::read(bytes)),
            Dtype::BF16 => Reals::BF16(bf16::read(bytes)),
            Dtype::F16 => Reals::F16(f16::read(bytes)),
            _ => return None,
        })
    }

    pub(crate) fn len(&self) -> usize {
        match self {
            Reals::F32(x) => x.len(),
            Reals::F64(x) => x.len(),
            Reals::BF16(x) => x.len(),
            Reals::F16(x) => x.len(),
        }
    }

    pub(crate) fn get(&self, i: usize) -> f64 {
        match self {
            Reals::F32(x) => x[i].into(),
            Reals::F64(x) => x[i],
            Reals::BF16(x) => x[i].into(),
            Reals::F16(x) => x[i].into(),
        }
    }

    /// Where they are, if the library takes their type.
    pub(crate) fn floats(&self, range: Range<usize>) -> Option<Floats<'_>> {
        match self {
            Reals::F32(x) => Some(x[range].into()),
            Reals::F64(x) => Some(x[range].into()),
            Reals::BF16(_) | Reals::F16(_) => None,
        }
    }
}

/// Evaluates an expression for the slice of whichever type it is.
macro_rules! for_integers {
    ($integers:expr, $x:ident => $body:expr) => {
        match $integers {
            Integers::I64($x) => $body,
            Integers::I32($x) => $body,
            Integers::I16($x) => $body,
            Integers::I8($x) => $body,
            Integers::U64($x) => $body,
            Integers::U32($x) => $body,
            Integers::U16($x) => $body,
            Integers::U8($x) => $body,
        }
    };
}

/// Integers in the type that the file has them in.
#[derive(Debug)]
pub(crate) enum Integers<'a> {
    I64(Cow<'a, [i64]>),
    I32(Cow<'a, [i32]>),
    I16(Cow<'a, [i16]>),
    I8(Cow<'a, [i8]>),
    U64(Cow<'a, [u64]>),
    U32(Cow<'a, [u32]>),
    U16(Cow<'a, [u16]>),
    U8(Cow<'a, [u8]>),
}

impl<'a> Integers<'a> {
    pub(crate) const TYPES: [Dtype; 8] = [
        Dtype::I64,
        Dtype::I32,
        Dtype::I16,
        Dtype::I8,
        Dtype::U64,
        Dtype::U32,
        Dtype::U16,
        Dtype::U8,
    ];

    /// `None` for other types.
    pub(crate) fn new(view: &TensorView<'a>) -> Option<Self> {
        let bytes = view.data();
        Some(match view.dtype() {
            Dtype::I64 => Integers::I64(read(bytes, i64::from_le_bytes)),
            Dtype::I32 => Integers::I32(read(bytes, i32::from_le_bytes)),
            Dtype::I16 => Integers::I16(read(bytes, i16::from_le_bytes)),
            Dtype::I8 => Integers::I8(read(bytes, i8::from_le_bytes)),
            Dtype::U64 => Integers::U64(read(bytes, u64::from_le_bytes)),
            Dtype::U32 => Integers::U32(read(bytes, u32::from_le_bytes)),
            Dtype::U16 => Integers::U16(read(bytes, u16::from_le_bytes)),
            Dtype::U8 => Integers::U8(bytes.into()),
            _ => return None,
        })
    }

    pub(crate) fn len(&self) -> usize {
        for_integers!(self, x => x.len())
    }

    pub(crate) fn get(&self, i: usize) -> i128 {
        for_integers!(self, x => x[i].into())
    }

    /// Where they are, if the library takes their type.
    pub(crate) fn ids(&self, range: Range<usize>) -> Option<xent::Ids<'_>> {
        match self {
            Integers::I64(x) => Some(x[range].into()),
            Integers::I32(x) => Some(x[range].into()),
            Integers::U32(x) => Some(x[range].into()),
            _ => None,
        }
    }
}

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
