//! Events: what streams pass, and who waits for it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::{Condvar, Mutex};

use crate::codes::{self, Code};
use crate::usage::UsageFile;

/// Handles are numbers from here on, so that other numbers are none.
const HANDLES_FROM: u64 = 0xe000_0000;

/// All events of this process.
#[derive(Default)]
pub(crate) struct Events {
    all: Mutex<(u64, HashMap<u64, Arc<Event>>)>,
}

/// An event.
#[derive(Debug)]
pub(crate) struct Event {
    pub(crate) device: usize,
    pub(crate) timed: bool,
    state: Mutex<State>,
    passed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// How often it was recorded, and which of these records a stream has passed.
    recorded: u64,
    passed: u64,
    at: Option<Instant>,
}

impl Events {
    /// A new event.
    pub(crate) fn create(&self, device: usize, timed: bool, usage: &UsageFile) -> u64 {
        let mut all = self.all.lock();
        all.0 += 1;
        let handle = HANDLES_FROM + all.0;
        all.1.insert(handle, Arc::new(Event { device, timed, state: Mutex::default(), passed: Condvar::new() }));
        usage.events(all.1.len() as u64);
        handle
    }

    /// The event of a handle.
    pub(crate) fn get(&self, handle: u64) -> Result<Arc<Event>, Code> {
        self.all.lock().1.get(&handle).cloned().ok_or(codes::INVALID_HANDLE)
    }

    /// The handle is no more; streams that have still to pass the event do.
    pub(crate) fn destroy(&self, handle: u64, usage: &UsageFile) -> Result<(), Code> {
        let mut all = self.all.lock();
        all.1.remove(&handle).ok_or(codes::INVALID_HANDLE)?;
        usage.events(all.1.len() as u64);
        Ok(())
    }

    /// All events of a context go.
    pub(crate) fn close_all(&self, device: usize, usage: &UsageFile) {
        let mut all = self.all.lock();
        all.1.retain(|_, event| event.device != device);
        usage.events(all.1.len() as u64);
    }
}

impl Event {
    /// A new record, and its number.
    pub(crate) fn record(&self) -> u64 {
        let mut state = self.state.lock();
        state.recorded += 1;
        state.recorded
    }

    /// The number of the last record.
    pub(crate) fn recorded(&self) -> u64 {
        self.state.lock().recorded
    }

    /// A stream has come to a record.
    pub(crate) fn pass(&self, record: u64) {
        let mut state = self.state.lock();
        state.passed = state.passed.max(record);
        state.at = Some(Instant::now());
        self.passed.notify_all();
    }

    /// Waits until a record is passed.
    pub(crate) fn wait(&self, record: u64) {
        let mut state = self.state.lock();
        while state.passed < record {
            self.passed.wait(&mut state);
        }
    }

    /// Whether the last record is passed.
    pub(crate) fn is_passed(&self) -> bool {
        let state = self.state.lock();
        state.passed >= state.recorded
    }

    /// When it was passed.
    pub(crate) fn passed_at(&self) -> Result<Instant, Code> {
        let state = self.state.lock();
        match state.at {
            _ if !self.timed || state.recorded == 0 => Err(codes::INVALID_HANDLE),
            Some(at) if state.passed >= state.recorded => Ok(at),
            _ => Err(codes::NOT_READY),
        }
    }
}
