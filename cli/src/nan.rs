//! Rows that make everything NaN.
#![forbid(unsafe_code)]

use std::fmt::Display;

/// How many rows have a result that is NaN, and the first of them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct NanRows {
    pub(crate) count: u64,
    pub(crate) first: Option<u64>,
}

impl NanRows {
    /// From the results of rows.
    pub(crate) fn of<R: Copy + Into<f64>>(rows: &[R]) -> Self {
        let is_nan = |x: R| -> bool { x.into().is_nan() };
        let mut nan = rows.iter().zip(0..).filter(|&(&x, _)| is_nan(x)).map(|(_, row)| row);
        let first = nan.next();
        NanRows { count: u64::from(first.is_some()) + nan.count() as u64, first }
    }

    /// What to tell whoever wonders why `what` is NaN, with the reason if it is known of a row.
    pub(crate) fn warning<S: Display>(
        self,
        what: &str,
        why: impl FnOnce(usize) -> Option<S>,
    ) -> Option<String> {
        let row = self.first?;
        let rows = if self.count == 1 { "row" } else { "rows" };
        let why = usize::try_from(row).ok().and_then(why);
        let why = why.map_or_else(String::new, |why| format!(": {why}"));
        Some(format!("the {what} of {} {rows} is NaN, first in row {row}{why}", self.count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_and_all() {
        let nan = f32::NAN;
        let of = |rows: &[f32]| {
            let NanRows { count, first } = NanRows::of(rows);
            (count, first)
        };
        assert_eq!(of(&[]), (0, None));
        assert_eq!(of(&[1.0, f32::INFINITY]), (0, None));
        assert_eq!(of(&[1.0, nan, 2.0, nan, -nan]), (3, Some(1)));
        assert_eq!(NanRows::of(&[f64::NAN]).first, Some(0));
    }
}
