//! A kill at any moment: what is in the store is old or new, never half; the next run works; nothing raises a false alarm.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs,
    reason = "a failed test is a panic"
)]
#![allow(clippy::print_stdout, reason = "what was counted belongs to the evidence")]

mod servers;
mod site;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Command, ExitStatus, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;
use servers::{
    etcd::{Cluster, Options},
    fill,
    preload::{self, Steps},
    stock,
};
use site::{Answer, Site, names};

/// A place to kill at: the number of a step, and whether once it is done.
type Kill = (usize, bool);

/// Retention that leaves nothing but the newest.
const KEEP_ONE: &str = "[retention]\nkeep_within = \"1s\"\nkeep_proved = 1\n";

/// Runs the product under the shim, with a kill or without; gives what it ended with and its steps.
fn run_stepped(site: &Site, arguments: &[&str], kill: Option<Kill>) -> (Output, Vec<String>) {
    let log = site.path("steps.log");
    if log.exists() {
        fs::remove_file(&log).unwrap();
    }
    let mut command = site.command(arguments);
    let steps = Steps { kill_at: kill.map(|kill| kill.0), after: kill.is_some_and(|kill| kill.1), ..Steps::default() };
    steps.apply(&mut command, &log);
    (command.output().unwrap(), preload::steps(&log))
}

/// Runs the product to its kill, which must come; gives the steps until then.
fn run_killed(site: &Site, arguments: &[&str], kill: Kill) -> Vec<String> {
    let (output, steps) = run_stepped(site, arguments, Some(kill));
    assert_killed(output.status, &format!("{arguments:?} at {kill:?}: {output:?}"));
    assert_eq!(steps.len(), kill.0, "{steps:#?}");
    steps
}

fn assert_killed(status: ExitStatus, what: &str) {
    assert_eq!(status.signal(), Some(9), "{what}");
}

/// Every step, and those that rename also once they are done.
fn kills(steps: &[String]) -> Vec<Kill> {
    let of = |(i, step): (usize, &String)| {
        let renames = word(step).starts_with("rename").then_some((i + 1, true));
        [Some((i + 1, false)), renames]
    };
    steps.iter().enumerate().flat_map(of).flatten().collect()
}

/// The name of a step: `fsync` of `3 fsync /path`.
fn word(step: &str) -> &str {
    step.split(' ').nth(1).unwrap()
}

fn words(steps: &[String]) -> Vec<&str> {
    steps.iter().map(|step| word(step)).collect()
}

/// The number of the one step of these that renames a directory in the store and fits `wanted(from, to)`, both names within it.
fn rename_step(site: &Site, steps: &[String], wanted: impl Fn(&str, &str) -> bool) -> usize {
    let store = format!("{}/", site.store().display());
    let fits = |step: &&String| {
        let Some((from, to)) = step.split_once(" rename ").and_then(|(_, paths)| paths.split_once(" -> ")) else {
            return false;
        };
        from.strip_prefix(&store).zip(to.strip_prefix(&store)).is_some_and(|(from, to)| wanted(from, to))
    };
    let found: Vec<_> = steps.iter().filter(fits).collect();
    assert_eq!(found.len(), 1, "{steps:#?}");
    found[0].split(' ').next().unwrap().parse().unwrap()
}

fn is_id(name: &str) -> bool {
    name.len() == 21 && name.starts_with('2') && name.as_bytes()[16] == b'-'
}

/// Waits until a new backup cannot have the second of one that is there: ages and the order of ids are in whole seconds.
fn next_second(site: &Site) {
    let Some(newest) = site.backups().into_iter().rfind(|name| is_id(name)) else { return };
    #[allow(clippy::disallowed_methods, reason = "ids carry the time")]
    let now = || jiff::Timestamp::now().strftime("%Y%m%dT%H%M%SZ").to_string();
    while now().as_str() <= newest.split('-').next().unwrap() {
        thread::sleep(Duration::from_millis(20));
    }
}

/// `list` shows what lies there under a backup's name, and all of it is whole and proved.
fn listed(site: &Site) -> BTreeSet<String> {
    let list = site.run(&["list", "--output", "json"]).expect_code(0).json();
    let mut listed = BTreeSet::new();
    for backup in list["backups"].as_array().unwrap() {
        assert_eq!((&backup["proof"], &backup["partial"]), (&json!("sound"), &json!(false)), "{backup}");
        listed.insert(backup["id"].as_str().unwrap().to_owned());
    }
    let there: BTreeSet<String> = site.store_names().into_iter().filter(|name| is_id(name)).collect();
    assert_eq!(listed, there);
    listed
}

/// All that is listed verifies, and nothing is missed. Without this host's key, so that no record is written.
#[track_caller]
fn assert_verifies(site: &Site, level: &str) {
    let mut command = site.command(&["verify", "--all", "--level", level, "--output", "json"]);
    command.args(["--public-key", &site.public_key]).env("ETCD_DR_SIGNING__SECRET_KEY_FILE", site.path("no.key"));
    let answer = Answer::from(command.output().unwrap()).expect_code(0).json();
    assert_eq!((&answer["ok"], &answer["findings"]), (&json!(true), &json!([])), "{answer}");
}

/// A backup that is whole and finds nothing wrong beside it.
#[track_caller]
fn backup_without_finding(site: &Site) -> String {
    let answer = site.run(&["backup", "--output", "json"]).expect_code(0).json();
    assert_eq!(answer["findings"], json!([]));
    answer["id"].as_str().unwrap().to_owned()
}

/// Temporary names anywhere below.
fn rests(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for name in names(dir) {
        let path = dir.join(&name);
        if name.starts_with(".partial-") {
            found.push(path.display().to_string());
        } else if path.is_dir() {
            found.extend(rests(&path));
        }
    }
    found
}

/// What the next run makes of a store in which one was killed: one backup, whole, and nothing else.
fn assert_next_run_works(site: &Site) {
    next_second(site);
    let id = backup_without_finding(site);
    assert_eq!(rests(&site.store()), [""; 0]);
    assert_eq!(listed(site), BTreeSet::from([id]));
}

fn small() -> Cluster {
    let cluster = Cluster::start(1, Options::default());
    fill::homelab(&cluster.client(0));
    cluster
}

#[test]
fn a_backup_killed_at_any_step_leaves_the_old_or_the_new() {
    const LANES: usize = 4;
    let cluster = small();
    let counts = thread::scope(|scope| {
        let lanes: Vec<_> = (0..LANES)
            .map(|lane| {
                scope.spawn({
                    let cluster = &cluster;
                    move || lane_of_killed_backups(cluster, lane, LANES)
                })
            })
            .collect();
        lanes.into_iter().map(|lane| lane.join().unwrap()).collect::<Vec<_>>()
    });
    let steps = counts[0].0;
    assert!(counts.iter().all(|count| count.0 == steps), "{counts:?}");
    let (kills, halves): (usize, usize) = counts.iter().fold((0, 0), |sum, count| (sum.0 + count.1, sum.1 + count.2));
    println!("backup: {steps} durable steps, {kills} kills, {halves} of them left something half made");
    assert!(steps > 20 && kills > steps && halves > 10);
}

/// Every `lanes`-th kill, in one store. Gives the number of steps of a run, of kills, and of rests that they left.
fn lane_of_killed_backups(cluster: &Cluster, lane: usize, lanes: usize) -> (usize, usize, usize) {
    let site = Site::new(cluster);
    site.write_policy(&(site.policy() + KEEP_ONE));
    backup_without_finding(&site);
    next_second(&site);
    let (output, learnt) = run_stepped(&site, &["backup"], None);
    assert!(output.status.success(), "{output:?}");
    let published = rename_step(&site, &learnt, |from, to| is_id(to) && from == format!(".partial-{to}"));
    let removed = rename_step(&site, &learnt, |from, to| is_id(from) && to == format!(".partial-{from}"));
    let (mut count, mut halves) = (0, 0);
    for kill in kills(&learnt).into_iter().skip(lane).step_by(lanes) {
        next_second(&site);
        let before = listed(&site);
        assert_eq!(before.len(), 1);
        let steps = run_killed(&site, &["backup"], kill);
        assert_eq!(words(&steps), words(&learnt[..kill.0]), "another run than the one that was learnt");
        let done = |step: usize| step < kill.0 || (step == kill.0 && kill.1);
        let after = listed(&site);
        assert_eq!(before.is_subset(&after), !done(removed), "{kill:?} {steps:#?}");
        assert_eq!(after.difference(&before).count(), usize::from(done(published)), "{kill:?} {steps:#?}");
        halves += usize::from(!rests(&site.store()).is_empty());
        assert_verifies(&site, "digest");
        assert_next_run_works(&site);
        assert_verifies(&site, "digest");
        count += 1;
    }
    // One step behind the last there is none.
    next_second(&site);
    let (output, steps) = run_stepped(&site, &["backup"], Some((learnt.len() + 1, false)));
    assert!(output.status.success(), "{output:?}");
    assert_eq!(words(&steps), words(&learnt));
    assert_verifies(&site, "sound");
    (learnt.len(), count, halves)
}

#[test]
fn a_backup_killed_at_any_instant_leaves_the_old_or_the_new() {
    const KILLS: usize = 10;
    let cluster = small();
    fill::incompressible(&cluster.client(0), 30);
    let site = Site::new(&cluster);
    site.write_policy(&(site.policy() + KEEP_ONE));
    backup_without_finding(&site);
    next_second(&site);
    // How long a run is, from its first trace in the store.
    let mut child = site.start(&["backup"]);
    let begun = until_half_made(&site);
    assert!(child.wait().unwrap().success());
    let mut length = begun.elapsed();
    #[allow(clippy::disallowed_methods, reason = "to repeat a run that failed")]
    let seed = std::env::var("ETCD_DR_TEST_SEED").map_or(20_261_122, |seed| seed.parse().expect("a number"));
    println!("ETCD_DR_TEST_SEED={seed}, a run takes {length:?}");
    let mut random: u64 = seed;
    // Knuth's MMIX; the high bits are the good ones.
    let mut next = move || {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        u32::try_from((random >> 33) % 1000).unwrap()
    };
    let mut permille = next();
    let (mut done, mut late) = (0, 0);
    while done < KILLS {
        next_second(&site);
        let before = listed(&site);
        let mut command = site.command(&["backup"]);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        until_half_made(&site);
        thread::sleep(length * permille / 1000);
        child.kill().unwrap();
        if child.wait().unwrap().signal() != Some(9) {
            // The machine is faster now than it was; the same share of a run is tried again.
            length = length * 4 / 5;
            late += 1;
            assert!(late < 5 * KILLS, "no kill finds a live run");
            continue;
        }
        done += 1;
        let after = listed(&site);
        assert!(!after.is_empty() && after.difference(&before).count() <= 1, "{before:?} {after:?}");
        println!("killed at {permille} per mille: {:?}", site.backups());
        assert_verifies(&site, "digest");
        assert_next_run_works(&site);
        permille = next();
    }
    println!("{done} kills, {late} more came too late");
    assert_verifies(&site, "sound");
}

/// Waits until a run has begun to write.
fn until_half_made(site: &Site) -> Instant {
    let begun = Instant::now();
    while !site.backups().iter().any(|name| name.starts_with(".partial-2")) {
        assert!(begun.elapsed() < Duration::from_secs(30), "the run writes nothing");
        thread::sleep(Duration::from_millis(1));
    }
    Instant::now()
}

/// Whether a process holds a file without a name in this directory, or below it.
fn holds_unnamed(process: u32, dir: &Path) -> bool {
    let Ok(open) = fs::read_dir(format!("/proc/{process}/fd")) else { return false };
    open.flatten().filter_map(|entry| fs::read_link(entry.path()).ok()).any(|path| {
        let path = path.to_string_lossy();
        path.starts_with(dir.to_str().unwrap()) && path.ends_with(" (deleted)")
    })
}

#[test]
fn a_backup_killed_in_mid_proof_leaves_no_scratch() {
    let cluster = small();
    fill::incompressible(&cluster.client(0), 30);
    let site = Site::new(&cluster);
    site.write_policy(&(site.policy() + KEEP_ONE));
    backup_without_finding(&site);
    let aside = site.path("scratch");
    fs::create_dir(&aside).unwrap();
    for (scratch, dir) in [("in the store", site.store()), ("aside", aside.clone())] {
        if scratch == "aside" {
            site.change_policy("[backup]\n", &format!("[backup]\nscratch_dir = {aside:?}\n"));
        }
        next_second(&site);
        let before = listed(&site);
        let mut child = site.start(&["backup"]);
        let begun = Instant::now();
        while !holds_unnamed(child.id(), &dir) {
            assert!(begun.elapsed() < Duration::from_secs(30), "no proof has a scratch {scratch}");
        }
        child.kill().unwrap();
        assert_killed(child.wait().unwrap(), scratch);
        assert_eq!(listed(&site), before, "{scratch}");
        assert_eq!(names(&aside), [""; 0]);
        // What was half made holds what is sealed, and nothing else.
        let halves = rests(&site.store());
        assert_eq!(halves.len(), 1, "{halves:?}");
        assert_eq!(names(Path::new(&halves[0])), ["etcd-k8s.db.zst.age"]);
        assert_next_run_works(&site);
        assert_eq!(names(&aside), [""; 0]);
    }
    assert_verifies(&site, "sound");
}

fn copy(from: &Path, to: &Path) {
    if to.exists() {
        fs::remove_dir_all(to).unwrap();
    }
    assert!(stock("cp").arg("-a").arg(from).arg(to).status().unwrap().success());
}

#[test]
fn a_prune_killed_at_any_step_is_finished_by_the_next() {
    let cluster = small();
    let site = Site::new(&cluster);
    for _ in 0..3 {
        next_second(&site);
        backup_without_finding(&site);
    }
    next_second(&site);
    site.write_policy(&(site.policy() + KEEP_ONE));
    let template = site.path("template");
    copy(&site.store(), &template);
    let all = listed(&site);
    let (output, learnt) = run_stepped(&site, &["prune"], None);
    assert!(output.status.success(), "{output:?}");
    let last = listed(&site);
    assert_eq!((all.len(), last.len()), (3, 1));
    let kills = kills(&learnt);
    for &kill in &kills {
        copy(&template, &site.store());
        run_killed(&site, &["prune"], kill);
        let left = listed(&site);
        assert!(left.is_subset(&all) && left.is_superset(&last), "{kill:?} {left:?}");
        assert_verifies(&site, "digest");
        site.run(&["prune"]).expect_code(0);
        assert_eq!((listed(&site), rests(&site.store())), (last.clone(), Vec::new()), "{kill:?}");
        assert_verifies(&site, "digest");
    }
    println!("prune: {} durable steps, {} kills", learnt.len(), kills.len());
    assert!(learnt.len() > 20);
    assert_next_run_works(&site);
    assert_verifies(&site, "sound");
}

#[test]
fn an_init_killed_at_any_step_is_finished_by_the_next() {
    let cluster = small();
    let pair = cluster.client_pair();
    let (mut at, mut done) = (1, 0);
    loop {
        let site = Site::bare(cluster.advertised(0), cluster.pki().ca(), &pair.cert, &pair.key);
        let (output, steps) = run_stepped(&site, &["init"], Some((at, false)));
        if output.status.success() {
            assert_eq!(steps.len(), at - 1);
            break;
        }
        assert_killed(output.status, &format!("{output:?}"));
        // It is no store yet, or it is one; never one that something was deleted from.
        let key = site.path("signing.key").exists();
        let answer = site.run(&["list", "--output", "json"]);
        let kind = answer.json()["error"]["kind"].clone();
        if key {
            assert!(
                [json!("no_store"), json!("not_initialised"), json!(null)].contains(&kind),
                "{steps:#?} {answer:?}"
            );
        }
        let answer = site.run(&["init", "--output", "json"]).expect_code(0);
        let lost = |text: &str| text.contains("marker") || text.contains("journal");
        let warnings = answer.json()["warnings"].clone();
        assert!(!warnings.as_array().unwrap().iter().any(|text| lost(text.as_str().unwrap())), "{steps:#?} {warnings}");
        assert_one_key(&site.path("signing.key"));
        let again = site.run(&["init", "--output", "json"]).expect_code(0).json();
        assert_eq!((&again["created"], &again["public_key"]), (&json!([]), &answer.json()["public_key"]));
        assert!(listed(&site).is_empty());
        // A backup sweeps what is left.
        site.run(&["keys", "generate"]).expect_code(0);
        let recipient = stock("age-keygen").arg("-y").arg(site.path("identity.txt")).output().unwrap().stdout;
        fs::write(site.path("recipients.txt"), recipient).unwrap();
        fs::set_permissions(site.path("recipients.txt"), fs::Permissions::from_mode(0o600)).unwrap();
        backup_without_finding(&site);
        assert_eq!(rests(&site.path(".")), [""; 0], "{steps:#?}");
        at += 1;
        done += 1;
    }
    println!("init: {done} durable steps, as many kills");
    assert!(done > 8);
}

/// A key of mode 0600, under one name, with nothing of it beside.
fn assert_one_key(path: &Path) {
    let meta = fs::metadata(path).unwrap();
    assert_eq!((meta.permissions().mode() & 0o7777, meta.nlink()), (0o600, 1));
    let dir = path.parent().unwrap();
    let beside: Vec<_> = names(dir).into_iter().filter(|name| name.starts_with(".partial-")).collect();
    assert_eq!(beside, [""; 0]);
}

#[test]
fn a_key_is_made_whole_or_not_at_all() {
    let dir = tempfile::tempdir().unwrap();
    let keys = dir.path().join("keys");
    let (out, policy, log) = (keys.join("identity.txt"), dir.path().join("policy.toml"), dir.path().join("steps.log"));
    fs::create_dir(&keys).unwrap();
    fs::write(&policy, "version = 1\n").unwrap();
    fs::set_permissions(&policy, fs::Permissions::from_mode(0o600)).unwrap();
    let generate = |kill: Option<Kill>| {
        let mut command = Command::new(site::BINARY);
        command.env_clear().args(["keys", "generate", "--policy"]).arg(&policy).arg("--out").arg(&out);
        if let Some((kill_at, after)) = kill {
            Steps { kill_at: Some(kill_at), after, ..Steps::default() }.apply(&mut command, &log);
        }
        command.output().unwrap()
    };
    let mut kills = 0;
    loop {
        let output = generate(Some((kills + 1, false)));
        if output.status.success() {
            break;
        }
        assert_killed(output.status, &format!("{output:?}"));
        kills += 1;
        let left = names(&keys);
        if left.is_empty() {
            let output = generate(None);
            assert!(output.status.success(), "{output:?}");
        } else {
            assert_eq!(left, ["identity.txt"], "a rest of a key");
        }
        assert_one_key(&out);
        let recipient = stock("age-keygen").arg("-y").arg(&out).output().unwrap();
        assert!(recipient.status.success(), "{recipient:?}");
        fs::remove_file(&out).unwrap();
    }
    println!("keys generate: {kills} durable steps, as many kills");
    assert!(kills >= 2);
}

#[test]
fn a_proof_record_is_written_whole_or_does_not_count() {
    let cluster = small();
    let site = Site::new(&cluster);
    let id = backup_without_finding(&site);
    let template = site.path("template");
    copy(&site.store(), &template);
    let mut kills = 0;
    loop {
        copy(&template, &site.store());
        let (output, steps) = run_stepped(&site, &["verify"], Some((kills + 1, false)));
        if output.status.success() {
            break;
        }
        assert_killed(output.status, &format!("{output:?}"));
        kills += 1;
        let show = || site.run(&["show", &id, "--output", "json"]).expect_code(0).json();
        let counted = |show: &serde_json::Value| {
            show["proofs"].as_array().unwrap().iter().filter(|proof| proof["counted"] == true).count()
        };
        let before = counted(&show());
        assert!(before <= 1);
        assert_eq!(listed(&site), BTreeSet::from([id.clone()]));
        let answer = site.run(&["verify", "--output", "json"]).expect_code(0).json();
        assert_eq!(answer["findings"], json!([]), "{steps:#?}");
        // A record that was left without its signature is named, and is no more than that.
        let warnings = answer["warnings"].as_array().unwrap();
        let unsigned = |text: &str| text.ends_with("does not count: its signature is missing");
        assert!(warnings.len() <= 1 && warnings.iter().all(|text| unsigned(text.as_str().unwrap())), "{warnings:?}");
        assert_eq!(counted(&show()), before + 1, "{steps:#?}");
        assert_eq!(rests(&site.store()), [""; 0], "{steps:#?}");
        backup_without_finding(&site);
    }
    println!("verify: {kills} durable steps, as many kills");
    assert!(kills >= 4);
}
