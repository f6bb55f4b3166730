//! Directories that wait for their names, and the renames that give them.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use walkdir::WalkDir;

use super::Error;
use crate::{
    at::{At as _, PathError},
    durable::{self, PendingDir},
    etcd::data_dir,
    plan::restore::{Ground, Place, Planned, RestorePlan, Stands, parent_of},
};

/// One member's directories, on the file systems on which they will stay.
pub(super) struct Target<'a> {
    pub member: &'a Planned,
    data: Waiting,
    wal: Option<Waiting>,
    /// Keeps an etcd that is started meanwhile from opening what is about to be moved.
    _old: Option<File>,
    owner: Option<(u32, u32)>,
}

/// All of them. They are dropped from the last to the first: the first one made the directory that they share.
#[derive(Default)]
pub(super) struct Targets<'a>(pub Vec<Target<'a>>);

impl Drop for Targets<'_> {
    fn drop(&mut self) {
        while self.0.pop().is_some() {}
    }
}

/// A directory within one that is removed if it is not published, and locked for as long as this run lives.
struct Waiting {
    path: PathBuf,
    /// From, relative to `path`, and to.
    from: PathBuf,
    to: PathBuf,
    /// An empty directory that has the name so far.
    empty: bool,
    _lock: File,
    // Last, so that the lock goes first.
    _pending: PendingDir,
    made: Made,
}

/// Directories above a target that did not exist; removed again, innermost first, where nothing came into them.
struct Made(Vec<PathBuf>);

impl Drop for Made {
    fn drop(&mut self) {
        for dir in self.0.iter().rev() {
            // One that holds something by now stays.
            if fs::remove_dir(dir).is_err() {
                return;
            }
        }
    }
}

impl<'a> Target<'a> {
    /// Makes the waiting directories of a member.
    ///
    /// # Errors
    /// [`Error::Busy`], [`Error::Started`], [`Error::Io`].
    pub fn prepare(member: &'a Planned, ground: &Ground, plan: &RestorePlan) -> Result<Self, Error> {
        let old = hold(&ground.data)?;
        let data = Waiting::data(&ground.data, plan)?;
        let wal = ground.wal.as_ref().map(|wal| Waiting::wal(wal, plan)).transpose()?;
        let (data_path, wal_path) = (data.path.clone(), wal.as_ref().map(|wal| wal.path.clone()));
        data_dir::create(&data_path, wal_path.as_deref()).at(&data_path)?;
        Ok(Self { member, data, wal, _old: old, owner: owner(&ground.data)? })
    }

    /// Where the data directory is while it waits.
    pub fn data_path(&self) -> &Path {
        &self.data.path
    }

    /// Where the WAL directory is, where it is one of its own.
    pub fn wal_path(&self) -> Option<&Path> {
        self.wal.as_ref().map(|wal| wal.path.as_path())
    }

    /// Gives everything that was written the owner that etcd finds there otherwise; only root can, and only root has to.
    ///
    /// # Errors
    /// What the system says, with the path.
    pub fn hand_over(&self) -> Result<(), PathError> {
        let Some((uid, gid)) = self.owner else { return Ok(()) };
        let roots = std::iter::once(&self.data.path).chain(self.wal.as_ref().map(|wal| &wal.path));
        for entry in roots.flat_map(|root| WalkDir::new(root).follow_links(false)).flatten() {
            std::os::unix::fs::lchown(entry.path(), Some(uid), Some(gid)).at(entry.path())?;
        }
        Ok(())
    }
}

impl Waiting {
    /// A data directory that stays where it is, being mounted, or holding more, or empty, gets `member` alone.
    fn data(place: &Place, plan: &RestorePlan) -> Result<Self, Error> {
        let stays = place.stands != Stands::Nothing && !moved(plan, &place.path);
        let name = name_of(&place.path);
        if stays {
            Self::new(&place.path, &name, "member", place.path.join("member"), false)
        } else {
            Self::new(parent_of(&place.path), &name, "", place.path.clone(), false)
        }
    }

    fn wal(place: &Place, plan: &RestorePlan) -> Result<Self, Error> {
        let empty = place.stands != Stands::Nothing && !moved(plan, &place.path);
        let name = format!("{}-wal", name_of(&place.path));
        Self::new(parent_of(&place.path), &name, "", place.path.clone(), empty)
    }

    fn new(parent: &Path, name: &str, inner: &str, to: PathBuf, empty: bool) -> Result<Self, Error> {
        const WAITING: &str = "etcd-dr-restore-";
        let made = make(parent)?;
        let name = format!("{WAITING}{name}");
        let rest = parent.join(format!("{}{name}", crate::record::names::PARTIAL));
        sweep(&rest)?;
        let pending = PendingDir::create(parent, &name)?;
        let lock = lock(pending.path())?.ok_or_else(|| Error::Busy { path: pending.path().to_owned() })?;
        let path = pending.path().join("new");
        let from = path.join(inner);
        Ok(Self { path, from, to, empty, _lock: lock, _pending: pending, made })
    }
}

fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn moved(plan: &RestorePlan, path: &Path) -> bool {
    plan.moved_aside.iter().any(|moved| moved.from == path)
}

/// Makes a directory and those above it that are missing.
fn make(dir: &Path) -> Result<Made, PathError> {
    let missing: Vec<&Path> = dir.ancestors().take_while(|dir| !dir.as_os_str().is_empty() && !dir.exists()).collect();
    let mut made = Made(Vec::new());
    for dir in missing.into_iter().rev() {
        durable::create_dir(dir)?;
        made.0.push(dir.to_owned());
    }
    Ok(made)
}

/// Removes what a run that was killed left under its temporary name; one that still runs holds it locked.
fn sweep(rest: &Path) -> Result<(), Error> {
    if rest.symlink_metadata().is_err() {
        return Ok(());
    }
    let Some(_lock) = lock(rest)? else { return Err(Error::Busy { path: rest.to_owned() }) };
    fs::remove_dir_all(rest).at(rest)?;
    tracing::warn!("swept {}, left by a restore that did not end", rest.display());
    Ok(())
}

fn lock(dir: &Path) -> Result<Option<File>, PathError> {
    let file = File::open(dir).at(dir)?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(fs::TryLockError::WouldBlock) => Ok(None),
        Err(fs::TryLockError::Error(error)) => Err(error).at(dir),
    }
}

/// Takes the lock of the database that stands there: an etcd that is started now waits for it.
fn hold(place: &Place) -> Result<Option<File>, Error> {
    let path = data_dir::database(&place.path);
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).at(&path)?,
    };
    match file.try_lock_shared() {
        Ok(()) => Ok(Some(file)),
        Err(fs::TryLockError::WouldBlock) => Err(Error::Started { path: place.path.clone() }),
        Err(fs::TryLockError::Error(error)) => Err(error).at(&path)?,
    }
}

/// The owner of what stands there, else of the directory above it.
fn owner(place: &Place) -> Result<Option<(u32, u32)>, PathError> {
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    let like = if place.stands == Stands::Nothing { parent_of(&place.path) } else { &place.path };
    let meta = fs::metadata(like).at(like)?;
    Ok(Some((meta.uid(), meta.gid())))
}

/// Moves aside what stands there and gives every directory its name. What was renamed is renamed back where one rename fails.
///
/// # Errors
/// What the system says, with the path.
pub(super) fn publish(plan: &RestorePlan, mut targets: Targets<'_>) -> Result<(), PathError> {
    let mut done: Vec<(PathBuf, PathBuf)> = Vec::new();
    let moves = plan.moved_aside.iter().map(|moved| (moved.from.clone(), moved.to.clone(), false));
    let waiting = targets.0.iter().flat_map(|target| std::iter::once(&target.data).chain(&target.wal));
    let names = waiting.map(|waiting| (waiting.from.clone(), waiting.to.clone(), waiting.empty));
    for (from, to, empty) in moves.chain(names) {
        let cleared = if empty { fs::remove_dir(&to).at(&to) } else { Ok(()) };
        if let Err(error) = cleared.and_then(|()| durable::rename_new(&from, &to)) {
            take_back(&done);
            return Err(error);
        }
        done.push((from, to));
    }
    // The directories that did not exist before are the result's now.
    for target in &mut targets.0 {
        target.data.made.0.clear();
        if let Some(wal) = &mut target.wal {
            wal.made.0.clear();
        }
    }
    Ok(())
}

fn take_back(done: &[(PathBuf, PathBuf)]) {
    for (from, to) in done.iter().rev() {
        if let Err(error) = durable::rename_new(to, from) {
            tracing::error!("{} could not be renamed back to {}: {error}", to.display(), from.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::restore::Moved;

    #[test]
    fn a_rename_that_fails_takes_back_those_before_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        for name in ["a", "b", "taken"] {
            fs::create_dir(path(name)).unwrap();
        }
        let json = serde_json::json!({
            "schema": RestorePlan::SCHEMA, "source": "x", "file": "x", "source_sha256": "ab".repeat(32), "source_bytes": 1,
            "revision": 1, "compact_revision": -1, "source_etcd": "3.6", "etcd": "3.6", "bump": 0, "bump_reason": "",
            "token": "t", "cluster_id": "1", "members": [], "bytes": 0, "moved_aside": [],
        });
        let mut plan: RestorePlan = serde_json::from_value(json).unwrap();
        let moved = |from, to| Moved { from: path(from), to: path(to) };
        plan.moved_aside = vec![moved("a", "free"), moved("b", "taken")];
        let error = publish(&plan, Targets::default()).unwrap_err();
        assert_eq!(error.source.kind(), io::ErrorKind::AlreadyExists);
        assert!(path("a").exists() && path("b").exists() && !path("free").exists());
    }
}
