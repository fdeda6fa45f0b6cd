//! Transposes tiles of 16 by 16: what is not in rows is brought into rows, and back.

use crate::simd::Op;
use crate::simd::{LANES, Simd};

/// `to[j][i] = from[i][j]` of a matrix of `rows` by `columns`.
pub(crate) struct Transpose<'a, T> {
    pub(crate) from: &'a [T],
    pub(crate) from_stride: usize,
    pub(crate) to: &'a mut [T],
    pub(crate) to_stride: usize,
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    /// Which is gone through in the outer loop, 16 at a time: that of which one is far from the next in
    /// memory, as each of the others is then read or written from its beginning to its end.
    pub(crate) outer: Outer,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Outer {
    Rows,
    Columns,
}

/// A number whose bits are moved.
pub(crate) trait Cell: Copy {
    fn load<S: Simd>(s: S, from: &[Self; LANES]) -> S::V;
    fn store<S: Simd>(s: S, to: &mut [Self; LANES], v: S::V);
}

impl Cell for f32 {
    #[inline(always)]
    fn load<S: Simd>(s: S, from: &[f32; LANES]) -> S::V {
        s.load(from)
    }
    #[inline(always)]
    fn store<S: Simd>(s: S, to: &mut [f32; LANES], v: S::V) {
        s.store(to, v);
    }
}

impl Cell for u16 {
    #[inline(always)]
    fn load<S: Simd>(s: S, from: &[u16; LANES]) -> S::V {
        s.load_u16(from)
    }
    #[inline(always)]
    fn store<S: Simd>(s: S, to: &mut [u16; LANES], v: S::V) {
        s.store_u16(to, v);
    }
}

impl<T: Copy> Transpose<'_, T> {
    /// How far the outer and the inner loop go.
    #[inline(always)]
    fn extent(&self) -> (usize, usize) {
        match self.outer {
            Outer::Rows => (self.rows, self.columns),
            Outer::Columns => (self.columns, self.rows),
        }
    }

    /// The first row and column of a tile.
    #[inline(always)]
    fn corner(&self, outer: usize, inner: usize) -> (usize, usize) {
        match self.outer {
            Outer::Rows => (outer, inner),
            Outer::Columns => (inner, outer),
        }
    }

    /// A tile, which may have fewer rows or columns, one element after the other.
    #[inline(always)]
    fn slowly(&mut self, i: usize, j: usize) {
        for j in j..self.columns.min(j + LANES) {
            for i in i..self.rows.min(i + LANES) {
                self.to[j * self.to_stride + i] = self.from[i * self.from_stride + j];
            }
        }
    }

    /// Without vectors.
    pub(crate) fn run_scalar(&mut self) {
        let (outer, inner) = self.extent();
        for a in (0..outer).step_by(LANES) {
            for b in (0..inner).step_by(LANES) {
                let (i, j) = self.corner(a, b);
                self.slowly(i, j);
            }
        }
    }
}

#[inline(always)]
pub(crate) fn run<S: Simd, T: Cell>(s: S, job: &mut Transpose<'_, T>) {
    let (outer, inner) = job.extent();
    for a in (0..outer).step_by(LANES) {
        for b in (0..inner).step_by(LANES) {
            let (i, j) = job.corner(a, b);
            if i + LANES <= job.rows && j + LANES <= job.columns {
                whole_tile(s, job, i, j);
            } else {
                job.slowly(i, j);
            }
        }
    }
}

#[inline(always)]
fn whole_tile<S: Simd, T: Cell>(s: S, job: &mut Transpose<'_, T>, i: usize, j: usize) {
    let mut v = [s.splat(0.0); LANES];
    for (k, v) in v.iter_mut().enumerate() {
        let from = &job.from[(i + k) * job.from_stride + j..];
        // Of the tile that is next if rows are the outer loop, and there are few columns.
        s.prefetch(from.as_ptr().wrapping_add(LANES * job.from_stride));
        *v = T::load(s, from.first_chunk().expect("a tile is whole"));
    }
    let v = s.transpose(v);
    for (k, v) in v.into_iter().enumerate() {
        let to = &mut job.to[(j + k) * job.to_stride + i..];
        T::store(s, to.first_chunk_mut().expect("a tile is whole"), v);
    }
}

impl<T: Cell> Op for &mut Transpose<'_, T> {
    type Out = ();

    #[inline(always)]
    fn on<S: Simd>(self, s: S) {
        run(s, self);
    }
}
