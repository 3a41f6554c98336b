//! Brings chunk files into the page cache in large pages, ahead of those who read them.
//!
//! That blocks, so each disk tier has a few threads that do it. A hint that finds their queue full, or that the kernel does not
//! take, becomes the kernel's own, which brings small pages; both are counted. The threads end with the tier, and what waits is
//! dropped then. Nobody joins them: a disk that hangs would hold up whoever drops the tier, and all that such a thread still
//! has is an open file.

use std::fs::File;
use std::num::NonZeroU64;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use longshore_memory::direct::{populate, residency};
use longshore_types::{Code, Error, Result};
use parking_lot::Mutex;
use rustix::fs::{Advice, fadvise};

use crate::metrics::Metrics;

/// While one waits for the disk, another one asks it.
const THREADS: usize = 2;
/// Hints that may wait; each holds a descriptor.
const QUEUE_HINTS: usize = 16;
/// Smaller files get no large pages worth the way.
const FROM_BYTES: u64 = 2 << 20;
/// From this share on what is missing is not worth a mapping: the pages that are there stay what they are.
const MOSTLY_THERE: f64 = 0.5;

/// What is to be brought.
type Hint = (Arc<File>, Range<u64>);

/// The way to the threads of one disk tier. They end when it is dropped.
#[derive(Debug)]
pub(super) struct Warmer {
    queue: SyncSender<Hint>,
    shared: Arc<Shared>,
}

/// What the threads have.
#[derive(Debug)]
struct Shared {
    hints: Mutex<Receiver<Hint>>,
    /// Nobody is left to read what still waits.
    is_closed: AtomicBool,
    /// The log has one line about small pages, not one for each chunk.
    is_told: AtomicBool,
    metrics: Arc<Metrics>,
}

impl Warmer {
    /// Starts the threads.
    ///
    /// # Errors
    /// [`Code::Internal`] when one cannot be started.
    pub(super) fn start(metrics: Arc<Metrics>) -> Result<Warmer> {
        let warmer = Warmer::without_threads(metrics);
        for number in 0..THREADS {
            let shared = warmer.shared.clone();
            std::thread::Builder::new()
                .name(format!("disk-warm-{number}"))
                .spawn(move || shared.warm_loop())
                .map_err(|error| Error::new(Code::Internal, format!("cannot start a disk thread: {error}")))?;
        }
        Ok(warmer)
    }

    fn without_threads(metrics: Arc<Metrics>) -> Warmer {
        let (queue, hints) = sync_channel(QUEUE_HINTS);
        let (is_closed, is_told) = (AtomicBool::new(false), AtomicBool::new(false));
        Warmer { queue, shared: Arc::new(Shared { hints: Mutex::new(hints), is_closed, is_told, metrics }) }
    }

    /// Asks for a range of a file. Does not wait for it.
    pub(super) fn warm(&self, file: &Arc<File>, range: &Range<u64>) {
        let share = residency(file, range.clone());
        if share.is_some_and(|share| share >= 1.0) {
            return;
        }
        let is_large = range.end.saturating_sub(range.start) >= FROM_BYTES;
        if is_large && share.is_none_or(|share| share < MOSTLY_THERE) {
            if self.queue.try_send((file.clone(), range.clone())).is_ok() {
                return;
            }
            self.shared.metrics.fallback("disk_read_queue_full");
        }
        hint(file, range);
    }
}

impl Drop for Warmer {
    /// The queue's end wakes the threads.
    fn drop(&mut self) {
        self.shared.is_closed.store(true, Ordering::Relaxed);
    }
}

impl Shared {
    fn warm_loop(&self) {
        loop {
            let next = self.hints.lock().recv();
            let Ok((file, range)) = next else { return };
            if self.is_closed.load(Ordering::Relaxed) {
                return;
            }
            self.bring(&file, &range);
        }
    }

    fn bring(&self, file: &File, range: &Range<u64>) {
        if let Err(error) = populate(file, range.clone()) {
            self.metrics.fallback("disk_read_small_pages");
            if !self.is_told.swap(true, Ordering::Relaxed) {
                tracing::info!(%error, "a chunk file is brought in small pages, whose copies cost more; others may be, too");
            }
            hint(file, range);
        }
    }
}

fn hint(file: &File, range: &Range<u64>) {
    let len = NonZeroU64::new(range.end.saturating_sub(range.start));
    // Where it is not taken, the reads themselves find the bytes.
    let _ = fadvise(file, range.start, len, Advice::WillNeed);
}

#[cfg(test)]
mod tests {
    use longshore_runtime::metrics::Metrics as Registry;

    use super::*;

    /// A file with nothing in the page cache.
    fn file() -> Arc<File> {
        let file = tempfile::tempfile().unwrap();
        file.set_len(2 * FROM_BYTES).unwrap();
        Arc::new(file)
    }

    fn metrics() -> Arc<Metrics> {
        Arc::new(Metrics::new(&Registry::new()).unwrap())
    }

    fn count(metrics: &Metrics, kind: &str) -> u64 {
        metrics.fallbacks.with_label_values(&[kind]).get()
    }

    #[test]
    fn what_the_queue_has_no_room_for_is_counted() {
        let metrics = metrics();
        let warmer = Warmer::without_threads(metrics.clone());
        let file = file();
        (0..QUEUE_HINTS).for_each(|_| warmer.warm(&file, &(0..FROM_BYTES)));
        assert_eq!(Arc::strong_count(&file), 1 + QUEUE_HINTS);
        assert_eq!(count(&metrics, "disk_read_queue_full"), 0);
        for _ in 0..3 {
            let late = self::file();
            warmer.warm(&late, &(0..FROM_BYTES));
            assert_eq!(Arc::strong_count(&late), 1, "its descriptor is not kept");
        }
        assert_eq!(count(&metrics, "disk_read_queue_full"), 3);
        // Small files never were to come in large pages.
        let small = self::file();
        warmer.warm(&small, &(0..FROM_BYTES - 1));
        assert_eq!(count(&metrics, "disk_read_queue_full"), 3);
    }

    #[test]
    fn what_cannot_be_brought_is_counted() {
        let metrics = metrics();
        let shared = &Warmer::without_threads(metrics.clone()).shared;
        let folder = tempfile::tempdir().unwrap();
        // Nothing can be mapped for reading that is open for writing only.
        let unreadable = File::create(folder.path().join("file")).unwrap();
        unreadable.set_len(FROM_BYTES).unwrap();
        shared.bring(&unreadable, &(0..FROM_BYTES));
        assert_eq!(count(&metrics, "disk_read_small_pages"), 1);
        let file = file();
        shared.bring(&file, &(0..FROM_BYTES));
        assert_eq!(residency(&file, 0..FROM_BYTES), Some(1.0));
        assert_eq!(count(&metrics, "disk_read_small_pages"), 1);
    }

    #[test]
    fn the_threads_end_with_it_and_bring_nothing_more() {
        let warmer = Warmer::without_threads(metrics());
        let idle = std::thread::spawn({
            let shared = warmer.shared.clone();
            move || shared.warm_loop()
        });
        drop(warmer);
        idle.join().unwrap();

        let warmer = Warmer::without_threads(metrics());
        let file = file();
        warmer.warm(&file, &(0..FROM_BYTES));
        let shared = warmer.shared.clone();
        drop(warmer);
        shared.warm_loop();
        assert_ne!(residency(&file, 0..FROM_BYTES), Some(1.0), "what waited is dropped");
    }
}
