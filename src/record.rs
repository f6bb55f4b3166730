//! The contract on disk and in JSON: the types that are written, read back for ever, and shown to machines.
//!
//! No I/O happens here. Fields are added, never changed or removed: a reader accepts fields that it does not know, and a field that a
//! later version began to write is optional when it is read. Ids of members and clusters are lower-case hexadecimal without `0x`, digests
//! are lower-case hexadecimal, times are RFC 3339 in UTC and whole seconds, sizes are bytes.

mod backup;
mod holds;
mod ids;
mod journal;
mod progress;
mod proof;

pub use backup::{
    Agreement, Archive, BackupReport, CrossCheck, Finding, FindingKind, Index, Member, Reread, Seconds, TargetResult,
    Versions,
};
pub use holds::{Held, Holds};
pub use ids::{BackupId, BadBackupId, BadDigest, EtcdId, Sha256Hex};
pub use journal::{Journal, JournalEntry, Marker};
pub use progress::{Event, Progress, Silent};
pub use proof::{FileVerdict, ProofLevel, ProofRecord, UnknownLevel};

/// Names of the files in a store and in a backup (contract.md, 6).
pub mod names {
    /// The marker that makes a directory a store.
    pub const MARKER: &str = ".etcd-dr-store.json";
    /// What was published and pruned, and the highest revisions seen.
    pub const JOURNAL: &str = ".etcd-dr-journal.json";
    /// Which backups no plan may drop.
    pub const HOLDS: &str = ".etcd-dr-holds.json";
    /// The file that an exclusive run holds locked.
    pub const LOCK: &str = ".lock";
    /// A copy of the public key for people; it is never trusted.
    pub const PUBLIC_KEY: &str = "minisign.pub";
    /// What is being written, or being removed, begins with this.
    pub const PARTIAL: &str = ".partial-";
    /// The index of a backup.
    pub const INDEX: &str = "backup.json";
    /// Digests of every file of a backup, for `sha256sum -c`.
    pub const SUMS: &str = "SHA256SUMS";
    /// The signature of [`SUMS`], for `minisign -V`.
    pub const SIGNATURE: &str = "SHA256SUMS.minisig";
    /// How this cluster is brought back with stock tools.
    pub const RECOVERY: &str = "RECOVERY.md";
    /// Directory of later proofs.
    pub const PROOFS: &str = "proofs";
}
