//! Which backups are kept, which are dropped, and why.
//!
//! Age is that of the *signed* time. A backup is *proved* at a level when a trusted key signed it, every listed file is there at its
//! recorded size, it has a primary, and it reached that level with no later failed proof; it may be partial.
//!
//! A backup is kept when any of these speaks for it, and each that does is among its reasons:
//!
//! 1. it is not readable (no trusted signature, another name, another store): nothing is known of it, and it counts for nothing else;
//! 2. it is held: a person pinned it. It takes part in all else as if it were not;
//! 3. it is in use;
//! 4. it is younger than `keep_within`;
//! 5. the floor: the `keep_proved` newest (at least one) that reached `min_proof`. While they are fewer, the next lower level fills the
//!    floor, newest first, then the one below that;
//! 6. the calendar, in UTC: of each of the last `keep_daily` days, `keep_weekly` ISO weeks and `keep_monthly` months *that have a backup
//!    proved at any level*, the newest that reached `min_proof`, else the newest proved at a lower one;
//! 7. it is the newest that is whole and reached `min_proof`, else the newest whole one at the next lower level: said only where nothing
//!    else keeps it;
//! 8. no backup is proved at any level: then nothing is dropped.
//!
//! Of these only 4 looks at the clock, and only towards dropping: more time never un-prunes.
//!
//! Two things stop it altogether:
//!
//! - A clock behind the newest signed time.
//! - A gap of more than [`MAX_GAP`] without a backup, after which ages would clear in one night what a working schedule clears in months. The
//!   gap ends at the next backup, or now; it stops retention if the rules would have dropped something *at its end*, and for as long as that
//!   is still here: until a person accepts it, not until the next night. Where a backup was pruned in time nothing of that kind is left, so
//!   the distances between monthly backups are no gaps. One that was held is left over without a fault: it is known that it may go, and
//!   it stops nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use jiff::{SignedDuration, Timestamp, civil::Date, tz::TimeZone};
use serde::Serialize;

use crate::{
    catalog::Backup,
    policy::Retention,
    record::{BackupId, ProofLevel},
};

/// The reason for which a backup stays that a person pinned.
pub const HELD: &str = "held";

/// The reason for which a backup stays that a reader has open.
pub const IN_USE: &str = "in use";

/// Time without a backup after which a person is asked: 30 days.
pub const MAX_GAP: SignedDuration = SignedDuration::from_hours(30 * 24);

/// Whether a person pinned a backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Hold {
    /// Nobody did.
    #[default]
    Never,
    /// It is held.
    Held,
    /// It was held, and somebody said that it may go.
    Released,
}

/// What retention has to know of one backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// The directory's name.
    pub id: BackupId,
    /// The signed time; where `trusted` is false it orders the answer and decides nothing.
    pub created_at: Timestamp,
    /// How far it was proved, `None` after a failed proof.
    pub level: ProofLevel,
    /// Every listed file is there at its recorded size, and there is a primary.
    pub complete: bool,
    /// Whether a person pinned it.
    pub hold: Hold,
    /// A reader has it open.
    pub in_use: bool,
    /// A trusted key signed it, under this name and for this store.
    pub trusted: bool,
    /// It lacks something, as its index says; it may be proved all the same.
    pub partial: bool,
}

impl From<&Backup> for Candidate {
    /// Nobody is asked whether it is held or in use; `ops::prune` does.
    fn from(backup: &Backup) -> Self {
        Self {
            id: backup.dir_name.clone(),
            created_at: backup.time(),
            level: backup.level(),
            complete: backup.is_complete(),
            hold: Hold::Never,
            in_use: false,
            trusted: backup.signed().is_some(),
            partial: backup.signed().is_some_and(|signed| signed.index.partial),
        }
    }
}

impl Candidate {
    /// The level at which it is proved; `None` where something of it is missing.
    fn proved(&self) -> ProofLevel {
        if self.trusted && self.complete { self.level } else { ProofLevel::None }
    }
}

/// What becomes of a backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// It stays.
    Keep,
    /// It is removed.
    Drop,
}

/// One backup's fate, with every rule that spoke.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Decision {
    /// The backup.
    pub id: BackupId,
    /// What becomes of it.
    pub action: Action,
    /// Why, in words; never empty.
    pub reasons: Vec<String>,
}

/// Why nothing is decided.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The clock is behind the newest backup.
    #[error("the clock says {now}, and backup {newest} was made at {created_at}")]
    ClockBehind {
        /// The newest backup.
        newest: BackupId,
        /// Its signed time.
        created_at: Timestamp,
        /// What the clock says.
        now: Timestamp,
    },
    /// For a long time there was no backup, and what was kept over that time would go at once.
    #[error("no backup was made from {from} to {to}, and {drops} of the older ones would be dropped")]
    Gap {
        /// The signed time of the last backup before.
        from: Timestamp,
        /// The signed time of the first backup after, or now.
        to: Timestamp,
        /// How many backups the rules would have dropped at the gap's end and are still here.
        drops: usize,
    },
}

/// Decides for every backup exactly once; oldest first, whatever the order that they come in.
///
/// # Errors
/// [`Refusal`]: then nothing may be dropped. `accept_gap` is a person's word that a gap is known.
pub fn decide(
    backups: &[Candidate],
    rules: &Retention,
    now: Timestamp,
    accept_gap: bool,
) -> Result<Vec<Decision>, Refusal> {
    let mut sorted: Vec<&Candidate> = backups.iter().collect();
    sorted.sort_by_key(|backup| (backup.created_at, &backup.id));
    let trusted: Vec<&Candidate> = sorted.iter().copied().filter(|backup| backup.trusted).collect();
    if let Some(newest) = trusted.last().filter(|newest| newest.created_at > now) {
        return Err(Refusal::ClockBehind { newest: newest.id.clone(), created_at: newest.created_at, now });
    }
    if !accept_gap {
        refuse_gaps(&trusted, rules, now)?;
    }
    let kept = reasons_to_keep(&trusted, rules, now);
    Ok(sorted.into_iter().map(|backup| decision(backup, &kept, rules)).collect())
}

fn decision(backup: &Candidate, kept: &Reasons<'_>, rules: &Retention) -> Decision {
    let id = backup.id.clone();
    if !backup.trusted {
        return Decision { id, action: Action::Keep, reasons: vec!["not readable: kept and listed".to_owned()] };
    }
    if let Some(reasons) = kept.get(&id) {
        return Decision { id, action: Action::Keep, reasons: reasons.clone() };
    }
    let reason = format!("older than {}, no rule keeps it", words(rules.keep_within));
    Decision { id, action: Action::Drop, reasons: vec![reason] }
}

/// `trusted` is sorted, oldest first.
fn refuse_gaps(trusted: &[&Candidate], rules: &Retention, now: Timestamp) -> Result<(), Refusal> {
    let ends = trusted.iter().skip(1).map(|backup| backup.created_at).chain([now]);
    for (at, (before, to)) in trusted.iter().zip(ends).enumerate() {
        let from = before.created_at;
        if to.duration_since(from) <= MAX_GAP {
            continue;
        }
        // What the rules saw when the gap ended: all that was older, and the backup that ended it.
        let then: Vec<_> = trusted.iter().copied().take(at.saturating_add(2)).collect();
        let kept = reasons_to_keep(&then, rules, to);
        let drops = then.iter().filter(|old| !kept.contains_key(&old.id) && old.hold != Hold::Released).count();
        if drops > 0 {
            return Err(Refusal::Gap { from, to, drops });
        }
    }
    Ok(())
}

type Reasons<'a> = BTreeMap<&'a BackupId, Vec<String>>;

/// Why each of these is kept; what is not in the answer is dropped. `trusted` is sorted, oldest first.
fn reasons_to_keep<'a>(trusted: &[&'a Candidate], rules: &Retention, now: Timestamp) -> Reasons<'a> {
    let mut reasons = Reasons::new();
    let mut keep = |backup: &'a Candidate, reason: String| reasons.entry(&backup.id).or_default().push(reason);

    let keep_within = SignedDuration::try_from(rules.keep_within).unwrap_or(SignedDuration::MAX);
    for backup in trusted {
        if backup.hold == Hold::Held {
            keep(backup, HELD.to_owned());
        }
        if backup.in_use {
            keep(backup, IN_USE.to_owned());
        }
        if now.duration_since(backup.created_at) < keep_within {
            keep(backup, format!("younger than {}", words(rules.keep_within)));
        }
    }

    let proved: Vec<&Candidate> =
        trusted.iter().rev().copied().filter(|backup| backup.proved() > ProofLevel::None).collect();
    if proved.is_empty() {
        for backup in trusted {
            keep(backup, "no backup is proved: nothing is dropped".to_owned());
        }
        return reasons;
    }
    let min = rules.min_proof.max(ProofLevel::Digest);
    for (backup, reason) in floor(&proved, rules.keep_proved.max(1), min) {
        keep(backup, reason);
    }
    let calendar = [
        ("daily", rules.keep_daily, day as fn(Date) -> String),
        ("weekly", rules.keep_weekly, week),
        ("monthly", rules.keep_monthly, month),
    ];
    for (name, count, period) in calendar {
        for (backup, period) in newest_of_each(&proved, count, min, period) {
            keep(backup, format!("{name} {period}"));
        }
    }
    // A member that is away for a week must not cost the last backup that has all of them, nor must a raised minimum.
    let whole = || proved.iter().filter(|backup| !backup.partial);
    let best = whole().map(|backup| backup.proved().min(min)).max();
    if let Some(whole) = whole().find(|backup| Some(backup.proved().min(min)) == best) {
        reasons.entry(&whole.id).or_insert_with(|| vec!["the newest proved one that is whole".to_owned()]);
    }
    reasons
}

/// The floor out of `proved`, which is sorted newest first.
fn floor<'a>(proved: &[&'a Candidate], count: u32, min: ProofLevel) -> Vec<(&'a Candidate, String)> {
    // Above the minimum all are equal; below it the level comes before the age, which a stable sort leaves as it is.
    let mut order = proved.to_vec();
    order.sort_by_key(|backup| std::cmp::Reverse(backup.proved().min(min)));
    let reason = |backup: &Candidate| {
        let level = backup.proved();
        if level >= min {
            format!("one of the {count} newest proved ({min})")
        } else {
            format!("one of the {count} newest proved ({level}: too few reached {min})")
        }
    };
    let count = usize::try_from(count).unwrap_or(usize::MAX);
    order.into_iter().take(count).map(|backup| (backup, reason(backup))).collect()
}

/// Of each of the last `count` periods one out of `proved`, which is sorted newest first.
fn newest_of_each<'a>(
    proved: &[&'a Candidate],
    count: u32,
    min: ProofLevel,
    period: fn(Date) -> String,
) -> Vec<(&'a Candidate, String)> {
    let period = |backup: &Candidate| period(backup.created_at.to_zoned(TimeZone::UTC).date());
    let mut last = BTreeSet::new();
    for backup in proved {
        last.insert(period(backup));
        // Newest first: one more would be older than the last `count`.
        if last.len() > usize::try_from(count).unwrap_or(usize::MAX) {
            last.remove(&period(backup));
            break;
        }
    }
    last.into_iter()
        .rev()
        .filter_map(|wanted| {
            let mut within = proved.iter().copied().filter(|backup| period(backup) == wanted);
            let newest = within.clone().next();
            within.find(|backup| backup.proved() >= min).or(newest).map(|backup| (backup, wanted))
        })
        .collect()
}

fn day(date: Date) -> String {
    date.to_string()
}

fn week(date: Date) -> String {
    let week = date.iso_week_date();
    format!("{}-W{:02}", week.year(), week.week())
}

fn month(date: Date) -> String {
    format!("{:04}-{:02}", date.year(), date.month())
}

/// A duration as the policy spells it, in its largest whole unit.
fn words(duration: Duration) -> String {
    let seconds = duration.as_secs();
    for (unit, length) in [("d", 86_400), ("h", 3_600), ("m", 60)] {
        if seconds >= length && seconds.is_multiple_of(length) {
            return format!("{}{unit}", seconds / length);
        }
    }
    format!("{seconds}s")
}
