//! What scripts rest on: flags, exit codes, schemas, streams. Through the product's own binary.
//!
//! Each exit code of contract.md, 2 that this version gives, and where it is seen:
//!
//! | code | file | test |
//! | --- | --- | --- |
//! | 0 | backup.rs | every_member_is_sealed_signed_and_proved |
//! | 1 | cli.rs | a_key_is_never_overwritten |
//! | 2 | cli.rs | what_is_no_argument_is_a_usage_error |
//! | 3 | verify.rs | a_backup_that_vanished_is_named_by_verify_and_by_backup |
//! | 10 | verify.rs | what_is_not_there_comes_before_what_cannot_be_opened |
//! | 11 | permissions.rs | the_order_of_refusals_before_a_backup |
//! | 12 | verify.rs | another_identity_opens_nothing |
//! | 20 | damage.rs | each_file_of_a_backup_is_missed_or_seen_to_be_changed_at_each_level |
//! | 21 | secrets.rs | no_secret_is_written_said_or_shown |
//! | 22 | cli.rs | prune_refuses_after_a_gap_until_a_person_accepts_it |
//! | 23 | cli.rs | too_little_space_is_said_before_the_first_stream |
//! | 24 | permissions.rs | a_store_that_others_may_enter |
//! | 30 | damage.rs | a_good_backup_that_is_too_old_is_stale |
//! | 130 | cli.rs | a_signal_ends_a_run_and_leaves_nothing |
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
    collections::BTreeMap,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use forge::Golden;
use serde_json::{Value, json};
use site::{Answer, BINARY};
use stage::{Copied, Stage};

/// The binary without a policy and without an environment.
fn bare(arguments: &[&str]) -> Answer {
    let mut command = Command::new(BINARY);
    command.env_clear().env("PATH", "/usr/bin:/bin").stdin(Stdio::null());
    command.args(arguments).output().unwrap().into()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Every file below, with its mode and digest. The lock says who held it last; that is no change.
fn tree(dir: &Path) -> BTreeMap<String, (u32, String)> {
    let entries = walkdir::WalkDir::new(dir).into_iter().map(Result::unwrap);
    let entries = entries.filter(|entry| entry.file_name() != ".lock");
    let entry = |entry: walkdir::DirEntry| {
        let mode = entry.metadata().unwrap().permissions().mode();
        let bytes = if entry.file_type().is_file() { fs::read(entry.path()).unwrap() } else { Vec::new() };
        (entry.path().display().to_string(), (mode, forge::sha256(&bytes).to_string()))
    };
    entries.map(entry).collect()
}

const COMMANDS: [(&[&str], &[&str]); 13] = [
    (&["init"], &["--dry-run", "--accept-cluster", "--allow-non-root"]),
    (&["keys", "generate"], &["--out"]),
    (&["keys", "check"], &["--identity"]),
    (&["backup"], &["--reason", "--no-replicate", "--dry-run", "--allow-non-root"]),
    (&["list"], &[]),
    (&["show"], &["[ID]"]),
    (&["inspect"], &["<SOURCE>", "--from", "--depth", "--largest", "--wal-dir"]),
    (&["verify"], &["[ID]", "--all", "--level", "--max-age"]),
    (&["prune"], &["--dry-run", "--accept-gap"]),
    (&["hold"], &["<ID>", "--reason"]),
    (&["release"], &["<ID>"]),
    (&["man"], &["[DIR]"]),
    (&["completions"], &["<SHELL>", "bash"]),
];

const GLOBAL: [&str; 12] = [
    "--policy",
    "--output",
    "--quiet",
    "--verbose",
    "--endpoints",
    "--cacert",
    "--cert",
    "--key",
    "--store",
    "--public-key",
    "--identity",
    "--help",
];

#[test]
fn help_of_each_command_lists_its_flags() {
    for (command, flags) in COMMANDS {
        let help = bare(&[command, &["--help"]].concat()).expect_code(0);
        assert_eq!(help.stderr, "");
        for flag in flags.iter().chain(&GLOBAL) {
            assert!(help.stdout.contains(flag), "{command:?} does not list {flag}:\n{}", help.stdout);
        }
        assert!(help.stdout.contains(&format!("Usage: etcd-dr {}", command.join(" "))), "{}", help.stdout);
    }
    let help = bare(&["--help"]).expect_code(0);
    for (command, _) in COMMANDS {
        assert!(help.stdout.contains(&format!("\n  {} ", command[0])), "{command:?}:\n{}", help.stdout);
    }
}

#[test]
fn the_version_is_the_packages() {
    assert_eq!(bare(&["--version"]).expect_code(0).stdout, concat!("etcd-dr ", env!("CARGO_PKG_VERSION"), "\n"));
}

#[test]
fn no_command_at_all_prints_the_help() {
    let answer = bare(&[]).expect_code(2);
    assert_eq!(answer.stdout, "");
    assert!(answer.stderr.contains("Usage: etcd-dr") && answer.stderr.contains("backup"), "{}", answer.stderr);
}

#[test]
fn what_is_no_argument_is_a_usage_error() {
    for arguments in [
        &["list", "--bogus"][..],
        &["bogus"],
        &["verify", "one", "two"],
        &["verify", "--level", "bogus"],
        &["verify", "--max-age", "5x"],
        &["init", "--accept-cluster", "xyz"],
        &["list", "--output", "yaml"],
        &["keys"],
    ] {
        let answer = bare(arguments).expect_code(2);
        assert_eq!(answer.stdout, "", "{arguments:?}");
        assert!(answer.stderr.contains("etcd-dr"), "{arguments:?}: {}", answer.stderr);
        for word in ["invalid", "unexpected", "For more"] {
            assert!(!answer.stderr.contains(word), "{arguments:?}: {}", answer.stderr);
        }
    }
}

#[test]
fn a_usage_error_is_json_where_json_was_asked_for() {
    for arguments in [
        &["list", "--bogus", "--output", "json"][..],
        &["--output=json", "bogus"],
        &["--output", "json"],
        &["keys", "--output", "json"],
        &["verify", "--output", "json", "--level", "bogus"],
    ] {
        let json = bare(arguments).expect_code(2).json();
        assert_eq!(json["schema"], "etcd-dr/usage/v1", "{arguments:?}");
        assert_eq!((&json["error"]["code"], &json["error"]["kind"]), (&json!(2), &json!("usage")));
        for field in ["message", "hint"] {
            assert!(!json["error"][field].as_str().unwrap().is_empty(), "{json:#}");
        }
    }
}

#[test]
fn each_answer_names_its_schema() {
    let stage = Stage::shared();
    let copy = stage.copy();
    for (command, schema) in [
        (&["init"][..], "init"),
        (&["keys", "check"], "keys-check"),
        (&["backup", "--dry-run"], "backup"),
        (&["backup"], "backup"),
        (&["list"], "list"),
        (&["show"], "show"),
        (&["inspect", "latest"], "inspect"),
        (&["verify"], "verify"),
        (&["prune", "--dry-run"], "prune"),
    ] {
        let json = copy.json(0, command);
        assert_eq!(json["schema"], format!("etcd-dr/{schema}/v1"));
        assert_eq!(json.get("error"), None);
    }
    let missing = copy.json(10, &["show", "20260101T020000Z-0000"]);
    assert_eq!(missing["schema"], "etcd-dr/show/v1");
}

#[test]
fn the_table_of_exit_codes_names_tests_that_exist() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let own = fs::read_to_string(here.join("cli.rs")).unwrap();
    let rows: Vec<Vec<&str>> = own
        .lines()
        .filter_map(|line| line.strip_prefix("//! | "))
        .map(|row| row.trim_end_matches(" |").split(" | ").collect())
        .filter(|row: &Vec<&str>| row[0].parse::<u8>().is_ok())
        .collect();
    let codes: Vec<u8> = rows.iter().map(|row| row[0].parse().unwrap()).collect();
    assert_eq!(codes, [0, 1, 2, 3, 10, 11, 12, 20, 21, 22, 23, 24, 30, 130]);
    for row in rows {
        let source = fs::read_to_string(here.join(row[1])).unwrap();
        assert!(source.contains(&format!("fn {}", row[2])), "{row:?}");
    }
}

#[test]
fn a_generated_identity_is_the_owners_and_its_recipient_stands_alone() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("identity.txt");
    let answer = bare(&["keys", "generate", "--out", text(&file)]).expect_code(0);
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o7777, 0o600);
    let stock = servers::stock("age-keygen").arg("-y").arg(&file).output().unwrap();
    assert_eq!(answer.stdout.as_bytes(), stock.stdout);
    assert!(answer.stdout.starts_with("age1") && answer.stdout.lines().count() == 1);
    let file = dir.path().join("second.txt");
    let json = bare(&["keys", "generate", "--out", text(&file), "--output", "json"]).expect_code(0).json();
    assert_eq!(json["schema"], "etcd-dr/keys-generate/v1");
    assert_eq!(json["identity_file"], text(&file));
    assert!(json["recipient"].as_str().unwrap().starts_with("age1"));
}

#[test]
fn a_key_is_never_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("identity.txt");
    fs::write(&file, "mine").unwrap();
    let answer = bare(&["keys", "generate", "--out", text(&file)]).expect_code(1);
    assert_eq!(fs::read_to_string(&file).unwrap(), "mine");
    assert_eq!(answer.stdout, "");
    assert!(
        answer.stderr.contains(text(&file)) && answer.stderr.contains("nothing is overwritten"),
        "{}",
        answer.stderr
    );
    assert_eq!(site::names(dir.path()), ["identity.txt"]);
}

#[test]
fn init_twice_changes_nothing_and_a_dry_run_nothing_at_all() {
    let stage = Stage::shared();
    let copy = stage.copy();
    let fresh = copy.dir.path().join("fresh");
    let init = |more: &[&str]| -> Answer {
        let arguments = [&["init", "--output", "json", "--store", text(&fresh)], more].concat();
        stage.site.command(&arguments).output().unwrap().into()
    };
    let before = tree(copy.dir.path());
    let planned = init(&["--dry-run"]).expect_code(0).json();
    assert_eq!(tree(copy.dir.path()), before);
    let made = init(&[]).expect_code(0).json();
    assert_eq!(planned["created"], made["created"]);
    assert_eq!(made["public_key"], stage.site.public_key.as_str());
    let after = tree(&fresh);
    let again = init(&[]).expect_code(0).json();
    assert_eq!(again["created"], json!([]));
    assert_eq!(tree(&fresh), after);
}

#[test]
fn man_pages_are_troff_one_a_command() {
    let dir = tempfile::tempdir().unwrap();
    let pages = dir.path().join("man1");
    bare(&["man", text(&pages)]).expect_code(0);
    let names = site::names(&pages);
    for (command, flags) in COMMANDS {
        let name = format!("etcd-dr-{}.1", command.join("-"));
        assert!(names.contains(&name), "{name} is not in {names:?}");
        let page = fs::read_to_string(pages.join(&name)).unwrap();
        assert!(page.starts_with(".ie \\n(.g") || page.starts_with(".TH"), "{page}");
        for heading in [".TH ", ".SH NAME", ".SH SYNOPSIS", ".SH OPTIONS"] {
            assert!(page.contains(heading), "{name} has no {heading}");
        }
        for flag in flags.iter().filter(|flag| flag.starts_with("--")) {
            let escaped = flag.replace('-', "\\-");
            assert!(page.contains(&escaped), "{name} has no {flag}");
        }
    }
    assert!(names.contains(&"etcd-dr.1".to_owned()));
    assert!(bare(&["man"]).expect_code(0).stdout.contains(".TH "));
}

#[test]
fn completions_are_scripts_that_their_shell_reads() {
    let dir = tempfile::tempdir().unwrap();
    for shell in ["bash", "zsh", "fish"] {
        let script = bare(&["completions", shell]).expect_code(0).stdout;
        assert!(script.contains("etcd-dr") && script.contains("verify"), "{shell}");
        if shell == "bash" {
            fs::write(dir.path().join("script"), script).unwrap();
            assert!(Command::new("bash").arg("-n").arg(dir.path().join("script")).status().unwrap().success());
        }
    }
    bare(&["completions", "tcsh"]).expect_code(2);
}

#[test]
fn what_is_piped_has_no_colours_and_no_progress() {
    let stage = Stage::shared();
    let copy = stage.copy();
    for (code, arguments) in [
        (0, &["backup", "-vv"][..]),
        (0, &["verify"]),
        (0, &["list"]),
        (0, &["show"]),
        (0, &["--help"]),
        (0, &["verify", "--help"]),
        (2, &["--bogus"]),
        (10, &["show", "20260101T020000Z-0000"]),
    ] {
        let answer: Answer = copy.command(arguments).env("TERM", "xterm-256color").output().unwrap().into();
        let answer = answer.expect_code(code);
        for said in [&answer.stdout, &answer.stderr] {
            assert!(!said.contains(['\x1b', '\r', '\x08']), "{arguments:?}: {said:?}");
            assert!(!said.contains("re-opening"), "{arguments:?}: {said}");
        }
    }
}

#[test]
fn a_good_run_says_nothing_on_stderr_when_quiet() {
    let stage = Stage::shared();
    let copy = stage.copy();
    for command in ["backup", "verify", "list", "show", "prune"] {
        assert_eq!(copy.run(&[command, "--quiet"]).expect_code(0).stderr, "", "{command}");
    }
}

fn forged(copy: &Copied, days_ago: i64) -> String {
    let key = etcd_dr::sign::SecretKey::load(&copy.stage.site.path("signing.key")).unwrap();
    #[allow(clippy::disallowed_methods, reason = "ages are relative to the very time")]
    let made = jiff::Timestamp::now() - jiff::SignedDuration::from_hours(24 * days_ago);
    let golden = Golden::in_store(&copy.store, made);
    golden.write(&copy.store, &key);
    golden.index.id.to_string()
}

fn actions(prune: &Value) -> BTreeMap<String, (String, Vec<String>)> {
    let decisions = prune["decisions"].as_array().unwrap().iter();
    let strings =
        |value: &Value| value.as_array().unwrap().iter().map(|text| text.as_str().unwrap().to_owned()).collect();
    let one = |decision: &Value| {
        let reasons: Vec<String> = strings(&decision["reasons"]);
        assert!(!reasons.is_empty());
        (decision["id"].as_str().unwrap().to_owned(), (decision["action"].as_str().unwrap().to_owned(), reasons))
    };
    decisions.map(one).collect()
}

#[test]
fn prune_drops_what_its_dry_run_said_and_nothing_else() {
    let stage = Stage::shared();
    let copy = stage.copy();
    let [ten, nine, eight] = [10, 9, 8].map(|days| forged(&copy, days));
    let before = tree(&copy.store);
    let planned = copy.json(0, &["prune", "--dry-run"]);
    let table = copy.run(&["prune", "--dry-run"]).expect_code(0).stdout;
    assert_eq!(tree(&copy.store).keys().collect::<Vec<_>>(), before.keys().collect::<Vec<_>>());
    let decided = actions(&planned);
    // The two fresh ones and the newest of the old are the three that are kept whatever their age.
    let dropped: Vec<&String> = decided.iter().filter(|(_, (action, _))| action == "drop").map(|(id, _)| id).collect();
    assert_eq!(dropped, [&ten, &nine]);
    for (id, (action, reasons)) in &decided {
        let line = table.lines().find(|line| line.starts_with(id.as_str())).unwrap_or_else(|| panic!("{id}:\n{table}"));
        assert!(line.contains(action) && reasons.iter().all(|reason| line.contains(reason)), "{line}");
    }
    assert!(table.contains("2 of 5 would be dropped"), "{table}");
    assert_eq!(actions(&copy.json(0, &["prune"])), decided);
    let names = site::names(&copy.store);
    for (id, there) in [(&ten, false), (&nine, false), (&eight, true), (&stage.older, true), (&stage.newer, true)] {
        assert_eq!(names.contains(id), there, "{id}: {names:?}");
    }
    // What was pruned did not vanish.
    copy.json(0, &["verify", "--all", "--level", "digest"]);
    assert!(actions(&copy.json(0, &["prune"])).values().all(|(action, _)| action == "keep"));
}

#[test]
fn prune_refuses_after_a_gap_until_a_person_accepts_it() {
    let stage = Stage::shared();
    let copy = stage.copy();
    let old: Vec<String> = [100, 99, 98, 97, 96].map(|days| forged(&copy, days)).into();
    for command in [&["prune"][..], &["prune", "--dry-run"]] {
        let refused = copy.json(22, command);
        assert_eq!(refused["error"]["kind"], "gap", "{refused:#}");
        assert!(refused["error"]["hint"].as_str().unwrap().contains("etcd-dr prune --accept-gap"));
    }
    assert!(copy.run(&["prune"]).stderr.starts_with("refused: "));
    assert!(old.iter().all(|id| copy.store.join(id).exists()));
    // A good backup after which retention refuses is kept, and says so.
    let backup = copy.json(3, &["backup"]);
    assert_eq!(backup["error"]["kind"], "gap", "{backup:#}");
    assert!(copy.store.join(backup["id"].as_str().unwrap()).exists());
    copy.json(0, &["prune", "--accept-gap"]);
    assert!(old.iter().all(|id| !copy.store.join(id).exists()));
}

#[test]
fn too_little_space_is_said_before_the_first_stream() {
    let stage = Stage::shared();
    let copy = stage.copy();
    let before = site::names(&copy.store);
    let mut command = copy.command(&["backup", "--output", "json"]);
    let answer = Answer::from(command.env("ETCD_DR_STORE__RESERVE", "8000PiB").output().unwrap()).expect_code(23);
    assert_eq!(answer.json()["error"]["kind"], "no_space");
    assert!(answer.stderr.contains("7.8 EiB"), "{}", answer.stderr);
    assert_eq!(site::names(&copy.store).len(), before.len() + usize::from(!before.contains(&".lock".to_owned())));
}

#[test]
fn a_signal_ends_a_run_and_leaves_nothing() {
    let stage = Stage::shared();
    for signal in [rustix::process::Signal::INT, rustix::process::Signal::TERM] {
        let copy = stage.copy();
        let before = tree(&copy.store);
        // Somebody who takes the call and never speaks.
        let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("https://{}", silent.local_addr().unwrap());
        let mut command = copy.command(&["backup", "--output", "json", "--endpoints", &url]);
        let child = command.env("ETCD_DR_BACKUP__CONNECT_TIMEOUT", "60s").stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = child.spawn().unwrap();
        // It has called, so it is at work.
        let call = silent.accept().unwrap();
        let sent = Instant::now();
        servers::process::signal(&child, signal);
        let answer = Answer::from(child.wait_with_output().unwrap()).expect_code(130);
        assert!(sent.elapsed() < Duration::from_secs(20));
        drop(call);
        assert_eq!(answer.json()["error"]["kind"], "interrupted");
        let after = tree(&copy.store);
        let new: Vec<_> = after.keys().filter(|path| !before.contains_key(*path)).collect();
        assert_eq!(new, Vec::<&String>::new());
    }
}

#[test]
fn a_policy_in_error_names_key_and_line() {
    let stage = Stage::shared();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("policy.toml");
    let good = stage.site.policy();
    let retention = "[retention]\nkeep_proved = 3\n";
    for (body, key, hint) in [
        (retention.replace("keep_proved", "keep_prooved"), "keep_prooved", "keep_proved"),
        (retention.replace("= 3", "= \"three\""), "[retention] keep_proved", ""),
        (retention.replace("[retention]", "[retentoin]"), "retentoin", "retention"),
        ("[kubernetes]\nkubeconfig = \"/etc/kubernetes/admin.conf\"\n".to_owned(), "not built yet", "leave"),
        ("[target.tank]\nkind = \"zfs\"\n".to_owned(), "not built yet", "leave"),
        ("[schedule]\nbackup = \"0 2 * * *\"\n".to_owned(), "not built yet", "leave"),
    ] {
        let policy = format!("{good}{body}");
        fs::write(&file, &policy).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        let lines = good.lines().count() + 1..=good.lines().count() + 2;
        for command in ["list", "backup", "verify"] {
            let answer = bare(&[command, "--policy", text(&file), "--output", "json"]).expect_code(2);
            let error = answer.json()["error"].clone();
            assert_eq!(error["kind"], "policy");
            let message = error["message"].as_str().unwrap();
            assert!(message.contains(key), "{message}");
            assert!(lines.clone().any(|line| message.contains(&format!("{}:{line}", file.display()))), "{message}");
            assert!(error["hint"].as_str().unwrap_or_default().contains(hint), "{error:#}");
        }
    }
    let none = good.lines().filter(|line| !line.starts_with("recipients")).collect::<Vec<_>>().join("\n");
    fs::write(&file, none).unwrap();
    let error = bare(&["backup", "--policy", text(&file), "--output", "json"]).expect_code(2).json()["error"].clone();
    assert!(error["message"].as_str().unwrap().contains("no recipient"), "{error:#}");
    assert!(error["hint"].as_str().unwrap().contains("etcd-dr keys generate"), "{error:#}");
    // Without them everything but a backup works.
    bare(&["list", "--policy", text(&file)]).expect_code(0);
}

#[test]
fn variables_stand_between_flags_and_the_policy() {
    let stage = Stage::shared();
    let copy = stage.copy();
    let run = |variables: &[(&str, &str)], more: &[&str]| -> Answer {
        let mut command = stage.site.command(&[&["list", "--output", "json"], more].concat());
        command.envs(variables.iter().copied()).output().unwrap().into()
    };
    fs::remove_dir_all(copy.store.join(&stage.older)).unwrap();
    let count = |answer: Answer| answer.expect_code(0).json()["backups"].as_array().unwrap().len();
    let store = text(&copy.store);
    assert_eq!(count(run(&[], &[])), 2);
    assert_eq!(count(run(&[("ETCD_DR_STORE__PATH", store)], &[])), 1);
    assert_eq!(count(run(&[("ETCD_DR_STORE__PATH", "/nowhere")], &["--store", store])), 1);
    let unknown = run(&[("ETCD_DR_STORE__PTAH", store)], &[]).expect_code(2);
    assert!(unknown.stderr.contains("ETCD_DR_STORE__PTAH") && unknown.stderr.contains("ETCD_DR_STORE__PATH"));
    // The policy's own place, too.
    let mut command = Command::new(BINARY);
    command.env_clear().env("ETCD_DR_POLICY", stage.site.path("policy.toml")).args(["list", "--output", "json"]);
    assert_eq!(count(command.output().unwrap().into()), 2);
    // A stray variable of etcdctl's does not redirect a backup.
    let mut backup = copy.command(&["backup", "--dry-run", "--output", "json"]);
    let backup = Answer::from(backup.env("ETCDCTL_ENDPOINTS", "https://192.0.2.1:2379").output().unwrap());
    assert_eq!(backup.expect_code(0).json()["members"][0]["name"], "k8s");
}

#[test]
fn a_dry_run_of_backup_changes_nothing() {
    let stage = Stage::shared();
    let copy = stage.copy();
    // What a killed run left is swept by a run that acts.
    fs::create_dir(copy.store.join(".partial-20260101T020000Z-0000")).unwrap();
    fs::set_permissions(copy.store.join(".partial-20260101T020000Z-0000"), fs::Permissions::from_mode(0o700)).unwrap();
    forged(&copy, 1);
    let before = tree(&copy.store);
    let plan = copy.json(0, &["backup", "--dry-run"]);
    assert_eq!(plan["members"][0]["name"], "k8s");
    assert_eq!(tree(&copy.store), before);
}

/// style.md, 4: these words say nothing.
#[test]
fn no_message_fails_to_say_anything() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for entry in walkdir::WalkDir::new(source).into_iter().map(Result::unwrap) {
        if !entry.file_type().is_file() {
            continue;
        }
        let code = fs::read_to_string(entry.path()).unwrap();
        for (number, line) in code
            .lines()
            .enumerate()
            .filter(|(_, line)| !line.trim_start().starts_with("//") && !line.contains(".replace("))
        {
            let quoted: String = line.split('"').skip(1).step_by(2).collect::<Vec<_>>().join(" ").to_lowercase();
            for word in ["failed to", "invalid", "unexpected", "please"] {
                assert!(!quoted.contains(word), "{}:{}: {word}", entry.path().display(), number + 1);
            }
        }
    }
}
