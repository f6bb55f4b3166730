//! Clusters that come back: real members boot from what was written, and what cannot be restored is refused in words.
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

use std::{
    fs,
    fs::File,
    os::unix::{fs::PermissionsExt as _, process::ExitStatusExt as _},
    path::{Path, PathBuf},
    sync::LazyLock,
    thread,
    time::Duration,
};

use serde_json::Value;
use servers::{
    ask,
    etcd::{Cluster, Options},
    fill,
    preload::{self, Steps},
    process,
};
use site::{Answer, Site, names};

const BUMP: i64 = 1_000_000_000;

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn error(answer: &Answer) -> String {
    let answer = answer.json();
    let error = &answer["error"];
    format!("{}\n{}", error["message"].as_str().unwrap(), error["hint"].as_str().unwrap_or_default())
}

/// Every member answers the HashKV that was computed for it, at the revision that was planned, before anything is written.
fn answer_as_planned(cluster: &Cluster, done: &Value) {
    for i in 0..cluster.len() {
        let answer = ask::hash_kv(&cluster.client(i), 0);
        assert_eq!(answer.revision, done["written"]["revision_after"].as_i64().unwrap(), "{}", cluster.name(i));
        assert_eq!(u64::from(answer.hash), done["written"]["hash_kv_after"].as_u64().unwrap(), "{}", cluster.name(i));
    }
}

#[test]
fn three_members_come_back_from_one_read_and_again_from_three_runs_with_one_plan() {
    let cluster = Cluster::start(3, Options::default());
    fill::homelab(&cluster.client(0));
    let site = Site::new(&cluster);
    let id = site.backup();
    let index = site.run(&["show", &id, "--output", "json"]).expect_code(0).json();
    let primary = index["members"].as_array().unwrap().iter().find(|m| m["name"] == index["primary"]).unwrap().clone();
    let out = site.path("out");

    let living =
        site.run(&["restore", "--snapshot", &id, "--all-members", "--output-dir", text(&out), "--output", "json"]);
    let living = living.expect_code(21);
    assert!(error(&living).contains("3 of 3 members"), "{living:?}");
    assert!(!out.exists());

    cluster.kill_all();
    let done = site
        .run(&["restore", "--snapshot", "latest", "--all-members", "--output-dir", text(&out), "--output", "json"])
        .expect_code(0)
        .json();
    assert_eq!(done["schema"], "etcd-dr/restore/v1");
    assert_eq!((done["source"].as_str(), done["bump"].as_i64()), (Some(id.as_str()), Some(BUMP)));
    assert_eq!(done["revision"], primary["revision"]);
    assert_eq!(done["source_sha256"], primary["plain_sha256"]);
    assert_eq!(done["written"]["hash_kv_at_snapshot"], primary["hash_kv"]);
    assert_eq!(names(&out), ["k8s", "k8s-cp2", "k8s-cp3"]);
    let bytes = |i: usize| fs::read(out.join(cluster.name(i)).join("member/snap/db")).unwrap();
    assert!(bytes(0) == bytes(1) && bytes(1) == bytes(2));
    for (path, mode) in
        [("k8s", 0o700), ("k8s/member", 0o700), ("k8s/member/wal", 0o700), ("k8s/member/snap/db", 0o600)]
    {
        assert_eq!(fs::metadata(out.join(path)).unwrap().permissions().mode() & 0o7777, mode, "{path}");
    }
    for i in 0..3 {
        cluster.launch_from(i, &out.join(cluster.name(i)), servers::Series::V3_6);
    }
    cluster.until_all_serve();
    answer_as_planned(&cluster, &done);

    // The store takes the restored cluster, whose id it learnt.
    let again = site.backup();
    let restored = site.run(&["show", &again, "--output", "json"]).expect_code(0).json();
    assert_eq!(restored["cluster_id"], done["cluster_id"]);
    assert_ne!(restored["cluster_id"], index["cluster_id"]);
    cluster.kill_all();

    // From the older backup once more, in place, a run for each: the newer one knows of revisions a billion beyond it.
    let plan = site.path("plan.json");
    let planned = site.run(&["restore", "--snapshot", &id, "--dry-run", "--output", "json"]).expect_code(0);
    fs::write(&plan, &planned.stdout).unwrap();
    let planned = planned.json();
    assert!(planned["bump"].as_i64().unwrap() >= 2 * BUMP, "{planned:#}");
    let mut last = Value::Null;
    for i in 0..3 {
        let dir = cluster.data_dir(i);
        let arguments = ["restore", "--plan", text(&plan), "--member", cluster.name(i), "--data-dir", text(&dir)];
        let refused = site.run(&[&arguments[..], &["--output", "json"]].concat()).expect_code(2);
        assert!(error(&refused).contains("--replace"), "{refused:?}");
        last = site.run(&[&arguments[..], &["--replace", "--output", "json"]].concat()).expect_code(0).json();
        assert_eq!(last["cluster_id"], planned["cluster_id"]);
        let aside = PathBuf::from(last["moved_aside"][0]["to"].as_str().unwrap());
        assert!(aside.join("member/snap/db").exists(), "{last:#}");
    }
    cluster.boot();
    answer_as_planned(&cluster, &last);
    site.backup();
    let leftovers: Vec<String> = names(&out).into_iter().filter(|name| name.starts_with('.')).collect();
    assert!(leftovers.is_empty(), "{leftovers:?}");
}

#[test]
fn a_lone_survivors_backup_brings_the_cluster_back_once_its_member_is_named() {
    let cluster = Cluster::start(3, Options::default());
    fill::homelab(&cluster.client(0));
    let site = Site::new(&cluster);
    cluster.kill_member(1);
    cluster.kill_member(2);
    let taken = site.run(&["backup", "--output", "json"]).expect_code(3).json();
    assert!(taken["primary"].is_null() && taken["partial"] == true, "{taken:#}");
    let id = taken["id"].as_str().unwrap();
    let recovery = fs::read_to_string(site.backup_dir(id).join("RECOVERY.md")).unwrap();
    assert!(recovery.contains("--snapshot . --from k8s --dry-run"), "{recovery}");
    site.run(&["verify", id, "--output", "json"]).expect_code(0);

    let out = site.path("out");
    let arguments = ["restore", "--snapshot", id, "--all-members", "--output-dir", text(&out), "--output", "json"];
    let refused = site.run(&arguments).expect_code(2);
    assert!(error(&refused).contains("no primary") && error(&refused).contains("`--from k8s`"), "{refused:?}");
    let gave_nothing = site.run(&[&arguments[..], &["--from", "k8s-cp2"]].concat()).expect_code(2);
    assert!(error(&gave_nothing).contains("`--from k8s`"), "{gave_nothing:?}");
    assert!(!out.exists());

    // It answers still, alone: no quorum, so that nothing newer can be written.
    let answer = site.run(&[&arguments[..], &["--from", "k8s"]].concat()).expect_code(0);
    assert!(answer.stderr.contains("k8s still answers"), "{answer:?}");
    let done = answer.json();
    assert_eq!(done["from"], "k8s");
    cluster.kill_all();
    for i in 0..3 {
        cluster.launch_from(i, &out.join(cluster.name(i)), servers::Series::V3_6);
    }
    cluster.until_all_serve();
    answer_as_planned(&cluster, &done);
    site.backup();
}

/// Puts one value; the words of the member where it refuses.
fn put(cluster: &Cluster, key: &str, bytes: usize) -> Result<(), String> {
    let (mut client, key) = (cluster.client(0), key.to_owned());
    let answer = servers::wait(async move { client.put(key, vec![b'x'; bytes], None).await });
    answer.map(drop).map_err(|error| error.to_string())
}

#[test]
fn a_full_databases_alarm_refuses_writes_until_it_is_left_out() {
    let quota = Options { extra_args: vec!["--quota-backend-bytes=4194304".to_owned()], ..Options::default() };
    let cluster = Cluster::start(1, quota);
    let words = (0..100).find_map(|i| put(&cluster, &format!("/registry/namespaces/{i}"), 200_000).err());
    assert!(words.expect("4 MiB are full").contains("space exceeded"));
    assert_eq!(ask::alarms(&cluster.client(0)).len(), 1);
    let site = Site::new(&cluster);
    let id = site.backup();
    let recovery = fs::read_to_string(site.backup_dir(&id).join("RECOVERY.md")).unwrap();
    assert!(recovery.contains("--snapshot . --clear-alarms --dry-run"), "{recovery}");
    cluster.kill_all();

    for (flags, alarms) in [(&[][..], 1), (&["--clear-alarms"][..], 0)] {
        let out = site.path(&format!("out-{alarms}"));
        let arguments = ["restore", "--snapshot", &id, "--all-members", "--output-dir", text(&out)];
        let answer = site.run(&[&arguments[..], flags].concat()).expect_code(0);
        assert!(answer.stdout.contains("NOSPACE"), "{answer:?}");
        assert_eq!(answer.stdout.contains("etcdctl alarm disarm"), alarms == 1, "{answer:?}");
        assert_eq!(answer.stderr.contains("--clear-alarms leaves it out"), alarms == 1, "{answer:?}");
        // With room again: 8 GiB.
        let restored = Cluster::planned(1, Options::default());
        restored.launch_from(0, &out.join("k8s"), servers::Series::V3_6);
        restored.until_all_serve();
        assert_eq!(ask::alarms(&restored.client(0)).len(), alarms);
        let written = put(&restored, "/registry/namespaces/after", 10);
        assert_eq!(written.is_err(), alarms == 1, "{written:?}");
    }
}

/// A single member with a snapshot of its own, which no test changes.
struct Single {
    cluster: Cluster,
    site: Site,
    id: String,
    snapshot: PathBuf,
}

static SINGLE: LazyLock<Single> = LazyLock::new(|| {
    let cluster = Cluster::start(1, Options::default());
    fill::homelab(&cluster.client(0));
    let site = Site::new(&cluster);
    let id = site.backup();
    let snapshot = site.path("snapshot.db");
    fs::write(&snapshot, ask::snapshot(&cluster.client(0))).unwrap();
    Single { cluster, site, id, snapshot }
});

impl Single {
    /// Refused with this code, in these words, and nothing made.
    #[track_caller]
    fn refused(&self, arguments: &[&str], code: i32, words: &[&str]) {
        let out = tempfile::tempdir().unwrap();
        let target = out.path().join("k8s.etcd");
        let mut all = vec!["restore", "--output", "json"];
        all.extend(arguments);
        if !arguments.contains(&"--data-dir") && !arguments.contains(&"--output-dir") {
            all.extend(["--data-dir", text(&target)]);
        }
        let answer = self.site.run(&all).expect_code(code);
        let said = error(&answer);
        for word in words {
            assert!(said.contains(word), "`{word}` is not in:\n{said}");
        }
        assert!(names(out.path()).is_empty(), "{:?}", names(out.path()));
    }
}

/// The arguments by which a file alone is restored.
fn alone<'a>(file: &'a Path, more: &[&'a str]) -> Vec<&'a str> {
    let always = ["--snapshot", text(file), "--allow-unsigned", "--member", "k8s", "--force"];
    always.into_iter().chain(more.iter().copied()).collect()
}

#[test]
fn a_file_alone_boots_and_its_leases_and_revisions_are_those_planned() {
    let single = &*SINGLE;
    let out = tempfile::tempdir().unwrap();
    let target = out.path().join("k8s.etcd");
    let mut arguments = alone(&single.snapshot, &["--data-dir", text(&target)]);
    let initial = single.cluster.initial_cluster();
    arguments.extend(["--initial-cluster", &initial, "--output", "json"]);
    let done = single.site.run(&[&["restore"], &arguments[..]].concat()).expect_code(0).json();
    let restored = Cluster::planned(1, Options::default());
    restored.launch_from(0, &target, servers::Series::V3_6);
    restored.until_all_serve();
    answer_as_planned(&restored, &done);
    let names = names(out.path());
    assert_eq!(names, ["k8s.etcd"]);
}

#[test]
fn what_is_no_snapshot_is_named() {
    let single = &*SINGLE;
    let dir = tempfile::tempdir().unwrap();
    let good = fs::read(&single.snapshot).unwrap();
    let write = |name: &str, bytes: &[u8]| {
        let path = dir.path().join(name);
        fs::write(&path, bytes).unwrap();
        path
    };
    let text_file = write("text", b"this is a note, not a database\n");
    single.refused(&alone(&text_file, &[]), 20, &["text"]);
    let gzip = write("gzip", b"\x1f\x8b\x08\0\0\0\0\0\0\x03 and so on");
    single.refused(&alone(&gzip, &[]), 20, &["gzip"]);
    single.refused(&alone(&write("empty", b""), &[]), 20, &["empty file"]);
    let cut = write("cut", &good[..good.len() / 2 / 4096 * 4096]);
    single.refused(&alone(&cut, &[]), 20, &["cut", "bytes"]);
    let bare = write("bare", &good[..good.len() - 32]);
    single.refused(&alone(&bare, &[]), 20, &["SHA-256 that etcd appends", "--skip-hash-check"]);
    let mut flipped = good.clone();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 1;
    let flipped = write("flipped", &flipped);
    single.refused(&alone(&flipped, &[]), 20, &["trailer says SHA-256"]);
    single.refused(&["--snapshot", "/nowhere/x.db", "--allow-unsigned"], 10, &["is not there"]);
    single.refused(&["--snapshot", "20260101T000000Z-0000"], 10, &["there is no backup"]);
    single.refused(
        &["--snapshot", text(&single.snapshot), "--member", "k8s"],
        2,
        &["nobody's signature", "--allow-unsigned"],
    );
    single.refused(&["--snapshot", text(dir.path())], 10, &["no backup"]);
    single.refused(&["--snapshot", &single.id, "--identity", "/nowhere"], 12, &["/nowhere"]);
    let other = dir.path().join("other.txt");
    single.site.run(&["keys", "generate", "--out", text(&other)]).expect_code(0);
    let wrong = ["--snapshot", &single.id, "--member", "k8s", "--force", "--identity", text(&other)];
    single.refused(&wrong, 12, &["none of those", "show"]);
    let foreign = Site::new(&single.cluster).public_key.clone();
    let foreign = ["--snapshot", single.id.as_str(), "--public-key", &foreign];
    single.refused(&foreign, 20, &["cannot be believed", "no trusted key"]);
}

#[test]
fn what_cannot_be_planned_is_named() {
    let single = &*SINGLE;
    let file = &single.snapshot;
    let refused = |more: &[&str], code: i32, words: &[&str]| single.refused(&alone(file, more), code, words);
    let nobody = ["--snapshot", text(file), "--allow-unsigned"];
    single.refused(&[&nobody[..], &["--member", "k9s"]].concat(), 2, &["no member is called k9s", "k8s  https://"]);
    single.refused(&nobody, 2, &["address of this host", "--member k8s"]);
    let two = "k8s=https://192.0.2.1:2380,b=https://192.0.2.2:2380";
    refused(
        &["--initial-cluster", two],
        2,
        &["2 members", "--dry-run --output json > plan.json", "--plan plan.json --member k8s"],
    );
    refused(&["--initial-cluster", "a=https://192.0.2.1:2380"], 2, &["does not name k8s"]);
    refused(&["--initial-cluster", "k8s=https://h:1,b=https://h:1"], 2, &["https://h:1"]);
    refused(&["--initial-cluster", "nonsense"], 2, &["nonsense"]);
    refused(&["--bump-revision", "9223372036854775000", "--mark-compacted"], 2, &["overflow"]);
    refused(&["--bump-revision", "5"], 2, &["--mark-compacted"]);
    refused(&["--mark-compacted"], 2, &["--bump-revision"]);
    refused(&["--from", "k9s", "--plan", "/nowhere"], 2, &["--plan"]);
    single.refused(&["--snapshot", &single.id, "--from", "k9s"], 2, &["no member k9s", "--from k8s"]);
    refused(&["--etcd-version", "3.7"], 2, &["3.4, 3.5, 3.6"]);

    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("note"), "keep me").unwrap();
    refused(&["--data-dir", text(dir.path())], 2, &["exists, and holds note", "--replace"]);
    assert_eq!(names(dir.path()), ["note"]);
    let running = single.cluster.data_dir(0);
    refused(&["--data-dir", text(&running), "--replace"], 11, &["a running etcd holds", "member/snap/db"]);
    let quorum = ["--snapshot", &single.id, "--member", "k8s"];
    single.refused(&quorum, 21, &["1 of 1 members", "--force"]);
    assert!(ask::hash_kv(&single.cluster.client(0), 0).revision > 1, "it still runs");
}

#[test]
fn a_stopped_members_database_restores_where_that_is_asked_for() {
    let single = &*SINGLE;
    let dir = tempfile::tempdir().unwrap();
    let bare = dir.path().join("db");
    let good = fs::read(&single.snapshot).unwrap();
    fs::write(&bare, &good[..good.len() - 32]).unwrap();
    let out = dir.path().join("out");
    let arguments = alone(&bare, &["--skip-hash-check", "--data-dir", text(&out), "--output", "json"]);
    let done = single.site.run(&[&["restore"], &arguments[..]].concat()).expect_code(0).json();
    let after = done["revision"].as_i64().unwrap() + BUMP;
    assert_eq!(done["written"]["revision_after"], after);
    assert!(out.join("member/snap/db").exists());
}

#[test]
fn a_mounted_or_shared_directory_keeps_what_is_not_etcds() {
    let single = &*SINGLE;
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("etcd");
    fs::create_dir_all(target.join("member/snap")).unwrap();
    fs::write(target.join("member/snap/db"), "old").unwrap();
    fs::write(target.join("note"), "keep me").unwrap();
    let arguments = alone(&single.snapshot, &["--replace", "--data-dir", text(&target), "--output", "json"]);
    let done = single.site.run(&[&["restore"], &arguments[..]].concat()).expect_code(0).json();
    let aside = PathBuf::from(done["moved_aside"][0]["to"].as_str().unwrap());
    assert_eq!(fs::read_to_string(aside.join("snap/db")).unwrap(), "old");
    assert_eq!(fs::read_to_string(target.join("note")).unwrap(), "keep me");
    let found = names(&target);
    assert_eq!((found.len(), found.contains(&"member".to_owned())), (3, true), "{found:?}");
}

/// What a kill left of a directory that held an old database.
fn left(target: &Path) -> &'static str {
    match fs::read(target.join("member/snap/db")) {
        Ok(bytes) if bytes == b"old" => "old",
        Ok(bytes) => {
            assert!(bytes.len() > 4096, "half a database");
            assert!(names(&target.join("member/snap")).len() == 2 && !names(&target.join("member/wal")).is_empty());
            "new"
        }
        Err(_) => "aside",
    }
}

#[test]
fn a_kill_at_any_step_leaves_the_old_or_the_new_and_the_next_run_sweeps() {
    let single = &*SINGLE;
    let run = |target: &Path, kill_at: Option<usize>, log: &Path| {
        let arguments = alone(&single.snapshot, &["--replace", "--data-dir", text(target), "--output", "json"]);
        let mut command = single.site.command(&[&["restore"], &arguments[..]].concat());
        Steps { kill_at, ..Steps::default() }.apply(&mut command, log);
        command.output().unwrap()
    };
    let mut seen = Vec::new();
    for step in 1.. {
        let dir = tempfile::tempdir().unwrap();
        let (target, log) = (dir.path().join("etcd"), dir.path().join("steps.log"));
        fs::create_dir_all(target.join("member/snap")).unwrap();
        fs::write(target.join("member/snap/db"), "old").unwrap();
        let output = run(&target, Some(step), &log);
        if output.status.signal() != Some(9) {
            assert!(output.status.success(), "{output:?}");
            assert!(preload::steps(&log).len() >= 8, "{:?}", preload::steps(&log));
            break;
        }
        seen.push(left(&target));
        let old = names(dir.path()).into_iter().find(|name| name.starts_with("etcd.etcd-dr-"));
        if left(&target) != "old" {
            let old = dir.path().join(old.expect("the old directory is kept")).join("member/snap/db");
            assert_eq!(fs::read(old).unwrap(), b"old");
        }
        // What stands there by now is moved aside in its turn, in another second than before.
        thread::sleep(Duration::from_secs(1));
        let again = run(&target, None, &log);
        assert!(again.status.success(), "after step {step}: {again:?}");
        assert_eq!(left(&target), "new", "after step {step}");
        let rests: Vec<String> = names(dir.path()).into_iter().filter(|name| name.starts_with('.')).collect();
        assert!(rests.is_empty(), "after step {step}: {rests:?}");
    }
    assert!(seen.contains(&"old") && seen.contains(&"new"), "{seen:?}");
}

#[test]
fn an_interrupted_restore_leaves_nothing() {
    let single = &*SINGLE;
    let mut interrupted = 0;
    for wait in (0..400).step_by(20) {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("made/for/it");
        let arguments = alone(&single.snapshot, &["--data-dir", text(&out), "--output", "json"]);
        let child = single.site.start(&[&["restore"], &arguments[..]].concat());
        thread::sleep(Duration::from_millis(wait));
        process::signal(&child, rustix::process::Signal::INT);
        let output = child.wait_with_output().unwrap();
        match output.status.code() {
            Some(0) => assert!(out.join("member/snap/db").exists()),
            // Before the signals are listened for, the kernel's own end.
            Some(130) | None => {
                interrupted += i32::from(output.status.code().is_some());
                assert!(names(dir.path()).is_empty(), "after {wait} ms: {:?}", names(dir.path()));
            }
            code => panic!("{code:?}: {output:?}"),
        }
    }
    assert!(interrupted > 0, "no signal came in time");
}

#[test]
fn two_restores_at_one_place_do_not_meet() {
    let single = &*SINGLE;
    let dir = tempfile::tempdir().unwrap();
    let (target, rest) = (dir.path().join("etcd"), dir.path().join(".partial-etcd-dr-restore-etcd"));
    fs::create_dir(&rest).unwrap();
    let lock = File::open(&rest).unwrap();
    lock.lock().unwrap();
    single.refused(&alone(&single.snapshot, &["--data-dir", text(&target)]), 11, &["another restore"]);
    drop(lock);
    let arguments = alone(&single.snapshot, &["--data-dir", text(&target)]);
    let answer = single.site.run(&[&["restore"], &arguments[..]].concat()).expect_code(0);
    assert!(answer.stderr.contains("swept"), "{answer:?}");
    assert_eq!(names(dir.path()), ["etcd"]);
    assert!(answer.stdout.contains("what is left to do") && answer.stdout.contains("--accept-cluster"), "{answer:?}");
}

#[test]
fn a_bit_that_turns_on_the_disk_is_seen_before_anything_has_its_name() {
    let single = &*SINGLE;
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let arguments =
        ["--snapshot", text(&single.snapshot), "--allow-unsigned", "--all-members", "--output-dir", text(&out)];
    let cluster = "k8s=https://192.0.2.1:2380,b=https://192.0.2.2:2380,c=https://192.0.2.3:2380";
    let more = ["--initial-cluster", cluster, "--force", "--output", "json"];
    let mut command = single.site.command(&[&["restore"], &arguments[..], &more].concat());
    let log = dir.path().join("steps.log");
    Steps { flip: Some("restore-c/new/member/snap/db".to_owned()), ..Steps::default() }.apply(&mut command, &log);
    let answer = Answer::from(command.output().unwrap()).expect_code(20);
    assert_eq!(preload::flips(&log).len(), 1);
    assert!(error(&answer).contains("gives back other bytes"), "{answer:?}");
    assert_eq!(names(dir.path()), ["steps.log"]);
}
