//! One member's stream to one sealed file.

use std::{fs, num::NonZero, time::Instant};

use tokio::sync::mpsc;

use super::{Error, Request, discover::Reached};
use crate::{
    at::{At as _, PathError, is_no_space},
    durable::{self, PendingDir},
    endpoint::{self, SnapshotStream, Verdict},
    proof::Expected,
    record::{Event, Member, Seconds, Sha256Hex},
    seal::{RunKey, Sealed, Sealer},
};

/// Bytes that are handed to the sealer at a time. etcd sends 32 KiB a message; a thread woken for each of them costs more than its work.
const GULP: usize = 512 << 10;

/// Gulps that may wait for the sealer: enough to bridge a flush, too few to count in memory.
const QUEUE: usize = 4;

/// Messages as they came; `None` ends a whole stream.
type Gulp = Option<Vec<Vec<u8>>>;

/// A member's snapshot, sealed and on the disk.
pub struct Taken {
    /// The sealed file's name.
    pub file: String,
    /// What was written.
    pub sealed: Sealed,
    /// The SHA-256 that etcd sent.
    pub trailer: Option<Sha256Hex>,
    seconds: Seconds,
}

impl Taken {
    /// What a proof must find.
    pub fn expected(&self) -> Expected {
        Expected {
            sealed_bytes: self.sealed.bytes,
            sealed_sha256: self.sealed.sha256,
            plain_bytes: self.sealed.plain.bytes,
            plain_sha256: self.sealed.plain.sha256,
        }
    }

    /// The index's entry before its proof.
    pub fn member(&self, reached: &Reached) -> Member {
        Member {
            file: Some(self.file.clone()),
            plain_bytes: Some(self.sealed.plain.bytes),
            sealed_bytes: Some(self.sealed.bytes),
            plain_sha256: Some(self.sealed.plain.sha256),
            sealed_sha256: Some(self.sealed.sha256),
            trailer_sha256: self.trailer,
            seconds: Some(self.seconds),
            ..reached.member()
        }
    }
}

/// Why there is no file.
pub enum TakeError {
    /// The member's fault; the run goes on with the others.
    Missing(endpoint::Error),
    /// The run ends.
    Fatal(Error),
}

impl From<PathError> for TakeError {
    fn from(error: PathError) -> Self {
        Self::Fatal(no_space_or(error))
    }
}

fn no_space_or(error: PathError) -> Error {
    if is_no_space(&error.source) { Error::DiskFull { path: error.path.display().to_string() } } else { error.into() }
}

/// Streams one member, once more where the stream broke off. What failed leaves no file.
pub async fn take(
    request: &Request<'_>,
    run_key: &RunKey,
    pending: &PendingDir,
    reached: &mut Reached,
) -> Result<Taken, TakeError> {
    let mut first = true;
    loop {
        let result = attempt(request, run_key, pending, reached).await;
        request.progress.event(Event::StreamFinished { member: &reached.listed.name });
        match result {
            Err(TakeError::Missing(error)) if first && error.verdict() == Verdict::Retry => {
                tracing::warn!(member = reached.listed.name, %error, "the stream broke off; it is asked for once more");
            }
            Err(TakeError::Missing(error)) if error.verdict() == Verdict::Fatal => {
                return Err(TakeError::Fatal(error.into()));
            }
            other => return other,
        }
        first = false;
    }
}

async fn attempt(
    request: &Request<'_>,
    run_key: &RunKey,
    pending: &PendingDir,
    reached: &mut Reached,
) -> Result<Taken, TakeError> {
    let began = Instant::now();
    let path = pending.path().join(&reached.file);
    if path.exists() {
        fs::remove_file(&path).at(&path)?;
    }
    let member = reached.listed.name.as_str();
    request.progress.event(Event::StreamStarted { member, bytes: reached.status.db_size });
    let stream = tokio::select! {
        stream = reached.client.snapshot() => stream.map_err(TakeError::Missing)?,
        () = request.cancel.cancelled() => return Err(TakeError::Fatal(Error::Interrupted)),
    };
    let file = durable::create_file(&path)?;
    let encryptor = request.recipients.encryptor(Some(run_key)).map_err(|error| TakeError::Fatal(error.into()))?;
    let level = request.policy.backup.zstd_level;
    let (gulps, mut queue) = mpsc::channel::<Gulp>(QUEUE);
    let sealing = tokio::task::spawn_blocking(move || {
        let mut sealer = Sealer::new(file, encryptor, level, zstd_workers())?;
        // A channel that closes without the end belongs to a stream that broke off.
        while let Some(gulp) = queue.blocking_recv() {
            match gulp {
                Some(messages) => messages.iter().try_for_each(|message| sealer.update(message))?,
                None => return sealer.finish().map(Some),
            }
        }
        Ok(None)
    });
    let streamed = tokio::select! {
        streamed = pump(request, stream, member, &gulps) => streamed,
        () = request.cancel.cancelled() => Err(TakeError::Fatal(Error::Interrupted)),
    };
    drop(gulps);
    let sealed = sealing.await.map_err(|error| TakeError::Fatal(Error::Internal(error.to_string())))?.at(&path);
    let outcome = match (sealed, streamed) {
        // The disk's error is the cause of the stream's end, not the other way round.
        (Err(error), _) => Err(error.into()),
        (Ok(_), Err(error)) => Err(error),
        (Ok(None), Ok(_)) => Err(TakeError::Fatal(Error::Internal("the sealer ended before the stream".to_owned()))),
        (Ok(Some(sealed)), Ok(trailer)) => same_member(reached).await.map(|()| Taken {
            file: reached.file.clone(),
            sealed,
            trailer,
            seconds: began.elapsed().into(),
        }),
    };
    if outcome.is_err() {
        fs::remove_file(&path).at(&path)?;
    }
    outcome
}

/// zstd at level 3 is slower than a local stream, and a stream that waits pins pages in the live database: two workers where there are cores.
fn zstd_workers() -> u32 {
    std::thread::available_parallelism().map_or(1, NonZero::get).min(2).try_into().unwrap_or(1)
}

async fn pump(
    request: &Request<'_>,
    mut stream: SnapshotStream,
    member: &str,
    gulps: &mpsc::Sender<Gulp>,
) -> Result<Option<Sha256Hex>, TakeError> {
    let mut gulp = Vec::new();
    let mut bytes = 0_usize;
    loop {
        let message = stream.next().await.map_err(TakeError::Missing)?;
        let ended = message.is_none();
        bytes = bytes.saturating_add(message.as_ref().map_or(0, Vec::len));
        gulp.extend(message);
        if bytes >= GULP || ended {
            request.progress.event(Event::StreamBytes { member, bytes: bytes as u64 });
            let sent = gulps.send(Some(std::mem::take(&mut gulp))).await;
            // A closed queue means that the sealer failed; its own error says why.
            if sent.is_err() || (ended && gulps.send(None).await.is_err()) {
                return Ok(None);
            }
            if ended {
                return Ok(stream.trailer());
            }
            bytes = 0;
        }
    }
}

/// The client reconnects by itself: who answers on this channel after the stream must be who answered before it.
async fn same_member(reached: &mut Reached) -> Result<(), TakeError> {
    let after = reached.client.status().await.map_err(TakeError::Missing)?;
    if after.member == reached.listed.id {
        return Ok(());
    }
    Err(TakeError::Missing(endpoint::Error::Changed {
        endpoint: reached.client.url().to_owned(),
        before: reached.listed.id,
        after: after.member,
    }))
}
