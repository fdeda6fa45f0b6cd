//! The readable definition of every operation, in plain Rust.
#![forbid(unsafe_code)]

use super::half::{round_bf16, round_f16, widen_bf16, widen_f16};
use super::vectors::{LANES, LANES_64, Lanes, Lanes64, Simd, Simd64, backend_instructions};

use half::{bf16, f16};

#[derive(Clone, Copy)]
pub(crate) struct Scalar;

#[inline(always)]
fn map2(a: Lanes, b: Lanes, f: impl Fn(f32, f32) -> f32) -> Lanes {
    std::array::from_fn(|i| f(a[i], b[i]))
}

#[inline(always)]
fn map3(a: Lanes, b: Lanes, c: Lanes, f: impl Fn(f32, f32, f32) -> f32) -> Lanes {
    std::array::from_fn(|i| f(a[i], b[i], c[i]))
}

backend_instructions!(Scalar, Scalar);

impl Simd for Scalar {
    type V = Lanes;
    // `f32::mul_add` rounds once on every target: with an instruction where the target has one,
    // with a slow library function elsewhere.
    const FUSED: bool = true;

    #[inline(never)]
    fn splat(self, x: f32) -> Lanes {
        [x; LANES]
    }
    #[inline(never)]
    fn load(self, src: &Lanes) -> Lanes {
        *src
    }
    #[inline(never)]
    fn store(self, dst: &mut Lanes, v: Lanes) {
        *dst = v;
    }
    #[inline(never)]
    fn load_bf16(self, src: &[bf16; LANES]) -> Lanes {
        src.map(widen_bf16)
    }
    #[inline(never)]
    fn load_f16(self, src: &[f16; LANES]) -> Lanes {
        src.map(widen_f16)
    }
    #[inline(never)]
    fn store_bf16(self, dst: &mut [bf16; LANES], v: Lanes) {
        *dst = v.map(round_bf16);
    }
    #[inline(never)]
    fn store_f16(self, dst: &mut [f16; LANES], v: Lanes) {
        *dst = v.map(round_f16);
    }
    #[inline(never)]
    fn load_u16(self, src: &[u16; LANES]) -> Lanes {
        src.map(|bits| f32::from_bits(bits.into()))
    }
    #[inline(never)]
    fn store_u16(self, dst: &mut [u16; LANES], v: Lanes) {
        *dst = v.map(|x| x.to_bits() as u16);
    }
    #[inline(never)]
    fn add(self, a: Lanes, b: Lanes) -> Lanes {
        map2(a, b, |a, b| a + b)
    }
    #[inline(never)]
    fn sub(self, a: Lanes, b: Lanes) -> Lanes {
        map2(a, b, |a, b| a - b)
    }
    #[inline(never)]
    fn mul(self, a: Lanes, b: Lanes) -> Lanes {
        map2(a, b, |a, b| a * b)
    }
    #[inline(never)]
    fn div(self, a: Lanes, b: Lanes) -> Lanes {
        map2(a, b, |a, b| a / b)
    }
    #[inline(never)]
    fn mul_add(self, a: Lanes, b: Lanes, c: Lanes) -> Lanes {
        map3(a, b, c, f32::mul_add)
    }
    #[inline(never)]
    fn neg_mul_add(self, a: Lanes, b: Lanes, c: Lanes) -> Lanes {
        map3(a, b, c, |a, b, c| (-a).mul_add(b, c))
    }
    #[inline(never)]
    fn max_or(self, a: Lanes, b: Lanes) -> Lanes {
        map2(a, b, |a, b| if a > b { a } else { b })
    }
    #[inline(never)]
    fn exponent_from_bits(self, v: Lanes) -> Lanes {
        v.map(|x| f32::from_bits(x.to_bits() << 23))
    }
    #[inline(never)]
    fn min(self, a: Lanes, b: Lanes) -> Lanes {
        map2(a, b, |a, b| if a < b { a } else { b })
    }
    #[inline(never)]
    fn neg_abs(self, v: Lanes) -> Lanes {
        v.map(|x| f32::from_bits(x.to_bits() | 1 << 31))
    }
    #[inline(never)]
    fn copy_sign(self, a: Lanes, b: Lanes) -> Lanes {
        map2(a, b, f32::copysign)
    }
    #[inline(never)]
    fn where_finite(self, x: Lanes, y: Lanes) -> Lanes {
        map2(x, y, |x, y| if x.is_finite() { y } else { x })
    }
    #[inline(never)]
    fn keep_bits(self, mut v: Lanes, bits: u16) -> Lanes {
        for (i, x) in v.iter_mut().enumerate() {
            *x = if bits >> i & 1 == 1 { *x } else { f32::NEG_INFINITY };
        }
        v
    }
    #[inline(never)]
    fn mul_nonzero(self, a: Lanes, b: Lanes) -> Lanes {
        map2(a, b, |a, b| if a == 0.0 { 0.0 } else { a * b })
    }
    #[inline(never)]
    fn zero_below(self, v: Lanes, bound: Lanes) -> Lanes {
        map2(v, bound, |v, bound| if v.abs() < bound { 0.0 } else { v })
    }
    #[inline(never)]
    fn or3(self, a: Lanes, b: Lanes, c: Lanes) -> Lanes {
        map3(a, b, c, |a, b, c| f32::from_bits(a.to_bits() | b.to_bits() | c.to_bits()))
    }
    #[inline(never)]
    fn has_bits(self, v: Lanes, mask: u32) -> bool {
        v.iter().any(|x| x.to_bits() & mask != 0)
    }

    type Wide = [f64; LANES];

    #[inline(never)]
    fn wide_zero(self) -> [f64; LANES] {
        [0.0; LANES]
    }
    #[inline(never)]
    fn wide_add(self, sums: [f64; LANES], v: Lanes) -> [f64; LANES] {
        std::array::from_fn(|i| sums[i] + f64::from(v[i]))
    }
    #[inline(never)]
    fn wide_scale(self, sums: [f64; LANES], factor: f64) -> [f64; LANES] {
        sums.map(|sum| sum * factor)
    }
    #[inline(never)]
    fn wide_plus(self, a: [f64; LANES], b: [f64; LANES]) -> [f64; LANES] {
        std::array::from_fn(|i| a[i] + b[i])
    }
    #[inline(never)]
    fn wide_lanes(self, sums: [f64; LANES]) -> [f64; LANES] {
        sums
    }
}

#[inline(always)]
fn dmap2(a: Lanes64, b: Lanes64, f: impl Fn(f64, f64) -> f64) -> Lanes64 {
    std::array::from_fn(|i| f(a[i], b[i]))
}

#[inline(always)]
fn dmap3(a: Lanes64, b: Lanes64, c: Lanes64, f: impl Fn(f64, f64, f64) -> f64) -> Lanes64 {
    std::array::from_fn(|i| f(a[i], b[i], c[i]))
}

impl Simd64 for Scalar {
    type D = Lanes64;

    #[inline(never)]
    fn dsplat(self, x: f64) -> Lanes64 {
        [x; LANES_64]
    }
    #[inline(never)]
    fn dload(self, src: &Lanes64) -> Lanes64 {
        *src
    }
    #[inline(never)]
    fn dstore(self, dst: &mut Lanes64, v: Lanes64) {
        *dst = v;
    }
    #[inline(never)]
    fn dadd(self, a: Lanes64, b: Lanes64) -> Lanes64 {
        dmap2(a, b, |a, b| a + b)
    }
    #[inline(never)]
    fn dsub(self, a: Lanes64, b: Lanes64) -> Lanes64 {
        dmap2(a, b, |a, b| a - b)
    }
    #[inline(never)]
    fn dmul(self, a: Lanes64, b: Lanes64) -> Lanes64 {
        dmap2(a, b, |a, b| a * b)
    }
    #[inline(never)]
    fn dmul_add(self, a: Lanes64, b: Lanes64, c: Lanes64) -> Lanes64 {
        dmap3(a, b, c, f64::mul_add)
    }
    #[inline(never)]
    fn dneg_mul_add(self, a: Lanes64, b: Lanes64, c: Lanes64) -> Lanes64 {
        dmap3(a, b, c, |a, b, c| (-a).mul_add(b, c))
    }
    #[inline(never)]
    fn dmax_or(self, a: Lanes64, b: Lanes64) -> Lanes64 {
        dmap2(a, b, |a, b| if a > b { a } else { b })
    }
    #[inline(never)]
    fn dexponent_from_bits(self, v: Lanes64) -> Lanes64 {
        v.map(|x| f64::from_bits(x.to_bits() << 52))
    }
    #[inline(never)]
    fn dor(self, a: Lanes64, b: Lanes64) -> Lanes64 {
        dmap2(a, b, |a, b| f64::from_bits(a.to_bits() | b.to_bits()))
    }
    #[inline(never)]
    fn dhas_bits(self, v: Lanes64, mask: u64) -> bool {
        v.iter().any(|x| x.to_bits() & mask != 0)
    }
    #[inline(never)]
    fn dhas_nan(self, v: Lanes64) -> bool {
        v.iter().any(|x| x.is_nan())
    }
}
