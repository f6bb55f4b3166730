//! Proof levels, and the dated records of later proofs.

use std::{fmt, str::FromStr};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{BackupId, Sha256Hex};

/// How far a backup was proved: a ladder, each level includes those below it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProofLevel {
    /// Nothing was shown, or something was shown to be wrong.
    None,
    /// Every file present and none beside, digests, a trusted signature, the name equal to the signed id.
    Digest,
    /// It decrypts and decompresses to the bytes that were streamed, and etcd's trailer is right.
    Open,
    /// The database is whole and equals what the members answered.
    Sound,
    /// A real etcd cluster starts from it.
    Boot,
    /// A real kube-apiserver serves it.
    Serve,
}

impl ProofLevel {
    /// The level's name, as flags and the policy spell it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Digest => "digest",
            Self::Open => "open",
            Self::Sound => "sound",
            Self::Boot => "boot",
            Self::Serve => "serve",
        }
    }
}

impl fmt::Display for ProofLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// The text names no proof level.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no proof level; they are none, digest, open, sound, boot, serve")]
pub struct UnknownLevel(pub String);

impl FromStr for ProofLevel {
    type Err = UnknownLevel;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        [Self::None, Self::Digest, Self::Open, Self::Sound, Self::Boot, Self::Serve]
            .into_iter()
            .find(|level| level.as_str() == text)
            .ok_or_else(|| UnknownLevel(text.to_owned()))
    }
}

/// A later proof, `proofs/<time>-<level>.json`, signed beside itself by the host that made it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProofRecord {
    /// [`ProofRecord::SCHEMA`].
    pub schema: String,
    /// The backup that it speaks of.
    pub backup: BackupId,
    /// SHA-256 of that backup's `SHA256SUMS`, so that a record cannot be moved to another.
    pub sums_sha256: Sha256Hex,
    /// The level that was tried.
    pub level: ProofLevel,
    /// Whether it was reached.
    pub ok: bool,
    /// When.
    pub made_at: Timestamp,
    /// Where.
    pub host: String,
    /// What was seen of each file.
    pub files: Vec<FileVerdict>,
    /// This program's version there.
    pub etcd_dr: String,
}

impl ProofRecord {
    /// The schema's name.
    pub const SCHEMA: &'static str = "etcd-dr/proof/v1";
}

impl FileVerdict {
    /// How a verdict begins that only repeats what the run that stored the file had against it.
    pub const MARKED: &'static str = "marked when it was stored";

    /// Whether it says nothing new: what speaks against the file is in the index, and was known when it was stored.
    #[must_use]
    pub fn is_mark(&self) -> bool {
        self.problem.as_deref().is_some_and(|problem| problem.starts_with(Self::MARKED))
    }
}

/// What was seen of one file of a backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileVerdict {
    /// Its name within the backup.
    pub file: String,
    /// Whether it is as it should be.
    pub ok: bool,
    /// What is wrong with it, in words.
    pub problem: Option<String>,
}
