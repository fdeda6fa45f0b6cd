//! Conversions between `f32` and the 16-bit formats, one number at a time.

use xent::internals::rounding::{round_bf16, round_f16, round_to_odd, widen_bf16, widen_f16};
use xent::{bf16, f16};

/// Whether `got` is `x` rounded to nearest even, decided with the neighbours of `got`.
fn is_nearest(x: f64, got: u16, widen: fn(u16) -> f64, infinity: u16) -> bool {
    let magnitude = got & 0x7fff;
    if magnitude > infinity || widen(got).is_sign_negative() != x.is_sign_negative() {
        return false;
    }
    let x = x.abs();
    // Infinity is where the next number would be.
    let value = |m: u16| match m {
        m if m == infinity => 2.0 * widen(m - 1) - widen(m - 2),
        m => widen(m),
    };
    if x.is_infinite() {
        return magnitude == infinity;
    }
    let even = magnitude & 1 == 0;
    let above = magnitude == infinity || {
        let middle = (value(magnitude) + value(magnitude + 1)) / 2.0;
        x < middle || even && x == middle
    };
    let below = magnitude == 0 || {
        let middle = (value(magnitude) + value(magnitude - 1)) / 2.0;
        x > middle || even && x == middle
    };
    above && below
}

fn f16_is_nearest(x: f64, got: f16) -> bool {
    is_nearest(x, got.to_bits(), |m| widen_f16(f16::from_bits(m)).into(), 0x7c00)
}

fn bf16_is_nearest(x: f64, got: bf16) -> bool {
    is_nearest(x, got.to_bits(), |m| widen_bf16(bf16::from_bits(m)).into(), 0x7f80)
}

#[test]
fn every_number_is_widened_as_the_half_crate_does_and_comes_back() {
    for bits in 0..=u16::MAX {
        let (b, h) = (bf16::from_bits(bits), f16::from_bits(bits));
        assert_eq!(widen_f16(h).to_bits(), h.to_f32_const().to_bits(), "{bits:#x}");
        // That crate makes NaN quiet.
        if b.is_nan() {
            assert!(widen_bf16(b).is_nan());
            assert_eq!(round_bf16(widen_bf16(b)).to_bits(), 0x7fc0);
        } else {
            assert_eq!(widen_bf16(b).to_bits(), b.to_f32_const().to_bits(), "{bits:#x}");
            assert_eq!(round_bf16(widen_bf16(b)).to_bits(), bits);
        }
        let back = if h.is_nan() { 0x7e00 } else { bits };
        assert_eq!(round_f16(widen_f16(h)).to_bits(), back);
    }
}

#[test]
fn rounding_is_to_nearest_even() {
    // Every upper half with lower halves around all ties.
    let lower = [0, 1, 2, 0xfff, 0x1000, 0x1001, 0x2fff, 0x3000, 0x3001, 0x7fff, 0x8000, 0x8001];
    for upper in 0..=u16::MAX {
        for lower in lower.into_iter().chain([0x8fff, 0x9000, 0x9001, 0xffff]) {
            let x = f32::from_bits(u32::from(upper) << 16 | lower);
            if x.is_nan() {
                assert_eq!(round_f16(x).to_bits(), 0x7e00);
                assert_eq!(round_bf16(x).to_bits(), 0x7fc0);
                continue;
            }
            assert!(f16_is_nearest(x.into(), round_f16(x)), "{x:e}");
            assert!(bf16_is_nearest(x.into(), round_bf16(x)), "{x:e}");
            assert_eq!(round_f16(x).to_bits(), f16::from_f32_const(x).to_bits(), "{x:e}");
            assert_eq!(round_bf16(x).to_bits(), bf16::from_f32_const(x).to_bits(), "{x:e}");
        }
    }
}

#[test]
fn f64_is_rounded_once() {
    // Around every tie, closer to it than `f32` can tell.
    for bits in 0..=u16::MAX {
        let (b, h) = (bf16::from_bits(bits), f16::from_bits(bits));
        let next = bits.wrapping_add(1);
        let ties = [
            (f64::from(widen_bf16(b)) + f64::from(widen_bf16(bf16::from_bits(next)))) / 2.0,
            (f64::from(widen_f16(h)) + f64::from(widen_f16(f16::from_bits(next)))) / 2.0,
        ];
        for tie in ties.into_iter().filter(|tie| tie.is_finite()) {
            for x in [tie, tie.next_up(), tie.next_down(), tie * (1.0 + 1e-9), tie * (1.0 - 1e-9)] {
                let odd = round_to_odd(x);
                assert!(f16_is_nearest(x, round_f16(odd)), "{x:e}");
                assert!(bf16_is_nearest(x, round_bf16(odd)), "{x:e}");
            }
        }
    }
    assert!(round_to_odd(f64::NAN).is_nan());
    assert_eq!(round_bf16(round_to_odd(1e300)), bf16::INFINITY);
    assert_eq!(round_to_odd(-1e-300), -f32::from_bits(1));
}
