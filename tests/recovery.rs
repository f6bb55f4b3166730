//! `RECOVERY.md` is followed to the letter, with stock tools and no etcd-dr, until a cluster stands that has the data.
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

use std::fs;
use std::path::Path;

use servers::{
    etcd::{Cluster, Options},
    fill, stock,
};
use site::Site;

/// The shell blocks of one chapter, in order.
fn blocks(text: &str, chapter: &str) -> Vec<String> {
    let chapter = text.split("\n## ").find(|part| part.starts_with(chapter)).unwrap_or_else(|| panic!("no {chapter}"));
    chapter.split("```sh\n").skip(1).map(|block| block.split("```").next().unwrap().to_owned()).collect()
}

fn sh(script: &str, dir: &Path) -> String {
    let path = format!("{}:/usr/bin:/bin", servers::binaries().display());
    let output = stock("bash")
        .args(["-euo", "pipefail", "-c", script])
        .env("PATH", path)
        .env("TOKEN", "etcd-dr-recovery-test")
        .current_dir(dir)
        .output()
        .unwrap();
    assert!(output.status.success(), "{script}\n{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn followed_to_the_letter_it_brings_the_cluster_back() {
    let cluster = Cluster::start(3, Options::default());
    fill::homelab(&cluster.client(0));
    let site = Site::new(&cluster);
    let id = site.backup();
    let dir = site.backup_dir(&id);
    let text = fs::read_to_string(dir.join("RECOVERY.md")).unwrap();
    for i in 0..3 {
        assert!(text.contains(cluster.name(i)), "{text}");
    }
    for secret in [fill::SECRET, "AGE-SECRET-KEY"] {
        assert!(!text.contains(secret));
    }
    let before = keys(&cluster);
    assert!(before.len() > 50, "{before:#?}");

    // The disaster: every member is gone, and their data with them.
    for i in 0..3 {
        cluster.kill_member(i);
        sh(&format!("mv {} lost-{i}", cluster.data_dir(i).display()), cluster.dir());
    }
    let work = site.path("recovery");
    sh(&format!("cp -a {} {}", dir.display(), work.display()), site.path(".").as_path());
    fs::copy(site.path("second.txt"), work.join("identity.txt")).unwrap();
    // A file of that name in /dev/shm may be another's: zstd would not write over it, and the test would remove it. The commands are the
    // text's otherwise.
    assert!(text.contains("-o /dev/shm/snapshot.db\n"), "{text}");
    let opened = site.path("snapshot.db");
    let here = |block: &str| block.replace("/dev/shm/snapshot.db", opened.to_str().unwrap());
    for block in blocks(&text, "1. Check").into_iter().chain(blocks(&text, "2. Open")) {
        sh(&here(&block), &work);
    }
    let restores = blocks(&text, "4. Restore");
    assert_eq!(restores.len(), 3);
    for block in restores {
        let i = (0..3).find(|i| block.contains(&format!("--name {} ", cluster.name(*i)))).unwrap();
        let data_dir = cluster.data_dir(i);
        fs::create_dir_all(&data_dir).unwrap();
        // Three nodes' paths on one machine.
        let target = site.path(&format!("restored-{i}"));
        let block = here(&block)
            .replace("/var/lib/etcd-restored", target.to_str().unwrap())
            .replace("/var/lib/etcd/", &format!("{}/", data_dir.display()));
        sh(&block, &work);
    }
    cluster.boot();
    assert_eq!(keys(&cluster), before);

    // It is another cluster now, and the store says so until a person accepts it.
    let refused = site.run(&["backup", "--output", "json"]).expect_code(2).json();
    let hint = refused["error"]["hint"].as_str().unwrap();
    let accept = hint.split('`').nth(1).unwrap().strip_prefix("etcd-dr ").unwrap().to_owned();
    site.run(&accept.split(' ').collect::<Vec<_>>()).expect_code(0);
    let next = site.backup();
    assert_ne!(next, id);
    site.run(&["verify", "--all"]).expect_code(0);
}

/// The keys below `/registry/` in order, without those under the leases that end while a slow machine restores.
fn keys(cluster: &Cluster) -> Vec<String> {
    let output = cluster.etcdctl().args(["get", "/registry/", "--prefix", "--keys-only"]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let keys = String::from_utf8(output.stdout).unwrap();
    let lasts = |key: &&str| !key.is_empty() && !key.starts_with("/registry/masterleases/");
    keys.lines().filter(lasts).map(str::to_owned).collect()
}
