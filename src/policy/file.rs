//! The policy file: who may have written it, and what it says.

use std::{
    fs::{self, File},
    io::{self, Read as _},
    num::ParseIntError,
    ops::Range,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{
    error::{Error, Origin, shown},
    keys::{self, Key, Kind},
    settings::{Setting, Value},
};

/// More than any policy or list of recipients; a path to a disk is not read into memory.
const LONGEST: u64 = 1 << 20;

/// A file that only its owner and root could have written.
#[derive(Debug)]
pub(super) struct Guarded {
    pub(super) text: String,
    /// Permission bits.
    pub(super) mode: u32,
}

/// Why a file was not read.
#[derive(Debug)]
pub(super) enum Refusal {
    /// The system's word, [`io::ErrorKind::NotFound`] among others.
    Io(io::Error),
    Policy(Error),
}

impl Refusal {
    pub(super) fn into_error(self, by: Origin, path: &Path) -> Error {
        match self {
            Self::Io(source) if source.kind() == io::ErrorKind::NotFound => {
                Error::Missing { by, path: path.to_owned() }
            }
            Self::Io(source) => Error::Read { path: path.to_owned(), source },
            Self::Policy(error) => error,
        }
    }
}

/// Reads a file, unless somebody other than root and the effective user could have written it. What is examined is the opened file, so that it
/// cannot be exchanged in between.
pub(super) fn read_guarded(path: &Path) -> Result<Guarded, Refusal> {
    let user = rustix::process::geteuid().as_raw();
    let foreign = |owner: u32| owner != 0 && owner != user;
    let refuse = |problem: String, command: &str| {
        let fix = format!("{command} {}", quoted(path));
        Err(Refusal::Policy(Error::Unsafe { path: path.to_owned(), problem, fix }))
    };

    let link = fs::symlink_metadata(path).map_err(Refusal::Io)?;
    if link.is_symlink() && foreign(link.uid()) {
        return refuse(format!("is a symbolic link that belongs to uid {}", link.uid()), "chown -h root:root");
    }
    let file = File::open(path).map_err(Refusal::Io)?;
    let found = file.metadata().map_err(Refusal::Io)?;
    let mode = found.mode() & 0o7777;
    if foreign(found.uid()) {
        return refuse(
            format!("belongs to uid {}, neither root nor the user who runs this", found.uid()),
            "chown root:root",
        );
    }
    if mode & 0o022 != 0 {
        return refuse(format!("may be written by others than its owner (mode {mode:04o})"), "chmod go-w");
    }

    let whole = || Origin::File { path: path.to_owned(), line: None };
    let syntax = |problem: &str| Refusal::Policy(Error::Syntax { origin: whole(), problem: problem.to_owned() });
    let mut bytes = Vec::new();
    file.take(LONGEST + 1).read_to_end(&mut bytes).map_err(Refusal::Io)?;
    if bytes.len() as u64 > LONGEST {
        return Err(syntax("it is longer than 1 MiB"));
    }
    let text = String::from_utf8(bytes).map_err(|_bytes| syntax("it is not UTF-8"))?;
    Ok(Guarded { text, mode })
}

/// `path` as a shell takes it.
pub(super) fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-+:@%".contains(&byte);
    if text.bytes().all(plain) { text } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

/// Reads the text of a policy file into its settings. The first fault in the file is the one that is told, a version that is not 1 before any.
pub(super) fn settings(path: &Path, text: &str) -> Result<Vec<Setting>, Error> {
    let file = Document { path, text };
    let document = DeTable::parse(text).map_err(|error| Error::Syntax {
        origin: error.span().map_or_else(|| file.whole(), |span| file.at(&span)),
        problem: reworded(error.message()),
    })?;
    let document = document.get_ref();
    file.version(document)?;

    let mut settings = Vec::new();
    for (name, value) in in_order(document) {
        let section = name.get_ref().as_ref();
        let origin = file.at(&name.span());
        if section == "version" {
            continue;
        }
        if let Some(refusal) = keys::unbuilt(section, "", &origin) {
            return Err(refusal);
        }
        if !keys::sections().contains(&section) {
            let is_section = matches!(value.get_ref(), DeValue::Table(_) | DeValue::Array(_));
            return Err(if is_section {
                let key = format!("[{}]", shown(section));
                Error::Unknown { origin, key, section: true, nearest: keys::nearest_section(section) }
            } else {
                let key = keys::label("", section);
                Error::Unknown { origin, key, section: false, nearest: keys::nearest_key("", section) }
            });
        }
        let DeValue::Table(table) = value.get_ref() else {
            let hint = Some(format!("write it as [{section}], with its keys below"));
            let problem = format!("takes keys, not {}", found(value.get_ref()));
            return Err(Error::Value { origin, key: format!("[{section}]"), problem, hint });
        };
        for (name, value) in in_order(table) {
            settings.push(file.setting(section, name, value)?);
        }
    }
    Ok(settings)
}

/// Entries as they stand in the file; the map has them by name.
fn in_order<'t, 'i>(table: &'t DeTable<'i>) -> Vec<(&'t Spanned<std::borrow::Cow<'i, str>>, &'t Spanned<DeValue<'i>>)> {
    let mut entries: Vec<_> = table.iter().collect();
    entries.sort_by_key(|(name, _)| name.span().start);
    entries
}

struct Document<'a> {
    path: &'a Path,
    text: &'a str,
}

impl Document<'_> {
    fn whole(&self) -> Origin {
        Origin::File { path: self.path.to_owned(), line: None }
    }

    fn at(&self, span: &Range<usize>) -> Origin {
        let before = self.text.bytes().take(span.start);
        Origin::File { path: self.path.to_owned(), line: Some(1 + before.filter(|byte| *byte == b'\n').count()) }
    }

    fn version(&self, document: &DeTable<'_>) -> Result<(), Error> {
        let wrong = |origin, problem: String, hint: &str| {
            Err(Error::Value { origin, key: "version".to_owned(), problem, hint: Some(hint.to_owned()) })
        };
        let Some(version) = document.get("version") else {
            return wrong(self.whole(), "is not set".to_owned(), "begin the file with `version = 1`");
        };
        match version.get_ref() {
            DeValue::Integer(number) if number.as_str() == "1" => Ok(()),
            DeValue::Integer(number) => wrong(
                self.at(&version.span()),
                format!("{number} is not a format that etcd-dr {} reads; it reads 1", env!("CARGO_PKG_VERSION")),
                "write `version = 1`, or use the etcd-dr that this policy was written for",
            ),
            other => wrong(
                self.at(&version.span()),
                format!("takes a whole number, not {}", found(other)),
                "write `version = 1`",
            ),
        }
    }

    fn setting(
        &self,
        section: &str,
        name: &Spanned<std::borrow::Cow<'_, str>>,
        value: &Spanned<DeValue<'_>>,
    ) -> Result<Setting, Error> {
        let at_name = self.at(&name.span());
        let name = name.get_ref().as_ref();
        let Some(key) = keys::find(section, name) else {
            return Err(keys::unbuilt(section, name, &at_name).unwrap_or_else(|| Error::Unknown {
                origin: at_name,
                key: keys::label(section, name),
                section: false,
                nearest: keys::nearest_key(section, name),
            }));
        };
        let origin = self.at(&value.span());
        let value = self.value(key, value)?;
        Ok(Setting { key, value, origin })
    }

    fn value(&self, key: &Key, value: &Spanned<DeValue<'_>>) -> Result<Value, Error> {
        let wrong = |span: &Range<usize>, problem: String| Error::Value {
            origin: self.at(span),
            key: key.label(),
            problem,
            hint: None,
        };
        let mistyped = |value: &Spanned<DeValue<'_>>| {
            wrong(&value.span(), format!("takes {}, not {}", key.kind.words(), found(value.get_ref())))
        };
        match (key.kind, value.get_ref()) {
            (Kind::Text, DeValue::String(text)) => Ok(Value::Text(text.clone().into_owned())),
            (Kind::Path, DeValue::String(text)) => {
                let path = PathBuf::from(text.as_ref());
                // What is not a path may be a secret pasted into the wrong place, so it is not repeated.
                if path.is_absolute() {
                    Ok(Value::Path(path))
                } else {
                    Err(wrong(
                        &value.span(),
                        "takes an absolute path, since cron and a shell start in different places".to_owned(),
                    ))
                }
            }
            (Kind::Flag, DeValue::Boolean(flag)) => Ok(Value::Flag(*flag)),
            (Kind::Integer, DeValue::Integer(number)) => i64::from_str_radix(number.as_str(), number.radix())
                .map(Value::Integer)
                .map_err(|_beyond: ParseIntError| wrong(&value.span(), format!("{number} is beyond 64 bits"))),
            (Kind::Texts, DeValue::Array(items)) => items
                .iter()
                .map(|item| match item.get_ref() {
                    DeValue::String(text) => Ok((text.clone().into_owned(), self.at(&item.span()))),
                    _ => Err(mistyped(item)),
                })
                .collect::<Result<_, _>>()
                .map(Value::Texts),
            _ => Err(mistyped(value)),
        }
    }
}

fn found(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "a whole number",
        DeValue::Float(_) => "a fraction",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a section",
    }
}

/// The parser's message in this program's words.
fn reworded(message: &str) -> String {
    message.replace("invalid ", "malformed ").replace("unexpected ", "stray ")
}
