//! `init`: what it makes, what it keeps, what it warns of, and what it brings back.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs,
    reason = "a failed test is a panic"
)]

use std::{
    collections::BTreeMap,
    fs::{self, Permissions},
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, symlink},
    path::{Path, PathBuf},
};

use etcd_dr::{
    ops::init::{self, Error, InitReport, Request},
    record::{BackupId, EtcdId, Index, Journal, ProofLevel, Sha256Hex, Versions, names},
    sign::{PublicKey, SecretKey, Sums, Trusted},
    store::{self, JournalState, Store},
};
use jiff::Timestamp;
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

struct Fixture {
    _root: TempDir,
    base: PathBuf,
    store: PathBuf,
    key: PathBuf,
    system: PathBuf,
    trusted: Trusted,
}

impl Fixture {
    fn new() -> Self {
        assert!(rustix::process::geteuid().is_root(), "these tests change owners: run them as root");
        let root = tempfile::tempdir().unwrap();
        let base = root.path().canonicalize().unwrap();
        let (store, key, system) =
            (base.join("backup/etcd"), base.join("conf/etcd-dr/signing.key"), base.join("system"));
        fs::create_dir(&system).unwrap();
        Self { _root: root, base, store, key, system, trusted: Trusted::default() }
    }

    fn request(&self) -> Request<'_> {
        Request {
            store: &self.store,
            signing_key: &self.key,
            trusted: &self.trusted,
            accept_cluster: None,
            system_root: &self.system,
            now: "2026-11-22T02:00:00Z".parse().unwrap(),
        }
    }

    fn init(&self) -> InitReport {
        init::init(&self.request()).unwrap()
    }

    fn system_file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.system.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path
    }

    /// A small backup, signed by the fixture's signing key, and noted in the journal.
    fn backup(&self, id: &str, cluster: EtcdId) -> BackupId {
        let id: BackupId = id.parse().unwrap();
        let store = Store::open(&self.store).unwrap();
        let dir = store.backup_path(&id);
        make_dir(&dir, 0o700);
        let index = serde_json::to_vec(&index(&id, store.id(), cluster)).unwrap();
        let digest = Sha256Hex(Sha256::digest(&index).into());
        let sums = Sums(BTreeMap::from([(names::INDEX.to_owned(), digest)])).to_string();
        let signature = SecretKey::load(&self.key).unwrap().sign(sums.as_bytes(), "backup").unwrap();
        write(&dir.join(names::INDEX), &index, 0o600);
        write(&dir.join(names::SUMS), sums.as_bytes(), 0o600);
        write(&dir.join(names::SIGNATURE), signature.as_bytes(), 0o600);
        store.record_published(&store.lock().unwrap(), &id, cluster, Some(7), index_time()).unwrap();
        id
    }

    fn remove(&self, name: &str) {
        fs::remove_file(self.store.join(name)).unwrap();
    }
}

fn index_time() -> Timestamp {
    "2026-11-22T02:00:00Z".parse().unwrap()
}

fn index(id: &BackupId, store_id: &str, cluster_id: EtcdId) -> Index {
    Index {
        schema: Index::SCHEMA.to_owned(),
        id: id.clone(),
        path: PathBuf::from("/backup/etcd").join(id.as_str()),
        store_id: store_id.to_owned(),
        cluster_id,
        cluster_name: "homelab".to_owned(),
        host: "k8s".to_owned(),
        created_at: index_time(),
        finished_at: index_time(),
        proof: ProofLevel::Open,
        agreement: None,
        partial: false,
        primary: None,
        members: Vec::new(),
        archives: Vec::new(),
        resources: None,
        bundle_complete: None,
        cross_check: None,
        findings: Vec::new(),
        warnings: Vec::new(),
        recipients: vec!["run".to_owned()],
        versions: Versions { etcd_dr: "0.1.0".to_owned(), etcd: Vec::new() },
        reason: None,
    }
}

fn make_dir(path: &Path, mode: u32) {
    fs::create_dir_all(path).unwrap();
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

fn write(path: &Path, bytes: &[u8], mode: u32) {
    fs::write(path, bytes).unwrap();
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

/// Every name below `dir` with its mode, owner, time of change and contents.
fn tree(dir: &Path) -> BTreeMap<PathBuf, (u32, u32, i64, i64, Vec<u8>)> {
    let mut all = BTreeMap::new();
    for entry in walkdir::WalkDir::new(dir) {
        let entry = entry.unwrap();
        let meta = entry.metadata().unwrap();
        let bytes = if meta.is_file() { fs::read(entry.path()).unwrap() } else { Vec::new() };
        all.insert(entry.into_path(), (meta.mode(), meta.uid(), meta.ctime(), meta.ctime_nsec(), bytes));
    }
    all
}

fn has(report: &InitReport, parts: &[&str]) -> bool {
    report.warnings.iter().any(|warning| parts.iter().all(|part| warning.contains(part)))
}

#[test]
fn it_makes_a_store_that_opens_and_a_key_that_signs() {
    let fixture = Fixture::new();
    let report = fixture.init();
    let store = Store::open(&fixture.store).unwrap();
    assert_eq!((store.id(), store.path()), (report.store_id.as_str(), report.store.as_path()));
    assert_eq!(store.journal().unwrap(), JournalState::Present(Journal::new(store.id())));
    assert!(store.foreign().unwrap().is_empty() && store.marker().lineage.is_empty());
    let key = SecretKey::load(&fixture.key).unwrap();
    assert_eq!(report.public_key, Some(key.public().to_base64()));
    let copy = PublicKey::from_key_or_file(fixture.store.join(names::PUBLIC_KEY).to_str().unwrap()).unwrap();
    assert_eq!(&copy, key.public());
    for (path, (mode, ..)) in tree(&fixture.store).into_iter().chain(tree(&fixture.base.join("conf"))) {
        let wanted = if path.is_dir() { 0o700 } else { 0o600 };
        assert_eq!(mode & 0o7777, wanted, "{}", path.display());
    }
    for path in &report.created {
        assert!(path.exists(), "{}", path.display());
    }
    assert_eq!(report.store_id.len(), 36);
    assert_eq!(report.store_id.as_bytes()[14], b'4');
    assert!(report.warnings.is_empty() && report.foreign.is_empty(), "{report:?}");
}

#[test]
fn a_plan_changes_nothing_and_names_what_would_be_made() {
    let fixture = Fixture::new();
    let before = tree(&fixture.base);
    let plan = init::plan(&fixture.request()).unwrap();
    let planned = plan.report();
    assert_eq!(tree(&fixture.base), before);
    assert_eq!(planned.public_key, None);
    let done = init::execute(plan).unwrap();
    assert_eq!(planned.created, done.created);
    assert_eq!(planned.store_id, done.store_id);
    let new: Vec<_> = tree(&fixture.base).into_keys().filter(|path| !before.contains_key(path)).collect();
    let unnamed: Vec<_> = new.iter().filter(|path| !done.created.contains(path)).collect();
    assert_eq!(unnamed, [&fixture.store.join(names::LOCK)]);
}

#[test]
fn repeating_it_changes_nothing_and_succeeds() {
    let fixture = Fixture::new();
    let first = fixture.init();
    let before = tree(&fixture.base);
    let _lock = Store::open(&fixture.store).unwrap().lock().unwrap();
    let before_locked = tree(&fixture.store).into_keys().collect::<Vec<_>>();
    let again = fixture.init();
    assert_eq!((again.store_id, again.public_key), (first.store_id, first.public_key));
    assert!(again.created.is_empty());
    assert_eq!(tree(&fixture.store).into_keys().collect::<Vec<_>>(), before_locked);
    let lock = fixture.store.join(names::LOCK);
    let without_lock = |mut tree: BTreeMap<PathBuf, _>| {
        tree.remove(&lock);
        tree
    };
    assert_eq!(without_lock(tree(&fixture.base)), without_lock(before));
}

#[test]
fn a_cluster_is_accepted_under_the_lock_and_once() {
    let fixture = Fixture::new();
    fixture.init();
    let request = Request { accept_cluster: Some(EtcdId(0xcafe)), ..fixture.request() };
    let lock = Store::open(&fixture.store).unwrap().lock().unwrap();
    assert!(matches!(init::init(&request), Err(Error::Store(store::Error::Locked { .. }))));
    drop(lock);
    assert_eq!(init::init(&request).unwrap().created, [fixture.store.join(names::MARKER)]);
    assert!(init::init(&request).unwrap().created.is_empty());
    assert_eq!(Store::open(&fixture.store).unwrap().marker().lineage, [EtcdId(0xcafe)]);
}

#[test]
fn a_key_that_is_there_is_kept_or_refused() {
    let fixture = Fixture::new();
    make_dir(fixture.key.parent().unwrap(), 0o700);
    let key = SecretKey::generate(&fixture.key).unwrap();
    let before = fs::read(&fixture.key).unwrap();
    fs::set_permissions(&fixture.key, Permissions::from_mode(0o644)).unwrap();
    assert!(matches!(init::init(&fixture.request()), Err(Error::Store(store::Error::Unsafe(_)))));
    assert!(!fixture.store.exists(), "a refusal makes nothing");
    fs::set_permissions(&fixture.key, Permissions::from_mode(0o600)).unwrap();
    assert_eq!(fixture.init().public_key, Some(key.public().to_base64()));
    assert_eq!(fs::read(&fixture.key).unwrap(), before);
    write(&fixture.key, b"untrusted comment: x\nnonsense\n", 0o600);
    let error = init::init(&fixture.request()).unwrap_err();
    assert!(matches!(error, Error::Sign(_)));
    assert!(error.hint().unwrap().contains("mv "), "{error}");
}

#[test]
fn a_new_key_shows_in_the_stores_copy() {
    let fixture = Fixture::new();
    fixture.init();
    fs::remove_file(&fixture.key).unwrap();
    let report = fixture.init();
    let copy = fs::read_to_string(fixture.store.join(names::PUBLIC_KEY)).unwrap();
    assert!(copy.contains(&report.public_key.unwrap()));
}

#[test]
fn what_the_old_cron_left_is_adopted_with_its_warnings() {
    let fixture = Fixture::new();
    make_dir(&fixture.store, 0o755);
    let Err(Error::Store(store::Error::Unsafe(found))) = init::init(&fixture.request()) else { panic!() };
    assert_eq!(found.fix, format!("chmod 0700 {}", fixture.store.display()));
    make_dir(&fixture.store, 0o700);
    let mut page = vec![0_u8; 4096];
    page[16..20].copy_from_slice(&0xED0C_DAED_u32.to_le_bytes());
    write(&fixture.store.join("snapshot-2026-11-17.db"), &page, 0o644);
    write(&fixture.store.join("renamed"), &page, 0o644);
    write(&fixture.store.join("old.db.gz"), b"\x1f\x8b", 0o644);
    write(&fixture.store.join("all-resources.yaml"), b"items:\n- apiVersion: v1\n  kind: Secret\n", 0o644);
    write(&fixture.store.join("pods.yaml"), b"kind: Pod\n", 0o644);
    make_dir(&fixture.store.join("older"), 0o755);
    write(&fixture.store.join("older/secrets.json"), br#"{"kind":"SecretList"}"#, 0o644);
    symlink("/etc/passwd", fixture.store.join("link.db")).unwrap();
    chown(fixture.store.join("pods.yaml"), Some(65534), None).unwrap();
    let outside: Vec<_> = tree(&fixture.store).into_iter().filter(|(path, _)| *path != fixture.store).collect();
    let report = fixture.init();
    let foreign =
        ["all-resources.yaml", "link.db", "old.db.gz", "older", "pods.yaml", "renamed", "snapshot-2026-11-17.db"];
    assert_eq!(report.foreign, foreign);
    let after = tree(&fixture.store);
    for (path, was) in outside {
        assert_eq!(after[&path], was, "{}", path.display());
    }
    for name in ["snapshot-2026-11-17.db", "renamed", "old.db.gz", "all-resources.yaml", "older/secrets.json"] {
        assert!(has(&report, &[&fixture.store.join(name).display().to_string()]), "{name}");
    }
    assert_eq!(report.warnings.len(), 5, "{:#?}", report.warnings);
    assert!(Store::open(&fixture.store).unwrap().backup_ids().unwrap().is_empty());
    assert_eq!(fixture.init().foreign, foreign);
}

#[test]
fn every_cleaner_of_the_path_is_named() {
    let fixture = Fixture::new();
    let store = fixture.store.display();
    let find = format!("find {store} -mtime +5 -delete");
    let files = [
        fixture.system_file("etc/crontab", &format!("0 2 * * * root {find}\n")),
        fixture.system_file("etc/cron.d/etcd", &format!("0 2 * * * root {find}\n")),
        fixture.system_file("etc/cron.daily/etcd", &format!("#!/bin/sh\n{find}\n")),
        fixture.system_file("var/spool/cron/crontabs/root", &format!("0 2 * * * {find}\n")),
        fixture.system_file("var/spool/cron/root", &format!("0 2 * * * {find}\n")),
        fixture.system_file("etc/systemd/system/old.service", &format!("[Service]\nExecStart={find}\n")),
        fixture.system_file("usr/lib/tmpfiles.d/old.conf", &format!("d {} - - - 5d\n", fixture.base.display())),
        fixture.system_file("opt/clean.sh", &format!("DIR={store}\nrm -rf \"$DIR\"/*\n")),
    ];
    fixture.system_file("etc/cron.d/script", "0 2 * * * root PASSWORD=hunter2 /opt/clean.sh\n");
    fixture.system_file("etc/cron.d/other", "0 2 * * * root find /srv -mtime +5 -delete\n");
    let report = fixture.init();
    for file in &files {
        assert!(has(&report, &[&format!("{}, line ", file.display()), "would eat the backups"]), "{}", file.display());
    }
    assert_eq!(report.warnings.len(), files.len(), "{:#?}", report.warnings);
    assert!(!report.warnings.iter().any(|warning| warning.contains("hunter2")));
}

#[test]
fn a_lost_marker_comes_back_from_the_journal_and_losses_are_named() {
    let fixture = Fixture::new();
    let first = fixture.init();
    let gone = fixture.backup("20261121T020000Z-0001", EtcdId(0xcafe));
    let kept = fixture.backup("20261122T020000Z-0002", EtcdId(0xcafe));
    fs::remove_dir_all(fixture.store.join(gone.as_str())).unwrap();
    fs::remove_file(fixture.store.join(kept.as_str()).join(names::INDEX)).unwrap();
    fixture.remove(names::MARKER);
    let report = fixture.init();
    assert_eq!(report.store_id, first.store_id);
    assert_eq!(report.created, [fixture.store.join(names::MARKER)]);
    assert!(has(&report, &["lost its marker", "its id was recovered"]), "{report:#?}");
    assert!(has(&report, &["gone: 20261121T020000Z-0001"]), "{report:#?}");
    assert!(has(&report, &["files gone", "20261122T020000Z-0002/backup.json"]), "{report:#?}");
    let store = Store::open(&fixture.store).unwrap();
    assert_eq!(store.marker().lineage, [EtcdId(0xcafe)]);
    assert_eq!(store.journal().unwrap().vanished(&[kept]), [gone], "it stays a finding");
}

#[test]
fn without_a_journal_only_trusted_backups_speak() {
    for (trusted, damaged) in [(true, false), (true, true), (false, false)] {
        let fixture = Fixture::new();
        let first = fixture.init();
        fixture.backup("20261122T020000Z-0002", EtcdId(0xcafe));
        fixture.remove(names::MARKER);
        fixture.remove(names::JOURNAL);
        if damaged {
            write(&fixture.store.join(names::JOURNAL), b"half", 0o600);
        }
        if !trusted {
            fs::remove_file(&fixture.key).unwrap();
        }
        let report = fixture.init();
        assert_eq!(report.store_id == first.store_id, trusted, "{report:#?}");
        let store = Store::open(&fixture.store).unwrap();
        assert_eq!(store.marker().lineage.is_empty(), !trusted);
        assert_eq!(
            store.journal().unwrap().vanished(&[]),
            store.backup_ids().unwrap(),
            "the new journal knows what is there"
        );
        let kept = report.created.iter().filter(|path| path.to_str().unwrap().contains("damaged")).count();
        assert_eq!(kept, usize::from(damaged));
        assert!(fixture.init().created.is_empty());
    }
}

#[test]
fn a_lost_journal_comes_back_with_a_warning() {
    let fixture = Fixture::new();
    fixture.init();
    let there = fixture.backup("20261122T020000Z-0002", EtcdId(0xcafe));
    fixture.remove(names::JOURNAL);
    let report = fixture.init();
    assert_eq!(report.created, [fixture.store.join(names::JOURNAL)]);
    assert!(has(&report, &["journal is gone", "that are there (1)"]), "{report:#?}");
    assert_eq!(Store::open(&fixture.store).unwrap().journal().unwrap().vanished(&[]), [there]);
}

#[test]
fn an_interrupted_init_is_finished_without_a_fuss() {
    let fixture = Fixture::new();
    let first = fixture.init();
    fixture.remove(names::MARKER);
    let report = fixture.init();
    assert_eq!(report.store_id, first.store_id);
    assert!(report.warnings.is_empty(), "{report:#?}");
    fixture.remove(names::MARKER);
    fixture.remove(names::JOURNAL);
    let report = fixture.init();
    assert!(report.warnings.is_empty(), "{report:#?}");
    Store::open(&fixture.store).unwrap();
}

#[test]
fn a_marker_that_cannot_be_read_is_never_overwritten() {
    let fixture = Fixture::new();
    fixture.init();
    write(&fixture.store.join(names::MARKER), b"{}", 0o600);
    assert!(matches!(init::init(&fixture.request()), Err(Error::Store(store::Error::BadMarker { .. }))));
    assert_eq!(fs::read(fixture.store.join(names::MARKER)).unwrap(), b"{}");
}

#[test]
fn unsafe_parents_are_refused_before_anything_is_made() {
    let fixture = Fixture::new();
    for parent in [fixture.store.parent().unwrap(), fixture.key.parent().unwrap(), &fixture.base] {
        make_dir(parent, 0o777);
        let before = tree(&fixture.base);
        let Err(Error::Store(store::Error::Unsafe(found))) = init::init(&fixture.request()) else { panic!() };
        assert_eq!(found.path, parent);
        assert_eq!(tree(&fixture.base), before);
        make_dir(parent, 0o700);
    }
}
