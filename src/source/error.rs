//! Why a source cannot be used.

use std::path::PathBuf;

use crate::{
    at::PathError,
    catalog::{self, NoSuchBackup},
    record::{BackupId, FileVerdict},
};

/// Why a source cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The system refused something.
    #[error(transparent)]
    Io(#[from] PathError),
    /// The text is no id, and nothing lies at it as a path.
    #[error("{text} is not there, and is no id of a backup either")]
    NotThere {
        /// As asked.
        text: String,
    },
    /// The store has no such backup.
    #[error(transparent)]
    NoSuch(#[from] NoSuchBackup),
    /// The directory is no backup.
    #[error("this directory is no backup: {0}")]
    NoBackup(#[from] catalog::Error),
    /// No trusted key vouches for it.
    #[error("{id} cannot be believed{}", lines(problems))]
    NotBelieved {
        /// The backup.
        id: BackupId,
        /// Why, by file.
        problems: Vec<FileVerdict>,
        /// Where to turn.
        other: Option<BackupId>,
    },
    /// The file that would be read is known to be bad.
    #[error("{id} is not to be restored from{}", lines(std::slice::from_ref(problem)))]
    NotProved {
        /// The backup.
        id: BackupId,
        /// The file and what is wrong.
        problem: FileVerdict,
        /// Where to turn.
        other: Option<BackupId>,
    },
    /// `latest`, and there are backups, and none holds.
    #[error("no backup can be restored from\n  {}", reasons.join("\n  "))]
    NoneProved {
        /// Why, backup by backup, newest first.
        reasons: Vec<String>,
    },
    /// The members could not be told right from wrong, so a person has to choose.
    #[error("{id} has no primary: no majority of its members was shown to agree\n  it has snapshots of {}", choices.join(", "))]
    NoPrimary {
        /// The backup.
        id: BackupId,
        /// Members with a file.
        choices: Vec<String>,
    },
    /// `--from` names nobody.
    #[error("{id} has no member {name}\n  it has snapshots of {}", choices.join(", "))]
    UnknownMember {
        /// The backup.
        id: BackupId,
        /// As asked.
        name: String,
        /// Members with a file.
        choices: Vec<String>,
    },
    /// `--from` names a member that gave nothing.
    #[error("{id} has no snapshot of {member}: {reason}\n  it has snapshots of {}", choices.join(", "))]
    NoFile {
        /// The backup.
        id: BackupId,
        /// The member.
        member: String,
        /// Why not.
        reason: String,
        /// Members with a file.
        choices: Vec<String>,
    },
    /// A file alone, where a signature is wanted.
    #[error("{} is a file alone: nobody's signature says where it comes from, or that it is unchanged", path.display())]
    Unsigned {
        /// The file.
        path: PathBuf,
    },
    /// A form that is not read here.
    #[error("{} {found}", path.display())]
    Form {
        /// The file.
        path: PathBuf,
        /// What it is.
        found: &'static str,
    },
    /// It is sealed and no identity is at hand.
    #[error("{} is sealed, and no identity is at hand", path.display())]
    NoIdentity {
        /// The file.
        path: PathBuf,
    },
    /// None of the identities at hand opens it.
    #[error("the identity at hand is none of those that {} was sealed for", path.display())]
    WrongKey {
        /// The file.
        path: PathBuf,
    },
    /// It is not what was signed, or does not open.
    #[error("{}\n  {problem}", path.display())]
    Changed {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
        /// Where to turn.
        other: Option<BackupId>,
    },
    /// The opened copy does not fit.
    #[error("{} has {free} bytes free; the opened snapshot needs {needed}", dir.display())]
    NoRoom {
        /// Where the copy was to be.
        dir: PathBuf,
        /// Bytes free.
        free: u64,
        /// Bytes needed.
        needed: u64,
    },
    /// The caller's cancellation came first.
    #[error("interrupted")]
    Interrupted,
}

fn lines(verdicts: &[FileVerdict]) -> String {
    let line = |v: &FileVerdict| format!("\n  {}: {}", v.file, v.problem.as_deref().unwrap_or("not as it should be"));
    verdicts.iter().map(line).collect()
}
