//! `hold` and `release`: pins a backup against expiry, and takes the pin back.

use clap::Args;

use super::{
    Answer, Context,
    error::Failure,
    table::{Text, shown},
};
use crate::{
    ops::hold::{self, Error, Report, Request},
    record::Held,
};

/// Arguments of `hold`.
#[derive(Debug, Args)]
pub struct Hold {
    /// A backup's id, or `latest`
    id: String,
    /// Why it is kept; `show` says it
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
}

/// Arguments of `release`.
#[derive(Debug, Args)]
pub struct Release {
    /// A backup's id, or `latest`
    id: String,
}

/// Pins a backup.
pub fn hold(context: &Context, arguments: &Hold) -> Result<Answer, Failure> {
    answer(context, |request| hold::hold(request, &arguments.id, arguments.reason.clone()))
}

/// Takes a pin back.
pub fn release(context: &Context, arguments: &Release) -> Result<Answer, Failure> {
    answer(context, |request| hold::release(request, &arguments.id))
}

fn answer(context: &Context, act: impl FnOnce(&Request<'_>) -> Result<Report, Error>) -> Result<Answer, Failure> {
    let store = context.open_store()?;
    let lock = store.lock()?;
    let (catalog, _) = context.catalog(&store)?;
    let request = Request { store: &store, lock: &lock, catalog: &catalog, host: &context.host, now: context.now };
    let report = act(&request).map_err(|error| match error {
        Error::Unknown { error, nearest } => Failure::unknown_backup(store.path(), &error, nearest.as_ref()),
        Error::Store(error) => error.into(),
    })?;
    for warning in &report.warnings {
        tracing::warn!("{warning}");
    }
    let mut text = Text::default();
    text.line(line(&report));
    Answer::new(&report, text.into_string(), None)
}

fn line(report: &Report) -> String {
    let id = &report.id;
    let pin = report.hold.as_ref().map(words).unwrap_or_default();
    match (report.held, report.changed) {
        (true, true) => format!("{id} is held: no prune drops it until `etcd-dr release {id}`"),
        (true, false) => format!("{id} was held already, {pin}"),
        (false, true) => format!("{id} is released, and was held {pin}"),
        (false, false) => format!("{id} was not held"),
    }
}

/// Since when, where and why: `since 2026-11-22T02:00:00Z on k8s (before the upgrade)`.
pub fn words(held: &Held) -> String {
    let host = held.host.as_ref().map(|host| format!(" on {}", shown(host))).unwrap_or_default();
    let reason = held.reason.as_ref().map(|reason| format!(" ({})", shown(reason))).unwrap_or_default();
    format!("since {}{host}{reason}", held.at)
}
