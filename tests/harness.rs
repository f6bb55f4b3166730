//! The harness itself: what the other tests rest on is real.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs,
    reason = "a failed test is a panic"
)]

mod servers;

use etcd_client::{Client, GetOptions};
use servers::etcd::{Cluster, Options};
use servers::kubernetes::{Compaction, Kubernetes};
use servers::preload::{self, Steps};
use servers::proxy::{Fault, Proxy, Rule, SNAPSHOT, STATUS};
use servers::{Series, ask, fill, stock, wait};
use sha2::{Digest, Sha256};
use std::os::unix::process::ExitStatusExt;
use std::time::Duration;

/// The whole snapshot, or the error that ended it and what had come until then.
fn snapshot(client: &Client) -> (Vec<u8>, Result<(), etcd_client::Error>) {
    let mut client = client.maintenance_client();
    wait(async move {
        let mut bytes = Vec::new();
        let mut stream = match client.snapshot().await {
            Ok(stream) => stream,
            Err(e) => return (bytes, Err(e)),
        };
        loop {
            match stream.message().await {
                Ok(Some(message)) => bytes.extend_from_slice(message.blob()),
                Ok(None) => return (bytes, Ok(())),
                Err(e) => return (bytes, Err(e)),
            }
        }
    })
}

#[test]
fn three_members_start_and_answer_etcdctl() {
    let cluster = Cluster::start(3, Options::default());
    let filled = fill::homelab(&cluster.client(0));
    assert!(filled.compacted > 0 && filled.revision > filled.compacted);
    let output = cluster.etcdctl().args(["endpoint", "health"]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let output = cluster.etcdctl().args(["get", "/registry/", "--prefix", "--keys-only"]).output().unwrap();
    let keys = String::from_utf8(output.stdout).unwrap();
    for key in
        ["deployments/default/deansie-wordle-backend", "statefulsets/default/mongodb", "leases/kube-node-lease/k8s-cp2"]
    {
        assert!(keys.lines().any(|line| line == format!("/registry/{key}")), "{key} is missing");
    }
    let live = keys.lines().filter(|line| !line.is_empty()).count();
    assert!(live > 300, "{live} keys");
}

/// Three members of a series with data, restored by its own tool at other addresses and booted there.
fn serves_and_restores(series: Series) {
    let options = || Options { series, ..Options::default() };
    let cluster = Cluster::start(3, options());
    let filled = fill::homelab(&cluster.client(0));
    let clients = [0, 1, 2].map(|i| cluster.client(i));
    for client in &clients {
        let version = ask::version(client);
        assert!(version.starts_with(&format!("{}.", series.name())), "{version}");
    }
    let hashes = clients.each_ref().map(|client| ask::hash_kv(client, filled.revision));
    assert!(hashes[0].hash != 0 && hashes[0].compact_revision == filled.compacted, "{hashes:?}");
    assert!(hashes.iter().all(|hash| hash.hash == hashes[0].hash), "{hashes:?}");
    let leases = ask::leases(&clients[1]);
    assert!(leases.len() == 2 && leases.iter().all(|&(_, left)| left > 800), "{leases:?}");
    assert_eq!(ask::alarms(&clients[2]), []);
    let health = cluster.etcdctl().args(["endpoint", "health"]).output().unwrap();
    assert!(health.status.success(), "{health:?}");

    let bytes = ask::snapshot(&clients[0]);
    assert!(whole(&bytes));
    let file = cluster.dir().join("snapshot.db");
    std::fs::write(&file, bytes).unwrap();
    let restored = Cluster::restored(3, options(), |cluster, i| {
        let output = cluster.stock_restore(i, &file, "restored").output().unwrap();
        assert!(output.status.success(), "{output:?}");
    });
    for i in 0..3 {
        let hash = ask::hash_kv(&restored.client(i), filled.revision);
        assert_eq!((hash.hash, ask::version(&restored.client(i))), (hashes[0].hash, ask::version(&clients[0])));
    }
    assert_eq!(ask::leases(&restored.client(2)).len(), 2);
}

#[test]
fn etcd_3_4_serves_and_is_restored() {
    serves_and_restores(Series::V3_4);
}

#[test]
fn etcd_3_5_serves_and_is_restored() {
    serves_and_restores(Series::V3_5);
}

#[test]
fn etcd_3_6_serves_and_is_restored() {
    serves_and_restores(Series::V3_6);
}

#[test]
fn a_kubernetes_fill_is_the_same_on_every_run() {
    let kubernetes = Kubernetes { compaction: Compaction::Begun, ..Kubernetes::of(1_200) };
    let filled = [kubernetes, kubernetes, Kubernetes { seed: 2, ..kubernetes }].map(|profile| {
        let cluster = Cluster::start(1, Options::default());
        let filled = fill::kubernetes(&cluster.client(0), profile);
        assert!(0 < filled.compacted && filled.compacted < filled.revision, "{filled:?}");
        let mut client = cluster.client(0);
        let all = GetOptions::new().with_prefix();
        let kvs = wait(async move { client.get("/registry/", Some(all)).await }).unwrap().take_kvs();
        assert_eq!(kvs.len(), profile.live());
        let sizes = kvs.iter().map(|kv| kv.value().len());
        assert!(sizes.clone().filter(|&size| size > 1_000_000).count() == 1 && sizes.clone().max() < Some(1_500_000));
        assert!(sizes.clone().filter(|&size| (400..3_200).contains(&size)).count() == kvs.len() - 1);
        assert!(kvs.iter().any(|kv| kv.lease() != 0) && kvs.iter().any(|kv| kv.version() == 4));
        let values: Vec<u8> = kvs.iter().flat_map(etcd_client::KeyValue::value).copied().collect();
        let share = zstd::bulk::compress(&values, 3).unwrap().len() * 100 / values.len();
        assert!((25..=35).contains(&share), "compressed to {share} %");
        (filled.revision, ask::hash_kv(&cluster.client(0), filled.revision))
    });
    assert_eq!(filled[0], filled[1]);
    assert!(filled[0].1.hash != filled[2].1.hash);
}

#[test]
fn a_member_is_started_from_another_directory_by_another_etcd() {
    let cluster = Cluster::start(1, Options { series: Series::V3_5, ..Options::default() });
    let filled = fill::homelab(&cluster.client(0));
    let before = ask::hash_kv(&cluster.client(0), filled.revision);
    cluster.stop_member(0);
    let moved = cluster.dir().join("moved.etcd");
    assert!(stock("mv").arg(cluster.data_dir(0)).arg(&moved).status().unwrap().success());
    cluster.launch_from(0, &moved, Series::V3_6);
    cluster.until_all_serve();
    assert_eq!((cluster.data_dir(0), cluster.series(0)), (moved, Series::V3_6));
    assert!(ask::version(&cluster.client(0)).starts_with("3.6."));
    assert_eq!(ask::hash_kv(&cluster.client(0), filled.revision).hash, before.hash);
}

#[test]
fn a_member_stops_and_comes_back() {
    let cluster = Cluster::start(3, Options::default());
    let follower = cluster.follower().unwrap();
    cluster.stop_member(follower);
    assert_eq!(cluster.pid(follower), None);
    assert!(cluster.leader().is_some_and(|leader| leader != follower));
    cluster.start_member(follower);
    cluster.pause(follower);
    let mut client = cluster.client(follower);
    let paused = wait(async move { tokio::time::timeout(Duration::from_millis(500), client.status()).await.is_err() });
    assert!(paused, "a stopped process answered");
    cluster.resume(follower);
    let mut client = cluster.client(follower);
    wait(async move { client.status().await }).unwrap();
}

/// Whether the SHA-256 at the end, which etcd made, is that of the rest. (Two snapshots of an idle member are never equal: each
/// begins with a commit that writes a meta page.)
fn whole(snapshot: &[u8]) -> bool {
    snapshot.len() > 32 && {
        let (data, trailer) = snapshot.split_at(snapshot.len() - 32);
        data.len() % 512 == 0 && Sha256::digest(data)[..] == *trailer
    }
}

/// How long the file of a database is by its own word: pages in use times their size, from the first meta page.
/// Format: bbolt 1.4.3 `internal/common/meta.go`, little-endian, behind a page header of 16 bytes.
fn said_length(database: &[u8]) -> usize {
    let page_size = u32::from_le_bytes(database[24..28].try_into().unwrap());
    let pages = u64::from_le_bytes(database[56..64].try_into().unwrap());
    usize::try_from(u64::from(page_size) * pages).unwrap()
}

/// etcd sends the database in messages of this size.
const CHUNK: usize = 32_768;

#[test]
fn a_proxy_passes_a_snapshot_unchanged_and_a_flip_changes_one_bit() {
    let (cluster, proxies) = Proxy::before_each(1, Options::default());
    fill::homelab(&cluster.client(0));
    assert_eq!(cluster.advertised(0), proxies[0].url());
    let (direct, end) = snapshot(&cluster.client(0));
    end.unwrap();
    assert!(whole(&direct) && direct.len() > 8 * CHUNK, "{} bytes", direct.len());
    assert_eq!(proxies[0].calls(SNAPSHOT), 0);

    let through = cluster.client_at(&proxies[0].url(), cluster.client_pair());
    let (passed, end) = snapshot(&through);
    end.unwrap();
    // The file may have grown by a page since: that each is whole by etcd's own digest is what counts.
    assert!(whole(&passed));

    let flipped = proxies[0].add(Rule::new(SNAPSHOT, Fault::Flip { message: 3 }).times(1));
    let (mut damaged, end) = snapshot(&through);
    end.unwrap();
    assert_eq!(flipped.count(), 1);
    assert!(!whole(&damaged));
    // Near the middle of the third message, less what stands around the blob: one bit turned back makes it whole.
    let middle = 2 * CHUNK + CHUNK / 2;
    let healed = (middle - 64..middle + 64).any(|place| {
        damaged[place] ^= 0x10;
        let good = whole(&damaged);
        damaged[place] ^= 0x10;
        good
    });
    assert!(healed, "more than one bit is wrong, or another one");

    let (after, end) = snapshot(&through);
    end.unwrap();
    assert!(whole(&after), "the flip was for one call");
    assert_eq!(proxies[0].calls(SNAPSHOT), 3);
    // The trailer is a message of its own.
    let messages = [&passed, &damaged, &after].map(|snapshot| (snapshot.len() - 32).div_ceil(CHUNK) + 1);
    assert_eq!(proxies[0].messages(SNAPSHOT), messages.iter().sum::<usize>());
}

#[test]
fn each_fault_of_a_proxy_is_seen_by_the_client_and_counted() {
    let (cluster, proxies) = Proxy::before_each(1, Options::default());
    fill::homelab(&cluster.client(0));
    let proxy = &proxies[0];
    let fresh = || cluster.client_at(&proxy.url(), cluster.client_pair());
    let (full, end) = snapshot(&fresh());
    end.unwrap();
    assert_eq!(full.len(), said_length(&full) + 32);

    let fired = proxy.add(Rule::new(SNAPSHOT, Fault::Cut { after: 5 }));
    let (part, end) = snapshot(&fresh());
    assert!(matches!(end, Err(etcd_client::Error::GRpcStatus(status)) if status.code() == tonic::Code::Unavailable));
    assert_eq!((part.len(), fired.count()), (5 * CHUNK, 1));
    proxy.heal();

    let fired = proxy.add(Rule::new(SNAPSHOT, Fault::HangUp { after: 5 }));
    let (part, end) = snapshot(&fresh());
    assert!(end.is_err() && part.len() <= 5 * CHUNK && fired.count() == 1, "{} bytes, {end:?}", part.len());
    proxy.heal();

    let fired = proxy.add(Rule::new(SNAPSHOT, Fault::End { after: 5 }));
    let (part, end) = snapshot(&fresh());
    end.unwrap();
    assert_eq!((part.len(), fired.count()), (5 * CHUNK, 1));
    proxy.heal();

    let fired = proxy.add(Rule::new(SNAPSHOT, Fault::DropLast));
    let (part, end) = snapshot(&fresh());
    end.unwrap();
    // Not compared with the snapshot before: a live file may have grown by a page since.
    assert_eq!((part.len(), fired.count()), (said_length(&part), 1));
    proxy.heal();

    let fired = proxy.add(Rule::new(SNAPSHOT, Fault::Stall { after: 5 }));
    let mut client = fresh().maintenance_client();
    let came = wait(async move {
        let mut stream = client.snapshot().await.unwrap();
        let mut came = 0;
        while let Ok(message) = tokio::time::timeout(Duration::from_secs(1), stream.message()).await {
            assert!(message.unwrap().is_some(), "the stream ended");
            came += 1;
        }
        came
    });
    assert_eq!((came, fired.count()), (5, 1));
    proxy.heal();

    let fired = proxy.add(Rule::new(STATUS, Fault::Refuse(tonic::Code::PermissionDenied)).skip(1).times(1));
    let mut client = fresh();
    let answers = wait(async move { [client.status().await, client.status().await, client.status().await] });
    assert_eq!((answers.map(|a| a.is_ok()), fired.count()), ([true, false, true], 1));

    let fired = proxy.add(Rule::new(STATUS, Fault::Never));
    let mut client = fresh();
    let silent = wait(async move { tokio::time::timeout(Duration::from_secs(1), client.status()).await.is_err() });
    assert!(silent && fired.count() == 1);
}

#[test]
fn a_proxy_moves_to_another_member_in_mid_run() {
    let (cluster, proxies) = Proxy::before_each(3, Options::default());
    let fired = proxies[0].add(Rule::new(STATUS, Fault::MoveTo(cluster.endpoint(2))).skip(1).times(1));
    let mut client = cluster.client_at(&proxies[0].url(), cluster.client_pair());
    let ids = wait(async move {
        let mut ids = Vec::new();
        for _ in 0..3 {
            ids.push(client.status().await.unwrap().header().unwrap().member_id());
        }
        ids
    });
    assert!(ids[0] != ids[1] && ids[1] == ids[2], "{ids:?}");
    assert_eq!((fired.count(), proxies[0].calls(STATUS), proxies[2].calls(STATUS)), (1, 3, 0));
}

#[test]
fn a_server_outlives_the_thread_of_the_test_that_started_it() {
    let start = || {
        let mut command = servers::process::leashed("sleep");
        command.arg("600");
        servers::process::spawn(command)
    };
    let mut child = std::thread::spawn(start).join().unwrap();
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(child.try_wait().unwrap(), None);
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_half_open_endpoint_accepts_and_says_nothing() {
    let cluster = Cluster::start(1, Options::default());
    let silent = servers::silent::Silent::start();
    let mut client = cluster.client_at(&silent.url(), cluster.client_pair());
    let waited = wait(async move { tokio::time::timeout(Duration::from_secs(1), client.status()).await.is_err() });
    assert!(waited && silent.accepted() > 0);
}

#[test]
fn certificates_that_must_be_refused_are_refused() {
    let cluster = Cluster::start(1, Options::default());
    let good = |pair: &servers::pki::Pair| {
        let mut client = cluster.client_at(&cluster.endpoint(0), pair);
        wait(
            async move { tokio::time::timeout(Duration::from_secs(5), client.status()).await.is_ok_and(|s| s.is_ok()) },
        )
    };
    assert!(good(&cluster.pki().client_cert("somebody")));
    assert!(!good(&cluster.pki().expired_client_cert()));
    assert!(!good(&cluster.pki().foreign_client_cert()));
    let port = servers::ports::Port::take();
    let proxy = Proxy::start_as(&cluster, port, &cluster.endpoint(0), &cluster.pki().wrong_name_cert());
    let mut client = cluster.client_at(&proxy.url(), cluster.client_pair());
    assert!(wait(async move { client.status().await }).is_err());
    assert!(proxy.connections() > 0 && proxy.calls(STATUS) == 0);
}

#[test]
fn killstep_counts_steps_and_kills_at_each() {
    let dir = tempfile::tempdir().unwrap();
    let (tree, log) = (dir.path().join("tree"), dir.path().join("log"));
    // `rm -r` of three files in a directory is one process and four steps.
    let remove = |steps: &Steps| {
        drop(std::fs::remove_file(&log));
        std::fs::create_dir_all(&tree).unwrap();
        for name in ["a", "b", "c"] {
            std::fs::write(tree.join(name), name).unwrap();
        }
        let mut command = stock("rm");
        command.arg("-r").arg(&tree);
        steps.apply(&mut command, &log);
        let status = command.status().unwrap();
        let left = std::fs::read_dir(&tree).map_or(0, |files| files.count() + 1);
        (status, left)
    };
    let (status, left) = remove(&Steps::default());
    assert!(status.success() && left == 0);
    let steps = preload::steps(&log);
    assert_eq!(steps.len(), 4, "{steps:?}");
    assert_eq!(steps[3], format!("4 unlinkat {}", tree.display()));

    for n in 1..=4 {
        let (status, left) = remove(&Steps { kill_at: Some(n), ..Steps::default() });
        assert_eq!((status.signal(), left), (Some(9), 4 - (n - 1)));
        let (status, left) = remove(&Steps { kill_at: Some(n), after: true, ..Steps::default() });
        assert_eq!((status.signal(), left), (Some(9), 4 - n));
        assert_eq!(preload::steps(&log).len(), n);
    }
    assert!(remove(&Steps { kill_at: Some(5), ..Steps::default() }).0.success());
}

#[test]
fn killstep_names_both_ends_of_a_rename() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to, log) = (dir.path().join("from"), dir.path().join("to"), dir.path().join("log"));
    std::fs::write(&from, "x").unwrap();
    let mut command = stock("mv");
    command.arg("-T").arg(&from).arg(&to);
    Steps { kill_at: Some(1), after: true, ..Steps::default() }.apply(&mut command, &log);
    assert_eq!(command.status().unwrap().signal(), Some(9));
    assert_eq!(preload::steps(&log), [format!("1 renameat2 {} -> {}", from.display(), to.display())]);
    assert!(to.exists() && !from.exists());
}

#[test]
fn killstep_turns_one_bit_after_fsync() {
    let dir = tempfile::tempdir().unwrap();
    let (file, log) = (dir.path().join("sealed.age"), dir.path().join("log"));
    std::fs::write(&file, [7; 1001]).unwrap();
    for _ in 0..2 {
        let mut command = stock("sync");
        command.arg(&file);
        Steps { flip: Some(".age".into()), ..Steps::default() }.apply(&mut command, &log);
        assert!(command.status().unwrap().success());
        let changed: Vec<usize> =
            std::fs::read(&file).unwrap().iter().enumerate().filter(|(_, b)| **b != 7).map(|(i, _)| i).collect();
        assert!(changed == [500] || changed.is_empty(), "{changed:?}");
    }
    // Each of the two processes turned the bit once: there and back.
    assert_eq!(std::fs::read(&file).unwrap(), [7; 1001]);
    assert_eq!(preload::flips(&log), [file.to_str().unwrap(), file.to_str().unwrap()]);
    assert_eq!(preload::steps(&log).len(), 2);
}
