//! Pages that lie together, read at once.
//!
//! The branch above tells which leaves come next, so as many of them are read in one call as lie close to each other, in either direction: a file
//! that was written in order is read in large pieces, one whose pages are scattered is not read ten times over.
#![deny(clippy::arithmetic_side_effects)]

use super::{
    damage::Damage,
    page::{Child, PageId},
    reader::Db,
};
use crate::etcd::ReadAt;

/// Most bytes that are read ahead.
const AHEAD: u64 = 256 << 10;
/// Bytes between two pages that are read and thrown away rather than asked around.
const GAP: u64 = 32 << 10;
/// A buffer larger than this is given back when a smaller one does.
const KEPT: usize = 4 << 20;

/// The pages read last, in one buffer.
#[derive(Debug, Default)]
pub(super) struct Window {
    buffer: Vec<u8>,
    first: u64,
    pages: u64,
}

impl Window {
    /// The bytes of `count` pages from `page` on, which lie below the high-water mark.
    ///
    /// `next` are the pages that will be asked for afterwards.
    ///
    /// # Errors
    /// [`Damage::Read`].
    pub fn read<S: ReadAt>(&mut self, db: &Db<S>, page: PageId, count: u64, next: &[Child]) -> Result<&[u8], Damage> {
        if !self.holds(page.0, count) {
            let (first, end) = span(page.0, page.0.saturating_add(count), next, db.page_size(), db.high_water().0);
            self.fill(db, first, end.saturating_sub(first))?;
        }
        let begin = size(page.0.saturating_sub(self.first).saturating_mul(db.page_size()));
        let length = size(count.saturating_mul(db.page_size()));
        // Held, by what is above: never the empty default.
        Ok(self.buffer.get(begin..begin.saturating_add(length)).unwrap_or_default())
    }

    /// What [`Self::read`] gave for `page` last, once more.
    pub fn again(&self, page: PageId, count: u64, page_size: u64) -> &[u8] {
        let begin = size(page.0.saturating_sub(self.first).saturating_mul(page_size));
        let length = size(count.saturating_mul(page_size));
        self.buffer.get(begin..begin.saturating_add(length)).unwrap_or_default()
    }

    fn holds(&self, page: u64, count: u64) -> bool {
        page >= self.first && page.saturating_add(count) <= self.first.saturating_add(self.pages)
    }

    fn fill<S: ReadAt>(&mut self, db: &Db<S>, first: u64, pages: u64) -> Result<(), Damage> {
        let length = size(pages.saturating_mul(db.page_size()));
        self.pages = 0;
        if self.buffer.len() < length || (self.buffer.len() > KEPT && length <= KEPT) {
            // Freed before the new one is had; zeroed pages cost nothing until they are written.
            self.buffer = Vec::new();
            self.buffer = vec![0; length.max(size(AHEAD))];
        }
        let into = self.buffer.get_mut(..length).unwrap_or_default();
        db.read_at(into, first.saturating_mul(db.page_size()))?;
        self.first = first;
        self.pages = pages;
        Ok(())
    }
}

/// Which pages to read for those from `first` to `end`, when `next` follow.
fn span(first: u64, end: u64, next: &[Child], page_size: u64, high_water: u64) -> (u64, u64) {
    let most = AHEAD.checked_div(page_size).unwrap_or(1);
    let gap = GAP.checked_div(page_size).unwrap_or(0);
    let (mut first, mut end) = (first, end);
    for page in next.iter().map(|child| child.page.0).take_while(|&page| page < high_water) {
        let (lower, upper, between) = if page >= end {
            (first, page.saturating_add(1), page.saturating_sub(end))
        } else if page < first {
            (page, end, first.saturating_sub(page.saturating_add(1)))
        } else {
            continue;
        };
        if between > gap || upper.saturating_sub(lower) > most {
            break;
        }
        (first, end) = (lower, upper);
    }
    (first, end)
}

/// Sizes here are bounded by the file's and by the limits of a page; one that no memory could hold fails to be allocated or is out of bounds.
fn size(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[allow(clippy::single_range_in_vec_init, reason = "a key that is empty")]
    fn children(pages: &[u64]) -> Vec<Child> {
        pages.iter().map(|&page| Child { page: PageId(page), key: 0..0 }).collect()
    }

    #[test]
    fn a_run_is_read_at_once_up_to_the_limit() {
        let next = children(&(11..200).collect::<Vec<_>>());
        assert_eq!(span(10, 11, &next, 4096, 1000), (10, 74));
        assert_eq!(span(10, 11, &next, 65536, 1000), (10, 14));
        assert_eq!(span(10, 11, &next, 4096, 20), (10, 20));
    }

    #[test]
    fn a_run_may_go_down_and_have_gaps() {
        assert_eq!(span(50, 51, &children(&[49, 47, 52, 30]), 4096, 1000), (47, 53));
        assert_eq!(span(50, 51, &children(&[59, 68, 78]), 4096, 1000), (50, 69));
    }

    #[test]
    fn scattered_pages_are_read_alone() {
        assert_eq!(span(500, 501, &children(&[7, 900, 501]), 4096, 1000), (500, 501));
        assert_eq!(span(500, 503, &children(&[u64::MAX]), 4096, 1000), (500, 503));
    }

    #[test]
    fn a_large_page_is_read_whole() {
        assert_eq!(span(10, 410, &children(&[410]), 4096, 1000), (10, 410));
    }
}
