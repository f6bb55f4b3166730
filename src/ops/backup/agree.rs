//! Do the members agree: one round of live HashKV at the candidate's revision, the files held against it and each other, the verdicts.

use std::{collections::BTreeMap, time::Duration};

use tokio::task::JoinSet;

use super::{Error, Request, discover::Discovered};
use crate::{
    etcd::mvcc::At,
    plan::agreement::{self, Judgement, Primary, Ranked},
    proof::{Answer, Comparison, Examiner},
    record::{EtcdId, Event},
};

/// How long a member that has not applied the candidate's revision yet is asked again.
const PATIENCE: Duration = Duration::from_secs(10);

/// What was compared, and what follows.
pub struct Agreed {
    /// The verdicts.
    pub judgement: Judgement,
    /// Their evidence.
    pub comparisons: Vec<Comparison>,
    /// The member whose file the others were held against first; the export and the level of a backup without a primary rest on it.
    pub candidate: Option<EtcdId>,
    /// Why a member's answer could not be had.
    pub silent: BTreeMap<EtcdId, String>,
}

/// Asks, compares and judges; once more at another file's revision where the candidate turns out to be outside the majority.
pub async fn agree(request: &Request<'_>, discovered: &Discovered, examiner: &Examiner) -> Result<Agreed, Error> {
    let files = ranked(discovered, examiner);
    let voting = discovered.voting();
    let first = agreement::candidate(&files);
    let mut agreed = Agreed {
        judgement: agreement::judge(&voting, &[], &files, &[]),
        comparisons: Vec::new(),
        candidate: first,
        silent: BTreeMap::new(),
    };
    let mut rounds = Vec::new();
    let mut next = first;
    while let Some(candidate) = next.take() {
        rounds.push(candidate);
        let revision = examiner.of(candidate).map_or(0, |examined| examined.survey.revision);
        request.progress.event(Event::Comparing { revision });
        let (answers, silent) = ask(request, discovered, revision).await?;
        agreed.silent.extend(silent);
        agreed.comparisons.extend(examiner.compare(candidate, &answers));
        agreed.judgement = agreement::judge(&voting, &agreed.comparisons, &files, &rounds);
        if let Primary::AfterRound(member) = agreed.judgement.primary {
            next = Some(member);
        }
    }
    Ok(agreed)
}

/// The whole files of members that vote and do not lag, in the order of their streams.
fn ranked(discovered: &Discovered, examiner: &Examiner) -> Vec<Ranked> {
    let reached = discovered.reached.iter().enumerate();
    reached
        .filter(|(_, reached)| !discovered.lagging.contains(&reached.listed.id))
        .filter_map(|(streamed, reached)| {
            let revision = examiner.of(reached.listed.id)?.survey.revision;
            Some(Ranked { member: reached.listed.id, revision, streamed })
        })
        .collect()
}

/// Every member's HashKV at one revision, all asked at once, and the words of those that did not answer.
async fn ask(
    request: &Request<'_>,
    discovered: &Discovered,
    revision: i64,
) -> Result<(Vec<Answer>, BTreeMap<EtcdId, String>), Error> {
    let mut asked = JoinSet::new();
    for reached in &discovered.reached {
        let (mut client, id) = (reached.client.clone(), reached.listed.id);
        asked.spawn(async move { (id, client.hash_kv(revision, PATIENCE).await) });
    }
    let mut answers = Vec::new();
    let mut silent = BTreeMap::new();
    loop {
        let next = tokio::select! {
            next = asked.join_next() => next,
            () = request.cancel.cancelled() => return Err(Error::Interrupted),
        };
        let Some(next) = next else { break };
        let (member, answer) = next.map_err(|error| Error::Internal(error.to_string()))?;
        match answer {
            Ok(answer) if answer.member != member => {
                silent.insert(member, format!("member {} answered in its place", answer.member));
            }
            Ok(answer) => {
                let at = At { revision, compact_revision: answer.compact_revision };
                answers.push(Answer { member, at, hash: answer.hash });
            }
            Err(error) => {
                silent.insert(member, error.to_string());
            }
        }
    }
    answers.sort_by_key(|answer| answer.member);
    Ok((answers, silent))
}
