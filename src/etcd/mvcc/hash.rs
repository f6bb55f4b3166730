//! HashKV without a server, and without the file.
//!
//! A member answers HashKV(R) with a CRC-32C over `key`, then the key and the value of these rows of bucket `key`, in order, where C is its
//! compact revision and *live at R* means: the newest record of its key up to R, and no tombstone:
//!
//! 1. of the rows up to C those that are live at R, or all of them if no key is live at R;
//! 2. but no tombstone at C itself (members since 3.4.34, 3.5.16 and 3.6.0; older ones remove that row);
//! 3. all rows above C, up to R.
//!
//! A compaction at C removes from the rows up to C what is not live at C. Rows that are live at R were live at C, so the answer is the same
//! before, during and after the removal, and a file that was compacted less can be asked for any later C. Only where no key is live at R
//! does it matter; then what is asked for is the answer of a member that is done with it.
//!
//! Format: etcd 3.6 `server/storage/mvcc/hash.go`, `kvstore_compaction.go`, `key_index.go`.
#![deny(clippy::arithmetic_side_effects)]

use super::{Damage, shift};

/// No later record of the key.
const NONE: u32 = u32::MAX;
/// In `length`: the row is a tombstone. A row is shorter than that.
const TOMBSTONE: u32 = 1 << 31;

/// What a member's answer to HashKV is about: two are comparable if, and only if, both numbers are equal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct At {
    /// R: rows above it do not count.
    pub revision: i64,
    /// C: the compact revision of the member that answers; -1 if it never compacted.
    pub compact_revision: i64,
}

/// Why a history has no HashKV at a point.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Incomparable {
    /// The file was compacted further than the member that answered: what the member still has is not in the file.
    #[error("the database is compacted at {own}, later than {asked}")]
    Compacted {
        /// The file's compact revision.
        own: i64,
        /// The one asked for.
        asked: i64,
    },
    /// The file ends before the revision.
    #[error("the database ends at revision {own}, before {asked}")]
    Future {
        /// The file's revision.
        own: i64,
        /// The one asked for.
        asked: i64,
    },
    /// A compact revision above the revision, which no member answers.
    #[error("compact revision {compact_revision} is above revision {revision}")]
    Reversed {
        /// R.
        revision: i64,
        /// C.
        compact_revision: i64,
    },
}

/// One row: 12 bytes.
#[derive(Clone, Copy, Debug)]
struct Row {
    /// CRC-32C of key and value.
    crc: u32,
    /// Bytes of both, and [`TOMBSTONE`].
    length: u32,
    /// Ordinal of the next record of the same user key.
    next: u32,
}

/// The rows of bucket `key`, as far as HashKV needs them: 20 bytes a row, whatever its size.
#[derive(Clone, Debug, Default)]
pub struct History {
    mains: Vec<i64>,
    rows: Vec<Row>,
    compact_revision: i64,
    revision: i64,
}

impl History {
    /// An empty one, to be filled row by row.
    pub(super) fn new(compact_revision: i64) -> Self {
        Self { mains: Vec::new(), rows: Vec::new(), compact_revision, revision: compact_revision.max(1) }
    }

    /// Adds the next row and gives its ordinal.
    pub(super) fn push(&mut self, main: i64, tombstone: bool, crc: u32, length: u32) -> Result<u32, Damage> {
        let ordinal = u32::try_from(self.rows.len()).ok().filter(|&n| n != NONE);
        let ordinal = ordinal.ok_or(Damage::TooMany { what: "rows", limit: u64::from(NONE) })?;
        if length >= TOMBSTONE {
            return Err(Damage::TooMany { what: "bytes in a row", limit: u64::from(TOMBSTONE) });
        }
        self.mains.push(main);
        self.rows.push(Row { crc, length: if tombstone { length | TOMBSTONE } else { length }, next: NONE });
        self.revision = self.revision.max(main);
        Ok(ordinal)
    }

    /// The record at `later` is the next one of the key whose record is at `earlier`.
    pub(super) fn supersede(&mut self, earlier: u32, later: u32) {
        if let Some(row) = usize::try_from(earlier).ok().and_then(|n| self.rows.get_mut(n)) {
            row.next = later;
        }
    }

    /// Main revision of a row.
    pub(super) fn main(&self, ordinal: u32) -> i64 {
        usize::try_from(ordinal).ok().and_then(|n| self.mains.get(n)).copied().unwrap_or(i64::MAX)
    }

    /// Number of rows.
    #[must_use]
    pub fn rows(&self) -> u64 {
        u64::try_from(self.rows.len()).unwrap_or(u64::MAX)
    }

    /// The file's own R and C: its revision, and how far it is compacted.
    #[must_use]
    pub fn own(&self) -> At {
        At { revision: self.revision, compact_revision: self.compact_revision }
    }

    /// What a member with this database, compacted at `at.compact_revision`, answers to HashKV at `at.revision`.
    ///
    /// # Errors
    /// [`Incomparable`]: there is no number, which is another thing than a wrong one.
    pub fn hash_kv(&self, at: At) -> Result<u32, Incomparable> {
        let At { revision, compact_revision } = at;
        if compact_revision > revision {
            return Err(Incomparable::Reversed { revision, compact_revision });
        }
        if compact_revision < self.compact_revision {
            return Err(Incomparable::Compacted { own: self.compact_revision, asked: compact_revision });
        }
        if revision > self.revision {
            return Err(Incomparable::Future { own: self.revision, asked: revision });
        }
        Ok(self.hash_of_rows(at))
    }

    /// The same at [`Self::own`].
    #[must_use]
    pub fn own_hash_kv(&self) -> u32 {
        self.hash_of_rows(self.own())
    }

    /// HashKV over the rows that are here, whatever the file says of its compactions.
    ///
    /// A restore marks all revisions as compacted and removes no row: those that were hashed in its source are still there, and so hash
    /// alike. For any other file [`Self::hash_kv`] is the answer, since rows may be gone.
    #[must_use]
    pub fn hash_of_rows(&self, At { revision, compact_revision }: At) -> u32 {
        // Without a live key the rows up to C are not filtered by R: those remain that the compaction left, which live at C.
        let live_at = if self.any_live(revision) { revision } else { compact_revision };
        let mut hash = crc32c::crc32c(b"key");
        for (main, row) in self.up_to(revision) {
            if main > compact_revision || self.is_live(row, live_at) {
                hash = shift::append(hash, row.crc, row.length & !TOMBSTONE);
            }
        }
        hash
    }

    fn up_to(&self, revision: i64) -> impl Iterator<Item = (i64, &Row)> {
        self.mains.iter().copied().zip(&self.rows).take_while(move |(main, _)| *main <= revision)
    }

    fn any_live(&self, revision: i64) -> bool {
        self.up_to(revision).any(|(_, row)| self.is_live(row, revision))
    }

    /// A row up to this revision is the newest of its key there, and no tombstone.
    fn is_live(&self, row: &Row, revision: i64) -> bool {
        row.length & TOMBSTONE == 0 && (row.next == NONE || self.main(row.next) > revision)
    }
}
