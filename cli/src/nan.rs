//! Rows that make everything NaN.
#![forbid(unsafe_code)]

use std::fmt::Display;
use xent::{Comparison, Evaluation};

/// How many rows have a result that is NaN, and the first of them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct NanRows {
    pub(crate) count: u64,
    pub(crate) first: Option<u64>,
}

impl From<&Evaluation> for NanRows {
    fn from(evaluation: &Evaluation) -> Self {
        NanRows { count: evaluation.nan_rows(), first: evaluation.first_nan_row() }
    }
}

impl From<&Comparison> for NanRows {
    fn from(comparison: &Comparison) -> Self {
        NanRows { count: comparison.nan_rows(), first: comparison.first_nan_row() }
    }
}

impl NanRows {
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
