//! From slabs to the disk: threads of their own, since every byte passes the CPU and the disk blocks.
//!
//! A slab is read block by block into a buffer of the thread's own, checksummed there while it is in the cache, and that copy is
//! written: whatever a client does to its memory, what the checksums cover is what was written. Then the data are synced, then
//! the record, and only then is the slab free. What waits here is bounded by the memory for slabs.

mod delta;
mod sums;
mod target;
mod write;

use std::collections::VecDeque;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use longshore_types::{Code, Error, Result};
use parking_lot::{Condvar, Mutex};

use crate::attempt::{Attempt, FlushedSlab, Record, record_durable};
use crate::engine::Parts;
use crate::failpoint;
use crate::slabs::{SealedSlab, Slabs};

pub(crate) use self::sums::inline_slab;
pub(crate) use self::write::Writer;

/// Meek threads, by the number of cores: more do not make a disk faster, and each has a buffer.
const MEEK_MIN: usize = 2;
const MEEK_MAX: usize = 4;
/// Threads that work in between.
const BETWEEN: usize = 2;
/// Small slabs of one attempt that share a sync of the folder and of the journal.
const SMALL_BYTES: u64 = 1 << 20;
const BATCH_MAX: usize = 256;
/// How long a thread waits for its buffer at the start.
const BUFFER_TIMEOUT: Duration = Duration::from_secs(60);
/// Of the threads that write while training copies its next slabs on the same cores, perhaps: the stall comes first.
const NICE: i32 = 10;
/// How often a slab that found the disk full is tried again.
const FULL_PAUSE: Duration = Duration::from_millis(500);

/// One slab to flush. Dropping it frees the slab.
pub(crate) struct Job {
    pub(crate) attempt: Arc<Attempt>,
    pub(crate) slab: SealedSlab,
}

/// The threads.
pub(crate) struct Flusher {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
    parts: Arc<Parts>,
    slabs: Slabs,
}

/// When a thread works.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Always, behind whoever else wants the cores.
    Meek,
    /// Once nothing is being copied into slabs any more: nobody is stalled then.
    Between,
}

#[derive(Default)]
struct Queue {
    ready: VecDeque<Job>,
    /// Found the disk full, and when they are tried again.
    parked: VecDeque<(Instant, Job)>,
    is_closed: bool,
}

impl Flusher {
    pub(crate) fn start(parts: &Arc<Parts>, slabs: Slabs) -> Result<Flusher> {
        let (parts, queue) = (Arc::clone(parts), Mutex::default());
        let shared = Arc::new(Shared { queue, changed: Condvar::new(), parts, slabs });
        let meek = std::thread::available_parallelism().map_or(MEEK_MIN, usize::from).clamp(MEEK_MIN, MEEK_MAX);
        let mut threads = Vec::with_capacity(meek + BETWEEN);
        for number in 0..meek + BETWEEN {
            let kind = if number < meek { Kind::Meek } else { Kind::Between };
            let shared = Arc::clone(&shared);
            let thread =
                std::thread::Builder::new().name(format!("ckpt-flush-{number}")).spawn(move || shared.run(kind));
            threads.push(thread.map_err(|error| {
                Error::new(Code::Internal, format!("a thread for checkpoints cannot be started: {error}"))
            })?);
        }
        Ok(Flusher { shared, threads: Mutex::new(threads) })
    }

    /// Takes a slab. Their number is that of the slabs.
    pub(crate) fn push(&self, job: Job) {
        self.shared.queue.lock().ready.push_back(job);
        // All: with the last slab of a save those come that wait until nothing is copied.
        self.shared.changed.notify_all();
    }

    /// Ends the threads after the slabs in their hands; the others stay sealed.
    pub(crate) async fn close(&self) {
        self.shared.queue.lock().is_closed = true;
        self.shared.changed.notify_all();
        let threads = std::mem::take(&mut *self.threads.lock());
        let joined = tokio::task::spawn_blocking(move || threads.into_iter().all(|thread| thread.join().is_ok()));
        if !joined.await.unwrap_or(false) {
            tracing::error!("a flush thread panicked");
        }
    }
}

impl Drop for Flusher {
    /// An engine that is dropped without being closed leaves no threads behind.
    fn drop(&mut self) {
        self.shared.queue.lock().is_closed = true;
        self.shared.changed.notify_all();
    }
}

impl Shared {
    fn run(&self, kind: Kind) {
        // No process means this thread.
        if kind == Kind::Meek
            && let Err(error) = rustix::process::setpriority_process(None, NICE)
        {
            tracing::debug!(%error, "checkpoint bytes are written at the process's own priority");
        }
        let mut writer = None;
        while let Some(batch) = self.take(kind) {
            if writer.is_none() {
                match Writer::new(&self.parts.uploads, BUFFER_TIMEOUT) {
                    Ok(made) => writer = Some(made),
                    Err(error) => {
                        // Memory for buffers is short: loads have it. The slabs wait.
                        tracing::warn!(%error, "checkpoint bytes wait for memory");
                        self.park(batch);
                        continue;
                    }
                }
            }
            if let Some(writer) = &mut writer {
                self.flush(writer, batch);
            }
        }
    }

    /// The next slab, with small ones of the same attempt. Blocks; `None` at the end.
    fn take(&self, kind: Kind) -> Option<Vec<Job>> {
        let mut queue = self.queue.lock();
        loop {
            if queue.is_closed {
                queue.ready.clear();
                queue.parked.clear();
                return None;
            }
            if kind == Kind::Between && !queue.ready.is_empty() && self.slabs.stats().filling_slabs > 0 {
                self.changed.wait(&mut queue);
                continue;
            }
            let now = Instant::now();
            while queue.parked.front().is_some_and(|(at, _)| *at <= now) {
                if let Some((_, job)) = queue.parked.pop_front() {
                    queue.ready.push_back(job);
                }
            }
            if let Some(first) = queue.ready.pop_front() {
                let mut batch = vec![first];
                let is_small = |job: &Job| job.slab.length_bytes() <= SMALL_BYTES;
                while batch.len() < BATCH_MAX
                    && is_small(&batch[0])
                    && queue
                        .ready
                        .front()
                        .is_some_and(|next| is_small(next) && next.attempt.id() == batch[0].attempt.id())
                {
                    batch.extend(queue.ready.pop_front());
                }
                return Some(batch);
            }
            match queue.parked.front().map(|(at, _)| *at) {
                Some(at) => drop(self.changed.wait_until(&mut queue, at)),
                None => self.changed.wait(&mut queue),
            }
        }
    }

    fn park(&self, batch: Vec<Job>) {
        let at = Instant::now() + FULL_PAUSE;
        self.queue.lock().parked.extend(batch.into_iter().map(|job| (at, job)));
    }

    fn flush(&self, writer: &mut Writer, batch: Vec<Job>) {
        let Some(attempt) = batch.first().map(|job| Arc::clone(&job.attempt)) else { return };
        if attempt.state().is_ended() || attempt.is_failing() {
            return;
        }
        let started = Instant::now();
        match self.write(writer, &attempt, &batch) {
            Ok(()) => {
                self.parts.metrics.flush_seconds.observe(started.elapsed().as_secs_f64());
                drop(batch);
                finish_ranks(&attempt);
            }
            Err(error) if error.code() == Code::Exhausted && !attempt.plan().options.refuse_when_full => {
                self.parts.metrics.disk_errors.with_label_values(&["wait"]).inc();
                attempt.waits_for(&format!("room: {}", error.message()));
                self.park(batch);
            }
            Err(error) => {
                self.parts.metrics.disk_errors.with_label_values(&["fail"]).inc();
                attempt.fail(error);
            }
        }
    }

    fn write(&self, writer: &mut Writer, attempt: &Arc<Attempt>, batch: &[Job]) -> Result<()> {
        let mut flushed: Vec<FlushedSlab> = Vec::with_capacity(batch.len());
        for job in batch {
            let key = job.slab.key();
            let mut read = |at: u64, into: &mut [u8]| job.slab.read(at, into);
            flushed.push(writer.slab(attempt, key.file, key.slab_index, &mut read)?);
        }
        writer.sync(attempt)?;
        failpoint::hit("before_flushed_record");
        attempt.record_all(flushed.into_iter().map(Record::Flushed).collect())?;
        failpoint::hit("after_flushed_record");
        if !attempt.status().waiting_for.is_empty() {
            attempt.waits_for("");
        }
        Ok(())
    }
}

/// Ranks whose last slab was flushed just now are durable.
pub(crate) fn finish_ranks(attempt: &Arc<Attempt>) {
    for rank in attempt.ranks() {
        if attempt.claim_durable(rank) {
            record_durable(attempt, rank);
        }
    }
}
