//! One pass over everything that the meta reaches, checked.
//!
//! Buckets in the order of their names, rows in the order of their keys. Each tree is walked with the path to the current leaf and no
//! recursion, each page may be reached once, and a tree has a greatest depth, so the walk ends on any file. Memory: two bits a page at most,
//! the branches of two paths, and one window of pages for each.
//!
//! Format: bbolt 1.4.3 `tx_check.go`, whose rules are all here; those for the order of elements inside a page, equal depth and etcd's flat
//! buckets are beyond it.
#![deny(clippy::arithmetic_side_effects)]

use std::ops::ControlFlow;

use super::{
    KNOWN_BUCKETS,
    damage::{Damage, PageFault, Text},
    page::{Bounds, Child, HEADER, LEAF, LeafRow, LeafRows, PageHeader, PageId, PageKind, children, u64_at},
    reader::Db,
    window::Window,
};
use crate::etcd::ReadAt;

/// Deepest tree: a branch has two children at least, so none that bbolt wrote comes near.
const MOST_DEPTH: usize = 64;
/// Largest leaf with its overflow. etcd takes requests of 1.5 MiB unless told otherwise, and warns above 10 MiB.
const MOST_LEAF: u64 = 256 << 20;
/// Largest branch: bbolt's keys end at 32 KiB, and a branch is split above four of them.
const MOST_BRANCH: u64 = 16 << 20;
/// Most names of unknown buckets that are kept.
const MOST_UNKNOWN: usize = 16;
/// Freelist entries that are read at once.
const ENTRIES: usize = 8 << 10;

/// One row, in place: it is gone when the next one is read.
#[derive(Clone, Copy, Debug)]
pub struct Row<'a> {
    /// Name of its bucket.
    pub bucket: &'a [u8],
    /// Its key.
    pub key: &'a [u8],
    /// Its value.
    pub value: &'a [u8],
    /// The page that holds it; for a row of a small bucket that lies inside the root tree, the page of that tree.
    pub page: PageId,
    /// Its element in the page, or in the small bucket, from 0.
    pub index: u16,
    /// Where its key begins in the file.
    pub offset: u64,
}

/// What is done with the rows.
pub trait Visitor {
    /// What can go wrong with them.
    type Error: From<Damage>;

    /// The rows of this bucket follow, if it has any.
    ///
    /// # Errors
    /// Whatever ends the walk.
    fn bucket_begin(&mut self, name: &[u8], sequence: u64) -> Result<(), Self::Error> {
        let _ = (name, sequence);
        Ok(())
    }

    /// The next row.
    ///
    /// # Errors
    /// Whatever ends the walk.
    fn row(&mut self, row: Row<'_>) -> Result<(), Self::Error>;
}

/// Looks at nothing: the walk is then the check alone.
impl Visitor for () {
    type Error = Damage;

    fn row(&mut self, _: Row<'_>) -> Result<(), Damage> {
        Ok(())
    }
}

/// What a whole walk went through. Pages are counted by what they hold; the two metas are in none of the counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Walked {
    /// Branch pages, without their overflow.
    pub branch_pages: u64,
    /// Leaf pages, without their overflow.
    pub leaf_pages: u64,
    /// Pages on which branches and leaves continue.
    pub overflow_pages: u64,
    /// Pages of the freelist, its overflow included; 0 where none is kept.
    pub freelist_pages: u64,
    /// Pages below the high-water mark that nothing reaches.
    pub free_pages: u64,
    /// The same in bytes: what a defragmentation gives back at once.
    pub free_bytes: u64,
    /// Bytes of headers, elements, keys and values in branches and leaves.
    pub used_bytes: u64,
    /// Buckets.
    pub buckets: u64,
    /// Buckets that are small enough to lie inside the root tree; counted in `buckets` too.
    pub inline_buckets: u64,
    /// Rows of all buckets.
    pub rows: u64,
    /// Names of buckets that etcd 3.4 to 3.6 do not have; at most 16.
    pub unknown_buckets: Vec<Text>,
}

impl<S: ReadAt> Db<S> {
    /// Goes through all buckets and checks all that can be checked without knowing what rows mean.
    ///
    /// # Errors
    /// The first damage, or what the visitor returned. What was visited before is then a part of unknown worth.
    pub fn walk<V: Visitor>(&self, visitor: &mut V) -> Result<Walked, V::Error> {
        let mut pages = Pages::new(self);
        let free = pages.freelist()?;
        let mut inner = Window::default();
        pages.buckets(|pages, row, place| {
            let name = row.key;
            pages.walked.buckets = pages.walked.buckets.saturating_add(1);
            if !KNOWN_BUCKETS.iter().any(|known| known.as_bytes() == name)
                && pages.walked.unknown_buckets.len() < MOST_UNKNOWN
            {
                pages.walked.unknown_buckets.push(Text::new(name));
            }
            visitor.bucket_begin(name, place.sequence)?;
            pages.rows(&mut inner, name, &place, &mut |row| visitor.row(row))?;
            Ok::<_, V::Error>(ControlFlow::Continue(()))
        })?;
        Ok(pages.finish(free.as_ref())?)
    }

    /// Checks everything and looks at no row.
    ///
    /// # Errors
    /// The first damage.
    pub fn check(&self) -> Result<Walked, Damage> {
        self.walk(&mut ())
    }

    /// Goes through the rows of one bucket, with the same checks on its tree; false if there is no such bucket.
    ///
    /// # Errors
    /// The first damage on the way, or what the closure returned.
    pub fn walk_bucket<E, F>(&self, name: &[u8], mut each: F) -> Result<bool, E>
    where
        E: From<Damage>,
        F: FnMut(Row<'_>) -> Result<(), E>,
    {
        let mut found = false;
        let mut inner = Window::default();
        Pages::new(self).buckets(|pages, row, place| {
            if row.key != name {
                return Ok(ControlFlow::Continue(()));
            }
            found = true;
            pages.rows(&mut inner, name, &place, &mut each)?;
            Ok::<_, E>(ControlFlow::Break(()))
        })?;
        Ok(found)
    }
}

/// Where a bucket's rows are.
struct Place<'a> {
    sequence: u64,
    /// The page of the root tree that says so.
    page: PageId,
    /// Where the bucket's value begins in the file.
    offset: u64,
    rows: Rows<'a>,
}

enum Rows<'a> {
    /// In a tree of their own.
    Tree(PageId),
    /// In a page inside the bucket's value.
    Inline { page: &'a [u8], count: u16 },
}

impl<'a> Place<'a> {
    /// Reads the value of a bucket's row.
    fn of(row: &LeafRow<'a>, page: PageId, offset: u64) -> Result<Self, PageFault> {
        let index = row.index;
        let fault = || PageFault::BucketHeader { index, name: Text::new(row.key), bytes: row.value.len() };
        if !row.is_bucket {
            return Err(PageFault::NotBucket { index, key: Text::new(row.key) });
        }
        let (Some(root), Some(sequence), Some(rest)) =
            (u64_at(row.value, 0), u64_at(row.value, 8), row.value.get(HEADER..))
        else {
            return Err(fault());
        };
        let rows = if root != 0 {
            // A bucket that outgrew its inline page gets a new value of the header alone.
            if !rest.is_empty() {
                return Err(fault());
            }
            Rows::Tree(PageId(root))
        } else {
            let header = PageHeader::parse(rest).ok_or_else(fault)?;
            if header.id != 0 || header.flags != LEAF || header.overflow != 0 {
                return Err(PageFault::Inline {
                    index,
                    name: Text::new(row.key),
                    id: PageId(header.id),
                    flags: header.flags,
                    overflow: header.overflow,
                });
            }
            Rows::Inline { page: rest, count: header.count }
        };
        Ok(Self { sequence, page, offset, rows })
    }
}

/// The pages of one walk: which were reached, and what they hold.
struct Pages<'a, S> {
    db: &'a Db<S>,
    seen: Bits,
    walked: Walked,
}

impl<'a, S: ReadAt> Pages<'a, S> {
    fn new(db: &'a Db<S>) -> Self {
        Self { db, seen: Bits::new(db.high_water()), walked: Walked::default() }
    }

    /// Goes through the root tree until `each` breaks.
    fn buckets<E, F>(&mut self, mut each: F) -> Result<(), E>
    where
        E: From<Damage>,
        F: FnMut(&mut Self, &LeafRow<'_>, Place<'_>) -> Result<ControlFlow<()>, E>,
    {
        let db = self.db;
        let mut window = Window::default();
        let mut tree = Tree::new(&mut window, db.meta().root, PageId(0));
        while let Some(leaf) = tree.next_leaf(self)? {
            let begin = leaf.page.0.saturating_mul(db.page_size());
            let damage = |fault| db.damage(leaf.page, fault);
            let mut rows = LeafRows::new(leaf.bytes, leaf.count, leaf.bounds).map_err(damage)?;
            while let Some(row) = rows.next().map_err(damage)? {
                let offset = begin.saturating_add(wide(row.start)).saturating_add(wide(row.key.len()));
                let place = Place::of(&row, leaf.page, offset).map_err(damage)?;
                if each(self, &row, place)?.is_break() {
                    return Ok(());
                }
            }
            self.walked.used_bytes = self.walked.used_bytes.saturating_add(wide(rows.used()));
        }
        Ok(())
    }

    /// Goes through the rows of one bucket.
    fn rows<E, F>(&mut self, window: &mut Window, bucket: &[u8], place: &Place<'_>, each: &mut F) -> Result<(), E>
    where
        E: From<Damage>,
        F: FnMut(Row<'_>) -> Result<(), E>,
    {
        let named = |damage: Damage| damage.in_bucket(bucket);
        match place.rows {
            Rows::Inline { page, count } => {
                self.walked.inline_buckets = self.walked.inline_buckets.saturating_add(1);
                let begin = place.offset.saturating_add(wide(HEADER));
                let leaf = Leaf { page: place.page, bytes: page, count, bounds: Bounds::default() };
                // The bytes are those of the leaf around it, which are counted there.
                self.leaf(&leaf, begin, bucket, each)?;
            }
            Rows::Tree(root) => {
                let mut tree = Tree::new(window, root, place.page);
                while let Some(leaf) = tree.next_leaf(self).map_err(named)? {
                    let begin = leaf.page.0.saturating_mul(self.db.page_size());
                    let used = self.leaf(&leaf, begin, bucket, each)?;
                    self.walked.used_bytes = self.walked.used_bytes.saturating_add(wide(used));
                }
            }
        }
        Ok(())
    }

    /// Goes through the rows of one leaf that begins at offset `begin` of the file, and says how many bytes it uses.
    fn leaf<E, F>(&mut self, leaf: &Leaf<'_>, begin: u64, bucket: &[u8], each: &mut F) -> Result<usize, E>
    where
        E: From<Damage>,
        F: FnMut(Row<'_>) -> Result<(), E>,
    {
        let damage = |fault| self.db.damage(leaf.page, fault).in_bucket(bucket);
        let mut rows = LeafRows::new(leaf.bytes, leaf.count, leaf.bounds).map_err(damage)?;
        while let Some(LeafRow { index, start, key, value, is_bucket }) = rows.next().map_err(damage)? {
            if is_bucket {
                return Err(damage(PageFault::Nested { index, key: Text::new(key) }).into());
            }
            self.walked.rows = self.walked.rows.saturating_add(1);
            each(Row { bucket, key, value, page: leaf.page, index, offset: begin.saturating_add(wide(start)) })?;
        }
        Ok(rows.used())
    }

    /// The header of a page that `from` names, which is there.
    fn in_range(&self, page: PageId) -> Result<(), Damage> {
        let high_water = self.db.high_water();
        if page.0 < 2 || page >= high_water {
            return Err(self.db.damage(page, PageFault::OutOfRange { high_water }));
        }
        Ok(())
    }

    /// Marks a page and its overflow as reached; how many pages these are.
    fn claim(&mut self, page: PageId, from: PageId, header: &PageHeader, most: u64) -> Result<u64, Damage> {
        let high_water = self.db.high_water();
        let count = u64::from(header.overflow).saturating_add(1);
        let end = page.0.saturating_add(count);
        if end > high_water.0 {
            return Err(self.db.damage(page, PageFault::Overflow { overflow: header.overflow, high_water }));
        }
        let bytes = count.saturating_mul(self.db.page_size());
        if bytes > most {
            return Err(self.db.damage(page, PageFault::TooLarge { bytes, most }));
        }
        for id in page.0..end {
            if !self.seen.set(id) {
                return Err(self.db.damage(PageId(id), PageFault::Twice { from }));
            }
        }
        Ok(count)
    }

    /// The free pages that the file lists, if it keeps a list.
    fn freelist(&mut self) -> Result<Option<Bits>, Damage> {
        let Some(page) = self.db.meta().freelist else { return Ok(None) };
        let high_water = self.db.high_water();
        let fail = |fault| self.db.damage(page, fault);
        let mut head = [0; 24];
        let begin = page.0.saturating_mul(self.db.page_size());
        self.db.read_at(&mut head, begin)?;
        let Some(header) = PageHeader::parse(&head) else { return Ok(None) };
        match header.kind("freelist").map_err(fail)? {
            _ if header.id != page.0 => return Err(fail(PageFault::Misplaced { found: PageId(header.id) })),
            PageKind::Freelist => {}
            found => return Err(fail(PageFault::Kind { expected: "freelist", found })),
        }
        // A count that does not fit is the first entry.
        let (count, first) = match header.count {
            u16::MAX => (u64_at(&head, HEADER).unwrap_or(0), 24_u64),
            count => (u64::from(count), 16),
        };
        let pages = self.claim(page, PageId(0), &header, u64::MAX)?;
        self.walked.freelist_pages = pages;
        let page_bytes = pages.saturating_mul(self.db.page_size());
        if count.checked_mul(8).and_then(|bytes| bytes.checked_add(first)).is_none_or(|end| end > page_bytes) {
            return Err(self.db.damage(page, PageFault::FreeTable { count, page_bytes }));
        }
        let mut free = Bits::new(high_water);
        let mut buffer = vec![0; ENTRIES.saturating_mul(8)];
        let (mut index, mut at, mut after) = (0_u64, begin.saturating_add(first), None);
        while index < count {
            let take = count.saturating_sub(index).min(wide(ENTRIES)).saturating_mul(8);
            let bytes = buffer.get_mut(..usize::try_from(take).unwrap_or(0)).unwrap_or_default();
            self.db.read_at(bytes, at)?;
            for &entry in bytes.as_chunks().0 {
                let id = PageId(u64::from_le_bytes(entry));
                if id.0 < 2 || id >= high_water {
                    return Err(self.db.damage(page, PageFault::FreeRange { index, id, high_water }));
                }
                if let Some(after) = after.filter(|&after| after >= id) {
                    return Err(self.db.damage(page, PageFault::FreeOrder { index, id, after }));
                }
                free.set(id.0);
                after = Some(id);
                index = index.saturating_add(1);
            }
            at = at.saturating_add(take);
        }
        Ok(Some(free))
    }

    /// Compares what was reached with what the freelist says, and counts what is left.
    fn finish(mut self, free: Option<&Bits>) -> Result<Walked, Damage> {
        let mut count = 0_u64;
        for id in 2..self.db.high_water().0 {
            let reached = self.seen.get(id);
            count = count.saturating_add(u64::from(!reached));
            match free.map(|free| free.get(id)) {
                Some(true) if reached => return Err(self.db.damage(PageId(id), PageFault::FreeInUse)),
                Some(false) if !reached => return Err(self.db.damage(PageId(id), PageFault::Lost)),
                _ => {}
            }
        }
        self.walked.free_pages = count;
        self.walked.free_bytes = count.saturating_mul(self.db.page_size());
        Ok(self.walked)
    }
}

/// A branch on the way to the current leaf.
struct Frame {
    page: PageId,
    bytes: Vec<u8>,
    children: Vec<Child>,
    next: usize,
    /// What ends the keys of its last child.
    upper: Option<Bound>,
}

/// The key of a child of a branch on the path.
#[derive(Clone, Copy)]
struct Bound {
    frame: usize,
    child: usize,
}

impl Bound {
    fn key(self, path: &[Frame]) -> Option<&[u8]> {
        let frame = path.get(self.frame)?;
        frame.bytes.get(frame.children.get(self.child)?.key.clone())
    }
}

/// A page to go to.
#[derive(Clone, Copy)]
struct Step {
    page: PageId,
    from: PageId,
    lower: Option<Bound>,
    upper: Option<Bound>,
}

impl Step {
    fn bounds<'p>(&self, path: &'p [Frame]) -> Bounds<'p> {
        Bounds {
            lower: self.lower.and_then(|bound| bound.key(path)),
            upper: self.upper.and_then(|bound| bound.key(path)),
        }
    }
}

/// A walk through one tree, leaf by leaf.
struct Tree<'w> {
    root: Option<Step>,
    path: Vec<Frame>,
    /// Levels between the root and each leaf, once one was seen.
    leaf_depth: Option<usize>,
    window: &'w mut Window,
}

/// A leaf whose header was checked and whose rows were not.
struct Leaf<'t> {
    page: PageId,
    bytes: &'t [u8],
    count: u16,
    bounds: Bounds<'t>,
}

impl<'w> Tree<'w> {
    fn new(window: &'w mut Window, root: PageId, from: PageId) -> Self {
        let root = Step { page: root, from, lower: None, upper: None };
        Self { root: Some(root), path: Vec::new(), leaf_depth: None, window }
    }

    /// The next leaf in key order. After an error the caller stops.
    fn next_leaf<S: ReadAt>(&mut self, pages: &mut Pages<'_, S>) -> Result<Option<Leaf<'_>>, Damage> {
        let db = pages.db;
        let (step, header, count) = loop {
            let Some(step) = self.step() else { return Ok(None) };
            let page = step.page;
            let depth = self.path.len();
            let damage = |fault| db.damage(page, fault);
            pages.in_range(page)?;
            let next = match self.path.last() {
                // Reading ahead is for leaves: a branch is followed by its own children, not by the branch next to it.
                Some(frame) if self.leaf_depth == Some(depth) => frame.children.get(frame.next..).unwrap_or_default(),
                _ => &[],
            };
            let bytes = self.window.read(db, page, 1, next)?;
            let Some(header) = PageHeader::parse(bytes) else { return Ok(None) };
            if header.id != page.0 {
                return Err(damage(PageFault::Misplaced { found: PageId(header.id) }));
            }
            match header.kind("branch or leaf").map_err(damage)? {
                PageKind::Leaf => {
                    let expected = *self.leaf_depth.get_or_insert(depth);
                    if expected != depth {
                        return Err(damage(PageFault::Depth { expected, found: depth }));
                    }
                    let count = pages.claim(page, step.from, &header, MOST_LEAF)?;
                    self.window.read(db, page, count, next)?;
                    pages.count(PageKind::Leaf, count);
                    break (step, header, count);
                }
                PageKind::Branch => {
                    if depth >= MOST_DEPTH {
                        return Err(damage(PageFault::TooDeep { depth, most: MOST_DEPTH }));
                    }
                    let count = pages.claim(page, step.from, &header, MOST_BRANCH)?;
                    let bytes = self.window.read(db, page, count, &[])?.to_vec();
                    let (children, used) = children(&bytes, header.count, step.bounds(&self.path)).map_err(damage)?;
                    pages.count(PageKind::Branch, count);
                    pages.walked.used_bytes = pages.walked.used_bytes.saturating_add(wide(used));
                    self.path.push(Frame { page, bytes, children, next: 0, upper: step.upper });
                }
                found => return Err(damage(PageFault::Kind { expected: "branch or leaf", found })),
            }
        };
        let bytes = self.window.again(step.page, count, db.page_size());
        Ok(Some(Leaf { page: step.page, bytes, count: header.count, bounds: step.bounds(&self.path) }))
    }

    /// Where to go next; leaves the branches that are done.
    fn step(&mut self) -> Option<Step> {
        if let Some(root) = self.root.take() {
            return Some(root);
        }
        loop {
            let frame = self.path.len().checked_sub(1)?;
            let top = self.path.last_mut()?;
            let child = top.next;
            if let Some(found) = top.children.get(child) {
                top.next = child.saturating_add(1);
                let after = top.children.get(top.next).map(|_| Bound { frame, child: top.next });
                let lower = Some(Bound { frame, child });
                return Some(Step { page: found.page, from: top.page, lower, upper: after.or(top.upper) });
            }
            self.path.pop();
        }
    }
}

impl<S> Pages<'_, S> {
    fn count(&mut self, kind: PageKind, pages: u64) {
        let head = match kind {
            PageKind::Branch => &mut self.walked.branch_pages,
            _ => &mut self.walked.leaf_pages,
        };
        *head = head.saturating_add(1);
        self.walked.overflow_pages = self.walked.overflow_pages.saturating_add(pages.saturating_sub(1));
    }
}

/// A bit for each page below the high-water mark, which the file is long enough for.
struct Bits(Vec<u64>);

impl Bits {
    fn new(high_water: PageId) -> Self {
        Self(vec![0; usize::try_from(high_water.0.div_ceil(64)).unwrap_or(0)])
    }

    fn place(id: u64) -> (usize, u64) {
        (usize::try_from(id >> 6).unwrap_or(usize::MAX), 1 << (id & 63))
    }

    /// Sets the bit; false if it was set or is out of range.
    fn set(&mut self, id: u64) -> bool {
        let (word, bit) = Self::place(id);
        let Some(word) = self.0.get_mut(word) else { return false };
        let new = *word & bit == 0;
        *word |= bit;
        new
    }

    fn get(&self, id: u64) -> bool {
        let (word, bit) = Self::place(id);
        self.0.get(word).is_some_and(|word| word & bit != 0)
    }
}

fn wide(bytes: usize) -> u64 {
    u64::try_from(bytes).unwrap_or(u64::MAX)
}
