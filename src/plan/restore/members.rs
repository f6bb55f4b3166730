//! The cluster to be restored: its members and their ids, and which of them a run writes.

use std::{collections::BTreeMap, path::Path};

use sha1::{Digest as _, Sha1};

use super::{Asked, Choice, Here, PlanFault, Planned, Recorded, Refusal, RestorePlan, SourceFacts};
use crate::record::EtcdId;

/// Members with their ids, in the order of their names.
pub(super) struct Cluster {
    pub id: EtcdId,
    pub members: Vec<Planned>,
}

/// The members of `--initial-cluster`, else the voting members that the source records.
pub(super) fn cluster(
    asked: &Asked,
    source: &SourceFacts,
    token: &str,
    warnings: &mut Vec<String>,
) -> Result<Cluster, Refusal> {
    let named = match &asked.initial_cluster {
        Some(text) => parse(text)?,
        None => recorded(source, warnings)?,
    };
    let members = checked(named, token)?;
    if members.len() > 1 {
        let local = members.iter().filter(|member| member.peer_urls.iter().any(|url| is_loopback(host(url))));
        let local: Vec<&str> = local.map(|member| member.name.as_str()).collect();
        if !local.is_empty() {
            let local = local.join(", ");
            warnings
                .push(format!("the peer URL of {local} is a loopback address: members on other hosts cannot reach it"));
        }
    }
    let id = cluster_id(&members);
    Ok(Cluster { id, members })
}

fn recorded(source: &SourceFacts, warnings: &mut Vec<String>) -> Result<Vec<(String, Vec<String>)>, Refusal> {
    let restored = |member: &&Recorded| !member.learner && !member.name.is_empty();
    let left: Vec<String> = source.members.iter().filter(|member| !restored(member)).map(left_out).collect();
    if !left.is_empty() {
        warnings.push(format!("not restored: {}", left.join(", ")));
    }
    let members: Vec<_> =
        source.members.iter().filter(restored).map(|member| (member.name.clone(), member.peer_urls.clone())).collect();
    if members.is_empty() { Err(Refusal::NoMembers { file: source.file.clone() }) } else { Ok(members) }
}

fn left_out(member: &Recorded) -> String {
    match (member.learner, member.name.as_str()) {
        (true, "") => format!("a learner at {}", member.peer_urls.join(" ")),
        (true, name) => format!("{name}, a learner"),
        (false, _) => format!("a member that never started, at {}", member.peer_urls.join(" ")),
    }
}

/// Reads `n1=url,n1=url,n2=url`; the URLs of one name are one member's.
fn parse(text: &str) -> Result<Vec<(String, Vec<String>)>, Refusal> {
    let mut members = BTreeMap::<String, Vec<String>>::new();
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let pair = part.split_once('=').filter(|(name, url)| !name.trim().is_empty() && !url.trim().is_empty());
        let (name, url) = pair.ok_or_else(|| Refusal::NotAPair { part: part.to_owned() })?;
        members.entry(name.trim().to_owned()).or_default().push(url.trim().to_owned());
    }
    if members.is_empty() {
        Err(Refusal::NotAPair { part: text.to_owned() })
    } else {
        Ok(members.into_iter().collect())
    }
}

/// Names, URLs and ids as etcd demands them at its start; what it would die of is refused here.
fn checked(named: Vec<(String, Vec<String>)>, token: &str) -> Result<Vec<Planned>, Refusal> {
    let mut members = Vec::<Planned>::new();
    let mut owners = BTreeMap::<String, String>::new();
    for (name, mut urls) in named {
        if members.iter().any(|member| member.name == name) {
            return Err(Refusal::DuplicateName { name });
        }
        if urls.is_empty() {
            return Err(Refusal::NoUrl { member: name });
        }
        for url in &urls {
            check_url(url).map_err(|problem| Refusal::BadUrl { member: name.clone(), url: url.clone(), problem })?;
            if let Some(other) = owners.insert(url.clone(), name.clone()) {
                return Err(Refusal::DuplicateUrl { url: url.clone(), one: other, other: name });
            }
        }
        urls.sort();
        let id = member_id(&urls, token);
        if let Some(other) = members.iter().find(|member| member.id == id || id.0 == 0) {
            return Err(Refusal::DuplicateId { one: other.name.clone(), other: name, id });
        }
        members.push(Planned { name, id, peer_urls: urls, data_dir: "".into(), wal_dir: None, write: false });
    }
    members.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(members)
}

/// As etcd's `types.NewURLs` judges a peer URL (etcd 3.6 `client/pkg/types/urls.go`).
fn check_url(url: &str) -> Result<(), &'static str> {
    let (scheme, rest) = url.split_once("://").ok_or("it has no scheme, as in https://192.0.2.11:2380")?;
    match scheme {
        "unix" | "unixs" => return Ok(()),
        "http" | "https" => {}
        _ => return Err("its scheme is none of http, https, unix, unixs"),
    }
    if rest.contains(['/', '?', '#', '@', ' ']) || rest.chars().any(char::is_control) {
        return Err("it takes an address and a port and nothing behind them");
    }
    let (address, port) = rest.rsplit_once(':').ok_or("it has no port")?;
    let bracketed = address.starts_with('[') && address.ends_with(']');
    if address.is_empty() || (address.contains(':') && !bracketed) {
        return Err("it has no address before the port; IPv6 is written in brackets");
    }
    match port.parse::<u16>() {
        Ok(0) | Err(_) => Err("its port is none"),
        Ok(_) => Ok(()),
    }
}

fn host(url: &str) -> &str {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    rest.rsplit_once(':').map_or(rest, |(host, _)| host)
}

fn is_loopback(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    bare == "localhost" || bare.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn first_eight(digest: impl IntoIterator<Item = u8>) -> EtcdId {
    EtcdId(digest.into_iter().take(8).fold(0, |id, byte| (id << 8) | u64::from(byte)))
}

fn member_id(sorted_urls: &[String], token: &str) -> EtcdId {
    let mut sha = Sha1::new();
    for url in sorted_urls {
        sha.update(url.as_bytes());
    }
    sha.update(token.as_bytes());
    first_eight(sha.finalize())
}

fn cluster_id(members: &[Planned]) -> EtcdId {
    let mut ids: Vec<u64> = members.iter().map(|member| member.id.0).collect();
    ids.sort_unstable();
    let mut sha = Sha1::new();
    for id in ids {
        sha.update(id.to_be_bytes());
    }
    first_eight(sha.finalize())
}

/// Compares a plan with itself: its names, URLs and token must make the ids that it says.
pub(super) fn check_plan(plan: &RestorePlan) -> Result<(), Refusal> {
    let named = plan.members.iter().map(|member| (member.name.clone(), member.peer_urls.clone())).collect();
    let members = checked(named, &plan.token)?;
    if members.is_empty() {
        return Err(Refusal::Plan(PlanFault::Json("it has no members".to_owned())));
    }
    for member in &members {
        let planned = plan.members.iter().find(|planned| planned.name == member.name).map_or(member.id, |p| p.id);
        if planned != member.id {
            let what = format!("member {}", member.name);
            return Err(Refusal::Plan(PlanFault::Id { what, planned, found: member.id }));
        }
    }
    let found = cluster_id(&members);
    if found != plan.cluster_id {
        let what = "the cluster".to_owned();
        return Err(Refusal::Plan(PlanFault::Id { what, planned: plan.cluster_id, found }));
    }
    Ok(())
}

/// Marks the members that this run writes, and where.
pub(super) fn choose(members: &mut [Planned], asked: &Asked, here: &Here) -> Result<(), Refusal> {
    let chosen = chosen(members, asked, here)?;
    for member in members.iter_mut() {
        member.write = asked.output_dir.is_some() || chosen.as_ref() == Some(&member.name);
        if let Some(dir) = &asked.output_dir {
            member.data_dir = dir.join(dir_name(&member.name, member.id));
            member.wal_dir = None;
        } else if asked.data_dir.is_some() || member.data_dir.as_os_str().is_empty() {
            let beside = || Path::new(".").join(format!("{}.etcd", dir_name(&member.name, member.id)));
            member.data_dir = asked.data_dir.clone().unwrap_or_else(beside);
        }
        if asked.wal_dir.is_some() && asked.output_dir.is_none() {
            member.wal_dir.clone_from(&asked.wal_dir);
        }
    }
    let urls = asked.advertise.as_deref().map(|text| {
        let mut urls: Vec<String> = text.split(',').map(|url| url.trim().to_owned()).collect();
        urls.sort();
        urls
    });
    match (urls, members.iter().find(|member| member.write)) {
        (Some(asked), Some(member)) if asked != member.peer_urls => {
            Err(Refusal::Advertise { member: member.name.clone(), planned: member.peer_urls.clone(), asked })
        }
        _ => Ok(()),
    }
}

/// The one member that is meant; none where all are, or where a dry run need not know.
fn chosen(members: &[Planned], asked: &Asked, here: &Here) -> Result<Option<String>, Refusal> {
    if asked.output_dir.is_some() {
        return Ok(None);
    }
    let choices = |members: &[&Planned]| -> Vec<Choice> {
        let choice = |member: &&Planned| Choice { name: member.name.clone(), peer_urls: member.peer_urls.clone() };
        members.iter().map(choice).collect()
    };
    let all: Vec<&Planned> = members.iter().collect();
    if let Some(name) = &asked.member {
        let found = members.iter().any(|member| member.name == *name);
        return match (found, &asked.initial_cluster) {
            (true, _) => Ok(Some(name.clone())),
            (false, Some(_)) => Err(Refusal::NotInInitialCluster { name: name.clone(), choices: choices(&all) }),
            (false, None) => Err(Refusal::UnknownMember { name: name.clone(), choices: choices(&all) }),
        };
    }
    let local: Vec<&Planned> =
        members.iter().filter(|member| member.peer_urls.iter().any(|url| here.is(host(url)))).collect();
    match local.as_slice() {
        [member] => Ok(Some(member.name.clone())),
        _ if asked.dry_run => Ok(None),
        [] => Err(Refusal::NotHere { choices: choices(&all) }),
        several => Err(Refusal::SeveralHere { choices: choices(several) }),
    }
}

/// A member's name where it can be a directory's, else its id.
fn dir_name(name: &str, id: EtcdId) -> String {
    let plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'));
    if plain && !name.is_empty() && name.len() <= 200 && name != "." && name != ".." {
        name.to_owned()
    } else {
        id.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_those_of_etcds_own_tools() {
        let text = "m1=http://127.0.0.1:21380,m2=http://127.0.0.1:22380,m3=http://127.0.0.1:23380";
        let members = checked(parse(text).unwrap(), "tok").unwrap();
        let ids: Vec<String> = members.iter().map(|member| member.id.to_string()).collect();
        assert_eq!(ids, ["95dcb2c5cb1427d6", "117b9266988c4966", "599de7774412011f"]);
        assert_eq!(cluster_id(&members).to_string(), "ec9dd700b0959a79");
    }

    #[test]
    fn names_that_are_no_file_names_become_ids() {
        let id = EtcdId(0xab);
        for (name, dir) in
            [("cp1", "cp1"), ("a/b", "ab"), ("..", "ab"), ("", "ab"), ("k8s-1.example_x", "k8s-1.example_x")]
        {
            assert_eq!(dir_name(name, id), dir);
        }
    }
}
