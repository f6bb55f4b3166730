//! What can be wrong with a policy, and where.

use std::{
    fmt, io,
    path::{Path, PathBuf},
};

/// Where a setting comes from, so that an error can name the place to change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// A file, and the line where the setting stands.
    File {
        /// The file.
        path: PathBuf,
        /// Counted from 1; none where the matter is the file's as a whole.
        line: Option<usize>,
    },
    /// An environment variable, by its name.
    Variable(String),
    /// A flag, with its dashes.
    Flag(&'static str),
    /// The built-in default.
    Default,
}

impl Origin {
    /// The file, where it is one.
    #[must_use]
    pub fn file(&self) -> Option<&Path> {
        match self {
            Self::File { path, .. } => Some(path),
            Self::Variable(_) | Self::Flag(_) | Self::Default => None,
        }
    }

    /// The line in the file, counted from 1.
    #[must_use]
    pub const fn line(&self) -> Option<usize> {
        match self {
            Self::File { line, .. } => *line,
            Self::Variable(_) | Self::Flag(_) | Self::Default => None,
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path, line: Some(line) } => write!(f, "{}:{line}", path.display()),
            Self::File { path, line: None } => write!(f, "{}", path.display()),
            Self::Variable(name) => f.write_str(name),
            Self::Flag(name) => f.write_str(name),
            Self::Default => f.write_str("the default"),
        }
    }
}

/// Why there is no policy to run with. No variant carries a value that may be a secret.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file that a flag, a variable or the policy names is not there.
    #[error("{by} names {}, which is not there", path.display())]
    Missing {
        /// The flag, variable or line.
        by: Origin,
        /// The file.
        path: PathBuf,
    },
    /// A file cannot be read.
    #[error("{}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The file is not TOML.
    #[error("{origin}: not TOML: {problem}")]
    Syntax {
        /// File and line.
        origin: Origin,
        /// What the parser says, without the text it speaks of.
        problem: String,
    },
    /// A key, section or variable that the policy does not know.
    #[error("{origin}: {key} is not a {}", if *section { "section" } else { "key" })]
    Unknown {
        /// Where it stands.
        origin: Origin,
        /// As in `[retention] keep_within`, or `[retention]` for a section.
        key: String,
        /// Whether it is a section.
        section: bool,
        /// The nearest known one, or the known ones where none is near.
        nearest: Nearest,
    },
    /// A value of the wrong type, out of range, or in conflict with another.
    #[error("{origin}: {key}: {problem}")]
    Value {
        /// Where it stands.
        origin: Origin,
        /// As in `[retention] keep_within`.
        key: String,
        /// What is wrong with it.
        problem: String,
        /// What to write instead, where one thing is meant.
        hint: Option<String>,
    },
    /// A key, section or value whose feature this version does not have.
    #[error("{origin}: {key}: {problem}")]
    NotBuilt {
        /// Where it stands.
        origin: Origin,
        /// As in `[backup] prove`, or `[schedule]`.
        key: String,
        /// What this version has, and that the rest "is not built yet".
        problem: String,
    },
    /// A command needs an endpoint and none is known.
    #[error("no endpoint of the cluster is known{}", looked_in(source_file.as_deref()))]
    NoEndpoints {
        /// The policy file, if there is one.
        source_file: Option<PathBuf>,
    },
    /// TLS is always verified, so etcd's CA has to be known.
    #[error("no CA to verify etcd's certificates by is known{}", looked_in(source_file.as_deref()))]
    NoCa {
        /// The policy file, if there is one.
        source_file: Option<PathBuf>,
    },
    /// A backup needs somebody who can open it.
    #[error("no recipient can open the backup{}", looked_in(source_file.as_deref()))]
    NoRecipients {
        /// The policy file, if there is one.
        source_file: Option<PathBuf>,
    },
    /// Somebody else could have written what the file says.
    #[error("{} {problem}", path.display())]
    Unsafe {
        /// The file.
        path: PathBuf,
        /// The rest of the sentence that begins with the path.
        problem: String,
        /// The one command that cures it.
        fix: String,
    },
}

impl Error {
    /// One thing to do about it, in a form that can be pasted where it is a command.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Missing { path, .. } => Some(format!("write {}, or name the file that is meant", path.display())),
            Self::Read { .. } | Self::Syntax { .. } => None,
            Self::Unknown { nearest: Nearest::One(name), .. } => Some(format!("did you mean {name}?")),
            Self::Unknown { nearest: Nearest::Known(names), .. } => Some(format!("known are {}", names.join(", "))),
            Self::Value { hint, .. } => hint.clone(),
            Self::NotBuilt { key, .. } => Some(format!("leave {key} out until a version has it")),
            Self::NoEndpoints { .. } => {
                Some("set `endpoints` in [cluster], or give `--endpoints https://HOST:2379`".to_owned())
            }
            Self::NoCa { .. } => Some(
                "set `ca_file` in [cluster], or give `--cacert FILE`; kubeadm's is /etc/kubernetes/pki/etcd/ca.crt"
                    .to_owned(),
            ),
            Self::NoRecipients { .. } => Some(
                "run `etcd-dr keys generate` and list the recipient that it prints under `recipients` in [encryption]"
                    .to_owned(),
            ),
            Self::Unsafe { fix, .. } => Some(format!("run `{fix}` once you have read what the file says")),
        }
    }
}

fn looked_in(file: Option<&Path>) -> String {
    file.map_or_else(String::new, |path| format!(": {} names none", path.display()))
}

/// The known names beside an unknown one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Nearest {
    /// The one that was meant, by all likelihood.
    One(String),
    /// All there are, none being near.
    Known(Vec<String>),
}

/// `text` as an error may show it: cut, and without control characters that a terminal would act on.
pub(super) fn shown(text: &str) -> String {
    const LONGEST: usize = 80;
    let mut shown: String = text.chars().take(LONGEST).flat_map(char::escape_debug).collect();
    if text.chars().nth(LONGEST).is_some() {
        shown.push_str("...");
    }
    shown
}
