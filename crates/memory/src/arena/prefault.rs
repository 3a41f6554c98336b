//! Who touches memory while nothing else is going on.
//!
//! The kernel clears memory when it is first written, and a virtual machine's host may have to find it first, which takes up
//! to a hundred times as long. A load that gets memory which is ready pays for neither.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::Duration;

use longshore_types::{Code, Error, Result, format_bytes};
use parking_lot::MutexGuard;

use super::Arena;
use super::ready::Step;
use crate::shared::SharedMemory;

/// How long memory is left alone after the last load, whose client is about to attach or to load again, and after somebody
/// needed the room: else it would be touched and freed in turns.
const REST: Duration = Duration::from_secs(1);
/// How often to look whether there is room, or rest, meanwhile.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// Keeps memory ready for the next region of an arena ([`Arena::try_reserve_region`]); until it is dropped, which frees
/// that memory.
pub struct Prefaulter {
    state: Arc<State>,
    thread: Option<JoinHandle<()>>,
}

struct State {
    arena: Arena,
    memory: &'static SharedMemory,
    target_bytes: u64,
    is_ended: AtomicBool,
    /// How many would be disturbed now.
    busy: AtomicUsize,
    failure: OnceLock<String>,
}

/// As long as it lives, no memory is touched. See [`Prefaulter::quiet`].
pub struct Quiet(Arc<State>);

impl Prefaulter {
    /// Starts to keep `bytes` of `memory` ready, as far as the arena has room for them that nobody else needs.
    ///
    /// # Errors
    /// [`Code::InvalidArgument`] for more than the arena may have; [`Code::Unsupported`] when the kernel cannot touch memory
    /// ahead (before Linux 5.14) or gives none; [`Code::Internal`] when there can be no thread.
    pub fn start(arena: &Arena, memory: &'static SharedMemory, bytes: u64) -> Result<Prefaulter> {
        if bytes > arena.capacity_bytes() {
            let (asked, capacity) = (format_bytes(bytes), format_bytes(arena.capacity_bytes()));
            let message = format!("{asked} of memory to prefault are more than the memory budget of {capacity}");
            return Err(Error::new(Code::InvalidArgument, message));
        }
        let state = Arc::new(State {
            arena: arena.clone(),
            memory,
            target_bytes: crate::mapped_charge_bytes(bytes).min(arena.capacity_bytes()),
            is_ended: AtomicBool::new(false),
            busy: AtomicUsize::new(0),
            failure: OnceLock::new(),
        });
        // What cannot be done at all is said at once.
        state.step(&mut arena.shared.ready.slot().0).map_err(|error| {
            let message = format!("this system touches no memory ahead, do without --prefault: {error}");
            Error::new(Code::Unsupported, message).with_source(error)
        })?;
        let thread = std::thread::Builder::new().name("prefault".into()).spawn({
            let state = state.clone();
            move || state.run()
        });
        let thread = thread.map_err(|error| {
            arena.shared.end_ready();
            Error::new(Code::Internal, format!("cannot start the thread that touches memory: {error}"))
                .with_source(error)
        })?;
        Ok(Prefaulter { state, thread: Some(thread) })
    }

    /// Leaves memory alone until what is returned is dropped, and for a moment after. Does not block.
    pub fn quiet(&self) -> Quiet {
        self.state.busy.fetch_add(1, Ordering::SeqCst);
        Quiet(self.state.clone())
    }

    /// Why nothing is made ready any more; `None` when all is well.
    pub fn failure(&self) -> Option<&str> {
        self.state.failure.get().map(String::as_str)
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        self.0.arena.shared.ready.disturb();
        self.0.busy.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Drop for Prefaulter {
    fn drop(&mut self) {
        let ready = &self.state.arena.shared.ready;
        {
            // Under the lock, so that the thread cannot be about to wait.
            let (_slot, changed) = ready.slot();
            self.state.is_ended.store(true, Ordering::SeqCst);
            changed.notify_all();
        }
        // A panic has told of itself, and what it left is freed here as well.
        let _ = self.thread.take().map(JoinHandle::join);
        self.state.arena.shared.end_ready();
    }
}

impl State {
    fn run(&self) {
        let (mut slot, changed) = self.arena.shared.ready.slot();
        while !self.is_ended.load(Ordering::SeqCst) {
            if !self.is_quiet() {
                changed.wait_for(&mut slot, LOOK_AGAIN);
                continue;
            }
            match self.step(&mut slot) {
                Ok(Step::Touched) => MutexGuard::bump(&mut slot),
                Ok(Step::Full) => changed.wait(&mut slot),
                Ok(Step::NoRoom) => drop(changed.wait_for(&mut slot, LOOK_AGAIN)),
                Err(error) => {
                    let _ = self.failure.set(format!("no more memory is prefaulted, loads touch theirs: {error}"));
                    return;
                }
            }
        }
    }

    fn step(&self, slot: &mut Option<super::ready::Prefaulted>) -> io::Result<Step> {
        self.arena.shared.touch(slot, self.memory, self.target_bytes)
    }

    fn is_quiet(&self) -> bool {
        self.busy.load(Ordering::SeqCst) == 0 && self.arena.shared.ready.has_rested(REST)
    }
}

#[cfg(test)]
#[cfg(not(miri))]
mod tests;
