//! The random numbers of tokens.

use xent::internals::random::{Key, MOST, bits, from_bits, high_words, philox};

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
