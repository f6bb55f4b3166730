//! What lies beside the backups in a store: the marker and the journal.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{BackupId, EtcdId};

/// The marker that makes a directory a store. An empty or foreign directory is an error to every command but `init`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Marker {
    /// [`Marker::SCHEMA`].
    pub schema: String,
    /// The store's own id.
    pub id: String,
    /// When `init` made it.
    pub created_at: Timestamp,
    /// Every cluster id that this store has accepted; empty until the first backup.
    pub lineage: Vec<EtcdId>,
}

impl Marker {
    /// The schema's name.
    pub const SCHEMA: &'static str = "etcd-dr/store/v1";
}

/// What this store has seen: it tells "pruned by us" from "gone".
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Journal {
    /// [`Journal::SCHEMA`].
    pub schema: String,
    /// The store that it belongs to.
    pub store_id: String,
    /// The highest revision seen, per cluster.
    #[serde(default)]
    pub revisions: BTreeMap<EtcdId, i64>,
    /// Every backup that got its name.
    #[serde(default)]
    pub published: Vec<JournalEntry>,
    /// Every backup that a plan removed.
    #[serde(default)]
    pub pruned: Vec<JournalEntry>,
    /// Every backup that is held; [`Holds`](super::Holds) counts, and this is for where it is gone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub held: Vec<JournalEntry>,
}

/// A backup and the time at which something became of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JournalEntry {
    /// The backup.
    pub id: BackupId,
    /// When it was published, pruned, held or released.
    pub at: Timestamp,
}

impl Journal {
    /// The schema's name.
    pub const SCHEMA: &'static str = "etcd-dr/journal/v1";

    /// A journal that has seen nothing yet.
    #[must_use]
    pub fn new(store_id: &str) -> Self {
        Self {
            schema: Self::SCHEMA.to_owned(),
            store_id: store_id.to_owned(),
            revisions: BTreeMap::new(),
            published: Vec::new(),
            pruned: Vec::new(),
            held: Vec::new(),
        }
    }
}
