//! Drops backups as [`retention`] decides. The store's lock and its journal are the caller's.

use jiff::Timestamp;

use crate::{
    catalog::{self, Catalog},
    plan::retention::{self, Action, Candidate, Decision, Hold, IN_USE, Refusal},
    policy::Retention,
    record::{BackupId, Holds},
};

/// Decides what to keep. Each backup is locked for an instant to see whether a reader holds it; nothing is changed.
///
/// # Errors
/// [`Refusal`].
pub fn plan(
    catalog: &Catalog,
    holds: &Holds,
    rules: &Retention,
    now: Timestamp,
    accept_gap: bool,
) -> Result<Vec<Decision>, Refusal> {
    let candidates: Vec<_> = catalog
        .backups
        .iter()
        .map(|backup| Candidate {
            hold: hold_of(holds, &backup.dir_name),
            in_use: !matches!(catalog::hold_exclusive(backup), Ok(Some(_))),
            ..backup.into()
        })
        .collect();
    retention::decide(&candidates, rules, now, accept_gap)
}

fn hold_of(holds: &Holds, id: &BackupId) -> Hold {
    match holds.get(id) {
        Some(_) => Hold::Held,
        None if holds.is_released(id) => Hold::Released,
        None => Hold::Never,
    }
}

/// Carries out a plan, oldest first, and says what was done: a backup that a reader took since the plan was made is kept, [`IN_USE`]; so is one that cannot be
/// locked for another reason, which is given.
///
/// `remove` records the backup as pruned in the journal, then removes its directory. It is called under an exclusive lock on that backup's
/// `backup.json`, once for each that is dropped. The caller holds the store's lock since before the catalog was read.
///
/// # Errors
/// The first that `remove` answers; what it had removed before is gone, the rest is untouched.
pub fn execute<E>(
    catalog: &Catalog,
    mut decisions: Vec<Decision>,
    mut remove: impl FnMut(&BackupId) -> Result<(), E>,
) -> Result<Vec<Decision>, E> {
    for decision in decisions.iter_mut().filter(|decision| decision.action == Action::Drop) {
        let Some(backup) = catalog.get(&decision.id) else {
            decision.action = Action::Keep;
            decision.reasons = vec!["not in the catalog".to_owned()];
            continue;
        };
        let kept_since = match catalog::hold_exclusive(backup) {
            // The lock lives until the directory is gone: who waits for it finds that out, and not half a backup.
            Ok(Some(_lock)) => {
                remove(&decision.id)?;
                continue;
            }
            Ok(None) => IN_USE.to_owned(),
            Err(error) => format!("cannot be locked: {error}"),
        };
        decision.action = Action::Keep;
        decision.reasons = vec![kept_since];
    }
    Ok(decisions)
}
