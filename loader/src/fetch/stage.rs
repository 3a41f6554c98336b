//! One chunk into page-locked memory: what is there is used, what another load is fetching is waited for, the rest is
//! fetched.
//!
//! Blocks are claimed run by run and committed once verified. A claim ends with the window it gave, also by an error or a
//! panic: then the blocks are missing again, and whoever waits for them takes over.

use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use longshore_memory::{BlockWindow, Claim, Landing};
use longshore_types::{BLOCK_BYTES, Code, Error, Result};

use super::reader::{ChunkReader, Wanted};
use crate::pinned::{PinnedLease, PinnedTier};
use crate::plan::ChunkPlan;
use crate::report::{FallbackKind, Step};

/// How what was in the tier is called in traces.
const SOURCE: &str = "page-locked memory";

/// What one thread stages chunks with.
pub(super) struct Stage<'a> {
    pub tier: &'a Arc<PinnedTier>,
    pub reader: &'a ChunkReader,
    /// The NUMA node that slots should be on.
    pub near: Option<u32>,
    pub thread: u32,
}

impl Stage<'_> {
    /// Gives the chunk in a slot, with all blocks of the plan's range ready; `None` when another load is fetching it and
    /// `defer` says to come back later.
    ///
    /// # Errors
    /// Those of the sources, and of waiting for a slot.
    pub(super) fn bring(&self, chunk: &ChunkPlan, defer: impl Fn() -> bool) -> Result<Option<PinnedLease>> {
        match self.try_bring(chunk, &defer) {
            Err(error) if error.code() == Code::Corrupt && self.is_kept_copy_bad(chunk) => {
                self.reader.recorder().add_mismatch();
                self.reader.recorder().add_retry();
                self.reader.recorder().add_fallback(FallbackKind::PinnedCorrupt, error.to_string());
                // Where another load is using it, it is found again below, and the load fails.
                self.tier.discard(&chunk.key);
                self.try_bring(chunk, &defer)
            }
            brought => brought,
        }
    }

    fn try_bring(&self, chunk: &ChunkPlan, defer: &impl Fn() -> bool) -> Result<Option<PinnedLease>> {
        let (recorder, token) = (self.reader.recorder(), self.reader.token());
        let timer = recorder.begin(Step::Fetch);
        let start = Instant::now();
        let lease = self.tier.get(&chunk.key, self.near, token)?;
        let blocks = blocks_of(&chunk.range);
        let mut fetched_bytes = 0;
        let mut fetched = Vec::new();
        loop {
            match lease.chunk().claim(blocks.clone()) {
                Claim::Ready => break,
                // What was fetched must not count as found the next time.
                Claim::Busy if fetched_bytes == 0 && defer() => return Ok(None),
                Claim::Busy => lease.wait_for_others(blocks.clone(), token)?,
                Claim::Fill(window) => {
                    fetched.push(window.blocks());
                    fetched_bytes += self.fill(chunk, window)?;
                }
            }
        }
        self.compare_found(chunk, &lease, &fetched)?;
        let hit_bytes = chunk.len_bytes().saturating_sub(fetched_bytes);
        recorder.add_pinned(hit_bytes, fetched_bytes, start.elapsed());
        if fetched_bytes == 0 {
            recorder.end(timer, self.thread, hit_bytes, SOURCE);
        }
        Ok(Some(lease))
    }

    /// Compares the blocks that were there with what they must be. Another load may have fetched them for another file,
    /// which had other ideas of this chunk.
    fn compare_found(&self, chunk: &ChunkPlan, lease: &PinnedLease, fetched: &[Range<u32>]) -> Result<()> {
        if chunk.expected.is_none() {
            return Ok(());
        }
        let found = blocks_of(&chunk.range).filter(|block| !fetched.iter().any(|run| run.contains(block)));
        for block in found {
            let start = u64::from(block) * BLOCK_BYTES;
            let range = start..(start + BLOCK_BYTES).min(chunk.key.len_bytes());
            let bytes = lease.chunk().bytes(range);
            let bytes = bytes.ok_or_else(|| Error::new(Code::Internal, "a block in a slot is ready and not there"))?;
            self.reader.compare_bytes(chunk, block as usize, bytes)?;
        }
        Ok(())
    }

    /// Whether what is kept of a chunk is what was wrong, and not what the sources gave.
    fn is_kept_copy_bad(&self, chunk: &ChunkPlan) -> bool {
        chunk.expected.is_some() && is_there(self.tier, chunk)
    }

    /// Fetches the blocks of one claim; gives their bytes.
    fn fill(&self, chunk: &ChunkPlan, window: BlockWindow) -> Result<u64> {
        let wanted = Wanted { key: &chunk.key, range: window.range_bytes(), expected: chunk.expected.as_ref() };
        let mut landing = Landing::builder().block_window(window).build()?;
        self.reader.read(&wanted, &mut landing, self.thread)?;
        landing.into_block_windows().into_iter().for_each(BlockWindow::commit);
        Ok(wanted.len_bytes())
    }
}

/// Whether all of the plan's blocks are ready.
pub(super) fn is_there(tier: &PinnedTier, chunk: &ChunkPlan) -> bool {
    tier.are_ready(std::iter::once((&chunk.key, blocks_of(&chunk.range)))) == [true]
}

/// Puts chunks that are there first: those that are fetched would send them away otherwise, when the model is larger
/// than the tier.
pub(super) fn sort(tier: &PinnedTier, chunks: Vec<ChunkPlan>) -> Vec<ChunkPlan> {
    let are_there = tier.are_ready(chunks.iter().map(|chunk| (&chunk.key, blocks_of(&chunk.range))));
    let (there, rest): (Vec<_>, Vec<_>) = chunks.into_iter().zip(are_there).partition(|(_, is_there)| *is_there);
    there.into_iter().chain(rest).map(|(chunk, _)| chunk).collect()
}

/// The blocks of a range of bytes that begins and ends with blocks.
fn blocks_of(range: &Range<u64>) -> Range<u32> {
    // Both are at most the blocks of a chunk.
    (range.start / BLOCK_BYTES) as u32..range.end.div_ceil(BLOCK_BYTES) as u32
}
