//! A damaged file for each rule, with the words expected, and thousands of random ones.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use etcd_dr::etcd::ReadAt;
use etcd_dr::etcd::bbolt::{Damage, Db, MetaFault, PageId};
use rand::{Rng, SeedableRng, rngs::SmallRng};

use super::{Memory, Rows, write};

const PAGE: usize = 4096;
/// Where things are in [`sound`].
const FREELIST: usize = 2;
const LEAF: usize = 5;
const LAST_LEAF: usize = 12;
const BRANCH: usize = 13;
const ROOT: usize = 14;
const HIGH_WATER: u64 = 15;

/// Ten leaves of bucket `key` under one branch; `alarm` and `meta` lie in the root.
fn sound() -> Memory {
    let key = (0..300).map(|n| (format!("k{n:07}").into_bytes(), vec![b'v'; 100])).collect();
    let meta = [(b"term".to_vec(), vec![0; 8])].into();
    let rows = Rows::from([(b"key".to_vec(), key), (b"meta".to_vec(), meta), (b"alarm".to_vec(), [].into())]);
    let (memory, written) = write(&rows, 4096);
    assert_eq!(written.pages, HIGH_WATER);
    let kind = |page: usize| memory.bytes[page * PAGE + 8];
    assert_eq!([FREELIST, 3, LEAF, LAST_LEAF, BRANCH, ROOT].map(kind), [16, 2, 2, 2, 1, 2]);
    memory
}

/// Small edits of a file.
trait Edit {
    fn put(&mut self, at: usize, bytes: &[u8]);
    fn get(&self, at: usize) -> u32;
    fn metas(&mut self, at: usize, bytes: &[u8]);
    fn resum(&mut self);
    fn add_page(&mut self, flags: u16, count: u16, content: &[u8]) -> u64;
}

impl Edit for Memory {
    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn get(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.bytes[at..at + 4].try_into().unwrap())
    }

    /// Changes both metas, at an offset in the meta, and sums them again.
    fn metas(&mut self, at: usize, bytes: &[u8]) {
        for page in [0, PAGE] {
            self.put(page + 16 + at, bytes);
        }
        self.resum();
    }

    fn resum(&mut self) {
        for meta in [16, PAGE + 16] {
            let sum = self.bytes[meta..meta + 56]
                .iter()
                .fold(0xcbf2_9ce4_8422_2325_u64, |sum, &b| (sum ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
            self.put(meta + 56, &sum.to_le_bytes());
        }
    }

    fn add_page(&mut self, flags: u16, count: u16, content: &[u8]) -> u64 {
        let id = (self.bytes.len() / PAGE) as u64;
        self.bytes.extend_from_slice(&id.to_le_bytes());
        self.bytes.extend_from_slice(&flags.to_le_bytes());
        self.bytes.extend_from_slice(&count.to_le_bytes());
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(content);
        self.bytes.resize((usize::try_from(id).unwrap() + 1) * PAGE, 0);
        self.metas(40, &(id + 1).to_le_bytes());
        id
    }
}

fn element(page: usize, index: usize) -> usize {
    page * PAGE + 16 + 16 * index
}

/// Where the key of a leaf's element is.
fn key(file: &Memory, page: usize, index: usize) -> usize {
    let at = element(page, index);
    at + file.get(at + 4) as usize
}

/// A branch's content with one child.
fn branch(key: &[u8], child: u64) -> Vec<u8> {
    let size = u32::try_from(key.len()).unwrap();
    [&16_u32.to_le_bytes()[..], &size.to_le_bytes(), &child.to_le_bytes(), key].concat()
}

fn judge(file: impl ReadAt) -> Damage {
    match Db::open(file).and_then(|db| db.check()) {
        Err(damage) => damage,
        Ok(walked) => panic!("sound: {walked:?}"),
    }
}

#[track_caller]
fn says(edit: impl FnOnce(&mut Memory), words: &str) {
    let mut file = sound();
    edit(&mut file);
    assert_eq!(judge(&file).to_string(), words);
}

/// The same, where the damage is in a page of bucket `key`.
#[track_caller]
fn page_says(edit: impl FnOnce(&mut Memory), page: usize, words: &str) {
    says(edit, &format!("bucket key, page {page} (offset {}): {words}", page * PAGE));
}

#[test]
fn the_file_that_the_others_are_made_of_is_sound() {
    let file = sound();
    let walked = Db::open(&file).unwrap().check().unwrap();
    assert_eq!((walked.rows, walked.leaf_pages, walked.branch_pages, walked.free_pages), (301, 11, 1, 0));
}

#[test]
fn a_file_that_is_too_short() {
    says(|f| f.bytes.truncate(ROOT * PAGE), "truncated: the database has 61440 bytes, the file holds 57344 of them");
    says(|f| f.bytes.truncate(100), "truncated: the database has 61440 bytes, the file holds 100 of them");
    says(
        |f| f.metas(40, &u64::MAX.to_le_bytes()),
        "truncated: the database has 18446744073709551615 bytes, the file holds 61440 of them",
    );
}

#[test]
fn a_longer_file_is_told_by_its_trailer() {
    let mut file = sound();
    file.bytes.extend_from_slice(&[0xAB; 32]);
    let db = Db::open(&file).unwrap();
    assert_eq!((db.has_trailer(), db.surplus_bytes(), db.trailer().unwrap()), (true, 0, Some([0xAB; 32])));
    file.bytes.resize(20 * PAGE, 0);
    let db = Db::open(&file).unwrap();
    assert_eq!((db.has_trailer(), db.surplus_bytes(), db.data_bytes()), (false, 5 * 4096, 15 * 4096));
    file.bytes.extend_from_slice(&[0xAB; 32]);
    let db = Db::open(&file).unwrap();
    assert_eq!((db.has_trailer(), db.surplus_bytes()), (true, 5 * 4096));
}

#[test]
fn damaged_metas() {
    says(
        |f| f.metas(4, &3_u32.to_le_bytes()),
        "the database's format is version 3; version 2 is known, that of etcd 3.4 to 3.6",
    );
    says(|f| f.metas(8, &5000_u32.to_le_bytes()), "the database names a page size of 5000 bytes");
    says(
        |f| f.metas(16, &15_u64.to_le_bytes()),
        "the meta of page 0 names page 15 as the root; pages are from 2 to 15, exclusive",
    );
    says(
        |f| f.metas(32, &1_u64.to_le_bytes()),
        "the meta of page 0 names page 1 as the freelist; pages are from 2 to 15, exclusive",
    );
    let mut file = sound();
    file.bytes[16 + 48] ^= 1;
    let db = Db::open(&file).unwrap();
    assert_eq!(db.meta().transaction, 1, "the other one counts");
    assert!(matches!(db.other_meta(), Err(MetaFault::Checksum { .. })));
    db.check().unwrap();
    file.bytes[PAGE + 16 + 48] ^= 1;
    let words = judge(&file).to_string();
    assert!(words.starts_with("neither meta page can be used: page 0: its checksum is "), "{words}");
    for (page, size) in [(0, 5000_u32), (0, 8192), (1, 8192), (1, 0)] {
        let edit = |f: &mut Memory| {
            f.put(page * PAGE + 16 + 8, &size.to_le_bytes());
            f.resum();
        };
        match (page, size) {
            // The second one is looked for behind the first one's page.
            (0, 8192) => says(edit, "truncated: the database has 122880 bytes, the file holds 61440 of them"),
            _ => says(
                edit,
                &format!("the meta of page {page} names a page size of {size} bytes, and the other meta another"),
            ),
        }
    }
    // The newer one counts, on whichever page.
    let mut file = sound();
    file.put(PAGE + 16 + 48, &7_u64.to_le_bytes());
    file.resum();
    assert_eq!(Db::open(&file).unwrap().meta().transaction, 7);
    // Found by bbolt's search where the first page is lost.
    let mut file = sound();
    file.put(16, &[0; 64]);
    assert_eq!(Db::open(&file).unwrap().page_size(), 4096);
}

#[test]
fn damaged_headers_of_the_metas() {
    says(|f| f.bytes[PAGE] = 9, "page 1 (offset 4096): its header says that it is page 9");
    says(|f| f.bytes[8] = 2, "page 0 (offset 0): it is a leaf; expected a meta");
    says(|f| f.bytes[8] = 7, "page 0 (offset 0): its flags are 0x0007, which is no type of page; expected a meta");
}

#[test]
fn damaged_headers() {
    page_says(|f| f.bytes[LEAF * PAGE] = 77, LEAF, "its header says that it is page 77");
    let flags = "its flags are 0x0003, which is no type of page; expected a branch or leaf";
    page_says(|f| f.bytes[LEAF * PAGE + 8] = 3, LEAF, flags);
    page_says(|f| f.bytes[LEAF * PAGE + 8] = 16, LEAF, "it is a freelist; expected a branch or leaf");
    let end = "it continues on 3 more pages, past the end at page 15";
    page_says(|f| f.bytes[LAST_LEAF * PAGE + 12] = 3, LAST_LEAF, end);
    page_says(|f| f.put(LEAF * PAGE + 10, &60_000_u16.to_le_bytes()), LEAF, "60000 elements do not fit into it");
    page_says(|f| f.put(BRANCH * PAGE + 10, &[0; 2]), BRANCH, "it is a branch without children");
}

#[test]
fn pages_that_are_reached_twice_or_do_not_exist() {
    let child = |f: &mut Memory, page: u64| f.put(element(BRANCH, 2) + 8, &page.to_le_bytes());
    let twice = "it is reached a second time, from page 13";
    page_says(|f| child(f, 3), 3, twice);
    page_says(|f| child(f, 13), 13, twice);
    page_says(|f| f.bytes[LEAF * PAGE + 12] = 1, LEAF + 1, twice);
    page_says(|f| child(f, 2), 2, "it is a freelist; expected a branch or leaf");
    page_says(|f| child(f, 99), 99, "there is no such page; pages are from 2 to 15, exclusive");
    page_says(|f| child(f, 1), 1, "there is no such page; pages are from 2 to 15, exclusive");
    says(
        |f| child(f, u64::MAX),
        "bucket key, page 18446744073709551615 (offset 18446744073709551615): there is no such page; pages are from 2 to 15, exclusive",
    );
}

#[test]
fn elements_that_point_elsewhere() {
    page_says(
        |f| f.put(element(LEAF, 2) + 4, &4_000_000_000_u32.to_le_bytes()),
        LEAF,
        "element 2 points out of its 4096 bytes: position 4000000000, key of 8 bytes, value of 100",
    );
    page_says(
        |f| f.put(element(LEAF, 0) + 12, &4000_u32.to_le_bytes()),
        LEAF,
        "element 0 points out of its 4096 bytes: position 512, key of 8 bytes, value of 4000",
    );
    page_says(
        |f| f.put(element(BRANCH, 1) + 4, &u32::MAX.to_le_bytes()),
        BRANCH,
        "element 1 points out of its 4096 bytes: position 152, key of 4294967295 bytes, value of 0",
    );
    let onto = |f: &mut Memory, by: u32| {
        let at = element(LEAF, 1) + 4;
        let position = f.get(at) - by;
        f.put(at, &position.to_le_bytes());
    };
    page_says(|f| onto(f, 108), LEAF, "element 1 lies on top of what is before it");
    page_says(|f| onto(f, 200), LEAF, "element 1 lies on top of what is before it");
    page_says(|f| f.bytes[element(LEAF, 2)] = 4, LEAF, "element 2 has flags 0x4");
    page_says(|f| f.bytes[element(LEAF, 2)] = 1, LEAF, "element 2: k0000066 is a bucket inside a bucket");
}

#[test]
fn keys_out_of_order() {
    let rename = |f: &mut Memory, index: usize, to: &[u8; 8]| f.put(key(f, LEAF, index), to);
    page_says(|f| rename(f, 5, b"k0000067"), LEAF, "element 5: key k0000067 comes after k0000068");
    page_says(|f| rename(f, 5, b"k0000068"), LEAF, "element 5: key k0000068 comes after k0000068");
    let below = "element 0: key 0x6100303030303030 is below k0000064, the page's key in the branch above";
    page_says(|f| rename(f, 0, b"a\x00000000"), LEAF, below);
    let above = "element 31: key k0000096 is not below k0000096, the next page's key in a branch above";
    page_says(|f| rename(f, 31, b"k0000096"), LEAF, above);
    let branch = |f: &mut Memory| {
        let at = element(BRANCH, 2);
        f.put(at + f.get(at) as usize, b"k0000001");
    };
    page_says(branch, BRANCH, "element 2: key k0000001 comes after k0000032");
}

/// The bound of a branch holds for the last page below its last child as well.
#[test]
fn bounds_are_inherited() {
    let mut file = sound();
    // A level more: leaf 5 becomes the only child of a new branch, whose upper bound is that of the branch above it; every other leaf too.
    for (index, leaf) in (3..=12_u64).enumerate() {
        let at = element(BRANCH, index);
        let name = file.bytes[at + file.get(at) as usize..][..8].to_vec();
        let page = file.add_page(1, 1, &branch(&name, leaf));
        file.put(element(BRANCH, index) + 8, &page.to_le_bytes());
    }
    file.metas(32, &u64::MAX.to_le_bytes());
    assert_eq!(Db::open(&file).unwrap().check().unwrap().branch_pages, 11);
    let last = key(&file, LEAF, 31);
    file.put(last, b"k0000096");
    let words = "bucket key, page 5 (offset 20480): element 31: key k0000096 is not below k0000096, the next page's key in a branch above";
    assert_eq!(judge(&file).to_string(), words);
}

#[test]
fn leaves_at_different_depths_and_trees_without_end() {
    let deeper = |f: &mut Memory| {
        let content = f.bytes[LEAF * PAGE + 16..(LEAF + 1) * PAGE].to_vec();
        let leaf = f.add_page(2, 32, &content);
        let below = branch(b"k0000064", leaf);
        f.put(LEAF * PAGE + 8, &[1, 0, 1, 0]);
        f.put(LEAF * PAGE + 16, &below);
    };
    page_says(deeper, 15, "this leaf lies 2 levels below its root, the first one 1");
    let endless = |f: &mut Memory| {
        let mut child = 3;
        for _ in 0..70 {
            child = f.add_page(1, 1, &branch(b"k", child));
        }
        f.put(element(BRANCH, 0) + 8, &child.to_le_bytes());
        // The key of the first child bounds those below it.
        let at = element(BRANCH, 0);
        f.put(at + f.get(at) as usize, b"a0000000");
    };
    page_says(endless, 21, "it lies 64 levels below its root; the deepest that is read is 64");
}

#[test]
fn damaged_freelists() {
    let list = |f: &mut Memory, ids: &[u64]| {
        f.put(FREELIST * PAGE + 10, &u16::try_from(ids.len()).unwrap().to_le_bytes());
        for (i, id) in ids.iter().enumerate() {
            f.put(FREELIST * PAGE + 16 + 8 * i, &id.to_le_bytes());
        }
    };
    says(|f| list(f, &[5]), "page 5 (offset 20480): it is in use, and the freelist calls it free");
    let unlisted = "page 15 (offset 61440): nothing reaches it, and the freelist does not call it free";
    let add = |f: &mut Memory| {
        f.add_page(2, 0, b"");
    };
    says(add, unlisted);
    let free = |f: &mut Memory, ids: &[u64]| {
        f.add_page(2, 0, b"");
        f.add_page(2, 0, b"");
        list(f, ids);
    };
    let mut file = sound();
    free(&mut file, &[15, 16]);
    let walked = Db::open(&file).unwrap().check().unwrap();
    assert_eq!((walked.free_pages, walked.free_bytes, walked.freelist_pages), (2, 8192, 1));
    // The long form, whose first entry is the count.
    file.put(FREELIST * PAGE + 10, &[0xff; 2]);
    for (i, word) in [2_u64, 15, 16].iter().enumerate() {
        file.put(FREELIST * PAGE + 16 + 8 * i, &word.to_le_bytes());
    }
    assert_eq!(Db::open(&file).unwrap().check().unwrap().free_pages, 2);
    let at = "page 2 (offset 8192)";
    let order = |id: u64, after: u64| format!("{at}: entry 1 of the freelist is page {id}, after page {after}");
    says(|f| free(f, &[16, 15]), &order(15, 16));
    says(|f| free(f, &[15, 15]), &order(15, 15));
    let range = format!("{at}: entry 1 of the freelist is page 17; pages are from 2 to 17, exclusive");
    says(|f| free(f, &[15, 17]), &range);
    let table = format!("{at}: 600 free pages do not fit into the freelist's 4096 bytes");
    says(|f| f.put(FREELIST * PAGE + 10, &600_u16.to_le_bytes()), &table);
    says(|f| f.bytes[FREELIST * PAGE + 8] = 2, &format!("{at}: it is a leaf; expected a freelist"));
    says(|f| f.bytes[FREELIST * PAGE] = 7, &format!("{at}: its header says that it is page 7"));
    // None is kept: the page is free, as all are that nothing reaches.
    let mut file = sound();
    file.metas(32, &u64::MAX.to_le_bytes());
    let db = Db::open(&file).unwrap();
    assert_eq!(db.meta().freelist, None);
    assert_eq!(db.check().unwrap().free_pages, 1);
}

#[test]
fn damaged_buckets() {
    let at = format!("page {ROOT} (offset {})", ROOT * PAGE);
    says(
        |f| f.bytes[element(ROOT, 0)] = 0,
        &format!("{at}: element 0: alarm is no bucket, and the top level holds nothing else"),
    );
    says(
        |f| f.put(element(ROOT, 1) + 12, &12_u32.to_le_bytes()),
        &format!("{at}: element 1: the value of bucket key has 12 bytes, which is no bucket's header"),
    );
    // Behind the header of a bucket with a tree there is nothing.
    says(
        |f| f.put(element(ROOT, 1) + 12, &17_u32.to_le_bytes()),
        &format!("{at}: element 1: the value of bucket key has 17 bytes, which is no bucket's header"),
    );
    says(
        |f| f.put(key(f, ROOT, 1) + 3, &999_u64.to_le_bytes()),
        "bucket key, page 999 (offset 4091904): there is no such page; pages are from 2 to 15, exclusive",
    );
    let inline = |f: &Memory| key(f, ROOT, 2) + 4 + 16;
    says(
        |f| f.put(inline(f) + 8, &[1, 0]),
        &format!("{at}: element 2: the page inside bucket meta is no leaf: id 0, flags 0x0001, overflow 0"),
    );
    says(|f| f.put(inline(f) + 10, &[9, 0]), &format!("bucket meta, {at}: 9 elements do not fit into it"));
    says(
        |f| f.put(inline(f) + 16, &[1, 0]),
        &format!("bucket meta, {at}: element 0: term is a bucket inside a bucket"),
    );
}

/// A small database at the front of a large file of zeros.
struct Sparse(Memory, u64);

impl ReadAt for Sparse {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        buffer.fill(0);
        let begin = usize::try_from(offset).unwrap();
        if let Some(from) = self.0.bytes.get(begin..) {
            let length = from.len().min(buffer.len());
            buffer[..length].copy_from_slice(&from[..length]);
        }
        Ok(())
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.1)
    }
}

#[test]
fn a_page_that_claims_the_whole_file_is_not_read() {
    let mut file = sound();
    file.metas(40, &100_000_u64.to_le_bytes());
    file.put(LEAF * PAGE + 12, &70_000_u32.to_le_bytes());
    let words = judge(Sparse(file, 100_000 * 4096)).to_string();
    assert_eq!(
        words,
        "bucket key, page 5 (offset 20480): its content has 286724096 bytes; the largest that is read has 268435456"
    );
}

/// A file that cannot be read at one place.
struct Broken(Memory);

impl ReadAt for Broken {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        if (offset..offset + buffer.len() as u64).contains(&(7 * 4096)) {
            return Err(io::Error::other("no medium"));
        }
        self.0.read_exact_at(buffer, offset)
    }

    fn size(&self) -> io::Result<u64> {
        self.0.size()
    }
}

#[test]
fn a_file_that_cannot_be_read_says_where() {
    let words = judge(Broken(sound())).to_string();
    assert_eq!(words, "reading 36864 bytes at offset 16384: no medium");
}

/// Counts what is read.
struct Counting<'a> {
    file: &'a Memory,
    bytes: AtomicU64,
    largest: AtomicU64,
}

impl ReadAt for Counting<'_> {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.bytes.fetch_add(buffer.len() as u64, Ordering::Relaxed);
        self.largest.fetch_max(buffer.len() as u64, Ordering::Relaxed);
        self.file.read_exact_at(buffer, offset)
    }

    fn size(&self) -> io::Result<u64> {
        self.file.size()
    }
}

/// Damages a sound file in many ways, one or a few at a time; no walk panics, reads more than a few times the file, or more at once than the
/// file has. Returns how many were called damaged.
pub fn mutate(sound: &Memory, rounds: u32, seed: u64) -> u32 {
    let mut random = SmallRng::seed_from_u64(seed);
    let size = sound.bytes.len();
    let pages = size / PAGE;
    let mut file = sound.clone();
    let mut damaged = 0;
    for round in 0..rounds {
        let mut touched = Vec::new();
        for _ in 0..random.random_range(1..=3) {
            let page = random.random_range(0..pages) * PAGE;
            // Mostly where the structure is.
            let at = match random.random_range(0..10) {
                0 => random.random_range(0..size - 8),
                1..=5 => page + random.random_range(0..16),
                6 => random.random_range(0..2) * PAGE + 16 + random.random_range(0..64),
                _ => page + 16 + random.random_range(0..400),
            };
            let value: u64 = match random.random_range(0..6) {
                0 => 0,
                1 => u64::MAX,
                2 => random.random_range(0..pages as u64 + 2),
                3 => random.random_range(0..5000),
                _ => random.random(),
            };
            let width = [1, 2, 4, 8][random.random_range(0..4)];
            match random.random_range(0..12) {
                0 => {
                    let from = random.random_range(0..pages) * PAGE;
                    touched.push(page..page + PAGE);
                    file.bytes.copy_within(from..from + PAGE, page);
                }
                1..=4 => {
                    touched.push(at..at + 1);
                    file.bytes[at] ^= 1 << random.random_range(0..8);
                }
                _ => {
                    touched.push(at..at + width);
                    file.put(at, &value.to_le_bytes()[..width]);
                }
            }
        }
        if random.random_bool(0.5) {
            file.resum();
        }
        touched.extend([0..PAGE, PAGE..2 * PAGE]);
        let counting = Counting { file: &file, bytes: AtomicU64::new(0), largest: AtomicU64::new(0) };
        let mut rows = 0_usize;
        let outcome = Db::open(&counting).and_then(|db| {
            let walked = db.check()?;
            db.walk_bucket(b"key", |row| {
                rows += 1;
                assert!(row.page < PageId(pages as u64));
                Ok::<_, Damage>(())
            })?;
            Ok(walked)
        });
        match outcome {
            Ok(walked) => assert!(walked.free_pages <= pages as u64),
            Err(damage) => {
                damaged += 1;
                assert!(!matches!(damage, Damage::Read { .. }), "round {round}: a read past the end: {damage}");
                assert!(damage.to_string().len() < 500);
            }
        }
        assert!(rows <= size / 16, "round {round}: {rows} rows");
        let read = counting.bytes.into_inner();
        assert!(read <= 20 * size as u64 + (1 << 20), "round {round}: {read} bytes read");
        assert!(counting.largest.into_inner() <= size as u64);
        for range in touched {
            file.bytes[range.clone()].copy_from_slice(&sound.bytes[range]);
        }
    }
    damaged
}

#[test]
fn random_damage_never_panics_or_loops() {
    let damaged = mutate(&sound(), 20_000, 1);
    assert!(damaged > 8_000, "{damaged}");
}
