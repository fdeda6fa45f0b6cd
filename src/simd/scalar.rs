//! The readable definition of every operation, in plain Rust.
#![forbid(unsafe_code)]

use super::{LANES, Lanes, Simd};

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

impl Simd for Scalar {
    type V = Lanes;
    // `f32::mul_add` rounds once on every target: with an instruction where the target has one,
    // with a slow library function elsewhere.
    const FUSED: bool = true;

    #[inline(always)]
    fn splat(self, x: f32) -> Lanes {
        [x; LANES]
    }
    #[inline(always)]
    fn load(self, src: &Lanes) -> Lanes {
        *src
    }
    #[inline(always)]
    fn store(self, dst: &mut Lanes, v: Lanes) {
        *dst = v;
    }
    #[inline(always)]
    fn add(self, a: Lanes, b: Lanes) -> Lanes {
        map2(a, b, |a, b| a + b)
    }
    #[inline(always)]
    fn sub(self, a: Lanes, b: Lanes) -> Lanes {
        map2(a, b, |a, b| a - b)
    }
    #[inline(always)]
    fn mul(self, a: Lanes, b: Lanes) -> Lanes {
        map2(a, b, |a, b| a * b)
    }
    #[inline(always)]
    fn mul_add(self, a: Lanes, b: Lanes, c: Lanes) -> Lanes {
        map3(a, b, c, f32::mul_add)
    }
    #[inline(always)]
    fn neg_mul_add(self, a: Lanes, b: Lanes, c: Lanes) -> Lanes {
        map3(a, b, c, |a, b, c| (-a).mul_add(b, c))
    }
    #[inline(always)]
    fn max_or(self, a: Lanes, b: Lanes) -> Lanes {
        map2(a, b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    fn exponent_from_bits(self, v: Lanes) -> Lanes {
        v.map(|x| f32::from_bits(x.to_bits() << 23))
    }
    #[inline(always)]
    fn min(self, a: Lanes, b: Lanes) -> Lanes {
        map2(a, b, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    fn or3(self, a: Lanes, b: Lanes, c: Lanes) -> Lanes {
        map3(a, b, c, |a, b, c| f32::from_bits(a.to_bits() | b.to_bits() | c.to_bits()))
    }
    #[inline(always)]
    fn has_bits(self, v: Lanes, mask: u32) -> bool {
        v.iter().any(|x| x.to_bits() & mask != 0)
    }

    type Wide = [f64; LANES];

    #[inline(always)]
    fn wide_zero(self) -> [f64; LANES] {
        [0.0; LANES]
    }
    #[inline(always)]
    fn wide_add(self, sums: [f64; LANES], v: Lanes) -> [f64; LANES] {
        std::array::from_fn(|i| sums[i] + f64::from(v[i]))
    }
    #[inline(always)]
    fn wide_scale(self, sums: [f64; LANES], factor: f64) -> [f64; LANES] {
        sums.map(|sum| sum * factor)
    }
    #[inline(always)]
    fn wide_lanes(self, sums: [f64; LANES]) -> [f64; LANES] {
        sums
    }
}
