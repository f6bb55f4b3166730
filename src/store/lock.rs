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
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Err(Error::Locked { path, holder: holder(&mut file) }),
                Err(TryLockError::Error(source)) => return Err(PathError { path, source }.into()),
            }
            if is_still_named(&file, &path).at(&path)? {
                file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id())).at(&path)?;
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
