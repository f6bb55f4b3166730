//! Words and exit codes of what can keep a restore from being made.

use super::{
    FAILED, Failure, INTERRUPTED, LOCKED, NO_SPACE, NOT_VERIFIED, UNHEALTHY, USAGE,
    source::{quoted, turn_to},
};
use crate::{cli::table::size, ops::restore, plan::restore::Refusal, store::guard::shell_quote};

impl From<restore::Error> for Failure {
    fn from(error: restore::Error) -> Self {
        use restore::Error;
        let words = error.to_string();
        if error.is_no_space() {
            let message = format!("{words}\n  nothing was changed");
            return Self::new(NO_SPACE, "no_space", message, "free space there".to_owned());
        }
        match error {
            Error::Io(error) => error.into(),
            Error::Source(error) => error.into(),
            Error::Refused(refusal) => refusal.into(),
            Error::Unsound { other, .. } => Self::new(NOT_VERIFIED, "not_verified", words, turn_to(other.as_ref())),
            Error::Trailer { missing, .. } => {
                let hint = if missing {
                    "if it is the database of a member that was stopped before it was copied, add `--skip-hash-check`"
                } else {
                    "the file was changed after etcd sent it: take another one"
                };
                Self::new(NOT_VERIFIED, "trailer", words, hint.to_owned())
            }
            Error::Newer { .. } => {
                Self::new(FAILED, "newer_etcd", words, "restore it with the etcdutl of that release".to_owned())
            }
            Error::Write(_) => {
                Self::new(FAILED, "write", words, "nothing has a final name; try another file system".to_owned())
            }
            Error::Differs { .. } => Self::new(
                NOT_VERIFIED,
                "differs",
                words,
                "look at the disk (`dmesg`), then restore to another one".to_owned(),
            ),
            Error::Busy { .. } => Self::new(LOCKED, "locked", words, "wait for it".to_owned()),
            Error::Started { path } => {
                let hint = format!("stop that etcd; `fuser -v {}/member/snap/db` shows who it is", shell_quote(&path));
                Self::new(LOCKED, "in_use", words, hint)
            }
            Error::Interrupted => Self::new(INTERRUPTED, "interrupted", "interrupted: nothing was changed", None),
        }
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        let mut words = refusal.to_string();
        let (code, kind, hint) = match refusal {
            Refusal::NoMembers { .. } => {
                let hint = "name them: `--initial-cluster cp1=https://192.0.2.11:2380,...`";
                (USAGE, "members", hint.to_owned())
            }
            Refusal::Members(_) | Refusal::DuplicateName { .. } => {
                let hint = "write each member once: `--initial-cluster cp1=https://192.0.2.11:2380,cp2=https://192.0.2.12:2380`";
                (USAGE, "members", hint.to_owned())
            }
            Refusal::SameCluster { .. } => {
                let hint =
                    "leave `--initial-cluster-token` out, and a fresh one is made; --force where no old member can run";
                (USAGE, "same_cluster", hint.to_owned())
            }
            Refusal::UnknownMember { choices, .. } => {
                let first = choices.first().map(|choice| quoted(&choice.name)).unwrap_or_default();
                (USAGE, "unknown_member", format!("`--member {first}`, or name the cluster with `--initial-cluster`"))
            }
            Refusal::NotInInitialCluster { name, .. } => {
                let hint = format!("add `{}=URL` to --initial-cluster, or take another --name", quoted(&name));
                (USAGE, "unknown_member", hint)
            }
            Refusal::NotHere { choices } | Refusal::SeveralHere { choices } => {
                let first = choices.first().map(|choice| quoted(&choice.name)).unwrap_or_default();
                let hint = format!("say which: `--member {first}`; or all of them: `--all-members --output-dir DIR`");
                (USAGE, "which_member", hint)
            }
            Refusal::Advertise { .. } => {
                (USAGE, "members", "leave `--initial-advertise-peer-urls` out; the cluster has them".to_owned())
            }
            Refusal::Separate { member, snapshot, .. } => {
                let (snapshot, member) = (quoted(&snapshot), quoted(&member));
                let hint = format!(
                    "make one plan, and follow it on each host:\n  etcd-dr restore --snapshot {snapshot} --dry-run --output json > plan.json\n  etcd-dr restore --plan plan.json --member {member}"
                );
                (USAGE, "separate_runs", hint)
            }
            Refusal::NegativeBump { .. } | Refusal::BumpOverflows { .. } => {
                (USAGE, "bump", "leave `--bump-revision` out, and it is computed".to_owned())
            }
            Refusal::Plan(_) => {
                let hint = "make it anew: `etcd-dr restore --snapshot SOURCE --dry-run --output json > plan.json`";
                (USAGE, "plan", hint.to_owned())
            }
            Refusal::OtherSource { .. } => {
                (USAGE, "other_source", "bring the planned snapshot here, and name it with `--snapshot`".to_owned())
            }
            Refusal::Exists { .. } => (
                USAGE,
                "exists",
                "`--replace` moves it aside and removes nothing; or take another `--data-dir`".to_owned(),
            ),
            Refusal::NotADirectory { path } => {
                (USAGE, "exists", format!("look at it with `ls -ld {}`", shell_quote(&path)))
            }
            Refusal::MountedWal { path } => {
                let below = shell_quote(&path.join("wal"));
                (USAGE, "exists", format!("name a directory below it: `--wal-dir {below}`"))
            }
            Refusal::SameTarget { .. } => (USAGE, "usage", "give --data-dir and --wal-dir separate places".to_owned()),
            Refusal::LivingQuorum { .. } => {
                let hint = "replace the broken member (`etcdctl member remove`, `member add`); to go back all the same, stop every etcd, or add `--force`";
                (UNHEALTHY, "living_quorum", hint.to_owned())
            }
            Refusal::InUse { path, .. } => {
                let path = shell_quote(&path);
                (
                    LOCKED,
                    "in_use",
                    format!(
                        "stop that etcd (kubeadm: move etcd.yaml out of /etc/kubernetes/manifests), then run it again; `fuser -v {path}/member/snap/db` shows who it is"
                    ),
                )
            }
            Refusal::NoRoom { path, free, needed, members } => {
                let (free, needed) = (size(free), size(needed));
                words = format!(
                    "{} has {free} free; {members} data directories need {needed}\n  nothing was changed",
                    path.display()
                );
                (NO_SPACE, "no_space", "free space there, or write to another file system".to_owned())
            }
        };
        Self::new(code, kind, words, hint)
    }
}
