//! The attempts that this node knows.

use std::collections::HashMap;
use std::sync::Arc;

use longshore_types::checkpoint::AttemptId;
use longshore_types::{Code, Error, Result};
use parking_lot::RwLock;

use crate::attempt::Attempt;
use crate::slabs::{SlabKey, SlabPlans, SlabWanted};
use crate::status::SaveState;

/// Attempts that ended and are still told of.
const ENDED_MAX: usize = 64;

/// By id.
#[derive(Default)]
pub(crate) struct Attempts {
    known: RwLock<HashMap<AttemptId, Arc<Attempt>>>,
}

impl Attempts {
    pub(crate) fn get(&self, id: &AttemptId) -> Result<Arc<Attempt>> {
        self.find(id).ok_or_else(|| {
            Error::new(Code::NotFound, format!("no save with the attempt {id} is known here: call StartSave first"))
        })
    }

    pub(crate) fn find(&self, id: &AttemptId) -> Option<Arc<Attempt>> {
        self.known.read().get(id).cloned()
    }

    pub(crate) fn insert(&self, attempt: Arc<Attempt>) {
        self.known.write().insert(attempt.id(), attempt);
    }

    pub(crate) fn remove(&self, id: &AttemptId) {
        self.known.write().remove(id);
    }

    /// All, oldest first.
    pub(crate) fn all(&self) -> Vec<Arc<Attempt>> {
        let mut all: Vec<Arc<Attempt>> = self.known.read().values().cloned().collect();
        all.sort_by_key(|attempt| (attempt.plan().created_ms, attempt.plan().step, attempt.id()));
        all
    }

    pub(crate) fn running(&self) -> usize {
        let is_running = |attempt: &Attempt| attempt.is_driven() || !attempt.status().state.is_ended();
        self.known.read().values().filter(|attempt| is_running(attempt)).count()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.known.read().is_empty()
    }

    /// Ended attempts without bytes here that are too many to be told of, oldest first.
    pub(crate) fn forgotten(&self) -> Vec<Arc<Attempt>> {
        let mut ended = self.all();
        ended.retain(|attempt| attempt.state().is_ended() && !attempt.has_objects());
        ended.truncate(ended.len().saturating_sub(ENDED_MAX));
        ended
    }
}

impl SlabPlans for Attempts {
    fn look_up(&self, key: &SlabKey) -> Result<SlabWanted> {
        let attempt = self.get(&key.attempt)?;
        let state = attempt.status().state;
        if attempt.state().is_ended() || matches!(state, SaveState::Committed | SaveState::Cancelled) {
            let message = format!("saving {} has ended: it is {}", attempt.url(), state.label());
            return Err(Error::new(Code::FailedPrecondition, message));
        }
        attempt.touch();
        let length_bytes = attempt.slab_bytes(key.file, key.slab_index)?;
        Ok(SlabWanted {
            length_bytes,
            is_durable: attempt.state().is_flushed(key.file, key.slab_index),
            refuse_when_full: attempt.plan().options.refuse_when_full,
        })
    }
}
