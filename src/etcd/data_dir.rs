//! A member's data directory as a restore writes it.
//!
//! ```text
//! DIR/member/snap/db                                       the database: the source's rows, and the new members'
//! DIR/member/snap/0000000000000001-<members, 16 hex>.snap  what raft begins with
//! DIR/member/wal/0000000000000000-0000000000000000.wal     the log, with an entry for each member; or in a directory of its own
//! ```
//!
//! The database is the same for all members; only the log says whose it is. What stands under the final name, and when, is the caller's.
//!
//! Format: etcd 3.6 `etcdutl/snapshot/v3_snapshot.go`; 3.4 `clientv3/snapshot/v3_snapshot.go`.
#![deny(clippy::arithmetic_side_effects)]

use std::{
    collections::BTreeMap,
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use super::{
    ReadAt, Series,
    bbolt::{Damage, Db, Row, Visitor, WriteAt, WriteError, Writer},
    membership::{Member, cluster_id},
    mvcc::{self, Revision},
    snap, wal,
};

/// Page size of what is written: etcd takes any, and this is what almost every host has.
const PAGE_SIZE: u32 = 4096;
/// Most rows of bucket `meta`; servers know six.
const MOST_META: usize = 1000;

/// What becomes of the rows.
#[derive(Debug, Clone, Copy)]
pub struct Form<'a> {
    /// All members, in the order of their ids.
    pub members: &'a [Member],
    /// The release that will run on it.
    pub series: Series,
    /// The revision that the keyspace is raised to, everything before it marked as compacted; null leaves it as it is.
    pub revision: Option<i64>,
    /// Whether alarms are left out: a member that was out of space stays read-only after a restore otherwise.
    pub clear_alarms: bool,
}

/// What was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rewritten {
    /// Bytes of the database.
    pub bytes: u64,
    /// Its rows, of all buckets.
    pub rows: u64,
}

/// Why a database was not written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The source is damaged.
    #[error(transparent)]
    Damage(#[from] Damage),
    /// A row of the source is none that etcd wrote.
    #[error(transparent)]
    Row(#[from] mvcc::Damage),
    /// The database cannot be written.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// The revision that was asked for is not above the source's.
    #[error("the keyspace is at revision {found}: it cannot be raised to {asked}")]
    Revision {
        /// The last row's, or that of a compaction beyond it.
        found: i64,
        /// Asked for.
        asked: i64,
    },
    /// Bucket `meta` is larger than any server's.
    #[error("bucket meta has more than {MOST_META} rows")]
    Meta,
}

/// Writes the database of restored members into `sink`: one pass over the source, rows byte for byte, but for these:
///
/// - `members` holds the new ones, `members_removed` nobody;
/// - `meta` says that the log was applied up to the entry that adds the last member, in term 1, and who votes;
/// - a release before 3.6 gets no storage version, one before 3.5 neither term nor voters: it would not start, or not know them;
/// - a cluster version above the release and a downgrade that is under way are left out: servers find their version anew;
/// - a raised revision is one more row without a key, and the mark of a compaction up to it, which the server carries out.
///
/// # Errors
/// [`Error`]; the sink's contents are worthless then.
pub fn rewrite<S: ReadAt, W: WriteAt>(source: &Db<S>, form: &Form<'_>, sink: W) -> Result<Rewritten, Error> {
    let mut rewriting = Rewriting {
        writer: Writer::new(sink, PAGE_SIZE)?,
        form,
        bucket: Bucket::None,
        made: MADE.to_vec(),
        meta: BTreeMap::new(),
        last: None,
    };
    source.walk(&mut rewriting)?;
    rewriting.close()?;
    rewriting.make_before(None)?;
    let written = rewriting.writer.finish()?;
    Ok(Rewritten { bytes: written.bytes, rows: written.rows })
}

/// Buckets that are there whatever the source has, in the order of their names.
const MADE: [Bucket; 6] =
    [Bucket::Cluster, Bucket::Key, Bucket::Copied(b"lease"), Bucket::Members, Bucket::Removed, Bucket::Meta];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Bucket {
    None,
    Alarm,
    Cluster,
    Key,
    Members,
    Removed,
    Meta,
    Copied(&'static [u8]),
    Other,
}

impl Bucket {
    fn of(name: &[u8]) -> Self {
        match name {
            b"alarm" => Self::Alarm,
            b"cluster" => Self::Cluster,
            b"key" => Self::Key,
            b"members" => Self::Members,
            b"members_removed" => Self::Removed,
            b"meta" => Self::Meta,
            b"lease" => Self::Copied(b"lease"),
            _ => Self::Other,
        }
    }

    fn name(self) -> &'static [u8] {
        match self {
            Self::Alarm => b"alarm",
            Self::Cluster => b"cluster",
            Self::Key => b"key",
            Self::Members => b"members",
            Self::Removed => b"members_removed",
            Self::Meta => b"meta",
            Self::Copied(name) => name,
            Self::None | Self::Other => b"",
        }
    }
}

struct Rewriting<'a, W> {
    writer: Writer<W>,
    form: &'a Form<'a>,
    bucket: Bucket,
    /// Buckets that were not written yet.
    made: Vec<Bucket>,
    meta: BTreeMap<Vec<u8>, Vec<u8>>,
    last: Option<Revision>,
}

impl<W: WriteAt> Visitor for Rewriting<'_, W> {
    type Error = Error;

    fn bucket_begin(&mut self, name: &[u8], _sequence: u64) -> Result<(), Error> {
        self.close()?;
        self.make_before(Some(name))?;
        self.bucket = Bucket::of(name);
        self.made.retain(|bucket| bucket.name() != name);
        self.writer.begin_bucket(name)?;
        Ok(())
    }

    fn row(&mut self, row: Row<'_>) -> Result<(), Error> {
        match self.bucket {
            Bucket::Members | Bucket::Removed => return Ok(()),
            Bucket::Alarm if self.form.clear_alarms => return Ok(()),
            Bucket::Cluster if !self.keeps(row.key, row.value)? => return Ok(()),
            Bucket::Meta => {
                if self.meta.len() >= MOST_META {
                    return Err(Error::Meta);
                }
                self.meta.insert(row.key.to_vec(), row.value.to_vec());
                return Ok(());
            }
            Bucket::Key => self.last = Some(mvcc::RowKey::parse(row.key)?.revision),
            Bucket::None | Bucket::Alarm | Bucket::Cluster | Bucket::Copied(_) | Bucket::Other => {}
        }
        Ok(self.writer.put(row.key, row.value)?)
    }
}

impl<W: WriteAt> Rewriting<'_, W> {
    /// Writes the buckets that the source lacks and whose turn is before `name`.
    fn make_before(&mut self, name: Option<&[u8]>) -> Result<(), Error> {
        while let Some(bucket) = self.made.first().copied().filter(|made| name.is_none_or(|name| made.name() < name)) {
            self.made.remove(0);
            self.writer.begin_bucket(bucket.name())?;
            self.bucket = bucket;
            self.close()?;
        }
        Ok(())
    }

    /// Writes what a bucket gets beside or instead of the source's rows.
    fn close(&mut self) -> Result<(), Error> {
        match std::mem::replace(&mut self.bucket, Bucket::None) {
            Bucket::Key => {
                let Some(asked) = self.form.revision else { return Ok(()) };
                let found = self.last.map_or(0, |last| last.main);
                if asked <= found {
                    return Err(Error::Revision { found, asked });
                }
                self.writer.put(&Revision { main: asked, sub: 0 }.to_bytes(), b"")?;
            }
            Bucket::Members => {
                let rows = self.form.members.iter().map(|member| (format!("{:x}", member.id), member.to_json()));
                let rows: BTreeMap<String, String> = rows.collect();
                for (id, json) in rows {
                    self.writer.put(id.as_bytes(), json.as_bytes())?;
                }
            }
            Bucket::Meta => {
                self.settle_meta()?;
                for (key, value) in std::mem::take(&mut self.meta) {
                    self.writer.put(&key, &value)?;
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn settle_meta(&mut self) -> Result<(), Error> {
        if let Some(asked) = self.form.revision {
            // Where the newest rows were compacted away, the keyspace is at the compaction and not at the last row.
            for key in ["scheduledCompactRev", "finishedCompactRev"] {
                let Some(mark) = self.meta.get(key.as_bytes()) else { continue };
                let found = Revision::parse(mark)?.main;
                if asked <= found {
                    return Err(Error::Revision { found, asked });
                }
            }
        }
        let mut put = |key: &str, value: &[u8]| {
            self.meta.insert(key.as_bytes().to_vec(), value.to_vec());
        };
        put("consistent_index", &(self.form.members.len() as u64).to_be_bytes());
        if let Some(revision) = self.form.revision {
            put("scheduledCompactRev", &Revision { main: revision, sub: 0 }.to_bytes());
        }
        if self.form.series >= Series::V3_5 {
            put("term", &1_u64.to_be_bytes());
            let voters: Vec<String> = self.form.members.iter().map(|member| member.id.to_string()).collect();
            put("confState", format!("{{\"voters\":[{}],\"auto_leave\":false}}", voters.join(",")).as_bytes());
        } else {
            self.meta.remove(&b"term"[..]);
            self.meta.remove(&b"confState"[..]);
        }
        if self.form.series < Series::V3_6 {
            self.meta.remove(&b"storageVersion"[..]);
        }
        Ok(())
    }

    /// Whether a row of bucket `cluster` can stay.
    fn keeps(&self, key: &[u8], value: &[u8]) -> Result<bool, Error> {
        let mut cluster = mvcc::Cluster::default();
        cluster.row(key, value)?;
        let newer = cluster.version.as_deref().and_then(mvcc::minor).is_some_and(|it| it > self.form.series.numbers());
        Ok(!newer && !cluster.downgrade.is_some_and(|downgrade| downgrade.enabled))
    }
}

/// Where a data directory has its database.
#[must_use]
pub fn database(data_dir: &Path) -> PathBuf {
    data_dir.join("member/snap/db")
}

/// Where a data directory has its log, unless that lies elsewhere.
#[must_use]
pub fn log(data_dir: &Path) -> PathBuf {
    data_dir.join("member/wal")
}

/// Makes the directories of a data directory, which must not exist, and those of its log.
///
/// # Errors
/// What the system says.
pub fn create(data_dir: &Path, wal_dir: Option<&Path>) -> io::Result<()> {
    let create = |path: &Path| DirBuilder::new().mode(0o700).create(path);
    create(data_dir)?;
    create(&data_dir.join("member"))?;
    create(&data_dir.join("member/snap"))?;
    wal_dir.map_or_else(|| create(&log(data_dir)), create)
}

/// Creates the database's file, which must not exist, for writing and for reading back.
///
/// # Errors
/// What the system says.
pub fn create_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)
}

/// Writes the log and the snap file of the member `id`, and makes them and the names of all files durable; the database must be synced by
/// then.
///
/// # Errors
/// What the system says.
pub fn write_log_and_snap(
    data_dir: &Path,
    wal_dir: Option<&Path>,
    id: u64,
    members: &[Member],
    series: Series,
) -> io::Result<()> {
    let cluster = cluster_id(members.iter().map(|member| member.id));
    let log_dir = wal_dir.map_or_else(|| log(data_dir), Path::to_owned);
    let mut file = create_file(&log_dir.join(wal::FIRST_SEGMENT))?;
    file.write_all(&wal::of_restored_member(id, cluster, members, series >= Series::V3_5))?;
    preallocate(&file)?;
    file.sync_all()?;
    let snap_dir = data_dir.join("member/snap");
    let mut file = create_file(&snap_dir.join(snap::file_name(members.len())))?;
    file.write_all(&snap::of_restored_members(members))?;
    file.sync_all()?;
    for dir in [&log_dir, &snap_dir, &data_dir.join("member"), data_dir] {
        File::open(dir)?.sync_all()?;
    }
    Ok(())
}

/// Gives the log the length that etcd does: it appends within, and would fail later where the space is not there now.
fn preallocate(file: &File) -> io::Result<()> {
    match rustix::fs::fallocate(file, rustix::fs::FallocateFlags::empty(), 0, wal::SEGMENT_BYTES) {
        Err(rustix::io::Errno::OPNOTSUPP) => file.set_len(wal::SEGMENT_BYTES),
        other => Ok(other?),
    }
}

/// Whether a running etcd holds the database of a data directory: it keeps a lock on the file for as long as it runs.
///
/// # Errors
/// What the system says; a database that is not there is held by nobody.
pub fn is_in_use(data_dir: &Path) -> io::Result<bool> {
    let file = match fs::OpenOptions::new().read(true).open(database(data_dir)) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    match file.try_lock_shared() {
        Ok(()) => Ok(false),
        Err(fs::TryLockError::WouldBlock) => Ok(true),
        Err(fs::TryLockError::Error(error)) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::etcd::membership::tests::three;

    type Rows = BTreeMap<(String, Vec<u8>), Vec<u8>>;

    #[derive(Default)]
    struct Collect(Rows, Vec<String>);

    impl Visitor for Collect {
        type Error = Damage;

        fn bucket_begin(&mut self, name: &[u8], _: u64) -> Result<(), Damage> {
            self.1.push(String::from_utf8_lossy(name).into_owned());
            Ok(())
        }

        fn row(&mut self, row: Row<'_>) -> Result<(), Damage> {
            let bucket = String::from_utf8_lossy(row.bucket).into_owned();
            self.0.insert((bucket, row.key.to_vec()), row.value.to_vec());
            Ok(())
        }
    }

    fn mark(main: i64) -> Vec<u8> {
        Revision { main, sub: 0 }.to_bytes().to_vec()
    }

    /// A source with these rows, rewritten: its rows and the names of its buckets.
    fn rewritten(source: &[(&str, &[u8], &[u8])], form: &Form<'_>) -> Result<Collect, Error> {
        let sorted: BTreeMap<(&str, &[u8]), &[u8]> = source.iter().map(|row| ((row.0, row.1), row.2)).collect();
        let file = tempfile::tempfile().unwrap();
        let mut writer = Writer::new(file.try_clone().unwrap(), PAGE_SIZE).unwrap();
        let mut bucket = "";
        for ((name, key), value) in sorted {
            if name != bucket {
                writer.begin_bucket(name.as_bytes()).unwrap();
                bucket = name;
            }
            writer.put(key, value).unwrap();
        }
        writer.finish().unwrap();
        let out = tempfile::tempfile().unwrap();
        let result = rewrite(&Db::open(file).unwrap(), form, out.try_clone().unwrap())?;
        let mut all = Collect::default();
        let walked = Db::open(out).unwrap().walk(&mut all).unwrap();
        assert_eq!(result.rows, walked.rows);
        Ok(all)
    }

    fn keys(rows: &Rows, bucket: &str) -> Vec<String> {
        let of = rows.keys().filter(|(name, _)| name == bucket);
        of.map(|(_, key)| String::from_utf8_lossy(key).into_owned()).collect()
    }

    const NEWEST: [(&str, &[u8], &[u8]); 9] = [
        ("alarm", b"\x08\x01\x10\x01", b""),
        ("cluster", b"clusterVersion", b"3.6.0"),
        ("cluster", b"downgrade", br#"{"target-version":"3.5.0","enabled":true}"#),
        ("members", b"1", br#"{"id":1,"peerURLs":["http://old:1"]}"#),
        ("members_removed", b"2", b"removed"),
        ("meta", b"confState", br#"{"voters":[1],"auto_leave":false}"#),
        ("meta", b"consistent_index", b"\0\0\0\0\0\0\0\x09"),
        ("meta", b"storageVersion", b"3.6.0"),
        ("meta", b"term", b"\0\0\0\0\0\0\0\x07"),
    ];

    #[test]
    fn a_release_gets_what_it_knows() {
        let members = three();
        for (series, cluster, meta) in [
            (Series::V3_6, &["clusterVersion"][..], &["confState", "consistent_index", "storageVersion", "term"][..]),
            (Series::V3_5, &[], &["confState", "consistent_index", "term"]),
            (Series::V3_4, &[], &["consistent_index"]),
        ] {
            let form = Form { members: &members, series, revision: None, clear_alarms: series == Series::V3_4 };
            let Collect(rows, buckets) = rewritten(&NEWEST, &form).unwrap();
            assert_eq!(buckets, ["alarm", "cluster", "key", "lease", "members", "members_removed", "meta"], "{series}");
            assert_eq!(keys(&rows, "cluster"), cluster, "{series}");
            assert_eq!(keys(&rows, "meta"), meta, "{series}");
            assert_eq!(keys(&rows, "members"), ["117b9266988c4966", "599de7774412011f", "95dcb2c5cb1427d6"]);
            assert_eq!(keys(&rows, "members_removed"), [""; 0]);
            assert_eq!(keys(&rows, "alarm").len(), usize::from(series != Series::V3_4));
            let of = |key: &[u8]| rows.get(&("meta".to_owned(), key.to_vec())).map(Vec::as_slice);
            assert_eq!(of(b"consistent_index"), Some(&3_u64.to_be_bytes()[..]));
            assert!(series == Series::V3_4 || of(b"term") == Some(&1_u64.to_be_bytes()[..]));
        }
    }

    /// Of a database without buckets too: nothing is a keyspace at revision 0.
    #[test]
    fn what_is_missing_is_made() {
        let members = three();
        let form = Form { members: &members, series: Series::V3_6, revision: Some(5), clear_alarms: false };
        let Collect(rows, buckets) = rewritten(&[], &form).unwrap();
        assert_eq!(buckets, ["cluster", "key", "lease", "members", "members_removed", "meta"]);
        assert_eq!(rows.get(&("key".to_owned(), mark(5))).map(Vec::len), Some(0));
        assert_eq!(rows.get(&("meta".to_owned(), b"scheduledCompactRev".to_vec())), Some(&mark(5)));
    }

    #[test]
    fn a_compaction_beyond_the_last_row_counts_as_the_revision() {
        let members = three();
        let (row, scheduled) = (mark(7), mark(9));
        let source = [("key", &row[..], &b""[..]), ("meta", b"scheduledCompactRev", &scheduled)];
        let form = |revision| Form { members: &members, series: Series::V3_6, revision, clear_alarms: false };
        for (asked, at) in [(7, 7), (8, 9), (9, 9)] {
            match rewritten(&source, &form(Some(asked))) {
                Err(Error::Revision { found, .. }) => assert_eq!(found, at),
                other => panic!("{asked}: {:?}", other.err()),
            }
        }
        let Collect(rows, _) = rewritten(&source, &form(Some(10))).unwrap();
        assert_eq!(rows.get(&("meta".to_owned(), b"scheduledCompactRev".to_vec())), Some(&mark(10)));
        rewritten(&source, &form(None)).unwrap();
    }

    #[test]
    fn rows_that_no_etcd_writes_are_refused() {
        let members = three();
        let form = Form { members: &members, series: Series::V3_6, revision: Some(9), clear_alarms: false };
        assert!(matches!(rewritten(&[("key", b"short", b"")], &form), Err(Error::Row(_))));
        assert!(matches!(rewritten(&[("meta", b"scheduledCompactRev", b"7")], &form), Err(Error::Row(_))));
        let names: Vec<String> = (0..=MOST_META).map(|i| format!("{i:05}")).collect();
        let many: Vec<(&str, &[u8], &[u8])> = names.iter().map(|name| ("meta", name.as_bytes(), &b""[..])).collect();
        assert!(matches!(rewritten(&many, &form), Err(Error::Meta)));
    }
}
