//! The rows of bucket `key`, in order, and what holds between them.
#![deny(clippy::arithmetic_side_effects)]

use super::{Compaction, Damage, History, KeyValue, Revision, RowKey, Shown};
use std::collections::HashMap;

/// The newest record of a key that lives.
///
/// With the pointer to the key and the map's own byte 49 bytes, in a map that is between 7/16 and 7/8 full: 56 to 112 bytes a key, and the key
/// in a block of the heap, whatever the size of its value. Measured over a whole survey with two rows for each key, which take 20 bytes each:
/// 200 bytes a key of 50 at 100,000 keys, 226 at 1,000,000, where the map has just grown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Live {
    /// Main revision that made it live.
    pub create_revision: i64,
    /// How often it was put since.
    pub version: i64,
    /// Its lease; 0 if none.
    pub lease: i64,
    /// Bytes of its value.
    pub value_bytes: u32,
    ordinal: u32,
}

/// Takes every row of bucket `key` in order, and checks each against those before it.
///
/// With C the compact revision, above which nothing was ever removed:
///
/// - above C no revision is missing: mains follow each other from C + 1 (from 2 if there never was a compaction, revision 1 being the empty
///   store), subs from 0 in each;
/// - a put has its own main as `mod_revision`; above C its `create_revision` and `version` follow from the record before it;
/// - above C a tombstone ends a key that lives, and a key occurs once in a revision;
/// - up to C, once the compaction is finished, a key has one row, and a tombstone can only be at C itself.
///
/// After an error it takes no more rows.
///
/// Format: etcd 3.6 `server/storage/mvcc/kvstore_txn.go`, `kvstore_compaction.go`.
#[derive(Debug)]
pub struct Keyspace {
    compaction: Compaction,
    compacted: i64,
    finished: bool,
    last: Option<Revision>,
    live: HashMap<Box<[u8]>, Live>,
    history: History,
    failed: Option<Damage>,
}

impl Keyspace {
    /// An empty one, of a file with these compaction marks.
    #[must_use]
    pub fn new(compaction: Compaction) -> Self {
        let compacted = compaction.revision();
        Self {
            compaction,
            compacted,
            finished: !compaction.in_flight(),
            last: None,
            live: HashMap::new(),
            history: History::new(compacted),
            failed: None,
        }
    }

    /// Takes the next row. `crc` is the CRC-32C of key and value, one after the other.
    ///
    /// # Errors
    /// [`Damage`]; the same one again for every further row.
    pub fn row(&mut self, key: &[u8], value: &[u8], crc: u32) -> Result<(), Damage> {
        if let Some(failed) = &self.failed {
            return Err(failed.clone());
        }
        let taken = self.take(key, value, crc);
        self.failed = taken.as_ref().err().cloned();
        taken
    }

    fn take(&mut self, key: &[u8], value: &[u8], crc: u32) -> Result<(), Damage> {
        let RowKey { revision, tombstone } = RowKey::parse(key)?;
        self.follows(revision)?;
        self.last = Some(revision);
        let record = KeyValue::parse(value)?;
        let length = u32::try_from(key.len().saturating_add(value.len())).unwrap_or(u32::MAX);
        let ordinal = self.history.push(revision.main, tombstone, crc, length)?;
        if tombstone { self.tombstone(revision, &record, ordinal) } else { self.put(revision, &record, ordinal, value) }
    }

    /// Order, and no gap above the compact revision.
    fn follows(&self, found: Revision) -> Result<(), Damage> {
        if let Some(before) = self.last
            && found <= before
        {
            return Err(Damage::Order { before, found });
        }
        if found.main <= self.compacted {
            return Ok(());
        }
        let last = self.last.filter(|l| l.main > self.compacted);
        let next_main = last.map_or(self.compacted.max(1), |l| l.main).saturating_add(1);
        let expected = match last {
            Some(last) if found.main == last.main => Revision { main: last.main, sub: last.sub.saturating_add(1) },
            _ => Revision { main: next_main, sub: 0 },
        };
        if found == expected { Ok(()) } else { Err(Damage::Gap { expected, found }) }
    }

    fn put(&mut self, at: Revision, record: &KeyValue<'_>, ordinal: u32, value: &[u8]) -> Result<(), Damage> {
        let whole = at.main > self.compacted;
        // The row that raised the revision of a restored cluster has no value; its revision was marked as compacted.
        let marker = value.is_empty();
        if record.key.is_empty() && (whole || !marker) {
            return Err(Damage::Keyless { at });
        }
        let chain = |field, expected, found| {
            let key = Shown::new(record.key);
            if expected == found { Ok(()) } else { Err(Damage::Chain { key, at, field, expected, found }) }
        };
        if !marker {
            chain("mod_revision", at.main, record.mod_revision)?;
            // What an earlier row would say is gone; it cannot have said this.
            chain("version", record.version.max(1), record.version)?;
            chain("create_revision", record.create_revision.clamp(1, at.main), record.create_revision)?;
        }
        let new = Live {
            create_revision: record.create_revision,
            version: record.version,
            lease: record.lease,
            value_bytes: u32::try_from(record.value.len()).unwrap_or(u32::MAX),
            ordinal,
        };
        let Some(live) = self.live.get_mut(record.key) else {
            if whole {
                chain("create_revision", at.main, record.create_revision)?;
                chain("version", 1, record.version)?;
            }
            self.live.insert(record.key.into(), new);
            return Ok(());
        };
        let before = self.history.main(live.ordinal);
        if whole {
            once(record.key, before, at.main)?;
            chain("create_revision", live.create_revision, record.create_revision)?;
            chain("version", live.version.saturating_add(1), record.version)?;
        } else if self.finished && !marker {
            let row = Revision { main: before, sub: 0 };
            return Err(Damage::Leftover { key: Shown::new(record.key), row, compacted: self.compacted });
        }
        self.history.supersede(live.ordinal, ordinal);
        *live = new;
        Ok(())
    }

    fn tombstone(&mut self, at: Revision, record: &KeyValue<'_>, ordinal: u32) -> Result<(), Damage> {
        let key = record.key;
        if key.is_empty() {
            return Err(Damage::Keyless { at });
        }
        let whole = at.main > self.compacted;
        if !whole && self.finished && at.main < self.compacted {
            return Err(Damage::Leftover { key: Shown::new(key), row: at, compacted: self.compacted });
        }
        let Some(live) = self.live.remove(key) else {
            // Up to C the put may have been removed already.
            return if whole { Err(Damage::Unborn { key: Shown::new(key), at }) } else { Ok(()) };
        };
        let before = self.history.main(live.ordinal);
        if whole {
            once(key, before, at.main)?;
        } else if self.finished {
            let row = Revision { main: before, sub: 0 };
            return Err(Damage::Leftover { key: Shown::new(key), row, compacted: self.compacted });
        }
        self.history.supersede(live.ordinal, ordinal);
        Ok(())
    }

    /// Main revision of the last row; `None` if there is no row.
    #[must_use]
    pub fn last(&self) -> Option<Revision> {
        self.last
    }

    /// What the file says of its compactions.
    #[must_use]
    pub fn compaction(&self) -> Compaction {
        self.compaction
    }

    /// The keys that live after the rows so far, with the newest record's facts; in no order.
    #[must_use]
    pub fn live(&self) -> impl ExactSizeIterator<Item = (&[u8], Live)> {
        self.live.iter().map(|(key, live)| (&**key, *live))
    }

    /// Whether this key lives after the rows so far, and how.
    #[must_use]
    pub fn get(&self, key: &[u8]) -> Option<Live> {
        self.live.get(key).copied()
    }

    /// Main revision of a live key's newest record.
    #[must_use]
    pub fn mod_revision(&self, live: &Live) -> i64 {
        self.history.main(live.ordinal)
    }

    /// Lets the keys go, and keeps what HashKV needs.
    ///
    /// # Errors
    /// The damage that ended it, if one did.
    pub fn finish(self) -> Result<History, Damage> {
        self.failed.map_or(Ok(self.history), Err)
    }
}

fn once(key: &[u8], before: i64, main: i64) -> Result<(), Damage> {
    if before == main { Err(Damage::Twice { key: Shown::new(key), main }) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::etcd::mvcc::model::Model;

    type Row = ((i64, i64, bool), Vec<u8>);

    fn put(main: i64, sub: i64, key: &str, create: i64, version: i64) -> Row {
        let (create_revision, mod_revision) = (create, main);
        let record = KeyValue {
            key: key.as_bytes(),
            create_revision,
            mod_revision,
            version,
            value: b"v",
            ..KeyValue::default()
        };
        ((main, sub, false), record.to_bytes())
    }

    fn delete(main: i64, sub: i64, key: &str) -> Row {
        ((main, sub, true), KeyValue { key: key.as_bytes(), ..KeyValue::default() }.to_bytes())
    }

    fn marker(main: i64) -> Row {
        ((main, 0, false), Vec::new())
    }

    fn read(scheduled: i64, finished: i64, rows: &[Row]) -> Result<Keyspace, Damage> {
        let mark = |at: i64| (at > 0).then_some(at);
        let mut keyspace = Keyspace::new(Compaction { scheduled: mark(scheduled), finished: mark(finished) });
        for ((main, sub, tombstone), value) in rows {
            let key = RowKey { revision: Revision { main: *main, sub: *sub }, tombstone: *tombstone };
            keyspace.row(&key.to_bytes(), value, 0)?;
        }
        Ok(keyspace)
    }

    fn words(scheduled: i64, finished: i64, rows: &[Row]) -> String {
        read(scheduled, finished, rows).err().map_or("sound".to_owned(), |damage| damage.to_string())
    }

    #[test]
    fn what_servers_leave_is_sound() {
        for (what, scheduled, finished, rows) in [
            ("an empty store", 0, 0, vec![]),
            ("a delete and a rebirth", 0, 0, vec![put(2, 0, "a", 2, 1), delete(3, 0, "a"), put(4, 0, "a", 4, 1)]),
            ("a transaction", 0, 0, vec![put(2, 0, "a", 2, 1), put(2, 1, "b", 2, 1), put(3, 0, "b", 2, 2)]),
            ("a compaction", 5, 5, vec![put(4, 1, "a", 2, 3), put(6, 0, "a", 2, 4), put(7, 0, "b", 7, 1)]),
            ("a compaction at 1", 1, 1, vec![put(2, 0, "a", 2, 1)]),
            (
                "a tombstone on the compact revision",
                5,
                5,
                vec![put(4, 0, "b", 4, 1), delete(5, 0, "a"), put(6, 0, "a", 6, 1)],
            ),
            ("all rows compacted away", 9, 9, vec![]),
            (
                "a compaction in flight",
                5,
                2,
                vec![put(3, 0, "a", 3, 1), delete(4, 0, "a"), put(5, 0, "a", 5, 1), put(6, 0, "a", 5, 2)],
            ),
            ("a raised revision", 1007, 0, vec![put(2, 0, "a", 2, 1), marker(1007), put(1008, 0, "a", 2, 2)]),
            ("raised twice", 2007, 1007, vec![put(2, 0, "a", 2, 1), marker(1007), marker(2007)]),
        ] {
            assert_eq!(words(scheduled, finished, &rows), "sound", "{what}");
        }
    }

    #[test]
    fn each_rule_is_checked() {
        let a = put(2, 0, "a", 2, 1);
        let first = |row: Row| vec![a.clone(), row];
        for (scheduled, finished, rows, expected) in [
            (0, 0, vec![put(3, 0, "a", 3, 1)], "revision 2/0 is missing: the next row is 3/0"),
            (0, 0, vec![put(1, 0, "a", 1, 1)], "revision 2/0 is missing: the next row is 1/0"),
            (0, 0, vec![put(2, 1, "a", 2, 1)], "revision 2/0 is missing: the next row is 2/1"),
            (0, 0, first(put(4, 0, "a", 2, 2)), "revision 3/0 is missing: the next row is 4/0"),
            (0, 0, first(put(2, 2, "b", 2, 1)), "revision 2/1 is missing: the next row is 2/2"),
            (0, 0, first(put(3, 1, "b", 2, 1)), "revision 3/0 is missing: the next row is 3/1"),
            (5, 5, vec![put(4, 0, "a", 2, 3), put(7, 0, "a", 2, 4)], "revision 6/0 is missing: the next row is 7/0"),
            (9, 9, first(put(2, 0, "b", 2, 1)), "revision 2/0 does not come after 2/0"),
            (
                0,
                0,
                vec![put(2, 0, "a", 1, 1)],
                "key \"a\" at revision 2/0: create_revision is 1, and 2 follows from the revisions before",
            ),
            (
                0,
                0,
                vec![put(2, 0, "a", 2, 2)],
                "key \"a\" at revision 2/0: version is 2, and 1 follows from the revisions before",
            ),
            (
                0,
                0,
                first(put(3, 0, "a", 3, 2)),
                "key \"a\" at revision 3/0: create_revision is 3, and 2 follows from the revisions before",
            ),
            (
                0,
                0,
                first(put(3, 0, "a", 2, 3)),
                "key \"a\" at revision 3/0: version is 3, and 2 follows from the revisions before",
            ),
            (0, 0, first(put(2, 1, "a", 2, 2)), "key \"a\" occurs twice in revision 2"),
            (0, 0, first(delete(2, 1, "a")), "key \"a\" occurs twice in revision 2"),
            (0, 0, first(delete(3, 0, "b")), "key \"b\" is deleted at revision 3/0, where it does not exist"),
            (
                9,
                9,
                first(put(3, 0, "a", 2, 2)),
                "key \"a\" has a row at revision 2/0 that the finished compaction at 9 removes",
            ),
            (
                9,
                9,
                vec![delete(8, 0, "a")],
                "key \"a\" has a row at revision 8/0 that the finished compaction at 9 removes",
            ),
            (
                9,
                9,
                first(delete(9, 0, "a")),
                "key \"a\" has a row at revision 2/0 that the finished compaction at 9 removes",
            ),
            (
                9,
                9,
                vec![put(3, 0, "a", 4, 1)],
                "key \"a\" at revision 3/0: create_revision is 4, and 3 follows from the revisions before",
            ),
            (
                9,
                9,
                vec![put(3, 0, "a", 3, 0)],
                "key \"a\" at revision 3/0: version is 0, and 1 follows from the revisions before",
            ),
            (0, 0, vec![marker(2)], "the row at revision 2/0 has no key"),
            (0, 0, vec![put(2, 0, "", 2, 1)], "the row at revision 2/0 has no key"),
            (9, 9, vec![delete(9, 0, "")], "the row at revision 9/0 has no key"),
        ] {
            assert_eq!(words(scheduled, finished, &rows), expected, "{rows:?}");
        }
        let mut other = a.clone();
        other.0 = (3, 0, false);
        assert_eq!(
            words(9, 9, &[other]),
            "key \"a\" at revision 3/0: mod_revision is 2, and 3 follows from the revisions before"
        );
    }

    #[test]
    fn after_the_first_damage_nothing_is_taken() {
        let mut keyspace = read(0, 0, &[put(2, 0, "a", 2, 1)]).unwrap();
        let ((main, sub, _), value) = put(3, 0, "a", 2, 2);
        let good = Revision { main, sub }.to_bytes();
        assert_eq!(keyspace.row(b"no revision", &value, 0), Err(Damage::NotARevision));
        assert_eq!(keyspace.row(&good, &value, 0), Err(Damage::NotARevision));
        assert_eq!(keyspace.finish().map(|h| h.rows()), Err(Damage::NotARevision));
    }

    #[test]
    fn bytes_of_a_live_key() {
        assert_eq!(size_of::<(Box<[u8]>, Live)>(), 48);
    }

    #[test]
    fn the_newest_record_of_a_key_is_known() {
        let mut model = Model::new();
        model.change(&vec![(1, Some(b"one".to_vec())), (2, Some(b"two".to_vec()))]);
        model.change(&vec![(2, Some(b"three".to_vec()))]);
        let keyspace = model.keyspace().unwrap();
        let live = keyspace.get(b"/k/2").unwrap();
        assert_eq!((live.version, live.create_revision, live.value_bytes, keyspace.mod_revision(&live)), (2, 2, 5, 3));
        assert_eq!(keyspace.get(b"/k/3"), None);
    }
}
