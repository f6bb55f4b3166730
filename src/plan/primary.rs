//! Which member's file a restore uses, and who is too far behind to be asked for it.

use crate::record::{EtcdId, Member, ProofLevel};

/// The members that are more than `max_lag` revisions behind the highest, with how many they are behind.
///
/// `revisions` are what the members' Status said, asked of all of them at once.
#[must_use]
pub fn lagging(revisions: &[(EtcdId, i64)], max_lag: u64) -> Vec<(EtcdId, u64)> {
    let highest = revisions.iter().map(|(_, revision)| *revision).max().unwrap_or(0);
    let behind = |revision: i64| u64::try_from(highest.saturating_sub(revision)).unwrap_or(0);
    revisions.iter().map(|(id, revision)| (*id, behind(*revision))).filter(|(_, behind)| *behind > max_lag).collect()
}

/// The member whose file a restore uses: of the voting members that do not lag, the highest proof, then the highest revision, then the one
/// streamed last (`members` are in the order of their streams). A file that failed its proof is never it; null where no file is left.
#[must_use]
pub fn primary<'a>(members: &'a [Member], lagging: &[EtcdId]) -> Option<&'a Member> {
    let eligible = |member: &&Member| {
        member.file.is_some() && !member.learner && member.proof > ProofLevel::None && !lagging.contains(&member.id)
    };
    members.iter().filter(eligible).max_by_key(|member| (member.proof, member.status_revision))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(id: u64, revision: i64, proof: ProofLevel) -> Member {
        let json = serde_json::json!({
            "name": format!("m{id}"), "id": format!("{id:x}"), "learner": false, "status_revision": revision,
            "file": "x", "proof": proof,
        });
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn only_who_is_behind_by_more_than_the_limit_lags() {
        let revisions = [(EtcdId(1), 5_000), (EtcdId(2), 4_000), (EtcdId(3), 3_999)];
        assert_eq!(lagging(&revisions, 1_000), [(EtcdId(3), 1_001)]);
        assert_eq!(lagging(&revisions, 0), [(EtcdId(2), 1_000), (EtcdId(3), 1_001)]);
        assert_eq!(lagging(&[], 0), []);
        assert_eq!(lagging(&[(EtcdId(1), i64::MIN), (EtcdId(2), i64::MAX)], 0).len(), 1);
    }

    #[test]
    fn the_primary_has_the_highest_proof_then_revision_then_came_last() {
        use ProofLevel::{Digest, None, Open};
        let chosen = |members: &[Member], lagging: &[EtcdId]| primary(members, lagging).map(|member| member.id.0);
        let members = [member(1, 9, Open), member(2, 9, Open), member(3, 8, Open)];
        assert_eq!(chosen(&members, &[]), Some(2));
        assert_eq!(chosen(&members, &[EtcdId(2)]), Some(1), "a lagging member is never primary");
        assert_eq!(chosen(&[member(1, 9, None), member(2, 3, Open), member(3, 9, Digest)], &[]), Some(2));
        assert_eq!(chosen(&[member(1, 9, None)], &[]), Option::None, "nothing that failed its proof");
        let learner = Member { learner: true, ..member(1, 9, Open) };
        assert_eq!(chosen(&[learner], &[]), Option::None);
        let missing = Member { file: Option::None, ..member(1, 9, Open) };
        assert_eq!(chosen(&[missing], &[]), Option::None);
    }
}
