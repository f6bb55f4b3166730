//! `backup`: a sealed, signed, re-opened snapshot of every member, under one name.
//!
//! Stages: `discover` the members, check the `space`, `take` each stream while the one before is proved, `prove` (a file that fails is
//! taken once more), `agree`, `index` and publish. Nothing has the backup's name before everything in it is on the disk; an error or an interruption leaves nothing.

mod agree;
mod discover;
mod index;
mod prove;
mod take;

use std::{collections::BTreeMap, fs, sync::Arc, time::Instant};

use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use self::{discover::Discovered, index::Compared, prove::InHand, take::TakeError};
use crate::{
    at::{At as _, PathError},
    catalog::{Backup, Catalog},
    durable::PendingDir,
    endpoint::{self, Dialer},
    policy::{KeepMembers, Policy},
    proof::Examiner,
    record::{Agreement, BackupId, EtcdId, Finding, Index, Member, Progress, ProofLevel},
    seal::{KeyError, Recipients, RunKey},
    sign::{self, SecretKey},
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

/// What the run needs and what is free: the last backup's sealed bytes and a third more, or half the databases where there is none, a
/// scratch for the largest database, which goes again, and the reserve.
fn space(request: &Request<'_>, discovered: &Discovered) -> Result<(u64, u64), Error> {
    let space = request.store.space()?;
    let expected = match request.catalog.newest_trusted().and_then(Backup::signed) {
        Some(signed) => (signed.index.sealed_bytes() / 10).saturating_mul(13),
        None => discovered.reached.iter().map(|reached| reached.status.db_size / 2).fold(0, u64::saturating_add),
    };
    let expected = expected.saturating_add(scratch(request, discovered)?);
    let reserve = request.policy.store.reserve.bytes_of(space.total);
    let needed = expected.saturating_add(reserve);
    if space.free < needed {
        let path = request.store.path().display().to_string();
        return Err(Error::NoRoom { path, free: space.free, backup: expected, reserve });
    }
    Ok((needed, space.free))
}

/// Bytes that a scratch needs in the store; 0 where it lies elsewhere, and has room there.
fn scratch(request: &Request<'_>, discovered: &Discovered) -> Result<u64, Error> {
    if request.policy.backup.prove < ProofLevel::Sound {
        return Ok(0);
    }
    let largest = discovered.reached.iter().map(|reached| reached.status.db_size).max().unwrap_or(0);
    let Some(dir) = &request.policy.backup.scratch_dir else { return Ok(largest) };
    let space = store::space_at(dir)?;
    if space.free < largest {
        let path = dir.display().to_string();
        return Err(Error::NoRoom { path, free: space.free, backup: largest, reserve: 0 });
    }
    Ok(0)
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
    index::write_texts(request, &pending, &index)?;
    if request.cancel.is_cancelled() {
        return Err(Error::Interrupted);
    }
    // Before the name: a backup of a cluster that is not in the lineage would not be believed.
    request.store.accept_cluster(request.lock, index.cluster_id)?;
    pending.publish(id.as_str())?;
    let revision = index.members.iter().filter_map(|member| member.status_revision.max(member.revision)).max();
    // The backup has its name: what fails from here on is no reason to say that there is none. The next run puts the journal right.
    let noted = request.store.record_published(request.lock, &id, index.cluster_id, revision, request.now);
    if let Err(error) = noted {
        tracing::warn!("the journal does not know of {id} yet: {error}");
    }
    Ok(index)
}

/// Streams every member in turn; while one streams, the one before it is proved. One proof at a time, so that one scratch is enough.
async fn fill(
    request: &Request<'_>,
    discovered: &mut Discovered,
    pending: &PendingDir,
    id: &BackupId,
    began: Instant,
) -> Result<Index, Error> {
    let run_key = RunKey::generate();
    let scratch_dir = request.policy.backup.scratch_dir.clone().unwrap_or_else(|| pending.path().to_owned());
    let mut examiner = Some(Examiner::new(scratch_dir, run_key.identities(), request.cancel.clone()));
    let mut members: BTreeMap<usize, Member> = BTreeMap::new();
    let mut in_hand: Option<InHand> = None;
    for at in 0..discovered.reached.len() {
        let Some(reached) = discovered.reached.get_mut(at) else { continue };
        let taken = match take::take(request, &run_key, pending, reached).await {
            Err(TakeError::Fatal(error)) => {
                prove::abandon(request, in_hand).await;
                return Err(error);
            }
            Err(TakeError::Missing(error)) => {
                members.insert(at, Member { error: Some(error.to_string()), ..reached.member() });
                None
            }
            Ok(taken) => Some(taken),
        };
        let Some(taken) = taken else { continue };
        if let Some(held) = in_hand.take() {
            let (before, (member, back)) =
                (held.at, prove::settle(request, &run_key, pending, discovered, held).await?);
            members.insert(before, member);
            examiner = Some(back);
        }
        if let (Some(examiner), Some(reached)) = (examiner.take(), discovered.reached.get(at)) {
            in_hand = Some(prove::begin(request, pending, reached, at, taken, examiner));
        }
    }
    if let Some(held) = in_hand {
        let (at, (member, back)) = (held.at, prove::settle(request, &run_key, pending, discovered, held).await?);
        members.insert(at, member);
        examiner = Some(back);
    }
    let silent = discovered.missing.iter().map(|(member, _)| member).chain(&discovered.learners).cloned();
    if members.values().all(|member| member.file.is_none()) {
        let reasons = discovered.missing.iter().map(|(_, finding)| finding.clone());
        return Err(Error::NoSnapshot {
            reasons: reasons.chain(members.values().filter_map(index::finding)).collect(),
        });
    }
    let members: Vec<Member> = members.into_values().chain(silent).collect();
    let compared = match examiner {
        Some(examiner) if request.policy.backup.prove >= ProofLevel::Sound && request.recipients.takes_run_key() => {
            let agreed = agree::agree(request, discovered, &examiner).await?;
            Some(Compared { agreed, examiner })
        }
        _ => None,
    };
    drop(run_key);
    let mut index = index::index(request, discovered, id, began, members, compared.as_ref());
    if request.policy.backup.keep_members == KeepMembers::Primary {
        keep_the_primary_alone(pending, &mut index)?;
    }
    Ok(index)
}

/// Removes the files that say what the primary's says, where every voting member agrees: their digests and HashKV stay in the index.
fn keep_the_primary_alone(pending: &PendingDir, index: &mut Index) -> Result<(), Error> {
    let agrees = |member: &Member| member.learner || member.agreement == Some(Agreement::Agrees);
    let Some(primary) = index.primary_member().map(|member| member.id) else { return Ok(()) };
    if !index.members.iter().all(agrees) {
        return Ok(());
    }
    for member in index.members.iter_mut().filter(|member| member.id != primary) {
        if let Some(file) = member.file.take() {
            let path = pending.path().join(file);
            fs::remove_file(&path).at(&path)?;
            (member.sealed_bytes, member.sealed_sha256) = (None, None);
        }
    }
    Ok(())
}
