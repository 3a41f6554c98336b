//! Chunks that reading a manifest has fetched from the origin. Who loads the model right after it finds them in the
//! cache, and would tell its user that nothing had to be fetched for them.

use std::collections::HashSet;

use longshore_types::ChunkId;
use parking_lot::Mutex;

/// Most chunks noted at once. Further ones count as what they are to the reader: in the cache.
const NOTED_MAX: usize = 16 << 10;

/// Chunks fetched for their heads and not asked for since.
#[derive(Debug, Default)]
pub struct HeadFills {
    noted: Mutex<HashSet<ChunkId>>,
}

impl HeadFills {
    pub(crate) fn note(&self, id: ChunkId) {
        let mut noted = self.noted.lock();
        if noted.len() < NOTED_MAX {
            noted.insert(id);
        }
    }

    /// Whether the chunk was fetched for its head; true once for each time.
    pub fn take(&self, id: &ChunkId) -> bool {
        self.noted.lock().remove(id)
    }
}
