//! `backup`: the main job.

use std::{path::Path, sync::Arc};

use clap::Args;
use serde::Serialize;

use super::{
    Answer, Context,
    error::Failure,
    is_root, prune,
    table::{Text, members, size, table},
};
use crate::{
    catalog::Catalog,
    ops::backup::{self, Plan, Request},
    plan::retention::Decision,
    record::{Agreement, BackupReport, Finding, FindingKind},
    run,
    seal::Recipients,
    sign::SecretKey,
    store::{Store, guard},
};

/// Arguments of `backup`.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Why it is taken; kept in the index
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// Do not copy to the targets
    #[arg(long)]
    no_replicate: bool,
    /// Find the members and say what would be done
    #[arg(long)]
    dry_run: bool,
    /// Run as another user than root, for an etcd without Kubernetes
    #[arg(long)]
    allow_non_root: bool,
}

#[derive(Serialize)]
struct Reply<'a> {
    #[serde(flatten)]
    backup: &'a BackupReport,
    /// Decisions on older backups; null where nothing was decided.
    retention: Option<&'a [Decision]>,
}

pub async fn run(context: &Context, arguments: Arguments) -> Result<Answer, Failure> {
    if !arguments.allow_non_root && !is_root() {
        return Err(Failure::needs_root("backup"));
    }
    let mut policy = context.policy.clone();
    policy.require_endpoints()?;
    policy.require_recipients()?;
    for warning in policy.warnings.iter().filter(|warning| !context.policy.warnings.contains(warning)) {
        tracing::warn!("{warning}");
    }
    let policy = &policy;
    let recipients = Recipients::parse(&policy.encryption.recipients)?;
    let signing = signing_key(&policy.signing.secret_key_file)?;
    let key = policy.cluster.client.as_ref().map(|client| &client.key_file);
    let password = policy.cluster.user.as_ref().map(|login| &login.password_file);
    for secret in key.into_iter().chain(password) {
        if let Some(found) = guard::check_borrowed_secret(secret)? {
            tracing::warn!("{found}; {}", found.hint());
        }
    }
    let trusted = context.trusted()?;
    let mut store = context.open_store()?;
    let lock = store.lock()?;
    if !arguments.dry_run {
        for rest in store.sweep(&lock)? {
            tracing::warn!("swept {}, left by a run that did not end", rest.display());
        }
    }
    let (catalog, findings) = look_around(context, &store)?;
    let request = Request {
        policy,
        store: &mut store,
        lock: &lock,
        catalog: &catalog,
        findings,
        recipients: &recipients,
        signing: &signing,
        reason: arguments.reason,
        host: context.host.clone(),
        now: context.now,
        cancel: context.cancel.clone(),
        progress: Arc::clone(&context.progress),
    };
    if arguments.dry_run {
        let plan = backup::plan(&request).await?;
        return Answer::new(&plan, plan_text(&plan), None);
    }
    let outcome = run::run(request, &policy.retention, &trusted).await?;
    let index = &outcome.backup.index;
    for warning in &index.warnings {
        tracing::warn!("{warning}");
    }
    let decisions = match &outcome.expiry {
        run::Expiry::Done(decisions) => Some(decisions.as_slice()),
        run::Expiry::NotDue(reason) => {
            tracing::warn!("retention: {reason}");
            None
        }
        run::Expiry::Refused(refusal) => {
            tracing::warn!("retention refused: {refusal}");
            None
        }
        run::Expiry::Failed(error) => {
            tracing::warn!("retention: {error}");
            None
        }
    };
    let text = text(&outcome.backup, decisions.unwrap_or_default());
    let failure = Failure::of_backup(&outcome.backup, &outcome.expiry);
    Answer::new(&Reply { backup: &outcome.backup, retention: decisions }, text, failure)
}

/// The key that signs; `init` makes it.
fn signing_key(path: &Path) -> Result<SecretKey, Failure> {
    if !path.exists() {
        return Err(Failure::no_signing_key(path));
    }
    guard::check_secret_file(path)?;
    Ok(SecretKey::load(path)?)
}

/// What is in the store, and what is wrong there.
fn look_around(context: &Context, store: &Store) -> Result<(Catalog, Vec<Finding>), Failure> {
    let (catalog, mut findings) = context.catalog(store)?;
    for finding in &findings {
        tracing::warn!("{}: {}", finding.name, finding.detail);
    }
    for backup in &catalog.backups {
        for verdict in backup.problems() {
            let (name, detail) = (format!("{}/{}", backup.dir_name, verdict.file), verdict.problem.unwrap_or_default());
            tracing::warn!("{name}: {detail}");
            // A file that went behind our back is this run's to report: `verify` may not run for days.
            if !backup.path.join(&verdict.file).exists() {
                findings.push(Finding { kind: FindingKind::FileMissing, name, detail });
            }
        }
    }
    Ok((catalog, findings))
}

fn plan_text(plan: &Plan) -> String {
    let rows = plan.members.iter().map(|member| {
        let leader = if member.leader { "leader" } else { "follower" };
        vec![
            member.name.clone(),
            member.endpoint.clone(),
            leader.to_owned(),
            size(member.db_bytes),
            member.file.clone(),
        ]
    });
    let mut text = Text::from(table(&["member", "endpoint", "role", "database", "file"], rows.collect(), &[3]));
    for finding in &plan.findings {
        text.line(format!("missing: {}: {}", finding.name, finding.detail));
    }
    text.line(format!("needs {} with the reserve, {} free", size(plan.needed_bytes), size(plan.free_bytes)));
    text.into_string()
}

fn text(report: &BackupReport, decisions: &[Decision]) -> String {
    let index = &report.index;
    let mut text = Text::from(members(index));
    let voting = index.members.iter().filter(|member| !member.learner).count();
    let with_file = index.members.iter().filter(|member| member.file.is_some()).count();
    let agreement = index.agreement.map_or_else(String::new, |agreement| {
        let agree = index.members.iter().filter(|member| member.agreement == Some(Agreement::Agrees)).count();
        match agreement {
            Agreement::Agrees => format!("{agree} of {voting} agree · "),
            other => format!("{} · ", other.as_str().replace('_', " ")),
        }
    });
    text.line(format!("{with_file} of {voting} members · {agreement}{} · {}", index.proof, index.path.display()));
    let dropped = decisions.iter().filter(|decision| decision.action == crate::plan::retention::Action::Drop).count();
    if dropped > 0 {
        text.line("");
        text.line(prune::decisions_table(decisions).trim_end());
    }
    text.into_string()
}
