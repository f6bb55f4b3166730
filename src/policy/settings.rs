//! Settings with their origin, before they are validated: what flags, variables and the file say, laid over one another.

use std::{
    collections::BTreeMap,
    fmt::Display,
    path::{self, PathBuf},
};

use super::{
    error::{Error, Origin, shown},
    keys::{self, KEYS, Key, Kind},
};

/// A value of the type that its key takes.
#[derive(Debug, Clone)]
pub(super) enum Value {
    Text(String),
    Path(PathBuf),
    Integer(i64),
    Flag(bool),
    /// Each with its own line.
    Texts(Vec<(String, Origin)>),
}

impl Value {
    pub(super) fn is_text(&self, word: &str) -> bool {
        matches!(self, Self::Text(text) if text == word)
    }

    /// Reads a variable or a default, directed by the key's type. The error is what the value should have been.
    pub(super) fn read(kind: Kind, text: &str, origin: &Origin) -> Result<Self, String> {
        let wrong = || format!("takes {}", kind.words());
        match kind {
            Kind::Text => Ok(Self::Text(text.to_owned())),
            Kind::Path => path::absolute(text).map(Self::Path).map_err(|error| format!("takes a path: {error}")),
            Kind::Integer => text.trim().parse().map(Self::Integer).map_err(|_not_a_number| wrong()),
            Kind::Flag => text.trim().parse().map(Self::Flag).map_err(|_neither| wrong()),
            Kind::Texts => Ok(Self::Texts(
                text.split(',')
                    .map(str::trim)
                    .filter(|item| !item.is_empty())
                    .map(|item| (item.to_owned(), origin.clone()))
                    .collect(),
            )),
        }
    }
}

/// A key, what it is set to, and by whom.
#[derive(Debug, Clone)]
pub(super) struct Setting {
    pub(super) key: &'static Key,
    pub(super) value: Value,
    pub(super) origin: Origin,
}

impl Setting {
    pub(super) fn wrong(&self, problem: impl Into<String>) -> Error {
        Error::Value { origin: self.origin.clone(), key: self.key.label(), problem: problem.into(), hint: None }
    }

    pub(super) fn wrong_but(&self, problem: impl Into<String>, hint: impl Into<String>) -> Error {
        Error::Value {
            origin: self.origin.clone(),
            key: self.key.label(),
            problem: problem.into(),
            hint: Some(hint.into()),
        }
    }
}

/// One setting a key, the one that counts.
#[derive(Debug, Default)]
pub(super) struct Settings(BTreeMap<(&'static str, &'static str), Setting>);

impl Settings {
    /// Lays a setting over what lower layers said.
    pub(super) fn set(&mut self, setting: Setting) {
        self.0.insert((setting.key.table, setting.key.name), setting);
    }

    /// Keeps a setting only where nothing was said before.
    pub(super) fn fill(&mut self, setting: Setting) {
        self.0.entry((setting.key.table, setting.key.name)).or_insert(setting);
    }

    pub(super) fn fill_defaults(&mut self) -> Result<(), Error> {
        for key in KEYS {
            if let Some(text) = key.default {
                self.fill(read(key, text, Origin::Default)?);
            }
        }
        Ok(())
    }

    /// Refuses a value whose feature is not built.
    pub(super) fn refuse_unbuilt(&self) -> Result<(), Error> {
        self.0.values().try_for_each(keys::refuse_unbuilt)
    }

    pub(super) fn get(&self, table: &str, name: &str) -> Option<&Setting> {
        keys::find(table, name).and_then(|key| self.0.get(&(key.table, key.name)))
    }

    fn needed(&self, table: &str, name: &str) -> Result<&Setting, Error> {
        self.get(table, name).ok_or_else(|| Error::Value {
            origin: Origin::Default,
            key: keys::label(table, name),
            problem: "is not set and has no default".to_owned(),
            hint: None,
        })
    }

    pub(super) fn path(&self, table: &str, name: &str) -> Option<PathBuf> {
        match self.get(table, name).map(|setting| &setting.value) {
            Some(Value::Path(path)) => Some(path.clone()),
            _ => None,
        }
    }

    pub(super) fn needed_path(&self, table: &str, name: &str) -> Result<PathBuf, Error> {
        let setting = self.needed(table, name)?;
        match &setting.value {
            Value::Path(path) => Ok(path.clone()),
            _ => Err(setting.wrong("takes a path")),
        }
    }

    pub(super) fn text(&self, table: &str, name: &str) -> Option<String> {
        match self.get(table, name).map(|setting| &setting.value) {
            Some(Value::Text(text)) => Some(text.clone()),
            _ => None,
        }
    }

    /// Reads a text that has a default.
    pub(super) fn parse<T, E: Display>(
        &self,
        table: &str,
        name: &str,
        parse: impl Fn(&str) -> Result<T, E>,
    ) -> Result<T, Error> {
        let setting = self.needed(table, name)?;
        let Value::Text(text) = &setting.value else { return Err(setting.wrong("takes a string")) };
        parse(text).map_err(|problem| setting.wrong(format!("`{}` {problem}", shown(text))))
    }

    /// Reads a number that has a default and lies between `least` and `most`, both included.
    pub(super) fn integer<T: Copy + TryFrom<i64> + PartialOrd + Display>(
        &self,
        table: &str,
        name: &str,
        least: T,
        most: T,
    ) -> Result<T, Error> {
        let setting = self.needed(table, name)?;
        let Value::Integer(number) = setting.value else { return Err(setting.wrong("takes a whole number")) };
        T::try_from(number)
            .ok()
            .filter(|value| *value >= least && *value <= most)
            .ok_or_else(|| setting.wrong(format!("{number} is outside {least} to {most}")))
    }

    /// A list without its repetitions, in the order in which it stands.
    pub(super) fn texts(&self, table: &str, name: &str) -> Vec<(String, Origin)> {
        let mut once: Vec<(String, Origin)> = Vec::new();
        if let Some(Value::Texts(texts)) = self.get(table, name).map(|setting| &setting.value) {
            for (text, origin) in texts {
                let text = text.trim();
                if once.iter().all(|(known, _)| known != text) {
                    once.push((text.to_owned(), origin.clone()));
                }
            }
        }
        once
    }
}

/// A setting from a variable's or a default's text.
pub(super) fn read(key: &'static Key, text: &str, origin: Origin) -> Result<Setting, Error> {
    match Value::read(key.kind, text, &origin) {
        Ok(value) => Ok(Setting { key, value, origin }),
        Err(problem) => Err(Error::Value { origin, key: key.label(), problem, hint: None }),
    }
}
