//! What one page says: its header, a meta, the elements of a leaf and of a branch.
//!
//! Format: bbolt 1.4.3 `internal/common/page.go`, `meta.go`, `inode.go`.
#![deny(clippy::arithmetic_side_effects)]

use std::{fmt, ops::Range};

use super::damage::{PageFault, Text};

/// Bytes of a page's header, and of a bucket's.
pub(super) const HEADER: usize = 16;
/// Bytes of one element in the table of a leaf or a branch.
pub(super) const ELEMENT: usize = 16;
/// Bytes of a meta, behind the header of its page.
pub(super) const META: usize = 64;
/// Most elements of a page: bbolt refuses 0xFFFF.
pub(super) const MOST_ELEMENTS: usize = 0xFFFE;

pub(super) const MAGIC: u32 = 0xED0C_DAED;
pub(super) const VERSION: u32 = 2;
/// The freelist page of a database that keeps none.
pub(super) const NO_FREELIST: u64 = u64::MAX;

pub(super) const BRANCH: u16 = 0x01;
pub(super) const LEAF: u16 = 0x02;
pub(super) const META_PAGE: u16 = 0x04;
pub(super) const FREELIST: u16 = 0x10;

/// The value of a leaf's element is the header of a bucket.
pub(super) const IS_BUCKET: u32 = 0x01;

/// The number of a page; times the page size it is an offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageId(pub u64);

impl fmt::Display for PageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a page holds, by its flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageKind {
    /// Keys and child pages.
    Branch,
    /// Keys and values.
    Leaf,
    /// The description of the file; pages 0 and 1.
    Meta,
    /// Ids of free pages.
    Freelist,
}

impl PageKind {
    fn of(flags: u16) -> Option<Self> {
        match flags {
            BRANCH => Some(Self::Branch),
            LEAF => Some(Self::Leaf),
            META_PAGE => Some(Self::Meta),
            FREELIST => Some(Self::Freelist),
            _ => None,
        }
    }
}

impl fmt::Display for PageKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Branch => "branch",
            Self::Leaf => "leaf",
            Self::Meta => "meta",
            Self::Freelist => "freelist",
        })
    }
}

/// The 16 bytes that open each page.
///
/// ```text
/// 0 id u64 · 8 flags u16 · 10 count u16 · 12 overflow u32
/// ```
#[derive(Clone, Copy, Debug)]
pub(super) struct PageHeader {
    pub id: u64,
    pub flags: u16,
    pub count: u16,
    /// *Further* pages that belong to this one.
    pub overflow: u32,
}

impl PageHeader {
    /// `None` below 16 bytes.
    pub fn parse(page: &[u8]) -> Option<Self> {
        let head: &[u8; HEADER] = page.first_chunk()?;
        let [id @ .., f0, f1, c0, c1, o0, o1, o2, o3] = *head;
        Some(Self {
            id: u64::from_le_bytes(id),
            flags: u16::from_le_bytes([f0, f1]),
            count: u16::from_le_bytes([c0, c1]),
            overflow: u32::from_le_bytes([o0, o1, o2, o3]),
        })
    }

    /// The kind, if exactly one type flag is set and nothing else.
    ///
    /// # Errors
    /// [`PageFault::Flags`], with what was expected here.
    pub fn kind(&self, expected: &'static str) -> Result<PageKind, PageFault> {
        PageKind::of(self.flags).ok_or(PageFault::Flags { expected, found: self.flags })
    }

    pub fn bytes(&self) -> [u8; HEADER] {
        let mut out = [0; HEADER];
        let parts = self
            .id
            .to_le_bytes()
            .into_iter()
            .chain(self.flags.to_le_bytes())
            .chain(self.count.to_le_bytes())
            .chain(self.overflow.to_le_bytes());
        for (to, from) in out.iter_mut().zip(parts) {
            *to = from;
        }
        out
    }
}

/// A meta: the file's description as of one transaction.
///
/// ```text
/// 0 magic u32 · 4 version u32 · 8 page size u32 · 12 flags u32 · 16 root u64 · 24 sequence u64
/// 32 freelist u64 · 40 high-water mark u64 · 48 transaction u64 · 56 FNV-1a-64 of the 56 bytes before
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Meta {
    /// Bytes of a page.
    pub page_size: u32,
    /// Root page of the tree whose rows are the buckets.
    pub root: PageId,
    /// The freelist's page; none if the server keeps none, as etcd's does.
    pub freelist: Option<PageId>,
    /// The first page that was never allocated: the database is this many pages long.
    pub high_water: PageId,
    /// Transaction that wrote it.
    pub transaction: u64,
}

/// Why a meta does not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MetaFault {
    /// The file ends before it.
    #[error("the file ends before it")]
    Missing,
    /// Not a meta.
    #[error("its magic number is {found:08x} and not {MAGIC:08x}")]
    Magic {
        /// What is there.
        found: u32,
    },
    /// Another format.
    #[error("its format is version {found}; version {VERSION} is known")]
    Version {
        /// What is there.
        found: u32,
    },
    /// Damaged.
    #[error("its checksum is {found:016x} and its bytes give {computed:016x}")]
    Checksum {
        /// What is there.
        found: u64,
        /// What the bytes give.
        computed: u64,
    },
    /// A page size that no host has, or not the one at which the meta was found.
    #[error("it names a page size of {found}")]
    PageSize {
        /// What is there.
        found: u32,
    },
}

impl Meta {
    /// Reads the 64 bytes behind the header of page 0 or 1.
    ///
    /// # Errors
    /// [`MetaFault`]: in bbolt's order, magic, version, checksum; then a page size that is no power of two from 1 KiB to 16 MiB.
    pub fn parse(bytes: &[u8]) -> Result<Self, MetaFault> {
        let magic = u32_at(bytes, 0).ok_or(MetaFault::Missing)?;
        if magic != MAGIC {
            return Err(MetaFault::Magic { found: magic });
        }
        let version = u32_at(bytes, 4).ok_or(MetaFault::Missing)?;
        if version != VERSION {
            return Err(MetaFault::Version { found: version });
        }
        let (Some(summed), Some(found)) = (bytes.get(..56), u64_at(bytes, 56)) else {
            return Err(MetaFault::Missing);
        };
        let computed = fnv1a(summed);
        if found != computed {
            return Err(MetaFault::Checksum { found, computed });
        }
        let page_size = u32_at(bytes, 8).ok_or(MetaFault::Missing)?;
        if !page_size.is_power_of_two() || !(SMALLEST_PAGE..=LARGEST_PAGE).contains(&page_size) {
            return Err(MetaFault::PageSize { found: page_size });
        }
        let word = |at| u64_at(bytes, at).ok_or(MetaFault::Missing);
        Ok(Self {
            page_size,
            root: PageId(word(16)?),
            freelist: Some(word(32)?).filter(|&id| id != NO_FREELIST).map(PageId),
            high_water: PageId(word(40)?),
            transaction: word(48)?,
        })
    }

    pub(super) fn bytes(&self) -> [u8; META] {
        let freelist = self.freelist.map_or(NO_FREELIST, |id| id.0);
        let mut out = [0; META];
        let parts = MAGIC
            .to_le_bytes()
            .into_iter()
            .chain(VERSION.to_le_bytes())
            .chain(self.page_size.to_le_bytes())
            .chain([0; 4])
            .chain(self.root.0.to_le_bytes())
            .chain([0; 8])
            .chain(freelist.to_le_bytes())
            .chain(self.high_water.0.to_le_bytes())
            .chain(self.transaction.to_le_bytes());
        for (to, from) in out.iter_mut().zip(parts) {
            *to = from;
        }
        let sum = fnv1a(out.get(..56).unwrap_or_default());
        if let Some(last) = out.last_chunk_mut::<8>() {
            *last = sum.to_le_bytes();
        }
        out
    }
}

/// Where bbolt looks for the second meta when the first is damaged: at each page size from 1 KiB to 16 MiB.
pub(super) const SMALLEST_PAGE: u32 = 1 << 10;
pub(super) const LARGEST_PAGE: u32 = 1 << 24;

/// FNV-1a, 64 bits.
pub(super) fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |sum, &byte| (sum ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3))
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|word| u32::from_le_bytes(*word))
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().map(|word| u64::from_le_bytes(*word))
}

/// The element table of a page, if it fits.
fn table(page: &[u8], count: u16) -> Result<(&[[u8; ELEMENT]], usize), PageFault> {
    let fault = PageFault::Table { count };
    let length = usize::from(count).checked_mul(ELEMENT).ok_or(fault.clone())?;
    let end = length.checked_add(HEADER).ok_or(fault.clone())?;
    let (elements, _) = page.get(HEADER..end).ok_or(fault)?.as_chunks();
    Ok((elements, end))
}

/// One row of a leaf.
#[derive(Clone, Copy, Debug)]
pub(super) struct LeafRow<'a> {
    pub index: u16,
    /// Offset of the key in the page.
    pub start: usize,
    pub key: &'a [u8],
    pub value: &'a [u8],
    pub is_bucket: bool,
}

/// The rows of a leaf, each checked: inside the page, behind the row before it, its key above the one before and within the bounds.
///
/// Rows may not overlap: bbolt never writes that, and a page of rows that all share one large value would be endless work.
pub(super) struct LeafRows<'a> {
    page: &'a [u8],
    elements: std::slice::Iter<'a, [u8; ELEMENT]>,
    index: u16,
    /// Offset of the element in the page.
    at: usize,
    /// Where the row before ends.
    floor: usize,
    last: Option<&'a [u8]>,
    bounds: Bounds<'a>,
}

/// What the branches above say of the keys in a page.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Bounds<'a> {
    /// No key is below.
    pub lower: Option<&'a [u8]>,
    /// Every key is below.
    pub upper: Option<&'a [u8]>,
}

impl Bounds<'_> {
    fn check(&self, index: u16, key: &[u8]) -> Result<(), PageFault> {
        if let Some(lower) = self.lower.filter(|&lower| key < lower) {
            return Err(PageFault::BelowParent { index, key: Text::new(key), bound: Text::new(lower) });
        }
        if let Some(upper) = self.upper.filter(|&upper| key >= upper) {
            return Err(PageFault::AboveParent { index, key: Text::new(key), bound: Text::new(upper) });
        }
        Ok(())
    }
}

impl<'a> LeafRows<'a> {
    /// # Errors
    /// [`PageFault::Table`] if the elements do not fit into the page.
    pub fn new(page: &'a [u8], count: u16, bounds: Bounds<'a>) -> Result<Self, PageFault> {
        let (elements, floor) = table(page, count)?;
        Ok(Self { page, elements: elements.iter(), index: 0, at: HEADER, floor, last: None, bounds })
    }

    /// Bytes from the page's first to the end of its last row so far.
    pub fn used(&self) -> usize {
        self.floor
    }

    /// The next row; after an error the caller stops.
    pub fn next(&mut self) -> Result<Option<LeafRow<'a>>, PageFault> {
        let Some(&[f0, f1, f2, f3, p0, p1, p2, p3, k0, k1, k2, k3, v0, v1, v2, v3]) = self.elements.next() else {
            return Ok(None);
        };
        let index = self.index;
        let flags = u32::from_le_bytes([f0, f1, f2, f3]);
        let position = u32::from_le_bytes([p0, p1, p2, p3]);
        let key_size = u32::from_le_bytes([k0, k1, k2, k3]);
        let value_size = u32::from_le_bytes([v0, v1, v2, v3]);
        let outside = || PageFault::Element { index, position, key_size, value_size, page_bytes: self.page.len() };
        let is_bucket = match flags {
            0 => false,
            IS_BUCKET => true,
            _ => return Err(PageFault::ElementFlags { index, found: flags }),
        };
        let start = offset(self.at, position).ok_or_else(outside)?;
        let middle = offset(start, key_size).ok_or_else(outside)?;
        let end = offset(middle, value_size).ok_or_else(outside)?;
        let key = self.page.get(start..middle).ok_or_else(outside)?;
        let value = self.page.get(middle..end).ok_or_else(outside)?;
        if start < self.floor {
            return Err(PageFault::Overlap { index });
        }
        ascending(index, self.last, key)?;
        self.bounds.check(index, key)?;
        self.last = Some(key);
        self.floor = end;
        self.index = index.saturating_add(1);
        self.at = self.at.saturating_add(ELEMENT);
        Ok(Some(LeafRow { index, start, key, value, is_bucket }))
    }
}

/// A child of a branch: its page, and where its key lies in the branch's bytes.
#[derive(Clone, Debug)]
pub(super) struct Child {
    pub page: PageId,
    pub key: Range<usize>,
}

/// The children of a branch, checked as the rows of a leaf are, and the bytes in use.
///
/// # Errors
/// [`PageFault`]; an empty branch is one.
pub(super) fn children(page: &[u8], count: u16, bounds: Bounds<'_>) -> Result<(Vec<Child>, usize), PageFault> {
    if count == 0 {
        return Err(PageFault::EmptyBranch);
    }
    let (elements, mut floor) = table(page, count)?;
    let mut at = HEADER;
    let mut last = None;
    let mut out = Vec::with_capacity(elements.len());
    for (index, element) in (0..=u16::MAX).zip(elements) {
        let &[p0, p1, p2, p3, k0, k1, k2, k3, ref child @ ..] = element;
        let position = u32::from_le_bytes([p0, p1, p2, p3]);
        let key_size = u32::from_le_bytes([k0, k1, k2, k3]);
        let outside = || PageFault::Element { index, position, key_size, value_size: 0, page_bytes: page.len() };
        let start = offset(at, position).ok_or_else(outside)?;
        let end = offset(start, key_size).ok_or_else(outside)?;
        let key = page.get(start..end).ok_or_else(outside)?;
        if start < floor {
            return Err(PageFault::Overlap { index });
        }
        ascending(index, last, key)?;
        bounds.check(index, key)?;
        out.push(Child { page: PageId(u64::from_le_bytes(*child)), key: start..end });
        last = Some(key);
        floor = end;
        at = at.saturating_add(ELEMENT);
    }
    Ok((out, floor))
}

fn offset(from: usize, by: u32) -> Option<usize> {
    from.checked_add(usize::try_from(by).ok()?)
}

fn ascending(index: u16, last: Option<&[u8]>, key: &[u8]) -> Result<(), PageFault> {
    match last {
        Some(last) if last >= key => Err(PageFault::Order { index, key: Text::new(key), after: Text::new(last) }),
        _ => Ok(()),
    }
}
