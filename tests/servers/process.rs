//! Child processes that cannot outlive the tests.

use std::process::{Child, Command};
use std::sync::LazyLock;
use std::sync::mpsc::{Sender, SyncSender, channel, sync_channel};
use std::thread;

type Order = (Command, SyncSender<std::io::Result<Child>>);

/// The thread that spawns every server. The death signal of `prctl(PR_SET_PDEATHSIG)` is sent when the *thread* that spawned
/// ends, and each test has a thread of its own: this one ends with the process only.
static SPAWNER: LazyLock<Sender<Order>> = LazyLock::new(|| {
    let (tx, rx) = channel::<Order>();
    thread::Builder::new()
        .name("spawner".into())
        .spawn(move || {
            for (mut command, answer) in rx {
                drop(answer.send(command.spawn()));
            }
        })
        .expect("a thread that spawns");
    tx
});

/// A command that is killed when the test process ends, however it ends; start it with [`spawn`].
pub fn leashed(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(program);
    command
}

/// Spawns from the thread that lives as long as the process.
pub fn spawn(command: Command) -> Child {
    let shown = format!("{command:?}");
    let (tx, rx) = sync_channel(1);
    SPAWNER.send((command, tx)).expect("the spawner lives");
    rx.recv().expect("the spawner answers").unwrap_or_else(|e| panic!("{shown}: {e}"))
}

/// Sends a signal to a child that was not waited for yet, so that its number cannot be anybody else's.
pub fn signal(child: &Child, name: rustix::process::Signal) {
    let pid = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw).expect("a process id");
    rustix::process::kill_process(pid, name).unwrap_or_else(|e| panic!("signal to {}: {e}", child.id()));
}
