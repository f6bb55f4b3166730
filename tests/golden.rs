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

#[path = "support/backup.rs"]
mod backup;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use backup::Golden;
use etcd_dr::{
    ops::prune,
    plan::retention::{Action, Decision},
    policy::Retention,
    record::ProofLevel,
    run::read_catalog,
    sign::{PublicKey, Trusted},
    store::Store,
};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

/// One member, nobody asked for HashKV: proved `open`.
const OPEN: [&str; 1] = ["0.1.0"];
/// Three members that agree, all files and then the primary's alone, a later proof and a hold: proved `sound`.
const SOUND: &str = "0.2.0";
const STORES: [&str; 2] = [OPEN[0], SOUND];

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
    for version in OPEN {
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
        for arguments in [&["verify", "--all", "--level", "open"][..], &["verify", "--all"]] {
            let verify = run(&site, arguments);
            assert_eq!(verify["ok"], true, "{version}: {verify}");
            // One member, and nobody asked it for HashKV: whole, and never `sound`.
            for result in verify["results"].as_array().unwrap() {
                assert_eq!((&result["level"], &result["ok"]), (&json!("open"), &json!(true)), "{version}: {result}");
            }
        }
        let prune = run(&site, &["prune", "--dry-run", "--accept-gap"]);
        assert_eq!(prune["decisions"].as_array().unwrap().len(), 2, "{version}");
    }
}

/// What the rules of a policy that asks for `sound` make of a store, one such backup at each of these times added by a later version.
fn plan_with_sound(version: &str, sound: &[&str], now: &str) -> Vec<Decision> {
    let dir = copy(version);
    let site = dir.path().join("site");
    let (path, key) = (site.join("store"), backup::key());
    for made in sound {
        Golden::in_store(&path, backup::time(made)).proved(ProofLevel::Sound).write(&path, &key);
    }
    let first = fs::read_to_string(site.join("public-key")).unwrap();
    let keys = [PublicKey::from_key_or_file(first.trim()).unwrap(), key.public().clone()];
    let store = Store::open(&path).unwrap();
    let holds = store.holds().unwrap();
    assert!(holds.held.is_empty() && holds.released.is_empty(), "{version}");
    let catalog = read_catalog(&store, &Trusted::new(keys.to_vec())).unwrap();
    assert_eq!(catalog.backups.len(), 2 + sound.len());
    assert!(catalog.backups.iter().all(|backup| backup.proved_at(ProofLevel::Open)), "{version}");
    let rules = Retention {
        keep_within: Duration::from_secs(5 * 86_400),
        keep_proved: 3,
        min_proof: ProofLevel::Sound,
        keep_daily: 0,
        keep_weekly: 0,
        keep_monthly: 0,
    };
    let now: Timestamp = backup::time(now);
    prune::plan(&catalog, &holds, &rules, now + SignedDuration::from_secs(1), true).unwrap()
}

#[test]
fn stores_that_reached_open_are_kept_right_where_sound_is_asked_for() {
    let young = "younger than 5d";
    let fill = "one of the 3 newest proved (open: too few reached sound)";
    let floor = "one of the 3 newest proved (sound)";
    let (one, two, three) = ("2026-11-23T02:00:00Z", "2026-11-24T02:00:00Z", "2026-11-25T02:00:00Z");
    for version in OPEN {
        // Nothing new: the same day, and a year later.
        let seen = |sound: &[&str], now: &str| {
            let decisions = plan_with_sound(version, sound, now);
            decisions.into_iter().map(|d| (d.action, d.reasons.join("; "))).collect::<Vec<_>>()
        };
        let both = |first: &str, second: &str| (Action::Keep, format!("{first}; {second}"));
        let keep = |reason: &str| (Action::Keep, reason.to_owned());
        let drop = || (Action::Drop, "older than 5d, no rule keeps it".to_owned());
        assert_eq!(seen(&[], "2026-11-22T19:00:00Z"), [both(young, fill), both(young, fill)]);
        assert_eq!(seen(&[], "2027-11-22T19:00:00Z"), [keep(fill), keep(fill)]);
        // The first nights after the upgrade, and long after them.
        assert_eq!(seen(&[one], one), [both(young, fill), both(young, fill), both(young, floor)]);
        assert_eq!(seen(&[one], "2027-11-22T19:00:00Z"), [keep(fill), keep(fill), keep(floor)]);
        assert_eq!(seen(&[one, two], "2027-11-22T19:00:00Z"), [drop(), keep(fill), keep(floor), keep(floor)]);
        let four = seen(&[one, two, three], three);
        assert_eq!(four[..3], [keep(young), keep(young), both(young, floor)]);
        let four = seen(&[one, two, three], "2027-11-22T19:00:00Z");
        assert_eq!(four, [drop(), drop(), keep(floor), keep(floor), keep(floor)]);
    }
}

#[test]
fn a_store_that_reached_sound_stays_sound_and_can_be_restored_from() {
    let dir = copy(SOUND);
    let site = dir.path().join("site");
    let expected: Value = serde_json::from_str(&fs::read_to_string(site.join("expected.json")).unwrap()).unwrap();
    let list = run(&site, &["list"]);
    let backups = list["backups"].as_array().unwrap();
    assert_eq!(backups.len(), 2, "{list}");
    for (backup, expected) in backups.iter().zip(expected.as_array().unwrap()) {
        for (key, value) in expected.as_object().unwrap() {
            assert_eq!(&backup[key], value, "{key}");
        }
        assert_eq!(backup["problems"], json!([]));
    }
    assert_eq!((&backups[0]["held"], &backups[1]["held"]), (&json!(false), &json!(true)));
    let verify = run(&site, &["verify", "--all", "--level", "sound"]);
    assert_eq!(
        (&verify["ok"], &verify["results"][0]["level"], &verify["results"][1]["level"]),
        (&json!(true), &json!("sound"), &json!("sound"))
    );
    for backup in backups {
        let id = backup["id"].as_str().unwrap();
        let show = run(&site, &["show", id]);
        let primary = show["members"]
            .as_array()
            .unwrap()
            .iter()
            .find(|member| member["name"] == show["primary"])
            .unwrap()
            .clone();
        let inspected = run(&site, &["inspect", id]);
        for key in ["revision", "compact_revision", "hash_kv"] {
            assert_eq!(inspected[key], primary[key], "{id}: {key}");
        }
        let out = dir.path().join("restored");
        let arguments = ["restore", "--snapshot", id, "--all-members", "--output-dir", out.to_str().unwrap()];
        let restored = run(&site, &arguments);
        assert_eq!(
            (&restored["written"]["hash_kv_at_snapshot"], &restored["bump"]),
            (&primary["hash_kv"], &json!(1_000_000_000)),
            "{id}"
        );
        fs::remove_dir_all(&out).unwrap();
    }
}
