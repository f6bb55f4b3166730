//! Comparisons: what was held side by side, and what came of it.

use crate::{etcd::mvcc::At, record::EtcdId};

/// Whose data, and as seen how.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Side {
    /// The member's own answer.
    Answer(EtcdId),
    /// The file that was streamed from it.
    File(EtcdId),
}

impl Side {
    /// The member.
    #[must_use]
    pub fn member(self) -> EtcdId {
        match self {
            Self::Answer(id) | Self::File(id) => id,
        }
    }
}

/// What was compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Measure {
    /// HashKV of both sides at one point.
    HashKv {
        /// Where.
        at: At,
        /// The first side's.
        a: u32,
        /// The second side's.
        b: u32,
    },
    /// Users and roles of two files with one auth revision; HashKV does not cover them.
    Auth {
        /// Whether they are the same.
        equal: bool,
    },
    /// Leases of two files that applied the same raft entries; HashKV does not cover them.
    Leases {
        /// Whether they are the same.
        equal: bool,
    },
}

impl Measure {
    /// Whether both sides were found the same.
    #[must_use]
    pub fn is_equal(self) -> bool {
        match self {
            Self::HashKv { a, b, .. } => a == b,
            Self::Auth { equal } | Self::Leases { equal } => equal,
        }
    }
}

/// Two sides that could be compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Comparison {
    /// One side.
    pub a: Side,
    /// The other; the same member's, where a file is compared with its own member's answer.
    pub b: Side,
    /// By what.
    pub measure: Measure,
}

/// A member's live HashKV at a revision that it was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    /// Who answered.
    pub member: EtcdId,
    /// The revision asked for, and the member's compact revision when it hashed.
    pub at: At,
    /// The hash.
    pub hash: u32,
}

/// Whether a file was compared by HashKV and found equal to what some member answered or holds.
#[must_use]
pub fn is_confirmed(file: EtcdId, comparisons: &[Comparison]) -> bool {
    let of_file = |comparison: &&Comparison| [comparison.a, comparison.b].contains(&Side::File(file));
    let equal =
        |comparison: &Comparison| matches!(comparison.measure, Measure::HashKv { .. }) && comparison.measure.is_equal();
    comparisons.iter().filter(of_file).any(equal)
}
