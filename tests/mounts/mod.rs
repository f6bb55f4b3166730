//! File systems of a test's own, unmounted when they are dropped.
#![allow(dead_code, reason = "each test file uses its part")]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use crate::servers::stock;
use crate::site::Site;

const IMAGE: &str = "ext4";

/// A file system that is mounted on a directory. To be declared behind whatever removes that directory.
pub struct Mount {
    at: PathBuf,
    image: Option<tempfile::TempDir>,
}

impl Mount {
    /// A tmpfs of so many MiB on `at`, which is made anew.
    pub fn tmpfs(at: &Path, mebibytes: usize) -> Self {
        mount(at, None, &["-t", "tmpfs", "-o", &format!("size={mebibytes}m,mode=0700"), "tmpfs"])
    }

    /// An ext4 on a loop device of so many MiB on `at`, which is made anew.
    pub fn ext4(at: &Path, mebibytes: usize) -> Self {
        let image = tempfile::tempdir().unwrap();
        let file = image.path().join(IMAGE);
        fs::File::create(&file).unwrap().set_len(u64::try_from(mebibytes).unwrap() << 20).unwrap();
        assert!(stock("mkfs.ext4").arg("-q").arg(&file).status().unwrap().success());
        let mount = mount(at, Some(image), &["-o", "loop", file.to_str().unwrap()]);
        fs::set_permissions(at, fs::Permissions::from_mode(0o700)).unwrap();
        fs::remove_dir(at.join("lost+found")).unwrap();
        mount
    }

    /// The file behind the loop device: the disk's blocks, of what is synced.
    pub fn image(&self) -> Option<PathBuf> {
        self.image.as_ref().map(|dir| dir.path().join(IMAGE))
    }

    /// Bytes that can still be written.
    pub fn free(&self) -> u64 {
        let stat = rustix::fs::statvfs(&self.at).unwrap();
        stat.f_bavail * stat.f_frsize
    }
}

fn mount(at: &Path, image: Option<tempfile::TempDir>, arguments: &[&str]) -> Mount {
    if at.exists() {
        fs::remove_dir_all(at).unwrap();
    }
    fs::create_dir(at).unwrap();
    let output = stock("mount").args(arguments).arg(at).output().unwrap();
    assert!(output.status.success(), "these tests run as root, who may mount: {output:?}");
    Mount { at: at.to_owned(), image }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let unmount = |options: &[&str]| stock("umount").args(options).arg(&self.at).status();
        // Lazily where something still has it open: nothing of a test may stay mounted.
        if !unmount(&["-q"]).is_ok_and(|status| status.success()) {
            drop(unmount(&["-l"]));
        }
    }
}

/// Mounts on the site's store, and makes the store again there.
pub fn store_on(site: &Site, make: impl Fn(&Path) -> Mount) -> Mount {
    let mount = make(&site.store());
    site.run(&["init"]).expect_code(0);
    mount
}
