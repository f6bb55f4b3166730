//! The cluster to be restored: its members and their ids, and which of them a run writes.

use std::{collections::BTreeSet, path::Path};

use super::{Asked, Choice, Here, PlanFault, Planned, Recorded, Refusal, RestorePlan, SourceFacts};
use crate::{
    etcd::membership::{self, InitialCluster, Member},
    record::EtcdId,
};

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
        Some(text) => InitialCluster::parse(text)?,
        None => checked(recorded(source, warnings)?)?,
    };
    let members = with_ids(&named, token)?;
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

/// The members with their ids.
fn with_ids(named: &InitialCluster, token: &str) -> Result<Vec<Planned>, Refusal> {
    let mut members: Vec<Planned> = named.members(token)?.into_iter().map(planned).collect();
    members.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(members)
}

fn planned(member: Member) -> Planned {
    let Member { id, name, peer_urls } = member;
    Planned { name, id: EtcdId(id), peer_urls, data_dir: "".into(), wal_dir: None, write: false }
}

/// Names are told apart first: [`InitialCluster`] takes entries of one name for one member, as etcd's flag does.
fn checked(named: Vec<(String, Vec<String>)>) -> Result<InitialCluster, Refusal> {
    let mut seen = BTreeSet::new();
    if let Some((name, _)) = named.iter().find(|(name, _)| !seen.insert(name)) {
        return Err(Refusal::DuplicateName { name: name.clone() });
    }
    Ok(InitialCluster::new(named)?)
}

fn host(url: &str) -> &str {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    rest.rsplit_once(':').map_or(rest, |(host, _)| host)
}

fn is_loopback(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    bare == "localhost" || bare.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn cluster_id(members: &[Planned]) -> EtcdId {
    let mut ids: Vec<u64> = members.iter().map(|member| member.id.0).collect();
    ids.sort_unstable();
    EtcdId(membership::cluster_id(ids))
}

/// Compares a plan with itself: its names, URLs and token must make the ids that it says.
pub(super) fn check_plan(plan: &RestorePlan) -> Result<(), Refusal> {
    let named = plan.members.iter().map(|member| (member.name.clone(), member.peer_urls.clone())).collect();
    let members = with_ids(&checked(named)?, &plan.token)?;
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
    fn names_that_are_no_file_names_become_ids() {
        let id = EtcdId(0xab);
        for (name, dir) in
            [("cp1", "cp1"), ("a/b", "ab"), ("..", "ab"), ("", "ab"), ("k8s-1.example_x", "k8s-1.example_x")]
        {
            assert_eq!(dir_name(name, id), dir);
        }
    }
}
