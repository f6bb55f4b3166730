//! `verify`: judges backups again, on the bytes as they lie there now.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use jiff::Timestamp;
use rustix::fs::Access;
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use crate::{
    at::PathError,
    catalog::{self, Backup, Signed},
    etcd::survey::Survey,
    plan::agreement,
    proof::{self, Examiner, Expected, Seen},
    record::{
        Agreement, BackupId, EtcdId, Event, FileVerdict, Finding, FindingKind, Index, Member, Progress, ProofLevel,
        ProofRecord, Sha256Hex, names,
    },
    seal::{Identities, OpenError},
    sign::SecretKey,
    store,
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
    /// Whether the backup as a whole stands: a file that its own run marked as wrong takes nothing from the others.
    #[serde(skip)]
    pub standing: Standing,
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

/// What a backup's bytes and contents amount to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It reached the level that was wanted.
    Holds,
    /// It stays below that level, and nothing speaks against it: its members could not be compared, which is no failure to be held against it
    /// later.
    Short,
    /// Something speaks against it.
    Fails,
}

/// What a verification needs beside the backups.
pub struct Request<'a> {
    /// The level to try: `digest`, `open` or `sound`.
    pub level: ProofLevel,
    /// Whether that level was asked for. Else a backup passes that reaches again what its own run proved, as far as `level` goes: one whose
    /// members could never be compared is not damaged.
    pub required: bool,
    /// Where databases are examined, in this order of preference: the first directory that can be written.
    pub scratch_dirs: Vec<PathBuf>,
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
        level: if outcome.standing == Standing::Fails { request.level } else { outcome.level },
        ok: outcome.standing != Standing::Fails,
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
        standing: Standing::Fails,
        wrong_key: false,
        partial: index_of(backup).is_some_and(|index| index.partial),
        created_at: index_of(backup).map(|index| index.created_at),
        files: backup.problems(),
    };
    let Some(signed) = backup.signed() else { return Ok(outcome) };
    let mut examiner = examiner(request, backup);
    let mut holds = outcome.files.is_empty();
    let mut opened = false;
    for (name, expected) in &signed.sums.0 {
        if outcome.files.iter().any(|verdict| &verdict.file == name) {
            continue;
        }
        request.progress.event(Event::Proving { file: name });
        let problem = match judge_file(request, examiner.as_mut(), backup, &signed.index, name, *expected)? {
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
    let soundness = if holds && request.level >= ProofLevel::Sound {
        soundness(&signed.index, examiner.as_ref())
    } else {
        Soundness::Unknown
    };
    outcome.level = match (holds, opened, soundness == Soundness::Confirmed) {
        (false, ..) => ProofLevel::None,
        (true, false, _) => ProofLevel::Digest,
        (true, true, false) => ProofLevel::Open,
        (true, true, true) => ProofLevel::Sound,
    };
    let wanted = if request.required { request.level } else { request.level.min(signed.index.proof) };
    outcome.standing = if !holds || soundness == Soundness::Contradicted {
        Standing::Fails
    } else if outcome.level >= wanted.max(ProofLevel::Digest) {
        Standing::Holds
    } else {
        Standing::Short
    };
    outcome.ok = outcome.standing == Standing::Holds && outcome.files.iter().all(|verdict| verdict.ok);
    Ok(outcome)
}

/// What looks into databases, where the level asks for that and an identity is at hand.
fn examiner(request: &Request<'_>, backup: &Backup) -> Option<Examiner> {
    let identities = request.identities.as_ref().filter(|_| request.level >= ProofLevel::Open)?;
    let beside = backup.path.parent().map(Path::to_owned);
    let dirs = request.scratch_dirs.iter().cloned().chain(beside).chain([PathBuf::from(LAST_RESORT)]);
    let writable = dirs.filter(|dir| rustix::fs::access(dir, Access::WRITE_OK | Access::EXEC_OK).is_ok());
    let writable: Vec<PathBuf> = writable.collect();
    let largest = index_of(backup).and_then(|index| index.members.iter().filter_map(|member| member.plain_bytes).max());
    let has_room = |dir: &&PathBuf| store::space_at(dir).is_ok_and(|space| space.free >= largest.unwrap_or(0));
    let dir = writable.iter().find(has_room).or(writable.first()).cloned();
    Some(Examiner::new(dir.unwrap_or_else(|| LAST_RESORT.into()), Arc::clone(identities), request.cancel.clone()))
}

/// Where a scratch goes when the copy that is verified cannot be written to or is full; unlike `/tmp` it is on a disk.
const LAST_RESORT: &str = "/var/tmp";

/// What is known of the database on which a backup's level rests.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Soundness {
    /// It is what members answered or hold.
    Confirmed,
    /// Nothing contradicts it, and nothing that counts confirms it.
    Unknown,
    /// A member holds something else.
    Contradicted,
}

/// Whether the database is what the members answered when it was taken. Where the index has no answers (version 0.1.0 asked for none) the
/// files of the backup are held against each other, and a majority has to be equal.
fn soundness(index: &Index, examiner: Option<&Examiner>) -> Soundness {
    let (Some(member), Some(examiner)) = (index.spokesman(), examiner) else { return Soundness::Unknown };
    if examiner.of(member.id).is_none() {
        return Soundness::Unknown;
    }
    if member.hash_kv.is_some() {
        return if member.proof >= ProofLevel::Sound { Soundness::Confirmed } else { Soundness::Unknown };
    }
    let voting: Vec<EtcdId> = index.members.iter().filter(|member| !member.learner).map(|member| member.id).collect();
    let comparisons = examiner.compare(member.id, &[]);
    let judgement = agreement::judge(&voting, &comparisons, &[], &[member.id]);
    match judgement.members.get(&member.id) {
        Some(Agreement::Agrees) if voting.len() > 1 => Soundness::Confirmed,
        Some(Agreement::Differs) => Soundness::Contradicted,
        _ => Soundness::Unknown,
    }
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
    examiner: Option<&mut Examiner>,
    backup: &Backup,
    index: &Index,
    name: &str,
    expected: Sha256Hex,
) -> Result<Judged, Error> {
    let path = backup.path.join(name);
    let member = index.members.iter().find(|member| member.file.as_deref() == Some(name));
    let known = member.and_then(|member| known_bad(index, member));
    let seen = match (member, examiner) {
        (Some(member), Some(examiner)) if member.proof > ProofLevel::None => {
            open_member(&path, member, examiner, request.level)
        }
        _ => match proof::digest(&path, expected, &request.cancel) {
            Ok(None) => return Ok(known.map_or(Judged::Holds, Judged::KnownBad)),
            Ok(Some(problem)) => Ok(Seen::Changed(problem)),
            Err(error) => Err(error),
        },
    };
    match seen {
        Ok(Seen::Holds(_)) => Ok(known.map_or(Judged::Opens, Judged::KnownBad)),
        Ok(Seen::Changed(problem)) => Ok(Judged::Bad(problem)),
        Ok(Seen::WrongKey) => Ok(Judged::WrongKey),
        Err(OpenError::Interrupted) => Err(Error::Interrupted),
        // The scratch's trouble is not the backup's.
        Err(OpenError::Io(error)) if error.path != path => Err(error.into()),
        // A file that the disk does not give is a finding, like one with other bytes.
        Err(other) => Ok(Judged::Bad(other.to_string())),
    }
}

/// What the run that stored a member's file had against it.
fn known_bad(index: &Index, member: &Member) -> Option<String> {
    let mut findings = index.findings.iter();
    let differs = findings.find(|finding| finding.kind == FindingKind::MemberDiffers && finding.name == member.name);
    let words = match (member.proof, differs) {
        (ProofLevel::None, _) => member.error.as_deref().unwrap_or("the run that stored it could not prove it"),
        (_, Some(finding)) => finding.detail.as_str(),
        (_, None) => return None,
    };
    Some(format!("{}: {words}", FileVerdict::MARKED))
}

fn index_of(backup: &Backup) -> Option<&Index> {
    backup.signed().map(|signed| &signed.index)
}

fn open_member(path: &Path, member: &Member, examiner: &mut Examiner, level: ProofLevel) -> Result<Seen, OpenError> {
    let (Some(sealed_bytes), Some(sealed_sha256), Some(plain_bytes), Some(plain_sha256)) =
        (member.sealed_bytes, member.sealed_sha256, member.plain_bytes, member.plain_sha256)
    else {
        return Ok(Seen::Changed(format!("{} records no digests for it", names::INDEX)));
    };
    let expected = Expected { sealed_bytes, sealed_sha256, plain_bytes, plain_sha256 };
    if level < ProofLevel::Sound {
        return examiner.open(path, &expected);
    }
    let seen = examiner.examine(member.id, path, expected)?;
    Ok(examiner.of(member.id).and_then(|examined| other_contents(&examined.survey, member)).unwrap_or(seen))
}

/// Where the database is not the one that the run recorded: the digests are of the file, this is of what is in it.
fn other_contents(survey: &Survey, member: &Member) -> Option<Seen> {
    let found = (survey.revision, survey.compact_revision, survey.hash_kv);
    let recorded = (member.revision?, member.compact_revision?, member.hash_kv?);
    (found != recorded).then(|| {
        Seen::Changed(format!(
            "it holds revision {} (compacted at {}) with HashKV {:08x}, the run recorded revision {} (compacted at {}) with {:08x}",
            found.0, found.1, found.2, recorded.0, recorded.1, recorded.2
        ))
    })
}
