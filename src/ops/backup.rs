//! `backup`: a sealed, signed, re-opened snapshot of every member, under one name.
//!
//! Stages: `discover` the members, check the `space`, `take` each stream while the one before is proved, `settle` what failed its proof,
//! `index` and publish. Nothing has the backup's name before everything in it is on the disk; an error or an interruption leaves nothing.

mod discover;
mod take;

use std::{collections::BTreeMap, sync::Arc, time::Instant};

use jiff::Timestamp;
use sha2::{Digest as _, Sha256};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use self::{
    discover::{Discovered, Reached},
    take::{TakeError, Taken},
};
use crate::{
    at::PathError,
    catalog::{Backup, Catalog},
    durable::PendingDir,
    endpoint::{self, Dialer},
    plan::primary,
    policy::Policy,
    proof::{self, Seen},
    record::{
        BackupId, EtcdId, Event, Finding, FindingKind, Index, Member, Progress, ProofLevel, Reread, Sha256Hex,
        Versions, names,
    },
    recovery,
    seal::{KeyError, OpenError, Recipients, RunKey},
    sign::{self, SecretKey, Sums},
    store::{self, Lock, Store},
};

/// Why there is no backup.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be read or written.
    #[error(transparent)]
    Io(#[from] PathError),
    /// The store refused.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// A recipient cannot be used.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The signature could not be made.
    #[error(transparent)]
    Sign(#[from] sign::Error),
    /// The client could not be set up, or the account may not read.
    #[error(transparent)]
    Endpoint(#[from] endpoint::Error),
    /// No endpoint of the policy answered with a member list.
    #[error("no endpoint answered")]
    NoEndpoint {
        /// Each endpoint's reason.
        reasons: Vec<String>,
    },
    /// No member gave a snapshot.
    #[error("no member gave a snapshot")]
    NoSnapshot {
        /// Each member's reason.
        reasons: Vec<Finding>,
    },
    /// The disk has too little room to begin.
    #[error("{path}: {free} bytes are free; the backup needs {backup} and the reserve is {reserve}")]
    NoRoom {
        /// The store.
        path: String,
        /// Bytes free.
        free: u64,
        /// Bytes that the backup is expected to need.
        backup: u64,
        /// Bytes that are to stay free.
        reserve: u64,
    },
    /// The disk ran full in the middle.
    #[error("{path}: the disk ran full")]
    DiskFull {
        /// The file that was written.
        path: String,
    },
    /// A signal came.
    #[error("interrupted")]
    Interrupted,
    /// A thread of ours ended without an answer.
    #[error("internal: {0}")]
    Internal(String),
}

/// What a run needs; everything was loaded and checked by the driver.
pub struct Request<'a> {
    /// What to protect.
    pub policy: &'a Policy,
    /// Where it goes.
    pub store: &'a mut Store,
    /// The proof that nobody else writes there.
    pub lock: &'a Lock,
    /// What is there already.
    pub catalog: &'a Catalog,
    /// What is wrong in the store beside this backup; recorded in its index.
    pub findings: Vec<Finding>,
    /// Who can open it.
    pub recipients: &'a Recipients,
    /// Who signs it.
    pub signing: &'a SecretKey,
    /// Why it is taken, in the caller's words.
    pub reason: Option<String>,
    /// This host's name.
    pub host: String,
    /// When the run began.
    pub now: Timestamp,
    /// Ends the run.
    pub cancel: CancellationToken,
    /// Hears how it goes.
    pub progress: Arc<dyn Progress>,
}

/// What a run would do.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Plan {
    /// The cluster that answered.
    pub cluster_id: EtcdId,
    /// Members in the order of their streams: name, client URL, bytes of the database.
    pub members: Vec<PlannedMember>,
    /// Members that would give nothing, and why.
    pub findings: Vec<Finding>,
    /// Bytes that the backup and the reserve need.
    pub needed_bytes: u64,
    /// Bytes free in the store.
    pub free_bytes: u64,
    /// What a person should know.
    pub warnings: Vec<String>,
}

/// One stream of a [`Plan`].
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct PlannedMember {
    /// The member's name.
    pub name: String,
    /// The client URL that answered.
    pub endpoint: String,
    /// Bytes of its database.
    pub db_bytes: u64,
    /// Whether it leads; the leader comes last.
    pub leader: bool,
    /// The file that its snapshot goes to.
    pub file: String,
}

/// Finds the members and says what a run would do, without doing it.
///
/// # Errors
/// [`Error`]: what would end the run before its first stream.
pub async fn plan(request: &Request<'_>) -> Result<Plan, Error> {
    let (discovered, plan) = prepare(request).await?;
    drop(discovered);
    Ok(plan)
}

async fn prepare(request: &Request<'_>) -> Result<(Discovered, Plan), Error> {
    let dialer = Dialer::new(&request.policy.cluster, &request.policy.backup)?;
    let discovered = tokio::select! {
        found = discover::discover(&dialer, &request.policy.cluster.endpoints, request.policy.backup.max_lag) => found?,
        () = request.cancel.cancelled() => return Err(Error::Interrupted),
    };
    request.store.accepts(discovered.cluster)?;
    let (needed_bytes, free_bytes) = space(request, &discovered)?;
    let members = discovered.reached.iter().map(|reached| PlannedMember {
        name: reached.listed.name.clone(),
        endpoint: reached.client.url().to_owned(),
        db_bytes: reached.status.db_size,
        leader: reached.is_leader(),
        file: reached.file.clone(),
    });
    let plan = Plan {
        cluster_id: discovered.cluster,
        members: members.collect(),
        findings: discovered.missing.iter().map(|(_, finding)| finding.clone()).collect(),
        needed_bytes,
        free_bytes,
        warnings: discovered.warnings.clone(),
    };
    Ok((discovered, plan))
}

/// What the run needs and what is free: the last backup's sealed bytes and a third more, or half the databases where there is none, and
/// the reserve.
fn space(request: &Request<'_>, discovered: &Discovered) -> Result<(u64, u64), Error> {
    let space = request.store.space()?;
    let expected = match request.catalog.newest_trusted().and_then(Backup::signed) {
        Some(signed) => (signed.index.sealed_bytes() / 10).saturating_mul(13),
        None => discovered.reached.iter().map(|reached| reached.status.db_size / 2).fold(0, u64::saturating_add),
    };
    let reserve = request.policy.store.reserve.bytes_of(space.total);
    let needed = expected.saturating_add(reserve);
    if space.free < needed {
        let path = request.store.path().display().to_string();
        return Err(Error::NoRoom { path, free: space.free, backup: expected, reserve });
    }
    Ok((needed, space.free))
}

/// Takes, proves, signs and publishes one backup.
///
/// # Errors
/// [`Error`]; nothing is left in the store then.
pub async fn run(request: &mut Request<'_>) -> Result<Index, Error> {
    let began = Instant::now();
    let (mut discovered, _) = prepare(request).await?;
    if discovered.reached.is_empty() {
        let reasons = discovered.missing.into_iter().map(|(_, finding)| finding).collect();
        return Err(Error::NoSnapshot { reasons });
    }
    let id = BackupId::new(request.now, rand::random());
    let pending = PendingDir::create(request.store.path(), id.as_str())?;
    let index = fill(request, &mut discovered, &pending, &id, began).await?;
    write_texts(request, &pending, &index)?;
    if request.cancel.is_cancelled() {
        return Err(Error::Interrupted);
    }
    // Before the name: a backup of a cluster that is not in the lineage would not be believed.
    request.store.accept_cluster(request.lock, index.cluster_id)?;
    pending.publish(id.as_str())?;
    let revision = index.members.iter().filter_map(|member| member.status_revision).max();
    // The backup has its name: what fails from here on is no reason to say that there is none. The next run puts the journal right.
    let noted = request.store.record_published(request.lock, &id, index.cluster_id, revision, request.now);
    if let Err(error) = noted {
        tracing::warn!("the journal does not know of {id} yet: {error}");
    }
    Ok(index)
}

/// One member's file and the proof that is being made of it.
struct InHand {
    taken: Taken,
    proof: JoinHandle<Result<Seen, OpenError>>,
}

async fn fill(
    request: &Request<'_>,
    discovered: &mut Discovered,
    pending: &PendingDir,
    id: &BackupId,
    began: Instant,
) -> Result<Index, Error> {
    let run_key = RunKey::generate();
    let mut findings: Vec<Finding> = discovered.missing.iter().map(|(_, finding)| finding.clone()).collect();
    let mut members: BTreeMap<usize, Member> = BTreeMap::new();
    let mut in_hand: Vec<(usize, Result<InHand, endpoint::Error>)> = Vec::new();
    for (at, reached) in discovered.reached.iter_mut().enumerate() {
        match take::take(request, &run_key, pending, reached).await {
            Ok(taken) => {
                let proof = prove(request, &run_key, pending, &taken);
                in_hand.push((at, Ok(InHand { taken, proof })));
            }
            Err(TakeError::Missing(error)) => in_hand.push((at, Err(error))),
            Err(TakeError::Fatal(error)) => {
                abandon(request, in_hand).await;
                return Err(error);
            }
        }
    }
    let mut waiting = in_hand.into_iter();
    while let Some((at, outcome)) = waiting.next() {
        let Some(reached) = discovered.reached.get_mut(at) else { continue };
        let settled = match outcome {
            Ok(held) => settle(request, &run_key, pending, reached, held).await,
            Err(error) => Ok(Member { error: Some(error.to_string()), ..reached.member() }),
        };
        let member = match settled {
            Ok(member) => member,
            Err(error) => {
                abandon(request, waiting).await;
                return Err(error);
            }
        };
        findings.extend(finding(&member));
        members.insert(at, member);
    }
    drop(run_key);
    let silent = discovered.missing.iter().map(|(member, _)| member).chain(&discovered.learners).cloned();
    let members: Vec<Member> = members.into_values().chain(silent).collect();
    if members.iter().all(|member| member.file.is_none()) {
        return Err(Error::NoSnapshot { reasons: findings });
    }
    Ok(index(request, discovered, id, began, members, findings))
}

/// Waits for the proofs that still read, so that nothing works on in a directory that is about to go.
async fn abandon(request: &Request<'_>, in_hand: impl IntoIterator<Item = (usize, Result<InHand, endpoint::Error>)>) {
    request.cancel.cancel();
    for (_, held) in in_hand {
        if let Ok(held) = held
            && let Err(error) = held.proof.await
        {
            tracing::debug!(%error, "a proof ended with the run");
        }
    }
}

/// Re-opens what was stored on a thread of its own; the next stream runs meanwhile.
fn prove(
    request: &Request<'_>,
    run_key: &RunKey,
    pending: &PendingDir,
    taken: &Taken,
) -> JoinHandle<Result<Seen, OpenError>> {
    let path = pending.path().join(&taken.file);
    let expected = taken.expected();
    let identities = run_key.identities();
    let cancel = request.cancel.clone();
    let by_key = request.recipients.takes_run_key() && request.policy.backup.prove >= ProofLevel::Open;
    request.progress.event(Event::Proving { file: &taken.file });
    tokio::task::spawn_blocking(move || {
        if by_key {
            return proof::open(&path, &expected, &identities, &cancel);
        }
        let problem = proof::digest(&path, expected.sealed_sha256, &cancel)?;
        Ok(problem.map_or(Seen::WrongKey, Seen::Changed))
    })
}

/// Waits for a proof. A file that fails it is taken once more; one that fails again is kept, marked, and proves nothing.
async fn settle(
    request: &Request<'_>,
    run_key: &RunKey,
    pending: &PendingDir,
    reached: &mut Reached,
    held: InHand,
) -> Result<Member, Error> {
    let InHand { mut taken, proof } = held;
    let mut seen = joined(proof).await?;
    if let Some(problem) = problem(&taken, &seen) {
        tracing::warn!(
            member = reached.listed.name,
            problem,
            "the stored snapshot failed its proof and is taken once more"
        );
        match take::take(request, run_key, pending, reached).await {
            Ok(again) => {
                taken = again;
                seen = joined(prove(request, run_key, pending, &taken)).await?;
            }
            // The first file is gone, and the member no longer answers: it is missing, not wrong.
            Err(TakeError::Missing(error)) => {
                return Ok(Member { error: Some(error.to_string()), ..reached.member() });
            }
            Err(TakeError::Fatal(error)) => return Err(error),
        }
    }
    let (proof, reread, error) = match (problem(&taken, &seen), &seen) {
        (Some(problem), _) => (ProofLevel::None, None, Some(problem)),
        (None, Seen::Holds(reread)) => (ProofLevel::Open, Some(*reread), None),
        (None, _) => (ProofLevel::Digest, None::<Reread>, None),
    };
    Ok(Member { error, proof, reread, ..taken.member(reached) })
}

async fn joined(proof: JoinHandle<Result<Seen, OpenError>>) -> Result<Seen, Error> {
    match proof.await.map_err(|error| Error::Internal(error.to_string()))? {
        Ok(seen) => Ok(seen),
        Err(OpenError::Interrupted) => Err(Error::Interrupted),
        // A file that the disk does not give back is not proved; it is no reason to drop the others.
        Err(error) => Ok(Seen::Changed(error.to_string())),
    }
}

fn problem(taken: &Taken, seen: &Seen) -> Option<String> {
    if !taken.sealed.plain.trailer_is_right() {
        return Some(proof::trailer_differs(&taken.sealed.plain));
    }
    match seen {
        Seen::Changed(problem) => Some(problem.clone()),
        Seen::Holds(_) | Seen::WrongKey => None,
    }
}

fn finding(member: &Member) -> Option<Finding> {
    let detail = member.error.clone()?;
    let (kind, name) = match &member.file {
        None => (FindingKind::MemberMissing, member.name.clone()),
        Some(file) => (FindingKind::FileChanged, file.clone()),
    };
    Some(Finding { kind, name, detail })
}

fn index(
    request: &Request<'_>,
    discovered: &Discovered,
    id: &BackupId,
    began: Instant,
    members: Vec<Member>,
    mut findings: Vec<Finding>,
) -> Index {
    findings.extend(request.findings.iter().cloned());
    findings.sort();
    let primary = primary::primary(&members, &discovered.lagging);
    let proof = primary.map_or(ProofLevel::None, |member| member.proof);
    let primary = primary.map(|member| member.name.clone());
    let partial = members.iter().any(|member| member.file.is_none() && !member.learner);
    let mut etcd: Vec<String> = members.iter().filter_map(|member| member.version.clone()).collect();
    etcd.sort();
    etcd.dedup();
    let mut recipients = request.recipients.names().to_vec();
    if request.recipients.takes_run_key() {
        recipients.push("run".to_owned());
    }
    let mut warnings = discovered.warnings.clone();
    if !request.recipients.takes_run_key() {
        warnings.push(
            "the recipients are post-quantum only: the run could not open what it wrote, so the proof is `digest`"
                .to_owned(),
        );
    }
    let elapsed = jiff::SignedDuration::try_from(began.elapsed()).unwrap_or_default();
    Index {
        schema: Index::SCHEMA.to_owned(),
        id: id.clone(),
        path: request.store.path().join(id.as_str()),
        store_id: request.store.id().to_owned(),
        cluster_id: discovered.cluster,
        cluster_name: request.policy.cluster.name.clone(),
        host: request.host.clone(),
        created_at: request.now,
        finished_at: whole_seconds(request.now.saturating_add(elapsed).unwrap_or(request.now)),
        proof,
        agreement: None,
        partial,
        primary,
        members,
        archives: Vec::new(),
        resources: None,
        bundle_complete: None,
        cross_check: None,
        findings,
        warnings,
        recipients,
        versions: Versions { etcd_dr: env!("CARGO_PKG_VERSION").to_owned(), etcd },
        reason: request.reason.clone(),
    }
}

fn whole_seconds(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}

/// Writes index, recovery text, digests and signature, each durable.
fn write_texts(request: &Request<'_>, pending: &PendingDir, index: &Index) -> Result<(), Error> {
    let mut json = serde_json::to_vec_pretty(index).map_err(|error| Error::Internal(error.to_string()))?;
    json.push(b'\n');
    let recovery =
        recovery::render(index, request.signing.public()).map_err(|error| Error::Internal(error.to_string()))?;
    let mut sums = Sums::default();
    for member in &index.members {
        if let (Some(file), Some(sha256)) = (&member.file, member.sealed_sha256) {
            sums.0.insert(file.clone(), sha256);
        }
    }
    for (name, contents) in [(names::INDEX, json.as_slice()), (names::RECOVERY, recovery.as_bytes())] {
        pending.write(name, contents)?;
        sums.0.insert(name.to_owned(), Sha256Hex(Sha256::digest(contents).into()));
    }
    let text = sums.to_string();
    pending.write(names::SUMS, text.as_bytes())?;
    let comment = format!("etcd-dr backup {} cluster {}", index.id, index.cluster_id);
    pending.write(names::SIGNATURE, request.signing.sign(text.as_bytes(), &comment)?.as_bytes())?;
    Ok(())
}
