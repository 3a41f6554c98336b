//! Chunks that were written to this node's disk a moment ago and are still in memory: uploads take them from here, and leave
//! the disk to those that write.
//!
//! Optional by nature: what is not here is read from the disk. The memory is bounded for all saves of a node, given only while
//! the arena has plenty, and given back when the origin is slow to answer. The bytes are those that the checksums were taken
//! of: nobody writes to a buffer that was kept.

use std::collections::HashMap;
use std::ops::Range;

use bytes::Bytes;
use longshore_memory::Buffer;
use longshore_types::{BLOCK_BYTES, BlockChecksum, CHUNK_BYTES};
use parking_lot::Mutex;

use crate::upload::KeptRoom;

/// A run of bytes of an object, within one chunk.
#[derive(Debug, Clone)]
pub(crate) struct Piece {
    /// Index of the chunk in the object.
    pub(crate) chunk: u32,
    pub(crate) bytes: Bytes,
    pub(crate) checksum: BlockChecksum,
    /// Checksums of the blocks, when the piece begins where its chunk does.
    pub(crate) blocks: Option<Vec<BlockChecksum>>,
}

impl Piece {
    /// From bytes that lie at `at` in their object; every byte is checksummed. Off the runtime.
    pub(crate) fn of(bytes: Bytes, at: u64) -> Piece {
        let chunk = (at / CHUNK_BYTES) as u32;
        if at.is_multiple_of(CHUNK_BYTES) {
            let blocks = BlockChecksum::of_blocks(&bytes);
            Piece { chunk, checksum: joined(&blocks, bytes.len() as u64), bytes, blocks: Some(blocks) }
        } else {
            Piece { chunk, checksum: BlockChecksum::of(&bytes), bytes, blocks: None }
        }
    }

    fn of_blocks(bytes: Bytes, chunk: u32, blocks: Vec<BlockChecksum>) -> Piece {
        Piece { chunk, checksum: joined(&blocks, bytes.len() as u64), bytes, blocks: Some(blocks) }
    }
}

/// The checksum of `len_bytes` that have these blocks.
fn joined(blocks: &[BlockChecksum], len_bytes: u64) -> BlockChecksum {
    let mut left = len_bytes;
    blocks.iter().fold(BlockChecksum::of(&[]), |sum, block| {
        let length = left.min(BLOCK_BYTES);
        left -= length;
        sum.combine(*block, length)
    })
}

/// A chunk that was written: its buffer, and what pays for keeping it.
pub(crate) struct Kept {
    pub(crate) object: u32,
    pub(crate) chunk: u32,
    pub(crate) buffer: Buffer,
    pub(crate) len_bytes: usize,
    /// Held, not looked at.
    pub(crate) _room: KeptRoom,
}

/// The memory behind a kept chunk's bytes.
struct Memory(Kept);

impl AsRef<[u8]> for Memory {
    fn as_ref(&self) -> &[u8] {
        &self.0.buffer[..self.0.len_bytes]
    }
}

/// The kept chunks of one attempt.
#[derive(Debug, Default)]
pub(crate) struct Warm {
    chunks: Mutex<Chunks>,
}

#[derive(Debug, Default)]
struct Chunks {
    is_open: bool,
    by_place: HashMap<(u32, u32), Held>,
}

#[derive(Debug)]
struct Held {
    piece: Piece,
    /// Bytes that nobody took yet: the chunk goes with the last.
    left: u64,
}

impl Warm {
    /// Whether somebody uploads: otherwise nothing is kept.
    pub(crate) fn is_open(&self) -> bool {
        self.chunks.lock().is_open
    }

    /// The upload begins.
    pub(crate) fn open(&self) {
        self.chunks.lock().is_open = true;
    }

    /// The upload ended, or waits for the origin: memory goes to those who need it.
    pub(crate) fn close(&self) {
        let dropped = {
            let mut chunks = self.chunks.lock();
            chunks.is_open = false;
            std::mem::take(&mut chunks.by_place)
        };
        drop(dropped);
    }

    /// Gives back what is kept now.
    pub(crate) fn clear(&self) {
        let dropped = std::mem::take(&mut self.chunks.lock().by_place);
        drop(dropped);
    }

    /// Keeps a chunk, whose blocks have these checksums.
    pub(crate) fn keep(&self, kept: Kept, blocks: Vec<BlockChecksum>) {
        let (object, chunk, left) = (kept.object, kept.chunk, kept.len_bytes as u64);
        let piece = Piece::of_blocks(Bytes::from_owner(Memory(kept)), chunk, blocks);
        let mut chunks = self.chunks.lock();
        if chunks.is_open {
            chunks.by_place.insert((object, chunk), Held { piece, left });
        }
    }

    /// Takes a range of an object that lies within one chunk. What is taken is not kept any longer.
    pub(crate) fn take(&self, object: u32, range: &Range<u64>) -> Option<Piece> {
        let chunk = (range.start / CHUNK_BYTES) as u32;
        let place = (object, chunk);
        let length = range.end - range.start;
        let mut chunks = self.chunks.lock();
        let held = chunks.by_place.get_mut(&place)?;
        let first = (range.start % CHUNK_BYTES) as usize;
        let end = first + length as usize;
        if end > held.piece.bytes.len() {
            return None;
        }
        let piece = held.piece.clone();
        held.left = held.left.saturating_sub(length);
        if held.left == 0 {
            chunks.by_place.remove(&place);
        }
        drop(chunks);
        if first == 0 && end == piece.bytes.len() {
            return Some(piece);
        }
        Some(Piece::of(piece.bytes.slice(first..end), range.start))
    }
}

/// Cuts a range of an object at the borders of its chunks.
pub(crate) fn by_chunk(range: Range<u64>) -> impl Iterator<Item = Range<u64>> {
    let mut at = range.start;
    std::iter::from_fn(move || {
        let end = ((at / CHUNK_BYTES + 1) * CHUNK_BYTES).min(range.end);
        (at < end).then(|| std::mem::replace(&mut at, end)..end)
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use longshore_memory::Arena;

    use super::*;
    use crate::CheckpointOptions;
    use crate::upload::Uploads;

    fn kept(uploads: &Arc<Uploads>, object: u32, chunk: u32, len_bytes: usize) -> (Kept, Vec<BlockChecksum>) {
        let (mut buffer, room) = uploads.spare().unwrap();
        buffer.iter_mut().enumerate().for_each(|(at, byte)| *byte = (at % 251) as u8);
        let blocks = BlockChecksum::of_blocks(&buffer[..len_bytes]);
        (Kept { object, chunk, buffer, len_bytes, _room: room }, blocks)
    }

    #[test]
    fn what_is_kept_is_taken_once_and_paid_for_until_then() {
        let memory = Arena::new(16 * CHUNK_BYTES);
        let options = CheckpointOptions { uploads: 2, ..CheckpointOptions::default() };
        let uploads = Arc::new(Uploads::new(&options, &memory));
        let warm = Warm::default();
        let start = CHUNK_BYTES;
        let (chunk, blocks) = kept(&uploads, 3, 1, 5 << 20);
        warm.keep(chunk, blocks);
        assert!(warm.take(3, &(start..start + 1)).is_none(), "closed: nothing is kept");
        warm.open();
        let (chunk, blocks) = kept(&uploads, 3, 1, 5 << 20);
        warm.keep(chunk, blocks.clone());
        let whole: Vec<u8> = (0..5usize << 20).map(|at| (at % 251) as u8).collect();
        assert!(warm.take(3, &(start..start + (6 << 20))).is_none(), "beyond its end");
        let first = warm.take(3, &(start..start + 1000)).unwrap();
        assert_eq!((&first.bytes[..], first.checksum), (&whole[..1000], BlockChecksum::of(&whole[..1000])));
        let rest = warm.take(3, &(start + 1000..start + (5 << 20))).unwrap();
        assert_eq!((&rest.bytes[..], rest.blocks), (&whole[1000..], None));
        assert!(warm.take(3, &(start..start + 1000)).is_none(), "all of it was taken");
        drop((first.bytes, rest.bytes));
        assert_eq!(uploads.kept_bytes(), 0);

        let (chunk, blocks) = kept(&uploads, 0, 0, 3 << 20);
        warm.keep(chunk, blocks.clone());
        let piece = warm.take(0, &(0..3 << 20)).unwrap();
        assert_eq!((piece.checksum, piece.blocks), (BlockChecksum::of(&whole[..3 << 20]), Some(blocks)));
        assert_eq!(uploads.kept_bytes(), CHUNK_BYTES, "as long as the bytes are used");
        let (chunk, blocks) = kept(&uploads, 0, 1, 1);
        warm.keep(chunk, blocks);
        warm.close();
        drop(piece.bytes);
        assert_eq!((uploads.kept_bytes(), memory.leased_bytes()), (0, 0));
    }

    #[test]
    fn ranges_are_cut_at_chunks() {
        let cut = |range| by_chunk(range).collect::<Vec<_>>();
        assert_eq!(cut(5..5), []);
        assert_eq!(cut(5..9), vec![5..9; 1]);
        assert_eq!(
            cut(CHUNK_BYTES - 1..2 * CHUNK_BYTES + 1),
            [CHUNK_BYTES - 1..CHUNK_BYTES, CHUNK_BYTES..2 * CHUNK_BYTES, 2 * CHUNK_BYTES..2 * CHUNK_BYTES + 1,]
        );
    }
}
