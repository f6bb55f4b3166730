//! Stores that earlier versions wrote are read for ever. Each directory under `tests/fixtures/stores` is one, named by the version that wrote
//! it; none is ever edited. A list in code is held against the directory, so that none is forgotten.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs,
    reason = "a failed test is a panic"
)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

const STORES: [&str; 1] = ["0.1.0"];

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/stores")
}

/// A copy with the owners and modes of a store, which git does not keep.
fn copy(version: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for arguments in [
        vec!["cp", "-r", fixtures().join(version).to_str().unwrap(), dir.path().join("site").to_str().unwrap()],
        vec!["chmod", "-R", "go-rwx", dir.path().to_str().unwrap()],
    ] {
        assert!(Command::new(arguments[0]).args(&arguments[1..]).status().unwrap().success());
    }
    dir
}

fn run(site: &Path, arguments: &[&str]) -> Value {
    let public_key = fs::read_to_string(site.join("public-key")).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_etcd-dr"))
        .env_clear()
        .args(arguments)
        .args(["--output", "json", "--public-key", public_key.trim(), "--store"])
        .arg(site.join("store"))
        .arg("--identity")
        .arg(site.join("identity.txt"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn every_golden_store_is_listed() {
    let mut there: Vec<String> =
        fs::read_dir(fixtures()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    there.sort();
    assert_eq!(there, STORES);
}

#[test]
fn stores_of_earlier_versions_are_listed_shown_and_proved() {
    for version in STORES {
        let dir = copy(version);
        let site = dir.path().join("site");
        let expected: Value = serde_json::from_str(&fs::read_to_string(site.join("expected.json")).unwrap()).unwrap();
        let list = run(&site, &["list"]);
        let backups = list["backups"].as_array().unwrap();
        assert_eq!(backups.len(), 2, "{version}: {list}");
        for (backup, expected) in backups.iter().zip(expected.as_array().unwrap()) {
            for (key, value) in expected.as_object().unwrap() {
                assert_eq!(&backup[key], value, "{version}: {key}");
            }
            assert_eq!(backup["problems"], json!([]), "{version}");
            let show = run(&site, &["show", backup["id"].as_str().unwrap()]);
            assert_eq!(show["primary"], "k8s", "{version}");
            assert_eq!(show["level"], expected["proof"], "{version}");
        }
        let verify = run(&site, &["verify", "--all", "--level", "open"]);
        assert_eq!(verify["ok"], true, "{version}: {verify}");
        let prune = run(&site, &["prune", "--dry-run", "--accept-gap"]);
        assert_eq!(prune["decisions"].as_array().unwrap().len(), 2, "{version}");
    }
}
