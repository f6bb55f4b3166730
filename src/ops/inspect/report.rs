//! What an inspection answers.

use std::{collections::BTreeMap, path::PathBuf};

use serde::Serialize;

use crate::{
    etcd::{
        mvcc::{Alarm, AlarmKind},
        survey::Survey,
        wal,
    },
    record::{BackupId, EtcdId},
    source::{Form, Source},
};

/// What is in a snapshot. Keys are text, see [`text`].
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// What names it again: a backup's id, or a path.
    pub source: String,
    /// `plain`, `zstd` or `sealed`.
    pub form: &'static str,
    /// The backup around it.
    pub backup: Option<BackupId>,
    /// The member of that backup whose snapshot it is.
    pub from: Option<String>,
    /// Whether etcd's SHA-256 stands behind it; it is right, then.
    pub trailer: bool,
    /// The cluster's revision.
    pub revision: i64,
    /// How far it is compacted; -1 if never.
    pub compact_revision: i64,
    /// HashKV at these two.
    pub hash_kv: u32,
    /// `hash` of `etcdutl snapshot status`.
    pub status_hash: u32,
    /// Live keys.
    pub total_keys: u64,
    /// Rows of all buckets.
    pub total_rows: u64,
    /// Bytes of the database.
    pub total_size: u64,
    /// Bytes of the live keys and their values.
    pub live_bytes: u64,
    /// Bytes of a page.
    pub page_size: u64,
    /// Bytes of pages that nothing uses.
    pub free_bytes: u64,
    /// Bytes behind the database that a server set aside.
    pub surplus_bytes: u64,
    /// Bytes by which a defragmentation makes the file smaller, at least: free pages, and what is set aside.
    pub saved_by_defragmentation: u64,
    /// Since 3.6.
    pub storage_version: Option<String>,
    /// What all members could serve.
    pub cluster_version: Option<String>,
    /// Major and minor of the etcd whose schema it is.
    pub schema_version: String,
    /// Raft index of the last entry whose effect is in it.
    pub consistent_index: u64,
    /// Raft term of that entry; since 3.5.
    pub term: Option<u64>,
    /// By id.
    pub members: Vec<Member>,
    /// Raised alarms.
    pub alarms: Vec<AlarmLine>,
    /// All of them.
    pub leases: Vec<LeaseLine>,
    /// Who may do what, in numbers.
    pub auth: AuthLine,
    /// Live keys by prefix, in order; all of them are in one.
    pub prefixes: Vec<Prefix>,
    /// The keys with the largest values.
    pub largest: Vec<Large>,
    /// Entries that are agreed and only in the log of the stopped member whose database this is.
    pub wal_lag: Option<u64>,
    /// What that log says.
    pub wal: Option<Tail>,
    /// What a person should know.
    pub warnings: Vec<String>,
}

/// A member as its cluster knew it.
#[derive(Debug, Clone, Serialize)]
pub struct Member {
    /// Its id.
    pub id: EtcdId,
    /// Its name; empty before its first start.
    pub name: String,
    /// Where other members reach it.
    pub peer_urls: Vec<String>,
    /// Where clients reach it.
    pub client_urls: Vec<String>,
    /// It has no vote.
    pub learner: bool,
}

/// A raised alarm.
#[derive(Debug, Clone, Serialize)]
pub struct AlarmLine {
    /// The member's id.
    pub member: EtcdId,
    /// As etcdctl calls it.
    pub alarm: String,
}

/// A lease.
#[derive(Debug, Clone, Serialize)]
pub struct LeaseLine {
    /// Its id.
    pub id: EtcdId,
    /// Seconds that were granted.
    pub ttl: i64,
    /// Seconds that were left at the last checkpoint; 0 without one.
    pub remaining: i64,
}

/// Authentication, in numbers.
#[derive(Debug, Clone, Serialize)]
pub struct AuthLine {
    /// Clients must authenticate.
    pub enabled: bool,
    /// How many users.
    pub users: usize,
    /// How many roles.
    pub roles: usize,
}

/// Live keys under a prefix.
#[derive(Debug, Clone, Serialize)]
pub struct Prefix {
    /// Without a slash at its end.
    pub prefix: String,
    /// How many.
    pub keys: u64,
    /// Of keys and values.
    pub bytes: u64,
}

/// A key with a large value.
#[derive(Debug, Clone, Serialize)]
pub struct Large {
    /// The key.
    pub key: String,
    /// Of its value.
    pub bytes: u32,
    /// Main revision of its newest record.
    pub mod_revision: i64,
    /// How often it was put since it lives.
    pub version: i64,
}

/// What the log of a stopped member says.
#[derive(Debug, Clone, Serialize)]
pub struct Tail {
    /// Where it is.
    pub dir: PathBuf,
    /// Whose it is.
    pub member: EtcdId,
    /// Its cluster.
    pub cluster: EtcdId,
    /// The last entry that is known to be agreed.
    pub commit: u64,
    /// The last entry.
    pub last_index: u64,
}

/// A key as text: as it is if that is printable, else with escapes as in a Rust byte string.
fn text(key: &[u8]) -> String {
    match std::str::from_utf8(key) {
        Ok(text) if !text.contains(char::is_control) => text.to_owned(),
        _ => key.escape_ascii().to_string(),
    }
}

/// Puts together what was found; `tail` is there for a member's own database.
pub(super) fn of(
    source: &Source,
    survey: &Survey,
    tail: Option<Result<(PathBuf, wal::Tail), wal::Error>>,
    notes: Vec<String>,
) -> Report {
    let mut warnings = source.warnings.clone();
    warnings.extend(notes);
    let member_file = tail.is_some();
    let (wal, lag) = match tail {
        None => (None, None),
        Some(Err(error)) => {
            warnings.push(format!("what its log has beyond it is unknown: {error}"));
            (None, None)
        }
        Some(Ok((dir, tail))) => {
            let lag = tail.ahead_of(survey.meta.consistent_index.unwrap_or(0));
            warnings.extend(behind(survey, &tail, lag));
            let tail = Tail {
                dir,
                member: EtcdId(tail.member),
                cluster: EtcdId(tail.cluster),
                commit: tail.state.commit,
                last_index: tail.last_index,
            };
            (Some(tail), Some(lag))
        }
    };
    if !survey.has_trailer && !member_file {
        warnings.push(
            "etcd's SHA-256 is not at its end: it was copied from a member, which must have been stopped, or was cut"
                .to_owned(),
        );
    }
    warnings.extend(survey.oddities.iter().map(ToString::to_string));
    let of = source.backup.as_deref();
    let prefixes = survey.prefixes.iter();
    let largest = survey.largest.iter();
    let large = |large: &crate::etcd::survey::Large| Large {
        key: text(&large.key),
        bytes: large.value_bytes,
        mod_revision: large.mod_revision,
        version: large.version,
    };
    Report {
        source: source.name.clone(),
        form: match source.form {
            Form::Plain => "plain",
            Form::Zstd => "zstd",
            Form::Sealed => "sealed",
        },
        backup: of.map(|of| of.index.id.clone()),
        from: of.map(|of| of.member.name.clone()),
        trailer: survey.has_trailer,
        revision: survey.revision,
        compact_revision: survey.compact_revision,
        hash_kv: survey.hash_kv,
        status_hash: survey.status_hash,
        total_keys: survey.total_keys,
        total_rows: survey.total_rows,
        total_size: survey.total_size,
        live_bytes: survey.live_bytes,
        page_size: survey.page_size,
        free_bytes: survey.walked.free_bytes,
        surplus_bytes: survey.surplus_bytes,
        saved_by_defragmentation: survey.walked.free_bytes.saturating_add(survey.surplus_bytes),
        storage_version: survey.meta.storage_version.clone(),
        cluster_version: survey.cluster.version.clone(),
        schema_version: format!("{}.{}", survey.schema.0, survey.schema.1),
        consistent_index: survey.meta.consistent_index.unwrap_or(0),
        term: survey.meta.term,
        members: members(survey),
        alarms: survey.alarms.iter().map(alarm).collect(),
        leases: survey.leases.iter().map(lease).collect(),
        auth: AuthLine { enabled: survey.auth.enabled, users: survey.auth.users.len(), roles: survey.auth.roles.len() },
        prefixes: merged(prefixes.map(|(prefix, usage)| Prefix {
            prefix: text(prefix),
            keys: usage.keys,
            bytes: usage.bytes,
        })),
        largest: largest.map(large).collect(),
        wal_lag: lag,
        wal,
        warnings,
    }
}

/// Two prefixes that read the same would be two rows of one name.
fn merged(prefixes: impl Iterator<Item = Prefix>) -> Vec<Prefix> {
    let mut by_name: BTreeMap<String, Prefix> = BTreeMap::new();
    for prefix in prefixes {
        let sum = by_name.entry(prefix.prefix.clone()).or_insert(Prefix { keys: 0, bytes: 0, ..prefix });
        sum.keys = sum.keys.saturating_add(prefix.keys);
        sum.bytes = sum.bytes.saturating_add(prefix.bytes);
    }
    by_name.into_values().collect()
}

/// What the log has that the database has not.
fn behind(survey: &Survey, tail: &wal::Tail, lag: u64) -> Vec<String> {
    let (commit, applied) = (tail.state.commit, survey.meta.consistent_index.unwrap_or(0));
    let mut words = Vec::new();
    if lag > 0 {
        words.push(format!(
            "the database lacks {lag} agreed entries, which are only in the log ({applied} of {commit}): official tools IGNORE them, and so does what is restored from this file; start etcd on the directory and take a snapshot to have them"
        ));
    }
    let beyond = tail.last_index.saturating_sub(commit.max(applied));
    if beyond > 0 {
        words.push(format!("{beyond} further entries of the log are not known to be agreed"));
    }
    if !survey.members.is_empty() && !survey.members.contains_key(&tail.member) {
        words.push(format!("the log is that of member {:x}, which the database does not list", tail.member));
    }
    words
}

fn members(survey: &Survey) -> Vec<Member> {
    let member = |(id, row): (&u64, &crate::etcd::mvcc::MemberRow)| Member {
        id: EtcdId(*id),
        name: row.name.clone(),
        peer_urls: row.peer_urls.clone(),
        client_urls: row.client_urls.clone(),
        learner: row.learner,
    };
    survey.members.iter().map(member).collect()
}

fn alarm(alarm: &Alarm) -> AlarmLine {
    let kind = match alarm.kind {
        AlarmKind::NoSpace => "NOSPACE".to_owned(),
        AlarmKind::Corrupt => "CORRUPT".to_owned(),
        AlarmKind::Other(kind) => kind.to_string(),
    };
    AlarmLine { member: EtcdId(alarm.member), alarm: kind }
}

fn lease(lease: &crate::etcd::mvcc::Lease) -> LeaseLine {
    LeaseLine { id: EtcdId(lease.id.cast_unsigned()), ttl: lease.ttl, remaining: lease.remaining }
}
