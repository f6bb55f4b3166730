//! Pages in ascending order, cut into chunks.
#![deny(clippy::arithmetic_side_effects)]

use super::{WriteAt, WriteError};
use crate::etcd::bbolt::page::{ELEMENT, HEADER, Meta, PageHeader, PageId};

/// Bytes of one write, and what its offset and its place in memory are a multiple of.
const CHUNK: usize = 1 << 20;
/// What direct I/O asks of a buffer in memory.
const ALIGNMENT: usize = 4096;
/// The empty freelist, behind the metas.
const FREELIST_PAGE: PageId = PageId(2);

/// Where pages go.
#[derive(Debug)]
pub(super) struct Output<W> {
    sink: W,
    pub page_bytes: usize,
    chunk: Chunk,
    /// The first chunk, kept back, once it is full.
    head: Option<Chunk>,
    /// Bytes before the chunk.
    written: u64,
}

impl<W: WriteAt> Output<W> {
    pub fn new(sink: W, page_bytes: usize) -> Self {
        Self { sink, page_bytes, chunk: Chunk::new(), head: None, written: 0 }
    }

    fn position(&self) -> u64 {
        self.written.saturating_add(wide(self.chunk.length))
    }

    fn next_page(&self) -> PageId {
        PageId(self.position().checked_div(wide(self.page_bytes)).unwrap_or(0))
    }

    /// Writes a page, with as many more as it needs.
    pub fn page<const N: usize>(
        &mut self,
        flags: u16,
        count: u16,
        table: impl IntoIterator<Item = [u8; N]>,
        data: &[u8],
    ) -> Result<PageId, WriteError> {
        let id = self.next_page();
        let pages = page_bytes(usize::from(count), data.len()).div_ceil(self.page_bytes).max(1);
        let overflow = narrow(pages.saturating_sub(1));
        self.append(&PageHeader { id: id.0, flags, count, overflow }.bytes())?;
        for element in table {
            self.append(&element)?;
        }
        self.append(data)?;
        let end = id.0.saturating_add(wide(pages)).saturating_mul(wide(self.page_bytes));
        self.pad(end.saturating_sub(self.position()))?;
        Ok(id)
    }

    fn append(&mut self, mut bytes: &[u8]) -> Result<(), WriteError> {
        while !bytes.is_empty() {
            let room = self.room()?;
            let (now, later) = bytes.split_at_checked(room.len()).unwrap_or((bytes, &[]));
            if let Some(to) = room.get_mut(..now.len()) {
                to.copy_from_slice(now);
            }
            self.chunk.length = self.chunk.length.saturating_add(now.len());
            bytes = later;
        }
        Ok(())
    }

    fn pad(&mut self, bytes: u64) -> Result<(), WriteError> {
        let mut left = usize::try_from(bytes).unwrap_or(0);
        while left > 0 {
            let room = self.room()?;
            let now = left.min(room.len());
            room.get_mut(..now).unwrap_or_default().fill(0);
            self.chunk.length = self.chunk.length.saturating_add(now);
            left = left.saturating_sub(now);
        }
        Ok(())
    }

    /// The rest of the chunk, which is written first if it is full.
    fn room(&mut self) -> Result<&mut [u8], WriteError> {
        if self.chunk.length == CHUNK {
            let end = self.position();
            if self.head.is_none() {
                self.head = Some(std::mem::replace(&mut self.chunk, Chunk::new()));
            } else {
                write(&mut self.sink, self.chunk.bytes(), self.written)?;
            }
            self.written = end;
            self.chunk.length = 0;
        }
        Ok(self.chunk.rest())
    }

    /// Writes the last chunk, then the first with the metas; how many pages and bytes there are.
    pub fn finish(mut self, root: PageId) -> Result<(u64, u64), WriteError> {
        let (pages, bytes) = (self.next_page(), self.position());
        let mut head = match self.head.take() {
            Some(head) => {
                write(&mut self.sink, self.chunk.bytes(), self.written)?;
                head
            }
            None => self.chunk,
        };
        let page_size = narrow(self.page_bytes);
        for (page, transaction) in [(0, 2), (1, 1)] {
            let freelist = Some(FREELIST_PAGE);
            let meta = Meta { page_size, root, freelist, high_water: pages, transaction };
            head.put(&meta.bytes(), self.page_bytes.saturating_mul(page).saturating_add(HEADER));
        }
        write(&mut self.sink, head.bytes(), 0)?;
        Ok((pages.0, bytes))
    }
}

fn write<W: WriteAt>(sink: &mut W, bytes: &[u8], offset: u64) -> Result<(), WriteError> {
    let length = wide(bytes.len());
    sink.write_all_at(bytes, offset).map_err(|source| WriteError::Write { offset, bytes: length, source })
}

/// One write's bytes, aligned for direct I/O.
struct Chunk {
    /// Longer than a chunk by the alignment.
    memory: Vec<u8>,
    /// Where the aligned part begins.
    begin: usize,
    length: usize,
}

impl Chunk {
    fn new() -> Self {
        let memory = vec![0; CHUNK.saturating_add(ALIGNMENT)];
        // At most the alignment; if it cannot be told, unaligned memory does for all but direct I/O.
        let begin = memory.as_ptr().align_offset(ALIGNMENT);
        Self { begin: if begin < ALIGNMENT { begin } else { 0 }, memory, length: 0 }
    }

    fn bytes(&self) -> &[u8] {
        self.memory.get(self.begin..).and_then(|rest| rest.get(..self.length)).unwrap_or_default()
    }

    fn rest(&mut self) -> &mut [u8] {
        let length = self.length;
        self.memory.get_mut(self.begin..).and_then(|rest| rest.get_mut(length..CHUNK)).unwrap_or_default()
    }

    /// Overwrites what is there.
    fn put(&mut self, bytes: &[u8], at: usize) {
        let begin = self.begin.saturating_add(at);
        if let Some(to) = self.memory.get_mut(begin..begin.saturating_add(bytes.len())) {
            to.copy_from_slice(bytes);
        }
    }
}

impl std::fmt::Debug for Chunk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Chunk({} bytes)", self.length)
    }
}

fn wide(bytes: usize) -> u64 {
    u64::try_from(bytes).unwrap_or(u64::MAX)
}

/// Bytes of a page with so many elements and so many bytes of keys and values.
pub(super) fn page_bytes(elements: usize, data: usize) -> usize {
    elements.saturating_mul(ELEMENT).saturating_add(HEADER).saturating_add(data)
}

/// Sizes of keys, values and pages are far below 4 GiB.
pub(super) fn narrow(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}
