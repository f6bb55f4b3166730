//! What stands where a plan writes.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use crate::{
    at::{At as _, PathError},
    plan::restore::{Ground, Place, Planned, Stands, parent_of},
};

/// The lock by which a running etcd keeps others from its database (bbolt 1.4 `bolt_unix.go`: flock).
const LOCKED: &str = "member/snap/db";

/// Looks at the directories of one member.
///
/// # Errors
/// What the system says, with the path.
pub fn of(member: &Planned) -> Result<Ground, PathError> {
    let data = place(&member.data_dir)?;
    let wal = member.wal_dir.as_deref().map(place).transpose()?;
    Ok(Ground { member: member.name.clone(), data, wal })
}

fn place(path: &Path) -> Result<Place, PathError> {
    let path = resolved(path)?;
    let stands = stands(&path)?;
    let near = nearest(&path);
    let device = fs::metadata(near).at(near)?.dev();
    let stat = rustix::fs::statvfs(near).map_err(io::Error::from).at(near)?;
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    let mount_point = is_mount_point(&path);
    let in_use = in_use(&path)?;
    Ok(Place { path, stands, mount_point, in_use, device, free })
}

/// The absolute path; a link to a directory is followed, since what stands behind it is what etcd uses.
fn resolved(path: &Path) -> Result<PathBuf, PathError> {
    let absolute = std::path::absolute(path).at(path)?;
    if absolute.is_dir() { absolute.canonicalize().at(&absolute) } else { Ok(absolute) }
}

/// The path, or the first above it that is there.
fn nearest(path: &Path) -> &Path {
    let mut near = path;
    while !near.is_dir() && near != parent_of(near) && near.parent().is_some() {
        near = parent_of(near);
    }
    near
}

fn stands(path: &Path) -> Result<Stands, PathError> {
    match path.symlink_metadata() {
        Ok(meta) if meta.is_dir() => {}
        Ok(_) => return Ok(Stands::NotADirectory),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Stands::Nothing),
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => return Ok(Stands::NotADirectory),
        Err(error) => return Err(error).at(path),
    }
    let (mut member, mut others) = (false, Vec::new());
    for entry in fs::read_dir(path).at(path)? {
        let name = entry.at(path)?.file_name().to_string_lossy().into_owned();
        match name.as_str() {
            "member" => member = true,
            // A file system's own.
            "lost+found" => {}
            _ => others.push(name),
        }
    }
    others.sort();
    Ok(Stands::Directory { member, others })
}

/// Whether a file system is mounted at a path, a bound directory of the same one included.
fn is_mount_point(path: &Path) -> bool {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    table.lines().filter_map(|line| line.split(' ').nth(4)).any(|point| Path::new(&unescaped(point)) == path)
}

/// mountinfo writes space, tab, line break and backslash as three octal digits.
fn unescaped(text: &str) -> String {
    text.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
}

/// The database, where a running etcd holds it.
fn in_use(data_dir: &Path) -> Result<Option<PathBuf>, PathError> {
    let path = data_dir.join(LOCKED);
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(error) => return Err(error).at(&path),
    };
    match file.try_lock_shared() {
        Ok(()) => Ok(None),
        Err(fs::TryLockError::WouldBlock) => Ok(Some(path)),
        Err(fs::TryLockError::Error(error)) => Err(error).at(&path),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn planned(dir: &Path) -> Planned {
        Planned {
            name: "a".to_owned(),
            id: crate::record::EtcdId(1),
            peer_urls: Vec::new(),
            data_dir: dir.to_owned(),
            wal_dir: None,
            write: true,
        }
    }

    #[test]
    fn each_thing_that_can_stand_there_is_told_apart() {
        let root = tempfile::tempdir().unwrap();
        let look = |name: &str| of(&planned(&root.path().join(name))).unwrap().data;
        assert_eq!(look("none").stands, Stands::Nothing);
        assert_eq!(look("none/below/it").stands, Stands::Nothing);
        fs::write(root.path().join("file"), "x").unwrap();
        assert_eq!(look("file").stands, Stands::NotADirectory);
        assert_eq!(look("file/below").stands, Stands::NotADirectory);
        fs::create_dir_all(root.path().join("etcd/member/snap")).unwrap();
        fs::create_dir_all(root.path().join("etcd/lost+found")).unwrap();
        assert_eq!(look("etcd").stands, Stands::Directory { member: true, others: Vec::new() });
        symlink(root.path().join("etcd"), root.path().join("link")).unwrap();
        assert_eq!(look("link").path, root.path().canonicalize().unwrap().join("etcd"));
        symlink(root.path().join("nowhere"), root.path().join("dangling")).unwrap();
        assert_eq!(look("dangling").stands, Stands::NotADirectory);
        assert!(!look("etcd").mount_point && is_mount_point(Path::new("/proc")));
        assert!(look("etcd").free > 0);
    }

    #[test]
    fn a_locked_database_is_in_use() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("member/snap/db");
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let file = File::create(&path).unwrap();
        assert_eq!(of(&planned(root.path())).unwrap().data.in_use, None);
        file.lock().unwrap();
        let found = of(&planned(root.path())).unwrap().data.in_use.unwrap();
        assert!(found.ends_with("member/snap/db"));
    }
}
