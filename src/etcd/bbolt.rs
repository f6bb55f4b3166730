//! bbolt, the file format of etcd's database: read and checked in one pass, and written in bulk.
//!
//! # The file
//!
//! An array of pages; a page's id times the page size is its offset. All integers are little-endian.
//!
//! ```text
//! page 0, 1    meta      magic, version, page size, root page, freelist page, high-water mark, transaction, checksum; the newer valid one counts
//! page 2..     branch    key, child page; the key is no greater than any key of the child
//!              leaf      key, value; in the root tree a key is a bucket's name and the value its root page, or the whole bucket if it is small
//!              freelist  ids of free pages; etcd does not keep one, so what nothing reaches is free
//! high-water   end of the database; a snapshot ends here, or 32 bytes later with a SHA-256, a live file may be longer
//! ```
//!
//! A page that is too small for its content continues on the pages that follow it (*overflow*), which have no header of their own. Pages carry
//! no checksums: a bit that flips inside a value is seen by digests and by HashKV, not here.
//!
//! # Use
//!
//! [`Db::open`] looks at the metas, [`Db::walk`] goes through everything that they reach and checks each rule on its way, [`Writer`] makes a new
//! file from sorted rows. The walk ends at the first damage: what lies behind a damaged page is not to be believed.
//!
//! Format: bbolt 1.3.6 to 1.4.3, `internal/common/`, `bucket.go`, `tx_check.go`.
#![deny(clippy::arithmetic_side_effects)]

mod damage;
mod page;
mod reader;
mod walk;
mod window;
mod writer;

pub use damage::{Damage, Foreign, PageFault, Text};
pub use page::{Meta, MetaFault, PageId, PageKind};
pub use reader::Db;
pub use walk::{Row, Visitor, Walked};
pub use writer::{WriteAt, WriteError, Writer, Written};

/// Names of the buckets that etcd 3.4 to 3.6 keep at the top level, sorted.
pub const KNOWN_BUCKETS: [&str; 10] =
    ["alarm", "auth", "authRoles", "authUsers", "cluster", "key", "lease", "members", "members_removed", "meta"];
