//! What exists, proved how far.
//!
//! A backup is believed in this order, and nothing before its turn: the signature over `SHA256SUMS` by a key that the caller trusts, the
//! digest of `backup.json`, then the contents of `backup.json`. Identity and age come from there alone: a directory's name must equal the
//! signed id, and a file's times are never looked at. Files are looked for at their recorded size; reading their bytes is `verify`'s.
//!
//! Nothing here follows a symbolic link, and all that is read has a bound.

mod proofs;
mod read;

use std::{
    fmt,
    fs::File,
    io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use jiff::{Timestamp, fmt::strtime, tz::TimeZone};
use walkdir::WalkDir;

pub use self::proofs::{SeenProof, WriteProofError, write_proof};
use crate::{
    at::{At as _, PathError},
    record::{BackupId, BadBackupId, EtcdId, FileVerdict, FindingKind, Index, ProofLevel, Sha256Hex, names},
    sign::{PublicKey, Sums, Trusted},
};

/// One directory that bears the name of a backup.
#[derive(Debug, Clone)]
pub struct Backup {
    /// The directory's name. It equals the signed id where [`Backup::state`] is trusted.
    pub dir_name: BackupId,
    /// Where it lies.
    pub path: PathBuf,
    /// What can be said of it.
    pub state: State,
}

/// Whether a directory is a backup that a trusted key signed.
#[derive(Debug, Clone)]
pub enum State {
    /// A trusted key signed it under this name. Its files may still be missing or damaged: [`Signed::files`].
    Trusted(Box<Signed>),
    /// Nothing that it says is believed.
    Broken {
        /// Why, by file; never empty, and every verdict is a bad one.
        problems: Vec<FileVerdict>,
    },
}

/// What a trusted key signed, and what lies there.
#[derive(Debug, Clone)]
pub struct Signed {
    /// `backup.json`.
    pub index: Index,
    /// The digests that were signed.
    pub sums: Sums,
    /// SHA-256 of the `SHA256SUMS` file, which later proofs name.
    pub sums_sha256: Sha256Hex,
    /// Who signed.
    pub signer: PublicKey,
    /// Later proofs, oldest first; of one second, failures last.
    pub proofs: Vec<SeenProof>,
    /// Every file that is listed, named by the index, or beside them; in the order of their names, `proofs/` left out.
    pub files: Vec<FileFact>,
}

/// One file of a backup as a listing sees it: its bytes were not read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileFact {
    /// Its name within the backup, control characters escaped.
    pub file: String,
    /// What is there.
    pub state: FileState,
}

/// What a listing sees of one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FileState {
    /// A regular file, at the size that was recorded where one was.
    Present {
        /// Its size.
        bytes: u64,
    },
    /// Listed and not there.
    Missing,
    /// Listed, but a directory, a symbolic link or a device lies there.
    NotAFile,
    /// Not as long as what was written.
    WrongSize {
        /// Bytes in the index.
        recorded: u64,
        /// Bytes there.
        found: u64,
    },
    /// The index names it, and `SHA256SUMS` does not: its digest was never signed.
    NotInSums,
    /// The index gives it another digest than `SHA256SUMS` does, or no digest or size at all.
    IndexDiffers,
    /// The index names it more than once, or by a name that could reach outside the backup.
    BadName,
    /// Nobody signed it.
    Stray,
    /// The system would not say.
    Unreadable {
        /// What it said instead.
        error: String,
    },
}

impl FileState {
    /// Whether the file is as it should be.
    #[must_use]
    pub fn is_ok(&self) -> bool {
        matches!(self, Self::Present { .. })
    }

    /// The class of the finding, where it is one.
    #[must_use]
    pub fn kind(&self) -> Option<FindingKind> {
        match self {
            Self::Present { .. } => None,
            Self::Missing => Some(FindingKind::FileMissing),
            Self::Stray => Some(FindingKind::FileStray),
            Self::NotAFile
            | Self::WrongSize { .. }
            | Self::NotInSums
            | Self::IndexDiffers
            | Self::BadName
            | Self::Unreadable { .. } => Some(FindingKind::FileChanged),
        }
    }
}

impl fmt::Display for FileState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Present { bytes } => write!(f, "{bytes} bytes"),
            Self::Missing => f.write_str("is missing"),
            Self::NotAFile => f.write_str("is not a regular file"),
            Self::WrongSize { recorded, found } => write!(f, "has {found} bytes, {recorded} were written"),
            Self::NotInSums => f.write_str("backup.json names it and SHA256SUMS does not"),
            Self::IndexDiffers => f.write_str("backup.json and SHA256SUMS disagree on it"),
            Self::BadName => f.write_str("backup.json names it twice, or outside the backup"),
            Self::Stray => f.write_str("does not belong to the backup: nobody signed it"),
            Self::Unreadable { error } => write!(f, "cannot be read: {error}"),
        }
    }
}

impl FileFact {
    /// The same as one line of a verdict.
    #[must_use]
    pub fn verdict(&self) -> FileVerdict {
        let ok = self.state.is_ok();
        FileVerdict { file: self.file.clone(), ok, problem: (!ok).then(|| self.state.to_string()) }
    }
}

impl Backup {
    /// What was signed, where a trusted key did.
    #[must_use]
    pub fn signed(&self) -> Option<&Signed> {
        match &self.state {
            State::Trusted(signed) => Some(signed),
            State::Broken { .. } => None,
        }
    }

    /// The signed creation time; for a broken one the time in its name, which orders a list and decides nothing.
    #[must_use]
    pub fn time(&self) -> Timestamp {
        self.signed().map_or_else(|| time_in(&self.dir_name), |signed| signed.index.created_at)
    }

    /// All that a listing finds wrong, by file; empty for a whole and trusted backup.
    #[must_use]
    pub fn problems(&self) -> Vec<FileVerdict> {
        match &self.state {
            State::Broken { problems } => problems.clone(),
            State::Trusted(signed) => signed.files.iter().map(FileFact::verdict).filter(|v| !v.ok).collect(),
        }
    }

    /// Whether every listed file is there at its recorded size, and one of them is the primary's. Strays do not count here.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.signed().is_some_and(Signed::is_complete)
    }

    /// How far it was proved, by the run that wrote it and by later counted proofs; `None` for a broken one.
    ///
    /// Records are read in the order of their times. A pass raises the level to its own. A failure takes the level to `None`, whatever was
    /// passed before it, until a later pass at the failed level or above: that pass says that the bytes are the signed ones again, so the
    /// level is then the highest that any pass reached.
    #[must_use]
    pub fn level(&self) -> ProofLevel {
        self.signed().map_or(ProofLevel::None, |signed| proofs::level(signed.index.proof, &signed.proofs))
    }

    /// Whether it counts as proved at `min`: trusted, complete, at that level or above, and nothing is proved at `None`.
    #[must_use]
    pub fn proved_at(&self, min: ProofLevel) -> bool {
        self.is_complete() && self.level() >= min.max(ProofLevel::Digest)
    }

    /// When a counted proof last opened it with somebody's identity. The run's own proof uses a key that nobody keeps and is not counted.
    #[must_use]
    pub fn last_proof_with_identity(&self) -> Option<Timestamp> {
        let proofs = self.signed()?.proofs.iter();
        proofs
            .filter_map(SeenProof::counted_record)
            .filter(|r| r.ok && r.level >= ProofLevel::Open)
            .map(|r| r.made_at)
            .max()
    }
}

impl Signed {
    fn is_complete(&self) -> bool {
        let listed_ok = self.files.iter().all(|fact| fact.state.is_ok() || fact.state == FileState::Stray);
        listed_ok && self.index.primary_member().is_some_and(|member| member.file.is_some())
    }
}

/// The time that an id carries.
fn time_in(id: &BackupId) -> Timestamp {
    let time = id.as_str().split('-').next().unwrap_or_default();
    strtime::parse("%Y%m%dT%H%M%SZ", time)
        .and_then(|parsed| parsed.to_datetime())
        .and_then(|time| time.to_zoned(TimeZone::UTC))
        .map_or(Timestamp::UNIX_EPOCH, |zoned| zoned.timestamp())
}

/// Why a directory cannot be looked at as a backup at all.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is not there, not a directory, or not to be read.
    #[error(transparent)]
    Io(#[from] PathError),
    /// Its name is no id, so it cannot equal the signed one.
    #[error(transparent)]
    Name(#[from] BadBackupId),
}

/// Reads one backup, wherever it lies; its store and cluster are not compared with anything.
///
/// # Errors
/// [`Error::Io`] where there is no directory; [`Error::Name`] where its name is not an id. What is wrong inside is in [`Backup::state`].
pub fn read_backup(dir: &Path, trusted: &Trusted) -> Result<Backup, Error> {
    let dir = dir.canonicalize().at(dir)?;
    if !dir.is_dir() {
        return Err(io::Error::from(io::ErrorKind::NotADirectory)).at(&dir)?;
    }
    let name = dir.file_name().unwrap_or_default().to_string_lossy();
    Ok(read::backup(name.parse()?, dir, trusted, None))
}

/// What lies in one store or target.
#[derive(Debug, Clone, Default)]
pub struct Catalog {
    /// Oldest first: by signed time, broken ones by the time in their name; of one second by name.
    pub backups: Vec<Backup>,
    /// Names that etcd-dr did not make, control characters escaped, in order. They are shown and left alone.
    pub foreign: Vec<String>,
}

/// Reads a store: every entry whose name is a backup's id.
///
/// With `store_id` a backup of another store, or of a cluster that is not in `lineage`, is broken; without, neither is compared.
///
/// # Errors
/// What the system says when the store itself cannot be listed. What is wrong with one backup is in its [`Backup::state`].
pub fn read(
    store_path: &Path,
    store_id: Option<&str>,
    lineage: &[EtcdId],
    trusted: &Trusted,
) -> Result<Catalog, PathError> {
    let home = store_id.map(|store_id| read::Home { store_id, lineage });
    let mut catalog = Catalog::default();
    for entry in WalkDir::new(store_path).min_depth(1).max_depth(1).follow_links(false) {
        let entry = entry.map_err(|error| walk_error(store_path, error))?;
        let name = entry.file_name().to_string_lossy();
        let Ok(id) = name.parse::<BackupId>() else {
            if !is_ours(&name) {
                catalog.foreign.push(read::shown(entry.path(), store_path));
            }
            continue;
        };
        let backup = read::backup(id, entry.path().to_owned(), trusted, home);
        // A backup that was pruned while it was read is gone, not broken.
        if backup.signed().is_some() || entry.path().symlink_metadata().is_ok() {
            catalog.backups.push(backup);
        }
    }
    catalog.backups.sort_by(|a, b| (a.time(), &a.dir_name).cmp(&(b.time(), &b.dir_name)));
    catalog.foreign.sort();
    Ok(catalog)
}

/// Names that etcd-dr gives to what lies beside the backups of a store.
fn is_ours(name: &str) -> bool {
    name == names::LOCK
        || name == names::PUBLIC_KEY
        || name.starts_with(names::PARTIAL)
        || name.starts_with(".etcd-dr-")
}

fn walk_error(root: &Path, error: walkdir::Error) -> PathError {
    let path = error.path().unwrap_or(root).to_owned();
    let source = error.into_io_error().unwrap_or_else(|| io::Error::other("a loop of links"));
    PathError { path, source }
}

/// No backup bears the name that was asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoSuchBackup {
    /// `latest` of nothing.
    #[error("there is no backup yet")]
    Empty,
    /// The id is not here.
    #[error("there is no backup {0}")]
    Unknown(BackupId),
    /// The text is neither an id nor `latest`.
    #[error(transparent)]
    Name(#[from] BadBackupId),
}

impl Catalog {
    /// The newest entry, broken or not: what lies on top and cannot be believed is said, not passed over.
    #[must_use]
    pub fn newest(&self) -> Option<&Backup> {
        self.backups.last()
    }

    /// The newest backup that a trusted key signed; freshness is its age.
    #[must_use]
    pub fn newest_trusted(&self) -> Option<&Backup> {
        self.backups.iter().rev().find(|backup| backup.signed().is_some())
    }

    /// The newest backup that is proved at `min`: what to turn to when a newer one does not hold.
    #[must_use]
    pub fn newest_proved(&self, min: ProofLevel) -> Option<&Backup> {
        self.backups.iter().rev().find(|backup| backup.proved_at(min))
    }

    /// The backup of that name.
    #[must_use]
    pub fn get(&self, id: &BackupId) -> Option<&Backup> {
        self.backups.iter().find(|backup| backup.dir_name == *id)
    }

    /// `latest` ([`Catalog::newest`]) or an id.
    ///
    /// # Errors
    /// [`NoSuchBackup`].
    pub fn resolve(&self, text: &str) -> Result<&Backup, NoSuchBackup> {
        if text == "latest" {
            return self.newest().ok_or(NoSuchBackup::Empty);
        }
        let id: BackupId = text.parse()?;
        self.get(&id).ok_or(NoSuchBackup::Unknown(id))
    }
}

/// Keeps a backup from being pruned for as long as the file is open. Waits while a prune decides or removes.
///
/// # Errors
/// What the system says, with the path; [`io::ErrorKind::NotFound`] where the backup was pruned meanwhile.
pub fn hold_shared(backup: &Backup) -> Result<File, PathError> {
    let path = backup.path.join(names::INDEX);
    let file = read::open(&path).at(&path)?;
    file.lock_shared().at(&path)?;
    if same_file(&file, &path) { Ok(file) } else { Err(io::Error::from(io::ErrorKind::NotFound)).at(&path) }
}

/// Takes a backup for removal, as long as the file is open; nothing where a reader holds it.
///
/// # Errors
/// What the system says, with the path.
pub fn hold_exclusive(backup: &Backup) -> Result<Option<File>, PathError> {
    let path = backup.path.join(names::INDEX);
    // Open for writing, since NFS turns a flock into a lock that needs it; nothing is written.
    let file = read::open_with(&path, true).at(&path)?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(std::fs::TryLockError::WouldBlock) => Ok(None),
        Err(std::fs::TryLockError::Error(error)) => Err(error).at(&path),
    }
}

/// Whether the open file still has its name.
fn same_file(file: &File, path: &Path) -> bool {
    let id = |meta: std::fs::Metadata| (meta.dev(), meta.ino());
    matches!((file.metadata().map(id), path.symlink_metadata().map(id)), (Ok(held), Ok(named)) if held == named)
}
