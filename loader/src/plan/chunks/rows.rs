//! The part of a copy that lies in one chunk.

use longshore_types::CHUNK_BYTES;

use super::Piece;
use crate::plan::layout::CopyRange;

/// What a chunk has of a copy, in the order of the bytes: the rest of a row that began in the chunk before, whole rows, and
/// the beginning of a row that ends in the next one.
pub(super) fn within(copy: &CopyRange, index: u64) -> impl Iterator<Item = Piece> {
    let (chunk_start, pitch) = (index * CHUNK_BYTES, copy.row_bytes + copy.skip_bytes);
    // Everything below counts from the first byte of the copy.
    let from = chunk_start.saturating_sub(copy.file_offset_bytes);
    let to = (chunk_start + CHUNK_BYTES).min(copy.file_end_bytes()) - copy.file_offset_bytes;
    let piece = move |start: u64, row_bytes: u64, rows: u64| {
        let (row, within) = (start / pitch, start % pitch);
        (row_bytes > 0 && rows > 0).then(|| Piece {
            start_bytes: copy.file_offset_bytes + start - chunk_start,
            row_bytes,
            skip_bytes: if rows > 1 { copy.skip_bytes } else { 0 },
            rows,
            region_offset_bytes: copy.region_offset_bytes + row * copy.row_bytes + within,
        })
    };
    let (row, begun) = (from / pitch, from % pitch);
    let head = match begun {
        0 => None,
        _ => piece(from, (row * pitch + copy.row_bytes).min(to).saturating_sub(from), 1),
    };
    // The first row that begins in the chunk, and the first that does not end in it.
    let first = from.div_ceil(pitch);
    let ended = if to < copy.row_bytes { 0 } else { (to - copy.row_bytes) / pitch + 1 }.min(copy.rows).max(first);
    let whole = piece(first * pitch, copy.row_bytes, ended - first);
    let tail_start = ended * pitch;
    let tail = if tail_start < to { piece(tail_start, to - tail_start, 1) } else { None };
    [head, whole, tail].into_iter().flatten()
}
