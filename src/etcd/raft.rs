//! The messages of raft that the log and the snap file hold. gogo writes every scalar of them, zero or not.
#![deny(clippy::arithmetic_side_effects)]

use super::{
    membership::Member,
    mvcc::{Malformed, proto::Fields},
};

/// Who votes.
///
/// Format: raft 3.6 `raftpb/raft.proto`, `ConfState`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ConfState {
    /// Ids of the members that vote, ascending.
    pub voters: Vec<u64>,
    /// Ids of the members that do not.
    pub learners: Vec<u64>,
}

impl ConfState {
    /// All of these vote.
    #[must_use]
    pub fn of(members: &[Member]) -> Self {
        Self { voters: members.iter().map(|member| member.id).collect(), learners: Vec::new() }
    }

    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for voter in &self.voters {
            put(&mut bytes, 1, *voter);
        }
        for learner in &self.learners {
            put(&mut bytes, 2, *learner);
        }
        put(&mut bytes, 5, 0);
        bytes
    }

    pub(super) fn parse(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut state = Self::default();
        for field in Fields::new(bytes) {
            let field = field?;
            match field.number {
                1 => state.voters.push(field.varint()?),
                2 => state.learners.push(field.varint()?),
                _ => {}
            }
        }
        Ok(state)
    }
}

/// What a member has promised, and up to where the log is agreed.
///
/// Format: raft 3.6 `raftpb/raft.proto`, `HardState`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HardState {
    /// The term that it knows of.
    pub term: u64,
    /// Whom it voted for in that term.
    pub vote: u64,
    /// Index of the last entry that is agreed.
    pub commit: u64,
}

impl HardState {
    pub(super) fn to_bytes(self) -> Vec<u8> {
        let mut bytes = Vec::new();
        put(&mut bytes, 1, self.term);
        put(&mut bytes, 2, self.vote);
        put(&mut bytes, 3, self.commit);
        bytes
    }

    pub(super) fn parse(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut state = Self::default();
        for field in Fields::new(bytes) {
            let field = field?;
            match field.number {
                1 => state.term = field.varint()?,
                2 => state.vote = field.varint()?,
                3 => state.commit = field.varint()?,
                _ => {}
            }
        }
        Ok(state)
    }
}

/// The entry of the log that adds a member: a configuration change whose context is the member's JSON.
///
/// Format: raft 3.6 `raftpb/raft.proto`, `Entry` and `ConfChange`; etcd 3.6 `etcdutl/snapshot/v3_snapshot.go`.
pub(super) fn entry_that_adds(member: &Member, index: u64) -> Vec<u8> {
    const CONF_CHANGE: u64 = 1;
    const ADD_NODE: u64 = 0;
    let mut change = Vec::new();
    put(&mut change, 1, 0);
    put(&mut change, 2, ADD_NODE);
    put(&mut change, 3, member.id);
    put_message(&mut change, 4, member.to_json().as_bytes());
    let mut entry = Vec::new();
    put(&mut entry, 1, CONF_CHANGE);
    put(&mut entry, 2, 1);
    put(&mut entry, 3, index);
    put_message(&mut entry, 4, &change);
    entry
}

/// Appends a scalar, zero or not.
pub(super) fn put(bytes: &mut Vec<u8>, field: u8, value: u64) {
    bytes.push(field << 3);
    put_varint(bytes, value);
}

/// Appends bytes with their length.
pub(super) fn put_message(bytes: &mut Vec<u8>, field: u8, message: &[u8]) {
    bytes.push((field << 3) | 2);
    put_varint(bytes, message.len() as u64);
    bytes.extend_from_slice(message);
}

fn put_varint(bytes: &mut Vec<u8>, mut value: u64) {
    loop {
        let [low, ..] = value.to_le_bytes();
        value >>= 7;
        if value == 0 {
            bytes.push(low & 0x7f);
            return;
        }
        bytes.push(low | 0x80);
    }
}
