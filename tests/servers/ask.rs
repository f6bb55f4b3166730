//! What a test asks one member, in a line.

use super::wait;
use etcd_client::{AlarmAction, AlarmType, Client};

/// What a member answers to `HashKV`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HashKv {
    pub hash: u32,
    /// The member's compact revision.
    pub compact_revision: i64,
    /// The member's revision when it answered.
    pub revision: i64,
}

/// The member's `HashKV` at a revision; 0 is its newest.
pub fn hash_kv(client: &Client, revision: i64) -> HashKv {
    let mut client = client.maintenance_client();
    let answer = wait(async move { client.hash_kv(revision).await }).expect("a HashKV");
    let now = answer.header().expect("a header").revision();
    HashKv { hash: answer.hash(), compact_revision: answer.compact_version(), revision: now }
}

/// The version of the member's etcd, as 3.6.16.
pub fn version(client: &Client) -> String {
    let mut client = client.clone();
    wait(async move { client.status().await }).expect("a status").version().to_owned()
}

/// The snapshot of a member whole, etcd's 32 bytes of SHA-256 at the end.
pub fn snapshot(client: &Client) -> Vec<u8> {
    let mut client = client.maintenance_client();
    wait(async move {
        let mut stream = client.snapshot().await.expect("a stream");
        let mut bytes = Vec::new();
        while let Some(message) = stream.message().await.expect("a message") {
            bytes.extend_from_slice(message.blob());
        }
        bytes
    })
}

/// The alarms that are raised, with the ids of their members.
pub fn alarms(client: &Client) -> Vec<(u64, AlarmType)> {
    let mut client = client.maintenance_client();
    let answer = wait(async move { client.alarm(AlarmAction::Get, AlarmType::None, None).await }).expect("alarms");
    answer.alarms().iter().map(|alarm| (alarm.member_id(), alarm.alarm())).collect()
}

/// The leases that live, in order, each with the seconds it has left.
pub fn leases(client: &Client) -> Vec<(i64, i64)> {
    let mut client = client.lease_client();
    wait(async move {
        let mut leases = Vec::new();
        for lease in client.leases().await.expect("leases").leases() {
            let left = client.time_to_live(lease.id(), None).await.expect("a time to live").ttl();
            leases.push((lease.id(), left));
        }
        leases.sort_unstable();
        leases
    })
}
