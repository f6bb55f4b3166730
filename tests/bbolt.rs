//! etcd's database files: written in bulk and read back, read as etcd and its tools write them, and never believed when they are damaged.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs,
    reason = "a failed test is a panic"
)]

#[path = "bbolt/damage.rs"]
mod damage;
#[path = "bbolt/official.rs"]
mod official;
mod servers;

use std::collections::BTreeMap;
use std::io;

use etcd_dr::etcd::ReadAt;
use etcd_dr::etcd::bbolt::{Damage, Db, Foreign, Row, Visitor, Walked, WriteAt, WriteError, Writer, Written};
use proptest::prelude::*;

/// Buckets, and their rows.
type Rows = BTreeMap<Vec<u8>, BTreeMap<Vec<u8>, Vec<u8>>>;

/// A file in memory, and the writes that made it.
#[derive(Clone, Default)]
struct Memory {
    bytes: Vec<u8>,
    writes: Vec<(u64, usize)>,
}

impl ReadAt for Memory {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let begin = usize::try_from(offset).unwrap();
        let from = self.bytes.get(begin..begin + buffer.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        buffer.copy_from_slice(from);
        Ok(())
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.bytes.len() as u64)
    }
}

impl WriteAt for Memory {
    fn write_all_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let begin = usize::try_from(offset).unwrap();
        assert_eq!(bytes.as_ptr().align_offset(4096), 0, "memory that direct I/O takes");
        self.bytes.resize(self.bytes.len().max(begin + bytes.len()), 0xEE);
        self.bytes[begin..begin + bytes.len()].copy_from_slice(bytes);
        self.writes.push((offset, bytes.len()));
        Ok(())
    }
}

/// Collects everything.
#[derive(Default)]
struct Collect {
    rows: Rows,
    order: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Visitor for Collect {
    type Error = Damage;

    fn bucket_begin(&mut self, name: &[u8], sequence: u64) -> Result<(), Damage> {
        assert_eq!(sequence, 0);
        assert!(self.rows.insert(name.to_vec(), BTreeMap::new()).is_none());
        Ok(())
    }

    fn row(&mut self, row: Row<'_>) -> Result<(), Damage> {
        self.order.push((row.bucket.to_vec(), row.key.to_vec()));
        let bucket = self.rows.get_mut(row.bucket).expect("a bucket that began");
        assert!(bucket.insert(row.key.to_vec(), row.value.to_vec()).is_none());
        Ok(())
    }
}

fn write(rows: &Rows, page_size: u32) -> (Memory, Written) {
    let mut memory = Memory::default();
    let mut writer = Writer::new(&mut memory, page_size).unwrap();
    for (name, rows) in rows {
        writer.begin_bucket(name).unwrap();
        for (key, value) in rows {
            writer.put(key, value).unwrap();
        }
    }
    let written = writer.finish().unwrap();
    (memory, written)
}

fn read(memory: &Memory) -> Result<(Collect, Walked), Damage> {
    let mut collect = Collect::default();
    let walked = Db::open(memory)?.walk(&mut collect)?;
    Ok((collect, walked))
}

/// What holds for every file that was written.
fn reads_back(rows: &Rows, page_size: u32) -> (Memory, Walked) {
    let (memory, written) = write(rows, page_size);
    let db = Db::open(&memory).unwrap();
    assert_eq!(db.page_size(), u64::from(page_size));
    assert_eq!((db.surplus_bytes(), db.has_trailer()), (0, false));
    assert_eq!(written.bytes, memory.bytes.len() as u64);
    assert_eq!(written.pages, db.high_water().0);
    let (collect, walked) = read(&memory).unwrap();
    assert!(collect.rows == *rows, "what is read is not what was written");
    assert!(collect.order.is_sorted());
    assert_eq!(written.rows, walked.rows);
    assert_eq!(walked.buckets, rows.len() as u64);
    assert_eq!((walked.free_pages, walked.freelist_pages), (0, 1));
    assert_eq!(walked.branch_pages + walked.leaf_pages + walked.overflow_pages + 3, written.pages);
    for (name, rows) in rows {
        let mut seen = BTreeMap::new();
        let found = db.walk_bucket(name, |row| {
            let at = usize::try_from(row.offset).unwrap();
            assert_eq!(&memory.bytes[at..at + row.key.len()], row.key, "the offset is the key's");
            seen.insert(row.key.to_vec(), row.value.to_vec());
            Ok::<_, Damage>(())
        });
        assert!(found.unwrap());
        assert!(seen == *rows);
    }
    assert!(!db.walk_bucket(b"no such bucket", |_| Ok::<_, Damage>(())).unwrap());
    let (&(last, length), others) = memory.writes.split_last().unwrap();
    assert_eq!(last, 0, "the metas come last");
    let chunks = others.iter().enumerate();
    for (i, &(offset, bytes)) in chunks {
        assert_eq!(offset, (i as u64 + 1) << 20);
        assert!(bytes == 1 << 20 || i + 1 == others.len());
        assert_eq!(bytes % page_size as usize, 0);
    }
    assert!(others.is_empty() || length == 1 << 20);
    (memory, walked)
}

fn value() -> impl Strategy<Value = Vec<u8>> {
    let filled = |size: std::ops::Range<usize>| (size, any::<u8>()).prop_map(|(size, byte)| vec![byte; size]);
    prop_oneof![
        10 => prop::collection::vec(any::<u8>(), 0..100),
        6 => filled(0..5_000),
        3 => filled(0..20_000),
        1 => filled(65_000..200_000),
    ]
}

fn key() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        8 => prop::collection::vec(any::<u8>(), 1..30),
        2 => prop::collection::vec(any::<u8>(), 1..=300),
        1 => prop::collection::vec(any::<u8>(), 1_000..3_000),
    ]
}

fn rows() -> impl Strategy<Value = Rows> {
    let bucket = prop_oneof![
        3 => prop::collection::btree_map(key(), value(), 0..300),
        1 => prop::collection::btree_map(key(), prop::collection::vec(any::<u8>(), 0..20), 0..6),
    ];
    prop::collection::btree_map(prop::collection::vec(any::<u8>(), 1..20), bucket, 0..6)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_written_reads_back(rows in rows(), page_size in prop::sample::select(vec![1024_u32, 4096, 8192, 65536])) {
        reads_back(&rows, page_size);
    }
}

#[test]
fn many_rows_make_several_levels() {
    let few = |n: u32| (n.to_be_bytes().to_vec(), vec![7; (n % 90) as usize]);
    for (page_size, count) in [(1024, 60_000), (4096, 200_000), (8192, 100_000), (65536, 300_000)] {
        let rows = Rows::from([(b"key".to_vec(), (0..count).map(few).collect())]);
        let (_, walked) = reads_back(&rows, page_size);
        assert!(walked.branch_pages > 1 || page_size == 65536, "{walked:?}");
        assert!(walked.unknown_buckets.is_empty());
    }
}

/// At every number of leaves near the sizes of a branch there is no branch with one child.
#[test]
fn no_branch_has_one_child() {
    // A leaf a row; 39 children of 8-byte keys fill a branch of 1024 bytes, so 42 leaves make two levels, and 1640 three.
    for count in (1..100).chain(1500..1700) {
        let row = |n: u64| (n.to_be_bytes().to_vec(), vec![1; 900]);
        let rows = Rows::from([(b"key".to_vec(), (0..count).map(row).collect())]);
        let (memory, _) = write(&rows, 1024);
        for page in memory.bytes.chunks(1024) {
            let (flags, children) = (page[8], u16::from_le_bytes([page[10], page[11]]));
            assert!(flags != 1 || children > 1, "{count} leaves");
        }
        assert_eq!(Db::open(&memory).unwrap().check().unwrap().rows, count);
    }
}

/// Keys larger than a page, of which a branch has two all the same.
#[test]
fn long_keys_make_branches_that_overflow() {
    for count in 1..40_u8 {
        let row = |n: u8| (vec![n; 30_000], vec![n]);
        reads_back(&Rows::from([(b"key".to_vec(), (0..count).map(row).collect())]), 4096);
    }
}

#[test]
fn an_empty_database_and_empty_buckets() {
    let (_, walked) = reads_back(&Rows::new(), 4096);
    assert_eq!((walked.buckets, walked.leaf_pages), (0, 1));
    let names = ["alarm", "key", "lease", "other"];
    let (_, walked) = reads_back(&names.map(|name| (name.into(), BTreeMap::new())).into(), 4096);
    assert_eq!((walked.buckets, walked.inline_buckets, walked.leaf_pages), (4, 4, 1));
    assert_eq!(walked.unknown_buckets.iter().map(ToString::to_string).collect::<Vec<_>>(), ["other"]);
}

#[test]
fn the_writer_takes_rows_in_order_only() {
    let fresh = || Writer::new(Memory::default(), 4096).unwrap();
    let words = |error: WriteError| error.to_string();
    assert_eq!(words(fresh().put(b"a", b"").unwrap_err()), "row a belongs to no bucket");
    let mut writer = fresh();
    writer.begin_bucket(b"key").unwrap();
    writer.put(b"b", b"").unwrap();
    assert_eq!(words(writer.put(b"b", b"").unwrap_err()), "bucket key: b comes after b");
    assert_eq!(words(writer.put(b"a", b"").unwrap_err()), "bucket key: a comes after b");
    assert_eq!(words(writer.put(b"", b"").unwrap_err()), "bucket key: key \"\" has 0 bytes; 1 to 32768 are possible");
    assert!(matches!(writer.put(&vec![9; 32_769], b""), Err(WriteError::Key { bytes: 32_769, .. })));
    writer.put(&vec![b'z'; 32_768], b"").unwrap();
    assert_eq!(words(writer.begin_bucket(b"auth").unwrap_err()), "bucket auth: auth comes after key");
    for page_size in [0, 512, 4095, 1 << 17] {
        assert!(matches!(Writer::new(Memory::default(), page_size), Err(WriteError::PageSize { .. })));
    }
}

#[test]
fn what_is_no_database_is_named() {
    let name = |bytes: &[u8]| match Db::open(Memory { bytes: bytes.to_vec(), writes: Vec::new() }) {
        Err(Damage::Foreign(foreign)) => foreign,
        other => panic!("{:?}", other.map(|_| ())),
    };
    let mut tar = vec![0; 1024];
    tar[..4].copy_from_slice(b"name");
    tar[257..262].copy_from_slice(b"ustar");
    let zstd = zstd::encode_all(&[7; 9_000][..], 3).unwrap();
    let wal = b"\x04\0\0\0\0\0\0\x84\x08\x04\x10\0\0\0\0\0\x20\0\0\0\0\0\0\0\x08\x01\x10\x94";
    for (bytes, foreign) in [
        (&[][..], Foreign::Empty),
        (&[0; 10_000], Foreign::Zeros),
        (b"\x1f\x8b\x08\0rest of it", Foreign::Gzip),
        (&zstd, Foreign::Zstd),
        (b"\xfd7zXZ\0\0\x04", Foreign::Xz),
        (b"BZh91AY", Foreign::Bzip2),
        (b"age-encryption.org/v1\n-> X25519 abc\n", Foreign::Age),
        (b"-----BEGIN AGE ENCRYPTED FILE-----\nYWdl", Foreign::Age),
        (&tar, Foreign::Tar),
        (b"SQLite format 3\0\x10\0", Foreign::Sqlite),
        (wal, Foreign::Wal),
        ("apiVersion: v1\nkind: Größe\n".repeat(99).as_bytes(), Foreign::Text),
        (&[0xAB; 5_000], Foreign::Unknown),
    ] {
        assert_eq!(name(bytes), foreign);
    }
}
