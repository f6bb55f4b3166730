//! One checked walk over a database: what a plan has to know of it, and the HashKV by which what was written is compared with it.

use std::collections::BTreeSet;

use crate::{
    etcd::{
        ReadAt, Series,
        bbolt::{self, Db, Row, Visitor, Walked},
        mvcc::{self, Alarm, AlarmKind, At, Cluster, Compaction, History, Keyspace, Meta},
    },
    plan::restore::Recorded,
};

/// What a database holds, as far as a restore asks.
#[derive(Debug)]
pub struct Examined {
    /// Its revision and compact revision.
    pub at: At,
    /// HashKV at these two.
    pub hash_kv: u32,
    /// The release whose form it has; as text where that is none that can be written.
    pub etcd: Result<Series, String>,
    /// Bucket `members`.
    pub members: Vec<Recorded>,
    /// Alarms, each kind once.
    pub alarms: Vec<String>,
    /// Whether Kubernetes keeps its objects in it.
    pub kubernetes: bool,
    /// Answers HashKV at other revisions.
    pub history: History,
    /// Pages and rows.
    pub walked: Walked,
}

/// Why a database is none, or not whole.
#[derive(Debug, thiserror::Error)]
pub enum Unsound {
    /// A page or the file.
    #[error(transparent)]
    Pages(#[from] bbolt::Damage),
    /// A row.
    #[error("bucket {bucket}, page {page} at offset {offset}: {source}")]
    Row {
        /// The bucket.
        bucket: String,
        /// The page.
        page: u64,
        /// Where the key begins in the file.
        offset: u64,
        /// What is wrong.
        source: mvcc::Damage,
    },
    /// What holds between rows.
    #[error(transparent)]
    Rows(#[from] mvcc::Damage),
    /// A row of bucket `members`.
    #[error("bucket members: row {key} is no member: {source}")]
    Member {
        /// The row's key.
        key: String,
        /// What is wrong with its JSON.
        source: serde_json::Error,
    },
    /// It cannot be hashed at its own revision.
    #[error("{0}")]
    Hash(mvcc::Incomparable),
}

/// Walks a database once, and its small bucket `meta` before that: which revisions may be missing depends on it.
///
/// # Errors
/// [`Unsound`], with page, bucket, key and offset.
pub fn examine<S: ReadAt>(db: &Db<S>) -> Result<Examined, Unsound> {
    let mut meta = Meta::default();
    db.walk_bucket(b"meta", |row: Row<'_>| meta.row(row.key, row.value).map_err(|source| in_row(&row, source)))?;
    let meta = meta.finish()?;
    let mut rows = Rows::new(meta.compaction);
    let walked = db.walk(&mut rows)?;
    let history = rows.keyspace.finish()?;
    let at = history.own();
    let hash_kv = history.hash_kv(at).map_err(Unsound::Hash)?;
    Ok(Examined {
        at,
        hash_kv,
        etcd: series(&meta),
        members: rows.members,
        alarms: rows.alarms.into_iter().collect(),
        kubernetes: rows.kubernetes,
        history,
        walked,
    })
}

/// The release, by what only it and later ones write (etcd 3.6 `server/storage/schema/schema.go`).
fn series(meta: &Meta) -> Result<Series, String> {
    match meta.storage_version.as_deref() {
        Some(version) if version.starts_with("3.6.") => Ok(Series::V3_6),
        Some(version) => Err(version.to_owned()),
        None if meta.term.is_some() || meta.conf_state.is_some() => Ok(Series::V3_5),
        None => Ok(Series::V3_4),
    }
}

struct Rows {
    keyspace: Keyspace,
    cluster: Cluster,
    members: Vec<Recorded>,
    alarms: BTreeSet<String>,
    kubernetes: bool,
}

impl Rows {
    fn new(compaction: Compaction) -> Self {
        Self {
            keyspace: Keyspace::new(compaction),
            cluster: Cluster::default(),
            members: Vec::new(),
            alarms: BTreeSet::new(),
            kubernetes: false,
        }
    }
}

impl Visitor for Rows {
    type Error = Unsound;

    fn row(&mut self, row: Row<'_>) -> Result<(), Unsound> {
        match row.bucket {
            b"key" => {
                let crc = crc32c::crc32c_append(crc32c::crc32c(row.key), row.value);
                self.keyspace.row(row.key, row.value, crc).map_err(|source| in_row(&row, source))?;
                // Every cluster has namespaces, under whatever prefix.
                self.kubernetes = self.kubernetes || contains(row.value, b"/namespaces/kube-system");
            }
            b"members" => {
                let wrong = |source| Unsound::Member { key: row.key.escape_ascii().to_string(), source };
                let member: MemberJson = serde_json::from_slice(row.value).map_err(wrong)?;
                let MemberJson { name, peer_urls, learner } = member;
                self.members.push(Recorded { name, peer_urls, learner });
            }
            b"cluster" => self.cluster.row(row.key, row.value).map_err(|source| in_row(&row, source))?,
            b"alarm" => {
                let alarm = Alarm::parse(row.key).map_err(|source| in_row(&row, source))?;
                self.alarms.insert(match alarm.kind {
                    AlarmKind::NoSpace => "NOSPACE".to_owned(),
                    AlarmKind::Corrupt => "CORRUPT".to_owned(),
                    AlarmKind::Other(kind) => format!("of kind {kind}"),
                });
            }
            _ => {}
        }
        Ok(())
    }
}

/// Only the head of a value is searched: the user key stands first in it.
fn contains(value: &[u8], wanted: &[u8]) -> bool {
    const HEAD: usize = 64;
    value.get(..value.len().min(HEAD)).unwrap_or_default().windows(wanted.len()).any(|part| part == wanted)
}

fn in_row(row: &Row<'_>, source: mvcc::Damage) -> Unsound {
    let bucket = row.bucket.escape_ascii().to_string();
    Unsound::Row { bucket, page: row.page.0, offset: row.offset, source }
}

/// What a restore asks of a member (etcd 3.6 `server/etcdserver/api/membership/member.go`).
#[derive(serde::Deserialize)]
struct MemberJson {
    #[serde(default)]
    name: String,
    #[serde(rename = "peerURLs", default)]
    peer_urls: Vec<String>,
    #[serde(rename = "isLearner", default)]
    learner: bool,
}
