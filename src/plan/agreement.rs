//! Whether the members hold the same data, who differs, and whose file a restore uses.
//!
//! A side is a member's live HashKV answer or the file that was streamed from it. Sides are compared at one revision and one compact
//! revision, so that equal means equal; what could not be compared is no pass. A majority is counted over the voting members of the member
//! list, not over those that answered.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    etcd::mvcc::At,
    proof::{Comparison, Measure, Side},
    record::{Agreement, EtcdId},
};

/// A file that may become the primary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ranked {
    /// Its member.
    pub member: EtcdId,
    /// The revision that was read out of it.
    pub revision: i64,
    /// Its place in the order of the streams.
    pub streamed: usize,
}

/// The file with the highest revision; of equals, the one streamed last. `files` are those of voting members that do not lag and whose
/// database is whole.
#[must_use]
pub fn candidate(files: &[Ranked]) -> Option<EtcdId> {
    files.iter().max_by_key(|file| (file.revision, file.streamed)).map(|file| file.member)
}

/// Whose file a restore uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Primary {
    /// This member's.
    Member(EtcdId),
    /// The candidate is not in the majority: this member's, once the members were asked at its revision as well.
    AfterRound(EtcdId),
    /// Nobody's: there is no majority, and a person has to choose.
    Nobody,
}

/// What follows from the comparisons.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judgement {
    /// Of the cluster.
    pub agreement: Agreement,
    /// Of each voting member.
    pub members: BTreeMap<EtcdId, Agreement>,
    /// Whose file a restore uses.
    pub primary: Primary,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Relation {
    Equal,
    Unequal,
    Unknown,
}

/// Judges `comparisons` between the `voting` members of the list. `rounds` are the candidates at whose revision the members were asked, the
/// last one last.
#[must_use]
pub fn judge(voting: &[EtcdId], comparisons: &[Comparison], files: &[Ranked], rounds: &[EtcdId]) -> Judgement {
    let relation = |a: EtcdId, b: EtcdId| relation(comparisons, a, b);
    let majority = majority(voting, &relation);
    let unequal = comparisons.iter().any(|comparison| !comparison.measure.is_equal());
    let candidate = rounds.last().copied();
    if let [only] = voting {
        let agreement = match relation(*only, *only) {
            Relation::Equal => Agreement::Single,
            Relation::Unequal => Agreement::Differs,
            Relation::Unknown => Agreement::NotComparable,
        };
        let primary = if agreement == Agreement::Differs { Primary::Nobody } else { of(candidate) };
        return Judgement { agreement, members: [(*only, agreement)].into(), primary };
    }
    let member = |id: EtcdId| {
        if majority.contains(&id) {
            return Agreement::Agrees;
        }
        let others: Vec<EtcdId> =
            if majority.is_empty() { voting.to_vec() } else { majority.iter().copied().collect() };
        let differs = others.into_iter().chain([id]).any(|other| relation(id, other) == Relation::Unequal);
        if differs { Agreement::Differs } else { Agreement::NotComparable }
    };
    let agreement = match (unequal, majority.is_empty()) {
        (true, _) => Agreement::Differs,
        (false, false) => Agreement::Agrees,
        (false, true) => Agreement::NotComparable,
    };
    let primary = match candidate {
        Some(candidate) if majority.contains(&candidate) => Primary::Member(candidate),
        _ => {
            let of_majority: Vec<Ranked> =
                files.iter().copied().filter(|file| majority.contains(&file.member)).collect();
            match self::candidate(&of_majority) {
                Some(highest) if rounds.contains(&highest) => Primary::Member(highest),
                Some(highest) => Primary::AfterRound(highest),
                None => Primary::Nobody,
            }
        }
    };
    Judgement { agreement, members: voting.iter().map(|id| (*id, member(*id))).collect(), primary }
}

fn of(member: Option<EtcdId>) -> Primary {
    member.map_or(Primary::Nobody, Primary::Member)
}

fn relation(comparisons: &[Comparison], a: EtcdId, b: EtcdId) -> Relation {
    let between = |comparison: &&Comparison| {
        let pair = (comparison.a.member(), comparison.b.member());
        pair == (a, b) || pair == (b, a)
    };
    let mut relation = Relation::Unknown;
    for comparison in comparisons.iter().filter(between) {
        if !comparison.measure.is_equal() {
            return Relation::Unequal;
        }
        relation = Relation::Equal;
    }
    relation
}

/// The members that are equal to each other and more than half of all; empty where there are none. A member whose file is not what the
/// member itself answers is in no majority.
fn majority(voting: &[EtcdId], relation: &impl Fn(EtcdId, EtcdId) -> Relation) -> BTreeSet<EtcdId> {
    let sane = |id: &EtcdId| relation(*id, *id) != Relation::Unequal;
    for first in voting.iter().filter(|id| sane(id)) {
        let mut class = BTreeSet::from([*first]);
        // Equality passes from one to the next: each round adds who equals somebody within, until nobody is added.
        loop {
            let joins = |id: &&EtcdId| {
                !class.contains(id) && sane(id) && class.iter().any(|member| relation(*member, **id) == Relation::Equal)
            };
            let Some(next) = voting.iter().find(joins).copied() else { break };
            class.insert(next);
        }
        let at_odds = class.iter().any(|a| class.iter().any(|b| relation(*a, *b) == Relation::Unequal));
        if !at_odds && class.len() > voting.len() / 2 {
            return class;
        }
    }
    BTreeSet::new()
}

/// What one member holds at a point, and who else holds what.
struct Odds {
    own: u32,
    own_is_file: bool,
    others: BTreeMap<u32, BTreeSet<String>>,
}

/// Why a member differs, as a person needs it: what it holds, what the others hold, and where that was seen.
#[must_use]
pub fn evidence(member: EtcdId, comparisons: &[Comparison], name: &dyn Fn(EtcdId) -> String) -> String {
    let mut beside_hash = String::new();
    let mut by_point: BTreeMap<At, Odds> = BTreeMap::new();
    for comparison in comparisons.iter().filter(|comparison| !comparison.measure.is_equal()) {
        let (mine, other) = match (comparison.a.member() == member, comparison.b.member() == member) {
            (true, _) => (comparison.a, comparison.b),
            (false, true) => (comparison.b, comparison.a),
            (false, false) => continue,
        };
        match comparison.measure {
            Measure::HashKv { at, a, b } => {
                let (own, theirs) = if comparison.a == mine { (a, b) } else { (b, a) };
                let own_is_file = matches!(mine, Side::File(_));
                let odds = by_point.entry(at).or_insert(Odds { own, own_is_file, others: BTreeMap::new() });
                let who = if other.member() == member { "the member itself".to_owned() } else { name(other.member()) };
                odds.others.entry(theirs).or_default().insert(who);
            }
            Measure::Auth { .. } => {
                beside_hash = format!("its users and roles are not those of {}", name(other.member()));
            }
            Measure::Leases { .. } => beside_hash = format!("its leases are not those of {}", name(other.member())),
        }
    }
    // One point says it all; the highest is the last round's.
    let Some((at, odds)) = by_point.pop_last() else { return beside_hash };
    let subject = if odds.own_is_file { "the HashKV of its file" } else { "its HashKV" };
    let others = odds.others.into_iter().map(|(hash, who)| {
        let who: Vec<_> = who.into_iter().collect();
        format!("; {} answered {hash:08x}", who.join(" and "))
    });
    format!("at revision {} {subject} is {:08x}{}", at.revision, odds.own, others.collect::<String>())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::proof::is_confirmed;

    const R: i64 = 100;

    fn id(n: u64) -> EtcdId {
        EtcdId(n)
    }

    fn at() -> At {
        At { revision: R, compact_revision: 5 }
    }

    /// The members' live answers at one point, all compared with the candidate's file and with each other.
    fn round(candidate: u64, file: u32, answers: &[(u64, u32)]) -> Vec<Comparison> {
        let hash = |a, b, x, y| Comparison { a, b, measure: Measure::HashKv { at: at(), a: x, b: y } };
        let mut all = Vec::new();
        for (i, (n, answer)) in answers.iter().enumerate() {
            all.push(hash(Side::File(id(candidate)), Side::Answer(id(*n)), file, *answer));
            for (m, other) in &answers[..i] {
                all.push(hash(Side::Answer(id(*m)), Side::Answer(id(*n)), *other, *answer));
            }
        }
        all
    }

    fn files(list: &[(u64, i64)]) -> Vec<Ranked> {
        let ranked =
            |(streamed, (n, revision)): (usize, &(u64, i64))| Ranked { member: id(*n), revision: *revision, streamed };
        list.iter().enumerate().map(ranked).collect()
    }

    #[test]
    fn the_candidate_is_the_highest_then_the_last() {
        assert_eq!(candidate(&files(&[(1, 9), (2, 12), (3, 12)])), Some(id(3)));
        assert_eq!(candidate(&files(&[(1, 13), (2, 12), (3, 12)])), Some(id(1)));
        assert_eq!(candidate(&[]), None);
    }

    #[test]
    fn three_that_are_equal_agree() {
        let found = judge(
            &[id(1), id(2), id(3)],
            &round(3, 7, &[(1, 7), (2, 7), (3, 7)]),
            &files(&[(1, 9), (2, 9), (3, 9)]),
            &[id(3)],
        );
        assert_eq!(found.agreement, Agreement::Agrees);
        assert!(found.members.values().all(|member| *member == Agreement::Agrees));
        assert_eq!(found.primary, Primary::Member(id(3)));
    }

    #[test]
    fn one_of_three_is_named_and_the_majority_keeps_its_primary() {
        let voting = [id(1), id(2), id(3)];
        let found =
            judge(&voting, &round(3, 7, &[(1, 8), (2, 7), (3, 7)]), &files(&[(1, 9), (2, 9), (3, 9)]), &[id(3)]);
        assert_eq!(found.agreement, Agreement::Differs);
        assert_eq!(
            found.members,
            [(id(1), Agreement::Differs), (id(2), Agreement::Agrees), (id(3), Agreement::Agrees)].into()
        );
        assert_eq!(found.primary, Primary::Member(id(3)));
    }

    #[test]
    fn a_candidate_outside_the_majority_gives_way_after_one_more_round() {
        let voting = [id(1), id(2), id(3)];
        let files = files(&[(1, 8), (2, 9), (3, 10)]);
        let mut seen = round(3, 6, &[(1, 7), (2, 7), (3, 6)]);
        let found = judge(&voting, &seen, &files, &[id(3)]);
        assert_eq!(found.members[&id(3)], Agreement::Differs);
        assert_eq!(found.primary, Primary::AfterRound(id(2)));
        seen.extend(round(2, 7, &[(1, 7), (2, 7), (3, 6)]));
        assert_eq!(judge(&voting, &seen, &files, &[id(3), id(2)]).primary, Primary::Member(id(2)));
    }

    #[test]
    fn two_that_differ_are_both_named_and_neither_is_right() {
        let found = judge(&[id(1), id(2)], &round(2, 7, &[(1, 8), (2, 7)]), &files(&[(1, 9), (2, 9)]), &[id(2)]);
        assert_eq!(found.agreement, Agreement::Differs);
        assert!(found.members.values().all(|member| *member == Agreement::Differs));
        assert_eq!(found.primary, Primary::Nobody);
    }

    #[test]
    fn who_did_not_answer_counts_in_the_majority_and_is_no_pass() {
        let voting = [id(1), id(2), id(3)];
        let two = judge(&voting, &round(3, 7, &[(2, 7), (3, 7)]), &files(&[(2, 9), (3, 9)]), &[id(3)]);
        assert_eq!((two.agreement, two.members[&id(1)]), (Agreement::Agrees, Agreement::NotComparable));
        // The lone survivor: nothing contradicts it, and it is no majority.
        let one = judge(&voting, &round(3, 7, &[(3, 7)]), &files(&[(3, 9)]), &[id(3)]);
        assert_eq!((one.agreement, one.primary), (Agreement::NotComparable, Primary::Nobody));
        assert!(is_confirmed(id(3), &round(3, 7, &[(3, 7)])));
    }

    #[test]
    fn one_member_is_single_only_where_its_own_answer_fits() {
        let files = files(&[(1, 9)]);
        let found = |comparisons: &[Comparison]| judge(&[id(1)], comparisons, &files, &[id(1)]);
        assert_eq!(found(&round(1, 7, &[(1, 7)])).agreement, Agreement::Single);
        assert_eq!(found(&[]).agreement, Agreement::NotComparable);
        assert_eq!(found(&[]).primary, Primary::Member(id(1)));
        assert_eq!(found(&round(1, 7, &[(1, 8)])).agreement, Agreement::Differs);
        assert_eq!(found(&round(1, 7, &[(1, 8)])).primary, Primary::Nobody);
    }

    #[test]
    fn a_file_that_is_not_what_its_member_answers_is_in_no_majority() {
        let voting = [id(1), id(2), id(3)];
        let found =
            judge(&voting, &round(3, 6, &[(1, 7), (2, 7), (3, 7)]), &files(&[(1, 9), (2, 9), (3, 9)]), &[id(3)]);
        assert_eq!(found.members[&id(3)], Agreement::Differs);
        assert_eq!(found.primary, Primary::AfterRound(id(2)));
    }

    #[test]
    fn users_and_leases_count_too() {
        let voting = [id(1), id(2), id(3)];
        let mut seen = round(3, 7, &[(1, 7), (2, 7), (3, 7)]);
        for measure in [Measure::Auth { equal: false }, Measure::Leases { equal: false }] {
            seen.truncate(6);
            seen.push(Comparison { a: Side::File(id(3)), b: Side::File(id(1)), measure });
            seen.push(Comparison { a: Side::File(id(2)), b: Side::File(id(1)), measure });
            let found = judge(&voting, &seen, &files(&[(1, 9), (2, 9), (3, 9)]), &[id(3)]);
            assert_eq!(found.agreement, Agreement::Differs);
            assert!(!evidence(id(1), &seen, &|id| id.to_string()).is_empty());
        }
    }

    #[test]
    fn the_evidence_names_both_hashes_and_all_others() {
        let seen = round(3, 7, &[(1, 8), (2, 7), (3, 7)]);
        let name = |id: EtcdId| format!("m{}", id.0);
        assert_eq!(
            evidence(id(1), &seen, &name),
            "at revision 100 its HashKV is 00000008; m2 and m3 answered 00000007"
        );
        let own = round(3, 6, &[(3, 7)]);
        assert_eq!(
            evidence(id(3), &own, &name),
            "at revision 100 the HashKV of its file is 00000006; the member itself answered 00000007"
        );
    }

    proptest! {
        /// Whatever was compared: who is called right is more than half, and nobody is called right against somebody who is.
        #[test]
        fn nobody_is_right_without_a_majority(hashes in prop::collection::vec(prop::option::of(0_u32..3), 1..7), file in 0_u32..3, candidate in 0_usize..7) {
            let voting: Vec<EtcdId> = (1..=hashes.len() as u64).map(EtcdId).collect();
            let candidate = (candidate % hashes.len()) as u64 + 1;
            let answers: Vec<(u64, u32)> = hashes.iter().zip(1_u64..).filter_map(|(hash, n)| hash.map(|hash| (n, hash))).collect();
            let seen = round(candidate, file, &answers);
            let ranked: Vec<_> = voting.iter().map(|id| Ranked { member: *id, revision: 9, streamed: 0 }).collect();
            let found = judge(&voting, &seen, &ranked, &[EtcdId(candidate)]);
            let right: Vec<_> = voting.iter().filter(|id| matches!(found.members[id], Agreement::Agrees)).collect();
            prop_assert!(right.is_empty() || right.len() > voting.len() / 2);
            let distinct: BTreeSet<u32> = answers.iter().map(|(_, hash)| *hash).chain((!answers.is_empty()).then_some(file)).collect();
            prop_assert_eq!(found.agreement == Agreement::Differs, distinct.len() > 1);
            match found.primary {
                Primary::Member(id) => prop_assert!(voting.len() == 1 || right.contains(&&id)),
                Primary::AfterRound(id) => prop_assert!(right.contains(&&id)),
                Primary::Nobody => prop_assert!(right.is_empty()),
            }
        }
    }
}
