//! The fetch threads: dedicated, blocking, shared by all loads.
//!
//! There is no queue of chunks: a load waits in line as a whole, each free thread takes the next chunk of the load in
//! front and puts the load back at the end, so that loads share the threads evenly. Bytes in flight are bounded by the
//! number of threads (one chunk each), and the line by the number of loads that may run. A chunk that another load is
//! fetching is left for later: the ranks of one model spread over its chunks instead of waiting for each other.

mod job;
mod local;
mod pace;
mod reader;
mod stage;
mod storage;

use std::collections::VecDeque;
use std::sync::Arc;

use longshore_types::{Code, Error, Result};
use parking_lot::{Condvar, Mutex};
use tokio_util::sync::CancellationToken;

pub(crate) use job::Job;
use job::Turn;
pub(crate) use local::Ways;
pub(crate) use reader::{ChunkReader, Hedging, NodeCopies, Readers};

/// The threads. They end when the pool is dropped.
pub(crate) struct FetchPool {
    line: Arc<Line>,
}

struct Line {
    state: Mutex<LineState>,
    ready: Condvar,
}

#[derive(Default)]
struct LineState {
    jobs: VecDeque<Arc<Job>>,
    is_closed: bool,
}

impl FetchPool {
    /// Starts `threads` threads.
    ///
    /// # Errors
    /// [`Code::Exhausted`] when the system gives no more threads.
    pub(crate) fn start(threads: usize) -> Result<FetchPool> {
        let line = Arc::new(Line { state: Mutex::default(), ready: Condvar::new() });
        // Made first, so that threads that were started end when a later one cannot be.
        let pool = FetchPool { line };
        for number in 1..=threads as u32 {
            let line = pool.line.clone();
            let thread = std::thread::Builder::new().name(format!("fetch-{number}"));
            let started = thread.spawn(move || {
                while let Some((job, turn)) = line.take() {
                    job.fetch(turn, number);
                }
            });
            started.map_err(|error| {
                Error::new(Code::Exhausted, format!("cannot start fetch thread {number}: {error}")).with_source(error)
            })?;
        }
        Ok(pool)
    }

    /// Fetches every chunk of the job; returns when no thread works on it any more.
    ///
    /// # Errors
    /// That of the first chunk that failed, or [`Code::Cancelled`].
    pub(crate) async fn run(&self, job: &Arc<Job>, token: &CancellationToken) -> Result<()> {
        if job.is_empty() {
            return Ok(());
        }
        {
            let mut state = self.line.state.lock();
            state.jobs.push_back(job.clone());
        }
        self.line.ready.notify_all();
        let withdrawal = Withdrawal { line: &self.line, job };
        tokio::select! {
            () = job.finished() => {}
            () = token.cancelled() => {
                drop(withdrawal);
                job.finished().await;
                return Err(Error::new(Code::Cancelled, "the load was given up"));
            }
        }
        job.outcome()
    }
}

impl Drop for FetchPool {
    fn drop(&mut self) {
        let mut state = self.line.state.lock();
        state.is_closed = true;
        for job in state.jobs.drain(..) {
            job.withdraw();
        }
        self.line.ready.notify_all();
    }
}

/// Takes the job out of the line, also when the future that waits for it is dropped.
struct Withdrawal<'a> {
    line: &'a Line,
    job: &'a Arc<Job>,
}

impl Drop for Withdrawal<'_> {
    fn drop(&mut self) {
        self.line.state.lock().jobs.retain(|job| !Arc::ptr_eq(job, self.job));
        self.job.withdraw();
    }
}

impl Line {
    /// The next chunk of the job in front. Blocks; `None` when the pool is gone.
    fn take(&self) -> Option<(Arc<Job>, Turn)> {
        let mut state = self.state.lock();
        loop {
            if state.is_closed {
                return None;
            }
            match state.jobs.pop_front() {
                Some(job) => {
                    let Some((turn, has_more)) = job.begin_next() else { continue };
                    if has_more {
                        state.jobs.push_back(job.clone());
                        self.ready.notify_one();
                    }
                    return Some((job, turn));
                }
                None => self.ready.wait(&mut state),
            }
        }
    }
}
