//! Who may reach a store, what its marker, lock and journal say, and what is said when files vanish. Runs as root, with real owners.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs,
    reason = "a failed test is a panic"
)]

use std::{
    fs::{self, Permissions},
    os::unix::fs::{PermissionsExt as _, chown, symlink},
    path::{Path, PathBuf},
    process::Command,
};

use etcd_dr::{
    record::{BackupId, EtcdId, Journal, Marker, names},
    store::{Error, JournalState, Store, guard},
};
use jiff::Timestamp;
use tempfile::TempDir;

const CLUSTER: EtcdId = EtcdId(0xcafe);

fn now() -> Timestamp {
    "2026-11-22T02:00:00Z".parse().unwrap()
}

fn id(text: &str) -> BackupId {
    text.parse().unwrap()
}

/// A store as `init` leaves it, in a directory of its own.
struct Fixture {
    _root: TempDir,
    base: PathBuf,
    path: PathBuf,
}

impl Fixture {
    fn new() -> Self {
        assert!(rustix::process::geteuid().is_root(), "these tests change owners: run them as root");
        let root = tempfile::tempdir().unwrap();
        let base = root.path().canonicalize().unwrap();
        let path = base.join("etcd");
        let fixture = Self { _root: root, base, path };
        fixture.dir("");
        let marker = Marker {
            schema: Marker::SCHEMA.to_owned(),
            id: "store-1".to_owned(),
            created_at: now(),
            lineage: Vec::new(),
        };
        fixture.file(names::MARKER, &serde_json::to_string(&marker).unwrap());
        fixture.file(names::JOURNAL, &serde_json::to_string(&Journal::new("store-1")).unwrap());
        fixture
    }

    fn dir(&self, name: &str) -> PathBuf {
        let path = self.path.join(name);
        fs::create_dir(&path).unwrap();
        set_mode(&path, 0o700);
        path
    }

    fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path.join(name);
        fs::write(&path, text).unwrap();
        set_mode(&path, 0o600);
        path
    }

    /// A directory that looks like a backup from outside, noted in the journal.
    fn backup(&self, name: &str) -> BackupId {
        self.dir(name);
        let digest = "ab".repeat(32);
        let files = [names::INDEX, names::RECOVERY, "etcd-a.db.zst.age"];
        let mut sums = String::new();
        for file in files {
            self.file(&format!("{name}/{file}"), "x");
            sums.push_str(&[&digest, "  ", file, "\n"].concat());
        }
        self.file(&format!("{name}/{}", names::SUMS), &sums);
        self.file(&format!("{name}/{}", names::SIGNATURE), "x");
        let store = self.open();
        store.record_published(&store.lock().unwrap(), &id(name), CLUSTER, Some(7), now()).unwrap();
        id(name)
    }

    fn open(&self) -> Store {
        Store::open(&self.path).unwrap()
    }

    fn refused(&self) -> guard::Unsafe {
        match Store::open(&self.path).unwrap_err() {
            Error::Unsafe(found) => found,
            other => panic!("{other}"),
        }
    }

    /// The refusal names `path`; its command cures it, and nothing else is wrong.
    fn refused_until_fixed(&self, path: &Path, command: &str) {
        let found = self.refused();
        assert_eq!(found.path, path, "{found}");
        assert_eq!(found.fix, command);
        assert!(found.hint().contains(command));
        assert!(Command::new("sh").args(["-c", command]).status().unwrap().success());
        self.open();
    }
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

// Permissions

#[test]
fn a_store_that_others_may_read_is_refused_with_its_chmod() {
    let store = Fixture::new();
    for open in [0o755, 0o750, 0o701, 0o770] {
        set_mode(&store.path, open);
        store.refused_until_fixed(&store.path, &format!("chmod 0700 {}", store.path.display()));
        assert_eq!(mode(&store.path), 0o700);
    }
}

#[test]
fn a_parent_that_others_may_write_is_refused() {
    let store = Fixture::new();
    for open in [0o775, 0o757, 0o2777] {
        set_mode(&store.base, open);
        store.refused_until_fixed(&store.base, &format!("chmod go-w {}", store.base.display()));
    }
    set_mode(&store.base, 0o755);
    store.open();
}

#[test]
fn a_sticky_parent_of_roots_is_fine_and_of_another_user_is_not() {
    let store = Fixture::new();
    set_mode(&store.base, 0o1777);
    store.open();
    chown(&store.base, Some(65534), Some(65534)).unwrap();
    store.refused_until_fixed(&store.base, &format!("chown root:root {}", store.base.display()));
}

#[test]
fn a_foreign_owner_is_refused_with_its_chown() {
    let store = Fixture::new();
    store.backup("20261122T020000Z-7f3a");
    let inside = store.path.join("20261122T020000Z-7f3a/etcd-a.db.zst.age");
    for path in [store.path.clone(), store.path.join(names::MARKER), inside] {
        chown(&path, Some(65534), Some(65534)).unwrap();
        store.refused_until_fixed(&path, &format!("chown root:root {}", path.display()));
    }
}

#[test]
fn a_command_with_a_strange_path_can_be_pasted() {
    let store = Fixture::new();
    let odd = store.base.join("it's a store; $(touch pwned)");
    #[allow(clippy::disallowed_methods, reason = "a test moves a store")]
    fs::rename(&store.path, &odd).unwrap();
    set_mode(&odd, 0o755);
    let Error::Unsafe(found) = Store::open(&odd).unwrap_err() else { panic!() };
    assert!(Command::new("sh").args(["-c", &found.fix]).current_dir(&store.base).status().unwrap().success());
    Store::open(&odd).unwrap();
    assert!(!store.base.join("pwned").exists());
}

#[test]
fn symlinks_on_the_way_are_refused_by_name() {
    let store = Fixture::new();
    let link = store.base.join("link");
    symlink(&store.path, &link).unwrap();
    let Error::Unsafe(found) = Store::open(&link).unwrap_err() else { panic!() };
    assert_eq!(found.path, link);
    let up = store.base.join("up");
    symlink(&store.base, &up).unwrap();
    let Error::Unsafe(found) = Store::open(&up.join("etcd")).unwrap_err() else { panic!() };
    assert_eq!(found.path, up);
    assert!(matches!(found.problem, guard::Problem::SymlinkInPath { .. }));
    let output = Command::new("sh").args(["-c", &found.fix]).output().unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap().trim(), store.path.to_str().unwrap());
}

#[test]
fn symlinks_of_ours_in_the_store_are_refused() {
    let store = Fixture::new();
    store.backup("20261122T020000Z-7f3a");
    let outside = store.base.join("outside");
    fs::create_dir(&outside).unwrap();
    for name in [
        "20261122T020000Z-7f3a/stray.db",
        ".partial-x",
        "20261123T020000Z-0000",
        ".etcd-dr-holds.json",
        names::PUBLIC_KEY,
    ] {
        let link = store.path.join(name);
        symlink(&outside, &link).unwrap();
        store.refused_until_fixed(&link, &format!("unlink {}", link.display()));
    }
    assert!(outside.exists());
}

#[test]
fn a_readable_file_of_ours_is_refused_and_a_foreign_one_is_not() {
    let store = Fixture::new();
    store.backup("20261122T020000Z-7f3a");
    let inside = store.path.join("20261122T020000Z-7f3a/etcd-a.db.zst.age");
    set_mode(&inside, 0o644);
    store.refused_until_fixed(&inside, &format!("chmod 0600 {}", inside.display()));
    let dir = store.path.join("20261122T020000Z-7f3a");
    set_mode(&dir, 0o755);
    store.refused_until_fixed(&dir, &format!("chmod 0700 {}", dir.display()));
    let foreign = store.file("snapshot-2026-11-17.db", "old");
    set_mode(&foreign, 0o644);
    chown(&foreign, Some(65534), None).unwrap();
    symlink("/etc/passwd", store.path.join("foreign-link")).unwrap();
    assert_eq!(store.open().foreign().unwrap(), ["foreign-link", "snapshot-2026-11-17.db"]);
}

#[test]
fn many_open_files_are_cured_by_one_command() {
    let store = Fixture::new();
    store.backup("20261122T020000Z-7f3a");
    store.backup("20261123T020000Z-7f3a");
    let foreign = store.file("all-resources.yaml", "old");
    assert!(Command::new("chmod").args(["-R", "go+rX"]).arg(&store.path).status().unwrap().success());
    set_mode(&store.path, 0o700);
    let found = store.refused();
    assert!(found.more > 5, "{found}");
    assert!(Command::new("sh").args(["-c", &found.fix]).status().unwrap().success());
    store.open();
    assert_eq!(mode(&foreign), 0o644, "a file that is not ours is left alone");
}

#[test]
fn secret_files_are_judged_by_owner_and_mode() {
    let store = Fixture::new();
    let key = store.base.join("key");
    fs::write(&key, "x").unwrap();
    set_mode(&key, 0o640);
    let Err(guard::Error::Unsafe(found)) = guard::check_secret_file(&key) else { panic!() };
    assert_eq!(found.fix, format!("chmod 0600 {}", key.display()));
    assert_eq!(guard::check_borrowed_secret(&key).unwrap(), Some(found));
    set_mode(&key, 0o400);
    guard::check_secret_file(&key).unwrap();
    let link = store.base.join("link");
    symlink(&key, &link).unwrap();
    guard::check_secret_file(&link).unwrap();
    rustix::fs::chownat(
        rustix::fs::CWD,
        &link,
        Some(rustix::fs::Uid::from_raw(65534)),
        None,
        rustix::fs::AtFlags::SYMLINK_NOFOLLOW,
    )
    .unwrap();
    assert!(matches!(guard::check_secret_file(&link), Err(guard::Error::Unsafe(_))));
    chown(&key, Some(65534), None).unwrap();
    assert!(matches!(guard::check_borrowed_secret(&key), Err(guard::Error::Unsafe(_))));
    assert!(matches!(guard::check_secret_file(&store.base), Err(guard::Error::Unsafe(_))));
    assert!(matches!(guard::check_secret_file(Path::new("/nowhere/key")), Err(guard::Error::Io(_))));
}

// Marker

#[test]
fn what_is_no_store_says_which_kind() {
    let store = Fixture::new();
    assert!(matches!(Store::open(&store.base.join("nothing")), Err(Error::NoStore { .. })));
    assert!(matches!(Store::open(&store.base.join("no/thing")), Err(Error::NoStore { .. })));
    assert!(matches!(Store::open(&store.path.join(names::MARKER)), Err(Error::NoStore { .. })));
    let foreign = store.file("snapshot.db", "x");
    fs::remove_file(store.path.join(names::JOURNAL)).unwrap();
    fs::remove_file(store.path.join(names::MARKER)).unwrap();
    assert!(matches!(Store::open(&store.path), Err(Error::NotInitialised { .. })));
    assert!(foreign.exists());
    for text in
        ["", "{}", "null", r#"{"schema":"etcd-dr/store/v9","id":"x","created_at":"2026-11-22T02:00:00Z","lineage":[]}"#]
    {
        store.file(names::MARKER, text);
        assert!(matches!(Store::open(&store.path), Err(Error::BadMarker { .. })), "{text}");
    }
}

#[test]
fn a_lineage_begins_empty_and_then_refuses_others() {
    let store = Fixture::new();
    let mut open = store.open();
    open.accepts(CLUSTER).unwrap();
    let lock = open.lock().unwrap();
    open.accept_cluster(&lock, CLUSTER).unwrap();
    let mut second = store.open();
    second.accept_cluster(&lock, EtcdId(2)).unwrap();
    open.accept_cluster(&lock, EtcdId(3)).unwrap();
    assert_eq!(store.open().marker().lineage, [CLUSTER, EtcdId(2), EtcdId(3)]);
    let error = store.open().accepts(EtcdId(0xbad)).unwrap_err();
    assert!(error.hint().unwrap().contains("etcd-dr init --accept-cluster bad"), "{error}");
}

// Lock

#[test]
fn the_second_run_is_locked_out_and_told_by_whom() {
    let store = Fixture::new();
    let open = store.open();
    let lock = open.lock().unwrap();
    let Error::Locked { holder, .. } = open.lock().unwrap_err() else { panic!() };
    assert_eq!(holder.unwrap().pid, std::process::id());
    assert_eq!(mode(&store.path.join(names::LOCK)), 0o600);
    drop(lock);
    open.lock().unwrap();
}

#[test]
fn a_lock_file_that_was_removed_locks_nothing() {
    let store = Fixture::new();
    let open = store.open();
    let old = open.lock().unwrap();
    fs::remove_file(store.path.join(names::LOCK)).unwrap();
    let new = open.lock().unwrap();
    assert!(matches!(open.lock(), Err(Error::Locked { .. })));
    drop(old);
    assert!(matches!(open.lock(), Err(Error::Locked { .. })));
    drop(new);
    open.lock().unwrap();
}

// Journal

#[test]
fn what_was_published_not_pruned_and_is_gone_is_named() {
    let store = Fixture::new();
    let old = store.backup("20261120T020000Z-0001");
    let gone = store.backup("20261121T020000Z-0002");
    let kept = store.backup("20261122T020000Z-0003");
    let open = store.open();
    let lock = open.lock().unwrap();
    open.record_pruned(&lock, std::slice::from_ref(&old), now()).unwrap();
    open.record_pruned(&lock, std::slice::from_ref(&old), now()).unwrap();
    open.remove_backup(&lock, &old).unwrap();
    fs::remove_dir_all(open.backup_path(&gone)).unwrap();
    let present = open.backup_ids().unwrap();
    assert_eq!(present, [kept]);
    assert_eq!(open.journal().unwrap().vanished(&present), [gone]);
    let JournalState::Present(journal) = open.journal().unwrap() else { panic!() };
    assert_eq!(journal.pruned.len(), 1);
    assert_eq!(mode(&store.path.join(names::JOURNAL)), 0o600);
}

#[test]
fn the_highest_revision_only_rises() {
    let store = Fixture::new();
    let open = store.open();
    let lock = open.lock().unwrap();
    for (salt, revision) in [(1, Some(5)), (2, Some(9)), (3, Some(7)), (4, None)] {
        open.record_published(&lock, &BackupId::new(now(), salt), CLUSTER, revision, now()).unwrap();
    }
    let JournalState::Present(journal) = open.journal().unwrap() else { panic!() };
    assert_eq!(journal.revisions[&CLUSTER], 9);
    assert_eq!(journal.published.len(), 4);
}

#[test]
fn a_run_that_ended_early_is_reconciled() {
    let store = Fixture::new();
    let pruned = store.backup("20261120T020000Z-0001");
    store.dir("20261121T020000Z-0002");
    let unknown = id("20261121T020000Z-0002");
    let open = store.open();
    let lock = open.lock().unwrap();
    // Noted as pruned, and the run ended before it was removed.
    open.record_pruned(&lock, std::slice::from_ref(&pruned), now()).unwrap();
    let present = open.backup_ids().unwrap();
    assert_eq!(open.reconcile(&lock, &present, now()).unwrap(), [pruned.clone(), unknown.clone()]);
    assert!(open.reconcile(&lock, &present, now()).unwrap().is_empty());
    assert_eq!(open.journal().unwrap().vanished(&[]), [pruned, unknown]);
}

#[test]
fn a_damaged_journal_is_a_state_and_is_kept() {
    let store = Fixture::new();
    let there = store.backup("20261120T020000Z-0001");
    let open = store.open();
    let lock = open.lock().unwrap();
    for text in ["half a jour", "{}", r#"{"schema":"etcd-dr/journal/v1","store_id":"another"}"#] {
        store.file(names::JOURNAL, text);
        assert!(matches!(open.journal().unwrap(), JournalState::Damaged(_)), "{text}");
        let new = BackupId::new(now(), 1);
        open.record_published(&lock, &new, CLUSTER, Some(7), now()).unwrap();
        let kept = fs::read_dir(&store.path).unwrap().filter(|entry| {
            let entry = entry.as_ref().unwrap();
            entry.file_name().to_str().unwrap().contains("damaged")
                && fs::read(entry.path()).unwrap() == text.as_bytes()
        });
        assert_eq!(kept.count(), 1);
        assert_eq!(open.journal().unwrap().vanished(&[]), [there.clone(), new]);
    }
    fs::remove_file(store.path.join(names::JOURNAL)).unwrap();
    assert_eq!(open.journal().unwrap(), JournalState::Missing);
    assert!(open.journal().unwrap().problem().is_some());
    open.record_pruned(&lock, &[], now()).unwrap();
    assert_eq!(open.journal().unwrap().vanished(&[]), [there]);
}

// Sweeping

#[test]
fn rests_are_swept_and_links_are_not_followed() {
    let store = Fixture::new();
    let outside = store.base.join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("precious"), "x").unwrap();
    let open = store.open();
    let partial = store.dir(".partial-20261122T020000Z-7f3a");
    fs::write(partial.join("half"), "x").unwrap();
    symlink(&outside, partial.join("link")).unwrap();
    symlink(&outside, store.path.join(".partial-link")).unwrap();
    store.file(".partial-journal-1234", "x");
    store.file("partial-foreign", "x");
    let swept = open.sweep(&open.lock().unwrap()).unwrap();
    assert_eq!(swept.len(), 3);
    assert!(outside.join("precious").exists());
    assert!(store.path.join("partial-foreign").exists());
    assert!(open.sweep(&open.lock().unwrap()).unwrap().is_empty());
}

#[test]
fn free_space_is_what_df_says() {
    let store = Fixture::new();
    let space = store.open().space().unwrap();
    let df = Command::new("df").args(["-B1", "--output=size"]).arg(&store.path).output().unwrap();
    let size: u64 = String::from_utf8(df.stdout).unwrap().lines().nth(1).unwrap().trim().parse().unwrap();
    assert_eq!(space.total, size);
    assert!(space.free > 0 && space.free < space.total);
}

// The old cron job

fn find_delete(store: &Path) {
    let found = Command::new("find").arg(store).args(["-mindepth", "1", "-mtime", "+5", "-delete"]).output().unwrap();
    assert!(found.status.success(), "{found:?}");
}

fn age(path: &Path) {
    let touched =
        Command::new("find").arg(path).args(["-exec", "touch", "-h", "-d", "10 days ago", "{}", "+"]).status();
    assert!(touched.unwrap().success());
}

#[test]
fn the_old_cleaner_eats_a_backup_and_it_is_named() {
    let store = Fixture::new();
    let old = store.backup("20261112T020000Z-0001");
    let new = store.backup("20261122T020000Z-0002");
    age(&store.path.join(old.as_str()));
    find_delete(&store.path);
    assert!(!store.path.join(old.as_str()).join(names::INDEX).exists(), "the cleaner did nothing");
    let open = store.open();
    let whole: Vec<_> =
        open.backup_ids().unwrap().into_iter().filter(|id| open.backup_path(id).join(names::INDEX).exists()).collect();
    assert_eq!(whole, [new]);
    assert_eq!(open.journal().unwrap().vanished(&whole), [old]);
}

#[test]
fn the_old_cleaner_eats_the_marker_and_it_is_no_beginning() {
    let store = Fixture::new();
    let old = store.backup("20261112T020000Z-0001");
    let new = store.backup("20261122T020000Z-0002");
    age(&store.path.join(old.as_str()));
    age(&store.path.join(names::MARKER));
    age(&store.path.join(new.as_str()).join(names::RECOVERY));
    find_delete(&store.path);
    let error = Store::open(&store.path).unwrap_err();
    let text = error.to_string();
    let Error::MarkerGone { present, vanished, lost, .. } = error else { panic!("{text}") };
    assert!(present.contains(&new));
    assert!(lost.contains(&Path::new(new.as_str()).join(names::RECOVERY)), "{text}");
    // find leaves a directory whose time changed while it was emptied, or removes it.
    assert!(vanished.contains(&old) || lost.iter().any(|file| file.starts_with(old.as_str())), "{text}");
    assert!(text.contains(old.as_str()) && text.contains("something deletes files here"), "{text}");
}

#[test]
fn a_store_that_lost_all_but_its_journal_is_no_beginning() {
    let store = Fixture::new();
    let gone = store.backup("20261112T020000Z-0001");
    fs::remove_dir_all(store.path.join(gone.as_str())).unwrap();
    fs::remove_file(store.path.join(names::MARKER)).unwrap();
    let Error::MarkerGone { vanished, .. } = Store::open(&store.path).unwrap_err() else { panic!() };
    assert_eq!(vanished, [gone]);
}
