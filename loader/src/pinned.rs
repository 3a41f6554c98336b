//! The pinned tier: chunks in page-locked slots, staged there on their way to a GPU and kept afterwards.
//!
//! One map from chunk to slot, shared by all loads. A load leases a chunk, fills the blocks of it that nobody has filled,
//! hands it to the copier, and lets go; the chunk stays until its slot is needed, the least recently used goes first. The
//! copier holds the chunks that it still reads by itself, so a slot may be busy a little longer than its chunk is here.
//!
//! Nobody waits for ever: who holds a lease waits for no slot, so it gets done and ends, as does every copy; who waits
//! for blocks that another load fills waits for a thread that has its slot. No lock is held across a wait for bytes.

mod shelf;

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use longshore_memory::{PageKind, PinnedArena, PinnedChunk, PinnedSource, PinnedStats};
use longshore_types::{ChunkKey, Code, Error, Result, format_bytes};
use parking_lot::{Condvar, Mutex, MutexGuard};
use tokio_util::sync::CancellationToken;

use shelf::Shelf;

/// How long to wait for a slot. Every lease and every copy ends much sooner unless a device hangs.
const SLOT_WAIT: Duration = Duration::from_secs(120);
/// How often to look for slots that copies gave back: nobody says when.
const LOOK_AGAIN: Duration = Duration::from_millis(1);
/// How often who waits for another load's bytes looks whether its own load was given up.
const FILL_LOOK_AGAIN: Duration = Duration::from_millis(50);

/// See the module.
pub(crate) struct PinnedTier {
    source: PinnedSource,
    state: Mutex<State>,
    /// Signalled when a lease ends.
    released: Condvar,
}

#[derive(Default)]
struct State {
    shelf: Shelf<PinnedChunk>,
    /// Threads that wait for a slot.
    waiting: u64,
}

/// Page-locked memory at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PinnedUse {
    /// All slots.
    pub capacity_bytes: u64,
    /// Slots of fetches in flight, and of copies whose chunk has made room already.
    pub staging_bytes: u64,
    /// Slots of chunks that are kept, and go when the room is needed.
    pub cached_bytes: u64,
    /// The kind of its pages; `None` before it is allocated.
    pub pages: Option<PageKind>,
}

/// A chunk in a slot. It keeps its place in the tier while this lives.
pub(crate) struct PinnedLease {
    tier: Arc<PinnedTier>,
    key: ChunkKey,
    chunk: PinnedChunk,
}

impl PinnedTier {
    /// An empty tier over all slots of `source`.
    pub(crate) fn new(source: impl Into<PinnedSource>) -> Arc<PinnedTier> {
        Arc::new(PinnedTier { source: source.into(), state: Mutex::default(), released: Condvar::new() })
    }

    /// The chunk, with whatever blocks of it are there already; else an empty slot for it, on the NUMA node `near` when
    /// there is one. Blocks the thread until another chunk can go.
    ///
    /// # Errors
    /// [`Code::Cancelled`]; [`Code::Exhausted`] when no slot came free for a long time.
    pub(crate) fn get(
        self: &Arc<Self>,
        key: &ChunkKey,
        near: Option<u32>,
        token: &CancellationToken,
    ) -> Result<PinnedLease> {
        let arena = self.source.get()?;
        let mut state = self.state.lock();
        let chunk = match try_get(&arena, &mut state, key, near) {
            Some(chunk) => chunk,
            None => {
                state.waiting += 1;
                let chunk = self.wait_for(&arena, &mut state, key, near, token);
                state.waiting -= 1;
                chunk?
            }
        };
        Ok(PinnedLease { tier: self.clone(), key: key.clone(), chunk })
    }

    fn wait_for(
        &self,
        arena: &PinnedArena,
        state: &mut MutexGuard<'_, State>,
        key: &ChunkKey,
        near: Option<u32>,
        token: &CancellationToken,
    ) -> Result<PinnedChunk> {
        let deadline = Instant::now() + SLOT_WAIT;
        loop {
            if let Some(chunk) = try_get(arena, state, key, near) {
                return Ok(chunk);
            }
            // A chunk that made room may still be read by a copy: its slot comes by itself. Only who has no such slot
            // to wait for sends another chunk away.
            if leaving(arena, state) < state.waiting
                && let Some(evicted) = state.shelf.take_oldest()
            {
                drop(evicted);
                continue;
            }
            if token.is_cancelled() {
                return Err(given_up());
            }
            if Instant::now() >= deadline {
                return Err(self.stuck());
            }
            self.released.wait_for(state, LOOK_AGAIN);
        }
    }

    fn stuck(&self) -> Error {
        let message = format!(
            "all of the {} of page-locked memory was in use by fetches and copies for {SLOT_WAIT:?}; raise the pinned memory, or \
             look why they do not end",
            format_bytes(self.source.capacity_bytes())
        );
        Error::new(Code::Exhausted, message)
    }

    /// Whether blocks of chunks are there, now.
    pub(crate) fn are_ready<'a>(&self, wanted: impl Iterator<Item = (&'a ChunkKey, Range<u32>)>) -> Vec<bool> {
        let state = self.state.lock();
        let is_ready = |(key, blocks)| state.shelf.peek(key).is_some_and(|chunk| chunk.is_ready(blocks));
        wanted.map(is_ready).collect()
    }

    /// Lets the chunks of some artifacts go, those in use when they are not any more. Gives the bytes of slots that
    /// this frees.
    pub(crate) fn forget(&self, which: impl Fn(&str) -> bool) -> u64 {
        let gone = self.state.lock().shelf.forget(|key| which(key.artifact().url()));
        self.released.notify_all();
        gone.len() as u64 * PinnedArena::SLOT_BYTES
    }

    /// Lets one chunk go, with its last lease: what is in its slot is not what it should be.
    pub(crate) fn discard(&self, key: &ChunkKey) {
        let gone = self.state.lock().shelf.forget(|kept| kept == key);
        drop(gone);
        self.released.notify_all();
    }

    /// What the slots are used for.
    pub(crate) fn usage(&self) -> PinnedUse {
        let state = self.state.lock();
        let stats = self.source.stats();
        let used_bytes = stats.map_or(0, |PinnedStats { used_bytes, .. }| used_bytes);
        let cached_bytes = state.shelf.unused() as u64 * PinnedArena::SLOT_BYTES;
        PinnedUse {
            capacity_bytes: self.source.capacity_bytes(),
            staging_bytes: used_bytes.saturating_sub(cached_bytes),
            cached_bytes,
            pages: stats.map(|stats| stats.pages),
        }
    }
}

/// The chunk on the shelf, or a free slot for it.
fn try_get(arena: &PinnedArena, state: &mut State, key: &ChunkKey, near: Option<u32>) -> Option<PinnedChunk> {
    if let Some(chunk) = state.shelf.lease(key) {
        return Some(chunk);
    }
    let chunk = arena.try_chunk(key.len_bytes(), near)?;
    state.shelf.put(key.clone(), chunk.clone());
    Some(chunk)
}

/// Slots whose chunk is not on the shelf any more and which something still holds.
fn leaving(arena: &PinnedArena, state: &State) -> u64 {
    let used = arena.stats().used_bytes / PinnedArena::SLOT_BYTES;
    used.saturating_sub(state.shelf.len() as u64)
}

impl PinnedLease {
    /// The chunk, to claim its blocks and to copy it.
    pub(crate) fn chunk(&self) -> &PinnedChunk {
        &self.chunk
    }

    /// Waits while others fill blocks of `blocks`, as long as the load lives; then claim again: they may have failed.
    ///
    /// # Errors
    /// [`Code::Cancelled`].
    pub(crate) fn wait_for_others(&self, blocks: Range<u32>, token: &CancellationToken) -> Result<()> {
        self.chunk.wait(blocks, FILL_LOOK_AGAIN);
        if token.is_cancelled() { Err(given_up()) } else { Ok(()) }
    }
}

impl Drop for PinnedLease {
    fn drop(&mut self) {
        // A slot in which nothing arrived is of no use to anybody.
        let gone = self.tier.state.lock().shelf.release(&self.key, |chunk| chunk.ready_bytes() > 0);
        drop(gone);
        self.tier.released.notify_all();
    }
}

fn given_up() -> Error {
    Error::new(Code::Cancelled, "the load was given up")
}

#[cfg(test)]
mod tests;
