//! Databases made by the bulk writer: whole ones, and each rule broken once.
#![allow(clippy::arithmetic_side_effects, clippy::indexing_slicing, clippy::unwrap_used, reason = "tests")]

use super::*;
use crate::etcd::{
    bbolt::Writer,
    mvcc::{KeyValue, Revision, RowKey, model::Model},
};
use proptest::prelude::*;
use std::{fs::File, os::unix::fs::FileExt};

/// Buckets by name, each with its rows.
type Buckets = BTreeMap<&'static str, BTreeMap<Vec<u8>, Vec<u8>>>;

fn mark(main: i64) -> Vec<u8> {
    Revision { main, sub: 0 }.to_bytes().to_vec()
}

/// The buckets that a member of 3.6 has, around these records.
fn buckets(model: &Model) -> Buckets {
    let mut buckets: Buckets = bbolt::KNOWN_BUCKETS.into_iter().map(|name| (name, BTreeMap::new())).collect();
    buckets.insert("key", model.rows.clone());
    for (bucket, key, value) in [
        ("meta", "consistent_index", 90_u64.to_be_bytes().to_vec()),
        ("meta", "term", 3_u64.to_be_bytes().to_vec()),
        ("meta", "confState", br#"{"voters":[5],"auto_leave":false}"#.to_vec()),
        ("meta", "storageVersion", b"3.6.0".to_vec()),
        ("auth", "authEnabled", vec![0]),
        ("auth", "authRevision", 1_u64.to_be_bytes().to_vec()),
        ("cluster", "clusterVersion", b"3.6.0".to_vec()),
        (
            "members",
            "5",
            br#"{"id":5,"peerURLs":["http://a:2380"],"name":"m1","clientURLs":["http://a:2379"]}"#.to_vec(),
        ),
        ("members_removed", "a", b"removed".to_vec()),
    ] {
        put(&mut buckets, bucket, key, value);
    }
    for (key, at) in
        [("scheduledCompactRev", model.compaction.scheduled), ("finishedCompactRev", model.compaction.finished)]
    {
        if let Some(at) = at {
            put(&mut buckets, "meta", key, mark(at));
        }
    }
    buckets
}

fn put(buckets: &mut Buckets, bucket: &'static str, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) {
    buckets.entry(bucket).or_default().insert(key.as_ref().to_vec(), value.as_ref().to_vec());
}

fn write(buckets: &Buckets) -> File {
    let file = tempfile::tempfile().unwrap();
    let mut writer = Writer::new(file.try_clone().unwrap(), 4096).unwrap();
    for (name, rows) in buckets {
        writer.begin_bucket(name.as_bytes()).unwrap();
        for (key, value) in rows {
            writer.put(key, value).unwrap();
        }
    }
    writer.finish().unwrap();
    file
}

fn read(buckets: &Buckets) -> Result<Survey, Unsound> {
    survey(&Db::open(write(buckets)).unwrap(), &Wants { depth: 1, largest: 2 })
}

/// Three keys, of which one is deleted, and one put twice: revision 5.
fn model() -> Model {
    let value = |n: usize| Some(vec![b'v'; n]);
    Model::of(&[vec![(1, value(10)), (2, value(400))], vec![(3, value(30))], vec![(1, None)], vec![(3, value(50))]])
}

fn leased(buckets: &mut Buckets, main: i64, lease: i64) {
    let record = KeyValue { key: b"leased", create_revision: main, mod_revision: main, version: 1, value: b"x", lease };
    put(buckets, "key", mark(main), record.to_bytes());
}

#[test]
fn a_database_is_what_was_written() {
    let model = model();
    let survey = read(&buckets(&model)).unwrap();
    assert_eq!((survey.revision, survey.last_row_revision, survey.compact_revision), (5, 5, -1));
    assert_eq!(survey.hash_kv, model.naive(At { revision: 5, compact_revision: -1 }));
    assert_eq!(
        survey.hash_kv_at(At { revision: 4, compact_revision: 3 }),
        Ok(model.naive(At { revision: 4, compact_revision: 3 }))
    );
    assert_eq!((survey.total_keys, survey.total_rows), (2, 5 + 9));
    assert_eq!(survey.live_bytes, 4 + 400 + 4 + 50);
    assert_eq!(survey.prefixes, BTreeMap::from([(b"/k".to_vec(), Usage { keys: 2, bytes: 458 })]));
    let largest: Vec<_> =
        survey.largest.iter().map(|l| (l.key.as_slice(), l.value_bytes, l.mod_revision, l.version)).collect();
    assert_eq!(largest, [(&b"/k/2"[..], 400, 2, 1), (b"/k/3", 50, 5, 2)]);
    assert_eq!((survey.meta.consistent_index, survey.meta.term, survey.schema), (Some(90), Some(3), (3, 6)));
    assert_eq!((survey.members[&5].name.as_str(), survey.members_removed.len()), ("m1", 1));
    assert_eq!(survey.oddities, []);
}

#[test]
fn the_schema_tells_the_release() {
    let mut of = buckets(&model());
    of.get_mut("meta").unwrap().remove(&b"storageVersion"[..]);
    assert_eq!(read(&of).unwrap().schema, (3, 5));
    of.get_mut("meta").unwrap().remove(&b"term"[..]);
    assert_eq!(read(&of).unwrap().schema, (3, 5));
    of.get_mut("meta").unwrap().remove(&b"confState"[..]);
    assert_eq!(read(&of).unwrap().schema, (3, 4));
    put(&mut of, "meta", "storageVersion", "3.7.0");
    assert_eq!(read(&of).unwrap().oddities, [Oddity::NewerSchema { major: 3, minor: 7 }]);
}

#[test]
fn what_is_legal_and_odd_is_said() {
    let base = buckets(&model());
    let odd = |change: &dyn Fn(&mut Buckets)| {
        let mut other = base.clone();
        change(&mut other);
        read(&other).unwrap().oddities.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
    };
    assert_eq!(odd(&|_| {}), "");
    assert_eq!(odd(&|b| put(b, "meta", "scheduledCompactRev", mark(4))), "a compaction at revision 4 is not finished");
    assert_eq!(
        odd(&|b| {
            put(b, "meta", "scheduledCompactRev", mark(9));
            put(b, "meta", "finishedCompactRev", mark(4));
        }),
        "a compaction at revision 9 is not finished; the last that is, is at 4; the last row is of revision 5, before the compaction at 9"
    );
    assert_eq!(odd(&|b| put(b, "alarm", [8, 5, 16, 1], "")), "alarm NOSPACE is raised by member 5");
    assert_eq!(odd(&|b| put(b, "alarm", [8, 0xab, 1, 16, 2], "")), "alarm CORRUPT is raised by member ab");
    assert_eq!(
        odd(&|b| put(b, "cluster", "downgrade", r#"{"target-version":"3.5.0","enabled":true}"#)),
        "a downgrade to 3.5.0 is under way"
    );
    assert_eq!(odd(&|b| put(b, "cluster", "downgrade", r#"{"target-version":"","enabled":false}"#)), "");
    assert_eq!(odd(&|b| leased(b, 6, 77)), "1 keys hang on 1 leases that do not exist, and never expire");
    for id in [77, -77] {
        let granted = |b: &mut Buckets| {
            leased(b, 6, id);
            for id in [-77, 1, 77] {
                let (key, value) = Lease { id, ttl: 60, remaining: 0 }.to_row();
                put(b, "lease", key, value);
            }
        };
        assert_eq!(odd(&granted), "", "{id}");
    }
    assert_eq!(odd(&|b| put(b, "auth", "authEnabled", [1])), "auth is enabled and no user root has the role root");
    assert_eq!(odd(&|b| drop(b.insert("zoo", BTreeMap::new()))), "bucket zoo is unknown");
    assert_eq!(
        odd(&|b| put(b, "members", "6", r#"{"id":6,"peerURLs":[],"isLearner":true}"#)),
        "member  (6) is a learner"
    );
    assert_eq!(odd(&|b| put(b, "members_removed", "5", "removed")), "member m1 (5) is also listed as removed");
    assert_eq!(odd(&|b| b.get_mut("members").unwrap().clear()), "no member is listed");
}

#[test]
fn free_space_is_said_where_it_is_worth_it() {
    let mut survey = read(&buckets(&model())).unwrap();
    let keyspace = model().keyspace().unwrap();
    for (free, total, said) in [(64, 128, true), (63, 64, false), (100, 201, false), (150, 200, true)] {
        (survey.walked.free_bytes, survey.total_size) = (free << 20, total << 20);
        assert_eq!(!oddity::of(&survey, &keyspace).is_empty(), said, "{free} of {total} MiB");
    }
}

#[test]
fn what_no_server_writes_is_refused_with_its_place() {
    let base = buckets(&model());
    let refused = |change: &dyn Fn(&mut Buckets)| {
        let mut other = base.clone();
        change(&mut other);
        let words = read(&other).unwrap_err().to_string();
        // Pages and offsets are the writer's business here; that they are named is ours.
        let (before, after) = words
            .split_once(", page ")
            .map_or((words.clone(), String::new()), |(b, a)| (b.to_owned(), a.split_once("): ").unwrap().1.to_owned()));
        format!("{before}|{after}")
    };
    let first = |b: &mut Buckets| b.get_mut("key").unwrap().pop_first().unwrap();
    for (expected, change) in [
        (
            "bucket key, key 2/1|revision 2/0 is missing: the next row is 2/1",
            (&|b: &mut Buckets| drop(first(b))) as &dyn Fn(&mut Buckets),
        ),
        ("bucket key, key 2/0|the value is no mvccpb.KeyValue: no such field type (byte 0)", &|b| {
            let (key, _) = first(b);
            put(b, "key", key, [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f]);
        }),
        (
            "bucket key, key \"odd\"|this is no revision: a revision has 8 bytes, `_`, 8 bytes, and `t` if it is a tombstone",
            &|b| {
                put(b, "key", "odd", "");
            },
        ),
        ("bucket meta: bucket meta has no row consistent_index|", &|b| {
            b.get_mut("meta").unwrap().remove(&b"consistent_index"[..]);
        }),
        ("bucket meta: the finished compaction, 4, is later than the scheduled one, Some(3)|", &|b| {
            put(b, "meta", "scheduledCompactRev", mark(3));
            put(b, "meta", "finishedCompactRev", mark(4));
        }),
        ("bucket meta, key \"term\"|the value is \"3\", and term is 8 bytes", &|b| put(b, "meta", "term", "3")),
        ("bucket members, key \"6\"|the value is \"6\", and the key of this member is its id", &|b| {
            put(b, "members", "6", r#"{"id":5}"#);
        }),
        ("bucket members_removed, key \"x\"|the value is \"x\", and a member's key is its id in hexadecimal", &|b| {
            put(b, "members_removed", "x", "removed");
        }),
        (
            "bucket alarm, key \"\\x08\"|the value is no etcdserverpb.AlarmMember: it ends inside a field (byte 1)",
            &|b| put(b, "alarm", [8], ""),
        ),
        ("bucket lease, key \"1\"|the value is \"1\", and the key of a lease is 8 bytes", &|b| {
            put(b, "lease", "1", "");
        }),
        ("bucket auth, key \"authEnabled\"|the value is \"\\x02\", and authEnabled is one byte, 0 or 1", &|b| {
            put(b, "auth", "authEnabled", [2]);
        }),
        ("bucket authUsers, key \"root\"|the value is \"\", and the name in this user is its key", &|b| {
            put(b, "authUsers", "root", "");
        }),
        (
            "bucket cluster, key \"clusterVersion\"|the value is \"3\", and clusterVersion is a version of three numbers",
            &|b| put(b, "cluster", "clusterVersion", "3"),
        ),
        ("the database has no bucket key: it is not etcd's|", &|b| drop(b.remove("key"))),
        ("the database has no bucket meta: it is not etcd's|", &|b| drop(b.remove("meta"))),
    ] {
        assert_eq!(refused(change), expected);
    }
}

#[test]
fn digests_see_users_and_leases() {
    let base = buckets(&model());
    let before = read(&base).unwrap();
    let mut other = base.clone();
    put(&mut other, "authUsers", "root", b"\x0a\x04root\x12\x02pw");
    let (key, value) = Lease { id: 5, ttl: 60, remaining: 0 }.to_row();
    put(&mut other, "lease", key, value);
    let after = read(&other).unwrap();
    assert_ne!(before.auth_digest, after.auth_digest);
    assert_ne!(before.lease_digest, after.lease_digest);
    assert_eq!(before.hash_kv, after.hash_kv);
    assert_ne!(before.status_hash, after.status_hash);
}

#[test]
fn a_raised_revision_is_the_revision() {
    let mut of = buckets(&model());
    put(&mut of, "key", mark(1005), "");
    put(&mut of, "meta", "scheduledCompactRev", mark(1005));
    let survey = read(&of).unwrap();
    assert_eq!((survey.revision, survey.compact_revision), (1005, 1005));
    let next = KeyValue { key: b"/k/2", create_revision: 2, mod_revision: 1006, version: 2, value: b"x", lease: 0 };
    put(
        &mut of,
        "key",
        RowKey { revision: Revision { main: 1006, sub: 0 }, tombstone: false }.to_bytes(),
        next.to_bytes(),
    );
    assert_eq!(read(&of).unwrap().revision, 1006);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    /// Bytes that change anywhere are damage, or another status hash, or lie where nothing is read; they never are a panic.
    #[test]
    fn no_bytes_make_it_panic(places in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4)) {
        let mut of = buckets(&model());
        leased(&mut of, 6, 7);
        let file = write(&of);
        let size = usize::try_from(file.metadata().unwrap().len()).unwrap();
        for (place, byte) in places {
            file.write_all_at(&[byte], place.index(size) as u64).unwrap();
        }
        if let Ok(survey) = Db::open(file).map_err(Unsound::from).and_then(|db| survey(&db, &Wants { depth: 2, largest: 3 })) {
            prop_assert!(survey.revision >= 1 && survey.total_keys <= survey.total_rows);
        }
    }
}
