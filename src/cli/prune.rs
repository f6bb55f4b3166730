//! `prune`: drops backups that no rule keeps.

use clap::Args;
use serde_json::json;

use super::{
    Answer, Context,
    error::Failure,
    table::{Text, table},
};
use crate::{
    ops::prune,
    plan::retention::{Action, Decision},
    run,
};

/// Arguments of `prune`.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Say what would go, and why
    #[arg(long)]
    dry_run: bool,
    /// A gap of more than 30 days without backups is known and no reason to stop
    #[arg(long)]
    accept_gap: bool,
}

pub fn run(context: &Context, arguments: &Arguments) -> Result<Answer, Failure> {
    if context.policy.source.is_none() && !arguments.dry_run {
        return Err(Failure::no_policy());
    }
    let store = context.open_store()?;
    let lock = store.lock()?;
    let (catalog, _) = context.catalog(&store)?;
    let rules = &context.policy.retention;
    let mut decisions = prune::plan(&catalog, &store.holds()?, rules, context.now, arguments.accept_gap)?;
    if !arguments.dry_run {
        for rest in store.sweep(&lock)? {
            tracing::warn!("swept {}, left by a run that did not end", rest.display());
        }
        decisions = run::drop_backups(&store, &lock, &catalog, decisions, rules, context.now)?;
    }
    let dropped = decisions.iter().filter(|decision| decision.action == Action::Drop).count();
    let mut text = Text::from(decisions_table(&decisions));
    let verb = if arguments.dry_run { "would be dropped" } else { "dropped" };
    text.line(format!("{dropped} of {} {verb}", decisions.len()));
    Answer::new(&json!({ "decisions": decisions, "dry_run": arguments.dry_run }), text.into_string(), None)
}

/// A row a backup, with every reason.
pub fn decisions_table(decisions: &[Decision]) -> String {
    let rows = decisions.iter().map(|decision| {
        let action = match decision.action {
            Action::Keep => "keep",
            Action::Drop => "drop",
        };
        vec![decision.id.to_string(), action.to_owned(), decision.reasons.join("; ")]
    });
    table(&["backup", "action", "reasons"], rows.collect(), &[])
}
