//! What can go wrong between processes.
#![forbid(unsafe_code)]

use std::ops::Range;
use std::time::Duration;

/// Why a call has no result. All ranks see the same reason, but for those whose own arguments are refused, which see that, and
/// for ranks that do not answer; none has written an output.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The arguments of this rank are refused: the other ranks see [`Error::OtherRank`].
    #[error(transparent)]
    Xent(#[from] xent::Error),
    /// The arguments of another rank are refused.
    #[error("rank {rank}: {message}")]
    OtherRank {
        /// The first such rank.
        rank: usize,
        /// What its error says.
        message: String,
    },
    /// Two ranks do not speak of the same.
    #[error("rank {rank} has {what} {theirs}, rank 0 has {of_rank_0}")]
    Mismatch {
        /// The first rank that differs from rank 0.
        rank: usize,
        /// In what: the rows, the vocabulary, the kind of call, or the fingerprint of options and targets
        /// ([`ShardedCrossEntropy::fingerprint`](xent::ShardedCrossEntropy::fingerprint)).
        what: &'static str,
        /// The value of that rank.
        theirs: u64,
        /// That of rank 0.
        of_rank_0: u64,
    },
    /// The shards of all ranks are not the vocabulary, each class once.
    #[error(
        "rank {rank} has classes {}..{}, but those before end at {expected}: the shards leave a gap or overlap",
        classes.start, classes.end
    )]
    Shards {
        /// The first rank, in the order of classes, that does not go on where the one before ends.
        rank: usize,
        /// What it has.
        classes: Range<usize>,
        /// Where its classes would have to begin.
        expected: usize,
    },
    /// The shards of all ranks end before the vocabulary does.
    #[error("the shards of all ranks end at class {end}, the vocabulary has {vocab}")]
    MissingClasses {
        /// Where they end.
        end: usize,
        /// The vocabulary.
        vocab: usize,
    },
    /// A rank sent what this version of the crate does not understand.
    #[error("rank {rank} does not speak this version of the protocol, or is not in this call")]
    Protocol {
        /// The rank.
        rank: usize,
    },
    /// Not all ranks came to the exchange in time: one of them died, hangs, or makes other calls. MPI has no way to take
    /// an exchange back: the communicator is of no further use, and a program should end with `abort`, as the end of
    /// MPI waits for all ranks.
    #[error(
        "rank {rank} of {ranks} waited {waited:?} for the others: one has died, hangs or makes other calls"
    )]
    NoAnswer {
        /// This rank.
        rank: usize,
        /// All of them.
        ranks: usize,
        /// How long: [`VocabParallel::timeout`](crate::VocabParallel::timeout).
        waited: Duration,
    },
    /// The communicator is one between two groups, which do not share a vocabulary.
    #[error("an inter-communicator has no vocabulary that its ranks share")]
    InterCommunicator,
    /// An exchange before this one was given up.
    #[error("an exchange before this one was given up: the communicator is of no further use")]
    GivenUp,
}
