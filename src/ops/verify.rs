//! `verify`: judges backups again, on the bytes as they lie there now.

use std::{fs::File, io, path::Path, sync::Arc};

use jiff::Timestamp;
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use crate::{
    at::PathError,
    catalog::{self, Backup, Signed},
    proof::{self, Expected, Seen},
    record::{BackupId, Event, FileVerdict, Finding, Index, Member, Progress, ProofLevel, ProofRecord, names},
    seal::{Identities, OpenError},
    sign::SecretKey,
};

/// Why nothing was judged.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be read.
    #[error(transparent)]
    Io(#[from] PathError),
    /// A signal came.
    #[error("interrupted")]
    Interrupted,
}

/// What was found of all backups that were judged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Whether everything is as it should be.
    pub ok: bool,
    /// The level that was tried.
    pub level: ProofLevel,
    /// Whether one of them is partial, which is no failure of its own.
    pub partial: bool,
    /// A backup each.
    pub results: Vec<Outcome>,
    /// What is wrong beside the backups, for instance one that vanished.
    pub findings: Vec<Finding>,
    /// What a person should know.
    pub warnings: Vec<String>,
}

/// What was found of one backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Outcome {
    /// The directory's name.
    pub id: BackupId,
    /// The level that it reached now.
    pub level: ProofLevel,
    /// Whether that is the level that was tried.
    pub ok: bool,
    /// Whether the identity at hand opens none of its files.
    #[serde(skip)]
    pub wrong_key: bool,
    /// When it was made, by its signed index.
    pub created_at: Option<Timestamp>,
    /// A file each.
    pub files: Vec<FileVerdict>,
}

/// What a verification needs beside the backups.
pub struct Request<'a> {
    /// The level to try: `digest` or `open`.
    pub level: ProofLevel,
    /// What opens the files; needed from `open` on.
    pub identities: Option<Arc<Identities>>,
    /// Who records the result; null where this host has no key, and nothing is recorded.
    pub recorder: Option<&'a SecretKey>,
    /// This host's name.
    pub host: String,
    /// When the verification began.
    pub now: Timestamp,
    /// Ends it.
    pub cancel: CancellationToken,
    /// Hears how it goes.
    pub progress: Arc<dyn Progress>,
}

/// Judges `backups` one after the other, and records each verdict beside the backup where a key is at hand.
///
/// `findings` are what the store's journal shows to be wrong beside them.
///
/// # Errors
/// [`Error`]: only what prevents a verdict. What is wrong with a backup is in the [`Report`].
pub fn run(request: &Request<'_>, backups: &[&Backup], findings: Vec<Finding>) -> Result<Report, Error> {
    let mut results = Vec::new();
    let mut warnings = Vec::new();
    let mut partial = false;
    for backup in backups {
        // A reader's lock, so that no prune takes the directory away meanwhile. Where there is nothing to lock, that is the verdict's to say.
        let held: Option<File> = match catalog::hold_shared(backup) {
            Ok(file) => Some(file),
            Err(error) if error.source.kind() == io::ErrorKind::NotFound && !backup.path.exists() => {
                warnings.push(format!("{} was pruned meanwhile", backup.dir_name));
                continue;
            }
            Err(_) => None,
        };
        let outcome = judge(request, backup)?;
        partial |= index_of(backup).is_some_and(|index| index.partial);
        if !outcome.wrong_key
            && let (Some(key), Some(trusted)) = (request.recorder, backup.signed())
            && let Err(error) = record(request, key, backup, trusted, &outcome)
        {
            warnings.push(format!("the proof of {} could not be recorded: {error}", outcome.id));
        }
        drop(held);
        results.push(outcome);
    }
    let ok = findings.is_empty() && results.iter().all(|result| result.ok);
    Ok(Report { ok, level: request.level, partial, results, findings, warnings })
}

fn record(
    request: &Request<'_>,
    key: &SecretKey,
    backup: &Backup,
    signed: &Signed,
    outcome: &Outcome,
) -> Result<(), catalog::WriteProofError> {
    let record = ProofRecord {
        schema: ProofRecord::SCHEMA.to_owned(),
        backup: outcome.id.clone(),
        sums_sha256: signed.sums_sha256,
        level: request.level,
        ok: outcome.ok,
        made_at: request.now,
        host: request.host.clone(),
        files: outcome.files.clone(),
        etcd_dr: env!("CARGO_PKG_VERSION").to_owned(),
    };
    catalog::write_proof(&backup.path, &record, key).map(drop)
}

fn judge(request: &Request<'_>, backup: &Backup) -> Result<Outcome, Error> {
    let mut outcome = Outcome {
        id: backup.dir_name.clone(),
        level: ProofLevel::None,
        ok: false,
        wrong_key: false,
        created_at: index_of(backup).map(|index| index.created_at),
        files: backup.problems(),
    };
    let Some(signed) = backup.signed() else { return Ok(outcome) };
    let index = &signed.index;
    let mut opened = 0_usize;
    let mut locked = 0_usize;
    for (name, expected) in &signed.sums.0 {
        if outcome.files.iter().any(|verdict| &verdict.file == name) {
            continue;
        }
        let path = backup.path.join(name);
        request.progress.event(Event::Proving { file: name });
        let problem = match sealed_member(index, name).zip(request.identities.as_deref()) {
            Some((member, identities)) if request.level >= ProofLevel::Open => {
                match open_member(&path, member, identities, &request.cancel) {
                    Ok(Seen::Holds(_)) => {
                        opened = opened.saturating_add(1);
                        None
                    }
                    Ok(Seen::Changed(problem)) => Some(problem),
                    Ok(Seen::WrongKey) => {
                        locked = locked.saturating_add(1);
                        Some("none of the identities at hand is a recipient of this file".to_owned())
                    }
                    Err(error) => Some(unreadable(error)?),
                }
            }
            _ => match proof::digest(&path, *expected, &request.cancel) {
                Ok(problem) => problem,
                Err(error) => Some(unreadable(error)?),
            },
        };
        outcome.files.push(FileVerdict { file: name.clone(), ok: problem.is_none(), problem });
    }
    outcome.files.sort_by(|a, b| a.file.cmp(&b.file));
    outcome.wrong_key = locked > 0;
    let sealed = outcome.files.iter().all(|verdict| verdict.ok);
    outcome.ok = sealed;
    outcome.level = match (sealed, request.level) {
        (false, _) => ProofLevel::None,
        (true, level) if level >= ProofLevel::Open && opened > 0 => ProofLevel::Open,
        (true, _) => ProofLevel::Digest,
    };
    outcome.ok = outcome.level >= request.level;
    Ok(outcome)
}

fn index_of(backup: &Backup) -> Option<&Index> {
    backup.signed().map(|signed| &signed.index)
}

/// The member whose sealed file this is.
fn sealed_member<'a>(index: &'a Index, name: &str) -> Option<&'a Member> {
    index.members.iter().find(|member| member.file.as_deref() == Some(name))
}

fn open_member(
    path: &Path,
    member: &Member,
    identities: &Identities,
    cancel: &CancellationToken,
) -> Result<Seen, OpenError> {
    let (Some(sealed_bytes), Some(sealed_sha256), Some(plain_bytes), Some(plain_sha256)) =
        (member.sealed_bytes, member.sealed_sha256, member.plain_bytes, member.plain_sha256)
    else {
        return Ok(Seen::Changed(format!("{} records no digests for it", names::INDEX)));
    };
    proof::open(path, &Expected { sealed_bytes, sealed_sha256, plain_bytes, plain_sha256 }, identities, cancel)
}

/// A file that the disk does not give is a finding, like one with other bytes; only an interruption ends the verification.
fn unreadable(error: OpenError) -> Result<String, Error> {
    match error {
        OpenError::Interrupted => Err(Error::Interrupted),
        other => Ok(other.to_string()),
    }
}
