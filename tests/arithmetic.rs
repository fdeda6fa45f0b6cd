//! Elementary functions of `f64` that are the same on every machine, and sums that do not depend on their order.

use proptest::prelude::*;
use xent::internals::arithmetic::{
    ExactSum, exp, exp2_int, exponent, ln, ln_1p, neg_ln_one_minus, one_minus_exp_neg,
};

fn close(got: f64, want: f64, what: f64) {
    let tolerance = 4.0 * f64::EPSILON * want.abs();
    assert!((got - want).abs() <= tolerance, "{what:e}: {got:e} instead of {want:e}");
}

#[test]
fn they_agree_with_the_standard_library() {
    for i in -7000..7000 {
        let x = f64::from(i) * 0.1 + 1e-3;
        close(exp(x), x.exp(), x);
    }
    for i in -1000..1000 {
        for m in [1.0, 1.1, 1.234_567, 1.4, 1.5, 1.999_999_9, 1.0 + 1e-12] {
            let x = m * exp2_int(i);
            close(ln(x), x.ln(), x);
            close(ln_1p(x), x.ln_1p(), x);
        }
    }
    for i in 0..10_000 {
        let x = f64::from(i) * 1e-3;
        close(one_minus_exp_neg(x), -(-x).exp_m1(), x);
        close(neg_ln_one_minus(x * 0.029), -(-x * 0.029).ln_1p(), x);
        close(one_minus_exp_neg(x * 1e-9), -(-x * 1e-9).exp_m1(), x);
    }
    for i in 0..10_000 {
        let x = 0.9 + f64::from(i) * 2e-5;
        close(ln(x), x.ln(), x);
        close(ln_1p(x), x.ln_1p(), x);
    }
}

#[test]
fn special_values() {
    assert_eq!(exp(f64::NEG_INFINITY), 0.0);
    assert_eq!(exp(f64::INFINITY), f64::INFINITY);
    assert!(exp(f64::NAN).is_nan());
    assert_eq!(exp(0.0), 1.0);
    close(exp(709.7), 709.7f64.exp(), 709.7);
    assert_eq!(exp(-740.0), (-740.0f64).exp());
    assert_eq!((exp(710.0), exp(-746.0)), (f64::INFINITY, 0.0));
    assert_eq!(ln(0.0), f64::NEG_INFINITY);
    assert_eq!(ln(1.0).to_bits(), 0);
    assert_eq!(ln(f64::INFINITY), f64::INFINITY);
    assert!(ln(f64::NAN).is_nan() && ln(-1.0).is_nan());
    close(ln(5e-324), 5e-324f64.ln(), 5e-324);
    assert_eq!(ln_1p(0.0).to_bits(), 0);
    assert_eq!(ln_1p(f64::INFINITY), f64::INFINITY);
    assert!(ln_1p(f64::NAN).is_nan());
    assert_eq!(ln_1p(1e-300), 1e-300);
    assert_eq!(one_minus_exp_neg(0.0).to_bits(), 0);
    assert_eq!(one_minus_exp_neg(1e-300), 1e-300);
    assert_eq!(one_minus_exp_neg(f64::INFINITY), 1.0);
    assert!(one_minus_exp_neg(f64::NAN).is_nan());
    assert_eq!(exp2_int(-1023), 0.0);
    assert_eq!((exponent(1.0), exponent(-1.99), exponent(0.3)), (0, 0, -2));
    assert_eq!((exponent(0.0), exponent(1e-320), exponent(f64::MAX)), (-1023, -1023, 1023));
    assert_eq!(exp2_int(1024), f64::INFINITY);
    assert_eq!(exp2_int(-1022), f64::MIN_POSITIVE);
}

#[test]
fn one_number_comes_back() {
    for v in [1.0, -1.5, f64::MAX, f64::MIN_POSITIVE, 5e-324, -0.1, 3e300] {
        for exponent in [0, 1, -63, 64, 500_000, -500_000] {
            let mut sum = ExactSum::ZERO;
            sum.add(v, exponent);
            let back = sum.relative_to(exponent);
            assert!(
                back == v || v.abs() < f64::MIN_POSITIVE && back.abs() <= 1e-300,
                "{v:e}: {back:e}"
            );
            assert_eq!(ExactSum::from_bytes(&sum.to_bytes()), Some(sum));
        }
    }
    assert_eq!(ExactSum::ZERO.relative_to(7), 0.0);
}

#[test]
fn what_cancels_leaves_nothing_of_itself() {
    let mut sum = ExactSum::ZERO;
    for v in [1e30, 1.0, -1e30, -1e-9] {
        sum.add(v, 10);
    }
    assert_eq!(sum.relative_to(10), 1.0 - 1e-9);
}

proptest! {
    #[test]
    fn any_order_and_any_parts_give_the_same(
        terms in prop::collection::vec((-1e6..1e6f64, -300..300i32), 1..40),
        cut in 0..40usize,
    ) {
        let sum = |terms: &mut dyn Iterator<Item = &(f64, i32)>| {
            let mut sum = ExactSum::ZERO;
            terms.for_each(|&(v, exponent)| sum.add(v, exponent));
            sum
        };
        let cut = cut.min(terms.len());
        let all = sum(&mut terms.iter());
        prop_assert_eq!(all, sum(&mut terms.iter().rev()));
        let (mut a, b) = (sum(&mut terms[..cut].iter()), sum(&mut terms[cut..].iter()));
        a.merge(&b);
        prop_assert_eq!(all, a);
        let exact: f64 = terms.iter().map(|&(v, e)| v * f64::from(e).exp2()).sum();
        let size: f64 = terms.iter().map(|&(v, e)| v.abs() * f64::from(e).exp2()).sum();
        prop_assert!((all.relative_to(0) - exact).abs() <= 1e-14 * size);
    }
}
