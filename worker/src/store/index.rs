//! What lies on disk: chunk id -> bytes and last use, 24 bytes an entry and about 6 for the table.
//!
//! Checksums and identities stay in the files: caches of tens of millions of small files must fit in memory. Eviction
//! order is sampled, as in Redis: the oldest of [`SAMPLES`] entries goes. With fewer entries than that it is exact.

use hashbrown::HashTable;
use longshore_types::ChunkId;

use super::format::PAGE_BYTES;

/// Entries that are looked at to find one to evict.
const SAMPLES: usize = 32;

#[derive(Debug, Clone, Copy)]
struct Slot {
    id: ChunkId,
    /// Value of the clock at the last use.
    used: u32,
    pages: u32,
}

/// The index of the disk tier. Callers lock it; nothing here does I/O.
#[derive(Debug, Default)]
pub struct Index {
    slots: Vec<Slot>,
    /// Positions in `slots`.
    table: HashTable<u32>,
    pages: u64,
    /// Counts uses, and wraps: an entry that was not used in 4 billion uses looks young once.
    clock: u32,
    random: u64,
}

/// Ids are digests already: their first bytes are the hash.
fn hash(id: &ChunkId) -> u64 {
    let mut first = [0; 8];
    first.copy_from_slice(&id.as_bytes()[..8]);
    u64::from_le_bytes(first)
}

impl Index {
    /// Adds or replaces an entry of `bytes` (whole pages), as just used. At 4 billion entries no more are taken.
    pub fn insert(&mut self, id: ChunkId, bytes: u64) -> bool {
        let pages = u32::try_from(bytes / PAGE_BYTES).unwrap_or(u32::MAX);
        self.remove(&id);
        let Ok(position) = u32::try_from(self.slots.len()) else { return false };
        self.clock = self.clock.wrapping_add(1);
        self.slots.push(Slot { id, used: self.clock, pages });
        self.pages += u64::from(pages);
        let slots = &self.slots;
        self.table.insert_unique(hash(&id), position, |&at| hash(&slots[at as usize].id));
        true
    }

    /// Marks an entry as just used. False when there is none.
    pub fn touch(&mut self, id: &ChunkId) -> bool {
        let Some(position) = self.position(id) else { return false };
        self.clock = self.clock.wrapping_add(1);
        self.slots[position].used = self.clock;
        true
    }

    /// Whether there is an entry.
    pub fn contains(&self, id: &ChunkId) -> bool {
        self.position(id).is_some()
    }

    /// Drops an entry and says how many bytes its file has.
    pub fn remove(&mut self, id: &ChunkId) -> Option<u64> {
        let slots = &self.slots;
        let entry = self.table.find_entry(hash(id), |&at| slots[at as usize].id == *id).ok()?;
        let position = entry.remove().0 as usize;
        let removed = self.slots.swap_remove(position);
        if let Some(moved) = self.slots.get(position) {
            // The last slot took the place of the removed one: its entry in the table follows.
            let last = self.slots.len() as u32;
            if let Some(at) = self.table.find_mut(hash(&moved.id), |&at| at == last) {
                *at = position as u32;
            }
        }
        self.pages -= u64::from(removed.pages);
        Some(u64::from(removed.pages) * PAGE_BYTES)
    }

    /// About the least recently used entry.
    pub fn victim(&mut self) -> Option<ChunkId> {
        let count = self.slots.len();
        let age = |slot: &&Slot| self.clock.wrapping_sub(slot.used);
        if count <= SAMPLES {
            return self.slots.iter().max_by_key(age).map(|slot| slot.id);
        }
        let mut random = self.random | 1;
        let sampled = (0..SAMPLES).map(|_| {
            // xorshift64: any spread over the slots will do.
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            &self.slots[(random % count as u64) as usize]
        });
        let victim = sampled.max_by_key(age).map(|slot| slot.id);
        self.random = random;
        victim
    }

    /// Entries.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Bytes of all files.
    pub fn bytes(&self) -> u64 {
        self.pages * PAGE_BYTES
    }

    /// A copy of all ids, for the rare walk over everything.
    pub fn ids(&self) -> Vec<ChunkId> {
        self.slots.iter().map(|slot| slot.id).collect()
    }

    fn position(&self, id: &ChunkId) -> Option<usize> {
        self.table.find(hash(id), |&at| self.slots[at as usize].id == *id).map(|&at| at as usize)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    fn id(number: u8) -> ChunkId {
        // The same first byte for some, so that hashes collide.
        ChunkId::parse(&format!("{:02x}{}{number:02x}", number % 3, "0".repeat(28))).unwrap()
    }

    #[test]
    fn an_entry_is_small() {
        assert_eq!(size_of::<Slot>(), 24);
    }

    #[test]
    fn the_least_recently_used_goes_first() {
        let mut index = Index::default();
        for number in 0..10 {
            index.insert(id(number), PAGE_BYTES);
        }
        index.touch(&id(0));
        index.touch(&id(1));
        for wanted in [2, 3, 4, 5, 6, 7, 8, 9, 0, 1] {
            let victim = index.victim().unwrap();
            assert_eq!(victim, id(wanted));
            index.remove(&victim);
        }
        assert_eq!(index.victim(), None);
    }

    #[test]
    fn sampling_spares_the_recent_ones() {
        let mut index = Index::default();
        for number in 0..200 {
            index.insert(id(number), PAGE_BYTES);
        }
        for _ in 0..100 {
            let victim = index.victim().unwrap();
            index.remove(&victim);
        }
        let young = (100..200).filter(|&number| index.contains(&id(number))).count();
        assert!(young > 80, "{young} of the 100 younger ones are left");
    }

    proptest! {
        #[test]
        fn it_behaves_as_a_map(steps in proptest::collection::vec((0u8..4, 0u8..30, 1u64..5), 1..400)) {
            let (mut index, mut model) = (Index::default(), HashMap::new());
            for (step, number, pages) in steps {
                let (id, bytes) = (id(number), pages * PAGE_BYTES);
                match step {
                    0 | 1 => {
                        index.insert(id, bytes);
                        model.insert(id, bytes);
                    }
                    2 => prop_assert_eq!(index.remove(&id), model.remove(&id)),
                    _ => prop_assert_eq!(index.touch(&id), model.contains_key(&id)),
                }
                prop_assert_eq!(index.len(), model.len());
                prop_assert_eq!(index.bytes(), model.values().sum::<u64>());
                prop_assert!(index.ids().iter().all(|id| model.contains_key(id)));
            }
        }
    }
}
