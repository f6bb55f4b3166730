//! Who the members are, which of them answer at their own client URLs, and in which order they are streamed.

use tokio::task::JoinSet;

use super::Error;
use crate::{
    endpoint::{self, Dialer, ListedMember, MemberClient, Status, Verdict},
    plan::primary,
    policy::Endpoint,
    record::{EtcdId, Finding, FindingKind, Member, ProofLevel},
};

/// The cluster as it answered.
pub struct Discovered {
    /// Its id.
    pub cluster: EtcdId,
    /// Members to be streamed: followers first, the leader last.
    pub reached: Vec<Reached>,
    /// Members that give nothing, and why.
    pub missing: Vec<(Member, Finding)>,
    /// Learners, which do not vote and are not streamed.
    pub learners: Vec<Member>,
    /// Members that are behind by more than the policy allows: streamed, never primary.
    pub lagging: Vec<EtcdId>,
    /// What a person should know.
    pub warnings: Vec<String>,
}

/// A member that answered at one of its own client URLs, under its own id.
pub struct Reached {
    /// As the member list has it.
    pub listed: ListedMember,
    /// The connection that answered and that will stream.
    pub client: MemberClient,
    /// What it said there, before its stream.
    pub status: Status,
    /// The file that its snapshot goes to.
    pub file: String,
}

impl Discovered {
    /// The ids of the members that vote, whether they answered or not.
    pub fn voting(&self) -> Vec<EtcdId> {
        let silent = self.missing.iter().map(|(member, _)| member).filter(|member| !member.learner);
        self.reached.iter().map(|reached| reached.listed.id).chain(silent.map(|member| member.id)).collect()
    }
}

impl Reached {
    /// Whether it leads.
    pub fn is_leader(&self) -> bool {
        self.status.leader == self.listed.id.0
    }

    /// The index's entry before anything was streamed.
    pub fn member(&self) -> Member {
        Member {
            endpoint: Some(self.client.url().to_owned()),
            version: Some(self.status.version.clone()),
            status_revision: Some(self.status.revision),
            alarms: self.status.errors.clone(),
            ..blank(&self.listed)
        }
    }
}

fn blank(listed: &ListedMember) -> Member {
    Member {
        name: listed.name.clone(),
        id: listed.id,
        endpoint: listed.client_urls.first().cloned(),
        peer_urls: listed.peer_urls.clone(),
        version: None,
        learner: listed.learner,
        status_revision: None,
        revision: None,
        compact_revision: None,
        hash_kv: None,
        agreement: None,
        file: None,
        plain_bytes: None,
        sealed_bytes: None,
        plain_sha256: None,
        sealed_sha256: None,
        trailer_sha256: None,
        seconds: None,
        error: None,
        proof: ProofLevel::None,
        reread: None,
        alarms: Vec::new(),
    }
}

/// Asks the first endpoint that answers for the member list, then each member, at its own client URLs, for its Status.
pub async fn discover(dialer: &Dialer, endpoints: &[Endpoint], max_lag: u64) -> Result<Discovered, Error> {
    let (cluster, listed) = member_list(dialer, endpoints).await?;
    let mut found = Discovered {
        cluster,
        reached: Vec::new(),
        missing: Vec::new(),
        learners: Vec::new(),
        lagging: Vec::new(),
        warnings: Vec::new(),
    };
    let files = file_names(&listed);
    let mut asked = JoinSet::new();
    for (at, member) in listed.iter().enumerate() {
        if member.learner {
            found.warnings.push(format!(
                "{} is a learner: it does not vote and is not streamed; promote it once it has caught up",
                display_name(member)
            ));
            found.learners.push(blank(member));
            continue;
        }
        let (dialer, member, all) = (dialer.clone(), member.clone(), listed.clone());
        asked.spawn(async move { (at, reach(&dialer, cluster, &member, &all).await) });
    }
    let mut answers = Vec::new();
    while let Some(answer) = asked.join_next().await {
        answers.push(answer.map_err(|error| Error::Internal(error.to_string()))?);
    }
    answers.sort_by_key(|(at, _)| *at);
    for (at, answer) in answers {
        let (Some(member), Some(file)) = (listed.get(at), files.get(at)) else { continue };
        match answer {
            Ok((client, status)) => {
                found.reached.push(Reached { listed: member.clone(), client, status, file: file.clone() });
            }
            Err(Refused::Fatal(error)) => return Err(error.into()),
            Err(Refused::Missing(detail)) => {
                let finding =
                    Finding { kind: FindingKind::MemberMissing, name: display_name(member), detail: detail.clone() };
                found.missing.push((Member { error: Some(detail), ..blank(member) }, finding));
            }
        }
    }
    // A stream costs its server something: the leader, on whom all writes wait, is asked last.
    found.reached.sort_by_key(Reached::is_leader);
    let revisions: Vec<_> = found.reached.iter().map(|reached| (reached.listed.id, reached.status.revision)).collect();
    let lagging = primary::lagging(&revisions, max_lag);
    for reached in &found.reached {
        if let Some((id, behind)) = lagging.iter().find(|(id, _)| *id == reached.listed.id) {
            let name = &reached.listed.name;
            found.warnings.push(format!(
                "{name} is {behind} revisions behind: it is streamed and never primary; see why it is slow (disk, network), or replace it"
            ));
            found.lagging.push(*id);
        }
        for alarm in &reached.status.errors {
            found.warnings.push(format!("{} reports: {alarm}{}", reached.listed.name, advice(alarm)));
        }
    }
    Ok(found)
}

/// What to do about what a member says of itself.
fn advice(alarm: &str) -> &'static str {
    if alarm.contains("NOSPACE") {
        "; the cluster takes no writes: compact, `etcdctl defrag` one member at a time, then `etcdctl alarm disarm`; a restore from this \
         snapshot needs `--clear-alarms`"
    } else if alarm.contains("CORRUPT") {
        "; etcd itself found that members differ: replace the one that this backup names, then `etcdctl alarm disarm`"
    } else if alarm.contains("no leader") {
        "; without a quorum this snapshot may be the newest data there is: keep it, and restore with `--from` it"
    } else {
        ""
    }
}

async fn member_list(dialer: &Dialer, endpoints: &[Endpoint]) -> Result<(EtcdId, Vec<ListedMember>), Error> {
    let mut reasons = Vec::new();
    for endpoint in endpoints {
        let answer = async {
            let mut client = dialer.dial(endpoint).await?;
            client.member_list().await
        };
        match answer.await {
            Ok((cluster, members)) if !members.is_empty() => return Ok((cluster, members)),
            Ok(_) => reasons.push(format!("{endpoint}: the member list is empty")),
            Err(error) if error.verdict() == Verdict::Fatal => return Err(error.into()),
            Err(error) => reasons.push(error.to_string()),
        }
    }
    Err(Error::NoEndpoint { reasons })
}

enum Refused {
    Missing(String),
    Fatal(endpoint::Error),
}

/// Dials a member at its own client URLs until one answers under its id. A VIP or a proxy that leads elsewhere is named with where it leads.
async fn reach(
    dialer: &Dialer,
    cluster: EtcdId,
    member: &ListedMember,
    all: &[ListedMember],
) -> Result<(MemberClient, Status), Refused> {
    if member.client_urls.is_empty() {
        return Err(Refused::Missing("it is in the member list and has never started".to_owned()));
    }
    let mut reasons = Vec::new();
    for url in &member.client_urls {
        let endpoint: Endpoint = match url.parse() {
            Ok(endpoint) => endpoint,
            Err(error) => {
                reasons.push(format!("{url}: {error}"));
                continue;
            }
        };
        let answer = async {
            let mut client = dialer.dial(&endpoint).await?;
            let status = client.status().await?;
            Ok::<_, endpoint::Error>((client, status))
        };
        match answer.await {
            Ok((_, status)) if status.member != member.id => {
                let who = all.iter().find(|other| other.id == status.member).map_or_else(
                    || format!("a member that is not in the list ({})", status.member),
                    |other| format!("{} ({})", display_name(other), other.id),
                );
                reasons.push(format!(
                    "{endpoint} is listed for {} ({}) and answered by {who}",
                    display_name(member),
                    member.id
                ));
            }
            Ok((_, status)) if status.cluster != cluster => {
                reasons.push(format!("{endpoint} belongs to cluster {}, not {cluster}", status.cluster));
            }
            Ok(reached) => return Ok(reached),
            Err(error) if error.verdict() == Verdict::Fatal => return Err(Refused::Fatal(error)),
            Err(error) => reasons.push(error.to_string()),
        }
    }
    Err(Refused::Missing(reasons.join("; ")))
}

fn display_name(member: &ListedMember) -> String {
    if member.name.is_empty() { member.id.to_string() } else { member.name.clone() }
}

/// `etcd-<name>.db.zst.age`, or the id where the name is taken twice or is no plain file name (contract.md, 6).
fn file_names(listed: &[ListedMember]) -> Vec<String> {
    let plain = |name: &str| {
        !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
    };
    let unique = |name: &str| listed.iter().filter(|other| other.name == name).count() == 1;
    listed
        .iter()
        .map(|member| {
            // 200 bytes: the file system's limit is 255, and `.partial-` names must fit as well.
            if plain(&member.name) && member.name.len() <= 200 && unique(&member.name) {
                format!("etcd-{}.db.zst.age", member.name)
            } else {
                format!("etcd-{}.db.zst.age", member.id)
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(id: u64, name: &str) -> ListedMember {
        ListedMember {
            id: EtcdId(id),
            name: name.to_owned(),
            peer_urls: Vec::new(),
            client_urls: Vec::new(),
            learner: false,
        }
    }

    #[test]
    fn file_names_are_plain_and_unique() {
        let listed = [member(1, "k8s"), member(2, "twin"), member(3, "twin"), member(0xabc, "a/b"), member(5, "")];
        assert_eq!(
            file_names(&listed),
            [
                "etcd-k8s.db.zst.age",
                "etcd-2.db.zst.age",
                "etcd-3.db.zst.age",
                "etcd-abc.db.zst.age",
                "etcd-5.db.zst.age"
            ]
        );
    }
}
