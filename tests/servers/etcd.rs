//! A real etcd cluster on loopback, with mutual TLS, named as the first user's control planes.

use super::pki::{Pair, Pki};
use super::ports::Port;
use super::{Series, binaries_of, offline, process, stock, wait};
use etcd_client::{Client, ConnectOptions};
use rustix::process::Signal;
use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::Mutex;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Member names of the first user.
pub const NAMES: [&str; 5] = ["k8s", "k8s-cp2", "k8s-cp3", "k8s-cp4", "k8s-cp5"];

/// Generous, since two cores are shared with everything else; a healthy start takes about two seconds.
const PATIENCE: Duration = Duration::from_secs(60);

/// How a cluster is started; the default is what most tests want.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// What each member advertises to clients instead of its own address; shorter than the number of members is fine.
    pub advertise: Vec<Option<String>>,
    /// Further arguments of every member.
    pub extra_args: Vec<String>,
    /// Real fsync. Off by default: on a shared disk it is most of the time of a test, and no test kills the machine.
    pub fsync: bool,
    /// Which etcd. 3.4 cannot leave out its fsyncs.
    pub series: Series,
    /// Where everything lies; a temporary directory that is removed at the end if not given.
    pub dir: Option<PathBuf>,
}

struct Member {
    name: &'static str,
    client: Port,
    peer: Port,
    advertise: String,
    child: Mutex<Option<Child>>,
    home: Mutex<Home>,
}

/// What a member is started with.
#[derive(Clone, Debug)]
struct Home {
    series: Series,
    data_dir: PathBuf,
}

/// A running cluster. Dropping it kills every member.
pub struct Cluster {
    members: Vec<Member>,
    pki: Pki,
    client_pair: Pair,
    options: Options,
    dir: PathBuf,
    _temporary: Option<TempDir>,
}

impl Cluster {
    /// Starts `n` members and returns when every one serves and all know the same leader.
    pub fn start(n: usize, options: Options) -> Self {
        let cluster = Self::planned(n, options);
        cluster.boot();
        cluster
    }

    /// A cluster whose names, addresses and certificates are settled, and nothing runs: for data directories that are made before the first
    /// start. [`Self::boot`] starts it.
    pub fn planned(n: usize, options: Options) -> Self {
        assert!((1..=NAMES.len()).contains(&n), "{n} members: 1 to {} are possible", NAMES.len());
        let temporary =
            options.dir.is_none().then(|| TempDir::with_prefix("etcd-dr-lab-").expect("a temporary directory"));
        let dir = temporary
            .as_ref()
            .map_or_else(|| options.dir.clone(), |t| Some(t.path().to_path_buf()))
            .expect("one of both");
        let pki = Pki::new(&dir.join("pki"));
        let hosts: Vec<&str> = NAMES.into_iter().chain(["localhost", "127.0.0.1"]).collect();
        pki.server_cert("server", &hosts);
        pki.peer_cert("peer", &hosts);
        let client_pair = pki.client_cert("healthcheck-client");
        let members = (0..n)
            .map(|i| {
                let client = Port::take();
                let advertise = options.advertise.get(i).cloned().flatten().unwrap_or_else(|| client.url());
                let home = Home { series: options.series, data_dir: dir.join(format!("{}.etcd", NAMES[i])) };
                let (child, home) = (Mutex::new(None), Mutex::new(home));
                Member { name: NAMES[i], client, peer: Port::take(), advertise, child, home }
            })
            .collect();
        Self { members, pki, client_pair, options, dir, _temporary: temporary }
    }

    /// A cluster of restored members: `restore` is called for each before anything runs and makes its data directory, which is
    /// [`Self::data_dir`]. Names, peer URLs and initial cluster are as the cluster says that it gets.
    pub fn restored(n: usize, options: Options, restore: impl Fn(&Self, usize)) -> Self {
        let cluster = Self::planned(n, options);
        for i in 0..n {
            restore(&cluster, i);
        }
        cluster.boot();
        cluster
    }

    /// Starts every member that does not run and returns when all serve.
    pub fn boot(&self) {
        for i in (0..self.len()).filter(|&i| self.pid(i).is_none()) {
            self.launch(i);
        }
        self.until_all_serve();
    }

    /// How many members it was planned with.
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// Where data directories, logs and certificates are.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The authority, for certificates of a test's own.
    pub fn pki(&self) -> &Pki {
        &self.pki
    }

    /// The client certificate that kubeadm would call `healthcheck-client`.
    pub fn client_pair(&self) -> &Pair {
        &self.client_pair
    }

    /// Name of member `i`.
    pub fn name(&self, i: usize) -> &'static str {
        self.members[i].name
    }

    /// The address at which member `i` listens itself, whatever it advertises.
    pub fn endpoint(&self, i: usize) -> String {
        self.members[i].client.url()
    }

    /// [`Self::endpoint`] of every member.
    pub fn endpoints(&self) -> Vec<String> {
        (0..self.len()).map(|i| self.endpoint(i)).collect()
    }

    /// What member `i` advertises in the member list.
    pub fn advertised(&self, i: usize) -> &str {
        &self.members[i].advertise
    }

    /// The peer URL of member `i`, at which it listens and which it advertises.
    pub fn peer_url(&self, i: usize) -> String {
        self.members[i].peer.url()
    }

    /// Names and peer URLs of all members, as `--initial-cluster` takes them.
    pub fn initial_cluster(&self) -> String {
        self.members.iter().map(|m| format!("{}={}", m.name, m.peer.url())).collect::<Vec<_>>().join(",")
    }

    /// The data directory of member `i`.
    pub fn data_dir(&self, i: usize) -> PathBuf {
        self.home(i).data_dir.clone()
    }

    /// Which etcd member `i` runs, or will.
    pub fn series(&self, i: usize) -> Series {
        self.home(i).series
    }

    /// The command of the stock tool that restores member `i` from a snapshot into [`Self::data_dir`], which must not exist.
    pub fn stock_restore(&self, i: usize, snapshot: &Path, token: &str) -> Command {
        let mut command = offline(self.series(i));
        command.args(["snapshot", "restore"]).arg(snapshot).arg("--data-dir").arg(self.data_dir(i));
        command.args(["--name", self.name(i), "--initial-advertise-peer-urls", &self.peer_url(i)]);
        command.args(["--initial-cluster", &self.initial_cluster(), "--initial-cluster-token", token]);
        command
    }

    /// The log of member `i`, over all its starts.
    pub fn log(&self, i: usize) -> PathBuf {
        self.dir.join(format!("{}.log", self.name(i)))
    }

    /// Process id of member `i`, if it runs.
    pub fn pid(&self, i: usize) -> Option<u32> {
        self.child(i).as_ref().map(Child::id)
    }

    /// Asks member `i` to end (SIGTERM) and waits for it.
    pub fn stop_member(&self, i: usize) {
        let mut child = self.child(i).take().unwrap_or_else(|| panic!("{} does not run", self.name(i)));
        process::signal(&child, Signal::TERM);
        child.wait().expect("the member is ours to wait for");
    }

    /// Kills member `i` (SIGKILL) and waits for it.
    pub fn kill_member(&self, i: usize) {
        let mut child = self.child(i).take().unwrap_or_else(|| panic!("{} does not run", self.name(i)));
        child.kill().expect("the member is ours to kill");
        child.wait().expect("the member is ours to wait for");
    }

    /// Kills every member that runs.
    pub fn kill_all(&self) {
        for i in (0..self.len()).filter(|&i| self.pid(i).is_some()) {
            self.kill_member(i);
        }
    }

    /// Starts member `i` again on its data and returns when it answers with a leader. Without a quorum there is none: then use
    /// [`Self::launch`].
    pub fn start_member(&self, i: usize) {
        self.launch(i);
        self.until_healthy(&[i]);
    }

    /// Returns when every member serves and all know the same leader: what a restored cluster is worth waiting for. One that only has a
    /// leader may still have a member that answers nobody.
    pub fn until_all_serve(&self) {
        self.until_healthy(&(0..self.len()).collect::<Vec<_>>());
    }

    /// Stops the process of member `i` where it stands (SIGSTOP): its sockets stay open and nothing answers.
    pub fn pause(&self, i: usize) {
        process::signal(self.child(i).as_ref().expect("a running member"), Signal::STOP);
    }

    /// Lets member `i` run on.
    pub fn resume(&self, i: usize) {
        process::signal(self.child(i).as_ref().expect("a running member"), Signal::CONT);
    }

    /// A client of member `i` alone, at its own address.
    pub fn client(&self, i: usize) -> Client {
        self.client_at(&self.endpoint(i), &self.client_pair)
    }

    /// A client of one address, such as a proxy's, with a certificate of choice.
    pub fn client_at(&self, url: &str, pair: &Pair) -> Client {
        let url = url.to_owned();
        let options =
            ConnectOptions::new().with_connect_timeout(Duration::from_secs(5)).with_tls(self.pki.client_tls(pair));
        wait(async move { Client::connect([url], Some(options)).await }).expect("a client, which dials later")
    }

    /// Index of the leader, if the members that answer agree on one.
    pub fn leader(&self) -> Option<usize> {
        let status: Vec<_> = (0..self.len()).map(|i| self.status(i)).collect();
        let leader = status.iter().flatten().map(|s| s.leader).find(|&id| id != 0)?;
        status.iter().position(|s| s.as_ref().is_some_and(|s| s.member == leader))
    }

    /// Index of a member that runs and does not lead.
    pub fn follower(&self) -> Option<usize> {
        let leader = self.leader()?;
        (0..self.len()).find(|&i| i != leader && self.pid(i).is_some())
    }

    /// `etcdctl` with the certificates and endpoints of this cluster and a clean environment.
    pub fn etcdctl(&self) -> Command {
        let mut command = stock(binaries_of(self.options.series).join("etcdctl"));
        command
            .env("ETCDCTL_API", "3")
            .arg("--cacert")
            .arg(self.pki.ca())
            .arg("--cert")
            .arg(&self.client_pair.cert)
            .arg("--key")
            .arg(&self.client_pair.key)
            .arg("--endpoints")
            .arg(self.endpoints().join(","));
        command
    }

    /// Starts the process of member `i` and does not wait until it serves.
    pub fn launch(&self, i: usize) {
        let member = &self.members[i];
        let mut child = self.child(i);
        assert!(child.is_none(), "{} runs already", member.name);
        let log = OpenOptions::new().create(true).append(true).open(self.log(i)).expect("a log file");
        *child = Some(process::spawn(self.command(i, log)));
    }

    /// Starts the process of member `i` from a data directory, by another etcd if need be, and does not wait until it serves. From then on
    /// these are the member's own. What the directory says of members and cluster counts, not what the flags say.
    pub fn launch_from(&self, i: usize, data_dir: &Path, series: Series) {
        *self.home(i) = Home { series, data_dir: data_dir.to_path_buf() };
        self.launch(i);
    }

    /// A shell script that starts member `i` on its data as this process does; it becomes the server.
    pub fn start_script(&self, i: usize) -> String {
        let log = File::open("/dev/null").expect("/dev/null");
        let command = self.command(i, log);
        let quoted = |word: &std::ffi::OsStr| format!("'{}'", word.to_str().expect("UTF-8").replace('\'', r"'\''"));
        let words: Vec<String> = std::iter::once(command.get_program()).chain(command.get_args()).map(quoted).collect();
        format!(
            "#!/bin/sh\nexec env -i PATH=/usr/bin:/bin {} >>'{}' 2>&1 </dev/null\n",
            words.join(" "),
            self.log(i).display()
        )
    }

    fn command(&self, i: usize, log: File) -> Command {
        let member = &self.members[i];
        let Home { series, data_dir } = self.home(i).clone();
        let pki = self.pki.dir();
        let listen = member.client.url();
        let peer = member.peer.url();
        let mut command = process::leashed(binaries_of(series).join("etcd"));
        // Variables that begin with ETCD_ would be flags.
        command.env_clear().env("PATH", "/usr/bin:/bin");
        command.args(["--name", member.name]).arg("--data-dir").arg(data_dir);
        command.args(["--listen-client-urls", &listen, "--advertise-client-urls", &member.advertise]);
        command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
        command.args(["--initial-cluster", &self.initial_cluster(), "--initial-cluster-token", "etcd-dr-lab"]);
        command.args(["--initial-cluster-state", "new", "--quota-backend-bytes", "8589934592"]);
        for (flag, file) in [
            ("--trusted-ca-file", "ca.crt"),
            ("--cert-file", "server.crt"),
            ("--key-file", "server.key"),
            ("--peer-trusted-ca-file", "ca.crt"),
            ("--peer-cert-file", "peer.crt"),
            ("--peer-key-file", "peer.key"),
        ] {
            command.arg(flag).arg(pki.join(file));
        }
        command.args(["--client-cert-auth", "--peer-client-cert-auth"]);
        if !self.options.fsync && series != Series::V3_4 {
            command.arg("--unsafe-no-fsync");
        }
        command.args(&self.options.extra_args);
        command.stdin(std::process::Stdio::null());
        command.stdout(log.try_clone().expect("a second handle")).stderr(log);
        command
    }

    fn child(&self, i: usize) -> std::sync::MutexGuard<'_, Option<Child>> {
        self.members[i].child.lock().expect("no panic while the lock is held")
    }

    fn home(&self, i: usize) -> std::sync::MutexGuard<'_, Home> {
        self.members[i].home.lock().expect("no panic while the lock is held")
    }

    fn status(&self, i: usize) -> Option<Status> {
        self.pid(i)?;
        let mut client = self.client(i);
        wait(async move {
            let answer = tokio::time::timeout(Duration::from_secs(2), client.status()).await.ok()?.ok()?;
            let member = answer.header().map_or(0, etcd_client::ResponseHeader::member_id);
            Some(Status { member, leader: answer.leader() })
        })
    }

    /// Each of these members serves a linearizable read and knows a leader, the same one.
    fn until_healthy(&self, members: &[usize]) {
        let begun = Instant::now();
        loop {
            let leaders: Vec<Option<u64>> = members.iter().map(|&i| self.status(i).map(|s| s.leader)).collect();
            let agreed = leaders.iter().all(|&l| l.is_some_and(|id| id != 0) && l == leaders[0]);
            if agreed && members.iter().all(|&i| self.serves(i)) {
                return;
            }
            for &i in members {
                let ended = self.child(i).as_mut().and_then(|child| child.try_wait().expect("our child"));
                if let Some(status) = ended {
                    panic!("{} ended with {status}:\n{}", self.name(i), self.log_tail(i));
                }
            }
            if begun.elapsed() > PATIENCE {
                let logs: Vec<String> =
                    members.iter().map(|&i| format!("{}:\n{}", self.name(i), self.log_tail(i))).collect();
                panic!("not healthy after {} s, leaders {leaders:?}\n{}", PATIENCE.as_secs(), logs.join("\n"));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn serves(&self, i: usize) -> bool {
        let mut client = self.client(i);
        wait(async move {
            tokio::time::timeout(Duration::from_secs(2), client.get("health", None)).await.is_ok_and(|r| r.is_ok())
        })
    }

    fn log_tail(&self, i: usize) -> String {
        let text = std::fs::read_to_string(self.log(i)).unwrap_or_else(|e| e.to_string());
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }
}

struct Status {
    member: u64,
    leader: u64,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for member in &self.members {
            let child = member.child.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
            if let Some(mut child) = child {
                // A failure here means that it ended by itself; the wait reaps it either way.
                drop(child.kill());
                drop(child.wait());
            }
        }
    }
}
