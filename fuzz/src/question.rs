//! A request about rows at inference, and what the documentation says is wrong with it.

use crate::case::{Ignored, OwnedIds};
use crate::input::Input;
use crate::mask::Mask;
use crate::number::{Logit, Number};
use crate::refusal::said;
use xent::{Backend, Error, LogProbs, LogitBias, Sample, Targets};

/// Numbers that are added to logits.
#[derive(Clone, Debug)]
pub struct Bias {
    entries: Vec<(u32, f32)>,
    offsets: Option<Vec<usize>>,
}

impl Bias {
    fn any(input: &mut Input<'_>, rows: usize, vocab: usize) -> Self {
        let wrong = input.one_in(16);
        let mut entries = Vec::new();
        let mut row = |input: &mut Input<'_>| {
            let mut id = 0;
            for _ in 0..input.below(5) {
                // Ascending, unless it is to be wrong.
                id += input.below(vocab.clamp(1, 1 << 16) / 4 + 1) + usize::from(!wrong);
                if id > vocab && !wrong {
                    break;
                }
                let value = match input.byte() % 8 {
                    0..=4 => f64::from(input.byte() as i8) / 4.0,
                    5 => f64::NEG_INFINITY,
                    _ => input.number(),
                } as f32;
                let is_fine = value < f32::INFINITY;
                entries.push((
                    id as u32 - u32::from(!wrong),
                    if is_fine || wrong { value } else { 1.0 },
                ));
            }
            entries.len()
        };
        if input.flag() {
            row(input);
            return Bias { entries, offsets: None };
        }
        let mut offsets = vec![0];
        offsets.extend((0..rows).map(|_| row(input)));
        match input.byte() {
            101 => offsets.push(0),
            102 => drop(offsets.pop()),
            103 => offsets[0] = usize::MAX,
            104 => offsets.iter_mut().for_each(|offset| *offset += 1),
            _ => {}
        }
        Bias { entries, offsets: Some(offsets) }
    }

    fn bias(&self) -> LogitBias<'_> {
        match &self.offsets {
            None => LogitBias::new(&self.entries),
            Some(offsets) => LogitBias::per_row(&self.entries, offsets),
        }
    }

    fn problems(&self, rows: usize, vocab: usize) -> Vec<Error> {
        let last = self.offsets.iter().flatten().last().copied().unwrap_or(0);
        if let Some(offsets) = &self.offsets {
            let (what, len, expected) = ("offsets of logit biases", offsets.len(), rows + 1);
            if len != expected {
                return vec![Error::InputLength { what, len, expected }];
            }
            if !offsets.is_sorted() || last > self.entries.len() {
                let range = "ascending, up to the number of entries";
                return vec![Error::Option { option: what, value: format!("(.., {last})"), range }];
            }
        }
        let starts = self.offsets.as_ref().map_or(&[][..], |offsets| &offsets[..rows]);
        let wrong = |entry: usize| {
            let (id, value) = self.entries[entry];
            let range = if id as usize >= vocab {
                "the token must be in the vocabulary"
            } else if entry > 0 && !starts.contains(&entry) && self.entries[entry - 1].0 >= id {
                "its token must be above that of the entry before it; sort entries by token, with each token once"
            } else if value.is_nan() || value == f32::INFINITY {
                "the value must be a number or -inf"
            } else {
                return None;
            };
            Some(Error::LogitBias { entry, id, value: said(value), range })
        };
        let (first, last) = match &self.offsets {
            None => (0, self.entries.len()),
            Some(offsets) => (offsets[0], last),
        };
        (first..last).find_map(wrong).into_iter().collect()
    }

    fn row(&self, row: usize) -> &[(u32, f32)] {
        let offsets = self.offsets.as_ref();
        offsets.map_or(&self.entries, |offsets| &self.entries[offsets[row]..offsets[row + 1]])
    }

    /// Of some classes only, as a shard has them.
    pub fn part(&self, rows: usize, first: usize, len: usize) -> Bias {
        let (mut entries, mut offsets) = (Vec::new(), vec![0]);
        for row in 0..rows {
            let here = self
                .row(row)
                .iter()
                .filter(|(id, _)| (first..first + len).contains(&(*id as usize)));
            entries.extend(here.map(|&(id, value)| (id - first as u32, value)));
            offsets.push(entries.len());
        }
        Bias { entries, offsets: Some(offsets) }
    }
}

/// A request.
#[derive(Clone, Debug)]
pub struct Question {
    pub targets: Option<OwnedIds>,
    /// Rows of a sequence, and the shift.
    pub shifted: Option<(usize, usize)>,
    pub ignored: Ignored,
    pub candidates: Option<(OwnedIds, usize)>,
    pub top_k: usize,
    pub entropy: bool,
    pub varentropy: bool,
    pub ranks: bool,
    pub samples: Option<Vec<Sample>>,
    pub temperature: f64,
    pub bias: Option<Bias>,
    pub mask: Option<Mask>,
}

impl Question {
    pub fn any(input: &mut Input<'_>, rows: usize, vocab: usize) -> Self {
        let ignored = Ignored::any(input);
        let targets = (!input.one_in(4)).then(|| {
            let len = input.length(rows);
            OwnedIds::any(input, len, vocab, &ignored)
        });
        let shifted = input.one_in(8).then(|| {
            let sequence = if input.flag() { rows } else { input.below(5) };
            (sequence, input.below(4))
        });
        let candidates = input.one_in(3).then(|| {
            let k = if input.one_in(64) { usize::MAX / 2 } else { input.below(5) };
            let len = input.length(rows * k.min(5));
            // Nothing is ignored: what would be is class 0.
            (OwnedIds::any(input, len, vocab, &Ignored(vec![])), k)
        });
        let top_k = match input.byte() {
            byte @ 0..=199 => usize::from(byte) % (vocab.min(LogProbs::MAX_TOP_K) + 1),
            200 => usize::MAX,
            201 => LogProbs::MAX_TOP_K + 1,
            202 => vocab + 1,
            _ => 0,
        };
        let samples = input.one_in(3).then(|| {
            let len = input.length(rows);
            let mut sample = || {
                let seed = if input.flag() { input.long() } else { input.byte().into() };
                let position = if input.flag() { input.long() } else { input.byte().into() };
                let temperature = input.option(&[1.0, 0.0, 0.7, 0.01, 3.0, 100.0]);
                // Most numbers of all sizes are as good without the sign.
                let temperature = if input.one_in(16) { temperature } else { temperature.abs() };
                Sample::new(seed, position).temperature(temperature)
            };
            (0..len).map(|_| sample()).collect()
        });
        let wanted = input.byte();
        Question {
            targets,
            shifted,
            ignored,
            candidates,
            top_k,
            entropy: wanted & 1 == 1,
            varentropy: wanted & 2 == 2,
            ranks: wanted & 4 == 4,
            samples,
            temperature: input.option(&[1.0, 0.6, 2.0, 1.3, 0.25]),
            bias: input.one_in(4).then(|| Bias::any(input, rows, vocab)),
            mask: input.one_in(4).then(|| Mask::any(input, rows, vocab)),
        }
    }

    pub fn ask(&self, backend: Backend) -> LogProbs<'_> {
        let mut ask = self.plain(backend).temperature(self.temperature);
        if let Some(bias) = &self.bias {
            ask = ask.logit_bias(bias.bias());
        }
        match &self.mask {
            Some(mask) => ask.allowed_tokens(mask.allowed()),
            None => ask,
        }
    }

    /// Without what is done to the logits.
    pub fn plain(&self, backend: Backend) -> LogProbs<'_> {
        let mut ask = LogProbs::new()
            .backend(backend)
            .ignore_indices(&self.ignored.0)
            .top_k(self.top_k)
            .ranks(self.ranks)
            .entropy(self.entropy)
            .varentropy(self.varentropy);
        if let Some(ids) = &self.targets {
            ask = match self.shifted {
                Some((sequence, shift)) => {
                    ask.targets(Targets::shifted(ids.ids(), sequence, shift))
                }
                None => ask.targets(ids.ids()),
            };
        }
        if let Some((ids, k)) = &self.candidates {
            ask = ask.candidates(ids.ids(), *k);
        }
        match &self.samples {
            Some(samples) => ask.sample(samples),
            None => ask,
        }
    }

    /// `None` for rows that are ignored. To be asked of valid questions.
    pub fn targets(&self, rows: usize) -> Option<Vec<Option<usize>>> {
        let ids = self.targets.as_ref()?.values();
        let of = |row: usize| {
            let at = match self.shifted {
                Some((sequence, shift)) => {
                    (row % sequence + shift < sequence).then_some(row + shift)?
                }
                None => row,
            };
            (!self.ignored.contains(ids[at])).then_some(ids[at] as usize)
        };
        Some((0..rows).map(of).collect())
    }

    pub fn problems(&self, rows: usize, vocab: usize) -> Vec<Error> {
        let mut problems = self.target_problems(rows, vocab);
        let single = self.temperature as f32;
        if !(single.is_normal() && single > 0.0) {
            let range = "a positive number of the range of f32";
            let value = said(self.temperature);
            problems.push(Error::Option { option: "temperature", value, range });
        }
        if self.top_k > LogProbs::MAX_TOP_K {
            let range = "at most 128, the most tokens that are found of a row";
            let value = self.top_k.to_string();
            problems.push(Error::Option { option: "top_k", value, range });
        }
        if let Some((ids, k)) = &self.candidates {
            let len = ids.ids().len();
            let values = ids.values();
            let wrong = values.iter().position(|id| !(0..vocab as i128).contains(id));
            match rows.checked_mul(*k) {
                None => problems.push(Error::Overflow { rows, elements: *k }),
                Some(expected) if expected != len => {
                    problems.push(Error::InputLength { what: "candidates", len, expected });
                }
                Some(_) => problems.extend(wrong.map(|i| Error::CandidateOutOfRange {
                    row: i / k,
                    id: values[i],
                    vocab,
                })),
            }
        }
        if let Some(samples) = &self.samples {
            let len = samples.len();
            if len != rows {
                problems.push(Error::InputLength { what: "samples", len, expected: rows });
            }
            let is_fine = |t: f64| (0.0..f64::INFINITY).contains(&t);
            if let Some(row) = samples.iter().position(|sample| !is_fine(sample.temperature)) {
                let temperature = said(samples[row].temperature);
                problems.push(Error::SampleTemperature { row, temperature });
            }
        }
        if let Some(bias) = &self.bias {
            problems.extend(bias.problems(rows, vocab));
        }
        problems
    }

    fn target_problems(&self, rows: usize, vocab: usize) -> Vec<Error> {
        let Some(ids) = &self.targets else { return Vec::new() };
        let mut problems = Vec::new();
        let values = ids.values();
        if let Some((sequence, shift)) = self.shifted {
            if rows > 0 && (sequence == 0 || !rows.is_multiple_of(sequence)) {
                problems.push(Error::Sequence { rows, sequence });
            } else if rows > 0 && shift >= sequence {
                problems.push(Error::Shift { shift, sequence });
            }
        }
        if values.len() != rows {
            problems.push(Error::TargetCount { rows, targets: values.len() });
        }
        if problems.is_empty() {
            let at = |row: usize| match self.shifted {
                Some((sequence, shift)) => {
                    (row % sequence + shift < sequence).then_some(row + shift)
                }
                None => Some(row),
            };
            let wrong = |&row: &usize| {
                let id = at(row).map(|at| values[at]);
                id.is_some_and(|id| !self.ignored.contains(id) && !(0..vocab as i128).contains(&id))
            };
            problems.extend((0..rows).find(wrong).map(|row| {
                let target = values[at(row).expect("it has a target")];
                Error::TargetOutOfRange { row, target, vocab }
            }));
        }
        problems
    }

    /// The logits after temperature, bias and mask.
    pub fn transformed<T: Logit>(&self, x: &[T], vocab: usize) -> Vec<T::Real> {
        let mut z: Vec<T::Real> = x.iter().map(|x| T::Real::round(x.value())).collect();
        for (row, z) in z.chunks_mut(vocab.max(1)).enumerate() {
            for &(id, value) in self.bias.as_ref().map_or(&[][..], |bias| bias.row(row)) {
                let logit = z[id as usize].value();
                // -inf bans a token, whatever its logit is.
                let biased = if value == f32::NEG_INFINITY {
                    value.into()
                } else {
                    logit + f64::from(value)
                };
                z[id as usize] = T::Real::round(biased);
            }
        }
        if self.temperature != 1.0 {
            let t = T::Real::round(self.temperature).value();
            z.iter_mut().for_each(|z| *z = T::Real::round(z.value() / t));
        }
        if let Some(mask) = &self.mask {
            mask.apply(&mut z, vocab);
        }
        z
    }
}

#[derive(Clone, Debug)]
pub struct Asked<T> {
    pub rows: usize,
    pub vocab: usize,
    pub question: Question,
    pub x: Vec<T>,
}
