//! `show`: one backup's index, and its later proofs.

use clap::Args;
use serde_json::{Value, json};

use super::{
    Answer, Context,
    error::Failure,
    hold, list,
    table::{Text, age, members, shown},
};
use crate::{
    catalog::{Backup, Signed},
    record::Held,
};

/// Arguments of `show`.
#[derive(Debug, Args)]
pub struct Arguments {
    /// A backup's id, or `latest`
    #[arg(default_value = "latest")]
    id: String,
}

pub fn run(context: &Context, arguments: &Arguments) -> Result<Answer, Failure> {
    let store = context.open_store()?;
    let (catalog, _) = context.catalog(&store)?;
    let backup = catalog.resolve(&arguments.id).map_err(|error| Failure::no_such_backup(store.path(), &error))?;
    let Some(signed) = backup.signed() else {
        let data = json!({ "id": backup.dir_name, "problems": backup.problems() });
        return Answer::new(&data, String::new(), Some(Failure::broken(backup)));
    };
    let holds = list::held(&store)?;
    let hold = holds.as_ref().and_then(|holds| holds.get(&backup.dir_name));
    let mut data = serde_json::to_value(&signed.index).map_err(|error| Failure::internal(&error.to_string()))?;
    if let Value::Object(fields) = &mut data {
        fields.insert("proofs".to_owned(), proofs(signed));
        fields.insert("problems".to_owned(), json!(backup.problems()));
        fields.insert("level".to_owned(), json!(backup.level()));
        fields.insert("held".to_owned(), json!(holds.as_ref().map(|_| hold.is_some())));
        fields.insert("hold".to_owned(), json!(hold));
    }
    Answer::new(&data, text(context, backup, signed, hold), None)
}

fn proofs(signed: &Signed) -> Value {
    let proofs = signed.proofs.iter().map(
        |seen| json!({ "file": seen.file, "counted": seen.counted, "problem": seen.problem, "record": seen.record }),
    );
    proofs.collect()
}

fn text(context: &Context, backup: &Backup, signed: &Signed, hold: Option<&Held>) -> String {
    let index = &signed.index;
    let mut lines = vec![
        format!("backup    {}", index.id),
        format!("made      {} ({} ago) on {}", index.created_at, age(context.now, index.created_at), index.host),
        format!("cluster   {} ({})", index.cluster_name, index.cluster_id),
        format!(
            "proof     {} by its run, {} now{}",
            index.proof,
            backup.level(),
            if index.partial { ", partial" } else { "" }
        ),
        format!("primary   {}", index.primary.as_deref().unwrap_or("none")),
        format!("signed by {}", signed.signer.to_base64()),
        format!("for       {}", index.recipients.join(", ")),
    ];
    lines.extend(hold.map(|hold| format!("held      {}", hold::words(hold))));
    lines.extend(index.reason.iter().map(|reason| format!("reason    {}", shown(reason))));
    lines.push(String::new());
    let mut text = Text::default();
    for line in lines {
        text.line(line);
    }
    text.line(members(index).trim_end());
    for seen in &signed.proofs {
        let verdict = seen.record.as_ref().map_or_else(String::new, |record| {
            let verdict = if record.ok { "passed" } else { "FAILED" };
            format!("{} {verdict} on {} at {}", record.level, record.host, record.made_at)
        });
        let counted = seen.problem.as_deref().map(|problem| format!(" (not counted: {problem})")).unwrap_or_default();
        text.line(format!("proof {}: {verdict}{counted}", seen.file));
    }
    for finding in &index.findings {
        text.line(format!("finding: {}: {}", finding.name, finding.detail));
    }
    for warning in &index.warnings {
        text.line(format!("warning: {warning}"));
    }
    for verdict in backup.problems() {
        text.line(format!("problem: {}: {}", verdict.file, verdict.problem.unwrap_or_default()));
    }
    text.into_string()
}
