//! One scheduled run: the backup, then retention. Drivers call this; operations never call each other.

use std::time::Duration;

use jiff::Timestamp;

use crate::{
    at::PathError,
    catalog::{self, Catalog},
    ops::{
        backup::{self, Request},
        prune,
    },
    plan::retention::{Decision, Refusal},
    policy::Retention,
    record::{Agreement, BackupId, BackupReport, ProofLevel},
    sign::Trusted,
    store::{self, Lock, Store},
};

/// What became of the old backups.
#[derive(Debug)]
pub enum Expiry {
    /// The run added no proved backup, so nothing was looked at; why.
    NotDue(String),
    /// Each one's fate.
    Done(Vec<Decision>),
    /// A person has to say that it is right first.
    Refused(Refusal),
    /// Something could not be read or removed.
    Failed(store::Error),
}

/// What a scheduled run did.
#[derive(Debug)]
pub struct Outcome {
    /// The new backup.
    pub backup: BackupReport,
    /// The old ones.
    pub expiry: Expiry,
}

/// Takes a backup and, where it is proved, drops those that no rule keeps.
///
/// # Errors
/// [`backup::Error`]. What goes wrong behind a good backup is in the [`Outcome`].
pub async fn run(mut request: Request<'_>, rules: &Retention, trusted: &Trusted) -> Result<Outcome, backup::Error> {
    let present: Vec<BackupId> = request.catalog.backups.iter().map(|backup| backup.dir_name.clone()).collect();
    let index = backup::run(&mut request).await?;
    // After the backup, so that a run that fails does not hide what this corrects from the one that succeeds.
    if let Err(error) = request.store.reconcile(request.lock, &present, index.finished_at) {
        tracing::warn!("the journal was not compared with the store: {error}");
    }
    let proved = index.primary.is_some() && index.proof >= rules.min_proof.max(ProofLevel::Digest);
    let expiry = if index.agreement == Some(Agreement::Differs) {
        // The older backups may be the ones from before the members parted.
        Expiry::NotDue("the members differ: nothing is removed".to_owned())
    } else if proved {
        retain(request.store, request.lock, rules, trusted, index.finished_at)
    } else {
        Expiry::NotDue(format!("this backup did not reach {}: nothing is removed", rules.min_proof))
    };
    Ok(Outcome { backup: BackupReport { index, targets: Vec::new() }, expiry })
}

fn retain(store: &Store, lock: &Lock, rules: &Retention, trusted: &Trusted, now: Timestamp) -> Expiry {
    let found =
        read_catalog(store, trusted).map_err(store::Error::from).and_then(|catalog| Ok((catalog, store.holds()?)));
    let (catalog, holds) = match found {
        Ok(found) => found,
        Err(error) => return Expiry::Failed(error),
    };
    match prune::plan(&catalog, &holds, rules, now, false) {
        Err(refusal) => Expiry::Refused(refusal),
        Ok(decisions) => match drop_backups(store, lock, &catalog, decisions, rules, now) {
            Ok(decisions) => Expiry::Done(decisions),
            Err(error) => Expiry::Failed(error),
        },
    }
}

/// What the store holds now.
///
/// # Errors
/// What the system says.
pub fn read_catalog(store: &Store, trusted: &Trusted) -> Result<Catalog, PathError> {
    catalog::read(store.path(), Some(store.id()), &store.marker().lineage, trusted)
}

/// Removes what `decisions` drop: the journal knows of each before it goes.
///
/// # Errors
/// [`store::Error`]; what was removed before is gone, the rest is untouched.
pub fn drop_backups(
    store: &Store,
    lock: &Lock,
    catalog: &Catalog,
    decisions: Vec<Decision>,
    rules: &Retention,
    now: Timestamp,
) -> Result<Vec<Decision>, store::Error> {
    forget_vanished(store, lock, catalog, rules, now)?;
    prune::execute(catalog, decisions, |id| {
        store.record_pruned(lock, std::slice::from_ref(id), now)?;
        store.remove_backup(lock, id)
    })
}

/// A backup that vanished is a finding for as long as age alone would have kept it; after that it would be gone anyway.
fn forget_vanished(
    store: &Store,
    lock: &Lock,
    catalog: &Catalog,
    rules: &Retention,
    now: Timestamp,
) -> Result<(), store::Error> {
    let present: Vec<BackupId> = catalog.backups.iter().map(|backup| backup.dir_name.clone()).collect();
    let state = store.journal()?;
    let vanished = state.vanished(&present);
    let published = state.journal().map(|journal| journal.published.as_slice()).unwrap_or_default();
    let expired: Vec<BackupId> = published
        .iter()
        .filter(|entry| vanished.contains(&entry.id) && is_older(entry.at, rules.keep_within, now))
        .map(|entry| entry.id.clone())
        .collect();
    if expired.is_empty() { Ok(()) } else { store.record_pruned(lock, &expired, now) }
}

fn is_older(then: Timestamp, limit: Duration, now: Timestamp) -> bool {
    Duration::try_from(now.duration_since(then)).is_ok_and(|age| age > limit)
}
