//! Reading a journal back, and telling a torn tail from damage.

use std::path::Path;

use longshore_types::Result;

use super::corrupt;
use super::frame::{self, Found};
use crate::attempt::Record;
use crate::spool::disk_error;

/// What a journal holds.
#[derive(Debug, Default)]
pub(crate) struct Replay {
    /// Its records, in order.
    pub(crate) records: Vec<Record>,
    /// Bytes of the frames that are good.
    pub(crate) good_bytes: u64,
    /// Bytes of a torn tail behind them.
    pub(crate) cut_bytes: u64,
}

/// Reads the journal at `path`; its size is what bounds the memory.
///
/// # Errors
/// [`longshore_types::Code::Corrupt`] when a bad frame is not the last one, or a good one does not hold records.
pub(crate) fn read(path: &Path) -> Result<Replay> {
    let bytes = std::fs::read(path).map_err(|error| disk_error("read", path, &error))?;
    let mut replay = Replay::default();
    let mut at = 0;
    while at < bytes.len() {
        match frame::look(&bytes[at..]) {
            Found::Whole(payload) => {
                let records = frame::decode(payload).ok_or_else(|| {
                    corrupt(path, &format!("the frame at byte {at} does not hold records of this version"))
                })?;
                replay.records.extend(records);
                at += frame::HEAD_BYTES + payload.len();
            }
            Found::Short | Found::Wrong(_) if has_frame_behind(&bytes[at..]) => {
                return Err(corrupt(path, &format!("the frame at byte {at} has a wrong checksum or length")));
            }
            Found::Short => break,
            // The head itself may be what never reached the disk.
            Found::Wrong(length) if at + length == bytes.len() || length == frame::HEAD_BYTES => break,
            Found::Wrong(_) => {
                return Err(corrupt(
                    path,
                    &format!("the frame at byte {at} has a wrong checksum, and is not the last"),
                ));
            }
        }
    }
    replay.good_bytes = at as u64;
    replay.cut_bytes = (bytes.len() - at) as u64;
    Ok(replay)
}

/// Whether a good frame starts anywhere behind the start of `bytes`: then what is in front of it was synced once, and is
/// damaged now, whatever its length says.
fn has_frame_behind(bytes: &[u8]) -> bool {
    (1..bytes.len()).any(|at| {
        let rest = &bytes[at..];
        frame::is_plausible(rest)
            && matches!(frame::look(rest), Found::Whole(payload) if frame::decode(payload).is_some())
    })
}
