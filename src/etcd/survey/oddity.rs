//! What is legal in a database and worth a word.
#![deny(clippy::arithmetic_side_effects)]

use super::Survey;
use crate::etcd::{
    bbolt::Text,
    mvcc::{Alarm, AlarmKind, Keyspace},
};
use std::{collections::BTreeMap, fmt};

/// Most lease ids that are kept as examples.
const EXAMPLES: usize = 16;
/// Free space below this is not worth a defragmentation.
const WORTH_BYTES: u64 = 64 << 20;

/// Something that a server lives with, and an operator should know.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Oddity {
    /// A compaction was accepted and not carried out: the server that opens the file goes on with it.
    CompactionInFlight {
        /// Up to this revision.
        scheduled: i64,
        /// The one before it; `None` if there was none.
        finished: Option<i64>,
    },
    /// The newest row is older than the compact revision. Servers before 3.4.32 and 3.5.14 can go back to an older revision with such a file.
    RevisionBelowCompact {
        /// Main revision of the last row; 0 without one.
        last: i64,
        /// The compact revision.
        compacted: i64,
    },
    /// A raised alarm goes on blocking after a restore, until it is disarmed.
    AlarmRaised(Alarm),
    /// A downgrade is under way.
    Downgrade {
        /// To this version.
        target: String,
    },
    /// Live keys whose lease does not exist: they never expire.
    DanglingLeases {
        /// How many keys.
        keys: u64,
        /// How many leases.
        leases: u64,
        /// The first of their ids.
        ids: Vec<i64>,
    },
    /// Auth is enabled and there is no user `root` with role `root`: nobody can administer the cluster.
    NoRoot,
    /// A bucket that etcd 3.4 to 3.6 do not have.
    UnknownBucket(Text),
    /// A member without a vote.
    Learner {
        /// Its id.
        id: u64,
        /// Its name, empty before its first start.
        name: String,
    },
    /// A member that is also in the list of the removed ones: 3.5 before 3.5.26 leaves such rows, and 3.6 takes its members from them.
    RemovedMember {
        /// Its id.
        id: u64,
        /// Its name.
        name: String,
    },
    /// No row names a member.
    NoMembers,
    /// At least half of the database, and 64 MiB, is free: a defragmentation gives it back.
    FreeSpace {
        /// Bytes of free pages.
        free: u64,
        /// Bytes of the database.
        total: u64,
    },
    /// The schema is of a version after 3.6.
    NewerSchema {
        /// Major.
        major: u32,
        /// Minor.
        minor: u32,
    },
}

impl fmt::Display for Oddity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CompactionInFlight { scheduled, finished } => {
                write!(f, "a compaction at revision {scheduled} is not finished")?;
                finished.map_or(Ok(()), |at| write!(f, "; the last that is, is at {at}"))
            }
            Self::RevisionBelowCompact { last, compacted } => {
                write!(f, "the last row is of revision {last}, before the compaction at {compacted}")
            }
            Self::AlarmRaised(Alarm { member, kind }) => {
                let kind = match kind {
                    AlarmKind::NoSpace => "NOSPACE",
                    AlarmKind::Corrupt => "CORRUPT",
                    AlarmKind::Other(kind) => return write!(f, "alarm {kind} is raised by member {member:x}"),
                };
                write!(f, "alarm {kind} is raised by member {member:x}")
            }
            Self::Downgrade { target } => write!(f, "a downgrade to {target} is under way"),
            Self::DanglingLeases { keys, leases, .. } => {
                write!(f, "{keys} keys hang on {leases} leases that do not exist, and never expire")
            }
            Self::NoRoot => f.write_str("auth is enabled and no user root has the role root"),
            Self::UnknownBucket(name) => write!(f, "bucket {name} is unknown"),
            Self::Learner { id, name } => write!(f, "member {name} ({id:x}) is a learner"),
            Self::RemovedMember { id, name } => write!(f, "member {name} ({id:x}) is also listed as removed"),
            Self::NoMembers => f.write_str("no member is listed"),
            Self::FreeSpace { free, total } => write!(f, "{free} of {total} bytes are free"),
            Self::NewerSchema { major, minor } => write!(f, "the schema is that of etcd {major}.{minor}; 3.6 is known"),
        }
    }
}

/// Everything odd in a survey whose other fields are filled.
pub(super) fn of(survey: &Survey, keyspace: &Keyspace) -> Vec<Oddity> {
    let mut odd = Vec::new();
    let compaction = survey.meta.compaction;
    if compaction.in_flight() {
        let (scheduled, finished) = (compaction.revision(), compaction.finished);
        odd.push(Oddity::CompactionInFlight { scheduled, finished });
    }
    if survey.last_row_revision < compaction.revision() {
        odd.push(Oddity::RevisionBelowCompact { last: survey.last_row_revision, compacted: compaction.revision() });
    }
    odd.extend(survey.alarms.iter().copied().map(Oddity::AlarmRaised));
    if let Some(downgrade) = survey.cluster.downgrade.as_ref().filter(|d| d.enabled) {
        odd.push(Oddity::Downgrade { target: downgrade.target_version.clone() });
    }
    odd.extend(dangling(survey, keyspace));
    if survey.auth.enabled && !survey.auth.has_root() {
        odd.push(Oddity::NoRoot);
    }
    odd.extend(survey.walked.unknown_buckets.iter().cloned().map(Oddity::UnknownBucket));
    for (&id, member) in &survey.members {
        let name = member.name.clone();
        if survey.members_removed.contains(&id) {
            odd.push(Oddity::RemovedMember { id, name });
        } else if member.learner {
            odd.push(Oddity::Learner { id, name });
        }
    }
    if survey.members.is_empty() {
        odd.push(Oddity::NoMembers);
    }
    let (free, total) = (survey.walked.free_bytes, survey.total_size);
    if free >= WORTH_BYTES && free >= total / 2 {
        odd.push(Oddity::FreeSpace { free, total });
    }
    let (major, minor) = survey.schema;
    if survey.schema > (3, 6) {
        odd.push(Oddity::NewerSchema { major, minor });
    }
    odd
}

fn dangling(survey: &Survey, keyspace: &Keyspace) -> Option<Oddity> {
    let mut missing: BTreeMap<i64, u64> = BTreeMap::new();
    for (_, live) in keyspace.live().filter(|(_, live)| live.lease != 0) {
        let granted = survey.leases.binary_search_by_key(&live.lease.cast_unsigned(), |l| l.id.cast_unsigned());
        if granted.is_err() {
            let keys = missing.entry(live.lease).or_default();
            *keys = keys.saturating_add(1);
        }
    }
    let keys = missing.values().fold(0_u64, |all, keys| all.saturating_add(*keys));
    let leases = u64::try_from(missing.len()).unwrap_or(u64::MAX);
    (keys > 0).then(|| Oddity::DanglingLeases { keys, leases, ids: missing.into_keys().take(EXAMPLES).collect() })
}
