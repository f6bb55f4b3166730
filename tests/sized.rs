//! A database of a Kubernetes cluster's size: the same proofs, the official tool's numbers, and memory that follows the rows and not the file.
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
    path::Path,
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use serde_json::Value;
use servers::{
    Series, ask,
    etcd::{Cluster, Options},
    fill,
    kubernetes::{Compaction, Kubernetes},
    offline, stock,
};
use site::{Answer, BINARY, Site};

const MIB: u64 = 1 << 20;

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Runs the binary at a site and gives the most memory that it held, in bytes, as of a few milliseconds before its end.
fn measured(site: &Site, arguments: &[&str]) -> (Answer, u64) {
    let [out, err] = ["stdout", "stderr"].map(|name| site.path(name));
    let file = |path: &Path| Stdio::from(fs::File::create(path).unwrap());
    let mut child = site.command(arguments).stdin(Stdio::null()).stdout(file(&out)).stderr(file(&err)).spawn().unwrap();
    let status = format!("/proc/{}/status", child.id());
    let mut peak = 0;
    let code = loop {
        // The kernel's own high-water mark, which is gone with the process.
        let line = fs::read_to_string(&status).unwrap_or_default();
        let held = line.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.parse().ok());
        peak = held.map_or(peak, |kib: u64| kib * 1024);
        match child.try_wait().unwrap() {
            Some(status) => break status.code().unwrap_or(-1),
            None => thread::sleep(Duration::from_millis(2)),
        }
    };
    assert!(peak > 0, "it was seen alive");
    let [stdout, stderr] = [out, err].map(|path| fs::read_to_string(path).unwrap());
    (Answer { code, stdout, stderr }, peak)
}

/// The file as stock tools open it.
fn opened(site: &Site, id: &str, to: &Path) {
    let sealed = site.backup_dir(id).join("etcd-k8s.db.zst.age");
    let zst = site.path("opened.zst");
    let identity = site.path("identity.txt");
    let age = stock("age").args(["-d", "-i", text(&identity), "-o"]).arg(&zst).arg(&sealed).status().unwrap();
    let zstd = stock("zstd").args(["-q", "-d", "-o"]).arg(to).arg(&zst).status().unwrap();
    assert!(age.success() && zstd.success());
}

#[test]
fn a_hundred_thousand_keys_and_a_compaction_in_progress() {
    // A compaction that goes so slowly that it outlives the test.
    let extra_args = ["--compaction-batch-limit=100", "--compaction-sleep-interval=1s"].map(String::from).to_vec();
    let cluster = Cluster::start(1, Options { extra_args, ..Options::default() });
    let profile = Kubernetes { keys: 100_000, seed: 4, compaction: Compaction::Begun };
    let filled = fill::kubernetes(&cluster.client(0), profile);
    let site = Site::new(&cluster);
    site.change_policy("_timeout = \"2s\"", "_timeout = \"60s\"");

    let (answer, backup_peak) = measured(&site, &["backup", "--output", "json"]);
    let report = answer.expect_code(0).json();
    assert_eq!((&report["proof"], &report["agreement"]), (&"sound".into(), &"single".into()), "{report:#}");
    let id = report["id"].as_str().unwrap();
    let verified = measured(&site, &["verify", "--level", "sound", "--output", "json"]).0.expect_code(0).json();
    assert_eq!(verified["results"][0]["level"], "sound");

    let plain = site.path("opened.db");
    opened(&site, id, &plain);
    let mut inspect = Command::new(BINARY);
    inspect.env_clear().current_dir("/").args(["inspect", "--output", "json", text(&plain)]);
    let inspected = Answer::from(inspect.output().unwrap()).expect_code(0).json();
    let output = offline(Series::V3_6).args(["snapshot", "status", "-w", "json"]).arg(&plain).output().unwrap();
    let status: Value = serde_json::from_slice(&output.stdout).unwrap();
    for (ours, theirs) in
        [("status_hash", "hash"), ("revision", "revision"), ("total_keys", "totalKey"), ("total_size", "totalSize")]
    {
        assert_eq!(inspected[ours], status[theirs], "{ours}");
    }
    assert_eq!(inspected["total_keys"], profile.live());
    assert_eq!(
        (&inspected["revision"], &inspected["compact_revision"]),
        (&filled.revision.into(), &filled.compacted.into())
    );
    let warnings = inspected["warnings"].to_string();
    assert!(warnings.contains(&format!("a compaction at revision {} is not finished", filled.compacted)), "{warnings}");
    assert!(inspected["leases"].as_array().unwrap().len() >= 20, "{}", inspected["leases"]);
    assert!(inspected["largest"][0]["bytes"].as_u64().unwrap() > 1_000_000);

    cluster.kill_all();
    let out = site.path("out");
    let arguments = ["restore", "--snapshot", id, "--all-members", "--output-dir", text(&out), "--output", "json"];
    let (answer, restore_peak) = measured(&site, &arguments);
    let done = answer.expect_code(0).json();
    cluster.launch_from(0, &out.join("k8s"), Series::V3_6);
    cluster.until_all_serve();
    let answer = ask::hash_kv(&cluster.client(0), 0);
    assert_eq!(answer.revision, filled.revision + done["bump"].as_i64().unwrap());
    assert_eq!(u64::from(answer.hash), done["written"]["hash_kv_after"].as_u64().unwrap());

    // What is held for each row, and for each key that lives, beside what any backup takes.
    let rows = inspected["total_rows"].as_u64().unwrap();
    let keys = 20 * rows + 150 * inspected["total_keys"].as_u64().unwrap();
    assert!(backup_peak < 64 * MIB + keys, "backup: {} MiB", backup_peak / MIB);
    assert!(restore_peak < 128 * MIB + keys, "restore: {} MiB", restore_peak / MIB);
}
