//! The way back: sealed bytes off the disk, hashed as they come, decrypted, decompressed, handed on.
//!
//! Two threads share the work, since each half costs about the same: the caller's reads, hashes what is sealed, decrypts and decompresses;
//! the other hashes the plaintext and gives it to the sink. [`BUFFERS`] blocks go round between them, and no more are ever made.

use std::{
    fs::File,
    io::{self, BufRead, Read},
    path::Path,
    sync::mpsc::{Receiver, SyncSender, sync_channel},
    thread,
};

use rustix::fs::{Advice, FsWord, Mode, OFlags};
use sha2::{Digest as _, Sha256};
use tokio_util::sync::CancellationToken;

use super::{Identities, Plain, PlainHash};
use crate::{
    at::{At as _, PathError},
    record::{Reread, Sha256Hex},
};

/// Bytes read from the disk at a time.
const BLOCK: usize = 1 << 20;
/// Bytes of plaintext handed on at a time.
const PLAIN_BLOCK: usize = 256 << 10;
/// Blocks of plaintext there are.
const BUFFERS: usize = 8;
/// What `O_DIRECT` wants of buffer, offset and length on every device of today.
const ALIGN: usize = 4096;

/// File systems that answer direct reads from the device and not from a cache of their own (`linux/magic.h`).
const DEVICE_FILE_SYSTEMS: [FsWord; 4] =
    [0xEF53 /* ext2..4 */, 0x5846_5342 /* xfs */, 0x9123_683E /* btrfs */, 0xF2F5_2010 /* f2fs */];

/// Why a sealed file does not open.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The disk gave an error.
    #[error(transparent)]
    Io(#[from] PathError),
    /// None of the identities is among the file's recipients.
    #[error("none of the identities at hand is a recipient of this file")]
    NoMatchingKeys,
    /// age refused the file.
    #[error("it does not decrypt: {0}")]
    Decrypt(String),
    /// age's payload or zstd's frames are damaged or end early.
    #[error("it does not decompress: {0}")]
    Decompress(String),
    /// The caller's cancellation came first.
    #[error("interrupted")]
    Interrupted,
}

/// What a sealed file turned out to be.
#[derive(Debug)]
pub struct Opened {
    /// Bytes on disk.
    pub sealed_bytes: u64,
    /// SHA-256 of the bytes on disk, of all of them, also where opening failed half way.
    pub sealed_sha256: Sha256Hex,
    /// Where they came from.
    pub reread: Reread,
    /// What it opened to.
    pub plain: Result<Plain, OpenError>,
}

/// What takes plaintext, block after block, on a thread of its own.
pub type Sink<'a> = dyn FnMut(&[u8]) -> Result<(), PathError> + Send + 'a;

/// Reads a sealed file from the device where that can be had, hashes it, and opens it with `identities`.
///
/// Reading goes on to the end where opening fails, so that the digest tells a damaged file from a wrong key.
///
/// # Errors
/// [`OpenError::Io`] and [`OpenError::Interrupted`]; all else is in [`Opened::plain`].
pub fn open(path: &Path, identities: &Identities, cancel: &CancellationToken) -> Result<Opened, OpenError> {
    open_into(path, identities, &mut |_| Ok(()), cancel)
}

/// As [`open`], and gives the plaintext to `sink` on the way.
///
/// What the sink got is worth nothing before [`Opened::plain`] is there and its digest is the one that was expected: where opening fails, all
/// that came before the damage was given away already.
///
/// # Errors
/// As [`open`]; [`OpenError::Io`] with the sink's error, which ends the reading at once.
pub fn open_into(
    path: &Path,
    identities: &Identities,
    sink: &mut Sink<'_>,
    cancel: &CancellationToken,
) -> Result<Opened, OpenError> {
    let mut source = Source::open(path, cancel)?;
    let plain = unseal(&mut source, identities, sink)?;
    let (sealed_bytes, sealed_sha256, reread) = source.drain()?;
    Ok(Opened { sealed_bytes, sealed_sha256, reread, plain })
}

/// Size and SHA-256 of a file, read as [`open`] reads it.
///
/// # Errors
/// [`OpenError::Io`], [`OpenError::Interrupted`].
pub fn read_digest(path: &Path, cancel: &CancellationToken) -> Result<(u64, Sha256Hex), OpenError> {
    let (bytes, sha256, _) = Source::open(path, cancel)?.drain()?;
    Ok((bytes, sha256))
}

/// Opens the source, whose own errors it keeps. The outer error is the sink's.
fn unseal(
    source: &mut Source<'_>,
    identities: &Identities,
    sink: &mut Sink<'_>,
) -> Result<Result<Plain, OpenError>, PathError> {
    let path = source.path;
    let mut plaintext = match decoder(source, identities) {
        Ok(plaintext) => plaintext,
        Err(error) => return Ok(Err(error)),
    };
    let (full, filled) = sync_channel(BUFFERS);
    let (spent, empty) = sync_channel(BUFFERS);
    for _ in 0..BUFFERS {
        // There is room for each, so none is refused.
        drop(spent.try_send(Block { bytes: vec![0; PLAIN_BLOCK], length: 0 }));
    }
    thread::scope(|scope| {
        let plaintext_thread = thread::Builder::new().name("plaintext".to_owned());
        let consumer = plaintext_thread.spawn_scoped(scope, move || consume(&filled, &spent, sink)).at(path)?;
        let decoded = decode(&mut plaintext, &full, &empty);
        // The consumer ends when nothing more can come.
        drop(full);
        let plain = consumer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        Ok(decoded.map(|()| plain).map_err(|error| OpenError::Decompress(error.to_string())))
    })
}

fn decoder<'a>(source: &'a mut Source<'_>, identities: &Identities) -> Result<impl Read + 'a, OpenError> {
    let decryptor = age::Decryptor::new_buffered(source).map_err(decrypt_error)?;
    let age = decryptor.decrypt(identities.iter()).map_err(decrypt_error)?;
    zstd::stream::read::Decoder::new(age).map_err(|error| OpenError::Decompress(error.to_string()))
}

/// Plaintext on its way from one thread to the other, or a place for it.
struct Block {
    bytes: Vec<u8>,
    length: usize,
}

impl Block {
    /// Reads until the block is full or the reader at its end.
    fn fill(&mut self, reader: &mut impl Read) -> io::Result<()> {
        self.length = 0;
        while let Some(room) = self.bytes.get_mut(self.length..).filter(|room| !room.is_empty()) {
            match reader.read(room)? {
                0 => break,
                bytes => self.length = self.length.saturating_add(bytes),
            }
        }
        Ok(())
    }

    fn filled(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or_default()
    }
}

/// Fills the blocks that come back. Ends early, and well, where the consumer did: what it met is what counts.
fn decode(plaintext: &mut impl Read, full: &SyncSender<Block>, empty: &Receiver<Block>) -> io::Result<()> {
    for mut block in empty {
        block.fill(plaintext)?;
        if block.length == 0 || full.send(block).is_err() {
            break;
        }
    }
    Ok(())
}

fn consume(filled: &Receiver<Block>, spent: &SyncSender<Block>, sink: &mut Sink<'_>) -> Result<Plain, PathError> {
    let mut plain = PlainHash::default();
    for block in filled {
        plain.update(block.filled());
        sink(block.filled())?;
        // Nobody wants it back where the decoder has ended.
        drop(spent.send(block));
    }
    Ok(plain.finish())
}

fn decrypt_error(error: age::DecryptError) -> OpenError {
    match error {
        age::DecryptError::NoMatchingKeys => OpenError::NoMatchingKeys,
        other => OpenError::Decrypt(other.to_string()),
    }
}

/// A file read in large blocks past the page cache, each block hashed once when it arrives.
struct Source<'a> {
    path: &'a Path,
    cancel: &'a CancellationToken,
    file: File,
    /// One block, with room to begin it at an aligned address.
    buffer: Vec<u8>,
    start: usize,
    filled: usize,
    consumed: usize,
    size: u64,
    offset: u64,
    sha: Sha256,
    reread: Reread,
    /// The first error, since the layers above wrap what they are given.
    failed: Option<OpenError>,
}

impl<'a> Source<'a> {
    fn open(path: &'a Path, cancel: &'a CancellationToken) -> Result<Self, OpenError> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let open = |flags| rustix::fs::open(path, flags, Mode::empty()).map(File::from).map_err(io::Error::from);
        let mut direct = true;
        let file = open(flags | OFlags::DIRECT).or_else(|_| {
            direct = false;
            open(flags)
        });
        let file = file.at(path)?;
        let size = file.metadata().at(path)?.len();
        if !direct {
            // What is clean leaves the cache: the next read asks the file system again.
            rustix::fs::fadvise(&file, 0, None, Advice::DontNeed).map_err(io::Error::from).at(path)?;
        }
        let on_device = rustix::fs::fstatfs(&file).is_ok_and(|fs| DEVICE_FILE_SYSTEMS.contains(&fs.f_type));
        let reread = if direct && on_device { Reread::Device } else { Reread::Cache };
        let buffer = vec![0; BLOCK.saturating_add(ALIGN)];
        let start = buffer.as_ptr().align_offset(ALIGN).min(ALIGN);
        let sha = Sha256::new();
        Ok(Self {
            path,
            cancel,
            file,
            buffer,
            start,
            filled: 0,
            consumed: 0,
            size,
            offset: 0,
            sha,
            reread,
            failed: None,
        })
    }

    fn refill(&mut self) -> Result<(), OpenError> {
        if self.cancel.is_cancelled() {
            return Err(OpenError::Interrupted);
        }
        self.consumed = 0;
        self.filled = 0;
        // An unaligned read behind the last block is an error under O_DIRECT, so the end is known from the size.
        if self.offset >= self.size {
            return Ok(());
        }
        let end = self.start.saturating_add(BLOCK);
        let block = self.buffer.get_mut(self.start..end).unwrap_or_default();
        let bytes = loop {
            match self.file.read(block) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => break result.at(self.path)?,
            }
        };
        if bytes == 0 {
            self.size = self.offset;
        }
        self.filled = bytes;
        self.offset = self.offset.saturating_add(bytes as u64);
        self.sha.update(block.get(..bytes).unwrap_or_default());
        Ok(())
    }

    /// Reads what is left, so that the digest covers the whole file.
    fn drain(mut self) -> Result<(u64, Sha256Hex, Reread), OpenError> {
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        while self.offset < self.size {
            self.refill()?;
        }
        Ok((self.offset, Sha256Hex(self.sha.finalize().into()), self.reread))
    }
}

impl BufRead for Source<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.failed.is_some() {
            return Err(io::Error::other("an earlier read failed"));
        }
        if self.consumed >= self.filled
            && let Err(error) = self.refill()
        {
            let text = error.to_string();
            self.failed = Some(error);
            return Err(io::Error::other(text));
        }
        let from = self.start.saturating_add(self.consumed);
        let to = self.start.saturating_add(self.filled);
        Ok(self.buffer.get(from..to).unwrap_or_default())
    }

    fn consume(&mut self, bytes: usize) {
        self.consumed = self.consumed.saturating_add(bytes).min(self.filled);
    }
}

impl Read for Source<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let bytes = self.fill_buf()?.read(buffer)?;
        self.consume(bytes);
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use proptest::prelude::*;

    use super::*;
    use crate::seal::{Recipients, RunKey, Sealer, generate_identity};

    fn sealed(plain: &[u8]) -> (tempfile::TempDir, std::sync::Arc<Identities>, crate::seal::Sealed) {
        let dir = tempfile::tempdir().unwrap();
        let (_, recipient) = generate_identity(jiff::Timestamp::UNIX_EPOCH);
        let recipients = Recipients::parse(&[recipient]).unwrap();
        let run = RunKey::generate();
        let file = crate::durable::create_file(&dir.path().join("x")).unwrap();
        let mut sealer = Sealer::new(file, recipients.encryptor(Some(&run)).unwrap(), 3, 2).unwrap();
        for chunk in plain.chunks(1000) {
            sealer.update(chunk).unwrap();
        }
        (dir, run.identities(), sealer.finish().unwrap())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(12))]
        #[test]
        fn what_is_sealed_opens_to_the_same(seed in any::<u64>(), length in 0_usize..3_000_000) {
            let plain: Vec<u8> = (0..length as u64).map(|i| (i.wrapping_mul(seed) >> 29).to_le_bytes()[0]).collect();
            let (dir, identities, sealed) = sealed(&plain);
            let mut given = Vec::new();
            let mut sink = |bytes: &[u8]| {
                given.extend_from_slice(bytes);
                Ok(())
            };
            let opened = open_into(&dir.path().join("x"), &identities, &mut sink, &CancellationToken::new()).unwrap();
            prop_assert!(given == plain, "the sink got {} bytes, {} were sealed", given.len(), plain.len());
            prop_assert_eq!(opened.plain.unwrap(), sealed.plain);
            prop_assert_eq!((opened.sealed_bytes, opened.sealed_sha256), (sealed.bytes, sealed.sha256));
        }
    }

    #[test]
    fn no_flipped_byte_and_no_cut_passes() {
        let plain: Vec<u8> = (0..200_000_u32).flat_map(u32::to_le_bytes).collect();
        let (dir, identities, sealed) = sealed(&plain);
        let path = dir.path().join("x");
        let good = fs::read(&path).unwrap();
        let cancel = CancellationToken::new();
        for place in (0..good.len()).step_by(good.len() / 60) {
            let mut bad = good.clone();
            bad[place] ^= 0x10;
            fs::write(&path, &bad).unwrap();
            let mut given = Vec::new();
            let mut sink = |bytes: &[u8]| {
                given.extend_from_slice(bytes);
                Ok(())
            };
            let opened = open_into(&path, &identities, &mut sink, &cancel).unwrap();
            assert!(opened.plain.is_err(), "a flip at {place} opened");
            assert!(plain.starts_with(&given), "a flip at {place} gave other bytes");
            assert_ne!(opened.sealed_sha256, sealed.sha256);
            assert_eq!(opened.sealed_bytes, sealed.bytes);
            fs::write(&path, &good[..place]).unwrap();
            assert!(open(&path, &identities, &cancel).unwrap().plain.is_err(), "a cut at {place} opened");
        }
        fs::write(&path, &good).unwrap();
        let stranger = RunKey::generate().identities();
        let opened = open(&path, &stranger, &cancel).unwrap();
        assert!(matches!(opened.plain, Err(OpenError::NoMatchingKeys)));
        assert_eq!(opened.sealed_sha256, sealed.sha256);
        cancel.cancel();
        assert!(matches!(open(&path, &identities, &cancel), Err(OpenError::Interrupted)));
    }

    /// More plaintext than there are blocks for, from one whole file.
    fn long() -> (tempfile::TempDir, std::sync::Arc<Identities>, std::path::PathBuf) {
        let plain: Vec<u8> = (0..3_000_000_u32).flat_map(|i| i.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
        assert!(plain.len() > 3 * BUFFERS * PLAIN_BLOCK);
        let (dir, identities, _) = sealed(&plain);
        let path = dir.path().join("x");
        (dir, identities, path)
    }

    #[test]
    fn an_error_of_the_sink_ends_the_reading_and_comes_back() {
        let (_dir, identities, path) = long();
        for good in [0, 1, 20, 1_000_000] {
            let mut left = good;
            let mut sink = |_: &[u8]| {
                let full = || io::Error::from(io::ErrorKind::StorageFull);
                left = i32::checked_sub(left, 1).filter(|left| *left >= 0).ok_or_else(full).at(Path::new("sink"))?;
                Ok(())
            };
            let opened = open_into(&path, &identities, &mut sink, &CancellationToken::new());
            if good == 1_000_000 {
                opened.unwrap().plain.unwrap();
            } else {
                let Err(OpenError::Io(error)) = opened else { panic!("{opened:?} after {good} blocks") };
                assert!(error.is_no_space() && error.path == Path::new("sink"), "{error}");
            }
        }
    }

    #[test]
    fn a_cancellation_half_way_is_an_interruption() {
        let (_dir, identities, path) = long();
        let cancel = CancellationToken::new();
        let mut sink = |_: &[u8]| {
            cancel.cancel();
            Ok(())
        };
        assert!(matches!(open_into(&path, &identities, &mut sink, &cancel), Err(OpenError::Interrupted)));
    }
}
