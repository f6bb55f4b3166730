//! A database as its rows, to be changed at will and written again: what a bug would have left, with a trailer that is right.
#![allow(dead_code, reason = "each test file uses its part")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{Read as _, Seek as _};
use std::path::Path;

use etcd_dr::etcd::bbolt::{Damage, Db, Row, Visitor, Writer};
use etcd_dr::etcd::mvcc::{KeyValue, Revision, RowKey};
use sha2::{Digest as _, Sha256};

pub const PAGE: usize = 4096;

/// Buckets by name, each with its rows.
#[derive(Clone, Default)]
pub struct Rows(pub BTreeMap<Vec<u8>, BTreeMap<Vec<u8>, Vec<u8>>>);

impl Visitor for Rows {
    type Error = Damage;

    fn bucket_begin(&mut self, name: &[u8], _: u64) -> Result<(), Damage> {
        self.0.insert(name.to_vec(), BTreeMap::new());
        Ok(())
    }

    fn row(&mut self, row: Row<'_>) -> Result<(), Damage> {
        self.0.get_mut(row.bucket).unwrap().insert(row.key.to_vec(), row.value.to_vec());
        Ok(())
    }
}

/// A change of one key: its new value, or none to delete it.
pub type Change<'a> = (&'a str, Option<&'a str>);

impl Rows {
    pub fn read(path: &Path) -> Self {
        let mut rows = Self::default();
        Db::open(File::open(path).unwrap()).unwrap().walk(&mut rows).unwrap();
        rows
    }

    pub fn bucket(&mut self, name: &str) -> &mut BTreeMap<Vec<u8>, Vec<u8>> {
        self.0.entry(name.into()).or_default()
    }

    pub fn put(&mut self, bucket: &str, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) {
        self.bucket(bucket).insert(key.as_ref().to_vec(), value.as_ref().to_vec());
    }

    /// Main revision of the last record.
    pub fn revision(&self) -> i64 {
        let last = self.0[&b"key"[..]].last_key_value();
        last.map_or(1, |(key, _)| RowKey::parse(key).unwrap().revision.main)
    }

    /// The newest row of a key, if it lives.
    pub fn newest(&self, name: &str) -> Option<(RowKey, KeyValue<'_>)> {
        let mut rows = self.0[&b"key"[..]].iter().rev();
        let found = rows.find_map(|(key, value)| {
            let record = KeyValue::parse(value).unwrap();
            (record.key == name.as_bytes()).then(|| (RowKey::parse(key).unwrap(), record))
        });
        found.filter(|(row, _)| !row.tombstone)
    }

    /// Applies one transaction as a server does, and gives its revision.
    pub fn apply(&mut self, changes: &[Change<'_>]) -> i64 {
        let main = self.revision() + 1;
        for (sub, (name, value)) in (0..).zip(changes) {
            let before = self.newest(name).map(|(_, record)| (record.create_revision, record.version));
            let record = value.map_or_else(
                || KeyValue { key: name.as_bytes(), ..KeyValue::default() },
                |value| {
                    let (create_revision, version) = before.unwrap_or((main, 0));
                    let (key, value) = (name.as_bytes(), value.as_bytes());
                    KeyValue { key, create_revision, mod_revision: main, version: version + 1, value, lease: 0 }
                },
            );
            let row = RowKey { revision: Revision { main, sub }, tombstone: value.is_none() };
            self.put("key", row.to_bytes(), record.to_bytes());
        }
        main
    }

    /// Carries a compaction out as servers did before they kept a tombstone that is the compaction's own revision.
    pub fn compact(&mut self, at: i64) {
        let records = self.bucket("key");
        let (mut newest, mut gone) = (BTreeSet::new(), Vec::new());
        for (key, value) in records.iter().rev() {
            let row = RowKey::parse(key).unwrap();
            let name = KeyValue::parse(value).unwrap().key.to_vec();
            if row.revision.main <= at && (!newest.insert(name) || row.tombstone) {
                gone.push(key.clone());
            }
        }
        records.retain(|key, _| !gone.contains(key));
        for row in ["scheduledCompactRev", "finishedCompactRev"] {
            self.put("meta", row, mark(at));
        }
    }

    /// The file, without a trailer.
    pub fn body(&self) -> Vec<u8> {
        let mut file = tempfile::tempfile().unwrap();
        let mut writer = Writer::new(file.try_clone().unwrap(), u32::try_from(PAGE).unwrap()).unwrap();
        for (name, rows) in &self.0 {
            writer.begin_bucket(name).unwrap();
            for (key, value) in rows {
                writer.put(key, value).unwrap();
            }
        }
        writer.finish().unwrap();
        let mut bytes = Vec::new();
        file.rewind().unwrap();
        file.read_to_end(&mut bytes).unwrap();
        bytes
    }

    /// The file as a member streams it.
    pub fn snapshot(&self) -> Vec<u8> {
        sealed(self.body())
    }
}

/// A revision as bucket `meta` has it.
pub fn mark(main: i64) -> [u8; 17] {
    Revision { main, sub: 0 }.to_bytes()
}

/// A body with the trailer that fits it.
pub fn sealed(mut body: Vec<u8>) -> Vec<u8> {
    let digest = Sha256::digest(&body);
    body.extend_from_slice(&digest);
    body
}

/// Changes both metas at an offset within them, and sums them again.
pub fn set_metas(body: &mut [u8], at: usize, bytes: &[u8]) {
    for page in [0, PAGE] {
        let from = page + 16 + at;
        body[from..from + bytes.len()].copy_from_slice(bytes);
    }
    sum_metas(body);
}

/// FNV-1a over the 56 bytes before it, as bbolt sums its metas.
pub fn sum_metas(body: &mut [u8]) {
    for meta in [16, PAGE + 16] {
        let sum = body[meta..meta + 56]
            .iter()
            .fold(0xcbf2_9ce4_8422_2325_u64, |sum, &byte| (sum ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
        body[meta + 56..meta + 64].copy_from_slice(&sum.to_le_bytes());
    }
}

/// The first page of a type (1 branch, 2 leaf) that has more than one element.
pub fn page_of(body: &[u8], flags: u8) -> usize {
    let wanted = |page: &usize| {
        let header = &body[page * PAGE..];
        header[..8] == (*page as u64).to_le_bytes() && header[8..10] == [flags, 0] && (header[10] > 1 || header[11] > 0)
    };
    (2..body.len() / PAGE).find(wanted).expect("such a page")
}

/// Where bytes that occur once are.
pub fn find(body: &[u8], part: &[u8]) -> usize {
    let mut found = body.windows(part.len()).enumerate().filter(|(_, window)| *window == part).map(|(at, _)| at);
    let first = found.next().expect("they are in it");
    assert_eq!(found.next(), None, "they occur once");
    first
}

pub fn write(path: &Path, bytes: &[u8]) {
    fs::write(path, bytes).unwrap();
}
