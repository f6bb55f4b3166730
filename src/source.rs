//! What is restored, inspected or drilled: one snapshot, out of a backup or alone, found, believed and opened.
//!
//! ```text
//! 20261122T020000Z-7f3a, latest       a backup of the store
//! /mnt/20261122T020000Z-7f3a          a backup wherever it lies; the same for a member's file in it
//! x.db, x.db.zst, x.db.zst.age        a file alone; what it is its first bytes say, not its name
//! ```
//!
//! A backup is believed as far as a trusted key signed it, and its file is compared with what was signed while it is opened. A file alone has
//! nobody's word: [`Source::require_signed`] says so where that matters.

mod error;
mod open;

use std::{
    fs::{self, File},
    io::{self, Read as _},
    path::{Path, PathBuf},
};

pub use self::{
    error::Error,
    open::{Bytes, Opened},
};
use crate::{
    at::At as _,
    catalog::{self, Backup, Catalog, FileState, NoSuchBackup, Signed, State},
    record::{Agreement, BackupId, FileVerdict, Index, Member, ProofLevel, names},
    sign::Trusted,
};

/// What a text names, before it is looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Named {
    /// A backup of the store: its id, or `latest`.
    InStore(String),
    /// A directory, which must be a backup.
    Directory(PathBuf),
    /// A file.
    File(PathBuf),
}

impl Named {
    /// An id or `latest` is a backup of the store; anything else is a path. `./latest` is a path, too.
    ///
    /// # Errors
    /// [`Error::NotThere`] for a path at which nothing is; [`Error::Io`] where the system does not say.
    pub fn parse(text: &str) -> Result<Self, Error> {
        if text == LATEST || text.parse::<BackupId>().is_ok() {
            return Ok(Self::InStore(text.to_owned()));
        }
        let path = PathBuf::from(text);
        match fs::metadata(&path) {
            Ok(meta) if meta.is_dir() => Ok(Self::Directory(path)),
            Ok(_) => Ok(Self::File(path)),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                Err(Error::NotThere { text: text.to_owned() })
            }
            Err(error) => Err(error).at(&path)?,
        }
    }

    /// Whether a signature will be judged, so that a trusted key is needed.
    #[must_use]
    pub fn needs_trust(&self) -> bool {
        match self {
            Self::InStore(_) | Self::Directory(_) => true,
            Self::File(path) => around(path).is_some(),
        }
    }
}

const LATEST: &str = "latest";

/// How the bytes lie there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// As etcd sent them, or as a stopped member left them.
    Plain,
    /// Compressed.
    Zstd,
    /// Compressed and sealed.
    Sealed,
}

/// One snapshot that was found and, where it is part of a backup, believed.
#[derive(Debug)]
pub struct Source {
    /// What names it again, on this host: a backup's id, or an absolute path.
    pub name: String,
    /// The file.
    pub path: PathBuf,
    /// Its form.
    pub form: Form,
    /// The backup around it.
    pub backup: Option<Box<OfBackup>>,
    /// What should be known and stops nothing.
    pub warnings: Vec<String>,
}

/// The backup that a snapshot is part of. It cannot be pruned for as long as this is alive.
#[derive(Debug)]
pub struct OfBackup {
    /// Its signed index.
    pub index: Index,
    /// The member whose snapshot it is.
    pub member: Member,
    /// How far the backup is proved.
    pub level: ProofLevel,
    /// Another backup to turn to where this one does not hold.
    pub other: Option<BackupId>,
    _held: File,
}

impl Source {
    /// Refuses a file alone.
    ///
    /// # Errors
    /// [`Error::Unsigned`].
    pub fn require_signed(&self) -> Result<(), Error> {
        if self.backup.is_some() { Ok(()) } else { Err(Error::Unsigned { path: self.path.clone() }) }
    }
}

/// A backup of the store by its id, or `latest`: the newest that is proved at `min`, or as far as any is.
///
/// `from` names the member whose snapshot it shall be; without it that is the primary's.
///
/// # Errors
/// [`Error::NoSuch`]; [`Error::NotBelieved`], [`Error::NotProved`], [`Error::NoneProved`]; [`Error::NoPrimary`], [`Error::UnknownMember`],
/// [`Error::NoFile`]; [`Error::Io`].
pub fn in_catalog(catalog: &Catalog, text: &str, min: ProofLevel, from: Option<&str>) -> Result<Source, Error> {
    if text == LATEST {
        return latest(catalog, min, from);
    }
    let backup = catalog.resolve(text)?;
    let other = other(catalog, backup, min);
    let (signed, member) = usable(backup, from, other.as_ref())?;
    of_backup(backup, signed, member, backup.dir_name.to_string(), other)
}

/// A backup wherever it lies.
///
/// # Errors
/// [`Error::NoBackup`] for a directory that cannot be one; else as [`in_catalog`].
pub fn in_directory(dir: &Path, trusted: &Trusted, from: Option<&str>) -> Result<Source, Error> {
    let backup = catalog::read_backup(dir, trusted)?;
    let (signed, member) = usable(&backup, from, None)?;
    let name = backup.path.display().to_string();
    of_backup(&backup, signed, member, name, None)
}

/// A file alone, or a member's file within a backup, which is then believed like the backup.
///
/// # Errors
/// [`Error::Form`] for a file in a form that is not read here; for one within a backup as [`in_directory`].
pub fn file(path: &Path, trusted: &Trusted) -> Result<Source, Error> {
    let path = path.canonicalize().at(path)?;
    if let Some(dir) = around(&path) {
        let backup = catalog::read_backup(dir, trusted)?;
        let file = path.file_name().unwrap_or_default().to_string_lossy();
        let named = backup.signed().and_then(|signed| {
            signed.index.members.iter().find(|member| member.file.as_deref() == Some(file.as_ref()))
        });
        let from = named.map(|member| member.name.clone());
        if from.is_some() || backup.signed().is_none() {
            let (signed, member) = usable(&backup, from.as_deref(), None)?;
            return of_backup(&backup, signed, member, path.display().to_string(), None);
        }
    }
    let form = form(&path)?;
    Ok(Source { name: path.display().to_string(), path, form, backup: None, warnings: Vec::new() })
}

/// The directory of a file, where it bears a backup's name and holds an index.
fn around(path: &Path) -> Option<&Path> {
    let dir = path.parent()?;
    let name = dir.file_name()?.to_str()?;
    (name.parse::<BackupId>().is_ok() && dir.join(names::INDEX).symlink_metadata().is_ok()).then_some(dir)
}

fn latest(catalog: &Catalog, min: ProofLevel, from: Option<&str>) -> Result<Source, Error> {
    let mut passed = Vec::new();
    let mut lower = None;
    for backup in catalog.backups.iter().rev() {
        match usable(backup, from, None) {
            Ok((signed, member)) if level(backup, member, from) >= min => {
                return newest(catalog, backup, signed, member, min, &passed);
            }
            Ok((signed, member)) => {
                passed.push(format!("{} is proved {} only", backup.dir_name, level(backup, member, from)));
                lower.get_or_insert((backup, signed, member, passed.len()));
            }
            // Who names a member means this backup: an older one's data in its place would go unseen.
            Err(error) if from.is_some() => return Err(error),
            Err(error) => passed.push(error.to_string()),
        }
    }
    match lower {
        // Better than nothing: no backup reached `min`, as after an upgrade.
        Some((backup, signed, member, place)) => {
            newest(catalog, backup, signed, member, min, passed.get(..place).unwrap_or_default())
        }
        None if catalog.backups.is_empty() => Err(NoSuchBackup::Empty.into()),
        None => Err(Error::NoneProved { reasons: passed }),
    }
}

fn newest(
    catalog: &Catalog,
    backup: &Backup,
    signed: &Signed,
    member: &Member,
    min: ProofLevel,
    passed: &[String],
) -> Result<Source, Error> {
    let other = other(catalog, backup, min);
    let mut source = of_backup(backup, signed, member, backup.dir_name.to_string(), other)?;
    source.warnings.extend(passed.iter().map(|words| words.lines().next().unwrap_or_default().to_owned()));
    Ok(source)
}

/// How far the snapshot that is meant is proved.
fn level(backup: &Backup, member: &Member, from: Option<&str>) -> ProofLevel {
    if from.is_some() { member.proof.max(backup.level()) } else { backup.level() }
}

/// Where to turn when `backup` does not hold.
fn other(catalog: &Catalog, backup: &Backup, min: ProofLevel) -> Option<BackupId> {
    let others = || catalog.backups.iter().rev().filter(|other| other.dir_name != backup.dir_name);
    let at = |level: ProofLevel| others().find(|other| other.proved_at(level));
    at(min).or_else(|| at(ProofLevel::Digest)).map(|other| other.dir_name.clone())
}

/// The signed index and the member whose file is meant; what the listing already shows to be wrong is refused.
fn usable<'a>(
    backup: &'a Backup,
    from: Option<&str>,
    other: Option<&BackupId>,
) -> Result<(&'a Signed, &'a Member), Error> {
    let id = || backup.dir_name.clone();
    let other = || other.cloned();
    let signed = match &backup.state {
        State::Trusted(signed) => signed,
        State::Broken { problems } => {
            return Err(Error::NotBelieved { id: id(), problems: problems.clone(), other: other() });
        }
    };
    let index = &signed.index;
    let choices = || index.members.iter().filter(|member| member.file.is_some()).map(|m| m.name.clone()).collect();
    let member = match from {
        Some(name) => index.members.iter().find(|member| member.name == name).ok_or_else(|| Error::UnknownMember {
            id: id(),
            name: name.to_owned(),
            choices: choices(),
        })?,
        None => index.primary_member().ok_or_else(|| Error::NoPrimary { id: id(), choices: choices() })?,
    };
    let Some(file) = &member.file else {
        let reason = member.error.clone().unwrap_or_else(|| "it has no file".to_owned());
        return Err(Error::NoFile { id: id(), member: member.name.clone(), reason, choices: choices() });
    };
    let refused = |problem: String| {
        let problem = FileVerdict { file: file.clone(), ok: false, problem: Some(problem) };
        Error::NotProved { id: id(), problem, other: other() }
    };
    let fact = signed.files.iter().find(|fact| fact.file == *file);
    match fact.map(|fact| &fact.state) {
        Some(FileState::Present { .. }) => {}
        Some(state) => return Err(refused(state.to_string())),
        None => return Err(refused(FileState::Missing.to_string())),
    }
    if let Some(error) = &member.error {
        return Err(refused(error.clone()));
    }
    if let Some(problem) = failed_later(signed, file) {
        return Err(refused(problem));
    }
    if from.is_none() && backup.level() == ProofLevel::None {
        return Err(refused("the backup's last proof failed".to_owned()));
    }
    Ok((signed, member))
}

/// What the last counted proof that looked at a file found wrong with it.
fn failed_later(signed: &Signed, file: &str) -> Option<String> {
    let mut records = signed.proofs.iter().rev().filter_map(catalog::SeenProof::counted_record);
    let (record, verdict) = records.find_map(|record| Some((record, record.files.iter().find(|v| v.file == file)?)))?;
    let problem = verdict.problem.as_deref().unwrap_or("was not as it should be");
    // A mark from the backup's own run is a person's to judge, before a verification and after it.
    (!verdict.ok && !verdict.is_mark())
        .then(|| format!("{problem}, when {} proved it at {}", record.host, record.made_at))
}

fn of_backup(
    backup: &Backup,
    signed: &Signed,
    member: &Member,
    name: String,
    other: Option<BackupId>,
) -> Result<Source, Error> {
    let held = catalog::hold_shared(backup)?;
    let mut warnings = Vec::new();
    let index = &signed.index;
    if member.agreement == Some(Agreement::Differs) {
        warnings
            .push(format!("{} differs from other members: what it holds is not what all of them hold", member.name));
    }
    let file = member.file.clone().unwrap_or_default();
    let wrong = signed.files.iter().filter(|fact| !fact.state.is_ok() && fact.file != file);
    warnings.extend(wrong.map(|fact| format!("{}: {} {}", backup.dir_name, fact.file, fact.state)));
    if index.partial {
        warnings.push(format!("{} is partial: {}", backup.dir_name, missing(index)));
    }
    let path = backup.path.join(&file);
    let of = OfBackup { index: index.clone(), member: member.clone(), level: backup.level(), other, _held: held };
    Ok(Source { name, path, form: Form::Sealed, backup: Some(Box::new(of)), warnings })
}

fn missing(index: &Index) -> String {
    let named: Vec<&str> = index.findings.iter().map(|finding| finding.name.as_str()).collect();
    if named.is_empty() { "something is missing in it".to_owned() } else { named.join(", ") }
}

/// What the first bytes say.
fn form(path: &Path) -> Result<Form, Error> {
    const SIGNS: [(&[u8], Form); 2] = [(b"age-encryption.org/v1\n", Form::Sealed), (b"\x28\xb5\x2f\xfd", Form::Zstd)];
    let meta = fs::metadata(path).at(path)?;
    if !meta.is_file() {
        return Err(Error::Form { path: path.to_owned(), found: "is no regular file" });
    }
    let mut head = Vec::new();
    File::open(path).at(path)?.take(64).read_to_end(&mut head).at(path)?;
    if head.starts_with(b"-----BEGIN AGE") {
        return Err(Error::Form { path: path.to_owned(), found: "is armored, which sealed snapshots are not" });
    }
    Ok(SIGNS.iter().find(|(sign, _)| head.starts_with(sign)).map_or(Form::Plain, |(_, form)| *form))
}
