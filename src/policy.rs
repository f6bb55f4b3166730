//! What to protect and how: flags, environment and policy file, validated into types. Only drivers load it.
//!
//! Each setting comes from the first that has it: a flag, `ETCD_DR_<TABLE>__<KEY>`, the policy file, etcdctl's own variables (for the endpoints
//! and TLS files that all before left open, so that a stray one in root's shell cannot redirect the nightly backup), the default in [`KEYS`].
//!
//! The file is walked with [`KEYS`] in hand, not read through derived types: so one list gives keys, variables and defaults, and every value
//! keeps its line until it is validated.

mod endpoint;
mod environment;
mod error;
mod file;
mod keys;
mod settings;
pub mod units;

use std::{
    fmt, io,
    path::{self, Path, PathBuf},
    str::FromStr,
    time::Duration,
};

pub use endpoint::{Endpoint, EndpointError};
pub use environment::environment;
pub use error::{Error, Nearest, Origin};
pub use keys::{KEYS, Key, Kind};

use self::{
    file::{Guarded, Refusal},
    settings::{Setting, Settings, Value},
};
use crate::record::ProofLevel;

/// The policy file where none is named.
pub const DEFAULT_FILE: &str = "/etc/etcd-dr/policy.toml";

/// Where a policy is put together from.
#[derive(Debug, Clone)]
pub struct Sources {
    /// `--policy`; it must exist.
    pub file: Option<PathBuf>,
    /// Read where neither flag nor variable names a file; it may be missing. [`DEFAULT_FILE`], but for tests.
    pub default_file: PathBuf,
    /// Variables by name; [`environment`] has the process' own.
    pub environment: Vec<(String, String)>,
    /// Flags that stand above the policy.
    pub flags: Overrides,
}

impl Default for Sources {
    fn default() -> Self {
        Self { file: None, default_file: DEFAULT_FILE.into(), environment: Vec::new(), flags: Overrides::default() }
    }
}

/// The global flags that override the policy. Relative paths start in the working directory.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Overrides {
    /// `--endpoints`, split at its commas.
    pub endpoints: Vec<String>,
    /// `--cacert`.
    pub cacert: Option<PathBuf>,
    /// `--cert`.
    pub cert: Option<PathBuf>,
    /// `--key`.
    pub key: Option<PathBuf>,
    /// `--store`.
    pub store: Option<PathBuf>,
    /// `--public-key`, a key or the path of a `.pub` file; one replaces all of `trusted`.
    pub public_key: Vec<String>,
    /// `--identity`.
    pub identity: Option<PathBuf>,
}

/// What to protect and how. Which parts a command needs is the command's to say: [`Policy::require_endpoints`], [`Policy::require_recipients`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// The file that was read; none where the default one is not there.
    pub source: Option<PathBuf>,
    /// `[cluster]`
    pub cluster: Cluster,
    /// `[store]`
    pub store: Store,
    /// `[backup]`
    pub backup: Backup,
    /// `[encryption]`
    pub encryption: Encryption,
    /// `[signing]`
    pub signing: Signing,
    /// `[retention]`
    pub retention: Retention,
    /// What is no error and should be known, a sentence each.
    pub warnings: Vec<String>,
}

/// How etcd is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cluster {
    /// What people call it: 1 to 100 characters, none of them control characters.
    pub name: String,
    /// Each once, in the policy's order; may be empty.
    pub endpoints: Vec<Endpoint>,
    /// CA of the servers' certificates.
    pub ca_file: Option<PathBuf>,
    /// The client's certificate.
    pub client: Option<ClientCert>,
    /// Where etcd has authentication on.
    pub user: Option<Login>,
}

/// A client certificate and its key, PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientCert {
    /// Certificate, or chain.
    pub cert_file: PathBuf,
    /// Its key.
    pub key_file: PathBuf,
}

/// A user of etcd.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Login {
    /// Its name.
    pub user: String,
    /// File whose first line is the password.
    pub password_file: PathBuf,
}

/// Where backups are written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Store {
    /// The directory, absolute.
    pub path: PathBuf,
    /// What a backup leaves free on its file system.
    pub reserve: Reserve,
}

/// Space that stays free: a share of the file system, below 100 %, or a number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reserve(Share);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Share {
    Percent(u8),
    Bytes(u64),
}

impl Reserve {
    /// The reserve in bytes on a file system of `total` bytes; a share is rounded down.
    #[must_use]
    pub fn bytes_of(self, total: u64) -> u64 {
        match self.0 {
            Share::Bytes(bytes) => bytes,
            // Below 100 %, so the product of 128 bits comes back into 64.
            Share::Percent(percent) => u64::try_from(u128::from(total) * u128::from(percent) / 100).unwrap_or(total),
        }
    }
}

impl fmt::Display for Reserve {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Share::Percent(percent) => write!(f, "{percent}%"),
            Share::Bytes(bytes) => write!(f, "{bytes}B"),
        }
    }
}

/// Why a text is no reserve.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ReserveError {
    /// A share that is no whole number below 100.
    #[error("is no share; write 0% to 99%, or a size as in 2GiB")]
    Percent,
    /// No size.
    #[error(transparent)]
    Size(#[from] units::Error),
}

impl FromStr for Reserve {
    type Err = ReserveError;

    fn from_str(text: &str) -> Result<Self, ReserveError> {
        let Some(percent) = text.strip_suffix('%') else { return Ok(Self(Share::Bytes(units::size(text)?))) };
        let digits = !percent.is_empty() && percent.bytes().all(|byte| byte.is_ascii_digit());
        let percent = percent.parse().ok().filter(|percent| digits && *percent < 100).ok_or(ReserveError::Percent)?;
        Ok(Self(Share::Percent(percent)))
    }
}

/// How a backup runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backup {
    /// 1 to 19.
    pub zstd_level: i32,
    /// A second at least.
    pub connect_timeout: Duration,
    /// Longest silence of a stream; a second at least.
    pub stall_timeout: Duration,
    /// Revisions behind the highest at which a member can still be the primary.
    pub max_lag: u64,
    /// What a run proves of its own backup: `digest`, `open` or `sound`.
    pub prove: ProofLevel,
    /// Whose snapshots a backup keeps.
    pub keep_members: KeepMembers,
    /// Where the encrypted copies lie that a proof reads at random; beside the backup where nothing is said.
    pub scratch_dir: Option<PathBuf>,
}

/// Whose snapshots a backup keeps once all members agree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum KeepMembers {
    /// Every member's.
    #[default]
    All,
    /// The primary's alone; of the others digests and `HashKV` stay. Members that do not agree are all kept.
    Primary,
}

impl FromStr for KeepMembers {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        match text {
            "all" => Ok(Self::All),
            "primary" => Ok(Self::Primary),
            _ => Err("is neither all nor primary"),
        }
    }
}

/// Who can open backups.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encryption {
    /// As written, each once, in order; the file's follow once [`Policy::require_recipients`] has read it. None is an age identity.
    pub recipients: Vec<String>,
    /// Recipients, one a line; `#` begins a comment line.
    pub recipients_file: Option<PathBuf>,
    /// Only where backups are opened.
    pub identity_file: PathBuf,
}

/// Whose signatures count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signing {
    /// This host's minisign secret key.
    pub secret_key_file: PathBuf,
    /// minisign public keys or paths of `.pub` files, as written, each once. None is a secret key.
    pub trusted: Vec<String>,
}

/// What stays when backups expire.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retention {
    /// Every backup younger than this stays.
    pub keep_within: Duration,
    /// Proved ones that stay whatever their age; 1 at least.
    pub keep_proved: u32,
    /// From where a backup counts as proved; never above [`Backup::prove`].
    pub min_proof: ProofLevel,
    /// Days, in UTC, of which the last proved backup stays: the last so many that have one.
    pub keep_daily: u32,
    /// As with the days, for ISO weeks.
    pub keep_weekly: u32,
    /// As with the days, for months.
    pub keep_monthly: u32,
}

impl Policy {
    /// Puts the policy together and validates what holds. A value that a higher source overrides is checked for its type alone.
    ///
    /// A file that a flag or `ETCD_DR_POLICY` names must be there; the default file need not be, and where the user may not read it, it is left
    /// out with a warning, since `verify --store` needs neither root nor a policy.
    ///
    /// # Errors
    /// [`Error`], with the place to change; the file's own faults before the environment's and the flags'.
    pub fn load(sources: &Sources) -> Result<Self, Error> {
        let mut warnings = Vec::new();
        let mut settings = Settings::default();

        let source = find(sources, &mut warnings)?;
        if let Some((path, guarded)) = &source {
            warnings.extend(readable_by_all(path, guarded));
            file::settings(path, &guarded.text)?.into_iter().for_each(|setting| settings.set(setting));
        }
        for setting in environment::settings(&sources.environment, &mut warnings)? {
            settings.set(setting);
        }
        for setting in flags(&sources.flags)? {
            settings.set(setting);
        }
        for setting in environment::etcdctl(&sources.environment)? {
            settings.fill(setting);
        }
        settings.fill_defaults()?;
        settings.refuse_unbuilt()?;

        let (backup, retention) = backup_and_retention(&settings)?;
        Ok(Self {
            source: source.map(|(path, _)| path),
            cluster: cluster(&settings)?,
            store: Store {
                path: store_path(&settings)?,
                reserve: settings.parse("store", "reserve", Reserve::from_str)?,
            },
            backup,
            encryption: Encryption {
                recipients: recipients(settings.texts("encryption", "recipients"), "[encryption] recipients")?,
                recipients_file: settings.path("encryption", "recipients_file"),
                identity_file: settings.needed_path("encryption", "identity_file")?,
            },
            signing: Signing {
                secret_key_file: settings.needed_path("signing", "secret_key_file")?,
                trusted: trusted(&settings)?,
            },
            retention,
            warnings,
        })
    }

    /// For commands that dial etcd: somebody to ask, and a CA by which to know them.
    ///
    /// # Errors
    /// [`Error::NoEndpoints`], [`Error::NoCa`].
    pub fn require_endpoints(&self) -> Result<(), Error> {
        if self.cluster.endpoints.is_empty() {
            return Err(Error::NoEndpoints { source_file: self.source.clone() });
        }
        if self.cluster.ca_file.is_none() {
            return Err(Error::NoCa { source_file: self.source.clone() });
        }
        Ok(())
    }

    /// For commands that seal: reads [`Encryption::recipients_file`] into [`Encryption::recipients`]; one recipient alone adds a warning.
    /// Repeating it changes nothing.
    ///
    /// # Errors
    /// [`Error::NoRecipients`]; [`Error::Missing`], [`Error::Read`] and [`Error::Unsafe`] for the file, since who writes it reads the backups;
    /// [`Error::Value`], with its line, for an identity among them.
    pub fn require_recipients(&mut self) -> Result<(), Error> {
        const ALONE: &str = "one recipient alone: when its identity is lost no backup opens; add a second one whose identity is kept elsewhere";
        if let Some(path) = &self.encryption.recipients_file {
            let by = || Origin::File { path: self.source.clone().unwrap_or_else(|| path.clone()), line: None };
            let guarded = file::read_guarded(path).map_err(|refusal| refusal.into_error(by(), path))?;
            let lines = guarded.text.lines().enumerate().map(|(number, line)| {
                (line.trim().to_owned(), Origin::File { path: path.clone(), line: Some(number + 1) })
            });
            let listed = lines.filter(|(line, _)| !line.is_empty() && !line.starts_with('#')).collect();
            for recipient in recipients(listed, "the recipient")? {
                if !self.encryption.recipients.contains(&recipient) {
                    self.encryption.recipients.push(recipient);
                }
            }
        }
        match self.encryption.recipients.as_slice() {
            [] => return Err(Error::NoRecipients { source_file: self.source.clone() }),
            [_] if self.warnings.iter().all(|warning| warning != ALONE) => self.warnings.push(ALONE.to_owned()),
            _ => {}
        }
        Ok(())
    }
}

/// The policy file that is meant, read.
fn find(sources: &Sources, warnings: &mut Vec<String>) -> Result<Option<(PathBuf, Guarded)>, Error> {
    let named = match (&sources.file, environment::policy_file(&sources.environment)?) {
        (Some(path), _) => Some((Origin::Flag("--policy"), path.clone())),
        (None, Some(path)) => Some((Origin::Variable(environment::POLICY.to_owned()), PathBuf::from(path))),
        (None, None) => None,
    };
    if let Some((by, path)) = named {
        let guarded = file::read_guarded(&path).map_err(|refusal| refusal.into_error(by, &path))?;
        return Ok(Some((path, guarded)));
    }
    let path = &sources.default_file;
    match file::read_guarded(path) {
        Ok(guarded) => Ok(Some((path.clone(), guarded))),
        Err(Refusal::Io(error)) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            Ok(None)
        }
        Err(Refusal::Io(error)) if error.kind() == io::ErrorKind::PermissionDenied => {
            warnings.push(format!("{} is not used: this user may not read it", path.display()));
            Ok(None)
        }
        Err(refusal) => Err(refusal.into_error(Origin::Default, path)),
    }
}

/// A policy names hosts, users and the paths of keys.
fn readable_by_all(path: &Path, guarded: &Guarded) -> Option<String> {
    (guarded.mode & 0o004 != 0).then(|| {
        let mode = guarded.mode;
        format!("{} is readable by everybody (mode {mode:04o}): run `chmod o-r {}`", path.display(), file::quoted(path))
    })
}

fn flags(flags: &Overrides) -> Result<Vec<Setting>, Error> {
    let mut settings = Vec::new();
    let paths = [
        ("--cacert", "cluster", "ca_file", &flags.cacert),
        ("--cert", "cluster", "cert_file", &flags.cert),
        ("--key", "cluster", "key_file", &flags.key),
        ("--store", "store", "path", &flags.store),
        ("--identity", "encryption", "identity_file", &flags.identity),
    ];
    for (flag, table, name, path) in paths {
        let (Some(key), Some(path)) = (keys::find(table, name), path) else { continue };
        let origin = Origin::Flag(flag);
        match path::absolute(path) {
            Ok(path) => settings.push(Setting { key, value: Value::Path(path), origin }),
            Err(error) => {
                let problem = format!("takes a path: {error}");
                return Err(Error::Value { origin, key: key.label(), problem, hint: None });
            }
        }
    }
    let lists = [
        ("--endpoints", "cluster", "endpoints", &flags.endpoints),
        ("--public-key", "signing", "trusted", &flags.public_key),
    ];
    for (flag, table, name, texts) in lists {
        let Some(key) = keys::find(table, name).filter(|_| !texts.is_empty()) else { continue };
        let origin = Origin::Flag(flag);
        let value = Value::Texts(texts.iter().map(|text| (text.clone(), origin.clone())).collect());
        settings.push(Setting { key, value, origin });
    }
    Ok(settings)
}

fn cluster(settings: &Settings) -> Result<Cluster, Error> {
    let name = settings.parse("cluster", "name", |name| {
        let fits = (1..=100).contains(&name.chars().count()) && !name.contains(char::is_control);
        if fits { Ok(name.to_owned()) } else { Err("is no name; it takes 1 to 100 characters that can be printed") }
    })?;
    let mut endpoints = Vec::new();
    for (text, origin) in settings.texts("cluster", "endpoints") {
        let endpoint = text.parse::<Endpoint>().map_err(|problem| {
            // An entry may hold a password after all, then it is not repeated.
            let text = if text.contains('@') { "an entry".to_owned() } else { format!("`{}`", error::shown(&text)) };
            let (key, problem) = ("[cluster] endpoints".to_owned(), format!("{text} {problem}"));
            Error::Value { origin, key, problem, hint: None }
        })?;
        if !endpoints.contains(&endpoint) {
            endpoints.push(endpoint);
        }
    }
    let client = both(settings, "cert_file", "key_file")?.then(|| {
        Some(ClientCert {
            cert_file: settings.path("cluster", "cert_file")?,
            key_file: settings.path("cluster", "key_file")?,
        })
    });
    let user = both(settings, "user", "password_file")?.then(|| {
        Some(Login {
            user: settings.text("cluster", "user")?,
            password_file: settings.path("cluster", "password_file")?,
        })
    });
    if let Some(setting) = settings.get("cluster", "user").filter(|setting| setting.value.is_text("")) {
        return Err(setting.wrong_but("is empty", "leave `user` and `password_file` out where etcd has no users"));
    }
    Ok(Cluster {
        name,
        endpoints,
        ca_file: settings.path("cluster", "ca_file"),
        client: client.flatten(),
        user: user.flatten(),
    })
}

/// Whether a pair of `[cluster]` keys is set; one without the other is an error.
fn both(settings: &Settings, one: &str, other: &str) -> Result<bool, Error> {
    match (settings.get("cluster", one), settings.get("cluster", other)) {
        (Some(_), Some(_)) => Ok(true),
        (None, None) => Ok(false),
        (Some(setting), None) => {
            Err(setting.wrong_but(format!("is set without {other}"), format!("set `{other}` too")))
        }
        (None, Some(setting)) => Err(setting.wrong_but(format!("is set without {one}"), format!("set `{one}` too"))),
    }
}

fn backup_and_retention(settings: &Settings) -> Result<(Backup, Retention), Error> {
    settings.integer::<i64>("backup", "parallel", 1, 64)?;
    let level = |text: &str| match text.parse() {
        Ok(level @ (ProofLevel::Digest | ProofLevel::Open | ProofLevel::Sound)) => Ok(level),
        _ => Err("is not a level here; write digest, open or sound"),
    };
    let timeout = |text: &str| match units::duration(text) {
        Ok(wait) if wait < Duration::from_secs(1) => Err("is too short; 1s is the shortest".to_owned()),
        Ok(wait) => Ok(wait),
        Err(problem) => Err(problem.to_string()),
    };
    let backup = Backup {
        zstd_level: settings.integer("backup", "zstd_level", 1, 19)?,
        connect_timeout: settings.parse("backup", "connect_timeout", timeout)?,
        stall_timeout: settings.parse("backup", "stall_timeout", timeout)?,
        max_lag: settings.integer("backup", "max_lag", 0, i64::MAX.unsigned_abs())?,
        prove: settings.parse("backup", "prove", level)?,
        keep_members: settings.parse("backup", "keep_members", KeepMembers::from_str)?,
        scratch_dir: settings.path("backup", "scratch_dir"),
    };
    let retention = Retention {
        keep_within: settings.parse("retention", "keep_within", units::duration)?,
        keep_proved: settings.integer("retention", "keep_proved", 1, u32::MAX)?,
        min_proof: settings.parse("retention", "min_proof", level)?,
        keep_daily: settings.integer("retention", "keep_daily", 0, u32::MAX)?,
        keep_weekly: settings.integer("retention", "keep_weekly", 0, u32::MAX)?,
        keep_monthly: settings.integer("retention", "keep_monthly", 0, u32::MAX)?,
    };
    if retention.min_proof > backup.prove {
        let (min_proof, prove) = (retention.min_proof, backup.prove);
        let problem = format!("`{min_proof}` is above [backup] prove, `{prove}`: no backup would ever count as proved");
        // Where one is left to its default, the other is the one to change.
        let named = settings.get("retention", "min_proof").filter(|setting| setting.origin != Origin::Default);
        let setting = named.or_else(|| settings.get("backup", "prove"));
        let hint = format!("set `min_proof = \"{prove}\"` in [retention], or `prove = \"{min_proof}\"` in [backup]");
        return Err(Error::Value {
            origin: setting.map_or(Origin::Default, |setting| setting.origin.clone()),
            key: "[retention] min_proof".to_owned(),
            problem,
            hint: Some(hint),
        });
    }
    Ok((backup, retention))
}

/// Recipients are parsed where they are used; what must not even be kept or shown is a secret in their place.
fn recipients(listed: Vec<(String, Origin)>, key: &str) -> Result<Vec<String>, Error> {
    let mut recipients = Vec::new();
    for (text, origin) in listed {
        let upper = text.to_ascii_uppercase();
        let problem = if upper.starts_with("AGE-SECRET-KEY-") || upper.starts_with("AGE-PLUGIN-") {
            Some((
                "is an identity, which is a secret, and not a recipient",
                "list its recipient, which begins with age1, and make a new identity if others may have read this one",
            ))
        } else if text.is_empty() {
            Some(("is empty", "list age recipients, which begin with age1"))
        } else {
            None
        };
        if let Some((problem, hint)) = problem {
            let (key, problem, hint) = (key.to_owned(), problem.to_owned(), Some(hint.to_owned()));
            return Err(Error::Value { origin, key, problem, hint });
        }
        recipients.push(text);
    }
    Ok(recipients)
}

/// A store is a directory of its own: made root's alone, one of these would lock the system out of itself.
fn store_path(settings: &Settings) -> Result<PathBuf, Error> {
    const SYSTEM: [&str; 24] = [
        "/",
        "/bin",
        "/boot",
        "/dev",
        "/etc",
        "/home",
        "/lib",
        "/media",
        "/mnt",
        "/opt",
        "/proc",
        "/root",
        "/run",
        "/sbin",
        "/srv",
        "/sys",
        "/tmp",
        "/usr",
        "/var",
        "/var/backups",
        "/var/cache",
        "/var/lib",
        "/var/log",
        "/var/tmp",
    ];
    let path = settings.needed_path("store", "path")?;
    if !SYSTEM.iter().any(|system| path == Path::new(system)) {
        return Ok(path);
    }
    let problem = format!("{} is a directory of the system", path.display());
    let hint = Some("name a directory of its own, such as /backup/etcd".to_owned());
    let origin = settings.get("store", "path").map_or(Origin::Default, |setting| setting.origin.clone());
    Err(Error::Value { origin, key: "[store] path".to_owned(), problem, hint })
}

fn trusted(settings: &Settings) -> Result<Vec<String>, Error> {
    /// Base64 of minisign's algorithms for a secret key, `Ed`, `Sc` or none, `B2`; a public key has random bytes there.
    const SECRET: [&str; 2] = ["RWRTY0Iy", "RWQAAEIy"];
    let mut trusted = Vec::new();
    for (text, origin) in settings.texts("signing", "trusted") {
        let key = text.len() == 56 && text.starts_with("RW");
        let problem = if SECRET.iter().any(|start| text.starts_with(start)) && !key {
            Some("holds a secret key; list the public key, which has 56 characters")
        } else if !key && origin.file().is_some() && !text.starts_with('/') {
            Some("takes minisign public keys, 56 characters from RW on, or absolute paths of .pub files")
        } else if text.is_empty() {
            Some("is empty")
        } else {
            None
        };
        if let Some(problem) = problem {
            let (key, problem) = ("[signing] trusted".to_owned(), problem.to_owned());
            return Err(Error::Value { origin, key, problem, hint: None });
        }
        trusted.push(text);
    }
    Ok(trusted)
}
