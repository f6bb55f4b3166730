//! Members that agree, that differ, that cannot be compared: real members, of which one's stopped database was changed and booted again.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs,
    reason = "a failed test is a panic"
)]

#[path = "support/edit.rs"]
mod edit;
mod servers;
mod site;

use serde_json::Value;
use servers::{
    etcd::{Cluster, Options},
    fill,
    proxy::{Fault, HASH_KV, Proxy, Rule},
    wait,
};
use site::{Answer, Site};

fn cluster(n: usize) -> (Cluster, Site) {
    let cluster = Cluster::start(n, Options::default());
    fill::homelab(&cluster.client(0));
    let site = Site::new(&cluster);
    (cluster, site)
}

/// Stops a member, changes one byte of one value in its database, and starts it again.
fn make_differ(cluster: &Cluster, i: usize) {
    cluster.stop_member(i);
    edit::flip_value(&cluster.data_dir(i).join("member/snap/db"), b"/registry/configmaps/");
    cluster.start_member(i);
    cluster.until_all_serve();
}

fn backup(site: &Site, code: i32) -> Value {
    site.run(&["backup", "--output", "json"]).expect_code(code).json()
}

fn member<'a>(report: &'a Value, name: &str) -> &'a Value {
    report["members"].as_array().unwrap().iter().find(|member| member["name"] == name).unwrap()
}

fn agreements(report: &Value) -> Vec<(&str, &str)> {
    let members = report["members"].as_array().unwrap();
    let mut found: Vec<_> = members
        .iter()
        .map(|member| (member["name"].as_str().unwrap(), member["agreement"].as_str().unwrap_or("null")))
        .collect();
    found.sort_unstable();
    found
}

fn live_hash(cluster: &Cluster, i: usize, revision: i64) -> (u32, i64) {
    let client = cluster.client(i);
    let answer = wait(async move { client.maintenance_client().hash_kv(revision).await.unwrap() });
    (answer.hash(), answer.compact_version())
}

#[test]
fn members_that_agree_are_proved_sound() {
    let (cluster, site) = cluster(3);
    let report = backup(&site, 0);
    assert_eq!((&report["agreement"], &report["proof"]), (&"agrees".into(), &"sound".into()), "{report}");
    assert_eq!(agreements(&report), [("k8s", "agrees"), ("k8s-cp2", "agrees"), ("k8s-cp3", "agrees")]);
    for i in 0..3 {
        let member = member(&report, cluster.name(i));
        let revision = member["revision"].as_i64().unwrap();
        let (hash, compact) = live_hash(&cluster, i, revision);
        assert_eq!(
            (member["hash_kv"].as_u64().unwrap(), member["compact_revision"].as_i64().unwrap()),
            (hash.into(), compact)
        );
        assert_eq!(member["proof"], "sound");
    }
    // The leader streams last, and of equal revisions the last one is the primary.
    assert_eq!(report["primary"], cluster.name(cluster.leader().unwrap()));
    let verified = site.run(&["verify", "--output", "json"]).expect_code(0).json();
    assert_eq!((&verified["level"], &verified["results"][0]["level"]), (&"sound".into(), &"sound".into()));
    let shown = site.run(&["backup"]).expect_code(0).stdout;
    assert!(shown.contains("3 of 3 agree · sound"), "{shown}");
}

#[test]
fn of_three_the_one_that_differs_is_named_and_nothing_is_removed() {
    let (cluster, site) = cluster(3);
    let first = site.backup();
    site.change_policy("[signing]", "[retention]\nkeep_within = \"1s\"\nkeep_proved = 1\n[signing]");
    let odd = cluster.follower().unwrap();
    make_differ(&cluster, odd);
    let report = backup(&site, 20);
    let name = cluster.name(odd);
    assert_eq!(report["agreement"], "differs");
    for (who, agreement) in agreements(&report) {
        assert_eq!(agreement, if who == name { "differs" } else { "agrees" }, "{report}");
    }
    let primary = report["primary"].as_str().unwrap();
    assert_ne!(primary, name);
    assert_eq!(report["proof"], "sound");
    assert_eq!(
        (&member(&report, name)["proof"], &member(&report, primary)["proof"]),
        (&"open".into(), &"sound".into())
    );
    assert_eq!(report["partial"], false);
    assert_eq!(report["findings"][0]["kind"], "member_differs");
    assert_eq!(report["findings"][0]["name"], name);
    assert_eq!(report["error"]["kind"], "members_differ");
    // All files are kept, and so are the older backups, whatever retention would say.
    assert!(report["members"].as_array().unwrap().iter().all(|member| member["file"].is_string()));
    assert!(site.backups().contains(&first));
    assert!(report["retention"].is_null());

    let message = report["error"]["message"].as_str().unwrap();
    let (hash, _) = live_hash(&cluster, odd, member(&report, primary)["revision"].as_i64().unwrap());
    let others = member(&report, primary)["hash_kv"].as_u64().unwrap();
    assert_ne!(u64::from(hash), others);
    for words in [
        format!("member {name} ({}) disagrees with the others", cluster.advertised(odd)),
        format!("its HashKV is {hash:08x}"),
        format!("answered {others:08x}"),
        "keeps all 3 snapshots, marked; nothing was removed".to_owned(),
    ] {
        assert!(message.contains(&words), "no {words:?} in\n{message}");
    }
    assert!(report["error"]["hint"].as_str().unwrap().contains(&format!("do not restore from {name}")));

    // `verify` says it again, by name, and the majority's file keeps its level.
    let verified = site.run(&["verify", "--output", "json"]).expect_code(20).json();
    let result = &verified["results"][0];
    assert_eq!(result["level"], "sound", "{verified}");
    let bad: Vec<_> = result["files"].as_array().unwrap().iter().filter(|file| file["ok"] == false).collect();
    assert_eq!(bad.len(), 1, "{verified}");
    assert_eq!(bad[0]["file"], member(&report, name)["file"]);
    let listed = site.run(&["list", "--output", "json"]).expect_code(0).json();
    let newest = listed["backups"].as_array().unwrap().iter().find(|backup| backup["id"] == report["id"]).unwrap();
    assert_eq!((&newest["agreement"], &newest["proof"]), (&"differs".into(), &"sound".into()), "{listed}");
}

#[test]
fn of_two_that_differ_both_are_named_and_neither_is_right() {
    let (cluster, site) = cluster(2);
    make_differ(&cluster, 1);
    let report = backup(&site, 20);
    assert_eq!(agreements(&report), [("k8s", "differs"), ("k8s-cp2", "differs")]);
    assert!(report["primary"].is_null(), "{report}");
    assert_eq!(report["proof"], "open");
    let message = report["error"]["message"].as_str().unwrap();
    assert!(message.contains("k8s ") && message.contains("k8s-cp2 ") && message.contains("no majority"), "{message}");
    // No primary, so it does not count as proved and nothing is removed on its account.
    assert!(report["retention"].is_null());

    // The choice stays the person's, before a verification and after it: its record repeats the mark and adds nothing to it.
    let id = report["id"].as_str().unwrap();
    for _ in 0..2 {
        for name in ["k8s", "k8s-cp2"] {
            let inspected = site.run(&["inspect", id, "--from", name, "--output", "json"]).expect_code(0).json();
            assert_eq!(inspected["hash_kv"], member(&report, name)["hash_kv"]);
            let out = site.path(&format!("restored-{name}"));
            let restore = [
                "restore",
                "--snapshot",
                "latest",
                "--from",
                name,
                "--all-members",
                "--output-dir",
                out.to_str().unwrap(),
            ];
            let planned =
                site.run(&[&restore[..], &["--dry-run", "--force", "--output", "json"]].concat()).expect_code(0).json();
            assert_eq!((&planned["backup"], &planned["from"]), (&id.into(), &name.into()));
        }
        site.run(&["verify", id]).expect_code(20);
    }
    let listed = site.run(&["list"]).expect_code(0).stdout;
    assert!(
        listed.contains("k8s differs") && listed.contains("k8s-cp2 differs") && listed.contains("no primary"),
        "{listed}"
    );
    // A slip of the pen is no reason to take another backup.
    let nobody = site.run(&["inspect", "latest", "--from", "nobody", "--output", "json"]).expect_code(2).json();
    assert!(nobody["error"]["message"].as_str().unwrap().contains("nobody"), "{nobody}");
}

#[test]
fn one_member_is_compared_with_its_own_answer() {
    let (_cluster, site) = cluster(1);
    let report = backup(&site, 0);
    assert_eq!((&report["agreement"], &report["proof"]), (&"single".into(), &"sound".into()));
    assert_eq!(agreements(&report), [("k8s", "single")]);
    assert_eq!(report["primary"], "k8s");
}

#[test]
fn a_lone_survivor_is_kept_and_is_no_majority() {
    let (cluster, site) = cluster(3);
    cluster.kill_member(1);
    cluster.kill_member(2);
    let report = backup(&site, 3);
    assert_eq!(report["agreement"], "not_comparable");
    assert_eq!(member(&report, "k8s")["agreement"], "not_comparable");
    assert_eq!(member(&report, "k8s")["proof"], "sound", "its file is what it answers");
    assert!(report["primary"].is_null());
    let found = |kind: &str, name: &str| {
        report["findings"].as_array().unwrap().iter().any(|finding| finding["kind"] == kind && finding["name"] == name)
    };
    assert!(
        found("member_not_comparable", "k8s")
            && found("member_missing", "k8s-cp2")
            && found("member_missing", "k8s-cp3")
    );
}

/// Members behind proxies that can be told to misbehave.
fn behind(n: usize) -> (Cluster, Vec<Proxy>, Site) {
    let (cluster, proxies) = Proxy::before_each(n, Options::default());
    fill::homelab(&cluster.client(0));
    let pair = cluster.client_pair();
    let site = Site::at(&proxies[0].url(), cluster.pki().ca(), &pair.cert, &pair.key);
    site.change_policy("_timeout = \"2s\"", "_timeout = \"1s\"");
    (cluster, proxies, site)
}

#[test]
fn without_a_live_answer_the_files_are_held_against_each_other() {
    let (_cluster, proxies, site) = behind(3);
    let fired: Vec<_> = proxies.iter().map(|proxy| proxy.add(Rule::new(HASH_KV, Fault::Never))).collect();
    let report = backup(&site, 0);
    assert!(fired.iter().all(|fired| fired.count() == 1), "each is asked once");
    assert_eq!((&report["agreement"], &report["proof"]), (&"agrees".into(), &"sound".into()), "{report}");
}

#[test]
fn an_answer_that_cannot_be_had_is_no_pass() {
    let (_cluster, proxies, site) = behind(1);
    proxies[0].add(Rule::new(HASH_KV, Fault::Never));
    let Answer { stderr, .. } = site.run(&["backup"]).expect_code(3);
    assert!(stderr.contains("HashKV: nothing came for 1s"), "{stderr}");
    let report = backup(&site, 3);
    assert_eq!((&report["agreement"], &report["proof"]), (&"not_comparable".into(), &"open".into()));
    assert_eq!(report["findings"][0]["kind"], "member_not_comparable");
    // Not comparable is not damaged: `verify` reaches again what the run had proved, and says so; asked for `sound` it fails.
    site.run(&["verify"]).expect_code(0);
    site.run(&["verify", "--level", "sound"]).expect_code(20);
}

#[test]
fn each_member_is_asked_for_its_hash_once() {
    let (_cluster, proxies, site) = behind(3);
    let before: Vec<_> = proxies.iter().map(|proxy| proxy.calls(HASH_KV)).collect();
    backup(&site, 0);
    let after: Vec<_> = proxies.iter().map(|proxy| proxy.calls(HASH_KV)).collect();
    assert!(before.iter().zip(&after).all(|(before, after)| after - before == 1), "{before:?} {after:?}");
}

#[test]
fn only_the_primary_is_kept_where_that_is_wanted_and_all_agree() {
    let (cluster, site) = cluster(3);
    site.change_policy("[backup]\n", "[backup]\nkeep_members = \"primary\"\n");
    let report = backup(&site, 0);
    let primary = report["primary"].as_str().unwrap().to_owned();
    let dir = site.backup_dir(report["id"].as_str().unwrap());
    let sums = std::fs::read_to_string(dir.join("SHA256SUMS")).unwrap();
    for i in 0..3 {
        let name = cluster.name(i);
        let member = member(&report, name);
        assert_eq!(member["file"].is_string(), name == primary, "{member}");
        assert!(member["plain_sha256"].is_string() && member["hash_kv"].is_u64());
        let file = format!("etcd-{name}.db.zst.age");
        assert_eq!((dir.join(&file).exists(), sums.contains(&file)), (name == primary, name == primary));
    }
    assert_eq!((&report["partial"], &report["findings"]), (&false.into(), &serde_json::json!([])));
    site.run(&["verify", "--level", "sound"]).expect_code(0);

    make_differ(&cluster, cluster.follower().unwrap());
    let report = backup(&site, 20);
    assert!(report["members"].as_array().unwrap().iter().all(|member| member["file"].is_string()), "{report}");
}

#[test]
fn a_release_that_is_known_to_lose_data_is_a_warning_with_advice() {
    let cluster = Cluster::start(1, Options { series: servers::Series::V3_4, ..Options::default() });
    fill::homelab(&cluster.client(0));
    let site = Site::new(&cluster);
    let report = backup(&site, 0);
    assert_eq!((&report["agreement"], &report["proof"]), (&"single".into(), &"sound".into()), "{report}");
    let version = report["members"][0]["version"].as_str().unwrap();
    let warnings = report["warnings"].to_string();
    // Debian's release; a newer one would have its own words, or none.
    assert_eq!(version, "3.4.23");
    assert!(warnings.contains("etcd 3.4.23") && warnings.contains("go to 3.4.38 or newer"), "{warnings}");
}
