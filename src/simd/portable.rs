//! The backend for targets without a hand-written one, on the `wide` crate.
//!
//! `wide` chooses its instructions when the crate is compiled: a default x86-64 build is SSE2
//! without fused multiply-add, whatever the CPU can do. It is the fallback, never the fast path of
//! a target that has a backend of its own.
#![forbid(unsafe_code)]

use super::half::{round_bf16, round_f16, widen_bf16, widen_f16};
use super::vectors::{LANES, LANES_64, Lanes, Lanes64, Simd, Simd64, backend_instructions};
use half::{bf16, f16};
use wide::bytemuck::cast;
use wide::{f32x16, f64x8, u32x16, u64x8};

#[derive(Clone, Copy)]
pub(crate) struct Portable;

backend_instructions!(Portable, Portable);

impl Simd for Portable {
    type V = f32x16;
    const FUSED: bool = cfg!(any(
        all(target_feature = "avx", target_feature = "fma"),
        all(target_arch = "aarch64", target_feature = "neon"),
    ));

    #[inline(always)]
    fn splat(self, x: f32) -> f32x16 {
        f32x16::splat(x)
    }
    #[inline(always)]
    fn load(self, src: &Lanes) -> f32x16 {
        f32x16::new(*src)
    }
    #[inline(always)]
    fn store(self, dst: &mut Lanes, v: f32x16) {
        *dst = v.to_array();
    }
    // Loops over plain numbers, which compilers turn into vectors; functions, as they are long.
    #[inline(never)]
    fn load_bf16(self, src: &[bf16; LANES]) -> f32x16 {
        f32x16::new(src.map(widen_bf16))
    }
    #[inline(never)]
    fn load_f16(self, src: &[f16; LANES]) -> f32x16 {
        f32x16::new(src.map(widen_f16))
    }
    #[inline(never)]
    fn store_bf16(self, dst: &mut [bf16; LANES], v: f32x16) {
        *dst = v.to_array().map(round_bf16);
    }
    #[inline(never)]
    fn store_f16(self, dst: &mut [f16; LANES], v: f32x16) {
        *dst = v.to_array().map(round_f16);
    }
    #[inline(always)]
    fn load_u16(self, src: &[u16; LANES]) -> f32x16 {
        f32x16::new(src.map(|bits| f32::from_bits(bits.into())))
    }
    #[inline(always)]
    fn store_u16(self, dst: &mut [u16; LANES], v: f32x16) {
        *dst = v.to_array().map(|x| x.to_bits() as u16);
    }
    #[inline(always)]
    fn add(self, a: f32x16, b: f32x16) -> f32x16 {
        a + b
    }
    #[inline(always)]
    fn sub(self, a: f32x16, b: f32x16) -> f32x16 {
        a - b
    }
    #[inline(always)]
    fn mul(self, a: f32x16, b: f32x16) -> f32x16 {
        a * b
    }
    #[inline(always)]
    fn div(self, a: f32x16, b: f32x16) -> f32x16 {
        a / b
    }
    #[inline(always)]
    fn mul_add(self, a: f32x16, b: f32x16, c: f32x16) -> f32x16 {
        a.mul_add(b, c)
    }
    #[inline(always)]
    fn neg_mul_add(self, a: f32x16, b: f32x16, c: f32x16) -> f32x16 {
        a.mul_neg_add(b, c)
    }
    #[inline(always)]
    fn max_or(self, a: f32x16, b: f32x16) -> f32x16 {
        // `f32x16::max` treats NaN in another way.
        a.simd_gt(b).bitselect(a, b)
    }
    #[inline(always)]
    fn exponent_from_bits(self, v: f32x16) -> f32x16 {
        cast(cast::<f32x16, u32x16>(v) << 23)
    }
    #[inline(always)]
    fn min(self, a: f32x16, b: f32x16) -> f32x16 {
        a.fast_min(b)
    }
    #[inline(always)]
    fn neg_abs(self, v: f32x16) -> f32x16 {
        v | self.splat(-0.0)
    }
    #[inline(always)]
    fn copy_sign(self, a: f32x16, b: f32x16) -> f32x16 {
        self.splat(-0.0).bitselect(b, a)
    }
    #[inline(always)]
    fn where_finite(self, x: f32x16, y: f32x16) -> f32x16 {
        self.neg_abs(x).simd_gt(self.splat(f32::NEG_INFINITY)).bitselect(y, x)
    }
    #[inline(always)]
    fn keep_bits(self, v: f32x16, bits: u16) -> f32x16 {
        let bits = u32x16::splat(bits.into()) & u32x16::new(std::array::from_fn(|i| 1 << i));
        let dropped: f32x16 = cast(bits.simd_eq(u32x16::splat(0)));
        dropped.bitselect(self.splat(f32::NEG_INFINITY), v)
    }
    #[inline(always)]
    fn mul_nonzero(self, a: f32x16, b: f32x16) -> f32x16 {
        let zero = self.splat(0.0);
        a.simd_eq(zero).bitselect(zero, a * b)
    }
    #[inline(always)]
    fn zero_below(self, v: f32x16, bound: f32x16) -> f32x16 {
        v.abs().simd_lt(bound).bitselect(self.splat(0.0), v)
    }
    #[inline(always)]
    fn or3(self, a: f32x16, b: f32x16, c: f32x16) -> f32x16 {
        a | b | c
    }
    #[inline(always)]
    fn has_bits(self, v: f32x16, mask: u32) -> bool {
        let bits: [u32; LANES] = cast(v);
        bits.iter().fold(0, |all, x| all | x) & mask != 0
    }

    // Plain arrays: `wide` has no widening conversion, and this runs once per 1,024 elements.
    type Wide = [f64; LANES];

    #[inline(always)]
    fn wide_zero(self) -> [f64; LANES] {
        [0.0; LANES]
    }
    #[inline(always)]
    fn wide_add(self, sums: [f64; LANES], v: f32x16) -> [f64; LANES] {
        let v = v.to_array();
        std::array::from_fn(|i| sums[i] + f64::from(v[i]))
    }
    #[inline(always)]
    fn wide_scale(self, sums: [f64; LANES], factor: f64) -> [f64; LANES] {
        sums.map(|sum| sum * factor)
    }
    #[inline(always)]
    fn wide_plus(self, a: [f64; LANES], b: [f64; LANES]) -> [f64; LANES] {
        std::array::from_fn(|i| a[i] + b[i])
    }
    #[inline(always)]
    fn wide_lanes(self, sums: [f64; LANES]) -> [f64; LANES] {
        sums
    }
}

impl Simd64 for Portable {
    type D = f64x8;

    #[inline(always)]
    fn dsplat(self, x: f64) -> f64x8 {
        f64x8::splat(x)
    }
    #[inline(always)]
    fn dload(self, src: &Lanes64) -> f64x8 {
        f64x8::new(*src)
    }
    #[inline(always)]
    fn dstore(self, dst: &mut Lanes64, v: f64x8) {
        *dst = v.to_array();
    }
    #[inline(always)]
    fn dadd(self, a: f64x8, b: f64x8) -> f64x8 {
        a + b
    }
    #[inline(always)]
    fn dsub(self, a: f64x8, b: f64x8) -> f64x8 {
        a - b
    }
    #[inline(always)]
    fn dmul(self, a: f64x8, b: f64x8) -> f64x8 {
        a * b
    }
    #[inline(always)]
    fn dmul_add(self, a: f64x8, b: f64x8, c: f64x8) -> f64x8 {
        a.mul_add(b, c)
    }
    #[inline(always)]
    fn dneg_mul_add(self, a: f64x8, b: f64x8, c: f64x8) -> f64x8 {
        a.mul_neg_add(b, c)
    }
    #[inline(always)]
    fn dmax_or(self, a: f64x8, b: f64x8) -> f64x8 {
        // `f64x8::max` treats NaN in another way.
        a.simd_gt(b).bitselect(a, b)
    }
    #[inline(always)]
    fn dexponent_from_bits(self, v: f64x8) -> f64x8 {
        cast(cast::<f64x8, u64x8>(v) << 52)
    }
    #[inline(always)]
    fn dor(self, a: f64x8, b: f64x8) -> f64x8 {
        a | b
    }
    #[inline(always)]
    fn dhas_bits(self, v: f64x8, mask: u64) -> bool {
        let bits: [u64; LANES_64] = cast(v);
        bits.iter().fold(0, |all, x| all | x) & mask != 0
    }
    #[inline(always)]
    fn dhas_nan(self, v: f64x8) -> bool {
        v.is_nan().any()
    }
}
