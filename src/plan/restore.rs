//! What a restore writes where: members, ids, token, revision bump, and what is moved aside for it.
//!
//! Two steps, since what stands at a target is only worth asking once the target is known: [`draft`] (or [`repeat`], from a plan that was made
//! before) decides who is written, [`Draft::settle`] looks at the ground. `--dry-run` prints the [`RestorePlan`] that results, and without it
//! the same value is carried out.

mod members;
mod refusal;
mod settle;

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

pub use self::{
    refusal::{Choice, PlanFault, Refusal},
    settle::{Ground, Living, Place, Stands},
};
use crate::{
    etcd::Series,
    record::{BackupId, EtcdId, Sha256Hex},
};

/// The smallest bump that is made unasked. A billion revisions are months of writes of a busy cluster, and 63 bits have room for billions of
/// such restores.
pub const LEAST_BUMP: i64 = 1_000_000_000;

/// What was asked for, flag by flag.
#[derive(Debug, Clone, Default)]
pub struct Asked {
    /// `--member`, `--name`.
    pub member: Option<String>,
    /// `--all-members --output-dir`.
    pub output_dir: Option<PathBuf>,
    /// `--data-dir`.
    pub data_dir: Option<PathBuf>,
    /// `--wal-dir`.
    pub wal_dir: Option<PathBuf>,
    /// `--initial-cluster`.
    pub initial_cluster: Option<String>,
    /// `--initial-cluster-token`.
    pub token: Option<String>,
    /// `--initial-advertise-peer-urls`.
    pub advertise: Option<String>,
    /// `--bump-revision`, or 0 for `--no-bump`.
    pub bump: Option<i64>,
    /// `--etcd-version`.
    pub etcd: Option<Series>,
    /// `--clear-alarms`.
    pub clear_alarms: bool,
    /// `--replace`.
    pub replace: bool,
    /// `--force`.
    pub force: bool,
    /// `--dry-run`.
    pub dry_run: bool,
}

/// A member as the source records it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recorded {
    /// Its name; empty for one that never started.
    pub name: String,
    /// Its peer URLs.
    pub peer_urls: Vec<String>,
    /// A learner does not vote and is not restored.
    pub learner: bool,
}

/// What the source is, as it was read.
#[derive(Debug, Clone)]
pub struct SourceFacts {
    /// What names it again: a backup's id, or a path.
    pub source: String,
    /// The backup that it belongs to.
    pub backup: Option<BackupId>,
    /// The member whose snapshot it is, where a backup says so.
    pub from: Option<String>,
    /// The file that is read.
    pub file: String,
    /// SHA-256 of the snapshot as `etcdctl snapshot save` writes it: the same for the plain and the sealed file.
    pub sha256: Sha256Hex,
    /// Bytes of the snapshot.
    pub bytes: u64,
    /// Its revision.
    pub revision: i64,
    /// Its compact revision; -1 when it was never compacted.
    pub compact_revision: i64,
    /// HashKV at these two.
    pub hash_kv: Option<u32>,
    /// The release whose form the file has.
    pub etcd: Series,
    /// The cluster that it was taken from, where that is known.
    pub cluster: Option<EtcdId>,
    /// The membership.
    pub members: Vec<Recorded>,
    /// Alarms that the file carries, such as NOSPACE.
    pub alarms: Vec<String>,
    /// Whether Kubernetes keeps its objects in it.
    pub kubernetes: bool,
}

/// A revision that somebody saw, which a restored cluster must be above.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// The revision.
    pub revision: i64,
    /// Who knows of it: the journal, a backup, a member that answers.
    pub by: String,
}

/// The host that the restore runs on.
#[derive(Debug, Clone, Default)]
pub struct Here {
    /// Its addresses, loopback left out: every host has that one.
    pub addresses: Vec<IpAddr>,
    /// Its names, short and full.
    pub names: Vec<String>,
}

impl Here {
    /// Whether a host part of a URL is this host.
    fn is(&self, host: &str) -> bool {
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        match bare.parse::<IpAddr>() {
            Ok(address) => self.addresses.contains(&address),
            Err(_) => self.names.iter().any(|name| name.eq_ignore_ascii_case(bare)),
        }
    }
}

/// What a restore does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestorePlan {
    /// [`RestorePlan::SCHEMA`].
    pub schema: String,
    /// A backup's id, or a path: `--snapshot` for the other hosts.
    pub source: String,
    /// The backup, where the source is one.
    #[serde(default)]
    pub backup: Option<BackupId>,
    /// The member of the backup whose snapshot is used.
    #[serde(default)]
    pub from: Option<String>,
    /// The file that is read.
    pub file: String,
    /// SHA-256 of the snapshot as `etcdctl snapshot save` writes it. Every host must find the same.
    pub source_sha256: Sha256Hex,
    /// Bytes of the snapshot.
    pub source_bytes: u64,
    /// The snapshot's revision.
    pub revision: i64,
    /// Its compact revision; -1 when it was never compacted.
    pub compact_revision: i64,
    /// HashKV at these two.
    #[serde(default)]
    pub hash_kv: Option<u32>,
    /// The release that wrote the source.
    pub source_etcd: Series,
    /// The release that will run on what is written.
    pub etcd: Series,
    /// Added to the revision, everything before it marked compacted; 0 leaves both as they are.
    pub bump: i64,
    /// Why as much.
    pub bump_reason: String,
    /// The cluster token: with the peer URLs it makes the ids.
    pub token: String,
    /// The id of the cluster that comes up.
    pub cluster_id: EtcdId,
    /// Its members, in the order of their names.
    pub members: Vec<Planned>,
    /// Alarms in the source.
    #[serde(default)]
    pub alarms: Vec<String>,
    /// Whether they are left out.
    #[serde(default)]
    pub clear_alarms: bool,
    /// Whether Kubernetes keeps its objects in it.
    #[serde(default)]
    pub kubernetes: bool,
    /// Bytes that this run writes at the most.
    pub bytes: u64,
    /// What this run moves aside.
    pub moved_aside: Vec<Moved>,
    /// What should be known and stops nothing.
    #[serde(default)]
    pub warnings: Vec<String>,
}

impl RestorePlan {
    /// The schema's name.
    pub const SCHEMA: &'static str = "etcd-dr/restore/v1";

    /// The members that this run writes.
    pub fn written(&self) -> impl Iterator<Item = &Planned> {
        self.members.iter().filter(|member| member.write)
    }

    /// The revision of the restored cluster before its first write.
    #[must_use]
    pub fn revision_after(&self) -> i64 {
        self.revision.saturating_add(self.bump)
    }

    /// `--initial-cluster` for a member's configuration.
    #[must_use]
    pub fn initial_cluster(&self) -> String {
        let pairs = self.members.iter().flat_map(|member| {
            let name = &member.name;
            member.peer_urls.iter().map(move |url| format!("{name}={url}"))
        });
        pairs.collect::<Vec<_>>().join(",")
    }
}

/// A member of the cluster that comes up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Planned {
    /// Its name.
    pub name: String,
    /// Its id, from its peer URLs and the token.
    pub id: EtcdId,
    /// Its peer URLs, sorted.
    pub peer_urls: Vec<String>,
    /// Where its data directory is written, by this run or on its own host.
    pub data_dir: PathBuf,
    /// Its WAL directory, where it is not in the data directory.
    #[serde(default)]
    pub wal_dir: Option<PathBuf>,
    /// Whether this run writes it.
    #[serde(default)]
    pub write: bool,
}

/// What is renamed to make room. Nothing is removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moved {
    /// What stands there.
    pub from: PathBuf,
    /// Where it can be found.
    pub to: PathBuf,
}

/// A plan that has not looked at the ground yet.
#[derive(Debug, Clone)]
pub struct Draft {
    plan: RestorePlan,
    /// Names of the voting members of the cluster that was backed up.
    voters: Vec<String>,
    replace: bool,
    force: bool,
}

/// Decides who is restored, under which ids, from which revision on. `fresh_token` is used where none is asked for.
///
/// # Errors
/// [`Refusal`], each with its evidence.
pub fn draft(
    asked: &Asked,
    source: &SourceFacts,
    seen: &[Seen],
    here: &Here,
    fresh_token: &str,
) -> Result<Draft, Refusal> {
    let mut warnings = Vec::new();
    let token = asked.token.as_deref().unwrap_or(fresh_token);
    let cluster = members::cluster(asked, source, token, &mut warnings)?;
    if source.cluster == Some(cluster.id) && !asked.force {
        return Err(Refusal::SameCluster { cluster: cluster.id, token: token.to_owned() });
    }
    let highest = seen.iter().max_by_key(|seen| seen.revision);
    let (bump, bump_reason) = bump(asked.bump, source.revision, highest)?;
    warnings.extend(below(source.revision.saturating_add(bump), highest));
    let mut plan = RestorePlan {
        schema: RestorePlan::SCHEMA.to_owned(),
        source: source.source.clone(),
        backup: source.backup.clone(),
        from: source.from.clone(),
        file: source.file.clone(),
        source_sha256: source.sha256,
        source_bytes: source.bytes,
        revision: source.revision,
        compact_revision: source.compact_revision,
        hash_kv: source.hash_kv,
        source_etcd: source.etcd,
        etcd: asked.etcd.unwrap_or(source.etcd),
        bump,
        bump_reason,
        token: token.to_owned(),
        cluster_id: cluster.id,
        members: cluster.members,
        alarms: source.alarms.clone(),
        clear_alarms: asked.clear_alarms,
        kubernetes: source.kubernetes,
        bytes: 0,
        moved_aside: Vec::new(),
        warnings: Vec::new(),
    };
    members::choose(&mut plan.members, asked, here)?;
    let told = asked.token.is_some() && asked.bump.is_some();
    let written = plan.written().count();
    if written < plan.members.len() && !told && !asked.dry_run {
        let member = plan.written().map(|member| member.name.clone()).next().unwrap_or_default();
        return Err(Refusal::Separate { member, members: plan.members.len(), snapshot: plan.source });
    }
    if plan.etcd < plan.source_etcd {
        warnings.push(format!("the source is of etcd {}, what is written is for {}", plan.source_etcd, plan.etcd));
    }
    Ok(Draft::new(plan, warnings, source, asked))
}

/// Takes a plan that was made before, so that separate runs make one cluster.
///
/// # Errors
/// [`Refusal::Plan`] for a plan that does not fit together or is of another source; else as [`draft`].
pub fn repeat(plan: RestorePlan, asked: &Asked, source: &SourceFacts, here: &Here) -> Result<Draft, Refusal> {
    let mut plan = plan;
    members::check_plan(&plan)?;
    if plan.source_sha256 != source.sha256 {
        return Err(Refusal::OtherSource {
            file: source.file.clone(),
            planned: plan.source_sha256,
            found: source.sha256,
        });
    }
    if plan.revision != source.revision {
        return Err(Refusal::Plan(PlanFault::Revision { planned: plan.revision, found: source.revision }));
    }
    bump(Some(plan.bump), plan.revision, None)?;
    if (1..LEAST_BUMP).contains(&plan.bump) {
        "the plan says so; it is less than is safe unasked".clone_into(&mut plan.bump_reason);
    }
    plan.file.clone_from(&source.file);
    plan.hash_kv = source.hash_kv;
    plan.compact_revision = source.compact_revision;
    members::choose(&mut plan.members, asked, here)?;
    let warnings = std::mem::take(&mut plan.warnings);
    Ok(Draft::new(plan, warnings, source, asked))
}

impl Draft {
    fn new(mut plan: RestorePlan, mut warnings: Vec<String>, source: &SourceFacts, asked: &Asked) -> Self {
        if !plan.alarms.is_empty() && !plan.clear_alarms {
            warnings.push(format!(
                "the snapshot carries the alarm {}: the restored cluster takes no writes until it is disarmed; --clear-alarms leaves it out",
                plan.alarms.join(", ")
            ));
        }
        warnings.sort();
        warnings.dedup();
        plan.warnings = warnings;
        let voters = source.members.iter().filter(|member| !member.learner).map(|member| member.name.clone());
        Self { plan, voters: voters.collect(), replace: asked.replace, force: asked.force }
    }

    /// The members that will be written, for those who look at the ground.
    pub fn written(&self) -> impl Iterator<Item = &Planned> {
        self.plan.written()
    }
}

/// How much is added to the revision, and why.
fn bump(asked: Option<i64>, revision: i64, highest: Option<&Seen>) -> Result<(i64, String), Refusal> {
    let (bump, reason) = match asked {
        Some(0) => (0, "none, as asked: clients that saw later revisions are lost".to_owned()),
        Some(bump) if bump < 0 => return Err(Refusal::NegativeBump { bump }),
        Some(bump) => (bump, "as asked".to_owned()),
        None => unasked(revision, highest),
    };
    // The room that is left above is what the next restore needs.
    let after = revision.checked_add(bump);
    if bump > 0 && after.and_then(|after| after.checked_add(LEAST_BUMP)).is_none() {
        return Err(Refusal::BumpOverflows { revision, bump });
    }
    Ok((bump, reason))
}

fn unasked(revision: i64, highest: Option<&Seen>) -> (i64, String) {
    let Some(seen) = highest.filter(|seen| seen.revision > revision) else {
        return (LEAST_BUMP, "the least; nobody knows of a later revision than the snapshot's".to_owned());
    };
    let ahead = seen.revision.saturating_sub(revision);
    let twice = ahead.saturating_mul(2);
    let known = format!("{} knows of revision {}, {ahead} above the snapshot's", seen.by, seen.revision);
    if twice > LEAST_BUMP {
        (twice, format!("twice the distance: {known}"))
    } else {
        (LEAST_BUMP, format!("the least; {known}"))
    }
}

/// Said where clients have seen what the restored cluster is yet to reach.
fn below(after: i64, highest: Option<&Seen>) -> Option<String> {
    let seen = highest.filter(|seen| seen.revision >= after)?;
    Some(format!(
        "the restored cluster begins at revision {after}, and {} knows of {}: clients keep caches of a future that never was; restart all of them",
        seen.by, seen.revision
    ))
}

/// Reads a plan that `restore --dry-run --output json` wrote. What it says is compared with itself by [`repeat`].
///
/// # Errors
/// [`Refusal::Plan`].
pub fn parse(json: &[u8]) -> Result<RestorePlan, Refusal> {
    let fault = |error: serde_json::Error| Refusal::Plan(PlanFault::Json(error.to_string()));
    let value: serde_json::Value = serde_json::from_slice(json).map_err(fault)?;
    if let Some(error) = value.get("error") {
        let message = error.get("message").and_then(serde_json::Value::as_str).unwrap_or_default();
        return Err(Refusal::Plan(PlanFault::Failed(message.lines().next().unwrap_or_default().to_owned())));
    }
    match value.get("schema").and_then(serde_json::Value::as_str) {
        Some(RestorePlan::SCHEMA) => {}
        other => return Err(Refusal::Plan(PlanFault::Schema(other.unwrap_or("none").to_owned()))),
    }
    serde_json::from_value(value).map_err(fault)
}

/// The path below which a run writes before it publishes: beside `target`, so that one rename does it.
#[must_use]
pub fn parent_of(target: &Path) -> &Path {
    target.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}
