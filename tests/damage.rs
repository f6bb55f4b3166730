//! The damage matrix: each kind of file in a backup and in its store, each kind of damage, and what is said of it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs,
    reason = "a failed test is a panic"
)]

#[path = "support/backup.rs"]
mod forge;
mod servers;
mod site;
#[path = "support/stage.rs"]
mod stage;

use std::{
    fs::{self, Permissions},
    os::unix::fs::{PermissionsExt as _, symlink},
    path::Path,
};

use forge::{Golden, rename};
use serde_json::{Value, json};
use stage::{Copied, Stage};

const SEALED: &str = "etcd-k8s.db.zst.age";

/// Flips the lowest bit of one byte.
fn flip(path: &Path, at: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at] ^= 1;
    fs::write(path, bytes).unwrap();
}

fn flip_middle(path: &Path) {
    let length = usize::try_from(fs::metadata(path).unwrap().len()).unwrap();
    flip(path, length / 2);
}

/// Flips a bit in the first place where `text` stands.
fn flip_in(path: &Path, text: &str) {
    let contents = fs::read_to_string(path).unwrap();
    flip(path, contents.find(text).unwrap_or_else(|| panic!("no {text} in {contents}")) + text.len() / 2);
}

fn truncate(path: &Path, to: fn(u64) -> u64) {
    let file = fs::OpenOptions::new().write(true).open(path).unwrap();
    let length = file.metadata().unwrap().len();
    assert!(length > 1, "{}", path.display());
    file.set_len(to(length)).unwrap();
}

/// What can be done to a file that another backup has as well.
type Damage = (&'static str, fn(&Path, &Path));

/// What can be done to a journal.
type JournalDamage = (&'static str, fn(&Path));

const DAMAGES: [Damage; 5] = [
    ("flipped", |path, _| flip_middle(path)),
    ("cut in half", |path, _| truncate(path, |length| length / 2)),
    ("emptied", |path, _| truncate(path, |_| 0)),
    ("removed", |path, _| fs::remove_file(path).unwrap()),
    ("swapped", |path, other| {
        let aside = path.with_extension("aside");
        rename(path, &aside);
        rename(other, path);
        rename(&aside, other);
    }),
];

/// The problems of a verification, as `<file>: <problem>`.
fn problems(verify: &Value, id: &str) -> Vec<String> {
    let results = verify["results"].as_array().unwrap();
    let result = results.iter().find(|result| result["id"] == id).unwrap_or_else(|| panic!("no {id} in {verify:#}"));
    let bad = result["files"].as_array().unwrap().iter().filter(|file| file["ok"] == false);
    bad.map(|file| format!("{}: {}", file["file"].as_str().unwrap(), file["problem"].as_str().unwrap())).collect()
}

/// The newer backup does not hold, for exactly this file; the older one does.
#[track_caller]
fn not_verified(copy: &Copied, level: &str, file: &str) -> String {
    let id = &copy.stage.newer;
    let verify = copy.json(20, &["verify", id, "--level", level]);
    assert_eq!(verify["ok"], false);
    let problems = problems(&verify, id);
    let [problem] = &problems[..] else { panic!("{level}: {problems:?}") };
    assert!(problem.starts_with(&format!("{file}: ")), "{level}: {problem}");
    let message = verify["error"]["message"].as_str().unwrap();
    assert!(message.contains(&format!("{id}/{file}")), "{message}");
    problem.clone()
}

/// Files that each backup has, whose damage each level must see.
const FILES: [&str; 5] = ["backup.json", "SHA256SUMS", "SHA256SUMS.minisig", "RECOVERY.md", SEALED];

/// The file that is named: the damaged one, but for a list of digests that is there and does not fit its signature.
fn named(file: &'static str, damage: &str) -> &'static str {
    if file == "SHA256SUMS" && damage != "removed" { "SHA256SUMS.minisig" } else { file }
}

#[test]
fn each_file_of_a_backup_is_missed_or_seen_to_be_changed_at_each_level() {
    let stage = Stage::shared();
    for file in FILES {
        for (damage, act) in DAMAGES {
            let named = named(file, damage);
            for level in ["digest", "open", "sound"] {
                let copy = stage.copy();
                act(&copy.newer(file), &copy.older(file));
                let problem = not_verified(&copy, level, named);
                let missing = problem.ends_with("is missing");
                assert_eq!(missing, damage == "removed", "{file} {damage}, {level}: {problem}");
                // What is wrong is listed: by name, or, where the size is right, by the proof that was lost just now.
                let listed = copy.listed(&stage.newer);
                assert_eq!(listed["proof"], "none", "{file} {damage}: {listed:#}");
                let shown = copy.run(&["list"]).expect_code(0).stdout;
                assert!(shown.lines().any(|line| line.starts_with(&stage.newer) && line.contains("none")), "{shown}");
                if damage != "swapped" {
                    copy.json(0, &["verify", &stage.older, "--level", level]);
                }
            }
        }
    }
}

/// Without a verification, since none may have run: what is seen without reading every byte.
#[test]
fn a_list_names_damage_without_reading_what_is_sealed() {
    let stage = Stage::shared();
    for (file, damage, named) in [
        ("backup.json", "flipped", "backup.json"),
        ("SHA256SUMS", "flipped", "SHA256SUMS.minisig"),
        ("SHA256SUMS.minisig", "emptied", "SHA256SUMS.minisig"),
        ("RECOVERY.md", "removed", "RECOVERY.md"),
        (SEALED, "cut in half", SEALED),
        (SEALED, "removed", SEALED),
    ] {
        let copy = stage.copy();
        let (_, act) = DAMAGES.into_iter().find(|(name, _)| *name == damage).unwrap();
        act(&copy.newer(file), &copy.older(file));
        let listed = copy.listed(&stage.newer);
        assert_eq!(listed["problems"][0]["file"], named, "{file} {damage}: {listed:#}");
        let shown = copy.run(&["list"]).expect_code(0).stdout;
        assert!(shown.lines().any(|line| line.starts_with(&stage.newer) && line.contains(named)), "{shown}");
        // The journal and the other backup are believed all the same.
        assert_eq!(copy.listed(&stage.older)["problems"], json!([]));
    }
}

/// The one byte that nobody signed: minisign's own comment line. Stock minisign does not look at it either.
#[test]
fn the_untrusted_comment_of_a_signature_is_free_text() {
    let stage = Stage::shared();
    let copy = stage.copy();
    flip_in(&copy.newer("SHA256SUMS.minisig"), "signature of");
    copy.json(0, &["verify", &stage.newer, "--level", "sound"]);
    let mut stock = servers::stock("minisign");
    stock.args(["-V", "-P", &stage.site.public_key, "-m"]).arg(copy.newer("SHA256SUMS"));
    assert!(stock.output().unwrap().status.success());
}

#[test]
fn a_stranger_in_a_backup_is_named() {
    let stage = Stage::shared();
    for level in ["digest", "open", "sound"] {
        let copy = stage.copy();
        fs::write(copy.newer("notes.txt"), "mine").unwrap();
        fs::set_permissions(copy.newer("notes.txt"), Permissions::from_mode(0o600)).unwrap();
        let problem = not_verified(&copy, level, "notes.txt");
        assert!(problem.contains("nobody signed it"), "{problem}");
        assert_eq!(copy.listed(&stage.newer)["problems"][0]["file"], "notes.txt");

        let copy = stage.copy();
        fs::create_dir(copy.newer("old")).unwrap();
        fs::set_permissions(copy.newer("old"), Permissions::from_mode(0o700)).unwrap();
        not_verified(&copy, level, "old");

        // What others can read or redirect is refused before anything is judged; cured, it is a stranger.
        let copy = stage.copy();
        fs::write(copy.newer("notes.txt"), "mine").unwrap();
        fs::set_permissions(copy.newer("notes.txt"), Permissions::from_mode(0o644)).unwrap();
        let refused = copy.json(24, &["verify", &stage.newer, "--level", level]);
        let hint = format!("chmod 0600 {}", copy.newer("notes.txt").display());
        assert!(refused["error"]["hint"].as_str().unwrap().contains(&hint), "{refused:#}");

        let copy = stage.copy();
        symlink("/etc/hostname", copy.newer("link")).unwrap();
        let refused = copy.json(24, &["verify", &stage.newer, "--level", level]);
        let hint = format!("unlink {}", copy.newer("link").display());
        assert!(refused["error"]["hint"].as_str().unwrap().contains(&hint), "{refused:#}");
        fs::remove_file(copy.newer("link")).unwrap();
        copy.json(0, &["verify", &stage.newer, "--level", level]);
    }
}

#[test]
fn a_directory_in_the_place_of_a_file_is_named() {
    let stage = Stage::shared();
    for (file, named) in [("RECOVERY.md", "RECOVERY.md"), ("backup.json", "backup.json"), (SEALED, SEALED)] {
        for level in ["digest", "open", "sound"] {
            let copy = stage.copy();
            fs::remove_file(copy.newer(file)).unwrap();
            fs::create_dir(copy.newer(file)).unwrap();
            fs::set_permissions(copy.newer(file), Permissions::from_mode(0o700)).unwrap();
            let problem = not_verified(&copy, level, named);
            assert!(problem.contains("not a regular file"), "{problem}");
        }
    }
}

/// Later proofs are signed one by one, not with the backup: a damaged one counts no more and is named, and the backup holds.
#[test]
fn a_damaged_proof_record_is_named_and_does_not_count() {
    let stage = Stage::shared();
    let record = |copy: &Copied, id: &str| {
        let names = site::names(&copy.store.join(id).join("proofs"));
        assert_eq!(names.len(), 2, "{names:?}");
        format!("proofs/{}", names[0])
    };
    for part in ["", ".minisig"] {
        for (damage, act) in DAMAGES {
            let copy = stage.copy();
            let (ours, theirs) = (record(&copy, &stage.newer), record(&copy, &stage.older));
            act(&copy.newer(&format!("{ours}{part}")), &copy.older(&format!("{theirs}{part}")));
            let show = copy.json(0, &["show", &stage.newer]);
            let proof = &show["proofs"][0];
            assert_eq!((&proof["file"], &proof["counted"]), (&json!(ours), &json!(false)), "{damage} {part}: {show:#}");
            assert!(!proof["problem"].as_str().unwrap().is_empty());
            for level in ["digest", "open", "sound"] {
                let answer = copy.run(&["verify", &stage.newer, "--level", level]).expect_code(0);
                assert!(answer.stderr.contains(&ours), "{damage} {part}: {}", answer.stderr);
            }
            // The three that were made just now count.
            assert_eq!(copy.json(0, &["show", &stage.newer])["proofs"].as_array().unwrap().len(), 4);
            assert_eq!(copy.listed(&stage.newer)["proof"], "sound");
        }
    }
    let copy = stage.copy();
    for (name, text) in [("proofs/notes.json", "{}"), ("proofs/notes.txt", "mine")] {
        fs::write(copy.newer(name), text).unwrap();
        fs::set_permissions(copy.newer(name), Permissions::from_mode(0o600)).unwrap();
    }
    let answer = copy.run(&["verify", &stage.newer]).expect_code(0);
    assert!(answer.stderr.contains("proofs/notes.json") && answer.stderr.contains("proofs/notes.txt"), "{answer:?}");
}

#[test]
fn a_damaged_marker_is_no_store() {
    let stage = Stage::shared();
    let foreign = stage.copy();
    let other = foreign.dir.path().join("other");
    foreign.stage.site.command(&["init", "--store"]).arg(&other).output().unwrap();
    let marker = ".etcd-dr-store.json";
    for (damage, act) in DAMAGES {
        let copy = stage.copy();
        act(&copy.store.join(marker), &other.join(marker));
        let id = stage.newer.as_str();
        for level in ["digest", "open", "sound"] {
            let code = copy.run(&["verify", id, "--level", level]).code;
            match damage {
                "removed" | "emptied" | "cut in half" => {
                    let verify = copy.json(10, &["verify", id, "--level", level]);
                    assert!(verify["error"]["message"].as_str().unwrap().contains(marker), "{verify:#}");
                }
                // Another store's marker: then these are another store's backups.
                "swapped" => {
                    let problem = problems(&copy.json(20, &["verify", id, "--level", level]), id);
                    assert!(problem[0].contains("backup.json: is of store"), "{problem:?}");
                }
                _ => assert!([10, 20].contains(&code), "{damage}: {code}"),
            }
        }
        if damage == "swapped" {
            // The next case needs the other store whole.
            fs::copy(stage.site.store().join(marker), copy.store.join(marker)).unwrap();
        }
    }
    let copy = stage.copy();
    flip_in(&copy.store.join(marker), "schema");
    copy.json(10, &["list"]);
}

#[test]
fn a_damaged_journal_is_a_finding_and_every_backup_still_verifies() {
    let stage = Stage::shared();
    let name = ".etcd-dr-journal.json";
    let cases: [JournalDamage; 5] = [
        ("cut in half", |path| truncate(path, |length| length / 2)),
        ("emptied", |path| truncate(path, |_| 0)),
        ("removed", |path| fs::remove_file(path).unwrap()),
        ("of another schema", |path| flip_in(path, "etcd-dr/")),
        ("of another store", |path| {
            let journal: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
            flip_in(path, journal["store_id"].as_str().unwrap());
        }),
    ];
    for (damage, act) in cases {
        for level in ["digest", "open", "sound"] {
            let copy = stage.copy();
            act(&copy.store.join(name));
            let verify = copy.json(20, &["verify", "--all", "--level", level]);
            assert_eq!(verify["findings"][0]["name"], name, "{damage}: {verify:#}");
            assert_eq!(problems(&verify, &stage.newer), Vec::<String>::new(), "{damage}");
            let list = copy.run(&["list"]).expect_code(0);
            assert!(list.stderr.contains(name), "{damage}: {}", list.stderr);
        }
    }
    // A published id that is no more: a backup that vanished.
    let copy = stage.copy();
    flip_in(&copy.store.join(name), &stage.newer);
    let verify = copy.json(20, &["verify", "--all"]);
    assert_eq!(verify["findings"][0]["kind"], "backup_vanished", "{verify:#}");
}

#[test]
fn a_stranger_in_the_store_is_listed_and_left_alone() {
    let stage = Stage::shared();
    let copy = stage.copy();
    fs::write(copy.store.join("etcd-backup.db"), "old").unwrap();
    fs::create_dir(copy.store.join("lost+found")).unwrap();
    symlink("/etc/hostname", copy.store.join("link")).unwrap();
    copy.json(0, &["verify", "--all"]);
    assert_eq!(copy.json(0, &["list"])["foreign"], json!(["etcd-backup.db", "link", "lost+found"]));
}

#[test]
fn an_old_backup_renamed_to_today_is_found() {
    let stage = Stage::shared();
    let copy = stage.copy();
    #[allow(clippy::disallowed_methods, reason = "the very day is the matter here")]
    let today = etcd_dr::record::BackupId::new(jiff::Timestamp::now(), 0xbeef).to_string();
    rename(&copy.store.join(&stage.older), &copy.store.join(&today));
    for level in ["digest", "open", "sound"] {
        let verify = copy.json(20, &["verify", "latest", "--level", level]);
        assert_eq!(problems(&verify, &today), [format!("backup.json: is {}, renamed to {today}", stage.older)]);
        // The name that it had is missed, and the newest that can be believed was verified with it.
        assert_eq!(verify["findings"][0]["name"], stage.older.as_str());
        assert_eq!(problems(&verify, &stage.newer), Vec::<String>::new());
    }
    assert_eq!(copy.listed(&today)["created_at"], Value::Null);
    copy.json(20, &["show", &today]);
}

#[test]
fn a_strangers_signature_is_refused() {
    let stage = Stage::shared();
    let copy = stage.copy();
    let sums = fs::read(copy.newer("SHA256SUMS")).unwrap();
    let stranger = forge::key();
    fs::write(copy.newer("SHA256SUMS.minisig"), stranger.sign(&sums, "backup").unwrap()).unwrap();
    for level in ["digest", "open", "sound"] {
        let problem = not_verified(&copy, level, "SHA256SUMS.minisig");
        assert!(problem.contains("no trusted key made this signature"), "{problem}");
    }
    // Also where the store's own copy of the public key says otherwise: a key found there is never trusted.
    fs::write(copy.store.join("minisign.pub"), stranger.public().to_file()).unwrap();
    not_verified(&copy, "digest", "SHA256SUMS.minisig");
}

#[test]
fn a_public_key_of_somebody_else_trusts_nothing() {
    let stage = Stage::shared();
    let copy = stage.copy();
    let stranger = forge::key().public().to_base64();
    let verify = copy.json(20, &["verify", "--all", "--public-key", &stranger]);
    for id in [&stage.older, &stage.newer] {
        let problems = problems(&verify, id);
        assert!(problems[0].contains("no trusted key made this signature"), "{problems:?}");
    }
}

/// A backup of that age at `digest`: the sealed bytes are made up, all else is real.
fn forged(copy: &Copied, hours_ago: i64) -> String {
    let key = etcd_dr::sign::SecretKey::load(&copy.stage.site.path("signing.key")).unwrap();
    #[allow(clippy::disallowed_methods, reason = "ages are relative to the very time")]
    let made = jiff::Timestamp::now() - jiff::SignedDuration::from_hours(hours_ago);
    let golden = Golden::in_store(&copy.store, made);
    golden.write(&copy.store, &key);
    golden.index.id.to_string()
}

#[test]
fn a_good_backup_that_is_too_old_is_stale() {
    let stage = Stage::shared();
    let copy = stage.copy();
    for id in [&stage.older, &stage.newer] {
        fs::remove_dir_all(copy.store.join(id)).unwrap();
    }
    fs::remove_file(copy.store.join(".etcd-dr-journal.json")).unwrap();
    copy.json(0, &["init"]);
    let old = forged(&copy, 27);
    copy.json(0, &["verify", "--level", "digest"]);
    copy.json(0, &["verify", "--level", "digest", "--max-age", "28h"]);
    let too_old = copy.json(30, &["verify", "--level", "digest", "--max-age", "26h"]);
    assert_eq!((&too_old["ok"], &too_old["error"]["kind"]), (&json!(true), &json!("stale")));
    assert!(too_old["error"]["message"].as_str().unwrap().contains("26h"), "{too_old:#}");
    let words = copy.json(30, &["verify", "--level", "digest", "--max-age", "90m"]);
    assert!(words["error"]["message"].as_str().unwrap().contains("90m"), "{words:#}");
    // Damage comes before age in the exit code.
    flip_middle(&copy.store.join(&old).join("RECOVERY.md"));
    copy.json(20, &["verify", "--level", "digest", "--max-age", "26h"]);
    // A fresh one that holds is what counts, whatever else is old.
    let fresh = forged(&copy, 1);
    copy.json(0, &["verify", "--level", "digest", "--max-age", "26h"]);
    // A fresh one that is damaged makes no store fresh: the newest good one is looked at with `--all`.
    flip_middle(&copy.store.join(&fresh).join("RECOVERY.md"));
    copy.json(20, &["verify", "--all", "--level", "digest", "--max-age", "26h"]);
}
