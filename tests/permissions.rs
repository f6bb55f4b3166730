//! What others could read, change or redirect is refused by every command, with the one command that cures it; and who may run what.
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
#[path = "support/stage.rs"]
mod stage;

use std::{
    fs::{self, Permissions},
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, symlink},
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
};

use site::Answer;
use stage::{Copied, OTHER, OtherUser, Stage, copy_tree};

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

/// The command between backticks in a refusal's hint, which must be exactly this one.
#[track_caller]
fn refused(answer: &Answer, about: &Path, fix: &str) {
    assert_eq!(answer.code, 24, "{answer:?}");
    let error = &answer.json()["error"];
    assert_eq!((error["code"].as_i64(), error["kind"].as_str()), (Some(24), Some("unsafe_permissions")));
    assert!(error["message"].as_str().unwrap().contains(text(about)), "{error:#}");
    let hint = error["hint"].as_str().unwrap();
    assert_eq!(hint.split('`').nth(1), Some(fix), "{hint}");
    assert!(answer.stderr.starts_with("refused: "), "{}", answer.stderr);
    assert!(answer.stderr.contains(fix), "{}", answer.stderr);
}

/// Each of the commands refuses, naming `about`; after the printed command each passes.
#[track_caller]
fn refused_until_fixed(copy: &Copied, commands: &[&[&str]], about: &Path, fix: &str) {
    let run = |command: &[&str]| copy.run(&[command, &["--output", "json"]].concat());
    let before = site::names(&copy.store);
    for command in commands {
        refused(&run(command), about, fix);
    }
    assert_eq!(site::names(&copy.store), before, "a refused command changed the store");
    assert!(Command::new("sh").args(["-c", fix]).status().unwrap().success(), "{fix}");
    for command in commands {
        run(command).expect_code(0);
    }
}

const ALL: &[&[&str]] = &[
    &["backup"],
    &["list"],
    &["verify"],
    &["verify", "--all", "--level", "digest"],
    &["show"],
    &["prune", "--dry-run"],
];

#[test]
fn a_store_that_others_may_enter() {
    let stage = Stage::shared();
    for mode in [0o755, 0o750, 0o701, 0o770, 0o777] {
        let copy = stage.copy();
        set_mode(&copy.store, mode);
        refused_until_fixed(&copy, ALL, &copy.store, &format!("chmod 0700 {}", copy.store.display()));
    }
}

#[test]
fn a_parent_that_others_may_write() {
    let stage = Stage::shared();
    for mode in [0o775, 0o757, 0o1777] {
        let copy = stage.copy();
        let parent = copy.dir.path();
        set_mode(parent, mode);
        if mode == 0o1777 {
            // Sticky is safe where the directory is root's, as /tmp is; not where it is somebody else's.
            copy.json(0, &["list"]);
            chown(parent, Some(OTHER), None).unwrap();
            refused_until_fixed(&copy, &[&["list"]], parent, &format!("chown root:root {}", parent.display()));
        } else {
            refused_until_fixed(&copy, ALL, parent, &format!("chmod go-w {}", parent.display()));
        }
    }
}

#[test]
fn a_store_or_a_backup_that_is_somebody_elses() {
    let stage = Stage::shared();
    let copy = stage.copy();
    chown(&copy.store, Some(OTHER), None).unwrap();
    refused_until_fixed(&copy, ALL, &copy.store, &format!("chown root:root {}", copy.store.display()));
    let copy = stage.copy();
    let file = copy.newer("RECOVERY.md");
    chown(&file, Some(OTHER), None).unwrap();
    refused_until_fixed(&copy, ALL, &file, &format!("chown root:root {}", file.display()));
    let copy = stage.copy();
    copy.give_away();
    chown(&copy.store, Some(0), Some(0)).unwrap();
    let answer = copy.run(&["list", "--output", "json"]).expect_code(24);
    let hint = answer.json()["error"]["hint"].as_str().unwrap().to_owned();
    let fix = hint.split('`').nth(1).unwrap();
    assert!(fix.starts_with("chown -R root:root "), "{fix}");
    refused_until_fixed(&copy, ALL, &copy.store, fix);
}

#[test]
fn a_file_of_a_backup_that_others_may_read() {
    let stage = Stage::shared();
    for file in ["backup.json", "RECOVERY.md", "etcd-k8s.db.zst.age"] {
        let copy = stage.copy();
        let path = copy.newer(file);
        set_mode(&path, 0o644);
        refused_until_fixed(&copy, ALL, &path, &format!("chmod 0600 {}", path.display()));
    }
    let copy = stage.copy();
    set_mode(&copy.store.join(".etcd-dr-store.json"), 0o644);
    set_mode(&copy.newer(""), 0o755);
    let tops = [copy.store.join(".etcd-dr-store.json"), copy.store.join(&stage.newer)];
    let answer = copy.run(&["list", "--output", "json"]).expect_code(24);
    let fix = answer.json()["error"]["hint"].as_str().unwrap().split('`').nth(1).unwrap().to_owned();
    assert!(fix.starts_with("chmod -R go= ") && tops.iter().all(|top| fix.contains(text(top))), "{fix}");
    refused_until_fixed(&copy, ALL, &tops[0], &fix);
}

#[test]
fn a_store_behind_a_symlink() {
    let stage = Stage::shared();
    let copy = stage.copy();
    let link = copy.dir.path().join("link");
    symlink(&copy.store, &link).unwrap();
    for command in ALL {
        let mut run = stage.site.command(command);
        let answer: Answer = run.args(["--output", "json", "--store"]).arg(&link).output().unwrap().into();
        refused(&answer, &link, &format!("realpath {}", link.display()));
    }
    let printed = Command::new("sh").args(["-c", &format!("realpath {}", link.display())]).output().unwrap();
    let meant = String::from_utf8(printed.stdout).unwrap();
    let mut run = stage.site.command(&["list", "--store", meant.trim_end()]);
    assert!(run.output().unwrap().status.success());
}

/// The copy's own keys and policy, so that no other test sees them change.
fn own_site(copy: &Copied) -> std::path::PathBuf {
    let own = copy.dir.path().join("site");
    copy_tree(&copy.stage.site.path(""), &own);
    let policy = own.join("policy.toml");
    let text = fs::read_to_string(&policy).unwrap();
    fs::write(&policy, text.replace(copy.stage.site.path("").to_str().unwrap(), &format!("{}/", own.display())))
        .unwrap();
    own
}

fn on_own_site(own: &Path, arguments: &[&str]) -> Answer {
    let mut command = Command::new(site::BINARY);
    command.env_clear().env("PATH", "/usr/bin:/bin").current_dir(own).stdin(Stdio::null());
    command.arg("--policy").arg(own.join("policy.toml")).args(["--output", "json"]).args(arguments);
    command.output().unwrap().into()
}

#[test]
fn a_signing_key_an_identity_or_a_policy_that_others_reach() {
    let stage = Stage::shared();
    let copy = stage.copy();
    let own = own_site(&copy);
    let cases: [(&str, u32, &[&[&str]], &str); 6] = [
        ("signing.key", 0o644, &[&["backup"], &["init"]], "chmod 0600"),
        ("signing.key", 0o640, &[&["backup"], &["init"]], "chmod 0600"),
        ("identity.txt", 0o604, &[&["verify", "--level", "open"], &["keys", "check"]], "chmod 0600"),
        ("policy.toml", 0o620, &[&["backup"], &["list"], &["verify"], &["keys", "check"]], "chmod go-w"),
        ("policy.toml", 0o602, &[&["backup"], &["list"], &["verify"], &["keys", "check"]], "chmod go-w"),
        ("recipients.txt", 0o620, &[&["backup"]], "chmod go-w"),
    ];
    for (file, mode, commands, fix) in cases {
        let path = own.join(file);
        set_mode(&path, mode);
        let fix = format!("{fix} {}", path.display());
        for command in commands {
            refused(&on_own_site(&own, command), &path, &fix);
        }
        assert!(Command::new("sh").args(["-c", &fix]).status().unwrap().success(), "{fix}");
        for command in commands {
            on_own_site(&own, command).expect_code(0);
        }
    }
    for file in ["signing.key", "identity.txt", "policy.toml", "recipients.txt"] {
        let path = own.join(file);
        chown(&path, Some(OTHER), None).unwrap();
        let fix = format!("chown root:root {}", path.display());
        let command = if file == "identity.txt" { "verify" } else { "backup" };
        refused(&on_own_site(&own, &[command]), &path, &fix);
        assert!(Command::new("sh").args(["-c", &fix]).status().unwrap().success(), "{fix}");
        on_own_site(&own, &[command]).expect_code(0);
    }
}

/// A key that others could have copied signs no proof; the verdict stands without one.
#[test]
fn a_signing_key_that_others_read_records_nothing() {
    let stage = Stage::shared();
    let copy = stage.copy();
    let own = own_site(&copy);
    set_mode(&own.join("signing.key"), 0o644);
    let proofs = || site::names(&own.join("store").join(&stage.newer).join("proofs")).len();
    let before = proofs();
    let answer = on_own_site(&own, &["verify", &stage.newer]).expect_code(0);
    assert!(answer.stderr.contains(&format!("chmod 0600 {}", own.join("signing.key").display())), "{}", answer.stderr);
    assert_eq!(proofs(), before);
}

/// 2 comes first, then 24, then 10, then 11; what comes later is not looked at.
#[test]
fn the_order_of_refusals_before_a_backup() {
    let stage = Stage::shared();
    let copy = stage.copy();
    let own = own_site(&copy);
    let store = own.join("store");
    let holder = fs::OpenOptions::new().write(true).create(true).truncate(false).open(store.join(".lock")).unwrap();
    set_mode(&store.join(".lock"), 0o600);
    holder.lock().unwrap();
    let policy = fs::read_to_string(own.join("policy.toml")).unwrap();
    fs::write(own.join("policy.toml"), policy.replace("recipients_file", "recipient_file")).unwrap();
    set_mode(&store, 0o755);
    fs::remove_file(store.join(".etcd-dr-store.json")).unwrap();
    on_own_site(&own, &["backup"]).expect_code(2);
    fs::write(own.join("policy.toml"), policy).unwrap();
    on_own_site(&own, &["backup"]).expect_code(24);
    set_mode(&store, 0o700);
    on_own_site(&own, &["backup"]).expect_code(10);
    fs::copy(stage.site.store().join(".etcd-dr-store.json"), store.join(".etcd-dr-store.json")).unwrap();
    let locked = on_own_site(&own, &["backup"]).expect_code(11);
    assert_eq!(locked.json()["error"]["kind"], "locked");
    on_own_site(&own, &["prune"]).expect_code(11);
    // Readers wait for nobody.
    on_own_site(&own, &["list"]).expect_code(0);
    on_own_site(&own, &["verify"]).expect_code(0);
    drop(holder);
    on_own_site(&own, &["backup"]).expect_code(0);
}

/// A site of another user's own: his keys, his store.
fn theirs(stage: &Arc<Stage>) -> (OtherUser, Vec<String>) {
    let user = OtherUser::new();
    let pair = stage.cluster.client_pair();
    let files = [stage.cluster.pki().ca(), &pair.cert, &pair.key].map(|file| user.own(file));
    let recipient = user.run(&["keys", "generate", "--out", "identity.txt"]).expect_code(0).stdout;
    let home = user.home();
    let [ca, cert, key] = files.each_ref().map(|file| text(file));
    let [store, identity, signing] =
        ["store", "identity.txt", "signing.key"].map(|name| format!("{}/{name}", home.display()));
    let policy = format!(
        "version = 1\n[cluster]\nname = \"homelab\"\nendpoints = [{:?}]\nca_file = {ca:?}\ncert_file = {cert:?}\nkey_file = {key:?}\n\
         [store]\npath = {store:?}\nreserve = \"1MiB\"\n[encryption]\nrecipients = [{:?}]\nidentity_file = {identity:?}\n\
         [signing]\nsecret_key_file = {signing:?}\n",
        stage.cluster.endpoint(0),
        recipient.trim(),
    );
    fs::write(home.join("policy.toml"), policy).unwrap();
    set_mode(&home.join("policy.toml"), 0o600);
    chown(home.join("policy.toml"), Some(OTHER), Some(OTHER)).unwrap();
    let arguments = ["--policy", text(&home.join("policy.toml")), "--output", "json"].map(str::to_owned);
    (user, arguments.to_vec())
}

#[test]
fn without_root_it_has_to_be_asked_for() {
    let stage = Stage::shared();
    let (user, common) = theirs(&stage);
    let common: Vec<&str> = common.iter().map(String::as_str).collect();
    let run = |command: &[&str]| user.run(&[command, &common].concat());
    for command in ["init", "backup"] {
        let error = run(&[command]).expect_code(2).json()["error"].clone();
        assert_eq!(error["kind"], "needs_root");
        assert!(error["hint"].as_str().unwrap().contains("--allow-non-root"), "{error:#}");
    }
    assert!(!user.home().join("store").exists());
    run(&["init", "--allow-non-root"]).expect_code(0);
    let report = run(&["backup", "--allow-non-root"]).expect_code(0).json();
    assert_eq!(report["proof"], "sound");
    let dir = user.home().join("store").join(report["id"].as_str().unwrap());
    for name in site::names(&dir) {
        let meta = fs::metadata(dir.join(&name)).unwrap();
        assert_eq!((meta.uid(), meta.mode() & 0o7777), (OTHER, 0o600), "{name}");
    }
    run(&["verify"]).expect_code(0);
    run(&["prune", "--dry-run"]).expect_code(0);
    // He is judged as himself: the cure names him.
    set_mode(&user.home().join("store"), 0o755);
    refused(
        &run(&["list"]),
        &user.home().join("store"),
        &format!("chmod 0700 {}", user.home().join("store").display()),
    );
    set_mode(&user.home().join("store"), 0o700);
    chown(&dir, Some(1), None).unwrap();
    refused(&run(&["list"]), &dir, &format!("chown {OTHER}:{OTHER} {}", dir.display()));
}
