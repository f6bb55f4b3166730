//! Rows of buckets `meta`, `cluster` and `alarm`.
#![deny(clippy::arithmetic_side_effects)]

use super::proto::{Fields, Malformed};
use super::{Damage, Revision, u64_be};
use serde::Deserialize;

/// How far compactions have come. Revisions are mains.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Compaction {
    /// The last one that was accepted.
    pub scheduled: Option<i64>,
    /// The last one that was carried out.
    pub finished: Option<i64>,
}

impl Compaction {
    /// The compact revision: what a client cannot read any more; -1 if there never was a compaction.
    #[must_use]
    pub fn revision(self) -> i64 {
        self.scheduled.max(self.finished).unwrap_or(-1)
    }

    /// A compaction was accepted and not carried out: rows up to it are partly removed, and the server that opens the file goes on with it.
    #[must_use]
    pub fn in_flight(self) -> bool {
        self.scheduled > self.finished
    }
}

/// Bucket `meta`.
///
/// Format: etcd 3.6 `server/storage/schema/cindex.go`, `confstate.go`, `migration.go`, `server/storage/mvcc/store.go`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Meta {
    /// Raft index of the last entry whose effect is in the file. A member of 3.4 has none before its first record.
    pub consistent_index: Option<u64>,
    /// Raft term of that entry; since 3.5.
    pub term: Option<u64>,
    /// Raft's configuration at that entry; since 3.5.
    pub conf_state: Option<ConfState>,
    /// Version of the schema; since 3.6.
    pub storage_version: Option<String>,
    /// How far compactions have come.
    pub compaction: Compaction,
}

/// Raft's configuration: ids of members.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct ConfState {
    /// Who votes.
    #[serde(default)]
    pub voters: Vec<u64>,
    /// Who follows without a vote.
    #[serde(default)]
    pub learners: Vec<u64>,
    /// Who voted before a change that is under way.
    #[serde(default)]
    pub voters_outgoing: Vec<u64>,
    /// Who becomes a learner by it.
    #[serde(default)]
    pub learners_next: Vec<u64>,
    /// It is left without being asked.
    #[serde(default)]
    pub auto_leave: bool,
}

impl Meta {
    /// Takes a row. Unknown keys are left alone: later versions have more.
    ///
    /// # Errors
    /// [`Damage::Form`] or [`Damage::NotARevision`].
    pub fn row(&mut self, key: &[u8], value: &[u8]) -> Result<(), Damage> {
        match key {
            b"consistent_index" => self.consistent_index = Some(number("consistent_index", value)?),
            b"term" => self.term = Some(number("term", value)?),
            b"confState" => {
                let read = serde_json::from_slice(value).ok();
                let form = || Damage::form("confState", "the JSON of a raft configuration", value);
                self.conf_state = Some(read.ok_or_else(form)?);
            }
            b"storageVersion" => self.storage_version = Some(version("storageVersion", value)?),
            b"scheduledCompactRev" => self.compaction.scheduled = Some(Revision::parse(value)?.main),
            b"finishedCompactRev" => self.compaction.finished = Some(Revision::parse(value)?.main),
            _ => {}
        }
        Ok(())
    }

    /// All rows were taken; `records` says whether bucket `key` has any.
    ///
    /// # Errors
    /// [`Damage::Absent`] with records and without `consistent_index`, which servers write together; [`Damage::Compaction`] if more was
    /// finished than scheduled.
    pub fn check(&self, records: bool) -> Result<(), Damage> {
        if records && self.consistent_index.is_none() {
            return Err(Damage::Absent { bucket: "meta", key: "consistent_index" });
        }
        match self.compaction {
            Compaction { scheduled, finished: Some(finished) } if scheduled < Some(finished) => {
                Err(Damage::Compaction { scheduled, finished })
            }
            _ => Ok(()),
        }
    }
}

fn number(what: &'static str, value: &[u8]) -> Result<u64, Damage> {
    u64_be(value).ok_or_else(|| Damage::form(what, "8 bytes", value))
}

/// A version as servers write it: three numbers with dots between.
fn version(what: &'static str, value: &[u8]) -> Result<String, Damage> {
    let text = std::str::from_utf8(value).ok().filter(|text| minor(text).is_some());
    text.map(str::to_owned).ok_or_else(|| Damage::form(what, "a version of three numbers", value))
}

/// Major and minor of a version of three numbers; what follows a `-` or `+` does not count.
pub(in crate::etcd) fn minor(version: &str) -> Option<(u32, u32)> {
    let mut parts = version.splitn(3, '.');
    let major = parts.next()?.parse().ok()?;
    let minor = parts.next()?.parse().ok()?;
    let patch = parts.next()?.split(['-', '+']).next()?;
    patch.parse::<u32>().ok().map(|_| (major, minor))
}

/// Bucket `cluster`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cluster {
    /// The version that all members of the cluster can serve.
    pub version: Option<String>,
    /// A downgrade that was begun, or ended; since 3.5.
    pub downgrade: Option<Downgrade>,
}

/// A downgrade of the cluster.
///
/// Format: etcd 3.6 `server/etcdserver/version/downgrade.go`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Downgrade {
    /// Where it goes.
    #[serde(default)]
    pub target_version: String,
    /// It is under way.
    #[serde(default)]
    pub enabled: bool,
}

impl Cluster {
    /// Takes a row. Unknown keys are left alone.
    ///
    /// # Errors
    /// [`Damage::Form`].
    pub fn row(&mut self, key: &[u8], value: &[u8]) -> Result<(), Damage> {
        match key {
            b"clusterVersion" => self.version = Some(version("clusterVersion", value)?),
            b"downgrade" => {
                let read = serde_json::from_slice(value).ok();
                let form = || Damage::form("downgrade", "the JSON of a downgrade", value);
                self.downgrade = Some(read.ok_or_else(form)?);
            }
            _ => {}
        }
        Ok(())
    }
}

/// An alarm. A restored one goes on blocking until it is disarmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Alarm {
    /// Whose.
    pub member: u64,
    /// About what.
    pub kind: AlarmKind,
}

/// What an alarm is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum AlarmKind {
    /// The quota is used up: the cluster takes no writes.
    NoSpace,
    /// A member's data differ: the cluster takes nothing at all.
    Corrupt,
    /// One of another version.
    Other(u64),
}

impl Alarm {
    /// Reads a key of bucket `alarm`; its values are empty.
    ///
    /// Format: `AlarmMember` of etcd 3.6 `api/etcdserverpb/rpc.proto`.
    ///
    /// # Errors
    /// [`Damage::Message`].
    pub fn parse(key: &[u8]) -> Result<Self, Damage> {
        let read = || -> Result<Self, Malformed> {
            let (mut member, mut kind) = (0, 0);
            for field in Fields::new(key) {
                let field = field?;
                match field.number {
                    1 => member = field.varint()?,
                    2 => kind = field.varint()?,
                    _ => {}
                }
            }
            let kind = match kind {
                1 => AlarmKind::NoSpace,
                2 => AlarmKind::Corrupt,
                other => AlarmKind::Other(other),
            };
            Ok(Self { member, kind })
        };
        read().map_err(Damage::message("etcdserverpb.AlarmMember"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(main: i64) -> [u8; 17] {
        Revision { main, sub: 0 }.to_bytes()
    }

    #[test]
    fn the_rows_of_a_server() {
        let mut meta = Meta::default();
        meta.row(b"consistent_index", &9_u64.to_be_bytes()).unwrap();
        meta.row(b"term", &2_u64.to_be_bytes()).unwrap();
        meta.row(b"confState", br#"{"voters":[18446744073709551615,2],"auto_leave":false}"#).unwrap();
        meta.row(b"storageVersion", b"3.6.0").unwrap();
        meta.row(b"scheduledCompactRev", &mark(7)).unwrap();
        assert!(meta.compaction.in_flight());
        meta.row(b"finishedCompactRev", &mark(7)).unwrap();
        meta.row(b"of a later version", b"?").unwrap();
        assert_eq!(meta.check(true), Ok(()));
        assert_eq!((meta.compaction.revision(), meta.compaction.in_flight()), (7, false));
        assert_eq!(meta.conf_state.unwrap().voters, [u64::MAX, 2]);
        assert_eq!(Compaction::default().revision(), -1);
    }

    #[test]
    fn what_no_server_writes_is_refused() {
        for (key, value) in [
            ("consistent_index", &b"7"[..]),
            ("term", b""),
            ("confState", b"{"),
            ("storageVersion", b"3.6"),
            ("storageVersion", b"3.6.\xff"),
            ("scheduledCompactRev", b"7"),
        ] {
            assert!(Meta::default().row(key.as_bytes(), value).is_err(), "{key}");
        }
        assert_eq!(Meta::default().check(false), Ok(()));
        assert_eq!(Meta::default().check(true), Err(Damage::Absent { bucket: "meta", key: "consistent_index" }));
        let mut meta = Meta::default();
        meta.row(b"finishedCompactRev", &mark(8)).unwrap();
        assert_eq!(meta.check(false), Err(Damage::Compaction { scheduled: None, finished: 8 }));
        meta.row(b"scheduledCompactRev", &mark(7)).unwrap();
        assert_eq!(meta.check(false), Err(Damage::Compaction { scheduled: Some(7), finished: 8 }));
    }

    #[test]
    fn versions_have_three_numbers() {
        assert_eq!(minor("3.6.0"), Some((3, 6)));
        assert_eq!(minor("3.7.0-alpha.0"), Some((3, 7)));
        for bad in ["", "3.6", "3.6.x", "v3.6.0", "3..0"] {
            assert_eq!(minor(bad), None, "{bad}");
        }
    }

    #[test]
    fn alarms_and_downgrades() {
        assert_eq!(Alarm::parse(&[8, 5, 16, 1]), Ok(Alarm { member: 5, kind: AlarmKind::NoSpace }));
        assert_eq!(Alarm::parse(&[8, 5, 16, 9]).unwrap().kind, AlarmKind::Other(9));
        assert!(Alarm::parse(&[8]).is_err());
        let mut cluster = Cluster::default();
        cluster.row(b"clusterVersion", b"3.5.0").unwrap();
        cluster.row(b"downgrade", br#"{"target-version":"3.4.0","enabled":true}"#).unwrap();
        assert_eq!(cluster.downgrade, Some(Downgrade { target_version: "3.4.0".to_owned(), enabled: true }));
        assert!(cluster.row(b"clusterVersion", b"").is_err());
    }
}
