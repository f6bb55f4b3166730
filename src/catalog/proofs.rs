//! Later proofs: `proofs/<time>-<level>.json`, and its signature under the same name with `.minisig` behind it, as `minisign -Vm` wants it.

use std::{
    collections::BTreeSet,
    io,
    path::{Path, PathBuf},
};

use jiff::tz::TimeZone;
use walkdir::WalkDir;

use super::read::{MAX_PROOF, MAX_SIGNATURE, read_bounded, read_text, shown};
use crate::{
    at::{At as _, PathError},
    durable,
    record::{BackupId, ProofLevel, ProofRecord, Sha256Hex, names},
    sign::{self, SecretKey, Trusted},
};

const SIGNATURE: &str = ".minisig";
/// More records than this in one backup are not read; nightly proofs fill it in decades.
const MAX_RECORDS: usize = 10_000;
/// Records of one second and one level.
const MAX_CLASHES: u32 = 1000;

/// One record of `proofs/`, whether it counts or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeenProof {
    /// Its name within the backup, control characters escaped.
    pub file: String,
    /// What it says; absent where it is no record. Shown also where it does not count: then anybody may have written it.
    pub record: Option<ProofRecord>,
    /// Whether a trusted key signed it for this very backup.
    pub counted: bool,
    /// Why it does not count.
    pub problem: Option<String>,
}

impl SeenProof {
    /// The record, where it counts.
    #[must_use]
    pub fn counted_record(&self) -> Option<&ProofRecord> {
        self.record.as_ref().filter(|_| self.counted)
    }
}

/// Reads what lies in `proofs/`, oldest first; of one second, failures last.
pub(super) fn read(dir: &Path, id: &BackupId, sums_sha256: Sha256Hex, trusted: &Trusted) -> Vec<SeenProof> {
    let proofs = dir.join(names::PROOFS);
    if !proofs.symlink_metadata().is_ok_and(|meta| meta.is_dir()) {
        return Vec::new();
    }
    let mut records = BTreeSet::new();
    for entry in WalkDir::new(&proofs).min_depth(1).max_depth(1).follow_links(false).into_iter().flatten() {
        let name = entry.file_name().to_string_lossy();
        // A power cut while a record was written leaves its temporary name.
        if !name.starts_with(names::PARTIAL) {
            // A signature stands for its record, so that one which lost its record is named.
            records.insert(entry.path().with_file_name(name.strip_suffix(SIGNATURE).unwrap_or(&name)));
        }
    }
    let mut seen: Vec<_> =
        records.iter().take(MAX_RECORDS).map(|path| one(dir, path, id, sums_sha256, trusted)).collect();
    seen.sort_by_key(|proof| {
        let record = proof.record.as_ref();
        (record.map(|r| r.made_at), record.is_some_and(|r| !r.ok), proof.file.clone())
    });
    seen
}

fn one(dir: &Path, path: &Path, id: &BackupId, sums_sha256: Sha256Hex, trusted: &Trusted) -> SeenProof {
    let file = shown(path, dir);
    let bytes = match read_bounded(path, MAX_PROOF) {
        Ok(bytes) => bytes,
        Err(problem) => return SeenProof { file, record: None, counted: false, problem: Some(problem) },
    };
    let record =
        serde_json::from_slice::<ProofRecord>(&bytes).ok().filter(|record| record.schema == ProofRecord::SCHEMA);
    let problem = signature_problem(path, &bytes, trusted).or_else(|| match &record {
        None => Some("is no record of a proof that this version reads".to_owned()),
        Some(record) if record.backup != *id => Some(format!("speaks of backup {}", record.backup)),
        Some(record) if record.sums_sha256 != sums_sha256 => Some("speaks of another SHA256SUMS".to_owned()),
        Some(_) => None,
    });
    SeenProof { file, record, counted: problem.is_none(), problem }
}

fn signature_problem(path: &Path, bytes: &[u8], trusted: &Trusted) -> Option<String> {
    match read_text(&signature_of(path), MAX_SIGNATURE) {
        Err(problem) => Some(format!("its signature {problem}")),
        Ok(signature) => trusted.verify(bytes, &signature).err().map(|error| error.to_string()),
    }
}

fn signature_of(record: &Path) -> PathBuf {
    let mut name = record.file_name().unwrap_or_default().to_owned();
    name.push(SIGNATURE);
    record.with_file_name(name)
}

/// The level after the run's own proof and the counted records, which are in order ([`super::Backup::level`] says how).
pub(super) fn level(run: ProofLevel, proofs: &[SeenProof]) -> ProofLevel {
    let mut reached = run;
    let mut failed = None;
    for record in proofs.iter().filter_map(SeenProof::counted_record) {
        if !record.ok {
            failed = failed.max(Some(record.level));
            continue;
        }
        reached = reached.max(record.level);
        if failed.is_some_and(|failed| record.level >= failed) {
            failed = None;
        }
    }
    if failed.is_some() { ProofLevel::None } else { reached }
}

/// Why a proof could not be recorded.
#[derive(Debug, thiserror::Error)]
pub enum WriteProofError {
    /// The record or its signature could not be written.
    #[error(transparent)]
    Io(#[from] PathError),
    /// It could not be signed; nothing was written.
    #[error(transparent)]
    Sign(#[from] sign::Error),
}

/// Records a proof in `proofs/` of the backup, which is made if it is missing, and says where.
///
/// The record is durable before its signature is, and counts only with it. A name that is taken gets `-2`, `-3` and so on.
///
/// # Errors
/// [`WriteProofError`].
pub fn write_proof(backup_dir: &Path, record: &ProofRecord, key: &SecretKey) -> Result<PathBuf, WriteProofError> {
    let io_error = |error: serde_json::Error, path: &Path| PathError { path: path.to_owned(), source: error.into() };
    let proofs = backup_dir.join(names::PROOFS);
    let mut bytes = serde_json::to_vec_pretty(record).map_err(|error| io_error(error, &proofs))?;
    bytes.push(b'\n');
    let comment = format!("proof {} of backup {}", record.level, record.backup);
    let signature = key.sign(&bytes, &comment)?;
    match durable::create_dir(&proofs) {
        Err(error) if error.source.kind() == io::ErrorKind::AlreadyExists => {
            if !proofs.symlink_metadata().at(&proofs)?.is_dir() {
                return Err(io::Error::from(io::ErrorKind::NotADirectory)).at(&proofs)?;
            }
        }
        made => made?,
    }
    let path = create_under_free_name(&proofs, record, &bytes)?;
    durable::create(&signature_of(&path), signature.as_bytes(), durable::FILE_MODE)?;
    Ok(path)
}

fn create_under_free_name(proofs: &Path, record: &ProofRecord, bytes: &[u8]) -> Result<PathBuf, PathError> {
    let time = record.made_at.to_zoned(TimeZone::UTC).strftime("%Y%m%dT%H%M%SZ").to_string();
    let mut clashes = 1;
    loop {
        let suffix = if clashes == 1 { String::new() } else { format!("-{clashes}") };
        let path = proofs.join(format!("{time}-{}{suffix}.json", record.level));
        match durable::create(&path, bytes, durable::FILE_MODE) {
            Err(error) if error.source.kind() == io::ErrorKind::AlreadyExists && clashes < MAX_CLASHES => clashes += 1,
            written => return written.map(|()| path),
        }
    }
}
