//! A disk that is full: before the run, in the middle of it, and after one that was killed.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs,
    reason = "a failed test is a panic"
)]

mod mounts;
mod servers;
mod site;

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use mounts::{Mount, store_on};
use serde_json::json;
use servers::{
    etcd::{Cluster, Options},
    fill,
    preload::{self, Steps},
    proxy::{Fault, Proxy, Rule, SNAPSHOT},
};
use site::{Answer, Site};

const MIB: u64 = 1 << 20;

/// One member behind a proxy that counts.
fn counted() -> (Cluster, Proxy) {
    let (cluster, mut proxies) = Proxy::before_each(1, Options::default());
    fill::homelab(&cluster.client(0));
    (cluster, proxies.remove(0))
}

/// Puts the scratch into a directory of its own, beside the store and with room enough unless a test mounts something there.
fn scratch_aside(site: &Site) -> PathBuf {
    let dir = site.path("scratch");
    fs::create_dir(&dir).unwrap();
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o700)).unwrap();
    site.change_policy("[backup]\n", &format!("[backup]\nscratch_dir = \"{}\"\n", dir.display()));
    dir
}

/// A backup under the shim.
fn stepped(site: &Site, kill_at: Option<usize>) -> (std::process::Output, Vec<String>) {
    let log = site.path("steps.log");
    if log.exists() {
        fs::remove_file(&log).unwrap();
    }
    let mut command = site.command(&["backup", "--output", "json"]);
    Steps { kill_at, ..Steps::default() }.apply(&mut command, &log);
    (command.output().unwrap(), preload::steps(&log))
}

/// Exit 23, from a disk that ran full while it was written to.
#[track_caller]
fn assert_ran_full(site: &Site, answer: Answer) {
    let answer = answer.expect_code(23);
    let error = answer.json()["error"].clone();
    assert_eq!((&error["kind"], &error["code"]), (&json!("no_space"), &json!(23)));
    let message = error["message"].as_str().unwrap();
    assert!(message.contains(site.store().to_str().unwrap()) && message.contains("the disk ran full"), "{message}");
}

#[test]
fn a_disk_that_runs_full_in_the_middle_keeps_what_was_there_and_nothing_else() {
    let (cluster, proxy) = counted();
    let site = Site::new(&cluster);
    scratch_aside(&site);
    let tmpfs = store_on(&site, |at| Mount::tmpfs(at, 12));
    let earlier = site.backup();
    let names = site.store_names();
    fill::incompressible(&cluster.client(0), 24);
    let calls = proxy.calls(SNAPSHOT);

    // The estimate, from the small backup before, lets it through. How full it gets is watched from outside.
    let ended = AtomicBool::new(false);
    let (output, steps, least) = thread::scope(|scope| {
        let watch = scope.spawn(|| {
            let mut least = u64::MAX;
            while !ended.load(Ordering::Relaxed) {
                least = least.min(tmpfs.free());
            }
            least
        });
        let (output, steps) = stepped(&site, None);
        ended.store(true, Ordering::Relaxed);
        (output, steps, watch.join().unwrap())
    });
    assert_ran_full(&site, output.into());
    assert_eq!(proxy.calls(SNAPSHOT), calls + 1, "a full disk is no reason to ask the member again");
    assert_eq!(site.store_names(), names);
    assert!(least < MIB, "{least} bytes were free all the time");
    site.run(&["verify", &earlier, "--level", "sound"]).expect_code(0);

    // Killed before it could clean up, it leaves the disk full to the last byte.
    let unlink = steps.iter().find(|step| step.contains(" unlink ") && step.contains(".age")).expect("a removal");
    let step = unlink.split(' ').next().unwrap().parse().unwrap();
    let (output, _) = stepped(&site, Some(step));
    assert_eq!(output.status.signal(), Some(9), "{output:?}");
    assert_eq!(tmpfs.free(), 0);
    // Nor is there room for the number of the process in the lock.
    fs::remove_file(site.store().join(".lock")).unwrap();
    let mut filler = fs::File::create(site.store().join("filler")).unwrap();
    while filler.write(&[1; 4096]).is_ok() {}
    assert_eq!(tmpfs.free(), 0);

    // A verification has no room for its record, and verifies all the same.
    let answer = site.run(&["verify", &earlier, "--output", "json"]).expect_code(0).json();
    assert_eq!(answer["warnings"].as_array().unwrap().len(), 1, "{answer}");
    // The next run sweeps before it looks at the space: it gets as far as the one before.
    let calls = proxy.calls(SNAPSHOT);
    assert_ran_full(&site, site.run(&["backup", "--output", "json"]));
    assert_eq!(proxy.calls(SNAPSHOT), calls + 1);
    fs::remove_file(site.store().join("filler")).unwrap();
    assert_eq!(site.store_names(), names);
    assert!(tmpfs.free() > 8 * MIB);
    site.run(&["verify", "--all", "--level", "sound"]).expect_code(0);
}

#[test]
fn a_first_backup_that_does_not_fit_leaves_an_empty_store() {
    let (cluster, proxy) = counted();
    fill::incompressible(&cluster.client(0), 16);
    let site = Site::new(&cluster);
    scratch_aside(&site);
    // More than half of the database and the reserve, less than all of it.
    let tmpfs = store_on(&site, |at| Mount::tmpfs(at, 14));
    let (names, free) = (site.store_names(), tmpfs.free());
    assert_ran_full(&site, site.run(&["backup", "--output", "json"]));
    assert_eq!(proxy.calls(SNAPSHOT), 1);
    let with_lock: Vec<_> = site.store_names();
    assert_eq!((with_lock, site.backups()), (names, Vec::new()));
    assert!(free - tmpfs.free() < 64 << 10);
    site.run(&["verify"]).expect_code(10);
}

/// What `etcd-dr backup` says of a disk that has too little room for the scratch, in a run that asked no member for a stream.
#[track_caller]
fn assert_no_room(site: &Site, proxy: &Proxy, where_: &Path) {
    let calls = proxy.calls(SNAPSHOT);
    let answer = site.run(&["backup", "--output", "json"]).expect_code(23).json();
    assert_eq!(answer["error"]["kind"], "no_space");
    let message = answer["error"]["message"].as_str().unwrap();
    assert!(message.contains(where_.to_str().unwrap()), "{message}");
    assert_eq!(proxy.calls(SNAPSHOT), calls);
}

#[test]
fn a_scratch_that_does_not_fit_is_found_before_the_first_stream() {
    let (cluster, proxy) = counted();
    fill::incompressible(&cluster.client(0), 16);
    let site = Site::new(&cluster);
    // Room for what is sealed, not for a database beside it.
    let store = store_on(&site, |at| Mount::tmpfs(at, 24));
    assert_no_room(&site, &proxy, &site.store());
    let scratch = scratch_aside(&site);
    let small = Mount::tmpfs(&scratch, 8);
    assert_no_room(&site, &proxy, &scratch);
    assert_eq!(site.backups(), Vec::<String>::new());
    drop(small);
    let id = site.backup();
    assert!(store.free() < 12 * MIB, "it would have fitted");
    // Nor is there room to verify in the store; a backup that holds is not called bad for that.
    site.change_policy("scratch_dir", "# scratch_dir");
    site.run(&["verify", &id, "--level", "sound"]).expect_code(0);
}

#[test]
fn a_disk_that_runs_full_under_the_scratch_keeps_what_was_there() {
    let (cluster, proxy) = counted();
    let site = Site::new(&cluster);
    let scratch = scratch_aside(&site);
    let tmpfs = Mount::tmpfs(&scratch, 64);
    let earlier = site.backup();
    let names = site.store_names();
    fill::incompressible(&cluster.client(0), 16);
    // The space is gone once the stream has begun: the look at it was before.
    let calls = proxy.calls(SNAPSHOT);
    let slow = proxy.add(Rule::new(SNAPSHOT, Fault::Slow(Duration::from_millis(20))));
    let run = site.start(&["backup", "--output", "json"]);
    while slow.count() == 0 {
        thread::sleep(Duration::from_millis(1));
    }
    let filler = scratch.join("filler");
    let mut file = fs::File::create(&filler).unwrap();
    while file.write(&[1; 4096]).is_ok() {}
    assert!(tmpfs.free() < MIB);
    let answer = Answer::from(run.wait_with_output().unwrap()).expect_code(23);
    let error = answer.json()["error"].clone();
    let message = error["message"].as_str().unwrap();
    assert_eq!(error["kind"], "no_space");
    assert!(message.contains(scratch.to_str().unwrap()) && message.contains("the disk ran full"), "{message}");
    assert_eq!(proxy.calls(SNAPSHOT), calls + 1, "a full disk is no reason to ask the member again");
    assert_eq!((site.store_names(), site::names(&scratch)), (names, vec!["filler".to_owned()]));
    fs::remove_file(filler).unwrap();
    drop(file);
    proxy.heal();
    site.run(&["verify", &earlier, "--level", "sound"]).expect_code(0);
    site.backup();
}

#[test]
fn too_little_space_is_found_before_the_first_stream() {
    let (cluster, proxy) = counted();
    let site = Site::new(&cluster);
    let plan = || site.run(&["backup", "--dry-run", "--output", "json"]).expect_code(0).json();
    let first = plan();
    let database = first["members"][0]["db_bytes"].as_u64().unwrap();
    assert_eq!(first["needed_bytes"].as_u64().unwrap(), database / 2 + database + MIB);

    site.change_policy("reserve = \"1MiB\"", "reserve = \"900TiB\"");
    let answer = site.run(&["backup", "--output", "json"]).expect_code(23);
    let message = answer.json()["error"]["message"].as_str().unwrap().to_owned();
    assert!(message.contains(site.store().to_str().unwrap()) && message.contains("900 TiB"), "{message}");
    assert!(message.contains("the reserve is 900 TiB"), "{message}");
    assert_eq!((proxy.calls(SNAPSHOT), site.backups().len()), (0, 0));

    site.change_policy("900TiB", "1MiB");
    let report = site.run(&["backup", "--output", "json"]).expect_code(0).json();
    let sealed = report["members"][0]["sealed_bytes"].as_u64().unwrap();
    let next = plan();
    let database = next["members"][0]["db_bytes"].as_u64().unwrap();
    assert_eq!(next["needed_bytes"].as_u64().unwrap(), sealed / 10 * 13 + database + MIB);
    // A scratch on another disk needs no room in the store, and where nothing is examined there is none.
    scratch_aside(&site);
    assert_eq!(plan()["needed_bytes"].as_u64().unwrap(), sealed / 10 * 13 + MIB);
    site.change_policy("scratch_dir", "prove = \"open\"\n# scratch_dir");
    site.write_policy(&(site.policy() + "[retention]\nmin_proof = \"open\"\n"));
    assert_eq!(plan()["needed_bytes"].as_u64().unwrap(), sealed / 10 * 13 + MIB);
}
