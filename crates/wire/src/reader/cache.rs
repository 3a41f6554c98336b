//! What a reader keeps: open files, page checksums, and blocks that no file was handed over for. All of it is bounded, and
//! the least recently used goes.
//!
//! Shards keep threads out of each other's way; what is known of a chunk is in one shard, so that a read locks once. Blocks
//! are few, and each is much work: one lock is enough for them.

use std::collections::HashMap;
use std::fs::File;
use std::hash::{BuildHasherDefault, Hash, Hasher};
use std::sync::Arc;

use longshore_memory::Buffer;
use parking_lot::Mutex;

use super::ReaderOptions;
use super::pages::{PageSums, SUMS_BYTES};

/// Shards at most. Fewer when there is little to share out.
const SHARDS_MAX: usize = 16;

/// A block of the object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct BlockAt {
    pub(super) chunk: u32,
    /// In the chunk.
    pub(super) block: u32,
}

/// A chunk file that was handed over.
#[derive(Clone)]
pub(super) struct ChunkFile {
    pub(super) file: Arc<File>,
    /// Where the chunk begins.
    pub(super) offset_bytes: u64,
}

/// How a block can be read without asking anybody.
pub(super) enum Known {
    /// Out of memory.
    Bytes(Arc<Buffer>),
    /// Out of the file, page by page.
    Pages(ChunkFile, Arc<PageSums>),
}

pub(super) struct Cache {
    shards: Box<[Mutex<Shard>]>,
    blocks: Mutex<Lru<BlockAt, Arc<Buffer>>>,
}

struct Shard {
    files: Lru<u32, ChunkFile>,
    sums: Lru<BlockAt, Arc<PageSums>>,
}

impl Cache {
    pub(super) fn new(options: &ReaderOptions) -> Cache {
        let files = options.open_files_max.max(1);
        let count = SHARDS_MAX.min(files);
        let sums = options.checksum_bytes_max / SUMS_BYTES / count;
        let shard = || Shard { files: Lru::new(files / count), sums: Lru::new(sums.max(1)) };
        Cache {
            shards: (0..count).map(|_| Mutex::new(shard())).collect(),
            blocks: Mutex::new(Lru::new(options.blocks_max.max(1))),
        }
    }

    pub(super) fn get(&self, at: BlockAt) -> Option<Known> {
        let mut shard = self.shard(at).lock();
        let Shard { files, sums } = &mut *shard;
        if let (Some(sums), Some(file)) = (sums.get(&at), files.get(&at.chunk)) {
            return Some(Known::Pages(file.clone(), sums.clone()));
        }
        drop(shard);
        self.blocks.lock().get(&at).map(|block| Known::Bytes(block.clone()))
    }

    pub(super) fn sums(&self, at: BlockAt) -> Option<Arc<PageSums>> {
        self.shard(at).lock().sums.get(&at).cloned()
    }

    pub(super) fn keep_file(&self, at: BlockAt, file: ChunkFile, sums: Arc<PageSums>) {
        let mut shard = self.shard(at).lock();
        shard.files.insert(at.chunk, file);
        shard.sums.insert(at, sums);
    }

    pub(super) fn keep_block(&self, at: BlockAt, block: Arc<Buffer>) {
        self.blocks.lock().insert(at, block);
    }

    /// The file is bad, or was; what its blocks must be is still known.
    pub(super) fn forget_file(&self, at: BlockAt) {
        self.shard(at).lock().files.map.remove(&at.chunk);
    }

    /// Files open and blocks in memory.
    pub(super) fn held(&self) -> (usize, usize) {
        let files = self.shards.iter().map(|shard| shard.lock().files.map.len()).sum();
        (files, self.blocks.lock().map.len())
    }

    fn shard(&self, at: BlockAt) -> &Mutex<Shard> {
        &self.shards[at.chunk as usize % self.shards.len()]
    }
}

/// Chunks and blocks are numbered from 0: a multiplication spreads them well enough, and a read looks up two.
#[derive(Default)]
struct Spread(u64);

impl Hasher for Spread {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u32(u32::from(*byte)));
    }

    fn write_u32(&mut self, number: u32) {
        self.0 = (self.0.rotate_left(5) ^ u64::from(number)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    fn finish(&self) -> u64 {
        // The table looks at the highest bits and at the lowest.
        self.0 ^ (self.0 >> 32)
    }
}

/// A map of so many entries at most.
struct Lru<K, V> {
    map: HashMap<K, (V, u64), BuildHasherDefault<Spread>>,
    entries_max: usize,
    /// Counts uses.
    clock: u64,
}

impl<K: Hash + Eq + Copy, V> Lru<K, V> {
    fn new(entries_max: usize) -> Lru<K, V> {
        Lru { map: HashMap::default(), entries_max, clock: 0 }
    }

    fn get(&mut self, key: &K) -> Option<&V> {
        let (value, used) = self.map.get_mut(key)?;
        self.clock += 1;
        *used = self.clock;
        Some(value)
    }

    /// Who inserts has just read a whole block: to look through the entries of a shard is little beside it.
    fn insert(&mut self, key: K, value: V) {
        if self.map.len() >= self.entries_max
            && !self.map.contains_key(&key)
            && let Some(oldest) = self.map.iter().min_by_key(|(_, (_, used))| *used).map(|(key, _)| *key)
        {
            self.map.remove(&oldest);
        }
        self.clock += 1;
        self.map.insert(key, (value, self.clock));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_recently_used_goes() {
        let mut lru = Lru::new(2);
        lru.insert(1, "one");
        lru.insert(2, "two");
        assert_eq!(lru.get(&1).copied(), Some("one"));
        lru.insert(3, "three");
        assert_eq!(
            (lru.get(&1).copied(), lru.get(&2).copied(), lru.get(&3).copied()),
            (Some("one"), None, Some("three"))
        );
        lru.insert(3, "again");
        assert_eq!((lru.get(&1).copied(), lru.get(&3).copied(), lru.map.len()), (Some("one"), Some("again"), 2));
    }
}
