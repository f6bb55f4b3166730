//! Identifiers: backups, etcd's members and clusters, SHA-256 digests.

use std::{fmt, str::FromStr};

use jiff::{Timestamp, fmt::strtime, tz::TimeZone};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The name of a backup, `20261122T020000Z-7f3a`: its creation time in UTC and four random hexadecimal digits.
///
/// The order of ids is the order of the times that they carry. The time in the *signed* index counts, never the one in a directory's name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BackupId(String);

impl BackupId {
    /// The id of a backup begun at `now`; `salt` keeps two of one second apart.
    #[must_use]
    pub fn new(now: Timestamp, salt: u16) -> Self {
        Self(format!("{}-{salt:04x}", now.to_zoned(TimeZone::UTC).strftime("%Y%m%dT%H%M%SZ")))
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The text is not the name of a backup.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not the id of a backup, which looks like 20261122T020000Z-7f3a")]
pub struct BadBackupId(pub String);

impl FromStr for BackupId {
    type Err = BadBackupId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || BadBackupId(text.to_owned());
        let (time, salt) = text.split_once('-').ok_or_else(bad)?;
        let salt_ok = salt.len() == 4 && salt.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        let time_ok = time.len() == 16 && strtime::parse("%Y%m%dT%H%M%SZ", time).is_ok_and(|t| t.to_datetime().is_ok());
        if salt_ok && time_ok { Ok(Self(text.to_owned())) } else { Err(bad()) }
    }
}

impl fmt::Display for BackupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl Serialize for BackupId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for BackupId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// A member's or a cluster's id: 64 bits, written as lower-case hexadecimal without `0x` or padding, as etcd's tools print it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EtcdId(pub u64);

impl fmt::Display for EtcdId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}", self.0)
    }
}

impl FromStr for EtcdId {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        u64::from_str_radix(text, 16).map(Self)
    }
}

impl Serialize for EtcdId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for EtcdId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// A SHA-256 digest, written as 64 lower-case hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Sha256Hex(pub [u8; 32]);

/// The text is not a SHA-256 digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a SHA-256 digest of 64 lower-case hexadecimal digits")]
pub struct BadDigest(pub String);

impl fmt::Display for Sha256Hex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl FromStr for Sha256Hex {
    type Err = BadDigest;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || BadDigest(text.to_owned());
        if text.len() != 64 || !text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(bad());
        }
        let mut digest = [0; 32];
        for (byte, pair) in digest.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            let pair = std::str::from_utf8(pair).map_err(|_cause| bad())?;
            *byte = u8::from_str_radix(pair, 16).map_err(|_cause| bad())?;
        }
        Ok(Self(digest))
    }
}

impl Serialize for Sha256Hex {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Sha256Hex {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backup_id_carries_its_time_and_round_trips() {
        let now: Timestamp = "2026-11-22T02:00:00Z".parse().unwrap();
        let id = BackupId::new(now, 0x7f3a);
        assert_eq!(id.as_str(), "20261122T020000Z-7f3a");
        assert_eq!(id.as_str().parse::<BackupId>().unwrap(), id);
    }

    #[test]
    fn other_names_are_no_backup_ids() {
        for name in [
            "",
            "latest",
            "20261122T020000Z",
            "20261122T020000Z-7F3A",
            "20261322T020000Z-7f3a",
            "20261122T020000Z-7f3a/",
            "../x",
        ] {
            assert!(name.parse::<BackupId>().is_err(), "{name}");
        }
    }

    #[test]
    fn digests_and_ids_are_lower_case_hexadecimal() {
        let digest = Sha256Hex([0xab; 32]);
        assert_eq!(digest.to_string().parse::<Sha256Hex>().unwrap(), digest);
        assert!("AB".repeat(32).parse::<Sha256Hex>().is_err());
        assert!("é".repeat(32).parse::<Sha256Hex>().is_err());
        assert_eq!(EtcdId(0x00ab_cdef).to_string(), "abcdef");
        assert_eq!("8e9e05c52164694d".parse::<EtcdId>().unwrap(), EtcdId(0x8e9e_05c5_2164_694d));
    }
}
