//! Sizes as people write them: whole numbers of bytes, KiB, MiB, GiB or TiB.
//!
//! `4G` and `4GB` are refused, not guessed: disk vendors mean 1000³, QEMU and
//! Cloud Hypervisor 1024³, and a disk of the wrong size is found out late.
//! Fractions are refused too, so that a size is always exact. What is shown to people is
//! written the same way, so that it can be given back.

use bytesize::{GIB, KIB, MIB, PIB, TIB, Unit};

/// Why a text is no size; `Display` continues the sentence "… TEXT".
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum SizeError {
    /// No number in front, or something else around it.
    #[error("is no size; write whole bytes or units, such as 512MiB or 4GiB")]
    Form,
    /// A fraction.
    #[error("has a fraction; write it in a smaller unit, such as 1536MiB for 1.5GiB")]
    Fraction,
    /// A unit that means 1000s to some and 1024s to others.
    #[error("leaves open whether 1000 or 1024 is meant; write {0}")]
    Ambiguous(String),
    /// A unit that does not exist.
    #[error("has an unknown unit; use KiB, MiB, GiB or TiB")]
    Unit,
    /// More than 2⁶⁴ − 1 bytes.
    #[error("is more than 64 bits of bytes hold; give a smaller size")]
    Overflow,
}

/// Parses a size into bytes.
///
/// # Errors
/// [`SizeError`] for anything that is not exactly one number of bytes.
pub fn parse_size(text: &str) -> Result<u64, SizeError> {
    let digits_end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, suffix) = text.split_at(digits_end);
    if digits.is_empty() {
        return Err(SizeError::Form);
    }
    if suffix.starts_with('.') {
        return Err(SizeError::Fraction);
    }
    let number: u64 = digits.parse().map_err(|_| SizeError::Overflow)?;
    let suffix = suffix.strip_prefix(' ').unwrap_or(suffix);
    if suffix.is_empty() {
        return Ok(number);
    }
    // bytesize knows the spellings (KiB, kib, Ki); which of them are taken is
    // decided here.
    let factor = match suffix.parse::<Unit>() {
        Ok(Unit::Byte) => 1,
        Ok(Unit::KibiByte) => KIB,
        Ok(Unit::MebiByte) => MIB,
        Ok(Unit::GibiByte) => GIB,
        Ok(Unit::TebiByte) => TIB,
        Ok(Unit::PebiByte) => PIB,
        Ok(Unit::KiloByte) => return Err(SizeError::Ambiguous(format!("{digits}KiB"))),
        Ok(Unit::MegaByte) => return Err(SizeError::Ambiguous(format!("{digits}MiB"))),
        Ok(Unit::GigaByte) => return Err(SizeError::Ambiguous(format!("{digits}GiB"))),
        Ok(Unit::TeraByte) => return Err(SizeError::Ambiguous(format!("{digits}TiB"))),
        _ => return Err(SizeError::Unit),
    };
    number.checked_mul(factor).ok_or(SizeError::Overflow)
}

/// The units of what is written.
const UNITS: [(u64, &str); 5] = [(TIB, "TiB"), (GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB"), (1, "B")];

/// The size in the largest unit that divides it: exact, and readable by
/// [`parse_size`].
pub fn format_size(bytes: u64) -> String {
    let (unit, name) = exact_unit(bytes);
    format!("{}{name}", bytes / unit)
}

/// An amount for people, readable by [`parse_size`] too: exact where that takes at most
/// five digits, else rounded to whole units of which there are ten at least.
pub fn format_amount(bytes: u64) -> String {
    const DIGITS_END: u64 = 100_000;
    let (unit, _) = exact_unit(bytes);
    let rough = UNITS.into_iter().find(|(unit, _)| bytes / unit >= 10);
    match rough {
        Some((rough, _)) if bytes / unit >= DIGITS_END => {
            let less = bytes / rough;
            let nearest = less + u64::from(bytes % rough >= rough.div_ceil(2));
            format_size(nearest.checked_mul(rough).unwrap_or(less * rough))
        }
        _ => format_size(bytes),
    }
}

/// The largest unit that divides so many bytes.
fn exact_unit(bytes: u64) -> (u64, &'static str) {
    let divides = |unit: u64| bytes >= unit && bytes.is_multiple_of(unit);
    UNITS.into_iter().find(|(unit, _)| divides(*unit)).unwrap_or((1, "B"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn binary_units_and_plain_bytes_are_sizes() {
        for (text, bytes) in [
            ("0", 0),
            ("512", 512),
            ("512B", 512),
            ("64KiB", 65_536),
            ("64kib", 65_536),
            ("64Ki", 65_536),
            ("512MiB", 512 << 20),
            ("4 GiB", 4 << 30),
            ("2TiB", 2 << 40),
            ("18446744073709551615", u64::MAX),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn what_is_not_exact_is_refused_with_its_reason() {
        for (text, error) in [
            ("", SizeError::Form),
            ("GiB", SizeError::Form),
            ("-1", SizeError::Form),
            (" 4GiB", SizeError::Form),
            ("1.5GiB", SizeError::Fraction),
            ("4G", SizeError::Ambiguous("4GiB".into())),
            ("4GB", SizeError::Ambiguous("4GiB".into())),
            ("8m", SizeError::Ambiguous("8MiB".into())),
            ("1k", SizeError::Ambiguous("1KiB".into())),
            ("4GiBs", SizeError::Unit),
            ("4  GiB", SizeError::Unit),
            ("18446744073709551616", SizeError::Overflow),
            ("16777216TiB", SizeError::Overflow),
        ] {
            assert_eq!(parse_size(text), Err(error), "{text:?}");
        }
    }

    #[test]
    fn an_amount_is_short_and_exact_where_that_is_short() {
        for (bytes, shown) in [
            (0, "0B"),
            (512, "512B"),
            (1536, "1536B"),
            (4096, "4KiB"),
            (12_799, "12799B"),
            (102_399, "100KiB"),
            (u64::MAX, "16777215TiB"),
            (1 << 30, "1GiB"),
            ((1 << 30) + 512, "1GiB"),
            ((1 << 30) - 512, "1GiB"),
            ((5 << 30) + (300 << 20), "5420MiB"),
            ((50 << 30) + (600 << 20) + 512, "51GiB"),
            ((50 << 40) + 1, "50TiB"),
        ] {
            assert_eq!(format_amount(bytes), shown, "{bytes}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_a_size_or_an_error(text in "\\PC*") {
            let _ = parse_size(&text);
        }

        #[test]
        fn an_amount_parses_to_what_is_shown(bytes: u64, shift in 0_u32..64) {
            let bytes = bytes >> shift;
            let shown = format_amount(bytes);
            let parsed = parse_size(&shown).unwrap();
            prop_assert_eq!(format_amount(parsed), shown);
            prop_assert!(parsed.abs_diff(bytes) <= bytes / 20, "{bytes}: {parsed}");
        }

        #[test]
        fn a_formatted_size_parses_to_itself(bytes: u64, shift in 0_u32..50) {
            let bytes = bytes >> shift << shift;
            prop_assert_eq!(parse_size(&format_size(bytes)), Ok(bytes));
        }
    }
}
