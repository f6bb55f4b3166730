//! The one list of what a policy may say. The reader, the variables' names, the defaults and the nearest name of a typo all come from here, so
//! none of them can fall behind another.

use super::{
    error::{Error, Nearest, Origin, shown},
    settings::{Setting, Value},
};

/// What a key takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A string.
    Text,
    /// A string that is a path: absolute in the file; from a shell it may be relative to the working directory.
    Path,
    /// A whole number.
    Integer,
    /// `true` or `false`.
    Flag,
    /// A list of strings; with commas between them in a variable.
    Texts,
}

impl Kind {
    pub(super) const fn words(self) -> &'static str {
        match self {
            Self::Text => "a string",
            Self::Path => "a path, as a string",
            Self::Integer => "a whole number",
            Self::Flag => "true or false",
            Self::Texts => "a list of strings",
        }
    }
}

/// One key of the policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Key {
    /// The section; empty for what stands above all sections.
    pub table: &'static str,
    /// The key's name in it.
    pub name: &'static str,
    /// What it takes.
    pub kind: Kind,
    /// What holds without it, written as in a variable; none where nothing does.
    pub default: Option<&'static str>,
    /// What it is for, in one line.
    pub meaning: &'static str,
}

impl Key {
    /// As errors name it: `[retention] keep_within`.
    #[must_use]
    pub fn label(&self) -> String {
        label(self.table, self.name)
    }

    /// The environment variable that sets it, `ETCD_DR_<TABLE>__<KEY>`; none for `version`, which speaks of the file.
    #[must_use]
    pub fn variable(&self) -> Option<String> {
        (!self.table.is_empty()).then(|| format!("ETCD_DR_{}__{}", self.table, self.name).to_ascii_uppercase())
    }
}

pub(super) fn label(table: &str, name: &str) -> String {
    if table.is_empty() { shown(name) } else { format!("[{}] {}", shown(table), shown(name)) }
}

const fn key(
    table: &'static str,
    name: &'static str,
    kind: Kind,
    default: Option<&'static str>,
    meaning: &'static str,
) -> Key {
    Key { table, name, kind, default, meaning }
}

/// The default of `[backup] prove`: what a run proves of its own backup.
const DEFAULT_PROVE: &str = "sound";
/// The default of `[retention] min_proof`; never above [`DEFAULT_PROVE`].
const DEFAULT_MIN_PROOF: &str = "sound";

/// Every key that this version reads, section by section.
#[rustfmt::skip]
pub const KEYS: &[Key] = &[
    key("", "version", Kind::Integer, None, "the policy's format; 1"),
    key("cluster", "name", Kind::Text, Some("etcd"), "what people call the cluster"),
    key("cluster", "endpoints", Kind::Texts, None, "client URLs of members, any one is enough; the others come from the member list"),
    key("cluster", "ca_file", Kind::Path, None, "the CA that signs etcd's server certificates"),
    key("cluster", "cert_file", Kind::Path, None, "client certificate; with key_file"),
    key("cluster", "key_file", Kind::Path, None, "key of the client certificate"),
    key("cluster", "user", Kind::Text, None, "etcd user, where etcd has authentication on; with password_file"),
    key("cluster", "password_file", Kind::Path, None, "file whose first line is the user's password"),
    key("store", "path", Kind::Path, Some("/backup/etcd"), "directory that holds the backups"),
    key("store", "public_index", Kind::Flag, Some("true"), "backup.json is readable where the backup lies"),
    key("store", "reserve", Kind::Text, Some("5%"), "space that a backup leaves free: a share of the file system, or a size"),
    key("backup", "zstd_level", Kind::Integer, Some("3"), "compression, 1 to 19"),
    key("backup", "parallel", Kind::Integer, Some("1"), "members that stream at once"),
    key("backup", "scratch_dir", Kind::Path, None, "where a proof keeps its encrypted, unnamed copy of a database [default: the store]"),
    key("backup", "keep_members", Kind::Text, Some("all"), "whose snapshots are kept when all members agree: all or primary"),
    key("backup", "prove", Kind::Text, Some(DEFAULT_PROVE), "the level that a backup proves before it is published: digest, open or sound"),
    key("backup", "connect_timeout", Kind::Text, Some("5s"), "longest wait for a connection"),
    key("backup", "stall_timeout", Kind::Text, Some("30s"), "longest wait for the next message of a stream"),
    key("backup", "max_lag", Kind::Integer, Some("1000"), "revisions that a member may be behind and still be the primary"),
    key("encryption", "recipients", Kind::Texts, None, "age recipients who can open the backups; two at least are wise"),
    key("encryption", "recipients_file", Kind::Path, None, "file of age recipients, one a line, added to recipients"),
    key("encryption", "identity_file", Kind::Path, Some("/etc/etcd-dr/identity.txt"), "age identity, only where backups are opened"),
    key("signing", "secret_key_file", Kind::Path, Some("/etc/etcd-dr/signing.key"), "minisign secret key of this host"),
    key("signing", "trusted", Kind::Texts, None, "minisign public keys, or .pub files, whose signatures count"),
    key("retention", "keep_within", Kind::Text, Some("5d"), "every backup younger than this is kept"),
    key("retention", "keep_proved", Kind::Integer, Some("3"), "proved backups that are kept whatever their age; 1 at least"),
    key("retention", "min_proof", Kind::Text, Some(DEFAULT_MIN_PROOF), "the level from which a backup counts as proved: digest, open or sound; never above prove"),
    key("retention", "keep_daily", Kind::Integer, Some("0"), "days of which the last proved backup is kept; days without one do not count"),
    key("retention", "keep_weekly", Kind::Integer, Some("0"), "ISO weeks of which the last proved backup is kept; as with days"),
    key("retention", "keep_monthly", Kind::Integer, Some("0"), "months of which the last proved backup is kept; as with days"),
];

/// What later versions do and this one does not. The version that builds it removes the line.
struct Unbuilt {
    table: &'static str,
    /// Empty: the whole section.
    name: &'static str,
    /// Which values; a key that is not in [`KEYS`] has none that works.
    refused: fn(&Value) -> bool,
    words: &'static str,
}

const fn section(table: &'static str, words: &'static str) -> Unbuilt {
    Unbuilt { table, name: "", refused: |_| true, words }
}

const UNBUILT: &[Unbuilt] = &[
    section("kubernetes", "the export of Kubernetes objects is not built yet"),
    section("control_plane", "saving the control plane's host files is not built yet"),
    section("target", "copying backups to targets is not built yet"),
    section("schedule", "the agent is not built yet; cron or a systemd timer runs `etcd-dr backup`"),
    section("drill", "the drill is not built yet"),
    section("metrics", "metrics are not built yet"),
    section("notify", "notifying is not built yet"),
    Unbuilt {
        table: "store",
        name: "public_index",
        refused: |value| matches!(value, Value::Flag(false)),
        words: "etcd-dr 0.1 leaves backup.json readable; sealing it is not built yet",
    },
    Unbuilt {
        table: "backup",
        name: "parallel",
        refused: |value| matches!(value, Value::Integer(2..)),
        words: "etcd-dr 0.1 streams one member after the other; several at once is not built yet",
    },
    Unbuilt {
        table: "backup",
        name: "prove",
        refused: |value| value.is_text("boot") || value.is_text("serve"),
        words: "a backup proves up to `sound`; `boot` and `serve` are a drill's, which is not built yet",
    },
    Unbuilt {
        table: "retention",
        name: "min_proof",
        refused: |value| value.is_text("boot") || value.is_text("serve"),
        words: "a backup proves up to `sound`; `boot` and `serve` are a drill's, which is not built yet",
    },
];

/// The sections that this version reads, in the order of [`KEYS`].
pub(super) fn sections() -> Vec<&'static str> {
    let mut sections: Vec<_> = KEYS.iter().map(|key| key.table).filter(|table| !table.is_empty()).collect();
    sections.dedup();
    sections
}

pub(super) fn find(table: &str, name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.table == table && key.name == name)
}

/// The refusal of a section, or of a key that has no value which works yet.
pub(super) fn unbuilt(table: &str, name: &str, origin: &Origin) -> Option<Error> {
    let line = UNBUILT.iter().find(|line| {
        line.table == table && (line.name.is_empty() || (line.name == name && find(table, name).is_none()))
    })?;
    let key = if line.name.is_empty() { format!("[{table}]") } else { label(table, name) };
    Some(Error::NotBuilt { origin: origin.clone(), key, problem: line.words.to_owned() })
}

/// Refuses a value whose feature is not built.
pub(super) fn refuse_unbuilt(setting: &Setting) -> Result<(), Error> {
    let key = setting.key;
    match UNBUILT.iter().find(|line| line.table == key.table && line.name == key.name && (line.refused)(&setting.value))
    {
        None => Ok(()),
        Some(line) => {
            Err(Error::NotBuilt { origin: setting.origin.clone(), key: key.label(), problem: line.words.to_owned() })
        }
    }
}

/// The nearest section; those that are not built are near too, since their own error then says so.
pub(super) fn nearest_section(word: &str) -> Nearest {
    let known = sections();
    let all = known.iter().copied().chain(UNBUILT.iter().filter(|line| line.name.is_empty()).map(|line| line.table));
    near(word, all).map_or_else(
        || Nearest::Known(known.iter().map(|section| format!("[{section}]")).collect()),
        |section| Nearest::One(format!("[{section}]")),
    )
}

/// The nearest key of a section, else the key of that very name in another one. An empty `table` stands for the file's top.
pub(super) fn nearest_key(table: &str, word: &str) -> Nearest {
    let names = || KEYS.iter().filter(|key| key.table == table).map(|key| key.name);
    if let Some(name) = near(word, names()) {
        return Nearest::One(name.to_owned());
    }
    if let Some(key) = KEYS.iter().find(|key| key.name == word) {
        return Nearest::One(format!("{} in [{}]", key.name, key.table));
    }
    let mut known: Vec<_> = names().map(str::to_owned).collect();
    if table.is_empty() {
        known.extend(sections().iter().map(|section| format!("[{section}]")));
    }
    Nearest::Known(known)
}

/// The nearest variable.
pub(super) fn nearest_variable(word: &str) -> Nearest {
    let known: Vec<_> = KEYS.iter().filter_map(Key::variable).collect();
    match near(word, known.iter().map(String::as_str)) {
        Some(name) => Nearest::One(name.to_owned()),
        None => Nearest::Known(known),
    }
}

fn near<'a>(word: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    /// Of 1; half of the letters may be wrong in `max_lga`, not in `paths` for `parallel`.
    const ALIKE: f64 = 0.6;
    known
        .map(|name| (strsim::normalized_damerau_levenshtein(word, name), name))
        .filter(|(alike, _)| *alike >= ALIKE)
        .max_by(|(one, _), (other, _)| one.total_cmp(other))
        .map(|(_, name)| name)
}
