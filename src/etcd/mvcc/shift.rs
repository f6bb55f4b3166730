//! CRC-32C of bytes one after the other, from their own CRCs.
//!
//! `crc(a then b) = shift(crc(a), |b|) ^ crc(b)`, where `shift` multiplies by `x^(8 |b|)` in the polynomials over two elements modulo
//! Castagnoli's: so a hash over any selection of rows follows from one CRC and one length of each, and the rows are read once.
#![deny(clippy::arithmetic_side_effects)]

use std::sync::LazyLock;

/// Castagnoli's polynomial, lowest power in the highest bit.
const POLYNOMIAL: u32 = 0x82f6_3b78;
/// `x^0`.
const ONE: u32 = 1 << 31;
/// `x^8`: one byte further.
const BYTE: u32 = 1 << 23;

/// `x^(8 * n * 256^place)` for each value `n` of each byte, `place`, of a 32-bit length.
static POWERS: LazyLock<[[u32; 256]; 4]> = LazyLock::new(|| {
    let mut powers = [[ONE; 256]; 4];
    let mut step = BYTE;
    for place in &mut powers {
        let mut power = ONE;
        for entry in place {
            *entry = power;
            power = multiply(power, step);
        }
        step = power;
    }
    powers
});

fn multiply(mut a: u32, mut b: u32) -> u32 {
    let mut product = 0;
    for _ in 0..32 {
        product ^= b & 0_u32.wrapping_sub(a >> 31);
        a <<= 1;
        b = (b >> 1) ^ (POLYNOMIAL & 0_u32.wrapping_sub(b & 1));
    }
    product
}

/// CRC-32C of what `before` is the CRC of, followed by `length` bytes whose CRC is `crc`.
pub(in crate::etcd) fn append(before: u32, crc: u32, length: u32) -> u32 {
    let mut shifted = before;
    for (place, byte) in POWERS.iter().zip(length.to_le_bytes()) {
        if byte != 0 {
            shifted = multiply(shifted, place.get(usize::from(byte)).copied().unwrap_or(ONE));
        }
    }
    shifted ^ crc
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn long_lengths_shift_as_well() {
        let zeros = vec![0; 70_000];
        let before = crc32c::crc32c(b"before");
        for length in [0, 1, 255, 256, 65_535, 65_536, 65_537, 70_000] {
            let after = &zeros[..length];
            let length = u32::try_from(length).unwrap();
            assert_eq!(append(before, crc32c::crc32c(after), length), crc32c::crc32c_append(before, after), "{length}");
        }
        let mut far = before;
        for _ in 0..256 {
            far = append(far, 0x1234_5678, 65_536);
        }
        let mut one = 0;
        for _ in 0..256 {
            one = append(one, 0x1234_5678, 65_536);
        }
        assert_eq!(append(before, one, 256 * 65_536), far);
    }

    proptest! {
        #[test]
        fn it_is_the_crc_of_both(a in prop::collection::vec(any::<u8>(), 0..600), b in prop::collection::vec(any::<u8>(), 0..600)) {
            let joined = append(crc32c::crc32c(&a), crc32c::crc32c(&b), u32::try_from(b.len()).unwrap());
            prop_assert_eq!(joined, crc32c::crc32c(&[a, b].concat()));
        }
    }
}
