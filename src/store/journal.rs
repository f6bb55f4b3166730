//! The journal: what was published, what was pruned, and so what is gone although nobody here removed it.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use sha2::{Digest as _, Sha256};

use super::Error;
use crate::{
    at::{At as _, PathError},
    durable,
    record::{BackupId, EtcdId, Journal, JournalEntry, Sha256Hex, names},
};

/// What was found where the journal should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JournalState {
    /// It is there and whole.
    Present(Journal),
    /// A store whose journal is gone: what vanished with it cannot be named.
    Missing,
    /// Something is there that is not this store's journal, for this reason.
    Damaged(String),
}

impl JournalState {
    /// The journal, where there is a whole one.
    #[must_use]
    pub fn journal(&self) -> Option<&Journal> {
        match self {
            Self::Present(journal) => Some(journal),
            Self::Missing | Self::Damaged(_) => None,
        }
    }

    /// What is wrong with it, in words; a finding of `verify` and `backup`.
    #[must_use]
    pub fn problem(&self) -> Option<String> {
        match self {
            Self::Present(_) => None,
            Self::Missing => Some("the journal is gone, so that backups that vanished cannot be named".to_owned()),
            Self::Damaged(reason) => Some(format!("the journal cannot be used: {reason}")),
        }
    }

    /// The backups that were published, not pruned, and are not among `present`. Without a journal nothing can be named: see
    /// [`JournalState::problem`].
    #[must_use]
    pub fn vanished(&self, present: &[BackupId]) -> Vec<BackupId> {
        self.journal().map(|journal| vanished(journal, present)).unwrap_or_default()
    }
}

/// The backups that were published, not pruned, and are not among `present`, in the order of their ids.
#[must_use]
pub fn vanished(journal: &Journal, present: &[BackupId]) -> Vec<BackupId> {
    let there: BTreeSet<&BackupId> = present.iter().chain(journal.pruned.iter().map(|entry| &entry.id)).collect();
    let published: BTreeSet<&BackupId> = journal.published.iter().map(|entry| &entry.id).collect();
    published.difference(&there).map(|id| (*id).clone()).collect()
}

/// Notes that a backup got its name. Twice is once.
pub fn publish(journal: &mut Journal, id: &BackupId, at: Timestamp) {
    journal.pruned.retain(|entry| entry.id != *id);
    if journal.published.iter().all(|entry| entry.id != *id) {
        journal.published.push(JournalEntry { id: id.clone(), at });
    }
}

/// Notes a cluster's revision; the highest one stays.
pub fn raise_revision(journal: &mut Journal, cluster: EtcdId, revision: i64) {
    let highest = journal.revisions.entry(cluster).or_insert(revision);
    *highest = revision.max(*highest);
}

/// Notes that a plan removes these backups. Twice is once.
pub fn prune(journal: &mut Journal, ids: &[BackupId], at: Timestamp) {
    for id in ids {
        if journal.pruned.iter().all(|entry| entry.id != *id) {
            journal.pruned.push(JournalEntry { id: id.clone(), at });
        }
    }
}

/// Makes the journal know what is there: a run that ended between a rename and its entry left a backup that is unknown, or one that counts
/// as pruned and was not yet removed. Returns the ids that this corrected.
pub fn reconcile(journal: &mut Journal, present: &[BackupId], at: Timestamp) -> Vec<BackupId> {
    let published: BTreeSet<&BackupId> = journal.published.iter().map(|entry| &entry.id).collect();
    let pruned: BTreeSet<&BackupId> = journal.pruned.iter().map(|entry| &entry.id).collect();
    let unknown = |id: &&BackupId| !published.contains(id) || pruned.contains(id);
    let corrected: Vec<BackupId> = present.iter().filter(unknown).cloned().collect();
    for id in &corrected {
        publish(journal, id, at);
    }
    corrected
}

/// Reads the journal of the store `store_id` at `dir`.
///
/// # Errors
/// Only what the system says; a journal that is missing or damaged is a state.
pub(super) fn read(dir: &Path, store_id: &str) -> Result<JournalState, Error> {
    let state = read_any(dir)?;
    Ok(match state {
        JournalState::Present(journal) if journal.store_id != store_id => {
            JournalState::Damaged(format!("it belongs to store {}, not to {store_id}", journal.store_id))
        }
        state => state,
    })
}

/// As [`read`], of whatever store.
pub(crate) fn read_any(dir: &Path) -> Result<JournalState, Error> {
    let path = dir.join(names::JOURNAL);
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(JournalState::Missing),
        Err(source) => return Err(PathError { path, source }.into()),
    };
    Ok(match serde_json::from_slice::<Journal>(&bytes) {
        Ok(journal) if journal.schema == Journal::SCHEMA => JournalState::Present(journal),
        Ok(journal) => JournalState::Damaged(format!("its schema is `{}`, not `{}`", journal.schema, Journal::SCHEMA)),
        Err(error) => JournalState::Damaged(format!("it is no journal ({error})")),
    })
}

/// Writes the journal in one step.
pub(crate) fn write(dir: &Path, journal: &Journal) -> Result<(), Error> {
    let path = dir.join(names::JOURNAL);
    let text = super::to_json(journal, &path)?;
    durable::replace(&path, &text, durable::FILE_MODE)?;
    Ok(())
}

/// Keeps a copy of a damaged journal beside it, under a name that tells its contents, so that a person can read what it knew.
pub(crate) fn keep_aside(dir: &Path) -> Result<PathBuf, Error> {
    let path = dir.join(names::JOURNAL);
    let bytes = fs::read(&path).at(&path)?;
    let digest = Sha256Hex(Sha256::digest(&bytes).into()).to_string();
    let aside = dir.join(format!(".etcd-dr-journal.damaged-{}", digest.get(..16).unwrap_or_default()));
    match durable::create(&aside, &bytes, durable::FILE_MODE) {
        Err(error) if error.source.kind() == io::ErrorKind::AlreadyExists => {}
        result => result?,
    }
    Ok(aside)
}
