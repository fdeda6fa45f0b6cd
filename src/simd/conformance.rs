//! Every operation of the vectors, on given operands: what a test compares with [`Scalar`], lane by lane.
//!
//! [`Scalar`]: super::scalar::Scalar

use super::stream::Streaming;
use super::vectors::{LANES, LANES_64, Lane, Lanes, Lanes64, Op, Simd};
use half::{bf16, f16};

/// What all operations are called with.
#[derive(Clone, Debug)]
pub struct Operands {
    /// Any numbers.
    pub f32: [[f32; 16]; 3],
    /// Any numbers.
    pub f64: [[f64; 8]; 3],
    /// The bits of half formats.
    pub u16: [u16; 16],
    /// A bit for each lane.
    pub bits: u16,
    /// The bits that are looked for.
    pub mask: u64,
    /// What sums are scaled by.
    pub factor: f64,
}

/// The result of one operation.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// That of the function.
    pub name: &'static str,
    /// How many bits a lane has; 0 for what is no number.
    pub width: u32,
    /// Their bits.
    pub lanes: Vec<u64>,
}

/// All of them.
pub(crate) struct Operations<'a>(pub(crate) &'a Operands);

/// Cache lines, so that vectors may be streamed.
#[repr(align(64))]
struct Aligned<T, const N: usize>([T; N]);

fn of_f32(name: &'static str, lanes: Lanes) -> Outcome {
    Outcome { name, width: 32, lanes: lanes.map(|x| x.to_bits().into()).to_vec() }
}

fn of_f64(name: &'static str, lanes: &[f64]) -> Outcome {
    Outcome { name, width: 64, lanes: lanes.iter().map(|x| x.to_bits()).collect() }
}

fn of_u16(name: &'static str, lanes: [u16; LANES]) -> Outcome {
    Outcome { name, width: 16, lanes: lanes.map(u64::from).to_vec() }
}

fn of_bits(name: &'static str, bits: impl Into<u64>) -> Outcome {
    Outcome { name, width: 0, lanes: vec![bits.into()] }
}

/// What [`Simd::min`] is defined for: neither NaN nor -0.
fn orderly(x: Lanes) -> Lanes {
    x.map(|x| if x.is_nan() { 1.0 } else { x + 0.0 })
}

/// What was streamed to the second vector of some memory, where it is aligned and where it is not.
#[inline(always)]
fn streamed<S: Simd, T: Lane>(s: S, v: S::V) -> [[T; LANES]; 2] {
    let mut memory = Aligned([T::default(); 5 * LANES]);
    let mut found = [[T::default(); LANES]; 2];
    for (found, start) in found.iter_mut().zip([LANES, LANES + 1]) {
        let to = &mut memory.0[start..start + 2 * LANES];
        {
            let mut streaming = Streaming::new(s, to);
            let part = streaming.next(2 * LANES);
            let mut vectors = part.vectors;
            for i in 0..vectors.len() {
                vectors.put(i, v);
            }
        }
        let first = memory.0[start..].as_ptr().align_offset(size_of::<[T; LANES]>());
        found.copy_from_slice(&memory.0[start + first..][..LANES]);
    }
    found
}

impl Op for Operations<'_> {
    type Out = Vec<Outcome>;

    #[inline(always)]
    fn on<S: Simd>(self, s: S) -> Vec<Outcome> {
        let Operands { f32, f64, u16, bits, mask, factor } = self.0;
        let mut all = Vec::new();
        macro_rules! single {
            ($($name:ident = $v:expr;)*) => {
                $(all.push(of_f32(stringify!($name), s.to_lanes($v)));)*
            };
        }
        macro_rules! double {
            ($($name:ident = $v:expr;)*) => {
                $(all.push(of_f64(stringify!($name), &s.to_lanes64($v)));)*
            };
        }
        let [a, b, c] = f32.each_ref().map(|x| s.load(x));
        single! {
            load = a;
            splat = s.splat(f32[0][0]);
            add = s.add(a, b);
            sub = s.sub(a, b);
            mul = s.mul(a, b);
            div = s.div(a, b);
            mul_add = s.mul_add(a, b, c);
            neg_mul_add = s.neg_mul_add(a, b, c);
            max_or = s.max_or(a, b);
            min = s.min(s.load(&orderly(f32[0])), s.load(&orderly(f32[1])));
            exponent_from_bits = s.exponent_from_bits(a);
            neg_abs = s.neg_abs(a);
            copy_sign = s.copy_sign(a, b);
            where_finite = s.where_finite(a, b);
            keep_bits = s.keep_bits(a, *bits);
            mul_nonzero = s.mul_nonzero(a, b);
            zero_below = s.zero_below(a, s.splat(f32[1][0].abs()));
            or3 = s.or3(a, b, c);
            load_bf16 = s.load_bf16(&u16.map(bf16::from_bits));
            load_f16 = s.load_f16(&u16.map(f16::from_bits));
            load_u16 = s.load_u16(u16);
        }
        let mut to = [bf16::ZERO; LANES];
        s.store_bf16(&mut to, a);
        all.push(of_u16("store_bf16", to.map(bf16::to_bits)));
        let mut to = [f16::ZERO; LANES];
        s.store_f16(&mut to, a);
        all.push(of_u16("store_f16", to.map(f16::to_bits)));
        let mut to = [0; LANES];
        s.store_u16(&mut to, s.load_u16(u16));
        all.push(of_u16("store_u16", to));
        for lanes in streamed::<S, f32>(s, a) {
            all.push(of_f32("stream", lanes));
        }
        for lanes in streamed::<S, bf16>(s, a) {
            all.push(of_u16("stream_bf16", lanes.map(bf16::to_bits)));
        }
        for lanes in streamed::<S, f16>(s, a) {
            all.push(of_u16("stream_f16", lanes.map(f16::to_bits)));
        }
        let mut rows = [a; LANES];
        for (i, row) in rows.iter_mut().enumerate() {
            let mut lanes = f32[i % 3];
            lanes.rotate_left(i);
            *row = s.load(&lanes);
        }
        let columns = s.transpose(rows);
        for column in columns {
            all.push(of_f32("transpose", s.to_lanes(column)));
        }
        all.push(of_bits("has_bits", u64::from(s.has_bits(a, *mask as u32))));
        all.push(of_bits("gt_bits", u64::from(s.gt_bits(a, b))));
        all.push(of_bits("ge_bits", u64::from(s.ge_bits(a, b))));

        let sums = s.wide_add(s.wide_zero(), a);
        let more = s.wide_add(sums, b);
        all.push(of_f64("wide_add", &s.wide_lanes(more)));
        all.push(of_f64("wide_scale", &s.wide_lanes(s.wide_scale(more, *factor))));
        all.push(of_f64("wide_plus", &s.wide_lanes(s.wide_plus(sums, more))));
        all.push(of_f64("wide_sum", &[s.wide_sum(sums)]));

        let [x, y, z] = f64.each_ref().map(|x| s.dload(x));
        double! {
            dload = x;
            dsplat = s.dsplat(f64[0][0]);
            dadd = s.dadd(x, y);
            dsub = s.dsub(x, y);
            dmul = s.dmul(x, y);
            dmul_add = s.dmul_add(x, y, z);
            dneg_mul_add = s.dneg_mul_add(x, y, z);
            dmax_or = s.dmax_or(x, y);
            dexponent_from_bits = s.dexponent_from_bits(x);
            dor = s.dor(x, y);
        }
        all.push(of_bits("dhas_bits", u64::from(s.dhas_bits(x, *mask))));
        all.push(of_bits("dhas_nan", u64::from(s.dhas_nan(x))));
        let mut memory = Aligned([0.0; 3 * LANES_64]);
        for start in [0, 1] {
            {
                let mut streaming = Streaming::new(s, &mut memory.0[start..start + 2 * LANES_64]);
                let mut vectors = streaming.next(2 * LANES_64).vectors;
                for i in 0..vectors.len() {
                    vectors.put(i, x);
                }
            }
            let first = memory.0[start..].as_ptr().align_offset(size_of::<Lanes64>());
            all.push(of_f64("dstream", &memory.0[start + first..][..LANES_64]));
        }
        all
    }
}
