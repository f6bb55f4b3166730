//! Just enough protobuf: fields of a message, borrowed, and as strict as the decoder in etcd's servers.
#![deny(clippy::arithmetic_side_effects)]

use std::fmt;

/// Why bytes are not the message they should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed {
    /// Bytes into the message.
    pub at: usize,
    /// What is wrong there.
    pub what: What,
}

/// What is wrong with a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// The message ends inside a field.
    Ends,
    /// A variable-length integer of more than 64 bits.
    Overflow,
    /// A field number or type that does not exist.
    Tag,
    /// A field that this message knows, with the type of another.
    Type {
        /// Its number.
        field: u32,
    },
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.what {
            What::Ends => write!(f, "it ends inside a field"),
            What::Overflow => write!(f, "an integer of more than 64 bits"),
            What::Tag => write!(f, "no such field type"),
            What::Type { field } => write!(f, "field {field} has another type"),
        }?;
        write!(f, " (byte {})", self.at)
    }
}

impl std::error::Error for Malformed {}

/// What a field holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::etcd) enum Value<'a> {
    /// Wire type 0.
    Varint(u64),
    /// Wire type 2: bytes, a string or a message.
    Bytes(&'a [u8]),
    /// Any other: of no use here, but no reason to refuse it in a field that is not known.
    Other,
}

/// One field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::etcd) struct Field<'a> {
    pub number: u32,
    pub value: Value<'a>,
    at: usize,
}

impl<'a> Field<'a> {
    /// An `int64`, `uint64`, `bool` or `enum`.
    pub fn varint(&self) -> Result<u64, Malformed> {
        match self.value {
            Value::Varint(v) => Ok(v),
            Value::Bytes(_) | Value::Other => Err(self.of_other_type()),
        }
    }

    /// An `int64`: negative ones are written as their two's complement.
    pub fn int64(&self) -> Result<i64, Malformed> {
        self.varint().map(u64::cast_signed)
    }

    /// `bytes`, a `string` or a message.
    pub fn bytes(&self) -> Result<&'a [u8], Malformed> {
        match self.value {
            Value::Bytes(bytes) => Ok(bytes),
            Value::Varint(_) | Value::Other => Err(self.of_other_type()),
        }
    }

    fn of_other_type(&self) -> Malformed {
        Malformed { at: self.at, what: What::Type { field: self.number } }
    }
}

/// The fields of a message in the order in which they lie there; after an error, that error again.
pub(in crate::etcd) struct Fields<'a> {
    rest: &'a [u8],
    length: usize,
    failed: Option<Malformed>,
}

impl<'a> Fields<'a> {
    pub fn new(message: &'a [u8]) -> Self {
        Self { rest: message, length: message.len(), failed: None }
    }

    fn at(&self) -> usize {
        self.length.saturating_sub(self.rest.len())
    }

    fn error(&self, what: What) -> Malformed {
        Malformed { at: self.at(), what }
    }

    fn field(&mut self) -> Result<Field<'a>, Malformed> {
        let at = self.at();
        let (number, wire) = self.tag()?;
        let value = match wire {
            0 => Value::Varint(self.varint()?),
            2 => Value::Bytes(self.bytes()?),
            other => {
                self.skip(other)?;
                Value::Other
            }
        };
        Ok(Field { number, value, at })
    }

    fn tag(&mut self) -> Result<(u32, u8), Malformed> {
        let at = self.at();
        let tag = self.varint()?;
        let illegal = Malformed { at, what: What::Tag };
        let number = u32::try_from(tag >> 3).ok().filter(|n| (1..1 << 29).contains(n)).ok_or(illegal)?;
        let wire = u8::try_from(tag & 7).ok().ok_or(illegal)?;
        Ok((number, wire))
    }

    /// Skips a value of a wire type that no field here has: fixed numbers, and groups, which nest; counted, not recursed into.
    fn skip(&mut self, wire: u8) -> Result<(), Malformed> {
        let mut open = 0_usize;
        let mut wire = wire;
        loop {
            match wire {
                0 => drop(self.varint()?),
                1 => drop(self.take(8)?),
                2 => drop(self.bytes()?),
                3 => open = open.saturating_add(1),
                4 if open > 0 => open = open.saturating_sub(1),
                5 => drop(self.take(4)?),
                _ => return Err(self.error(What::Tag)),
            }
            if open == 0 {
                return Ok(());
            }
            wire = self.tag()?.1;
        }
    }

    fn varint(&mut self) -> Result<u64, Malformed> {
        let mut value = 0_u64;
        let mut rest = self.rest;
        for shift in (0..64_u32).step_by(7) {
            let Some((&byte, after)) = rest.split_first() else { return Err(self.error(What::Ends)) };
            rest = after;
            let bits = u64::from(byte & 0x7f);
            let placed = bits.wrapping_shl(shift);
            if placed.wrapping_shr(shift) != bits {
                return Err(self.error(What::Overflow));
            }
            value |= placed;
            if byte < 0x80 {
                self.rest = rest;
                return Ok(value);
            }
        }
        Err(self.error(What::Overflow))
    }

    fn bytes(&mut self) -> Result<&'a [u8], Malformed> {
        let at = self.at();
        let length = self.varint()?;
        let length = usize::try_from(length).ok().ok_or(Malformed { at, what: What::Ends })?;
        self.take(length)
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.rest.split_at_checked(length).ok_or(self.error(What::Ends))?;
        self.rest = rest;
        Ok(taken)
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<Field<'a>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(failed) = self.failed {
            return Some(Err(failed));
        }
        if self.rest.is_empty() {
            return None;
        }
        let field = self.field();
        self.failed = field.err();
        Some(field)
    }
}

/// Writes a variable-length integer.
fn put_varint(to: &mut Vec<u8>, mut value: u64) {
    loop {
        let low = value.to_le_bytes().first().copied().unwrap_or_default() & 0x7f;
        value >>= 7;
        if value == 0 {
            to.push(low);
            return;
        }
        to.push(low | 0x80);
    }
}

/// Writes an integer field; as in proto3, zero is not written.
pub(in crate::etcd) fn put_int64(to: &mut Vec<u8>, number: u8, value: i64) {
    if value != 0 {
        put_varint(to, u64::from(number) << 3);
        put_varint(to, value.cast_unsigned());
    }
}

/// Writes a field of bytes; as in proto3, none is not written.
pub(in crate::etcd) fn put_bytes(to: &mut Vec<u8>, number: u8, value: &[u8]) {
    if !value.is_empty() {
        put_varint(to, u64::from(number) << 3 | 2);
        put_varint(to, u64::try_from(value.len()).unwrap_or(u64::MAX));
        to.extend_from_slice(value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8]) -> Result<Vec<(u32, Value<'_>)>, Malformed> {
        Fields::new(bytes).take(100).map(|f| f.map(|f| (f.number, f.value))).collect()
    }

    #[test]
    fn fields_that_are_not_known_are_skipped() {
        let bytes =
            [0x48, 1, 0x51, 1, 2, 3, 4, 5, 6, 7, 8, 0x5d, 1, 2, 3, 4, 0x5b, 0x53, 8, 1, 0x54, 0x5c, 0x0a, 1, b'k'];
        let fields = read(&bytes).unwrap();
        assert_eq!(
            fields,
            [
                (9, Value::Varint(1)),
                (10, Value::Other),
                (11, Value::Other),
                (11, Value::Other),
                (1, Value::Bytes(b"k"))
            ]
        );
    }

    #[test]
    fn integers_go_up_to_64_bits() {
        let most = [0x08, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01];
        assert_eq!(read(&most), Ok(vec![(1, Value::Varint(u64::MAX))]));
        let mut more = most;
        more[10] = 2;
        assert_eq!(read(&more), Err(Malformed { at: 1, what: What::Overflow }));
        assert_eq!(read(&[0x08; 1]), Err(Malformed { at: 1, what: What::Ends }));
        assert_eq!(read(&[&[0x08][..], &[0x80; 11]].concat()), Err(Malformed { at: 1, what: What::Overflow }));
    }

    #[test]
    fn what_no_decoder_takes_is_refused_and_stays_refused() {
        for (bytes, at, what) in [
            (&[0x0a, 2, b'k'][..], 2, What::Ends),
            (&[0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01], 11, What::Ends),
            (&[0x00, 1], 0, What::Tag),
            (&[0x0c], 1, What::Tag),
            (&[0x0e, 1], 1, What::Tag),
            (&[0x0b, 0x0b], 2, What::Ends),
            (&[0x80, 0x80, 0x80, 0x80, 0x80, 0x01, 0], 0, What::Tag),
        ] {
            let mut fields = Fields::new(bytes);
            let expected = Some(Err(Malformed { at, what }));
            assert_eq!(fields.next(), expected, "{bytes:02x?}");
            assert_eq!(fields.next(), expected, "{bytes:02x?} again");
        }
    }
}
