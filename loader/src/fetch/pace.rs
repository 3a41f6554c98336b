//! How fast chunks come, so that one which does not come is noticed.

use std::time::Duration;

use parking_lot::Mutex;

/// Chunks that the median is taken over.
const WINDOW: usize = 32;
/// Fewer than these say nothing.
const SAMPLES_MIN: usize = 8;

/// The last chunk times of a load.
#[derive(Default)]
pub(super) struct Pace {
    ring: Mutex<Ring>,
}

#[derive(Default)]
struct Ring {
    times: Vec<Duration>,
    next: usize,
}

impl Pace {
    pub(super) fn note(&self, took: Duration) {
        let mut ring = self.ring.lock();
        if ring.times.len() < WINDOW {
            ring.times.push(took);
        } else {
            let next = ring.next;
            ring.times[next] = took;
            ring.next = (next + 1) % WINDOW;
        }
    }

    /// The median, once there are enough samples.
    pub(super) fn median(&self) -> Option<Duration> {
        let mut times = self.ring.lock().times.clone();
        if times.len() < SAMPLES_MIN {
            return None;
        }
        let middle = times.len() / 2;
        Some(*times.select_nth_unstable(middle).1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_follows_the_last_chunks_and_ignores_outliers() {
        let pace = Pace::default();
        for _ in 0..SAMPLES_MIN - 1 {
            pace.note(Duration::from_millis(10));
        }
        assert_eq!(pace.median(), None);
        pace.note(Duration::from_secs(60));
        assert_eq!(pace.median(), Some(Duration::from_millis(10)));
        for _ in 0..WINDOW {
            pace.note(Duration::from_secs(1));
        }
        assert_eq!(pace.median(), Some(Duration::from_secs(1)));
    }
}
