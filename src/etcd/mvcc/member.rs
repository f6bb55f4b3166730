//! Rows of buckets `members` and `members_removed`.
#![deny(clippy::arithmetic_side_effects)]

use super::{Damage, Shown};
use serde::Deserialize;

/// A member, as its row says.
///
/// Format: JSON of `membership.Member` of etcd 3.6 `server/etcdserver/api/membership/member.go`; Go writes an empty list as `null` or leaves
/// it out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct MemberRow {
    /// Its id.
    pub id: u64,
    /// Its name; empty before its first start.
    #[serde(default)]
    pub name: String,
    /// Where other members reach it.
    #[serde(rename = "peerURLs", default, deserialize_with = "list")]
    pub peer_urls: Vec<String>,
    /// Where clients reach it; empty before its first start.
    #[serde(rename = "clientURLs", default, deserialize_with = "list")]
    pub client_urls: Vec<String>,
    /// It has no vote.
    #[serde(rename = "isLearner", default)]
    pub learner: bool,
}

fn list<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Vec<String>, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

impl MemberRow {
    /// Reads a row of bucket `members`: under the id, the member.
    ///
    /// # Errors
    /// [`Damage::Form`] if the key is no id, the value no member, or the member another.
    pub fn parse(key: &[u8], value: &[u8]) -> Result<Self, Damage> {
        let id = member_id(key)?;
        let member: Option<Self> = serde_json::from_slice(value).ok();
        let member = member.ok_or_else(|| Damage::form("a member", "the JSON of one", value))?;
        if member.id == id { Ok(member) } else { Err(Damage::form("the key of this member", "its id", key)) }
    }
}

/// The key of a row of buckets `members` and `members_removed`: the id in hexadecimal digits, lower-case and not padded.
///
/// # Errors
/// [`Damage::Form`].
pub fn member_id(key: &[u8]) -> Result<u64, Damage> {
    let id = std::str::from_utf8(key).ok().and_then(|text| u64::from_str_radix(text, 16).ok());
    let id = id.filter(|id| format!("{id:x}").as_bytes() == key);
    id.ok_or_else(|| Damage::Form { what: "a member's key", expected: "its id in hexadecimal", found: Shown::new(key) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_of_a_server() {
        let json = br#"{"id":10802055116867837910,"peerURLs":["http://127.0.0.1:21380"],"name":"m1","clientURLs":["http://a","http://b"]}"#;
        let member = MemberRow::parse(b"95e89be5a5191fd6", json).unwrap();
        assert_eq!((member.name.as_str(), member.learner, member.client_urls.len()), ("m1", false, 2));
        let learner = MemberRow::parse(b"5", br#"{"id":5,"peerURLs":null,"isLearner":true,"later":1}"#).unwrap();
        assert!(learner.learner && learner.peer_urls.is_empty());
    }

    #[test]
    fn what_is_no_member_is_refused() {
        for (key, value) in [
            ("6", r#"{"id":5}"#),
            ("05", r#"{"id":5}"#),
            ("A", r#"{"id":10}"#),
            ("5", "{}"),
            ("5", "removed"),
            ("", "{}"),
        ] {
            assert!(
                matches!(MemberRow::parse(key.as_bytes(), value.as_bytes()), Err(Damage::Form { .. })),
                "{key} {value}"
            );
        }
    }
}
