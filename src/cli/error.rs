//! Words and exit codes of everything that can go wrong (contract.md, 2). Each match is exhaustive: a new error must find its words here.

mod inspect;
mod restore;
mod source;

use std::{fmt, path::Path, time::Duration};

use jiff::Timestamp;

use super::table::{size, span};
use crate::{
    at::PathError,
    catalog::{self, Backup},
    endpoint,
    ops::{backup, init, verify},
    plan::retention::Refusal,
    policy,
    record::{Agreement, BackupId, BackupReport, Finding, FindingKind, Index, Member},
    run, seal, sign,
    store::{self, guard},
};

/// The run failed.
pub const FAILED: u8 = 1;
/// The arguments or the policy are wrong.
pub const USAGE: u8 = 2;
/// There is a backup and something belongs to it that is not there.
pub const PARTIAL: u8 = 3;
/// No such store or backup.
pub const NO_BACKUP: u8 = 10;
/// Another run holds the lock.
pub const LOCKED: u8 = 11;
/// Nothing at hand opens the backup.
pub const CANNOT_DECRYPT: u8 = 12;
/// Verification failed.
pub const NOT_VERIFIED: u8 = 20;
/// No member gave a snapshot.
pub const UNHEALTHY: u8 = 21;
/// Retention refused.
pub const REFUSED: u8 = 22;
/// No space.
pub const NO_SPACE: u8 = 23;
/// Others may read or write what they should not.
pub const UNSAFE: u8 = 24;
/// The newest backup is too old.
pub const STALE: u8 = 30;
/// A signal came.
pub const INTERRUPTED: u8 = 130;

/// What went wrong, for a tired person and for a script.
#[derive(Debug)]
pub struct Failure {
    /// The exit code.
    pub code: u8,
    /// The class, a word for scripts.
    pub kind: &'static str,
    /// What, where; further lines are the evidence and the state that things are in.
    pub message: String,
    /// One thing to do.
    pub hint: Option<String>,
}

impl Failure {
    fn new(code: u8, kind: &'static str, message: impl Into<String>, hint: impl Into<Option<String>>) -> Self {
        Self { code, kind, message: message.into(), hint: hint.into() }
    }

    /// A fault of the program itself.
    pub fn internal(cause: &str) -> Self {
        Self::new(FAILED, "internal", format!("internal: {cause}"), None)
    }

    /// Arguments that cannot be parsed.
    pub fn usage(message: &str) -> Self {
        // The parser's own words, but for those that say nothing.
        let message = message.trim().trim_start_matches("error: ").replace("invalid value", "wrong value");
        let message = message.replace("unexpected argument", "unknown argument").replace("' found", "'");
        let message = message.replace("For more information, try '--help'.", "");
        Self::new(USAGE, "usage", message.trim_end(), "run `etcd-dr help`".to_owned())
    }

    /// A command that only root may run.
    pub fn needs_root(command: &str) -> Self {
        let hint = format!("run `sudo etcd-dr {command}`; --allow-non-root is for an etcd without Kubernetes");
        Self::new(USAGE, "needs_root", format!("{command} has to run as root: it reads the cluster's keys"), hint)
    }

    /// Nobody whose signature could be believed is known.
    pub fn no_trusted_key(secret_key_file: &Path) -> Self {
        let message = format!(
            "no key is trusted, so no backup could be believed\n  {} gives none, and neither the policy's [signing] trusted nor --public-key names one",
            secret_key_file.display()
        );
        Self::new(
            USAGE,
            "no_trusted_key",
            message,
            "give `--public-key RWQ...`, as `etcd-dr init` printed it".to_owned(),
        )
    }

    /// There is no identity file.
    pub fn no_identity(path: &Path) -> Self {
        let message = format!("{} is not there: no identity, nothing can be opened", path.display());
        Self::new(
            CANNOT_DECRYPT,
            "no_identity",
            message,
            "give `--identity FILE`, or prove `--level digest`".to_owned(),
        )
    }

    /// A command that deletes by a policy that is not there.
    pub fn no_policy() -> Self {
        let message = "there is no policy, and pruning by the built-in rules would drop what yours keeps";
        Self::new(USAGE, "policy", message, "name it with `--policy FILE`; `--dry-run` needs none".to_owned())
    }

    /// A flag that takes a file was given a secret. It is not repeated.
    pub fn secret_in_argument() -> Self {
        let message = "--identity takes a file, and was given an identity itself: it is in the shell's history now";
        let hint = "make a new one with `etcd-dr keys generate`, and take this one out of the recipients".to_owned();
        Self::new(USAGE, "usage", message, hint)
    }

    /// What was to be shown could not be written.
    pub fn no_output(error: &std::io::Error) -> Self {
        Self::new(
            FAILED,
            "output",
            format!("stdout: {error}"),
            "what was asked was done; ask again where there is room".to_owned(),
        )
    }

    /// There is no key to sign with.
    pub fn no_signing_key(path: &Path) -> Self {
        let message = format!("{} is not there: no signing key, no backup that could be believed", path.display());
        Self::new(USAGE, "signing_key", message, "make one with `etcd-dr init`".to_owned())
    }

    /// The store is empty.
    pub fn no_backup(store: &Path) -> Self {
        let hint = "make one with `etcd-dr backup`".to_owned();
        Self::new(NO_BACKUP, "no_backup", format!("there is no backup in {}", store.display()), hint)
    }

    /// The backup that was asked for is not there.
    pub fn no_such_backup(store: &Path, error: &catalog::NoSuchBackup) -> Self {
        let code = if matches!(error, catalog::NoSuchBackup::Name(_)) { USAGE } else { NO_BACKUP };
        let message = format!("{error}\n  looked in {}", store.display());
        Self::new(code, "no_backup", message, "see `etcd-dr list`".to_owned())
    }

    /// As [`Failure::no_such_backup`], with the name that may have been meant.
    pub fn unknown_backup(store: &Path, error: &catalog::NoSuchBackup, nearest: Option<&BackupId>) -> Self {
        let mut failure = Self::no_such_backup(store, error);
        if let Some(nearest) = nearest {
            failure.hint = Some(format!("the nearest is {nearest}; `etcd-dr list` has all"));
        }
        failure
    }

    /// A backup that cannot be believed.
    pub fn broken(backup: &Backup) -> Self {
        let problems = backup.problems();
        let lines = problems.iter().map(|verdict| file_line(&verdict.file, verdict.problem.as_deref()));
        let message = format!("{} cannot be believed{}", backup.dir_name, lines.collect::<String>());
        Self::new(NOT_VERIFIED, "not_verified", message, "see `etcd-dr list` for one that can".to_owned())
    }

    /// The identity opens nothing of a backup that is unchanged.
    pub fn wrong_key(report: &verify::Report) -> Self {
        let ids: Vec<_> =
            report.results.iter().filter(|result| result.wrong_key).map(|result| result.id.as_str()).collect();
        let message = format!("the identity at hand is none of those that {} was sealed for", ids.join(", "));
        let hint = "`etcd-dr show` lists its recipients; give the identity of one with `--identity FILE`".to_owned();
        Self::new(CANNOT_DECRYPT, "wrong_identity", message, hint)
    }

    /// Some backup is not what was signed.
    pub fn not_proved(report: &verify::Report) -> Self {
        let mut lines = String::new();
        let mut bad = Vec::new();
        for result in report.results.iter().filter(|result| !result.ok) {
            bad.push(result.id.to_string());
            for verdict in result.files.iter().filter(|verdict| !verdict.ok) {
                lines.push_str(&file_line(&format!("{}/{}", result.id, verdict.file), verdict.problem.as_deref()));
            }
            if result.standing == verify::Standing::Short {
                let reached = format!("its files hold, proved {}; its members could not be compared", result.level);
                lines.push_str(&file_line(&result.id.to_string(), Some(&reached)));
            }
        }
        for finding in &report.findings {
            bad.push(finding.name.clone());
            lines.push_str(&file_line(&finding.name, Some(&finding.detail)));
        }
        let head = format!("{} failed verification at level {}", bad.join(", "), report.level);
        // One that a restore takes without a question.
        let good = report.results.iter().rev().find(|result| result.ok && !result.partial);
        let hint = match good {
            Some(good) => format!("{} is proved {}: recover from that one", good.id, good.level),
            None => {
                "find one that holds with `etcd-dr verify --all`, and take a fresh one with `etcd-dr backup`".to_owned()
            }
        };
        Self::new(NOT_VERIFIED, "not_verified", format!("{head}{lines}"), hint)
    }

    /// The newest good backup is older than allowed.
    pub fn stale(newest: Option<Timestamp>, limit: Duration) -> Self {
        let message = match newest {
            Some(time) => format!("the newest good backup is of {time}, older than {}", span(limit)),
            None => "no backup is good".to_owned(),
        };
        Self::new(STALE, "stale", message, "see why none was made, then run `etcd-dr backup`".to_owned())
    }

    /// What a finished backup amounts to; nothing where it is whole.
    pub fn of_backup(report: &BackupReport, expiry: &run::Expiry) -> Option<Self> {
        let index = &report.index;
        let state = format!("\n  backup {} is kept in {}", index.id, index.path.display());
        let named = |kind: FindingKind| {
            let chosen = index.findings.iter().filter(move |finding| finding.kind == kind);
            chosen.map(|finding| file_line(&finding.name, Some(&finding.detail))).collect::<String>()
        };
        let marked = index.members.iter().filter(|member| member.file.is_some() && member.error.is_some());
        let changed: String = marked
            .map(|member| file_line(member.file.as_deref().unwrap_or_default(), member.error.as_deref()))
            .collect();
        if !changed.is_empty() {
            let message = format!("a stored snapshot failed its own proof, twice{changed}{state}, marked");
            let hint = "look at the disk and at the member; restore from neither".to_owned();
            return Some(Self::new(NOT_VERIFIED, "not_verified", message, hint));
        }
        if index.agreement == Some(Agreement::Differs) {
            return Some(Self::members_differ(index));
        }
        let missing = named(FindingKind::MemberMissing);
        if index.partial {
            let message = format!("the backup is partial{missing}{state}");
            let hint = "put right what is said of that member, then run `etcd-dr backup` again".to_owned();
            return Some(Self::new(PARTIAL, "partial", message, hint));
        }
        if !index.findings.is_empty() {
            let lines: String =
                index.findings.iter().map(|finding| file_line(&finding.name, Some(&finding.detail))).collect();
            let message = format!("the backup is whole, and something is wrong beside it{lines}{state}");
            return Some(Self::new(PARTIAL, "findings", message, vanished_hint(&index.findings)));
        }
        match expiry {
            run::Expiry::Refused(refusal) => {
                let mut failure = Self::from(refusal.clone());
                failure.code = PARTIAL;
                failure.message.push_str(&state);
                Some(failure)
            }
            run::Expiry::Failed(error) => Some(Self::new(
                PARTIAL,
                "retention_failed",
                format!("old backups could not be removed\n  {error}{state}"),
                None,
            )),
            run::Expiry::Done(_) | run::Expiry::NotDue(_) => None,
        }
    }
}

impl Failure {
    /// Members that hold other data than the others, with the evidence and what to do.
    fn members_differ(index: &Index) -> Self {
        let differ: Vec<&Member> =
            index.members.iter().filter(|member| member.agreement == Some(Agreement::Differs)).collect();
        let name = |member: &Member| match &member.endpoint {
            Some(endpoint) => format!("{} ({endpoint})", member.name),
            None => member.name.clone(),
        };
        let names: Vec<String> = differ.iter().map(|member| name(member)).collect();
        let (head, hint) = match (differ.as_slice(), &index.primary) {
            ([one], Some(_)) => (
                format!("member {} disagrees with the others", names.join("")),
                format!("do not restore from {0}; replace that member, then run `etcd-dr backup` again", one.name),
            ),
            (_, Some(primary)) => (
                format!("members {} disagree with the majority", names.join(", ")),
                format!("restore from {primary} alone; replace the others, then run `etcd-dr backup` again"),
            ),
            (_, None) => (
                format!("members {} disagree, and no majority says who is right", names.join(", ")),
                "look into each with `etcd-dr inspect latest --from MEMBER`; nobody but you can choose".to_owned(),
            ),
        };
        let lines = index.findings.iter().filter(|finding| finding.kind == FindingKind::MemberDiffers);
        let lines: String = lines.map(|finding| file_line(&finding.name, Some(&finding.detail))).collect();
        let kept = index.members.iter().filter(|member| member.file.is_some()).count();
        let state = format!("\n  backup {} keeps all {kept} snapshots, marked; nothing was removed", index.id);
        Self::new(NOT_VERIFIED, "members_differ", format!("{head}{lines}{state}"), hint)
    }
}

fn vanished_hint(findings: &[Finding]) -> Option<String> {
    findings
        .iter()
        .any(|finding| finding.kind == FindingKind::BackupVanished)
        .then(|| "`etcd-dr init` names cron lines and timers that delete there".to_owned())
}

fn file_line(name: &str, problem: Option<&str>) -> String {
    format!("\n  {name}: {}", problem.unwrap_or("not as it should be"))
}

impl fmt::Display for Failure {
    /// As style.md, 4 has it: what, the evidence, one thing to do.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let head = if self.code == REFUSED || self.code == UNSAFE { "refused" } else { "error" };
        writeln!(f, "{head}: {}", self.message.trim_end())?;
        if let Some(hint) = &self.hint {
            writeln!(f, "hint: {hint}")?;
        }
        writeln!(f, "(exit {})", self.code)
    }
}

impl From<PathError> for Failure {
    fn from(error: PathError) -> Self {
        if error.is_no_space() {
            let hint = "free space there, or move the store".to_owned();
            return Self::new(NO_SPACE, "no_space", error.to_string(), hint);
        }
        let exists = error.source.kind() == std::io::ErrorKind::AlreadyExists;
        let hint = exists.then(|| "nothing is overwritten; name another file, or move that one away".to_owned());
        Self::new(FAILED, "io", error.to_string(), hint)
    }
}

impl From<policy::Error> for Failure {
    fn from(error: policy::Error) -> Self {
        let hint = error.hint();
        let code = match &error {
            policy::Error::Unsafe { .. } => UNSAFE,
            policy::Error::Missing { .. }
            | policy::Error::Read { .. }
            | policy::Error::Syntax { .. }
            | policy::Error::Unknown { .. }
            | policy::Error::Value { .. }
            | policy::Error::NotBuilt { .. }
            | policy::Error::NoEndpoints { .. }
            | policy::Error::NoCa { .. }
            | policy::Error::NoRecipients { .. } => USAGE,
        };
        Self::new(code, if code == UNSAFE { "unsafe_permissions" } else { "policy" }, error.to_string(), hint)
    }
}

impl From<store::Error> for Failure {
    fn from(error: store::Error) -> Self {
        let (code, kind) = match &error {
            store::Error::NoStore { .. } => (NO_BACKUP, "no_store"),
            store::Error::NotInitialised { .. } => (NO_BACKUP, "not_initialised"),
            store::Error::IsBackup { .. } => (NO_BACKUP, "is_backup"),
            store::Error::MarkerGone { .. } => (NO_BACKUP, "marker_gone"),
            store::Error::BadMarker { .. } => (NO_BACKUP, "bad_marker"),
            store::Error::BadHolds { .. } => (REFUSED, "bad_holds"),
            store::Error::Unsafe(_) => (UNSAFE, "unsafe_permissions"),
            store::Error::Locked { .. } => (LOCKED, "locked"),
            store::Error::ForeignCluster { .. } => (USAGE, "foreign_cluster"),
            store::Error::Io(_) => (FAILED, "io"),
        };
        match error {
            store::Error::Io(error) => error.into(),
            other => Self::new(code, kind, other.to_string(), other.hint()),
        }
    }
}

impl From<guard::Error> for Failure {
    fn from(error: guard::Error) -> Self {
        store::Error::from(error).into()
    }
}

impl From<seal::KeyError> for Failure {
    fn from(error: seal::KeyError) -> Self {
        let (code, kind) = match &error {
            seal::KeyError::Io(_) | seal::KeyError::BadIdentity { .. } => (CANNOT_DECRYPT, "no_identity"),
            seal::KeyError::BadRecipient { .. } | seal::KeyError::NoRecipients | seal::KeyError::Incompatible(_) => {
                (USAGE, "recipients")
            }
        };
        let hint = (code == USAGE)
            .then(|| "`etcd-dr keys generate` makes an identity and prints its recipient, `age1...`".to_owned());
        Self::new(code, kind, error.to_string(), hint)
    }
}

impl From<sign::Error> for Failure {
    fn from(error: sign::Error) -> Self {
        match error {
            sign::Error::Io(error) => error.into(),
            sign::Error::BadPublicKey(_) | sign::Error::BadSecretKey { .. } => Self::new(
                USAGE,
                "signing_key",
                error.to_string(),
                "`etcd-dr init` makes a key pair where there is none".to_owned(),
            ),
            sign::Error::Untrusted { .. }
            | sign::Error::Mismatch { .. }
            | sign::Error::BadSignature
            | sign::Error::BadSums { .. } => Self::new(NOT_VERIFIED, "not_verified", error.to_string(), None),
            sign::Error::Signing(_) => Self::new(FAILED, "signing", error.to_string(), None),
        }
    }
}

impl From<endpoint::Error> for Failure {
    fn from(error: endpoint::Error) -> Self {
        let hint = match &error {
            endpoint::Error::Io(_) => {
                "name the files with [cluster] ca_file, cert_file and key_file, and read them as root"
            }
            endpoint::Error::Status { call, .. } if *call == endpoint::AUTHENTICATE => {
                "see to [cluster] user and password_file: etcd does not take this login"
            }
            endpoint::Error::Status { .. } => {
                "etcd refuses this client: it needs a user with the root role, or a certificate that etcd trusts as one"
            }
            endpoint::Error::Connect { .. }
            | endpoint::Error::Closed { .. }
            | endpoint::Error::Timeout { .. }
            | endpoint::Error::Changed { .. }
            | endpoint::Error::Short { .. } => "try `etcdctl endpoint status --cluster` with the same files",
        };
        let (code, kind) = if matches!(error, endpoint::Error::Io(_)) { (USAGE, "policy") } else { (FAILED, "etcd") };
        Self::new(code, kind, error.to_string(), hint.to_owned())
    }
}

impl From<backup::Error> for Failure {
    fn from(error: backup::Error) -> Self {
        let words = error.to_string();
        match error {
            backup::Error::Io(error) => error.into(),
            backup::Error::Store(error) => error.into(),
            backup::Error::Key(error) => error.into(),
            backup::Error::Sign(error) => error.into(),
            backup::Error::Endpoint(error) => error.into(),
            backup::Error::NoEndpoint { reasons } => {
                let lines = format!("\n  {}", reasons.join("\n  "));
                let hint =
                    "try `etcdctl endpoint health` with the same files; earlier backups are untouched".to_owned();
                Self::new(UNHEALTHY, "no_endpoint", format!("no endpoint of the policy answered{lines}"), hint)
            }
            backup::Error::NoSnapshot { reasons } => {
                let lines: String =
                    reasons.iter().map(|finding| file_line(&finding.name, Some(&finding.detail))).collect();
                let hint = "nothing was kept; earlier backups are untouched (`etcd-dr list`)".to_owned();
                Self::new(UNHEALTHY, "no_snapshot", format!("no member gave a snapshot{lines}"), hint)
            }
            backup::Error::NoRoom { path, free, backup, reserve } => {
                let large = reserve > 2 << 30;
                let (free, backup, reserve) = (size(free), size(backup), size(reserve));
                let message =
                    format!("{path} has {free} free; the backup needs about {backup}, the reserve is {reserve}");
                let hint = if large { ", or lower [store] reserve, for instance to \"2GiB\"" } else { "" };
                Self::new(NO_SPACE, "no_space", message, format!("free space there{hint}"))
            }
            backup::Error::DiskFull { path } => {
                let message = format!("{path}: the disk ran full\n  nothing was kept, earlier backups are untouched");
                Self::new(NO_SPACE, "no_space", message, "free space there, or lower keep_within".to_owned())
            }
            backup::Error::Interrupted => Self::new(
                INTERRUPTED,
                "interrupted",
                "interrupted: nothing was kept, earlier backups are untouched",
                None,
            ),
            backup::Error::Internal(_) => Self::new(FAILED, "internal", words, None),
        }
    }
}

impl From<init::Error> for Failure {
    fn from(error: init::Error) -> Self {
        match error {
            init::Error::Store(error) => error.into(),
            init::Error::Sign(error) => error.into(),
        }
    }
}

impl From<verify::Error> for Failure {
    fn from(error: verify::Error) -> Self {
        match error {
            verify::Error::Io(error) => error.into(),
            verify::Error::Interrupted => Self::new(INTERRUPTED, "interrupted", "interrupted", None),
        }
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        let (kind, hint) = match &refusal {
            Refusal::ClockBehind { .. } => ("clock_behind", "set the clock (`timedatectl`); nothing was removed"),
            Refusal::Gap { .. } => {
                ("gap", "nothing was removed; if the gap is known, run `etcd-dr prune --accept-gap`")
            }
        };
        Self::new(REFUSED, kind, format!("pruning was refused: {refusal}"), hint.to_owned())
    }
}
