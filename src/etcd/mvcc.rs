//! What etcd keeps in its database: revisions, records, leases, auth, alarms, and HashKV over the records.
//!
//! Parsers take the bytes of one row and know no pages; [`Keyspace`] takes the rows of bucket `key` in order and checks what holds between
//! them; [`History`] is what is left of them afterwards, and answers HashKV at any revision without the file.
//!
//! Format: etcd 3.4 to 3.6, `server/storage/mvcc`, `server/storage/schema`, `api/mvccpb/kv.proto`.
#![deny(clippy::arithmetic_side_effects)]

mod auth;
mod hash;
mod keyspace;
mod lease;
mod member;
mod meta;
#[cfg(test)]
pub(in crate::etcd) mod model;
pub(super) mod proto;
mod record;
mod revision;
pub(in crate::etcd) mod shift;

pub use auth::{Auth, Role, User};
pub use hash::{At, History, Incomparable};
pub use keyspace::{Keyspace, Live};
pub use lease::Lease;
pub use member::{MemberRow, member_id};
pub(in crate::etcd) use meta::minor;
pub use meta::{Alarm, AlarmKind, Cluster, Compaction, ConfState, Downgrade, Meta};
pub use proto::{Malformed, What};
pub use record::KeyValue;
pub use revision::{Revision, RowKey};

use std::fmt;

/// What makes rows something that etcd did not write.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Damage {
    /// A key of bucket `key` that is no revision: 17 bytes, or 18 for a tombstone.
    #[error("this is no revision: a revision has 8 bytes, `_`, 8 bytes, and `t` if it is a tombstone")]
    NotARevision,
    /// The value is not the protobuf message that belongs here.
    #[error("the value is no {message}: {source}")]
    Message {
        /// Which message.
        message: &'static str,
        /// Where and how.
        source: Malformed,
    },
    /// A value of this kind has another form.
    #[error("the value is {found}, and {what} is {expected}")]
    Form {
        /// Of what.
        what: &'static str,
        /// As servers write it.
        expected: &'static str,
        /// As it is here.
        found: Shown,
    },
    /// A row that every server writes is absent.
    #[error("bucket {bucket} has no row {key}")]
    Absent {
        /// The bucket.
        bucket: &'static str,
        /// Its missing key.
        key: &'static str,
    },
    /// Compaction's two marks contradict each other.
    #[error("the finished compaction, {finished}, is later than the scheduled one, {scheduled:?}")]
    Compaction {
        /// `scheduledCompactRev`.
        scheduled: Option<i64>,
        /// `finishedCompactRev`.
        finished: i64,
    },
    /// A revision that does not come after the one before it.
    #[error("revision {found} does not come after {before}")]
    Order {
        /// The revision before.
        before: Revision,
        /// This one.
        found: Revision,
    },
    /// Above the compact revision no revision is missing; here one is: a lost write or a missing page.
    #[error("revision {expected} is missing: the next row is {found}")]
    Gap {
        /// What had to follow.
        expected: Revision,
        /// What follows.
        found: Revision,
    },
    /// A field of a record contradicts the records before it.
    #[error("key {key} at revision {at}: {field} is {found}, and {expected} follows from the revisions before")]
    Chain {
        /// The user key.
        key: Shown,
        /// The record's revision.
        at: Revision,
        /// `create_revision`, `mod_revision` or `version`.
        field: &'static str,
        /// As it must be.
        expected: i64,
        /// As it is.
        found: i64,
    },
    /// A key occurs twice in one transaction, which servers refuse.
    #[error("key {key} occurs twice in revision {main}")]
    Twice {
        /// The user key.
        key: Shown,
        /// The revision.
        main: i64,
    },
    /// A tombstone for a key that does not live.
    #[error("key {key} is deleted at revision {at}, where it does not exist")]
    Unborn {
        /// The user key.
        key: Shown,
        /// The tombstone's revision.
        at: Revision,
    },
    /// A row that a finished compaction removes is still there.
    #[error("key {key} has a row at revision {row} that the finished compaction at {compacted} removes")]
    Leftover {
        /// The user key.
        key: Shown,
        /// The row's revision.
        row: Revision,
        /// The compact revision.
        compacted: i64,
    },
    /// A record without a user key, or a marker of a raised revision where none can be.
    #[error("the row at revision {at} has no key")]
    Keyless {
        /// The row's revision.
        at: Revision,
    },
    /// More rows, or a longer one, than can be counted.
    #[error("more than {limit} {what}")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// The bound.
        limit: u64,
    },
}

impl Damage {
    fn message(message: &'static str) -> impl FnOnce(Malformed) -> Self {
        move |source| Self::Message { message, source }
    }

    fn form(what: &'static str, expected: &'static str, found: &[u8]) -> Self {
        Self::Form { what, expected, found: Shown::new(found) }
    }
}

/// Foreign bytes for people: quoted, escaped, and cut after 120 bytes.
#[derive(Clone, PartialEq, Eq)]
pub struct Shown {
    start: Box<[u8]>,
    length: usize,
}

impl Shown {
    /// Of these bytes.
    #[must_use]
    pub fn new(bytes: &[u8]) -> Self {
        Self { start: bytes.iter().copied().take(120).collect(), length: bytes.len() }
    }
}

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.start.escape_ascii())?;
        if self.length > self.start.len() { write!(f, "... ({} bytes)", self.length) } else { Ok(()) }
    }
}

impl fmt::Debug for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Big-endian integer of exactly eight bytes.
fn u64_be(bytes: &[u8]) -> Option<u64> {
    bytes.try_into().ok().map(u64::from_be_bytes)
}
