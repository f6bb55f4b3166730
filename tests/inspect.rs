//! `inspect`: the same numbers as the official tools, from every form of a snapshot, and words for everything that is none.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs,
    reason = "a failed test is a panic"
)]

mod servers;
mod site;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use etcd_client::{Client, Txn, TxnOp};
use serde_json::{Value, json};
use servers::{
    Series, ask,
    etcd::{Cluster, Options},
    fill, offline, wait,
};
use sha2::{Digest as _, Sha256};
use site::{Answer, BINARY, Site};

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// The binary as anybody runs it who has a file and nothing else: no policy, no store.
fn bare(arguments: &[&str]) -> Answer {
    let mut command = Command::new(BINARY);
    command.env_clear().current_dir("/").arg("inspect").args(arguments).stdin(Stdio::null());
    command.output().unwrap().into()
}

#[track_caller]
fn inspect(code: i32, arguments: &[&str]) -> Value {
    bare(&[arguments, &["--output", "json"]].concat()).expect_code(code).json()
}

fn snapshot(cluster: &Cluster, path: &Path) {
    fs::write(path, ask::snapshot(&cluster.client(0))).unwrap();
}

/// What the official tool of a series says of a file.
fn status(series: Series, path: &Path) -> Value {
    let output = offline(series).args(["snapshot", "status", "-w", "json"]).arg(path).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// What does not depend on how the file lies there.
fn facts(report: &Value) -> Value {
    let mut facts = report.clone();
    for field in ["source", "form", "backup", "from", "trailer", "wal", "wal_lag", "warnings", "surplus_bytes"] {
        facts.as_object_mut().unwrap().remove(field);
    }
    facts.as_object_mut().unwrap().remove("saved_by_defragmentation");
    facts
}

fn sums(report: &Value) -> (u64, u64) {
    let of = |field: &str| report["prefixes"].as_array().unwrap().iter().map(|p| p[field].as_u64().unwrap()).sum();
    (of("keys"), of("bytes"))
}

fn as_the_official_tools(series: Series) {
    let cluster = Cluster::start(1, Options { series, ..Options::default() });
    fill::homelab(&cluster.client(0));
    let file = cluster.dir().join("snapshot.db");
    snapshot(&cluster, &file);
    let report = inspect(0, &[text(&file)]);
    let status = status(series, &file);
    assert_eq!(report["schema"], "etcd-dr/inspect/v1");
    assert_eq!(report["status_hash"], status["hash"]);
    assert_eq!(report["revision"], status["revision"]);
    assert_eq!(report["total_size"], status["totalSize"]);
    let keys = if series == Series::V3_6 { "total_keys" } else { "total_rows" };
    assert_eq!(report[keys], status["totalKey"]);
    assert_eq!(report["schema_version"], series.name());
    let storage = if series == Series::V3_6 { json!("3.6.0") } else { Value::Null };
    assert_eq!(report["storage_version"], storage);
    let hash = ask::hash_kv(&cluster.client(0), report["revision"].as_i64().unwrap());
    assert_eq!((&report["hash_kv"], &report["compact_revision"]), (&json!(hash.hash), &json!(hash.compact_revision)));
    assert_eq!(report["leases"].as_array().unwrap().len(), 2);
    assert_eq!((&report["alarms"], &report["trailer"]), (&json!([]), &json!(true)));
    let members = report["members"].as_array().unwrap();
    assert_eq!((members.len(), &members[0]["name"]), (1, &json!("k8s")));
    assert_eq!(members[0]["peer_urls"], json!([cluster.peer_url(0)]));
    assert_eq!((&report["warnings"], &report["wal_lag"]), (&json!([]), &Value::Null));
}

#[test]
fn what_etcd_3_4_wrote_has_its_tools_numbers() {
    as_the_official_tools(Series::V3_4);
}

#[test]
fn what_etcd_3_5_wrote_has_its_tools_numbers() {
    as_the_official_tools(Series::V3_5);
}

#[test]
fn what_etcd_3_6_wrote_has_its_tools_numbers() {
    as_the_official_tools(Series::V3_6);
}

#[test]
fn every_form_of_a_snapshot_has_the_same_numbers() {
    let cluster = Cluster::start(1, Options::default());
    fill::homelab(&cluster.client(0));
    let site = Site::new(&cluster);
    let id = site.backup();
    let dir = site.backup_dir(&id);
    let identity = site.path("identity.txt");
    let (store, identity) = (site.store(), text(&identity));
    let around = ["--store", text(&store), "--public-key", &site.public_key, "--identity", identity];
    let with = |source: &str| inspect(0, &[&[source][..], &around].concat());
    let of_backup = with(&id);
    assert_eq!(
        (&of_backup["backup"], &of_backup["from"], &of_backup["form"]),
        (&json!(id), &json!("k8s"), &json!("sealed"))
    );
    let sealed = dir.join("etcd-k8s.db.zst.age");
    for source in ["latest", text(&dir), text(&sealed)] {
        assert_eq!(facts(&with(source)), facts(&of_backup), "{source}");
    }
    assert_eq!(facts(&with("latest")), facts(&inspect(0, &[&["latest", "--from", "k8s"][..], &around].concat())));

    // The same file without the backup around it needs no key but the identity; opened by stock tools it needs none.
    let alone = site.path("any name");
    fs::copy(&sealed, &alone).unwrap();
    let report = inspect(0, &[text(&alone), "--identity", identity]);
    assert_eq!((&report["form"], &report["backup"]), (&json!("sealed"), &Value::Null));
    assert_eq!(facts(&report), facts(&of_backup));
    let (zst, db) = (site.path("x.db.zst"), site.path("x.db"));
    assert!(
        servers::stock("age").args(["-d", "-i", identity, "-o"]).arg(&zst).arg(&sealed).status().unwrap().success()
    );
    assert!(servers::stock("zstd").args(["-q", "-d", "-o"]).arg(&db).arg(&zst).status().unwrap().success());
    assert_eq!(facts(&inspect(0, &[text(&zst)])), facts(&of_backup));
    assert_eq!(facts(&inspect(0, &[text(&db)])), facts(&of_backup));
    let mut bytes = fs::read(&db).unwrap();
    bytes.truncate(bytes.len() - 32);
    let cut = site.path("cut.db");
    fs::write(&cut, bytes).unwrap();
    let report = inspect(0, &[text(&cut)]);
    assert_eq!(facts(&report), facts(&of_backup));
    assert!(report["warnings"].to_string().contains("SHA-256 is not at its end"), "{report:#}");

    // A stopped member's own database, by its path and by its data directory: all is in it, and it says so.
    cluster.stop_member(0);
    let data_dir = cluster.data_dir(0);
    for source in [data_dir.clone(), data_dir.join("member/snap/db")] {
        let report = inspect(0, &[text(&source)]);
        for field in ["revision", "hash_kv", "total_keys", "members", "prefixes", "largest", "leases"] {
            assert_eq!(report[field], of_backup[field], "{field}");
        }
        assert_eq!((&report["wal_lag"], &report["warnings"]), (&json!(0), &json!([])));
        assert_eq!(report["wal"]["member"], report["members"][0]["id"]);
    }

    // What is refused, with its code.
    let unknown = "20260101T020000Z-0000";
    for (code, kind, arguments) in [
        (10, "no_backup", vec![unknown]),
        (10, "no_backup", vec!["/nowhere/x.db"]),
        (10, "no_backup", vec!["/tmp"]),
        (2, "no_member", vec![id.as_str(), "--from", "nobody"]),
    ] {
        let answer = inspect(code, &[&arguments[..], &around].concat());
        assert_eq!(answer["error"]["kind"], kind, "{answer:#}");
    }
    let second = site.path("other.txt");
    let made = servers::stock("age-keygen").arg("-o").arg(&second).stderr(Stdio::null()).status().unwrap();
    assert!(made.success());
    assert_eq!(inspect(12, &[text(&alone), "--identity", text(&second)])["error"]["kind"], "wrong_identity");
    assert_eq!(inspect(12, &[text(&alone), "--identity", "/nowhere"])["error"]["kind"], "no_identity");
    assert_eq!(inspect(2, &[text(&dir)])["error"]["kind"], "no_trusted_key");
    let other = etcd_dr::sign::SecretKey::generate(&site.path("other.key")).unwrap();
    let foreign = ["--public-key", &other.public().to_base64(), "--identity", identity];
    assert_eq!(inspect(20, &[&[text(&dir)][..], &foreign].concat())["error"]["kind"], "not_verified");
    for usage in [&[][..], &["one", "two"], &["x.db", "--depth", "-1"], &["x.db", "--largest", "many"]] {
        inspect(2, usage);
    }
}

#[test]
fn prefixes_add_up_and_the_largest_come_first() {
    let cluster = Cluster::start(1, Options::default());
    fill::homelab(&cluster.client(0));
    let mut client = cluster.client(0);
    wait(async move {
        client.put(b"\xff\n\x1b[31m".as_slice(), vec![b'x'; 300_000], None).await.unwrap();
        client.put("/a/b/c/d", "four", None).await.unwrap();
        client.put("/a/b/c/e", "five", None).await.unwrap();
    });
    let file = cluster.dir().join("snapshot.db");
    snapshot(&cluster, &file);
    for depth in ["1", "2", "3", "9"] {
        let report = inspect(0, &[text(&file), "--depth", depth]);
        let all = (report["total_keys"].as_u64().unwrap(), report["live_bytes"].as_u64().unwrap());
        assert_eq!(sums(&report), all, "depth {depth}");
    }
    let report = inspect(0, &[text(&file), "--depth", "2", "--largest", "3"]);
    let found = report["prefixes"].as_array().unwrap().iter().find(|prefix| prefix["prefix"] == "/a/b").unwrap();
    assert_eq!((&found["keys"], &found["bytes"]), (&json!(2), &json!(24)));
    let largest = report["largest"].as_array().unwrap();
    assert_eq!(largest.len(), 3);
    assert_eq!((&largest[0]["key"], &largest[0]["bytes"]), (&json!("\\xff\\n\\x1b[31m"), &json!(300_000)));
    assert!(largest.windows(2).all(|pair| pair[0]["bytes"].as_u64() >= pair[1]["bytes"].as_u64()), "{largest:?}");
    let none = inspect(0, &[text(&file), "--depth", "0", "--largest", "0"]);
    assert_eq!((&none["prefixes"], &none["largest"]), (&json!([]), &json!([])));

    let table = bare(&[text(&file)]).expect_code(0).stdout;
    let hash = format!("{:08x}", report["hash_kv"].as_u64().unwrap());
    for words in ["revision", &hash, "PREFIX", "/registry/secrets", "LARGEST", "\\xff\\n\\x1b[31m", "292 KiB", "k8s ("]
    {
        assert!(table.contains(words), "{words}:\n{table}");
    }
    assert!(!table.contains('\x1b'), "{table:?}");
}

/// So many transactions of 100 puts, as fast as they are taken.
fn hurry(client: &Client, transactions: usize) {
    let mut client = client.clone();
    wait(async move {
        for n in 0..transactions {
            let puts = (0..100).map(|k| TxnOp::put(format!("/hurry/{k}"), format!("{n}"), None)).collect::<Vec<_>>();
            client.txn(Txn::new().and_then(puts)).await.unwrap();
        }
    });
}

#[test]
fn a_killed_members_log_is_ahead_of_its_database() {
    // A backend that commits rarely, so that the last puts are never in the file.
    let extra_args = vec!["--backend-batch-interval=60s".to_owned(), "--backend-batch-limit=1000000".to_owned()];
    let cluster = Cluster::start(1, Options { extra_args, ..Options::default() });
    cluster.stop_member(0);
    cluster.start_member(0);
    hurry(&cluster.client(0), 50);
    let live = cluster.data_dir(0);
    let refused = inspect(11, &[text(&live)]);
    assert_eq!(refused["error"]["kind"], "in_use");
    assert!(refused["error"]["hint"].as_str().unwrap().contains("etcdctl snapshot save"), "{refused:#}");
    assert_eq!(refused["revision"], Value::Null);
    cluster.kill_member(0);
    let report = inspect(0, &[text(&live)]);
    let lag = report["wal_lag"].as_u64().unwrap();
    let (commit, index) = (report["wal"]["commit"].as_u64().unwrap(), report["consistent_index"].as_u64().unwrap());
    assert!(lag >= 50 && lag == commit - index, "{report:#}");
    let warnings = report["warnings"].to_string();
    assert!(warnings.contains(&format!("lacks {lag} agreed entries")), "{warnings}");
    assert!(warnings.contains("official tools IGNORE them"), "{warnings}");
    assert!(bare(&[text(&live)]).expect_code(0).stdout.contains(&format!("{lag} entries ahead")));
    // A log that lies elsewhere has to be named; without it the lag is unknown, not zero.
    let elsewhere = cluster.dir().join("elsewhere");
    #[allow(clippy::disallowed_methods, reason = "as an operator moves it")]
    fs::rename(live.join("member/wal"), &elsewhere).unwrap();
    let unknown = inspect(0, &[text(&live)]);
    assert_eq!((&unknown["wal_lag"], &unknown["wal"]), (&Value::Null, &Value::Null));
    assert!(unknown["warnings"].to_string().contains("is unknown"), "{unknown:#}");
    assert_eq!(inspect(0, &[text(&live), "--wal-dir", text(&elsewhere)])["wal_lag"], json!(lag));
}

/// The pages of one moment up to the middle, those of another behind it: what copying a file takes while its member writes.
fn torn(cluster: &Cluster) -> Vec<u8> {
    let live = cluster.data_dir(0).join("member/snap/db");
    let client = cluster.client(0);
    hurry(&client, 200);
    std::thread::sleep(std::time::Duration::from_millis(300));
    let before = fs::read(&live).unwrap();
    hurry(&client, 400);
    std::thread::sleep(std::time::Duration::from_millis(300));
    let mut after = fs::read(&live).unwrap();
    let head = 2 * 4096;
    // The metas are read first, and are of the earlier moment.
    after[..head].copy_from_slice(&before[..head]);
    after
}

#[test]
fn a_copy_of_a_running_member_is_said_to_be_one() {
    let cluster = Cluster::start(1, Options::default());
    let bytes = torn(&cluster);
    for name in ["copy.db", "db"] {
        let copy = cluster.dir().join(name);
        fs::write(&copy, &bytes).unwrap();
        let answer = inspect(20, &[text(&copy)]);
        assert_eq!(answer["error"]["kind"], "torn", "{answer:#}");
        let message = answer["error"]["message"].as_str().unwrap();
        assert!(message.contains("looks like a copy of a running member: ") && message.contains("page "), "{message}");
        assert_eq!(answer["revision"], Value::Null, "nothing is summarised");
    }
}

fn with_trailer(mut body: Vec<u8>) -> Vec<u8> {
    let digest = Sha256::digest(&body);
    body.extend_from_slice(&digest);
    body
}

#[test]
fn what_is_no_sound_database_is_named() {
    let cluster = Cluster::start(1, Options::default());
    fill::homelab(&cluster.client(0));
    let whole = ask::snapshot(&cluster.client(0));
    let body = whole[..whole.len() - 32].to_vec();
    let changed = |offset: usize| {
        let mut bytes = whole.clone();
        bytes[offset] ^= 1;
        bytes
    };
    let gzip = {
        let plain = cluster.dir().join("plain.db");
        fs::write(&plain, &whole).unwrap();
        servers::stock("gzip").arg("-c").arg(&plain).output().unwrap().stdout
    };
    // Page headers in a file whose digest fits: etcd sent it so. All leaves, since some are free and nobody looks at them.
    let mut damaged = body.clone();
    for page in (2..damaged.len() / 4096).filter(|n| body[n * 4096 + 8] == 2) {
        damaged[page * 4096] ^= 0x40;
    }
    let swapped = changed(whole.len() - 1);
    for (name, bytes, kind, words) in [
        ("empty", Vec::new(), "not_a_database", "an empty file"),
        ("text", b"apiVersion: v1\nkind: Secret\n".repeat(100), "not_a_database", "text"),
        ("zeros", vec![0; 65536], "not_a_database", "zeros"),
        ("gzip", gzip, "not_a_database", "compressed by gzip"),
        (
            "noise",
            (0_u32..20_000).flat_map(|n| Sha256::digest(n.to_le_bytes())).take(65536).collect(),
            "not_a_database",
            "begin like nothing",
        ),
        ("half", whole[..whole.len() / 2 / 4096 * 4096].to_vec(), "unsound", "truncated"),
        ("half-with-trailer", with_trailer(body[..body.len() / 2 / 4096 * 4096].to_vec()), "unsound", "truncated"),
        ("flipped", changed(whole.len() / 2), "trailer", "does not hold what etcd sent"),
        ("other-trailer", swapped, "trailer", "its trailer says SHA-256"),
        ("page", with_trailer(damaged), "unsound", "page "),
    ] {
        let file = cluster.dir().join(name);
        fs::write(&file, &bytes).unwrap();
        let answer = inspect(20, &[text(&file)]);
        assert_eq!(answer["error"]["kind"], kind, "{name}: {answer:#}");
        let message = answer["error"]["message"].as_str().unwrap();
        assert!(message.contains(words) && message.contains(text(&file)), "{name}: {message}");
        assert_eq!(answer["revision"], Value::Null, "{name}: nothing is summarised");
        assert!(bare(&[text(&file)]).expect_code(20).stdout.is_empty(), "{name}");
        // The same compressed.
        if !matches!(name, "empty") {
            let zst: PathBuf = file.with_extension("zst");
            let packed = servers::stock("zstd").args(["-q", "-f", "-o"]).arg(&zst).arg(&file).status().unwrap();
            assert!(packed.success());
            assert_eq!(inspect(20, &[text(&zst)])["error"]["kind"], kind, "{name}, compressed");
        }
    }
    let zst = cluster.dir().join("cut.zst");
    let packed = zstd::encode_all(&whole[..], 3).unwrap();
    fs::write(&zst, &packed[..packed.len() / 2]).unwrap();
    let answer = inspect(20, &[text(&zst)]);
    assert!(answer["error"]["message"].as_str().unwrap().contains("does not decompress"), "{answer:#}");
}

#[test]
fn another_page_size_is_read() {
    let cluster = Cluster::start(1, Options::default());
    fill::homelab(&cluster.client(0));
    let file = cluster.dir().join("snapshot.db");
    snapshot(&cluster, &file);
    let other = cluster.dir().join("other.db");
    rewritten(&file, &other, 16384);
    let (report, same) = (inspect(0, &[text(&other)]), inspect(0, &[text(&file)]));
    assert_eq!((&report["page_size"], &same["page_size"]), (&json!(16384), &json!(4096)));
    for field in ["revision", "hash_kv", "status_hash", "total_keys", "total_rows", "prefixes"] {
        assert_eq!(report[field], same[field], "{field}");
    }
}

/// The same rows in pages of another size.
fn rewritten(from: &Path, to: &Path, page_size: u32) {
    use etcd_dr::etcd::bbolt::{Db, Row, Visitor, WriteError, Writer};
    struct Copy<W>(Writer<W>);
    #[derive(Debug)]
    struct Failed;
    impl From<etcd_dr::etcd::bbolt::Damage> for Failed {
        fn from(_: etcd_dr::etcd::bbolt::Damage) -> Self {
            Self
        }
    }
    impl From<WriteError> for Failed {
        fn from(_: WriteError) -> Self {
            Self
        }
    }
    impl<W: etcd_dr::etcd::bbolt::WriteAt> Visitor for Copy<W> {
        type Error = Failed;
        fn bucket_begin(&mut self, name: &[u8], _: u64) -> Result<(), Failed> {
            Ok(self.0.begin_bucket(name)?)
        }
        fn row(&mut self, row: Row<'_>) -> Result<(), Failed> {
            Ok(self.0.put(row.key, row.value)?)
        }
    }
    let sink = fs::OpenOptions::new().read(true).write(true).create_new(true).open(to).unwrap();
    let db = Db::open(fs::File::open(from).unwrap()).unwrap();
    let mut copy = Copy(Writer::new(sink, page_size).unwrap());
    db.walk(&mut copy).unwrap();
    copy.0.finish().unwrap();
}
