//! The evidence for one level, on the bytes that are stored. `backup` and `verify` judge with the same code.

mod comparison;
mod examine;

use std::path::Path;

use tokio_util::sync::CancellationToken;

use crate::{
    record::{Reread, Sha256Hex},
    scratch::Scratch,
    seal::{self, Identities, OpenError, Opened},
};

pub use comparison::{Answer, Comparison, Measure, Side, is_confirmed};
pub use examine::{Examined, Examiner};

/// What a sealed snapshot must turn out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expected {
    /// Bytes on disk.
    pub sealed_bytes: u64,
    /// SHA-256 of the bytes on disk.
    pub sealed_sha256: Sha256Hex,
    /// Bytes that it opens to.
    pub plain_bytes: u64,
    /// SHA-256 of what it opens to.
    pub plain_sha256: Sha256Hex,
}

/// What was seen of one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    /// It is as it should be; the bytes came from there.
    Holds(Reread),
    /// It is not, in words.
    Changed(String),
    /// It is what was sealed, and the identities at hand do not open it.
    WrongKey,
}

/// Compares a file with the digest that was signed: what is wrong, or nothing.
///
/// # Errors
/// [`OpenError::Io`], [`OpenError::Interrupted`].
pub fn digest(path: &Path, expected: Sha256Hex, cancel: &CancellationToken) -> Result<Option<String>, OpenError> {
    let (_, found) = seal::read_digest(path, cancel)?;
    Ok((found != expected).then(|| digest_differs(found, expected)))
}

/// Opens a sealed snapshot and compares it with what was streamed, down to the trailer that etcd sent.
///
/// The digest of the sealed bytes is judged first: a key can only be wrong for a file that is unchanged.
///
/// # Errors
/// [`OpenError::Io`], [`OpenError::Interrupted`].
pub fn open(
    path: &Path,
    expected: &Expected,
    identities: &Identities,
    cancel: &CancellationToken,
) -> Result<Seen, OpenError> {
    judge(seal::open(path, identities, cancel)?, expected)
}

/// As [`open`], and lays the plaintext down in a scratch in `dir`, which needs room for [`Expected::plain_bytes`].
///
/// The scratch is there where [`Seen::Holds`] is, and holds all that was streamed, etcd's trailer at its end.
///
/// # Errors
/// [`OpenError::Io`], also of the scratch; [`OpenError::Interrupted`].
pub fn open_to_scratch(
    path: &Path,
    expected: &Expected,
    identities: &Identities,
    dir: &Path,
    cancel: &CancellationToken,
) -> Result<(Seen, Option<Scratch>), OpenError> {
    let mut scratch = Scratch::create(dir)?;
    let mut sink = |bytes: &[u8]| {
        // The digest is judged at the end: a file that opens to more than it should must not fill the disk until then.
        let end = scratch.written().saturating_add(bytes.len() as u64);
        if end <= expected.plain_bytes { scratch.write(bytes) } else { Ok(()) }
    };
    let opened = seal::open_into(path, identities, &mut sink, cancel)?;
    let seen = judge(opened, expected)?;
    let scratch = matches!(seen, Seen::Holds(_)).then(|| scratch.finish()).transpose()?;
    Ok((seen, scratch))
}

fn judge(opened: Opened, expected: &Expected) -> Result<Seen, OpenError> {
    if opened.sealed_bytes != expected.sealed_bytes {
        let (found, signed) = (opened.sealed_bytes, expected.sealed_bytes);
        return Ok(Seen::Changed(format!("it has {found} bytes, {signed} were written")));
    }
    if opened.sealed_sha256 != expected.sealed_sha256 {
        return Ok(Seen::Changed(digest_differs(opened.sealed_sha256, expected.sealed_sha256)));
    }
    let plain = match opened.plain {
        Ok(plain) => plain,
        Err(OpenError::NoMatchingKeys) => return Ok(Seen::WrongKey),
        Err(error @ (OpenError::Decrypt(_) | OpenError::Decompress(_))) => return Ok(Seen::Changed(error.to_string())),
        Err(error) => return Err(error),
    };
    if (plain.bytes, plain.sha256) != (expected.plain_bytes, expected.plain_sha256) {
        return Ok(Seen::Changed(format!(
            "it opens to {} bytes with SHA-256 {}, {} with {} were streamed",
            plain.bytes, plain.sha256, expected.plain_bytes, expected.plain_sha256
        )));
    }
    if !plain.trailer_is_right() {
        return Ok(Seen::Changed(trailer_differs(&plain)));
    }
    Ok(Seen::Holds(opened.reread))
}

/// The words for a trailer that does not fit.
#[must_use]
pub fn trailer_differs(plain: &seal::Plain) -> String {
    match plain.trailer {
        Some(trailer) => format!("etcd's trailer says SHA-256 {trailer}, the data has {}", plain.body_sha256),
        None => "it is too short to hold etcd's trailer".to_owned(),
    }
}

fn digest_differs(found: Sha256Hex, expected: Sha256Hex) -> String {
    format!("its SHA-256 is {found}, {expected} was written")
}
