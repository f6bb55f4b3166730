//! `inspect`: what one snapshot holds, wherever it comes from, or why it cannot be what etcd wrote.

mod report;

use std::{
    fs::TryLockError,
    io,
    path::{Path, PathBuf},
};

use tokio_util::sync::CancellationToken;

pub use self::report::{AlarmLine, AuthLine, Large, LeaseLine, Member, Prefix, Report, Tail};
use crate::{
    at::{At as _, PathError},
    etcd::{
        ReadAt,
        bbolt::{Damage, Db, Foreign},
        data_dir,
        survey::{Survey, Unsound, Wants, survey},
        wal,
    },
    record::Sha256Hex,
    seal::{Identities, Plain},
    source::{self, Bytes, Opened, Source},
};

/// Why nothing is said of what is in it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The system refused something.
    #[error(transparent)]
    Io(#[from] PathError),
    /// The source cannot be read.
    #[error(transparent)]
    Source(#[from] source::Error),
    /// A data directory without a database.
    #[error("{} is no backup and no member's data directory: it has neither backup.json nor member/snap/db", dir.display())]
    NoDatabase {
        /// The directory.
        dir: PathBuf,
    },
    /// An etcd runs on it.
    #[error("{} is in use: an etcd runs on it\n  what is read of it would be of different moments", path.display())]
    InUse {
        /// The database.
        path: PathBuf,
    },
    /// Something else than a database.
    #[error("{} is not a database of etcd but {found}", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// What it is.
        found: Foreign,
    },
    /// The 32 bytes at the end are not the digest of what stands before them.
    #[error(
        "{} does not hold what etcd sent\n  its trailer says SHA-256 {said}\n  what stands before it has    {found}{}",
        path.display(),
        also(damage.as_deref())
    )]
    Trailer {
        /// The file.
        path: PathBuf,
        /// The trailer.
        said: Sha256Hex,
        /// The digest.
        found: Sha256Hex,
        /// What the database itself shows.
        damage: Option<String>,
    },
    /// A rule is broken.
    #[error("{} is no sound database\n  {damage}", path.display())]
    Unsound {
        /// The file.
        path: PathBuf,
        /// Where.
        damage: String,
    },
    /// A rule is broken, as it is in a file that was copied while its member wrote to it.
    #[error(
        "{} looks like a copy of a running member: it is no snapshot ({sign}), and its pages are of different moments\n  {damage}\n  if no etcd ran when it was copied, its disk is damaged",
        path.display()
    )]
    Torn {
        /// The file.
        path: PathBuf,
        /// What tells it from a snapshot.
        sign: String,
        /// Where.
        damage: String,
    },
    /// A signal came.
    #[error("interrupted")]
    Interrupted,
}

fn also(damage: Option<&str>) -> String {
    damage.map_or_else(String::new, |damage| format!("\n  {damage}"))
}

/// What is inspected, and how closely.
pub struct Request<'a> {
    /// The snapshot.
    pub source: &'a Source,
    /// Where its log is, if that is not where a member keeps it.
    pub wal_dir: Option<&'a Path>,
    /// What opens a sealed one.
    pub identities: Option<&'a Identities>,
    /// Where the opened copy of one that is sealed or compressed lies while it is read.
    pub scratch_dir: &'a Path,
    /// Prefixes and largest keys.
    pub wants: Wants,
    /// Ends it.
    pub cancel: &'a CancellationToken,
}

/// The database of a data directory, where `path` is one.
#[must_use]
pub fn database_in(path: &Path) -> Option<PathBuf> {
    let database = data_dir::database(path);
    database.symlink_metadata().is_ok().then_some(database)
}

/// The data directory around a database, where its name and its place say that it is a member's own.
fn member_of(path: &Path) -> Option<&Path> {
    let dir = path.ancestors().nth(3)?;
    (data_dir::database(dir) == path).then_some(dir)
}

/// Opens the source, walks it once, and says what is in it.
///
/// # Errors
/// [`Error`].
pub fn run(request: &Request<'_>) -> Result<Report, Error> {
    let source = request.source;
    let mut opened = source.open(request.identities, request.scratch_dir, request.cancel)?;
    refuse_live(&opened, &source.path)?;
    let (survey, notes) = examine(&mut opened, request)?;
    // One that was started meanwhile has written into what was read.
    refuse_live(&opened, &source.path)?;
    let tail = member_of(&source.path).map(|dir| {
        let dir = request.wal_dir.map_or_else(|| data_dir::log(dir), Path::to_owned);
        wal::read(&dir).map(|tail| (dir, tail))
    });
    Ok(report::of(source, &survey, tail, notes))
}

/// A server keeps a lock on its database for as long as it runs.
fn refuse_live(opened: &Opened, path: &Path) -> Result<(), Error> {
    let Bytes::File(file) = &opened.bytes else { return Ok(()) };
    match file.try_lock_shared() {
        Ok(()) => Ok(file.unlock().at(path)?),
        Err(TryLockError::WouldBlock) => Err(Error::InUse { path: path.to_owned() }),
        // A file system without locks: no etcd runs there either, it would not start.
        Err(TryLockError::Error(error)) => {
            tracing::debug!("{}: {error}", path.display());
            Ok(())
        }
    }
}

fn examine(opened: &mut Opened, request: &Request<'_>) -> Result<(Survey, Vec<String>), Error> {
    let path = &request.source.path;
    // A plain file with a trailer is hashed while it is walked.
    let mut apart = match (&opened.bytes, opened.plain) {
        (Bytes::File(file), None) => Some(Opened { bytes: Bytes::File(file.try_clone().at(path)?), plain: None }),
        _ => None,
    };
    let watched = Watched { bytes: &opened.bytes, cancel: request.cancel };
    let db = match Db::open(watched) {
        Ok(db) => db,
        Err(damage) => {
            let size = opened.bytes.size().at(path)?;
            return Err(damaged(request, damage.into(), None, size % 512 == 32));
        }
    };
    let mut notes = Vec::new();
    if let Err(fault) = db.other_meta() {
        notes.push(format!("of its two meta pages one does not count: {fault}"));
    }
    let (surveyed, plain) = std::thread::scope(|scope| {
        let hashing = apart.as_mut().filter(|_| db.has_trailer()).map(|apart| {
            let hash = || apart.digest(path, request.cancel);
            scope.spawn(hash)
        });
        let surveyed = survey(&db, &request.wants);
        let plain = match hashing {
            // The thread runs nothing that panics; if it did, there is no digest.
            Some(hashing) => hashing.join().unwrap_or(Err(source::Error::Interrupted)).map(Some),
            None => Ok(opened.plain),
        };
        (surveyed, plain)
    });
    if request.cancel.is_cancelled() {
        return Err(Error::Interrupted);
    }
    let plain = plain?;
    let damage = surveyed.as_ref().err().map(ToString::to_string);
    if db.has_trailer()
        && let Some(Plain { body_sha256: found, trailer: Some(said), .. }) = plain
        && said != found
    {
        return Err(Error::Trailer { path: path.clone(), said, found, damage });
    }
    match surveyed {
        Ok(survey) => Ok((survey, notes)),
        Err(unsound) => Err(damaged(request, unsound, Some(db.surplus_bytes()), db.has_trailer())),
    }
}

/// What damage amounts to: no database, a broken one, or one that was copied while it was written.
fn damaged(request: &Request<'_>, unsound: Unsound, surplus: Option<u64>, has_trailer: bool) -> Error {
    if request.cancel.is_cancelled() {
        return Error::Interrupted;
    }
    let path = request.source.path.clone();
    match unsound {
        Unsound::Pages(Damage::Foreign(found)) => Error::Foreign { path, found },
        Unsound::Pages(Damage::Read { source, .. }) => Error::Io(PathError { path, source }),
        unsound => {
            let damage = unsound.to_string();
            // Whole pages without what a server writes at its first commit are of one moment all the same.
            let tears = matches!(unsound, Unsound::Pages(_) | Unsound::Row { .. });
            match sign_of_life(&path, surplus).filter(|_| tears && !has_trailer) {
                Some(sign) => Error::Torn { path, sign, damage },
                None => Error::Unsound { path, damage },
            }
        }
    }
}

/// What tells the file of a member from a snapshot.
fn sign_of_life(path: &Path, surplus: Option<u64>) -> Option<String> {
    let beside = |name: &str| path.parent().is_some_and(|dir| dir.join(name).exists());
    if member_of(path).is_some() {
        return Some("it lies where a member keeps its database".to_owned());
    }
    if let Some(bytes) = surplus.filter(|&bytes| bytes > 0) {
        return Some(format!("behind its last page {bytes} bytes are set aside, as a server does"));
    }
    if path.file_name().is_some_and(|name| name == "db") || beside("wal") || beside("../wal") {
        return Some("it is named, or lies, as a member's own".to_owned());
    }
    None
}

/// Bytes that end when the run does.
struct Watched<'a> {
    bytes: &'a Bytes,
    cancel: &'a CancellationToken,
}

impl ReadAt for Watched<'_> {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        if self.cancel.is_cancelled() {
            return Err(io::Error::other("interrupted"));
        }
        self.bytes.read_exact_at(buffer, offset)
    }

    fn size(&self) -> io::Result<u64> {
        self.bytes.size()
    }
}
