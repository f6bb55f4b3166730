//! What is installed runs the product as it is: the cron line and the unit's command word for word, and the unit's walls around a real run.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs,
    reason = "a failed test is a panic"
)]

mod servers;
mod site;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use servers::{
    etcd::{Cluster, Options},
    stock,
};
use site::{Answer, BINARY, Site};

/// Where the files under `packaging/` expect the program.
const INSTALLED: &str = "/usr/bin/etcd-dr";

fn packaged(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging").join(name);
    fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The settings of a unit with this key, in order.
fn settings<'a>(unit: &'a str, key: &str) -> Vec<&'a str> {
    unit.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix('=')).collect()
}

fn the_setting<'a>(unit: &'a str, key: &str) -> &'a str {
    let found = settings(unit, key);
    assert_eq!(found.len(), 1, "{key}: {found:?}");
    found[0]
}

#[test]
fn the_cron_line_takes_a_backup_as_cron_runs_it() {
    let text = packaged("cron.d/etcd-dr");
    let lines: Vec<&str> = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).collect();
    let (variables, jobs): (Vec<&str>, Vec<&str>) =
        lines.into_iter().partition(|line| line.split(' ').next().unwrap().contains('='));
    assert_eq!(jobs.len(), 1, "{jobs:?}");
    assert!(text.ends_with('\n'), "cron drops a last line without its end");
    let fields: Vec<&str> = jobs[0].splitn(7, ' ').collect();
    assert_eq!(fields[..6], ["0", "2", "*", "*", "*", "root"]);
    let command = fields[6];
    assert!(!command.contains('%'), "cron reads % as a line's end");
    assert!(command.starts_with(INSTALLED), "{command}");

    let cluster = Cluster::start(1, Options::default());
    let site = Site::new(&cluster);
    let mut shell = stock("/bin/sh");
    shell.env_clear().arg("-c").arg(command.replace(INSTALLED, BINARY)).env("ETCD_DR_POLICY", site.path("policy.toml"));
    for variable in variables {
        let (name, value) = variable.split_once('=').unwrap();
        shell.env(name, value);
    }
    let answer = Answer::from(shell.output().unwrap()).expect_code(0);
    assert_eq!(site.backups().len(), 1);
    assert!(answer.stderr.is_empty(), "a good night mails the table alone: {}", answer.stderr);
}

/// systemd is not running where tests do, so a real run is held against what the unit allows: without any capability, and every system
/// call looked at.
#[test]
fn a_run_stays_within_the_walls_of_the_unit() {
    let unit = packaged("systemd/etcd-dr-backup.service");
    let command: Vec<&str> = the_setting(&unit, "ExecStart").split(' ').collect();
    assert_eq!(command[0], INSTALLED);
    assert_eq!(the_setting(&unit, "CapabilityBoundingSet"), "");

    let cluster = Cluster::start(3, Options::default());
    let site = Site::new(&cluster);
    let trace = site.path("trace");
    let run = stock("strace")
        .args(["-f", "-y", "-qq", "-o"])
        .arg(&trace)
        .args(["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs", BINARY])
        .args(&command[1..])
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .env("ETCD_DR_POLICY", site.path("policy.toml"))
        .output()
        .unwrap();
    Answer::from(run).expect_code(0);
    assert_eq!(site.backups().len(), 1);

    let text = fs::read_to_string(&trace).unwrap();
    // From the program's own start: setpriv before it is not the unit's.
    let calls: Vec<Call> = text
        .lines()
        .skip_while(|line| !(line.contains("execve(") && line.contains(BINARY)))
        .filter_map(Call::parse)
        .collect();
    assert!(calls.len() > 500, "only {} system calls were seen", calls.len());

    let allowed = system_service();
    let refused: BTreeSet<&str> = calls.iter().map(|call| call.name).filter(|name| !allowed.contains(*name)).collect();
    assert!(refused.is_empty(), "SystemCallFilter=@system-service has not: {refused:?}");

    let families: BTreeSet<&str> = the_setting(&unit, "RestrictAddressFamilies").split(' ').collect();
    for call in calls.iter().filter(|call| call.name == "socket") {
        let family = call.rest.split(',').next().unwrap();
        assert!(families.contains(family), "socket({}", call.rest);
    }
    for call in &calls {
        let both = call.rest.contains("PROT_WRITE|PROT_EXEC");
        let later = call.name == "mprotect" && call.rest.contains("PROT_EXEC");
        assert!(!both && !later, "MemoryDenyWriteExecute: {}({}", call.name, call.rest);
    }

    let store = site.store();
    let mut written = 0;
    for path in calls.iter().filter_map(Call::written) {
        written += 1;
        assert!(path.starts_with(&store) || path == Path::new("/dev/null"), "written: {}", path.display());
    }
    assert!(written > 10, "only {written} paths were written");
}

#[test]
fn the_unit_opens_the_store_of_the_shipped_policies() {
    let unit = packaged("systemd/etcd-dr-backup.service");
    let store = etcd_dr::policy::KEYS.iter().find(|key| (key.table, key.name) == ("store", "path")).unwrap();
    let store = store.default.unwrap();
    assert_eq!(the_setting(&unit, "ReadWritePaths"), format!("-{store}"));
    assert_eq!(the_setting(&unit, "RequiresMountsFor"), store);
    for policy in fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("policies")).unwrap() {
        let policy = policy.unwrap().path();
        let text = fs::read_to_string(&policy).unwrap();
        assert!(text.contains(&format!("path = \"{store}\"")), "{} has another store", policy.display());
    }
}

/// One line of strace.
struct Call<'a> {
    name: &'a str,
    /// Arguments and result.
    rest: &'a str,
}

impl<'a> Call<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let line = line.trim_start_matches(|c: char| c.is_ascii_digit()).trim_start();
        let (name, rest) = line.split_once('(')?;
        // The second half of a call that another thread cut in two, or a signal, has no name here.
        name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_').then_some(Self { name, rest })
    }

    /// The path that this call would create or change.
    fn written(&self) -> Option<PathBuf> {
        let quoted = || self.rest.split('"').nth(1).map(PathBuf::from);
        match self.name {
            "open" | "openat" | "creat" => {
                let writes = ["O_WRONLY", "O_RDWR", "O_CREAT"].iter().any(|flag| self.rest.contains(flag));
                writes.then(quoted).flatten().map(|path| self.absolute(path))
            }
            "mkdir" | "mkdirat" | "rename" | "renameat" | "renameat2" | "unlink" | "unlinkat" | "rmdir" | "link"
            | "linkat" | "symlink" | "symlinkat" | "chmod" | "chown" | "truncate" => {
                quoted().map(|path| self.absolute(path))
            }
            _ => None,
        }
    }

    /// A relative path starts at the directory that strace shows beside the descriptor: `7</the/store>, "name"`.
    fn absolute(&self, path: PathBuf) -> PathBuf {
        let base = self.rest.split(['<', '>']).nth(1).unwrap_or("/relative to nothing known");
        if path.is_absolute() { path } else { Path::new(base).join(path) }
    }
}

/// The system calls of systemd's set, sets within it included.
fn system_service() -> BTreeSet<String> {
    let mut calls = BTreeSet::new();
    let mut sets = vec!["@system-service".to_owned()];
    while let Some(set) = sets.pop() {
        let output = stock("systemd-analyze").args(["syscall-filter", &set]).output().unwrap();
        assert!(output.status.success(), "{set}: {output:?}");
        for line in String::from_utf8(output.stdout).unwrap().lines().skip(1).map(str::trim) {
            if line.starts_with('@') {
                sets.push(line.to_owned());
            } else if !line.starts_with('#') {
                calls.insert(line.to_owned());
            }
        }
    }
    calls
}
