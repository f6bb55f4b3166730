//! What retention may never do, for any catalogue, policy and time; and how it acts on real directories.
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

use std::{collections::BTreeSet, path::Path, time::Duration};

use backup::{CLUSTER, Golden, STORE, key, time, trusting};
use etcd_dr::{
    catalog::{self, Catalog},
    durable,
    ops::prune,
    plan::retention::{Action, Candidate, Decision, Hold, MAX_GAP, Refusal, decide},
    policy::Retention,
    record::{BackupId, Held, Holds, ProofLevel},
    sign::SecretKey,
};
use jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;

const HOUR: u64 = 3600;
const LEVELS: [ProofLevel; 6] =
    [ProofLevel::None, ProofLevel::Digest, ProofLevel::Open, ProofLevel::Sound, ProofLevel::Boot, ProofLevel::Serve];

fn start() -> Timestamp {
    time("2026-01-01T00:00:00Z")
}

fn level() -> impl Strategy<Value = ProofLevel> {
    (0..LEVELS.len()).prop_map(|at| LEVELS[at])
}

fn hold() -> impl Strategy<Value = Hold> {
    prop_oneof![8 => Just(Hold::Never), 1 => Just(Hold::Held), 1 => Just(Hold::Released)]
}

/// Up to thirty backups, hours or weeks apart, mostly whole; several may be of one second.
fn catalogue() -> impl Strategy<Value = Vec<Candidate>> {
    let step = prop_oneof![3 => 0..30_u64, 3 => Just(24), 1 => 0..2000_u64];
    let one = (
        step,
        level(),
        prop::bool::weighted(0.8),
        prop::bool::weighted(0.1),
        prop::bool::weighted(0.85),
        prop::bool::weighted(0.3),
        hold(),
    );
    prop::collection::vec(one, 0..30).prop_map(|rows| {
        let mut hours = 0;
        let candidate = |(salt, (step, level, complete, in_use, trusted, partial, hold))| {
            hours += step;
            let created_at = start() + Duration::from_secs(hours * HOUR);
            let id = BackupId::new(created_at, u16::try_from(salt).unwrap());
            Candidate { id, created_at, level, complete, hold, in_use, trusted, partial }
        };
        rows.into_iter().enumerate().map(candidate).collect()
    })
}

fn rules() -> impl Strategy<Value = Retention> {
    (0..800_u64, 0..5_u32, level(), 0..5_u32, 0..5_u32, 0..5_u32).prop_map(
        |(hours, keep_proved, min_proof, keep_daily, keep_weekly, keep_monthly)| Retention {
            keep_within: Duration::from_secs(hours * HOUR),
            keep_proved,
            min_proof,
            keep_daily,
            keep_weekly,
            keep_monthly,
        },
    )
}

/// From before the newest backup to far beyond it.
fn later(backups: &[Candidate], hours: i64) -> Timestamp {
    let newest = backups.iter().filter(|b| b.trusted).map(|b| b.created_at).max().unwrap_or_else(start);
    newest + SignedDuration::from_hours(hours)
}

fn dropped(decisions: &[Decision]) -> BTreeSet<BackupId> {
    decisions.iter().filter(|d| d.action == Action::Drop).map(|d| d.id.clone()).collect()
}

fn proved(backup: &Candidate) -> ProofLevel {
    if backup.trusted && backup.complete { backup.level } else { ProofLevel::None }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn what_is_proved_survives(backups in catalogue(), rules in rules(), hours in 0..5000_i64, accept: bool) {
        let Ok(decisions) = decide(&backups, &rules, later(&backups, hours), accept) else { return Ok(()) };
        let dropped = dropped(&decisions);
        // The last proved one, at whatever level; with none proved, everything.
        let best: Vec<_> = backups.iter().filter(|b| proved(b) > ProofLevel::None).collect();
        prop_assert!(best.iter().any(|b| !dropped.contains(&b.id)) || (best.is_empty() && dropped.is_empty()));
        // The newest that reached the minimum, `keep_proved` of them.
        let min = rules.min_proof.max(ProofLevel::Digest);
        let mut floor: Vec<_> = best.iter().filter(|b| proved(b) >= min).collect();
        floor.sort_by_key(|b| (b.created_at, &b.id));
        let count = usize::try_from(rules.keep_proved.max(1)).unwrap();
        prop_assert!(floor.iter().rev().take(count).all(|b| !dropped.contains(&b.id)));
        // Whatever their levels, so many proved ones are left, if there were so many.
        let left = best.iter().filter(|b| !dropped.contains(&b.id)).count();
        prop_assert!(left >= count.min(best.len()));
    }

    #[test]
    fn nothing_unknown_young_held_or_in_use_is_dropped(backups in catalogue(), rules in rules(), hours in 0..5000_i64) {
        let now = later(&backups, hours);
        let Ok(decisions) = decide(&backups, &rules, now, true) else { return Ok(()) };
        let dropped = dropped(&decisions);
        for backup in &backups {
            let young = now.duration_since(backup.created_at) < SignedDuration::try_from(rules.keep_within).unwrap();
            let kept = young || backup.in_use || backup.hold == Hold::Held || !backup.trusted;
            prop_assert!(!(kept && dropped.contains(&backup.id)));
        }
    }

    #[test]
    fn each_is_decided_once_whatever_the_order(
        (backups, shuffled) in catalogue().prop_flat_map(|backups| (Just(backups.clone()), Just(backups).prop_shuffle())),
        rules in rules(), hours in -50..5000_i64, accept: bool,
    ) {
        let now = later(&backups, hours);
        let decided = decide(&backups, &rules, now, accept);
        prop_assert_eq!(&decided, &decide(&shuffled, &rules, now, accept));
        let Ok(decisions) = decided else { return Ok(()) };
        let ids: Vec<_> = decisions.iter().map(|d| &d.id).collect();
        prop_assert_eq!(ids, backups.iter().map(|b| &b.id).collect::<Vec<_>>());
        prop_assert!(decisions.iter().all(|d| !d.reasons.is_empty()));
    }

    #[test]
    fn more_time_never_un_prunes(
        backups in catalogue(), rules in rules(), hours in 0..5000_i64, more in 0..5000_i64, accept: bool,
    ) {
        let first = decide(&backups, &rules, later(&backups, hours), accept);
        let second = decide(&backups, &rules, later(&backups, hours + more), accept);
        if let (Ok(first), Ok(second)) = (&first, &second) {
            prop_assert!(dropped(first).is_subset(&dropped(second)));
        }
        // With a person's word only the clock can refuse, and it is ahead.
        prop_assert!(!accept || (first.is_ok() && second.is_ok()));
    }

    #[test]
    fn after_a_prune_nothing_is_left_to_do_or_to_refuse(
        backups in catalogue(), rules in rules(), hours in 0..5000_i64, accept: bool,
    ) {
        let now = later(&backups, hours);
        let Ok(decisions) = decide(&backups, &rules, now, accept) else { return Ok(()) };
        let dropped = dropped(&decisions);
        let left: Vec<_> = backups.into_iter().filter(|b| !dropped.contains(&b.id)).collect();
        let again = decide(&left, &rules, now, false);
        prop_assert!(again.is_ok_and(|again| again.iter().all(|d| d.action == Action::Keep)));
    }

    #[test]
    fn a_hold_keeps_its_backup_and_changes_nothing_else(
        backups in catalogue(), rules in rules(), hours in 0..5000_i64, accept: bool,
    ) {
        let now = later(&backups, hours);
        let free: Vec<_> = backups.iter().map(|b| Candidate { hold: Hold::Never, ..b.clone() }).collect();
        // Where nobody is asked about gaps; a hold or a release only ever takes one away.
        let (with, without) = (decide(&backups, &rules, now, accept), decide(&free, &rules, now, accept));
        prop_assert!(with.is_ok() || without.is_err());
        let (Ok(with), Ok(without)) = (with, without) else { return Ok(()) };
        for ((with, without), backup) in with.iter().zip(&without).zip(&backups) {
            if backup.hold == Hold::Held && backup.trusted {
                let others: Vec<_> = with.reasons.iter().filter(|reason| *reason != "held").collect();
                prop_assert!(with.action == Action::Keep && others.len() < with.reasons.len());
            } else {
                prop_assert_eq!(with, without);
            }
        }
    }

    #[test]
    fn who_asks_for_more_never_keeps_less(
        backups in catalogue(), rules in rules(), hours in 0..5000_i64, more in (0..50_u64, 0..3_u32, 0..3_u32, 0..3_u32, 0..3_u32),
    ) {
        let now = later(&backups, hours);
        let (within, proved, daily, weekly, monthly) = more;
        let wider = Retention {
            keep_within: rules.keep_within + Duration::from_secs(within * HOUR),
            keep_proved: rules.keep_proved + proved,
            keep_daily: rules.keep_daily + daily,
            keep_weekly: rules.keep_weekly + weekly,
            keep_monthly: rules.keep_monthly + monthly,
            ..rules.clone()
        };
        let (Ok(less), Ok(more)) = (decide(&backups, &rules, now, true), decide(&backups, &wider, now, true)) else {
            return Ok(());
        };
        prop_assert!(dropped(&more).is_subset(&dropped(&less)));
    }

    #[test]
    fn a_raised_minimum_never_drops_the_last_whole_one(backups in catalogue(), rules in rules(), hours in 0..5000_i64) {
        let Ok(decisions) = decide(&backups, &rules, later(&backups, hours), true) else { return Ok(()) };
        let dropped = dropped(&decisions);
        let mut whole = backups.iter().filter(|b| proved(b) > ProofLevel::None && !b.partial).peekable();
        prop_assert!(whole.peek().is_none() || whole.any(|b| !dropped.contains(&b.id)));
    }

    #[test]
    fn a_clock_behind_a_signed_time_refuses(backups in catalogue(), rules in rules(), hours in 1..5000_i64, accept: bool) {
        prop_assume!(backups.iter().any(|b| b.trusted));
        let refused = decide(&backups, &rules, later(&backups, -hours), accept);
        let refused = matches!(refused, Err(Refusal::ClockBehind { .. }));
        prop_assert!(refused);
    }

    #[test]
    fn what_is_not_trusted_decides_nothing(backups in catalogue(), rules in rules(), hours in 0..5000_i64, accept: bool) {
        let now = later(&backups, hours);
        let trusted: Vec<_> = backups.iter().filter(|b| b.trusted).cloned().collect();
        let with = decide(&backups, &rules, now, accept);
        let without = decide(&trusted, &rules, now, accept);
        match (with, without) {
            (Ok(with), Ok(without)) => prop_assert_eq!(dropped(&with), dropped(&without)),
            (with, without) => prop_assert_eq!(with.err(), without.err()),
        }
    }
}

/// One proved backup a night for `nights`, the first on 1 January.
fn nightly(nights: u64) -> Vec<Candidate> {
    (0..nights).map(|night| proved_on(start() + Duration::from_secs(night * 24 * HOUR))).collect()
}

fn proved_on(created_at: Timestamp) -> Candidate {
    let id = BackupId::new(created_at, 0);
    let level = ProofLevel::Open;
    Candidate { id, created_at, level, complete: true, hold: Hold::Never, in_use: false, trusted: true, partial: false }
}

fn five_days() -> Retention {
    Retention {
        keep_within: Duration::from_secs(5 * 24 * HOUR),
        keep_proved: 3,
        min_proof: ProofLevel::Open,
        keep_daily: 0,
        keep_weekly: 0,
        keep_monthly: 0,
    }
}

/// Runs a backup a night and retention after it, and says how many nights were refused.
fn simulate(rules: &Retention, backups: &mut Vec<Candidate>, nights: std::ops::Range<u64>) -> usize {
    let mut refused = 0;
    for night in nights {
        let now = start() + Duration::from_secs(night * 24 * HOUR);
        backups.push(proved_on(now));
        match decide(backups, rules, now + Duration::from_secs(60), false) {
            Ok(decisions) => {
                let dropped = dropped(&decisions);
                backups.retain(|b| !dropped.contains(&b.id));
            }
            Err(Refusal::Gap { .. }) => refused += 1,
            Err(refusal) => panic!("{refusal}"),
        }
    }
    refused
}

#[test]
fn years_of_nightly_runs_are_never_refused() {
    for (daily, weekly, monthly) in [(0, 0, 0), (7, 4, 12), (0, 0, 24), (0, 60, 0)] {
        let rules = Retention { keep_daily: daily, keep_weekly: weekly, keep_monthly: monthly, ..five_days() };
        let mut backups = Vec::new();
        assert_eq!(simulate(&rules, &mut backups, 0..1100), 0, "{rules:?}");
        let most = usize::try_from(6 + daily + weekly + monthly).unwrap();
        assert!(backups.len() <= most && backups.len() >= usize::try_from(monthly.max(weekly)).unwrap(), "{rules:?}");
    }
}

#[test]
fn after_a_long_sleep_it_waits_for_a_person_and_not_for_the_next_night() {
    let mut backups = Vec::new();
    assert_eq!(simulate(&five_days(), &mut backups, 0..30), 0);
    assert_eq!(backups.len(), 5);
    assert_eq!(simulate(&five_days(), &mut backups, 100..110), 10);
    assert_eq!(backups.len(), 15);
    let now = start() + Duration::from_secs(109 * 24 * HOUR + 60);
    let accepted = dropped(&decide(&backups, &five_days(), now, true).unwrap());
    assert_eq!(accepted.len(), 10);
    backups.retain(|b| !accepted.contains(&b.id));
    assert_eq!(simulate(&five_days(), &mut backups, 110..140), 0);
}

#[test]
fn a_gap_is_more_than_thirty_days_and_needs_something_to_lose() {
    let backups = nightly(5);
    let newest = backups[4].created_at;
    assert!(decide(&backups, &five_days(), newest + MAX_GAP, false).is_ok());
    let asleep = newest + MAX_GAP + SignedDuration::from_secs(1);
    let refused = decide(&backups, &five_days(), asleep, false).unwrap_err();
    assert_eq!(refused, Refusal::Gap { from: newest, to: asleep, drops: 2 });
    assert!(decide(&backups, &five_days(), asleep, true).is_ok());
    assert!(decide(&backups[..3], &five_days(), asleep, false).is_ok());
}

#[test]
fn what_ages_out_after_a_gap_is_no_reason_to_refuse() {
    // Young enough to be kept when the gap ended, so nothing would have gone at once.
    let rules = Retention { keep_within: Duration::from_secs(60 * 24 * HOUR), keep_proved: 1, ..five_days() };
    let mut backups = nightly(3);
    assert_eq!(simulate(&rules, &mut backups, 40..100), 0);
    assert_eq!(backups.first().unwrap().created_at, start() + Duration::from_secs(40 * 24 * HOUR));
}

/// Time, level, complete, and why it is kept; empty where it is dropped.
type Row<'a> = (&'a str, ProofLevel, bool, &'a [&'a str]);

fn check(rules: &Retention, now: &str, rows: &[Row<'_>]) {
    let backup = |(created_at, level, complete, _): &Row<'_>| Candidate {
        level: *level,
        complete: *complete,
        ..proved_on(time(created_at))
    };
    let backups: Vec<_> = rows.iter().map(backup).collect();
    for (decision, (created_at, _, _, reasons)) in decide(&backups, rules, time(now), true).unwrap().iter().zip(rows) {
        let dropped = ["no rule keeps it"];
        let reasons = if reasons.is_empty() { &dropped[..] } else { *reasons };
        let said = decision.reasons.iter().map(|r| r.trim_start_matches("older than 0s, ")).collect::<Vec<_>>();
        assert_eq!(said, reasons, "{created_at}");
    }
}

#[test]
fn the_calendar_takes_the_newest_proved_of_each_day_week_and_month_in_utc() {
    use ProofLevel::{Digest, None, Open};
    let floor = "one of the 1 newest proved (open)";
    let none = Retention { keep_within: Duration::ZERO, keep_proved: 0, ..five_days() };
    #[rustfmt::skip]
    check(&Retention { keep_daily: 3, ..none.clone() }, "2026-11-23T00:00:00Z", &[
        ("2026-11-17T02:00:00Z", Open,   true,  &[]),
        ("2026-11-18T02:00:00Z", Digest, true,  &[]),
        ("2026-11-18T14:00:00Z", Digest, true,  &["daily 2026-11-18"]),
        ("2026-11-20T02:00:00Z", Open,   true,  &[]),
        ("2026-11-20T14:00:00Z", Open,   true,  &["daily 2026-11-20"]),
        // Newer, and no better than nothing: neither takes the place of the proved one.
        ("2026-11-20T15:00:00Z", Digest, true,  &[]),
        ("2026-11-20T23:59:59Z", Open,   false, &[]),
        ("2026-11-21T00:00:00Z", Open,   true,  &[floor, "daily 2026-11-21"]),
        // A day on which nothing was proved takes no place.
        ("2026-11-22T02:00:00Z", None,   true,  &[]),
    ]);
    #[rustfmt::skip]
    check(&Retention { keep_weekly: 2, ..none.clone() }, "2027-02-01T00:00:00Z", &[
        ("2026-12-27T02:00:00Z", Open, true, &[]),
        // The first days of 2027 belong to the last ISO week of 2026.
        ("2026-12-28T02:00:00Z", Open, true, &[]),
        ("2027-01-03T23:59:59Z", Open, true, &["weekly 2026-W53"]),
        ("2027-01-04T00:00:00Z", Open, true, &[floor, "weekly 2027-W01"]),
    ]);
    #[rustfmt::skip]
    check(&Retention { keep_monthly: 2, ..none }, "2027-02-01T00:00:00Z", &[
        ("2026-10-31T02:00:00Z", Open, true, &[]),
        ("2026-11-01T02:00:00Z", Open, true, &[]),
        ("2026-11-30T23:59:59Z", Open, true, &["monthly 2026-11"]),
        ("2027-01-31T00:00:00Z", Open, true, &[floor, "monthly 2027-01"]),
    ]);
}

#[test]
fn the_floor_is_filled_from_the_next_lower_level_newest_first() {
    use ProofLevel::{Boot, Digest, None, Open, Sound};
    let rules = Retention { keep_within: Duration::ZERO, min_proof: Sound, keep_proved: 4, ..five_days() };
    #[rustfmt::skip]
    check(&rules, "2026-11-23T00:00:00Z", &[
        ("2026-11-14T02:00:00Z", Boot,   true,  &["one of the 4 newest proved (sound)"]),
        ("2026-11-15T02:00:00Z", Open,   true,  &[]),
        ("2026-11-16T02:00:00Z", Open,   true,  &["one of the 4 newest proved (open: too few reached sound)"]),
        ("2026-11-17T02:00:00Z", Sound,  true,  &["one of the 4 newest proved (sound)"]),
        ("2026-11-18T02:00:00Z", Open,   true,  &["one of the 4 newest proved (open: too few reached sound)"]),
        ("2026-11-19T02:00:00Z", Sound,  false, &[]),
        ("2026-11-20T02:00:00Z", Digest, true,  &[]),
        ("2026-11-21T02:00:00Z", None,   true,  &[]),
    ]);
    let nothing = "no backup is proved: nothing is dropped";
    #[rustfmt::skip]
    check(&rules, "2026-11-23T00:00:00Z", &[
        ("2026-11-20T02:00:00Z", None,  true,  &[nothing]),
        ("2026-11-21T02:00:00Z", Sound, false, &[nothing]),
    ]);
}

fn no_holds() -> Holds {
    Holds::new(STORE)
}

/// A store on disk with one backup on each of ten nights, and the rules that drop five of them.
fn store() -> (tempfile::TempDir, SecretKey) {
    let (root, key) = (tempfile::tempdir().unwrap(), key());
    for day in 10..20 {
        Golden::at(&format!("2026-11-{day}T02:00:00Z")).write(root.path(), &key);
    }
    (root, key)
}

fn read(root: &Path, key: &SecretKey) -> Catalog {
    catalog::read(root, Some(STORE), &[CLUSTER], &trusting(&[key])).unwrap()
}

fn days(backups: &Catalog) -> Vec<i8> {
    backups.backups.iter().map(|b| b.time().to_zoned(jiff::tz::TimeZone::UTC).day()).collect()
}

#[test]
fn prune_drops_what_is_old_and_leaves_what_is_read() {
    let (root, key) = store();
    let now = time("2026-11-19T02:30:00Z");
    let read_before = read(root.path(), &key);
    let reader = catalog::hold_shared(&read_before.backups[1]).unwrap();
    let planned = prune::plan(&read_before, &no_holds(), &five_days(), now, false).unwrap();
    assert_eq!(planned[1].reasons, ["in use"]);
    assert_eq!(planned[0].reasons, ["older than 5d, no rule keeps it"]);
    assert_eq!(planned[9].reasons, ["younger than 5d", "one of the 3 newest proved (open)"]);
    assert_eq!(dropped(&planned).len(), 4);

    // Another reader comes between the plan and the deed.
    let late = catalog::hold_shared(&read_before.backups[2]).unwrap();
    let mut asked = Vec::new();
    let remove = |id: &BackupId| {
        asked.push(id.clone());
        durable::remove_dir(&root.path().join(id.as_str()))
    };
    let done = prune::execute(&read_before, planned, remove).unwrap();
    assert_eq!(done[2], Decision { id: done[2].id.clone(), action: Action::Keep, reasons: vec!["in use".to_owned()] });
    assert_eq!(asked, dropped(&done).into_iter().collect::<Vec<_>>());
    assert_eq!(days(&read(root.path(), &key)), [11, 12, 15, 16, 17, 18, 19]);

    drop((reader, late));
    let again = prune::plan(&read(root.path(), &key), &no_holds(), &five_days(), now, false).unwrap();
    assert_eq!(dropped(&again).len(), 2);
}

#[test]
fn what_is_held_stays_and_says_so() {
    let (root, key) = store();
    let catalog = read(root.path(), &key);
    let mut holds = no_holds();
    for (at, backup) in [(0, &catalog.backups[0]), (1, &catalog.backups[9])] {
        let held = Held { id: backup.dir_name.clone(), at: backup.time(), host: None, reason: None };
        etcd_dr::store::holds::hold(&mut holds, held);
        assert_eq!(holds.held.len(), at + 1);
    }
    let now = time("2026-11-19T02:30:00Z");
    let planned = prune::plan(&catalog, &holds, &five_days(), now, false).unwrap();
    assert_eq!((planned[0].action, &planned[0].reasons[..]), (Action::Keep, &["held".to_owned()][..]));
    assert_eq!(planned[9].reasons, ["held", "younger than 5d", "one of the 3 newest proved (open)"]);
    // The other old ones go as they went without.
    let without = prune::plan(&catalog, &no_holds(), &five_days(), now, false).unwrap();
    assert_eq!(dropped(&without).len(), dropped(&planned).len() + 1);
    assert!(dropped(&planned).is_subset(&dropped(&without)));
}

#[test]
fn a_hold_that_outlived_its_neighbours_is_no_gap_once_it_is_released() {
    // More of them than the floor has places, so that one would have gone when the next backup was made.
    let mut backups: Vec<_> = nightly(4).into_iter().map(|b| Candidate { hold: Hold::Held, ..b }).collect();
    assert_eq!(simulate(&five_days(), &mut backups, 4..200), 0);
    assert_eq!(backups.len(), 4 + 5);
    let now = backups[8].created_at + Duration::from_secs(60);
    let with = |hold| {
        let pin = |(at, b): (usize, &Candidate)| Candidate { hold: if at < 4 { hold } else { b.hold }, ..b.clone() };
        let backups: Vec<_> = backups.iter().enumerate().map(pin).collect();
        decide(&backups, &five_days(), now, false).map(|decisions| dropped(&decisions).len())
    };
    assert_eq!(with(Hold::Held), Ok(0));
    assert_eq!(with(Hold::Released), Ok(4));
    // As they lie there without a word, nobody knows that nights were pruned between: it is a gap as ever.
    assert!(matches!(with(Hold::Never), Err(Refusal::Gap { drops: 2, .. })));
}

#[test]
fn prune_stops_at_the_first_error() {
    let (root, key) = store();
    let catalog = read(root.path(), &key);
    let planned = prune::plan(&catalog, &no_holds(), &five_days(), time("2026-11-19T02:30:00Z"), false).unwrap();
    let mut left = 2;
    let remove = |id: &BackupId| {
        left -= 1;
        if left == 0 {
            Err("the journal is full")
        } else {
            durable::remove_dir(&root.path().join(id.as_str())).map_err(|_cause| "")
        }
    };
    assert_eq!(prune::execute(&catalog, planned, remove), Err("the journal is full"));
    assert_eq!(days(&read(root.path(), &key)), [11, 12, 13, 14, 15, 16, 17, 18, 19]);
}

#[test]
fn damaged_and_renamed_backups_hold_no_place_and_are_not_dropped() {
    let (root, key) = store();
    let path = |day: u8| root.path().join(format!("202611{day}T020000Z-7f3a"));
    // The three newest: one lost a file, one was renamed, one failed a later proof.
    std::fs::remove_file(path(19).join("etcd-k8s.db.zst.age")).unwrap();
    backup::rename(&path(18), &root.path().join("20261118T020000Z-0000"));
    let failed = backup::proof_of(&path(17), ProofLevel::Digest, false, "2026-11-18T00:00:00Z");
    catalog::write_proof(&path(17), &failed, &key).unwrap();
    let catalog = read(root.path(), &key);
    let rules = Retention { keep_within: Duration::ZERO, ..five_days() };
    let decisions = prune::plan(&catalog, &no_holds(), &rules, time("2026-11-19T02:30:00Z"), false).unwrap();
    let kept: Vec<_> =
        decisions.iter().filter(|d| d.action == Action::Keep).map(|d| (d.id.as_str(), d.reasons[0].as_str())).collect();
    assert_eq!(
        kept,
        [
            ("20261114T020000Z-7f3a", "one of the 3 newest proved (open)"),
            ("20261115T020000Z-7f3a", "one of the 3 newest proved (open)"),
            ("20261116T020000Z-7f3a", "one of the 3 newest proved (open)"),
            ("20261118T020000Z-0000", "not readable: kept and listed"),
        ]
    );
}

#[test]
fn decisions_are_written_as_the_contract_says() {
    let decisions = decide(&nightly(10), &five_days(), start() + Duration::from_secs(9 * 24 * HOUR), false).unwrap();
    assert_eq!(
        serde_json::to_value(&decisions[0]).unwrap(),
        serde_json::json!({
            "id": "20260101T000000Z-0000", "action": "drop", "reasons": ["older than 5d, no rule keeps it"],
        })
    );
    assert_eq!(serde_json::to_value(&decisions[9]).unwrap()["action"], "keep");
}

#[test]
fn partial_ones_never_drop_the_last_whole_one() {
    let mut backups: Vec<_> =
        ["2026-11-01T02:00:00Z", "2026-11-02T02:00:00Z", "2026-11-20T02:00:00Z", "2026-11-21T02:00:00Z"]
            .iter()
            .map(|text| proved_on(time(text)))
            .collect();
    backups[2].partial = true;
    backups[3].partial = true;
    let rules = Retention { keep_within: Duration::ZERO, keep_proved: 2, ..five_days() };
    let decisions = decide(&backups, &rules, time("2026-11-22T02:00:00Z"), true).unwrap();
    let kept: Vec<_> = decisions.iter().map(|decision| decision.action == Action::Keep).collect();
    assert_eq!(kept, [false, true, true, true]);
    assert_eq!(decisions[1].reasons, ["the newest proved one that is whole"]);
}

/// A fortnight of version 0.1.0, which proved `open`; then nights that prove `sound`, under rules that ask for it.
#[test]
fn after_an_upgrade_nothing_that_was_proved_is_lost() {
    let rules = Retention { min_proof: ProofLevel::Sound, ..five_days() };
    let floor_of = |backups: &[Candidate], now| {
        let decisions = decide(backups, &rules, now, false).unwrap();
        let floor = |d: &&Decision| d.reasons.iter().any(|reason| reason.starts_with("one of the 3 newest"));
        decisions.iter().filter(floor).map(|d| d.id.clone()).collect::<Vec<_>>()
    };
    let ids = |backups: &[&Candidate]| backups.iter().map(|b| b.id.clone()).collect::<Vec<_>>();
    let old = nightly(14);
    // Much later, and nothing new: the three newest are kept as they were.
    let later = old[13].created_at + Duration::from_secs(20 * 24 * HOUR);
    let decisions = decide(&old, &rules, later, false).unwrap();
    assert_eq!(dropped(&decisions).len(), 11);
    assert_eq!(decisions[13].reasons, ["one of the 3 newest proved (open: too few reached sound)"]);
    let sound = |night: u64| Candidate {
        level: ProofLevel::Sound,
        ..proved_on(old[13].created_at + Duration::from_secs(night * 24 * HOUR))
    };
    let minute = Duration::from_secs(60);
    for (nights, expected) in [
        (0, vec![&old[11], &old[12], &old[13]]),
        (1, vec![&old[12], &old[13], &sound(1)]),
        (2, vec![&old[13], &sound(1), &sound(2)]),
        (3, vec![&sound(1), &sound(2), &sound(3)]),
        (4, vec![&sound(2), &sound(3), &sound(4)]),
    ] {
        let mut backups = old.clone();
        backups.extend((1..=nights).map(sound));
        let now = backups.last().unwrap().created_at + minute;
        assert_eq!(floor_of(&backups, now), ids(&expected), "{nights} nights");
    }
}

#[test]
fn a_raised_minimum_does_not_cost_the_last_whole_one() {
    let mut backups = nightly(2);
    for night in 20..23 {
        let created_at = start() + Duration::from_secs(night * 24 * HOUR);
        backups.push(Candidate { level: ProofLevel::Sound, partial: true, ..proved_on(created_at) });
    }
    let rules = Retention { keep_within: Duration::ZERO, min_proof: ProofLevel::Sound, ..five_days() };
    let now = start() + Duration::from_secs(23 * 24 * HOUR);
    let decisions = decide(&backups, &rules, now, true).unwrap();
    assert_eq!(dropped(&decisions), BTreeSet::from([backups[0].id.clone()]));
    assert_eq!(decisions[1].reasons, ["the newest proved one that is whole"]);
    // A whole one that reached it comes first, however old.
    backups[0].level = ProofLevel::Sound;
    let decisions = decide(&backups, &rules, now, true).unwrap();
    assert_eq!(dropped(&decisions), BTreeSet::from([backups[1].id.clone()]));
}
