//! The memory tier: the arena is the budget, moka is the policy.
//!
//! moka evicts lazily and frees nothing that a reader still holds, so it gets less than the arena has: the head-room
//! is for chunks being filled, written to disk and sent. When that is not enough, [`MemoryTier::buffer`] takes chunks
//! out of moka before it waits.

use std::sync::Arc;
use std::time::{Duration, Instant};

use longshore_memory::{Arena, Buffer};
use longshore_types::{BlockChecksum, ChunkId, ChunkKey, Result};
use longshore_wire::GrowingChunk;
use moka::policy::EvictionPolicy;
use moka::sync::Cache;

use super::{Freed, covers};

/// How often memory is asked for again while readers hold it.
const PRESSURE_PAUSE: Duration = Duration::from_millis(50);

/// Complete chunks in memory, least recently used out first.
#[derive(Clone)]
pub struct MemoryTier {
    arena: Arena,
    chunks: Cache<ChunkId, Arc<GrowingChunk>>,
    capacity_bytes: u64,
}

impl std::fmt::Debug for MemoryTier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MemoryTier").field("capacity_bytes", &self.capacity_bytes).finish_non_exhaustive()
    }
}

impl MemoryTier {
    /// A tier over `arena` that leaves `head_room_bytes` of it to fills, writes and readers.
    pub fn new(arena: Arena, head_room_bytes: u64) -> Self {
        let capacity_bytes = arena.capacity_bytes().saturating_sub(head_room_bytes);
        let chunks = Cache::builder()
            .max_capacity(capacity_bytes)
            .weigher(|_, chunk: &Arc<GrowingChunk>| u32::try_from(chunk.len_bytes()).unwrap_or(u32::MAX))
            // The default policy may refuse a new chunk, but what was just filled is what is asked for next.
            .eviction_policy(EvictionPolicy::lru())
            .build();
        MemoryTier { arena, chunks, capacity_bytes }
    }

    /// The chunk, when it is here.
    pub fn get(&self, key: &ChunkKey, id: &ChunkId) -> Option<Arc<GrowingChunk>> {
        self.chunks.get(id).filter(|chunk| chunk.key() == key)
    }

    /// Keeps a complete chunk.
    pub fn put(&self, id: ChunkId, chunk: Arc<GrowingChunk>) {
        self.chunks.insert(id, chunk);
        // Evicting here, not some time later, keeps the arena close to the policy's view of it.
        self.chunks.run_pending_tasks();
    }

    /// Drops a chunk.
    pub fn remove(&self, id: &ChunkId) {
        self.chunks.invalidate(id);
    }

    /// Drops all chunks of artifacts at `url` or under it.
    pub fn free(&self, url: &str) -> Freed {
        let mut freed = Freed::default();
        for (id, chunk) in &self.chunks {
            if covers(url, chunk.key().artifact().url()) {
                self.chunks.invalidate(id.as_ref());
                freed.add(chunk.len_bytes());
            }
        }
        self.chunks.run_pending_tasks();
        freed
    }

    /// Memory for a chunk of `len` bytes; takes chunks out of the tier for it, then waits for readers to finish.
    ///
    /// # Errors
    /// [`longshore_types::Code::Exhausted`] when there is none in time.
    pub fn buffer(&self, len: usize, timeout: Duration) -> Result<Buffer> {
        self.take(timeout, len, Arena::try_buffer, Arena::buffer)
    }

    /// As [`MemoryTier::buffer`], for a chunk that others of this host may read where it is.
    ///
    /// # Errors
    /// As [`MemoryTier::buffer`].
    pub fn chunk_buffer(&self, len: usize, timeout: Duration) -> Result<Buffer> {
        self.take(timeout, len, Arena::try_shared_buffer, Arena::shared_buffer)
    }

    fn take(
        &self,
        timeout: Duration,
        len: usize,
        try_take: impl Fn(&Arena, usize) -> Option<Buffer>,
        take: impl Fn(&Arena, usize, Duration) -> Result<Buffer>,
    ) -> Result<Buffer> {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(buffer) = try_take(&self.arena, len) {
                return Ok(buffer);
            }
            if self.give_way(len as u64) {
                continue;
            }
            // Nothing in the tier can go: readers and writers hold the rest. The pause lets what they finish with
            // become visible to `give_way` as well as to the arena.
            let left = deadline.saturating_duration_since(Instant::now());
            match take(&self.arena, len, left.min(PRESSURE_PAUSE)) {
                Err(error) if left <= PRESSURE_PAUSE => return Err(error),
                Err(_) => {}
                buffer => return buffer,
            }
        }
    }

    /// Capacity, use and chunks.
    pub fn usage(&self) -> (u64, u64, u64) {
        (self.capacity_bytes, self.chunks.weighted_size(), self.chunks.entry_count())
    }

    /// The budget behind the tier.
    pub fn arena(&self) -> &Arena {
        &self.arena
    }

    /// Takes chunks that nobody reads out of the tier, about `bytes` of them. False when there are none.
    fn give_way(&self, bytes: u64) -> bool {
        self.chunks.run_pending_tasks();
        let mut given = 0;
        for (id, chunk) in &self.chunks {
            // moka and this loop hold it: more means that a reader or the disk writer does.
            if Arc::strong_count(&chunk) > 2 {
                continue;
            }
            given += chunk.len_bytes();
            self.chunks.invalidate(id.as_ref());
            if given >= bytes {
                break;
            }
        }
        self.chunks.run_pending_tasks();
        given > 0
    }
}

/// Compares every block with its checksum.
pub fn is_intact(chunk: &GrowingChunk) -> bool {
    let (Some(checksums), Some(bytes)) = (chunk.checksums(), chunk.get(0..chunk.len_bytes())) else { return false };
    BlockChecksum::of_blocks(bytes) == *checksums
}
