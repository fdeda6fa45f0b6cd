//! The largest error of each statistic, on one backend.

use super::number::{FLOOR, Number, error, error_beyond_floor, ulp};
use crate::golden_data::{Case, Tensors};
use std::collections::BTreeMap;
use xent::Backend;

#[derive(Default)]
pub(crate) struct Worst {
    /// By element type and name.
    lines: BTreeMap<(&'static str, &'static str), Line>,
    /// Where PyTorch's result is not ours, on purpose: how often.
    pub(crate) deviations: BTreeMap<(&'static str, &'static str), usize>,
    /// The number of cases whose gradient was compared.
    pub(crate) gradients: BTreeMap<(&'static str, String), usize>,
}

/// With PyTorch's own where it has a result in the type of the logits.
#[derive(Default)]
struct Line {
    values: usize,
    /// Those whose reference may be off by more than 8 ULP.
    vague: usize,
    /// The largest error, and the case with it.
    xent: (f64, String),
    torch: Option<(f64, String)>,
}

/// What a statistic is called, and how many units it may be off by.
#[derive(Clone, Copy)]
pub(crate) struct Bound(pub(crate) &'static str, pub(crate) f64);

impl Bound {
    /// For results of this type.
    pub(crate) fn of<T: Number>(self) -> f64 {
        self.1.min(T::MOST)
    }

    /// What is left of it for losses that are summed before they are rounded.
    pub(crate) fn unrounded<T: Number>(self) -> f64 {
        self.of::<T>() - T::ROUNDING
    }
}

impl Worst {
    pub(crate) fn see<T: Number>(&mut self, what: &'static str, error: f64, case: &Case) {
        let line = self.lines.entry((T::DTYPE, what)).or_default();
        line.values += 1;
        if line.xent.1.is_empty() || error > line.xent.0 {
            line.xent = (error, case.name.clone());
        }
    }

    pub(crate) fn see_torch<T: Number>(&mut self, what: &'static str, error: f64, case: &Case) {
        let torch = &mut self.lines.entry((T::DTYPE, what)).or_default().torch;
        if torch.as_ref().is_none_or(|(worst, _)| error > *worst) {
            *torch = Some((error, case.name.clone()));
        }
    }

    pub(crate) fn has_gradient<T: Number>(&mut self, case: &Case) {
        *self.gradients.entry((T::DTYPE, case.op.clone())).or_default() += 1;
    }

    pub(crate) fn deviates<T: Number>(&mut self, how: &'static str) {
        *self.deviations.entry((T::DTYPE, how)).or_default() += 1;
    }

    /// One result, in units and with a slack that the caller knows.
    pub(crate) fn check_in<T: Number>(
        &mut self,
        bound: Bound,
        case: &Case,
        i: usize,
        (got, exact): (T, f64),
        (unit, slack): (f64, f64),
    ) {
        let (what, error) = (bound.0, error(got, exact, unit, slack));
        assert!(
            error <= bound.of::<T>(),
            "{what} {i} of {}: {got:e} instead of {exact:e}, {error} units",
            case.name
        );
        self.see::<T>(what, error, case);
        if slack > 8.0 * unit {
            self.lines.entry((T::DTYPE, what)).or_default().vague += 1;
        }
    }

    /// Results in ULP of their references.
    pub(crate) fn check<T: Number>(&mut self, bound: Bound, case: &Case, got: &[T], exact: &[f64]) {
        assert_eq!(got.len(), exact.len(), "{} of {}", bound.0, case.name);
        for (i, (&got, &exact)) in got.iter().zip(exact).enumerate() {
            let units = (ulp::<T>(exact), FLOOR * exact.abs().max(1.0));
            self.check_in(bound, case, i, (got, exact), units);
        }
    }

    /// `f64` results whatever the logits are, in units of `T` as well; `allowed` is an absolute error.
    pub(crate) fn check_f64<T: Number>(
        &mut self,
        what: &'static str,
        case: &Case,
        got: f64,
        exact: f64,
        allowed: f64,
    ) {
        if !exact.is_finite() {
            assert_eq!(got.is_nan(), exact.is_nan(), "{what} of {}: {got}", case.name);
            assert!(got.is_nan() || got == exact, "{what} of {}: {got}", case.name);
            return self.see::<T>(what, 0.0, case);
        }
        let slack = FLOOR * exact.abs().max(1.0);
        let error = ((got - exact).abs() - slack).max(0.0);
        assert!(error <= allowed, "{what} of {}: {got:e} instead of {exact:e}", case.name);
        self.see::<T>(what, error / ulp::<T>(exact), case);
    }

    /// PyTorch's own results in the type of the logits.
    pub(crate) fn torch<T: Number>(
        &mut self,
        what: &'static str,
        case: &Case,
        file: &Tensors,
        name: &str,
    ) {
        let (got, exact) = (T::load(file, case, name), file.f64s(case, &format!("{name}_f64")));
        for (&got, &exact) in got.iter().zip(&exact) {
            self.see_torch::<T>(what, error_beyond_floor(got, exact), case);
        }
    }

    pub(crate) fn print(&self, backend: Backend) {
        println!(
            "{backend}, largest error in ULP of the type (values whose reference has fewer digits):"
        );
        for ((dtype, what), Line { values, vague, xent, torch }) in &self.lines {
            let torch = torch.as_ref().map_or(String::new(), |(error, case)| {
                format!("; PyTorch's {dtype}: {error:.3} ({case})")
            });
            let (error, case) = xent;
            let values = format!("{values} ({vague})");
            println!("  {dtype} {what:<20} {values:>15}  xent: {error:.3} ({case}){torch}");
        }
    }
}
