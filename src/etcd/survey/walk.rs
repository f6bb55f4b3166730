//! The rows of every bucket, as the walk brings them.
#![deny(clippy::arithmetic_side_effects)]

use super::{Survey, Unsound, Wants, oddity, usage};
use crate::etcd::{
    ReadAt,
    bbolt::{Db, Row, Visitor, Walked},
    mvcc::{
        Alarm, Auth, Cluster, Compaction, Damage, Keyspace, Lease, MemberRow, Meta, RowKey, Shown, member_id, minor,
        shift,
    },
};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};

/// Reads bucket `meta` alone.
pub(super) fn meta<S: ReadAt>(db: &Db<S>) -> Result<Meta, Unsound> {
    let mut meta = Meta::default();
    let found = db.walk_bucket(b"meta", |row| meta.row(row.key, row.value).map_err(|damage| at(&row, damage)))?;
    if !found {
        return Err(Unsound::NoBucket("meta"));
    }
    meta.check(false).map_err(whole)?;
    Ok(meta)
}

fn at(row: &Row<'_>, fault: Damage) -> Unsound {
    let revision = (row.bucket == b"key").then(|| RowKey::parse(row.key).ok()).flatten();
    Unsound::Row {
        bucket: String::from_utf8_lossy(row.bucket).into_owned(),
        key: revision.map_or_else(|| Shown::new(row.key).to_string(), |key| key.revision.to_string()),
        page: row.page,
        offset: row.offset,
        fault: Box::new(fault),
    }
}

fn whole(damage: Damage) -> Unsound {
    Unsound::Meta(Box::new(damage))
}

/// A bucket, so that its name is compared once and not for each row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bucket {
    Alarm,
    Auth,
    AuthRoles,
    AuthUsers,
    Cluster,
    Key,
    Lease,
    Members,
    MembersRemoved,
    /// `meta`, which was read before, and what is not known.
    Other,
}

impl Bucket {
    fn of(name: &[u8]) -> Self {
        match name {
            b"alarm" => Self::Alarm,
            b"auth" => Self::Auth,
            b"authRoles" => Self::AuthRoles,
            b"authUsers" => Self::AuthUsers,
            b"cluster" => Self::Cluster,
            b"key" => Self::Key,
            b"lease" => Self::Lease,
            b"members" => Self::Members,
            b"members_removed" => Self::MembersRemoved,
            _ => Self::Other,
        }
    }
}

pub(super) struct Surveyor {
    bucket: Bucket,
    found_key: bool,
    status_hash: u32,
    keyspace: Keyspace,
    cluster: Cluster,
    members: BTreeMap<u64, MemberRow>,
    members_removed: BTreeSet<u64>,
    alarms: Vec<Alarm>,
    leases: Vec<Lease>,
    lease_digest: Sha256,
    auth: Auth,
    auth_digest: Sha256,
}

impl Surveyor {
    pub fn new(compaction: Compaction) -> Self {
        Self {
            bucket: Bucket::Other,
            found_key: false,
            status_hash: 0,
            keyspace: Keyspace::new(compaction),
            cluster: Cluster::default(),
            members: BTreeMap::new(),
            members_removed: BTreeSet::new(),
            alarms: Vec::new(),
            leases: Vec::new(),
            lease_digest: Sha256::new(),
            auth: Auth::default(),
            auth_digest: Sha256::new(),
        }
    }

    fn take(&mut self, row: &Row<'_>, crc: u32) -> Result<(), Damage> {
        let (key, value) = (row.key, row.value);
        match self.bucket {
            Bucket::Key => self.keyspace.row(key, value, crc)?,
            Bucket::Alarm => self.alarms.push(Alarm::parse(key)?),
            Bucket::Auth => self.auth.row(key, value)?,
            Bucket::AuthRoles => self.auth.role(key, value)?,
            Bucket::AuthUsers => self.auth.user(key, value)?,
            Bucket::Cluster => self.cluster.row(key, value)?,
            Bucket::Lease => self.leases.push(Lease::parse(key, value)?),
            Bucket::Members => {
                let member = MemberRow::parse(key, value)?;
                drop(self.members.insert(member.id, member));
            }
            Bucket::MembersRemoved => self.members_removed.extend([member_id(key)?]),
            Bucket::Other => {}
        }
        match self.bucket {
            Bucket::Auth | Bucket::AuthRoles | Bucket::AuthUsers => {
                digest(&mut self.auth_digest, &[row.bucket, key, value]);
            }
            Bucket::Lease => digest(&mut self.lease_digest, &[key, value]),
            _ => {}
        }
        Ok(())
    }

    pub fn finish<S: ReadAt>(self, db: &Db<S>, meta: Meta, walked: Walked, wants: &Wants) -> Result<Survey, Unsound> {
        if !self.found_key {
            return Err(Unsound::NoBucket("key"));
        }
        meta.check(self.keyspace.last().is_some()).map_err(whole)?;
        let (all, prefixes) = usage::by_prefix(&self.keyspace, wants.depth);
        let schema = match &meta.storage_version {
            Some(version) => minor(version).unwrap_or((3, 6)),
            None if meta.term.is_some() || meta.conf_state.is_some() => (3, 5),
            None => (3, 4),
        };
        let mut survey = Survey {
            page_size: db.page_size(),
            total_size: db.data_bytes(),
            surplus_bytes: db.surplus_bytes(),
            has_trailer: db.has_trailer(),
            total_rows: walked.rows,
            walked,
            revision: 0,
            last_row_revision: self.keyspace.last().map_or(0, |last| last.main),
            compact_revision: 0,
            hash_kv: 0,
            status_hash: self.status_hash,
            total_keys: all.keys,
            live_bytes: all.bytes,
            meta,
            cluster: self.cluster,
            schema,
            members: self.members,
            members_removed: self.members_removed,
            alarms: self.alarms,
            leases: self.leases,
            lease_digest: self.lease_digest.finalize().into(),
            auth: self.auth,
            auth_digest: self.auth_digest.finalize().into(),
            prefixes,
            largest: usage::largest(&self.keyspace, wants.largest),
            oddities: Vec::new(),
            history: crate::etcd::mvcc::History::default(),
        };
        survey.oddities = oddity::of(&survey, &self.keyspace);
        survey.history = self.keyspace.finish().map_err(whole)?;
        let own = survey.history.own();
        (survey.revision, survey.compact_revision) = (own.revision, own.compact_revision);
        survey.hash_kv = survey.history.own_hash_kv();
        Ok(survey)
    }
}

impl Visitor for Surveyor {
    type Error = Unsound;

    fn bucket_begin(&mut self, name: &[u8], _: u64) -> Result<(), Unsound> {
        self.bucket = Bucket::of(name);
        self.found_key |= self.bucket == Bucket::Key;
        self.status_hash = crc32c::crc32c_append(self.status_hash, name);
        Ok(())
    }

    fn row(&mut self, row: Row<'_>) -> Result<(), Unsound> {
        // One CRC of a row serves the hash over everything and HashKV.
        let crc = crc32c::crc32c_append(crc32c::crc32c(row.key), row.value);
        let bytes = row.key.len().saturating_add(row.value.len());
        let length =
            u32::try_from(bytes).ok().ok_or(Damage::TooMany { what: "bytes in a row", limit: u64::from(u32::MAX) });
        let length = length.map_err(|damage| at(&row, damage))?;
        self.status_hash = shift::append(self.status_hash, crc, length);
        self.take(&row, crc).map_err(|fault| at(&row, fault))
    }
}

/// Adds parts with their lengths, so that no two different rows give the same bytes.
fn digest(to: &mut Sha256, parts: &[&[u8]]) {
    for part in parts {
        to.update(u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
        to.update(part);
    }
}
