//! Whether the disk takes writes. After a failure it is left alone for a while, then tried again with the next chunk.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// The state of the disk as writes found it.
#[derive(Debug)]
pub struct Health {
    pause: Duration,
    failure: Mutex<Option<Failure>>,
}

#[derive(Debug)]
struct Failure {
    reason: String,
    retry_at: Instant,
}

impl Health {
    /// A disk that is trusted; after a failure it is not tried for `pause`.
    pub fn new(pause: Duration) -> Self {
        Health { pause, failure: Mutex::new(None) }
    }

    /// Whether a write may be tried now.
    pub fn may_write(&self) -> bool {
        self.failure.lock().as_ref().is_none_or(|failure| Instant::now() >= failure.retry_at)
    }

    /// Remembers a failure. True when the disk was well before, which is worth a log line.
    pub fn failed(&self, reason: String) -> bool {
        let failure = Failure { reason, retry_at: Instant::now() + self.pause };
        self.failure.lock().replace(failure).is_none()
    }

    /// Remembers a success. True when the disk had failed before.
    pub fn succeeded(&self) -> bool {
        self.failure.lock().take().is_some()
    }

    /// Why the disk is not written to, if so.
    pub fn reason(&self) -> Option<String> {
        self.failure.lock().as_ref().map(|failure| failure.reason.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_disk_rests_and_is_tried_again() {
        let health = Health::new(Duration::from_secs(3600));
        assert!(health.may_write());
        assert!(health.failed("full".to_owned()));
        assert!(!health.failed("still full".to_owned()));
        assert!(!health.may_write());
        assert_eq!(health.reason().as_deref(), Some("still full"));
        let impatient = Health::new(Duration::ZERO);
        impatient.failed("full".to_owned());
        assert!(impatient.may_write());
        assert!(impatient.succeeded());
        assert_eq!(impatient.reason(), None);
    }
}
