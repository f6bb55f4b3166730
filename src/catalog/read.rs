//! One directory, read in the order in which it may be believed.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{File, OpenOptions},
    io::{self, Read as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use rustix::fs::OFlags;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use walkdir::WalkDir;

use super::{Backup, FileFact, FileState, Signed, State, proofs};
use crate::{
    record::{BackupId, EtcdId, FileVerdict, Index, Sha256Hex, names},
    sign::{PublicKey, Sums, Trusted},
};

const MIB: u64 = 1024 * 1024;
const MAX_INDEX: u64 = 64 * MIB;
const MAX_SUMS: u64 = MIB;
pub(super) const MAX_SIGNATURE: u64 = 64 * 1024;
pub(super) const MAX_PROOF: u64 = MIB;
/// A tree that was dropped into a backup is named this far.
const MAX_STRAYS: usize = 1000;

/// The store that a backup has to belong to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Home<'a> {
    pub store_id: &'a str,
    pub lineage: &'a [EtcdId],
}

pub(super) fn backup(dir_name: BackupId, path: PathBuf, trusted: &Trusted, home: Option<Home<'_>>) -> Backup {
    let state = match signed(&dir_name, &path, trusted, home) {
        Ok(signed) => State::Trusted(Box::new(signed)),
        Err(problems) => State::Broken { problems },
    };
    Backup { dir_name, path, state }
}

fn signed(
    dir_name: &BackupId,
    dir: &Path,
    trusted: &Trusted,
    home: Option<Home<'_>>,
) -> Result<Signed, Vec<FileVerdict>> {
    if !dir.symlink_metadata().is_ok_and(|meta| meta.is_dir()) {
        return Err(vec![bad(dir_name.as_str(), "is not a directory")]);
    }
    let (sums, sums_sha256, signer) = signed_sums(dir, trusted).map_err(|problem| vec![problem])?;
    let index = signed_index(dir, &sums).map_err(|problem| vec![problem])?;
    let problems = wrong_place(&index, dir_name, home);
    if !problems.is_empty() {
        return Err(problems);
    }
    let proofs = proofs::read(dir, &index.id, sums_sha256, trusted);
    let files = files(dir, &index, &sums);
    Ok(Signed { index, sums, sums_sha256, signer, proofs, files })
}

fn signed_sums(dir: &Path, trusted: &Trusted) -> Result<(Sums, Sha256Hex, PublicKey), FileVerdict> {
    let text = read_text(&dir.join(names::SUMS), MAX_SUMS).map_err(|problem| bad(names::SUMS, &problem))?;
    let signature =
        read_text(&dir.join(names::SIGNATURE), MAX_SIGNATURE).map_err(|problem| bad(names::SIGNATURE, &problem))?;
    let signer =
        trusted.verify(text.as_bytes(), &signature).map_err(|error| bad(names::SIGNATURE, &error.to_string()))?.clone();
    let sums = Sums::parse(&text).map_err(|error| bad(names::SUMS, &error.to_string()))?;
    Ok((sums, sha256(text.as_bytes()), signer))
}

fn signed_index(dir: &Path, sums: &Sums) -> Result<Index, FileVerdict> {
    let bad = |problem: &str| bad(names::INDEX, problem);
    let recorded = sums.0.get(names::INDEX).ok_or_else(|| bad("SHA256SUMS does not list it"))?;
    let bytes = read_bounded(&dir.join(names::INDEX), MAX_INDEX).map_err(|problem| bad(&problem))?;
    let found = sha256(&bytes);
    if found != *recorded {
        return Err(bad(&format!("its SHA-256 is {found}, {recorded} was signed")));
    }
    parse_index(&bytes).map_err(|problem| bad(&problem))
}

fn parse_index(bytes: &[u8]) -> Result<Index, String> {
    #[derive(Deserialize)]
    struct Versioned {
        schema: String,
    }
    let words = |error: serde_json::Error| format!("is signed, and cannot be understood: {error}");
    let Versioned { schema } = serde_json::from_slice(bytes).map_err(words)?;
    if schema != Index::SCHEMA {
        return Err(format!("has schema `{}`; this version reads `{}`", schema.escape_debug(), Index::SCHEMA));
    }
    serde_json::from_slice(bytes).map_err(words)
}

/// Whether a signed index lies where it was not written: under another name, in another store, of another cluster.
fn wrong_place(index: &Index, dir_name: &BackupId, home: Option<Home<'_>>) -> Vec<FileVerdict> {
    let mut problems = Vec::new();
    if index.id != *dir_name {
        problems.push(format!("is {}, renamed to {dir_name}", index.id));
    }
    if let Some(Home { store_id, lineage }) = home {
        if index.store_id != store_id {
            problems.push(format!("is of store {}, this is {store_id}", index.store_id.escape_debug()));
        }
        if !lineage.contains(&index.cluster_id) {
            problems.push(format!("is of cluster {}, which this store has not accepted", index.cluster_id));
        }
    }
    problems.iter().map(|problem| bad(names::INDEX, problem)).collect()
}

/// What the index says of one file that it names.
#[derive(Default)]
struct Claim {
    sealed_bytes: Option<u64>,
    sealed_sha256: Option<Sha256Hex>,
    times: usize,
}

fn claims(index: &Index) -> BTreeMap<&str, Claim> {
    let members = index.members.iter().filter_map(|m| Some((m.file.as_deref()?, m.sealed_bytes, m.sealed_sha256)));
    let archives = index.archives.iter().map(|a| (a.file.as_str(), Some(a.sealed_bytes), Some(a.sealed_sha256)));
    let mut claims = BTreeMap::<&str, Claim>::new();
    for (file, sealed_bytes, sealed_sha256) in members.chain(archives) {
        let claim = claims.entry(file).or_default();
        claim.sealed_bytes = sealed_bytes;
        claim.sealed_sha256 = sealed_sha256;
        claim.times = claim.times.saturating_add(1);
    }
    claims
}

fn files(dir: &Path, index: &Index, sums: &Sums) -> Vec<FileFact> {
    let claims = claims(index);
    let named: BTreeSet<&str> = sums.0.keys().map(String::as_str).chain(claims.keys().copied()).collect();
    let mut facts: Vec<_> = named
        .into_iter()
        .map(|name| {
            let state = file_state(dir, name, claims.get(name), sums.0.get(name));
            FileFact { file: name.escape_debug().to_string(), state }
        })
        .collect();
    facts.extend(strays(dir, sums));
    facts.sort_by(|a, b| a.file.cmp(&b.file));
    facts
}

fn file_state(dir: &Path, name: &str, claim: Option<&Claim>, digest: Option<&Sha256Hex>) -> FileState {
    // What is signed has a plain name, since `Sums` takes no other; so this is about names that only the index holds.
    let plain = !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\\', '\0']);
    if !plain || claim.is_some_and(|claim| claim.times > 1) {
        return FileState::BadName;
    }
    let Some(digest) = digest else { return FileState::NotInSums };
    let recorded = claim.map(|claim| (claim.sealed_bytes, claim.sealed_sha256));
    if recorded.is_some_and(|(bytes, sha256)| bytes.is_none() || sha256 != Some(*digest)) {
        return FileState::IndexDiffers;
    }
    match dir.join(name).symlink_metadata() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => FileState::Missing,
        Err(error) => FileState::Unreadable { error: error.to_string() },
        Ok(meta) if !meta.is_file() => FileState::NotAFile,
        Ok(meta) => match recorded.and_then(|(bytes, _)| bytes) {
            Some(recorded) if recorded != meta.len() => FileState::WrongSize { recorded, found: meta.len() },
            _ => FileState::Present { bytes: meta.len() },
        },
    }
}

/// What lies in the backup and was not signed, at any depth, `proofs/` apart. A link is a stray itself and is not followed.
fn strays(dir: &Path, sums: &Sums) -> Vec<FileFact> {
    let walk =
        WalkDir::new(dir).min_depth(1).follow_links(false).sort_by_file_name().into_iter().filter_entry(|entry| {
            let top = entry.depth() == 1;
            let proofs = entry.file_type().is_dir() && entry.file_name() == names::PROOFS;
            !(top && proofs)
        });
    let mut strays = Vec::new();
    for entry in walk {
        let (path, state) = match &entry {
            Ok(entry) => {
                let name = entry.file_name().to_str().filter(|_| entry.depth() == 1);
                if name.is_some_and(|name| name == names::SUMS || name == names::SIGNATURE || sums.0.contains_key(name))
                {
                    continue;
                }
                (entry.path(), FileState::Stray)
            }
            Err(error) => (error.path().unwrap_or(dir), FileState::Unreadable { error: error.to_string() }),
        };
        strays.push(FileFact { file: shown(path, dir), state });
        if strays.len() == MAX_STRAYS {
            break;
        }
    }
    strays
}

/// A path below `root` as it may be printed: whatever it holds, it moves no cursor.
pub(super) fn shown(path: &Path, root: &Path) -> String {
    path.strip_prefix(root).unwrap_or(path).to_string_lossy().escape_debug().to_string()
}

pub(super) fn bad(file: &str, problem: &str) -> FileVerdict {
    FileVerdict { file: file.to_owned(), ok: false, problem: Some(problem.to_owned()) }
}

pub(super) fn sha256(bytes: &[u8]) -> Sha256Hex {
    Sha256Hex(Sha256::digest(bytes).into())
}

/// Opens a regular file, not through a link, and without waiting for the other end of a pipe.
pub(super) fn open(path: &Path) -> io::Result<File> {
    open_with(path, false)
}

pub(super) fn open_with(path: &Path, write: bool) -> io::Result<File> {
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
    let not_a_file = || io::Error::new(io::ErrorKind::InvalidInput, "is not a regular file");
    // Asked before, since opening a device may do something; and after, since it may have been replaced in between.
    if !path.symlink_metadata()?.is_file() {
        return Err(not_a_file());
    }
    let file = OpenOptions::new().read(true).write(write).custom_flags(flags).open(path)?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(not_a_file()) }
}

/// A file's bytes, or what is wrong with it in words.
pub(super) fn read_bounded(path: &Path, bound: u64) -> Result<Vec<u8>, String> {
    let words = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => "is missing".to_owned(),
        io::ErrorKind::InvalidInput => error.to_string(),
        _ => format!("cannot be read: {error}"),
    };
    let mut bytes = Vec::new();
    open(path).and_then(|file| file.take(bound.saturating_add(1)).read_to_end(&mut bytes)).map_err(words)?;
    if u64::try_from(bytes.len()).is_ok_and(|len| len <= bound) {
        Ok(bytes)
    } else {
        Err(format!("is larger than {} KiB, the most that is read", bound / 1024))
    }
}

pub(super) fn read_text(path: &Path, bound: u64) -> Result<String, String> {
    String::from_utf8(read_bounded(path, bound)?).map_err(|_cause| "is not text in UTF-8".to_owned())
}
