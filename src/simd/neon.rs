//! NEON (Advanced SIMD of AArch64): the virtual vector is four 128-bit registers.
//!
//! Every `unsafe` block of this file calls intrinsics of NEON, asks for a cache line, or moves one
//! vector between registers and a reference to an array.
//! SAFETY of all of them: a [`Neon`] exists only where [`Neon::new`] was called, whose caller promises
//! that feature (`prfm`, of the prefetch, is part of AArch64, never faults, and changes neither memory
//! nor flags); loads and stores go through references to arrays of the right length.
#![allow(unsafe_code, clippy::undocumented_unsafe_blocks)]

use super::vectors::{LANES, Lanes, Lanes64, Simd, Simd64, backend_instructions};
use half::{bf16, f16};
use std::arch::aarch64::*;
use std::arch::asm;

#[derive(Clone, Copy)]
pub(crate) struct Neon(());

impl Neon {
    /// # Safety
    /// The CPU has NEON.
    #[inline(always)]
    pub(crate) unsafe fn new() -> Self {
        Neon(())
    }
}

type Quad = [float32x4_t; 4];
type Wide = [float64x2_t; 8];
type QuadD = [float64x2_t; 4];

/// Applies an intrinsic to the corresponding quarters of its arguments.
macro_rules! quarters {
    ($intrinsic:ident $(::<$n:literal>)?, $($arg:ident),+) => {
        unsafe {
            [
                $intrinsic $(::<$n>)? ($($arg[0]),+),
                $intrinsic $(::<$n>)? ($($arg[1]),+),
                $intrinsic $(::<$n>)? ($($arg[2]),+),
                $intrinsic $(::<$n>)? ($($arg[3]),+),
            ]
        }
    };
}

// Assembly, as the intrinsics on `f16` are not stable. Rounding changes the flags of FPSR.

/// # Safety
/// As the operations of [`Neon`].
#[inline(always)]
unsafe fn widen_f16(bits: uint16x4_t) -> float32x4_t {
    let wide;
    unsafe {
        asm!("fcvtl {:v}.4s, {:v}.4h", out(vreg) wide, in(vreg) bits, options(pure, nomem, nostack));
    }
    wide
}

/// # Safety
/// As the operations of [`Neon`].
#[inline(always)]
unsafe fn round_f16(v: float32x4_t) -> uint16x4_t {
    let rounded;
    unsafe {
        asm!("fcvtn {:v}.4h, {:v}.4s", out(vreg) rounded, in(vreg) v, options(pure, nomem, nostack));
    }
    rounded
}

/// # Safety
/// There are 16 elements at `at`, and as the operations of [`Neon`].
#[inline(always)]
unsafe fn load_u16(at: *const u16) -> [uint16x4_t; 4] {
    unsafe { [vld1_u16(at), vld1_u16(at.add(4)), vld1_u16(at.add(8)), vld1_u16(at.add(12))] }
}

/// # Safety
/// There is room for 16 elements at `at`, and as the operations of [`Neon`].
#[inline(always)]
unsafe fn store_u16(at: *mut u16, v: [uint16x4_t; 4]) {
    unsafe {
        vst1_u16(at, v[0]);
        vst1_u16(at.add(4), v[1]);
        vst1_u16(at.add(8), v[2]);
        vst1_u16(at.add(12), v[3]);
    }
}

/// # Safety
/// As the operations of [`Neon`].
#[inline(always)]
unsafe fn transpose_4x4(v: Quad) -> Quad {
    let pairs = unsafe {
        [
            vtrn1q_f32(v[0], v[1]),
            vtrn2q_f32(v[0], v[1]),
            vtrn1q_f32(v[2], v[3]),
            vtrn2q_f32(v[2], v[3]),
        ]
    };
    let pairs = quarters!(vreinterpretq_f64_f32, pairs);
    let out = unsafe {
        [
            vtrn1q_f64(pairs[0], pairs[2]),
            vtrn1q_f64(pairs[1], pairs[3]),
            vtrn2q_f64(pairs[0], pairs[2]),
            vtrn2q_f64(pairs[1], pairs[3]),
        ]
    };
    quarters!(vreinterpretq_f32_f64, out)
}

/// A bit of each lane, all of whose bits are alike.
///
/// # Safety
/// As for every operation of this file: whoever has a [`Neon`] may call it.
#[inline(always)]
unsafe fn lane_bits(lanes: [uint32x4_t; 4]) -> u16 {
    const BITS: [u16; 8] = [1, 2, 4, 8, 16, 32, 64, 128];
    unsafe {
        let bits = vld1q_u16(BITS.as_ptr());
        let half = |a, b| vandq_u16(vcombine_u16(vmovn_u32(a), vmovn_u32(b)), bits);
        vaddvq_u16(half(lanes[0], lanes[1])) | vaddvq_u16(half(lanes[2], lanes[3])) << 8
    }
}

backend_instructions!(Neon, unsafe { Neon::new() }, "neon");

impl Simd for Neon {
    type V = Quad;
    const FUSED: bool = true;

    #[inline(always)]
    fn splat(self, x: f32) -> Quad {
        unsafe { [vdupq_n_f32(x); 4] }
    }
    #[inline(always)]
    fn load(self, src: &Lanes) -> Quad {
        let at = src.as_ptr();
        unsafe {
            [vld1q_f32(at), vld1q_f32(at.add(4)), vld1q_f32(at.add(8)), vld1q_f32(at.add(12))]
        }
    }
    #[inline(always)]
    fn store(self, dst: &mut Lanes, v: Quad) {
        let at = dst.as_mut_ptr();
        unsafe {
            vst1q_f32(at, v[0]);
            vst1q_f32(at.add(4), v[1]);
            vst1q_f32(at.add(8), v[2]);
            vst1q_f32(at.add(12), v[3]);
        }
    }
    #[inline(always)]
    fn load_bf16(self, src: &[bf16; LANES]) -> Quad {
        let bits = unsafe { load_u16(src.as_ptr().cast()) };
        let bits = quarters!(vshll_n_u16::<16>, bits);
        quarters!(vreinterpretq_f32_u32, bits)
    }
    #[inline(always)]
    fn load_f16(self, src: &[f16; LANES]) -> Quad {
        let bits = unsafe { load_u16(src.as_ptr().cast()) };
        quarters!(widen_f16, bits)
    }
    #[inline(always)]
    fn store_bf16(self, dst: &mut [bf16; LANES], v: Quad) {
        let bits = quarters!(vreinterpretq_u32_f32, v);
        let (one, less_than_half) = unsafe { ([vdupq_n_u32(1); 4], [vdupq_n_u32(0x7fff); 4]) };
        let even = quarters!(vshrq_n_u32::<16>, bits);
        let even = quarters!(vandq_u32, even, one);
        let half_a_unit = quarters!(vaddq_u32, even, less_than_half);
        let rounded = quarters!(vaddq_u32, bits, half_a_unit);
        let is_number = quarters!(vceqq_f32, v, v);
        let nan = unsafe { [vdupq_n_u32(0x7fc0_0000); 4] };
        let rounded = quarters!(vbslq_u32, is_number, rounded, nan);
        let upper = quarters!(vshrn_n_u32::<16>, rounded);
        unsafe { store_u16(dst.as_mut_ptr().cast(), upper) }
    }
    #[inline(always)]
    fn store_f16(self, dst: &mut [f16; LANES], v: Quad) {
        let (is_number, nan) = (quarters!(vceqq_f32, v, v), self.splat(f32::NAN));
        let v = quarters!(vbslq_f32, is_number, v, nan);
        let rounded = quarters!(round_f16, v);
        unsafe { store_u16(dst.as_mut_ptr().cast(), rounded) }
    }
    #[inline(always)]
    fn prefetch<T>(self, at: *const T) {
        // Assembly, as the intrinsic is not stable.
        unsafe {
            asm!("prfm pldl1keep, [{}]", in(reg) at, options(nomem, nostack, preserves_flags));
        }
    }
    #[inline(always)]
    fn prefetch_far<T>(self, at: *const T) {
        unsafe {
            asm!("prfm pldl2keep, [{}]", in(reg) at, options(nomem, nostack, preserves_flags));
        }
    }
    #[inline(always)]
    fn load_u16(self, src: &[u16; LANES]) -> Quad {
        let bits = unsafe { load_u16(src.as_ptr()) };
        let bits = quarters!(vmovl_u16, bits);
        quarters!(vreinterpretq_f32_u32, bits)
    }
    #[inline(always)]
    fn store_u16(self, dst: &mut [u16; LANES], v: Quad) {
        let bits = quarters!(vreinterpretq_u32_f32, v);
        let bits = quarters!(vmovn_u32, bits);
        unsafe { store_u16(dst.as_mut_ptr(), bits) }
    }
    #[inline(always)]
    fn transpose(self, v: [Quad; LANES]) -> [Quad; LANES] {
        let mut out = v;
        for rows in 0..4 {
            for columns in 0..4 {
                let mut block = v[0];
                for (k, part) in block.iter_mut().enumerate() {
                    *part = v[4 * rows + k][columns];
                }
                let block = unsafe { transpose_4x4(block) };
                for (k, part) in block.into_iter().enumerate() {
                    out[4 * columns + k][rows] = part;
                }
            }
        }
        out
    }
    #[inline(always)]
    fn add(self, a: Quad, b: Quad) -> Quad {
        quarters!(vaddq_f32, a, b)
    }
    #[inline(always)]
    fn sub(self, a: Quad, b: Quad) -> Quad {
        quarters!(vsubq_f32, a, b)
    }
    #[inline(always)]
    fn mul(self, a: Quad, b: Quad) -> Quad {
        quarters!(vmulq_f32, a, b)
    }
    #[inline(always)]
    fn div(self, a: Quad, b: Quad) -> Quad {
        quarters!(vdivq_f32, a, b)
    }
    #[inline(always)]
    fn mul_add(self, a: Quad, b: Quad, c: Quad) -> Quad {
        quarters!(vfmaq_f32, c, a, b)
    }
    #[inline(always)]
    fn neg_mul_add(self, a: Quad, b: Quad, c: Quad) -> Quad {
        quarters!(vfmsq_f32, c, a, b)
    }
    #[inline(always)]
    fn max_or(self, a: Quad, b: Quad) -> Quad {
        // `fmax` gives NaN for a NaN in either operand, and `fmaxnm` the number: neither is the contract.
        let greater = quarters!(vcgtq_f32, a, b);
        quarters!(vbslq_f32, greater, a, b)
    }
    #[inline(always)]
    fn exponent_from_bits(self, v: Quad) -> Quad {
        let v = quarters!(vreinterpretq_u32_f32, v);
        let v = quarters!(vshlq_n_u32::<23>, v);
        quarters!(vreinterpretq_f32_u32, v)
    }
    #[inline(always)]
    fn min(self, a: Quad, b: Quad) -> Quad {
        quarters!(vminq_f32, a, b)
    }
    #[inline(always)]
    fn neg_abs(self, v: Quad) -> Quad {
        let v = quarters!(vabsq_f32, v);
        quarters!(vnegq_f32, v)
    }
    #[inline(always)]
    fn copy_sign(self, a: Quad, b: Quad) -> Quad {
        let sign = unsafe { [vdupq_n_u32(1 << 31); 4] };
        // Per bit: that of the second where `sign` has one, else that of the third.
        quarters!(vbslq_f32, sign, b, a)
    }
    #[inline(always)]
    fn where_finite(self, x: Quad, y: Quad) -> Quad {
        let (low, v) = (self.splat(f32::NEG_INFINITY), self.neg_abs(x));
        // False for NaN.
        let finite = quarters!(vcgtq_f32, v, low);
        quarters!(vbslq_f32, finite, y, x)
    }
    #[inline(always)]
    fn keep_bits(self, v: Quad, bits: u16) -> Quad {
        const OF_LANE: [u32; 16] =
            [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768];
        let low = self.splat(f32::NEG_INFINITY);
        let (all, of_lane) = unsafe {
            let at = OF_LANE.as_ptr();
            let of_lane =
                [vld1q_u32(at), vld1q_u32(at.add(4)), vld1q_u32(at.add(8)), vld1q_u32(at.add(12))];
            ([vdupq_n_u32(bits.into()); 4], of_lane)
        };
        let kept = quarters!(vtstq_u32, all, of_lane);
        quarters!(vbslq_f32, kept, v, low)
    }
    #[inline(always)]
    fn mul_nonzero(self, a: Quad, b: Quad) -> Quad {
        let (zero, product) = (self.splat(0.0), self.mul(a, b));
        let is_zero = quarters!(vceqq_f32, a, zero);
        quarters!(vbslq_f32, is_zero, zero, product)
    }
    #[inline(always)]
    fn zero_below(self, v: Quad, bound: Quad) -> Quad {
        // False for NaN.
        let (zero, magnitude) = (self.splat(0.0), quarters!(vabsq_f32, v));
        let small = quarters!(vcltq_f32, magnitude, bound);
        quarters!(vbslq_f32, small, zero, v)
    }
    #[inline(always)]
    fn or3(self, a: Quad, b: Quad, c: Quad) -> Quad {
        let a = quarters!(vreinterpretq_u32_f32, a);
        let b = quarters!(vreinterpretq_u32_f32, b);
        let c = quarters!(vreinterpretq_u32_f32, c);
        let ab = quarters!(vorrq_u32, a, b);
        let abc = quarters!(vorrq_u32, ab, c);
        quarters!(vreinterpretq_f32_u32, abc)
    }
    #[inline(always)]
    fn has_bits(self, v: Quad, mask: u32) -> bool {
        let v = quarters!(vreinterpretq_u32_f32, v);
        unsafe {
            let any = vorrq_u32(vorrq_u32(v[0], v[1]), vorrq_u32(v[2], v[3]));
            vmaxvq_u32(vandq_u32(any, vdupq_n_u32(mask))) != 0
        }
    }

    #[inline(always)]
    fn gt_bits(self, a: Quad, b: Quad) -> u16 {
        unsafe {
            lane_bits([
                vcgtq_f32(a[0], b[0]),
                vcgtq_f32(a[1], b[1]),
                vcgtq_f32(a[2], b[2]),
                vcgtq_f32(a[3], b[3]),
            ])
        }
    }
    #[inline(always)]
    fn ge_bits(self, a: Quad, b: Quad) -> u16 {
        unsafe {
            lane_bits([
                vcgeq_f32(a[0], b[0]),
                vcgeq_f32(a[1], b[1]),
                vcgeq_f32(a[2], b[2]),
                vcgeq_f32(a[3], b[3]),
            ])
        }
    }

    type Wide = Wide;

    #[inline(always)]
    fn wide_zero(self) -> Wide {
        unsafe { [vdupq_n_f64(0.0); 8] }
    }
    #[inline(always)]
    fn wide_add(self, sums: Wide, v: Quad) -> Wide {
        unsafe {
            [
                vaddq_f64(sums[0], vcvt_f64_f32(vget_low_f32(v[0]))),
                vaddq_f64(sums[1], vcvt_high_f64_f32(v[0])),
                vaddq_f64(sums[2], vcvt_f64_f32(vget_low_f32(v[1]))),
                vaddq_f64(sums[3], vcvt_high_f64_f32(v[1])),
                vaddq_f64(sums[4], vcvt_f64_f32(vget_low_f32(v[2]))),
                vaddq_f64(sums[5], vcvt_high_f64_f32(v[2])),
                vaddq_f64(sums[6], vcvt_f64_f32(vget_low_f32(v[3]))),
                vaddq_f64(sums[7], vcvt_high_f64_f32(v[3])),
            ]
        }
    }
    #[inline(always)]
    fn wide_scale(self, sums: Wide, factor: f64) -> Wide {
        unsafe {
            let f = vdupq_n_f64(factor);
            [
                vmulq_f64(sums[0], f),
                vmulq_f64(sums[1], f),
                vmulq_f64(sums[2], f),
                vmulq_f64(sums[3], f),
                vmulq_f64(sums[4], f),
                vmulq_f64(sums[5], f),
                vmulq_f64(sums[6], f),
                vmulq_f64(sums[7], f),
            ]
        }
    }
    #[inline(always)]
    fn wide_plus(self, a: Wide, b: Wide) -> Wide {
        unsafe {
            [
                vaddq_f64(a[0], b[0]),
                vaddq_f64(a[1], b[1]),
                vaddq_f64(a[2], b[2]),
                vaddq_f64(a[3], b[3]),
                vaddq_f64(a[4], b[4]),
                vaddq_f64(a[5], b[5]),
                vaddq_f64(a[6], b[6]),
                vaddq_f64(a[7], b[7]),
            ]
        }
    }
    #[inline(always)]
    fn wide_lanes(self, sums: Wide) -> [f64; LANES] {
        let mut lanes = [0.0; LANES];
        let at = lanes.as_mut_ptr();
        unsafe {
            vst1q_f64(at, sums[0]);
            vst1q_f64(at.add(2), sums[1]);
            vst1q_f64(at.add(4), sums[2]);
            vst1q_f64(at.add(6), sums[3]);
            vst1q_f64(at.add(8), sums[4]);
            vst1q_f64(at.add(10), sums[5]);
            vst1q_f64(at.add(12), sums[6]);
            vst1q_f64(at.add(14), sums[7]);
        }
        lanes
    }
}

impl Simd64 for Neon {
    type D = QuadD;

    #[inline(always)]
    fn dsplat(self, x: f64) -> QuadD {
        unsafe { [vdupq_n_f64(x); 4] }
    }
    #[inline(always)]
    fn dload(self, src: &Lanes64) -> QuadD {
        let at = src.as_ptr();
        unsafe { [vld1q_f64(at), vld1q_f64(at.add(2)), vld1q_f64(at.add(4)), vld1q_f64(at.add(6))] }
    }
    #[inline(always)]
    fn dstore(self, dst: &mut Lanes64, v: QuadD) {
        let at = dst.as_mut_ptr();
        unsafe {
            vst1q_f64(at, v[0]);
            vst1q_f64(at.add(2), v[1]);
            vst1q_f64(at.add(4), v[2]);
            vst1q_f64(at.add(6), v[3]);
        }
    }
    #[inline(always)]
    fn dadd(self, a: QuadD, b: QuadD) -> QuadD {
        quarters!(vaddq_f64, a, b)
    }
    #[inline(always)]
    fn dsub(self, a: QuadD, b: QuadD) -> QuadD {
        quarters!(vsubq_f64, a, b)
    }
    #[inline(always)]
    fn dmul(self, a: QuadD, b: QuadD) -> QuadD {
        quarters!(vmulq_f64, a, b)
    }
    #[inline(always)]
    fn dmul_add(self, a: QuadD, b: QuadD, c: QuadD) -> QuadD {
        quarters!(vfmaq_f64, c, a, b)
    }
    #[inline(always)]
    fn dneg_mul_add(self, a: QuadD, b: QuadD, c: QuadD) -> QuadD {
        quarters!(vfmsq_f64, c, a, b)
    }
    #[inline(always)]
    fn dmax_or(self, a: QuadD, b: QuadD) -> QuadD {
        // See `max_or`.
        let greater = quarters!(vcgtq_f64, a, b);
        quarters!(vbslq_f64, greater, a, b)
    }
    #[inline(always)]
    fn dexponent_from_bits(self, v: QuadD) -> QuadD {
        let v = quarters!(vreinterpretq_u64_f64, v);
        let v = quarters!(vshlq_n_u64::<52>, v);
        quarters!(vreinterpretq_f64_u64, v)
    }
    #[inline(always)]
    fn dor(self, a: QuadD, b: QuadD) -> QuadD {
        let a = quarters!(vreinterpretq_u64_f64, a);
        let b = quarters!(vreinterpretq_u64_f64, b);
        let ab = quarters!(vorrq_u64, a, b);
        quarters!(vreinterpretq_f64_u64, ab)
    }
    #[inline(always)]
    fn dhas_bits(self, v: QuadD, mask: u64) -> bool {
        let v = quarters!(vreinterpretq_u64_f64, v);
        unsafe {
            let any = vorrq_u64(vorrq_u64(v[0], v[1]), vorrq_u64(v[2], v[3]));
            let any = vandq_u64(any, vdupq_n_u64(mask));
            vmaxvq_u32(vreinterpretq_u32_u64(any)) != 0
        }
    }
    #[inline(always)]
    fn dhas_nan(self, v: QuadD) -> bool {
        // A number equals itself.
        let same = quarters!(vceqq_f64, v, v);
        unsafe {
            let all = vandq_u64(vandq_u64(same[0], same[1]), vandq_u64(same[2], same[3]));
            vminvq_u32(vreinterpretq_u32_u64(all)) == 0
        }
    }
}
