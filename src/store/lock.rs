//! One run at a time changes a store.

use std::{
    fmt,
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Read as _, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::Path,
};

use jiff::Timestamp;

use super::Error;
use crate::{
    at::{At as _, PathError},
    durable,
    record::names,
};

/// The exclusive lock of a store, held until it is dropped. What changes a store takes it by reference.
#[derive(Debug)]
pub struct Lock {
    file: File,
}

/// Who holds a lock, as the lock file says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// Its process id.
    pub pid: u32,
    /// When it took the lock.
    pub since: Option<Timestamp>,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {}", self.pid)?;
        self.since.map_or(Ok(()), |since| write!(f, ", since {}", since.strftime("%Y-%m-%dT%H:%M:%SZ")))
    }
}

impl Lock {
    /// Takes the lock in `dir` without waiting. A lock file that somebody removed while it was held locks nothing any more, hence the look
    /// at the name afterwards.
    ///
    /// # Errors
    /// [`Error::Locked`]; [`Error::Io`].
    pub fn take(dir: &Path) -> Result<Self, Error> {
        Self::take_after(dir, || {})
    }

    /// `opened` is called between opening and locking, where another run may come in.
    fn take_after(dir: &Path, mut opened: impl FnMut()) -> Result<Self, Error> {
        let path = dir.join(names::LOCK);
        loop {
            let mut file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(durable::FILE_MODE)
                .open(&path)
                .at(&path)?;
            opened();
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Err(Error::Locked { path, holder: holder(&mut file) }),
                Err(TryLockError::Error(source)) => return Err(PathError { path, source }.into()),
            }
            if is_still_named(&file, &path).at(&path)? {
                // The number is for people only: on a full disk the lock must be had without, since sweeping comes after it.
                if let Err(error) = file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id())) {
                    tracing::debug!(path = %path.display(), %error, "the lock does not say who holds it");
                }
                return Ok(Self { file });
            }
        }
    }
}

impl Drop for Lock {
    /// Closing would not be enough while a child that was just forked still has the file open.
    fn drop(&mut self) {
        if let Err(error) = self.file.unlock() {
            tracing::debug!(%error, "the lock ends with the process");
        }
    }
}

fn is_still_named(file: &File, path: &Path) -> io::Result<bool> {
    let held = file.metadata()?;
    match fs::symlink_metadata(path) {
        Ok(named) => Ok((named.dev(), named.ino()) == (held.dev(), held.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// For people only: the lock itself is the kernel's.
fn holder(file: &mut File) -> Option<Holder> {
    let mut text = String::new();
    file.take(32).read_to_string(&mut text).ok()?;
    let since = file.metadata().and_then(|meta| meta.modified()).ok().and_then(|time| Timestamp::try_from(time).ok());
    Some(Holder { pid: text.trim().parse().ok()?, since })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_lost_its_name_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(names::LOCK);
        let file = File::create(&path).unwrap();
        assert!(is_still_named(&file, &path).unwrap());
        fs::remove_file(&path).unwrap();
        assert!(!is_still_named(&file, &path).unwrap());
        File::create(&path).unwrap();
        assert!(!is_still_named(&file, &path).unwrap());
    }

    #[test]
    fn a_copy_of_the_open_file_does_not_keep_a_lock() {
        let dir = tempfile::tempdir().unwrap();
        let lock = Lock::take(dir.path()).unwrap();
        let _forked = lock.file.try_clone().unwrap();
        drop(lock);
        Lock::take(dir.path()).unwrap();
    }

    #[test]
    fn a_lock_on_a_file_that_nobody_finds_any_more_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let mut other = None;
        let mut others_come_in = || {
            if other.is_none() {
                fs::remove_file(dir.path().join(names::LOCK)).unwrap();
                other = Some(Lock::take(dir.path()).unwrap());
            }
        };
        assert!(matches!(Lock::take_after(dir.path(), &mut others_come_in), Err(Error::Locked { .. })));
        assert!(other.is_some());
    }
}
