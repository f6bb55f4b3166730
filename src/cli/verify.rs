//! `verify`: proves backups again; the guard in CI.

use std::{str::FromStr as _, sync::Arc, time::Duration};

use clap::Args;

use super::{
    Answer, Context,
    error::Failure,
    keys,
    table::{Text, table},
};
use crate::{
    catalog::{Backup, Catalog, NoSuchBackup},
    ops::verify::{self, Report},
    policy::units,
    record::ProofLevel,
};

/// Arguments of `verify`.
#[derive(Debug, Args)]
pub struct Arguments {
    /// A backup's id, or `latest`
    #[arg(default_value = "latest", conflicts_with = "all")]
    id: String,
    /// Every backup in the store
    #[arg(long)]
    all: bool,
    /// How far to prove: digest, open or sound [default: sound where the identity is at hand, else digest]
    #[arg(long, value_parser = level)]
    level: Option<ProofLevel>,
    /// Fail with exit code 30 where the newest good backup is older, for instance 26h
    #[arg(long, value_name = "AGE", value_parser = units::duration)]
    max_age: Option<Duration>,
}

fn level(text: &str) -> Result<ProofLevel, String> {
    match ProofLevel::from_str(text).map_err(|error| error.to_string())? {
        level @ (ProofLevel::Digest | ProofLevel::Open | ProofLevel::Sound) => Ok(level),
        ProofLevel::None => Err("`none` proves nothing; take digest, open or sound".to_owned()),
        later => Err(format!("`{later}` is not built yet; this version proves up to sound")),
    }
}

pub fn run(context: &Context, arguments: &Arguments) -> Result<Answer, Failure> {
    let store = context.open_store()?;
    let (catalog, findings) = context.catalog(&store)?;
    if catalog.backups.is_empty() && findings.is_empty() {
        return Err(Failure::no_backup(store.path()));
    }
    let backups = chosen(&catalog, arguments).map_err(|error| Failure::no_such_backup(store.path(), &error))?;
    let identity_at_hand = context.policy.encryption.identity_file.exists();
    let level = arguments.level.unwrap_or(if identity_at_hand { ProofLevel::Sound } else { ProofLevel::Digest });
    let identities = if level >= ProofLevel::Open { Some(Arc::new(keys::identities(context)?)) } else { None };
    let recorder = context.recorder();
    let request = verify::Request {
        level,
        required: arguments.level.is_some(),
        scratch_dirs: context.policy.backup.scratch_dir.iter().cloned().collect(),
        identities,
        recorder: recorder.as_ref(),
        host: context.host.clone(),
        now: context.now,
        cancel: context.cancel.clone(),
        progress: Arc::clone(&context.progress),
    };
    let report = verify::run(&request, &backups, findings)?;
    for warning in &report.warnings {
        tracing::warn!("{warning}");
    }
    let newest_good = report.results.iter().filter(|result| result.ok).filter_map(|result| result.created_at).max();
    let stale = arguments.max_age.and_then(|limit| {
        let age = newest_good.map(|time| Duration::try_from(context.now.duration_since(time)).unwrap_or_default());
        (age.is_none_or(|age| age > limit)).then(|| Failure::stale(newest_good, limit))
    });
    Answer::new(&report, text(&report), failure(&report, stale))
}

/// `latest` is the newest by its signed time, and every newer name that cannot be believed: damage to the newest must not make the one
/// before it the answer.
fn chosen<'a>(catalog: &'a Catalog, arguments: &Arguments) -> Result<Vec<&'a Backup>, NoSuchBackup> {
    if arguments.all {
        return Ok(catalog.backups.iter().collect());
    }
    if arguments.id != "latest" {
        return catalog.resolve(&arguments.id).map(|backup| vec![backup]);
    }
    let newest = catalog.newest_trusted();
    let broken = catalog
        .backups
        .iter()
        .filter(|backup| backup.signed().is_none() && newest.is_none_or(|newest| backup.dir_name > newest.dir_name));
    Ok(broken.chain(newest).collect())
}

fn text(report: &Report) -> String {
    let mut rows = Vec::new();
    for result in &report.results {
        for file in &result.files {
            let problem = file.problem.clone().unwrap_or_else(|| "ok".to_owned());
            rows.push(vec![result.id.to_string(), file.file.clone(), problem]);
        }
    }
    let mut text = Text::from(table(&["backup", "file", "verdict"], rows, &[]));
    for result in &report.results {
        let proved = if result.ok { format!("proved {}", result.level) } else { "NOT proved".to_owned() };
        let verdict = if result.partial { format!("{proved}, partial") } else { proved };
        text.line(format!("{}  {verdict}", result.id));
    }
    text.into_string()
}

/// What a report amounts to: the first that applies of wrong key, failed verification, staleness.
pub fn failure(report: &Report, stale: Option<Failure>) -> Option<Failure> {
    if report.results.iter().any(|result| result.wrong_key) {
        return Some(Failure::wrong_key(report));
    }
    if !report.ok {
        return Some(Failure::not_proved(report));
    }
    stale
}
