//! Real servers for the tests: etcd members under mutual TLS, proxies that misbehave in front of them, and data to fill them.
//!
//! Nothing of etcd is imitated. A missing binary or tool is a panic that says what to do, never a skipped test.
//!
//! Everything here blocks, so that a test which runs the product's binary stays a plain `#[test]`; asynchronous work happens
//! on a runtime of the harness' own, through [`wait`].
#![allow(dead_code, reason = "each test file uses its part")]

pub mod ask;
pub mod etcd;
pub mod fill;
pub mod kubernetes;
pub mod pki;
pub mod ports;
pub mod preload;
pub mod process;
pub mod proxy;
pub mod silent;

use std::future::Future;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{LazyLock, OnceLock};

static RUNTIME: LazyLock<tokio::runtime::Runtime> = LazyLock::new(|| {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("servers")
        .enable_all()
        .build()
        .expect("a runtime for the test servers")
});

/// Runs a future on the harness' runtime and blocks until it is done; works on any thread, inside another runtime too.
pub fn wait<F>(future: F) -> F::Output
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    let (tx, rx) = std::sync::mpsc::sync_channel(1);
    RUNTIME.spawn(async move {
        let output = future.await;
        // The receiver is gone only if the waiting thread is.
        drop(tx.send(output));
    });
    rx.recv().expect("the future panicked; its words are above")
}

/// Starts a future on the harness' runtime and returns at once.
pub fn background<F>(future: F) -> tokio::task::JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    RUNTIME.spawn(future)
}

/// A minor release of etcd. They differ on disk, and in what their tools are called.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Series {
    V3_4,
    V3_5,
    #[default]
    V3_6,
}

impl Series {
    /// All of them, the oldest first.
    pub const ALL: [Self; 3] = [Self::V3_4, Self::V3_5, Self::V3_6];

    /// As `scripts/servers` takes it, and as versions begin.
    pub const fn name(self) -> &'static str {
        match self {
            Self::V3_4 => "3.4",
            Self::V3_5 => "3.5",
            Self::V3_6 => "3.6",
        }
    }

    /// What works on files. 3.4 has no etcdutl: its etcdctl does that too.
    pub const fn offline_tool(self) -> &'static str {
        match self {
            Self::V3_4 => "etcdctl",
            Self::V3_5 | Self::V3_6 => "etcdutl",
        }
    }

    /// The variable by which `scripts/test` says where the binaries are.
    const fn variable(self) -> &'static str {
        match self {
            Self::V3_4 => "ETCD_DR_TEST_SERVERS_3_4",
            Self::V3_5 => "ETCD_DR_TEST_SERVERS_3_5",
            Self::V3_6 => "ETCD_DR_TEST_SERVERS",
        }
    }
}

/// The directory with `etcd`, `etcdctl` and `etcdutl` of the newest series.
pub fn binaries() -> &'static Path {
    binaries_of(Series::default())
}

/// The directory with `etcd`, `etcdctl` and, from 3.5 on, `etcdutl`: what the variable of the series says, else what `scripts/servers` prints.
pub fn binaries_of(series: Series) -> &'static Path {
    static BINARIES: [OnceLock<PathBuf>; 3] = [const { OnceLock::new() }; 3];
    BINARIES[series as usize].get_or_init(|| {
        #[allow(clippy::disallowed_methods, reason = "the harness is told by scripts/test where the servers are")]
        let told = std::env::var_os(series.variable());
        let dir = told.map_or_else(|| ask_script(series), PathBuf::from);
        for name in ["etcd", "etcdctl", series.offline_tool()] {
            assert!(dir.join(name).is_file(), "no {name} in {}: run scripts/servers {}", dir.display(), series.name());
        }
        dir
    })
}

fn ask_script(series: Series) -> PathBuf {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/servers");
    let output = Command::new(&script)
        .arg(series.name())
        .stderr(Stdio::inherit())
        .output()
        .unwrap_or_else(|e| panic!("{} cannot be run: {e}", script.display()));
    assert!(output.status.success(), "{} ended with {}; it said why above", script.display(), output.status);
    let dir = String::from_utf8(output.stdout).expect("a path in UTF-8");
    PathBuf::from(dir.trim_end())
}

/// A stock tool of etcd's that works on files: `etcdutl`, or what 3.4 has in its place.
pub fn offline(series: Series) -> Command {
    let mut command = stock(binaries_of(series).join(series.offline_tool()));
    // 3.3's etcdctl spoke version 2 unless it was told so; 3.4 still looks.
    command.env("ETCDCTL_API", "3");
    command
}

/// A stock tool with an empty environment apart from `PATH`, so that a test cannot pass because of what the caller exported.
pub fn stock(tool: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new(tool);
    command.env_clear().env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    command
}
