//! The text for indexes made by hand: what is special about a backup is said, and nothing else.
#![allow(clippy::indexing_slicing, clippy::unwrap_used, reason = "tests")]

use std::path::PathBuf;

use super::*;
use crate::{
    record::{EtcdId, Finding, Versions},
    sign::SecretKey,
};

fn member(name: &str, number: u64) -> Member {
    Member {
        name: name.to_owned(),
        id: EtcdId(number),
        endpoint: None,
        peer_urls: vec![format!("https://192.0.2.{number}:2380")],
        version: Some("3.6.16".to_owned()),
        learner: false,
        status_revision: Some(100),
        revision: Some(100),
        compact_revision: Some(-1),
        hash_kv: Some(0x91e0_7b3d),
        agreement: Some(Agreement::Agrees),
        file: Some(format!("etcd-{name}.db.zst.age")),
        plain_bytes: None,
        sealed_bytes: None,
        plain_sha256: None,
        sealed_sha256: None,
        trailer_sha256: None,
        seconds: None,
        error: None,
        proof: ProofLevel::Sound,
        reread: None,
        alarms: Vec::new(),
    }
}

/// Three members that agree; `change` makes of them what a test is about.
fn rendered(change: impl FnOnce(&mut Index)) -> String {
    let dir = tempfile::tempdir().unwrap();
    let key = SecretKey::generate(&dir.path().join("signing.key")).unwrap();
    let mut index = Index {
        schema: Index::SCHEMA.to_owned(),
        id: "20261122T020000Z-7f3a".parse().unwrap(),
        path: PathBuf::from("/backup/etcd/20261122T020000Z-7f3a"),
        store_id: "s".to_owned(),
        cluster_id: EtcdId(7),
        cluster_name: "homelab".to_owned(),
        host: "cp3".to_owned(),
        created_at: "2026-11-22T02:00:00Z".parse().unwrap(),
        finished_at: "2026-11-22T02:00:10Z".parse().unwrap(),
        proof: ProofLevel::Sound,
        agreement: Some(Agreement::Agrees),
        partial: false,
        primary: Some("cp2".to_owned()),
        members: vec![member("cp1", 1), member("cp2", 2), member("cp3", 3)],
        archives: Vec::new(),
        resources: None,
        bundle_complete: None,
        cross_check: None,
        findings: Vec::new(),
        warnings: Vec::new(),
        recipients: vec!["age1abc".to_owned(), "run".to_owned()],
        versions: Versions { etcd_dr: "0.1.0".to_owned(), etcd: vec!["3.6.16".to_owned()] },
        reason: None,
    };
    change(&mut index);
    render(&index, key.public()).unwrap()
}

fn finding(kind: FindingKind, name: &str, detail: &str) -> Finding {
    Finding { kind, name: name.to_owned(), detail: detail.to_owned() }
}

#[track_caller]
fn has(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "no `{part}` in\n{text}");
    }
}

#[track_caller]
fn has_not(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(!text.contains(part), "`{part}` in\n{text}");
    }
}

#[test]
fn with_a_primary_there_is_nothing_to_choose() {
    let text = rendered(|_| {});
    has(
        &text,
        &[
            "etcd-dr restore --snapshot . --dry-run --output json",
            "age -d -i /dev/shm/identity.txt etcd-cp2.db.zst.age |",
            "--initial-cluster cp1=https://192.0.2.1:2380,cp2=https://192.0.2.2:2380,cp3=https://192.0.2.3:2380",
            "Where 2 x (last - 100) is more than 1000000000",
            "on 2 of 3 nodes at once",
            "- `age1abc`",
        ],
    );
    has_not(&text, &["--from", "FROM", "--clear-alarms", "disarm", "**differs", "partial", "`run`"]);
    for name in ["cp1", "cp2", "cp3"] {
        has(&text, &[&format!("--plan /root/plan.json --member {name} "), &format!("  --name {name} ")]);
    }
    assert_eq!(text.matches("--bump-revision 1000000000 --mark-compacted").count(), 3);
    assert!(!text.contains("\n\n\n"), "{text}");
    // A page or two at three in the morning.
    assert!(text.lines().count() < 170, "{}", text.lines().count());
    assert!(text.lines().all(|line| line.starts_with('|') || line.chars().count() <= 150), "{text}");
}

#[test]
fn members_that_differ_are_named_and_the_choice_is_a_persons() {
    let text = rendered(|index| {
        index.members.truncate(2);
        index.primary = None;
        index.agreement = Some(Agreement::Differs);
        for (member, hash) in index.members.iter_mut().zip([0x5f1c_22a0, 0x91e0_7b3d]) {
            member.agreement = Some(Agreement::Differs);
            member.hash_kv = Some(hash);
        }
        let seen = "at revision 100 its HashKV is 5f1c22a0; cp2 answered 91e07b3d";
        index.findings = vec![finding(FindingKind::MemberDiffers, "cp1", seen)];
    });
    has(
        &text,
        &[
            "| **differs** |",
            "**`cp1` differs from other members:** at revision 100 its HashKV is 5f1c22a0; cp2 answered 91e07b3d",
            "choose one",
            "# FROM=cp1 FILE=etcd-cp1.db.zst.age   # revision 100, HashKV 5f1c22a0, proof sound",
            "# FROM=cp2 FILE=etcd-cp2.db.zst.age   # revision 100, HashKV 91e07b3d, proof sound",
            "etcd-dr restore --snapshot . --from \"$FROM\" --dry-run",
            "age -d -i /dev/shm/identity.txt \"$FILE\" |",
            "R is the revision of the file that you restore",
            "`verify` ends with exit code 20 here",
        ],
    );
}

#[test]
fn a_lone_survivors_file_is_taken_by_its_name() {
    let text = rendered(|index| {
        index.primary = None;
        index.partial = true;
        for member in index.members.iter_mut().take(2) {
            member.file = None;
            member.error = Some("connection refused".to_owned());
        }
        index.members[2].agreement = Some(Agreement::NotComparable);
        index.members[2].alarms = vec!["etcdserver: no leader".to_owned()];
        let seen = "no other member answered for the same revision";
        index.findings = vec![finding(FindingKind::MemberNotComparable, "cp3", seen)];
    });
    has(
        &text,
        &[
            "**This backup is partial:** nothing came from cp1, cp2.",
            "**missing**: connection refused",
            "only `cp3` gave a whole file",
            "**`cp3` could not be compared with the others:** no other member answered",
            "--snapshot . --from cp3 --dry-run",
            "age -d -i /dev/shm/identity.txt etcd-cp3.db.zst.age |",
            "--member cp1 ",
        ],
    );
    has_not(&text, &["FROM=", "$FILE", "--clear-alarms"]);
}

#[test]
fn a_file_that_failed_its_proof_is_no_choice() {
    let text = rendered(|index| {
        index.primary = None;
        index.members[0].error = Some("page 7 is torn".to_owned());
        index.findings = vec![finding(FindingKind::FileChanged, "etcd-cp1.db.zst.age", "page 7 is torn")];
    });
    has(&text, &["**`etcd-cp1.db.zst.age` did not pass its proof:** page 7 is torn", "# FROM=cp2 ", "# FROM=cp3 "]);
    has_not(&text, &["# FROM=cp1 "]);
}

#[test]
fn an_alarm_is_named_and_both_ways_clear_it() {
    let text = rendered(|index| {
        index.members[0].alarms = vec!["memberID:1 alarm:NOSPACE ".to_owned()];
    });
    has(
        &text,
        &[
            "**Alarm NOSPACE** was raised",
            "--snapshot . --clear-alarms --dry-run",
            "After chapter 4 the alarm NOSPACE stands",
            "`etcdctl alarm disarm`",
        ],
    );
    has_not(&text, &["CORRUPT"]);
    let text = rendered(|index| index.members[2].alarms = vec!["memberID:3 alarm:CORRUPT ".to_owned()]);
    has(&text, &["**Alarm CORRUPT**", "be sure of the file before you clear it"]);
}

#[test]
fn who_is_not_restored_is_named() {
    let text = rendered(|index| {
        index.members[0].learner = true;
        index.members[0].file = None;
        index.members.push(Member { file: None, ..member("", 9) });
    });
    has(
        &text,
        &[
            "- `cp1` (a learner) is not restored",
            "- `https://192.0.2.9:2380` (never started) is not restored",
            "--initial-cluster cp2=https://192.0.2.2:2380,cp3=https://192.0.2.3:2380 ",
        ],
    );
    has_not(&text, &["--member cp1", "--name cp1"]);
}

#[test]
fn etcd_3_4_has_another_tool_which_cannot_raise_the_revision() {
    let text = rendered(|index| {
        index.versions.etcd = vec!["3.4.42".to_owned()];
        for member in &mut index.members {
            member.version = Some("3.4.42".to_owned());
        }
    });
    has(&text, &["etcd 3.4.42", "ETCDCTL_API=3 etcdctl snapshot restore", "cannot raise the revision"]);
    has_not(&text, &["etcdutl", "--bump-revision 1000000000"]);
}

#[test]
fn names_reach_the_shell_as_they_are() {
    let text = rendered(|index| index.members[0].name = "it's $HOME".to_owned());
    has(&text, &[r"--member 'it'\''s $HOME' ", r"--name 'it'\''s $HOME' ", r"--initial-cluster 'it'\''s $HOME'=https"]);
}
