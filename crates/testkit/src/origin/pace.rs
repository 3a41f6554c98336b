//! Speeds that a server is told to have: of all bodies together, and of each connection.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Bytes that pass at once: few enough for an even flow at the speeds of a cloud store, enough for one timer each.
pub(super) const PORTION_BYTES: u64 = 256 << 10;
/// Timers ring up to a millisecond late, and tasks wait for a core: what was missed in that time is caught up with.
const CATCH_UP: Duration = Duration::from_millis(20);

/// Lets bytes pass at a number of them a second.
pub(super) struct Pacer {
    /// 0: as fast as they come.
    bytes_per_second: AtomicU64,
    next: Mutex<Instant>,
}

impl Pacer {
    pub(super) fn new(bytes_per_second: Option<u64>) -> Pacer {
        Pacer { bytes_per_second: AtomicU64::new(bytes_per_second.unwrap_or(0)), next: Mutex::new(Instant::now()) }
    }

    pub(super) fn set(&self, bytes_per_second: Option<u64>) {
        self.bytes_per_second.store(bytes_per_second.unwrap_or(0), Ordering::Relaxed);
        *self.next.lock() = Instant::now();
    }

    /// Whether there is any limit.
    pub(super) fn is_set(&self) -> bool {
        self.bytes_per_second.load(Ordering::Relaxed) > 0
    }

    /// Waits until `bytes` more may have passed.
    pub(super) async fn pass(&self, bytes: u64) {
        let rate = self.bytes_per_second.load(Ordering::Relaxed);
        if rate == 0 {
            return;
        }
        let until = {
            let mut next = self.next.lock();
            let earliest = Instant::now().checked_sub(CATCH_UP).unwrap_or(*next);
            *next = (*next).max(earliest) + Duration::from_secs_f64(bytes as f64 / rate as f64);
            *next
        };
        tokio::time::sleep_until(until.into()).await;
    }
}
