//! A store with real backups, made once, and copies of it for a test to spoil.
//!
//! Use it with `#[path = "support/stage.rs"] mod stage;`, beside `servers` and `site`.
#![allow(dead_code, reason = "each test root uses its own part")]

use std::{
    fs::{self, Permissions},
    io,
    os::unix::fs::{PermissionsExt as _, chown},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Arc, Mutex, Weak},
};

use serde_json::Value;

use crate::{
    servers::{
        etcd::{Cluster, Options},
        fill,
    },
    site::{Answer, BINARY, Site},
};

/// A user without privileges: nobody.
pub const OTHER: u32 = 65534;

/// A real member, a node, and two backups in its store; the newer one has a later proof.
pub struct Stage {
    pub cluster: Cluster,
    pub site: Site,
    pub older: String,
    pub newer: String,
}

static SHARED: Mutex<Weak<Stage>> = Mutex::new(Weak::new());

impl Stage {
    /// The one that the tests which run at this time share. It ends with the last of them.
    pub fn shared() -> Arc<Self> {
        assert!(rustix::process::geteuid().is_root(), "these tests change owners: run them as root");
        let mut shared = SHARED.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(stage) = shared.upgrade() {
            return stage;
        }
        let stage = Arc::new(Self::new());
        *shared = Arc::downgrade(&stage);
        stage
    }

    fn new() -> Self {
        let cluster = Cluster::start(1, Options::default());
        fill::homelab(&cluster.client(0));
        let site = Site::new(&cluster);
        let mut ids = [site.backup(), site.backup()];
        // Both may be of one second, then the rest of their names orders them.
        ids.sort();
        let [older, newer] = ids;
        for id in [&older, &newer] {
            site.run(&["verify", id]).expect_code(0);
        }
        Self { cluster, site, older, newer }
    }

    /// A copy of the store.
    pub fn copy(self: &Arc<Self>) -> Copied {
        let dir = tempfile::Builder::new().prefix("etcd-dr-copy.").tempdir().unwrap();
        let store = dir.path().join("store");
        copy_tree(&self.site.store(), &store);
        Copied { stage: Arc::clone(self), dir, store }
    }
}

/// Copies as `cp -a` does: modes, owners and times too.
pub fn copy_tree(from: &Path, to: &Path) {
    assert!(Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap().success(), "{}", from.display());
}

/// A copy of the stage's store, under the same policy and keys.
pub struct Copied {
    pub stage: Arc<Stage>,
    pub dir: tempfile::TempDir,
    pub store: PathBuf,
}

impl Copied {
    /// Runs the binary on this copy, with the site's policy.
    pub fn run(&self, arguments: &[&str]) -> Answer {
        self.command(arguments).output().unwrap().into()
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.stage.site.command(arguments);
        command.arg("--store").arg(&self.store);
        command
    }

    /// The same with JSON on stdout.
    #[track_caller]
    pub fn json(&self, code: i32, arguments: &[&str]) -> Value {
        let answer = self.run(&[arguments, &["--output", "json"]].concat()).expect_code(code);
        let json = answer.json();
        assert_eq!(json["error"]["code"].as_i64().unwrap_or(0), i64::from(code), "{json:#}");
        json
    }

    /// A file of the newer backup.
    pub fn newer(&self, file: &str) -> PathBuf {
        self.store.join(&self.stage.newer).join(file)
    }

    /// A file of the older backup.
    pub fn older(&self, file: &str) -> PathBuf {
        self.store.join(&self.stage.older).join(file)
    }

    /// The list's entry of a backup.
    #[track_caller]
    pub fn listed(&self, id: &str) -> Value {
        let list = self.json(0, &["list"]);
        let found = list["backups"].as_array().unwrap().iter().find(|backup| backup["id"] == id);
        found.unwrap_or_else(|| panic!("{id} is not listed: {list:#}")).clone()
    }

    /// The store with everything in it belongs to nobody from now on, and its parents let him through.
    pub fn give_away(&self) {
        fs::set_permissions(self.dir.path(), Permissions::from_mode(0o755)).unwrap();
        let owner = format!("{OTHER}:{OTHER}");
        assert!(Command::new("chown").args(["-R", &owner]).arg(&self.store).status().unwrap().success());
    }
}

/// The binary where another user can run it, and files of his.
pub struct OtherUser {
    pub dir: tempfile::TempDir,
}

impl OtherUser {
    pub fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("etcd-dr-other.").tempdir().unwrap();
        fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
        let binary = dir.path().join("etcd-dr");
        // A build directory may lie where only root looks.
        match fs::hard_link(BINARY, &binary) {
            Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {
                fs::copy(BINARY, &binary).unwrap();
            }
            linked => linked.unwrap(),
        }
        let home = dir.path().join("home");
        fs::create_dir(&home).unwrap();
        fs::set_permissions(&home, Permissions::from_mode(0o700)).unwrap();
        chown(&home, Some(OTHER), Some(OTHER)).unwrap();
        Self { dir }
    }

    /// A directory of his own.
    pub fn home(&self) -> PathBuf {
        self.dir.path().join("home")
    }

    /// A copy of a file that is his, mode 0600.
    pub fn own(&self, file: &Path) -> PathBuf {
        let path = self.home().join(file.file_name().unwrap());
        fs::copy(file, &path).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        chown(&path, Some(OTHER), Some(OTHER)).unwrap();
        path
    }

    /// The binary as that user, without his groups and without an environment but `PATH`.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("setpriv");
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").current_dir(self.home()).stdin(Stdio::null());
        command.args(["--reuid", &OTHER.to_string(), "--regid", &OTHER.to_string(), "--clear-groups"]);
        command.arg(self.dir.path().join("etcd-dr")).args(arguments);
        command
    }

    pub fn run(&self, arguments: &[&str]) -> Answer {
        self.command(arguments).output().unwrap().into()
    }
}
