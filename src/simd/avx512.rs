//! AVX-512 (F, BW, DQ, VL): the virtual vector is one zmm register.
//!
//! Every `unsafe` block of this file calls intrinsics of AVX-512 F and DQ, or moves one vector between
//! a register and a reference to an array.
//! SAFETY of all of them: an [`Avx512`] exists only where [`Avx512::new`] was called, whose caller
//! promises those features (SSE, of the prefetch and the fence, is part of x86-64, and a
//! prefetch may be given any address); loads and stores go through references to arrays of
//! the right length, and need no alignment. Streaming stores do: each comes after a look at the
//! address, to 64 bytes for a zmm and to 32 for a ymm register. And they need a fence
//! before anything else reads or writes what they wrote, on any thread: they write to what
//! a [`Fenced`] refers to, which is memory that a [`Streaming`](super::stream::Streaming) has for
//! itself until its fence.
#![allow(unsafe_code, clippy::undocumented_unsafe_blocks)]

use super::vectors::{Fenced, LANES, Lanes, Lanes64, Simd, Simd64, backend_instructions};
use half::{bf16, f16};
use std::arch::x86_64::*;

#[derive(Clone, Copy)]
pub(crate) struct Avx512(());

impl Avx512 {
    /// # Safety
    /// The CPU has AVX-512 F, BW, DQ and VL, and FMA.
    #[inline(always)]
    pub(crate) unsafe fn new() -> Self {
        Avx512(())
    }
}

/// # Safety
/// As the operations of [`Avx512`].
#[inline(always)]
unsafe fn to_bf16(v: __m512) -> __m256i {
    unsafe {
        let bits = _mm512_castps_si512(v);
        let even = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
        let half_a_unit = _mm512_add_epi32(even, _mm512_set1_epi32(0x7fff));
        let rounded = _mm512_srli_epi32::<16>(_mm512_add_epi32(bits, half_a_unit));
        let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(v, v);
        _mm512_cvtepi32_epi16(_mm512_mask_mov_epi32(rounded, nan, _mm512_set1_epi32(0x7fc0)))
    }
}

/// # Safety
/// As the operations of [`Avx512`].
#[inline(always)]
unsafe fn to_f16(v: __m512) -> __m256i {
    unsafe {
        let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(v, v);
        let v = _mm512_mask_mov_ps(v, nan, _mm512_set1_ps(f32::NAN));
        _mm512_cvtps_ph::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(v)
    }
}

/// # Safety
/// 32 bytes from `dst` on are the memory of a [`Fenced`], and as the operations of [`Avx512`].
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

/// Lanes of two registers in turn, first of their lower halves, then of their upper.
const IN_TURN: [[i32; 16]; 2] = [
    [0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23],
    [8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31],
];

backend_instructions!(
    Avx512,
    unsafe { Avx512::new() },
    "avx512f",
    "avx512bw",
    "avx512dq",
    "avx512vl",
    "fma"
);

impl Simd for Avx512 {
    type V = __m512;
    const FUSED: bool = true;

    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        unsafe { _mm512_set1_ps(x) }
    }
    #[inline(always)]
    fn load(self, src: &Lanes) -> __m512 {
        unsafe { _mm512_loadu_ps(src.as_ptr()) }
    }
    #[inline(always)]
    fn store(self, dst: &mut Lanes, v: __m512) {
        unsafe { _mm512_storeu_ps(dst.as_mut_ptr(), v) }
    }
    #[inline(always)]
    fn load_bf16(self, src: &[bf16; LANES]) -> __m512 {
        unsafe {
            let bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256(src.as_ptr().cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(bits))
        }
    }
    #[inline(always)]
    fn load_f16(self, src: &[f16; LANES]) -> __m512 {
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(src.as_ptr().cast())) }
    }
    #[inline(always)]
    fn store_bf16(self, dst: &mut [bf16; LANES], v: __m512) {
        unsafe { _mm256_storeu_si256(dst.as_mut_ptr().cast(), to_bf16(v)) }
    }
    #[inline(always)]
    fn store_f16(self, dst: &mut [f16; LANES], v: __m512) {
        unsafe { _mm256_storeu_si256(dst.as_mut_ptr().cast(), to_f16(v)) }
    }
    #[inline(always)]
    fn stream_bf16(self, dst: Fenced<'_, [bf16; LANES]>, v: __m512) {
        unsafe { stream_half(dst.get().as_mut_ptr().cast(), to_bf16(v)) }
    }
    #[inline(always)]
    fn stream_f16(self, dst: Fenced<'_, [f16; LANES]>, v: __m512) {
        unsafe { stream_half(dst.get().as_mut_ptr().cast(), to_f16(v)) }
    }
    #[inline(always)]
    fn stream(self, dst: Fenced<'_, Lanes>, v: __m512) {
        let dst = dst.get();
        let at = dst.as_mut_ptr();
        if at.addr().is_multiple_of(64) {
            unsafe { _mm512_stream_ps(at, v) }
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
    fn load_u16(self, src: &[u16; LANES]) -> __m512 {
        unsafe {
            let bits = _mm256_loadu_si256(src.as_ptr().cast());
            _mm512_castsi512_ps(_mm512_cvtepu16_epi32(bits))
        }
    }
    #[inline(always)]
    fn store_u16(self, dst: &mut [u16; LANES], v: __m512) {
        unsafe {
            let bits = _mm512_cvtepi32_epi16(_mm512_castps_si512(v));
            _mm256_storeu_si256(dst.as_mut_ptr().cast(), bits);
        }
    }
    #[inline(always)]
    fn transpose(self, mut v: [__m512; LANES]) -> [__m512; LANES] {
        let lower = unsafe { _mm512_loadu_si512(IN_TURN[0].as_ptr().cast()) };
        let upper = unsafe { _mm512_loadu_si512(IN_TURN[1].as_ptr().cast()) };
        // With the bits of an element's row before those of its column, each round moves the first bit to
        // the end: after four, rows and columns have changed places.
        for _ in 0..4 {
            let rows = v;
            for i in 0..8 {
                let (a, b) = (rows[i], rows[i + 8]);
                v[2 * i] = unsafe { _mm512_permutex2var_ps(a, lower, b) };
                v[2 * i + 1] = unsafe { _mm512_permutex2var_ps(a, upper, b) };
            }
        }
        v
    }
    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_sub_ps(a, b) }
    }
    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_div_ps(a, b) }
    }
    #[inline(always)]
    fn mul_add(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    fn neg_mul_add(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        unsafe { _mm512_fnmadd_ps(a, b, c) }
    }
    #[inline(always)]
    fn max_or(self, a: __m512, b: __m512) -> __m512 {
        // `vmaxps` is `a > b ? a : b`: the operand order is the contract.
        unsafe { _mm512_max_ps(a, b) }
    }
    #[inline(always)]
    fn exponent_from_bits(self, v: __m512) -> __m512 {
        unsafe { _mm512_castsi512_ps(_mm512_slli_epi32::<23>(_mm512_castps_si512(v))) }
    }
    #[inline(always)]
    fn min(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_min_ps(a, b) }
    }
    #[inline(always)]
    fn neg_abs(self, v: __m512) -> __m512 {
        unsafe { _mm512_or_ps(v, _mm512_set1_ps(-0.0)) }
    }
    #[inline(always)]
    fn copy_sign(self, a: __m512, b: __m512) -> __m512 {
        unsafe {
            let sign = _mm512_set1_epi32(i32::MIN);
            // Per bit: that of `b` where `sign` has one, else that of `a`.
            _mm512_castsi512_ps(_mm512_ternarylogic_epi32::<0xca>(
                sign,
                _mm512_castps_si512(b),
                _mm512_castps_si512(a),
            ))
        }
    }
    #[inline(always)]
    fn where_finite(self, x: __m512, y: __m512) -> __m512 {
        unsafe {
            let low = _mm512_set1_ps(f32::NEG_INFINITY);
            // False for NaN.
            let finite = _mm512_cmp_ps_mask::<_CMP_GT_OQ>(self.neg_abs(x), low);
            _mm512_mask_blend_ps(finite, x, y)
        }
    }
    #[inline(always)]
    fn keep_bits(self, v: __m512, bits: u16) -> __m512 {
        unsafe { _mm512_mask_mov_ps(_mm512_set1_ps(f32::NEG_INFINITY), bits, v) }
    }
    #[inline(always)]
    fn mul_nonzero(self, a: __m512, b: __m512) -> __m512 {
        unsafe {
            // True for NaN.
            let nonzero = _mm512_cmp_ps_mask::<_CMP_NEQ_UQ>(a, _mm512_setzero_ps());
            _mm512_maskz_mul_ps(nonzero, a, b)
        }
    }
    #[inline(always)]
    fn zero_below(self, v: __m512, bound: __m512) -> __m512 {
        unsafe {
            // True for NaN.
            let kept = _mm512_cmp_ps_mask::<_CMP_NLT_UQ>(_mm512_abs_ps(v), bound);
            _mm512_maskz_mov_ps(kept, v)
        }
    }
    #[inline(always)]
    fn or3(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        unsafe {
            _mm512_castsi512_ps(_mm512_ternarylogic_epi32::<0xfe>(
                _mm512_castps_si512(a),
                _mm512_castps_si512(b),
                _mm512_castps_si512(c),
            ))
        }
    }
    #[inline(always)]
    fn has_bits(self, v: __m512, mask: u32) -> bool {
        unsafe {
            _mm512_test_epi32_mask(_mm512_castps_si512(v), _mm512_set1_epi32(mask as i32)) != 0
        }
    }

    #[inline(always)]
    fn gt_bits(self, a: __m512, b: __m512) -> u16 {
        unsafe { _mm512_cmp_ps_mask::<_CMP_GT_OQ>(a, b) }
    }
    #[inline(always)]
    fn ge_bits(self, a: __m512, b: __m512) -> u16 {
        unsafe { _mm512_cmp_ps_mask::<_CMP_GE_OQ>(a, b) }
    }

    type Wide = [__m512d; 2];

    #[inline(always)]
    fn wide_zero(self) -> [__m512d; 2] {
        unsafe { [_mm512_setzero_pd(); 2] }
    }
    #[inline(always)]
    fn wide_add(self, sums: [__m512d; 2], v: __m512) -> [__m512d; 2] {
        unsafe {
            [
                _mm512_add_pd(sums[0], _mm512_cvtps_pd(_mm512_castps512_ps256(v))),
                _mm512_add_pd(sums[1], _mm512_cvtps_pd(_mm512_extractf32x8_ps::<1>(v))),
            ]
        }
    }
    #[inline(always)]
    fn wide_scale(self, sums: [__m512d; 2], factor: f64) -> [__m512d; 2] {
        unsafe {
            let f = _mm512_set1_pd(factor);
            [_mm512_mul_pd(sums[0], f), _mm512_mul_pd(sums[1], f)]
        }
    }
    #[inline(always)]
    fn wide_plus(self, a: [__m512d; 2], b: [__m512d; 2]) -> [__m512d; 2] {
        unsafe { [_mm512_add_pd(a[0], b[0]), _mm512_add_pd(a[1], b[1])] }
    }
    #[inline(always)]
    fn wide_lanes(self, sums: [__m512d; 2]) -> [f64; LANES] {
        let mut lanes = [0.0; LANES];
        unsafe {
            _mm512_storeu_pd(lanes.as_mut_ptr(), sums[0]);
            _mm512_storeu_pd(lanes.as_mut_ptr().add(8), sums[1]);
        }
        lanes
    }
}

impl Simd64 for Avx512 {
    type D = __m512d;

    #[inline(always)]
    fn dsplat(self, x: f64) -> __m512d {
        unsafe { _mm512_set1_pd(x) }
    }
    #[inline(always)]
    fn dload(self, src: &Lanes64) -> __m512d {
        unsafe { _mm512_loadu_pd(src.as_ptr()) }
    }
    #[inline(always)]
    fn dstore(self, dst: &mut Lanes64, v: __m512d) {
        unsafe { _mm512_storeu_pd(dst.as_mut_ptr(), v) }
    }
    #[inline(always)]
    fn dstream(self, dst: Fenced<'_, Lanes64>, v: __m512d) {
        let dst = dst.get();
        let to = dst.as_mut_ptr();
        if to.addr().is_multiple_of(64) {
            unsafe { _mm512_stream_pd(to, v) }
        } else {
            self.dstore(dst, v);
        }
    }
    #[inline(always)]
    fn fence(self) {
        unsafe { _mm_sfence() }
    }
    #[inline(always)]
    fn dadd(self, a: __m512d, b: __m512d) -> __m512d {
        unsafe { _mm512_add_pd(a, b) }
    }
    #[inline(always)]
    fn dsub(self, a: __m512d, b: __m512d) -> __m512d {
        unsafe { _mm512_sub_pd(a, b) }
    }
    #[inline(always)]
    fn dmul(self, a: __m512d, b: __m512d) -> __m512d {
        unsafe { _mm512_mul_pd(a, b) }
    }
    #[inline(always)]
    fn dmul_add(self, a: __m512d, b: __m512d, c: __m512d) -> __m512d {
        unsafe { _mm512_fmadd_pd(a, b, c) }
    }
    #[inline(always)]
    fn dneg_mul_add(self, a: __m512d, b: __m512d, c: __m512d) -> __m512d {
        unsafe { _mm512_fnmadd_pd(a, b, c) }
    }
    #[inline(always)]
    fn dmax_or(self, a: __m512d, b: __m512d) -> __m512d {
        // `vmaxpd` is `a > b ? a : b`: the operand order is the contract.
        unsafe { _mm512_max_pd(a, b) }
    }
    #[inline(always)]
    fn dexponent_from_bits(self, v: __m512d) -> __m512d {
        unsafe { _mm512_castsi512_pd(_mm512_slli_epi64::<52>(_mm512_castpd_si512(v))) }
    }
    #[inline(always)]
    fn dor(self, a: __m512d, b: __m512d) -> __m512d {
        unsafe { _mm512_or_pd(a, b) }
    }
    #[inline(always)]
    fn dhas_bits(self, v: __m512d, mask: u64) -> bool {
        unsafe {
            _mm512_test_epi64_mask(_mm512_castpd_si512(v), _mm512_set1_epi64(mask as i64)) != 0
        }
    }
    #[inline(always)]
    fn dhas_nan(self, v: __m512d) -> bool {
        unsafe { _mm512_cmp_pd_mask::<_CMP_UNORD_Q>(v, v) != 0 }
    }
}
