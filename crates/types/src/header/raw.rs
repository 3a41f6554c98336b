//! The JSON of a header, read in one pass: a tensor is checked and made into what is wanted of it before the next is read.
//!
//! Names and dtypes are borrowed from the text until it is known that they stay, and nothing is kept twice: fresh memory is
//! most of the time that the first look at a large model takes.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::fmt;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, Visitor};

use super::{Described, Dtypes, Frame, TensorHeader, corrupt};
use crate::error::{Error, Result};

/// The key that is no tensor.
const METADATA: &str = "__metadata__";

/// Odd, so that nothing is lost by multiplying: 2^64 by the golden ratio.
const FINGERPRINT_FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;

/// A text of the header, borrowed where it is written without escapes.
#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

/// A tensor as it is written.
#[derive(Deserialize)]
pub(super) struct RawTensor<'a> {
    #[serde(borrow)]
    pub(super) dtype: Cow<'a, str>,
    pub(super) shape: Vec<u64>,
    pub(super) data_offsets: [u64; 2],
}

/// Reads the tensors in the order of the text.
///
/// # Errors
/// [`Code::Corrupt`](crate::Code::Corrupt) with the first reason that is found.
pub(super) fn read<T: Described>(
    json: &[u8],
    frame: &Frame<'_>,
    make: impl FnMut(TensorHeader) -> T,
    metadata: &mut HashMap<String, String>,
) -> Result<Vec<T>> {
    let invalid = |error: &dyn fmt::Display| corrupt(frame.file, format!("header is not valid: {error}"));
    let text = std::str::from_utf8(json).map_err(|error| invalid(&error).with_source(error))?;
    let (mut tensors, mut refusal) = (Vec::new(), None);
    let reader =
        Reader { frame, make, metadata, tensors: &mut tensors, refusal: &mut refusal, dtypes: Dtypes::default() };
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let read = reader.deserialize(&mut deserializer).and_then(|()| deserializer.end());
    match (refusal, read) {
        (Some(refusal), _) => return Err(refusal),
        (None, Err(error)) => return Err(invalid(&error).with_source(error)),
        (None, Ok(())) => {}
    }
    match repeated(&tensors) {
        Some(name) => Err(invalid(&twice(name))),
        None => Ok(tensors),
    }
}

/// A name that is there twice. Names of different fingerprints differ: only where two are equal, names are compared.
fn repeated<T: Described>(tensors: &[T]) -> Option<&str> {
    let mut fingerprints: Vec<u64> = tensors.iter().map(|tensor| fingerprint(tensor.name())).collect();
    fingerprints.sort_unstable();
    if fingerprints.windows(2).all(|pair| pair[0] != pair[1]) {
        return None;
    }
    let mut seen = HashSet::with_capacity(tensors.len());
    tensors.iter().map(Described::name).find(|name| !seen.insert(*name))
}

/// Equal for equal names; who makes others equal on purpose costs us the comparison and gains nothing.
fn fingerprint(name: &str) -> u64 {
    let (words, rest) = name.as_bytes().as_chunks::<8>();
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    let mix =
        |sum: u64, word: &[u8; 8]| (sum.rotate_left(23) ^ u64::from_le_bytes(*word)).wrapping_mul(FINGERPRINT_FACTOR);
    mix(words.iter().fold(name.len() as u64, mix), &last)
}

fn twice(name: &str) -> String {
    format!("{name:?} is there twice")
}

struct Reader<'r, T, F> {
    frame: &'r Frame<'r>,
    make: F,
    metadata: &'r mut HashMap<String, String>,
    tensors: &'r mut Vec<T>,
    /// What is wrong with a tensor whose JSON is right.
    refusal: &'r mut Option<Error>,
    dtypes: Dtypes,
}

impl<T, F: FnMut(TensorHeader) -> T> Reader<'_, T, F> {
    fn add(&mut self, name: Cow<'_, str>, raw: RawTensor<'_>) -> Result<()> {
        let dtype = self.dtypes.parse(&raw.dtype);
        let range = self.frame.check(&name, &raw, dtype)?;
        let (name, dtype_name) = (name.into_owned(), raw.dtype.into_owned());
        self.tensors.push((self.make)(TensorHeader { name, dtype_name, dtype, shape: raw.shape, range }));
        Ok(())
    }
}

impl<'de, T, F: FnMut(TensorHeader) -> T> DeserializeSeed<'de> for Reader<'_, T, F> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de, T, F: FnMut(TensorHeader) -> T> Visitor<'de> for Reader<'_, T, F> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<(), A::Error> {
        let mut has_metadata = false;
        while let Some(Text(name)) = map.next_key()? {
            if name == METADATA {
                if std::mem::replace(&mut has_metadata, true) {
                    return Err(A::Error::custom(twice(METADATA)));
                }
                *self.metadata = map.next_value()?;
                continue;
            }
            let raw = map.next_value().map_err(|error| A::Error::custom(format!("tensor {name:?}: {error}")))?;
            if let Err(error) = self.add(name, raw) {
                *self.refusal = Some(error);
                return Err(A::Error::custom("a tensor is refused"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    struct Named(String);

    impl Described for Named {
        fn name(&self) -> &str {
            &self.0
        }

        fn bounds(&self) -> (u64, u64) {
            (0, 0)
        }
    }

    /// Two names of two words: what the first word changes in the sum, the second one takes back.
    fn of_one_fingerprint() -> [String; 2] {
        let mix = |sum: u64, word: u64| (sum.rotate_left(23) ^ word).wrapping_mul(FINGERPRINT_FACTOR);
        let texts = (0u64..1 << 20).map(|number| format!("{number:08x}"));
        let word = |text: &str| u64::from_le_bytes(text.as_bytes().try_into().unwrap());
        let sums = texts.map(|text| (mix(16, word(&text)).rotate_left(23), text));
        let mut by_top: HashMap<u64, (u64, String)> = HashMap::new();
        for (sum, text) in sums {
            // The second words must be ASCII both: the sums may differ in the low four bits of each byte, and not in others.
            let Some((other_sum, other)) = by_top.insert(sum & 0xf0f0_f0f0_f0f0_f0f0, (sum, text.clone())) else {
                continue;
            };
            let low = |sum: u64| {
                String::from_utf8((sum & 0x0f0f_0f0f_0f0f_0f0f | 0x4040_4040_4040_4040).to_le_bytes().to_vec())
            };
            return [format!("{text}{}", low(sum).unwrap()), format!("{other}{}", low(other_sum).unwrap())];
        }
        panic!("none of a million");
    }

    #[test]
    fn names_of_one_fingerprint_are_told_apart() {
        let [one, other] = of_one_fingerprint();
        assert_eq!(fingerprint(&one), fingerprint(&other));
        assert_ne!(one, other);
        let named = |names: &[&str]| names.iter().map(|name| Named((*name).to_owned())).collect::<Vec<_>>();
        assert_eq!(repeated(&named(&[&one, "a", &other, "b"])), None);
        assert_eq!(repeated(&named(&[&one, "a", &other, "a"])), Some("a"));
        assert_eq!(repeated(&named(&[&one, &other, &one])), Some(one.as_str()));
        assert_eq!(repeated(&named(&["", "a", "a\0", "\0"])), None);
    }
}
