//! Which rows count, and which element of the tensors that go with rows is theirs.
#![forbid(unsafe_code)]

use crate::number::{Integers, Reals};
use crate::tensor::Error;
use safetensors::Dtype;
use safetensors::tensor::TensorView;

/// A tensor with an element per token of the rows.
#[derive(Debug)]
pub(crate) struct PerToken<V> {
    pub(crate) values: V,
    /// In the file.
    pub(crate) shape: Vec<usize>,
    /// Whether it was shifted before it was written: then it has nothing for the last rows of a
    /// sequence.
    pub(crate) is_cut: bool,
}

impl<V> PerToken<V> {
    /// Where the file has an element.
    pub(crate) fn index(&self, element: usize) -> Vec<usize> {
        index(&self.shape, element)
    }
}

/// Where an element of a tensor is.
fn index(shape: &[usize], mut element: usize) -> Vec<usize> {
    let mut index = vec![0; shape.len()];
    for (i, &n) in index.iter_mut().zip(shape).rev() {
        (*i, element) = (element % n, element / n);
    }
    index
}

/// From a row to the token that it predicts, which is the row's own where targets are shifted
/// already.
#[derive(Debug)]
pub(crate) struct Steps<'a> {
    /// How far: less than `sequence`, unless there are documents.
    pub(crate) by: usize,
    /// Rows of a sequence.
    pub(crate) sequence: usize,
    /// What takes the place of sequences.
    pub(crate) documents: Option<Documents<'a>>,
}

impl Steps<'_> {
    /// Which element of a tensor of tokens belongs to a row; `None` if nothing follows the row in
    /// its document.
    pub(crate) fn element(&self, row: usize, is_cut: bool) -> Option<usize> {
        // A target of the last row of a document that was shifted already is of another document.
        let is_last = |documents: &Documents<'_>| documents.end(row) - row <= self.by.max(1);
        if self.documents.as_ref().is_some_and(is_last) {
            return None;
        }
        let position = row % self.sequence;
        let is_inside = self.by < self.sequence - position;
        if is_cut {
            return is_inside.then(|| row / self.sequence * (self.sequence - self.by) + position);
        }
        (is_inside || self.documents.is_some()).then(|| row + self.by)
    }

    /// Whether the element of each row is its own.
    pub(crate) fn are_none(&self) -> bool {
        self.by == 0 && self.documents.is_none()
    }
}

/// Where documents begin that follow one another, and where the last one ends, as in
/// flash-attention.
#[derive(Debug)]
pub(crate) struct Documents<'a>(Integers<'a>);

impl<'a> Documents<'a> {
    /// That the tensor `name` holds such offsets, of so many rows.
    pub(crate) fn new(name: &str, offsets: Integers<'a>, rows: usize) -> Result<Self, Error> {
        let wrong = |entry: usize, expected: String| {
            let (name, value) = (name.to_owned(), offsets.get(entry).to_string());
            Err(Error::Element { name, at: format!("entry {entry}"), value, expected })
        };
        let Some(last) = offsets.len().checked_sub(1) else {
            return Err(Error::NoOffsets { name: name.to_owned() });
        };
        if offsets.get(0) != 0 {
            return wrong(0, "0, where the first document begins".to_owned());
        }
        for entry in 1..=last {
            let before = offsets.get(entry - 1);
            if offsets.get(entry) < before {
                return wrong(entry, format!("at least the {before} of the entry before"));
            }
        }
        if offsets.get(last) != rows as i128 {
            return wrong(last, format!("{rows}, the number of rows, at the end"));
        }
        Ok(Documents(offsets))
    }

    /// The row after the last one of the document that a row is in.
    fn end(&self, row: usize) -> usize {
        let (mut low, mut high) = (0, self.0.len());
        while low < high {
            let middle = low.midpoint(high);
            if self.0.get(middle) > row as i128 { high = middle } else { low = middle + 1 }
        }
        // Of rows that there are, none is beyond the last offset.
        self.0.get(low.min(self.0.len() - 1)) as usize
    }
}

/// What leaves out rows where it is 0.
#[derive(Debug)]
pub(crate) enum Mask<'a> {
    Integers(Integers<'a>),
    Bools(&'a [u8]),
    Reals(Reals<'a>),
}

impl<'a> Mask<'a> {
    pub(crate) fn types() -> Vec<Dtype> {
        [&[Dtype::BOOL], &Integers::TYPES[..], &Reals::TYPES].concat()
    }

    /// From a tensor of one of these types.
    pub(crate) fn new(name: &str, view: &TensorView<'a>) -> Result<Option<Self>, Error> {
        if view.dtype() == Dtype::BOOL {
            return Ok(Some(Mask::Bools(view.data())));
        }
        if let Some(integers) = Integers::new(view) {
            return Ok(Some(Mask::Integers(integers)));
        }
        let Some(reals) = Reals::new(view) else { return Ok(None) };
        // A mask that is added to attention scores means the opposite: it is 0 where a token
        // counts.
        let is_other = |x: f64| !(x >= 0.0 && x.is_finite());
        match (0..reals.len()).find(|&i| is_other(reals.get(i))) {
            None => Ok(Some(Mask::Reals(reals))),
            Some(i) => Err(Error::Element {
                name: name.to_owned(),
                at: format!("element {:?}", index(view.shape(), i)),
                value: format!("{:?}", reals.get(i)),
                expected:
                    "0 for rows to leave out and a positive number for others; of a mask that is \
                           added to attention scores, write `mask == 0`"
                        .to_owned(),
            }),
        }
    }

    fn is_zero(&self, i: usize) -> bool {
        match self {
            Mask::Integers(x) => x.get(i) == 0,
            Mask::Bools(x) => x[i] == 0,
            Mask::Reals(x) => x.get(i) == 0.0,
        }
    }
}

/// The rows that are not left out.
#[derive(Debug)]
pub(crate) struct Kept<'a> {
    pub(crate) steps: Steps<'a>,
    pub(crate) mask: Option<PerToken<Mask<'a>>>,
    /// Where nothing else is made of them than that rows of weight 0 do not count.
    pub(crate) weights: Option<PerToken<Reals<'a>>>,
}

impl Kept<'_> {
    /// Whether it has anything to say about rows other than that their target is ignored.
    pub(crate) fn is_all(&self) -> bool {
        self.mask.is_none() && self.weights.is_none()
    }

    /// Whether a row has a target, if there are any, and one that counts.
    pub(crate) fn counts(&self, row: usize) -> bool {
        let shows = |is_cut, is_zero: &dyn Fn(usize) -> bool| {
            self.steps.element(row, is_cut).is_some_and(|i| !is_zero(i))
        };
        self.mask.as_ref().is_none_or(|mask| shows(mask.is_cut, &|i| mask.values.is_zero(i)))
            && self.weights.as_ref().is_none_or(|w| shows(w.is_cut, &|i| w.values.get(i) == 0.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn documents(offsets: &[i64]) -> Documents<'_> {
        let rows = *offsets.last().unwrap() as usize;
        Documents::new("cu", Integers::I64(offsets.into()), rows).unwrap()
    }

    #[test]
    fn ends_of_documents() {
        // Of one row, of three, empty ones anywhere.
        let documents = documents(&[0, 0, 1, 1, 1, 4, 9, 9]);
        let ends: Vec<usize> = (0..9).map(|row| documents.end(row)).collect();
        assert_eq!(ends, [1, 4, 4, 4, 9, 9, 9, 9, 9]);
    }

    #[test]
    fn elements_of_rows() {
        let all = |steps: &Steps<'_>, is_cut| -> Vec<Option<usize>> {
            (0..6).map(|row| steps.element(row, is_cut)).collect()
        };
        let steps = |by, sequence| Steps { by, sequence, documents: None };
        assert_eq!(all(&steps(0, 3), false), (0..6).map(Some).collect::<Vec<_>>());
        let shifted = [Some(1), Some(2), None, Some(4), Some(5), None];
        assert_eq!(all(&steps(1, 3), false), shifted);
        assert_eq!(all(&steps(1, 3), true), [Some(0), Some(1), None, Some(2), Some(3), None]);
        assert_eq!(all(&steps(2, 3), true), [Some(0), None, None, Some(1), None, None]);
        // Documents are counted through sequences.
        let offsets = [0, 1, 5, 5, 6];
        let packed = |by, sequence| Steps { by, sequence, documents: Some(documents(&offsets)) };
        let within = [None, Some(2), Some(3), Some(4), None, None];
        for sequence in [6, 3, 2] {
            assert_eq!(all(&packed(1, sequence), false), within, "{sequence}");
        }
        assert_eq!(all(&packed(3, 6), false), [None, Some(4), None, None, None, None]);
        assert_eq!(all(&packed(usize::MAX, 6), false), [None; 6]);
        assert_eq!(all(&packed(usize::MAX, 6), true), [None; 6]);
        assert_eq!(all(&packed(1, 6), true), [None, Some(1), Some(2), Some(3), None, None]);
        // Targets that were shifted before are their rows', but for the last of each document.
        assert_eq!(all(&packed(0, 6), false), [None, Some(1), Some(2), Some(3), None, None]);
    }

    #[test]
    fn places_in_tensors() {
        assert_eq!(index(&[2, 3, 1], 4), [1, 1, 0]);
        assert_eq!(index(&[], 0), [0; 0]);
        assert_eq!(index(&[5], 4), [4]);
    }
}
