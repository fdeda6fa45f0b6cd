//! AVX2, FMA and F16C: the virtual vector is two ymm registers.
//!
//! Every `unsafe` block of this file calls intrinsics of AVX, AVX2, FMA or F16C, or moves
//! one vector between a register and a reference to an array.
//! SAFETY of all of them: an [`Avx2`] exists only where [`Avx2::new`] was called, whose caller
//! promises those features (SSE, of the prefetch and the fence, is part of x86-64, and a
//! prefetch may be given any address); loads and stores go through references to arrays of
//! the right length, and need no alignment. Streaming stores do: each comes after a look at the
//! address, to 64 bytes for two ymm registers and to 32 for one. And they need a fence
//! before anything else reads or writes what they wrote, on any thread: they write to what
//! a [`Fenced`] refers to, which is memory that a [`Streaming`](super::stream::Streaming) has for
//! itself until its fence.
#![allow(unsafe_code, clippy::undocumented_unsafe_blocks)]

use super::vectors::{Fenced, LANES, Lanes, Lanes64, Simd, Simd64, backend_instructions};
use half::{bf16, f16};
use std::arch::x86_64::*;

#[derive(Clone, Copy)]
pub(crate) struct Avx2(());

impl Avx2 {
    /// # Safety
    /// The CPU has AVX2, FMA and F16C.
    #[inline(always)]
    pub(crate) unsafe fn new() -> Self {
        Avx2(())
    }
}

type Pair = [__m256; 2];

/// Applies an intrinsic to the corresponding halves of its arguments.
macro_rules! halves {
    ($intrinsic:ident, $($arg:ident),+) => {
        unsafe { [$intrinsic($($arg[0]),+), $intrinsic($($arg[1]),+)] }
    };
}

/// # Safety
/// As the operations of [`Avx2`].
#[inline(always)]
unsafe fn to_bf16(v: Pair) -> __m256i {
    #[inline(always)]
    unsafe fn rounded(v: __m256) -> __m256i {
        unsafe {
            let bits = _mm256_castps_si256(v);
            let even = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
            let half_a_unit = _mm256_add_epi32(even, _mm256_set1_epi32(0x7fff));
            let rounded = _mm256_srli_epi32::<16>(_mm256_add_epi32(bits, half_a_unit));
            let nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(v, v));
            _mm256_blendv_epi8(rounded, _mm256_set1_epi32(0x7fc0), nan)
        }
    }
    unsafe {
        // The instruction takes 4 + 4 elements of each half in turn.
        let mixed = _mm256_packus_epi32(rounded(v[0]), rounded(v[1]));
        _mm256_permute4x64_epi64::<0b11_01_10_00>(mixed)
    }
}

/// # Safety
/// As the operations of [`Avx2`].
#[inline(always)]
unsafe fn to_f16(v: Pair) -> __m256i {
    #[inline(always)]
    unsafe fn rounded(v: __m256) -> __m128i {
        unsafe {
            let nan = _mm256_cmp_ps::<_CMP_UNORD_Q>(v, v);
            let v = _mm256_blendv_ps(v, _mm256_set1_ps(f32::NAN), nan);
            _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v)
        }
    }
    unsafe { _mm256_set_m128i(rounded(v[1]), rounded(v[0])) }
}

/// # Safety
/// 32 bytes from `dst` on are the memory of a [`Fenced`], and as the operations of [`Avx2`].
#[inline(always)]
unsafe fn stream_half(dst: *mut __m256i, v: __m256i) {
    unsafe {
        if dst.is_aligned() {
            _mm256_stream_si256(dst, v);
        } else {
            _mm256_storeu_si256(dst, v);
        }
    }
}

/// # Safety
/// As the operations of [`Avx2`].
#[inline(always)]
unsafe fn transpose_8x8(v: [__m256; 8]) -> [__m256; 8] {
    let mut out = v;
    unsafe {
        // Within the 128-bit halves: 2 x 2 blocks, then 4 x 4.
        let mut pairs = v;
        for i in 0..4 {
            pairs[2 * i] = _mm256_unpacklo_ps(v[2 * i], v[2 * i + 1]);
            pairs[2 * i + 1] = _mm256_unpackhi_ps(v[2 * i], v[2 * i + 1]);
        }
        let mut fours = v;
        for i in [0, 4] {
            for k in 0..2 {
                let (a, b) = (pairs[i + k], pairs[i + k + 2]);
                fours[i + 2 * k] = _mm256_shuffle_ps::<0b01_00_01_00>(a, b);
                fours[i + 2 * k + 1] = _mm256_shuffle_ps::<0b11_10_11_10>(a, b);
            }
        }
        for i in 0..4 {
            out[i] = _mm256_permute2f128_ps::<0x20>(fours[i], fours[i + 4]);
            out[i + 4] = _mm256_permute2f128_ps::<0x31>(fours[i], fours[i + 4]);
        }
    }
    out
}

backend_instructions!(Avx2, unsafe { Avx2::new() }, "avx2", "fma", "f16c");

impl Simd for Avx2 {
    type V = Pair;
    const FUSED: bool = true;

    #[inline(always)]
    fn splat(self, x: f32) -> Pair {
        unsafe { [_mm256_set1_ps(x); 2] }
    }
    #[inline(always)]
    fn load(self, src: &Lanes) -> Pair {
        unsafe { [_mm256_loadu_ps(src.as_ptr()), _mm256_loadu_ps(src.as_ptr().add(8))] }
    }
    #[inline(always)]
    fn store(self, dst: &mut Lanes, v: Pair) {
        unsafe {
            _mm256_storeu_ps(dst.as_mut_ptr(), v[0]);
            _mm256_storeu_ps(dst.as_mut_ptr().add(8), v[1]);
        }
    }
    #[inline(always)]
    fn load_bf16(self, src: &[bf16; LANES]) -> Pair {
        let at = src.as_ptr().cast::<__m128i>();
        let half = unsafe { [_mm_loadu_si128(at), _mm_loadu_si128(at.add(1))] };
        let bits = halves!(_mm256_cvtepu16_epi32, half);
        let bits = unsafe { [_mm256_slli_epi32::<16>(bits[0]), _mm256_slli_epi32::<16>(bits[1])] };
        halves!(_mm256_castsi256_ps, bits)
    }
    #[inline(always)]
    fn load_f16(self, src: &[f16; LANES]) -> Pair {
        let at = src.as_ptr().cast::<__m128i>();
        let half = unsafe { [_mm_loadu_si128(at), _mm_loadu_si128(at.add(1))] };
        halves!(_mm256_cvtph_ps, half)
    }
    #[inline(always)]
    fn store_bf16(self, dst: &mut [bf16; LANES], v: Pair) {
        unsafe { _mm256_storeu_si256(dst.as_mut_ptr().cast(), to_bf16(v)) }
    }
    #[inline(always)]
    fn store_f16(self, dst: &mut [f16; LANES], v: Pair) {
        unsafe { _mm256_storeu_si256(dst.as_mut_ptr().cast(), to_f16(v)) }
    }
    #[inline(always)]
    fn stream_bf16(self, dst: Fenced<'_, [bf16; LANES]>, v: Pair) {
        unsafe { stream_half(dst.get().as_mut_ptr().cast(), to_bf16(v)) }
    }
    #[inline(always)]
    fn stream_f16(self, dst: Fenced<'_, [f16; LANES]>, v: Pair) {
        unsafe { stream_half(dst.get().as_mut_ptr().cast(), to_f16(v)) }
    }
    #[inline(always)]
    fn stream(self, dst: Fenced<'_, Lanes>, v: Pair) {
        let dst = dst.get();
        let at = dst.as_mut_ptr();
        if at.addr().is_multiple_of(64) {
            unsafe {
                _mm256_stream_ps(at, v[0]);
                _mm256_stream_ps(at.add(8), v[1]);
            }
        } else {
            self.store(dst, v);
        }
    }
    #[inline(always)]
    fn prefetch<T>(self, at: *const T) {
        // Never faults, whatever the address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
    }
    #[inline(always)]
    fn prefetch_far<T>(self, at: *const T) {
        unsafe { _mm_prefetch::<_MM_HINT_T1>(at.cast()) }
    }
    #[inline(always)]
    fn load_u16(self, src: &[u16; LANES]) -> Pair {
        let at = src.as_ptr().cast::<__m128i>();
        let half = unsafe { [_mm_loadu_si128(at), _mm_loadu_si128(at.add(1))] };
        let bits = halves!(_mm256_cvtepu16_epi32, half);
        halves!(_mm256_castsi256_ps, bits)
    }
    #[inline(always)]
    fn store_u16(self, dst: &mut [u16; LANES], v: Pair) {
        let bits = halves!(_mm256_castps_si256, v);
        unsafe {
            // The upper halves of the lanes are 0: saturation changes nothing.
            let mixed = _mm256_packus_epi32(bits[0], bits[1]);
            let bits = _mm256_permute4x64_epi64::<0b11_01_10_00>(mixed);
            _mm256_storeu_si256(dst.as_mut_ptr().cast(), bits);
        }
    }
    #[inline(always)]
    fn transpose(self, v: [Pair; LANES]) -> [Pair; LANES] {
        let mut out = v;
        for rows in 0..2 {
            for columns in 0..2 {
                let mut quarter = [v[0][0]; 8];
                for (k, part) in quarter.iter_mut().enumerate() {
                    *part = v[8 * rows + k][columns];
                }
                let quarter = unsafe { transpose_8x8(quarter) };
                for (k, part) in quarter.into_iter().enumerate() {
                    out[8 * columns + k][rows] = part;
                }
            }
        }
        out
    }
    #[inline(always)]
    fn add(self, a: Pair, b: Pair) -> Pair {
        halves!(_mm256_add_ps, a, b)
    }
    #[inline(always)]
    fn sub(self, a: Pair, b: Pair) -> Pair {
        halves!(_mm256_sub_ps, a, b)
    }
    #[inline(always)]
    fn mul(self, a: Pair, b: Pair) -> Pair {
        halves!(_mm256_mul_ps, a, b)
    }
    #[inline(always)]
    fn div(self, a: Pair, b: Pair) -> Pair {
        halves!(_mm256_div_ps, a, b)
    }
    #[inline(always)]
    fn mul_add(self, a: Pair, b: Pair, c: Pair) -> Pair {
        halves!(_mm256_fmadd_ps, a, b, c)
    }
    #[inline(always)]
    fn neg_mul_add(self, a: Pair, b: Pair, c: Pair) -> Pair {
        halves!(_mm256_fnmadd_ps, a, b, c)
    }
    #[inline(always)]
    fn max_or(self, a: Pair, b: Pair) -> Pair {
        // `maxps` is `a > b ? a : b`: the operand order is the contract.
        halves!(_mm256_max_ps, a, b)
    }
    #[inline(always)]
    fn exponent_from_bits(self, v: Pair) -> Pair {
        let v = halves!(_mm256_castps_si256, v);
        let v = unsafe { [_mm256_slli_epi32::<23>(v[0]), _mm256_slli_epi32::<23>(v[1])] };
        halves!(_mm256_castsi256_ps, v)
    }
    #[inline(always)]
    fn min(self, a: Pair, b: Pair) -> Pair {
        halves!(_mm256_min_ps, a, b)
    }
    #[inline(always)]
    fn neg_abs(self, v: Pair) -> Pair {
        let sign = self.splat(-0.0);
        halves!(_mm256_or_ps, v, sign)
    }
    #[inline(always)]
    fn copy_sign(self, a: Pair, b: Pair) -> Pair {
        let sign = self.splat(-0.0);
        let a = halves!(_mm256_andnot_ps, sign, a);
        let b = halves!(_mm256_and_ps, sign, b);
        halves!(_mm256_or_ps, a, b)
    }
    #[inline(always)]
    fn where_finite(self, x: Pair, y: Pair) -> Pair {
        let (low, v) = (self.splat(f32::NEG_INFINITY), self.neg_abs(x));
        // False for NaN.
        let finite = unsafe {
            [_mm256_cmp_ps::<_CMP_GT_OQ>(v[0], low[0]), _mm256_cmp_ps::<_CMP_GT_OQ>(v[1], low[1])]
        };
        halves!(_mm256_blendv_ps, x, y, finite)
    }
    #[inline(always)]
    fn keep_bits(self, v: Pair, bits: u16) -> Pair {
        let low = self.splat(f32::NEG_INFINITY);
        let (all, of_lane) = unsafe {
            let lower = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
            ([_mm256_set1_epi32(bits.into()); 2], [lower, _mm256_slli_epi32::<8>(lower)])
        };
        let kept = halves!(_mm256_and_si256, all, of_lane);
        let kept = halves!(_mm256_cmpeq_epi32, kept, of_lane);
        let kept = halves!(_mm256_castsi256_ps, kept);
        halves!(_mm256_blendv_ps, low, v, kept)
    }
    #[inline(always)]
    fn mul_nonzero(self, a: Pair, b: Pair) -> Pair {
        let (zero, product) = (self.splat(0.0), self.mul(a, b));
        // True for NaN.
        let nonzero = unsafe {
            [
                _mm256_cmp_ps::<_CMP_NEQ_UQ>(a[0], zero[0]),
                _mm256_cmp_ps::<_CMP_NEQ_UQ>(a[1], zero[1]),
            ]
        };
        halves!(_mm256_and_ps, nonzero, product)
    }
    #[inline(always)]
    fn zero_below(self, v: Pair, bound: Pair) -> Pair {
        let sign = self.splat(-0.0);
        let magnitude = halves!(_mm256_andnot_ps, sign, v);
        // True for NaN.
        let kept = unsafe {
            [
                _mm256_cmp_ps::<_CMP_NLT_UQ>(magnitude[0], bound[0]),
                _mm256_cmp_ps::<_CMP_NLT_UQ>(magnitude[1], bound[1]),
            ]
        };
        halves!(_mm256_and_ps, v, kept)
    }
    #[inline(always)]
    fn or3(self, a: Pair, b: Pair, c: Pair) -> Pair {
        let ab = halves!(_mm256_or_ps, a, b);
        halves!(_mm256_or_ps, ab, c)
    }
    #[inline(always)]
    fn has_bits(self, v: Pair, mask: u32) -> bool {
        unsafe {
            let any = _mm256_castps_si256(_mm256_or_ps(v[0], v[1]));
            _mm256_testz_si256(any, _mm256_set1_epi32(mask as i32)) == 0
        }
    }

    #[inline(always)]
    fn gt_bits(self, a: Pair, b: Pair) -> u16 {
        unsafe {
            let low = _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_GT_OQ>(a[0], b[0]));
            let high = _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_GT_OQ>(a[1], b[1]));
            (low | high << 8) as u16
        }
    }
    #[inline(always)]
    fn ge_bits(self, a: Pair, b: Pair) -> u16 {
        unsafe {
            let low = _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_GE_OQ>(a[0], b[0]));
            let high = _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_GE_OQ>(a[1], b[1]));
            (low | high << 8) as u16
        }
    }

    type Wide = [__m256d; 4];

    #[inline(always)]
    fn wide_zero(self) -> [__m256d; 4] {
        unsafe { [_mm256_setzero_pd(); 4] }
    }
    #[inline(always)]
    fn wide_add(self, sums: [__m256d; 4], v: Pair) -> [__m256d; 4] {
        unsafe {
            [
                _mm256_add_pd(sums[0], _mm256_cvtps_pd(_mm256_castps256_ps128(v[0]))),
                _mm256_add_pd(sums[1], _mm256_cvtps_pd(_mm256_extractf128_ps::<1>(v[0]))),
                _mm256_add_pd(sums[2], _mm256_cvtps_pd(_mm256_castps256_ps128(v[1]))),
                _mm256_add_pd(sums[3], _mm256_cvtps_pd(_mm256_extractf128_ps::<1>(v[1]))),
            ]
        }
    }
    #[inline(always)]
    fn wide_scale(self, sums: [__m256d; 4], factor: f64) -> [__m256d; 4] {
        unsafe {
            let f = _mm256_set1_pd(factor);
            [
                _mm256_mul_pd(sums[0], f),
                _mm256_mul_pd(sums[1], f),
                _mm256_mul_pd(sums[2], f),
                _mm256_mul_pd(sums[3], f),
            ]
        }
    }
    #[inline(always)]
    fn wide_plus(self, a: [__m256d; 4], b: [__m256d; 4]) -> [__m256d; 4] {
        unsafe {
            [
                _mm256_add_pd(a[0], b[0]),
                _mm256_add_pd(a[1], b[1]),
                _mm256_add_pd(a[2], b[2]),
                _mm256_add_pd(a[3], b[3]),
            ]
        }
    }
    #[inline(always)]
    fn wide_lanes(self, sums: [__m256d; 4]) -> [f64; LANES] {
        let mut lanes = [0.0; LANES];
        unsafe {
            _mm256_storeu_pd(lanes.as_mut_ptr(), sums[0]);
            _mm256_storeu_pd(lanes.as_mut_ptr().add(4), sums[1]);
            _mm256_storeu_pd(lanes.as_mut_ptr().add(8), sums[2]);
            _mm256_storeu_pd(lanes.as_mut_ptr().add(12), sums[3]);
        }
        lanes
    }
}

type PairD = [__m256d; 2];

impl Simd64 for Avx2 {
    type D = PairD;

    #[inline(always)]
    fn dsplat(self, x: f64) -> PairD {
        unsafe { [_mm256_set1_pd(x); 2] }
    }
    #[inline(always)]
    fn dload(self, src: &Lanes64) -> PairD {
        unsafe { [_mm256_loadu_pd(src.as_ptr()), _mm256_loadu_pd(src.as_ptr().add(4))] }
    }
    #[inline(always)]
    fn dstore(self, dst: &mut Lanes64, v: PairD) {
        unsafe {
            _mm256_storeu_pd(dst.as_mut_ptr(), v[0]);
            _mm256_storeu_pd(dst.as_mut_ptr().add(4), v[1]);
        }
    }
    #[inline(always)]
    fn dstream(self, dst: Fenced<'_, Lanes64>, v: PairD) {
        let dst = dst.get();
        let to = dst.as_mut_ptr();
        if to.addr().is_multiple_of(64) {
            unsafe {
                _mm256_stream_pd(to, v[0]);
                _mm256_stream_pd(to.add(4), v[1]);
            }
        } else {
            self.dstore(dst, v);
        }
    }
    #[inline(always)]
    fn fence(self) {
        unsafe { _mm_sfence() }
    }
    #[inline(always)]
    fn dadd(self, a: PairD, b: PairD) -> PairD {
        halves!(_mm256_add_pd, a, b)
    }
    #[inline(always)]
    fn dsub(self, a: PairD, b: PairD) -> PairD {
        halves!(_mm256_sub_pd, a, b)
    }
    #[inline(always)]
    fn dmul(self, a: PairD, b: PairD) -> PairD {
        halves!(_mm256_mul_pd, a, b)
    }
    #[inline(always)]
    fn dmul_add(self, a: PairD, b: PairD, c: PairD) -> PairD {
        halves!(_mm256_fmadd_pd, a, b, c)
    }
    #[inline(always)]
    fn dneg_mul_add(self, a: PairD, b: PairD, c: PairD) -> PairD {
        halves!(_mm256_fnmadd_pd, a, b, c)
    }
    #[inline(always)]
    fn dmax_or(self, a: PairD, b: PairD) -> PairD {
        // `maxpd` is `a > b ? a : b`: the operand order is the contract.
        halves!(_mm256_max_pd, a, b)
    }
    #[inline(always)]
    fn dexponent_from_bits(self, v: PairD) -> PairD {
        let v = halves!(_mm256_castpd_si256, v);
        let v = unsafe { [_mm256_slli_epi64::<52>(v[0]), _mm256_slli_epi64::<52>(v[1])] };
        halves!(_mm256_castsi256_pd, v)
    }
    #[inline(always)]
    fn dor(self, a: PairD, b: PairD) -> PairD {
        halves!(_mm256_or_pd, a, b)
    }
    #[inline(always)]
    fn dhas_bits(self, v: PairD, mask: u64) -> bool {
        unsafe {
            let any = _mm256_castpd_si256(_mm256_or_pd(v[0], v[1]));
            _mm256_testz_si256(any, _mm256_set1_epi64x(mask as i64)) == 0
        }
    }
    #[inline(always)]
    fn dhas_nan(self, v: PairD) -> bool {
        // Unordered if either is NaN, so one comparison looks at both halves.
        unsafe { _mm256_movemask_pd(_mm256_cmp_pd::<_CMP_UNORD_Q>(v[0], v[1])) != 0 }
    }
}
