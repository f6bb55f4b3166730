//! Durations and sizes as people write them: `26h`, `5d`, `512MiB`.

use std::time::Duration;

/// The longest duration that is read, 100 years: dates can be reckoned with it without overflow.
pub const LONGEST: Duration = Duration::from_secs(36_500 * 86_400);

/// Seconds in each unit of a duration.
const SECONDS: [(&str, u64); 5] = [("s", 1), ("m", 60), ("h", 3_600), ("d", 86_400), ("w", 604_800)];

/// Bytes in each unit of a size.
const BYTES: [(&str, u64); 6] =
    [("B", 1), ("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30), ("TiB", 1 << 40), ("PiB", 1 << 50)];

/// Why a text is neither a duration nor a size. The words follow the text they speak of: "`5x` is no duration; ...".
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Not a whole number and a unit of time.
    #[error("is no duration; write a whole number and s, m, h, d or w, as in 30s or 5d")]
    Duration,
    /// More than [`LONGEST`].
    #[error("is too long; 100 years is the longest duration")]
    TooLong,
    /// Not a whole number and a unit of bytes.
    #[error("is no size; write a whole number and B, KiB, MiB, GiB, TiB or PiB, as in 512MiB")]
    Size,
    /// More bytes than 64 bits count.
    #[error("is too large; sizes are below 16384PiB")]
    TooLarge,
}

/// Reads a whole number and one of `s`, `m`, `h`, `d` (24 hours) and `w` (7 days), with nothing before, between or after.
///
/// # Errors
/// [`Error::Duration`] for anything else, [`Error::TooLong`] above [`LONGEST`].
pub fn duration(text: &str) -> Result<Duration, Error> {
    let seconds = product(text, &SECONDS, Error::Duration, Error::TooLong)?;
    let duration = Duration::from_secs(seconds);
    if duration > LONGEST { Err(Error::TooLong) } else { Ok(duration) }
}

/// Reads a whole number and one of `B`, `KiB`, `MiB`, `GiB`, `TiB` and `PiB`; the answer is in bytes.
///
/// # Errors
/// [`Error::Size`] for anything else, `GB` and a bare number too; [`Error::TooLarge`] above [`u64::MAX`] bytes.
pub fn size(text: &str) -> Result<u64, Error> {
    product(text, &BYTES, Error::Size, Error::TooLarge)
}

fn product(text: &str, units: &[(&str, u64)], unlike: Error, beyond: Error) -> Result<u64, Error> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at_checked(digits).ok_or(unlike)?;
    let &(_, factor) = units.iter().find(|(name, _)| *name == unit).ok_or(unlike)?;
    if number.is_empty() {
        return Err(unlike);
    }
    // What is left are digits alone, so a number that does not parse is one that does not fit.
    number.parse::<u64>().ok().and_then(|number| number.checked_mul(factor)).ok_or(beyond)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_a_whole_number_and_a_unit() {
        for (text, seconds) in
            [("0s", 0), ("30s", 30), ("15m", 900), ("26h", 93_600), ("5d", 432_000), ("2w", 1_209_600), ("007s", 7)]
        {
            assert_eq!(duration(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for text in ["", "5", "d", "5x", "5 d", " 5d", "5d ", "-5d", "+5d", "1.5h", "5D", "1d12h", "5\u{b5}s", "٣s"] {
            assert_eq!(duration(text), Err(Error::Duration), "{text}");
        }
    }

    #[test]
    fn durations_end_at_a_hundred_years() {
        assert_eq!(duration("36500d"), Ok(LONGEST));
        for text in ["36501d", "18446744073709551615w", "99999999999999999999999s"] {
            assert_eq!(duration(text), Err(Error::TooLong), "{text}");
        }
    }

    #[test]
    fn sizes_are_iec() {
        for (text, bytes) in
            [("0B", 0), ("1B", 1), ("3KiB", 3_072), ("2GiB", 2_147_483_648), ("16383PiB", 16_383 << 50)]
        {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for text in ["", "5", "GiB", "5GB", "5G", "5gib", "1.5GiB", "5 GiB", "-1B"] {
            assert_eq!(size(text), Err(Error::Size), "{text}");
        }
        for text in ["16384PiB", "18446744073709551616B"] {
            assert_eq!(size(text), Err(Error::TooLarge), "{text}");
        }
    }
}
