//! What a tired person does at 3 a.m., and that it costs nothing.
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

use std::fs::{self, OpenOptions};
use std::path::Path;
use std::process::Command;

use servers::etcd::{Cluster, Options};
use site::{Answer, BINARY, Site, names};

fn site() -> (Cluster, Site) {
    let cluster = Cluster::start(1, Options::default());
    let site = Site::new(&cluster);
    (cluster, site)
}

fn bare(arguments: &[&str]) -> Answer {
    Command::new(BINARY).env_clear().args(arguments).output().unwrap().into()
}

#[test]
fn a_damaged_journal_is_said_beside_a_backup_that_is_whole() {
    let (_cluster, site) = site();
    site.backup();
    fs::write(site.store().join(".etcd-dr-journal.json"), "").unwrap();
    let report = site.run(&["backup", "--output", "json"]).expect_code(3).json();
    assert_eq!((report["proof"].as_str(), report["error"]["kind"].as_str()), (Some("sound"), Some("findings")));
    assert!(report["error"]["message"].as_str().unwrap().contains("journal"), "{report:#}");
    site.run(&["backup"]).expect_code(0);
}

#[test]
fn an_identity_in_the_place_of_its_file_is_not_repeated() {
    let secret = format!("AGE-SECRET-KEY-1{}", "Q".repeat(58));
    for output in ["table", "json"] {
        let answer = bare(&["keys", "check", "--identity", &secret, "--output", output]).expect_code(2);
        assert!(!answer.stdout.contains("QQQQ") && !answer.stderr.contains("QQQQ"), "{answer:?}");
        assert!(answer.stderr.contains("takes a file"), "{answer:?}");
    }
}

#[test]
fn what_cannot_be_shown_is_no_success() {
    let (_cluster, site) = site();
    site.backup();
    for output in ["table", "json"] {
        let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let answer: Answer = site.command(&["list", "--output", output]).stdout(full).output().unwrap().into();
        let answer = answer.expect_code(1);
        assert!(answer.stderr.contains("stdout"), "{answer:?}");
    }
}

#[test]
fn nothing_is_pruned_by_rules_that_nobody_wrote() {
    let (_cluster, site) = site();
    let id = site.backup();
    let store = site.store();
    let arguments = ["prune", "--store", store.to_str().unwrap(), "--public-key", &site.public_key];
    let answer = bare(&arguments).expect_code(2);
    assert!(answer.stderr.contains("no policy"), "{answer:?}");
    bare(&[&arguments[..], &["--dry-run"]].concat()).expect_code(0);
    assert_eq!(site.backups(), [id]);
}

#[test]
fn a_directory_of_the_system_is_no_store() {
    for path in ["/", "/etc", "/tmp", "/var/lib", "/tmp/", "//"] {
        let answer = bare(&["init", "--store", path]).expect_code(2);
        assert!(answer.stderr.contains("directory of the system"), "{path}: {answer:?}");
        assert!(!answer.stderr.contains("chmod"), "{path}: {answer:?}");
    }
    assert!(!Path::new("/etc/.etcd-dr-store.json").exists());
}

#[test]
fn no_store_is_begun_inside_a_backup() {
    let (_cluster, site) = site();
    let id = site.backup();
    let dir = site.backup_dir(&id);
    let before = names(&dir);
    for command in ["init", "verify", "list"] {
        let answer = site.run(&[command, "--store", dir.to_str().unwrap()]).expect_code(10);
        assert!(answer.stderr.contains("is a backup, not a store"), "{answer:?}");
        assert!(answer.stderr.contains(&format!("--store {}", site.store().display())), "{answer:?}");
    }
    assert_eq!(names(&dir), before);
    site.run(&["verify"]).expect_code(0);
}

#[test]
fn a_partial_backup_is_called_so_by_verify() {
    let cluster = Cluster::start(3, Options::default());
    let site = Site::new(&cluster);
    let whole = site.backup();
    cluster.kill_member(2);
    let id = site.run(&["backup", "--output", "json"]).expect_code(3).json()["id"].as_str().unwrap().to_owned();
    let answer = site.run(&["verify", &id]).expect_code(0);
    assert!(answer.stdout.contains("proved sound, partial"), "{answer:?}");
    // And the last whole one outlives any number of partial ones.
    site.write_policy(&format!("{}[retention]\nkeep_within = \"0s\"\nkeep_proved = 1\n", site.policy()));
    std::thread::sleep(std::time::Duration::from_millis(1100));
    site.run(&["backup"]).expect_code(3);
    let kept = site.backups();
    assert!(kept.contains(&whole) && !kept.contains(&id) && kept.len() == 2, "{kept:?}");
}

#[test]
fn a_level_that_fell_has_its_reason_in_the_list() {
    let (_cluster, site) = site();
    let id = site.backup();
    let file = site.backup_dir(&id).join("etcd-k8s.db.zst.age");
    let good = fs::read(&file).unwrap();
    let mut bad = good.clone();
    bad[good.len() / 2] ^= 1;
    fs::write(&file, &bad).unwrap();
    site.run(&["verify"]).expect_code(20);
    let list = site.run(&["list"]).expect_code(0);
    assert!(list.stdout.contains("etcd-k8s.db.zst.age: its SHA-256 is"), "{list:?}");
    fs::write(&file, &good).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(1100));
    site.run(&["verify"]).expect_code(0);
    let list = site.run(&["list"]).expect_code(0);
    assert!(!list.stdout.contains("SHA-256"), "{list:?}");
}

#[test]
fn a_lost_signing_key_is_not_replaced_in_silence() {
    let (_cluster, site) = site();
    site.backup();
    let old = site.public_key.clone();
    fs::remove_file(site.path("signing.key")).unwrap();
    let answer = site.run(&["init"]).expect_code(0);
    assert!(answer.stderr.contains(&old) && answer.stderr.contains("trusted"), "{answer:?}");
}

#[test]
fn names_and_reasons_are_shown_and_not_obeyed() {
    let (_cluster, site) = site();
    site.run(&["backup", "--reason", "tired\n\u{1b}[31mred\u{202e}"]).expect_code(0);
    let show = site.run(&["show"]).expect_code(0);
    assert!(!show.stdout.contains('\u{1b}') && !show.stdout.contains('\u{202e}'), "{show:?}");
    assert!(show.stdout.contains("tired\\n"), "{show:?}");
}
