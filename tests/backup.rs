//! The main job on a real cluster: what is written, what stock tools make of it, what the other commands say of it.
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
use std::os::unix::fs::PermissionsExt as _;
use std::process::Stdio;

use serde_json::json;
use servers::{
    etcd::{Cluster, Options},
    fill, stock,
};
use site::{Site, names};

fn homelab() -> Cluster {
    let cluster = Cluster::start(3, Options::default());
    fill::homelab(&cluster.client(0));
    cluster
}

#[test]
fn every_member_is_sealed_signed_and_proved_sound() {
    let cluster = homelab();
    let site = Site::new(&cluster);
    let answer = site.run(&["backup", "--reason", "before the upgrade", "--output", "json"]).expect_code(0);
    let report = answer.json();
    assert_eq!(report["schema"], "etcd-dr/backup/v1");
    assert_eq!(
        (&report["proof"], &report["partial"], &report["agreement"]),
        (&json!("sound"), &json!(false), &json!("agrees"))
    );
    assert_eq!(report["reason"], "before the upgrade");
    assert_eq!(report["targets"], json!([]));
    assert_eq!(report["recipients"], json!([site.recipients[0], site.recipients[1], "run"]));
    let members = report["members"].as_array().unwrap();
    assert_eq!(members.len(), 3);
    for member in members {
        assert_eq!(member["proof"], "sound", "{member}");
        assert!(["device", "cache"].contains(&member["reread"].as_str().unwrap()));
        assert!(member["status_revision"].as_i64().unwrap() > 100);
        assert_eq!(member["plain_bytes"].as_u64().unwrap() % 512, 32);
    }
    // The leader, on whom all writes wait, comes last.
    assert_eq!(members[2]["name"], cluster.name(cluster.leader().unwrap()));

    let id = report["id"].as_str().unwrap();
    let dir = site.backup_dir(id);
    let expected = [
        "RECOVERY.md",
        "SHA256SUMS",
        "SHA256SUMS.minisig",
        "backup.json",
        "etcd-k8s-cp2.db.zst.age",
        "etcd-k8s-cp3.db.zst.age",
        "etcd-k8s.db.zst.age",
    ];
    assert_eq!(names(&dir), expected);
    assert_eq!(fs::metadata(&dir).unwrap().permissions().mode() & 0o7777, 0o700);
    for name in expected {
        assert_eq!(fs::metadata(dir.join(name)).unwrap().permissions().mode() & 0o7777, 0o600, "{name}");
    }

    let index: serde_json::Value = serde_json::from_slice(&fs::read(dir.join("backup.json")).unwrap()).unwrap();
    for (key, value) in index.as_object().unwrap() {
        assert_eq!(&report[key], value, "{key}");
    }
    let show = site.run(&["show", id, "--output", "json"]).expect_code(0).json();
    assert_eq!(show["members"], report["members"]);
    let list = site.run(&["list", "--output", "json"]).expect_code(0).json();
    assert_eq!(list["backups"][0]["id"], id);
    assert_eq!(list["backups"][0]["proof"], "sound");
    let verify = site.run(&["verify", "--output", "json"]).expect_code(0).json();
    assert_eq!((&verify["ok"], &verify["level"]), (&json!(true), &json!("sound")));
    assert_eq!(site.run(&["keys", "check", "--output", "json"]).expect_code(0).json()["ok"], true);
}

#[test]
fn stock_tools_open_all_of_it() {
    let cluster = homelab();
    let site = Site::new(&cluster);
    let id = site.backup();
    let dir = site.backup_dir(&id);
    let sums = stock("sha256sum").args(["-c", "SHA256SUMS"]).current_dir(&dir).output().unwrap();
    assert!(sums.status.success(), "{sums:?}");
    let signature =
        stock("minisign").args(["-V", "-P", &site.public_key, "-m", "SHA256SUMS"]).current_dir(&dir).output().unwrap();
    assert!(signature.status.success(), "{signature:?}");
    for identity in ["identity.txt", "second.txt"] {
        for member in ["k8s", "k8s-cp2", "k8s-cp3"] {
            let mut age = stock("age")
                .args(["-d", "-i"])
                .arg(site.path(identity))
                .arg(dir.join(format!("etcd-{member}.db.zst.age")))
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let snapshot = site.path("snapshot.db");
            let zstd = stock("zstd")
                .args(["-q", "-f", "-d", "-o"])
                .arg(&snapshot)
                .stdin(age.stdout.take().unwrap())
                .status()
                .unwrap();
            assert!(age.wait().unwrap().success() && zstd.success(), "{member}");
            let status = stock(servers::binaries().join("etcdutl"))
                .args(["snapshot", "status", "-w", "json"])
                .arg(&snapshot)
                .output()
                .unwrap();
            assert!(status.status.success(), "{status:?}");
            let status: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap();
            assert!(status["totalKey"].as_i64().unwrap() > 100, "{status}");
        }
    }
}

#[test]
fn a_loss_is_named_until_age_alone_would_have_dropped_it() {
    let cluster = Cluster::start(1, Options::default());
    let site = Site::new(&cluster);
    let lost = site.backup();
    fs::remove_dir_all(site.backup_dir(&lost)).unwrap();
    for _ in 0..2 {
        let report = site.run(&["backup", "--output", "json"]).expect_code(3).json();
        assert_eq!(report["findings"][0]["kind"], "backup_vanished");
        assert_eq!(report["findings"][0]["name"], lost);
        assert_eq!(report["partial"], false);
    }
    site.write_policy(&format!("{}[retention]\nkeep_within = \"1s\"\n", site.policy()));
    std::thread::sleep(std::time::Duration::from_secs(2));
    // The run that finds it expired still names it; the next has nothing to say.
    site.run(&["backup"]).expect_code(3);
    site.run(&["backup"]).expect_code(0);
    site.run(&["verify", "--all"]).expect_code(0);
}
