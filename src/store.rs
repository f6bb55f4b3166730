//! The store: a directory with a marker, its lock, its journal, its holds, and who may reach it. What lies in the backups is `catalog`'s.
//!
//! Nothing here begins a store: a directory without a marker is an error, and one that has backups but no marker any more is a worse one.
//! `init` begins. What changes a store takes a [`Lock`].

pub mod guard;
pub mod holds;
pub mod journal;
mod lock;

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs, io,
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use serde::Serialize;

pub use self::{
    guard::Unsafe,
    journal::JournalState,
    lock::{Holder, Lock},
};
use crate::{
    at::{At as _, PathError},
    durable,
    record::{BackupId, EtcdId, Finding, FindingKind, Held, Holds, Journal, Marker, names},
    sign::Sums,
};

/// Why a store cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nothing is there, or it is not a directory (exit 10).
    #[error("{} is not there, or is no directory", path.display())]
    NoStore {
        /// Where the store should be.
        path: PathBuf,
    },
    /// A directory that was never made a store (exit 10).
    #[error("{} is not a store: it has no marker ({})", path.display(), names::MARKER)]
    NotInitialised {
        /// The directory.
        path: PathBuf,
    },
    /// A backup where its store was meant (exit 10).
    #[error("{} is a backup, not a store", path.display())]
    IsBackup {
        /// The backup's directory.
        path: PathBuf,
    },
    /// Backups or a journal without a marker: something deletes files here (exit 10).
    #[error("{} has lost its marker ({}): something deletes files here{}", path.display(), names::MARKER, losses(present, vanished, lost))]
    MarkerGone {
        /// The directory.
        path: PathBuf,
        /// Backups that are still there, perhaps not whole.
        present: Vec<BackupId>,
        /// Backups that were published, not pruned, and are gone.
        vanished: Vec<BackupId>,
        /// Files gone from the backups that are still there, as `<id>/<file>`.
        lost: Vec<PathBuf>,
    },
    /// The marker cannot be understood (exit 10).
    #[error("{} is no marker\n  {problem}", path.display())]
    BadMarker {
        /// The marker.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The file of holds cannot be understood, so nothing may be dropped (exit 22).
    #[error("{} does not say which backups are held\n  {problem}; nothing was removed", path.display())]
    BadHolds {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// Others could read or change what lies there (exit 24).
    #[error(transparent)]
    Unsafe(#[from] Unsafe),
    /// Another run holds the lock (exit 11).
    #[error("another run works on this store{}\n  it holds {}", holder.as_ref().map(|h| format!(": {h}")).unwrap_or_default(), path.display())]
    Locked {
        /// The lock file.
        path: PathBuf,
        /// Who holds it, where the file says so.
        holder: Option<Holder>,
    },
    /// The cluster is none of those that this store has accepted (exit 2).
    #[error("{} holds backups of another cluster\n  this cluster is {cluster}; the store has accepted {}", store.display(), list(lineage))]
    ForeignCluster {
        /// The cluster that was to be backed up.
        cluster: EtcdId,
        /// What the store has accepted.
        lineage: Vec<EtcdId>,
        /// The store.
        store: PathBuf,
    },
    /// The system refused something.
    #[error(transparent)]
    Io(#[from] PathError),
}

impl From<guard::Error> for Error {
    fn from(error: guard::Error) -> Self {
        match error {
            guard::Error::Unsafe(found) => Self::Unsafe(found),
            guard::Error::Io(error) => Self::Io(error),
        }
    }
}

impl Error {
    /// What to do, with a command that can be pasted.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::NoStore { path } => Some(format!(
                "if a disk is to be mounted there, mount it; else make the store with `etcd-dr init --store {}`",
                guard::shell_quote(path)
            )),
            Self::NotInitialised { path } => {
                let quoted = guard::shell_quote(path);
                Some(format!(
                    "if a disk is to be mounted there, mount it; else make it a store with `etcd-dr init --store {quoted}`"
                ))
            }
            Self::IsBackup { path } => Some(format!(
                "name the directory above it: `--store {}`",
                guard::shell_quote(path.parent().unwrap_or(path))
            )),
            Self::MarkerGone { path, .. } => Some(format!(
                "find what deletes there, then run `etcd-dr init --store {}`: it names cron lines and timers, and recovers the marker",
                guard::shell_quote(path)
            )),
            Self::BadMarker { path, .. } => {
                let quoted = guard::shell_quote(path);
                Some(format!(
                    "move it away with `mv {quoted} {quoted}.damaged`; then `etcd-dr init` recovers the marker from what is there"
                ))
            }
            Self::BadHolds { path, .. } => {
                let quoted = guard::shell_quote(path);
                Some(format!(
                    "move it away with `mv {quoted} {quoted}.damaged`; what the journal remembers is held then, see `etcd-dr list`"
                ))
            }
            Self::Unsafe(found) => Some(found.hint()),
            Self::Locked { holder: Some(holder), .. } => Some(format!("wait for it; `ps -fp {}` shows it", holder.pid)),
            Self::ForeignCluster { cluster, .. } => {
                Some(format!("if this is the same cluster, restored, run `etcd-dr init --accept-cluster {cluster}`"))
            }
            Self::Locked { holder: None, .. } | Self::Io(_) => None,
        }
    }
}

fn list<T: ToString>(items: &[T]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

fn losses(present: &[BackupId], vanished: &[BackupId], lost: &[PathBuf]) -> String {
    let mut lines = vec![String::new()];
    if !vanished.is_empty() {
        lines.push(format!("gone: {}", list(vanished)));
    }
    if !lost.is_empty() {
        let lost: Vec<_> = lost.iter().map(|path| path.display().to_string()).collect();
        lines.push(format!("files gone from backups: {}", list(&lost)));
    }
    lines.push(match present {
        [] => "no backup is left".to_owned(),
        [one] => format!("one backup is still there: {one}"),
        many => format!("{} backups are still there: {}", many.len(), list(many)),
    });
    lines.join("\n  ")
}

/// Whether a name at the top of a store is one that this program writes.
pub(crate) fn is_ours(name: &OsStr) -> bool {
    let Some(name) = name.to_str() else { return name.as_encoded_bytes().starts_with(names::PARTIAL.as_bytes()) };
    [names::LOCK, names::PUBLIC_KEY].contains(&name)
        || name.starts_with(".etcd-dr-")
        || name.starts_with(names::PARTIAL)
        || name.parse::<BackupId>().is_ok()
}

/// What `serde_json` writes, with a newline at its end.
pub(crate) fn to_json<T: Serialize>(value: &T, path: &Path) -> Result<Vec<u8>, PathError> {
    let mut text = serde_json::to_vec_pretty(value).map_err(io::Error::from).at(path)?;
    text.push(b'\n');
    Ok(text)
}

/// Bytes of the file system under a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// Its size.
    pub total: u64,
    /// What a user without privileges could still write.
    pub free: u64,
}

/// A store that was opened: safe, marked, and known by its id.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    marker: Marker,
}

/// A store that is begun inside a backup would spoil it: every file in there that nobody signed is a finding.
///
/// # Errors
/// [`Error::IsBackup`].
pub(crate) fn refuse_backup(path: &Path) -> Result<(), Error> {
    let is_backup = [names::INDEX, names::SUMS].iter().all(|name| path.join(name).exists());
    if is_backup { Err(Error::IsBackup { path: path.to_owned() }) } else { Ok(()) }
}

impl Store {
    /// Checks who may reach the directory, then reads its marker. Nothing is changed.
    ///
    /// # Errors
    /// [`Error::Unsafe`], [`Error::NoStore`], [`Error::IsBackup`], [`Error::NotInitialised`], [`Error::MarkerGone`], [`Error::BadMarker`], [`Error::Io`].
    pub fn open(path: &Path) -> Result<Self, Error> {
        let path = std::path::absolute(path).at(path)?;
        match guard::check_store(&path) {
            Err(guard::Error::Io(error))
                if matches!(error.source.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) =>
            {
                return Err(Error::NoStore { path });
            }
            result => result?,
        }
        refuse_backup(&path)?;
        match read_marker(&path)? {
            Some(marker) => Ok(Self { path, marker }),
            None => Err(without_marker(path)?),
        }
    }

    /// The directory, absolute.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The marker as it was read, or as [`Store::accept_cluster`] left it.
    #[must_use]
    pub fn marker(&self) -> &Marker {
        &self.marker
    }

    /// The store's own id.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.marker.id
    }

    /// Where a backup lies, or would.
    #[must_use]
    pub fn backup_path(&self, id: &BackupId) -> PathBuf {
        self.path.join(id.as_str())
    }

    /// Takes the exclusive lock without waiting.
    ///
    /// # Errors
    /// [`Error::Locked`]; [`Error::Io`].
    pub fn lock(&self) -> Result<Lock, Error> {
        Lock::take(&self.path)
    }

    /// The directories that bear a backup's name, in the order of their ids; whether they are whole is `catalog`'s to say.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn backup_ids(&self) -> Result<Vec<BackupId>, Error> {
        Ok(backup_ids(&self.path)?)
    }

    /// Names in the store that are not ours, in their order. They are left alone and never counted.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn foreign(&self) -> Result<Vec<String>, Error> {
        Ok(foreign(&self.path)?)
    }

    /// Size and free space of the file system.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn space(&self) -> Result<Space, Error> {
        Ok(space_at(&self.path)?)
    }

    /// Whether backups of this cluster belong here. A store without a lineage accepts any: its first backup begins it.
    ///
    /// # Errors
    /// [`Error::ForeignCluster`].
    pub fn accepts(&self, cluster: EtcdId) -> Result<(), Error> {
        let lineage = &self.marker.lineage;
        if lineage.is_empty() || lineage.contains(&cluster) {
            Ok(())
        } else {
            Err(Error::ForeignCluster { cluster, lineage: lineage.clone(), store: self.path.clone() })
        }
    }

    /// Adds a cluster to the lineage; one that is there already changes nothing.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn accept_cluster(&mut self, _: &Lock, cluster: EtcdId) -> Result<(), Error> {
        // Another run may have added one since this store was opened.
        let mut marker = read_marker(&self.path)?.unwrap_or_else(|| self.marker.clone());
        if !marker.lineage.contains(&cluster) {
            marker.lineage.push(cluster);
            let path = self.path.join(names::MARKER);
            durable::replace(&path, &to_json(&marker, &path)?, durable::FILE_MODE)?;
        }
        self.marker = marker;
        Ok(())
    }

    /// What was found where the journal should be.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn journal(&self) -> Result<JournalState, Error> {
        journal::read(&self.path, self.id())
    }

    /// What the journal shows to be wrong: backups that were published, not pruned, and are not among `present`; or a journal that cannot tell.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn findings(&self, present: &[BackupId]) -> Result<Vec<Finding>, Error> {
        let journal = self.journal()?;
        let unusable = journal.problem().map(|detail| Finding {
            kind: match journal {
                JournalState::Damaged(_) => FindingKind::FileChanged,
                JournalState::Missing | JournalState::Present(_) => FindingKind::FileMissing,
            },
            name: names::JOURNAL.to_owned(),
            detail,
        });
        let (holds, bad_holds) = match self.holds() {
            Ok(holds) => (holds, None),
            Err(Error::BadHolds { problem, .. }) => (Holds::new(self.id()), Some((FindingKind::FileChanged, problem))),
            Err(error) => return Err(error),
        };
        let bad_holds = bad_holds.or_else(|| self.misses_holds(&holds)).map(|(kind, detail)| Finding {
            kind,
            name: names::HOLDS.to_owned(),
            detail,
        });
        let held = holds.held.iter().map(|held| &held.id).filter(|id| !present.contains(id));
        let gone = journal.vanished(present).into_iter().map(|id| (id, false));
        let gone: BTreeMap<BackupId, bool> = gone.chain(held.map(|id| (id.clone(), true))).collect();
        let vanished = gone.into_iter().map(|(id, held)| Finding {
            kind: FindingKind::BackupVanished,
            detail: if held {
                format!("it is held, and gone; `etcd-dr release {id}` if that is known, else something deletes files in this store")
            } else {
                "it was published, never pruned, and is gone: something deletes files in this store".to_owned()
            },
            name: id.to_string(),
        });
        Ok(unusable.into_iter().chain(bad_holds).chain(vanished).collect())
    }

    /// Which backups no plan may drop. Where the file is gone, it is those that the journal remembers; [`Store::findings`] says so.
    ///
    /// # Errors
    /// [`Error::BadHolds`]: then nothing may be dropped. [`Error::Io`].
    pub fn holds(&self) -> Result<Holds, Error> {
        match holds::read(&self.path, self.id())? {
            Some(holds) => Ok(holds),
            None => Ok(holds::remembered(self.id(), self.journal()?.journal())),
        }
    }

    /// What is wrong where backups are held and the file that says so is gone.
    fn misses_holds(&self, holds: &Holds) -> Option<(FindingKind, String)> {
        let gone = !holds.held.is_empty() && !self.path.join(names::HOLDS).exists();
        let held: Vec<&BackupId> = holds.held.iter().map(|held| &held.id).collect();
        gone.then(|| {
            (FindingKind::FileMissing, format!("it is gone; the journal remembers what is held: {}", list(&held)))
        })
    }

    /// Pins a backup. One that is held already stays as it is.
    ///
    /// # Errors
    /// [`Error::BadHolds`], [`Error::Io`]: then it is as held as before.
    pub fn hold(&self, lock: &Lock, held: Held) -> Result<(), Error> {
        let now = held.at;
        self.change_holds(lock, now, |holds| holds::hold(holds, held))
    }

    /// Takes a pin back.
    ///
    /// # Errors
    /// [`Error::BadHolds`], [`Error::Io`].
    pub fn release(&self, lock: &Lock, id: &BackupId, now: Timestamp) -> Result<(), Error> {
        self.change_holds(lock, now, |holds| holds::release(holds, id, now))
    }

    /// The file first, which counts; then the journal, which repeats it.
    fn change_holds(&self, lock: &Lock, now: Timestamp, change: impl FnOnce(&mut Holds)) -> Result<(), Error> {
        let before = holds::read(&self.path, self.id())?;
        let mut holds = match &before {
            Some(holds) => holds.clone(),
            None => self.holds()?,
        };
        change(&mut holds);
        holds.released.retain(|entry| self.backup_path(&entry.id).exists());
        if before.unwrap_or_else(|| Holds::new(self.id())) != holds {
            holds::write(&self.path, &holds)?;
        }
        self.change_journal(lock, now, |_journal| {})
    }

    /// Notes that a backup got its name, and the highest revision in it.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn record_published(
        &self,
        lock: &Lock,
        id: &BackupId,
        cluster: EtcdId,
        revision: Option<i64>,
        now: Timestamp,
    ) -> Result<(), Error> {
        self.change_journal(lock, now, |journal| {
            journal::publish(journal, id, now);
            if let Some(revision) = revision {
                journal::raise_revision(journal, cluster, revision);
            }
        })
    }

    /// Notes that these backups are to be removed. To be called *before* the first of them goes.
    ///
    /// # Errors
    /// [`Error::Io`]: then nothing may be removed.
    pub fn record_pruned(&self, lock: &Lock, ids: &[BackupId], now: Timestamp) -> Result<(), Error> {
        self.change_journal(lock, now, |journal| journal::prune(journal, ids, now))
    }

    /// Makes the journal know the backups that are there, as [`journal::reconcile`] does, and writes again a file of holds that is gone and
    /// that the journal remembers. Returns what it corrected in the journal.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn reconcile(&self, lock: &Lock, present: &[BackupId], now: Timestamp) -> Result<Vec<BackupId>, Error> {
        let mut corrected = Vec::new();
        self.change_journal(lock, now, |journal| corrected = journal::reconcile(journal, present, now))?;
        match self.change_holds(lock, now, |_holds| {}) {
            // A person's to see to, and a finding until then; the journal is right all the same.
            Ok(()) | Err(Error::BadHolds { .. }) => Ok(corrected),
            Err(error) => Err(error),
        }
    }

    /// A journal that is gone or damaged is begun anew from the backups that are there, which [`Store::journal`] said before; a damaged one
    /// is kept aside. Whatever else changes, it repeats the holds.
    fn change_journal(&self, _: &Lock, now: Timestamp, change: impl FnOnce(&mut Journal)) -> Result<(), Error> {
        let state = self.journal()?;
        if let Some(problem) = state.problem() {
            tracing::warn!(store = %self.path.display(), "{problem}; it is begun anew");
        }
        if let JournalState::Damaged(_) = state {
            let aside = journal::keep_aside(&self.path)?;
            tracing::warn!(path = %aside.display(), "the damaged journal is kept");
        }
        let before = state.journal().cloned();
        let mut journal = before.clone().unwrap_or_else(|| Journal::new(self.id()));
        if before.is_none() {
            journal::reconcile(&mut journal, &self.backup_ids()?, now);
        }
        change(&mut journal);
        match holds::read(&self.path, self.id()) {
            Ok(Some(holds)) => journal.held = holds::entries(&holds),
            Ok(None) | Err(Error::BadHolds { .. }) => {}
            Err(error) => return Err(error),
        }
        if before.as_ref() == Some(&journal) { Ok(()) } else { journal::write(&self.path, &journal) }
    }

    /// Removes what a run that was killed left under temporary names, and says what it was. Links are removed, never followed.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn sweep(&self, _: &Lock) -> Result<Vec<PathBuf>, Error> {
        let mut swept = Vec::new();
        for (name, is_dir) in entries(&self.path)? {
            if !name.as_encoded_bytes().starts_with(names::PARTIAL.as_bytes()) {
                continue;
            }
            let path = self.path.join(name);
            let removed = if is_dir { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            removed.at(&path)?;
            tracing::info!(path = %path.display(), "removed what an earlier run left half made");
            swept.push(path);
        }
        if !swept.is_empty() {
            durable::sync_dir(&self.path)?;
        }
        Ok(swept)
    }

    /// Removes a backup, so that it is whole or gone under its name. [`Store::record_pruned`] comes first.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn remove_backup(&self, _: &Lock, id: &BackupId) -> Result<(), Error> {
        Ok(durable::remove_dir(&self.backup_path(id))?)
    }
}

/// Names in a directory with "is a directory", in the order of their bytes.
fn entries(dir: &Path) -> Result<Vec<(std::ffi::OsString, bool)>, PathError> {
    let mut entries = Vec::new();
    for entry in fs::read_dir(dir).at(dir)? {
        let entry = entry.at(dir)?;
        let is_dir = entry.file_type().at(&entry.path())?.is_dir();
        entries.push((entry.file_name(), is_dir));
    }
    entries.sort();
    Ok(entries)
}

pub(crate) fn backup_ids(dir: &Path) -> Result<Vec<BackupId>, PathError> {
    let name_of = |(name, is_dir): (std::ffi::OsString, bool)| if is_dir { name.to_str()?.parse().ok() } else { None };
    Ok(entries(dir)?.into_iter().filter_map(name_of).collect())
}

pub(crate) fn foreign(dir: &Path) -> Result<Vec<String>, PathError> {
    let foreign = entries(dir)?.into_iter().filter(|(name, _)| !is_ours(name));
    Ok(foreign.map(|(name, _)| name.to_string_lossy().into_owned()).collect())
}

pub(crate) fn read_marker(dir: &Path) -> Result<Option<Marker>, Error> {
    let path = dir.join(names::MARKER);
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(PathError { path, source }.into()),
    };
    match serde_json::from_slice::<Marker>(&bytes) {
        Ok(marker) if marker.schema == Marker::SCHEMA => Ok(Some(marker)),
        Ok(marker) => {
            let problem = format!("its schema is `{}`, not `{}`", marker.schema, Marker::SCHEMA);
            Err(Error::BadMarker { path, problem })
        }
        Err(error) => Err(Error::BadMarker { path, problem: error.to_string() }),
    }
}

/// A directory without a marker was never a store, or something deletes files there.
fn without_marker(path: PathBuf) -> Result<Error, Error> {
    let present = backup_ids(&path)?;
    let state = journal::read_any(&path)?;
    // The marker is what `init` writes last: before it there may be a journal, and nothing in it.
    let has_seen_nothing = match &state {
        JournalState::Missing => true,
        JournalState::Present(journal) => journal.published.is_empty() && journal.pruned.is_empty(),
        JournalState::Damaged(_) => false,
    };
    if present.is_empty() && has_seen_nothing {
        return Ok(Error::NotInitialised { path });
    }
    let vanished = state.vanished(&present);
    let lost = present.iter().flat_map(|id| lost_files(&path, id)).collect();
    Ok(Error::MarkerGone { path, present, vanished, lost })
}

/// Files that a backup's own list names and that are gone, as `<id>/<file>`. The list is not trusted here: it only says where to look.
pub(crate) fn lost_files(store: &Path, id: &BackupId) -> Vec<PathBuf> {
    let dir = store.join(id.as_str());
    let listed = fs::read_to_string(dir.join(names::SUMS)).ok().and_then(|text| Sums::parse(&text).ok());
    let always = [names::INDEX, names::SUMS, names::SIGNATURE].map(str::to_owned);
    let files: std::collections::BTreeSet<String> = listed.unwrap_or_default().0.into_keys().chain(always).collect();
    let gone = |file: &String| fs::symlink_metadata(dir.join(file)).is_err();
    files.into_iter().filter(gone).map(|file| Path::new(id.as_str()).join(file)).collect()
}

/// Room in the file system that holds a directory.
///
/// # Errors
/// What the system says, with the path.
pub fn space_at(dir: &Path) -> Result<Space, PathError> {
    let stat = rustix::fs::statvfs(dir).map_err(io::Error::from).at(dir)?;
    let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
    Ok(Space { total: bytes(stat.f_blocks), free: bytes(stat.f_bavail) })
}
