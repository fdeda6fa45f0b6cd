//! Conversions between `f32` and the two 16-bit formats, one number at a time: what the operations of all
//! backends do to their lanes.
//!
//! Integer arithmetic without branches, so that compilers make vectors of loops over it.
#![forbid(unsafe_code)]

use half::{bf16, f16};

/// From the exponent bias of `f16` to that of `f32`, in place of the exponent.
const REBIAS: u32 = (127 - 15) << 23;

/// Exact; NaN becomes quiet, as with every instruction that does this.
#[inline(always)]
pub fn widen_f16(x: f16) -> f32 {
    let x = u32::from(x.to_bits());
    let sign = (x & 0x8000) << 16;
    let bits = (x & 0x7fff) << 13;
    // As if there were a leading 1, which is then subtracted: exact.
    let small = f32::from_bits(bits + REBIAS + (1 << 23)) - f32::from_bits(REBIAS + (1 << 23));
    let quiet = if bits > 0x7c00 << 13 { 1 << 22 } else { 0 };
    let magnitude = if bits < 1 << 23 {
        small.to_bits()
    } else if bits < 0x7c00 << 13 {
        bits + REBIAS
    } else {
        (bits + 2 * REBIAS) | quiet
    };
    f32::from_bits(sign | magnitude)
}

/// Exact.
#[inline(always)]
pub fn widen_bf16(x: bf16) -> f32 {
    f32::from_bits(u32::from(x.to_bits()) << 16)
}

/// To nearest even. All NaN become one: what instructions keep of others differs.
#[inline(always)]
pub fn round_f16(x: f32) -> f16 {
    let bits = x.to_bits();
    let sign = bits >> 16 & 0x8000;
    let bits = bits & 0x7fff_ffff;
    let even = bits >> 13 & 1;
    let normal = bits.wrapping_add(0xfff + even).wrapping_sub(REBIAS) >> 13;
    // The last place of 0.5 is the smallest subnormal: the addition rounds.
    let small = (f32::from_bits(bits) + 0.5).to_bits().wrapping_sub(0.5_f32.to_bits());
    let rounded = if bits < REBIAS + (1 << 23) {
        small
    } else if bits < 0x477f_f000 {
        normal
    } else {
        // From 65,520 on, half a unit above the largest.
        0x7c00
    };
    let rounded = if bits > 0x7f80_0000 { 0x7e00 } else { sign | rounded };
    f16::from_bits(rounded as u16)
}

/// To nearest even. All NaN become one.
#[inline(always)]
pub fn round_bf16(x: f32) -> bf16 {
    let bits = x.to_bits();
    // A carry out of the significand is the next exponent, and out of the largest number infinity.
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    let rounded = if bits & 0x7fff_ffff > 0x7f80_0000 { 0x7fc0 } else { rounded };
    bf16::from_bits(rounded as u16)
}

/// `x` rounded to odd: an inexact result gets the neighbour whose last bit is 1, so that what is rounded
/// from it to fewer digits is as if rounded from `x`.
pub fn round_to_odd(x: f64) -> f32 {
    let near = x as f32;
    let back = f64::from(near);
    let bits = near.to_bits();
    if back == x || !near.is_finite() || bits & 1 == 1 {
        near
    } else if back.abs() > x.abs() {
        f32::from_bits(bits - 1)
    } else {
        f32::from_bits(bits + 1)
    }
}
