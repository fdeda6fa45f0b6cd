//! A batch with everything that a call takes, and what the documentation says is wrong with it.

use crate::input::{Input, Numbers};
use crate::mask::Mask;
use crate::number::Logit;
use crate::refusal::said;
use xent::{
    Backend, CrossEntropy, EmptyMean, Error, Ids, Reduction, SparseProbs, Targets, Upstream,
};

/// Ids to ignore: none, one or several, which may be classes or be there twice.
#[derive(Clone, Debug)]
pub struct Ignored(pub Vec<i64>);

impl Ignored {
    pub fn any(input: &mut Input<'_>) -> Self {
        let id = |input: &mut Input<'_>| match input.byte() {
            byte @ 0..=199 => byte.into(),
            _ => input.pick(&[-100, -1, 0, i64::MIN, i64::MAX]),
        };
        Ignored(match input.byte() % 8 {
            0..=3 => vec![-100],
            4 => vec![],
            5 => vec![id(input)],
            _ => (0..2 + input.below(3)).map(|_| id(input)).collect(),
        })
    }

    pub fn contains(&self, id: i128) -> bool {
        self.0.iter().any(|&ignored| i128::from(ignored) == id)
    }

    /// One of them.
    fn pick(&self, input: &mut Input<'_>) -> Option<i64> {
        match &self.0[..] {
            [] => None,
            [one] => Some(*one),
            all => Some(input.pick(all)),
        }
    }
}

/// Class ids in any of the types that they may have.
#[derive(Clone, Debug)]
pub enum OwnedIds {
    I64(Vec<i64>),
    I32(Vec<i32>),
    U32(Vec<u32>),
    Usize(Vec<usize>),
}

impl OwnedIds {
    pub fn any(input: &mut Input<'_>, len: usize, vocab: usize, ignored: &Ignored) -> Self {
        let kind = input.byte() % 4;
        let wrong = input.one_in(16);
        let mut id = || match input.byte() {
            byte @ 0..=99 if vocab > 0 => i128::from(byte) % vocab as i128,
            100..=199 if vocab > 0 => input.below(vocab) as i128,
            byte if wrong && byte & 1 == 0 => input.pick(&[
                -1,
                vocab as i128,
                i64::MIN.into(),
                i64::MAX.into(),
                u64::MAX.into(),
                u32::MAX.into(),
                (1 << 32) + 1,
            ]),
            _ => ignored.pick(input).unwrap_or(0).into(),
        };
        let ids = (0..len).map(|_| id());
        match kind {
            0 => OwnedIds::I64(ids.map(|id| id as i64).collect()),
            1 => OwnedIds::I32(ids.map(|id| id as i32).collect()),
            2 => OwnedIds::U32(ids.map(|id| id as u32).collect()),
            _ => OwnedIds::Usize(ids.map(|id| id as usize).collect()),
        }
    }

    pub fn ids(&self) -> Ids<'_> {
        match self {
            OwnedIds::I64(ids) => ids.into(),
            OwnedIds::I32(ids) => ids.into(),
            OwnedIds::U32(ids) => ids.into(),
            OwnedIds::Usize(ids) => ids.into(),
        }
    }

    pub fn values(&self) -> Vec<i128> {
        match self {
            OwnedIds::I64(ids) => ids.iter().map(|&id| id.into()).collect(),
            OwnedIds::I32(ids) => ids.iter().map(|&id| id.into()).collect(),
            OwnedIds::U32(ids) => ids.iter().map(|&id| id.into()).collect(),
            OwnedIds::Usize(ids) => ids.iter().map(|&id| id as i128).collect(),
        }
    }
}

#[derive(Clone, Debug)]
pub enum OwnedTargets {
    Classes(OwnedIds),
    /// Never made by [`Case::any`].
    Shifted {
        ids: OwnedIds,
        sequence: usize,
        shift: usize,
    },
    Dense(Numbers),
    Sparse {
        ids: OwnedIds,
        probs: Numbers,
        k: usize,
    },
}

impl OwnedTargets {
    fn any(
        input: &mut Input<'_>,
        rows: usize,
        vocab: usize,
        ignored: &Ignored,
        double: bool,
    ) -> Self {
        // Of the other precision, which is an error.
        let double = double ^ input.one_in(64);
        match input.byte() % 4 {
            0 | 1 => {
                let len = input.length(rows);
                OwnedTargets::Classes(OwnedIds::any(input, len, vocab, ignored))
            }
            2 => {
                let len = input.length(rows * vocab);
                OwnedTargets::Dense(input.weights(len, double))
            }
            _ => {
                let k = if input.one_in(64) { usize::MAX / 2 } else { input.below(6) };
                let right = rows * k.min(6);
                let (ids, probs) = (input.length(right), input.length(right));
                OwnedTargets::Sparse {
                    ids: OwnedIds::any(input, ids, vocab, ignored),
                    probs: input.weights(probs, double),
                    k,
                }
            }
        }
    }

    pub fn targets(&self) -> Targets<'_> {
        match self {
            OwnedTargets::Classes(ids) => ids.ids().into(),
            OwnedTargets::Shifted { ids, sequence, shift } => {
                Targets::shifted(ids.ids(), *sequence, *shift)
            }
            OwnedTargets::Dense(probs) => Targets::probs(probs.floats()),
            OwnedTargets::Sparse { ids, probs, k } => {
                SparseProbs::new(ids.ids(), probs.floats(), *k).into()
            }
        }
    }
}

#[derive(Clone, Debug)]
pub struct Options {
    pub ignored: Ignored,
    pub reduction: Reduction,
    pub empty_mean: EmptyMean,
    pub label_smoothing: f64,
    pub z_loss: f64,
    pub logit_scale: f64,
    pub temperature: f64,
    pub softcap: Option<f64>,
    pub caps_infinities: bool,
    pub class_weights: Option<Numbers>,
    pub token_weights: Option<Numbers>,
    pub mask: Option<Mask>,
}

impl Options {
    fn any(input: &mut Input<'_>, rows: usize, vocab: usize, double: bool) -> Self {
        Options {
            ignored: Ignored::any(input),
            reduction: match input.byte() % 4 {
                0 | 1 => Reduction::Mean,
                2 => Reduction::Sum,
                _ => Reduction::MeanOver(input.option(&[7.0, 1.0, 1e6])),
            },
            empty_mean: if input.flag() { EmptyMean::Zero } else { EmptyMean::Nan },
            label_smoothing: input.option(&[0.0, 0.1, 0.5, 1.0]),
            z_loss: input.option(&[0.0, 1e-4, 0.5]),
            logit_scale: input.option(&[1.0, 0.37, 0.125, 2.0, 30.0]),
            temperature: input.option(&[1.0, 0.6, 2.0, 1.3]),
            softcap: input.one_in(4).then(|| input.option(&[30.0, 50.0, 5.5, 0.5])),
            caps_infinities: input.flag(),
            class_weights: input.one_in(4).then(|| {
                let len = input.length(vocab);
                let double = double ^ input.one_in(64);
                input.weights(len, double)
            }),
            token_weights: input.one_in(4).then(|| {
                let len = input.length(rows);
                let double = input.flag();
                input.weights(len, double)
            }),
            mask: None,
        }
    }

    pub fn cross_entropy(&self, backend: Backend) -> CrossEntropy<'_> {
        let mut ce = CrossEntropy::new()
            .backend(backend)
            .reduction(self.reduction)
            .empty_mean(self.empty_mean)
            .label_smoothing(self.label_smoothing)
            .z_loss(self.z_loss)
            .logit_scale(self.logit_scale)
            .temperature(self.temperature);
        ce = match &self.ignored.0[..] {
            [] => ce.no_ignore_index(),
            [one] => ce.ignore_index(*one),
            all => ce.ignore_indices(all),
        };
        ce = match self.softcap {
            Some(c) if self.caps_infinities => ce.softcap_of_all(c),
            Some(c) => ce.softcap(c),
            None => ce,
        };
        if let Some(weights) = &self.class_weights {
            ce = ce.class_weights(weights.floats());
        }
        if let Some(weights) = &self.token_weights {
            ce = ce.token_weights(weights.floats());
        }
        match &self.mask {
            Some(mask) => ce.allowed_tokens(mask.allowed()),
            None => ce,
        }
    }

    pub fn transforms(&self) -> bool {
        self.softcap.is_some() || self.logit_scale != 1.0 || self.temperature != 1.0
    }

    fn problems(&self) -> Vec<Error> {
        let mut problems = Vec::new();
        if let Reduction::MeanOver(count) = self.reduction
            && !(count > 0.0 && count.is_finite())
        {
            problems.push(Error::Count { count: said(count) });
        }
        let mut option = |option, value: f64, allowed: bool, range| {
            if !allowed {
                problems.push(Error::Option { option, value: said(value), range });
            }
        };
        let e = self.label_smoothing;
        option("label_smoothing", e, (0.0..=1.0).contains(&e), "between 0 and 1");
        let z = self.z_loss;
        option("z_loss", z, (0.0..f64::INFINITY).contains(&z), "finite and not negative");
        for (name, value) in [
            ("logit_scale", self.logit_scale),
            ("temperature", self.temperature),
            ("softcap", self.softcap.unwrap_or(1.0)),
        ] {
            let single = value as f32;
            let allowed = single.is_normal() && single > 0.0;
            option(name, value, allowed, "a positive number of the range of f32");
        }
        problems
    }
}

/// What the loss is multiplied by in what is trained.
#[derive(Clone, Debug)]
pub enum OwnedUpstream {
    All(f64),
    Each(Numbers),
}

impl OwnedUpstream {
    fn any(input: &mut Input<'_>, rows: usize) -> Self {
        if input.byte().is_multiple_of(2) {
            return OwnedUpstream::All(input.option(&[1.0, 0.5, -3.0, 1e-3]));
        }
        let (len, double) = (input.length(rows), input.flag());
        OwnedUpstream::Each(input.weights(len, double))
    }

    pub fn upstream(&self) -> Upstream<'_> {
        match self {
            OwnedUpstream::All(all) => (*all).into(),
            OwnedUpstream::Each(each) => Upstream::rows(each.floats()),
        }
    }

    pub fn get(&self, row: usize) -> f64 {
        match self {
            OwnedUpstream::All(all) => *all,
            OwnedUpstream::Each(each) => each.get(row),
        }
    }
}

#[derive(Clone, Debug)]
pub struct Case<T> {
    pub rows: usize,
    pub vocab: usize,
    pub options: Options,
    pub targets: OwnedTargets,
    pub upstream: OwnedUpstream,
    /// `[rows, vocab]`, contiguous.
    pub x: Vec<T>,
}

/// Rows and classes: mostly few, some around the sizes of blocks, and rarely as many as go to other threads.
pub fn shape(input: &mut Input<'_>) -> (usize, usize) {
    let rows = input.pick(&[2, 1, 3, 0, 4, 5, 6, 7, 8, 9, 10, 11, 12]);
    let around_8192 = [8190, 8191, 8192, 8193, 8194, 9000];
    match input.byte() {
        100..=102 => (rows.max(9), input.pick(&around_8192)),
        103..=109 => (rows.min(2), input.pick(&around_8192)),
        110..=119 => (rows.min(3), 1023 + input.below(4)),
        120..=129 => (rows.min(3), 1023 + 5 * input.below(256)),
        130..=179 => (rows, input.below(300)),
        _ => (rows, (1 + input.below(70)) % 70),
    }
}

impl<T: Logit> Case<T> {
    pub fn any(input: &mut Input<'_>) -> Self {
        let (rows, vocab) = shape(input);
        Self::of_shape(input, rows, vocab)
    }

    pub fn of_shape(input: &mut Input<'_>, rows: usize, vocab: usize) -> Self {
        let double = size_of::<T>() == 8;
        let options = Options::any(input, rows, vocab, double);
        let targets = OwnedTargets::any(input, rows, vocab, &options.ignored, double);
        let upstream = OwnedUpstream::any(input, rows);
        let x = (0..rows).flat_map(|_| input.row(vocab)).collect();
        Case { rows, vocab, options, targets, upstream, x }
    }

    /// The same with other logits.
    pub fn with<U>(&self, x: Vec<U>) -> Case<U> {
        Case {
            rows: self.rows,
            vocab: self.vocab,
            options: self.options.clone(),
            targets: self.targets.clone(),
            upstream: self.upstream.clone(),
            x,
        }
    }

    pub fn row(&self, i: usize) -> &[T] {
        &self.x[i * self.vocab..][..self.vocab]
    }

    /// Whether a row's target is to be ignored. To be asked of valid cases.
    pub fn is_ignored(&self) -> Vec<bool> {
        match &self.targets {
            OwnedTargets::Classes(ids) => {
                ids.values().into_iter().map(|id| self.options.ignored.contains(id)).collect()
            }
            OwnedTargets::Shifted { ids, sequence, shift } => {
                let (ids, ignored) = (ids.values(), &self.options.ignored);
                let is_ignored =
                    |row| row % sequence + shift >= *sequence || ignored.contains(ids[row + shift]);
                (0..self.rows).map(is_ignored).collect()
            }
            _ => vec![false; self.rows],
        }
    }

    /// Everything that is wrong with options, weights and targets, as errors that say so.
    pub fn problems(&self) -> Vec<Error> {
        let mut problems = self.options.problems();
        let length = |what, numbers: &Numbers, expected| {
            let len = numbers.len();
            (len != expected).then_some(Error::InputLength { what, len, expected })
        };
        if let Some(weights) = &self.options.class_weights {
            problems.extend(length("class_weights", weights, self.vocab));
            problems.extend(precision::<T>("class_weights", weights));
        }
        if let Some(weights) = &self.options.token_weights {
            problems.extend(length("token_weights", weights, self.rows));
        }
        problems.extend(self.target_problems());
        problems
    }

    pub fn upstream_problem(&self) -> Option<Error> {
        let OwnedUpstream::Each(each) = &self.upstream else { return None };
        let (len, expected) = (each.len(), self.rows);
        let what = "upstream gradients";
        (len != expected).then_some(Error::InputLength { what, len, expected })
    }

    fn target_problems(&self) -> Vec<Error> {
        let (rows, vocab) = (self.rows, self.vocab);
        let mut problems = Vec::new();
        if !matches!(self.targets, OwnedTargets::Classes(_)) && vocab == 0 && rows > 0 {
            problems.push(Error::NoClasses { rows });
        }
        let mut length = |what, len, expected| {
            if len != expected {
                problems.push(Error::InputLength { what, len, expected });
            }
        };
        match &self.targets {
            OwnedTargets::Classes(ids) => {
                let targets = ids.ids().len();
                if targets != rows {
                    problems.push(Error::TargetCount { rows, targets });
                }
                problems.extend(self.first_out_of_range(ids, 1));
            }
            OwnedTargets::Dense(probs) => {
                length("target probabilities", probs.len(), rows * vocab);
                problems.extend(precision::<T>("target probabilities", probs));
                let first = self.options.ignored.0.iter().copied().find(|&id| id >= 0);
                if let Some(ignore_index) = first {
                    problems.push(Error::IgnoreIndexWithProbs { ignore_index });
                }
            }
            OwnedTargets::Shifted { .. } => unreachable!("asked of plain cases"),
            OwnedTargets::Sparse { ids, probs, k } => {
                let Some(expected) = rows.checked_mul(*k) else {
                    problems.push(Error::Overflow { rows, elements: *k });
                    return problems;
                };
                length("sparse target ids", ids.ids().len(), expected);
                length("sparse target probabilities", probs.len(), expected);
                problems.extend(precision::<T>("sparse target probabilities", probs));
                problems.extend(self.first_out_of_range(ids, *k));
            }
        }
        problems
    }

    fn first_out_of_range(&self, ids: &OwnedIds, k: usize) -> Option<Error> {
        let (vocab, ignored) = (self.vocab, &self.options.ignored);
        let wrong =
            |&(_, id): &(usize, i128)| !ignored.contains(id) && !(0..vocab as i128).contains(&id);
        let (i, target) = ids.values().into_iter().enumerate().find(wrong)?;
        Some(Error::TargetOutOfRange { row: i / k.max(1), target, vocab })
    }
}

fn precision<T: Logit>(what: &'static str, numbers: &Numbers) -> Option<Error> {
    let (needed, given) = match (size_of::<T>() == 8, numbers.is_double()) {
        (true, false) => ("f64", "f32"),
        (false, true) => ("f32", "f64"),
        _ => return None,
    };
    Some(Error::Precision { what, needed, given })
}
