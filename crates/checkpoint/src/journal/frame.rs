//! Frames as bytes.

use longshore_types::{BlockChecksum, Code, Error, Result};

use crate::attempt::Record;

/// Length and checksum.
pub(super) const HEAD_BYTES: usize = 12;
/// Most bytes of a payload: a plan with all its headers fits many times.
pub(super) const PAYLOAD_BYTES_MAX: usize = 1 << 30;
/// The form of the payload.
const VERSION: u8 = 1;

/// One frame with all `records`.
pub(super) fn encode(records: &[Record]) -> Result<Vec<u8>> {
    let mut frame = vec![0; HEAD_BYTES];
    frame.push(VERSION);
    let mut frame = postcard::to_extend(records, frame)
        .map_err(|error| Error::new(Code::Internal, format!("a journal record cannot be written: {error}")))?;
    let payload = &frame[HEAD_BYTES..];
    if payload.len() > PAYLOAD_BYTES_MAX {
        let message = format!("a journal record has {} bytes, may have {PAYLOAD_BYTES_MAX}", payload.len());
        return Err(Error::new(Code::InvalidArgument, message));
    }
    let (length, sum) = (payload.len() as u32, BlockChecksum::of(payload).0);
    frame[..4].copy_from_slice(&length.to_le_bytes());
    frame[4..HEAD_BYTES].copy_from_slice(&sum.to_le_bytes());
    Ok(frame)
}

/// What lies at the start of `bytes`.
pub(super) enum Found<'a> {
    /// A payload with the right checksum.
    Whole(&'a [u8]),
    /// A head that promises more than there is, or no whole head.
    Short,
    /// A payload that is all there, with another checksum; the frame would end after so many bytes.
    Wrong(usize),
}

pub(super) fn look(bytes: &[u8]) -> Found<'_> {
    let Some((head, rest)) = bytes.split_at_checked(HEAD_BYTES) else { return Found::Short };
    let length = u32::from_le_bytes([head[0], head[1], head[2], head[3]]) as usize;
    let mut sum = [0; 8];
    sum.copy_from_slice(&head[4..]);
    match rest.get(..length) {
        // An empty payload says nothing: zeros at the end of a file look like it, and have the right checksum.
        Some(payload) if length > 0 && BlockChecksum::of(payload).0 == u64::from_le_bytes(sum) => Found::Whole(payload),
        Some(_) => Found::Wrong(HEAD_BYTES + length),
        None => Found::Short,
    }
}

/// The records of a payload; `None` when they are not what this version writes.
pub(super) fn decode(payload: &[u8]) -> Option<Vec<Record>> {
    let (version, records) = payload.split_first()?;
    if *version != VERSION {
        return None;
    }
    match postcard::take_from_bytes(records) {
        Ok((records, [])) => Some(records),
        _ => None,
    }
}

/// Whether bytes at the start could be a frame: cheap, and never false for one.
pub(super) fn is_plausible(bytes: &[u8]) -> bool {
    bytes.get(HEAD_BYTES) == Some(&VERSION)
}
