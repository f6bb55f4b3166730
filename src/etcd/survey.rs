//! One walk over a database, one value: what is in it, whether it can be what etcd wrote, and what is odd about it.
//!
//! [`survey`] reads every page once and checks each rule of the page tree, of the records and of the small buckets on its way. The first
//! broken one ends it: a database that breaks one is not summarised. What is legal and yet worth a word is an [`Oddity`].
//!
//! Memory: the keys that live, while it walks (see [`Live`](super::mvcc::Live)); 20 bytes for each row of bucket `key`, kept in
//! [`Survey::history`]; the pages' bits.
#![deny(clippy::arithmetic_side_effects)]

mod oddity;
#[cfg(test)]
mod tests;
mod usage;
mod walk;

pub use oddity::Oddity;
pub use usage::{Large, Usage, prefix};

use super::{
    ReadAt,
    bbolt::{self, Db, PageId, Walked},
    mvcc::{self, Alarm, At, Auth, Cluster, History, Lease, MemberRow, Meta},
};
use std::collections::{BTreeMap, BTreeSet};

/// What is asked beyond the facts that cost nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wants {
    /// Keys and bytes for each prefix of so many segments; see [`prefix`]. 0: none.
    pub depth: usize,
    /// So many of the keys with the largest values.
    pub largest: usize,
}

/// A database that holds every rule.
#[derive(Clone, Debug)]
pub struct Survey {
    /// Bytes of a page.
    pub page_size: u64,
    /// Bytes of the database up to its high-water mark: `totalSize` of `etcdutl snapshot status`.
    pub total_size: u64,
    /// Bytes behind it that are neither database nor trailer: what a live file has set aside.
    pub surplus_bytes: u64,
    /// A SHA-256 follows the database, as in a snapshot.
    pub has_trailer: bool,
    /// Pages and rows by what they are.
    pub walked: Walked,
    /// The cluster's revision: the newest record's, or the compact revision if that is later; 1 for an empty store.
    pub revision: i64,
    /// Main revision of the last row: what `etcdutl snapshot status` calls the revision; 0 without a row.
    pub last_row_revision: i64,
    /// How far it is compacted; -1 if it never was.
    pub compact_revision: i64,
    /// HashKV at these two.
    pub hash_kv: u32,
    /// `hash` of `etcdutl snapshot status`: CRC-32C over names, keys and values of all buckets.
    pub status_hash: u32,
    /// Live keys: `totalKey` of etcdutl 3.6.
    pub total_keys: u64,
    /// Rows of all buckets: `totalKey` of etcdctl 3.4 and etcdutl 3.5.
    pub total_rows: u64,
    /// Bytes of the live keys and their values.
    pub live_bytes: u64,
    /// Bucket `meta`: raft's index and term, compactions, storage version.
    pub meta: Meta,
    /// Bucket `cluster`.
    pub cluster: Cluster,
    /// Major and minor of the etcd whose schema this is: its storage version, since 3.6; else 3.5 if it knows raft's term or configuration;
    /// else 3.4, which may be older.
    pub schema: (u32, u32),
    /// By id.
    pub members: BTreeMap<u64, MemberRow>,
    /// Ids that were removed and are never used again.
    pub members_removed: BTreeSet<u64>,
    /// Alarms that are raised.
    pub alarms: Vec<Alarm>,
    /// Leases by their ids.
    pub leases: Vec<Lease>,
    /// SHA-256 over bucket `lease`: equal in members whose `consistent_index` is equal.
    pub lease_digest: [u8; 32],
    /// Users, roles, and whether they count.
    pub auth: Auth,
    /// SHA-256 over buckets `auth`, `authRoles` and `authUsers`: equal in members whose auth revision is equal.
    pub auth_digest: [u8; 32],
    /// Keys and bytes for each prefix, if they were asked for.
    pub prefixes: BTreeMap<Vec<u8>, Usage>,
    /// The keys with the largest values, the largest first, if they were asked for.
    pub largest: Vec<Large>,
    /// What is legal and worth a word.
    pub oddities: Vec<Oddity>,
    /// HashKV at other points, without the file.
    pub history: History,
}

/// Why a file is no database that etcd can have written.
#[derive(Debug, thiserror::Error)]
pub enum Unsound {
    /// Its pages.
    #[error(transparent)]
    Pages(#[from] bbolt::Damage),
    /// A row.
    #[error("bucket {bucket}, key {key}, page {page} (offset {offset}): {fault}")]
    Row {
        /// Its bucket.
        bucket: String,
        /// Its key as it lies there; of bucket `key`, a revision.
        key: String,
        /// The page.
        page: PageId,
        /// Where its key begins in the file.
        offset: u64,
        /// What is wrong with it.
        #[source]
        fault: Box<mvcc::Damage>,
    },
    /// A bucket as a whole.
    #[error("bucket meta: {0}")]
    Meta(Box<mvcc::Damage>),
    /// A bucket that every server makes.
    #[error("the database has no bucket {0}: it is not etcd's")]
    NoBucket(&'static str),
}

/// Walks the database once, checks it, and says what is in it.
///
/// # Errors
/// [`Unsound`], at the first rule that is broken.
pub fn survey<S: ReadAt>(db: &Db<S>, wants: &Wants) -> Result<Survey, Unsound> {
    // How far the file is compacted decides what must hold between the rows, and lies behind them.
    let meta = walk::meta(db)?;
    let mut surveyor = walk::Surveyor::new(meta.compaction);
    let walked = db.walk(&mut surveyor)?;
    surveyor.finish(db, meta, walked, wants)
}

impl Survey {
    /// HashKV as a member answers it that has this database and is compacted at `at.compact_revision`.
    ///
    /// # Errors
    /// [`mvcc::Incomparable`].
    pub fn hash_kv_at(&self, at: At) -> Result<u32, mvcc::Incomparable> {
        self.history.hash_kv(at)
    }
}
