//! What this worker holds: chunks in memory and on disk. Finding and keeping is here; fetching is in `fill.rs`.

pub mod disk;
pub mod format;
pub mod hold;
pub mod index;
pub mod lending;
pub mod memory;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use longshore_origin::covers;
use longshore_types::{BlockChecksum, ChunkId, ChunkKey};
use longshore_wire::{ChunkBody, ChunkReply, ChunkRequest, Tier};

use parking_lot::Mutex;

use crate::metrics::Metrics;
use disk::{DiskChunk, DiskTier};
use hold::Holds;
use memory::MemoryTier;

/// Calls of [`Store::free`] that are remembered, for fills which end behind them.
const FREED_MAX: usize = 256;

/// What a removal gave back.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Freed {
    /// Bytes in memory and on disk.
    pub bytes: u64,
    /// Copies of chunks.
    pub chunks: u32,
}

impl Freed {
    /// Counts one more copy of `bytes`.
    pub fn add(&mut self, bytes: u64) {
        self.bytes += bytes;
        self.chunks += u32::from(bytes > 0);
    }
}

/// The tiers of one worker.
#[derive(Debug)]
pub struct Store {
    /// Always there.
    pub memory: MemoryTier,
    /// `None` when the cache is kept in memory only.
    pub disk: Option<Arc<DiskTier>>,
    /// Beside the disk tier: what is held for others.
    pub holds: Option<Arc<Holds>>,
    metrics: Arc<Metrics>,
    /// What was freed lately, and when.
    freed: Mutex<VecDeque<(Instant, String)>>,
}

impl Store {
    /// Puts the tiers together.
    pub fn new(
        memory: MemoryTier,
        disk: Option<Arc<DiskTier>>,
        holds: Option<Arc<Holds>>,
        metrics: Arc<Metrics>,
    ) -> Self {
        Store { memory, disk, holds, metrics, freed: Mutex::default() }
    }

    /// The chunk from the first tier that has it. With a recheck, copies are verified first and bad ones dropped, also those
    /// that are not what the asker knows that they must be.
    pub fn get(&self, request: &ChunkRequest, id: &ChunkId) -> Option<ChunkReply> {
        let key = &request.key;
        if request.recheck {
            self.drop_bad_copies(request, id);
        }
        let in_memory = self.memory.get(key, id);
        let on_disk = self.disk.as_ref().and_then(|disk| match &in_memory {
            // What is in memory was not read from the disk since it was written, and so not into the page cache either.
            Some(_) if disk.writes_directly(key.len_bytes()) && !request.prefers_file => {
                disk.touch(id);
                None
            }
            _ => disk.get(key, id),
        });
        match (in_memory, on_disk) {
            // In memory twice, here and in the page cache: a file is sent, or handed over, without a copy.
            (Some(_), Some(file)) if request.prefers_file || file.is_resident(key.len_bytes()) => {
                Some(file_reply(Tier::Memory, file))
            }
            (Some(chunk), _) => Some(ChunkReply { tier: Tier::Memory, body: ChunkBody::Memory(chunk) }),
            (None, Some(file)) => {
                // It was written past the page cache. Whoever reads it gets it from there, and so do all who follow.
                if let Some(disk) = &self.disk {
                    disk.prefetch(&file, &request.range);
                }
                Some(file_reply(Tier::Disk, file))
            }
            (None, None) => {
                let held = self.holds.as_ref()?.get(key, id)?;
                is_expected(request, &held.checksums).then(|| file_reply(Tier::Disk, held))
            }
        }
    }

    /// The checksums of the cached copy; what is held is not part of the cache.
    pub fn checksums(&self, key: &ChunkKey, id: &ChunkId) -> Option<Arc<[BlockChecksum]>> {
        let in_memory = self.memory.get(key, id).and_then(|chunk| chunk.checksums());
        in_memory.or_else(|| Some(self.disk.as_ref()?.get(key, id)?.checksums))
    }

    /// Whether any tier holds the chunk.
    pub fn contains(&self, key: &ChunkKey, id: &ChunkId) -> bool {
        self.memory.get(key, id).is_some() || self.disk.as_ref().is_some_and(|disk| disk.contains(id))
    }

    /// Drops all chunks of artifacts at `url` or under it, every version. Blocks on the disk.
    pub fn free(&self, url: &str) -> Freed {
        self.remember_free(url);
        let mut freed = self.memory.free(url);
        if let Some(disk) = &self.disk {
            let on_disk = disk.free(url);
            freed.bytes += on_disk.bytes;
            freed.chunks += on_disk.chunks;
        }
        freed
    }

    /// Whether something at or above `url` was freed after `since`. Who puts a chunk asks this afterwards, and takes it
    /// out again: otherwise a fill that ends behind a free would undo it.
    pub fn was_freed(&self, url: &str, since: Instant) -> bool {
        self.freed.lock().iter().any(|(at, freed)| *at >= since && covers(freed, url))
    }

    /// Drops one chunk from all tiers.
    pub fn forget(&self, id: &ChunkId) {
        self.memory.remove(id);
        if let Some(disk) = &self.disk {
            disk.forget(id);
        }
    }

    fn remember_free(&self, url: &str) {
        let mut freed = self.freed.lock();
        if freed.len() >= FREED_MAX {
            freed.pop_front();
        }
        freed.push_back((Instant::now(), url.to_owned()));
    }

    /// Waits until chunks on their way to the disk are there. False when `timeout` passes first.
    pub fn flush(&self, timeout: Duration) -> bool {
        self.disk.as_ref().is_none_or(|disk| disk.flush(timeout))
    }

    fn drop_bad_copies(&self, request: &ChunkRequest, id: &ChunkId) {
        let key = &request.key;
        if let Some(chunk) = self.memory.get(key, id)
            && !(chunk.checksums().is_some_and(|is| is_expected(request, &is)) && memory::is_intact(&chunk))
        {
            self.memory.remove(id);
            if let Some(disk) = &self.disk {
                // The same copy may be on its way there.
                disk.discard(id);
            }
            self.count_bad(id, Tier::Memory);
        }
        if let Some(disk) = &self.disk
            && let Some(chunk) = disk.get(key, id)
            && !(is_expected(request, &chunk.checksums) && disk.is_intact(&chunk, key))
        {
            disk.remove(id);
            self.count_bad(id, Tier::Disk);
        }
        // What a stranger says it must be is no reason to lose what is held: it is only not given out.
        if self.holds.as_ref().is_some_and(|holds| holds.drop_if_torn(id)) {
            self.count_bad(id, Tier::Disk);
        }
    }

    fn count_bad(&self, id: &ChunkId, tier: Tier) {
        self.metrics.checksum_mismatches.with_label_values(&[tier.as_str()]).inc();
        tracing::warn!(chunk = %id, %tier, "copy with a wrong checksum dropped; it is filled again");
    }
}

/// Whether a copy with these checksums is what the asker knows that it must be.
fn is_expected(request: &ChunkRequest, checksums: &[BlockChecksum]) -> bool {
    let Some(expected) = request.expected.as_ref().filter(|_| request.recheck) else { return true };
    checksums.get(request.blocks()).is_some_and(|blocks| *blocks == **expected)
}

fn file_reply(tier: Tier, chunk: DiskChunk) -> ChunkReply {
    let body = ChunkBody::File { file: chunk.file, offset_bytes: 0, checksums: chunk.checksums };
    ChunkReply { tier, body }
}
