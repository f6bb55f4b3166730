//! `list`: what exists, proved how far, how old.

use serde_json::{Value, json};

use super::{
    Answer, Context,
    error::Failure,
    table::{age, or_dash, size, table},
};
use crate::{
    catalog::{Backup, SeenProof},
    record::{Agreement, FileVerdict, Holds, ProofLevel},
    store::{self, Store},
};

pub fn run(context: &Context) -> Result<Answer, Failure> {
    let store = context.open_store()?;
    let (catalog, findings) = context.catalog(&store)?;
    let holds = held(&store)?;
    let backups: Vec<Value> = catalog.backups.iter().map(|backup| describe(context, backup, holds.as_ref())).collect();
    // A column of its own only where something is held: most stores hold nothing.
    let some_held = catalog.backups.iter().any(|backup| is_held(backup, holds.as_ref()) == Some(true));
    let rows = catalog.backups.iter().map(|backup| {
        let index = backup.signed().map(|signed| &signed.index);
        let members = index.map(|index| {
            let with_file = index.members.iter().filter(|member| member.file.is_some()).count();
            format!("{with_file} of {}", index.members.iter().filter(|member| !member.learner).count())
        });
        let mut row = vec![
            backup.dir_name.to_string(),
            or_dash(index.map(|index| age(context.now, index.created_at))),
            backup.level().to_string(),
            or_dash(members),
            or_dash(index.map(|index| size(index.sealed_bytes()))),
        ];
        if some_held {
            let held = is_held(backup, holds.as_ref()) == Some(true);
            row.push(if held { "held" } else { "" }.to_owned());
        }
        row.push(problems(backup).first().map_or_else(
            || doubts(backup),
            |verdict| format!("{}: {}", verdict.file, verdict.problem.as_deref().unwrap_or("not as it should be")),
        ));
        row
    });
    let mut heading = vec!["backup", "age", "proof", "members", "sealed"];
    heading.extend(some_held.then_some("hold"));
    heading.push("problem");
    let mut text = table(&heading, rows.collect(), &[1, 4]);
    if catalog.backups.is_empty() {
        text = format!("no backups in {}\n", store.path().display());
    }
    for finding in &findings {
        tracing::warn!("{}: {}", finding.name, finding.detail);
    }
    let foreign = store.foreign()?;
    Answer::new(&json!({ "backups": backups, "findings": findings, "foreign": foreign }), text, None)
}

/// What the run that made it had to say against it.
fn doubts(backup: &Backup) -> String {
    let Some(index) = backup.signed().map(|signed| &signed.index) else { return String::new() };
    let differ = index.members.iter().filter(|member| member.agreement == Some(Agreement::Differs));
    let mut words: Vec<String> = differ.map(|member| format!("{} differs", member.name)).collect();
    let missing = index.members.iter().filter(|member| member.is_missing());
    words.extend(missing.map(|member| format!("{} is missing", member.name)));
    if index.primary.is_none() {
        words.push("no primary: name one with --from".to_owned());
    }
    words.join(", ")
}

/// What a listing sees, and what a later proof saw that still stands: a level that fell has its reason.
fn problems(backup: &Backup) -> Vec<FileVerdict> {
    let mut problems = backup.problems();
    let fell = backup.level() == ProofLevel::None && problems.is_empty();
    let records = backup.signed().into_iter().flat_map(|signed| &signed.proofs);
    let failed = records.filter_map(SeenProof::counted_record).rfind(|record| !record.ok);
    if let Some(record) = failed.filter(|_| fell) {
        let bad = record.files.iter().filter(|verdict| !verdict.ok);
        problems.extend(bad.map(|verdict| FileVerdict {
            problem: verdict.problem.as_ref().map(|problem| format!("{problem} (verified {})", record.made_at)),
            ..verdict.clone()
        }));
    }
    problems
}

/// What is held; nothing where the file does not say, which is among the findings.
pub fn held(store: &Store) -> Result<Option<Holds>, Failure> {
    match store.holds() {
        Ok(holds) => Ok(Some(holds)),
        Err(store::Error::BadHolds { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn is_held(backup: &Backup, holds: Option<&Holds>) -> Option<bool> {
    holds.map(|holds| holds.get(&backup.dir_name).is_some())
}

fn describe(context: &Context, backup: &Backup, holds: Option<&Holds>) -> Value {
    let index = backup.signed().map(|signed| &signed.index);
    let age = index.map(|index| context.now.duration_since(index.created_at).as_secs());
    json!({
        "id": backup.dir_name,
        "created_at": index.map(|index| index.created_at),
        "age_seconds": age,
        "proof": backup.level(),
        "agreement": index.and_then(|index| index.agreement),
        "partial": index.map(|index| index.partial),
        "held": is_held(backup, holds),
        "sealed_bytes": index.map(crate::record::Index::sealed_bytes),
        "targets": ["store"],
        "problems": problems(backup),
    })
}
