//! What the live keys are, and how much they take.
#![deny(clippy::arithmetic_side_effects)]

use crate::etcd::mvcc::Keyspace;
use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
};

/// Live keys under a prefix.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// How many.
    pub keys: u64,
    /// Bytes of the keys and their values; older records are not counted.
    pub bytes: u64,
}

impl Usage {
    fn add(&mut self, bytes: u64) {
        self.keys = self.keys.saturating_add(1);
        self.bytes = self.bytes.saturating_add(bytes);
    }
}

/// A key with a large value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Large {
    /// The key.
    pub key: Vec<u8>,
    /// Bytes of its value.
    pub value_bytes: u32,
    /// Main revision of its newest record.
    pub mod_revision: i64,
    /// How often it was put since it lives.
    pub version: i64,
}

/// The prefix under which a key is counted: its first `depth` segments, but never its last one, which is its own name.
///
/// Segments lie between slashes; a slash at the very beginning separates nothing. At depth 2, `/registry/pods/default/web` and
/// `/registry/pods/x` are under `/registry/pods`, `/registry/health` is under `/registry`, `a/b` under `a`, `/a` under `/`, and a key without
/// a slash under the empty prefix.
#[must_use]
pub fn prefix(key: &[u8], depth: usize) -> &[u8] {
    let inner = key.iter().enumerate().skip(1).filter(|(_, byte)| **byte == b'/').map(|(at, _)| at);
    let end = inner.take(depth).last();
    let end = end.unwrap_or_else(|| usize::from(key.len() > 1 && key.first() == Some(&b'/')));
    key.get(..end).unwrap_or_default()
}

/// Keys and bytes, for each prefix and in all.
pub(super) fn by_prefix(keyspace: &Keyspace, depth: usize) -> (Usage, BTreeMap<Vec<u8>, Usage>) {
    let mut all = Usage::default();
    let mut prefixes: BTreeMap<Vec<u8>, Usage> = BTreeMap::new();
    for (key, live) in keyspace.live() {
        let bytes = u64::from(live.value_bytes).saturating_add(u64::try_from(key.len()).unwrap_or(u64::MAX));
        all.add(bytes);
        if depth == 0 {
            continue;
        }
        let prefix = prefix(key, depth);
        if let Some(usage) = prefixes.get_mut(prefix) {
            usage.add(bytes);
        } else {
            prefixes.insert(prefix.to_vec(), Usage { keys: 1, bytes });
        }
    }
    (all, prefixes)
}

/// So many of the keys with the largest values, the largest first; equal ones in the order of their keys.
pub(super) fn largest(keyspace: &Keyspace, many: usize) -> Vec<Large> {
    let mut smallest_first = BinaryHeap::new();
    for (key, live) in keyspace.live() {
        smallest_first.push((Reverse(live.value_bytes), key));
        if smallest_first.len() > many {
            smallest_first.pop();
        }
    }
    let large = |(Reverse(value_bytes), key): (Reverse<u32>, &[u8])| {
        let live = keyspace.get(key)?;
        let (mod_revision, version) = (keyspace.mod_revision(&live), live.version);
        Some(Large { key: key.to_vec(), value_bytes, mod_revision, version })
    };
    smallest_first.into_sorted_vec().into_iter().filter_map(large).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_segment_is_no_prefix() {
        for (key, depth, expected) in [
            ("/registry/pods/default/web", 2, "/registry/pods"),
            ("/registry/pods/default/web", 1, "/registry"),
            ("/registry/pods/default/web", 3, "/registry/pods/default"),
            ("/registry/pods/default/web", 9, "/registry/pods/default"),
            ("/registry/pods/x", 2, "/registry/pods"),
            ("/registry/health", 2, "/registry"),
            ("a/b", 2, "a"),
            ("/a", 2, "/"),
            ("/a/", 2, "/a"),
            ("a", 2, ""),
            ("compact_rev_key", 2, ""),
            ("/", 2, ""),
            ("", 2, ""),
            ("//x", 1, "/"),
        ] {
            assert_eq!(prefix(key.as_bytes(), depth), expected.as_bytes(), "{key} at {depth}");
        }
    }
}
