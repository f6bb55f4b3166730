//! The boot matrix: snapshots of etcd 3.4, 3.5 and 3.6, restored by etcd-dr, booted by 3.4, 3.5 and 3.6. Every row is three members with mutual TLS.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs,
    reason = "a failed test is a panic, and the matrix is printed"
)]

mod servers;
mod site;

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use etcd_client::{Client, PutOptions, WatchOptions};
use etcd_dr::etcd::{
    bbolt::Db,
    data_dir,
    mvcc::At,
    survey::{Survey, Wants, survey},
};
use servers::{
    Series,
    etcd::{Cluster, Options},
    fill, stock, wait,
};

const BUMP: i64 = 1_000_000_000;
const ALL: [Series; 3] = [Series::V3_4, Series::V3_5, Series::V3_6];

/// A snapshot, and what its members said before it was taken.
struct Source {
    series: Series,
    snapshot: PathBuf,
    survey: Survey,
    live_keys: i64,
    lease: i64,
}

fn surveyed(path: &Path) -> Survey {
    survey(&Db::open(File::open(path).unwrap()).unwrap(), &Wants::default()).unwrap()
}

fn count(client: &Client) -> i64 {
    let mut client = client.clone();
    let options = etcd_client::GetOptions::new().with_prefix().with_count_only();
    wait(async move { client.get("/registry/", Some(options)).await.unwrap().count() })
}

/// A cluster's snapshot with history, a compaction, a user, a lease that lives on and one that is about to expire.
fn source(series: Series, dir: &Path) -> Source {
    let cluster = Cluster::start(1, Options { series, ..Options::default() });
    let client = cluster.client(0);
    fill::homelab(&client);
    let mut writer = client.clone();
    let lease = wait(async move {
        let long = writer.lease_grant(3600, None).await.unwrap().id();
        let short = writer.lease_grant(5, None).await.unwrap().id();
        for (key, lease) in [("long", long), ("short", short)] {
            writer.put(key, "leased", Some(PutOptions::new().with_lease(lease))).await.unwrap();
        }
        writer.user_add("somebody", "with a password", None).await.unwrap();
        long
    });
    let snapshot = dir.join(format!("{series:?}.db"));
    let saved = cluster.etcdctl().args(["snapshot", "save"]).arg(&snapshot).output().unwrap();
    assert!(saved.status.success(), "{saved:?}");
    let survey = surveyed(&snapshot);
    let mut asked = client.clone();
    let at = survey.revision;
    let answer = wait(async move { asked.hash_kv(at).await.unwrap() });
    assert_eq!((answer.hash(), answer.compact_version()), (survey.hash_kv, survey.compact_revision), "{series:?}");
    Source { series, snapshot, survey, live_keys: count(&client), lease }
}

/// What one row of the matrix showed.
fn boot(source: &Source, on: Series) -> String {
    let work = tempfile::tempdir().unwrap();
    let restored = work.path().join("restored");
    let options = Options { series: on, ..Options::default() };
    let cluster = Cluster::planned(3, options);
    let mut command = stock(site::BINARY);
    command
        .args(["restore", "--allow-unsigned", "--all-members", "--output", "json", "--snapshot"])
        .arg(&source.snapshot);
    command.arg("--output-dir").arg(&restored).args(["--initial-cluster", &cluster.initial_cluster()]);
    command.args(["--bump-revision", &BUMP.to_string(), "--mark-compacted", "--etcd-version", number(on)]);
    let output = command.env("PATH", "/usr/bin:/bin").output().unwrap();
    assert!(
        output.status.success(),
        "{}\n{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    for i in 0..3 {
        #[allow(clippy::disallowed_methods, reason = "the operator puts the directories in place")]
        fs::rename(restored.join(cluster.name(i)), cluster.data_dir(i)).unwrap();
    }
    let written = surveyed(&data_dir::database(&cluster.data_dir(0)));
    let raised = source.survey.revision + BUMP;
    assert_eq!((written.revision, written.compact_revision), (raised, raised));

    // Link 1: the rows that were written hash to what the source's members answered. The row that raises the revision is beyond.
    let own = At { revision: source.survey.revision, compact_revision: source.survey.compact_revision };
    let rows = without_the_raise(&cluster.data_dir(0), work.path());
    assert_eq!(rows.hash_kv_at(own).unwrap(), source.survey.hash_kv);

    // Link 2: a booted member answers what those rows hash to.
    cluster.boot();
    let version = wait({
        let mut client = cluster.client(0);
        async move { client.status().await.unwrap().version().to_owned() }
    });
    for i in 0..3 {
        let mut client = cluster.client(i);
        let answer = wait(async move {
            match client.hash_kv(raised).await {
                Ok(answer) => answer,
                // Servers before 3.4.27 and 3.5.10 refuse the compact revision itself.
                Err(_) => client.hash_kv(0).await.unwrap(),
            }
        });
        assert_eq!(answer.header().unwrap().revision(), raised);
        let at = At { revision: raised, compact_revision: answer.compact_version() };
        assert_eq!(written.hash_kv_at(at).unwrap(), answer.hash(), "{on:?}, member {i}");
    }
    let client = cluster.client(0);
    let leased = i64::from(is_there(&client, "short"));
    assert_eq!(count(&client), source.live_keys);
    let mut other = client.clone();
    let lease = source.lease;
    wait(async move {
        assert!(other.user_list().await.unwrap().users().iter().any(|user| user == "somebody"));
        let left = other.lease_time_to_live(lease, None).await.unwrap();
        assert!(left.ttl() > 3000, "the long lease has {} s left", left.ttl());
        let mut stream =
            other.watch("/registry/", Some(WatchOptions::new().with_prefix().with_start_revision(5))).await.unwrap();
        let told = loop {
            let message =
                tokio::time::timeout(Duration::from_secs(10), stream.message()).await.unwrap().unwrap().unwrap();
            if message.canceled() {
                break message.compact_revision();
            }
        };
        assert_eq!(told, raised, "a watch from before is told that it is compacted");
        let put = other.put("after", "the restore", None).await.unwrap();
        assert!(put.header().unwrap().revision() > raised);
    });
    // A member dies and comes back.
    cluster.kill_member(1);
    cluster.start_member(1);
    cluster.until_all_serve();
    assert!(is_there(&cluster.client(1), "after"));
    // The short lease runs out, with its key.
    let begun = Instant::now();
    while is_there(&client, "short") {
        assert!(begun.elapsed() < Duration::from_secs(40), "the short lease does not expire");
        std::thread::sleep(Duration::from_millis(200));
    }
    assert!(is_there(&client, "long"));
    format!("| {} | {version} | {} | {:08x} | {} |", number(source.series), written.total_rows, written.hash_kv, leased)
}

/// The written database without the row that raises its revision and without its mark.
fn without_the_raise(data_dir: &Path, work: &Path) -> Survey {
    let copy = work.join("lowered.db");
    fs::copy(data_dir::database(data_dir), &copy).unwrap();
    let finished = surveyed(&copy).meta.compaction.finished;
    edit::rewrite(&copy, |bucket, key, value| match (bucket, key) {
        (b"key", _) if value.is_empty() => Vec::new(),
        (b"meta", b"scheduledCompactRev") => finished
            .map(|main| (key.to_vec(), etcd_dr::etcd::mvcc::Revision { main, sub: 0 }.to_bytes().to_vec()))
            .into_iter()
            .collect(),
        _ => vec![(key.to_vec(), value.to_vec())],
    });
    surveyed(&copy)
}

#[path = "support/edit.rs"]
mod edit;

fn is_there(client: &Client, key: &'static str) -> bool {
    let mut client = client.clone();
    wait(async move { client.get(key, None).await.unwrap().count() == 1 })
}

fn number(series: Series) -> &'static str {
    match series {
        Series::V3_4 => "3.4",
        Series::V3_5 => "3.5",
        Series::V3_6 => "3.6",
    }
}

#[test]
fn every_release_boots_what_every_release_wrote() {
    let dir = tempfile::tempdir().unwrap();
    let sources: Vec<Source> = ALL.into_iter().map(|series| source(series, dir.path())).collect();
    let rows = Mutex::new(Vec::new());
    // Three clusters at a time: most of a row is waiting for elections and leases.
    for source in &sources {
        std::thread::scope(|scope| {
            for on in ALL {
                let rows = &rows;
                scope.spawn(move || {
                    let row = boot(source, on);
                    rows.lock().unwrap().push(row);
                });
            }
        });
    }
    let mut rows = rows.into_inner().unwrap();
    rows.sort();
    // Past the harness, which keeps what passes to itself: the matrix is a result.
    writeln!(
        std::io::stdout(),
        "| source | booted by | rows | HashKV at R+B | short lease alive at boot |\n{}",
        rows.join("\n")
    )
    .unwrap();
    assert_eq!(rows.len(), 9);
}
