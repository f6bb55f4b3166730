//! `RECOVERY.md` is followed to the letter, with stock tools and no etcd-dr, and with etcd-dr and no policy, until a cluster stands that has
//! the data.
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
    Series,
    etcd::{Cluster, Options},
    fill, stock,
};
use site::Site;

/// The shell blocks of one chapter, in order.
fn blocks(text: &str, chapter: &str) -> Vec<String> {
    let chapter = text.split("\n## ").find(|part| part.starts_with(chapter)).unwrap_or_else(|| panic!("no {chapter}"));
    chapter.split("```sh\n").skip(1).map(|block| block.split("```").next().unwrap().to_owned()).collect()
}

/// Runs a block as it stands, with the stock tools and etcd-dr at hand, and no policy of etcd-dr's.
fn sh(series: Series, script: &str, dir: &Path) -> String {
    let product = Path::new(site::BINARY).parent().unwrap();
    let path = format!("{}:{}:/usr/bin:/bin", servers::binaries_of(series).display(), product.display());
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

/// A cluster with data, one backup of it, and what its members then suffered: all are killed, and their data directories are left.
struct Disaster {
    cluster: Cluster,
    site: Site,
    id: String,
    text: String,
    before: Vec<String>,
}

impl Disaster {
    fn of_three(series: Series) -> Self {
        let cluster = Cluster::start(3, Options { series, ..Options::default() });
        fill::homelab(&cluster.client(0));
        let site = Site::new(&cluster);
        let id = site.backup();
        let text = fs::read_to_string(site.backup_dir(&id).join("RECOVERY.md")).unwrap();
        let before = keys(&cluster);
        assert!(before.len() > 50, "{before:#?}");
        cluster.kill_all();
        Self { cluster, site, id, text, before }
    }

    /// The member that a block restores.
    fn member(&self, block: &str, flag: &str) -> usize {
        (0..3).find(|i| block.contains(&format!("{flag} {} ", self.cluster.name(*i)))).unwrap()
    }

    /// One machine has three hosts' paths, and a file of such a name in /dev/shm may be another's.
    fn here(&self, block: &str, i: usize) -> String {
        let path = |name: &str| self.site.path(name).to_str().unwrap().to_owned();
        block
            .replace("/dev/shm/snapshot.db", &path("snapshot.db"))
            .replace("/dev/shm/identity.txt", &path("second.txt"))
            .replace("/root/plan.json", &path("plan.json"))
            .replace("/var/lib/etcd-restored", &path(&format!("restored-{i}")))
            .replace("/var/lib/etcd-old-", &path(&format!("old-{i}-")))
            .replace("/var/lib/etcd", self.cluster.data_dir(i).to_str().unwrap())
    }

    /// The members serve the same keys; it is another cluster now, and the store says so until a person accepts it.
    fn is_over(&self) {
        self.cluster.boot();
        assert_eq!(keys(&self.cluster), self.before);
        let site = &self.site;
        let refused = site.run(&["backup", "--output", "json"]).expect_code(2).json();
        let hint = refused["error"]["hint"].as_str().unwrap();
        let accept = hint.split('`').nth(1).unwrap().strip_prefix("etcd-dr ").unwrap().to_owned();
        site.run(&accept.split(' ').collect::<Vec<_>>()).expect_code(0);
        assert_ne!(site.backup(), self.id);
        site.run(&["verify", "--all"]).expect_code(0);
    }
}

#[test]
fn the_stock_way_followed_to_the_letter_brings_the_cluster_back() {
    the_stock_way(Series::V3_6);
}

#[test]
fn the_stock_way_of_etcd_3_4_does_so_too() {
    the_stock_way(Series::V3_4);
}

fn the_stock_way(series: Series) {
    let disaster = Disaster::of_three(series);
    let (text, site) = (&disaster.text, &disaster.site);
    for i in 0..3 {
        assert!(text.contains(disaster.cluster.name(i)), "{text}");
    }
    for secret in [fill::SECRET, "AGE-SECRET-KEY"] {
        assert!(!text.contains(secret));
    }
    // A copy under any name will do.
    let work = site.path("recovery");
    sh(series, &format!("cp -a {} {}", site.backup_dir(&disaster.id).display(), work.display()), &site.path("."));
    let mut blocks = blocks(text, "4. Or").into_iter();
    let opened = sh(series, &disaster.here(&blocks.next().unwrap(), 0), &work);
    let sha256 = opened.lines().find_map(|line| line.strip_suffix(site.path("snapshot.db").to_str()?)).unwrap().trim();
    assert!(text.contains(sha256), "{opened}\n{text}");
    let restores: Vec<String> = blocks.collect();
    assert_eq!(restores.len(), 3);
    for block in restores {
        let least = etcd_dr::plan::restore::LEAST_BUMP;
        let raised = block.contains(&format!("--bump-revision {least} --mark-compacted"));
        assert_eq!(raised, series > Series::V3_4, "{block}");
        let i = disaster.member(&block, "--name");
        sh(series, &disaster.here(&block, i), &work);
        let aside = site::names(&site.path(".")).into_iter().find(|name| name.starts_with(&format!("old-{i}-")));
        assert!(site.path(&aside.unwrap()).join("snap/db").exists());
    }
    disaster.is_over();
}

#[test]
fn etcd_drs_way_followed_to_the_letter_brings_the_cluster_back() {
    let series = Series::V3_6;
    let disaster = Disaster::of_three(series);
    let site = &disaster.site;
    let mut blocks = blocks(&disaster.text, "3. Restore with etcd-dr").into_iter();
    sh(series, &disaster.here(&blocks.next().unwrap(), 0), &site.backup_dir(&disaster.id));
    let restores: Vec<String> = blocks.collect();
    assert_eq!(restores.len(), 3);
    for block in restores {
        let i = disaster.member(&block, "--member");
        // Each host has a copy of its own, with no store around it.
        let host = site.path(&format!("host-{i}"));
        fs::create_dir(&host).unwrap();
        sh(series, &format!("cp -a {} {}", site.backup_dir(&disaster.id).display(), host.display()), &host);
        let said = sh(series, &disaster.here(&block, i), &host.join(&disaster.id));
        assert!(said.contains("moved aside"), "{said}");
        for other in (0..3).filter(|other| *other != i) {
            let dir = disaster.cluster.data_dir(i);
            let next = format!(
                "--plan plan.json --member {} --data-dir {} --replace",
                disaster.cluster.name(other),
                dir.display()
            );
            assert!(said.contains(&next), "{said}");
        }
    }
    disaster.is_over();
}

/// The keys below `/registry/` in order, without those under the leases that end while a slow machine restores.
fn keys(cluster: &Cluster) -> Vec<String> {
    let output = cluster.etcdctl().args(["get", "/registry/", "--prefix", "--keys-only"]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let keys = String::from_utf8(output.stdout).unwrap();
    let lasts = |key: &&str| !key.is_empty() && !key.starts_with("/registry/masterleases/");
    keys.lines().filter(lasts).map(str::to_owned).collect()
}
