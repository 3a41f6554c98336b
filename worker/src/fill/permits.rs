//! A counting semaphore for data threads, which block, and fills, which end on the async runtime.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

/// Bounds how many fills run at once. Clone = the same bound.
#[derive(Debug, Clone)]
pub struct Permits {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    capacity: usize,
    taken: Mutex<usize>,
    /// One permit has come back.
    freed: Condvar,
    /// All have.
    idle: Condvar,
}

/// The right to run one fill; given back on drop.
#[derive(Debug)]
pub struct Permit {
    inner: Arc<Inner>,
}

impl Permits {
    /// `capacity` permits, at least one.
    pub fn new(capacity: usize) -> Self {
        let (freed, idle) = (Condvar::new(), Condvar::new());
        Permits { inner: Arc::new(Inner { capacity: capacity.max(1), taken: Mutex::new(0), freed, idle }) }
    }

    /// Waits for a permit; `None` when `timeout` passes first.
    pub fn take(&self, timeout: Duration) -> Option<Permit> {
        let deadline = Instant::now() + timeout;
        let mut taken = self.inner.taken.lock();
        while *taken >= self.inner.capacity {
            if self.inner.freed.wait_until(&mut taken, deadline).timed_out() && *taken >= self.inner.capacity {
                return None;
            }
        }
        *taken += 1;
        Some(Permit { inner: self.inner.clone() })
    }

    /// Waits until no permit is out; false when `timeout` passes first.
    pub fn wait_idle(&self, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        let mut taken = self.inner.taken.lock();
        while *taken > 0 {
            if self.inner.idle.wait_until(&mut taken, deadline).timed_out() {
                return *taken == 0;
            }
        }
        true
    }

    /// Permits that are out.
    pub fn taken(&self) -> usize {
        *self.inner.taken.lock()
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut taken = self.inner.taken.lock();
        *taken -= 1;
        // One, because one permit came back: more would wake up only to wait again.
        self.inner.freed.notify_one();
        if *taken == 0 {
            self.inner.idle.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permits_are_bounded_and_come_back() {
        let permits = Permits::new(2);
        let (one, two) = (permits.take(Duration::ZERO).unwrap(), permits.take(Duration::ZERO).unwrap());
        assert!(permits.take(Duration::from_millis(1)).is_none());
        assert!(!permits.wait_idle(Duration::from_millis(1)));
        let waiting = std::thread::spawn({
            let permits = permits.clone();
            move || permits.take(Duration::from_secs(60)).is_some()
        });
        drop(one);
        assert!(waiting.join().unwrap());
        drop(two);
        assert!(permits.wait_idle(Duration::from_secs(60)));
        assert_eq!(permits.taken(), 0);
    }
}
