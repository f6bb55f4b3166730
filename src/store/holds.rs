//! Holds: which backups no plan may drop.
//!
//! They have a file of their own, and the journal repeats their ids. A file that is gone is made again from the journal, since what deletes
//! by age takes the file first: it is as old as the last hold. A file that cannot be read is an error, never "nothing is held".

use std::{fs, io, path::Path};

use jiff::Timestamp;

use super::Error;
use crate::{
    at::PathError,
    durable,
    record::{BackupId, Held, Holds, Journal, JournalEntry, names},
};

/// Pins a backup. Twice is once: the first pin stays as it is.
pub fn hold(holds: &mut Holds, held: Held) {
    holds.released.retain(|entry| entry.id != held.id);
    if holds.get(&held.id).is_none() {
        holds.held.push(held);
    }
}

/// Takes a pin back. What is not held stays so.
pub fn release(holds: &mut Holds, id: &BackupId, at: Timestamp) {
    if holds.get(id).is_some() {
        holds.held.retain(|held| held.id != *id);
        holds.released.push(JournalEntry { id: id.clone(), at });
    }
}

/// What the journal repeats of them.
pub(super) fn entries(holds: &Holds) -> Vec<JournalEntry> {
    holds.held.iter().map(|held| JournalEntry { id: held.id.clone(), at: held.at }).collect()
}

/// What the journal remembers of them, where their own file is gone.
pub(super) fn remembered(store_id: &str, journal: Option<&Journal>) -> Holds {
    let entries = journal.map(|journal| journal.held.as_slice()).unwrap_or_default();
    let held = |entry: &JournalEntry| Held { id: entry.id.clone(), at: entry.at, host: None, reason: None };
    Holds { held: entries.iter().map(held).collect(), ..Holds::new(store_id) }
}

/// Reads the file of the store `store_id` at `dir`; nothing where there is none.
///
/// # Errors
/// [`Error::BadHolds`] for one that cannot be understood or is another store's; what the system says.
pub(super) fn read(dir: &Path, store_id: &str) -> Result<Option<Holds>, Error> {
    let path = dir.join(names::HOLDS);
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(PathError { path, source }.into()),
    };
    let problem = match serde_json::from_slice::<Holds>(&bytes) {
        Ok(holds) if holds.schema != Holds::SCHEMA => {
            format!("its schema is `{}`, not `{}`", holds.schema, Holds::SCHEMA)
        }
        Ok(holds) if holds.store_id != store_id => format!("it belongs to store {}, not to {store_id}", holds.store_id),
        Ok(holds) => return Ok(Some(holds)),
        Err(error) => format!("it is no list of holds ({error})"),
    };
    Err(Error::BadHolds { path, problem })
}

/// Writes the file in one step.
pub(super) fn write(dir: &Path, holds: &Holds) -> Result<(), Error> {
    let path = dir.join(names::HOLDS);
    Ok(durable::replace(&path, &super::to_json(holds, &path)?, durable::FILE_MODE)?)
}
