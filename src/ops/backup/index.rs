//! The index: what the run found, in the words of the contract; and the texts that are signed with it.

use std::time::Instant;

use jiff::Timestamp;
use sha2::{Digest as _, Sha256};

use super::{Error, Request, agree::Agreed, discover::Discovered};
use crate::{
    durable::PendingDir,
    plan::{
        agreement::{self, Primary},
        known_bad, primary,
    },
    proof::{self, Examiner},
    record::{
        Agreement, BackupId, EtcdId, Finding, FindingKind, Index, Member, ProofLevel, Sha256Hex, Versions, names,
    },
    recovery,
    sign::Sums,
};

/// What was compared, where the run goes so far.
pub struct Compared {
    /// The verdicts and their evidence.
    pub agreed: Agreed,
    /// The databases.
    pub examiner: Examiner,
}

/// Puts the index together. `members` are in the order of their streams, then those that gave nothing.
pub fn index(
    request: &Request<'_>,
    discovered: &Discovered,
    id: &BackupId,
    began: Instant,
    mut members: Vec<Member>,
    compared: Option<&Compared>,
) -> Index {
    let mut findings = request.findings.clone();
    findings.extend(discovered.missing.iter().map(|(_, finding)| finding.clone()));
    let mut warnings = discovered.warnings.clone();
    if let Some(compared) = compared {
        findings.extend(judged(&mut members, compared));
    }
    let answered = |member: &&Member| discovered.missing.iter().all(|(missing, _)| missing.id != member.id);
    findings.extend(members.iter().filter(answered).filter_map(finding));
    findings.sort();
    let (primary, spokesman) = if let Some(Compared { agreed, .. }) = compared {
        let named = |id: EtcdId| members.iter().find(|member| member.id == id);
        let primary = match agreed.judgement.primary {
            Primary::Member(id) => named(id),
            Primary::AfterRound(_) | Primary::Nobody => None,
        };
        (primary, primary.or_else(|| agreed.candidate.and_then(named)))
    } else {
        let primary = primary::primary(&members, &discovered.lagging);
        (primary, primary)
    };
    let proof = spokesman.map_or(ProofLevel::None, |member| member.proof);
    let primary = primary.map(|member| member.name.clone());
    let partial = members.iter().any(Member::is_missing);
    let mut etcd: Vec<String> = members.iter().filter_map(|member| member.version.clone()).collect();
    etcd.sort();
    etcd.dedup();
    let mut recipients = request.recipients.names().to_vec();
    if request.recipients.takes_run_key() {
        recipients.push("run".to_owned());
    }
    warnings.extend(etcd.iter().filter_map(|version| known_bad::advice(version)));
    if !request.recipients.takes_run_key() {
        warnings.push(
            "the recipients are post-quantum only: the run could not open what it wrote, so the proof is `digest`"
                .to_owned(),
        );
    }
    let elapsed = jiff::SignedDuration::try_from(began.elapsed()).unwrap_or_default();
    Index {
        schema: Index::SCHEMA.to_owned(),
        id: id.clone(),
        path: request.store.path().join(id.as_str()),
        store_id: request.store.id().to_owned(),
        cluster_id: discovered.cluster,
        cluster_name: request.policy.cluster.name.clone(),
        host: request.host.clone(),
        created_at: request.now,
        finished_at: whole_seconds(request.now.saturating_add(elapsed).unwrap_or(request.now)),
        proof,
        agreement: compared.map(|compared| compared.agreed.judgement.agreement),
        partial,
        primary,
        members,
        archives: Vec::new(),
        resources: None,
        bundle_complete: None,
        cross_check: None,
        findings,
        warnings,
        recipients,
        versions: Versions { etcd_dr: env!("CARGO_PKG_VERSION").to_owned(), etcd },
        reason: request.reason.clone(),
    }
}

/// Writes what the comparison said into the members, and names those that it speaks against.
fn judged(members: &mut [Member], compared: &Compared) -> Vec<Finding> {
    let Compared { agreed, examiner } = compared;
    let names: Vec<(EtcdId, String)> = members.iter().map(|member| (member.id, member.name.clone())).collect();
    let name = |id: EtcdId| {
        names.iter().find(|(known, _)| *known == id).map_or_else(|| id.to_string(), |(_, name)| name.clone())
    };
    let mut findings = Vec::new();
    for member in members {
        member.agreement = agreed.judgement.members.get(&member.id).copied();
        if let Some(examined) = examiner.of(member.id) {
            member.revision = Some(examined.survey.revision);
            member.compact_revision = Some(examined.survey.compact_revision);
            member.hash_kv = Some(examined.survey.hash_kv);
            // What a database says of itself is not enough: a member that lost writes has a perfect one.
            let confirmed = proof::is_confirmed(member.id, &agreed.comparisons);
            if member.proof == ProofLevel::Open && confirmed && member.agreement != Some(Agreement::Differs) {
                member.proof = ProofLevel::Sound;
            }
        }
        let (kind, detail) = match member.agreement {
            Some(Agreement::Differs) => {
                (FindingKind::MemberDiffers, agreement::evidence(member.id, &agreed.comparisons, &name))
            }
            // A file that failed its own proof has that as its finding.
            Some(Agreement::NotComparable) if member.file.is_some() && member.error.is_none() => {
                let silent = agreed.silent.get(&member.id).map(String::as_str);
                let detail = silent.unwrap_or("no other member answered for the same revision");
                (FindingKind::MemberNotComparable, detail.to_owned())
            }
            _ => continue,
        };
        findings.push(Finding { kind, name: member.name.clone(), detail });
    }
    findings
}

/// What is wrong with a member that answered: no file, or a file that failed its proof.
pub fn finding(member: &Member) -> Option<Finding> {
    let detail = member.error.clone()?;
    let (kind, name) = match &member.file {
        None => (FindingKind::MemberMissing, member.name.clone()),
        Some(file) => (FindingKind::FileChanged, file.clone()),
    };
    Some(Finding { kind, name, detail })
}

fn whole_seconds(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}

/// Writes index, recovery text, digests and signature, each durable.
pub fn write_texts(request: &Request<'_>, pending: &PendingDir, index: &Index) -> Result<(), Error> {
    let mut json = serde_json::to_vec_pretty(index).map_err(|error| Error::Internal(error.to_string()))?;
    json.push(b'\n');
    let recovery =
        recovery::render(index, request.signing.public()).map_err(|error| Error::Internal(error.to_string()))?;
    let mut sums = Sums::default();
    for member in &index.members {
        if let (Some(file), Some(sha256)) = (&member.file, member.sealed_sha256) {
            sums.0.insert(file.clone(), sha256);
        }
    }
    for (name, contents) in [(names::INDEX, json.as_slice()), (names::RECOVERY, recovery.as_bytes())] {
        pending.write(name, contents)?;
        sums.0.insert(name.to_owned(), Sha256Hex(Sha256::digest(contents).into()));
    }
    let text = sums.to_string();
    pending.write(names::SUMS, text.as_bytes())?;
    let comment = format!("etcd-dr backup {} cluster {}", index.id, index.cluster_id);
    pending.write(names::SIGNATURE, request.signing.sign(text.as_bytes(), &comment)?.as_bytes())?;
    Ok(())
}
