//! The way back: sealed bytes off the disk, hashed as they come, decrypted, decompressed, handed on.

use std::{
    fs::File,
    io::{self, BufRead, Read},
    path::Path,
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

/// Reads a sealed file from the device where that can be had, hashes it, and opens it with `identities`.
///
/// Reading goes on to the end where opening fails, so that the digest tells a damaged file from a wrong key.
///
/// # Errors
/// [`OpenError::Io`] and [`OpenError::Interrupted`]; all else is in [`Opened::plain`].
pub fn open(path: &Path, identities: &Identities, cancel: &CancellationToken) -> Result<Opened, OpenError> {
    let mut source = Source::open(path, cancel)?;
    let plain = unseal(&mut source, identities);
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

fn unseal(source: &mut Source<'_>, identities: &Identities) -> Result<Plain, OpenError> {
    let decryptor = age::Decryptor::new_buffered(&mut *source).map_err(decrypt_error)?;
    let age = decryptor.decrypt(identities.iter()).map_err(decrypt_error)?;
    let decompress_error = |error: io::Error| OpenError::Decompress(error.to_string());
    let mut zstd = zstd::stream::read::Decoder::new(age).map_err(decompress_error)?;
    let mut plain = PlainHash::default();
    let mut buffer = vec![0; 256 << 10];
    loop {
        match zstd.read(&mut buffer).map_err(decompress_error)? {
            0 => return Ok(plain.finish()),
            bytes => plain.update(buffer.get(..bytes).unwrap_or_default()),
        }
    }
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
            let opened = open(&dir.path().join("x"), &identities, &CancellationToken::new()).unwrap();
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
            let opened = open(&path, &identities, &cancel).unwrap();
            assert!(opened.plain.is_err(), "a flip at {place} opened");
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
}
