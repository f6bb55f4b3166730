//! `init`: makes a store.

use std::path::Path;

use clap::Args;

use super::{Answer, Context, error::Failure, is_root, table::Text};
use crate::{
    ops::init::{self, InitReport, Request},
    record::EtcdId,
};

/// Arguments of `init`.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Say what would be made
    #[arg(long)]
    dry_run: bool,
    /// A cluster whose backups this store takes from now on: the new id of a cluster that was restored
    #[arg(long, value_name = "ID", value_parser = cluster_id)]
    accept_cluster: Option<EtcdId>,
    /// Run as another user than root, for an etcd without Kubernetes
    #[arg(long)]
    allow_non_root: bool,
}

fn cluster_id(text: &str) -> Result<EtcdId, String> {
    text.parse()
        .map_err(|_not_hex| "a cluster id is 1 to 16 hex digits, as the refusal of `backup` prints it".to_owned())
}

pub fn run(context: &Context, arguments: &Arguments) -> Result<Answer, Failure> {
    if !arguments.allow_non_root && !is_root() {
        return Err(Failure::needs_root("init"));
    }
    let request = Request {
        store: &context.policy.store.path,
        signing_key: &context.policy.signing.secret_key_file,
        trusted: &context.trusted()?,
        accept_cluster: arguments.accept_cluster,
        system_root: Path::new("/"),
        now: context.now,
    };
    let plan = init::plan(&request)?;
    let report = if arguments.dry_run { plan.report() } else { init::execute(plan)? };
    for warning in &report.warnings {
        tracing::warn!("{warning}");
    }
    let text = text(&report, arguments.dry_run);
    Answer::new(&report, text, None)
}

fn text(report: &InitReport, dry_run: bool) -> String {
    let mut text = Text::default();
    let verb = if dry_run { "would make" } else { "made" };
    for path in &report.created {
        text.line(format!("{verb} {}", path.display()));
    }
    for name in &report.foreign {
        text.line(format!("not ours, left alone: {name}"));
    }
    text.line(format!("store      {}", report.store.display()));
    if let Some(key) = &report.public_key {
        text.line(format!("public key {key}"));
    }
    text.into_string()
}
