//! `backup.json`, and what `backup` reports.

use std::{collections::BTreeMap, path::PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{BackupId, EtcdId, ProofLevel, Sha256Hex};

/// The index of one backup: who made it, of what, with which members, digests, sizes and verdicts.
///
/// It is signed through `SHA256SUMS`, so identity and age of a backup come from here and never from a directory's name or a file's time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Index {
    /// [`Index::SCHEMA`].
    pub schema: String,
    /// The backup's name; the directory must bear it.
    pub id: BackupId,
    /// Where the backup was first written.
    pub path: PathBuf,
    /// The store that it was written to.
    pub store_id: String,
    /// The cluster that it was taken from.
    pub cluster_id: EtcdId,
    /// The policy's name for that cluster.
    pub cluster_name: String,
    /// The host that made it.
    pub host: String,
    /// When the run began.
    pub created_at: Timestamp,
    /// When the last file was closed.
    pub finished_at: Timestamp,
    /// What the run itself proved, on the bytes that it stored.
    pub proof: ProofLevel,
    /// Whether the members agree; null until they were compared.
    pub agreement: Option<Agreement>,
    /// Something that belongs here is missing, by name in [`Index::findings`].
    pub partial: bool,
    /// The member whose file a restore uses.
    pub primary: Option<String>,
    /// Every member of the member list, also the ones that gave nothing.
    pub members: Vec<Member>,
    /// Archives beside the databases.
    #[serde(default)]
    pub archives: Vec<Archive>,
    /// Objects exported per `<group|core>/<resource>`; null where nothing was exported.
    #[serde(default)]
    pub resources: Option<BTreeMap<String, u64>>,
    /// Whether the control-plane bundle is complete; null where there is none.
    #[serde(default)]
    pub bundle_complete: Option<bool>,
    /// Objects compared with the database; null where nothing was exported.
    #[serde(default)]
    pub cross_check: Option<CrossCheck>,
    /// What is wrong, by name.
    #[serde(default)]
    pub findings: Vec<Finding>,
    /// What a person should know and that changes no verdict.
    #[serde(default)]
    pub warnings: Vec<String>,
    /// Who can open the files: recipients in the policy's order, then `run` for the key that lived in the run's memory alone.
    pub recipients: Vec<String>,
    /// Versions of what was at work.
    pub versions: Versions,
    /// Why it was taken, in the caller's words.
    #[serde(default)]
    pub reason: Option<String>,
}

impl Index {
    /// The schema's name.
    pub const SCHEMA: &'static str = "etcd-dr/backup/v1";

    /// The member whose file a restore uses, where there is one.
    #[must_use]
    pub fn primary_member(&self) -> Option<&Member> {
        let name = self.primary.as_deref()?;
        self.members.iter().find(|member| member.name == name)
    }

    /// The member on whose file the level rests: the primary, or where there is none the highest whole file of a voting member; of equals
    /// the one streamed last, as the members are in the order of their streams.
    #[must_use]
    pub fn spokesman(&self) -> Option<&Member> {
        let whole = |member: &&Member| !member.learner && member.file.is_some() && member.proof >= ProofLevel::Open;
        let highest = || self.members.iter().filter(whole).max_by_key(|member| member.revision);
        self.primary_member().or_else(highest)
    }

    /// Bytes of all sealed files.
    #[must_use]
    pub fn sealed_bytes(&self) -> u64 {
        let members = self.members.iter().filter_map(|member| member.sealed_bytes);
        let archives = self.archives.iter().map(|archive| archive.sealed_bytes);
        members.chain(archives).fold(0, u64::saturating_add)
    }
}

/// One member of the cluster and what it gave.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Its name in the member list; empty for one that has not started.
    pub name: String,
    /// Its id in the member list.
    pub id: EtcdId,
    /// The client URL that answered, or the first of the list.
    pub endpoint: Option<String>,
    /// Its peer URLs, which a restore needs.
    #[serde(default)]
    pub peer_urls: Vec<String>,
    /// etcd's version there.
    pub version: Option<String>,
    /// A learner does not vote and is not streamed.
    pub learner: bool,
    /// Its revision when the stream began, as its Status said.
    pub status_revision: Option<i64>,
    /// The revision of the snapshot, read out of its file; null until the file was examined.
    pub revision: Option<i64>,
    /// The compact revision of the file.
    pub compact_revision: Option<i64>,
    /// HashKV of the file at its own revision.
    pub hash_kv: Option<u32>,
    /// How it compares with the others.
    pub agreement: Option<Agreement>,
    /// The sealed file; null where the member gave none.
    pub file: Option<String>,
    /// Bytes as `etcdctl snapshot save` writes them, trailer included.
    pub plain_bytes: Option<u64>,
    /// Bytes on disk.
    pub sealed_bytes: Option<u64>,
    /// SHA-256 of what the sealed file opens to.
    pub plain_sha256: Option<Sha256Hex>,
    /// SHA-256 of the sealed file.
    pub sealed_sha256: Option<Sha256Hex>,
    /// The SHA-256 that etcd itself sent behind the data.
    pub trailer_sha256: Option<Sha256Hex>,
    /// Seconds from the first call to the last byte on disk.
    pub seconds: Option<Seconds>,
    /// Why there is no file, or what is wrong with it.
    pub error: Option<String>,
    /// What the run proved of this file.
    pub proof: ProofLevel,
    /// Where the proof's bytes came from.
    pub reread: Option<Reread>,
    /// Alarms that its Status named.
    #[serde(default)]
    pub alarms: Vec<String>,
}

impl Member {
    /// Whether the member gave nothing that should be here. One whose file was not kept since all agree gave what was asked; a learner is
    /// not asked.
    #[must_use]
    pub fn is_missing(&self) -> bool {
        self.file.is_none() && self.plain_sha256.is_none() && !self.learner
    }
}

/// A duration in milliseconds, written as seconds with a fraction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seconds(pub u64);

impl From<std::time::Duration> for Seconds {
    fn from(duration: std::time::Duration) -> Self {
        Self(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
    }
}

impl Serialize for Seconds {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64(std::time::Duration::from_millis(self.0).as_secs_f64())
    }
}

impl<'de> Deserialize<'de> for Seconds {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let seconds = f64::deserialize(deserializer)?;
        // Rounded, since 0.001 has no exact form in binary and a truncated read would drift by a millisecond.
        std::time::Duration::try_from_secs_f64(seconds + 0.0005).map(Self::from).map_err(serde::de::Error::custom)
    }
}

/// Whether members hold the same data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Agreement {
    /// A majority is equal and nobody is unequal.
    Agrees,
    /// Two comparable answers are unequal.
    Differs,
    /// Nothing could be compared, which is no pass.
    NotComparable,
    /// The cluster has one voting member.
    Single,
}

impl Agreement {
    /// The word in JSON and in tables.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Agrees => "agrees",
            Self::Differs => "differs",
            Self::NotComparable => "not_comparable",
            Self::Single => "single",
        }
    }
}

/// Where the bytes of a proof were read from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reread {
    /// From the device, past the page cache.
    Device,
    /// Perhaps from memory: the file system keeps its own cache.
    Cache,
}

/// One archive beside the databases.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Archive {
    /// The sealed file.
    pub file: String,
    /// Bytes of the tar stream.
    pub plain_bytes: u64,
    /// Bytes on disk.
    pub sealed_bytes: u64,
    /// SHA-256 of what the sealed file opens to.
    pub plain_sha256: Sha256Hex,
    /// SHA-256 of the sealed file.
    pub sealed_sha256: Sha256Hex,
    /// Entries in the archive.
    pub entries: u64,
    /// What the run proved of this file.
    pub proof: ProofLevel,
    /// What is wrong with it.
    pub error: Option<String>,
}

/// Exported objects compared with the database's keys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CrossCheck {
    /// Objects with their key.
    pub matched: u64,
    /// Keys without an object.
    pub missing: Vec<String>,
    /// Objects without a key.
    pub surplus: Vec<String>,
    /// Known classes, counted.
    pub known: BTreeMap<String, u64>,
}

/// One thing that is wrong, by name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Finding {
    /// The class of the finding, which scripts may rest on.
    pub kind: FindingKind,
    /// The member, file, resource or backup that it speaks of.
    pub name: String,
    /// What was seen.
    pub detail: String,
}

/// Classes of findings; more may come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FindingKind {
    /// A member gave no snapshot.
    MemberMissing,
    /// A member holds other data than the others, or than its own file.
    MemberDiffers,
    /// A member's data could not be compared with the others'.
    MemberNotComparable,
    /// A file that should be there is not.
    FileMissing,
    /// A file's bytes are not those that were signed, or not those that were streamed.
    FileChanged,
    /// A file that nobody signed.
    FileStray,
    /// A backup that was published, never pruned, and is gone.
    BackupVanished,
    /// Something that deletes files by age names this path.
    CleanerFound,
    /// A snapshot that lies unencrypted in the store.
    PlaintextFound,
    /// A kind that a later version writes.
    #[serde(other)]
    Unknown,
}

/// Versions of what was at work.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Versions {
    /// This program's.
    pub etcd_dr: String,
    /// etcd's, of the members that answered, each once.
    pub etcd: Vec<String>,
}

/// What `backup` answers: the index, and what became of the copies.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BackupReport {
    /// As it was written and signed.
    #[serde(flatten)]
    pub index: Index,
    /// What became of the copies, a target each.
    pub targets: Vec<TargetResult>,
}

/// What became of the copy on one target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TargetResult {
    /// The target's name in the policy.
    pub name: String,
    /// Whether the copy is there and was verified.
    pub ok: bool,
    /// What went wrong.
    pub error: Option<String>,
}
