//! The snap file: what raft knew when its log was cut, and for etcd before 3.6 the members too.
//!
//! ```text
//! snappb.Snapshot   { 1 crc: CRC-32C of data, 2 data }
//! raftpb.Snapshot   { 1 data: JSON of the v2 store, 2 metadata { 1 conf_state, 2 index, 3 term } }
//! ```
//!
//! Format: etcd 3.6 `server/etcdserver/api/snap/snapshotter.go`, `server/etcdserver/api/v2store/store.go`; confirmed on files that
//! `etcdctl` 3.4 and `etcdutl` 3.5 wrote.
#![deny(clippy::arithmetic_side_effects)]

use std::fmt::Write as _;

use super::{
    membership::{Member, json_text, raft_attributes},
    mvcc::{Malformed, proto::Fields},
    raft::{self, ConfState},
};

/// Events that the v2 store has room for.
const EVENTS: usize = 1000;
/// Go's zero time, which means that a node does not expire.
const NEVER: &str = "0001-01-01T00:00:00Z";

/// The name of a restored member's snap file: term 1, and the index of the last entry of its log.
#[must_use]
pub fn file_name(members: usize) -> String {
    format!("{:016x}-{members:016x}.snap", 1)
}

/// The snap file that all restored members have in common. `members` are in the order of their ids.
#[must_use]
pub fn of_restored_members(members: &[Member]) -> Vec<u8> {
    let mut metadata = Vec::new();
    raft::put_message(&mut metadata, 1, &ConfState::of(members).to_bytes());
    raft::put(&mut metadata, 2, members.len() as u64);
    raft::put(&mut metadata, 3, 1);
    let mut snapshot = Vec::new();
    raft::put_message(&mut snapshot, 1, v2_store(members).as_bytes());
    raft::put_message(&mut snapshot, 2, &metadata);
    let mut file = Vec::new();
    raft::put(&mut file, 1, u64::from(crc32c::crc32c(&snapshot)));
    raft::put_message(&mut file, 2, &snapshot);
    file
}

/// The v2 store after `members` were added to an empty one, byte for byte as Go writes it.
fn v2_store(members: &[Member]) -> String {
    // Go writes maps in the order of their keys' text; ids have no leading zeros, so that is not the order of numbers.
    let mut named: Vec<(String, &Member, usize)> =
        members.iter().zip(1..).map(|(member, index)| (format!("{:x}", member.id), member, index)).collect();
    let events: Vec<String> = named.iter().map(|(id, member, index)| event(id, member, *index)).collect();
    let missing = EVENTS.saturating_sub(events.len());
    let events: Vec<String> = events.into_iter().chain(std::iter::repeat_n("null".to_owned(), missing)).collect();
    named.sort_by(|a, b| a.0.cmp(&b.0));
    let mut children = String::new();
    for (id, member, index) in named {
        let path = format!("/0/members/{id}");
        let attributes = format!("{path}/raftAttributes");
        let file = node(&attributes, index, &raft_attributes(member), None);
        let comma = if children.is_empty() { "" } else { "," };
        let dir = node(&path, index, "", Some(&format!("\"raftAttributes\":{file}")));
        // Writing to a string cannot fail.
        write!(children, "{comma}\"{id}\":{dir}").unwrap_or_default();
    }
    let members_dir = node("/0/members", 1, "", Some(&children));
    let zero = node("/0", 0, "", Some(&format!("\"members\":{members_dir}")));
    let one = node("/1", 0, "", Some(""));
    let root = node("/", 0, "", Some(&format!("\"0\":{zero},\"1\":{one}")));
    let count = members.len();
    let stats = [
        "getsSuccess",
        "getsFail",
        "setsSuccess",
        "setsFail",
        "deleteSuccess",
        "deleteFail",
        "updateSuccess",
        "updateFail",
        "createSuccess",
        "createFail",
        "compareAndSwapSuccess",
        "compareAndSwapFail",
        "compareAndDeleteSuccess",
        "compareAndDeleteFail",
        "expireCount",
        "watchers",
    ];
    let stats = stats.map(|name| format!("\"{name}\":{}", if name == "createSuccess" { count } else { 0 }));
    format!(
        "{{\"Root\":{root},\"WatcherHub\":{{\"EventHistory\":{{\"Queue\":{{\"Events\":[{}],\"Size\":{count},\"Front\":0,\"Back\":{count},\
         \"Capacity\":{EVENTS}}},\"StartIndex\":1,\"LastIndex\":{count}}}}},\"CurrentIndex\":{count},\"Stats\":{{{}}},\"CurrentVersion\":2}}",
        events.join(","),
        stats.join(",")
    )
}

/// A node of the store; a directory has children, a file has none.
fn node(path: &str, index: usize, value: &str, children: Option<&str>) -> String {
    let children = children.map_or_else(|| "null".to_owned(), |children| format!("{{{children}}}"));
    format!(
        "{{\"Path\":{},\"CreatedIndex\":{index},\"ModifiedIndex\":{index},\"ExpireTime\":\"{NEVER}\",\"Value\":{},\"Children\":{children}}}",
        json_text(path),
        json_text(value)
    )
}

fn event(id: &str, member: &Member, index: usize) -> String {
    format!(
        "{{\"action\":\"create\",\"node\":{{\"key\":{},\"value\":{},\"modifiedIndex\":{index},\"createdIndex\":{index}}}}}",
        json_text(&format!("/0/members/{id}/raftAttributes")),
        json_text(&raft_attributes(member))
    )
}

/// What a snap file says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snap {
    /// Index of the last entry that it covers.
    pub index: u64,
    /// That entry's term.
    pub term: u64,
    /// Who voted then.
    pub conf_state: ConfState,
    /// JSON of the v2 store.
    pub store: Vec<u8>,
}

/// Why a file is no snap file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// It is no message of the kind.
    #[error("it is no snap file: {0}")]
    Malformed(#[from] Malformed),
    /// There is nothing in it; etcd takes such a file for broken.
    #[error("the snap file is empty")]
    Empty,
    /// The data are not what was written.
    #[error("the CRC of the snap file's data is {found:08x}, {written:08x} was written")]
    Crc {
        /// Computed.
        found: u32,
        /// In the file.
        written: u32,
    },
}

/// Reads a snap file.
///
/// # Errors
/// [`Error`].
pub fn parse(bytes: &[u8]) -> Result<Snap, Error> {
    let (mut written, mut data) = (0, &[][..]);
    for field in Fields::new(bytes) {
        let field = field?;
        match field.number {
            1 => written = field.varint()?,
            2 => data = field.bytes()?,
            _ => {}
        }
    }
    if written == 0 || data.is_empty() {
        return Err(Error::Empty);
    }
    let found = crc32c::crc32c(data);
    let written = u32::try_from(written).unwrap_or(!found);
    if found != written {
        return Err(Error::Crc { found, written });
    }
    let mut snap = Snap { index: 0, term: 0, conf_state: ConfState::default(), store: Vec::new() };
    for field in Fields::new(data) {
        let field = field?;
        match field.number {
            1 => snap.store = field.bytes()?.to_vec(),
            2 => {
                for field in Fields::new(field.bytes()?) {
                    let field = field?;
                    match field.number {
                        1 => snap.conf_state = ConfState::parse(field.bytes()?)?,
                        2 => snap.index = field.varint()?,
                        3 => snap.term = field.varint()?,
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    Ok(snap)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use sha2::{Digest as _, Sha256};

    use super::*;
    use crate::etcd::membership::tests::three;

    #[test]
    fn it_is_byte_for_byte_the_official_tools() {
        let file = of_restored_members(&three());
        let sha = Sha256::digest(&file).iter().fold(String::new(), |hex, byte| format!("{hex}{byte:02x}"));
        assert_eq!(
            (file.len(), sha.as_str()),
            (7570, "d6f4b30141822e6d6991a329a6c82800d566ad7e923d9fbfbbe7da038bd3eaab")
        );
        assert_eq!(file_name(3), "0000000000000001-0000000000000003.snap");
    }

    #[test]
    fn it_reads_back_and_a_changed_byte_is_seen() {
        let file = of_restored_members(&three());
        let snap = parse(&file).unwrap();
        assert_eq!((snap.index, snap.term, snap.conf_state), (3, 1, ConfState::of(&three())));
        let store: serde_json::Value = serde_json::from_slice(&snap.store).unwrap();
        assert_eq!(store["Root"]["Children"]["0"]["Children"]["members"]["Children"].as_object().unwrap().len(), 3);
        let mut bad = file;
        bad[3000] ^= 1;
        assert!(matches!(parse(&bad), Err(Error::Crc { .. })));
        assert_eq!(parse(&[]), Err(Error::Empty));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), place in 0_usize..7570, value in any::<u8>()) {
            drop(parse(&bytes));
            let mut file = of_restored_members(&three());
            file[place] = value;
            drop(parse(&file));
        }
    }
}
