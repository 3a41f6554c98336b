//! Who has a copier, and starts another one when it ended: at most [`Limit::EVENTS`] a minute.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use longshore_memory::PinnedSource;
use longshore_types::{Code, Error, Result};
use parking_lot::Mutex;

use super::link::Link;
use super::{CopierStart, Limit};
use crate::cuda::read_back::ReadBack;

/// What the copier is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CopierState {
    /// It takes work.
    Ready,
    /// It is being started.
    Starting,
    /// It ended; the reason. The next use starts another one.
    Failed(String),
}

/// What is known without waiting for anything.
pub(super) struct Status {
    state: Mutex<CopierState>,
    starts: AtomicU64,
    /// Whether the last attempt to start one failed: nothing says that the next one will not.
    start_failed: AtomicBool,
}

impl Status {
    fn set(&self, state: CopierState) {
        *self.state.lock() = state;
    }

    pub(super) fn failed(&self, error: &Error) {
        self.set(CopierState::Failed(error.message().into()));
    }
}

/// Starts copiers for one GPU.
pub(in crate::cuda) struct Supervisor {
    start: CopierStart,
    name: String,
    gpu: String,
    pinned: PinnedSource,
    current: Mutex<Current>,
    status: Arc<Status>,
}

struct Current {
    link: Option<Arc<Link>>,
    starts: Limit,
}

impl Supervisor {
    pub(in crate::cuda) fn new(start: CopierStart, name: String, gpu: String, pinned: PinnedSource) -> Supervisor {
        let status = Arc::new(Status {
            state: Mutex::new(CopierState::Starting),
            starts: AtomicU64::new(0),
            start_failed: AtomicBool::new(false),
        });
        let current = Mutex::new(Current { link: None, starts: Limit::new() });
        Supervisor { start, name, gpu, pinned, current, status }
    }

    /// The copier. Starts one if there is none, with all page-locked memory and `read_back` as the piece after it.
    pub(in crate::cuda) fn link(&self, read_back: &ReadBack) -> Result<Arc<Link>> {
        let mut current = self.current.lock();
        if let Some(link) = current.link.as_ref().filter(|link| link.is_alive()) {
            return Ok(Arc::clone(link));
        }
        // Whoever still holds the old one sees that it ended.
        current.link = None;
        let pinned = self.pinned.get().inspect_err(|error| self.status.failed(error))?;
        current.starts.take(Instant::now()).map_err(|wait| {
            let reason = match self.state() {
                CopierState::Failed(reason) => reason,
                _ => format!("the copier of {} ended", self.name),
            };
            let message = format!(
                "{reason}; {} starts within a minute did not last, the next one is in {} s",
                Limit::EVENTS,
                wait.as_secs() + 1
            );
            Error::new(Code::Unavailable, message)
        })?;
        self.status.starts.fetch_add(1, Ordering::Relaxed);
        self.status.set(CopierState::Starting);
        let mut pieces: Vec<_> = pinned.pieces().iter().map(|piece| (piece.fd, piece.len_bytes)).collect();
        pieces.push((read_back.fd(), ReadBack::BYTES));
        let opened = Link::open(&self.start, &self.name, &self.gpu, pieces, Arc::clone(&self.status));
        self.status.start_failed.store(opened.is_err(), Ordering::Relaxed);
        let link = opened.inspect_err(|error| self.status.failed(error))?;
        self.status.set(CopierState::Ready);
        // It may have died while this was written.
        if !link.is_alive() {
            let message = format!("the copier of {} ended as soon as it had started", self.name);
            let error = Error::new(Code::Unavailable, message);
            self.status.failed(&error);
            return Err(error);
        }
        current.link = Some(Arc::clone(&link));
        Ok(link)
    }

    /// The copier if there is one and nobody is starting one.
    pub(in crate::cuda) fn idle_link(&self) -> Option<Arc<Link>> {
        let current = self.current.try_lock()?;
        current.link.as_ref().filter(|link| link.is_alive()).map(Arc::clone)
    }

    /// The number of the piece after the page-locked memory, for who has a link.
    pub(in crate::cuda) fn read_back_piece(&self) -> u32 {
        self.pinned.peek().map_or(0, |pinned| pinned.pieces().len()) as u32
    }

    pub(in crate::cuda) fn state(&self) -> CopierState {
        self.status.state.lock().clone()
    }

    /// Whether the last attempt to start a copier failed.
    pub(in crate::cuda) fn start_failed(&self) -> bool {
        self.status.start_failed.load(Ordering::Relaxed)
    }

    /// Copiers that were started.
    pub(in crate::cuda) fn starts(&self) -> u64 {
        self.status.starts.load(Ordering::Relaxed)
    }
}
