//! Words and exit codes of what can keep a source from being read.

use std::path::Path;

use super::{CANNOT_DECRYPT, Failure, INTERRUPTED, NO_BACKUP, NO_SPACE, NOT_VERIFIED, USAGE};
use crate::{cli::table::size, record::BackupId, source, store::guard::shell_quote};

/// Where to turn when a backup does not hold.
pub(super) fn turn_to(other: Option<&BackupId>) -> String {
    match other {
        Some(id) => format!("{id} is proved: run the same with that one"),
        None => "find one that holds with `etcd-dr verify --all`".to_owned(),
    }
}

pub(super) fn quoted(text: &str) -> String {
    shell_quote(Path::new(text))
}

impl From<source::Error> for Failure {
    fn from(error: source::Error) -> Self {
        use source::Error;
        let words = error.to_string();
        let (code, kind, hint) = match error {
            Error::Io(error) => return error.into(),
            Error::NotThere { .. } => {
                (NO_BACKUP, "no_backup", "see `etcd-dr list`, or give the path of a file".to_owned())
            }
            Error::NoSuch(error) => {
                let code = if matches!(error, crate::catalog::NoSuchBackup::Name(_)) { USAGE } else { NO_BACKUP };
                (code, "no_backup", "see `etcd-dr list`".to_owned())
            }
            Error::NoBackup(_) => (NO_BACKUP, "no_backup", "name a backup's own directory, or a file".to_owned()),
            Error::NotBelieved { other, .. } | Error::NotProved { other, .. } => {
                (NOT_VERIFIED, "not_verified", turn_to(other.as_ref()))
            }
            Error::NoneProved { .. } => {
                (NOT_VERIFIED, "not_verified", "see what is there with `etcd-dr verify --all`".to_owned())
            }
            Error::NoPrimary { id, choices } => {
                let from = choices.first().map_or("MEMBER", String::as_str);
                let hint = format!("look at `etcd-dr show {id}`, then say whose is right: `--from {}`", quoted(from));
                (USAGE, "no_primary", hint)
            }
            Error::UnknownMember { choices, .. } | Error::NoFile { choices, .. } => {
                let hint = match choices.first() {
                    Some(from) => format!("take another one's: `--from {}`", quoted(from)),
                    None => "no member gave a snapshot to this backup; take another backup".to_owned(),
                };
                (USAGE, "no_member", hint)
            }
            Error::Unsigned { .. } => {
                let hint = "if you know where it comes from, add `--allow-unsigned`".to_owned();
                (USAGE, "unsigned", hint)
            }
            Error::Form { path, .. } => {
                let path = shell_quote(&path);
                (
                    USAGE,
                    "form",
                    format!("open it first, on a tmpfs: `age -d -i IDENTITY {path} | zstd -d > /dev/shm/snapshot.db`"),
                )
            }
            Error::NoIdentity { .. } => (CANNOT_DECRYPT, "no_identity", "give `--identity FILE`".to_owned()),
            Error::WrongKey { .. } => {
                let hint = "`etcd-dr show` lists its recipients; give the identity of one with `--identity FILE`";
                (CANNOT_DECRYPT, "wrong_identity", hint.to_owned())
            }
            Error::Changed { other, .. } => (NOT_VERIFIED, "not_verified", turn_to(other.as_ref())),
            Error::NoRoom { dir, free, needed } => {
                let message =
                    format!("{} has {} free; the opened snapshot needs {}", dir.display(), size(free), size(needed));
                return Self::new(NO_SPACE, "no_space", message, "free space there; nothing was changed".to_owned());
            }
            Error::Interrupted => {
                return Self::new(INTERRUPTED, "interrupted", "interrupted: nothing was changed", None);
            }
        };
        Self::new(code, kind, words, hint)
    }
}
