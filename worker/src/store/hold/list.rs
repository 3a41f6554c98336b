//! What is held, told to others: the attempts, and the objects of each.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use longshore_types::Artifact;
use longshore_types::checkpoint::AttemptId;

use super::{HeldAttempt, Holds, files};

/// What [`Holds::objects`] finds of one object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldObject {
    /// Which.
    pub artifact: Arc<Artifact>,
    /// The chunks of it that are here, in order.
    pub chunks: Vec<u32>,
}

impl Holds {
    /// What is held, oldest first.
    pub fn list(&self) -> Vec<HeldAttempt> {
        let now = SystemTime::now();
        let state = self.state.lock();
        let mut list: Vec<HeldAttempt> = state
            .attempts
            .iter()
            .map(|(attempt, held)| HeldAttempt {
                attempt: *attempt,
                bytes: held.files.values().sum(),
                chunks: held.files.len() as u64,
                idle: now.duration_since(held.touched).unwrap_or_default(),
            })
            .collect();
        list.sort_by_key(|held| std::cmp::Reverse(held.idle));
        list
    }

    /// The objects of an attempt that chunks are held of, by URL; `None` when nothing is. Blocks for one small read a chunk.
    pub fn objects(&self, attempt: &AttemptId) -> Option<Vec<HeldObject>> {
        // The reads are made without the lock: a chunk that goes meanwhile is not told of.
        let ids: Vec<_> = self.state.lock().attempts.get(attempt)?.files.keys().copied().collect();
        let mut objects: BTreeMap<String, HeldObject> = BTreeMap::new();
        for key in ids.iter().filter_map(|id| files::identify(&self.path(attempt, id))) {
            let fresh = || HeldObject { artifact: key.artifact().clone(), chunks: Vec::new() };
            objects.entry(key.artifact().url().to_owned()).or_insert_with(fresh).chunks.push(key.index());
        }
        objects.values_mut().for_each(|object| object.chunks.sort_unstable());
        Some(objects.into_values().collect())
    }
}
