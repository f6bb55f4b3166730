//! The environment: `ETCD_DR_<TABLE>__<KEY>`, `ETCD_DR_POLICY`, and etcdctl's own variables.

use super::{
    error::{Error, Origin},
    keys::{self, KEYS, Key},
    settings::{self, Setting},
};

const PREFIX: &str = "ETCD_DR_";

/// Names the policy file.
pub(super) const POLICY: &str = "ETCD_DR_POLICY";

/// What etcdctl reads too, and the key that each fills.
const ETCDCTL: [(&str, &str); 4] = [
    ("ETCDCTL_ENDPOINTS", "endpoints"),
    ("ETCDCTL_CACERT", "ca_file"),
    ("ETCDCTL_CERT", "cert_file"),
    ("ETCDCTL_KEY", "key_file"),
];

/// The variables of this process that a policy reads, and no other. Bytes that are not UTF-8 become U+FFFD, which [`super::Policy::load`] refuses.
///
/// This is the only place of the program that reads the environment.
#[must_use]
pub fn environment() -> Vec<(String, String)> {
    #[allow(clippy::disallowed_methods, reason = "this is the place that reads the environment")]
    let all = std::env::vars_os();
    all.filter_map(|(name, value)| {
        let name = name.into_string().ok()?;
        let ours = name.starts_with(PREFIX) || ETCDCTL.iter().any(|(known, _)| *known == name);
        ours.then(|| (name, value.to_string_lossy().into_owned()))
    })
    .collect()
}

/// The policy file that the environment names; an empty variable names none.
pub(super) fn policy_file(variables: &[(String, String)]) -> Result<Option<&str>, Error> {
    match variables.iter().find(|(name, value)| name == POLICY && !value.is_empty()) {
        Some((name, value)) => readable(name, value, "the policy file").map(Some),
        None => Ok(None),
    }
}

/// The settings of `ETCD_DR_<TABLE>__<KEY>`, and a warning for each name that has one underscore where two are meant.
pub(super) fn settings(variables: &[(String, String)], warnings: &mut Vec<String>) -> Result<Vec<Setting>, Error> {
    let mut settings = Vec::new();
    for (name, value) in variables {
        let Some(rest) = name.strip_prefix(PREFIX).filter(|_| name != POLICY) else { continue };
        let Some((table, key)) = rest.split_once("__") else {
            let meant = KEYS.iter().filter_map(Key::variable).find(|known| known.replace("__", "_") == *name);
            warnings.extend(meant.map(|meant| format!("{name} is not read: the variable is {meant}")));
            continue;
        };
        let (table, key) = (table.to_ascii_lowercase(), key.to_ascii_lowercase());
        let origin = Origin::Variable(name.clone());
        match KEYS.iter().find(|key| key.variable().as_deref() == Some(name)) {
            Some(known) => settings.push(settings::read(known, readable(name, value, &known.label())?, origin)?),
            None => {
                return Err(keys::unbuilt(&table, &key, &origin).unwrap_or_else(|| Error::Unknown {
                    origin,
                    key: keys::label(&table, &key),
                    section: false,
                    nearest: keys::nearest_variable(name),
                }));
            }
        }
    }
    Ok(settings)
}

/// The settings of etcdctl's variables; an empty one counts as unset, as it does for etcdctl.
pub(super) fn etcdctl(variables: &[(String, String)]) -> Result<Vec<Setting>, Error> {
    let mut settings = Vec::new();
    for (name, value) in variables.iter().filter(|(_, value)| !value.is_empty()) {
        let key = ETCDCTL.iter().find(|(known, _)| known == name).and_then(|(_, key)| keys::find("cluster", key));
        if let Some(key) = key {
            settings.push(settings::read(key, readable(name, value, &key.label())?, Origin::Variable(name.clone()))?);
        }
    }
    Ok(settings)
}

fn readable<'v>(name: &str, value: &'v str, key: &str) -> Result<&'v str, Error> {
    if value.contains(char::REPLACEMENT_CHARACTER) {
        let origin = Origin::Variable(name.to_owned());
        return Err(Error::Value { origin, key: key.to_owned(), problem: "is not UTF-8".to_owned(), hint: None });
    }
    Ok(value)
}
