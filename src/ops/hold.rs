//! `hold` and `release`: pins a backup against expiry, and takes the pin back.

use jiff::Timestamp;
use serde::Serialize;

use crate::{
    catalog::{Backup, Catalog, NoSuchBackup},
    record::{BackupId, Held, ProofLevel},
    store::{self, Lock, Store},
};

/// Why nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No backup bears that name, and none that does is held.
    #[error("{error}")]
    Unknown {
        /// What was asked for.
        error: NoSuchBackup,
        /// The name that is most like it.
        nearest: Option<BackupId>,
    },
    /// The holds could not be read or written.
    #[error(transparent)]
    Store(#[from] store::Error),
}

/// What both need.
#[derive(Debug)]
pub struct Request<'a> {
    /// Where the backup lies.
    pub store: &'a Store,
    /// The store's lock: no prune decides meanwhile.
    pub lock: &'a Lock,
    /// What the store holds, read under that lock.
    pub catalog: &'a Catalog,
    /// This host's name.
    pub host: &'a str,
    /// When.
    pub now: Timestamp,
}

/// What became of a pin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The backup.
    pub id: BackupId,
    /// Whether it is held now.
    pub held: bool,
    /// Whether it was otherwise before.
    pub changed: bool,
    /// The pin, or the one that was taken back.
    pub hold: Option<Held>,
    /// What a person should know.
    pub warnings: Vec<String>,
}

/// Pins the backup that `text` names, an id or `latest`. One that is held already keeps its pin, with the time and the reason of the first.
///
/// # Errors
/// [`Error::Unknown`]; [`Error::Store`].
pub fn hold(request: &Request<'_>, text: &str, reason: Option<String>) -> Result<Report, Error> {
    let backup = request.catalog.resolve(text).map_err(|error| unknown(request.catalog, text, error))?;
    let id = backup.dir_name.clone();
    let changed = request.store.holds()?.get(&id).is_none();
    let host = Some(request.host.to_owned());
    request.store.hold(request.lock, Held { id: id.clone(), at: request.now, host, reason })?;
    let hold = request.store.holds()?.get(&id).cloned();
    Ok(Report { held: hold.is_some(), changed, hold, warnings: doubts(backup), id })
}

/// Takes the pin back. What is held can be released even where it is gone: then nothing misses it any more.
///
/// # Errors
/// [`Error::Unknown`]; [`Error::Store`].
pub fn release(request: &Request<'_>, text: &str) -> Result<Report, Error> {
    let holds = request.store.holds()?;
    let pinned = text.parse().ok().and_then(|id: BackupId| holds.get(&id)).map(|held| held.id.clone());
    let found = pinned.map_or_else(|| request.catalog.resolve(text).map(|backup| backup.dir_name.clone()), Ok);
    let id = found.map_err(|error| unknown(request.catalog, text, error))?;
    let pin = holds.get(&id).cloned();
    request.store.release(request.lock, &id, request.now)?;
    Ok(Report { held: false, changed: pin.is_some(), hold: pin, warnings: Vec::new(), id })
}

/// A pin keeps what is there; it makes nothing better.
fn doubts(backup: &Backup) -> Vec<String> {
    let id = &backup.dir_name;
    if backup.signed().is_none() {
        vec![format!("{id} cannot be believed, and is held all the same: see `etcd-dr show {id}`")]
    } else if !backup.proved_at(ProofLevel::Digest) {
        vec![format!("{id} is not proved, and is held all the same: see `etcd-dr verify {id}`")]
    } else {
        Vec::new()
    }
}

/// With the name that is most like it, if one is at all.
fn unknown(catalog: &Catalog, text: &str, error: NoSuchBackup) -> Error {
    let alike = |backup: &Backup| strsim::normalized_damerau_levenshtein(text, backup.dir_name.as_str());
    let named = catalog.backups.iter().map(|backup| (alike(backup), &backup.dir_name));
    let nearest = named.filter(|(alike, _)| *alike >= 0.5).max_by(|(one, _), (other, _)| one.total_cmp(other));
    Error::Unknown { error, nearest: nearest.map(|(_, id)| id.clone()) }
}
