//! Stores past the caches, and the fence that they need.
//!
//! Such stores are not ordered with anything else, not even on their own thread. Before the fence
//! nothing that was streamed may be read, written again, or told of to another thread; by the rules
//! of the language that would be undefined, whatever a CPU does. No rule has to be kept in mind for
//! that: vectors are streamed by way of a [`Streaming`] only, which has the one mutable reference
//! to their memory until it is dropped, and ends with the fence.
#![forbid(unsafe_code)]

use super::vectors::{Fenced, LANES, LANES_64, Lane, Lanes64, Simd, Simd64};
use std::mem::take;

/// Memory that is streamed to, from its beginning to its end. When this is dropped, it may be used
/// again.
pub(crate) struct Streaming<'a, S: Simd, T: Streamed<S>> {
    s: S,
    left: &'a mut [T],
}

impl<'a, S: Simd, T: Streamed<S>> Streaming<'a, S, T> {
    #[inline(always)]
    pub(crate) fn new(s: S, to: &'a mut [T]) -> Self {
        Streaming { s, left: to }
    }

    /// The next elements, to be written in any way; no part of the memory is handed out twice.
    #[inline(always)]
    pub(crate) fn next(&mut self, len: usize) -> Part<'_, S, T> {
        let (part, left) = take(&mut self.left).split_at_mut(len);
        self.left = left;
        let head = part.as_ptr().align_offset(size_of::<T::Lanes>()).min(len);
        let (head, part) = part.split_at_mut(head);
        let (vectors, tail) = T::vectors(part);
        Part { head, vectors: Vectors { s: self.s, to: vectors }, tail }
    }
}

impl<S: Simd, T: Streamed<S>> Drop for Streaming<'_, S, T> {
    #[inline(always)]
    fn drop(&mut self) {
        self.s.fence();
    }
}

/// Elements that follow one another: up to the first vector that is aligned to its size, vectors,
/// and what is no whole one.
pub(crate) struct Part<'a, S: Simd, T: Streamed<S>> {
    pub(crate) head: &'a mut [T],
    pub(crate) vectors: Vectors<'a, S, T>,
    pub(crate) tail: &'a mut [T],
}

/// Vectors to be streamed, which nobody can read.
pub(crate) struct Vectors<'a, S: Simd, T: Streamed<S>> {
    s: S,
    to: &'a mut [T::Lanes],
}

impl<'a, S: Simd, T: Streamed<S>> Vectors<'a, S, T> {
    #[inline(always)]
    pub(crate) fn len(&self) -> usize {
        self.to.len()
    }

    #[inline(always)]
    pub(crate) fn put(&mut self, i: usize, v: T::Vector) {
        T::stream(self.s, Fenced(&mut self.to[i]), v);
    }

    /// The first of them, which are then no longer among these.
    #[inline(always)]
    pub(crate) fn take(&mut self, len: usize) -> Self {
        let (taken, left) = take(&mut self.to).split_at_mut(len);
        self.to = left;
        Vectors { s: self.s, to: taken }
    }
}

/// Numbers of which vectors can be streamed.
pub(crate) trait Streamed<S: Simd>: Sized {
    /// The memory of a vector.
    type Lanes;
    type Vector;

    /// Vectors, and what is no whole one.
    fn vectors(slice: &mut [Self]) -> (&mut [Self::Lanes], &mut [Self]);

    fn stream(s: S, to: Fenced<'_, Self::Lanes>, v: Self::Vector);
}

impl<S: Simd, T: Lane> Streamed<S> for T {
    type Lanes = [T; LANES];
    type Vector = S::V;

    #[inline(always)]
    fn vectors(slice: &mut [T]) -> (&mut [[T; LANES]], &mut [T]) {
        slice.as_chunks_mut()
    }
    #[inline(always)]
    fn stream(s: S, to: Fenced<'_, [T; LANES]>, v: S::V) {
        Lane::stream(s, to, v);
    }
}

impl<S: Simd> Streamed<S> for f64 {
    type Lanes = Lanes64;
    type Vector = S::D;

    #[inline(always)]
    fn vectors(slice: &mut [f64]) -> (&mut [Lanes64], &mut [f64]) {
        slice.as_chunks_mut::<LANES_64>()
    }
    #[inline(always)]
    fn stream(s: S, to: Fenced<'_, Lanes64>, v: S::D) {
        Simd64::dstream(s, to, v);
    }
}
