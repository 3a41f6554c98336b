//! Sizes as people write them: `512`, `64KiB`, `1.5 GiB`, `20GB`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A number of bytes that parses from and prints as text with a unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct ByteSize(pub u64);

const UNITS: [(&str, u64); 9] = [
    ("KIB", 1 << 10),
    ("MIB", 1 << 20),
    ("GIB", 1 << 30),
    ("TIB", 1 << 40),
    ("KB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("B", 1),
];

impl FromStr for ByteSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let upper = text.trim().to_ascii_uppercase();
        let (number, factor) = UNITS
            .iter()
            .find_map(|(unit, factor)| upper.strip_suffix(unit).map(|number| (number.trim(), *factor)))
            .unwrap_or((upper.as_str(), 1));
        let whole = number.parse::<u64>().ok().and_then(|n| n.checked_mul(factor));
        let value = whole.or_else(|| {
            let fraction = number.parse::<f64>().ok()? * factor as f64;
            (fraction.is_finite() && fraction >= 0.0 && fraction < u64::MAX as f64 && number.contains('.'))
                .then_some(fraction as u64)
        });
        value.map(ByteSize).ok_or_else(|| format!("{text:?} is not a size; write for instance 512MiB, 20GB or 1.5GiB"))
    }
}

impl TryFrom<String> for ByteSize {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<ByteSize> for String {
    fn from(size: ByteSize) -> String {
        size.to_string()
    }
}

impl fmt::Display for ByteSize {
    /// Exact: the largest binary unit that divides the value, so that it parses back to the same number.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (unit, factor) in [("TiB", 1u64 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)] {
            if self.0 >= factor && self.0.is_multiple_of(factor) {
                return write!(f, "{}{unit}", self.0 / factor);
            }
        }
        write!(f, "{}", self.0)
    }
}

/// A size for people to read, rounded: `90.9 MB`.
pub fn format_bytes(bytes: u64) -> String {
    match bytes {
        0..1_000 => format!("{bytes} B"),
        1_000..1_000_000 => format!("{:.1} kB", bytes as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", bytes as f64 / 1e6),
        1_000_000_000..1_000_000_000_000 => format!("{:.2} GB", bytes as f64 / 1e9),
        _ => format!("{:.2} TB", bytes as f64 / 1e12),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn sizes_parse_and_print_exactly() {
        for (text, bytes) in [("0", 0), ("512", 512), ("1 KiB", 1024), ("1.5GiB", 3 << 29), ("20GB", 20_000_000_000)] {
            assert_eq!(text.parse::<ByteSize>().unwrap().0, bytes, "{text}");
        }
        for bad in ["", "GB", "-1", "1e3", "nan", "99999999999TiB", "1.5.GB"] {
            assert!(bad.parse::<ByteSize>().is_err(), "{bad}");
        }
        for bytes in [0, 1, 1023, 1 << 20, (3 << 30) + 1] {
            assert_eq!(ByteSize(bytes).to_string().parse::<ByteSize>().unwrap().0, bytes);
        }
    }
}
