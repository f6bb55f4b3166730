//! Whole databases: opened into a scratch, walked, hashed, and held against each other.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use tokio_util::sync::CancellationToken;

use super::{Answer, Comparison, Expected, Measure, Seen, Side};
use crate::{
    etcd::{
        bbolt::Db,
        mvcc::At,
        survey::{Survey, Wants, survey},
    },
    record::EtcdId,
    seal::{Identities, OpenError},
};

/// A file whose database is whole.
#[derive(Debug, Clone)]
pub struct Examined {
    /// The member that it was streamed from.
    pub member: EtcdId,
    /// What is in it, and what its HashKV at any point follows from.
    pub survey: Survey,
}

/// Examines sealed snapshots one after the other and compares them.
///
/// A database lies in a scratch for as long as it is walked; what is kept of it is 20 bytes a row, and HashKV at any point follows from that.
pub struct Examiner {
    scratch_dir: PathBuf,
    identities: Arc<Identities>,
    cancel: CancellationToken,
    examined: Vec<Examined>,
}

impl Examiner {
    /// An examiner that opens with `identities` and keeps its scratch in the file system of `scratch_dir`.
    #[must_use]
    pub fn new(scratch_dir: PathBuf, identities: Arc<Identities>, cancel: CancellationToken) -> Self {
        Self { scratch_dir, identities, cancel, examined: Vec::new() }
    }

    /// The whole databases so far, in the order in which they were examined.
    #[must_use]
    pub fn examined(&self) -> &[Examined] {
        &self.examined
    }

    /// What is in a member's file, where that was examined and is whole.
    #[must_use]
    pub fn of(&self, member: EtcdId) -> Option<&Examined> {
        self.examined.iter().find(|examined| examined.member == member)
    }

    /// Forgets a member's file: it is gone, or not what it was.
    pub fn forget(&mut self, member: EtcdId) {
        self.examined.retain(|examined| examined.member != member);
    }

    /// Opens a file and compares it with what was streamed, no more.
    ///
    /// # Errors
    /// [`OpenError::Io`], [`OpenError::Interrupted`].
    pub fn open(&self, path: &Path, expected: &Expected) -> Result<Seen, OpenError> {
        super::open(path, expected, &self.identities, &self.cancel)
    }

    /// Opens a member's file, compares it with what was streamed, and walks its database.
    ///
    /// Damage within is [`Seen::Changed`]: whatever the digests say, nothing can be restored from it.
    ///
    /// # Errors
    /// [`OpenError::Io`], [`OpenError::Interrupted`].
    pub fn examine(&mut self, member: EtcdId, path: &Path, expected: Expected) -> Result<Seen, OpenError> {
        self.forget(member);
        let (seen, scratch) =
            super::open_to_scratch(path, &expected, &self.identities, &self.scratch_dir, &self.cancel)?;
        let (Seen::Holds(_), Some(scratch)) = (&seen, scratch) else { return Ok(seen) };
        let surveyed = Db::open(&scratch).map_err(Into::into).and_then(|db| survey(&db, &Wants::default()));
        if self.cancel.is_cancelled() {
            return Err(OpenError::Interrupted);
        }
        match surveyed {
            Err(damage) => return Ok(Seen::Changed(format!("its database is damaged: {damage}"))),
            Ok(survey) => self.examined.push(Examined { member, survey }),
        }
        Ok(seen)
    }

    /// Holds the candidate's file against the members' live answers and against every other file, each at a point that both can compute.
    ///
    /// What one of them compacted away is no point for it; what cannot be compared is left out.
    #[must_use]
    pub fn compare(&self, candidate: EtcdId, answers: &[Answer]) -> Vec<Comparison> {
        let mut found = between_answers(answers);
        let Some(base) = self.of(candidate) else { return found };
        for answer in answers {
            if let Ok(hash) = base.survey.hash_kv_at(answer.at) {
                let measure = Measure::HashKv { at: answer.at, a: hash, b: answer.hash };
                found.push(Comparison { a: Side::File(candidate), b: Side::Answer(answer.member), measure });
            }
        }
        for other in self.examined.iter().filter(|other| other.member != candidate) {
            let sides = |measure| Comparison { a: Side::File(candidate), b: Side::File(other.member), measure };
            found.extend(beside_hash_kv(&base.survey, &other.survey).map(sides));
            let (one, two) = (base.survey.history.own(), other.survey.history.own());
            let at = At {
                revision: one.revision.min(two.revision),
                compact_revision: one.compact_revision.max(two.compact_revision),
            };
            if let (Ok(a), Ok(b)) = (base.survey.hash_kv_at(at), other.survey.hash_kv_at(at)) {
                found.push(sides(Measure::HashKv { at, a, b }));
            }
        }
        found
    }
}

/// What HashKV does not cover: users and roles where both files are at one auth revision, leases where both applied the same raft entries
/// (leases come and go between two streams).
fn beside_hash_kv(a: &Survey, b: &Survey) -> impl Iterator<Item = Measure> {
    let auth = Measure::Auth { equal: a.auth_digest == b.auth_digest };
    let auth = (a.auth.revision == b.auth.revision).then_some(auth);
    let leases = Measure::Leases { equal: a.lease_digest == b.lease_digest };
    let leases = (a.meta.consistent_index == b.meta.consistent_index).then_some(leases);
    auth.into_iter().chain(leases)
}

/// Live answers at one point compare with each other, whatever the files can compute.
fn between_answers(answers: &[Answer]) -> Vec<Comparison> {
    let mut found = Vec::new();
    for (place, one) in answers.iter().enumerate() {
        for other in answers.iter().take(place).filter(|other| other.at == one.at) {
            let measure = Measure::HashKv { at: one.at, a: other.hash, b: one.hash };
            found.push(Comparison { a: Side::Answer(other.member), b: Side::Answer(one.member), measure });
        }
    }
    found
}
