//! What was written, held against what was read: the two links by which a restored cluster equals its backup.
//!
//! The first is HashKV at the snapshot's own revision, over the rows that were written. A server will not answer it, since everything before
//! the raised revision is compacted for it. What it does answer is the second: HashKV at the raised revision, computed here as well.

use std::fs::File;

use crate::{
    etcd::{
        bbolt::{self, Db, Row},
        mvcc::{At, Keyspace, RowKey},
        survey::{Survey, Wants, survey},
    },
    plan::restore::RestorePlan,
};

/// What went wrong, in words.
struct Words(String);

impl From<bbolt::Damage> for Words {
    fn from(damage: bbolt::Damage) -> Self {
        Self(damage.to_string())
    }
}

/// HashKV of the written database at its own revision, where all is as planned.
///
/// # Errors
/// What is not, in words.
pub(super) fn compare(written: File, source: &Survey, plan: &RestorePlan) -> Result<u32, String> {
    let db = Db::open(written).map_err(|damage| damage.to_string())?;
    let hash_kv = whole(&db, source, plan)?;
    rows(&db, source, plan).map_err(|words| words.0)?;
    Ok(hash_kv)
}

/// Every rule of a database, and the facts that a restore changes.
fn whole(db: &Db<File>, source: &Survey, plan: &RestorePlan) -> Result<u32, String> {
    let found = survey(db, &Wants::default()).map_err(|damage| damage.to_string())?;
    let same = |what: &str, planned: String, found: String| {
        if planned == found { Ok(()) } else { Err(format!("its {what} is {found}, {planned} was planned")) }
    };
    let planned = |bumped: i64, kept: i64| if plan.bump > 0 { bumped } else { kept }.to_string();
    let after = plan.revision_after();
    same("revision", planned(after, source.revision), found.revision.to_string())?;
    same("compact revision", planned(after, source.compact_revision), found.compact_revision.to_string())?;
    let mut ids: Vec<u64> = plan.members.iter().map(|member| member.id.0).collect();
    ids.sort_unstable();
    same("membership", format!("{ids:x?}"), format!("{:x?}", found.members.keys().collect::<Vec<_>>()))?;
    same("number of leases", source.leases.len().to_string(), found.leases.len().to_string())?;
    if found.auth_digest != source.auth_digest {
        return Err("its users and roles are not the source's".to_owned());
    }
    if found.lease_digest != source.lease_digest {
        return Err("its leases are not the source's".to_owned());
    }
    Ok(found.hash_kv)
}

/// The first link: the rows under the source's own compaction, without the one that raises the revision.
fn rows(db: &Db<File>, source: &Survey, plan: &RestorePlan) -> Result<(), Words> {
    let mut keyspace = Keyspace::new(source.meta.compaction);
    let wrong = |damage: crate::etcd::mvcc::Damage| Words(damage.to_string());
    db.walk_bucket(b"key", |row: Row<'_>| {
        let key = RowKey::parse(row.key).map_err(wrong)?;
        if plan.bump > 0 && key.revision.main == plan.revision_after() && row.value.is_empty() {
            return Ok(());
        }
        let crc = crc32c::crc32c_append(crc32c::crc32c(row.key), row.value);
        keyspace.row(row.key, row.value, crc).map_err(wrong)
    })?;
    let at = At { revision: source.revision, compact_revision: source.compact_revision };
    let hash = keyspace.finish().map_err(wrong)?.hash_kv(at).map_err(|error| Words(error.to_string()))?;
    if hash == source.hash_kv {
        Ok(())
    } else {
        let (revision, expected) = (at.revision, source.hash_kv);
        Err(Words(format!("at revision {revision} its HashKV is {hash:08x}, the source's is {expected:08x}")))
    }
}
