//! The virtual vector: 16 `f32` lanes on every backend, or 8 `f64` lanes.
//!
//! Kernels are written once against [`Simd`]; a backend supplies operations only and never sees a
//! row. Every backend performs the same operations on the same lanes, and each operation has one
//! correctly rounded result, so all backends with [`Simd::FUSED`] return the same bits.
#![allow(unsafe_code)]

use super::half;
use ::half::{bf16, f16};

/// Lanes of the virtual vector: one zmm, two ymm, or four 128-bit registers.
pub(crate) const LANES: usize = 16;

/// The memory of one virtual vector.
pub(crate) type Lanes = [f32; LANES];

/// A zero-sized token: holding one proves that the backend's instructions may be executed.
///
/// The contract of each operation is what makes results agree bit for bit. Unless stated otherwise
/// an operation is the IEEE 754 one, rounded to nearest even, with subnormals kept.
pub(crate) trait Simd: Simd64 + InstructionSet {
    type V: Copy;

    /// Whether [`Simd::mul_add`] and [`Simd::neg_mul_add`] round once. Kernels that need the exact
    /// product take a longer route where this is false.
    const FUSED: bool;

    fn splat(self, x: f32) -> Self::V;
    fn load(self, src: &Lanes) -> Self::V;
    fn store(self, dst: &mut Lanes, v: Self::V);

    /// Exact.
    fn load_bf16(self, src: &[bf16; LANES]) -> Self::V;

    /// Exact; NaN becomes quiet.
    fn load_f16(self, src: &[f16; LANES]) -> Self::V;

    /// Rounded to nearest even, with subnormals. All NaN become `0x7fc0`.
    ///
    /// In integers on every backend: `vcvtneps2bf16` of x86 takes subnormals for 0.
    fn store_bf16(self, dst: &mut [bf16; LANES], v: Self::V);

    /// Rounded to nearest even, with subnormals, to infinity from 65,520 on. All NaN become `0x7e00`.
    fn store_f16(self, dst: &mut [f16; LANES], v: Self::V);

    /// The numbers as the bits of lanes.
    fn load_u16(self, src: &[u16; LANES]) -> Self::V;

    /// The bits of each lane, whose upper half is 0, as [`Simd::load_u16`] leaves it: instruction sets differ on others.
    fn store_u16(self, dst: &mut [u16; LANES], v: Self::V);

    /// Lane `i` of result `j` is lane `j` of operand `i`, whatever the bits.
    #[inline(always)]
    fn transpose(self, v: [Self::V; LANES]) -> [Self::V; LANES] {
        let mut rows = [[0.0; LANES]; LANES];
        for (row, v) in rows.iter_mut().zip(v) {
            self.store(row, v);
        }
        let mut columns = v;
        for (j, column) in columns.iter_mut().enumerate() {
            let mut lanes = [0.0; LANES];
            for (lane, row) in lanes.iter_mut().zip(&rows) {
                *lane = row[j];
            }
            *column = self.load(&lanes);
        }
        columns
    }

    /// As [`Simd::store_bf16`] and [`Simd::stream`]; past the caches where `dst` is aligned to its size.
    #[inline(always)]
    fn stream_bf16(self, dst: Fenced<'_, [bf16; LANES]>, v: Self::V) {
        self.store_bf16(dst.get(), v);
    }

    /// As [`Simd::store_f16`] and [`Simd::stream`]; past the caches where `dst` is aligned to its size.
    #[inline(always)]
    fn stream_f16(self, dst: Fenced<'_, [f16; LANES]>, v: Self::V) {
        self.store_f16(dst.get(), v);
    }

    /// As [`Simd::store`], past the caches where `dst` is a whole cache line (64 bytes, aligned).
    ///
    /// Such stores are not ordered with others: [`stream::Streaming`], by way of which alone they can be
    /// used, sees to the fence.
    #[inline(always)]
    fn stream(self, dst: Fenced<'_, Lanes>, v: Self::V) {
        self.store(dst.get(), v);
    }

    /// Asks for the cache line at `at`, which may be any address, soon. A hint: nothing by default.
    #[inline(always)]
    fn prefetch<T>(self, at: *const T) {
        let _ = at;
    }

    /// Asks for the cache line at `at` to be brought closer, into the second-level cache. A hint.
    #[inline(always)]
    fn prefetch_far<T>(self, at: *const T) {
        let _ = at;
    }

    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;

    fn div(self, a: Self::V, b: Self::V) -> Self::V;

    /// `a * b + c`
    fn mul_add(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;

    /// `c - a * b`
    fn neg_mul_add(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;

    /// `if a > b { a } else { b }` per lane, so a NaN in either operand gives `b`.
    ///
    /// `max_or(new, acc)` ignores NaN in new data; `max_or(bound, x)` clamps from below and lets a
    /// NaN in `x` through. Which of two zeros of unlike sign is returned follows from the formula.
    fn max_or(self, a: Self::V, b: Self::V) -> Self::V;

    /// The bits of `v` shifted left by 23: moves a small integer into the exponent field.
    fn exponent_from_bits(self, v: Self::V) -> Self::V;

    /// `if a < b { a } else { b }` per lane, for operands that are neither NaN nor zeros of unlike
    /// sign: there, instruction sets differ.
    fn min(self, a: Self::V, b: Self::V) -> Self::V;

    /// `-|v|`: the sign bit set, also of NaN.
    fn neg_abs(self, v: Self::V) -> Self::V;

    /// The magnitude of `a` with the sign bit of `b`.
    fn copy_sign(self, a: Self::V, b: Self::V) -> Self::V;

    /// `if x is finite { y } else { x }` per lane.
    fn where_finite(self, x: Self::V, y: Self::V) -> Self::V;

    /// Lanes whose bit is set, lane 0 the lowest, and -inf in the others.
    fn keep_bits(self, v: Self::V, bits: u16) -> Self::V;

    /// `if a == 0 { 0 } else { a * b }` per lane: 0 times infinity or NaN is 0.
    fn mul_nonzero(self, a: Self::V, b: Self::V) -> Self::V;

    /// 0 in lanes whose magnitude is below that of `bound`, which is positive; NaN stays.
    fn zero_below(self, v: Self::V, bound: Self::V) -> Self::V;

    /// Bitwise `a | b | c`.
    fn or3(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;

    /// Whether any lane has any bit of `mask`.
    fn has_bits(self, v: Self::V, mask: u32) -> bool;

    /// Whether `a > b`, a bit for each lane, lane 0 the lowest. NaN is not greater than anything, nor less.
    #[inline(always)]
    fn gt_bits(self, a: Self::V, b: Self::V) -> u16 {
        let (a, b) = (self.to_lanes(a), self.to_lanes(b));
        (0..LANES).fold(0, |bits, i| bits | u16::from(a[i] > b[i]) << i)
    }

    /// As [`Simd::gt_bits`], of `a >= b`.
    #[inline(always)]
    fn ge_bits(self, a: Self::V, b: Self::V) -> u16 {
        let (a, b) = (self.to_lanes(a), self.to_lanes(b));
        (0..LANES).fold(0, |bits, i| bits | u16::from(a[i] >= b[i]) << i)
    }

    /// Sixteen sums in `f64`.
    type Wide: Copy;

    /// Sums of 0.
    fn wide_zero(self) -> Self::Wide;

    /// Adds `v`, exactly widened, lane by lane.
    fn wide_add(self, sums: Self::Wide, v: Self::V) -> Self::Wide;

    /// Every sum times `factor`.
    fn wide_scale(self, sums: Self::Wide, factor: f64) -> Self::Wide;

    /// Lane by lane.
    fn wide_plus(self, a: Self::Wide, b: Self::Wide) -> Self::Wide;

    fn wide_lanes(self, sums: Self::Wide) -> [f64; LANES];

    /// The sum of all sums, by adding the upper half to the lower until one is left.
    #[inline(always)]
    fn wide_sum(self, sums: Self::Wide) -> f64 {
        let mut lanes = self.wide_lanes(sums);
        let mut width = LANES;
        while width > 1 {
            width /= 2;
            for i in 0..width {
                lanes[i] += lanes[i + width];
            }
        }
        lanes[0]
    }

    #[inline(always)]
    fn to_lanes(self, v: Self::V) -> Lanes {
        let mut lanes = [0.0; LANES];
        self.store(&mut lanes, v);
        lanes
    }
}

/// What rows that are computed in `f32` may be stored as. A new one is an implementation of this, two
/// operations of each backend, and its entries.
pub(crate) trait Lane: Copy + Default + 'static {
    const NEG_INFINITY: Self;
    const NAN: Self;

    /// Vectors to a cache line.
    const PER_LINE: usize = 64 / size_of::<[Self; LANES]>();

    fn load<S: Simd>(s: S, src: &[Self; LANES]) -> S::V;
    fn store<S: Simd>(s: S, dst: &mut [Self; LANES], v: S::V);
    fn stream<S: Simd>(s: S, dst: Fenced<'_, [Self; LANES]>, v: S::V);

    /// Whether elements are converted as they are read and written.
    const IS_CONVERTED: bool;

    fn any(row: &[Self]) -> AnyRow<'_>;

    /// Exact.
    fn widen(self) -> f32;

    /// Rounded once.
    fn round(x: f64) -> Self;
}

macro_rules! lanes {
    ($($type:ident $any:ident $load:ident $store:ident $stream:ident, $widen:expr, $round:expr;)*) => {$(
        impl Lane for $type {
            const NEG_INFINITY: Self = $type::NEG_INFINITY;
            const NAN: Self = $type::NAN;
            const IS_CONVERTED: bool = size_of::<$type>() != size_of::<f32>();

            #[inline(always)]
            fn load<S: Simd>(s: S, src: &[Self; LANES]) -> S::V {
                s.$load(src)
            }
            #[inline(always)]
            fn store<S: Simd>(s: S, dst: &mut [Self; LANES], v: S::V) {
                s.$store(dst, v);
            }
            #[inline(always)]
            fn stream<S: Simd>(s: S, dst: Fenced<'_, [Self; LANES]>, v: S::V) {
                s.$stream(dst, v);
            }
            #[inline(always)]
            fn any(row: &[Self]) -> AnyRow<'_> {
                AnyRow::$any(row)
            }
            #[inline(always)]
            fn widen(self) -> f32 {
                $widen(self)
            }
            #[inline(always)]
            fn round(x: f64) -> Self {
                $round(x)
            }
        }
    )*};
}
lanes! {
    f32 F32 load store stream, std::convert::identity, |x| x as f32;
    bf16 Bf16 load_bf16 store_bf16 stream_bf16, half::widen_bf16, |x| half::round_bf16(half::round_to_odd(x));
    f16 F16 load_f16 store_f16 stream_f16, half::widen_f16, |x| half::round_f16(half::round_to_odd(x));
}

/// A row of any type that is computed in `f32`: what is staged needs one kernel for all of them.
#[derive(Clone, Copy)]
pub(crate) enum AnyRow<'a> {
    F32(&'a [f32]),
    Bf16(&'a [bf16]),
    F16(&'a [f16]),
}

impl<'a> AnyRow<'a> {
    #[inline(always)]
    pub(crate) fn len(&self) -> usize {
        match self {
            AnyRow::F32(row) => row.len(),
            AnyRow::Bf16(row) => row.len(),
            AnyRow::F16(row) => row.len(),
        }
    }

    /// An element, exactly widened.
    #[inline(always)]
    pub(crate) fn get(&self, i: usize) -> f32 {
        match self {
            AnyRow::F32(row) => row[i],
            AnyRow::Bf16(row) => row[i].widen(),
            AnyRow::F16(row) => row[i].widen(),
        }
    }
}

/// Lanes of the virtual vector of `f64`.
pub(crate) const LANES_64: usize = 8;

/// The memory of one virtual vector of `f64`.
pub(crate) type Lanes64 = [f64; LANES_64];

/// The operations on 8 `f64` lanes, for rows of `f64`. What [`Simd`] says about rounding and NaN holds
/// here, and whether [`Simd64::dmul_add`] and [`Simd64::dneg_mul_add`] round once is [`Simd::FUSED`].
pub(crate) trait Simd64: Copy {
    type D: Copy;

    /// Orders everything that was streamed, also by [`Simd::stream`], before all that is read or
    /// written later.
    #[inline(always)]
    fn fence(self) {}

    fn dsplat(self, x: f64) -> Self::D;
    fn dload(self, src: &Lanes64) -> Self::D;
    fn dstore(self, dst: &mut Lanes64, v: Self::D);

    /// As [`Simd64::dstore`], but past the caches where `dst` is aligned to 64 bytes and the backend
    /// can. See [`Simd::stream`].
    #[inline(always)]
    fn dstream(self, dst: Fenced<'_, Lanes64>, v: Self::D) {
        self.dstore(dst.get(), v);
    }

    fn dadd(self, a: Self::D, b: Self::D) -> Self::D;
    fn dsub(self, a: Self::D, b: Self::D) -> Self::D;
    fn dmul(self, a: Self::D, b: Self::D) -> Self::D;

    /// `a * b + c`
    fn dmul_add(self, a: Self::D, b: Self::D, c: Self::D) -> Self::D;

    /// `c - a * b`
    fn dneg_mul_add(self, a: Self::D, b: Self::D, c: Self::D) -> Self::D;

    /// `if a > b { a } else { b }` per lane, so a NaN in either operand gives `b`: see
    /// [`Simd::max_or`].
    fn dmax_or(self, a: Self::D, b: Self::D) -> Self::D;

    /// The bits of `v` shifted left by 52: moves a small integer into the exponent field.
    fn dexponent_from_bits(self, v: Self::D) -> Self::D;

    /// Bitwise `a | b`.
    fn dor(self, a: Self::D, b: Self::D) -> Self::D;

    /// Whether any lane has any bit of `mask`.
    fn dhas_bits(self, v: Self::D, mask: u64) -> bool;

    /// Whether any lane is NaN.
    fn dhas_nan(self, v: Self::D) -> bool;

    #[inline(always)]
    fn to_lanes64(self, v: Self::D) -> Lanes64 {
        let mut lanes = [0.0; LANES_64];
        self.dstore(&mut lanes, v);
        lanes
    }
}

/// The memory of a vector that a [`Streaming`] has: made by that alone, which the
/// privacy of this floor sees to.
pub(crate) struct Fenced<'a, L>(pub(super) &'a mut L);

impl<'a, L> Fenced<'a, L> {
    /// For a backend to store to.
    #[inline(always)]
    pub(super) fn get(self) -> &'a mut L {
        self.0
    }
}

/// A computation over the operations of any backend: each instruction set compiles it once.
///
/// What no one calls is compiled for none.
pub(crate) trait Op: Sized {
    type Out;

    /// Computes, with the instructions of `s`.
    ///
    /// `#[inline(always)]`, and so is everything generic that it calls: only what is inlined into the
    /// function of [`InstructionSet::entry`] has the instructions, and calls of intrinsics otherwise.
    fn on<S: Simd>(self, s: S) -> Self::Out;
}

/// A computation over the vectors of one backend: what a kernel has in a function of its own.
pub(crate) trait Local<S>: Sized {
    type Out;

    /// Computes. `#[inline(always)]`, as [`Op::on`].
    fn on(self, s: S) -> Self::Out;
}

impl<S: Simd, O: Op> Local<S> for O {
    type Out = O::Out;

    #[inline(always)]
    fn on(self, s: S) -> O::Out {
        Op::on(self, s)
    }
}

/// The one function of a backend that has its instructions.
pub(crate) trait InstructionSet: Copy {
    /// Whether this machine has the instructions.
    fn detect() -> bool;

    /// The function that computes `O`. To call it is sound where [`InstructionSet::detect`] is true.
    fn entry<O: Local<Self>>() -> unsafe fn(O) -> O::Out;

    /// Calls `op` in a function of its own with the instructions of this backend, compiled once
    /// however often it is called: for what is long, and for what is rare.
    #[inline(always)]
    fn outlined<O: Local<Self>>(self, op: O) -> O::Out {
        // SAFETY: a token is made only where its instructions were detected.
        unsafe { Self::entry::<O>()(op) }
    }
}

/// The entry of a backend and its detection, from one list of features.
macro_rules! backend_instructions {
    ($token:ty, $make:expr $(, $feature:tt)*) => {
        impl $crate::simd::vectors::InstructionSet for $token {
            fn detect() -> bool {
                true $(&& $crate::simd::vectors::is_feature_detected!($feature))*
            }

            #[inline(always)]
            fn entry<O: $crate::simd::vectors::Local<Self>>() -> unsafe fn(O) -> O::Out {
                // Never inlined: nothing of it may move out of the floating-point environment that
                // it is called in.
                $(#[target_feature(enable = $feature)])*
                #[inline(never)]
                fn run<O: $crate::simd::vectors::Local<$token>>(op: O) -> O::Out {
                    $crate::simd::vectors::Local::on(op, $make)
                }
                run::<O>
            }
        }
    };
}
pub(super) use backend_instructions;
#[cfg(target_arch = "aarch64")]
pub(super) use std::arch::is_aarch64_feature_detected as is_feature_detected;
#[cfg(target_arch = "x86_64")]
pub(super) use std::arch::is_x86_feature_detected as is_feature_detected;
