//! A new database from sorted rows, written from front to back.
//!
//! Pages are full, free ones there are none, and the freelist page is an empty one, as in a database that bbolt has just made. Each leaf is
//! written when it is full, and so is each branch when the next one of its level is, so that the last can be given a second child: memory does
//! not grow with the file.
//!
//! Format: bbolt 1.4.3 `db.go` (`init`), `node.go` (`write`, `spill`), `bucket.go` (`inlineable`).
#![deny(clippy::arithmetic_side_effects)]

mod output;

use std::{fs::File, io};

use output::{Output, narrow, page_bytes};

use super::{
    damage::Text,
    page::{
        BRANCH, ELEMENT, FREELIST, HEADER, IS_BUCKET, LEAF, META_PAGE, MOST_ELEMENTS, PageHeader, PageId, SMALLEST_PAGE,
    },
};

/// Largest page of a host.
const LARGEST_WRITTEN: u32 = 64 << 10;
/// bbolt's limit.
const MOST_KEY: usize = 32 << 10;
/// What can be read back: below the largest leaf, with room for a key.
const MOST_VALUE: usize = 255 << 20;

/// Bytes that can be written anywhere.
pub trait WriteAt {
    /// Writes all bytes from `offset` on.
    ///
    /// # Errors
    /// What the system says.
    fn write_all_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()>;
}

impl WriteAt for File {
    fn write_all_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
        std::os::unix::fs::FileExt::write_all_at(self, bytes, offset)
    }
}

impl<T: WriteAt + ?Sized> WriteAt for &mut T {
    fn write_all_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
        (**self).write_all_at(bytes, offset)
    }
}

/// Why a database is not written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The system does not take the bytes.
    #[error("writing {bytes} bytes at offset {offset}: {source}")]
    Write {
        /// Where.
        offset: u64,
        /// How many.
        bytes: u64,
        /// What it said.
        source: io::Error,
    },
    /// No page size of a host: a power of two from 1 KiB to 64 KiB.
    #[error("a page size of {found} bytes cannot be written")]
    PageSize {
        /// What was asked for.
        found: u32,
    },
    /// Rows come before their bucket.
    #[error("row {key} belongs to no bucket")]
    NoBucket {
        /// Its key.
        key: Text,
    },
    /// Buckets or rows are not in order, or one comes twice.
    #[error("bucket {bucket}: {key} comes after {after}")]
    Order {
        /// The bucket; for two buckets, the later one.
        bucket: Text,
        /// What comes.
        key: Text,
        /// What came before.
        after: Text,
    },
    /// A key or a name that bbolt does not take: none, or longer than 32 KiB.
    #[error("bucket {bucket}: key {key} has {bytes} bytes; 1 to 32768 are possible")]
    Key {
        /// The bucket.
        bucket: Text,
        /// The key.
        key: Text,
        /// Its length.
        bytes: usize,
    },
    /// A value far beyond what etcd takes in a request.
    #[error("bucket {bucket}: the value of {key} has {bytes} bytes; {MOST_VALUE} are possible")]
    Value {
        /// The bucket.
        bucket: Text,
        /// The key.
        key: Text,
        /// The value's length.
        bytes: usize,
    },
}

/// What was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// Pages, the metas and the freelist included: the high-water mark.
    pub pages: u64,
    /// Bytes of the file.
    pub bytes: u64,
    /// Rows of all buckets.
    pub rows: u64,
}

/// Writes a database: buckets in the order of their names, in each its rows in the order of their keys.
///
/// The sink gets chunks of 1 MiB in ascending order, at offsets that are multiples of 1 MiB, from memory aligned to 4096 bytes; the last is
/// shorter and a multiple of the page size. The first chunk, in which the metas lie, comes at the very end: what was not finished is no
/// database. The caller syncs.
#[derive(Debug)]
pub struct Writer<W> {
    out: Output<W>,
    bucket: Option<Bucket>,
    /// The buckets that are done: name, and the value in the root tree.
    done: Vec<(Vec<u8>, Vec<u8>)>,
    rows: u64,
}

#[derive(Debug)]
struct Bucket {
    name: Vec<u8>,
    last: Vec<u8>,
    empty: bool,
    tree: Tree,
}

impl<W: WriteAt> Writer<W> {
    /// Begins a database with pages of this size; 4096 is what etcd has on almost every host.
    ///
    /// # Errors
    /// [`WriteError::PageSize`].
    pub fn new(sink: W, page_size: u32) -> Result<Self, WriteError> {
        let fits = (SMALLEST_PAGE..=LARGEST_WRITTEN).contains(&page_size);
        match usize::try_from(page_size) {
            Ok(page_bytes) if fits && page_size.is_power_of_two() => {
                let mut out = Output::new(sink, page_bytes);
                // Room for the metas, which are known at the end, and the freelist.
                out.page(META_PAGE, 0, std::iter::empty::<[u8; 0]>(), &[])?;
                out.page(META_PAGE, 0, std::iter::empty::<[u8; 0]>(), &[])?;
                out.page(FREELIST, 0, std::iter::empty::<[u8; 0]>(), &[])?;
                Ok(Self { out, bucket: None, done: Vec::new(), rows: 0 })
            }
            _ => Err(WriteError::PageSize { found: page_size }),
        }
    }

    /// Ends the bucket before, if there is one, and begins the next; it may stay empty.
    ///
    /// # Errors
    /// [`WriteError::Order`], [`WriteError::Key`], [`WriteError::Write`].
    pub fn begin_bucket(&mut self, name: &[u8]) -> Result<(), WriteError> {
        self.end_bucket()?;
        check_key(name, name)?;
        if let Some((after, _)) = self.done.last().filter(|(after, _)| after.as_slice() >= name) {
            return Err(order(name, name, after));
        }
        let tree = Tree::new(0);
        self.bucket = Some(Bucket { name: name.to_vec(), last: Vec::new(), empty: true, tree });
        Ok(())
    }

    /// Adds a row to the bucket that was begun last.
    ///
    /// # Errors
    /// [`WriteError`]; the writer is then of no further use.
    pub fn put(&mut self, key: &[u8], value: &[u8]) -> Result<(), WriteError> {
        let Some(bucket) = &mut self.bucket else { return Err(WriteError::NoBucket { key: Text::new(key) }) };
        check_key(&bucket.name, key)?;
        if value.len() > MOST_VALUE {
            let (bucket, key) = (Text::new(&bucket.name), Text::new(key));
            return Err(WriteError::Value { bucket, key, bytes: value.len() });
        }
        if !bucket.empty && bucket.last.as_slice() >= key {
            return Err(order(&bucket.name, key, &bucket.last));
        }
        bucket.empty = false;
        bucket.last.clear();
        bucket.last.extend_from_slice(key);
        self.rows = self.rows.saturating_add(1);
        bucket.tree.put(&mut self.out, key, value)
    }

    /// Ends the last bucket and writes what is left, the metas last.
    ///
    /// # Errors
    /// [`WriteError::Write`].
    pub fn finish(mut self) -> Result<Written, WriteError> {
        self.end_bucket()?;
        let mut roots = Tree::new(IS_BUCKET);
        for (name, value) in &self.done {
            roots.put(&mut self.out, name, value)?;
        }
        let root = roots.finish(&mut self.out)?;
        let (pages, bytes) = self.out.finish(root)?;
        Ok(Written { pages, bytes, rows: self.rows })
    }

    fn end_bucket(&mut self) -> Result<(), WriteError> {
        let Some(bucket) = self.bucket.take() else { return Ok(()) };
        let mut value = Vec::new();
        // bbolt's rule: one leaf, no larger than a quarter of a page, lies in the bucket's own value.
        let inline = bucket.tree.only_leaf().filter(|leaf| leaf.bytes() <= self.out.page_bytes / 4);
        if let Some(leaf) = inline {
            value.extend_from_slice(&[0; HEADER]);
            value.extend_from_slice(&PageHeader { id: 0, flags: LEAF, count: leaf.count(), overflow: 0 }.bytes());
            value.extend(leaf.table(0).flatten());
            value.extend_from_slice(&leaf.data);
        } else {
            let root = bucket.tree.finish(&mut self.out)?;
            value.extend_from_slice(&root.0.to_le_bytes());
            value.extend_from_slice(&[0; 8]);
        }
        self.done.push((bucket.name, value));
        Ok(())
    }
}

fn check_key(bucket: &[u8], key: &[u8]) -> Result<(), WriteError> {
    if key.is_empty() || key.len() > MOST_KEY {
        return Err(WriteError::Key { bucket: Text::new(bucket), key: Text::new(key), bytes: key.len() });
    }
    Ok(())
}

fn order(bucket: &[u8], key: &[u8], after: &[u8]) -> WriteError {
    WriteError::Order { bucket: Text::new(bucket), key: Text::new(key), after: Text::new(after) }
}

/// One tree, built from its leaves upwards.
#[derive(Debug)]
struct Tree {
    /// Flags of each row.
    flags: u32,
    leaf: Leaf,
    /// The branches, lowest first.
    levels: Vec<Level>,
}

/// A leaf that grows.
#[derive(Debug, Default)]
struct Leaf {
    /// Sizes of keys and values.
    sizes: Vec<(u32, u32)>,
    /// Keys and values.
    data: Vec<u8>,
}

/// A branch that grows.
#[derive(Debug, Default)]
struct Branch {
    /// Size of the key, and the page.
    children: Vec<(u32, PageId)>,
    keys: Vec<u8>,
}

/// One level of branches: the one that grows, and the full one before it, which may have to give a child away.
#[derive(Debug, Default)]
struct Level {
    full: Option<Branch>,
    growing: Branch,
}

fn element(words: impl IntoIterator<Item = [u8; 4]>) -> [u8; ELEMENT] {
    let mut out = [0; ELEMENT];
    for (to, word) in out.as_chunks_mut().0.iter_mut().zip(words) {
        *to = word;
    }
    out
}

impl Leaf {
    fn bytes(&self) -> usize {
        page_bytes(self.sizes.len(), self.data.len())
    }

    fn count(&self) -> u16 {
        u16::try_from(self.sizes.len()).unwrap_or(u16::MAX)
    }

    /// The elements; each says how far its key is from itself.
    fn table(&self, flags: u32) -> impl Iterator<Item = [u8; ELEMENT]> {
        let mut position = narrow(page_bytes(self.sizes.len(), 0).saturating_sub(HEADER));
        self.sizes.iter().map(move |&(key, value)| {
            let out = element([flags, position, key, value].map(u32::to_le_bytes));
            position = position.saturating_add(key).saturating_add(value).saturating_sub(narrow(ELEMENT));
            out
        })
    }

    /// Its first key.
    fn key(&self) -> &[u8] {
        let size = self.sizes.first().map_or(0, |&(key, _)| usize::try_from(key).unwrap_or(0));
        self.data.get(..size).unwrap_or_default()
    }
}

impl Branch {
    fn push(&mut self, key: &[u8], child: PageId) {
        self.children.push((narrow(key.len()), child));
        self.keys.extend_from_slice(key);
    }

    fn key(&self) -> &[u8] {
        let size = self.children.first().map_or(0, |&(key, _)| usize::try_from(key).unwrap_or(0));
        self.keys.get(..size).unwrap_or_default()
    }

    /// Whether another child with such a key would need a further page. bbolt wants two children in a branch, however long their keys.
    fn is_full(&self, key: &[u8], page: usize) -> bool {
        let count = self.children.len().saturating_add(1);
        count > MOST_ELEMENTS || (count > 2 && page_bytes(count, self.keys.len().saturating_add(key.len())) > page)
    }

    /// Takes the last child away.
    fn pop(&mut self) -> Option<(Vec<u8>, PageId)> {
        let (size, child) = self.children.pop()?;
        let begin = self.keys.len().saturating_sub(usize::try_from(size).unwrap_or(usize::MAX));
        Some((self.keys.split_off(begin), child))
    }

    /// Gives the children that come before its own ones.
    fn prepend(&mut self, mut before: Self) {
        before.children.append(&mut self.children);
        before.keys.append(&mut self.keys);
        *self = before;
    }

    fn write<W: WriteAt>(&self, out: &mut Output<W>) -> Result<PageId, WriteError> {
        let mut position = narrow(page_bytes(self.children.len(), 0).saturating_sub(HEADER));
        let table = self.children.iter().map(|&(key, child)| {
            let words = [position, key].map(u32::to_le_bytes);
            position = position.saturating_add(key).saturating_sub(narrow(ELEMENT));
            element(words.into_iter().chain(child.0.to_le_bytes().as_chunks().0.iter().copied()))
        });
        let count = u16::try_from(self.children.len()).unwrap_or(u16::MAX);
        out.page(BRANCH, count, table, &self.keys)
    }
}

impl Tree {
    fn new(flags: u32) -> Self {
        Self { flags, leaf: Leaf::default(), levels: Vec::new() }
    }

    fn put<W: WriteAt>(&mut self, out: &mut Output<W>, key: &[u8], value: &[u8]) -> Result<(), WriteError> {
        let count = self.leaf.sizes.len().saturating_add(1);
        let data = self.leaf.data.len().saturating_add(key.len()).saturating_add(value.len());
        if count > MOST_ELEMENTS || (count > 1 && page_bytes(count, data) > out.page_bytes) {
            self.flush(out)?;
        }
        self.leaf.sizes.push((narrow(key.len()), narrow(value.len())));
        self.leaf.data.extend_from_slice(key);
        self.leaf.data.extend_from_slice(value);
        Ok(())
    }

    /// The leaf, if it is all there is.
    fn only_leaf(&self) -> Option<&Leaf> {
        self.levels.is_empty().then_some(&self.leaf)
    }

    /// Writes the leaf and begins a new one.
    fn flush<W: WriteAt>(&mut self, out: &mut Output<W>) -> Result<(), WriteError> {
        let page = out.page(LEAF, self.leaf.count(), self.leaf.table(self.flags), &self.leaf.data)?;
        let mut child = Some((self.leaf.key().to_vec(), page));
        let mut above = self.levels.iter_mut();
        // A child that fills its level sends the full branch before it one level up.
        while let Some((key, page)) = child.take() {
            if let Some(level) = above.next() {
                child = level.push(out, &key, page)?;
            } else {
                let mut level = Level::default();
                level.growing.push(&key, page);
                self.levels.push(level);
                break;
            }
        }
        self.leaf.sizes.clear();
        self.leaf.data.clear();
        Ok(())
    }

    /// Writes what is left, and says where the root is.
    fn finish<W: WriteAt>(mut self, out: &mut Output<W>) -> Result<PageId, WriteError> {
        if self.levels.is_empty() {
            return out.page(LEAF, self.leaf.count(), self.leaf.table(self.flags), &self.leaf.data);
        }
        self.flush(out)?;
        // Each level leaves one or two branches to the level above; the one that leaves a lone child has found the root.
        let mut below: Vec<(Vec<u8>, PageId)> = Vec::new();
        let mut levels = std::mem::take(&mut self.levels).into_iter();
        loop {
            let is_top = levels.len() <= 1;
            let mut level = levels.next().unwrap_or_default();
            let mut rest = Vec::new();
            for (key, page) in below {
                rest.extend(level.push(out, &key, page)?);
            }
            let Level { full, mut growing } = level;
            let lone = rest.is_empty() && full.is_none() && is_top && growing.children.len() == 1;
            if let Some((_, root)) = lone.then(|| growing.pop()).flatten() {
                return Ok(root);
            }
            let mut full = full;
            if growing.children.len() == 1 {
                match full.take() {
                    Some(mut before) if before.children.len() > 2 => {
                        if let Some((key, child)) = before.pop() {
                            let mut moved = Branch::default();
                            moved.push(&key, child);
                            growing.prepend(moved);
                        }
                        full = Some(before);
                    }
                    Some(before) => growing.prepend(before),
                    None => {}
                }
            }
            for branch in full.iter().chain([&growing]).filter(|branch| !branch.children.is_empty()) {
                rest.push((branch.key().to_vec(), branch.write(out)?));
            }
            below = rest;
        }
    }
}

impl Level {
    /// Adds a child; gives the branch that was written because two more are at hand.
    fn push<W: WriteAt>(
        &mut self,
        out: &mut Output<W>,
        key: &[u8],
        child: PageId,
    ) -> Result<Option<(Vec<u8>, PageId)>, WriteError> {
        let mut written = None;
        if self.growing.is_full(key, out.page_bytes) {
            let full = self.full.replace(std::mem::take(&mut self.growing));
            if let Some(full) = full {
                written = Some((full.key().to_vec(), full.write(out)?));
            }
        }
        self.growing.push(key, child);
        Ok(written)
    }
}
