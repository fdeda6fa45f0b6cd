//! Softmax, log-softmax and logsumexp.

use super::number::{FLOOR, Number, bits, error, error_beyond_floor, strided, ulp};
use super::terms::probability_slack;
use super::worst::{Bound, Worst};
use crate::golden_data::{Case, Tensors};
use xent::{Backend, Error, Logits, LogitsMut, Softmax};

/// 0.53 seen, in units of the larger of its own magnitude and 1.
const LOGSUMEXP_BOUND: f64 = 0.75;

/// 1.14 seen.
pub(crate) const SOFTMAX_BOUND: f64 = 1.25;

/// 1.25 seen, next to a class with nearly all the probability.
const LOG_SOFTMAX_BOUND: f64 = 1.5;

/// The error of a logsumexp. Near 0 its terms cancel: the unit is that of 1, at least.
pub(crate) fn logsumexp_error<T: Number>(got: T, exact: f64) -> f64 {
    let error = error_beyond_floor(got, exact);
    if error.is_finite() { error * (ulp::<T>(exact) / T::EPSILON).min(1.0) } else { error }
}

pub(crate) fn check_logsumexp<T: Number>(
    worst: &mut Worst,
    what: &'static str,
    case: &Case,
    got: T,
    exact: f64,
) {
    let (error, name) = (logsumexp_error(got, exact), &case.name);
    let bound = Bound(what, LOGSUMEXP_BOUND).of::<T>();
    assert!(error <= bound, "{what} of {name}: {got:e} instead of {exact:e}");
    worst.see::<T>(what, error, case);
}

/// A function with a matrix as result: PyTorch's name and the bound, out of place, in place.
pub(crate) struct Transform<T>(Bound, OutOfPlace<T>, InPlace<T>);
type OutOfPlace<T> = fn(&Softmax<'static>, Logits<'_, T>, &mut [T]) -> Result<(), Error>;
type InPlace<T> = fn(&Softmax<'static>, LogitsMut<'_, T>) -> Result<(), Error>;

impl<T: Number> Transform<T> {
    pub(crate) const SOFTMAX: Self =
        Transform(Bound("softmax", SOFTMAX_BOUND), Softmax::softmax, Softmax::softmax_in_place);
    pub(crate) const LOG_SOFTMAX: Self = Transform(
        Bound("log_softmax", LOG_SOFTMAX_BOUND),
        Softmax::log_softmax,
        Softmax::log_softmax_in_place,
    );

    pub(crate) fn case(self, backend: Backend, case: &Case, file: &Tensors, worst: &mut Worst) {
        let (rows, classes, name) = (case.rows, case.classes, &case.name);
        let Transform(bound, out_of_place, in_place) = self;
        let logits = T::load(file, case, "logits");
        let (exact, torch) = (file.f64s(case, "out_f64"), T::load(file, case, "out"));
        let softmax = Softmax::new().backend(backend);

        let mut out = vec![T::default(); rows * classes];
        out_of_place(&softmax, Logits::new(&logits, rows, classes).unwrap(), &mut out).unwrap();
        for (i, (&got, &exact)) in out.iter().zip(&exact).enumerate() {
            let probability = bound.0 == "softmax";
            let slack =
                if probability { probability_slack(exact) } else { FLOOR * exact.abs().max(1.0) };
            let units = (ulp::<T>(exact), slack);
            worst.see_torch::<T>(bound.0, error(torch[i], exact, units.0, units.1), case);
            // Documented: below the smallest normal number it may be 0.
            if probability && exact < T::MIN_POSITIVE && got == T::default() {
                worst.see::<T>(bound.0, 0.0, case);
            } else {
                worst.check_in(bound, case, i, (got, exact), units);
            }
        }

        let mut same = logits.clone();
        in_place(&softmax, LogitsMut::new(&mut same, rows, classes).unwrap()).unwrap();
        assert_eq!(bits(&same), bits(&out), "{name} in place");

        let stride = classes + 3;
        let mut padded = strided(&logits, rows, classes, stride);
        let view = Logits::with_stride(&padded, rows, classes, stride).unwrap();
        out_of_place(&softmax, view, &mut same).unwrap();
        assert_eq!(bits(&same), bits(&out), "{name} with a stride");
        let view = LogitsMut::with_stride(&mut padded, rows, classes, stride).unwrap();
        in_place(&softmax, view).unwrap();
        let expected = strided(&out, rows, classes, stride);
        assert_eq!(bits(&padded), bits(&expected), "{name} in place with a stride");
    }
}

pub(crate) fn logsumexp_case<T: Number>(
    backend: Backend,
    case: &Case,
    file: &Tensors,
    worst: &mut Worst,
) {
    let (rows, classes) = (case.rows, case.classes);
    let logits = T::load(file, case, "logits");
    let softmax = Softmax::new().backend(backend);
    let mut out = vec![T::default(); rows];
    softmax.logsumexp(Logits::new(&logits, rows, classes).unwrap(), &mut out).unwrap();
    let (torch, exact) = (T::load(file, case, "out"), file.f64s(case, "out_f64"));
    for i in 0..rows {
        check_logsumexp(worst, "logsumexp", case, out[i], exact[i]);
        worst.see_torch::<T>("logsumexp", logsumexp_error(torch[i], exact[i]), case);
    }

    let padded = strided(&logits, rows, classes, classes + 3);
    let view = Logits::with_stride(&padded, rows, classes, classes + 3).unwrap();
    let mut same = vec![T::default(); rows];
    softmax.logsumexp(view, &mut same).unwrap();
    assert_eq!(bits(&same), bits(&out), "{} with a stride", case.name);
}
