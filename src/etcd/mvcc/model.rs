//! A store as simple as can be, for tests: it makes the rows that etcd would, and hashes them rule by rule.
#![allow(clippy::arithmetic_side_effects, clippy::indexing_slicing, clippy::unwrap_used, reason = "tests")]

use super::{At, Compaction, Damage, History, KeyValue, Keyspace, Revision, RowKey};
use std::collections::{BTreeMap, BTreeSet};

pub(in crate::etcd) type Rows = BTreeMap<Vec<u8>, Vec<u8>>;

/// One transaction: what becomes of keys; `None` deletes.
pub(in crate::etcd) type Change = Vec<(u8, Option<Vec<u8>>)>;

#[derive(Clone, Debug)]
pub(in crate::etcd) struct Model {
    pub rows: Rows,
    pub revision: i64,
    pub compaction: Compaction,
    live: BTreeMap<Vec<u8>, (i64, i64)>,
}

impl Model {
    pub fn new() -> Self {
        Self { rows: Rows::new(), revision: 1, compaction: Compaction::default(), live: BTreeMap::new() }
    }

    pub fn of(changes: &[Change]) -> Self {
        let mut model = Self::new();
        for change in changes {
            model.change(change);
        }
        model
    }

    /// Applies a transaction as a server does: a key once, no delete of what is not there, no revision for nothing.
    pub fn change(&mut self, change: &Change) {
        let main = self.revision + 1;
        let mut seen = BTreeSet::new();
        let mut sub = 0;
        for (key, value) in change {
            let name = format!("/k/{key}").into_bytes();
            if !seen.insert(*key) || (value.is_none() && !self.live.contains_key(&name)) {
                continue;
            }
            let revision = Revision { main, sub };
            sub += 1;
            let mut record = KeyValue { key: &name, ..KeyValue::default() };
            if let Some(value) = value {
                let (create, version) = self.live.get(&name).map_or((main, 1), |(c, v)| (*c, v + 1));
                self.live.insert(name.clone(), (create, version));
                record = KeyValue { create_revision: create, mod_revision: main, version, value, ..record };
            } else {
                self.live.remove(&name);
            }
            let key = RowKey { revision, tombstone: value.is_none() };
            self.rows.insert(key.to_bytes(), record.to_bytes());
            self.revision = main;
        }
    }

    /// A compaction that is carried out.
    pub fn compact(&mut self, at: i64) {
        self.rows = compacted(&self.rows, at);
        self.compaction = Compaction { scheduled: Some(at), finished: Some(at) };
    }

    /// One that stops after it has removed the first `removed` rows.
    pub fn begin_to_compact(&mut self, at: i64, removed: usize) {
        let stay = compacted(&self.rows, at);
        let go: Vec<Vec<u8>> = self.rows.keys().filter(|k| !stay.contains_key(*k)).take(removed).cloned().collect();
        for key in go {
            self.rows.remove(&key);
        }
        self.compaction.scheduled = Some(at);
    }

    pub fn keyspace(&self) -> Result<Keyspace, Damage> {
        let mut keyspace = Keyspace::new(self.compaction);
        for (key, value) in &self.rows {
            keyspace.row(key, value, crc32c::crc32c(&[key.as_slice(), value].concat()))?;
        }
        Ok(keyspace)
    }

    pub fn history(&self) -> Result<History, Damage> {
        self.keyspace()?.finish()
    }

    /// HashKV of these rows, as the servers' code says it.
    pub fn naive(&self, at: At) -> u32 {
        naive(&self.rows, at)
    }

    /// The same after a compaction at `at.compact_revision` was carried out.
    pub fn naive_compacted(&self, at: At) -> u32 {
        naive(&compacted(&self.rows, at.compact_revision), at)
    }

    pub fn any_live(&self, revision: i64) -> bool {
        !keep(&self.rows, revision).is_empty()
    }
}

fn parsed(rows: &Rows) -> impl Iterator<Item = (RowKey, &Vec<u8>, &Vec<u8>)> {
    rows.iter().map(|(key, value)| (RowKey::parse(key).unwrap(), key, value))
}

fn newest(rows: &Rows, revision: i64) -> BTreeMap<&[u8], RowKey> {
    let up_to = parsed(rows).filter(|(row, ..)| row.revision.main <= revision);
    up_to.map(|(row, _, value)| (KeyValue::parse(value).unwrap().key, row)).collect()
}

fn keep(rows: &Rows, revision: i64) -> BTreeSet<Revision> {
    newest(rows, revision).values().filter(|row| !row.tombstone).map(|row| row.revision).collect()
}

fn compacted(rows: &Rows, at: i64) -> Rows {
    let newest: BTreeSet<Revision> = newest(rows, at)
        .values()
        .filter(|row| !row.tombstone || row.revision.main == at)
        .map(|row| row.revision)
        .collect();
    let stays = |row: &RowKey| row.revision.main > at || newest.contains(&row.revision);
    parsed(rows).filter(|(row, ..)| stays(row)).map(|(_, k, v)| (k.clone(), v.clone())).collect()
}

fn naive(rows: &Rows, at: At) -> u32 {
    let keep = keep(rows, at.revision);
    let mut hash = crc32c::crc32c(b"key");
    for (row, key, value) in parsed(rows) {
        let main = row.revision.main;
        if main > at.revision {
            continue;
        }
        if main <= at.compact_revision && !keep.is_empty() && !keep.contains(&row.revision) {
            continue;
        }
        if main == at.compact_revision && row.tombstone {
            continue;
        }
        hash = crc32c::crc32c_append(crc32c::crc32c_append(hash, key), value);
    }
    hash
}

mod properties {
    use super::*;
    use crate::etcd::mvcc::Incomparable;
    use proptest::prelude::*;

    fn changes() -> impl Strategy<Value = Vec<Change>> {
        let value = prop::option::weighted(0.6, prop::collection::vec(any::<u8>(), 0..40));
        prop::collection::vec(prop::collection::vec((0..6_u8, value), 1..4), 0..25)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]

        #[test]
        fn hash_kv_is_what_the_rules_say(
            changes in changes(),
            first in 0..30_i64,
            second in prop::option::of((0..30_i64, 0..30_usize)),
        ) {
            let mut file = Model::of(&changes);
            if first > 0 && first <= file.revision {
                file.compact(first);
            }
            // Rows in flight: a model of a server that stopped in between.
            if let Some((at, removed)) = second
                && at > file.compaction.revision() && at > 0 && at <= file.revision
            {
                file.begin_to_compact(at, removed);
            }
            let history = file.history().unwrap();
            let own = history.own();
            prop_assert_eq!(own, At { revision: file.revision, compact_revision: file.compaction.revision() });
            for revision in 0..=file.revision + 1 {
                for compact_revision in -1..=file.revision + 2 {
                    let at = At { revision, compact_revision };
                    let found = history.hash_kv(at);
                    if compact_revision > revision {
                        prop_assert!(matches!(found, Err(Incomparable::Reversed { .. })), "{:?}", found);
                    } else if compact_revision < own.compact_revision {
                        prop_assert!(matches!(found, Err(Incomparable::Compacted { .. })), "{:?}", found);
                    } else if revision > own.revision {
                        prop_assert!(matches!(found, Err(Incomparable::Future { .. })), "{:?}", found);
                    } else {
                        prop_assert_eq!(found, Ok(file.naive_compacted(at)), "{:?}", at);
                        if file.any_live(revision) {
                            prop_assert_eq!(found, Ok(file.naive(at)), "{:?}", at);
                        }
                    }
                }
            }
        }

        #[test]
        fn the_keyspace_is_the_models(changes in changes()) {
            let model = Model::of(&changes);
            let keyspace = model.keyspace().unwrap();
            let found: BTreeMap<Vec<u8>, (i64, i64)> =
                keyspace.live().map(|(key, live)| (key.to_vec(), (live.create_revision, live.version))).collect();
            prop_assert_eq!(found, model.live);
        }

        /// A row that is changed, lost or moved is damage or another hash, and never a panic.
        #[test]
        fn no_change_of_a_row_goes_unseen(changes in changes(), row in any::<prop::sample::Index>(), at in any::<prop::sample::Index>(), bits in 1..=255_u8, what in 0..4_u8) {
            let model = Model::of(&changes);
            prop_assume!(!model.rows.is_empty());
            let good = model.history().unwrap();
            let mut other = model.clone();
            let key = model.rows.keys().nth(row.index(model.rows.len())).unwrap().clone();
            let mut value = other.rows.remove(&key).unwrap();
            let mut new_key = key.clone();
            match what {
                0 => value = Vec::new(),
                1 => { let n = at.index(value.len()); value[n] ^= bits; }
                2 => { let n = at.index(key.len()); new_key[n] ^= bits; }
                _ => { let n = at.index(value.len()); value.truncate(n); }
            }
            other.rows.insert(new_key, value);
            if let Ok(history) = other.history() {
                let own = good.own();
                prop_assert_ne!(history.hash_kv(own), good.hash_kv(own));
            }
        }
    }
}
