//! What was written, held against what was read: the two links by which a restored cluster equals its backup.
//!
//! The first is HashKV at the snapshot's own revision, over the rows that were written. A server will not answer it, since everything before
//! the raised revision is compacted for it. What it does answer is the second: HashKV at the raised revision, computed here as well.

use std::fs::File;

use crate::{
    etcd::{
        bbolt::Db,
        mvcc::At,
        survey::{Survey, Wants, survey},
    },
    plan::restore::RestorePlan,
};

/// HashKV of the written database at its own revision, where all is as planned. The database is walked once.
///
/// # Errors
/// What is not, in words.
pub(super) fn compare(written: File, source: &Survey, plan: &RestorePlan) -> Result<u32, String> {
    let db = Db::open(written).map_err(|damage| damage.to_string())?;
    let found = survey(&db, &Wants::default()).map_err(|damage| damage.to_string())?;
    facts(&found, source, plan)?;
    rows(&found, source, plan)?;
    Ok(found.hash_kv)
}

/// The facts that a restore changes, and those that it keeps.
fn facts(found: &Survey, source: &Survey, plan: &RestorePlan) -> Result<(), String> {
    let planned = |bumped: i64, kept: i64| if plan.bump > 0 { bumped } else { kept }.to_string();
    let after = plan.revision_after();
    same("revision", &planned(after, source.revision), &found.revision.to_string())?;
    same("compact revision", &planned(after, source.compact_revision), &found.compact_revision.to_string())?;
    let mut ids: Vec<u64> = plan.members.iter().map(|member| member.id.0).collect();
    ids.sort_unstable();
    same("membership", &format!("{ids:x?}"), &format!("{:x?}", found.members.keys().collect::<Vec<_>>()))?;
    same("number of leases", &source.leases.len().to_string(), &found.leases.len().to_string())?;
    if found.auth_digest != source.auth_digest {
        return Err("its users and roles are not the source's".to_owned());
    }
    if found.lease_digest != source.lease_digest {
        return Err("its leases are not the source's".to_owned());
    }
    Ok(())
}

/// The first link: the source's rows and the one that raises the revision, no other; and HashKV over the former.
fn rows(found: &Survey, source: &Survey, plan: &RestorePlan) -> Result<(), String> {
    let raising = u64::from(plan.bump > 0);
    let planned = source.history.rows().saturating_add(raising);
    same("number of rows", &planned.to_string(), &found.history.rows().to_string())?;
    let at = At { revision: source.revision, compact_revision: source.compact_revision };
    let hash = found.history.hash_of_rows(at);
    if hash == source.hash_kv {
        Ok(())
    } else {
        let (revision, expected) = (at.revision, source.hash_kv);
        Err(format!("at revision {revision} its HashKV is {hash:08x}, the source's is {expected:08x}"))
    }
}

fn same(what: &str, planned: &str, found: &str) -> Result<(), String> {
    if planned == found { Ok(()) } else { Err(format!("its {what} is {found}, {planned} was planned")) }
}
