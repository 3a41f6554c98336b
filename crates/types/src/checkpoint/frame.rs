//! The form of all small files of a checkpoint: `{"checksum":"<16 hex>","<kind>":<body>}`, with nothing around it.
//!
//! The checksum covers the exact bytes of the body, and every other byte of the file is fixed, so any change is found.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::checksum::BlockChecksum;
use crate::error::{Code, Error, Result};

const HEX_BYTES: usize = 16;
const HEAD: &str = "{\"checksum\":\"";

/// The part between the checksum and the body.
fn middle(kind: &str) -> String {
    format!("\",\"{kind}\":")
}

/// Writes a body in its frame. Bodies are our own types of strings, numbers and lists, which JSON can always hold.
pub(super) fn to_bytes<T: Serialize>(kind: &str, body: &T) -> Vec<u8> {
    let body = serde_json::to_vec(body).unwrap_or_default();
    let middle = middle(kind);
    let mut bytes = Vec::with_capacity(HEAD.len() + HEX_BYTES + middle.len() + body.len() + 1);
    bytes.extend_from_slice(HEAD.as_bytes());
    bytes.extend_from_slice(BlockChecksum::of(&body).to_string().as_bytes());
    bytes.extend_from_slice(middle.as_bytes());
    bytes.extend_from_slice(&body);
    bytes.push(b'}');
    bytes
}

/// Checks the frame and parses the body.
pub(super) fn parse<T: DeserializeOwned>(kind: &str, bytes: &[u8], bytes_max: u64, url: &str) -> Result<T> {
    if bytes.len() as u64 > bytes_max {
        return Err(corrupt(url, &format!("has {} bytes, at most {bytes_max} are allowed", bytes.len())));
    }
    let body =
        body_of(kind, bytes).ok_or_else(|| corrupt(url, &format!("is not a {kind} with a checksum in front")))?;
    let (said, body) = body;
    let found = BlockChecksum::of(body).to_string();
    if said != found.as_bytes() {
        let said = String::from_utf8_lossy(said);
        return Err(corrupt(url, &format!("was damaged: its checksum is {found}, it says {said}")));
    }
    serde_json::from_slice(body).map_err(|error| corrupt(url, &format!("cannot be read: {error}")).with_source(error))
}

fn body_of<'a>(kind: &str, bytes: &'a [u8]) -> Option<(&'a [u8], &'a [u8])> {
    let rest = bytes.strip_prefix(HEAD.as_bytes())?;
    let (said, rest) = rest.split_at_checked(HEX_BYTES)?;
    let body = rest.strip_prefix(middle(kind).as_bytes())?.strip_suffix(b"}")?;
    Some((said, body))
}

pub(super) fn corrupt(url: &str, reason: &str) -> Error {
    Error::new(Code::Corrupt, format!("{url} {reason}"))
}
