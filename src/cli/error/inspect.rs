//! Words and exit codes of what can keep a database from being inspected.

use super::{Failure, INTERRUPTED, LOCKED, NO_BACKUP, NOT_VERIFIED};
use crate::{etcd::bbolt::Foreign, ops::inspect::Error, store::guard::shell_quote};

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let words = error.to_string();
        let (code, kind, hint) = match error {
            Error::Io(error) => return error.into(),
            Error::Source(error) => return error.into(),
            Error::NoDatabase { .. } => {
                (NO_BACKUP, "no_backup", Some("name a backup, a snapshot, or a member's data directory".to_owned()))
            }
            Error::InUse { .. } => {
                let hint = "take a snapshot, `etcdctl snapshot save FILE`, and inspect that; or stop that etcd first";
                (LOCKED, "in_use", Some(hint.to_owned()))
            }
            Error::Foreign { path, found } => {
                let path = shell_quote(&path);
                let open = |tool: &str| Some(format!("open it first: `{tool} {path} > snapshot.db`"));
                let hint = match found {
                    Foreign::Gzip => open("gzip -dc"),
                    Foreign::Xz => open("xz -dc"),
                    Foreign::Bzip2 => open("bzip2 -dc"),
                    Foreign::Lz4 => open("lz4 -dc"),
                    Foreign::Zstd => open("zstd -dc"),
                    Foreign::Age => open("age -d -i IDENTITY"),
                    Foreign::Tar => Some(format!("see what is in it: `tar -tf {path}`")),
                    Foreign::Sqlite => Some("that is k3s without etcd: back it up with SQLite's own tools".to_owned()),
                    Foreign::Wal => Some("the database is beside it, `member/snap/db`".to_owned()),
                    Foreign::Empty | Foreign::Zeros | Foreign::Text | Foreign::Unknown => None,
                };
                (NOT_VERIFIED, "not_a_database", hint)
            }
            Error::Trailer { .. } => (
                NOT_VERIFIED,
                "trailer",
                Some("the file was changed after etcd sent it: take another copy, or another snapshot".to_owned()),
            ),
            Error::Unsound { .. } => {
                (NOT_VERIFIED, "unsound", Some("do not restore from it; take another snapshot".to_owned()))
            }
            Error::Torn { .. } => {
                let hint = "stop the member before its files are copied, or take `etcdctl snapshot save FILE`";
                (NOT_VERIFIED, "torn", Some(hint.to_owned()))
            }
            Error::Interrupted => (INTERRUPTED, "interrupted", None),
        };
        Self::new(code, kind, words, hint)
    }
}
