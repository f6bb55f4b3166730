//! The proof of one stored file: read back, opened, examined; taken once more where it fails.

use tokio::task::JoinHandle;

use super::{
    Error, Request,
    discover::{Discovered, Reached},
    take::{self, TakeError, Taken},
};
use crate::{
    durable::PendingDir,
    proof::{self, Examiner, Seen},
    record::{Event, Member, ProofLevel, Reread},
    seal::{OpenError, RunKey},
};

/// What a proof thread gives back: what it saw, and the examiner, which remembers the databases.
type Proved = (Examiner, Result<Seen, OpenError>);

/// One member's file and the proof that is being made of it.
pub struct InHand {
    /// The member's place in the order of the streams.
    pub at: usize,
    taken: Taken,
    proof: JoinHandle<Proved>,
}

/// Re-opens what was stored on a thread of its own; the next stream runs meanwhile.
pub fn begin(
    request: &Request<'_>,
    pending: &PendingDir,
    reached: &Reached,
    at: usize,
    taken: Taken,
    mut examiner: Examiner,
) -> InHand {
    let path = pending.path().join(&taken.file);
    let expected = taken.expected();
    let member = reached.listed.id;
    let cancel = request.cancel.clone();
    let level = if request.recipients.takes_run_key() { request.policy.backup.prove } else { ProofLevel::Digest };
    request.progress.event(Event::Proving { file: &taken.file });
    let proof = tokio::task::spawn_blocking(move || {
        let seen = match level {
            ProofLevel::None | ProofLevel::Digest => proof::digest(&path, expected.sealed_sha256, &cancel)
                .map(|problem| problem.map_or(Seen::WrongKey, Seen::Changed)),
            ProofLevel::Open => examiner.open(&path, &expected),
            ProofLevel::Sound | ProofLevel::Boot | ProofLevel::Serve => examiner.examine(member, &path, expected),
        };
        (examiner, seen)
    });
    InHand { at, taken, proof }
}

/// Waits for a proof that still reads, so that nothing works on in a directory that is about to go.
pub async fn abandon(request: &Request<'_>, in_hand: Option<InHand>) {
    request.cancel.cancel();
    if let Some(held) = in_hand
        && let Err(error) = held.proof.await
    {
        tracing::debug!(%error, "a proof ended with the run");
    }
}

/// Waits for a proof. A file that fails it is taken once more; one that fails again is kept, marked, and proves nothing.
pub async fn settle(
    request: &Request<'_>,
    run_key: &RunKey,
    pending: &PendingDir,
    discovered: &mut Discovered,
    held: InHand,
) -> Result<(Member, Examiner), Error> {
    let InHand { at, mut taken, proof } = held;
    let (mut examiner, mut seen) = joined(proof).await?;
    let Some(reached) = discovered.reached.get_mut(at) else {
        return Err(Error::Internal("a proof belongs to no member".to_owned()));
    };
    if let Some(problem) = problem(&taken, &seen) {
        tracing::warn!(
            member = reached.listed.name,
            problem,
            "the stored snapshot failed its proof and is taken once more"
        );
        match take::take(request, run_key, pending, reached).await {
            Ok(again) => {
                let held = begin(request, pending, reached, at, again, examiner);
                taken = held.taken;
                (examiner, seen) = joined(held.proof).await?;
            }
            // The first file is gone, and the member no longer answers: it is missing, not wrong.
            Err(TakeError::Missing(error)) => {
                examiner.forget(reached.listed.id);
                return Ok((Member { error: Some(error.to_string()), ..reached.member() }, examiner));
            }
            Err(TakeError::Fatal(error)) => return Err(error),
        }
    }
    let (proof, reread, error) = match (problem(&taken, &seen), &seen) {
        (Some(problem), _) => (ProofLevel::None, None, Some(problem)),
        (None, Seen::Holds(reread)) => (ProofLevel::Open, Some(*reread), None),
        (None, _) => (ProofLevel::Digest, None::<Reread>, None),
    };
    if error.is_some() {
        examiner.forget(reached.listed.id);
    }
    Ok((Member { error, proof, reread, ..taken.member(reached) }, examiner))
}

async fn joined(proof: JoinHandle<Proved>) -> Result<(Examiner, Seen), Error> {
    let (examiner, seen) = proof.await.map_err(|error| Error::Internal(error.to_string()))?;
    match seen {
        Ok(seen) => Ok((examiner, seen)),
        Err(OpenError::Interrupted) => Err(Error::Interrupted),
        // Only the scratch is written to: a disk without room for it says nothing about the file.
        Err(OpenError::Io(error)) if error.is_no_space() => {
            Err(Error::DiskFull { path: error.path.display().to_string() })
        }
        // A file that the disk does not give back is not proved; it is no reason to drop the others.
        Err(error) => Ok((examiner, Seen::Changed(error.to_string()))),
    }
}

fn problem(taken: &Taken, seen: &Seen) -> Option<String> {
    if !taken.sealed.plain.trailer_is_right() {
        return Some(proof::trailer_differs(&taken.sealed.plain));
    }
    match seen {
        Seen::Changed(problem) => Some(problem.clone()),
        Seen::Holds(_) | Seen::WrongKey => None,
    }
}
