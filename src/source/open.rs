//! Opening: what is sealed or compressed goes to a scratch, what is plain is read where it lies.

use std::{
    fs::File,
    io::{self, Read as _},
    os::unix::fs::FileExt as _,
    path::Path,
};

use tokio_util::sync::CancellationToken;

use super::{Error, Form, OfBackup, Source};
use crate::{
    at::{At as _, PathError},
    etcd::ReadAt,
    proof::{self, Expected, Seen},
    record::Sha256Hex,
    scratch::Scratch,
    seal::{self, Identities, OpenError, Plain, PlainHash},
};

/// Bytes read or written at a time.
const BLOCK: usize = 1 << 20;
/// Bytes that etcd appends to a snapshot: the SHA-256 of what stands before them.
const TRAILER: usize = 32;

/// The bytes of a snapshot, to be read anywhere.
#[derive(Debug)]
pub enum Bytes {
    /// A plain file, where it lies.
    File(File),
    /// The opened copy of one that is sealed or compressed.
    Scratch(Box<Scratch>),
}

impl ReadAt for Bytes {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        match self {
            Self::File(file) => ReadAt::read_exact_at(file, buffer, offset),
            Self::Scratch(scratch) => scratch.read_exact_at(buffer, offset),
        }
    }

    fn size(&self) -> io::Result<u64> {
        match self {
            Self::File(file) => file.size(),
            Self::Scratch(scratch) => scratch.size(),
        }
    }
}

/// A snapshot that can be read.
#[derive(Debug)]
pub struct Opened {
    /// Its bytes.
    pub bytes: Bytes,
    /// Size and digests. What went through a scratch has them; of a plain file they cost a pass: [`Opened::digest`].
    pub plain: Option<Plain>,
}

impl Opened {
    /// Size and digests of the snapshot; a plain file is read once for them.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Interrupted`].
    pub fn digest(&mut self, path: &Path, cancel: &CancellationToken) -> Result<Plain, Error> {
        if let Some(plain) = self.plain {
            return Ok(plain);
        }
        let mut hash = PlainHash::default();
        if let Bytes::File(file) = &self.bytes {
            let mut buffer = vec![0; BLOCK];
            let mut offset = 0_u64;
            loop {
                if cancel.is_cancelled() {
                    return Err(Error::Interrupted);
                }
                let bytes = file.read_at(&mut buffer, offset).at(path)?;
                if bytes == 0 {
                    break;
                }
                hash.update(buffer.get(..bytes).unwrap_or_default());
                offset = offset.saturating_add(bytes as u64);
            }
        }
        let plain = hash.finish();
        self.plain = Some(plain);
        Ok(plain)
    }
}

impl Source {
    /// Opens it. What is sealed needs `identities`; what is sealed or compressed is laid down, encrypted and without a name, in `scratch_dir`.
    ///
    /// Of a backup the sealed bytes, the plaintext and etcd's trailer are what was signed, or it is an error.
    ///
    /// # Errors
    /// [`Error::NoIdentity`], [`Error::WrongKey`], [`Error::Changed`], [`Error::NoRoom`], [`Error::Io`], [`Error::Interrupted`].
    pub fn open(
        &self,
        identities: Option<&Identities>,
        scratch_dir: &Path,
        cancel: &CancellationToken,
    ) -> Result<Opened, Error> {
        let identities = || identities.ok_or_else(|| Error::NoIdentity { path: self.path.clone() });
        match (self.form, &self.backup) {
            (Form::Plain, _) => {
                let file = File::open(&self.path).at(&self.path)?;
                Ok(Opened { bytes: Bytes::File(file), plain: None })
            }
            (Form::Zstd, _) => self.decompress(scratch_dir, cancel),
            (Form::Sealed, Some(backup)) => self.open_proved(backup, identities()?, scratch_dir, cancel),
            (Form::Sealed, None) => self.open_alone(identities()?, scratch_dir, cancel),
        }
    }

    fn open_proved(
        &self,
        backup: &OfBackup,
        identities: &Identities,
        dir: &Path,
        cancel: &CancellationToken,
    ) -> Result<Opened, Error> {
        let member = &backup.member;
        let recorded = (member.sealed_bytes, member.sealed_sha256, member.plain_bytes, member.plain_sha256);
        let (Some(sealed_bytes), Some(sealed_sha256), Some(plain_bytes), Some(plain_sha256)) = recorded else {
            return Err(self.changed(format!("{} records no digest of it", backup.index.id)));
        };
        room(dir, plain_bytes)?;
        let expected = Expected { sealed_bytes, sealed_sha256, plain_bytes, plain_sha256 };
        let opened = proof::open_to_scratch(&self.path, &expected, identities, dir, cancel);
        match opened.map_err(|error| self.of_opening(error))? {
            (Seen::Holds(_), Some(scratch)) => {
                // `Holds` means that the trailer is the digest of what stands before it.
                let mut trailer = [0; TRAILER];
                scratch.read_exact_at(&mut trailer, plain_bytes.saturating_sub(TRAILER as u64)).at(&self.path)?;
                let body_sha256 = Sha256Hex(trailer);
                let plain = Plain { bytes: plain_bytes, sha256: plain_sha256, body_sha256, trailer: Some(body_sha256) };
                Ok(Opened { bytes: Bytes::Scratch(Box::new(scratch)), plain: Some(plain) })
            }
            (Seen::Holds(_), None) => Err(self.changed("it was opened and is not there".to_owned())),
            (Seen::Changed(problem), _) => Err(self.changed(problem)),
            (Seen::WrongKey, _) => Err(Error::WrongKey { path: self.path.clone() }),
        }
    }

    fn open_alone(&self, identities: &Identities, dir: &Path, cancel: &CancellationToken) -> Result<Opened, Error> {
        let mut scratch = Scratch::create(dir)?;
        let opened = seal::open_into(&self.path, identities, &mut |bytes| scratch.write(bytes), cancel);
        let opened = opened.map_err(|error| self.of_opening(error))?;
        let plain = opened.plain.map_err(|error| self.of_opening(error))?;
        Ok(Opened { bytes: Bytes::Scratch(Box::new(scratch.finish()?)), plain: Some(plain) })
    }

    fn decompress(&self, dir: &Path, cancel: &CancellationToken) -> Result<Opened, Error> {
        let changed = |error: io::Error| self.changed(format!("it does not decompress: {error}"));
        let mut scratch = Scratch::create(dir)?;
        let mut hash = PlainHash::default();
        let mut zstd = zstd::stream::read::Decoder::new(File::open(&self.path).at(&self.path)?).map_err(changed)?;
        let mut buffer = vec![0; BLOCK];
        loop {
            if cancel.is_cancelled() {
                return Err(Error::Interrupted);
            }
            let bytes = zstd.read(&mut buffer).map_err(changed)?;
            if bytes == 0 {
                break;
            }
            let block = buffer.get(..bytes).unwrap_or_default();
            hash.update(block);
            scratch.write(block)?;
        }
        Ok(Opened { bytes: Bytes::Scratch(Box::new(scratch.finish()?)), plain: Some(hash.finish()) })
    }

    fn changed(&self, problem: String) -> Error {
        let other = self.backup.as_ref().and_then(|backup| backup.other.clone());
        Error::Changed { path: self.path.clone(), problem, other }
    }

    fn of_opening(&self, error: OpenError) -> Error {
        match error {
            OpenError::Io(error) => Error::Io(error),
            OpenError::Interrupted => Error::Interrupted,
            OpenError::NoMatchingKeys => Error::WrongKey { path: self.path.clone() },
            error @ (OpenError::Decrypt(_) | OpenError::Decompress(_)) => self.changed(error.to_string()),
        }
    }
}

/// Said before the first byte is decrypted, since a full disk would say it after the last that fits.
fn room(dir: &Path, needed: u64) -> Result<(), Error> {
    let stat = rustix::fs::statvfs(dir).map_err(io::Error::from);
    let stat = stat.map_err(|source| PathError { path: dir.to_owned(), source })?;
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    if free < needed { Err(Error::NoRoom { dir: dir.to_owned(), free, needed }) } else { Ok(()) }
}
