//! The id of one try to save a step.

use std::fmt;
use std::str::FromStr;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::error::{Code, Error, Result};

/// A UUID, written in lower case with hyphens. It is part of the names of objects, so that no attempt can ever write over
/// what another one verified.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AttemptId([u8; 16]);

impl AttemptId {
    /// Bytes of the text form.
    pub const TEXT_BYTES: usize = 36;

    /// From random bytes, as the caller made them.
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        AttemptId(bytes)
    }

    /// The raw bytes.
    pub fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// Parses exactly what [`fmt::Display`] writes.
    ///
    /// # Errors
    /// [`Code::InvalidArgument`] for anything else, other spellings of a UUID too: ids are compared as text elsewhere.
    pub fn parse(text: &str) -> Result<Self> {
        Self::from_text(text).ok_or_else(|| {
            let shown: String = text.chars().take(64).collect();
            Error::new(
                Code::InvalidArgument,
                format!("{shown:?} is not the id of an attempt: a UUID in lower case with hyphens"),
            )
        })
    }

    fn from_text(text: &str) -> Option<Self> {
        let text = text.as_bytes();
        if text.len() != Self::TEXT_BYTES {
            return None;
        }
        let mut id = [0u8; 16];
        let mut nibbles = 0;
        for (at, &byte) in text.iter().enumerate() {
            if matches!(at, 8 | 13 | 18 | 23) {
                if byte != b'-' {
                    return None;
                }
                continue;
            }
            let value = match byte {
                b'0'..=b'9' => byte - b'0',
                b'a'..=b'f' => byte - b'a' + 10,
                _ => return None,
            };
            id[nibbles / 2] = id[nibbles / 2] << 4 | value;
            nibbles += 1;
        }
        Some(AttemptId(id))
    }
}

impl fmt::Display for AttemptId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, byte) in self.0.iter().enumerate() {
            if matches!(at, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for AttemptId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl FromStr for AttemptId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::parse(text)
    }
}

impl Serialize for AttemptId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for AttemptId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        AttemptId::parse(&text).map_err(D::Error::custom)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_text_form_round_trips_and_is_the_only_one() {
        let id = AttemptId::from_bytes(*b"0123456789abcdef");
        let text = id.to_string();
        assert_eq!(text, "30313233-3435-3637-3839-616263646566");
        assert_eq!(AttemptId::parse(&text).unwrap(), id);
        assert!(AttemptId::parse(&text.to_uppercase().replace('3', "A")).is_err());
        assert!(AttemptId::parse(&text.replace('-', "")).is_err());
        assert!(AttemptId::parse("").is_err());
        assert_eq!(serde_json::from_str::<AttemptId>(&serde_json::to_string(&id).unwrap()).unwrap(), id);
    }
}
