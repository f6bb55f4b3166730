//! `man` and `completions`, from the same definitions that parse the command line.

use std::path::PathBuf;

use clap::Args;
use serde_json::Value;

use super::{Answer, error::Failure};
use crate::{
    at::{At as _, PathError},
    durable,
};

/// Arguments of `man`.
#[derive(Debug, Args)]
pub struct Man {
    /// Where the pages go, a file a command; without it the main page goes to stdout
    dir: Option<PathBuf>,
}

/// Arguments of `completions`.
#[derive(Debug, Args)]
pub struct Completions {
    /// The shell
    #[arg(value_enum)]
    shell: clap_complete::Shell,
}

/// Writes the man pages.
pub fn man(command: &clap::Command, arguments: &Man) -> Result<Answer, Failure> {
    let Some(dir) = &arguments.dir else {
        return Ok(Answer { json: Value::Null, table: page(command.clone())?, failure: None });
    };
    std::fs::create_dir_all(dir).at(dir)?;
    let mut command = command.clone().disable_help_subcommand(true);
    command.build();
    let mut written = Vec::new();
    write_pages(&command, dir, &mut written)?;
    let table = format!("{} man pages in {}\n", written.len(), dir.display());
    Answer::new(&serde_json::json!({ "files": written }), table, None)
}

fn write_pages(command: &clap::Command, dir: &std::path::Path, written: &mut Vec<PathBuf>) -> Result<(), Failure> {
    // A built command's subcommands carry their whole name: `etcd-dr-keys-check`.
    let name = command.get_display_name().unwrap_or_else(|| command.get_name()).to_owned();
    let path = dir.join(format!("{name}.1"));
    let replaced: Result<(), PathError> = durable::replace(&path, page(command.clone())?.as_bytes(), 0o644);
    replaced?;
    written.push(path);
    command.get_subcommands().try_for_each(|command| write_pages(command, dir, written))
}

fn page(command: clap::Command) -> Result<String, Failure> {
    let mut page = Vec::new();
    clap_mangen::Man::new(command).render(&mut page).map_err(|error| Failure::internal(&error.to_string()))?;
    Ok(String::from_utf8_lossy(&page).into_owned())
}

/// Prints completions.
pub fn completions(command: &mut clap::Command, arguments: &Completions) -> Answer {
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, command, "etcd-dr", &mut script);
    Answer { json: Value::Null, table: String::from_utf8_lossy(&script).into_owned(), failure: None }
}
