//! The proof is made on what the disk gives back, not on what was handed to it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs,
    reason = "a failed test is a panic"
)]
#![allow(clippy::print_stdout, reason = "what was counted belongs to the evidence")]

mod mounts;
mod servers;
mod site;

use std::fs;
use std::path::PathBuf;
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use mounts::{Mount, store_on};
use rustix::process::{Pid, WaitId, WaitIdOptions};
use serde_json::{Value, json};
use servers::{
    etcd::{Cluster, Options},
    fill,
    preload::{self, Steps},
    proxy::{Proxy, SNAPSHOT},
};
use site::{Answer, Site};

/// A backup in which a bit of the sealed file turns behind its fsync; gives the answer and the files that were hit.
fn flipped(site: &Site, count: usize) -> (Answer, Vec<String>) {
    let log = site.path("steps.log");
    let mut command = site.command(&["backup", "--output", "json"]);
    Steps { flip: Some(".db.zst.age".to_owned()), flip_count: Some(count), ..Steps::default() }
        .apply(&mut command, &log);
    (command.output().unwrap().into(), preload::flips(&log))
}

fn counted() -> (Cluster, Proxy) {
    let (cluster, mut proxies) = Proxy::before_each(1, Options::default());
    fill::homelab(&cluster.client(0));
    (cluster, proxies.remove(0))
}

#[test]
fn a_file_that_the_disk_changed_once_is_taken_once_more() {
    let (cluster, proxy) = counted();
    let site = Site::new(&cluster);
    let (answer, flips) = flipped(&site, 1);
    let report = answer.expect_code(0).json();
    assert_eq!((flips.len(), proxy.calls(SNAPSHOT)), (1, 2));
    assert_eq!((&report["proof"], &report["findings"]), (&json!("sound"), &json!([])));
    site.run(&["verify", "--level", "sound"]).expect_code(0);
}

#[test]
fn a_file_that_the_disk_changes_every_time_proves_nothing() {
    let (cluster, proxy) = counted();
    let site = Site::new(&cluster);
    let old = [site.backup(), site.backup()];
    site.write_policy(&(site.policy() + "[retention]\nkeep_within = \"1s\"\nkeep_proved = 1\n"));
    thread::sleep(Duration::from_millis(2100));
    let calls = proxy.calls(SNAPSHOT);
    let (answer, flips) = flipped(&site, 1000);
    assert_eq!((flips.len(), proxy.calls(SNAPSHOT)), (2, calls + 2));
    let report = answer.expect_code(20).json();
    let member = &report["members"][0];
    assert_eq!((&report["proof"], &report["primary"]), (&json!("none"), &json!(null)));
    assert_eq!((&member["proof"], &member["reread"]), (&json!("none"), &json!(null)));
    assert_eq!(report["findings"][0]["kind"], "file_changed");
    assert_eq!(report["retention"], json!(null));
    // It is kept, and so is all that a good backup would have replaced.
    let id = report["id"].as_str().unwrap();
    let file = site.backup_dir(id).join(member["file"].as_str().unwrap());
    assert_eq!(fs::metadata(file).unwrap().len(), member["sealed_bytes"].as_u64().unwrap());
    let mut expected = vec![old[0].clone(), old[1].clone(), id.to_owned()];
    expected.sort();
    assert_eq!(site.backups(), expected);
    let list = site.run(&["list", "--output", "json"]).expect_code(0).json();
    let proofs: Vec<&Value> = list["backups"].as_array().unwrap().iter().map(|backup| &backup["proof"]).collect();
    assert_eq!(proofs, [&json!("sound"), &json!("sound"), &json!("none")]);
    for level in ["digest", "open", "sound"] {
        site.run(&["verify", id, "--level", level]).expect_code(20);
        site.run(&["verify", &old[1], "--level", level]).expect_code(0);
    }
}

/// Runs a backup and gives its report and the bytes that it had the kernel read from a device, taken when it has ended and before it is reaped.
fn backup_and_reads(site: &Site) -> (Value, u64) {
    let child =
        site.command(&["backup", "--output", "json"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
    rustix::process::waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT).unwrap();
    let io = fs::read_to_string(PathBuf::from(format!("/proc/{}/io", child.id()))).unwrap();
    let read = io.lines().find_map(|line| line.strip_prefix("read_bytes: ")).unwrap().parse().unwrap();
    let answer = Answer::from(child.wait_with_output().unwrap()).expect_code(0);
    (answer.json(), read)
}

fn sealed_bytes(report: &Value) -> u64 {
    report["members"].as_array().unwrap().iter().map(|member| member["sealed_bytes"].as_u64().unwrap()).sum()
}

#[test]
fn on_a_disk_the_proof_reads_the_device() {
    let cluster = Cluster::start(1, Options::default());
    fill::incompressible(&cluster.client(0), 24);
    let site = Site::new(&cluster);
    let _ext4 = store_on(&site, |at| Mount::ext4(at, 128));
    let (report, read) = backup_and_reads(&site);
    let sealed = sealed_bytes(&report);
    assert_eq!((&report["proof"], &report["members"][0]["reread"]), (&json!("sound"), &json!("device")));
    println!("{sealed} sealed bytes, {read} read from the device");
    assert!(sealed > 20 << 20 && read >= sealed, "{sealed} sealed, {read} read");
}

#[test]
fn in_memory_the_proof_says_that_it_read_a_cache() {
    let cluster = Cluster::start(1, Options::default());
    fill::incompressible(&cluster.client(0), 24);
    let site = Site::new(&cluster);
    let _tmpfs = store_on(&site, |at| Mount::tmpfs(at, 64));
    let (report, read) = backup_and_reads(&site);
    assert_eq!((&report["proof"], &report["members"][0]["reread"]), (&json!("sound"), &json!("cache")));
    // What is counted on the ext4 is the proof's, and not the program's own pages.
    assert!(read < sealed_bytes(&report) / 2, "{read} read");
}
