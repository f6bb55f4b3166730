//! Revisions, and the keys of bucket `key`.
#![deny(clippy::arithmetic_side_effects)]

use super::{Damage, u64_be};
use std::fmt;

/// One change of the keyspace.
///
/// `main` counts transactions that changed something over the whole cluster: what clients call "the revision". `sub` counts the changes
/// inside one, from 0. Neither is negative.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision {
    /// The transaction.
    pub main: i64,
    /// The change within it.
    pub sub: i64,
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.main, self.sub)
    }
}

impl Revision {
    /// The 17 bytes of a revision as a key: `main` and `sub` big-endian with `_` between them, so that byte order is revision order.
    #[must_use]
    pub fn to_bytes(self) -> [u8; 17] {
        let mut bytes = [b'_'; 17];
        for (to, from) in bytes.iter_mut().zip(self.main.to_be_bytes()) {
            *to = from;
        }
        for (to, from) in bytes.iter_mut().skip(9).zip(self.sub.to_be_bytes()) {
            *to = from;
        }
        bytes
    }

    /// Reads the 17-byte form, which `scheduledCompactRev` and `finishedCompactRev` have too.
    ///
    /// # Errors
    /// [`Damage::NotARevision`].
    pub fn parse(bytes: &[u8]) -> Result<Self, Damage> {
        match RowKey::parse(bytes)? {
            RowKey { revision, tombstone: false } => Ok(revision),
            RowKey { tombstone: true, .. } => Err(Damage::NotARevision),
        }
    }
}

/// A key of bucket `key`.
///
/// Format: etcd 3.6 `server/storage/mvcc/revision.go`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowKey {
    /// The change.
    pub revision: Revision,
    /// It deleted its key: an 18th byte, `t`.
    pub tombstone: bool,
}

impl RowKey {
    /// Reads 17 or 18 bytes.
    ///
    /// # Errors
    /// [`Damage::NotARevision`].
    pub fn parse(bytes: &[u8]) -> Result<Self, Damage> {
        Self::of(bytes).ok_or(Damage::NotARevision)
    }

    fn of(bytes: &[u8]) -> Option<Self> {
        let (main, rest) = bytes.split_at_checked(8)?;
        let (mark, rest) = rest.split_first()?;
        let (sub, end) = rest.split_at_checked(8)?;
        let tombstone = match (mark, end) {
            (b'_', []) => false,
            (b'_', [b't']) => true,
            _ => return None,
        };
        let main = i64::try_from(u64_be(main)?).ok()?;
        let sub = i64::try_from(u64_be(sub)?).ok()?;
        Some(Self { revision: Revision { main, sub }, tombstone })
    }

    /// The bytes: 17, or 18 for a tombstone.
    #[must_use]
    pub fn to_bytes(self) -> Vec<u8> {
        let mut bytes = self.revision.to_bytes().to_vec();
        bytes.extend(self.tombstone.then_some(b't'));
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_revision_is_seventeen_bytes() {
        let bytes = Revision { main: 208, sub: 0 }.to_bytes();
        assert_eq!(bytes, [0, 0, 0, 0, 0, 0, 0, 0xd0, 0x5f, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(Revision::parse(&bytes), Ok(Revision { main: 208, sub: 0 }));
    }

    #[test]
    fn a_tombstone_ends_in_t() {
        let key = RowKey { revision: Revision { main: i64::MAX, sub: 7 }, tombstone: true };
        let bytes = key.to_bytes();
        assert_eq!((bytes.len(), bytes[17]), (18, b't'));
        assert_eq!(RowKey::parse(&bytes), Ok(key));
        assert_eq!(Revision::parse(&bytes), Err(Damage::NotARevision));
    }

    #[test]
    fn byte_order_is_revision_order() {
        let revisions =
            [(2, 0), (2, 1), (2, 255), (2, 256), (3, 0), (256, 0)].map(|(main, sub)| Revision { main, sub });
        assert!(revisions.is_sorted());
        assert!(revisions.map(Revision::to_bytes).is_sorted());
    }

    #[test]
    fn everything_else_is_refused() {
        let good = Revision { main: 5, sub: 1 }.to_bytes().to_vec();
        let with = |at: usize, byte: u8| {
            let mut bytes = good.clone();
            bytes[at] = byte;
            bytes
        };
        let longer = |end: &[u8]| [good.as_slice(), end].concat();
        for bad in
            [vec![], good[..16].to_vec(), with(8, b'-'), with(0, 0x80), with(9, 0xff), longer(b"x"), longer(b"tt")]
        {
            assert_eq!(RowKey::parse(&bad), Err(Damage::NotARevision), "{bad:02x?}");
        }
    }
}
