//! Who of the cluster that was backed up answers.

use std::collections::BTreeMap;

use super::Request;
use crate::{
    endpoint::{Dialer, Status},
    plan::restore::{Living, Seen, SourceFacts},
    policy::Endpoint,
    record::{EtcdId, Member},
};

/// What the members said.
pub(super) struct Answers {
    pub living: Living,
    pub seen: Vec<Seen>,
}

/// Asks each recorded member at its own client URL, and whoever the policy names, all at once.
///
/// Whoever answers at a recorded URL counts: a cluster that was restored there before has other ids, and lives no less. An endpoint of the
/// policy counts if the member that answers is a recorded one. A member that is reached by two ways is one.
pub(super) async fn ask(request: &Request<'_>, facts: &SourceFacts) -> Answers {
    let policy = request.policy;
    let recorded: &[Member] = request.source.backup.as_ref().map_or(&[], |backup| &backup.index.members);
    let voters = recorded.iter().filter(|member| !member.learner);
    let named = voters.filter_map(|member| Some((member.endpoint.as_deref()?.parse().ok()?, Some(member))));
    let mut targets: Vec<(Endpoint, Option<&Member>)> = named.collect();
    for endpoint in &policy.cluster.endpoints {
        if targets.iter().all(|(known, _)| known != endpoint) {
            targets.push((endpoint.clone(), None));
        }
    }
    // Without a CA an https endpoint could not be told from an impostor, and silence would look like death.
    targets.retain(|(endpoint, _)| policy.cluster.ca_file.is_some() || endpoint.to_string().starts_with("http://"));
    let dialer = match Dialer::new(&policy.cluster, &policy.backup) {
        Ok(dialer) if !targets.is_empty() => dialer,
        Ok(_) => return Answers { living: Living::default(), seen: Vec::new() },
        Err(error) => {
            tracing::warn!("the members are not asked whether they live: {error}");
            return Answers { living: Living::default(), seen: Vec::new() };
        }
    };
    let mut asked = tokio::task::JoinSet::new();
    for (place, (endpoint, _)) in targets.iter().enumerate() {
        let (dialer, endpoint) = (dialer.clone(), endpoint.clone());
        asked.spawn(async move { (place, status(&dialer, &endpoint).await) });
    }
    let mut alive = BTreeMap::<EtcdId, String>::new();
    let mut seen = Vec::new();
    while let Some(answer) = asked.join_next().await {
        let Ok((place, Some(status))) = answer else { continue };
        let Some((endpoint, at)) = targets.get(place) else { continue };
        let listed = recorded.iter().find(|member| member.id == status.member);
        let name = listed.or(*at).map(|member| member.name.clone());
        let ours = at.is_some() || listed.is_some() || facts.cluster == Some(status.cluster);
        if let Some(name) = name.filter(|_| ours) {
            seen.push(Seen { revision: status.revision, by: name.clone() });
            if listed.or(*at).is_some_and(|member| !member.learner) {
                alive.insert(status.member, name);
            }
        } else if ours {
            seen.push(Seen { revision: status.revision, by: endpoint.to_string() });
        }
    }
    let mut answering: Vec<String> = alive.into_values().collect();
    answering.sort();
    Answers { living: Living { asked: true, answering }, seen }
}

async fn status(dialer: &Dialer, endpoint: &Endpoint) -> Option<Status> {
    let mut client = dialer.dial(endpoint).await.ok()?;
    client.status().await.ok()
}
