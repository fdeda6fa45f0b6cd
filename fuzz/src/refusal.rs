//! The check of an error: it is one of the things that are wrong, and its message has their numbers.

use xent::Error;

/// What is where nothing may be written.
pub const UNTOUCHED: f64 = -77.0;

/// A number as errors say it.
pub fn said(x: impl std::fmt::Debug) -> String {
    let text = format!("{x:?}");
    text.strip_suffix(".0").map(str::to_owned).unwrap_or(text)
}

/// Whether the message has the numbers of the error in it, which are how a caller finds the mistake.
pub fn says_what_is_wrong(error: &Error) {
    let message = error.to_string();
    let says = |part: &dyn ToString| {
        let part = part.to_string();
        assert!(message.contains(&part), "{message:?} does not have {part:?}: {error:?}");
    };
    match error {
        Error::Length { rows, vocab, len } => says_all(&says, &[rows, vocab, len]),
        Error::StridedLength { rows, vocab, stride, needed, len } => {
            says_all(&says, &[rows, vocab, stride, needed, len]);
        }
        Error::Stride { stride, vocab } => says_all(&says, &[stride, vocab]),
        Error::StridedShape { needed, len, .. } => says_all(&says, &[needed, len]),
        Error::Strides { strides, .. } | Error::Overlap { strides, .. } => {
            says_all(&says, &[&strides[0], &strides[1], &strides[2]]);
        }
        Error::Overflow { rows, elements } => says_all(&says, &[rows, elements]),
        Error::TargetCount { rows, targets } => says_all(&says, &[rows, targets]),
        Error::TargetOutOfRange { row, target, vocab } => says_all(&says, &[row, target, vocab]),
        Error::OutputLength { output, len, expected } => says_all(&says, &[output, len, expected]),
        Error::InputLength { what, len, expected } => says_all(&says, &[what, len, expected]),
        Error::Precision { what, needed, given } => says_all(&says, &[what, needed, given]),
        Error::GradientShape { gradient, logits } => {
            says_all(&says, &[&gradient.0, &gradient.1, &logits.0, &logits.1]);
        }
        Error::NoClasses { rows } => says(rows),
        Error::IgnoreIndexWithProbs { ignore_index } => says(ignore_index),
        Error::Option { option, value, range } => says_all(&says, &[option, value, range]),
        Error::Count { count } => says(count),
        Error::Sequence { rows, sequence } => says_all(&says, &[rows, sequence]),
        Error::Shift { shift, sequence } => says_all(&says, &[shift, sequence]),
        Error::Missing { output, needs } => says_all(&says, &[output, needs]),
        Error::CandidateOutOfRange { row, id, vocab } => says_all(&says, &[row, id, vocab]),
        Error::LogitBias { entry, id, value, range } => says_all(&says, &[entry, id, value, range]),
        Error::SampleTemperature { row, temperature } => says_all(&says, &[row, temperature]),
        Error::Shard { first, classes, vocab } => says_all(&says, &[first, classes, vocab]),
        Error::ComparedShape { base, other } => {
            says_all(&says, &[&base.0, &base.1, &other.0, &other.1]);
        }
        Error::NoOffsets | Error::ComparedProbs => {}
        Error::OffsetOrder { index, offset, before } => says_all(&says, &[index, offset, before]),
        Error::OffsetBound { index, offset, expected } => {
            says_all(&says, &[index, offset, expected]);
        }
        Error::BackendUnavailable { requested, .. } => says(requested),
        other => panic!("{other:?} is not for these calls"),
    }
}

fn says_all(says: &dyn Fn(&dyn ToString), parts: &[&dyn ToString]) {
    parts.iter().for_each(|part| says(*part));
}

/// An error says one of the things that are wrong; there is none if nothing is.
pub fn refuses<U: std::fmt::Debug>(result: &Result<U, Error>, problems: &[Error]) {
    match result {
        Ok(_) => assert!(problems.is_empty(), "accepted in spite of {problems:?}"),
        Err(error) => {
            says_what_is_wrong(error);
            assert!(problems.contains(error), "{error:?} is not what is wrong: {problems:?}");
        }
    }
}
