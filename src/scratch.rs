//! The encrypted, unlinked copy of a plaintext that must be read at random.
//!
//! A database is examined in the order of its pages' numbers, and a sealed file gives its bytes in one order only. What is opened is therefore
//! laid down once more, in a file that no directory names, under a key that no file holds: when the process ends, however it ends, the
//! kernel frees the blocks, and what they hold was noise without the key.
//!
//! The cipher is AES-256 in counter mode, and the counter of a 16-byte block is its number in the file. That needs no nonce, since each
//! key serves one file; no wrap, since offsets have 64 bits and the counter 128; and a key stream that is used once only, since a
//! [`ScratchWriter`] goes forward and stays in error after its first one.
//!
//! There is no authentication. The digest of the plaintext is taken and compared on its way in, nobody else can open the file, and a device
//! that gives back other bytes than it was given is met by the reader as a damaged database: it can turn a good proof into a bad one.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use aws_lc_rs::{
    cipher::{AES_256, AES_256_KEY_LEN, EncryptingKey, EncryptionContext, UnboundCipherKey},
    iv::FixedLength,
};
use rand::{TryRngCore as _, rngs::OsRng};
use rustix::{
    fs::{Mode, OFlags},
    io::Errno,
};
use zeroize::Zeroizing;

use crate::{
    at::{At as _, PathError, is_no_space},
    etcd::ReadAt,
};

/// Bytes of AES' block: what one count of the counter covers.
const BLOCK: usize = 16;
/// Bytes that are encrypted and written at a time.
const BUFFER: usize = 1 << 20;

/// A plaintext that was written whole, and can be read anywhere from any number of threads.
#[derive(Debug)]
pub struct Scratch {
    file: File,
    cipher: Cipher,
    size: u64,
}

impl Scratch {
    /// Begins a scratch in `dir`, which must be on a file system with room for all of the plaintext: the copy is as large as that.
    ///
    /// The file has mode 0600 and no name; on a file system without `O_TMPFILE` it has one until it is unlinked, while it is still empty.
    ///
    /// # Errors
    /// What the system says of `dir`, or of its random numbers.
    pub fn create(dir: &Path) -> Result<ScratchWriter, PathError> {
        let file = unnamed(dir).at(dir)?;
        let cipher = Cipher::generate().at(dir)?;
        let buffer = Vec::with_capacity(BUFFER);
        Ok(ScratchWriter { file, cipher, dir: dir.to_owned(), buffer, flushed: 0, failed: false })
    }
}

impl ReadAt for Scratch {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let end = u64::try_from(buffer.len()).ok().and_then(|length| offset.checked_add(length));
        if end.is_none_or(|end| end > self.size) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        ReadAt::read_exact_at(&self.file, buffer, offset)?;
        self.cipher.apply(buffer, offset)
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.size)
    }
}

/// Takes a plaintext from its first byte to its last. [`ScratchWriter::finish`] makes it readable; dropping it frees what was written.
#[derive(Debug)]
pub struct ScratchWriter {
    file: File,
    cipher: Cipher,
    /// For words: the file has no path.
    dir: PathBuf,
    /// Plaintext that was not written yet.
    buffer: Vec<u8>,
    /// Bytes that were.
    flushed: u64,
    /// Part of a buffer may be on disk then; encrypting other bytes with the same counters would give both away.
    failed: bool,
}

impl ScratchWriter {
    /// Takes the next bytes.
    ///
    /// # Errors
    /// What the disk says; a full one with how much had gone into it. The writer stays in error.
    pub fn write(&mut self, mut bytes: &[u8]) -> Result<(), PathError> {
        while !bytes.is_empty() {
            let room = BUFFER.saturating_sub(self.buffer.len());
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.buffer.extend_from_slice(now);
            bytes = later;
            if self.buffer.len() >= BUFFER {
                self.flush()?;
            }
        }
        Ok(())
    }

    /// Bytes taken so far.
    #[must_use]
    pub fn written(&self) -> u64 {
        self.flushed.saturating_add(self.buffer.len() as u64)
    }

    /// Writes what is left. Nothing is synced: what the page cache still holds is read from there, and nothing outlives the process.
    ///
    /// # Errors
    /// As [`ScratchWriter::write`].
    pub fn finish(mut self) -> Result<Scratch, PathError> {
        self.flush()?;
        Ok(Scratch { file: self.file, cipher: self.cipher, size: self.flushed })
    }

    fn flush(&mut self) -> Result<(), PathError> {
        if self.failed {
            return Err(io::Error::other("an earlier write to the scratch failed")).at(&self.dir);
        }
        self.failed = true;
        let written = self.cipher.apply(&mut self.buffer, self.flushed);
        let written = written.and_then(|()| self.file.write_all_at(&self.buffer, self.flushed));
        written.map_err(|error| if is_no_space(&error) { self.no_space(&error) } else { error }).at(&self.dir)?;
        self.flushed = self.flushed.saturating_add(self.buffer.len() as u64);
        self.buffer.clear();
        self.failed = false;
        Ok(())
    }

    fn no_space(&self, error: &io::Error) -> io::Error {
        let text = format!("no room for more than the first {} bytes of the encrypted scratch: {error}", self.flushed);
        io::Error::new(error.kind(), text)
    }
}

/// A file in `dir` that nothing names.
fn unnamed(dir: &Path) -> io::Result<File> {
    // With EXCL nobody can give it a name later, through /proc either.
    let flags = OFlags::TMPFILE | OFlags::EXCL | OFlags::RDWR | OFlags::CLOEXEC;
    match rustix::fs::open(dir, flags, Mode::RUSR | Mode::WUSR) {
        Ok(file) => Ok(file.into()),
        // The file system cannot; or is too old to know the flag, and takes it for a directory that is opened to write.
        Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => unlinked(dir),
        Err(error) => Err(error.into()),
    }
}

fn unlinked(dir: &Path) -> io::Result<File> {
    let path = dir.join(format!(".etcd-dr-scratch-{:016x}", rand::random::<u64>()));
    let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
    fs::remove_file(&path)?;
    Ok(file)
}

/// AES-256-CTR by offset, under a key that was drawn for it.
///
/// aws-lc keeps the expanded key in this process' memory and wipes it when it is dropped.
#[derive(Debug)]
struct Cipher(EncryptingKey);

impl Cipher {
    fn generate() -> io::Result<Self> {
        let mut key = Zeroizing::new([0; AES_256_KEY_LEN]);
        OsRng.try_fill_bytes(key.as_mut()).map_err(io::Error::other)?;
        Self::new(&key)
    }

    fn new(key: &[u8; AES_256_KEY_LEN]) -> io::Result<Self> {
        let key = UnboundCipherKey::new(&AES_256, key).and_then(EncryptingKey::ctr);
        key.map(Self).map_err(|_unspecified| io::Error::other("AES-256-CTR cannot be had"))
    }

    /// Encrypts or decrypts, which is the same, what stands at `offset`.
    fn apply(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        let counter = u128::from(offset / BLOCK as u64);
        let skip = usize::try_from(offset % BLOCK as u64).unwrap_or_default();
        if skip == 0 {
            return self.apply_blocks(bytes, counter);
        }
        // The cipher begins on whole blocks: what stands before them goes through a block of its own.
        let mut block = [0; BLOCK];
        let (head, rest) = bytes.split_at_mut(block.len().saturating_sub(skip).min(bytes.len()));
        let place = block.get_mut(skip..).and_then(|block| block.get_mut(..head.len())).unwrap_or_default();
        place.copy_from_slice(head);
        self.apply_blocks(&mut block, counter)?;
        head.copy_from_slice(block.get(skip..).and_then(|block| block.get(..head.len())).unwrap_or_default());
        self.apply_blocks(rest, counter.saturating_add(1))
    }

    fn apply_blocks(&self, bytes: &mut [u8], counter: u128) -> io::Result<()> {
        let context = EncryptionContext::Iv128(FixedLength::from(counter.to_be_bytes()));
        let done = self.0.less_safe_encrypt(bytes, context);
        done.map(drop).map_err(|_unspecified| io::Error::other("AES-256-CTR refused its input"))
    }
}

#[cfg(test)]
mod tests {
    use std::{
        collections::BTreeSet,
        os::unix::fs::{FileExt, MetadataExt as _},
        thread,
    };

    use proptest::prelude::*;

    use super::*;

    #[allow(clippy::unwrap_used, reason = "a failed test is a panic")]
    fn scratch(plain: &[u8], chunk: usize) -> Scratch {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = Scratch::create(dir.path()).unwrap();
        for chunk in plain.chunks(chunk) {
            writer.write(chunk).unwrap();
        }
        assert_eq!(writer.written(), plain.len() as u64);
        writer.finish().unwrap()
    }

    fn noise(length: usize, seed: u64) -> Vec<u8> {
        (0..length as u64).map(|i| (i.wrapping_mul(seed | 1) >> 13).to_le_bytes()[0]).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn what_is_read_anywhere_is_what_was_written(
            seed in any::<u64>(),
            length in 0_usize..3 * BUFFER,
            chunk in prop_oneof![1_usize..5000, BUFFER - 20..BUFFER + 20, Just(3 * BUFFER)],
            reads in prop::collection::vec((0_usize..3 * BUFFER, prop_oneof![0_usize..70, 0_usize..2 * BUFFER]), 40),
        ) {
            let plain = noise(length, seed);
            let scratch = scratch(&plain, chunk);
            prop_assert_eq!(scratch.size().unwrap(), length as u64);
            for (from, bytes) in reads {
                let mut buffer = vec![0xA5; bytes];
                let read = scratch.read_exact_at(&mut buffer, from as u64);
                if let Some(expected) = plain.get(from..from + bytes) {
                    read.unwrap();
                    prop_assert!(buffer == expected, "{bytes} bytes at {from} differ");
                } else {
                    prop_assert_eq!(read.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
                }
            }
        }

        #[test]
        fn the_stream_is_one_however_it_is_cut(offset in any::<u32>(), high in 0_u64..1 << 30, cuts in prop::collection::vec(0_usize..600, 0..6)) {
            let cipher = Cipher::new(&[9; 32]).unwrap();
            let offset = (high << 32) + u64::from(offset);
            let mut whole = [0; 600];
            cipher.apply(&mut whole, offset).unwrap();
            let mut cuts = cuts;
            cuts.extend([0, 600]);
            cuts.sort_unstable();
            let mut pieces = [0; 600];
            for pair in cuts.windows(2) {
                cipher.apply(&mut pieces[pair[0]..pair[1]], offset + pair[0] as u64).unwrap();
            }
            prop_assert_eq!(whole, pieces);
        }
    }

    /// AES-256 of the counters 0 and 1 under a key of zeros: NIST's GCM vectors 13 and 14, where they are H and the first pad.
    #[test]
    fn the_cipher_is_aes_256_over_the_number_of_the_block() {
        let mut stream = [0; 32];
        Cipher::new(&[0; 32]).unwrap().apply(&mut stream, 0).unwrap();
        let expected = [0xdc95_c078_a240_8989_ad48_a214_9284_2087_u128, 0x530f_8afb_c745_36b9_a963_b4f1_c4cb_738b];
        assert_eq!(stream[..], expected.map(u128::to_be_bytes).concat());
    }

    /// The fast code counts in 32 bits, which are used up every 64 GiB.
    #[test]
    fn the_counter_carries_at_64_gib() {
        let cipher = Cipher::new(&[3; 32]).unwrap();
        let start = (1_u64 << 36) - 4096;
        let mut whole = vec![0; 8192];
        cipher.apply(&mut whole, start).unwrap();
        for (block, at) in whole.chunks(16).zip((start..).step_by(16)) {
            let mut alone = [0; 16];
            cipher.apply(&mut alone, at).unwrap();
            assert_eq!(block, alone, "block at {at}");
        }
        let mut first = [0; 16];
        cipher.apply(&mut first, 0).unwrap();
        assert_ne!(&whole[4096..4112], first, "the stream repeats after 64 GiB");
    }

    #[test]
    fn the_file_is_private_and_has_no_name_however_it_is_made() {
        let dir = tempfile::tempdir().unwrap();
        for file in [unnamed(dir.path()), unlinked(dir.path())] {
            let metadata = file.unwrap().metadata().unwrap();
            assert_eq!((metadata.nlink(), metadata.mode() & 0o777), (0, 0o600));
            assert_eq!(dir.path().read_dir().unwrap().count(), 0);
        }
        let error = Scratch::create(&dir.path().join("missing")).unwrap_err();
        assert_eq!((error.source.kind(), error.path), (io::ErrorKind::NotFound, dir.path().join("missing")));
    }

    #[test]
    fn a_failed_write_is_not_tried_again_with_the_same_counters() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = Scratch::create(dir.path()).unwrap();
        writer.write(&[1; 100]).unwrap();
        writer.file = File::open(dir.path()).unwrap();
        let first = writer.write(&vec![2; BUFFER]).unwrap_err();
        assert_eq!(first.path, dir.path());
        writer.file = tempfile::tempfile().unwrap();
        writer.write(&[3]).unwrap_err();
        assert_eq!(writer.file.metadata().unwrap().len(), 0);
        writer.finish().unwrap_err();
    }

    #[test]
    fn no_two_scratches_hold_the_same_bytes_and_neither_holds_the_plaintext() {
        let plain = vec![0x42; 100_000];
        let raw = || {
            let scratch = scratch(&plain, 7777);
            let mut raw = vec![0; plain.len()];
            FileExt::read_exact_at(&scratch.file, &mut raw, 0).unwrap();
            raw
        };
        let (one, other) = (raw(), raw());
        let blocks = |raw: &[u8]| raw.chunks(BLOCK).map(<[u8]>::to_vec).collect::<BTreeSet<_>>();
        let distinct = [&one, &other, &plain].map(|raw| blocks(raw));
        assert!(distinct[0].is_disjoint(&distinct[1]) && distinct[2].is_disjoint(&distinct[0]));
        assert_eq!((distinct[0].len(), distinct[2].len()), (plain.len() / BLOCK, 1));
    }

    #[test]
    fn many_threads_read_at_once() {
        let plain = noise(2 * BUFFER + 77, 0x9E37_79B9_7F4A_7C15);
        let scratch = scratch(&plain, 100_000);
        thread::scope(|scope| {
            for thread in 0..4 {
                let (scratch, plain) = (&scratch, &plain);
                scope.spawn(move || {
                    for turn in 0..500 {
                        let from = (turn * 7919 + thread * 104_729) % (plain.len() - 5000);
                        let mut buffer = [0; 5000];
                        scratch.read_exact_at(&mut buffer, from as u64).unwrap();
                        assert!(buffer[..] == plain[from..from + 5000], "thread {thread}, {from}");
                    }
                });
            }
        });
    }
}
