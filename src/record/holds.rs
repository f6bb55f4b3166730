//! The backups that people pinned against expiry.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{BackupId, JournalEntry};

/// What is held in a store, in a file of its own beside the backups: a signed backup is never changed, and a journal may be begun anew.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holds {
    /// [`Holds::SCHEMA`].
    pub schema: String,
    /// The store that it belongs to.
    pub store_id: String,
    /// Every backup that no plan may drop, in the order in which they were pinned.
    pub held: Vec<Held>,
    /// Backups that were held once and are still there: somebody said that they may go.
    #[serde(default)]
    pub released: Vec<JournalEntry>,
}

/// One pin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// The backup.
    pub id: BackupId,
    /// Since when.
    pub at: Timestamp,
    /// On which host it was pinned; not known where the journal alone remembers it.
    #[serde(default)]
    pub host: Option<String>,
    /// Why, in the words of whoever did it.
    #[serde(default)]
    pub reason: Option<String>,
}

impl Holds {
    /// The schema's name.
    pub const SCHEMA: &'static str = "etcd-dr/holds/v1";

    /// Nothing is held.
    #[must_use]
    pub fn new(store_id: &str) -> Self {
        Self { schema: Self::SCHEMA.to_owned(), store_id: store_id.to_owned(), held: Vec::new(), released: Vec::new() }
    }

    /// The pin on a backup.
    #[must_use]
    pub fn get(&self, id: &BackupId) -> Option<&Held> {
        self.held.iter().find(|held| held.id == *id)
    }

    /// Whether it was held once, is not any more, and is still there.
    #[must_use]
    pub fn is_released(&self, id: &BackupId) -> bool {
        self.released.iter().any(|entry| entry.id == *id)
    }
}
