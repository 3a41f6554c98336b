//! A fill in flight: what those who ask for the same chunk meanwhile wait for.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use longshore_types::{ChunkId, ChunkKey, Code, Error, Result, redact_url};
use longshore_wire::{GrowingChunk, Tier};
use parking_lot::{Condvar, Mutex};

/// A chunk that is being written, and where its first bytes came from; or why there is none.
type Start = Result<(Arc<GrowingChunk>, Tier)>;

/// One fill, from the moment somebody decided to do it.
pub struct Flight {
    /// What is filled. An id covers URL, version and index but not the size: askers compare.
    pub key: ChunkKey,
    started: Mutex<Option<Start>>,
    changed: Condvar,
    /// The bytes come from the origin now, not from another worker.
    at_origin: AtomicBool,
}

impl Flight {
    fn new(key: ChunkKey) -> Self {
        Flight { key, started: Mutex::new(None), changed: Condvar::new(), at_origin: AtomicBool::new(false) }
    }

    /// Tells the waiters where the bytes come from, or why none will. Only the first call counts.
    pub fn start(&self, outcome: Start) {
        if matches!(outcome, Ok((_, Tier::Origin))) {
            self.at_origin.store(true, Ordering::Release);
        }
        let mut started = self.started.lock();
        if started.is_none() {
            *started = Some(outcome);
            self.changed.notify_all();
        }
    }

    /// Marks that the origin has taken over from a worker that failed midway.
    pub fn reached_origin(&self) {
        self.at_origin.store(true, Ordering::Release);
    }

    /// Waits for [`Flight::start`].
    ///
    /// # Errors
    /// What the fill failed with, or [`Code::Timeout`].
    pub fn wait(&self, timeout: Duration) -> Start {
        let deadline = Instant::now() + timeout;
        let mut started = self.started.lock();
        loop {
            if let Some(outcome) = &*started {
                return outcome.clone();
            }
            if self.changed.wait_until(&mut started, deadline).timed_out() && started.is_none() {
                let url = redact_url(self.key.artifact().url());
                return Err(Error::new(
                    Code::Timeout,
                    format!("the fill of chunk {} of {url} did not begin within {timeout:?}", self.key.index()),
                ));
            }
        }
    }
}

/// How a miss goes on.
pub enum Joined {
    /// Nobody fills it yet: the caller does.
    Lead(Arc<Flight>),
    /// Somebody does.
    Follow(Arc<Flight>),
}

/// All fills in flight of a worker; as many as there are permits, and those who wait for one.
#[derive(Default)]
pub struct Flights {
    by_id: Mutex<HashMap<ChunkId, Arc<Flight>>>,
}

impl Flights {
    /// The flight of a chunk, begun by this call when there is none. `is_here` is asked under the lock: a fill puts
    /// its chunk into the store before it lands, so a miss before this call may be a hit now (`None`).
    ///
    /// # Errors
    /// [`Code::FailedPrecondition`] when the chunk in flight is of an artifact of another size.
    pub fn join(&self, key: &ChunkKey, id: ChunkId, is_here: impl FnOnce() -> bool) -> Result<Option<Joined>> {
        let mut by_id = self.by_id.lock();
        if let Some(flight) = by_id.get(&id) {
            if flight.key != *key {
                let url = redact_url(key.artifact().url());
                return Err(Error::new(
                    Code::FailedPrecondition,
                    format!("{url} is being read with another size at the same version; resolve it again"),
                ));
            }
            return Ok(Some(Joined::Follow(flight.clone())));
        }
        if is_here() {
            return Ok(None);
        }
        let flight = Arc::new(Flight::new(key.clone()));
        by_id.insert(id, flight.clone());
        Ok(Some(Joined::Lead(flight)))
    }

    /// The flight that [`longshore_wire::Mode::OnlyIfCached`] may follow: one that reads from the origin. Two workers
    /// that fill from each other would wait for ever.
    pub fn reading_origin(&self, key: &ChunkKey, id: &ChunkId) -> Option<Arc<Flight>> {
        let by_id = self.by_id.lock();
        let flight = by_id.get(id).filter(|flight| flight.key == *key)?;
        flight.at_origin.load(Ordering::Acquire).then(|| flight.clone())
    }

    /// Ends a flight; what it brought is in the store by now. False when it had ended before.
    pub fn land(&self, id: &ChunkId, flight: &Arc<Flight>) -> bool {
        let mut by_id = self.by_id.lock();
        let is_flying = by_id.get(id).is_some_and(|flying| Arc::ptr_eq(flying, flight));
        if is_flying {
            by_id.remove(id);
        }
        is_flying
    }
}
