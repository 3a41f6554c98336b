//! Brings chunk files into the page cache in large pages, ahead of those who read them.
//!
//! That blocks, so a few threads do it for all tiers of the process; they end with it. A hint that finds their queue full, or
//! no thread, becomes the kernel's own, which brings small pages.

use std::fs::File;
use std::num::NonZeroU64;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, LazyLock};

use longshore_memory::direct::{populate, residency};
use parking_lot::Mutex;
use rustix::fs::{Advice, fadvise};

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

/// The log has one line about small pages, not one for each chunk.
static IS_TOLD: AtomicBool = AtomicBool::new(false);

/// The way to the threads; `None` where there are none.
static QUEUE: LazyLock<Option<SyncSender<Hint>>> = LazyLock::new(|| {
    let (sender, receiver) = sync_channel(QUEUE_HINTS);
    let receiver = Arc::new(Mutex::new(receiver));
    let mut started = 0;
    for number in 0..THREADS {
        let receiver = receiver.clone();
        let thread = std::thread::Builder::new().name(format!("disk-warm-{number}"));
        match thread.spawn(move || warm_loop(&receiver)) {
            Ok(_) => started += 1,
            Err(error) => tracing::warn!(%error, "cannot start a thread that brings chunk files in large pages"),
        }
    }
    (started > 0).then_some(sender)
});

/// Asks for a range of a file. Does not wait for it.
pub(super) fn warm(file: &Arc<File>, range: &Range<u64>) {
    let is_large = range.end.saturating_sub(range.start) >= FROM_BYTES;
    let share = residency(file, range.clone());
    if share.is_some_and(|share| share >= 1.0) {
        return;
    }
    if is_large
        && share.is_some_and(|share| share < MOSTLY_THERE)
        && let Some(queue) = &*QUEUE
        && queue.try_send((file.clone(), range.clone())).is_ok()
    {
        return;
    }
    hint(file, range);
}

fn warm_loop(receiver: &Mutex<Receiver<Hint>>) {
    loop {
        let next = receiver.lock().recv();
        let Ok((file, range)) = next else { return };
        if let Err(error) = populate(&file, range.clone()) {
            if !IS_TOLD.swap(true, Ordering::Relaxed) {
                tracing::info!(%error, "a chunk file is brought in small pages, whose copies cost more; others may be, too");
            }
            hint(&file, &range);
        }
    }
}

fn hint(file: &File, range: &Range<u64>) {
    let len = NonZeroU64::new(range.end.saturating_sub(range.start));
    // Where it is not taken, the reads themselves find the bytes.
    let _ = fadvise(file, range.start, len, Advice::WillNeed);
}
