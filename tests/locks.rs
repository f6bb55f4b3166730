//! One run at a time changes a store, and nothing goes away under a reader.
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

use std::fs::File;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use servers::{
    etcd::{Cluster, Options},
    fill,
    process::signal,
    proxy::{Fault, Proxy, Rule, SNAPSHOT},
};
use site::Site;

#[test]
fn a_second_run_at_once_names_the_first() {
    let (cluster, proxies) = Proxy::before_each(1, Options::default());
    fill::homelab(&cluster.client(0));
    let site = Site::new(&cluster);
    let earlier = site.backup();
    let slow = proxies[0].add(Rule::new(SNAPSHOT, Fault::Slow(Duration::from_millis(20))));
    let mut first = site.start(&["backup"]);
    let begun = Instant::now();
    while !site.backups().iter().any(|name| name.starts_with(".partial-")) {
        assert!(begun.elapsed() < Duration::from_secs(30) && first.try_wait().unwrap().is_none());
        thread::sleep(Duration::from_millis(5));
    }
    signal(&first, Signal::STOP);
    for command in ["backup", "prune"] {
        let answer = site.run(&[command]).expect_code(11);
        assert!(answer.stderr.contains(&format!("process {}", first.id())), "{answer:?}");
    }
    // Readers need no lock of the store.
    site.run(&["list"]).expect_code(0);
    site.run(&["verify", &earlier]).expect_code(0);
    signal(&first, Signal::CONT);
    let output = first.wait_with_output().unwrap();
    assert!(output.status.success() && slow.count() > 0, "{output:?}");
    proxies[0].heal();
    site.backup();
}

#[test]
fn what_a_reader_holds_is_not_pruned() {
    let cluster = Cluster::start(1, Options::default());
    fill::homelab(&cluster.client(0));
    let site = Site::new(&cluster);
    let old = site.backup();
    thread::sleep(Duration::from_millis(1100));
    let new = site.backup();
    thread::sleep(Duration::from_millis(1100));
    site.write_policy(&(site.policy() + "[retention]\nkeep_within = \"1s\"\nkeep_proved = 1\n"));
    let index = File::open(site.backup_dir(&old).join("backup.json")).unwrap();

    index.lock_shared().unwrap();
    let decisions = site.run(&["prune", "--output", "json"]).expect_code(0).json()["decisions"].clone();
    assert_eq!((&decisions[0]["action"], &decisions[0]["reasons"][0]), (&"keep".into(), &"in use".into()));
    assert_eq!(site.backups(), [old.clone(), new.clone()]);
    index.unlock().unwrap();

    // `verify` is such a reader: it waits for whoever holds the backup alone.
    index.lock().unwrap();
    let mut verify = site.start(&["verify", &old]);
    thread::sleep(Duration::from_millis(700));
    assert_eq!(verify.try_wait().unwrap(), None);
    index.unlock().unwrap();
    assert!(verify.wait().unwrap().success());

    site.run(&["prune"]).expect_code(0);
    assert_eq!(site.backups(), [new]);
    site.run(&["verify"]).expect_code(0);
}
