//! A safetensors file of made-up numbers.

use longshore_types::{Code, Error, Result, SafetensorsHeader};
use serde_json::{Map, json};

/// Tensors of the model.
const TENSORS: u64 = 16;
/// The largest model that makes sense for a demonstration: it is held in memory a few times.
const SIZE_BYTES_MAX: u64 = 4 << 30;
/// Bytes of one number.
const NUMBER_BYTES: u64 = 4;

/// Makes the file: about `size_bytes` of F32 tensors, always the same for the same size.
///
/// # Errors
/// [`Code::InvalidArgument`] for a size that is no demonstration.
pub fn make(size_bytes: u64) -> Result<Vec<u8>> {
    if !(TENSORS * NUMBER_BYTES..=SIZE_BYTES_MAX).contains(&size_bytes) {
        return Err(Error::new(Code::InvalidArgument, "the demo takes a --size from 64 bytes to 4GiB"));
    }
    let numbers = size_bytes / TENSORS / NUMBER_BYTES;
    let tensor_bytes = numbers * NUMBER_BYTES;
    let entry = |number: u64| {
        let offsets = [number * tensor_bytes, (number + 1) * tensor_bytes];
        (format!("layer.{number:02}.weight"), json!({"dtype": "F32", "shape": [numbers], "data_offsets": offsets}))
    };
    let header = serde_json::Value::Object((0..TENSORS).map(entry).collect::<Map<_, _>>()).to_string();
    let mut file = Vec::with_capacity(8 + header.len() + (TENSORS * tensor_bytes) as usize);
    file.extend_from_slice(&(header.len() as u64).to_le_bytes());
    file.extend_from_slice(header.as_bytes());
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    for _ in 0..TENSORS * numbers {
        // Xorshift; the upper bits become a number from 0 to 1.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let number = (state >> 40) as f32 / (1u64 << 24) as f32;
        file.extend_from_slice(&number.to_le_bytes());
    }
    Ok(file)
}

/// Where a tensor lies in the file that [`make`] made.
///
/// # Errors
/// [`Code::Corrupt`] for a tensor that is not in it.
pub fn bytes_of<'a>(file: &'a [u8], tensor: &str) -> Result<&'a [u8]> {
    let header = SafetensorsHeader::parse(file, file.len() as u64, "the demo's model")?;
    let found = header.tensors.into_iter().find(|header| header.name == tensor);
    found
        .and_then(|header| file.get(header.range.start as usize..header.range.end as usize))
        .ok_or_else(|| Error::new(Code::Corrupt, format!("there is no tensor {tensor} in the model")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_model_is_a_valid_file_and_always_the_same() {
        let file = make(1 << 20).unwrap();
        assert_eq!(file, make(1 << 20).unwrap());
        let header = SafetensorsHeader::parse(&file, file.len() as u64, "x").unwrap();
        assert_eq!(header.tensors.len() as u64, TENSORS);
        assert_eq!(bytes_of(&file, "layer.03.weight").unwrap().len(), (1 << 20) / 16);
        assert_ne!(bytes_of(&file, "layer.03.weight").unwrap(), bytes_of(&file, "layer.04.weight").unwrap());
        for bad in [0, 63, SIZE_BYTES_MAX + 1] {
            assert_eq!(make(bad).unwrap_err().code(), Code::InvalidArgument);
        }
    }
}
