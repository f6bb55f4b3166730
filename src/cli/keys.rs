//! `keys generate` and `keys check`: who can open backups, and whether somebody still can.

use std::{path::PathBuf, sync::Arc};

use age::secrecy::ExposeSecret as _;
use clap::{Args, Subcommand};
use serde_json::json;

use super::{Answer, Context, error::Failure};
use crate::{
    durable,
    ops::verify,
    record::ProofLevel,
    seal::{self, Identities},
    store::guard,
};

/// Subcommands of `keys`.
#[derive(Debug, Subcommand)]
pub enum Arguments {
    /// Make an age identity and print its recipient
    Generate(Generate),
    /// Prove that the identity opens the newest backup
    Check(Check),
}

/// Arguments of `keys generate`.
#[derive(Debug, Args)]
pub struct Generate {
    /// The identity's file, which must not exist [default: the policy's]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// Arguments of `keys check`; the identity is the global `--identity`.
#[derive(Debug, Args)]
pub struct Check {}

pub fn run(context: &Context, arguments: &Arguments) -> Result<Answer, Failure> {
    match arguments {
        Arguments::Generate(arguments) => generate(context, arguments),
        Arguments::Check(_) => check(context),
    }
}

fn generate(context: &Context, arguments: &Generate) -> Result<Answer, Failure> {
    let path = arguments.out.as_ref().unwrap_or(&context.policy.encryption.identity_file);
    // The policy's directory is made; one that a flag names may be a slip, and an identity that went astray is lost.
    if arguments.out.is_none()
        && let Some(parent) = path.parent()
        && !parent.as_os_str().is_empty()
        && !parent.exists()
    {
        durable::create_dir(parent)?;
    }
    let (file, recipient) = seal::generate_identity(context.now);
    durable::create(path, file.expose_secret().as_bytes(), durable::FILE_MODE)?;
    tracing::info!(
        "the identity is in {}; keep a copy of it away from this host, nothing else opens the backups",
        path.display()
    );
    Answer::new(&json!({ "recipient": recipient, "identity_file": path }), format!("{recipient}\n"), None)
}

fn check(context: &Context) -> Result<Answer, Failure> {
    let store = context.open_store()?;
    let (catalog, _) = context.catalog(&store)?;
    let backup = catalog.newest_trusted().ok_or_else(|| Failure::no_backup(store.path()))?;
    let identities = identities(context)?;
    let recorder = context.recorder();
    let request = verify::Request {
        level: ProofLevel::Open,
        required: true,
        scratch_dirs: Vec::new(),
        identities: Some(Arc::new(identities)),
        recorder: recorder.as_ref(),
        host: context.host.clone(),
        now: context.now,
        cancel: context.cancel.clone(),
        progress: Arc::clone(&context.progress),
    };
    let report = tokio::task::block_in_place(|| verify::run(&request, &[backup], Vec::new()))?;
    let id = backup.dir_name.clone();
    let failure = super::verify::failure(&report, None);
    let table = if report.ok { format!("the identity opens every file of {id}\n") } else { String::new() };
    Answer::new(&json!({ "ok": report.ok, "id": id }), table, failure)
}

/// The identity that the flag or the policy names.
pub fn identities(context: &Context) -> Result<Identities, Failure> {
    let path = &context.policy.encryption.identity_file;
    if !path.exists() {
        return Err(Failure::no_identity(path));
    }
    guard::check_secret_file(path)?;
    Ok(Identities::load(path)?)
}
