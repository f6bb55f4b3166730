//! A database that is open: its size, its trailer, the meta that counts.
//!
//! Format: bbolt 1.4.3 `db.go` (`getPageSize`, `meta`); etcd 3.6 `etcdutl/snapshot` for the trailer.
#![deny(clippy::arithmetic_side_effects)]

use super::{
    damage::{Damage, Foreign, PageFault},
    page::{HEADER, LARGEST_PAGE, META, Meta, MetaFault, PageHeader, PageId, PageKind, SMALLEST_PAGE},
};
use crate::etcd::ReadAt;

/// Bytes of the SHA-256 behind a snapshot.
const TRAILER: u64 = 32;

/// A database file with a meta that counts, as long as that meta says.
///
/// Only the first pages were looked at: [`Db::walk`] says whether the rest is sound.
#[derive(Debug)]
pub struct Db<S> {
    source: S,
    size: u64,
    has_trailer: bool,
    meta: Meta,
    other: Result<Meta, MetaFault>,
    data: u64,
}

impl<S: ReadAt> Db<S> {
    /// Finds the page size and the meta that counts: the valid one with the higher transaction.
    ///
    /// Any page size is taken that the file names. A database may be followed by a trailer, or by space that a live server has set aside:
    /// [`Self::has_trailer`] and [`Self::surplus_bytes`] tell.
    ///
    /// # Errors
    /// [`Damage::Foreign`] if this is something else; [`Damage::Version`], [`Damage::PageSize`], [`Damage::Metas`] if no meta counts;
    /// [`Damage::OtherPageSize`]; [`Damage::Truncated`]; [`Damage::MetaPoints`]; [`Damage::Page`] if page 0 or 1 has a damaged header; [`Damage::Read`].
    pub fn open(source: S) -> Result<Self, Damage> {
        let size = source.size().map_err(|source| Damage::Read { offset: 0, bytes: 0, source })?;
        let has_trailer = size % 512 == TRAILER;
        let length = if has_trailer { size.saturating_sub(TRAILER) } else { size };
        let (first, second) = metas(&source, length)?;
        other_page_size(first, second)?;
        let (page, meta, other) = match (first, second) {
            (Ok(first), Ok(second)) if second.transaction > first.transaction => (1, second, Ok(first)),
            (Ok(first), second) => (0, first, second),
            (first, Ok(second)) => (1, second, first),
            (Err(first), Err(second)) => return Err(no_meta(&source, size, first, second)?),
        };
        let data = meta.high_water.0.checked_mul(u64::from(meta.page_size));
        let Some(data) = data.filter(|&data| data <= length) else {
            return Err(Damage::Truncated { needed: data.unwrap_or(u64::MAX), found: length });
        };
        let db = Self { source, size, has_trailer, meta, other, data };
        let named = |what, named: PageId| match named.0 {
            id if id >= 2 && named < meta.high_water => Ok(()),
            _ => Err(Damage::MetaPoints { meta: page, what, named, high_water: meta.high_water }),
        };
        named("the root", meta.root)?;
        meta.freelist.map_or(Ok(()), |id| named("the freelist", id))?;
        db.meta_header(0)?;
        db.meta_header(1)?;
        Ok(db)
    }

    /// bbolt asserts on these headers, though they say nothing that is needed.
    fn meta_header(&self, id: u64) -> Result<(), Damage> {
        let mut head = [0; HEADER];
        self.read_at(&mut head, id.saturating_mul(self.page_size()))?;
        let Some(header) = PageHeader::parse(&head) else { return Ok(()) };
        let kind = header.kind("meta").and_then(|kind| match kind {
            PageKind::Meta if header.id == id => Ok(()),
            PageKind::Meta => Err(PageFault::Misplaced { found: PageId(header.id) }),
            found => Err(PageFault::Kind { expected: "meta", found }),
        });
        kind.map_err(|fault| self.damage(PageId(id), fault))
    }
}

impl<S: ReadAt> Db<S> {
    /// Fills `buffer` from `offset` on.
    pub(super) fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<(), Damage> {
        read(&self.source, buffer, offset)
    }
}

impl<S> Db<S> {
    pub(super) fn damage(&self, page: PageId, fault: PageFault) -> Damage {
        Damage::Page { bucket: None, page, offset: page.0.saturating_mul(self.page_size()), fault }
    }

    /// The meta that counts.
    #[must_use]
    pub fn meta(&self) -> &Meta {
        &self.meta
    }

    /// The other meta: older, or why it does not count. In a snapshot both are valid and name the same tree.
    ///
    /// # Errors
    /// Why it does not count, as a fact about the file.
    pub fn other_meta(&self) -> Result<&Meta, MetaFault> {
        self.other.as_ref().map_err(|fault| *fault)
    }

    /// Bytes of a page.
    #[must_use]
    pub fn page_size(&self) -> u64 {
        u64::from(self.meta.page_size)
    }

    /// The first page that was never allocated.
    #[must_use]
    pub fn high_water(&self) -> PageId {
        self.meta.high_water
    }

    /// Bytes of the database: its pages up to the high-water mark, free ones included.
    #[must_use]
    pub fn data_bytes(&self) -> u64 {
        self.data
    }

    /// Bytes of the file.
    #[must_use]
    pub fn file_bytes(&self) -> u64 {
        self.size
    }

    /// Whether 32 bytes follow what is a multiple of 512: the mark, and the only one, of a snapshot with its SHA-256.
    #[must_use]
    pub fn has_trailer(&self) -> bool {
        self.has_trailer
    }

    /// Bytes between the end of the database and the trailer or the end of the file: 0 in a snapshot, the space set aside in a live file.
    #[must_use]
    pub fn surplus_bytes(&self) -> u64 {
        let trailer = if self.has_trailer { TRAILER } else { 0 };
        self.size.saturating_sub(trailer).saturating_sub(self.data)
    }

    /// The file.
    #[must_use]
    pub fn source(&self) -> &S {
        &self.source
    }
}

impl<S: ReadAt> Db<S> {
    /// The SHA-256 that ends a snapshot, as it is in the file; nothing is compared.
    ///
    /// # Errors
    /// [`Damage::Read`].
    pub fn trailer(&self) -> Result<Option<[u8; 32]>, Damage> {
        if !self.has_trailer {
            return Ok(None);
        }
        let mut out = [0; 32];
        self.read_at(&mut out, self.size.saturating_sub(TRAILER))?;
        Ok(Some(out))
    }
}

fn read<S: ReadAt>(source: &S, buffer: &mut [u8], offset: u64) -> Result<(), Damage> {
    let bytes = u64::try_from(buffer.len()).unwrap_or(u64::MAX);
    source.read_exact_at(buffer, offset).map_err(|source| Damage::Read { offset, bytes, source })
}

type Found = Result<Meta, MetaFault>;

/// Both metas. Where the first is damaged the second is looked for at each page size.
fn metas<S: ReadAt>(source: &S, length: u64) -> Result<(Found, Found), Damage> {
    let first = meta_at(source, length, 0)?;
    if let Ok(meta) = first {
        return Ok((first, second_meta(source, length, meta.page_size)?));
    }
    let mut best = Err(MetaFault::Missing);
    let sizes = std::iter::successors(Some(SMALLEST_PAGE), |size| size.checked_mul(2));
    for size in sizes.take_while(|&size| size <= LARGEST_PAGE) {
        let found = second_meta(source, length, size)?;
        if found.is_ok() {
            return Ok((first, found));
        }
        if !matches!(found, Err(MetaFault::Missing | MetaFault::Magic { .. })) || best == Err(MetaFault::Missing) {
            best = found;
        }
    }
    Ok((first, best))
}

fn second_meta<S: ReadAt>(source: &S, length: u64, page_size: u32) -> Result<Found, Damage> {
    Ok(match meta_at(source, length, u64::from(page_size))? {
        Ok(meta) if meta.page_size != page_size => Err(MetaFault::PageSize { found: meta.page_size }),
        other => other,
    })
}

/// A page size is not looked at before a meta counts: bbolt reads the whole file by the first one's, and then takes the tree of the newer.
fn other_page_size(first: Found, second: Found) -> Result<(), Damage> {
    let (meta, found) = match (first, second) {
        (Err(MetaFault::PageSize { found }), Ok(_)) => (0, found),
        (Ok(_), Err(MetaFault::PageSize { found })) => (1, found),
        _ => return Ok(()),
    };
    Err(Damage::OtherPageSize { meta, found })
}

/// The meta of the page at `offset`.
fn meta_at<S: ReadAt>(source: &S, length: u64, offset: u64) -> Result<Found, Damage> {
    let mut page = [0; HEADER + META];
    let there = usize::try_from(length.saturating_sub(offset)).unwrap_or(usize::MAX).min(page.len());
    let bytes = page.get_mut(..there).unwrap_or_default();
    if bytes.len() <= HEADER {
        return Ok(Err(MetaFault::Missing));
    }
    read(source, bytes, offset)?;
    Ok(bytes.get(HEADER..).map_or(Err(MetaFault::Missing), Meta::parse))
}

/// Why there is no meta that counts: another kind of file, another version, or damage.
fn no_meta<S: ReadAt>(source: &S, size: u64, first: MetaFault, second: MetaFault) -> Result<Damage, Damage> {
    let mut head = [0; 512];
    let there = usize::try_from(size).unwrap_or(usize::MAX).min(head.len());
    let head = head.get_mut(..there).unwrap_or_default();
    read(source, head, 0)?;
    let absent = |fault| matches!(fault, MetaFault::Missing | MetaFault::Magic { .. });
    let short = first == MetaFault::Missing && there < HEADER.saturating_add(4);
    Ok(match (first, second) {
        (MetaFault::Magic { .. }, second) if absent(second) => Damage::Foreign(Foreign::of(head)),
        _ if short => Damage::Foreign(Foreign::of(head)),
        (MetaFault::Version { found }, _) | (_, MetaFault::Version { found }) => Damage::Version { found },
        (MetaFault::PageSize { found }, _) => Damage::PageSize { found },
        (first, second) => Damage::Metas { first, second },
    })
}
