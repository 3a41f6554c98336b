//! Which chunks are in slots, who uses them, and which goes next. Only bookkeeping: no memory, no waiting.

use std::collections::{BTreeMap, HashMap};

use longshore_types::ChunkKey;

/// The chunks, by what they are. A chunk of another version is another chunk.
pub(super) struct Shelf<T> {
    entries: HashMap<ChunkKey, Entry<T>>,
    /// Those without leases, the least recently used first.
    unused: BTreeMap<u64, ChunkKey>,
    /// Time, in uses.
    now: u64,
}

struct Entry<T> {
    chunk: T,
    leases: u32,
    /// When its last lease ended: its place in `unused`, when it has none.
    since: u64,
    /// To go with its last lease.
    is_forgotten: bool,
}

impl<T> Default for Shelf<T> {
    fn default() -> Self {
        Shelf { entries: HashMap::new(), unused: BTreeMap::new(), now: 0 }
    }
}

impl<T: Clone> Shelf<T> {
    /// Another lease on a chunk that is there.
    pub(super) fn lease(&mut self, key: &ChunkKey) -> Option<T> {
        let entry = self.entries.get_mut(key)?;
        if entry.leases == 0 {
            self.unused.remove(&entry.since);
        }
        entry.leases += 1;
        Some(entry.chunk.clone())
    }

    /// A chunk that is there, for a look that is no use of it.
    pub(super) fn peek(&self, key: &ChunkKey) -> Option<&T> {
        self.entries.get(key).map(|entry| &entry.chunk)
    }

    /// A chunk that is not there, leased once.
    pub(super) fn put(&mut self, key: ChunkKey, chunk: T) {
        self.entries.insert(key, Entry { chunk, leases: 1, since: 0, is_forgotten: false });
    }

    /// Ends a lease. Gives the chunk that is to go: `keep` says whether one that nobody leases is worth its slot.
    pub(super) fn release(&mut self, key: &ChunkKey, keep: impl FnOnce(&T) -> bool) -> Option<T> {
        let entry = self.entries.get_mut(key)?;
        entry.leases = entry.leases.saturating_sub(1);
        if entry.leases > 0 {
            return None;
        }
        if entry.is_forgotten || !keep(&entry.chunk) {
            return self.entries.remove(key).map(|entry| entry.chunk);
        }
        self.now += 1;
        entry.since = self.now;
        self.unused.insert(self.now, key.clone());
        None
    }

    /// Takes the chunk whose last lease ended first.
    pub(super) fn take_oldest(&mut self) -> Option<T> {
        let (_, key) = self.unused.pop_first()?;
        self.entries.remove(&key).map(|entry| entry.chunk)
    }

    /// Takes the chunks that `which` picks; those with leases go with the last of them.
    pub(super) fn forget(&mut self, which: impl Fn(&ChunkKey) -> bool) -> Vec<T> {
        let mut taken = Vec::new();
        let unused = &mut self.unused;
        self.entries.retain(|key, entry| {
            if !which(key) {
                return true;
            }
            entry.is_forgotten = true;
            if entry.leases == 0 {
                unused.remove(&entry.since);
                taken.push(entry.chunk.clone());
            }
            entry.leases > 0
        });
        taken
    }

    /// Chunks that are there.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Chunks that nobody leases.
    pub(super) fn unused(&self) -> usize {
        self.unused.len()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use longshore_types::{Artifact, CHUNK_BYTES, Version};

    use super::*;

    fn key(version: &str, index: u32) -> ChunkKey {
        let version = Version::new(version).unwrap();
        let artifact = Artifact::new("s3://bucket/model", version, 100 * CHUNK_BYTES).unwrap();
        ChunkKey::new(Arc::new(artifact), index).unwrap()
    }

    #[test]
    fn the_chunk_that_was_used_longest_ago_goes_first_and_leased_ones_stay() {
        let mut shelf = Shelf::default();
        for index in 0..4 {
            shelf.put(key("a", index), index);
        }
        assert_eq!(shelf.take_oldest(), None, "all are leased");
        for index in [2, 0, 1] {
            assert_eq!(shelf.release(&key("a", index), |_| true), None);
        }
        assert_eq!((shelf.len(), shelf.unused()), (4, 3));
        assert_eq!(shelf.lease(&key("a", 2)), Some(2));
        assert_eq!(shelf.release(&key("a", 2), |_| true), None);
        assert_eq!([shelf.take_oldest(), shelf.take_oldest(), shelf.take_oldest()], [Some(0), Some(1), Some(2)]);
        assert_eq!((shelf.take_oldest(), shelf.len()), (None, 1));
    }

    #[test]
    fn another_version_is_another_chunk() {
        let mut shelf = Shelf::default();
        shelf.put(key("a", 0), 1);
        assert_eq!(shelf.lease(&key("b", 0)), None);
        assert_eq!(shelf.lease(&key("a", 0)), Some(1));
    }

    #[test]
    fn what_is_forgotten_or_worth_nothing_goes_with_its_last_lease() {
        let mut shelf = Shelf::default();
        for index in 0..3 {
            shelf.put(key("a", index), index);
        }
        assert_eq!(shelf.release(&key("a", 0), |_| false), Some(0));
        shelf.release(&key("a", 1), |_| true);
        shelf.lease(&key("a", 2));
        assert_eq!(shelf.forget(|key| key.index() < 3), [1]);
        assert_eq!(shelf.release(&key("a", 2), |_| true), None);
        assert_eq!(shelf.release(&key("a", 2), |_| true), Some(2));
        assert_eq!((shelf.len(), shelf.unused()), (0, 0));
    }
}
