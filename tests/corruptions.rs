//! Every way in which etcd's databases are known to have gone wrong: a database made so, and the verdict that it gets.
//!
//! The rules of pages and of rows have their own tests, one damage for each; here are the causes that were met, as operators know them.
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
#[path = "support/rows.rs"]
mod rows;
mod servers;
mod site;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::LazyLock,
};

use etcd_dr::etcd::{
    bbolt::Db,
    mvcc::{At, KeyValue},
    survey::{Survey, Unsound, Wants, survey},
};
use rows::{PAGE, Rows, find, mark, page_of, sealed, set_metas};
use serde_json::Value;
use servers::{
    ask,
    etcd::{Cluster, Options},
    fill,
};
use sha2::{Digest as _, Sha256};
use site::{Answer, BINARY, Site, names};

/// What brings a cause to light.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Seen {
    /// The walk of the file: it is refused.
    Refused,
    /// The walk of the file: it is legal, and there is a word on it.
    Odd,
    /// The digest at the file's end, or that of the backup: the walk passes.
    ByDigest,
    /// No file alone: each is what an etcd can have written. Two members' files, held against each other, differ.
    NeedsOtherMembers,
    /// No file at all.
    NotInFiles,
}
use Seen::{ByDigest, NeedsOtherMembers, NotInFiles, Odd, Refused};

/// A cause that is known.
struct Known {
    name: &'static str,
    /// Of etcd; the first is the one it is known by.
    issues: &'static [u32],
    versions: &'static str,
    seen: &'static [Seen],
}

const fn known(name: &'static str, issues: &'static [u32], versions: &'static str, seen: &'static [Seen]) -> Known {
    Known { name, issues, versions, seen }
}

const KNOWN: [Known; 21] = [
    known("lost writes", &[13766], "3.5.0 to 3.5.2", &[NeedsOtherMembers]),
    known("entries applied twice", &[13933, 14733], "3.5.0 to 3.5.5", &[NeedsOtherMembers, Refused]),
    known("auth not reloaded", &[14409, 14648], "3.5.0 to 3.5.5, 3.4 before 3.4.22", &[NeedsOtherMembers]),
    known("revision goes back", &[17780], "before 3.4.32 and 3.5.14", &[Odd]),
    known("defragmentation during a snapshot's apply", &[20650], "before 3.4.38, 3.5.23, 3.6.5", &[Refused]),
    known("deleted keys in a read buffer", &[17230], "3.5 before 3.5.12", &[NotInFiles]),
    known("zombie members", &[20967], "3.5 before 3.5.26", &[Odd]),
    known("pages with two owners, or of a wrong type", &[17084], "old bbolt, ext4 fast commit, power loss", &[Refused]),
    known("pages of another file under a right digest", &[], "bbolt before 1.3.12 and 1.4.3", &[Refused]),
    known("truncated", &[], "any", &[Refused]),
    known("bit rot", &[], "any", &[ByDigest]),
    known("a value's bit, before the snapshot", &[], "any", &[NeedsOtherMembers]),
    known("unexpected smaller revision", &[], "any", &[Refused]),
    known("illegal tag", &[], "any", &[Refused]),
    known("compaction in flight", &[], "any", &[Odd]),
    known("alarm", &[], "any", &[Odd]),
    known("downgrade", &[], "3.5 and later", &[Odd]),
    known("dangling leases", &[], "any", &[Odd]),
    known("auth without root", &[], "any", &[Odd]),
    known("free space", &[], "any", &[Odd]),
    known("member without a vote", &[20967], "3.5.20 to 3.5.25", &[Odd]),
];

/// A database made so, and its verdict.
enum Verdict {
    /// The file is refused in these words.
    Refused(Vec<u8>, &'static str),
    /// The file passes, and this is said of it.
    Odd(Vec<u8>, &'static str),
    /// The file passes, its digest does not.
    Digest(Vec<u8>),
    /// Both files pass, and nothing is odd about either; held against each other they differ in this.
    Beside(Rows, Rows, Differs),
    /// There is nothing to make.
    Nothing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Differs {
    HashKv,
    Auth,
}

impl Verdict {
    fn seen(&self) -> Seen {
        match self {
            Self::Refused(..) => Refused,
            Self::Odd(..) => Odd,
            Self::Digest(_) => ByDigest,
            Self::Beside(..) => NeedsOtherMembers,
            Self::Nothing => NotInFiles,
        }
    }
}

/// A key of the real database that is written again and again.
const RENEWED: &str = "/registry/leases/kube-system/kube-scheduler";

/// A real member's database.
static BASE: LazyLock<Rows> = LazyLock::new(|| {
    let cluster = Cluster::start(1, Options::default());
    fill::homelab(&cluster.client(0));
    let path = cluster.dir().join("snapshot.db");
    fs::write(&path, ask::snapshot(&cluster.client(0))).unwrap();
    Rows::read(&path)
});

/// Two members' rows, which are the same so far.
fn two() -> (Rows, Rows) {
    (BASE.clone(), BASE.clone())
}

fn odd(words: &'static str, change: impl FnOnce(&mut Rows)) -> Verdict {
    let mut rows = BASE.clone();
    change(&mut rows);
    Verdict::Odd(rows.snapshot(), words)
}

fn refused(words: &'static str, change: impl FnOnce(&mut Rows)) -> Verdict {
    let mut rows = BASE.clone();
    change(&mut rows);
    Verdict::Refused(rows.snapshot(), words)
}

/// Damage below the rows, with the digest that fits it.
fn damaged(words: &'static str, change: impl FnOnce(&mut Vec<u8>)) -> Verdict {
    let mut body = BASE.body();
    change(&mut body);
    Verdict::Refused(sealed(body), words)
}

/// Each case says of which cause it is.
fn cases() -> Vec<(&'static str, Verdict)> {
    let mut all = of_the_members();
    all.extend(of_the_rows());
    all.extend(of_the_pages());
    all.extend(oddities());
    all
}

fn of_the_members() -> Vec<(&'static str, Verdict)> {
    let beside = |change: &dyn Fn(&mut Rows, &mut Rows), differs| {
        let (mut right, mut wrong) = two();
        change(&mut right, &mut wrong);
        Verdict::Beside(right, wrong, differs)
    };
    vec![
        (
            "lost writes",
            // The revisions close up behind what was lost: each file is in order.
            beside(
                &|right, wrong| {
                    right.apply(&[("/a", Some("lost"))]);
                    for rows in [right, wrong] {
                        rows.apply(&[("/b", Some("kept"))]);
                        rows.apply(&[("/c", Some("kept"))]);
                    }
                },
                Differs::HashKv,
            ),
        ),
        (
            "entries applied twice",
            beside(
                &|right, wrong| {
                    wrong.apply(&[(RENEWED, Some("x"))]);
                    for rows in [right, wrong] {
                        rows.apply(&[(RENEWED, Some("x"))]);
                        rows.apply(&[("/b", Some("y"))]);
                    }
                },
                Differs::HashKv,
            ),
        ),
        (
            "auth not reloaded",
            // One member denies a write that the others take.
            beside(
                &|right, wrong| {
                    for rows in [&mut *right, wrong] {
                        rows.put("auth", "authRevision", 7_u64.to_be_bytes());
                        rows.apply(&[("/a", Some("taken"))]);
                    }
                    right.apply(&[("/denied", Some("x"))]);
                    for rows in [right, wrong] {
                        rows.apply(&[("/b", Some("taken"))]);
                    }
                },
                Differs::HashKv,
            ),
        ),
        (
            "auth not reloaded",
            beside(
                &|right, wrong| {
                    right.put("authUsers", "ci", b"\x0a\x02ci\x12\x02pw\x1a\x06reader");
                    wrong.put("authUsers", "ci", b"\x0a\x02ci\x12\x02pw");
                    for rows in [right, wrong] {
                        rows.put("auth", "authRevision", 7_u64.to_be_bytes());
                    }
                },
                Differs::Auth,
            ),
        ),
        (
            "a value's bit, before the snapshot",
            beside(
                &|_, wrong| {
                    let (row, record) = wrong.newest(RENEWED).unwrap();
                    let mut value = record.value.to_vec();
                    *value.last_mut().unwrap() ^= 1;
                    let changed = KeyValue { value: &value, ..record }.to_bytes();
                    wrong.put("key", row.to_bytes(), changed);
                },
                Differs::HashKv,
            ),
        ),
        ("deleted keys in a read buffer", Verdict::Nothing),
    ]
}

fn of_the_rows() -> Vec<(&'static str, Verdict)> {
    vec![
        (
            "revision goes back",
            odd("before the compaction at", |rows| {
                let at = rows.apply(&[(RENEWED, None)]);
                rows.compact(at);
                assert!(rows.revision() < at, "the tombstone is gone");
            }),
        ),
        (
            "defragmentation during a snapshot's apply",
            // A row of before, which the compaction had removed.
            refused("that the finished compaction at", |rows| {
                let (key, value) = {
                    let (row, record) = rows.newest(RENEWED).unwrap();
                    (row.to_bytes(), record.to_bytes())
                };
                let at = rows.apply(&[(RENEWED, Some("newer"))]);
                rows.compact(at);
                rows.put("key", key, value);
            }),
        ),
        (
            "defragmentation during a snapshot's apply",
            refused("is missing: the next row is", |rows| {
                let at = rows.apply(&[("/a", Some("1"))]);
                rows.apply(&[("/b", Some("2"))]);
                rows.bucket("key").remove(&mark(at)[..]).unwrap();
            }),
        ),
        (
            "entries applied twice",
            // Where the second time does not see the first, the row contradicts the one before it.
            refused("follows from the revisions before", |rows| {
                let value = rows.newest(RENEWED).unwrap().1.to_bytes();
                let at = rows.revision() + 1;
                rows.put("key", mark(at), value);
            }),
        ),
        (
            "illegal tag",
            refused("the value is no mvccpb.KeyValue", |rows| {
                let at = rows.apply(&[("/a", Some("1"))]);
                rows.put("key", mark(at), [0x07, 0, 0]);
            }),
        ),
        (
            "unexpected smaller revision",
            damaged("comes after", |body| {
                let last = find(body, BASE.0[&b"key"[..]].last_key_value().unwrap().0);
                body[last..last + 8].copy_from_slice(&2_u64.to_be_bytes());
            }),
        ),
    ]
}

fn of_the_pages() -> Vec<(&'static str, Verdict)> {
    let two_owners = |body: &mut Vec<u8>| {
        let first = page_of(body, 1) * PAGE + 16;
        let child = body[first + 8..first + 16].to_vec();
        body[first + 24..first + 32].copy_from_slice(&child);
    };
    let rotten = {
        let mut bytes = BASE.snapshot();
        let at = find(&bytes, fill::SECRET.as_bytes());
        bytes[at] ^= 1;
        bytes
    };
    let whole = BASE.snapshot();
    let half = whole[..whole.len() / 2 / PAGE * PAGE].to_vec();
    vec![
        ("pages with two owners, or of a wrong type", damaged("it is reached a second time, from page", two_owners)),
        (
            "pages with two owners, or of a wrong type",
            damaged("it is a freelist; expected a branch or leaf", |body| {
                let leaf = page_of(body, 2);
                body[leaf * PAGE + 8] = 16;
            }),
        ),
        (
            "pages of another file under a right digest",
            // The file at this path is another one from the middle of the copy on.
            damaged("page ", |body| {
                let mut other = BASE.clone();
                let at = other.revision();
                other.compact(at);
                for n in 0..2_000 {
                    other.apply(&[(&format!("/later/{n}"), Some("x"))]);
                }
                let middle = body.len() / 2 / PAGE * PAGE;
                let end = body.len();
                body[middle..].copy_from_slice(&other.body()[middle..end]);
            }),
        ),
        ("truncated", Verdict::Refused(half.clone(), "truncated: the database has")),
        ("truncated", Verdict::Refused(sealed(half), "truncated: the database has")),
        ("bit rot", Verdict::Digest(rotten)),
    ]
}

fn oddities() -> Vec<(&'static str, Verdict)> {
    let member = |rows: &mut Rows| {
        let (id, json) = rows.bucket("members").first_key_value().unwrap();
        (id.clone(), String::from_utf8(json.clone()).unwrap())
    };
    vec![
        (
            "zombie members",
            odd("is also listed as removed", |rows| {
                let (id, _) = member(rows);
                rows.put("members_removed", id, "removed");
            }),
        ),
        (
            "member without a vote",
            odd("is a learner", |rows| {
                let (id, json) = member(rows);
                rows.put("members", id, json.replace(r#","name""#, r#","isLearner":true,"name""#));
            }),
        ),
        (
            "compaction in flight",
            odd("is not finished; the last that is, is at", |rows| {
                let at = rows.revision();
                rows.put("meta", "scheduledCompactRev", mark(at));
            }),
        ),
        ("alarm", odd("alarm NOSPACE is raised by member 5", |rows| rows.put("alarm", [8, 5, 16, 1], ""))),
        ("alarm", odd("alarm CORRUPT is raised by member 5", |rows| rows.put("alarm", [8, 5, 16, 2], ""))),
        (
            "downgrade",
            odd("a downgrade to 3.5.0 is under way", |rows| {
                rows.put("cluster", "downgrade", r#"{"target-version":"3.5.0","enabled":true}"#);
            }),
        ),
        (
            "dangling leases",
            odd("keys hang on 2 leases that do not exist, and never expire", |rows| rows.bucket("lease").clear()),
        ),
        (
            "auth without root",
            odd("auth is enabled and no user root has the role root", |rows| rows.put("auth", "authEnabled", [1])),
        ),
        ("free space", {
            let mut body = BASE.body();
            body.resize(body.len() + (65 << 20), 0);
            let pages = (body.len() / PAGE) as u64;
            set_metas(&mut body, 40, &pages.to_le_bytes());
            // No list of the free pages, as etcd writes its files.
            set_metas(&mut body, 32, &u64::MAX.to_le_bytes());
            Verdict::Odd(sealed(body), "bytes are free")
        }),
    ]
}

/// The causes and the cases are the same, and each is seen as it is listed.
#[test]
fn every_known_cause_has_its_case_and_none_is_unlisted() {
    let mut listed: BTreeMap<&str, BTreeSet<Seen>> = BTreeMap::new();
    for cause in &KNOWN {
        let seen = cause.seen.iter().copied().collect();
        assert!(listed.insert(cause.name, seen).is_none(), "{} is listed twice", cause.name);
        assert!(!cause.versions.is_empty() && cause.issues.iter().all(|&issue| issue > 10_000));
    }
    let mut made: BTreeMap<&str, BTreeSet<Seen>> = BTreeMap::new();
    for (name, verdict) in cases() {
        made.entry(name).or_default().insert(verdict.seen());
    }
    assert_eq!(listed, made);
}

fn look(path: &Path, bytes: &[u8]) -> Result<Survey, Unsound> {
    fs::write(path, bytes).unwrap();
    survey(&Db::open(File::open(path).unwrap())?, &Wants::default())
}

#[test]
fn every_known_cause_has_its_verdict() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("snapshot.db");
    let digest_fits = |bytes: &[u8]| {
        let (body, trailer) = bytes.split_at(bytes.len() - 32);
        Sha256::digest(body).as_slice() == trailer
    };
    assert_eq!(look(&path, &BASE.snapshot()).unwrap().oddities, [], "the base is as it should be");
    for (name, verdict) in cases() {
        let say = |said: &[String], words: &str| {
            assert!(said.iter().any(|said| said.contains(words)), "{name}: no `{words}` in {said:?}");
        };
        match verdict {
            Verdict::Refused(bytes, words) => {
                let refused = look(&path, &bytes).map(drop).expect_err(name);
                say(&[refused.to_string()], words);
            }
            Verdict::Odd(bytes, words) => {
                let survey = look(&path, &bytes).unwrap_or_else(|unsound| panic!("{name}: {unsound}"));
                let odd: Vec<_> = survey.oddities.iter().map(ToString::to_string).collect();
                say(&odd, words);
                assert!(digest_fits(&bytes));
            }
            Verdict::Digest(bytes) => {
                let survey = look(&path, &bytes).expect(name);
                assert_eq!(survey.oddities, [], "{name}");
                assert!(!digest_fits(&bytes), "{name}");
            }
            Verdict::Beside(right, wrong, differs) => {
                let [right, wrong] = [right, wrong].map(|rows| look(&path, &rows.snapshot()).expect(name));
                assert_eq!((&right.oddities, &wrong.oddities), (&vec![], &vec![]), "{name}");
                assert_eq!(beside(&right, &wrong), Some(differs), "{name}");
                assert_eq!(beside(&right, &right), None);
            }
            Verdict::Nothing => {}
        }
    }
}

/// In what two members' files differ, at a point that both can compute.
fn beside(a: &Survey, b: &Survey) -> Option<Differs> {
    let at = At { revision: a.revision.min(b.revision), compact_revision: a.compact_revision.max(b.compact_revision) };
    if a.hash_kv_at(at).unwrap() != b.hash_kv_at(at).unwrap() {
        return Some(Differs::HashKv);
    }
    (a.auth.revision == b.auth.revision && a.auth_digest != b.auth_digest).then_some(Differs::Auth)
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// The binary as anybody runs it who has a file and nothing else.
fn bare(arguments: &[&str]) -> Answer {
    let mut command = Command::new(BINARY);
    command.env_clear().current_dir("/").args(arguments).args(["--output", "json"]).stdin(Stdio::null());
    command.output().unwrap().into()
}

/// The program says it, in the same words, and makes nothing of it.
#[test]
fn inspect_and_restore_refuse_what_is_damaged_and_show_what_is_odd() {
    let dir = tempfile::tempdir().unwrap();
    let (file, out) = (dir.path().join("snapshot.db"), dir.path().join("out"));
    fs::create_dir(&out).unwrap();
    let target: PathBuf = out.join("k8s.etcd");
    let restore = [
        "restore",
        "--snapshot",
        text(&file),
        "--allow-unsigned",
        "--member",
        "k8s",
        "--force",
        "--data-dir",
        text(&target),
    ];
    for (name, verdict) in cases() {
        let (bytes, words) = match verdict {
            Verdict::Refused(bytes, words) => (bytes, words),
            Verdict::Digest(bytes) => (bytes, "trailer says SHA-256"),
            Verdict::Odd(bytes, words) => {
                fs::write(&file, bytes).unwrap();
                let report = bare(&["inspect", text(&file)]).expect_code(0).json();
                assert!(report["warnings"].to_string().contains(words), "{name}: {:#}", report["warnings"]);
                continue;
            }
            Verdict::Beside(..) | Verdict::Nothing => continue,
        };
        fs::write(&file, bytes).unwrap();
        for (arguments, absent) in [(&["inspect", text(&file)][..], "revision"), (&restore, "written")] {
            let answer = bare(arguments).expect_code(20).json();
            let message = answer["error"]["message"].as_str().unwrap();
            assert!(message.contains(words), "{name}: no `{words}` in {message}");
            assert_eq!(answer[absent], Value::Null, "{name}");
        }
        assert!(names(&out).is_empty(), "{name}: {:?}", names(&out));
    }
}

/// A record that contradicts the one before it.
fn contradict(db: &Path) {
    let mut rows = Rows::read(db);
    let (row, record) = rows.newest(RENEWED).unwrap();
    let (key, changed) = (row.to_bytes(), KeyValue { version: record.version + 5, ..record }.to_bytes());
    rows.put("key", key, changed);
    fs::write(db, rows.body()).unwrap();
}

/// A record that is not there.
fn lose(db: &Path) {
    let mut rows = Rows::read(db);
    let key = rows.newest(RENEWED).unwrap().0.to_bytes();
    rows.bucket("key").remove(&key).unwrap();
    fs::write(db, rows.body()).unwrap();
}

/// A cluster of which one member's database was changed while it stood still, and which serves again.
fn serving(n: usize, i: usize, change: fn(&Path)) -> (Cluster, Site) {
    let cluster = Cluster::start(n, Options::default());
    fill::homelab(&cluster.client(0));
    let site = Site::new(&cluster);
    cluster.stop_member(i);
    change(&cluster.data_dir(i).join("member/snap/db"));
    cluster.start_member(i);
    cluster.until_all_serve();
    (cluster, site)
}

/// A server does not look at what a record says of the records before it, nor whether one is missing: it serves and streams them.
#[test]
fn a_member_that_serves_a_damaged_database_is_found_by_its_backup() {
    for (change, words) in [(contradict as fn(&Path), "version is"), (lose, "is missing: the next row is")] {
        let (_cluster, site) = serving(1, 0, change);
        let report = site.run(&["backup", "--output", "json"]).expect_code(20).json();
        let member = &report["members"][0];
        assert!(member["file"].is_string(), "it is kept: {report:#}");
        assert_eq!((&report["proof"], &member["proof"]), (&"none".into(), &"none".into()), "{report:#}");
        assert!(report["primary"].is_null(), "{report:#}");
        let message = report["error"]["message"].as_str().unwrap();
        assert!(message.contains("its database is damaged") && message.contains(words), "{message}");
        let verified = site.run(&["verify", "--output", "json"]).expect_code(20).json();
        assert!(verified.to_string().contains(words), "{verified:#}");
        // Asked for by name it is not restored either.
        let (id, out) = (report["id"].as_str().unwrap(), site.path("out"));
        let restore = ["restore", "--snapshot", id, "--from", "k8s", "--all-members", "--force", "--output-dir"];
        let refused = site.run(&[&restore[..], &[text(&out)]].concat()).expect_code(20);
        assert!(refused.stderr.contains(words), "{refused:?}");
        assert!(!out.exists());
    }
}

/// Of three, the two whole ones are the backup's proof, and the third is named.
#[test]
fn a_damaged_database_among_whole_ones_is_named() {
    let (cluster, site) = serving(3, 1, lose);
    let report = site.run(&["backup", "--output", "json"]).expect_code(20).json();
    assert_eq!(report["proof"], "sound", "{report:#}");
    assert_ne!(report["primary"], cluster.name(1));
    for member in report["members"].as_array().unwrap() {
        let proof = if member["name"] == cluster.name(1) { "none" } else { "sound" };
        assert_eq!(member["proof"], proof, "{report:#}");
        assert!(member["file"].is_string());
    }
    let message = report["error"]["message"].as_str().unwrap();
    assert!(message.contains(cluster.name(1)) && message.contains("is missing: the next row is"), "{message}");
}
