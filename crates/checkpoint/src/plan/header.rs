//! The head of a safetensors file: length, JSON, spaces up to a multiple of 8 bytes.

use longshore_types::header::PREFIX_BYTES;

/// One entry of a header.
pub(super) struct Entry<'a> {
    /// Name in the file.
    pub name: &'a str,
    /// As the format writes it.
    pub dtype: &'a str,
    /// Of the bytes in this file.
    pub shape: &'a [u64],
    /// Their number.
    pub length_bytes: u64,
}

/// Most bytes that an entry takes in a header, whatever its offsets.
pub(super) fn entry_bytes_max(name: &str, dtype: &str, dimensions: usize) -> u64 {
    // Names hold no control characters, so escaping at most doubles them; offsets and dimensions have at most 20 digits.
    (name.len() * 2 + dtype.len() + 100 + dimensions * 21) as u64
}

/// The first bytes of a file that holds `entries` in this order without holes.
pub(super) fn build<'a>(entries: impl Iterator<Item = Entry<'a>>) -> Vec<u8> {
    let mut json = String::from(r#"{"__metadata__":{"format":"pt"}"#);
    let mut at = 0u64;
    for entry in entries {
        let end = at.saturating_add(entry.length_bytes);
        json.push(',');
        push_text(&mut json, entry.name);
        json.push_str(":{\"dtype\":");
        push_text(&mut json, entry.dtype);
        json.push_str(",\"shape\":[");
        for (number, dim) in entry.shape.iter().enumerate() {
            if number > 0 {
                json.push(',');
            }
            json.push_str(&dim.to_string());
        }
        json.push_str(&format!("],\"data_offsets\":[{at},{end}]}}"));
        at = end;
    }
    json.push('}');
    while json.len() % 8 != 0 {
        json.push(' ');
    }
    let mut header = Vec::with_capacity(PREFIX_BYTES as usize + json.len());
    header.extend_from_slice(&(json.len() as u64).to_le_bytes());
    header.extend_from_slice(json.as_bytes());
    header
}

/// A JSON string. Text is always JSON.
fn push_text(json: &mut String, text: &str) {
    json.push_str(&serde_json::Value::from(text).to_string());
}
