//! The daemon's side: a connection to a copier ([`link`]), what runs at its other end ([`process`]), and who starts the
//! next one ([`supervisor`]).

pub(super) mod link;
mod process;
pub(super) mod supervisor;

use std::collections::VecDeque;
use std::time::Duration;

use longshore_memory::PinnedChunk;
use longshore_types::{Code, Error, Result};
use parking_lot::{Condvar, Mutex};

pub use self::process::CopierStart;
pub use self::supervisor::CopierState;

/// A copier that is silent for so long, with work to do, is ended.
const SILENCE_MAX: Duration = Duration::from_secs(120);

/// What became of the copies to one region.
#[derive(Default)]
pub(super) struct Progress {
    state: Mutex<ProgressState>,
    changed: Condvar,
}

#[derive(Default)]
struct ProgressState {
    outstanding: usize,
    done: u64,
    error: Option<Error>,
}

impl Progress {
    /// Announces so many copies.
    pub(super) fn begin(&self, copies: usize) {
        self.state.lock().outstanding += copies;
    }

    fn done(&self, result: Result<()>) {
        let mut state = self.state.lock();
        state.outstanding -= 1;
        state.done += 1;
        if let Err(error) = result {
            // The first one is the cause of those that follow.
            state.error.get_or_insert(error);
        }
        self.changed.notify_all();
    }

    /// The first error so far.
    pub(super) fn check(&self) -> Result<()> {
        self.state.lock().error.clone().map_or(Ok(()), Err)
    }

    /// Waits until nothing is outstanding, and returns the first error. `give_up` is called, once, when nothing at all
    /// happens for a long time; it must make everything outstanding fail.
    pub(super) fn wait_idle(&self, give_up: impl FnOnce()) -> Result<()> {
        let mut give_up = Some(give_up);
        let mut state = self.state.lock();
        while state.outstanding > 0 {
            let done = state.done;
            let timed_out = self.changed.wait_for(&mut state, SILENCE_MAX).timed_out();
            if timed_out
                && state.done == done
                && let Some(give_up) = give_up.take()
            {
                parking_lot::MutexGuard::unlocked(&mut state, give_up);
            }
        }
        state.error.clone().map_or(Ok(()), Err)
    }
}

/// One announced copy: keeps the bytes where they are until it is done, well or not.
pub(super) struct CopyTicket {
    /// Dropped before the copy is reported: who waits for the region finds the slot free.
    chunk: Option<PinnedChunk>,
    progress: Option<std::sync::Arc<Progress>>,
}

impl CopyTicket {
    pub(super) fn new(chunk: PinnedChunk, progress: std::sync::Arc<Progress>) -> CopyTicket {
        CopyTicket { chunk: Some(chunk), progress: Some(progress) }
    }

    fn finish(&mut self, result: Result<()>) {
        self.chunk = None;
        if let Some(progress) = self.progress.take() {
            progress.done(result);
        }
    }
}

impl Drop for CopyTicket {
    fn drop(&mut self) {
        self.finish(Err(Error::new(Code::Internal, "a copy was never answered")));
    }
}

/// At most so many events within a time.
struct Limit {
    events: VecDeque<std::time::Instant>,
}

impl Limit {
    const EVENTS: usize = 3;
    const WITHIN: Duration = Duration::from_secs(60);

    fn new() -> Limit {
        Limit { events: VecDeque::new() }
    }

    /// Counts an event now, or says how long to wait until it may happen.
    fn take(&mut self, now: std::time::Instant) -> Result<(), Duration> {
        while self.events.front().is_some_and(|event| now.saturating_duration_since(*event) >= Limit::WITHIN) {
            self.events.pop_front();
        }
        match self.events.front() {
            Some(first) if self.events.len() >= Limit::EVENTS => {
                Err(Limit::WITHIN.saturating_sub(now.saturating_duration_since(*first)))
            }
            _ => {
                self.events.push_back(now);
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Instant;

    use longshore_memory::{Arena, PinnedArena};

    use super::*;

    #[test]
    fn starts_are_limited() {
        let start = Instant::now();
        let mut limit = Limit::new();
        for second in [0, 10, 20] {
            assert_eq!(limit.take(start + Duration::from_secs(second)), Ok(()));
        }
        assert_eq!(limit.take(start + Duration::from_secs(30)), Err(Duration::from_secs(30)));
        assert_eq!(limit.take(start + Duration::from_secs(60)), Ok(()));
        assert_eq!(limit.take(start + Duration::from_secs(61)), Err(Duration::from_secs(9)));
    }

    #[test]
    fn tickets_report_once_and_let_go_of_the_chunk() {
        let arena = Arena::new(64 << 20);
        let pinned = PinnedArena::create(16 << 20, arena.try_reserve(16 << 20).unwrap()).unwrap();
        let progress = Arc::new(Progress::default());
        progress.begin(2);
        let chunk = pinned.try_chunk(100, None).unwrap();
        let mut first = CopyTicket::new(chunk.clone(), Arc::clone(&progress));
        let second = CopyTicket::new(chunk, Arc::clone(&progress));
        first.finish(Ok(()));
        drop(first);
        assert!(progress.check().is_ok());
        drop(second);
        assert_eq!(progress.wait_idle(|| ()).unwrap_err().code(), Code::Internal);
        assert_eq!(pinned.stats().used_bytes, 0);
    }
}
