//! Numbers as text.
#![forbid(unsafe_code)]

/// The shortest form of a number, with an exponent where there would be dozens of zeros.
pub(crate) fn shortest(x: f64) -> String {
    if x == 0.0 || !x.is_finite() || (1e-5..1e16).contains(&x.abs()) {
        x.to_string()
    } else {
        format!("{x:e}")
    }
}

/// Six decimals, or six digits after the first where decimals would show nothing.
pub(crate) fn number(x: f64) -> String {
    if x != 0.0 && x.is_finite() && !(1e-3..1e12).contains(&x.abs()) {
        format!("{x:.6e}")
    } else {
        format!("{x:.6}")
    }
}
