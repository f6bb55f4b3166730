//! The pipe and back: plaintext through SHA-256, zstd (with its checksum) and age to disk, and from disk to plaintext again.
//!
//! This is the one place that finishes streams: a layer that is not finished leaves a truncated file that looks whole. What it writes opens
//! with stock `age -d | zstd -d`. Work here is synchronous and belongs on a blocking thread.

mod keys;
mod reader;

use std::{
    fs::File,
    io::{self, Write},
};

use age::stream::StreamWriter;
use sha2::{Digest as _, Sha256};
use zstd::stream::{raw::CParameter, write::Encoder};

pub use keys::{Identities, KeyError, Recipients, RunKey, generate_identity};
pub use reader::{OpenError, Opened, Sink, open, open_into, read_digest};

use crate::record::Sha256Hex;

/// Bytes of the SHA-256 that etcd sends behind a snapshot's data.
const TRAILER: usize = 32;

/// Bytes that one zstd worker compresses at a time. The default for level 3 is 8 MiB; with two workers that alone would be a third of the
/// memory that a run may use.
const ZSTD_JOB: u32 = 2 << 20;

/// What plaintext amounted to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plain {
    /// All bytes.
    pub bytes: u64,
    /// SHA-256 of all bytes.
    pub sha256: Sha256Hex,
    /// SHA-256 of all bytes but the last 32: what a snapshot's trailer must say.
    pub body_sha256: Sha256Hex,
    /// The last 32 bytes; null in a shorter stream.
    pub trailer: Option<Sha256Hex>,
}

impl Plain {
    /// Whether the last 32 bytes are the SHA-256 of what stands before them, behind data of whole disk blocks (etcd-format.md, 5).
    #[must_use]
    pub fn trailer_is_right(&self) -> bool {
        self.trailer == Some(self.body_sha256) && self.bytes % 512 == 32
    }
}

/// Hashes plaintext once for both digests of [`Plain`].
#[derive(Debug, Clone)]
pub struct PlainHash {
    /// Covers everything but `tail`.
    body: Sha256,
    tail: Vec<u8>,
    bytes: u64,
}

impl Default for PlainHash {
    fn default() -> Self {
        Self { body: Sha256::new(), tail: Vec::with_capacity(2 * TRAILER), bytes: 0 }
    }
}

impl PlainHash {
    /// Takes the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.bytes = self.bytes.saturating_add(bytes.len() as u64);
        let (body, tail) = bytes.split_at(bytes.len().saturating_sub(TRAILER));
        if !body.is_empty() {
            self.body.update(&self.tail);
            self.body.update(body);
            self.tail.clear();
        }
        self.tail.extend_from_slice(tail);
        if let Some(surplus) = self.tail.len().checked_sub(TRAILER) {
            self.body.update(self.tail.drain(..surplus).as_slice());
        }
    }

    /// Both digests.
    #[must_use]
    pub fn finish(self) -> Plain {
        let body_sha256 = Sha256Hex(self.body.clone().finalize().into());
        let sha256 = Sha256Hex(self.body.chain_update(&self.tail).finalize().into());
        let trailer = self.tail.try_into().ok().map(Sha256Hex);
        Plain { bytes: self.bytes, sha256, body_sha256, trailer }
    }
}

/// What was sealed, once it is on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sealed {
    /// What went in.
    pub plain: Plain,
    /// Bytes on disk.
    pub bytes: u64,
    /// SHA-256 of the bytes on disk, taken while they were written.
    pub sha256: Sha256Hex,
}

/// Seals what is written to it. [`Sealer::finish`] is compulsory.
pub struct Sealer {
    plain: PlainHash,
    zstd: Encoder<'static, StreamWriter<HashingWriter>>,
}

impl Sealer {
    /// Begins a sealed file in the empty `file`.
    ///
    /// `level` is zstd's; with `workers` above one, zstd compresses on as many threads of its own.
    ///
    /// # Errors
    /// What the disk says, or zstd of its parameters.
    pub fn new(file: File, encryptor: age::Encryptor, level: i32, workers: u32) -> io::Result<Self> {
        let age = encryptor.wrap_output(HashingWriter { file, sha: Sha256::new(), bytes: 0 })?;
        let mut zstd = Encoder::new(age, level)?;
        zstd.include_checksum(true)?;
        if workers > 1 {
            zstd.multithread(workers)?;
            zstd.set_parameter(CParameter::JobSize(ZSTD_JOB))?;
        }
        Ok(Self { plain: PlainHash::default(), zstd })
    }

    /// Seals the next bytes.
    ///
    /// # Errors
    /// What the disk says.
    pub fn update(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.plain.update(bytes);
        self.zstd.write_all(bytes)
    }

    /// Finishes each layer and makes the file durable.
    ///
    /// # Errors
    /// What the disk says; the file is worthless then.
    pub fn finish(self) -> io::Result<Sealed> {
        let writer = self.zstd.finish()?.finish()?;
        writer.file.sync_all()?;
        Ok(Sealed { plain: self.plain.finish(), bytes: writer.bytes, sha256: Sha256Hex(writer.sha.finalize().into()) })
    }
}

/// Hashes the sealed bytes on their way to the disk.
struct HashingWriter {
    file: File,
    sha: Sha256,
    bytes: u64,
}

impl Write for HashingWriter {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let written = self.file.write(buffer)?;
        if let Some(done) = buffer.get(..written) {
            self.sha.update(done);
        }
        self.bytes = self.bytes.saturating_add(written as u64);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sha256(bytes: &[u8]) -> Sha256Hex {
        Sha256Hex(Sha256::digest(bytes).into())
    }

    proptest! {
        #[test]
        fn both_digests_are_right_however_the_bytes_arrive(bytes in prop::collection::vec(any::<u8>(), 0..300), cuts in prop::collection::vec(0_usize..300, 0..8)) {
            let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let mut hash = PlainHash::default();
            for pair in cuts.windows(2) {
                hash.update(&bytes[pair[0]..pair[1]]);
            }
            let plain = hash.finish();
            let body = bytes.len().saturating_sub(32);
            prop_assert_eq!(plain.bytes, bytes.len() as u64);
            prop_assert_eq!(plain.sha256, sha256(&bytes));
            prop_assert_eq!(plain.body_sha256, sha256(&bytes[..body]));
            prop_assert_eq!(plain.trailer, bytes[body..].try_into().ok().map(Sha256Hex));
        }
    }

    #[test]
    fn a_trailer_is_right_when_it_is_the_digest_of_whole_blocks() {
        let mut data = vec![7; 4096];
        data.extend(Sha256::digest(&data));
        let digest = |bytes: &[u8]| {
            let mut hash = PlainHash::default();
            hash.update(bytes);
            hash.finish()
        };
        assert!(digest(&data).trailer_is_right());
        assert!(!digest(&data[..4096]).trailer_is_right());
        data[0] ^= 1;
        assert!(!digest(&data).trailer_is_right());
    }
}
