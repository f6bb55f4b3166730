//! `inspect`: a snapshot from the inside.

use std::path::{Path, PathBuf};

use clap::Args;
use rustix::fs::Access;

use super::{
    Answer, Context,
    error::Failure,
    source,
    table::{Text, or_dash, size, table},
};
use crate::{
    etcd::survey::Wants,
    ops::inspect::{self, Error, Report},
    record::names,
    source::Named,
};

/// Arguments of `inspect`.
#[derive(Debug, Args)]
pub struct Arguments {
    /// A backup's id, `latest`, a backup's directory, a file .db, .db.zst or .db.zst.age, or a stopped member's data directory
    source: String,
    /// The member of the backup whose snapshot it shall be [default: the primary]
    #[arg(long, value_name = "MEMBER")]
    from: Option<String>,
    /// Segments of a key that make its prefix; 0 leaves the prefixes out
    #[arg(long, value_name = "N", default_value_t = 2)]
    depth: usize,
    /// How many of the keys with the largest values are listed
    #[arg(long, value_name = "N", default_value_t = 5)]
    largest: usize,
    /// The write-ahead log of a stopped member, where it is not in its data directory
    #[arg(long, value_name = "DIR")]
    wal_dir: Option<PathBuf>,
}

pub fn run(context: &Context, arguments: &Arguments) -> Result<Answer, Failure> {
    let database = database(&arguments.source)?;
    let text = database.as_deref().map_or(arguments.source.as_str().into(), Path::to_string_lossy);
    // What is in a snapshot needs nothing of the store around it.
    let source::Found { source, store: _store } = source::find(context, &text, arguments.from.as_deref())?;
    let identities = source::identities(context, &source)?;
    let scratch_dir = scratch_dir(context, &source.path);
    let report = inspect::run(&inspect::Request {
        source: &source,
        wal_dir: arguments.wal_dir.as_deref(),
        identities: identities.as_ref(),
        scratch_dir: &scratch_dir,
        wants: Wants { depth: arguments.depth, largest: arguments.largest },
        cancel: &context.cancel,
    })?;
    Answer::new(&report, text_of(&report), None)
}

/// A directory that is no backup is a member's, or nothing.
fn database(text: &str) -> Result<Option<PathBuf>, Failure> {
    let Named::Directory(dir) = Named::parse(text)? else { return Ok(None) };
    let database = inspect::database_in(&dir);
    if database.is_none() && !dir.join(names::INDEX).exists() {
        return Err(Error::NoDatabase { dir }.into());
    }
    Ok(database)
}

/// Where the opened copy of a sealed or compressed snapshot lies: where the policy says, beside it, or on some disk.
fn scratch_dir(context: &Context, path: &Path) -> PathBuf {
    let writable = |dir: &PathBuf| rustix::fs::access(dir, Access::WRITE_OK | Access::EXEC_OK).is_ok();
    let beside = path.parent().map(Path::to_owned);
    let choices = [context.policy.backup.scratch_dir.clone(), beside];
    choices.into_iter().flatten().find(writable).unwrap_or_else(|| PathBuf::from("/var/tmp"))
}

fn text_of(report: &Report) -> String {
    let mut text = Text::default();
    let mut fact = |name: &str, value: &str| text.line(format!("{name:<17} {value}"));
    fact("source", &report.source);
    if let (Some(backup), Some(from)) = (&report.backup, &report.from) {
        fact("snapshot of", &format!("{from}, in backup {backup}"));
    }
    fact("revision", &report.revision.to_string());
    let compacted = if report.compact_revision < 0 { "never".to_owned() } else { report.compact_revision.to_string() };
    fact("compact revision", &compacted);
    fact("hashkv", &format!("{:08x}", report.hash_kv));
    fact("status hash", &format!("{:08x}", report.status_hash));
    fact("keys", &format!("{} ({})", report.total_keys, size(report.live_bytes)));
    fact("rows", &report.total_rows.to_string());
    fact("size", &format!("{}, pages of {}", size(report.total_size), size(report.page_size)));
    let saved = size(report.saved_by_defragmentation);
    fact("free", &format!("{}; a defragmentation gives back at least {saved}", size(report.free_bytes)));
    let cluster = or_dash(report.cluster_version.as_ref());
    let storage = or_dash(report.storage_version.as_ref());
    fact("versions", &format!("schema {}, storage {storage}, cluster {cluster}", report.schema_version));
    fact("raft", &format!("index {}, term {}", report.consistent_index, or_dash(report.term)));
    if let Some(wal) = &report.wal {
        let lag = or_dash(report.wal_lag);
        fact("log", &format!("member {}, agreed up to {}: {lag} entries ahead", wal.member, wal.commit));
    }
    let kind = if report.trailer { "etcd's SHA-256 is at its end and right" } else { "none" };
    fact("trailer", kind);
    for member in &report.members {
        let learner = if member.learner { ", learner" } else { "" };
        let name = if member.name.is_empty() { "(not started)" } else { &member.name };
        fact("member", &format!("{name} ({}) {}{learner}", member.id, member.peer_urls.join(",")));
    }
    fact("leases", &report.leases.len().to_string());
    if report.auth.enabled || report.auth.users > 0 {
        let enabled = if report.auth.enabled { "enabled" } else { "not enabled" };
        fact("auth", &format!("{enabled}, {} users, {} roles", report.auth.users, report.auth.roles));
    }
    let alarms: Vec<String> =
        report.alarms.iter().map(|alarm| format!("{} of member {}", alarm.alarm, alarm.member)).collect();
    fact("alarms", &if alarms.is_empty() { "none".to_owned() } else { alarms.join(", ") });
    let mut whole = text.into_string();
    if !report.prefixes.is_empty() {
        let mut prefixes: Vec<_> = report.prefixes.iter().collect();
        prefixes.sort_by_key(|prefix| std::cmp::Reverse(prefix.bytes));
        let rows = prefixes.iter().map(|p| vec![named(&p.prefix), p.keys.to_string(), size(p.bytes)]);
        whole.push('\n');
        whole.push_str(&table(&["prefix", "keys", "bytes"], rows.collect(), &[1, 2]));
    }
    if !report.largest.is_empty() {
        let rows = report.largest.iter().map(|large| {
            vec![named(&large.key), size(large.bytes.into()), large.mod_revision.to_string(), large.version.to_string()]
        });
        whole.push('\n');
        whole.push_str(&table(&["largest", "value", "modified at", "version"], rows.collect(), &[1, 2, 3]));
    }
    if !report.warnings.is_empty() {
        whole.push('\n');
    }
    let mut notes = Text::default();
    for warning in &report.warnings {
        notes.line(format!("warning: {warning}"));
    }
    whole.push_str(&notes.into_string());
    whole
}

fn named(key: &str) -> String {
    if key.is_empty() { "\"\"".to_owned() } else { key.to_owned() }
}
