//! Random numbers by token: what makes a sample the same on any number of threads, and of any shards.
//!
//! The generator is Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011), which has no
//! state: its output is a function of a key and a counter. The key is the seed; the counter is the position and
//! the token.

use crate::math;
use crate::simd::LANES;

/// What a draw depends on, besides the logits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Key {
    /// Of the sampler.
    pub seed: u64,
    /// Of the token in its sequence.
    pub position: u64,
}

const MULTIPLIERS: [u32; 2] = [0xd251_1f53, 0xcd9e_8d57];
const WEYL: [u32; 2] = [0x9e37_79b9, 0xbb67_ae85];
const ROUNDS: usize = 10;

/// The generator, for `N` counters at once: plain loops, which the compiler makes vectors of.
#[inline(always)]
pub fn philox<const N: usize>(mut c: [[u32; N]; 4], mut key: [u32; 2]) -> [[u32; N]; 4] {
    for round in 0..ROUNDS {
        if round > 0 {
            key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
        }
        let mut next = [[0; N]; 4];
        for i in 0..N {
            let a = u64::from(c[0][i]) * u64::from(MULTIPLIERS[0]);
            let b = u64::from(c[2][i]) * u64::from(MULTIPLIERS[1]);
            next[0][i] = (b >> 32) as u32 ^ c[1][i] ^ key[0];
            next[1][i] = b as u32;
            next[2][i] = (a >> 32) as u32 ^ c[3][i] ^ key[1];
            next[3][i] = a as u32;
        }
        c = next;
    }
    c
}

fn halves(x: u64) -> [u32; 2] {
    [x as u32, (x >> 32) as u32]
}

/// Which part of a token's random number is wanted.
const HIGH: u32 = 0;
const LOW: u32 = 1;

/// The upper halves of the random numbers of 64 tokens, of which the first is a multiple of 64: word `j` of lane `i` is
/// that of token `16 j + i`, as a step has them.
#[inline(always)]
pub fn high_words(key: Key, first: u32) -> [[u32; LANES]; 4] {
    let mut counter = [0; LANES];
    for (i, counter) in counter.iter_mut().enumerate() {
        *counter = (first >> 6 << 4) + i as u32;
    }
    let [low, high] = halves(key.position);
    philox([counter, [HIGH; LANES], [low; LANES], [high; LANES]], halves(key.seed))
}

/// One half of the random number of a token.
fn word(key: Key, id: u32, half: u32) -> u32 {
    let counter = (id >> 6 << 4) + (id & 15);
    let [low, high] = halves(key.position);
    let words = philox([[counter], [half], [low], [high]], halves(key.seed));
    words[(id >> 4 & 3) as usize][0]
}

/// The 64 random bits of a token.
pub fn bits(key: Key, id: u32) -> u64 {
    u64::from(word(key, id, HIGH)) << 32 | u64::from(word(key, id, LOW))
}

/// What no standard Gumbel number made here exceeds: `-ln(2^-65)`, rounded up.
pub const MOST: f64 = 45.06;

/// `-ln(-ln u)` for `u = 1 - (bits + 1/2) / 2^64`, to a few ULP: both tails are exact, down to where there are 64 bits
/// no more.
pub fn from_bits(bits: u64) -> f64 {
    const UNIT: f64 = 1.0 / 18_446_744_073_709_551_616.0;
    let v = (bits as f64 + 0.5) * UNIT;
    // -ln(1 - v). Large results come from small v, which is kept; and where 1 - v is small, that is.
    let exponential =
        if v < 0.25 { math::neg_ln_one_minus(v) } else { -math::ln(((!bits) as f64 + 0.5) * UNIT) };
    -math::ln(exponential)
}

/// What tokens are compared by: the largest `z + temperature * g` is drawn with the probabilities of
/// `softmax(z / temperature)`.
pub(crate) fn score(z: f32, temperature: f64, key: Key, id: u32) -> f64 {
    f64::from(z) + temperature * from_bits(bits(key, id))
}
