//! Counters of what was asked of origins, so that every retry and fallback is visible.

use std::sync::atomic::{AtomicU64, Ordering};

/// What has been asked of origins since the start, all of them together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct OriginStats {
    /// Requests sent (opened files, for a local folder), repeated ones included.
    pub requests: u64,
    /// Of these, pages of listings.
    pub list_requests: u64,
    /// Of these, questions for one object's size and version.
    pub stat_requests: u64,
    /// Of these, range reads.
    pub read_requests: u64,
    /// Attempts that were repeated after a failure.
    pub retries: u64,
    /// Bytes of objects received.
    pub bytes: u64,
    /// Calls that failed in the end.
    pub errors: u64,
    /// Objects whose version had to be asked for one by one, because the store's listing does not give it.
    pub unversioned_listings: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub list_requests: AtomicU64,
    pub stat_requests: AtomicU64,
    pub read_requests: AtomicU64,
    pub retries: AtomicU64,
    pub bytes: AtomicU64,
    pub errors: AtomicU64,
    pub unversioned_listings: AtomicU64,
}

pub(crate) fn count(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Ordering::Relaxed);
}

impl Counters {
    pub(crate) fn snapshot(&self) -> OriginStats {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let (list, stat, read) = (get(&self.list_requests), get(&self.stat_requests), get(&self.read_requests));
        OriginStats {
            requests: list + stat + read,
            list_requests: list,
            stat_requests: stat,
            read_requests: read,
            retries: get(&self.retries),
            bytes: get(&self.bytes),
            errors: get(&self.errors),
            unversioned_listings: get(&self.unversioned_listings),
        }
    }
}
