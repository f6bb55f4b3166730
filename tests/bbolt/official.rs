//! The same numbers as the official tools, on files of real servers and on ours.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use etcd_dr::etcd::bbolt::{Damage, Db, Row, Visitor, Walked};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use super::servers::{binaries, etcd, fill, stock};
use super::{Collect, Memory, Rows, damage, write};

/// What `etcdutl snapshot status` of etcd 3.6 computes.
#[derive(Default)]
struct Status {
    hash: u32,
    revision: u64,
    live: BTreeSet<Vec<u8>>,
}

impl Visitor for Status {
    type Error = Damage;

    fn bucket_begin(&mut self, name: &[u8], _: u64) -> Result<(), Damage> {
        self.hash = crc32c::crc32c_append(self.hash, name);
        Ok(())
    }

    fn row(&mut self, row: Row<'_>) -> Result<(), Damage> {
        self.hash = crc32c::crc32c_append(crc32c::crc32c_append(self.hash, row.key), row.value);
        if row.bucket == b"key" {
            self.revision = u64::from_be_bytes(row.key[..8].try_into().unwrap());
            // Field 1 of KeyValue, whose length is below 128 in these tests.
            assert_eq!(row.value[0], 0x0A);
            let name = row.value[2..2 + usize::from(row.value[1])].to_vec();
            if row.key.len() == 18 {
                self.live.remove(&name);
            } else {
                self.live.insert(name);
            }
        }
        Ok(())
    }
}

/// What we read is what the official tool says.
#[track_caller]
fn agrees(path: &Path) -> Walked {
    let output =
        stock(binaries().join("etcdutl")).args(["snapshot", "status", "-w", "json"]).arg(path).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let theirs: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let db = Db::open(fs::File::open(path).unwrap()).unwrap();
    let mut ours = Status::default();
    let walked = db.walk(&mut ours).unwrap();
    assert_eq!(theirs["hash"], ours.hash);
    assert_eq!(theirs["revision"], ours.revision);
    assert_eq!(theirs["totalKey"], ours.live.len());
    assert_eq!(theirs["totalSize"], db.data_bytes());
    assert_eq!(walked.unknown_buckets, []);
    walked
}

/// A snapshot file of these bytes, with its trailer.
fn snapshot(path: &Path, bytes: &[u8]) {
    fs::write(path, [bytes, &Sha256::digest(bytes)].concat()).unwrap();
}

#[test]
fn a_real_snapshot_reads_as_etcdutl_reads_it_and_so_does_our_rewrite() {
    let cluster = etcd::Cluster::start(1, etcd::Options::default());
    fill::homelab(&cluster.client(0));
    let dir = TempDir::new().unwrap();
    let theirs = dir.path().join("theirs.db");
    assert!(cluster.etcdctl().args(["snapshot", "save"]).arg(&theirs).status().unwrap().success());
    let walked = agrees(&theirs);
    assert!(walked.rows > 400 && walked.branch_pages > 0 && walked.inline_buckets > 0, "{walked:?}");

    let bytes = fs::read(&theirs).unwrap();
    let db = Db::open(fs::File::open(&theirs).unwrap()).unwrap();
    assert_eq!((db.has_trailer(), db.surplus_bytes(), db.meta().freelist), (true, 0, None));
    let data = &bytes[..usize::try_from(db.data_bytes()).unwrap()];
    assert_eq!(db.trailer().unwrap().unwrap(), *Sha256::digest(data));
    let newer = db.meta().transaction;
    assert_eq!(db.other_meta().unwrap().transaction + 1, newer);

    let mut collect = Collect::default();
    db.walk(&mut collect).unwrap();
    for page_size in [4096, 8192, 65536] {
        let ours = dir.path().join(format!("ours-{page_size}.db"));
        snapshot(&ours, &write(&collect.rows, page_size).0.bytes);
        assert_eq!(agrees(&ours).free_pages, 0);
    }

    // The file of a stopped member, with what the server set aside.
    cluster.stop_member(0);
    let live = cluster.data_dir(0).join("member/snap/db");
    let db = Db::open(fs::File::open(&live).unwrap()).unwrap();
    assert!(!db.has_trailer());
    assert!(db.check().unwrap().rows >= walked.rows);

    let memory = Memory { bytes, writes: Vec::new() };
    let damaged = damage::mutate(&memory, 3_000, 2);
    assert!(damaged > 300, "{damaged}");
}

/// A server starts on what we wrote and goes on writing to it.
#[test]
fn a_server_goes_on_with_our_rewrite() {
    let cluster = etcd::Cluster::start(1, etcd::Options::default());
    fill::homelab(&cluster.client(0));
    cluster.stop_member(0);
    let live = cluster.data_dir(0).join("member/snap/db");
    let mut collect = Collect::default();
    Db::open(fs::File::open(&live).unwrap()).unwrap().walk(&mut collect).unwrap();
    fs::write(&live, &write(&collect.rows, 4096).0.bytes).unwrap();
    cluster.start_member(0);
    fill::bulk(&cluster.client(0), 2);
    cluster.stop_member(0);
    let mut after = Collect::default();
    let walked = Db::open(fs::File::open(&live).unwrap()).unwrap().walk(&mut after).unwrap();
    assert!(walked.rows > collect.order.len() as u64);
    assert!(collect.rows[&b"key"[..]].iter().all(|(key, value)| after.rows[&b"key"[..]].get(key) == Some(value)));
}

/// Values that need many pages, between small ones, in a file that the official tool accepts.
#[test]
fn etcdutl_takes_large_values_and_thousands_of_rows() {
    let mut rows = Rows::new();
    let key: &mut _ = rows.entry(b"key".to_vec()).or_default();
    for revision in 2..20_000_u64 {
        let name = format!("/registry/configmaps/default/c{}", revision % 3_000);
        let size = if revision % 1_999 == 0 { 1_500_000 } else { usize::try_from(revision % 700).unwrap() };
        let mut row = [&revision.to_be_bytes()[..], b"_", &[0; 8]].concat();
        let mut value = vec![0x0A, u8::try_from(name.len()).unwrap()];
        value.extend_from_slice(name.as_bytes());
        if revision % 11 == 0 {
            row.push(b't');
        } else {
            let mut length = size;
            value.push(0x2A);
            while length >= 128 {
                value.push(u8::try_from(length & 127).unwrap() | 128);
                length >>= 7;
            }
            value.push(u8::try_from(length).unwrap());
            value.resize(value.len() + size, b'v');
        }
        key.insert(row, value);
    }
    for name in ["alarm", "auth", "authRoles", "authUsers", "cluster", "lease", "members", "members_removed"] {
        rows.entry(name.into()).or_default();
    }
    let meta = [("consistent_index", 9_u64.to_be_bytes().to_vec()), ("term", 2_u64.to_be_bytes().to_vec())];
    rows.insert(b"meta".to_vec(), meta.map(|(name, value)| (name.into(), value)).into());
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("ours.db");
    snapshot(&path, &write(&rows, 4096).0.bytes);
    assert!(agrees(&path).overflow_pages > 3_000);
}
