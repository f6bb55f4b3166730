//! Data directories against the official tools, in one run: the log byte for byte, the database row for row, and servers that boot them.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs,
    reason = "a failed test is a panic"
)]

mod servers;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use etcd_dr::etcd::{
    self,
    bbolt::{Damage, Db, Row, Visitor},
    data_dir::{self, Form},
    membership::{InitialCluster, Member, cluster_id},
    snap, wal,
};
use servers::{
    Series,
    etcd::{Cluster, Options},
    fill, offline, stock,
};

const ALL: [Series; 3] = [Series::V3_4, Series::V3_5, Series::V3_6];

fn of(series: Series) -> etcd::Series {
    match series {
        Series::V3_4 => etcd::Series::V3_4,
        Series::V3_5 => etcd::Series::V3_5,
        Series::V3_6 => etcd::Series::V3_6,
    }
}

/// A snapshot with all that a cluster's database holds: keys, leases, a compaction, users.
fn snapshot(series: Series, dir: &Path) -> PathBuf {
    let cluster = Cluster::start(1, Options { series, ..Options::default() });
    fill::homelab(&cluster.client(0));
    let path = dir.join(format!("{series:?}.db"));
    let saved = cluster.etcdctl().args(["snapshot", "save"]).arg(&path).output().unwrap();
    assert!(saved.status.success(), "{saved:?}");
    path
}

fn members(n: usize) -> (String, Vec<Member>) {
    let text: Vec<String> = (1..=n).map(|i| format!("m{i}=https://192.0.2.{i}:2380")).collect();
    let text = text.join(",");
    let members = InitialCluster::parse(&text).unwrap().members("golden").unwrap();
    (text, members)
}

/// What the official tool of that release makes of a snapshot for one member.
fn official(series: Series, snapshot: &Path, name: &str, n: usize, bump: Option<i64>, dir: &Path) -> PathBuf {
    let (cluster, members) = members(n);
    let member = members.iter().find(|member| member.name == name).unwrap();
    let target = dir.join(format!("official-{series:?}-{name}-{n}-{}", bump.is_some()));
    let mut command = offline(series);
    command.args(["snapshot", "restore"]).arg(snapshot).arg("--data-dir").arg(&target).args(["--name", name]);
    command.args(["--initial-cluster", &cluster, "--initial-cluster-token", "golden"]);
    command.args(["--initial-advertise-peer-urls", &member.peer_urls[0]]);
    if let Some(bump) = bump {
        command.args(["--bump-revision", &bump.to_string(), "--mark-compacted"]);
    }
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    target
}

fn native(form: &Form<'_>, snapshot: &Path, name: &str, target: &Path) {
    data_dir::create(target, None).unwrap();
    let db = Db::open(File::open(snapshot).unwrap()).unwrap();
    let file = data_dir::create_file(&data_dir::database(target)).unwrap();
    data_dir::rewrite(&db, form, file.try_clone().unwrap()).unwrap();
    file.sync_all().unwrap();
    let member = form.members.iter().find(|member| member.name == name).unwrap();
    data_dir::write_log_and_snap(target, None, member.id, form.members, form.series).unwrap();
}

type Rows = BTreeMap<(Vec<u8>, Vec<u8>), Vec<u8>>;

#[derive(Default)]
struct Collect(Rows, Vec<Vec<u8>>);

impl Visitor for Collect {
    type Error = Damage;

    fn bucket_begin(&mut self, name: &[u8], _: u64) -> Result<(), Damage> {
        self.1.push(name.to_vec());
        Ok(())
    }

    fn row(&mut self, row: Row<'_>) -> Result<(), Damage> {
        self.0.insert((row.bucket.to_vec(), row.key.to_vec()), row.value.to_vec());
        Ok(())
    }
}

fn rows(path: &Path) -> Rows {
    let mut all = Collect::default();
    Db::open(File::open(path).unwrap()).unwrap().walk(&mut all).unwrap();
    all.0
}

/// The rows in which two databases differ, by bucket and key.
fn differing(a: &Rows, b: &Rows) -> Vec<String> {
    let keys: std::collections::BTreeSet<_> = a.keys().chain(b.keys()).collect();
    let differ = keys.into_iter().filter(|key| a.get(*key) != b.get(*key));
    differ.map(|(bucket, key)| format!("{}/{}", String::from_utf8_lossy(bucket), key.escape_ascii())).collect()
}

#[test]
fn logs_and_databases_are_those_of_the_official_tools() {
    let dir = tempfile::tempdir().unwrap();
    for series in ALL {
        let snapshot = snapshot(series, dir.path());
        let revision = last_revision(&snapshot);
        for n in [1, 3] {
            let (_, members) = members(n);
            // 3.4's tool has no bump.
            let bumps: &[Option<i64>] = if series == Series::V3_4 { &[None] } else { &[None, Some(1_000_000_000)] };
            for bump in bumps {
                let theirs = official(series, &snapshot, "m1", n, *bump, dir.path());
                let ours = dir.path().join(format!("ours-{series:?}-{n}-{}", bump.is_some()));
                let revision = bump.map(|bump| revision + bump);
                let form = Form { members: &members, series: of(series), revision, clear_alarms: false };
                native(&form, &snapshot, "m1", &ours);
                let what = format!("{series:?}, {n} members, bump {bump:?}");

                let log = |dir: &Path| fs::read(data_dir::log(dir).join(wal::FIRST_SEGMENT)).unwrap();
                assert!(log(&ours) == log(&theirs), "{what}: the logs differ");
                let snap_of = |dir: &Path| fs::read(dir.join("member/snap").join(snap::file_name(n))).unwrap();
                // 3.6 writes the members in the random order of a Go map.
                if series != Series::V3_6 {
                    assert!(snap_of(&ours) == snap_of(&theirs), "{what}: the snap files differ");
                }
                let (a, b) = (snap::parse(&snap_of(&ours)).unwrap(), snap::parse(&snap_of(&theirs)).unwrap());
                assert_eq!((a.index, a.term, a.conf_state), (b.index, b.term, b.conf_state), "{what}");

                let differ = differing(&rows(&data_dir::database(&ours)), &rows(&data_dir::database(&theirs)));
                // The tools leave the voters as they were; 3.4's leaves the old members in place, which its server does not read.
                let expected = |row: &String| {
                    row == "meta/confState"
                        || (series == Series::V3_4
                            && (row.starts_with("members/") || row.starts_with("members_removed/")))
                };
                assert!(differ.iter().all(expected), "{what}: {differ:?}");
                let modes = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
                assert_eq!(modes(&data_dir::database(&ours)), modes(&data_dir::database(&theirs)));
                assert_eq!(modes(&ours.join("member/snap")), modes(&theirs.join("member/snap")));
                assert_eq!(modes(&data_dir::log(&ours)), modes(&data_dir::log(&theirs)));
            }
        }
    }
}

fn last_revision(snapshot: &Path) -> i64 {
    let rows = rows(snapshot);
    let (_, key) = rows.keys().rfind(|(bucket, _)| bucket == b"key").unwrap();
    i64::from_be_bytes(key[..8].try_into().unwrap())
}

#[test]
fn what_is_written_passes_the_official_check() {
    let dir = tempfile::tempdir().unwrap();
    let snapshot = snapshot(Series::V3_6, dir.path());
    let (_, members) = members(3);
    let revision = Some(last_revision(&snapshot) + 5);
    let ours = dir.path().join("ours");
    native(
        &Form { members: &members, series: etcd::Series::V3_6, revision, clear_alarms: false },
        &snapshot,
        "m2",
        &ours,
    );
    let status =
        offline(Series::V3_6).args(["snapshot", "status", "-w", "json"]).arg(data_dir::database(&ours)).output();
    let status = status.unwrap();
    let json: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap_or_else(|_| panic!("{status:?}"));
    assert_eq!(json["revision"].as_i64(), revision);
    let tail = wal::read(&data_dir::log(&ours)).unwrap();
    assert_eq!((tail.state.commit, tail.snapshot_index), (3, 3));
    assert_eq!(tail.cluster, cluster_id(members.iter().map(|member| member.id)));
    drop(stock("true"));
}

#[test]
fn a_revision_that_is_not_above_the_last_row_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let snapshot = snapshot(Series::V3_6, dir.path());
    let (_, members) = members(1);
    let last = last_revision(&snapshot);
    let db = Db::open(File::open(&snapshot).unwrap()).unwrap();
    let out = File::create(dir.path().join("out")).unwrap();
    let form = Form { members: &members, series: etcd::Series::V3_6, revision: Some(last), clear_alarms: false };
    let error = data_dir::rewrite(&db, &form, out).unwrap_err();
    assert!(matches!(error, data_dir::Error::Revision { found, asked } if found == last && asked == last), "{error}");
}

#[test]
fn a_database_that_a_server_holds_is_in_use() {
    let cluster = Cluster::start(1, Options::default());
    let data = cluster.data_dir(0);
    assert!(data_dir::is_in_use(&data).unwrap());
    cluster.stop_member(0);
    assert!(!data_dir::is_in_use(&data).unwrap());
    assert!(!data_dir::is_in_use(Path::new("/nonexistent")).unwrap());
}
