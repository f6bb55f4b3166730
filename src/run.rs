//! One scheduled run: the backup, then retention. Drivers call this; operations never call each other.

use crate::{
    at::PathError,
    catalog::{self, Catalog},
    ops::{
        backup::{self, Request},
        prune,
    },
    plan::retention::{Decision, Refusal, Rules},
    record::{BackupReport, ProofLevel},
    sign::Trusted,
    store::{self, Lock, Store},
};

/// What became of the old backups.
#[derive(Debug)]
pub enum Retention {
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
    pub retention: Retention,
}

/// Takes a backup and, where it is proved, drops those that no rule keeps.
///
/// # Errors
/// [`backup::Error`]. What goes wrong behind a good backup is in the [`Outcome`].
pub async fn run(mut request: Request<'_>, rules: &Rules, trusted: &Trusted) -> Result<Outcome, backup::Error> {
    let index = backup::run(&mut request).await?;
    let proved = index.primary.is_some() && index.proof >= rules.min_proof.max(ProofLevel::Digest);
    let retention = if proved {
        retain(request.store, request.lock, rules, trusted, index.finished_at)
    } else {
        Retention::NotDue(format!("this backup did not reach {}: nothing is removed", rules.min_proof))
    };
    Ok(Outcome { backup: BackupReport { index, targets: Vec::new() }, retention })
}

fn retain(store: &Store, lock: &Lock, rules: &Rules, trusted: &Trusted, now: jiff::Timestamp) -> Retention {
    let decided = read_catalog(store, trusted).map(|catalog| (prune::plan(&catalog, rules, now, false), catalog));
    match decided {
        Err(error) => Retention::Failed(error.into()),
        Ok((Err(refusal), _)) => Retention::Refused(refusal),
        Ok((Ok(decisions), catalog)) => match drop_backups(store, lock, &catalog, decisions, now) {
            Ok(decisions) => Retention::Done(decisions),
            Err(error) => Retention::Failed(error),
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
    now: jiff::Timestamp,
) -> Result<Vec<Decision>, store::Error> {
    prune::execute(catalog, decisions, |id| {
        store.record_pruned(lock, std::slice::from_ref(id), now)?;
        store.remove_backup(lock, id)
    })
}
