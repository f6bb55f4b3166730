//! Rows of bucket `lease`.
#![deny(clippy::arithmetic_side_effects)]

use super::proto::{Fields, Malformed, put_int64};
use super::{Damage, u64_be};

/// A lease.
///
/// Format: key, the id as eight bytes big-endian; value, `leasepb.Lease`: etcd 3.6 `server/lease/leasepb/lease.proto`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lease {
    /// Its id; never 0.
    pub id: i64,
    /// Seconds that were granted.
    pub ttl: i64,
    /// Seconds that were left at the last checkpoint; 0 if there was none.
    pub remaining: i64,
}

impl Lease {
    /// Reads a row.
    ///
    /// # Errors
    /// [`Damage::Form`] for a key that is no id, or the id of another lease; [`Damage::Message`].
    pub fn parse(key: &[u8], value: &[u8]) -> Result<Self, Damage> {
        let id = u64_be(key).ok_or_else(|| Damage::form("the key of a lease", "8 bytes", key))?;
        let lease = Self::read(value).map_err(Damage::message("leasepb.Lease"))?;
        if lease.id.cast_unsigned() != id {
            return Err(Damage::form("the key of this lease", "the id in the lease", key));
        }
        Ok(lease)
    }

    fn read(value: &[u8]) -> Result<Self, Malformed> {
        let mut lease = Self::default();
        for field in Fields::new(value) {
            let field = field?;
            match field.number {
                1 => lease.id = field.int64()?,
                2 => lease.ttl = field.int64()?,
                3 => lease.remaining = field.int64()?,
                _ => {}
            }
        }
        Ok(lease)
    }

    /// Key and value of the row as a server writes it.
    #[must_use]
    pub fn to_row(self) -> (Vec<u8>, Vec<u8>) {
        let mut value = Vec::with_capacity(24);
        put_int64(&mut value, 1, self.id);
        put_int64(&mut value, 2, self.ttl);
        put_int64(&mut value, 3, self.remaining);
        (self.id.to_be_bytes().to_vec(), value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_comes_back() {
        let lease = Lease { id: 0x694d_8e4b_1f2a_3c05, ttl: 3600, remaining: 17 };
        let (key, value) = lease.to_row();
        assert_eq!(Lease::parse(&key, &value), Ok(lease));
        assert_eq!(key, [0x69, 0x4d, 0x8e, 0x4b, 0x1f, 0x2a, 0x3c, 0x05]);
    }

    #[test]
    fn a_lease_under_the_key_of_another_is_refused() {
        let (_, value) = Lease { id: 5, ttl: 60, remaining: 0 }.to_row();
        assert!(matches!(Lease::parse(&6_u64.to_be_bytes(), &value), Err(Damage::Form { .. })));
        assert!(matches!(Lease::parse(b"short", &value), Err(Damage::Form { .. })));
    }
}
