//! What ranks tell each other before they exchange statistics, so that all go on or all return an error.
#![forbid(unsafe_code)]

use crate::Error;
use std::ops::Range;

/// The first bytes of every message: the crate, and the version of what follows.
const PROTOCOL: [u8; 8] = *b"xent\0\0\0\x01";

/// For what a rank has to say of an error of its own.
const MESSAGE: usize = 240;

/// A message has as many bytes whatever it says: only then can it be exchanged without an agreement before.
pub(crate) const BYTES: usize = 8 + 7 * 8 + MESSAGE;

/// Which exchange follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub(crate) enum Call {
    Loss = 1,
    RowStats = 2,
}

/// What a rank is about to do, or why not.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Plan {
    pub(crate) call: Call,
    pub(crate) rows: usize,
    pub(crate) classes: Range<usize>,
    pub(crate) vocab: usize,
    pub(crate) fingerprint: u64,
    pub(crate) error: Option<String>,
}

impl Plan {
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let error = self.error.as_deref().unwrap_or("");
        // Not in the middle of a character.
        let len = (0..=error.len().min(MESSAGE)).rev().find(|&len| error.is_char_boundary(len));
        let error = &error.as_bytes()[..len.unwrap_or(0)];
        let numbers = [
            self.call as u64,
            self.rows as u64,
            self.classes.start as u64,
            self.classes.end as u64,
            self.vocab as u64,
            self.fingerprint,
            // One more than its length, as an error may have no words.
            if self.error.is_some() { error.len() as u64 + 1 } else { 0 },
        ];
        let mut bytes = PROTOCOL.to_vec();
        numbers.iter().for_each(|number| bytes.extend(number.to_le_bytes()));
        bytes.extend(error);
        bytes.resize(BYTES, 0);
        bytes
    }
}

/// A plan as it came from another rank.
struct Received<'a> {
    numbers: [u64; 6],
    error: Option<&'a [u8]>,
}

impl<'a> Received<'a> {
    fn read(bytes: &'a [u8]) -> Option<Self> {
        let rest = bytes.strip_prefix(&PROTOCOL)?;
        let (numbers, message) = rest.split_at_checked(7 * 8)?;
        let (numbers, _) = numbers.as_chunks::<8>();
        let numbers: [u64; 7] = std::array::from_fn(|i| u64::from_le_bytes(numbers[i]));
        let [call, rows, start, end, vocab, fingerprint, error] = numbers;
        let error = match error.checked_sub(1) {
            None => None,
            Some(len) => Some(message.get(..usize::try_from(len).ok()?)?),
        };
        Some(Received { numbers: [call, rows, start, end, vocab, fingerprint], error })
    }
}

/// Whether all ranks can go on: the plans of all, in the order of ranks. Every rank finds the same.
pub(crate) fn agree(plans: &[u8]) -> Result<(), Error> {
    let mut shards = Vec::new();
    let mut first: Option<[u64; 6]> = None;
    let mut mismatch = None;
    for (rank, bytes) in plans.chunks(BYTES).enumerate() {
        let Received { numbers, error } = Received::read(bytes).ok_or(Error::Protocol { rank })?;
        if let Some(error) = error {
            let message = String::from_utf8_lossy(error).into_owned();
            return Err(Error::OtherRank { rank, message });
        }
        let first = *first.get_or_insert(numbers);
        let [call, rows, start, end, vocab, fingerprint] = numbers;
        let all = [
            ("a call of kind", call, first[0]),
            ("rows", rows, first[1]),
            ("a vocabulary of", vocab, first[4]),
            ("options and targets of fingerprint", fingerprint, first[5]),
        ];
        let differing = all.into_iter().find(|(_, theirs, of_rank_0)| theirs != of_rank_0);
        if let Some((what, theirs, of_rank_0)) = differing {
            // What a rank says of itself comes first: it is the cause.
            mismatch.get_or_insert(Error::Mismatch { rank, what, theirs, of_rank_0 });
        }
        shards.push((start as usize, end as usize, rank));
    }
    if let Some(mismatch) = mismatch {
        return Err(mismatch);
    }
    shards.sort_unstable();
    let mut expected = 0;
    for &(start, end, rank) in shards.iter().filter(|(start, end, _)| start != end) {
        if start != expected || end < start {
            return Err(Error::Shards { rank, classes: start..end, expected });
        }
        expected = end;
    }
    match first {
        Some([.., vocab, _]) if expected != vocab as usize => {
            Err(Error::MissingClasses { end: expected, vocab: vocab as usize })
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(classes: Range<usize>) -> Plan {
        let (call, rows, vocab) = (Call::Loss, 3, 10);
        Plan { call, rows, classes, vocab, fingerprint: 7, error: None }
    }

    fn agreed(plans: &[Plan]) -> Result<(), Error> {
        agree(&plans.iter().flat_map(Plan::to_bytes).collect::<Vec<_>>())
    }

    #[test]
    fn shards_are_the_vocabulary_in_any_order() {
        assert_eq!(agreed(&[plan(0..10)]), Ok(()));
        assert_eq!(agreed(&[plan(4..10), plan(0..4)]), Ok(()));
        assert_eq!(agreed(&[plan(0..4), plan(4..4), plan(4..10), plan(9..9)]), Ok(()));
        let error = Error::Shards { rank: 1, classes: 5..10, expected: 4 };
        assert_eq!(agreed(&[plan(0..4), plan(5..10)]), Err(error));
        let error = Error::Shards { rank: 1, classes: 3..10, expected: 4 };
        assert_eq!(agreed(&[plan(0..4), plan(3..10)]), Err(error.clone()));
        assert_eq!(
            error.to_string(),
            "rank 1 has classes 3..10, but those before end at 4: the shards leave a gap or overlap"
        );
        let error = Error::MissingClasses { end: 9, vocab: 10 };
        assert_eq!(agreed(&[plan(0..4), plan(4..9)]), Err(error));
    }

    #[test]
    fn differences_and_errors() {
        let other = Plan { rows: 4, ..plan(4..10) };
        let error = Error::Mismatch { rank: 1, what: "rows", theirs: 4, of_rank_0: 3 };
        assert_eq!(error.to_string(), "rank 1 has rows 4, rank 0 has 3");
        assert_eq!(agreed(&[plan(0..4), other.clone()]), Err(error));
        let refused = Plan { error: Some("no \u{e9}".to_owned()), ..plan(4..10) };
        let error = Error::OtherRank { rank: 2, message: "no \u{e9}".to_owned() };
        assert_eq!(agreed(&[plan(0..4), other, refused]), Err(error));
        let error = Error::OtherRank { rank: 0, message: String::new() };
        let silent = Plan { error: Some(String::new()), ..plan(0..4) };
        assert_eq!(agreed(&[silent, plan(4..10)]), Err(error));
        // Longer than there is room for, the cut in the middle of a character.
        let long = Plan { error: Some("a\u{e9}".repeat(200)), ..plan(0..4) };
        assert_eq!(long.to_bytes().len(), BYTES);
        let Err(Error::OtherRank { message, .. }) = agreed(&[long]) else { panic!() };
        assert_eq!(message, "a\u{e9}".repeat(80));
        let mut bytes = plan(0..10).to_bytes();
        bytes[7] ^= 2;
        assert_eq!(agree(&bytes), Err(Error::Protocol { rank: 0 }));
        let mut bytes = plan(0..10).to_bytes();
        bytes[56..64].fill(0xff);
        assert_eq!(agree(&bytes), Err(Error::Protocol { rank: 0 }));
    }
}
