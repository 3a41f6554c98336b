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
    /// Of these, whole objects written, conditional or not.
    pub put_requests: u64,
    /// Of these, steps of multipart uploads: begun, parts, completed, aborted, listed.
    pub upload_requests: u64,
    /// Of these, deletions.
    pub delete_requests: u64,
    /// Bytes of objects received.
    pub bytes: u64,
    /// Bodies that came straight from the connection into the reader's memory.
    pub straight_reads: u64,
    /// Bodies that were to come so and came as pieces through the HTTP library: it is spoken over a proxy, HTTP/2 or
    /// redirects, or no connection is needed.
    pub streamed_reads: u64,
    /// Bytes of objects and parts that were written.
    pub bytes_written: u64,
    /// Conditional puts that found another object or version.
    pub conflicts: u64,
    /// Objects that were verified by the store's own checksum.
    pub verified_by_store: u64,
    /// Objects that were verified by reading them back.
    pub verified_by_reading: u64,
    /// Times that a store was found to refuse checksums with what it is sent; they are left out from then on.
    pub checksums_refused: u64,
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
    pub put_requests: AtomicU64,
    pub upload_requests: AtomicU64,
    pub delete_requests: AtomicU64,
    pub retries: AtomicU64,
    pub bytes: AtomicU64,
    pub straight_reads: AtomicU64,
    pub streamed_reads: AtomicU64,
    pub bytes_written: AtomicU64,
    pub conflicts: AtomicU64,
    pub verified_by_store: AtomicU64,
    pub verified_by_reading: AtomicU64,
    pub checksums_refused: AtomicU64,
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
        let (put, upload, delete) = (get(&self.put_requests), get(&self.upload_requests), get(&self.delete_requests));
        OriginStats {
            requests: list + stat + read + put + upload + delete,
            list_requests: list,
            stat_requests: stat,
            read_requests: read,
            retries: get(&self.retries),
            put_requests: put,
            upload_requests: upload,
            delete_requests: delete,
            bytes: get(&self.bytes),
            straight_reads: get(&self.straight_reads),
            streamed_reads: get(&self.streamed_reads),
            bytes_written: get(&self.bytes_written),
            conflicts: get(&self.conflicts),
            verified_by_store: get(&self.verified_by_store),
            verified_by_reading: get(&self.verified_by_reading),
            checksums_refused: get(&self.checksums_refused),
            errors: get(&self.errors),
            unversioned_listings: get(&self.unversioned_listings),
        }
    }
}
