//! A control-plane node as the product sees it: a policy, keys, a store, and the product's own binary.
//!
//! A site's directory is root's and 0700 from `/` down to it, as the guard wants; what a test changes of that is the test.
#![allow(dead_code, reason = "each test file uses its part")]

pub mod behind;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;

use crate::servers::etcd::Cluster;

/// The product's binary under test.
pub const BINARY: &str = env!("CARGO_BIN_EXE_etcd-dr");

/// A node with etcd-dr installed.
pub struct Site {
    dir: tempfile::TempDir,
    /// The age recipients, in the order of their identities `identity.txt` and `second.txt`.
    pub recipients: Vec<String>,
    /// The signing key's public half.
    pub public_key: String,
}

/// What the binary answered.
#[derive(Debug)]
pub struct Answer {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Answer {
    /// stdout as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("stdout is not JSON ({e}):\n{self:?}"))
    }

    /// Fails with all that was said where the exit code is another.
    #[track_caller]
    pub fn expect_code(self, code: i32) -> Self {
        assert_eq!(self.code, code, "stdout:\n{}\nstderr:\n{}", self.stdout, self.stderr);
        self
    }
}

impl From<Output> for Answer {
    fn from(output: Output) -> Self {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("the product writes UTF-8");
        Self { code: output.status.code().unwrap_or(-1), stdout: text(output.stdout), stderr: text(output.stderr) }
    }
}

impl Site {
    /// A node that knows `cluster` through the endpoints that its members advertise: keys made, store initialised.
    pub fn new(cluster: &Cluster) -> Self {
        let pair = cluster.client_pair();
        Self::at(cluster.advertised(0), cluster.pki().ca(), &pair.cert, &pair.key)
    }

    /// A node with these endpoints and TLS files.
    pub fn at(endpoints: &str, ca: &Path, cert: &Path, key: &Path) -> Self {
        let site = Self::bare(endpoints, ca, cert, key);
        let recipients = ["identity.txt", "second.txt"].map(|name| {
            let out = site.path(name);
            let answer = site.run(&["keys", "generate", "--out", out.to_str().unwrap()]).expect_code(0);
            answer.stdout.trim().to_owned()
        });
        fs::write(site.path("recipients.txt"), recipients.join("\n") + "\n").unwrap();
        fs::set_permissions(site.path("recipients.txt"), fs::Permissions::from_mode(0o600)).unwrap();
        let public_key =
            site.run(&["init", "--output", "json"]).expect_code(0).json()["public_key"].as_str().unwrap().to_owned();
        Self { recipients: recipients.to_vec(), public_key, ..site }
    }

    /// A node with a policy and nothing else: no keys, no store.
    pub fn bare(endpoints: &str, ca: &Path, cert: &Path, key: &Path) -> Self {
        let dir = tempfile::Builder::new().prefix("etcd-dr-site.").tempdir().unwrap();
        let site = Self { dir, recipients: Vec::new(), public_key: String::new() };
        let endpoints: Vec<String> = endpoints.split(',').map(|url| format!("{url:?}")).collect();
        let policy = format!(
            "version = 1\n[cluster]\nname = \"homelab\"\nendpoints = [{}]\nca_file = \"{}\"\ncert_file = \"{}\"\nkey_file = \"{}\"\n\
             [store]\npath = \"{}\"\nreserve = \"1MiB\"\n[backup]\nconnect_timeout = \"2s\"\nstall_timeout = \"2s\"\n\
             [encryption]\nrecipients_file = \"{}\"\nidentity_file = \"{}\"\n[signing]\nsecret_key_file = \"{}\"\n",
            endpoints.join(", "),
            ca.display(),
            cert.display(),
            key.display(),
            site.store().display(),
            site.path("recipients.txt").display(),
            site.path("identity.txt").display(),
            site.path("signing.key").display(),
        );
        site.write_policy(&policy);
        site
    }

    /// A file or directory of the site.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The store.
    pub fn store(&self) -> PathBuf {
        self.path("store")
    }

    /// The policy's text.
    pub fn policy(&self) -> String {
        fs::read_to_string(self.path("policy.toml")).unwrap()
    }

    /// Replaces the policy.
    pub fn write_policy(&self, text: &str) {
        fs::write(self.path("policy.toml"), text).unwrap();
        fs::set_permissions(self.path("policy.toml"), fs::Permissions::from_mode(0o600)).unwrap();
    }

    /// Replaces one piece of the policy's text, which must be there.
    pub fn change_policy(&self, from: &str, to: &str) {
        let text = self.policy();
        assert!(text.contains(from), "no {from:?} in\n{text}");
        self.write_policy(&text.replace(from, to));
    }

    /// The binary with this site's policy and no environment but `PATH`.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(BINARY);
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").current_dir(self.dir.path());
        command.arg("--policy").arg(self.path("policy.toml")).args(arguments).stdin(Stdio::null());
        command
    }

    /// Runs the binary to its end.
    pub fn run(&self, arguments: &[&str]) -> Answer {
        self.command(arguments).output().unwrap().into()
    }

    /// Runs the binary and does not wait.
    pub fn start(&self, arguments: &[&str]) -> Child {
        self.command(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// Takes a backup that must be whole, and gives its id.
    #[track_caller]
    pub fn backup(&self) -> String {
        let answer = self.run(&["backup", "--output", "json"]).expect_code(0);
        answer.json()["id"].as_str().unwrap().to_owned()
    }

    /// A backup's directory.
    pub fn backup_dir(&self, id: &str) -> PathBuf {
        self.store().join(id)
    }

    /// Names in the store, in order.
    pub fn store_names(&self) -> Vec<String> {
        names(&self.store())
    }

    /// Names in the store that look like backups, whole or half made.
    pub fn backups(&self) -> Vec<String> {
        self.store_names().into_iter().filter(|name| name.starts_with(['2']) || name.starts_with(".partial-")).collect()
    }
}

/// Names in a directory, in order.
pub fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}
