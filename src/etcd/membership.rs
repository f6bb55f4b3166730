//! Members as a restore writes them: ids, the initial cluster, and the JSON that etcd stores for each.
#![deny(clippy::arithmetic_side_effects)]

use std::{collections::BTreeMap, fmt::Write as _};

use sha1::{Digest as _, Sha1};
use url::{Host, Url};

/// A member of a cluster that does not exist yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Follows from the peer URLs and the cluster's token.
    pub id: u64,
    /// Its name, which must be the one of its `--name` flag.
    pub name: String,
    /// URLs for the other members, in the order of their text.
    pub peer_urls: Vec<String>,
}

/// Why a list of members makes no cluster.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// An entry is not `name=url`.
    #[error("`{0}` is no `name=url`")]
    Entry(String),
    /// Nobody is named.
    #[error("it names no member")]
    Empty,
    /// The URL cannot be a peer URL.
    #[error("peer URL `{url}` of {name}: {problem}")]
    Url {
        /// Whose.
        name: String,
        /// As it was given.
        url: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// Two members have one URL.
    #[error("peer URL {url} is both {one}'s and {other}'s")]
    SharedUrl {
        /// The URL.
        url: String,
        /// One member.
        one: String,
        /// The other.
        other: String,
    },
    /// Two members have one id, or one has none.
    #[error("the id of {name} is {id:x}, which is another member's or nobody's")]
    Id {
        /// The member.
        name: String,
        /// Its id.
        id: u64,
    },
}

/// Names and peer URLs of a cluster's members, in the order of their names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InitialCluster(BTreeMap<String, Vec<String>>);

impl InitialCluster {
    /// Reads `n1=url,n1=url2,n2=url`, as etcd's flag of that name has it.
    ///
    /// # Errors
    /// [`Error`].
    ///
    /// Format: etcd 3.6 `client/pkg/types/urlsmap.go`.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let mut members: Vec<(String, Vec<String>)> = Vec::new();
        for entry in text.split(',').map(str::trim).filter(|entry| !entry.is_empty()) {
            let (name, url) = entry.split_once('=').ok_or_else(|| Error::Entry(entry.to_owned()))?;
            if name.is_empty() || url.is_empty() {
                return Err(Error::Entry(entry.to_owned()));
            }
            members.push((name.to_owned(), vec![url.to_owned()]));
        }
        Self::new(members)
    }

    /// Checks names and peer URLs; entries of one name are one member.
    ///
    /// # Errors
    /// [`Error`].
    pub fn new(members: impl IntoIterator<Item = (String, Vec<String>)>) -> Result<Self, Error> {
        let mut map: BTreeMap<String, Vec<String>> = BTreeMap::new();
        let mut owner: BTreeMap<String, String> = BTreeMap::new();
        for (name, urls) in members {
            if name.is_empty() || urls.is_empty() {
                return Err(Error::Entry(format!("{name}={}", urls.join(","))));
            }
            for url in urls {
                let url = url.trim().to_owned();
                check_url(&url).map_err(|problem| Error::Url { name: name.clone(), url: url.clone(), problem })?;
                if let Some(one) = owner.insert(url.clone(), name.clone()) {
                    return Err(Error::SharedUrl { url, one, other: name });
                }
                map.entry(name.clone()).or_default().push(url);
            }
        }
        if map.is_empty() {
            return Err(Error::Empty);
        }
        for urls in map.values_mut() {
            urls.sort_unstable();
        }
        Ok(Self(map))
    }

    /// Whether a member of that name belongs to it.
    #[must_use]
    pub fn contains(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// Names and peer URLs, in the order of the names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[String])> {
        self.0.iter().map(|(name, urls)| (name.as_str(), urls.as_slice()))
    }

    /// The members under the ids that this token gives them, in the order of the ids.
    ///
    /// # Errors
    /// [`Error::Id`].
    pub fn members(&self, token: &str) -> Result<Vec<Member>, Error> {
        let member = |(name, urls): (&String, &Vec<String>)| Member {
            id: member_id(urls, token),
            name: name.clone(),
            peer_urls: urls.clone(),
        };
        let mut members: Vec<Member> = self.0.iter().map(member).collect();
        members.sort_by_key(|member| member.id);
        let mut before = 0;
        for member in &members {
            if member.id == before {
                return Err(Error::Id { name: member.name.clone(), id: member.id });
            }
            before = member.id;
        }
        Ok(members)
    }
}

/// What a peer URL must be: http or https with host and port and nothing behind, or a Unix socket.
fn check_url(text: &str) -> Result<(), &'static str> {
    let url = Url::parse(text).map_err(|_not_a_url| "it is no URL")?;
    match url.scheme() {
        "unix" | "unixs" => Ok(()),
        "http" | "https" => {
            if !matches!(url.host(), Some(Host::Domain(_) | Host::Ipv4(_) | Host::Ipv6(_))) {
                return Err("it has no host");
            }
            // The parser drops a scheme's own port, and with it the difference that etcd insists on.
            let authority = text.split_once("://").map_or("", |(_, rest)| rest.split('/').next().unwrap_or_default());
            let port = authority.rsplit_once(':').map_or("", |(_, port)| port);
            if port.is_empty() || !port.bytes().all(|byte| byte.is_ascii_digit()) {
                return Err("it has no port; etcd wants host:port");
            }
            // Go writes these otherwise than they were given, and ids are made of what it writes.
            let usual = |byte: u8| byte.is_ascii_alphanumeric() || b".-_:[]".contains(&byte);
            if !text.starts_with(url.scheme()) || !authority.bytes().all(usual) {
                return Err("a name or an address and a port are wanted, scheme in lower case");
            }
            let plain = url.path().trim_start_matches('/').is_empty() && !text.ends_with('/');
            if plain && url.query().is_none() && url.fragment().is_none() && url.username().is_empty() {
                Ok(())
            } else {
                Err("something stands behind host and port")
            }
        }
        _ => Err("its scheme is none of http, https, unix and unixs"),
    }
}

/// A member's id: the first eight bytes of the SHA-1 over its sorted peer URLs and the cluster token.
///
/// Format: etcd 3.6 `server/etcdserver/api/membership/member.go`, `computeMemberID`; members that are there at the first start have no time
/// in it.
#[must_use]
pub fn member_id(sorted_peer_urls: &[String], token: &str) -> u64 {
    let mut sha = Sha1::new();
    for url in sorted_peer_urls {
        sha.update(url.as_bytes());
    }
    sha.update(token.as_bytes());
    first_eight(&sha.finalize())
}

/// A cluster's id: the first eight bytes of the SHA-1 over its members' ids, ascending.
///
/// Format: etcd 3.6 `server/etcdserver/api/membership/cluster.go`, `genID`.
#[must_use]
pub fn cluster_id(ascending: impl IntoIterator<Item = u64>) -> u64 {
    let mut sha = Sha1::new();
    for id in ascending {
        sha.update(id.to_be_bytes());
    }
    first_eight(&sha.finalize())
}

fn first_eight(digest: &[u8]) -> u64 {
    digest.iter().take(8).fold(0, |value, byte| (value << 8) | u64::from(*byte))
}

impl Member {
    /// The JSON that etcd stores for a member, as Go writes it: fields in their order, empty ones left out.
    ///
    /// Format: etcd 3.6 `server/etcdserver/api/membership/member.go`, through `encoding/json`.
    #[must_use]
    pub fn to_json(&self) -> String {
        format!("{{\"id\":{},\"peerURLs\":{},\"name\":{}}}", self.id, json_list(&self.peer_urls), json_text(&self.name))
    }
}

/// The part of a member's JSON that the v2 store keeps under `raftAttributes`.
pub(super) fn raft_attributes(member: &Member) -> String {
    format!("{{\"peerURLs\":{}}}", json_list(&member.peer_urls))
}

fn json_list(texts: &[String]) -> String {
    let texts: Vec<String> = texts.iter().map(|text| json_text(text)).collect();
    format!("[{}]", texts.join(","))
}

/// A JSON string as Go's `encoding/json` writes it: `<`, `>`, `&` and the two separators of lines that JavaScript knows are escaped too.
pub(super) fn json_text(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' | '\u{0}'..='\u{1f}' => {
                // Writing to a string cannot fail.
                write!(out, "\\u{:04x}", u32::from(c)).unwrap_or_default();
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Three members of one machine, with the ids that etcd's own tools give them.
    pub(in crate::etcd) fn three() -> Vec<Member> {
        let cluster = "m1=http://127.0.0.1:21380,m2=http://127.0.0.1:22380,m3=http://127.0.0.1:23380";
        InitialCluster::parse(cluster).unwrap().members("tok").unwrap()
    }

    #[test]
    fn ids_are_those_of_etcds_own_tools() {
        let members = three();
        let ids: Vec<_> = members.iter().map(|member| (member.name.as_str(), member.id)).collect();
        assert_eq!(ids, [("m2", 0x117b_9266_988c_4966), ("m3", 0x599d_e777_4412_011f), ("m1", 0x95dc_b2c5_cb14_27d6)]);
        assert_eq!(cluster_id(members.iter().map(|member| member.id)), 0xec9d_d700_b095_9a79);
    }

    #[test]
    fn several_urls_of_a_member_are_sorted() {
        let cluster = InitialCluster::parse("a=https://10.0.0.9:2380, a=https://10.0.0.1:2380,b=unix://x").unwrap();
        let members = cluster.members("t").unwrap();
        let a = members.iter().find(|member| member.name == "a").unwrap();
        assert_eq!(a.peer_urls, ["https://10.0.0.1:2380", "https://10.0.0.9:2380"]);
        assert_eq!(a.id, member_id(&a.peer_urls, "t"));
        assert!(cluster.contains("b") && !cluster.contains("c"));
    }

    #[test]
    fn what_makes_no_cluster_is_refused() {
        for (text, part) in [
            ("", "names no member"),
            ("a", "no `name=url`"),
            ("=http://h:1", "no `name=url`"),
            ("a=http://h", "no port"),
            ("a=http://h:x", "no URL"),
            ("a=ftp://h:1", "scheme"),
            ("a=http://h:1/path", "behind host and port"),
            ("a=http://h:1/", "behind host and port"),
            ("a=h:2380", "scheme"),
            ("a=HTTP://h:1", "scheme in lower case"),
            ("a=http://h\u{e9}:1", "a name or an address"),
            ("a=http://h\t:1", "a name or an address"),
            ("a=http://:x@h:1", "a name or an address"),
            ("a=http://h:1,b=http://h:1", "both a's and b's"),
        ] {
            let error = InitialCluster::parse(text).unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
        InitialCluster::parse("a=http://[::1]:2380,b=https://h:443").unwrap();
    }

    #[test]
    fn json_is_escaped_as_go_does() {
        let member =
            Member { id: u64::MAX, name: "a<&>\"\\\n\u{1}\u{2028}é".into(), peer_urls: vec!["http://h:1".into()] };
        assert_eq!(
            member.to_json(),
            "{\"id\":18446744073709551615,\"peerURLs\":[\"http://h:1\"],\"name\":\"a\\u003c\\u0026\\u003e\\\"\\\\\\n\\u0001\\u2028é\"}"
        );
        assert_eq!(raft_attributes(&member), "{\"peerURLs\":[\"http://h:1\"]}");
    }
}
