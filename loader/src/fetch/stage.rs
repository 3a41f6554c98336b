//! One chunk into page-locked memory: what is there is used, what another load is fetching is waited for, the rest is
//! fetched.
//!
//! Blocks are claimed run by run and committed once verified. A claim ends with the window it gave, also by an error or a
//! panic: then the blocks are missing again, and whoever waits for them takes over.

use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use longshore_memory::{BlockWindow, Claim, Landing};
use longshore_types::{BLOCK_BYTES, Result};

use super::reader::{ChunkReader, Wanted};
use crate::pinned::{PinnedLease, PinnedTier};
use crate::plan::ChunkPlan;
use crate::report::Step;

/// How what was in the tier is called in traces.
const SOURCE: &str = "page-locked memory";

/// Gives the chunk in a slot, with all blocks of the plan's range ready.
///
/// # Errors
/// Those of the sources, and of waiting for a slot.
pub(super) fn bring(
    tier: &Arc<PinnedTier>,
    reader: &ChunkReader,
    chunk: &ChunkPlan,
    near: Option<u32>,
    thread: u32,
) -> Result<PinnedLease> {
    let recorder = reader.recorder();
    let timer = recorder.begin(Step::Fetch);
    let start = Instant::now();
    let lease = tier.get(&chunk.key, near, reader.token())?;
    let blocks = blocks_of(&chunk.range);
    let mut fetched_bytes = 0;
    loop {
        match lease.chunk().claim(blocks.clone()) {
            Claim::Ready => break,
            Claim::Busy => lease.wait_for_others(blocks.clone(), reader.token())?,
            Claim::Fill(window) => fetched_bytes += fill(reader, chunk, window, thread)?,
        }
    }
    let hit_bytes = chunk.len_bytes().saturating_sub(fetched_bytes);
    recorder.add_pinned(hit_bytes, fetched_bytes, start.elapsed());
    if fetched_bytes == 0 {
        recorder.end(timer, thread, hit_bytes, SOURCE);
    }
    Ok(lease)
}

/// Fetches the blocks of one claim; gives their bytes.
fn fill(reader: &ChunkReader, chunk: &ChunkPlan, window: BlockWindow, thread: u32) -> Result<u64> {
    let wanted = Wanted { key: &chunk.key, range: window.range_bytes() };
    let mut landing = Landing::builder().block_window(window).build()?;
    reader.read(&wanted, &mut landing, thread)?;
    landing.into_block_windows().into_iter().for_each(BlockWindow::commit);
    Ok(wanted.len_bytes())
}

/// The blocks of a range of bytes that begins and ends with blocks.
fn blocks_of(range: &Range<u64>) -> Range<u32> {
    // Both are at most the blocks of a chunk.
    (range.start / BLOCK_BYTES) as u32..range.end.div_ceil(BLOCK_BYTES) as u32
}
