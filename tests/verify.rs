//! What `verify` and `keys check` answer, to whom, and what they leave behind.
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
#[path = "support/stage.rs"]
mod stage;

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Command, Stdio},
};

use serde_json::{Value, json};
use servers::{
    etcd::{Cluster, Options},
    fill,
};
use site::Site;
use stage::{Copied, OtherUser, Stage};

const SEALED: &str = "etcd-k8s.db.zst.age";

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn kind(answer: &Value) -> &str {
    answer["error"]["kind"].as_str().unwrap()
}

fn flip_middle(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(path, bytes).unwrap();
}

#[test]
fn another_identity_opens_nothing() {
    let stage = Stage::shared();
    let copy = stage.copy();
    let other = copy.dir.path().join("other.txt");
    assert!(servers::stock("age-keygen").arg("-o").arg(&other).stderr(Stdio::null()).status().unwrap().success());
    for command in
        [&["verify", "--level", "open"][..], &["verify", "--level", "sound"], &["verify", "--all"], &["keys", "check"]]
    {
        let answer = copy.json(12, &[command, &["--identity", text(&other)]].concat());
        assert_eq!(kind(&answer), "wrong_identity", "{answer:#}");
        assert!(answer["error"]["message"].as_str().unwrap().contains(&stage.newer), "{answer:#}");
    }
    // That says nothing about the backup, so nothing is recorded against it.
    assert_eq!(copy.json(0, &["show", &stage.newer])["proofs"].as_array().unwrap().len(), 1);
    copy.json(0, &["verify", "--level", "digest", "--identity", text(&other)]);
    // Either of the recipients' identities opens it.
    copy.json(0, &["keys", "check", "--identity", text(&stage.site.path("second.txt"))]);
    // Damage is found with any identity: the digest is judged first, and a wrong key on top of it is still 12.
    flip_middle(&copy.newer(SEALED));
    copy.json(20, &["verify", &stage.newer, "--level", "open", "--identity", text(&other)]);
}

#[test]
fn without_an_identity_nothing_above_digest_is_proved() {
    let stage = Stage::shared();
    let copy = stage.copy();
    let nowhere = copy.dir.path().join("nowhere.txt");
    let nowhere = text(&nowhere);
    for command in [&["verify", "--level", "open"][..], &["verify", "--level", "sound"], &["keys", "check"]] {
        let answer = copy.json(12, &[command, &["--identity", nowhere]].concat());
        assert_eq!(kind(&answer), "no_identity", "{answer:#}");
        assert!(answer["error"]["message"].as_str().unwrap().contains(nowhere), "{answer:#}");
    }
    let nonsense = copy.dir.path().join("nonsense.txt");
    fs::write(&nonsense, "not a key\n").unwrap();
    fs::set_permissions(&nonsense, Permissions::from_mode(0o600)).unwrap();
    copy.json(12, &["verify", "--level", "open", "--identity", text(&nonsense)]);
    // Without a level it is the highest that the identity at hand allows.
    let verify = copy.json(0, &["verify", "--identity", nowhere]);
    assert_eq!(verify["level"], "digest");
    assert_eq!(copy.json(0, &["verify"])["level"], "sound");
}

#[test]
fn what_is_not_there_comes_before_what_cannot_be_opened() {
    let stage = Stage::shared();
    let copy = stage.copy();
    let unknown = "20260101T020000Z-0000";
    for command in [&["verify", unknown][..], &["show", unknown], &["verify", unknown, "--identity", "/nowhere"]] {
        let answer = copy.json(10, command);
        assert_eq!(kind(&answer), "no_backup", "{answer:#}");
        assert!(answer["error"]["message"].as_str().unwrap().contains(unknown), "{answer:#}");
    }
    let answer = copy.json(10, &["verify", unknown, "--level", "open", "--identity", "/nowhere"]);
    assert_eq!(kind(&answer), "no_backup", "{answer:#}");
    for garbage in ["nonsense", "../etc", "20260101T020000Z", "latest2"] {
        for command in ["verify", "show"] {
            let answer = copy.json(2, &[command, garbage]);
            assert!(answer["error"]["message"].as_str().unwrap().contains(garbage), "{answer:#}");
        }
    }
    for level in ["none", "nonsense", "boot", "serve"] {
        copy.json(2, &["verify", "--level", level]);
    }
}

#[test]
fn an_empty_store_has_nothing_to_verify() {
    let stage = Stage::shared();
    let copy = stage.copy();
    let empty = copy.dir.path().join("empty");
    let on = |arguments: &[&str]| {
        let mut command = copy.stage.site.command(arguments);
        site::Answer::from(command.args(["--store", text(&empty), "--output", "json"]).output().unwrap())
    };
    assert_eq!(kind(&on(&["verify"]).expect_code(10).json()), "no_store");
    on(&["init"]).expect_code(0);
    for command in [&["verify"][..], &["verify", "--all"], &["show"], &["keys", "check"]] {
        assert_eq!(kind(&on(command).expect_code(10).json()), "no_backup", "{command:?}");
    }
    assert_eq!(on(&["list"]).expect_code(0).json()["backups"], json!([]));
    fs::remove_file(empty.join(".etcd-dr-store.json")).unwrap();
    fs::remove_file(empty.join(".etcd-dr-journal.json")).unwrap();
    assert_eq!(kind(&on(&["verify"]).expect_code(10).json()), "not_initialised");
}

#[test]
fn all_are_judged_and_one_that_does_not_hold_is_enough() {
    let stage = Stage::shared();
    let copy = stage.copy();
    let verify = copy.json(0, &["verify", "--all"]);
    assert_eq!((&verify["ok"], &verify["results"].as_array().unwrap().len()), (&json!(true), &2));
    flip_middle(&copy.older(SEALED));
    let verify = copy.json(20, &["verify", "--all"]);
    let results = verify["results"].as_array().unwrap();
    let verdicts: Vec<_> = results.iter().map(|result| (&result["id"], &result["ok"])).collect();
    assert_eq!(verdicts, [(&json!(stage.older), &json!(false)), (&json!(stage.newer), &json!(true))]);
    // The hint names the one to turn to.
    assert!(verify["error"]["hint"].as_str().unwrap().contains(&stage.newer), "{verify:#}");
    copy.json(0, &["verify"]);
    copy.json(2, &["verify", &stage.newer, "--all"]);
}

#[test]
fn each_verification_leaves_a_record_that_stock_minisign_accepts() {
    let stage = Stage::shared();
    let copy = stage.copy();
    copy.json(0, &["verify", &stage.newer, "--level", "digest"]);
    let proofs = copy.json(0, &["show", &stage.newer])["proofs"].clone();
    let proofs = proofs.as_array().unwrap();
    assert_eq!(proofs.len(), 2);
    for proof in proofs {
        assert_eq!(
            (&proof["counted"], &proof["problem"], &proof["record"]["ok"]),
            (&json!(true), &Value::Null, &json!(true))
        );
        let file = copy.newer(proof["file"].as_str().unwrap());
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o7777, 0o600);
        let mut minisign = servers::stock("minisign");
        let checked = minisign.args(["-V", "-P", &stage.site.public_key, "-m"]).arg(&file).output().unwrap();
        assert!(checked.status.success(), "{checked:?}");
    }
    let levels: Vec<_> = proofs.iter().map(|proof| proof["record"]["level"].as_str().unwrap()).collect();
    assert!(levels.contains(&"sound") && levels.contains(&"digest"), "{levels:?}");
}

#[test]
fn a_later_failure_lowers_the_level_until_a_later_pass() {
    let stage = Stage::shared();
    let copy = stage.copy();
    let id = stage.newer.as_str();
    let level = |copy: &Copied| copy.listed(id)["proof"].clone();
    assert_eq!(level(&copy), "sound");
    let whole = fs::read(copy.newer(SEALED)).unwrap();
    flip_middle(&copy.newer(SEALED));
    copy.json(20, &["verify", id, "--level", "sound"]);
    assert_eq!(level(&copy), "none");
    let show = copy.json(0, &["show", id]);
    assert_eq!(show["level"], "none");
    let failed = show["proofs"].as_array().unwrap().iter().find(|proof| proof["record"]["ok"] == false);
    let files = failed.unwrap_or_else(|| panic!("{show:#}"))["record"]["files"].as_array().unwrap();
    assert!(files.iter().any(|file| file["file"] == SEALED && file["ok"] == false), "{show:#}");
    assert!(copy.run(&["show", id]).stdout.contains("sound FAILED"));
    // Repaired: the failure is not hidden by the file alone, nor by a proof below the one that failed.
    fs::write(copy.newer(SEALED), whole).unwrap();
    assert_eq!(level(&copy), "none");
    later();
    for below in ["digest", "open"] {
        copy.json(0, &["verify", id, "--level", below]);
        assert_eq!(level(&copy), "none", "{below}");
        later();
    }
    copy.json(0, &["verify", id, "--level", "sound"]);
    assert_eq!(level(&copy), "sound");
}

/// Records of one second are read with the failure last.
fn later() {
    std::thread::sleep(std::time::Duration::from_millis(1100));
}

#[test]
fn no_policy_and_no_root_are_needed() {
    let stage = Stage::shared();
    let copy = stage.copy();
    copy.give_away();
    let user = OtherUser::new();
    let identity = user.own(&stage.site.path("identity.txt"));
    let (store, key) = (text(&copy.store), stage.site.public_key.as_str());
    let on = ["--store", store, "--public-key", key, "--identity", text(&identity), "--output", "json"];
    let run = |command: &[&str]| user.run(&[command, &on].concat());
    let verify = run(&["verify"]).expect_code(0).json();
    assert_eq!((&verify["ok"], &verify["level"]), (&json!(true), &json!("sound")));
    run(&["verify", "--all", "--level", "digest", "--max-age", "26h"]).expect_code(0);
    assert_eq!(run(&["list"]).expect_code(0).json()["backups"].as_array().unwrap().len(), 2);
    run(&["show", &stage.newer]).expect_code(0);
    run(&["keys", "check"]).expect_code(0);
    // He has no signing key, so there is no new record.
    assert_eq!(site::names(&copy.newer("proofs")).len(), 2);
    // Without a key to trust there is nothing to believe.
    let answer = user.run(&["verify", "--store", store, "--output", "json"]).expect_code(2).json();
    assert_eq!(kind(&answer), "no_trusted_key");
    assert!(answer["error"]["hint"].as_str().unwrap().contains("--public-key"), "{answer:#}");
    flip_middle(&copy.newer(SEALED));
    run(&["verify"]).expect_code(20);
}

#[test]
fn a_policy_that_this_user_may_not_read_is_said() {
    let stage = Stage::shared();
    let copy = stage.copy();
    copy.give_away();
    let user = OtherUser::new();
    let policy = stage.site.path("policy.toml");
    let answer = user.run(&["verify", "--policy", text(&policy), "--output", "json"]).expect_code(2).json();
    assert!(answer["error"]["message"].as_str().unwrap().contains(text(&policy)), "{answer:#}");
}

/// As an old cron line does it, with the times that it goes by set back.
fn set_back(path: &Path) {
    let touched =
        Command::new("find").arg(path).args(["-exec", "touch", "-h", "-d", "10 days ago", "{}", "+"]).status();
    assert!(touched.unwrap().success());
}

fn find_delete(store: &Path) {
    let found = Command::new("find").arg(store).args(["-mtime", "+5", "-delete"]).output().unwrap();
    // It cannot remove a directory in which something young is left; that is its own error.
    drop(found);
}

#[test]
fn what_find_deleted_is_named_and_init_recovers() {
    let stage = Stage::shared();
    let copy = stage.copy();
    set_back(&copy.older(""));
    set_back(&copy.store.join(".etcd-dr-store.json"));
    find_delete(&copy.store);
    assert!(!copy.older("backup.json").exists() && copy.newer("backup.json").exists());
    // The marker is as old as the store and goes with the backup.
    for command in ["verify", "backup", "list"] {
        let answer = copy.json(10, &[command]);
        assert_eq!(kind(&answer), "marker_gone", "{answer:#}");
        let message = answer["error"]["message"].as_str().unwrap();
        assert!(message.contains(&stage.older) && message.contains("something deletes files here"), "{message}");
    }
    let init = copy.run(&["init"]).expect_code(0);
    assert!(init.stderr.contains(&stage.older), "{}", init.stderr);
    let backup = copy.json(3, &["backup"]);
    assert_eq!(backup["findings"][0]["kind"], "backup_vanished", "{backup:#}");
    assert_eq!(backup["findings"][0]["name"], stage.older.as_str());
    assert_eq!((&backup["proof"], &backup["partial"]), (&json!("sound"), &json!(false)));
    copy.json(0, &["show", backup["id"].as_str().unwrap()]);
}

#[test]
fn a_backup_that_vanished_is_named_by_verify_and_by_backup() {
    let stage = Stage::shared();
    let copy = stage.copy();
    set_back(&copy.older(""));
    find_delete(&copy.store);
    let verify = copy.json(20, &["verify"]);
    assert_eq!(verify["findings"][0]["name"], stage.older.as_str(), "{verify:#}");
    assert!(verify["error"]["message"].as_str().unwrap().contains(&stage.older));
    assert_eq!(copy.json(0, &["list"])["findings"][0]["name"], json!(stage.older));
    let backup = copy.json(3, &["backup"]);
    assert_eq!(backup["findings"][0]["name"], stage.older.as_str(), "{backup:#}");
    assert!(backup["error"]["hint"].as_str().unwrap().contains("etcd-dr init"), "{backup:#}");
    // Some files of a backup alone: those are named.
    let copy = stage.copy();
    set_back(&copy.older("RECOVERY.md"));
    set_back(&copy.older(SEALED));
    find_delete(&copy.store);
    let verify = copy.json(20, &["verify", "--all"]);
    let message = verify["error"]["message"].as_str().unwrap();
    for file in ["RECOVERY.md", SEALED] {
        assert!(message.contains(&format!("{}/{file}: is missing", stage.older)), "{message}");
    }
    let backup = copy.json(3, &["backup"]);
    let findings = backup["findings"].as_array().unwrap();
    for file in ["RECOVERY.md", SEALED] {
        let name = format!("{}/{file}", stage.older);
        assert!(findings.iter().any(|finding| finding["kind"] == "file_missing" && finding["name"] == name.as_str()));
    }
}

#[test]
fn a_store_that_was_deleted_whole_is_no_new_beginning() {
    let stage = Stage::shared();
    let copy = stage.copy();
    set_back(&copy.store);
    find_delete(&copy.store);
    for command in ["verify", "backup"] {
        copy.json(10, &[command]);
    }
    assert_eq!(site::names(copy.dir.path()), Vec::<String>::new());
}

/// Version 0.1.0 asked nobody for HashKV, as a policy of today that proves `open`: the files of the members are held against each other.
#[test]
fn files_without_answers_are_compared_with_each_other() {
    let cluster = Cluster::start(3, Options::default());
    fill::homelab(&cluster.client(0));
    let site = Site::new(&cluster);
    site.change_policy("[backup]\n", "[backup]\nprove = \"open\"\n");
    site.write_policy(&(site.policy() + "[retention]\nmin_proof = \"open\"\n"));
    let report = site.run(&["backup", "--output", "json"]).expect_code(0).json();
    assert_eq!((&report["proof"], &report["agreement"]), (&json!("open"), &Value::Null));
    assert!(report["members"].as_array().unwrap().iter().all(|member| member["hash_kv"].is_null()));
    for arguments in [&["verify", "--output", "json"][..], &["verify", "--level", "sound", "--output", "json"]] {
        let verify = site.run(arguments).expect_code(0).json();
        assert_eq!(verify["results"][0]["level"], "sound", "{verify:#}");
    }
    let list = site.run(&["list", "--output", "json"]).expect_code(0).json();
    assert_eq!(list["backups"][0]["proof"], "sound");
}

/// One file alone has nothing to be compared with. Asked for `sound` that is no success, and nothing to hold against the backup either.
#[test]
fn what_cannot_be_compared_is_no_pass_and_no_failure() {
    let cluster = Cluster::start(1, Options::default());
    let site = Site::new(&cluster);
    site.change_policy("[backup]\n", "[backup]\nprove = \"open\"\n");
    site.write_policy(&(site.policy() + "[retention]\nmin_proof = \"open\"\n"));
    let id = site.backup();
    let verify = site.run(&["verify", "--level", "sound", "--output", "json"]).expect_code(20).json();
    assert_eq!((&verify["ok"], &verify["results"][0]["level"]), (&json!(false), &json!("open")));
    assert!(verify["error"]["message"].as_str().unwrap().contains("could not be compared"), "{verify:#}");
    let list = site.run(&["list", "--output", "json"]).expect_code(0).json();
    assert_eq!((&list["backups"][0]["id"], &list["backups"][0]["proof"]), (&json!(id), &json!("open")));
    site.run(&["verify"]).expect_code(0);
}
