//! The record of one change of one key.
#![deny(clippy::arithmetic_side_effects)]

use super::Damage;
use super::proto::{Fields, Malformed, put_bytes, put_int64};

/// A value of bucket `key`: `mvccpb.KeyValue`, borrowed from the row.
///
/// A tombstone has only `key`. A row of no bytes at all is a record with nothing set: what `etcdutl snapshot restore --bump-revision`
/// writes to raise the revision.
///
/// Format: etcd 3.6 `api/mvccpb/kv.proto`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KeyValue<'a> {
    /// The user's key.
    pub key: &'a [u8],
    /// Main revision that made the key live.
    pub create_revision: i64,
    /// Main revision of this record.
    pub mod_revision: i64,
    /// How often the key was put since it lives, this time included.
    pub version: i64,
    /// The user's value.
    pub value: &'a [u8],
    /// The lease the key hangs on; 0 if none.
    pub lease: i64,
}

impl<'a> KeyValue<'a> {
    /// Reads a record. Fields that are not known are skipped, as servers do.
    ///
    /// # Errors
    /// [`Damage::Message`].
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Damage> {
        Self::read(bytes).map_err(Damage::message("mvccpb.KeyValue"))
    }

    fn read(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let mut record = Self::default();
        for field in Fields::new(bytes) {
            let field = field?;
            match field.number {
                1 => record.key = field.bytes()?,
                2 => record.create_revision = field.int64()?,
                3 => record.mod_revision = field.int64()?,
                4 => record.version = field.int64()?,
                5 => record.value = field.bytes()?,
                6 => record.lease = field.int64()?,
                _ => {}
            }
        }
        Ok(record)
    }

    /// The bytes as a server writes them: in the order of field numbers, and without what is zero or empty.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.key.len().saturating_add(self.value.len()).saturating_add(48));
        put_bytes(&mut bytes, 1, self.key);
        put_int64(&mut bytes, 2, self.create_revision);
        put_int64(&mut bytes, 3, self.mod_revision);
        put_int64(&mut bytes, 4, self.version);
        put_bytes(&mut bytes, 5, self.value);
        put_int64(&mut bytes, 6, self.lease);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The same message through a second implementation, whose encoding is gogo's in field order.
    #[derive(prost::Message)]
    struct Prost {
        #[prost(bytes = "vec", tag = "1")]
        key: Vec<u8>,
        #[prost(int64, tag = "2")]
        create_revision: i64,
        #[prost(int64, tag = "3")]
        mod_revision: i64,
        #[prost(int64, tag = "4")]
        version: i64,
        #[prost(bytes = "vec", tag = "5")]
        value: Vec<u8>,
        #[prost(int64, tag = "6")]
        lease: i64,
    }

    #[test]
    fn a_marker_is_a_record_of_nothing() {
        assert_eq!(KeyValue::parse(b""), Ok(KeyValue::default()));
        assert_eq!(KeyValue::default().to_bytes(), b"");
    }

    #[test]
    fn a_field_of_another_type_is_refused() {
        let error = KeyValue::parse(&[0x0a, 1, b'k', 0x12, 0]).unwrap_err();
        assert_eq!(error.to_string(), "the value is no mvccpb.KeyValue: field 2 has another type (byte 3)");
    }

    proptest! {
        #[test]
        fn two_implementations_write_and_read_the_same(
            key in prop::collection::vec(any::<u8>(), 0..20),
            numbers in prop::array::uniform4(any::<i64>()),
            value in prop::collection::vec(any::<u8>(), 0..300),
        ) {
            let [create_revision, mod_revision, version, lease] = numbers;
            let ours = KeyValue { key: &key, create_revision, mod_revision, version, value: &value, lease };
            let theirs = Prost { key: key.clone(), create_revision, mod_revision, version, value: value.clone(), lease };
            let bytes = prost::Message::encode_to_vec(&theirs);
            prop_assert_eq!(&ours.to_bytes(), &bytes);
            prop_assert_eq!(KeyValue::parse(&bytes).unwrap(), ours);
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
            if let Ok(record) = KeyValue::parse(&bytes) {
                let bytes = record.to_bytes();
                prop_assert_eq!(KeyValue::parse(&bytes), Ok(record));
            }
        }
    }
}
