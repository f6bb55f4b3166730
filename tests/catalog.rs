//! What a catalogue believes of backups that were damaged, moved, renamed, forged, or proved later.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs,
    reason = "a failed test is a panic"
)]

#[path = "support/backup.rs"]
mod backup;

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink},
    path::{Path, PathBuf},
};

use backup::{CLUSTER, Golden, STORE, key, proof_of, time, trusting};
use etcd_dr::{
    catalog::{self, Backup, Catalog, FileState, NoSuchBackup, State},
    record::{BackupId, EtcdId, FindingKind, ProofLevel, names},
    sign::SecretKey,
};

const TODAY: &str = "2026-11-22T02:00:00Z";
const YESTERDAY: &str = "2026-11-21T02:00:00Z";
const DB: &str = "etcd-k8s.db.zst.age";

/// A store with one backup of today, and the key that signed it.
struct Store {
    root: tempfile::TempDir,
    key: SecretKey,
    dir: PathBuf,
}

impl Store {
    fn new() -> Self {
        let (root, key) = (tempfile::tempdir().unwrap(), key());
        let dir = Golden::at(TODAY).write(root.path(), &key);
        Self { root, key, dir }
    }

    fn read(&self) -> Catalog {
        catalog::read(self.root.path(), Some(STORE), &[CLUSTER], &trusting(&[&self.key])).unwrap()
    }

    /// The one backup, which must be the only one.
    fn one(&self) -> Backup {
        let mut catalog = self.read();
        assert_eq!(catalog.backups.len(), 1);
        catalog.backups.remove(0)
    }

    fn prove(&self, level: ProofLevel, ok: bool, made_at: &str) -> PathBuf {
        catalog::write_proof(&self.dir, &proof_of(&self.dir, level, ok, made_at), &self.key).unwrap()
    }
}

/// Every problem as `file: words`.
fn problems(backup: &Backup) -> Vec<String> {
    let verdicts = backup.problems();
    assert!(verdicts.iter().all(|verdict| !verdict.ok));
    verdicts.into_iter().map(|verdict| format!("{}: {}", verdict.file, verdict.problem.unwrap())).collect()
}

fn is_broken(backup: &Backup) -> bool {
    matches!(&backup.state, State::Broken { problems } if !problems.is_empty())
}

/// Another byte in the middle, the same length.
fn flip(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(path, bytes).unwrap();
}

fn truncate(path: &Path) {
    let file = fs::OpenOptions::new().write(true).open(path).unwrap();
    file.set_len(file.metadata().unwrap().len() / 2).unwrap();
}

#[test]
fn a_whole_backup_is_trusted_and_proved_as_its_run_says() {
    let store = Store::new();
    let found = store.one();
    let signed = found.signed().unwrap();
    assert_eq!(signed.signer, *store.key.public());
    assert_eq!(signed.index, Golden::at(TODAY).index);
    assert_eq!(signed.files.len(), 5);
    assert!(problems(&found).is_empty() && found.is_complete());
    assert_eq!((found.level(), found.time()), (ProofLevel::Open, time(TODAY)));
    assert!(found.proved_at(ProofLevel::Open) && !found.proved_at(ProofLevel::Sound));
    assert_eq!(found.last_proof_with_identity(), None);

    let alone = catalog::read_backup(&store.dir, &trusting(&[&store.key])).unwrap();
    assert_eq!(alone.signed().unwrap().index, signed.index);
    // A backup that reached nothing is not proved at `none`.
    let nothing = Golden::at(YESTERDAY).proved(ProofLevel::None).write(store.root.path(), &store.key);
    assert!(!catalog::read_backup(&nothing, &trusting(&[&store.key])).unwrap().proved_at(ProofLevel::None));
}

#[test]
fn a_directory_that_is_none_is_an_error() {
    let store = Store::new();
    let trusted = trusting(&[&store.key]);
    assert!(matches!(catalog::read_backup(&store.root.path().join("x"), &trusted), Err(catalog::Error::Io(_))));
    assert!(matches!(catalog::read_backup(&store.dir.join(DB), &trusted), Err(catalog::Error::Io(_))));
    let renamed = store.root.path().join("copy");
    backup::rename(&store.dir, &renamed);
    assert!(matches!(catalog::read_backup(&renamed, &trusted), Err(catalog::Error::Name(_))));
    assert!(catalog::read(&store.root.path().join("x"), None, &[], &trusted).is_err());
}

/// File, what is done to it, whether nothing is believed any more, what is said.
type Row = (&'static str, &'static str, bool, Option<&'static str>);

#[test]
fn the_damage_matrix() {
    #[rustfmt::skip]
    let rows: [Row; 20] = [
        // Its bytes are for `verify` to read; a listing does not.
        (DB,                    "flip",     false, None),
        (DB,                    "truncate", false, Some("has ")),
        (DB,                    "remove",   false, Some("is missing")),
        // The other backup's is as long.
        (DB,                    "swap",     false, None),
        (names::RECOVERY,       "flip",     false, None),
        (names::RECOVERY,       "truncate", false, None),
        (names::RECOVERY,       "remove",   false, Some("is missing")),
        (names::RECOVERY,       "swap",     false, None),
        (names::INDEX,          "flip",     true,  Some("its SHA-256 is ")),
        (names::INDEX,          "truncate", true,  Some("its SHA-256 is ")),
        (names::INDEX,          "remove",   true,  Some("is missing")),
        (names::INDEX,          "swap",     true,  Some("its SHA-256 is ")),
        (names::SUMS,           "flip",     true,  Some("does not fit the file")),
        (names::SUMS,           "truncate", true,  Some("does not fit the file")),
        (names::SUMS,           "remove",   true,  Some("is missing")),
        (names::SUMS,           "swap",     true,  Some("does not fit the file")),
        (names::SIGNATURE,      "flip",     true,  Some("")),
        (names::SIGNATURE,      "truncate", true,  Some("is not in minisign's format")),
        (names::SIGNATURE,      "remove",   true,  Some("is missing")),
        (names::SIGNATURE,      "swap",     true,  Some("does not fit the file")),
    ];
    for (file, action, broken, words) in rows {
        let store = Store::new();
        let other = Golden::at(YESTERDAY).write(store.root.path(), &store.key);
        let path = store.dir.join(file);
        match action {
            "flip" => flip(&path),
            "truncate" => truncate(&path),
            "remove" => fs::remove_file(&path).unwrap(),
            "swap" => drop(fs::copy(other.join(file), &path).unwrap()),
            _ => panic!("{action}"),
        }
        let catalog = store.read();
        let [older, damaged] = &catalog.backups[..] else { panic!("{file} {action}: {catalog:?}") };
        assert!(problems(older).is_empty() && older.proved_at(ProofLevel::Open), "{file} {action}");
        assert_eq!(is_broken(damaged), broken, "{file} {action}");
        let said = problems(damaged);
        match words {
            None => assert!(said.is_empty() && damaged.is_complete(), "{file} {action}: {said:?}"),
            Some(words) => {
                assert_eq!(said.len(), 1, "{file} {action}: {said:?}");
                // A signature that does not fit is the signature's, whichever of the two was changed.
                let named = if words.contains("fit the file") { names::SIGNATURE } else { file };
                assert!(said[0].starts_with(&format!("{named}: ")), "{file} {action}: {said:?}");
                assert!(said[0].contains(words), "{file} {action}: {said:?}");
                assert!(!damaged.is_complete() && !damaged.proved_at(ProofLevel::Digest), "{file} {action}");
            }
        }
        assert_eq!(damaged.level() == ProofLevel::None, broken, "{file} {action}");
    }
}

#[test]
fn what_takes_the_place_of_a_listed_file_is_no_file() {
    for (name, place) in [
        ("directory", (|path: &Path| fs::create_dir(path).unwrap()) as fn(&Path)),
        ("link to the same bytes", |path| symlink("/etc/hostname", path).unwrap()),
        ("link to nothing", |path| symlink("/nowhere", path).unwrap()),
    ] {
        for file in [DB, names::INDEX, names::SUMS, names::SIGNATURE] {
            let store = Store::new();
            fs::remove_file(store.dir.join(file)).unwrap();
            place(&store.dir.join(file));
            let found = store.one();
            assert_eq!(problems(&found), [format!("{file}: is not a regular file")], "{name}");
            assert!(!found.is_complete(), "{name} {file}");
        }
    }
}

#[test]
fn strangers_are_named_at_any_depth_and_never_followed() {
    let store = Store::new();
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("secret"), "x").unwrap();
    fs::write(store.dir.join("etcd-k8s.db"), "plaintext").unwrap();
    fs::create_dir_all(store.dir.join("d/e")).unwrap();
    fs::write(store.dir.join("d/e/f"), "").unwrap();
    fs::write(store.dir.join("d/backup.json"), "").unwrap();
    symlink(outside.path(), store.dir.join("link")).unwrap();
    fs::write(store.dir.join("\u{1b}[2J"), "").unwrap();
    fs::create_dir(store.dir.join("d/proofs")).unwrap();
    let found = store.one();
    let signed = found.signed().unwrap();
    let strays: Vec<_> = signed.files.iter().filter(|fact| fact.state == FileState::Stray).collect();
    let names: Vec<_> = strays.iter().map(|fact| fact.file.as_str()).collect();
    assert_eq!(names, ["\\u{1b}[2J", "d", "d/backup.json", "d/e", "d/e/f", "d/proofs", "etcd-k8s.db", "link"]);
    assert!(strays.iter().all(|fact| fact.state.kind() == Some(FindingKind::FileStray)));
    // What somebody put beside it takes nothing away from the files that were signed.
    assert!(found.is_complete() && found.proved_at(ProofLevel::Open));
    assert_eq!(problems(&found).len(), 8);
}

#[test]
fn a_link_or_a_file_named_proofs_is_a_stranger() {
    for link in [true, false] {
        let store = Store::new();
        let path = store.dir.join(names::PROOFS);
        if link {
            symlink("/tmp", &path).unwrap();
        } else {
            fs::write(&path, "").unwrap();
        }
        assert_eq!(store.one().signed().unwrap().files.iter().filter(|fact| fact.state == FileState::Stray).count(), 1);
        let record = proof_of(&store.dir, ProofLevel::Open, true, TODAY);
        assert!(catalog::write_proof(&store.dir, &record, &store.key).is_err());
    }
}

#[test]
fn an_old_backup_renamed_to_today_is_found() {
    let store = Store::new();
    let today = store.root.path().join("20261123T020000Z-0001");
    backup::rename(&store.dir, &today);
    let found = store.one();
    assert_eq!(problems(&found), ["backup.json: is 20261122T020000Z-7f3a, renamed to 20261123T020000Z-0001"]);
    assert!(is_broken(&found));
    // It lies on top, and `latest` says so instead of passing it over.
    Golden::at(YESTERDAY).write(store.root.path(), &store.key);
    let catalog = store.read();
    assert_eq!(catalog.resolve("latest").unwrap().path, today);
    assert_eq!(catalog.newest_trusted().unwrap().time(), time(YESTERDAY));
    assert_eq!(catalog.newest_proved(ProofLevel::Open).unwrap().time(), time(YESTERDAY));
}

#[test]
fn only_named_keys_are_trusted() {
    let store = Store::new();
    let other = key();
    fs::write(store.root.path().join(names::PUBLIC_KEY), other.public().to_file()).unwrap();
    for trusted in [trusting(&[&other]), trusting(&[])] {
        let found = catalog::read(store.root.path(), None, &[], &trusted).unwrap().backups.remove(0);
        let number = store.key.public().number();
        assert_eq!(
            problems(&found),
            [format!("SHA256SUMS.minisig: no trusted key made this signature (key {number})")]
        );
    }
    let both = catalog::read_backup(&store.dir, &trusting(&[&other, &store.key])).unwrap();
    assert_eq!(both.signed().unwrap().signer, *store.key.public());
}

#[test]
fn a_foreign_store_or_cluster_is_named_where_a_store_asks() {
    let store = Store::new();
    let mut foreign = Golden::at(YESTERDAY);
    foreign.index.store_id = "other".to_owned();
    foreign.index.cluster_id = EtcdId(0xbad);
    foreign.write(store.root.path(), &store.key);
    let said = problems(&store.read().backups[0]);
    assert_eq!(
        said,
        [
            format!("backup.json: is of store other, this is {STORE}"),
            "backup.json: is of cluster bad, which this store has not accepted".to_owned()
        ]
    );
    let nobody_asks = catalog::read(store.root.path(), None, &[], &trusting(&[&store.key])).unwrap();
    assert!(nobody_asks.backups.iter().all(|backup| problems(backup).is_empty()));
    let no_lineage = catalog::read(store.root.path(), Some(STORE), &[], &trusting(&[&store.key])).unwrap();
    assert!(no_lineage.backups.iter().all(is_broken));
}

#[test]
fn an_index_that_disagrees_with_what_was_signed_is_no_complete_backup() {
    type Change = fn(&mut Golden);
    let change = |change: Change| {
        let (root, key) = (tempfile::tempdir().unwrap(), key());
        let mut golden = Golden::at(TODAY);
        change(&mut golden);
        let dir = golden.write(root.path(), &key);
        let found = catalog::read_backup(&dir, &trusting(&[&key])).unwrap();
        (found.is_complete(), problems(&found).join("; "))
    };
    let cases: [(Change, &str); 6] = [
        (|g| g.index.members[1].file = Some("../k8s".to_owned()), "../k8s: backup.json names it twice, or outside"),
        (|g| g.index.members[1].file = Some("gone.age".to_owned()), "gone.age: backup.json names it and SHA256SUMS"),
        (|g| g.index.members[1].file = Some(DB.to_owned()), "etcd-k8s.db.zst.age: backup.json names it twice"),
        (|g| g.index.members[0].sealed_bytes = None, "etcd-k8s.db.zst.age: backup.json and SHA256SUMS disagree"),
        (|g| g.index.members[0].sealed_sha256 = None, "etcd-k8s.db.zst.age: backup.json and SHA256SUMS disagree"),
        (|g| g.index.members[0].sealed_bytes = Some(7), "etcd-k8s.db.zst.age: has 4129 bytes, 7 were written"),
    ];
    for (how, words) in cases {
        let (complete, said) = change(how);
        assert!(!complete && said.starts_with(words), "{said}");
    }
    // Without a primary, or with one that left no file, there is nothing that a restore would use by itself.
    assert_eq!(change(|g| g.index.primary = None), (false, String::new()));
    assert_eq!(change(|g| g.index.primary = Some("k9s".to_owned())), (false, String::new()));
    let no_file = change(|g| {
        g.index.members[0].file = None;
        g.files.retain(|(name, _)| name != DB);
    });
    assert_eq!(no_file, (false, String::new()));
    // A member that gave nothing makes it partial, and leaves it complete.
    let partial = change(|g| {
        g.index.members[2].file = None;
        g.files.retain(|(name, _)| !name.contains("cp3"));
    });
    assert_eq!(partial, (true, String::new()));
}

#[test]
fn what_is_signed_and_not_understood_is_said() {
    let (root, key) = (tempfile::tempdir().unwrap(), key());
    let trusted = trusting(&[&key]);
    let mut newer = Golden::at(TODAY);
    newer.index.schema = "etcd-dr/backup/v2".to_owned();
    let dir = newer.write(root.path(), &key);
    let said = problems(&catalog::read_backup(&dir, &trusted).unwrap());
    assert_eq!(said, ["backup.json: has schema `etcd-dr/backup/v2`; this version reads `etcd-dr/backup/v1`"]);

    let unlisted =
        Golden::at(YESTERDAY).write_with(root.path(), &key, |sums| sums.0.retain(|name, _| name != names::INDEX));
    assert_eq!(
        problems(&catalog::read_backup(&unlisted, &trusted).unwrap()),
        ["backup.json: SHA256SUMS does not list it"]
    );

    // An index of nonsense, with its digest signed.
    let dir = Golden::at("2026-11-20T02:00:00Z").write_with(root.path(), &key, |sums| {
        sums.0.insert(names::INDEX.to_owned(), backup::sha256(b"{}"));
    });
    fs::write(dir.join(names::INDEX), "{}").unwrap();
    let said = problems(&catalog::read_backup(&dir, &trusted).unwrap());
    assert!(said[0].starts_with("backup.json: is signed, and cannot be understood"), "{said:?}");
}

#[test]
fn reading_is_bounded() {
    for (file, bytes) in [(names::SUMS, 2 << 20), (names::SIGNATURE, 1 << 20), (names::INDEX, 65 << 20)] {
        let store = Store::new();
        fs::File::options().write(true).open(store.dir.join(file)).unwrap().set_len(bytes).unwrap();
        let said = problems(&store.one());
        assert!(said[0].starts_with(&format!("{file}: is larger than ")), "{said:?}");
    }
    let store = Store::new();
    fs::write(store.dir.join(names::SIGNATURE), [0xff; 10]).unwrap();
    assert_eq!(problems(&store.one()), ["SHA256SUMS.minisig: is not text in UTF-8"]);
}

#[test]
fn a_store_lists_its_backups_oldest_first_and_names_what_is_foreign() {
    let store = Store::new();
    let root = store.root.path();
    Golden::at(YESTERDAY).write(root, &store.key);
    // A file, a link and an empty directory that bear the names of backups are broken ones.
    fs::write(root.join("20261120T020000Z-0001"), "").unwrap();
    symlink(&store.dir, root.join("20261120T020000Z-0002")).unwrap();
    fs::create_dir(root.join("20261121T120000Z-0003")).unwrap();
    for ours in [names::MARKER, names::JOURNAL, names::LOCK, names::PUBLIC_KEY, ".partial-20261122T020000Z-7f3a"] {
        fs::write(root.join(ours), "").unwrap();
    }
    fs::write(root.join("snapshot-2026-11-19.db"), "").unwrap();
    fs::create_dir(root.join("lost+found")).unwrap();
    let catalog = store.read();
    let names: Vec<_> = catalog.backups.iter().map(|backup| (backup.dir_name.as_str(), is_broken(backup))).collect();
    assert_eq!(
        names,
        [
            ("20261120T020000Z-0001", true),
            ("20261120T020000Z-0002", true),
            ("20261121T020000Z-7f3a", false),
            ("20261121T120000Z-0003", true),
            ("20261122T020000Z-7f3a", false),
        ]
    );
    assert_eq!(problems(&catalog.backups[0]), ["20261120T020000Z-0001: is not a directory"]);
    assert_eq!(problems(&catalog.backups[1]), ["20261120T020000Z-0002: is not a directory"]);
    assert_eq!(problems(&catalog.backups[3]), ["SHA256SUMS: is missing"]);
    assert_eq!(catalog.foreign, ["lost+found", "snapshot-2026-11-19.db"]);

    let id: BackupId = "20261121T020000Z-7f3a".parse().unwrap();
    assert_eq!(catalog.get(&id).unwrap().time(), time(YESTERDAY));
    assert_eq!(catalog.resolve(id.as_str()).unwrap().dir_name, id);
    assert_eq!(catalog.resolve("latest").unwrap().path, store.dir);
    let unknown: BackupId = "20251121T020000Z-7f3a".parse().unwrap();
    assert_eq!(catalog.resolve(unknown.as_str()).unwrap_err(), NoSuchBackup::Unknown(unknown));
    assert!(matches!(catalog.resolve("newest").unwrap_err(), NoSuchBackup::Name(_)));
    assert_eq!(Catalog::default().resolve("latest").unwrap_err(), NoSuchBackup::Empty);
}

#[test]
fn a_later_proof_counts_when_a_trusted_host_signed_it_for_this_backup() {
    let store = Store::new();
    let path = store.prove(ProofLevel::Sound, true, "2026-11-22T09:05:00Z");
    assert_eq!(path.file_name().unwrap(), "20261122T090500Z-sound.json");
    assert!(path.with_file_name("20261122T090500Z-sound.json.minisig").is_file());
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
    let found = store.one();
    assert!(problems(&found).is_empty());
    assert_eq!(found.level(), ProofLevel::Sound);
    assert_eq!(found.last_proof_with_identity(), Some(time("2026-11-22T09:05:00Z")));
    // The same second once more gets a name of its own.
    assert!(store.prove(ProofLevel::Sound, true, "2026-11-22T09:05:00Z").ends_with("20261122T090500Z-sound-2.json"));
    assert_eq!(store.one().signed().unwrap().proofs.len(), 2);

    // By somebody else: shown, and it neither raises nor lowers anything.
    let stranger = key();
    for ok in [true, false] {
        let record = proof_of(&store.dir, ProofLevel::Serve, ok, "2026-11-23T00:00:00Z");
        catalog::write_proof(&store.dir, &record, &stranger).unwrap();
    }
    let found = store.one();
    let proofs = &found.signed().unwrap().proofs;
    assert_eq!(proofs.iter().filter(|proof| proof.counted).count(), 2);
    assert!(proofs[2..].iter().all(|proof| proof.problem.as_deref().unwrap().contains("no trusted key")));
    assert!(proofs[2..].iter().all(|proof| proof.record.is_some()));
    assert_eq!(found.level(), ProofLevel::Sound);
}

#[test]
fn a_proof_of_another_backup_does_not_count() {
    let store = Store::new();
    let other = Golden::at(YESTERDAY).write(store.root.path(), &store.key);
    let moved = catalog::write_proof(&other, &proof_of(&other, ProofLevel::Boot, true, TODAY), &store.key).unwrap();
    fs::create_dir(store.dir.join(names::PROOFS)).unwrap();
    for name in [moved.clone(), moved.with_file_name("20261122T020000Z-boot.json.minisig")] {
        fs::copy(&name, store.dir.join(names::PROOFS).join(name.file_name().unwrap())).unwrap();
    }
    // The same id over other bytes, as a backup taken again under its old name would be.
    let mut record = proof_of(&store.dir, ProofLevel::Boot, true, "2026-11-22T03:00:00Z");
    record.sums_sha256 = backup::sha256(b"other");
    catalog::write_proof(&store.dir, &record, &store.key).unwrap();
    let catalog = store.read();
    let found = catalog.newest().unwrap();
    let said: Vec<_> = found.signed().unwrap().proofs.iter().map(|proof| proof.problem.as_deref().unwrap()).collect();
    assert_eq!(said, ["speaks of backup 20261121T020000Z-7f3a", "speaks of another SHA256SUMS"]);
    assert_eq!((found.level(), catalog.backups[0].level()), (ProofLevel::Open, ProofLevel::Boot));
}

#[test]
fn a_damaged_record_is_shown_and_does_not_count() {
    let store = Store::new();
    let flipped = store.prove(ProofLevel::Sound, true, "2026-11-22T03:00:00Z");
    fs::write(&flipped, fs::read_to_string(&flipped).unwrap().replace("sound", "serve")).unwrap();
    let unsigned = store.prove(ProofLevel::Sound, true, "2026-11-22T04:00:00Z");
    fs::remove_file(unsigned.with_file_name("20261122T040000Z-sound.json.minisig")).unwrap();
    let gone = store.prove(ProofLevel::Sound, true, "2026-11-22T05:00:00Z");
    fs::remove_file(&gone).unwrap();
    let linked = store.prove(ProofLevel::Sound, true, "2026-11-22T06:00:00Z");
    backup::rename(&linked, &store.root.path().join("elsewhere"));
    symlink(store.root.path().join("elsewhere"), &linked).unwrap();
    let huge = store.prove(ProofLevel::Sound, true, "2026-11-22T07:00:00Z");
    fs::File::options().write(true).open(huge).unwrap().set_len(2 << 20).unwrap();
    let proofs = store.dir.join(names::PROOFS);
    fs::write(proofs.join("notes.txt"), "x").unwrap();
    fs::create_dir(proofs.join("d")).unwrap();
    fs::write(proofs.join(".partial-20261122T050000Z-open.json-01234567"), "half").unwrap();
    let found = store.one();
    let seen = &found.signed().unwrap().proofs;
    assert_eq!(seen.len(), 7, "{seen:?}");
    for proof in seen {
        assert!(!proof.counted && proof.problem.is_some(), "{proof:?}");
    }
    let said = |name: &str| seen.iter().find(|p| p.file.contains(name)).unwrap().problem.clone().unwrap();
    assert!(said("T030000Z").contains("does not fit"));
    assert_eq!(said("T040000Z"), "its signature is missing");
    assert_eq!(said("T050000Z"), "is missing");
    assert_eq!(said("T060000Z"), "is not a regular file");
    assert!(said("T070000Z").starts_with("is larger than"));
    assert_eq!(said("proofs/d"), "is not a regular file");
    assert_eq!(found.level(), ProofLevel::Open);
}

#[test]
fn a_later_failure_is_not_hidden_and_a_later_pass_clears_it() {
    use ProofLevel::{Digest, None, Open, Sound};
    /// Level, whether it passed, the level of the backup after it.
    type Step = (ProofLevel, bool, ProofLevel);
    let stories: [&[Step]; 4] = [
        &[(Sound, true, Sound), (Digest, false, None), (Digest, true, Sound)],
        &[(Open, false, None), (Digest, true, None), (Open, true, Open)],
        &[(Open, false, None), (Digest, false, None), (Digest, true, None), (Sound, true, Sound)],
        &[(Digest, true, Open), (Sound, false, None), (Open, true, None)],
    ];
    for story in stories {
        let store = Store::new();
        for (hour, (level, ok, after)) in story.iter().enumerate() {
            store.prove(*level, *ok, &format!("2026-11-22T{:02}:00:00Z", hour + 3));
            let found = store.one();
            assert_eq!(found.level(), *after, "{story:?} at {hour}");
            assert_eq!(found.proved_at(Digest), *after > None, "{story:?} at {hour}");
            assert!(found.is_complete());
        }
    }
    // The order is that of the signed times, not that of writing; of one second the failure is the later.
    let store = Store::new();
    store.prove(Open, true, "2026-11-22T05:00:00Z");
    store.prove(Open, false, "2026-11-22T04:00:00Z");
    assert_eq!(store.one().level(), Open);
    store.prove(Open, false, "2026-11-22T05:00:00Z");
    assert_eq!(store.one().level(), None);
}

#[test]
fn a_backup_that_was_removed_cannot_be_held() {
    let store = Store::new();
    let found = store.one();
    fs::remove_dir_all(&store.dir).unwrap();
    assert_eq!(catalog::hold_shared(&found).unwrap_err().source.kind(), std::io::ErrorKind::NotFound);
    assert!(store.read().backups.is_empty());
}

/// The kernel lists who waits for a lock as a line with an arrow and the file's inode.
fn wait_until_somebody_waits_for(path: &Path) {
    let inode = format!(":{} ", fs::metadata(path).unwrap().ino());
    for _ in 0..1000 {
        let locks = fs::read_to_string("/proc/locks").unwrap();
        if locks.lines().any(|line| line.contains("->") && line.contains(&inode)) {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    panic!("nobody waits for {}", path.display());
}

#[test]
fn who_waits_for_a_backup_that_is_being_pruned_finds_it_gone() {
    let store = Store::new();
    let found = store.one();
    let held = catalog::hold_exclusive(&found).unwrap().expect("nobody reads it");
    let waiting = std::thread::spawn({
        let found = found.clone();
        move || catalog::hold_shared(&found).map(drop)
    });
    wait_until_somebody_waits_for(&store.dir.join(names::INDEX));
    etcd_dr::durable::remove_dir(&store.dir).unwrap();
    drop(held);
    assert_eq!(waiting.join().unwrap().unwrap_err().source.kind(), std::io::ErrorKind::NotFound);
}
