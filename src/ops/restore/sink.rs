//! One database, written to several files at once and read back from each.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread::{self, JoinHandle},
};

use rustix::fs::{Advice, Mode, OFlags};
use tokio_util::sync::CancellationToken;

use crate::{
    at::{At as _, PathError},
    etcd::{bbolt::WriteAt, data_dir},
};

/// What direct I/O wants of memory on every device of today.
const ALIGN: usize = 4096;

/// Chunks that wait for a file while what fills them goes on.
const WAITING: usize = 4;

/// Writes the same chunks to every file, past the page cache where the file system can: three databases would only push out of memory what the
/// host works with, and what is read back shall come from the device.
///
/// Each file has a thread of its own, so that the devices work while the next chunk is made; a slow one is at most [`WAITING`] chunks behind.
pub(super) struct Tee<'a> {
    paths: Vec<PathBuf>,
    /// Until the files are synced.
    writers: Vec<Writer>,
    chunks: Vec<Chunk>,
    cancel: &'a CancellationToken,
    failed: Option<PathError>,
}

/// The thread of a file, and the way to it.
struct Writer {
    blocks: SyncSender<(Arc<Block>, u64)>,
    thread: JoinHandle<Result<(), PathError>>,
}

/// A chunk's bytes, at an aligned place in memory.
struct Block {
    memory: Vec<u8>,
    begin: usize,
}

impl Block {
    fn new(bytes: &[u8]) -> Self {
        let mut memory: Vec<u8> = Vec::with_capacity(bytes.len().saturating_add(ALIGN));
        let begin = memory.as_ptr().align_offset(ALIGN).min(ALIGN);
        memory.resize(begin, 0);
        memory.extend_from_slice(bytes);
        Self { memory, begin }
    }

    fn bytes(&self) -> &[u8] {
        self.memory.get(self.begin..).unwrap_or_default()
    }
}

/// What was written where.
#[derive(Debug, Clone, Copy)]
struct Chunk {
    offset: u64,
    length: usize,
    crc: u32,
}

impl<'a> Tee<'a> {
    /// Creates the files, none of which may exist.
    ///
    /// # Errors
    /// What the system says, with the path.
    pub fn create(paths: Vec<PathBuf>, cancel: &'a CancellationToken) -> Result<Self, PathError> {
        let mut tee = Self { paths, writers: Vec::new(), chunks: Vec::new(), cancel, failed: None };
        for path in &tee.paths {
            let file = data_dir::create_file(path).at(path)?;
            // Where it is not to be had, writing goes through the cache.
            let direct = set_direct(&file, true);
            tracing::debug!(path = %path.display(), direct, "a database is written");
            let (blocks, waiting) = sync_channel(WAITING);
            let (thread, owned) = (thread::Builder::new().name("database".to_owned()), path.clone());
            let thread = thread.spawn(move || write_all(&owned, &file, &waiting)).at(path)?;
            tee.writers.push(Writer { blocks, thread });
        }
        Ok(tee)
    }

    /// The path of the file that failed, and how; the writer above knows only that one did.
    pub fn failure(&mut self) -> Option<PathError> {
        self.failed.take()
    }

    /// Waits for what is on its way, and makes the files durable.
    ///
    /// # Errors
    /// What the system says, with the path.
    pub fn sync(&mut self) -> Result<(), PathError> {
        // All are told that no more comes before the first is waited for.
        let threads: Vec<_> = self.writers.drain(..).map(|writer| writer.thread).collect();
        let results: Vec<_> = threads.into_iter().map(joined).collect();
        results.into_iter().collect()
    }

    /// Reads every file back, from the device where that can be had, and compares it with what was written: which file differs, and where.
    ///
    /// The first goes through the page cache, emptied of it before, since its database is walked at the same time: it is read once for both.
    ///
    /// # Errors
    /// What the system says, with the path.
    pub fn read_back(&self) -> Result<Option<(PathBuf, u64)>, PathError> {
        let differing = each(&self.paths, |path| self.read_one(path, self.paths.first() != Some(path)))?;
        Ok(differing.into_iter().flatten().next())
    }

    fn read_one(&self, path: &Path, direct: bool) -> Result<Option<(PathBuf, u64)>, PathError> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let open = |flags| rustix::fs::open(path, flags, Mode::empty()).map(File::from).map_err(io::Error::from);
        let wanted = if direct { flags | OFlags::DIRECT } else { flags };
        let file = open(wanted).or_else(|_| open(flags)).at(path)?;
        rustix::fs::fadvise(&file, 0, None, Advice::DontNeed).map_err(io::Error::from).at(path)?;
        let longest = self.chunks.iter().map(|chunk| chunk.length).max().unwrap_or(0);
        let mut memory = vec![0; longest.saturating_add(ALIGN)];
        let begin = memory.as_ptr().align_offset(ALIGN).min(ALIGN);
        let length: u64 = self.chunks.iter().map(|chunk| chunk.length as u64).sum();
        if file.metadata().at(path)?.len() != length {
            return Ok(Some((path.to_owned(), length)));
        }
        for chunk in &self.chunks {
            let end = begin.saturating_add(chunk.length);
            let bytes = memory.get_mut(begin..end).unwrap_or_default();
            file.read_exact_at(bytes, chunk.offset).at(path)?;
            if crc32c::crc32c(bytes) != chunk.crc {
                return Ok(Some((path.to_owned(), chunk.offset)));
            }
        }
        Ok(None)
    }
}

impl WriteAt for &mut Tee<'_> {
    fn write_all_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
        if self.cancel.is_cancelled() {
            return Err(io::Error::other("interrupted"));
        }
        self.chunks.push(Chunk { offset, length: bytes.len(), crc: crc32c::crc32c(bytes) });
        let block = Arc::new(Block::new(bytes));
        if self.writers.iter().all(|writer| writer.blocks.send((Arc::clone(&block), offset)).is_ok()) {
            return Ok(());
        }
        // One has ended, and says why.
        let error = self.sync().err();
        let kind = error.as_ref().map_or(io::ErrorKind::Other, |error| error.source.kind());
        self.failed = error;
        Err(kind.into())
    }
}

impl Drop for Tee<'_> {
    fn drop(&mut self) {
        // Nothing is written any more when the caller removes what was. An error here is that of a restore that ended with another.
        if let Err(error) = self.sync() {
            tracing::debug!(%error, "a database that is not kept");
        }
    }
}

/// The work of a file's thread.
fn write_all(path: &Path, file: &File, waiting: &Receiver<(Arc<Block>, u64)>) -> Result<(), PathError> {
    for (block, offset) in waiting {
        write_one(file, block.bytes(), offset).at(path)?;
    }
    file.sync_all().at(path)
}

fn joined<T>(thread: JoinHandle<T>) -> T {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn write_one(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    match file.write_all_at(bytes, offset) {
        // A device of larger blocks, or a file system that takes the flag and not the write.
        Err(error) if error.kind() == io::ErrorKind::InvalidInput && set_direct(file, false) => {
            file.write_all_at(bytes, offset)
        }
        result => result,
    }
}

/// Whether the file has the flag now as it should.
fn set_direct(file: &File, on: bool) -> bool {
    let Ok(flags) = rustix::fs::fcntl_getfl(file) else { return false };
    let flags = if on { flags | OFlags::DIRECT } else { flags - OFlags::DIRECT };
    rustix::fs::fcntl_setfl(file, flags).is_ok()
}

/// Does the same for each on a thread of its own, and waits for all.
fn each<T: Sync, R: Send>(items: &[T], work: impl Fn(&T) -> Result<R, PathError> + Sync) -> Result<Vec<R>, PathError> {
    let [first, others @ ..] = items else { return Ok(Vec::new()) };
    thread::scope(|scope| {
        let others: Vec<_> = others.iter().map(|item| scope.spawn(|| work(item))).collect();
        let mut results = vec![work(first)];
        results.extend(others.into_iter().map(|handle| {
            let gone = || io::Error::other("a thread ended early");
            handle.join().unwrap_or_else(|_panic| Err(gone()).at(Path::new("")))
        }));
        results.into_iter().collect()
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn every_file_gets_every_byte_and_a_changed_one_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let paths: Vec<PathBuf> = (0..3).map(|number| dir.path().join(number.to_string())).collect();
        let cancel = CancellationToken::new();
        let mut tee = Tee::create(paths.clone(), &cancel).unwrap();
        let chunk: Vec<u8> = (0..8192_u32).map(|number| number.to_le_bytes()[0]).collect();
        // Out of order, as the head comes last, and not aligned in memory.
        (&mut tee).write_all_at(&chunk[..4096], 4096).unwrap();
        (&mut tee).write_all_at(&chunk[4096..], 0).unwrap();
        tee.sync().unwrap();
        let whole = [&chunk[4096..], &chunk[..4096]].concat();
        for path in &paths {
            assert_eq!(fs::read(path).unwrap(), whole);
        }
        assert_eq!(tee.read_back().unwrap(), None);
        let mut changed = whole.clone();
        changed[5000] ^= 1;
        fs::write(&paths[2], &changed).unwrap();
        assert_eq!(tee.read_back().unwrap(), Some((paths[2].clone(), 4096)));
        fs::write(&paths[2], &whole[..8000]).unwrap();
        assert_eq!(tee.read_back().unwrap().unwrap().0, paths[2]);
        cancel.cancel();
        assert!((&mut tee).write_all_at(&chunk, 8192).is_err());
    }
}
