//! What can be wrong with a database, as facts.
#![deny(clippy::arithmetic_side_effects)]

use std::{fmt, io};

use super::page::{MetaFault, PageId, PageKind};

/// Why a file is no database that can be read, or where it is damaged.
#[derive(Debug, thiserror::Error)]
pub enum Damage {
    /// The system does not give the bytes.
    #[error("reading {bytes} bytes at offset {offset}: {source}")]
    Read {
        /// Where.
        offset: u64,
        /// How many.
        bytes: u64,
        /// What it said.
        source: io::Error,
    },
    /// Something else than a database of etcd.
    #[error("not a database of etcd but {0}")]
    Foreign(Foreign),
    /// The file is shorter than its own description says.
    #[error("truncated: the database has {needed} bytes, the file holds {found} of them")]
    Truncated {
        /// Bytes up to the high-water mark.
        needed: u64,
        /// Bytes that are there, without a trailer.
        found: u64,
    },
    /// Another format of bbolt.
    #[error("the database's format is version {found}; version 2 is known, that of etcd 3.4 to 3.6")]
    Version {
        /// What the file says.
        found: u32,
    },
    /// A checksum that is right over a page size that no host has.
    #[error("the database names a page size of {found} bytes")]
    PageSize {
        /// What the file says.
        found: u32,
    },
    /// A meta whose checksum is right over another page size than that of the meta that counts.
    #[error("the meta of page {meta} names a page size of {found} bytes, and the other meta another")]
    OtherPageSize {
        /// Page of the meta.
        meta: u64,
        /// What it says.
        found: u32,
    },
    /// Neither of the two metas counts.
    #[error("neither meta page can be used: page 0: {first}; page 1: {second}")]
    Metas {
        /// Page 0.
        first: MetaFault,
        /// Page 1.
        second: MetaFault,
    },
    /// The meta that counts names a page that cannot be.
    #[error("the meta of page {meta} names page {named} as {what}; pages are from 2 to {high_water}, exclusive")]
    MetaPoints {
        /// Page of the meta.
        meta: u64,
        /// `the root` or `the freelist`.
        what: &'static str,
        /// The page that it names.
        named: PageId,
        /// The high-water mark.
        high_water: PageId,
    },
    /// A damaged page.
    #[error("{}page {page} (offset {offset}): {fault}", In(bucket.as_ref()))]
    Page {
        /// The bucket on the way to it; none in the root tree and for metas and freelist.
        bucket: Option<Text>,
        /// Which.
        page: PageId,
        /// Where it begins in the file; past the end if the id is out of range.
        offset: u64,
        /// What is wrong.
        fault: PageFault,
    },
}

impl Damage {
    /// The same damage, in this bucket.
    #[must_use]
    pub(super) fn in_bucket(self, name: &[u8]) -> Self {
        match self {
            Self::Page { page, offset, fault, .. } => Self::Page { bucket: Some(Text::new(name)), page, offset, fault },
            other => other,
        }
    }
}

struct In<'a>(Option<&'a Text>);

impl fmt::Display for In<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.map_or(Ok(()), |bucket| write!(f, "bucket {bucket}, "))
    }
}

/// What is wrong with one page. `index` counts the elements of the page from 0.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PageFault {
    /// The id of a page that does not exist.
    #[error("there is no such page; pages are from 2 to {high_water}, exclusive")]
    OutOfRange {
        /// The high-water mark.
        high_water: PageId,
    },
    /// Its header has another page's id.
    #[error("its header says that it is page {found}")]
    Misplaced {
        /// What the header says.
        found: PageId,
    },
    /// Not exactly one type, or none that is known.
    #[error("its flags are {found:#06x}, which is no type of page; expected a {expected}")]
    Flags {
        /// What belongs here.
        expected: &'static str,
        /// What is there.
        found: u16,
    },
    /// A page of a type that does not belong here.
    #[error("it is a {found}; expected a {expected}")]
    Kind {
        /// What belongs here.
        expected: &'static str,
        /// What is there.
        found: PageKind,
    },
    /// It continues past the end of the database.
    #[error("it continues on {overflow} more pages, past the end at page {high_water}")]
    Overflow {
        /// Further pages.
        overflow: u32,
        /// The high-water mark.
        high_water: PageId,
    },
    /// Larger than any page of etcd can be.
    #[error("its content has {bytes} bytes; the largest that is read has {most}")]
    TooLarge {
        /// With its overflow.
        bytes: u64,
        /// The limit.
        most: u64,
    },
    /// Reached on two ways, itself or as the overflow of another.
    #[error("it is reached a second time, from page {from}")]
    Twice {
        /// The page that claims it now.
        from: PageId,
    },
    /// A tree deeper than any of bbolt's, such as a circle.
    #[error("it lies {depth} levels below its root; the deepest that is read is {most}")]
    TooDeep {
        /// Levels.
        depth: usize,
        /// The limit.
        most: usize,
    },
    /// The leaves of one tree lie at different depths.
    #[error("this leaf lies {found} levels below its root, the first one {expected}")]
    Depth {
        /// Of the first leaf.
        expected: usize,
        /// Of this one.
        found: usize,
    },
    /// A branch without children.
    #[error("it is a branch without children")]
    EmptyBranch,
    /// Its elements do not fit into it.
    #[error("{count} elements do not fit into it")]
    Table {
        /// What the header says.
        count: u16,
    },
    /// An element points out of the page.
    #[error(
        "element {index} points out of its {page_bytes} bytes: position {position}, key of {key_size} bytes, value of {value_size}"
    )]
    Element {
        /// Which.
        index: u16,
        /// From the element's own first byte.
        position: u32,
        /// In bytes.
        key_size: u32,
        /// In bytes.
        value_size: u32,
        /// With the overflow.
        page_bytes: usize,
    },
    /// An element's bytes are also those of another, or of the table.
    #[error("element {index} lies on top of what is before it")]
    Overlap {
        /// Which.
        index: u16,
    },
    /// Flags that no version sets.
    #[error("element {index} has flags {found:#x}")]
    ElementFlags {
        /// Which.
        index: u16,
        /// What is there.
        found: u32,
    },
    /// Keys are out of order.
    #[error("element {index}: key {key} comes after {after}")]
    Order {
        /// Which.
        index: u16,
        /// Its key.
        key: Text,
        /// The key before it.
        after: Text,
    },
    /// A key is smaller than the branch above allows.
    #[error("element {index}: key {key} is below {bound}, the page's key in the branch above")]
    BelowParent {
        /// Which.
        index: u16,
        /// Its key.
        key: Text,
        /// The bound.
        bound: Text,
    },
    /// A key is larger than the branch above allows.
    #[error("element {index}: key {key} is not below {bound}, the next page's key in a branch above")]
    AboveParent {
        /// Which.
        index: u16,
        /// Its key.
        key: Text,
        /// The bound.
        bound: Text,
    },
    /// A row beside the buckets.
    #[error("element {index}: {key} is no bucket, and the top level holds nothing else")]
    NotBucket {
        /// Which.
        index: u16,
        /// Its key.
        key: Text,
    },
    /// A bucket inside a bucket, which etcd does not have.
    #[error("element {index}: {key} is a bucket inside a bucket")]
    Nested {
        /// Which.
        index: u16,
        /// Its key.
        key: Text,
    },
    /// The value of a bucket is none.
    #[error("element {index}: the value of bucket {name} has {bytes} bytes, which is no bucket's header")]
    BucketHeader {
        /// Which.
        index: u16,
        /// The bucket.
        name: Text,
        /// Its value's.
        bytes: usize,
    },
    /// The page inside a small bucket's value is none.
    #[error(
        "element {index}: the page inside bucket {name} is no leaf: id {id}, flags {flags:#06x}, overflow {overflow}"
    )]
    Inline {
        /// Which.
        index: u16,
        /// The bucket.
        name: Text,
        /// 0 belongs there.
        id: PageId,
        /// 2 belongs there.
        flags: u16,
        /// 0 belongs there.
        overflow: u32,
    },
    /// A free page that is in use.
    #[error("it is in use, and the freelist calls it free")]
    FreeInUse,
    /// A page that is neither in use nor free.
    #[error("nothing reaches it, and the freelist does not call it free")]
    Lost,
    /// The freelist's ids do not ascend, or one is there twice.
    #[error("entry {index} of the freelist is page {id}, after page {after}")]
    FreeOrder {
        /// Which.
        index: u64,
        /// The page.
        id: PageId,
        /// The one before.
        after: PageId,
    },
    /// The freelist names a page that does not exist.
    #[error("entry {index} of the freelist is page {id}; pages are from 2 to {high_water}, exclusive")]
    FreeRange {
        /// Which.
        index: u64,
        /// The page.
        id: PageId,
        /// The high-water mark.
        high_water: PageId,
    },
    /// More ids than fit.
    #[error("{count} free pages do not fit into the freelist's {page_bytes} bytes")]
    FreeTable {
        /// What it says.
        count: u64,
        /// With the overflow.
        page_bytes: u64,
    },
}

/// What a file is that is no database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Foreign {
    /// No bytes at all.
    Empty,
    /// Nothing but zeros where the metas would be.
    Zeros,
    /// Compressed by gzip.
    Gzip,
    /// Compressed by zstd.
    Zstd,
    /// Compressed by xz.
    Xz,
    /// Compressed by bzip2.
    Bzip2,
    /// Compressed by lz4.
    Lz4,
    /// Encrypted by age.
    Age,
    /// A tar archive.
    Tar,
    /// A database of `SQLite`, which k3s uses where it has no etcd.
    Sqlite,
    /// A segment of etcd's write-ahead log.
    Wal,
    /// Text.
    Text,
    /// Bytes that say nothing.
    Unknown,
}

impl Foreign {
    /// Judges by the first bytes of the file, of which some 512 are enough.
    pub(super) fn of(head: &[u8]) -> Self {
        let signs: [(&[u8], Self); 9] = [
            (b"\x1f\x8b", Self::Gzip),
            (b"\x28\xb5\x2f\xfd", Self::Zstd),
            (b"\xfd7zXZ\0", Self::Xz),
            (b"BZh", Self::Bzip2),
            (b"\x04\x22\x4d\x18", Self::Lz4),
            (b"age-encryption.org/v1", Self::Age),
            (b"-----BEGIN AGE ENCRYPTED FILE-----", Self::Age),
            (b"SQLite format 3\0", Self::Sqlite),
            // The length of the first record, 4 bytes and 4 of padding, and its type, 4.
            (b"\x04\0\0\0\0\0\0\x84\x08\x04", Self::Wal),
        ];
        if head.is_empty() {
            return Self::Empty;
        }
        if let Some((_, found)) = signs.iter().find(|(sign, _)| head.starts_with(sign)) {
            return *found;
        }
        if head.get(257..).is_some_and(|rest| rest.starts_with(b"ustar")) {
            return Self::Tar;
        }
        if head.iter().all(|&byte| byte == 0) {
            return Self::Zeros;
        }
        let text = |byte: &u8| matches!(byte, b'\t' | b'\n' | b'\r' | 0x20..=0x7e | 0x80..);
        if head.iter().all(text) && head.iter().filter(|byte| byte.is_ascii()).count() > head.len() / 2 {
            return Self::Text;
        }
        Self::Unknown
    }
}

impl fmt::Display for Foreign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Empty => "an empty file",
            Self::Zeros => "zeros",
            Self::Gzip => "a file compressed by gzip",
            Self::Zstd => "a file compressed by zstd",
            Self::Xz => "a file compressed by xz",
            Self::Bzip2 => "a file compressed by bzip2",
            Self::Lz4 => "a file compressed by lz4",
            Self::Age => "a file encrypted by age",
            Self::Tar => "a tar archive",
            Self::Sqlite => "a database of SQLite",
            Self::Wal => "a segment of etcd's write-ahead log",
            Self::Text => "text",
            Self::Unknown => "bytes that begin like nothing known",
        })
    }
}

/// A key or a bucket's name out of a file, shown on one line: as it is if it is printable ASCII, else `0x` and hexadecimal digits. A long one
/// is cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Text {
    start: Box<[u8]>,
    length: usize,
}

impl Text {
    /// Most bytes that are kept.
    const MOST: usize = 48;

    pub(super) fn new(bytes: &[u8]) -> Self {
        Self { start: bytes.get(..Self::MOST).unwrap_or(bytes).into(), length: bytes.len() }
    }
}

impl fmt::Display for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.start.is_empty() {
            return f.write_str("\"\"");
        }
        if let Some(text) = std::str::from_utf8(&self.start).ok().filter(|t| t.bytes().all(|b| b.is_ascii_graphic())) {
            f.write_str(text)?;
        } else {
            f.write_str("0x")?;
            for byte in &self.start {
                write!(f, "{byte:02x}")?;
            }
        }
        if self.length > self.start.len() {
            write!(f, "… ({} bytes)", self.length)?;
        }
        Ok(())
    }
}
