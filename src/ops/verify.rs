//! `verify`: judges backups again, on the bytes as they lie there now.

use std::{fs::File, io, path::Path, sync::Arc};

use jiff::Timestamp;
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use crate::{
    at::PathError,
    catalog::{self, Backup, Signed},
    proof::{self, Expected, Seen},
    record::{
        BackupId, Event, FileVerdict, Finding, Index, Member, Progress, ProofLevel, ProofRecord, Sha256Hex, names,
    },
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
    /// Whether it reached the level that was tried, and no file of it is wrong.
    pub ok: bool,
    /// Whether the backup reached that level: a file that its own run marked as wrong takes nothing from the others.
    #[serde(skip)]
    pub holds: bool,
    /// Whether the identity at hand opens none of its files.
    #[serde(skip)]
    pub wrong_key: bool,
    /// Whether it lacks something, as its index says, which is no failure of its own.
    pub partial: bool,
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
        partial |= outcome.partial;
        warnings.extend(uncounted_proofs(backup));
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

/// Later proofs that do not count. They are no part of what was signed with the backup, so that it holds all the same.
fn uncounted_proofs(backup: &Backup) -> impl Iterator<Item = String> {
    let proofs = backup.signed().into_iter().flat_map(|signed| &signed.proofs);
    proofs.filter_map(|proof| {
        let problem = proof.problem.as_ref()?;
        Some(format!("{}/{} does not count: {problem}", backup.dir_name, proof.file))
    })
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
        ok: outcome.holds,
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
        holds: false,
        wrong_key: false,
        partial: index_of(backup).is_some_and(|index| index.partial),
        created_at: index_of(backup).map(|index| index.created_at),
        files: backup.problems(),
    };
    let Some(signed) = backup.signed() else { return Ok(outcome) };
    let mut holds = outcome.files.is_empty();
    let mut opened = false;
    for (name, expected) in &signed.sums.0 {
        if outcome.files.iter().any(|verdict| &verdict.file == name) {
            continue;
        }
        request.progress.event(Event::Proving { file: name });
        let problem = match judge_file(request, backup, &signed.index, name, *expected)? {
            Judged::Holds => None,
            Judged::Opens => {
                opened = true;
                None
            }
            Judged::KnownBad(problem) => Some(problem),
            Judged::Bad(problem) => {
                holds = false;
                Some(problem)
            }
            Judged::WrongKey => {
                holds = false;
                outcome.wrong_key = true;
                Some("none of the identities at hand is a recipient of this file".to_owned())
            }
        };
        outcome.files.push(FileVerdict { file: name.clone(), ok: problem.is_none(), problem });
    }
    outcome.files.sort_by(|a, b| a.file.cmp(&b.file));
    outcome.level = match (holds, opened) {
        (false, _) => ProofLevel::None,
        (true, true) => ProofLevel::Open,
        (true, false) => ProofLevel::Digest,
    };
    outcome.holds = outcome.level >= request.level;
    outcome.ok = outcome.holds && outcome.files.iter().all(|verdict| verdict.ok);
    Ok(outcome)
}

/// What was seen of one file.
enum Judged {
    /// Its digest is the signed one.
    Holds,
    /// And it opens to what was streamed.
    Opens,
    /// It is what was stored, and was marked as wrong by the run that stored it: it takes nothing from the others.
    KnownBad(String),
    Bad(String),
    WrongKey,
}

fn judge_file(
    request: &Request<'_>,
    backup: &Backup,
    index: &Index,
    name: &str,
    expected: Sha256Hex,
) -> Result<Judged, Error> {
    let path = backup.path.join(name);
    let member = index.members.iter().find(|member| member.file.as_deref() == Some(name));
    let seen = match (member, request.identities.as_deref()) {
        (Some(member), Some(identities)) if request.level >= ProofLevel::Open && member.proof > ProofLevel::None => {
            open_member(&path, member, identities, &request.cancel)
        }
        (Some(Member { proof: ProofLevel::None, error, .. }), _) => {
            let known = error.as_deref().unwrap_or("the run that stored it could not prove it");
            match proof::digest(&path, expected, &request.cancel) {
                Ok(None) => return Ok(Judged::KnownBad(format!("marked when it was stored: {known}"))),
                Ok(Some(problem)) => Ok(Seen::Changed(problem)),
                Err(error) => Err(error),
            }
        }
        _ => match proof::digest(&path, expected, &request.cancel) {
            Ok(None) => return Ok(Judged::Holds),
            Ok(Some(problem)) => Ok(Seen::Changed(problem)),
            Err(error) => Err(error),
        },
    };
    match seen {
        Ok(Seen::Holds(_)) => Ok(Judged::Opens),
        Ok(Seen::Changed(problem)) => Ok(Judged::Bad(problem)),
        Ok(Seen::WrongKey) => Ok(Judged::WrongKey),
        Err(OpenError::Interrupted) => Err(Error::Interrupted),
        // A file that the disk does not give is a finding, like one with other bytes.
        Err(other) => Ok(Judged::Bad(other.to_string())),
    }
}

fn index_of(backup: &Backup) -> Option<&Index> {
    backup.signed().map(|signed| &signed.index)
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
