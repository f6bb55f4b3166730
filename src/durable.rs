//! What is published is whole and survives a power cut: temporary name, mode, fsync, rename, fsync of the directory.
//!
//! Nothing else in the program renames. What must be finished is consumed by the function that finishes it; a [`PendingDir`] that is dropped
//! before leaves nothing behind.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write as _},
    os::{
        fd::AsRawFd as _,
        unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _},
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{AtFlags, CWD, Mode, OFlags},
    io::Errno,
};

use crate::{
    at::{At as _, PathError},
    record::names::PARTIAL,
};

/// Mode of every file in a store.
pub const FILE_MODE: u32 = 0o600;
/// Mode of every directory in a store.
pub const DIR_MODE: u32 = 0o700;

/// Creates a directory with mode 0700 and makes its name durable.
///
/// # Errors
/// What the system says, with the path; one that exists is an error.
pub fn create_dir(path: &Path) -> Result<(), PathError> {
    DirBuilder::new().mode(DIR_MODE).create(path).at(path)?;
    sync_parent(path)
}

/// Creates a file of mode 0600 that must not exist yet, for writing and for reading back.
///
/// # Errors
/// What the system says, with the path.
pub fn create_file(path: &Path) -> Result<File, PathError> {
    create_with_mode(path, FILE_MODE)
}

fn create_with_mode(path: &Path, mode: u32) -> Result<File, PathError> {
    let file = OpenOptions::new().read(true).write(true).create_new(true).mode(mode).open(path).at(path)?;
    // The umask is 0077: a file that others may read needs its mode spelled out.
    file.set_permissions(fs::Permissions::from_mode(mode)).at(path)?;
    Ok(file)
}

/// Writes `contents` to `path`, replacing what is there in one step. A crash leaves the old file or the new one, never half of either.
///
/// # Errors
/// What the system says, with the path; the old file is untouched then.
pub fn replace(path: &Path, contents: &[u8], mode: u32) -> Result<(), PathError> {
    let pending = write_aside(path, contents, mode)?;
    #[allow(clippy::disallowed_methods, reason = "this is the place that publishes")]
    fs::rename(&pending, path).at(path).inspect_err(|_| remove_quietly(&pending))?;
    sync_parent(path)
}

/// Writes `contents` to `path`, which must not exist: keys and signed files are never overwritten.
///
/// The file has no name until it is whole, where the file system can do that: a crash leaves no second copy of a key. Elsewhere (NFS) it may leave one
/// under a temporary name.
///
/// # Errors
/// [`io::ErrorKind::AlreadyExists`] with the path where something is there; else what the system says.
pub fn create(path: &Path, contents: &[u8], mode: u32) -> Result<(), PathError> {
    if create_unnamed(path, contents, mode)? {
        return sync_parent(path);
    }
    let pending = write_aside(path, contents, mode)?;
    // A link fails where the name is taken, which a rename would not.
    let linked = fs::hard_link(&pending, path).at(path);
    remove_quietly(&pending);
    linked?;
    sync_parent(path)
}

/// Whether the file is there now; not where the file system knows no files without a name, or `/proc` is not there to give it one.
fn create_unnamed(path: &Path, contents: &[u8], mode: u32) -> Result<bool, PathError> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let Ok(fd) = rustix::fs::open(parent(path), flags, Mode::from_raw_mode(mode)) else { return Ok(false) };
    let mut file = File::from(fd);
    file.set_permissions(fs::Permissions::from_mode(mode)).at(path)?;
    file.write_all(contents).and_then(|()| file.sync_all()).at(path)?;
    let unnamed = format!("/proc/self/fd/{}", file.as_raw_fd());
    match rustix::fs::linkat(CWD, unnamed, CWD, path, AtFlags::SYMLINK_FOLLOW) {
        Ok(()) => Ok(true),
        Err(Errno::NOENT | Errno::OPNOTSUPP) => Ok(false),
        Err(error) => Err(io::Error::from(error)).at(path),
    }
}

fn write_aside(path: &Path, contents: &[u8], mode: u32) -> Result<PathBuf, PathError> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let pending = path.with_file_name(format!("{PARTIAL}{name}-{:08x}", rand::random::<u32>()));
    let mut file = create_with_mode(&pending, mode)?;
    file.write_all(contents).and_then(|()| file.sync_all()).at(path).inspect_err(|_| remove_quietly(&pending))?;
    Ok(pending)
}

/// What is left under a temporary name is swept by the next run, so an error here adds nothing to the one that led to it.
fn remove_quietly(path: &Path) {
    if let Err(error) = fs::remove_file(path) {
        tracing::debug!(path = %path.display(), %error, "a temporary file stays until the next run");
    }
}

/// Makes the names in a directory durable.
///
/// # Errors
/// What the system says, with the path.
pub fn sync_dir(path: &Path) -> Result<(), PathError> {
    File::open(path).and_then(|dir| dir.sync_all()).at(path)
}

fn sync_parent(path: &Path) -> Result<(), PathError> {
    sync_dir(parent(path))
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// A directory under its temporary name: it gets its real one by [`PendingDir::publish`], or is removed when dropped.
#[derive(Debug)]
pub struct PendingDir {
    path: PathBuf,
    published: bool,
}

impl PendingDir {
    /// Makes `parent/.partial-<name>`.
    ///
    /// # Errors
    /// What the system says, with the path.
    pub fn create(parent: &Path, name: &str) -> Result<Self, PathError> {
        let path = parent.join(format!("{PARTIAL}{name}"));
        DirBuilder::new().mode(DIR_MODE).create(&path).at(&path)?;
        Ok(Self { path, published: false })
    }

    /// Where files are written until then.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes a small file of mode 0600 and makes it durable.
    ///
    /// # Errors
    /// What the system says, with the path.
    pub fn write(&self, name: &str, contents: &[u8]) -> Result<(), PathError> {
        let path = self.path.join(name);
        let mut file = create_file(&path)?;
        file.write_all(contents).and_then(|()| file.sync_all()).at(&path)
    }

    /// Gives the directory its name, beside the temporary one. Its files must have been synced by their writers.
    ///
    /// # Errors
    /// What the system says, with the path; the directory is removed then.
    pub fn publish(mut self, name: &str) -> Result<PathBuf, PathError> {
        sync_dir(&self.path)?;
        let path = self.path.with_file_name(name);
        if fs::symlink_metadata(&path).is_ok() {
            return Err(io::Error::from(io::ErrorKind::AlreadyExists)).at(&path);
        }
        #[allow(clippy::disallowed_methods, reason = "this is the place that publishes")]
        fs::rename(&self.path, &path).at(&path)?;
        self.published = true;
        sync_parent(&path)?;
        Ok(path)
    }
}

impl Drop for PendingDir {
    fn drop(&mut self) {
        if !self.published
            && let Err(error) = fs::remove_dir_all(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "could not remove what was half written; the next run does");
        }
    }
}

/// Renames what lies on one file system, to a name that is free; both names are durable then.
///
/// # Errors
/// [`io::ErrorKind::AlreadyExists`] with the path where the name is taken; else what the system says.
pub fn rename_new(from: &Path, to: &Path) -> Result<(), PathError> {
    if fs::symlink_metadata(to).is_ok() {
        return Err(io::Error::from(io::ErrorKind::AlreadyExists)).at(to);
    }
    #[allow(clippy::disallowed_methods, reason = "this is the place that publishes")]
    fs::rename(from, to).at(to)?;
    sync_parent(from)?;
    sync_parent(to)
}

/// Removes a directory so that it is whole or gone under its name: renamed to `.partial-<name>` first, then emptied.
///
/// # Errors
/// What the system says, with the path. Once the rename is durable the directory counts as gone.
pub fn remove_dir(path: &Path) -> Result<(), PathError> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let doomed = path.with_file_name(format!("{PARTIAL}{name}"));
    #[allow(clippy::disallowed_methods, reason = "this is the place that publishes, and that takes back")]
    fs::rename(path, &doomed).at(path)?;
    sync_parent(path)?;
    fs::remove_dir_all(&doomed).at(&doomed)?;
    sync_parent(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn created_files_are_never_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        create(&path, b"first", FILE_MODE).unwrap();
        let error = create(&path, b"second", FILE_MODE).unwrap_err();
        assert_eq!(error.source.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&path).unwrap(), b"first");
        assert_eq!(names(dir.path()), ["key"]);
    }

    #[test]
    fn a_replaced_file_has_its_mode_and_no_rest() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        replace(&path, b"one", 0o600).unwrap();
        replace(&path, b"two", 0o644).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o644);
        assert_eq!(names(dir.path()), ["journal"]);
    }

    #[test]
    fn a_pending_directory_is_published_or_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let pending = PendingDir::create(dir.path(), "a").unwrap();
        pending.write("file", b"x").unwrap();
        assert_eq!(names(dir.path()), [".partial-a"]);
        drop(pending);
        assert!(names(dir.path()).is_empty());
        let pending = PendingDir::create(dir.path(), "b").unwrap();
        pending.write("file", b"x").unwrap();
        let path = pending.publish("b").unwrap();
        assert_eq!(names(dir.path()), ["b"]);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o700);
        assert_eq!(fs::metadata(path.join("file")).unwrap().permissions().mode() & 0o7777, 0o600);
    }

    #[test]
    fn a_name_that_is_taken_is_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("a")).unwrap();
        let pending = PendingDir::create(dir.path(), "a").unwrap();
        assert_eq!(pending.publish("a").unwrap_err().source.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(names(dir.path()), ["a"]);
    }
}
