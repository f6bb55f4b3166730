//! Who may write where backups and keys lie: the check that runs before anything is read or written there.
//!
//! The owner is root or the effective user, nobody else may read or write, and no component of the path is a symlink, so that the name in
//! the policy leads to one place only. Names in a store that are not ours are left alone.

use std::{
    collections::BTreeSet,
    fmt, fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use walkdir::WalkDir;

use crate::{
    at::{At as _, PathError},
    store::is_ours,
};

/// What the guard found, or why it could not look.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Somebody else may read or change what lies there (exit 24).
    #[error(transparent)]
    Unsafe(#[from] Unsafe),
    /// A path could not be examined; [`io::ErrorKind::NotFound`] and [`io::ErrorKind::NotADirectory`] mean that it is not there.
    #[error(transparent)]
    Io(#[from] PathError),
}

/// A path that others could read, change or redirect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unsafe {
    /// The first such path.
    pub path: PathBuf,
    /// What is wrong with it.
    pub problem: Problem,
    /// How many more paths in the same store have the same problem.
    pub more: usize,
    /// The command that cures it, these further paths included.
    pub fix: String,
}

/// Why a path is unsafe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Problem {
    /// A component of the path leads elsewhere.
    SymlinkInPath {
        /// Where it leads.
        target: PathBuf,
    },
    /// Something of ours, or a key, is a symlink that is not to be followed.
    Symlink {
        /// Where it leads.
        target: PathBuf,
    },
    /// It belongs to neither root nor the effective user.
    Owner {
        /// Whose it is.
        uid: u32,
    },
    /// Others may write where only root and the effective user should.
    Writable {
        /// The permission bits.
        mode: u32,
    },
    /// Others may read or write.
    Open {
        /// The permission bits.
        mode: u32,
    },
    /// A device, pipe or socket, a directory for a file, or a file for a directory.
    Kind {
        /// What it should be.
        wanted: &'static str,
    },
}

impl Problem {
    /// One command can cure all paths of one class.
    fn class(&self) -> u8 {
        match self {
            Self::SymlinkInPath { .. } => 0,
            Self::Symlink { .. } => 1,
            Self::Owner { .. } => 2,
            Self::Writable { .. } => 3,
            Self::Open { .. } => 4,
            Self::Kind { .. } => 5,
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SymlinkInPath { target } => {
                write!(f, "it is a symlink to {}, and a path of links can be redirected", target.display())
            }
            Self::Symlink { target } => write!(f, "it is a symlink to {}", target.display()),
            Self::Owner { uid } => write!(f, "its owner is uid {uid}, neither root nor the user that runs this"),
            Self::Writable { mode } => write!(f, "its mode is {mode:04o}, so that others may write there"),
            Self::Open { mode } => write!(f, "its mode is {mode:04o}, open to its group or to others"),
            Self::Kind { wanted } => write!(f, "it is not a {wanted}"),
        }
    }
}

impl fmt::Display for Unsafe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is not safe\n  {}", self.path.display(), self.problem)?;
        match self.more {
            0 => Ok(()),
            more => write!(f, "\n  and so are {more} more in this store"),
        }
    }
}

impl std::error::Error for Unsafe {}

impl Unsafe {
    /// What to do, with a command that can be pasted.
    #[must_use]
    pub fn hint(&self) -> String {
        match self.problem {
            Problem::SymlinkInPath { .. } => format!("name the path that `{}` prints instead", self.fix),
            _ => format!("run `{}`", self.fix),
        }
    }
}

/// Checks a store's directory, every directory above it, and everything of ours in it.
///
/// # Errors
/// [`Error::Unsafe`] with the first path; [`Error::Io`] where the store is missing, is not a directory, or cannot be read.
pub fn check_store(path: &Path) -> Result<(), Error> {
    Who::me().check_store(path)
}

/// Checks the directories above `path` from the root down, as far as they exist.
///
/// # Errors
/// [`Error::Unsafe`]; [`Error::Io`] where one is no directory or cannot be examined.
pub fn check_parents(path: &Path) -> Result<(), Error> {
    match Who::me().check_parents(path) {
        Err(Error::Io(error)) if error.source.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// Checks a file that holds a secret of ours: the signing key, an identity, a password file.
///
/// A symlink is followed if it belongs to root or the effective user. A file of root's that an ordinary user reads may have a group.
///
/// # Errors
/// [`Error::Unsafe`]; [`Error::Io`] where it is missing.
pub fn check_secret_file(path: &Path) -> Result<(), Error> {
    Who::me().check_secret_file(path)
}

/// Checks a secret that another program put there, such as etcd's client key: a mode that is too open is somebody else's choice and comes
/// back as a warning.
///
/// # Errors
/// As [`check_secret_file`], but for the mode.
pub fn check_borrowed_secret(path: &Path) -> Result<Option<Unsafe>, Error> {
    match Who::me().check_secret_file(path) {
        Ok(()) => Ok(None),
        Err(Error::Unsafe(found)) if matches!(found.problem, Problem::Open { .. }) => Ok(Some(found)),
        Err(error) => Err(error),
    }
}

/// A path as a shell takes it.
#[must_use]
pub fn shell_quote(path: &Path) -> String {
    let text = path.to_string_lossy();
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"_./:@%+=,-".contains(&b);
    if !text.is_empty() && text.bytes().all(plain) {
        text.into_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

/// The user for whom paths are judged.
#[derive(Debug, Clone, Copy)]
struct Who {
    uid: u32,
    gid: u32,
}

impl Who {
    fn me() -> Self {
        Self { uid: rustix::process::geteuid().as_raw(), gid: rustix::process::getegid().as_raw() }
    }

    fn owner(self) -> String {
        if self.uid == 0 { "root:root".to_owned() } else { format!("{}:{}", self.uid, self.gid) }
    }

    fn trusts(self, uid: u32) -> bool {
        uid == 0 || uid == self.uid
    }

    fn check_store(self, path: &Path) -> Result<(), Error> {
        let path = std::path::absolute(path).at(path)?;
        self.check_parents(&path)?;
        let meta = fs::symlink_metadata(&path).at(&path)?;
        if meta.is_symlink() {
            return Err(symlink_in_path(&path, &path).into());
        }
        if !meta.is_dir() {
            return Err(PathError { path, source: io::ErrorKind::NotADirectory.into() }.into());
        }
        if let Some(problem) = self.judge(&path, &meta) {
            let fix = self.fix(&problem, &path, true);
            return Err(Unsafe { path, problem, more: 0, fix }.into());
        }
        self.check_contents(&path)
    }

    fn check_parents(self, path: &Path) -> Result<(), Error> {
        let absolute = std::path::absolute(path).at(path)?;
        let mut parents: Vec<&Path> = absolute.ancestors().skip(1).collect();
        parents.reverse();
        for dir in parents {
            let meta = fs::symlink_metadata(dir).at(dir)?;
            if meta.is_symlink() {
                return Err(symlink_in_path(dir, &absolute).into());
            }
            if !meta.is_dir() {
                return Err(PathError { path: dir.to_owned(), source: io::ErrorKind::NotADirectory.into() }.into());
            }
            let mode = meta.mode() & 0o7777;
            // In a sticky directory of root's nobody renames or removes what is not his.
            let sticky = mode & 0o1000 != 0 && meta.uid() == 0;
            let problem = if !self.trusts(meta.uid()) {
                Problem::Owner { uid: meta.uid() }
            } else if mode & 0o022 != 0 && !sticky {
                Problem::Writable { mode }
            } else {
                continue;
            };
            let fix = self.fix(&problem, dir, true);
            return Err(Unsafe { path: dir.to_owned(), problem, more: 0, fix }.into());
        }
        Ok(())
    }

    /// Everything of ours: what a running backup renames or removes meanwhile is no error.
    fn check_contents(self, store: &Path) -> Result<(), Error> {
        let mut first: Option<(PathBuf, Problem, bool)> = None;
        let mut more = 0_usize;
        let mut tops = BTreeSet::new();
        let ours = |entry: &walkdir::DirEntry| entry.depth() != 1 || is_ours(entry.file_name());
        for entry in WalkDir::new(store).min_depth(1).sort_by_file_name().into_iter().filter_entry(ours) {
            let entry = match entry.map_err(|error| walk_error(store, error)) {
                Ok(entry) => entry,
                Err(error) if error.source.kind() == io::ErrorKind::NotFound => continue,
                // A directory of somebody else's that this user may not list: it was named as such just before.
                Err(error) if first.is_some() && error.source.kind() == io::ErrorKind::PermissionDenied => continue,
                Err(error) => return Err(error.into()),
            };
            let meta = match fs::symlink_metadata(entry.path()).at(entry.path()) {
                Ok(meta) => meta,
                Err(error) if error.source.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error.into()),
            };
            let Some(problem) = self.judge(entry.path(), &meta) else { continue };
            match &first {
                None => first = Some((entry.path().to_owned(), problem, meta.is_dir())),
                Some((_, earlier, _)) if earlier.class() == problem.class() => more = more.saturating_add(1),
                Some(_) => continue,
            }
            let inside = entry.path().strip_prefix(store).unwrap_or(entry.path());
            tops.extend(inside.components().next().map(|top| store.join(top)));
        }
        let Some((path, problem, is_dir)) = first else { return Ok(()) };
        let recursive = match problem {
            Problem::Open { .. } if more > 0 => Some("chmod -R go=".to_owned()),
            Problem::Owner { .. } if more > 0 => Some(format!("chown -R {}", self.owner())),
            _ => None,
        };
        let fix = match recursive {
            Some(command) => tops.iter().fold(command, |line, top| format!("{line} {}", shell_quote(top))),
            None => self.fix(&problem, &path, is_dir),
        };
        Err(Unsafe { path, problem, more, fix }.into())
    }

    fn check_secret_file(self, path: &Path) -> Result<(), Error> {
        let link = fs::symlink_metadata(path).at(path)?;
        let found =
            |problem: Problem| Unsafe { path: path.to_owned(), fix: self.fix(&problem, path, false), problem, more: 0 };
        if link.is_symlink() && !self.trusts(link.uid()) {
            return Err(found(Problem::Symlink { target: target_of(path) }).into());
        }
        let meta = fs::metadata(path).at(path)?;
        let mode = meta.mode() & 0o7777;
        let forbidden = if meta.uid() == self.uid { 0o077 } else { 0o027 };
        if !meta.is_file() {
            Err(found(Problem::Kind { wanted: "regular file" }).into())
        } else if !self.trusts(meta.uid()) {
            Err(found(Problem::Owner { uid: meta.uid() }).into())
        } else if mode & forbidden != 0 {
            Err(found(Problem::Open { mode }).into())
        } else {
            Ok(())
        }
    }

    /// What is wrong with a file or directory of ours.
    fn judge(self, path: &Path, meta: &fs::Metadata) -> Option<Problem> {
        let mode = meta.mode() & 0o7777;
        if meta.is_symlink() {
            Some(Problem::Symlink { target: target_of(path) })
        } else if !meta.is_file() && !meta.is_dir() {
            Some(Problem::Kind { wanted: "regular file" })
        } else if !self.trusts(meta.uid()) {
            Some(Problem::Owner { uid: meta.uid() })
        } else if mode & 0o077 != 0 {
            Some(Problem::Open { mode })
        } else {
            None
        }
    }

    fn fix(self, problem: &Problem, path: &Path, is_dir: bool) -> String {
        let quoted = shell_quote(path);
        match problem {
            Problem::SymlinkInPath { .. } => format!("realpath {quoted}"),
            Problem::Symlink { .. } => format!("unlink {quoted}"),
            Problem::Owner { .. } => format!("chown {} {quoted}", self.owner()),
            Problem::Writable { .. } => format!("chmod go-w {quoted}"),
            Problem::Open { .. } if is_dir => format!("chmod 0700 {quoted}"),
            Problem::Open { .. } => format!("chmod 0600 {quoted}"),
            Problem::Kind { .. } => format!("ls -ld {quoted}"),
        }
    }
}

/// `link` is a component of `whole`; the cure names the whole path.
fn symlink_in_path(link: &Path, whole: &Path) -> Unsafe {
    let fix = format!("realpath {}", shell_quote(whole));
    Unsafe { path: link.to_owned(), problem: Problem::SymlinkInPath { target: target_of(link) }, more: 0, fix }
}

fn target_of(link: &Path) -> PathBuf {
    fs::read_link(link).unwrap_or_else(|_gone| PathBuf::from("?"))
}

/// walkdir's error, with the path on which it happened.
pub(crate) fn walk_error(root: &Path, error: walkdir::Error) -> PathError {
    let path = error.path().unwrap_or(root).to_owned();
    // Without followed links there are no loops, so that each error has a cause.
    let source = error.into_io_error().unwrap_or_else(|| io::ErrorKind::Other.into());
    PathError { path, source }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, chown};

    use super::*;

    const NOBODY: Who = Who { uid: 65534, gid: 65533 };

    fn dir(path: &Path, mode: u32, owner: u32) -> PathBuf {
        fs::create_dir(path).unwrap();
        chown(path, Some(owner), Some(owner)).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        path.to_owned()
    }

    fn unsafe_at(result: Result<(), Error>) -> Unsafe {
        let Err(Error::Unsafe(found)) = result else { panic!("{result:?}") };
        found
    }

    #[test]
    fn an_ordinary_user_trusts_root_and_himself() {
        let root = tempfile::tempdir().unwrap();
        let base = root.path().canonicalize().unwrap();
        fs::set_permissions(&base, fs::Permissions::from_mode(0o755)).unwrap();
        let own = dir(&base.join("own"), 0o700, 65534);
        NOBODY.check_store(&own).unwrap();
        NOBODY.check_store(&dir(&base.join("roots"), 0o700, 0)).unwrap();
        let foreign = dir(&base.join("foreign"), 0o700, 1);
        let found = unsafe_at(NOBODY.check_store(&foreign));
        assert_eq!(found.fix, format!("chown 65534:65533 {}", foreign.display()));
        assert_eq!(found.problem, Problem::Owner { uid: 1 });
        // A sticky directory is safe where it is root's, as /tmp is.
        let sticky = dir(&base.join("sticky"), 0o1777, 65534);
        dir(&sticky.join("store"), 0o700, 65534);
        assert_eq!(unsafe_at(NOBODY.check_store(&sticky.join("store"))).problem, Problem::Writable { mode: 0o1777 });
        chown(&sticky, Some(0), None).unwrap();
        NOBODY.check_store(&sticky.join("store")).unwrap();
    }

    #[test]
    fn roots_secret_may_have_a_group_for_an_ordinary_user() {
        let root = tempfile::tempdir().unwrap();
        let key = root.path().join("key");
        fs::write(&key, "x").unwrap();
        for (owner, mode, fine) in [
            (0, 0o640, true),
            (0, 0o644, false),
            (0, 0o660, false),
            (65534, 0o600, true),
            (65534, 0o640, false),
            (1, 0o600, false),
        ] {
            chown(&key, Some(owner), None).unwrap();
            fs::set_permissions(&key, fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(NOBODY.check_secret_file(&key).is_ok(), fine, "{owner} {mode:o}");
        }
    }

    #[test]
    fn quoted_paths_survive_a_shell() {
        for (path, quoted) in
            [("/backup/etcd", "/backup/etcd"), ("/a b", "'/a b'"), ("/it's", r"'/it'\''s'"), ("", "''")]
        {
            assert_eq!(shell_quote(Path::new(path)), quoted);
        }
    }
}
