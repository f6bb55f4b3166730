//! A pin on a backup: what it keeps, that it survives crashes and cleaners, and that nothing is dropped where it cannot be read.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::string_slice,
    missing_docs,
    reason = "a failed test is a panic"
)]

#[path = "support/backup.rs"]
mod forge;
mod servers;
mod site;
#[path = "support/stage.rs"]
mod stage;

use std::{
    fs,
    os::unix::{fs::PermissionsExt as _, process::ExitStatusExt as _},
};

use forge::Golden;
use serde_json::{Value, json};
use servers::preload::{self, Steps};
use stage::{Copied, Stage};

const HOLDS: &str = ".etcd-dr-holds.json";
const JOURNAL: &str = ".etcd-dr-journal.json";

/// Backups of eleven, ten and nine days ago: the first two are old enough to go.
fn old(copy: &Copied) -> [String; 3] {
    let key = etcd_dr::sign::SecretKey::load(&copy.stage.site.path("signing.key")).unwrap();
    [11, 10, 9].map(|days| {
        #[allow(clippy::disallowed_methods, reason = "ages are relative to the very time")]
        let made = jiff::Timestamp::now() - jiff::SignedDuration::from_hours(24 * days);
        let golden = Golden::in_store(&copy.store, made);
        golden.write(&copy.store, &key);
        golden.index.id.to_string()
    })
}

fn dropped(prune: &Value) -> Vec<&str> {
    let decisions = prune["decisions"].as_array().unwrap().iter();
    decisions.filter(|d| d["action"] == "drop").map(|d| d["id"].as_str().unwrap()).collect()
}

fn reasons<'a>(prune: &'a Value, id: &str) -> &'a Value {
    &prune["decisions"].as_array().unwrap().iter().find(|d| d["id"] == id).unwrap()["reasons"]
}

fn finding<'a>(answer: &'a Value, name: &str) -> Option<&'a Value> {
    answer["findings"].as_array().unwrap().iter().find(|finding| finding["name"] == name)
}

#[test]
fn what_is_held_is_kept_until_it_is_released() {
    let stage = Stage::shared();
    let copy = stage.copy();
    let [eleven, ten, _] = old(&copy);
    assert!(!copy.store.join(HOLDS).exists());
    assert_eq!(copy.listed(&eleven)["held"], false);
    assert!(!copy.run(&["list"]).stdout.contains("HOLD"));

    let held = copy.json(0, &["hold", &eleven, "--reason", "before the upgrade"]);
    assert_eq!(
        (&held["held"], &held["changed"], &held["schema"]),
        (&json!(true), &json!(true), &json!("etcd-dr/hold/v1"))
    );
    assert_eq!(fs::metadata(copy.store.join(HOLDS)).unwrap().permissions().mode() & 0o7777, 0o600);
    assert_eq!((&copy.listed(&eleven)["held"], &copy.listed(&ten)["held"]), (&json!(true), &json!(false)));
    let list = copy.run(&["list"]).expect_code(0).stdout;
    let line = list.lines().find(|line| line.starts_with(&eleven)).unwrap();
    assert!(list.contains("HOLD") && line.contains(" held"), "{list}");
    let show = copy.json(0, &["show", &eleven]);
    assert_eq!((&show["held"], &show["hold"]["reason"]), (&json!(true), &json!("before the upgrade")));
    assert!(copy.run(&["show", &eleven]).stdout.contains("(before the upgrade)"));

    // The file is the store's own, and no finding.
    let list = copy.json(0, &["list"]);
    assert_eq!((&list["foreign"], &list["findings"]), (&json!([]), &json!([])));
    copy.json(0, &["verify", "--level", "digest"]);

    let planned = copy.json(0, &["prune", "--dry-run"]);
    assert_eq!((reasons(&planned, &eleven), dropped(&planned)), (&json!(["held"]), vec![ten.as_str()]));
    assert_eq!(dropped(&copy.json(0, &["prune"])), [ten.as_str()]);
    assert!(copy.store.join(&eleven).exists() && !copy.store.join(&ten).exists());

    let released = copy.json(0, &["release", &eleven]);
    assert_eq!((&released["held"], &released["changed"]), (&json!(false), &json!(true)));
    assert_eq!(copy.listed(&eleven)["held"], false);
    assert_eq!(dropped(&copy.json(0, &["prune"])), [eleven.as_str()]);
}

#[test]
fn twice_is_once_and_is_said() {
    let stage = Stage::shared();
    let copy = stage.copy();
    let id = &stage.older;
    let not = copy.run(&["release", id]).expect_code(0);
    assert_eq!(not.stdout, format!("{id} was not held\n"));
    assert!(!copy.store.join(HOLDS).exists());
    copy.run(&["hold", id, "--reason", "first"]).expect_code(0);
    let file = fs::read(copy.store.join(HOLDS)).unwrap();
    let again = copy.run(&["hold", id, "--reason", "second"]).expect_code(0);
    assert!(again.stdout.contains("was held already") && again.stdout.contains("(first)"), "{again:?}");
    assert_eq!(fs::read(copy.store.join(HOLDS)).unwrap(), file);
    assert_eq!(copy.json(0, &["hold", id])["changed"], false);
    // `latest` is the newest; the pin carries its id.
    assert_eq!(copy.json(0, &["hold", "latest"])["id"], stage.newer.as_str());
    assert_eq!(copy.json(0, &["release", id])["changed"], true);
    assert_eq!(copy.json(0, &["release", id])["changed"], false);
    assert_eq!(copy.listed(&stage.newer)["held"], true);
}

#[test]
fn what_is_not_there_is_named_with_the_nearest() {
    let stage = Stage::shared();
    let copy = stage.copy();
    let mut wrong = stage.older.clone();
    let last = wrong.pop().unwrap();
    wrong.push(if last == '0' { '1' } else { '0' });
    for command in ["hold", "release"] {
        let answer = copy.json(10, &[command, &wrong]);
        assert!(answer["error"]["message"].as_str().unwrap().contains(&wrong), "{answer:#}");
        assert!(answer["error"]["hint"].as_str().unwrap().contains(&stage.older), "{answer:#}");
        let cut = &stage.older[..stage.older.len() - 1];
        let answer = copy.json(2, &[command, cut]);
        assert!(answer["error"]["hint"].as_str().unwrap().contains(&stage.older), "{answer:#}");
        let answer = copy.json(2, &[command, "x"]);
        assert!(!answer["error"]["hint"].as_str().unwrap().contains("nearest"), "{answer:#}");
    }
    assert!(!copy.store.join(HOLDS).exists());
}

#[test]
fn a_run_that_works_on_the_store_is_waited_for() {
    let stage = Stage::shared();
    let copy = stage.copy();
    let store = etcd_dr::store::Store::open(&copy.store).unwrap();
    let lock = store.lock().unwrap();
    for command in ["hold", "release"] {
        copy.json(11, &[command, &stage.older]);
    }
    drop(lock);
    copy.json(0, &["hold", &stage.older]);
}

#[test]
fn a_damaged_file_refuses_pruning_and_is_never_no_holds() {
    let stage = Stage::shared();
    let copy = stage.copy();
    let [eleven, ten, nine] = old(&copy);
    copy.json(0, &["hold", &eleven]);
    let path = copy.store.join(HOLDS);
    let whole = fs::read_to_string(&path).unwrap();
    let other = whole.replace("etcd-dr/holds/v1", "etcd-dr/holds/v9");
    let stores: Value = serde_json::from_str(&whole).unwrap();
    let foreign = whole.replace(stores["store_id"].as_str().unwrap(), "another");
    let cut = &whole[..whole.len() / 2];
    for bad in ["", cut, "{}", &other, &foreign, "\0\0\0\0"] {
        fs::write(&path, bad).unwrap();
        for command in [&["prune"][..], &["prune", "--dry-run"], &["hold", &ten], &["release", &eleven]] {
            let answer = copy.json(22, command);
            let error = &answer["error"];
            assert_eq!(error["kind"], "bad_holds", "{answer:#}");
            assert!(error["message"].as_str().unwrap().contains(path.to_str().unwrap()), "{answer:#}");
            assert!(error["hint"].as_str().unwrap().contains("mv "), "{answer:#}");
        }
        assert!(copy.store.join(&eleven).exists() && copy.store.join(&ten).exists());
        let list = copy.json(0, &["list"]);
        assert_eq!(finding(&list, HOLDS).unwrap()["kind"], "file_changed", "{list:#}");
        assert_eq!(copy.listed(&eleven)["held"], Value::Null);
        assert_eq!(copy.json(0, &["show", &stage.newer])["held"], Value::Null);
        assert_eq!(finding(&copy.json(20, &["verify"]), HOLDS).unwrap()["kind"], "file_changed");
        assert_eq!(fs::read(&path).unwrap(), bad.as_bytes());
    }
    // A backup is made all the same, and drops nothing.
    let backup = copy.json(3, &["backup"]);
    assert_eq!(backup["retention"], Value::Null);
    assert!(finding(&backup, HOLDS).is_some(), "{backup:#}");
    assert!(copy.store.join(&eleven).exists() && copy.store.join(&ten).exists());
    // Moved away as the hint says, the journal still knows.
    fs::remove_file(&path).unwrap();
    let pruned = copy.json(0, &["prune"]);
    assert_eq!((reasons(&pruned, &eleven), dropped(&pruned)), (&json!(["held"]), vec![ten.as_str(), nine.as_str()]));
}

#[test]
fn a_cleaner_that_eats_the_file_releases_nothing() {
    let stage = Stage::shared();
    let copy = stage.copy();
    let [eleven, ten, _] = old(&copy);
    copy.json(0, &["hold", &eleven, "--reason", "before the upgrade"]);
    fs::remove_file(copy.store.join(HOLDS)).unwrap();
    let list = copy.json(0, &["list"]);
    let gone = finding(&list, HOLDS).unwrap();
    assert!(gone["kind"] == "file_missing" && gone["detail"].as_str().unwrap().contains(&eleven), "{list:#}");
    assert_eq!(copy.listed(&eleven)["held"], true);
    assert_eq!(dropped(&copy.json(0, &["prune", "--dry-run"])), [ten.as_str()]);
    // The next backup says it and writes the file again.
    let backup = copy.json(3, &["backup"]);
    assert!(finding(&backup, HOLDS).is_some(), "{backup:#}");
    assert!(copy.store.join(&eleven).exists() && copy.store.join(HOLDS).exists());
    assert_eq!(copy.json(0, &["list"])["findings"], json!([]));

    // The journal is gone: the file is what counts, and the journal learns it again.
    fs::remove_file(copy.store.join(JOURNAL)).unwrap();
    assert_eq!(copy.listed(&eleven)["held"], true);
    copy.json(3, &["backup"]);
    fs::remove_file(copy.store.join(HOLDS)).unwrap();
    assert_eq!(copy.listed(&eleven)["held"], true);
}

#[test]
fn a_held_backup_that_vanished_is_named_until_it_is_released() {
    let stage = Stage::shared();
    let copy = stage.copy();
    let [eleven, ..] = old(&copy);
    copy.json(0, &["hold", &eleven]);
    fs::remove_dir_all(copy.store.join(&eleven)).unwrap();
    // It was never published as far as the journal knows, so that only the hold misses it; and no prune forgets it.
    copy.json(0, &["prune"]);
    let verify = copy.json(20, &["verify"]);
    let gone = finding(&verify, &eleven).unwrap();
    assert_eq!(gone["kind"], "backup_vanished");
    assert!(gone["detail"].as_str().unwrap().contains("it is held, and gone"), "{verify:#}");
    assert!(finding(&copy.json(3, &["backup"]), &eleven).is_some());
    assert_eq!(copy.json(0, &["release", &eleven])["changed"], true);
    copy.json(0, &["verify"]);

    // One that the journal misses too is named once.
    let copy = stage.copy();
    copy.json(0, &["hold", &stage.older]);
    fs::remove_dir_all(copy.store.join(&stage.older)).unwrap();
    let list = copy.json(0, &["list"]);
    assert_eq!(list["findings"].as_array().unwrap().len(), 1, "{list:#}");
    assert!(finding(&list, &stage.older).unwrap()["detail"].as_str().unwrap().contains("it is held"));
}

#[test]
fn what_cannot_be_believed_is_held_with_a_word() {
    let stage = Stage::shared();
    let copy = stage.copy();
    fs::write(copy.older("SHA256SUMS.minisig"), "x").unwrap();
    let held = copy.json(0, &["hold", &stage.older]);
    assert!(held["warnings"][0].as_str().unwrap().contains("cannot be believed"), "{held:#}");
    fs::remove_file(copy.newer("RECOVERY.md")).unwrap();
    let held = copy.json(0, &["hold", &stage.newer]);
    assert!(held["warnings"][0].as_str().unwrap().contains("not proved"), "{held:#}");
}

#[test]
fn a_hold_or_release_killed_at_any_step_is_done_or_not() {
    let stage = Stage::shared();
    let mut kills = 0;
    for (command, before) in [("hold", false), ("release", true)] {
        for at in 1.. {
            let copy = stage.copy();
            if before {
                copy.json(0, &["hold", &stage.older]);
            }
            let log = copy.dir.path().join("steps.log");
            let mut killed = copy.command(&[command, &stage.older]);
            Steps { kill_at: Some(at), ..Steps::default() }.apply(&mut killed, &log);
            let output = killed.output().unwrap();
            let named =
                preload::steps(&log).iter().take(at - 1).any(|step| step.contains(" rename") && step.ends_with(HOLDS));
            // What is held changes with the one rename, before it and behind it all is whole.
            assert_eq!(copy.listed(&stage.older)["held"], json!(before != named), "{command} at {at}");
            assert_eq!(copy.json(0, &["list"])["findings"], json!([]), "{command} at {at}");
            if output.status.success() {
                break;
            }
            assert_eq!(output.status.signal(), Some(9), "{output:?}");
            kills += 1;
            // Done again it is done, the journal included: the file may go.
            copy.json(0, &[command, &stage.older]);
            fs::remove_file(copy.store.join(HOLDS)).unwrap();
            assert_eq!(copy.listed(&stage.older)["held"], json!(!before), "{command} at {at}");
            copy.json(0, &["prune"]);
            assert!(site::names(&copy.store).iter().all(|name| !name.starts_with(".partial-")), "{command} at {at}");
        }
    }
    assert!(kills >= 8, "{kills}");
}
