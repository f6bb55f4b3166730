//! A real etcd cluster with mutual TLS and data in it, for scripts and for a look by hand:
//! `cargo run --example lab -- --dir DIR --members 3 --fill homelab`.
//!
//! Writes into DIR: `pki/`, `endpoints` (comma list), `members` (lines of name, endpoint, process id), `start-NAME` (a script that starts that
//! member again) and at last `ready`. Runs
//! until SIGTERM, SIGINT or the end of its standard input (if that is a pipe or a terminal), then kills the members.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs,
    reason = "test code: a failure is a panic"
)]

#[path = "mod.rs"]
mod servers;

use clap::Parser;
use servers::etcd::{Cluster, Options};
use servers::kubernetes::Kubernetes;
use servers::{Series, fill};
use std::fmt::Write as _;
use std::io::{IsTerminal, Write as _};
use std::os::unix::fs::FileTypeExt;
use std::path::PathBuf;
use tokio::signal::unix::{SignalKind, signal};

/// Starts a real etcd cluster and keeps it until it is told to end.
#[derive(Parser)]
struct Arguments {
    /// Where data, logs, certificates and the files for scripts go; must not exist or be empty.
    #[arg(long)]
    dir: PathBuf,
    /// How many members.
    #[arg(long, default_value_t = 3)]
    members: usize,
    /// `homelab`, `none`, `bulk:MB`, `noise:MB` (random bytes) or `kubernetes:KEYS`.
    #[arg(long, default_value = "homelab")]
    fill: Fill,
    /// Which etcd: 3.4, 3.5 or 3.6.
    #[arg(long, default_value = "3.6", value_parser = series)]
    series: Series,
    /// Let etcd fsync, as in life; for measurements.
    #[arg(long)]
    fsync: bool,
}

#[derive(Clone, Copy)]
enum Fill {
    None,
    Homelab,
    Bulk(usize),
    Noise(usize),
    Kubernetes(usize),
}

impl std::str::FromStr for Fill {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |n: &str| n.parse().map_err(|e| format!("number {n:?}: {e}"));
        match text.split_once(':') {
            None if text == "none" => Ok(Self::None),
            None if text == "homelab" => Ok(Self::Homelab),
            Some(("bulk", n)) => number(n).map(Self::Bulk),
            Some(("noise", n)) => number(n).map(Self::Noise),
            Some(("kubernetes", n)) => number(n).map(Self::Kubernetes),
            _ => Err("homelab, none, bulk:MB, noise:MB or kubernetes:KEYS".into()),
        }
    }
}

fn series(text: &str) -> Result<Series, String> {
    Series::ALL.into_iter().find(|series| series.name() == text).ok_or_else(|| "3.4, 3.5 or 3.6".into())
}

fn main() {
    let arguments = Arguments::parse();
    // Before anything is started: a signal that comes early must find its handler.
    let (tx, told) = std::sync::mpsc::channel();
    let by_signal = tx.clone();
    servers::background(async move {
        let mut term = signal(SignalKind::terminate()).expect("a handler");
        let mut int = signal(SignalKind::interrupt()).expect("a handler");
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
        by_signal.send(()).ok();
    });
    // A shell gives /dev/null to what it runs in the background: its end says nothing.
    let kind = std::fs::metadata("/proc/self/fd/0").map(|about| about.file_type());
    if kind.is_ok_and(|kind| kind.is_fifo() || kind.is_socket()) || std::io::stdin().is_terminal() {
        std::thread::spawn(move || {
            drop(std::io::copy(&mut std::io::stdin(), &mut std::io::sink()));
            tx.send(()).ok();
        });
    }

    std::fs::create_dir_all(&arguments.dir).expect("the directory");
    let empty = std::fs::read_dir(&arguments.dir).expect("the directory").next().is_none();
    assert!(empty, "{} is not empty", arguments.dir.display());
    let dir = arguments.dir.canonicalize().expect("the directory");
    let series = arguments.series;
    let extra_args = match arguments.fill {
        Fill::Bulk(_) | Fill::Noise(_) | Fill::Kubernetes(_) => fill::big_fill_args(series),
        Fill::None | Fill::Homelab => Vec::new(),
    };
    let options = Options { extra_args, fsync: arguments.fsync, series, dir: Some(dir.clone()), ..Options::default() };
    let cluster = Cluster::start(arguments.members, options);
    let client = cluster.client(0);
    let revision = match arguments.fill {
        Fill::None => None,
        Fill::Homelab => Some(fill::homelab(&client)),
        Fill::Bulk(megabytes) => Some(fill::bulk(&client, megabytes)),
        Fill::Noise(megabytes) => Some(fill::incompressible(&client, megabytes)),
        Fill::Kubernetes(keys) => Some(fill::kubernetes(&client, Kubernetes::of(keys))),
    }
    .map_or(1, |filled| filled.revision);

    let mut members = String::new();
    for i in 0..cluster.len() {
        let pid = cluster.pid(i).expect("it runs");
        writeln!(members, "{} {} {pid}", cluster.name(i), cluster.endpoint(i)).expect("a string");
        std::fs::write(dir.join(format!("start-{}", cluster.name(i))), cluster.start_script(i)).expect("a script");
    }
    std::fs::write(dir.join("endpoints"), format!("{}\n", cluster.endpoints().join(","))).expect("endpoints");
    std::fs::write(dir.join("members"), members).expect("members");
    std::fs::write(dir.join("ready"), "").expect("ready");
    let mut out = std::io::stdout().lock();
    writeln!(out, "{} members at revision {revision}, {}", cluster.len(), dir.display()).expect("stdout");
    drop(out);
    told.recv().expect("the listener lives");
}
