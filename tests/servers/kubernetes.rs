//! A fill as large as a Kubernetes cluster of some size makes it, and the same on every run.
//!
//! One writer, so that not only keys and values are settled by the seed but revisions too, and with them `HashKV`. The objects are made
//! beside it, which is what would take the time.

use super::fill::{Filled, Noise, json, prose, stored};
use etcd_client::{Client, CompactionOptions, LeaseGrantOptions, PutOptions, ResponseHeader, Txn, TxnOp};

/// What [`super::fill::kubernetes`] writes.
#[derive(Clone, Copy, Debug)]
pub struct Kubernetes {
    /// Objects that are created; [`Self::live`] says how many stay.
    pub keys: usize,
    /// Another seed, other values.
    pub seed: u64,
    /// What is compacted at the end.
    pub compaction: Compaction,
}

/// A compaction of the history below the first round of updates: so there is history above it too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compaction {
    No,
    /// The rows are gone when the fill ends.
    Done,
    /// It was answered, and the rows go while the test goes on.
    Begun,
}

/// Operations in a transaction: as many as etcd takes. At 3 KB each that is far below its 1.5 MiB.
const TOGETHER: usize = 128;
/// Of so many objects one is big: 20 of 100,000.
const BIG_IN: usize = 5_000;
/// The apiserver puts this many events on one lease.
const EVENTS_A_LEASE: usize = 1_000;
/// Ids of the leases, which etcd would draw at random.
const FIRST_LEASE: i64 = 0x5eed_0001;

/// Resource, group and version, kind, and what part of 100 it has of the objects.
const KINDS: [(&str, &str, &str, usize); 8] = [
    ("events", "v1", "Event", 20),
    ("pods", "v1", "Pod", 35),
    ("configmaps", "v1", "ConfigMap", 12),
    ("secrets", "v1", "Secret", 10),
    ("replicasets", "apps/v1", "ReplicaSet", 10),
    ("endpointslices", "discovery.k8s.io/v1", "EndpointSlice", 6),
    ("leases", "coordination.k8s.io/v1", "Lease", 3),
    ("cert-manager.io/certificates", "cert-manager.io/v1", "Certificate", 4),
];

impl Kubernetes {
    /// So many objects, and the history below the first updates compacted.
    pub const fn of(keys: usize) -> Self {
        Self { keys, seed: 1, compaction: Compaction::Done }
    }

    /// How many keys live in the end.
    pub fn live(&self) -> usize {
        (0..self.keys).filter(|&i| !deleted(i) || created_again(i)).count()
    }

    fn key(self, i: usize) -> String {
        let (resource, ..) = kind(i);
        format!("/registry/{resource}/{}/{}", namespace(i), self.name(i))
    }

    fn name(self, i: usize) -> String {
        format!("app-{:03}-{}-{i:07}", i % 211, self.noise(i, 0).hex(4))
    }

    /// Objects have 0.5 to 3 KB; a big one, a `ConfigMap` or Secret, 1 to 1.5 MB.
    fn value(self, i: usize, version: usize) -> Vec<u8> {
        let mut noise = self.noise(i, version);
        let (_, api_version, kind, _) = kind(i);
        let bytes = match kind {
            _ if big(i) => 1_000_000 + noise.below(499_000),
            "Event" => 350 + noise.below(400),
            _ => 350 + noise.below(2_300),
        };
        let text = prose(&mut noise, bytes);
        if kind == "Certificate" {
            // A custom resource.
            let value = json(api_version, kind, &namespace(i), &self.name(i));
            let mut value: serde_json::Value = serde_json::from_slice(&value).expect("made as JSON");
            value["status"] = String::from_utf8(text).expect("words").into();
            return value.to_string().into_bytes();
        }
        stored(api_version, kind, &namespace(i), &self.name(i), &text)
    }

    fn noise(self, i: usize, version: usize) -> Noise {
        Noise::new(self.seed << 40 ^ (version as u64) << 32 ^ i as u64)
    }

    fn put(self, i: usize, version: usize) -> TxnOp {
        let lease = (kind(i).2 == "Event").then(|| PutOptions::new().with_lease(lease(i)));
        TxnOp::put(self.key(i), self.value(i, version), lease)
    }

    /// Transactions in the order of their revisions; `None` stands where the compaction will cut.
    fn transactions(self) -> impl Iterator<Item = Option<Vec<TxnOp>>> {
        let puts = move |version: usize, wanted: fn(usize, usize) -> bool| {
            let chosen: Vec<usize> = (0..self.keys).filter(|&i| wanted(i, version)).collect();
            batches(&chosen).into_iter().map(move |some| Some(some.iter().map(|&i| self.put(i, version)).collect()))
        };
        let gone: Vec<usize> = (0..self.keys).filter(|&i| deleted(i)).collect();
        let deletes = batches(&gone)
            .into_iter()
            .map(move |some| Some(some.iter().map(|&i| TxnOp::delete(self.key(i), None)).collect()));
        puts(0, |_, _| true)
            .chain(puts(1, updated))
            .chain(std::iter::once(None))
            .chain(puts(2, updated))
            .chain(puts(3, updated))
            .chain(deletes)
            .chain(puts(4, |i, _| created_again(i)))
    }
}

fn kind(i: usize) -> (&'static str, &'static str, &'static str, usize) {
    // Spread, so that the kinds are not in a row as the numbers are.
    let mut at = i * 37 % 100;
    if big(i) {
        return KINDS[2 + i / BIG_IN % 2];
    }
    KINDS.into_iter().find(|(.., part)| at.checked_sub(*part).map(|rest| at = rest).is_none()).expect("100 in all")
}

fn namespace(i: usize) -> String {
    format!("team-{:02}", i * 7 % 40)
}

fn big(i: usize) -> bool {
    i % BIG_IN == 17
}

/// A fifth of the objects is updated, some once, some up to three times; a big one is not.
fn updated(i: usize, version: usize) -> bool {
    i.is_multiple_of(5) && version <= 1 + i / 5 % 3
}

fn deleted(i: usize) -> bool {
    i % 23 == 7 && !big(i)
}

fn created_again(i: usize) -> bool {
    i % 230 == 7 && !big(i)
}

fn lease(i: usize) -> i64 {
    // A fifth of all objects are events.
    FIRST_LEASE + i64::try_from(i / (5 * EVENTS_A_LEASE)).expect("a number of leases")
}

/// Runs of [`TOGETHER`]; a big object is alone.
fn batches(chosen: &[usize]) -> Vec<Vec<usize>> {
    let mut all: Vec<Vec<usize>> = Vec::new();
    for &i in chosen {
        match all.last_mut() {
            Some(last) if last.len() < TOGETHER && !big(i) && !big(last[0]) => last.push(i),
            _ => all.push(vec![i]),
        }
    }
    all
}

pub(super) async fn write(mut client: Client, profile: Kubernetes) -> Filled {
    let last = lease(profile.keys.saturating_sub(1));
    for id in FIRST_LEASE..=last {
        // The apiserver keeps events for an hour.
        client.lease_grant(3600, Some(LeaseGrantOptions::new().with_id(id))).await.expect("a lease");
    }
    let (tx, mut made) = tokio::sync::mpsc::channel(8);
    let maker = std::thread::spawn(move || {
        for transaction in profile.transactions() {
            tx.blocking_send(transaction).expect("a writer");
        }
    });
    let (mut revision, mut cut) = (0, 0);
    while let Some(transaction) = made.recv().await {
        let Some(operations) = transaction else {
            cut = revision;
            continue;
        };
        let answer = client.txn(Txn::new().and_then(operations)).await.expect("a transaction");
        revision = answer.header().map_or(0, ResponseHeader::revision);
    }
    maker.join().expect("it sent all");
    let options = match profile.compaction {
        Compaction::No => return Filled { revision, compacted: 0 },
        Compaction::Done => Some(CompactionOptions::new().with_physical()),
        Compaction::Begun => None,
    };
    client.compact(cut, options).await.expect("a compaction");
    Filled { revision, compacted: cut }
}
