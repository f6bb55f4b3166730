//! Databases changed behind etcd's back, with the project's own reader and writer: what a bug or a bad disk would have done.
#![allow(dead_code, reason = "each test file uses its part")]

use std::fs::{self, File};
use std::path::Path;

use etcd_dr::etcd::bbolt::{Damage, Db, Row, Visitor, WriteError, Writer};

/// Rewrites the database at `path`. `change` is shown each row and gives the rows that stand in its place, in order; buckets stay as they are.
pub fn rewrite(path: &Path, change: impl FnMut(&[u8], &[u8], &[u8]) -> Vec<(Vec<u8>, Vec<u8>)>) {
    let aside = path.with_extension("rewritten");
    {
        let db = Db::open(File::open(path).unwrap()).unwrap();
        let out = File::create(&aside).unwrap();
        let mut copy = Copy { writer: Writer::new(out.try_clone().unwrap(), 4096).unwrap(), change };
        db.walk(&mut copy).unwrap();
        copy.writer.finish().unwrap();
        out.sync_all().unwrap();
    }
    #[allow(clippy::disallowed_methods, reason = "a test plays the bad disk")]
    fs::rename(&aside, path).unwrap();
}

/// Changes one byte in the value of the newest row whose user key contains `part`, and gives that key's row key.
pub fn flip_value(path: &Path, part: &[u8]) -> Vec<u8> {
    let mut newest = None;
    rewrite(path, |bucket, key, value| {
        if bucket == b"key" && value.windows(part.len()).any(|window| window == part) {
            newest = Some(key.to_vec());
        }
        vec![(key.to_vec(), value.to_vec())]
    });
    let newest = newest.expect("no row has that key");
    rewrite(path, |bucket, key, value| {
        let mut value = value.to_vec();
        if bucket == b"key" && key == newest {
            // Within the user's value, which is the last long field but for a lease.
            let middle = value.len() - value.len() / 4;
            value[middle] ^= 1;
        }
        vec![(key.to_vec(), value)]
    });
    newest
}

struct Copy<F> {
    writer: Writer<File>,
    change: F,
}

#[derive(Debug)]
struct Failed(#[allow(dead_code, reason = "shown where a test fails")] String);

impl From<Damage> for Failed {
    fn from(damage: Damage) -> Self {
        Self(damage.to_string())
    }
}

impl From<WriteError> for Failed {
    fn from(error: WriteError) -> Self {
        Self(error.to_string())
    }
}

impl<F: FnMut(&[u8], &[u8], &[u8]) -> Vec<(Vec<u8>, Vec<u8>)>> Visitor for Copy<F> {
    type Error = Failed;

    fn bucket_begin(&mut self, name: &[u8], _: u64) -> Result<(), Failed> {
        Ok(self.writer.begin_bucket(name)?)
    }

    fn row(&mut self, row: Row<'_>) -> Result<(), Failed> {
        for (key, value) in (self.change)(row.bucket, row.key, row.value) {
            self.writer.put(&key, &value)?;
        }
        Ok(())
    }
}
