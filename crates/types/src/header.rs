//! The header of a safetensors file, parsed and checked against the size of the file.
//!
//! Our own parser and not `safetensors::SafeTensors::read_metadata`, for three reasons: an unknown dtype must not make
//! the other tensors unreadable, an error must name the tensor and the reason, and a duplicate name must not win
//! silently. What both accept must be the same; a property test holds them together.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::ops::Range;

use safetensors::Dtype;
use serde::Deserialize;
use serde::de::{MapAccess, Visitor};

use crate::error::{Code, Error, Result};

/// Largest header that the format allows, in bytes.
pub const HEADER_BYTES_MAX: u64 = 100_000_000;
/// Length prefix in front of the header, in bytes: a little-endian `u64`.
pub const PREFIX_BYTES: u64 = 8;
/// Largest number of dimensions of a tensor. Torch and numpy stop at 64.
const RANK_MAX: usize = 64;
/// The key that is no tensor.
const METADATA: &str = "__metadata__";

/// One tensor as its file's header gives it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorHeader {
    /// Name, unique in the file.
    pub name: String,
    /// The dtype as written in the file, for instance `BF16`.
    pub dtype_name: String,
    /// The dtype, or `None` when this version of the format library does not know the name.
    pub dtype: Option<Dtype>,
    /// Shape; empty for a scalar.
    pub shape: Vec<u64>,
    /// Byte range in the **file** (not in its data section).
    pub range: Range<u64>,
}

/// A checked header: every range lies in the file, none overlap, each agrees with its dtype and shape.
#[derive(Debug, Clone, Default)]
pub struct SafetensorsHeader {
    /// Tensors in file order.
    pub tensors: Vec<TensorHeader>,
    /// The `__metadata__` strings.
    pub metadata: HashMap<String, String>,
    /// First byte of the data section in the file.
    pub data_start: u64,
}

/// Reads the length prefix and says how many bytes at the start of the file hold prefix and header.
///
/// # Errors
/// [`Code::Corrupt`] when the file is too short for a prefix, or the length goes beyond the file or
/// [`HEADER_BYTES_MAX`]; nothing is allocated from it.
pub fn header_span(prefix: &[u8], file_size_bytes: u64, file: &str) -> Result<u64> {
    let Some(prefix) = prefix.first_chunk::<8>() else {
        return Err(corrupt(file, format!("has {file_size_bytes} bytes, too few for a safetensors header")));
    };
    let length = u64::from_le_bytes(*prefix);
    if length > HEADER_BYTES_MAX {
        return Err(corrupt(file, format!("header length {length} is over the limit of {HEADER_BYTES_MAX} bytes")));
    }
    let span = PREFIX_BYTES + length;
    if span > file_size_bytes {
        return Err(corrupt(
            file,
            format!("header length {length} goes beyond the end of the file ({file_size_bytes} bytes)"),
        ));
    }
    Ok(span)
}

impl SafetensorsHeader {
    /// Parses the first bytes of a file; `head` must hold at least [`header_span`] bytes.
    ///
    /// # Errors
    /// [`Code::Corrupt`] naming `file`, the tensor and the reason: no JSON, offsets that overlap, leave a hole or go
    /// out of range, a size that disagrees with dtype and shape.
    pub fn parse(head: &[u8], file_size_bytes: u64, file: &str) -> Result<Self> {
        let span = header_span(head, file_size_bytes, file)?;
        let json = usize::try_from(span)
            .ok()
            .and_then(|end| head.get(PREFIX_BYTES as usize..end))
            .ok_or_else(|| Error::new(Code::Internal, format!("{file}: header parsed before it was read")))?;
        if json.first() != Some(&b'{') {
            return Err(corrupt(file, "header is not a JSON object".to_owned()));
        }
        let raw: RawHeader = serde_json::from_slice(json)
            .map_err(|error| corrupt(file, format!("header is not valid: {error}")).with_source(error))?;
        let data_bytes = file_size_bytes - span;
        let mut tensors = raw
            .tensors
            .into_iter()
            .map(|(name, entry)| check_tensor(name, entry, span, data_bytes, file))
            .collect::<Result<Vec<_>>>()?;
        tensors.sort_by_key(|tensor| (tensor.range.start, tensor.range.end));
        check_tiling(&tensors, span..file_size_bytes, file)?;
        Ok(SafetensorsHeader { tensors, metadata: raw.metadata, data_start: span })
    }
}

fn corrupt(file: &str, reason: String) -> Error {
    Error::new(Code::Corrupt, format!("{file}: {reason}"))
}

/// Parses a dtype name by the format library's own table.
pub fn parse_dtype(name: &str) -> Option<Dtype> {
    Dtype::deserialize(serde::de::value::StrDeserializer::<serde::de::value::Error>::new(name)).ok()
}

/// Bytes of a tensor, or `None` when the product overflows or does not fill whole bytes (packed 4 and 6 bit types).
pub fn tensor_bytes(dtype: Dtype, shape: &[u64]) -> Option<u64> {
    let elements = shape.iter().try_fold(1u64, |product, &dim| product.checked_mul(dim))?;
    let bits = elements.checked_mul(dtype.bitsize() as u64)?;
    bits.is_multiple_of(8).then_some(bits / 8)
}

fn check_tensor(name: String, raw: RawTensor, data_start: u64, data_bytes: u64, file: &str) -> Result<TensorHeader> {
    let [begin, end] = raw.data_offsets;
    if begin > end || end > data_bytes {
        return Err(corrupt(
            file,
            format!("tensor {name:?} has offsets [{begin}, {end}], outside of the {data_bytes} bytes of data"),
        ));
    }
    if raw.shape.len() > RANK_MAX {
        return Err(corrupt(file, format!("tensor {name:?} has {} dimensions, at most {RANK_MAX}", raw.shape.len())));
    }
    let dtype = parse_dtype(&raw.dtype);
    if let Some(dtype) = dtype
        && tensor_bytes(dtype, &raw.shape) != Some(end - begin)
    {
        return Err(corrupt(
            file,
            format!(
                "tensor {name:?} has {} bytes, which disagrees with dtype {} and shape {:?}",
                end - begin,
                raw.dtype,
                raw.shape
            ),
        ));
    }
    let range = data_start + begin..data_start + end;
    Ok(TensorHeader { name, dtype_name: raw.dtype, dtype, shape: raw.shape, range })
}

/// The format allows neither overlap nor hole nor bytes behind the last tensor.
fn check_tiling(tensors: &[TensorHeader], data: Range<u64>, file: &str) -> Result<()> {
    let mut at = data.start;
    for tensor in tensors {
        if tensor.range.start < at {
            return Err(corrupt(file, format!("tensor {:?} overlaps the one before it", tensor.name)));
        }
        if tensor.range.start > at {
            return Err(corrupt(
                file,
                format!("{} bytes before tensor {:?} belong to no tensor", tensor.range.start - at, tensor.name),
            ));
        }
        at = tensor.range.end;
    }
    if at != data.end {
        return Err(corrupt(file, format!("{} bytes at the end belong to no tensor", data.end - at)));
    }
    Ok(())
}

fn twice<E: serde::de::Error>(name: &str) -> E {
    E::custom(format!("{name:?} is there twice"))
}

#[derive(Deserialize)]
struct RawTensor {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

#[derive(Default)]
struct RawHeader {
    tensors: Vec<(String, RawTensor)>,
    metadata: HashMap<String, String>,
}

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct HeaderVisitor;
        impl<'de> Visitor<'de> for HeaderVisitor {
            type Value = RawHeader;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawHeader, A::Error> {
                let mut header = RawHeader::default();
                let mut has_metadata = false;
                while let Some(name) = map.next_key::<String>()? {
                    if name == METADATA {
                        if std::mem::replace(&mut has_metadata, true) {
                            return Err(twice(METADATA));
                        }
                        header.metadata = map.next_value()?;
                    } else {
                        let tensor = map
                            .next_value()
                            .map_err(|error| serde::de::Error::custom(format!("tensor {name:?}: {error}")))?;
                        header.tensors.push((name, tensor));
                    }
                }
                // When all are known: the set is made once, of names that stay where they are.
                let mut seen = HashSet::with_capacity(header.tensors.len());
                match header.tensors.iter().find(|(name, _)| !seen.insert(name.as_str())) {
                    Some((name, _)) => Err(twice(name)),
                    None => Ok(header),
                }
            }
        }
        deserializer.deserialize_map(HeaderVisitor)
    }
}
