//! The log of a real member, of several segments: what its tail says beside what the member and its database said.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs,
    reason = "a failed test is a panic"
)]

mod servers;

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use etcd_dr::etcd::{
    bbolt::{Damage, Db},
    data_dir, wal,
};
use servers::{
    Series,
    etcd::{Cluster, Options},
    wait,
};

/// Just below what a request may have.
const VALUE: usize = 1_500_000;

fn put(cluster: &Cluster, count: usize) {
    let mut client = cluster.client(0);
    wait(async move {
        for i in 0..count {
            client.put(format!("big/{}", i % 3), vec![b'v'; VALUE], None).await.unwrap();
        }
    });
}

/// Cluster, member, and the last index that is agreed, as the member says.
fn said(cluster: &Cluster) -> (u64, u64, u64) {
    let mut client = cluster.client(0);
    wait(async move {
        let status = client.status().await.unwrap();
        let header = status.header().unwrap();
        (header.cluster_id(), header.member_id(), status.raft_index())
    })
}

fn consistent_index(data: &Path) -> u64 {
    let db = Db::open(File::open(data_dir::database(data)).unwrap()).unwrap();
    let mut index = None;
    let found = db.walk_bucket(b"meta", |row| {
        if row.key == b"consistent_index" {
            index = Some(u64::from_be_bytes(row.value.try_into().unwrap()));
        }
        Ok::<_, Damage>(())
    });
    assert!(found.unwrap());
    index.unwrap()
}

fn segments(data: &Path) -> Vec<PathBuf> {
    let mut all: Vec<PathBuf> = fs::read_dir(data_dir::log(data)).unwrap().map(|entry| entry.unwrap().path()).collect();
    all.retain(|path| path.extension().is_some_and(|extension| extension == "wal"));
    all.sort();
    all
}

fn tail_of(series: Series) {
    let cluster = Cluster::start(1, Options { series, ..Options::default() });
    put(&cluster, 50);
    let (id, member, index) = said(&cluster);
    let data = cluster.data_dir(0);
    cluster.stop_member(0);

    let all = segments(&data);
    assert!(all.len() >= 2, "{series:?}: {all:?}");
    let tail = wal::read(&data_dir::log(&data)).unwrap();
    assert_eq!((tail.cluster, tail.member), (id, member), "{series:?}");
    assert!(tail.last_index >= index, "{series:?}: {tail:?}, {index} was agreed");
    assert_eq!(tail.torn, None);
    // Who stops in peace writes everything down.
    assert_eq!(tail.ahead_of(consistent_index(&data)), 0, "{series:?}: {tail:?}");

    // Killed right behind a write: the log has what was answered for, whatever the database has.
    cluster.start_member(0);
    put(&cluster, 2);
    let (.., index) = said(&cluster);
    cluster.kill_member(0);
    let tail = wal::read(&data_dir::log(&data)).unwrap();
    assert!(tail.last_index >= index, "{series:?}: {tail:?}, {index} was agreed");
    assert!(consistent_index(&data) <= tail.last_index);

    // One segment gone from between: the others are no log. The oldest may go.
    let all = segments(&data);
    let copy = tempfile::tempdir().unwrap();
    for path in &all {
        fs::copy(path, copy.path().join(path.file_name().unwrap())).unwrap();
    }
    fs::remove_file(copy.path().join(all[0].file_name().unwrap())).unwrap();
    let without_oldest = wal::read(copy.path()).unwrap();
    assert_eq!(without_oldest, tail);

    // A bit that flips in an entry of the older segment.
    fs::copy(&all[0], copy.path().join(all[0].file_name().unwrap())).unwrap();
    let path = copy.path().join(all[0].file_name().unwrap());
    let mut bytes = fs::read(&path).unwrap();
    bytes[10_000_000] ^= 1;
    fs::write(&path, bytes).unwrap();
    let error = wal::read(copy.path()).unwrap_err().to_string();
    assert!(error.contains(path.to_str().unwrap()) && error.contains("its CRC is"), "{error}");
}

#[test]
fn the_tail_of_a_member_of_3_6_is_what_it_said() {
    tail_of(Series::V3_6);
}

#[test]
fn the_tail_of_a_member_of_3_5_is_what_it_said() {
    tail_of(Series::V3_5);
}

#[test]
fn the_tail_of_a_member_of_3_4_is_what_it_said() {
    tail_of(Series::V3_4);
}
