//! Rows of buckets `auth`, `authUsers` and `authRoles`.
#![deny(clippy::arithmetic_side_effects)]

use super::proto::{Fields, Malformed};
use super::{Damage, u64_be};
use std::collections::BTreeMap;

/// Who may do what, as far as a restore must know it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Auth {
    /// Clients must authenticate.
    pub enabled: bool,
    /// Counts changes of users and roles: with equal ones, members have equal rows.
    pub revision: Option<u64>,
    /// By name.
    pub users: BTreeMap<String, User>,
    /// By name.
    pub roles: BTreeMap<String, Role>,
}

/// A user; the password's hash is not kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    /// Names of its roles.
    pub roles: Vec<String>,
    /// It can only authenticate by certificate.
    pub no_password: bool,
}

/// A role.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Role {
    /// How many ranges it permits.
    pub permissions: usize,
}

impl Auth {
    /// Takes a row of bucket `auth`. Unknown keys are left alone.
    ///
    /// # Errors
    /// [`Damage::Form`].
    pub fn row(&mut self, key: &[u8], value: &[u8]) -> Result<(), Damage> {
        match key {
            b"authEnabled" => match value {
                [flag @ (0 | 1)] => self.enabled = *flag == 1,
                _ => return Err(Damage::form("authEnabled", "one byte, 0 or 1", value)),
            },
            b"authRevision" => {
                let revision = u64_be(value).ok_or_else(|| Damage::form("authRevision", "8 bytes", value))?;
                self.revision = Some(revision);
            }
            _ => {}
        }
        Ok(())
    }

    /// Takes a row of bucket `authUsers`.
    ///
    /// # Errors
    /// [`Damage::Message`]; [`Damage::Form`] where key and name differ.
    pub fn user(&mut self, key: &[u8], value: &[u8]) -> Result<(), Damage> {
        let (name, user) = user(value).map_err(Damage::message("authpb.User"))?;
        named("user", key, name)?;
        self.users.insert(text(key), user);
        Ok(())
    }

    /// Takes a row of bucket `authRoles`.
    ///
    /// # Errors
    /// [`Damage::Message`]; [`Damage::Form`] where key and name differ.
    pub fn role(&mut self, key: &[u8], value: &[u8]) -> Result<(), Damage> {
        let (name, role) = role(value).map_err(Damage::message("authpb.Role"))?;
        named("role", key, name)?;
        self.roles.insert(text(key), role);
        Ok(())
    }

    /// There is a user `root` with the role `root`: without one nobody can administer a cluster that has auth enabled.
    #[must_use]
    pub fn has_root(&self) -> bool {
        self.users.get("root").is_some_and(|root| root.roles.iter().any(|role| role == "root"))
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn named(what: &'static str, key: &[u8], name: &[u8]) -> Result<(), Damage> {
    if key == name {
        return Ok(());
    }
    Err(Damage::form(if what == "user" { "the name in this user" } else { "the name in this role" }, "its key", name))
}

/// Format: etcd 3.6 `api/authpb/auth.proto`.
fn user(value: &[u8]) -> Result<(&[u8], User), Malformed> {
    let mut name: &[u8] = &[];
    let mut user = User::default();
    for field in Fields::new(value) {
        let field = field?;
        match field.number {
            1 => name = field.bytes()?,
            2 => drop(field.bytes()?),
            3 => user.roles.push(text(field.bytes()?)),
            4 => {
                for option in Fields::new(field.bytes()?) {
                    let option = option?;
                    if option.number == 1 {
                        user.no_password = option.varint()? != 0;
                    }
                }
            }
            _ => {}
        }
    }
    Ok((name, user))
}

fn role(value: &[u8]) -> Result<(&[u8], Role), Malformed> {
    let mut name: &[u8] = &[];
    let mut role = Role::default();
    for field in Fields::new(value) {
        let field = field?;
        match field.number {
            1 => name = field.bytes()?,
            2 => {
                for part in Fields::new(field.bytes()?) {
                    let part = part?;
                    match part.number {
                        1 => drop(part.varint()?),
                        2 | 3 => drop(part.bytes()?),
                        _ => {}
                    }
                }
                role.permissions = role.permissions.saturating_add(1);
            }
            _ => {}
        }
    }
    Ok((name, role))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_roles_and_the_switch() {
        let mut auth = Auth::default();
        auth.row(b"authEnabled", &[1]).unwrap();
        auth.row(b"authRevision", &7_u64.to_be_bytes()).unwrap();
        auth.row(b"later", b"anything").unwrap();
        assert!(auth.enabled && !auth.has_root());
        auth.user(b"root", b"\x0a\x04root\x12\x02$2\x1a\x04root\x22\x00").unwrap();
        auth.user(b"ci", b"\x0a\x02ci\x1a\x06reader\x22\x02\x08\x01").unwrap();
        auth.role(b"reader", b"\x0a\x06reader\x12\x05\x12\x01a\x1a\x00\x12\x00").unwrap();
        assert!(auth.has_root());
        assert_eq!(auth.revision, Some(7));
        assert_eq!(auth.users["ci"], User { roles: vec!["reader".to_owned()], no_password: true });
        assert_eq!(auth.roles["reader"].permissions, 2);
    }

    #[test]
    fn rows_that_contradict_their_keys_are_refused() {
        let mut auth = Auth::default();
        assert!(auth.row(b"authEnabled", &[2]).is_err());
        assert!(auth.row(b"authRevision", &[0; 7]).is_err());
        assert!(auth.user(b"root", b"\x0a\x03roo").is_err());
        assert!(auth.role(b"reader", b"\x0a\x05write").is_err());
        assert!(auth.user(b"root", b"\x0a\x05root").is_err());
        assert_eq!(auth, Auth::default());
    }
}
