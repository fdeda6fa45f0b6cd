//! Random numbers by token: what makes a sample the same on any number of threads, and of any shards.
//!
//! The generator is Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011), which has no
//! state: its output is a function of a key and a counter. The key is the seed; the counter is the position and
//! the token.

use crate::math;
use crate::simd::LANES;

/// What a draw depends on, besides the logits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Key {
    pub(crate) seed: u64,
    pub(crate) position: u64,
}

const MULTIPLIERS: [u32; 2] = [0xd251_1f53, 0xcd9e_8d57];
const WEYL: [u32; 2] = [0x9e37_79b9, 0xbb67_ae85];
const ROUNDS: usize = 10;

/// The generator, for `N` counters at once: plain loops, which the compiler makes vectors of.
#[inline(always)]
pub(crate) fn philox<const N: usize>(mut c: [[u32; N]; 4], mut key: [u32; 2]) -> [[u32; N]; 4] {
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
pub(crate) fn high_words(key: Key, first: u32) -> [[u32; LANES]; 4] {
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
pub(crate) fn bits(key: Key, id: u32) -> u64 {
    u64::from(word(key, id, HIGH)) << 32 | u64::from(word(key, id, LOW))
}

/// What no standard Gumbel number made here exceeds: `-ln(2^-65)`, rounded up.
pub(crate) const MOST: f64 = 45.06;

/// `-ln(-ln u)` for `u = 1 - (bits + 1/2) / 2^64`, to a few ULP: both tails are exact, down to where there are 64 bits
/// no more.
pub(crate) fn from_bits(bits: u64) -> f64 {
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

#[cfg(test)]
mod tests {
    use super::*;

    /// The known answers that come with the authors' Random123 library.
    #[test]
    fn the_generator_is_philox() {
        let one = |c: [u32; 4], key| philox(c.map(|c| [c]), key).map(|[word]| word);
        assert_eq!(one([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(
            one([u32::MAX; 4], [u32::MAX; 2]),
            [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]
        );
        assert_eq!(
            one([0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344], [0xa409_3822, 0x299f_31d0]),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn steps_and_single_tokens_have_the_same_bits() {
        let key = Key { seed: 7, position: 1 << 40 };
        for first in [0, 64, 4096] {
            let words = high_words(key, first);
            for i in 0..64 {
                let high = (bits(key, first + i) >> 32) as u32;
                assert_eq!(high, words[i as usize / 16][i as usize % 16], "{i}");
            }
        }
    }

    #[test]
    fn tails_are_exact() {
        assert!((from_bits(0) - 65.0 * std::f64::consts::LN_2).abs() < 1e-14);
        assert!(from_bits(0) < MOST);
        // u = 2^-65: -ln(65 ln 2)
        assert!((from_bits(u64::MAX) + (65.0 * std::f64::consts::LN_2).ln()).abs() < 1e-14);
        assert!((from_bits(1 << 63) + 2f64.ln().ln()).abs() < 1e-15);
        for shift in 0..64 {
            let bits = 0xdead_beef_1234_5678 >> shift;
            let v = (bits as f64 + 0.5) * 2f64.powi(-64);
            let want = -(-(-v).ln_1p()).ln();
            assert!((from_bits(bits) - want).abs() < 1e-14, "{shift}");
            assert!(from_bits(bits) >= from_bits(bits + 1));
        }
    }
}
