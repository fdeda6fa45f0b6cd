//! Statistics as bytes, in little-endian order, and back.
#![forbid(unsafe_code)]

use super::total::Total;
use crate::math::exact::ExactSum;

/// Of a [`Total`] with that many of its sums.
pub(crate) const fn total_bytes(sums: usize) -> usize {
    4 + 4 + 1 + sums * ExactSum::BYTES
}

/// Where they go.
pub(crate) struct Out<'a>(pub(crate) &'a mut [u8]);

impl Out<'_> {
    pub(crate) fn put<const N: usize>(&mut self, bytes: [u8; N]) {
        let (to, rest) = std::mem::take(&mut self.0).split_at_mut(N);
        to.copy_from_slice(&bytes);
        self.0 = rest;
    }

    pub(crate) fn total(&mut self, total: &Total, sums: usize) {
        self.put(total.origin.to_le_bytes());
        self.put(total.exponent.to_le_bytes());
        let flags = [total.fused, total.nan, total.inf];
        self.put([flags.iter().fold(0, |bits, &flag| bits << 1 | u8::from(flag))]);
        for sum in &total.sums[..sums] {
            self.put(sum.to_bytes());
        }
    }
}

/// Where they come from: anything, so that `None` says that it is not what was written.
pub(crate) struct In<'a>(pub(crate) &'a [u8]);

impl In<'_> {
    pub(crate) fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (bytes, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*bytes)
    }

    pub(crate) fn f32(&mut self) -> Option<f32> {
        self.take().map(f32::from_le_bytes)
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }

    pub(crate) fn sum(&mut self) -> Option<ExactSum> {
        ExactSum::from_bytes(&self.take()?)
    }

    pub(crate) fn total(&mut self, sums: usize) -> Option<Total> {
        let (origin, exponent, [flags]) = (self.f32()?, self.f32()?, self.take()?);
        let mut total = Total { origin, exponent, ..Total::empty(flags & 4 != 0) };
        (total.nan, total.inf) = (flags & 2 != 0, flags & 1 != 0);
        for sum in &mut total.sums[..sums] {
            *sum = self.sum()?;
        }
        let is_exponent = exponent == f32::NEG_INFINITY
            || exponent.abs() <= 1_048_576.0 && exponent.round_ties_even() == exponent;
        (flags < 8 && origin.is_finite() && is_exponent).then_some(total)
    }
}
