//! The header of a safetensors file, parsed and checked against the size of the file.
//!
//! Our own parser and not `safetensors::SafeTensors::read_metadata`, for three reasons: an unknown dtype must not make
//! the other tensors unreadable, an error must name the tensor and the reason, and a duplicate name must not win
//! silently. What both accept must be the same; a property test holds them together.

mod raw;

use std::collections::HashMap;
use std::ops::Range;

use safetensors::Dtype;
use serde::Deserialize;

use crate::error::{Code, Error, Result};

/// Largest header that the format allows, in bytes.
pub const HEADER_BYTES_MAX: u64 = 100_000_000;
/// Length prefix in front of the header, in bytes: a little-endian `u64`.
pub const PREFIX_BYTES: u64 = 8;

/// Largest number of dimensions of a tensor. Torch and numpy stop at 64.
const RANK_MAX: usize = 64;

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
        let mut metadata = HashMap::new();
        let (tensors, data_start) = parse_each(head, file_size_bytes, file, |tensor| tensor, &mut metadata)?;
        Ok(SafetensorsHeader { tensors, metadata, data_start })
    }
}

/// What a tensor's header is made into, one by one: a list of a hundred thousand is written once, not twice.
pub(crate) trait Described {
    /// Unique in the file.
    fn name(&self) -> &str;
    /// First byte in the file, and the one behind the last.
    fn bounds(&self) -> (u64, u64);
}

impl Described for TensorHeader {
    fn name(&self) -> &str {
        &self.name
    }

    fn bounds(&self) -> (u64, u64) {
        (self.range.start, self.range.end)
    }
}

/// As [`SafetensorsHeader::parse`], for whoever wants something else of each tensor than its [`TensorHeader`]. Gives them
/// in file order, and the first byte of the data.
pub(crate) fn parse_each<T: Described>(
    head: &[u8],
    file_size_bytes: u64,
    file: &str,
    make: impl FnMut(TensorHeader) -> T,
    metadata: &mut HashMap<String, String>,
) -> Result<(Vec<T>, u64)> {
    let span = header_span(head, file_size_bytes, file)?;
    let json = usize::try_from(span)
        .ok()
        .and_then(|end| head.get(PREFIX_BYTES as usize..end))
        .ok_or_else(|| Error::new(Code::Internal, format!("{file}: header parsed before it was read")))?;
    if json.first() != Some(&b'{') {
        return Err(corrupt(file, "header is not a JSON object".to_owned()));
    }
    let data = span..file_size_bytes;
    let mut tensors = raw::read(json, &Frame { file, data: data.clone() }, make, metadata)?;
    // Files are written in this order: then there is nothing to do.
    tensors.sort_by_key(Described::bounds);
    check_tiling(&tensors, data, file)?;
    Ok((tensors, span))
}

/// What the tensors of a file must fit.
struct Frame<'a> {
    file: &'a str,
    /// The data section.
    data: Range<u64>,
}

fn corrupt(file: &str, reason: String) -> Error {
    Error::new(Code::Corrupt, format!("{file}: {reason}"))
}

/// Parses a dtype name by the format library's own table.
pub fn parse_dtype(name: &str) -> Option<Dtype> {
    Dtype::deserialize(serde::de::value::StrDeserializer::<serde::de::value::Error>::new(name)).ok()
}

/// [`parse_dtype`] for many: tensors that follow each other nearly always have the same.
#[derive(Default)]
pub struct Dtypes {
    last: Option<(String, Option<Dtype>)>,
}

impl Dtypes {
    /// The dtype of the next one.
    pub fn parse(&mut self, name: &str) -> Option<Dtype> {
        match &self.last {
            Some((last, dtype)) if last == name => *dtype,
            _ => {
                let dtype = parse_dtype(name);
                self.last = Some((name.to_owned(), dtype));
                dtype
            }
        }
    }
}

/// Bytes of a tensor, or `None` when the product overflows or does not fill whole bytes (packed 4 and 6 bit types).
pub fn tensor_bytes(dtype: Dtype, shape: &[u64]) -> Option<u64> {
    let elements = shape.iter().try_fold(1u64, |product, &dim| product.checked_mul(dim))?;
    let bits = elements.checked_mul(dtype.bitsize() as u64)?;
    bits.is_multiple_of(8).then_some(bits / 8)
}

impl Frame<'_> {
    /// Where a tensor lies in the file.
    fn check(&self, name: &str, tensor: &raw::RawTensor<'_>, dtype: Option<Dtype>) -> Result<Range<u64>> {
        let raw::RawTensor { dtype: dtype_name, shape, data_offsets: [begin, end] } = tensor;
        let (begin, end, data_bytes) = (*begin, *end, self.data.end - self.data.start);
        if begin > end || end > data_bytes {
            return Err(corrupt(
                self.file,
                format!("tensor {name:?} has offsets [{begin}, {end}], outside of the {data_bytes} bytes of data"),
            ));
        }
        if shape.len() > RANK_MAX {
            return Err(corrupt(
                self.file,
                format!("tensor {name:?} has {} dimensions, at most {RANK_MAX}", shape.len()),
            ));
        }
        if let Some(dtype) = dtype
            && tensor_bytes(dtype, shape) != Some(end - begin)
        {
            return Err(corrupt(
                self.file,
                format!(
                    "tensor {name:?} has {} bytes, which disagrees with dtype {dtype_name} and shape {shape:?}",
                    end - begin
                ),
            ));
        }
        Ok(self.data.start + begin..self.data.start + end)
    }
}

/// The format allows neither overlap nor hole nor bytes behind the last tensor.
fn check_tiling<T: Described>(tensors: &[T], data: Range<u64>, file: &str) -> Result<()> {
    let mut at = data.start;
    for tensor in tensors {
        let (start, end) = tensor.bounds();
        if start < at {
            return Err(corrupt(file, format!("tensor {:?} overlaps the one before it", tensor.name())));
        }
        if start > at {
            return Err(corrupt(
                file,
                format!("{} bytes before tensor {:?} belong to no tensor", start - at, tensor.name()),
            ));
        }
        at = end;
    }
    if at != data.end {
        return Err(corrupt(file, format!("{} bytes at the end belong to no tensor", data.end - at)));
    }
    Ok(())
}
