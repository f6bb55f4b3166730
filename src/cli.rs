//! The command line: what was asked, which operation answers it, how the answer is shown. The only code that prints.

mod backup;
mod error;
mod hold;
mod init;
mod inspect;
mod json;
mod keys;
mod list;
mod pages;
mod progress;
mod prune;
mod restore;
mod show;
mod source;
mod table;
mod verify;

use std::{ffi::OsString, io::Write as _, path::PathBuf, sync::Arc};

use clap::{ArgAction, Args, CommandFactory as _, Parser, Subcommand, ValueEnum, error::ErrorKind};
use jiff::Timestamp;
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use self::{error::Failure, progress::Screen};
use crate::{
    catalog::Catalog,
    policy::{Overrides, Policy, Sources},
    record::{Finding, Progress},
    run,
    sign::{PublicKey, SecretKey, Trusted},
    store::{Store, guard},
};

/// Takes a Kubernetes cluster's etcd from every member, sealed and signed, and proves that the backup opens.
#[derive(Debug, Parser)]
#[command(name = "etcd-dr", version, propagate_version = true, arg_required_else_help = true, max_term_width = 100)]
struct Arguments {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Global options")]
struct Global {
    /// The policy [default: /etc/etcd-dr/policy.toml]
    #[arg(long, global = true, value_name = "FILE")]
    policy: Option<PathBuf>,
    /// Tables for people, or JSON for machines
    #[arg(long, global = true, value_enum, default_value_t = Output::Table)]
    output: Output,
    /// No progress, no log lines below warnings
    #[arg(long, short, global = true)]
    quiet: bool,
    /// More log lines; twice for those of the libraries
    #[arg(short, long, global = true, action = ArgAction::Count)]
    verbose: u8,
    /// Client URLs, separated by commas; any one is enough, the others come from the member list
    #[arg(long, global = true, value_name = "URLS", value_delimiter = ',')]
    endpoints: Vec<String>,
    /// The CA of the members' certificates
    #[arg(long, global = true, value_name = "FILE")]
    cacert: Option<PathBuf>,
    /// The client certificate
    #[arg(long, global = true, value_name = "FILE")]
    cert: Option<PathBuf>,
    /// The client certificate's key
    #[arg(long, global = true, value_name = "FILE")]
    key: Option<PathBuf>,
    /// The store
    #[arg(long, global = true, value_name = "DIR")]
    store: Option<PathBuf>,
    /// The only public key to trust in this run, as text or as a .pub file
    #[arg(long, global = true, value_name = "KEY|FILE")]
    public_key: Option<String>,
    /// The age identity that opens backups
    #[arg(long, global = true, value_name = "FILE")]
    identity: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    Table,
    Json,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make the store, its marker and the signing key pair
    Init(init::Arguments),

    /// Make and check the keys that open backups
    #[command(subcommand)]
    Keys(keys::Arguments),
    /// Take, seal, prove and sign a snapshot of every member
    Backup(backup::Arguments),
    /// List the backups: how old, proved how far
    List,
    /// Show one backup's index and its later proofs
    Show(show::Arguments),
    /// Look into a snapshot: revision, HashKV, members, what takes the space
    Inspect(inspect::Arguments),
    /// Prove backups again, on the bytes as they lie there now
    Verify(verify::Arguments),
    /// Drop backups that no rule keeps
    Prune(prune::Arguments),
    /// Write the data directories of a cluster from a snapshot
    Restore(Box<restore::Arguments>),
    /// Pin a backup: no prune drops it
    Hold(hold::Hold),
    /// Take a pin back
    Release(hold::Release),
    /// Write the man pages
    Man(pages::Man),
    /// Print shell completions
    Completions(pages::Completions),
}

impl Command {
    /// The command's name in schemas and file names.
    fn name(&self) -> &'static str {
        match self {
            Self::Init(_) => "init",
            Self::Keys(keys::Arguments::Generate(_)) => "keys-generate",
            Self::Keys(keys::Arguments::Check(_)) => "keys-check",
            Self::Backup(_) => "backup",
            Self::List => "list",
            Self::Show(_) => "show",
            Self::Inspect(_) => "inspect",
            Self::Verify(_) => "verify",
            Self::Prune(_) => "prune",
            Self::Restore(_) => "restore",
            Self::Hold(_) => "hold",
            Self::Release(_) => "release",
            Self::Man(_) => "man",
            Self::Completions(_) => "completions",
        }
    }
}

/// What a command answers: data in both forms, and what it amounted to.
struct Answer {
    json: serde_json::Value,
    table: String,
    /// Set where there is an answer and the exit code is not 0 all the same.
    failure: Option<Failure>,
}

impl Answer {
    fn new(data: &impl Serialize, table: String, failure: Option<Failure>) -> Result<Self, Failure> {
        let json = serde_json::to_value(data).map_err(|error| Failure::internal(&error.to_string()))?;
        Ok(Self { json, table, failure })
    }
}

/// What every command finds ready.
struct Context {
    policy: Policy,
    /// `--public-key` was given: nothing else is trusted, this host's own key neither.
    trusted_by_flag: bool,
    now: Timestamp,
    host: String,
    cancel: CancellationToken,
    progress: Arc<dyn Progress>,
}

impl Context {
    /// The keys that this run trusts: the flag's alone, else the policy's and this host's own.
    fn trusted(&self) -> Result<Trusted, Failure> {
        let signing = &self.policy.signing;
        let mut keys = Vec::new();
        for text in &signing.trusted {
            keys.push(PublicKey::from_key_or_file(text)?);
        }
        if !self.trusted_by_flag
            && let Ok(own) = SecretKey::load(&signing.secret_key_file)
            && !keys.contains(own.public())
        {
            keys.push(own.public().clone());
        }
        Ok(Trusted::new(keys))
    }

    /// This host's signing key, where it can be read and is safe to use.
    fn recorder(&self) -> Option<SecretKey> {
        let path = &self.policy.signing.secret_key_file;
        match guard::check_secret_file(path) {
            Ok(()) => SecretKey::load(path).ok(),
            Err(guard::Error::Unsafe(found)) => {
                tracing::warn!("the proof is not recorded: {found}; {}", found.hint());
                None
            }
            Err(guard::Error::Io(_)) => None,
        }
    }

    fn open_store(&self) -> Result<Store, Failure> {
        Ok(Store::open(&self.policy.store.path)?)
    }

    /// What the store holds, and what its journal misses. Without a trusted key nothing could be believed, and every backup would look broken.
    fn catalog(&self, store: &Store) -> Result<(Catalog, Vec<Finding>), Failure> {
        let trusted = self.trusted()?;
        if trusted.is_empty() {
            return Err(Failure::no_trusted_key(&self.policy.signing.secret_key_file));
        }
        let catalog = run::read_catalog(store, &trusted)?;
        let present: Vec<_> = catalog.backups.iter().map(|backup| backup.dir_name.clone()).collect();
        let findings = store.findings(&present)?;
        Ok((catalog, findings))
    }
}

/// Runs the program and returns its exit code (contract.md, 2).
///
/// `arguments` begin with the program's own name; `environment` is what the policy may read; `now` is the time of the run.
#[must_use]
pub fn main(arguments: Vec<OsString>, environment: Vec<(String, String)>, now: Timestamp) -> u8 {
    let wants_json = json::wanted(&arguments);
    let parsed = match Arguments::try_parse_from(arguments) {
        Ok(parsed) => parsed,
        Err(error) => {
            let help = error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand;
            if error.use_stderr() && (wants_json || !help) {
                let output = if wants_json { Output::Json } else { Output::Table };
                return emit(output, "usage", Err(Failure::usage(&error.to_string())));
            }
            // Help, which has its colours on a terminal only.
            if error.print().is_err() {
                tracing::debug!("nobody reads it");
            }
            return if help { 2 } else { 0 };
        }
    };
    let Arguments { global, command } = parsed;
    let (output, name) = (global.output, command.name());
    let screen = Screen::new(global.quiet || output == Output::Json);
    progress::init_logs(&screen, global.quiet, global.verbose);
    emit(output, name, dispatch(global, command, environment, now, screen))
}

fn dispatch(
    global: Global,
    command: Command,
    environment: Vec<(String, String)>,
    now: Timestamp,
    screen: Screen,
) -> Result<Answer, Failure> {
    match command {
        Command::Man(arguments) => return pages::man(&Arguments::command(), &arguments),
        Command::Completions(arguments) => return Ok(pages::completions(&mut Arguments::command(), &arguments)),
        _ => {}
    }
    if global.identity.as_ref().is_some_and(|path| path.to_string_lossy().to_uppercase().contains("AGE-SECRET-KEY-")) {
        return Err(Failure::secret_in_argument());
    }
    let flags = Overrides {
        endpoints: global.endpoints,
        cacert: global.cacert,
        cert: global.cert,
        key: global.key,
        store: global.store,
        public_key: global.public_key.into_iter().collect(),
        identity: global.identity,
    };
    let trusted_by_flag = !flags.public_key.is_empty();
    let policy = Policy::load(&Sources { file: global.policy, environment, flags, ..Sources::default() })?;
    for warning in &policy.warnings {
        tracing::warn!("{warning}");
    }
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let cancel = CancellationToken::new();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::internal(&error.to_string()))?;
    let context = Context { policy, trusted_by_flag, now, host, cancel: cancel.clone(), progress: Arc::new(screen) };
    runtime.block_on(async {
        cancel_on_signals(cancel)?;
        match command {
            Command::Init(arguments) => init::run(&context, &arguments),
            Command::Keys(arguments) => keys::run(&context, &arguments),
            Command::Backup(arguments) => backup::run(&context, arguments).await,
            Command::List => list::run(&context),
            Command::Show(arguments) => show::run(&context, &arguments),
            // Long and synchronous: this thread is theirs, the signals have another.
            Command::Verify(arguments) => tokio::task::block_in_place(|| verify::run(&context, &arguments)),
            Command::Inspect(arguments) => tokio::task::block_in_place(|| inspect::run(&context, &arguments)),
            Command::Prune(arguments) => prune::run(&context, &arguments),
            Command::Restore(arguments) => restore::run(&context, *arguments).await,
            Command::Hold(arguments) => hold::hold(&context, &arguments),
            Command::Release(arguments) => hold::release(&context, &arguments),
            Command::Man(_) | Command::Completions(_) => Err(Failure::internal("answered before")),
        }
    })
}

/// SIGINT, SIGTERM and SIGHUP end a run the same way: nothing half made stays.
fn cancel_on_signals(cancel: CancellationToken) -> Result<(), Failure> {
    use tokio::signal::unix::{SignalKind, signal};
    let internal = |error: std::io::Error| Failure::internal(&error.to_string());
    let mut interrupt = signal(SignalKind::interrupt()).map_err(internal)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(internal)?;
    let mut hangup = signal(SignalKind::hangup()).map_err(internal)?;
    tokio::spawn(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
        cancel.cancel();
    });
    Ok(())
}

/// Shows an answer: data on stdout, what went wrong on stderr, and for machines on stdout as well.
fn emit(output: Output, command: &str, result: Result<Answer, Failure>) -> u8 {
    let (data, table, failure) = match result {
        Ok(answer) => (answer.json, answer.table, answer.failure),
        Err(failure) => (serde_json::Value::Null, String::new(), Some(failure)),
    };
    let printed = match output {
        Output::Json => print(&json::render(command, data, failure.as_ref())),
        Output::Table => print(&table),
    };
    let failure = failure.or(printed.err().map(|error| Failure::no_output(&error)));
    if let Some(failure) = &failure {
        say(&failure.to_string());
    }
    failure.map_or(0, |failure| failure.code)
}

/// Writes to stdout. A reader that went away (`| head`) is no failure of the run.
fn print(text: &str) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}

/// Writes to stderr.
fn say(text: &str) {
    let mut err = std::io::stderr().lock();
    if err.write_all(text.as_bytes()).and_then(|()| err.flush()).is_err() {
        tracing::debug!("nobody reads stderr");
    }
}

/// Whether this process is root's.
fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}
