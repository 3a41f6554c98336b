//! One chunk's bytes in a slot, filled block by block by whoever comes first, read by many.
//!
//! Invariant: bytes of a block that is being filled are only reached through the one [`BlockWindow`] that claimed it;
//! bytes of a ready block are only read. The slot is only ever reached through its start address: no reference to the
//! whole of it exists.

use std::ops::{Deref, DerefMut, Range};
use std::sync::Arc;
use std::time::Duration;

use longshore_types::BLOCK_BYTES;

use super::PageKind;
use super::blocks::{Answer, Blocks};
use super::slots::Slot;

/// A chunk in page-locked memory. A clone is the same chunk; its slot is free with the last clone, windows included.
#[derive(Clone)]
pub struct PinnedChunk {
    inner: Arc<Inner>,
}

struct Inner {
    slot: Slot,
    len_bytes: u64,
    blocks: Blocks,
}

/// What [`PinnedChunk::claim`] found.
#[derive(Debug)]
pub enum Claim {
    /// All of the blocks are ready.
    Ready,
    /// Those that are not ready are being filled by others: [`PinnedChunk::wait`], then claim again.
    Busy,
    /// These are to be filled by the caller. There may be more behind them: claim again afterwards.
    Fill(BlockWindow),
}

impl PinnedChunk {
    /// `len_bytes` must not be more than the slot holds.
    pub(super) fn new(slot: Slot, len_bytes: u64) -> PinnedChunk {
        let blocks = Blocks::new(len_bytes.div_ceil(BLOCK_BYTES) as u32);
        PinnedChunk { inner: Arc::new(Inner { slot, len_bytes, blocks }) }
    }

    /// Bytes of the chunk.
    pub fn len_bytes(&self) -> u64 {
        self.inner.len_bytes
    }

    /// Where it is: the index of the piece in [`crate::PinnedArena::pieces`], and the offset in it in bytes.
    pub fn place(&self) -> (usize, u64) {
        let place = self.inner.slot.place();
        (place.bank, place.offset_bytes)
    }

    /// The NUMA node its memory is on, when the machine has several.
    pub fn node(&self) -> Option<u32> {
        self.inner.slot.node()
    }

    /// What its memory is made of.
    pub fn pages(&self) -> PageKind {
        self.inner.slot.pages()
    }

    /// The first run of missing blocks within `blocks`, exclusively, or whether to wait for others, or nothing left to
    /// do. Blocks beyond the end of the chunk do not count.
    pub fn claim(&self, blocks: Range<u32>) -> Claim {
        match self.inner.blocks.claim(&blocks) {
            Answer::Ready => Claim::Ready,
            Answer::Busy => Claim::Busy,
            Answer::Fill(blocks) => Claim::Fill(BlockWindow { chunk: self.clone(), blocks, filled: false }),
        }
    }

    /// Waits until none of `blocks` is being filled, at most `timeout`; then claim again. Blocks the thread. Who holds
    /// a window of these blocks waits for itself.
    pub fn wait(&self, blocks: Range<u32>, timeout: Duration) {
        self.inner.blocks.wait(&blocks, timeout);
    }

    /// Whether all of `blocks` that the chunk has are ready.
    pub fn is_ready(&self, blocks: Range<u32>) -> bool {
        self.inner.blocks.are_ready(&blocks)
    }

    /// The bytes of `range` of the chunk; `None` unless every block it touches is ready.
    pub fn bytes(&self, range: Range<u64>) -> Option<&[u8]> {
        if range.start > range.end || range.end > self.inner.len_bytes {
            return None;
        }
        if range.is_empty() {
            return Some(&[]);
        }
        let blocks = (range.start / BLOCK_BYTES) as u32..range.end.div_ceil(BLOCK_BYTES) as u32;
        if !self.inner.blocks.are_ready(&blocks) {
            return None;
        }
        // SAFETY: the range lies within the chunk, which lies within the slot.
        let start = unsafe { self.inner.slot.start().add(range.start as usize) };
        // SAFETY: ready blocks are initialised, written before they were seen as ready (acquire), and never again while
        // the slot is this chunk's; `self` keeps it.
        Some(unsafe { std::slice::from_raw_parts(start.as_ptr(), (range.end - range.start) as usize) })
    }

    /// Bytes of the blocks that are ready.
    pub fn ready_bytes(&self) -> u64 {
        let ready = self.inner.blocks.ready();
        let bytes = |block: u32| if ready >> block & 1 == 1 { self.block_len_bytes(block) } else { 0 };
        (0..u32::BITS).map(bytes).sum()
    }

    fn block_len_bytes(&self, block: u32) -> u64 {
        self.inner.len_bytes.saturating_sub(u64::from(block) * BLOCK_BYTES).min(BLOCK_BYTES)
    }
}

/// Exclusive memory of some neighbouring blocks of a chunk, to be filled with their bytes. Its contents are stale.
/// Dropping it without [`BlockWindow::commit`] makes the blocks missing again.
pub struct BlockWindow {
    chunk: PinnedChunk,
    /// Not empty, and filling in the chunk's states on behalf of this window alone.
    blocks: Range<u32>,
    filled: bool,
}

impl BlockWindow {
    /// Which blocks of the chunk.
    pub fn blocks(&self) -> Range<u32> {
        self.blocks.clone()
    }

    /// Which bytes of the chunk: all of the blocks', the last of which may be shorter.
    pub fn range_bytes(&self) -> Range<u64> {
        let end = u64::from(self.blocks.end) * BLOCK_BYTES;
        u64::from(self.blocks.start) * BLOCK_BYTES..end.min(self.chunk.inner.len_bytes)
    }

    /// The chunk it is part of.
    pub fn chunk(&self) -> &PinnedChunk {
        &self.chunk
    }

    /// Makes the blocks ready: their bytes are all there and right.
    pub fn commit(mut self) {
        self.filled = true;
    }

    fn start(&self) -> *mut u8 {
        // SAFETY: the blocks begin within the chunk, which lies within the slot.
        unsafe { self.chunk.inner.slot.start().as_ptr().add(self.range_bytes().start as usize) }
    }

    fn len_bytes(&self) -> usize {
        let range = self.range_bytes();
        (range.end - range.start) as usize
    }
}

impl Drop for BlockWindow {
    fn drop(&mut self) {
        self.chunk.inner.blocks.finish(&self.blocks, self.filled);
    }
}

impl Deref for BlockWindow {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: initialised memory within the slot, which the chunk keeps; no other window has these blocks, nobody
        // reads blocks that are not ready, and `&self` excludes writing through this one.
        unsafe { std::slice::from_raw_parts(self.start(), self.len_bytes()) }
    }
}

impl DerefMut for BlockWindow {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and `&mut self` excludes other uses of this window.
        unsafe { std::slice::from_raw_parts_mut(self.start(), self.len_bytes()) }
    }
}

impl std::fmt::Debug for PinnedChunk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (piece, offset) = self.place();
        write!(f, "PinnedChunk({} of {} bytes at {piece}+{offset})", self.ready_bytes(), self.len_bytes())
    }
}

impl std::fmt::Debug for BlockWindow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "BlockWindow({:?})", self.blocks)
    }
}

#[cfg(test)]
mod tests;
