//! Snapshots and manifests that lie unencrypted beside the backups, as an earlier cron job left them. They are named, never touched.

use std::{
    fmt,
    fs::File,
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use walkdir::WalkDir;

use crate::store::is_ours;

/// Directories below the store that are looked into.
const MAX_DEPTH: usize = 4;
/// bbolt's magic number, little-endian, behind the 16-byte header of page 0 (bbolt `internal/common/types.go`, `meta.go`).
const BBOLT_MAGIC: [u8; 4] = [0xed, 0xda, 0x0c, 0xed];
const BBOLT_MAGIC_AT: usize = 16;

/// A file that holds secrets in the open.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Plaintext {
    /// The file.
    pub path: PathBuf,
    /// What it holds.
    pub holds: Holds,
}

/// What such a file holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Holds {
    /// A bbolt database, by its magic number.
    Snapshot,
    /// A database by its name alone, perhaps compressed.
    NamedSnapshot,
    /// Objects of kind Secret.
    Secrets,
}

impl fmt::Display for Plaintext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.holds {
            Holds::Snapshot => "is an unencrypted etcd database, with every Secret in it",
            Holds::NamedSnapshot => "looks by its name like an unencrypted etcd snapshot",
            Holds::Secrets => "holds Kubernetes Secrets in the open",
        };
        write!(f, "{} {what}: remove it once a sealed backup is verified", self.path.display())
    }
}

/// Looks at every regular file in `store` that is not ours. A file that cannot be read is passed over.
#[must_use]
pub fn scan(store: &Path) -> Vec<Plaintext> {
    let foreign = |entry: &walkdir::DirEntry| entry.depth() != 1 || !is_ours(entry.file_name());
    let walk = WalkDir::new(store).min_depth(1).max_depth(MAX_DEPTH).same_file_system(true).sort_by_file_name();
    let mut found = Vec::new();
    for entry in walk.into_iter().filter_entry(foreign).flatten().filter(|entry| entry.file_type().is_file()) {
        match holds(entry.path()) {
            Ok(Some(holds)) => found.push(Plaintext { path: entry.into_path(), holds }),
            Ok(None) => {}
            Err(error) => tracing::debug!(path = %entry.path().display(), %error, "not looked into for plaintext"),
        }
    }
    found
}

fn holds(path: &Path) -> io::Result<Option<Holds>> {
    let mut head = Vec::new();
    File::open(path)?.take(64).read_to_end(&mut head)?;
    if head.get(BBOLT_MAGIC_AT..).is_some_and(|rest| rest.starts_with(&BBOLT_MAGIC)) {
        return Ok(Some(Holds::Snapshot));
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
    let ends = |endings: &[&str]| endings.iter().any(|ending| name.ends_with(ending));
    if ends(&[".db", ".db.gz", ".db.zst", ".db.xz", ".db.bz2", ".db.lz4"]) {
        return Ok(Some(Holds::NamedSnapshot));
    }
    if ends(&[".yaml", ".yml", ".json"]) && names_a_secret(File::open(path)?)? {
        return Ok(Some(Holds::Secrets));
    }
    Ok(None)
}

/// Whether a stream of YAML or JSON has an object of kind Secret; reads in pieces, since `kubectl get -o json` may write one long line.
fn names_a_secret(mut file: impl io::Read) -> io::Result<bool> {
    const OVERLAP: usize = 64;
    let mut piece = vec![0; 1 << 16];
    let mut window: Vec<u8> = Vec::new();
    loop {
        let read = file.read(&mut piece)?;
        if read == 0 {
            // At the end of the file a name needs no end of line.
            window.push(b'\n');
            return Ok(has_kind_secret(&window));
        }
        window.extend_from_slice(piece.get(..read).unwrap_or_default());
        if has_kind_secret(&window) {
            return Ok(true);
        }
        window.drain(..window.len().saturating_sub(OVERLAP));
    }
}

/// `kind: Secret` or `"kind": "Secret"`, a list of them too, and no longer name such as `SecretStore`.
fn has_kind_secret(window: &[u8]) -> bool {
    window.windows(4).enumerate().filter(|(_, word)| *word == b"kind").any(|(at, _)| {
        let rest = window.get(at.saturating_add(4)..).unwrap_or_default();
        let rest = rest.strip_prefix(b"\"").unwrap_or(rest);
        let Some(rest) = rest.strip_prefix(b":") else { return false };
        let rest = rest.trim_ascii_start();
        let rest = rest.strip_prefix(b"\"").or_else(|| rest.strip_prefix(b"'")).unwrap_or(rest);
        let Some(rest) = rest.strip_prefix(b"Secret") else { return false };
        let rest = rest.strip_prefix(b"List").unwrap_or(rest);
        rest.first().is_some_and(|byte| !byte.is_ascii_alphanumeric())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_found_in_yaml_and_json_across_pieces() {
        for text in [
            "apiVersion: v1\nkind: Secret\n",
            "- kind: Secret",
            r#"{"kind":"Secret","#,
            "\"kind\": \"SecretList\"",
            "kind: 'Secret'\n",
        ] {
            assert!(names_a_secret(text.as_bytes()).unwrap(), "{text}");
            for pad in [65_530, 65_536, 131_070] {
                let padded = "x".repeat(pad) + text + " more";
                assert!(names_a_secret(padded.as_bytes()).unwrap(), "{text} after {pad}");
            }
        }
        for text in ["kind: SecretStore\n", "kind: ConfigMap\n", "a Secret of a kind", "kind: \n", ""] {
            assert!(!names_a_secret(text.as_bytes()).unwrap(), "{text}");
        }
    }
}
