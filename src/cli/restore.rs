//! `restore`: what was asked, and the plan for people.

mod next;

use std::{
    fs::File,
    io::Read as _,
    path::{Path, PathBuf},
};

use clap::Args;
use rustix::fs::Access;
use serde::Serialize;

use super::{
    Answer, Context,
    error::Failure,
    source,
    table::{Text, size, table},
};
use crate::{
    at::At as _,
    etcd::Series,
    ops::restore::{self, Done, Request},
    plan::restore::{Asked, RestorePlan, parse},
};

/// Arguments of `restore`; those that etcdutl has are called as there.
#[derive(Debug, Args)]
#[allow(clippy::struct_excessive_bools, reason = "each is a flag")]
pub struct Arguments {
    /// What to restore: a backup's id, `latest`, a backup's directory, or a snapshot file
    #[arg(long, value_name = "SOURCE", required_unless_present = "plan")]
    snapshot: Option<String>,
    /// The member of the backup whose snapshot all are written from [default: the primary]
    #[arg(long, value_name = "MEMBER", conflicts_with = "plan")]
    from: Option<String>,
    /// Follow a plan that `--dry-run --output json` wrote, so that separate runs make one cluster
    #[arg(long, value_name = "FILE")]
    plan: Option<PathBuf>,
    /// Say what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,

    /// The member to write [default: the one whose peer URL is an address of this host]
    #[arg(long, value_name = "NAME", conflicts_with_all = ["name", "all_members"], help_heading = "Which member")]
    member: Option<String>,
    /// The same, as etcdutl calls it
    #[arg(long, value_name = "NAME", conflicts_with = "all_members", help_heading = "Which member")]
    name: Option<String>,
    /// Write every member, each to DIR/NAME
    #[arg(long, requires = "output_dir", help_heading = "Which member")]
    all_members: bool,
    /// Where --all-members writes
    #[arg(long, value_name = "DIR", requires = "all_members", help_heading = "Which member")]
    output_dir: Option<PathBuf>,

    /// The data directory [default: ./NAME.etcd]
    #[arg(long, value_name = "DIR", conflicts_with = "all_members", help_heading = "Where to")]
    data_dir: Option<PathBuf>,
    /// A WAL directory of its own [default: in the data directory]
    #[arg(long, value_name = "DIR", conflicts_with = "all_members", help_heading = "Where to")]
    wal_dir: Option<PathBuf>,
    /// Move what stands there aside; nothing is removed
    #[arg(long, help_heading = "Where to")]
    replace: bool,

    /// The members and their peer URLs [default: the voting members that were recorded]
    #[arg(long, value_name = "NAME=URL,...", conflicts_with = "plan", help_heading = "The cluster")]
    initial_cluster: Option<String>,
    /// The cluster token; with the peer URLs it makes the ids [default: a fresh one]
    #[arg(long, value_name = "TOKEN", conflicts_with = "plan", help_heading = "The cluster")]
    initial_cluster_token: Option<String>,
    /// The member's own peer URLs; refused where the cluster has others
    #[arg(long, value_name = "URLS", conflicts_with = "all_members", help_heading = "The cluster")]
    initial_advertise_peer_urls: Option<String>,
    /// The etcd that will run on it: 3.4, 3.5 or 3.6 [default: the one that wrote the snapshot]
    #[arg(long, value_name = "SERIES", conflicts_with = "plan", help_heading = "The cluster")]
    etcd_version: Option<Series>,

    /// Add this to the revision [default: 1000000000, or twice what is known beyond the snapshot]
    #[arg(long, value_name = "N", requires = "mark_compacted", conflicts_with = "plan", help_heading = "The data")]
    bump_revision: Option<i64>,
    /// Mark what is before the new revision as compacted; goes with --bump-revision
    #[arg(long, requires = "bump_revision", help_heading = "The data")]
    mark_compacted: bool,
    /// Leave the revision as it is: clients that saw later ones will be wrong
    #[arg(long, conflicts_with_all = ["bump_revision", "plan"], help_heading = "The data")]
    no_bump: bool,
    /// Leave the snapshot's alarms out
    #[arg(long, conflicts_with = "plan", help_heading = "The data")]
    clear_alarms: bool,

    /// Take a file that nobody signed
    #[arg(long, help_heading = "At your own risk")]
    allow_unsigned: bool,
    /// Take a database without the SHA-256 that etcd appends, such as a stopped member's
    #[arg(long, help_heading = "At your own risk")]
    skip_hash_check: bool,
    /// Go on although a quorum of the cluster lives, or its ids are made again
    #[arg(long, help_heading = "At your own risk")]
    force: bool,
}

impl Arguments {
    fn asked(&self) -> Asked {
        Asked {
            member: self.member.clone().or_else(|| self.name.clone()),
            output_dir: self.output_dir.clone(),
            data_dir: self.data_dir.clone(),
            wal_dir: self.wal_dir.clone(),
            initial_cluster: self.initial_cluster.clone(),
            token: self.initial_cluster_token.clone(),
            advertise: self.initial_advertise_peer_urls.clone(),
            bump: if self.no_bump { Some(0) } else { self.bump_revision },
            etcd: self.etcd_version,
            clear_alarms: self.clear_alarms,
            replace: self.replace,
            force: self.force,
            dry_run: self.dry_run,
        }
    }
}

pub async fn run(context: &Context, arguments: Arguments) -> Result<Answer, Failure> {
    let plan = arguments.plan.as_deref().map(read_plan).transpose()?;
    let asked = arguments.asked();
    let planned = plan.as_ref();
    let text = arguments.snapshot.clone().or_else(|| planned.map(|plan| plan.source.clone())).unwrap_or_default();
    let from = arguments.from.clone().or_else(|| planned.and_then(|plan| plan.from.clone()));
    let found = source::find(context, &text, from.as_deref())?;
    if !arguments.allow_unsigned {
        found.source.require_signed()?;
    }
    let identities = source::identities(context, &found.source)?;
    let scratch_dir = scratch_dir(context, &asked);
    let request = Request {
        asked: &asked,
        plan,
        source: &found.source,
        identities: identities.as_ref(),
        scratch_dir: &scratch_dir,
        skip_trailer: arguments.skip_hash_check,
        policy: &context.policy,
        store: found.store.as_ref().map(|(store, catalog)| (store, catalog)),
        host: &context.host,
        salt: rand::random(),
        now: context.now,
        cancel: &context.cancel,
    };
    let ready = restore::plan(&request).await?;
    for warning in &ready.plan.warnings {
        tracing::warn!("{warning}");
    }
    if arguments.dry_run {
        return Answer::new(&ready.plan, plan_text(&ready.plan), None);
    }
    if ready.plan.written().next().is_none() {
        return Err(Failure::internal("the plan writes nobody"));
    }
    let done = tokio::task::block_in_place(|| restore::execute(&ready, &context.cancel))?;
    let accepted = accept(found, &ready.plan);
    let text = done_text(&ready.plan, &done, accepted);
    Answer::new(&Reply { plan: &ready.plan, written: &done }, text, None)
}

#[derive(Serialize)]
struct Reply<'a> {
    #[serde(flatten)]
    plan: &'a RestorePlan,
    /// What was written and how it was proved; a dry run has none.
    written: &'a Done,
}

/// Lets the store that the backup came from take the restored cluster's backups as well. Nothing is lost where that fails: `backup` names the
/// command, too.
fn accept(found: source::Found, plan: &RestorePlan) -> bool {
    let source::Found { source, store: Some((mut store, _)) } = found else { return false };
    if source.backup.is_none_or(|backup| backup.index.store_id != store.id()) {
        return false;
    }
    let accepted = store.lock().and_then(|lock| store.accept_cluster(&lock, plan.cluster_id));
    if let Err(error) = &accepted {
        tracing::warn!("the store does not take the restored cluster yet: {error}");
    }
    accepted.is_ok()
}

fn read_plan(path: &Path) -> Result<RestorePlan, Failure> {
    const MOST: u64 = 1 << 20;
    let mut json = Vec::new();
    File::open(path).at(path)?.take(MOST).read_to_end(&mut json).at(path)?;
    Ok(parse(&json)?)
}

/// Where the opened copy lies: beside what is written, since there is room for it there or there is none for the restore; else in the store.
fn scratch_dir(context: &Context, asked: &Asked) -> PathBuf {
    let target = asked.output_dir.as_deref().or(asked.data_dir.as_deref());
    let near = target.and_then(|target| target.ancestors().skip(1).find(|dir| dir.is_dir()).map(Path::to_owned));
    let store = context.policy.store.path.clone();
    let writable = |dir: &PathBuf| rustix::fs::access(dir, Access::WRITE_OK | Access::EXEC_OK).is_ok();
    let choices = [near, Some(PathBuf::from(".")), Some(store)];
    choices.into_iter().flatten().find(writable).unwrap_or_else(|| PathBuf::from("/var/tmp"))
}

/// The plan for people.
fn plan_text(plan: &RestorePlan) -> String {
    let mut text = Text::default();
    let from = plan.from.as_ref().map(|from| format!(", the snapshot of {from}")).unwrap_or_default();
    text.line(format!("source     {}{from}", plan.source));
    text.line(format!("SHA-256    {}", plan.source_sha256));
    text.line(format!("etcd       {} wrote it, {} will run on it", plan.source_etcd, plan.etcd));
    text.line(format!("revision   {}, {} after the restore", plan.revision, plan.revision_after()));
    text.line(format!("bump       {}: {}", plan.bump, plan.bump_reason));
    text.line(format!("cluster    {}", plan.cluster_id));
    text.line(format!("token      {}", plan.token));
    if !plan.alarms.is_empty() {
        let fate = if plan.clear_alarms { "left out" } else { "kept" };
        text.line(format!("alarms     {}, {fate}", plan.alarms.join(", ")));
    }
    text.line("");
    let rows = plan.members.iter().map(|member| {
        let mut dir = member.data_dir.display().to_string();
        if let Some(wal) = &member.wal_dir {
            dir = format!("{dir}, WAL {}", wal.display());
        }
        let here = if member.write { "yes" } else { "-" };
        vec![member.name.clone(), member.id.to_string(), member.peer_urls.join(" "), dir, here.to_owned()]
    });
    text.line(table(&["member", "id", "peer urls", "data directory", "written here"], rows.collect(), &[]).trim_end());
    text.line("");
    for moved in &plan.moved_aside {
        text.line(format!("moved aside: {} to {}", moved.from.display(), moved.to.display()));
    }
    text.line(format!("at the most {} are written", size(plan.bytes)));
    text.into_string()
}

/// What was done, and what is left to do.
fn done_text(plan: &RestorePlan, done: &Done, accepted: bool) -> String {
    let mut text = Text::from(plan_text(plan));
    text.line("");
    text.line(format!("written    {} rows, {} each", done.rows, size(done.database_bytes)));
    text.line(format!(
        "proved     HashKV {:08x} at revision {}: the snapshot's and what was written",
        done.hash_kv_at_snapshot, plan.revision
    ));
    text.line(format!(
        "expect     HashKV {:08x} at revision {} from each member, before its first write",
        done.hash_kv_after, done.revision_after
    ));
    text.line("");
    text.line(next::steps(plan, accepted));
    text.into_string()
}
