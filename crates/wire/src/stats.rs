//! Counters of both sides, to be rendered as metrics by whoever runs them.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use longshore_types::{Code, Result};

use crate::client::Fetched;

/// What a [`crate::DataClient`] did since it was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ClientStats {
    /// Fetches that ended well.
    pub fetches: u64,
    /// Bytes of those.
    pub fetched_bytes: u64,
    /// How many of them read a file or memory that was handed over.
    pub via_fd: u64,
    /// Fetches that failed, for whatever reason.
    pub failures: u64,
    /// Fetches that failed because a checksum did not match, or a file ended early.
    pub corrupt: u64,
    /// Connections made.
    pub connects: u64,
    /// Requests repeated on a new connection because the pooled one was dead.
    pub stale_connections: u64,
    /// Chunks that were put.
    pub puts: u64,
    /// Bytes of those.
    pub put_bytes: u64,
    /// Chunks that did not have to be put: the other side had them.
    pub puts_there: u64,
    /// Puts that failed, for whatever reason.
    pub put_failures: u64,
}

/// How a put ended well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Put {
    /// The bytes went over.
    Sent,
    /// The other side had them.
    There,
}

#[derive(Default)]
pub(crate) struct ClientCounters {
    fetches: AtomicU64,
    fetched_bytes: AtomicU64,
    via_fd: AtomicU64,
    failures: AtomicU64,
    corrupt: AtomicU64,
    pub(crate) connects: AtomicU64,
    pub(crate) stale_connections: AtomicU64,
    puts: AtomicU64,
    put_bytes: AtomicU64,
    puts_there: AtomicU64,
    put_failures: AtomicU64,
}

impl ClientCounters {
    pub(crate) fn fetched(&self, result: &Result<Fetched>) {
        match result {
            Ok(fetched) => {
                self.fetches.fetch_add(1, Relaxed);
                self.fetched_bytes.fetch_add(fetched.bytes, Relaxed);
                self.via_fd.fetch_add(fetched.via_fd.into(), Relaxed);
            }
            Err(error) => {
                self.failures.fetch_add(1, Relaxed);
                self.corrupt.fetch_add((error.code() == Code::Corrupt).into(), Relaxed);
            }
        }
    }

    pub(crate) fn put(&self, result: &Result<Put>, bytes: usize) {
        match result {
            Ok(Put::Sent) => {
                self.puts.fetch_add(1, Relaxed);
                self.put_bytes.fetch_add(bytes as u64, Relaxed);
            }
            Ok(Put::There) => drop(self.puts_there.fetch_add(1, Relaxed)),
            Err(_) => drop(self.put_failures.fetch_add(1, Relaxed)),
        }
    }

    pub(crate) fn snapshot(&self) -> ClientStats {
        ClientStats {
            fetches: self.fetches.load(Relaxed),
            fetched_bytes: self.fetched_bytes.load(Relaxed),
            via_fd: self.via_fd.load(Relaxed),
            failures: self.failures.load(Relaxed),
            corrupt: self.corrupt.load(Relaxed),
            connects: self.connects.load(Relaxed),
            stale_connections: self.stale_connections.load(Relaxed),
            puts: self.puts.load(Relaxed),
            put_bytes: self.put_bytes.load(Relaxed),
            puts_there: self.puts_there.load(Relaxed),
            put_failures: self.put_failures.load(Relaxed),
        }
    }
}

/// What a [`crate::DataServer`] did since it was bound.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ServerStats {
    /// Connections open now.
    pub connections: u64,
    /// Connections taken in.
    pub accepted: u64,
    /// Connections answered with 503 because there were too many.
    pub refused: u64,
    /// Requests with a whole head.
    pub requests: u64,
    /// Requests answered with an error status.
    pub errors: u64,
    /// Bytes of chunk bodies sent through sockets.
    pub sent_bytes: u64,
    /// Files handed over.
    pub files_handed_over: u64,
    /// Chunks in memory handed over.
    pub memory_handed_over: u64,
    /// Bodies cut short: a fill failed, a file ended early, a reader was stuck or went away, or did not say in time that it
    /// was done with memory that it had been handed.
    pub cut: u64,
    /// Chunks that were put here, verified and kept.
    pub puts: u64,
    /// Bytes of chunk bodies that came in, good or not.
    pub received_bytes: u64,
}

#[derive(Default)]
pub(crate) struct ServerCounters {
    pub(crate) connections: AtomicU64,
    pub(crate) accepted: AtomicU64,
    pub(crate) refused: AtomicU64,
    pub(crate) requests: AtomicU64,
    pub(crate) errors: AtomicU64,
    pub(crate) sent_bytes: AtomicU64,
    pub(crate) files_handed_over: AtomicU64,
    pub(crate) memory_handed_over: AtomicU64,
    pub(crate) cut: AtomicU64,
    pub(crate) puts: AtomicU64,
    pub(crate) received_bytes: AtomicU64,
}

impl ServerCounters {
    pub(crate) fn snapshot(&self) -> ServerStats {
        ServerStats {
            connections: self.connections.load(Relaxed),
            accepted: self.accepted.load(Relaxed),
            refused: self.refused.load(Relaxed),
            requests: self.requests.load(Relaxed),
            errors: self.errors.load(Relaxed),
            sent_bytes: self.sent_bytes.load(Relaxed),
            files_handed_over: self.files_handed_over.load(Relaxed),
            memory_handed_over: self.memory_handed_over.load(Relaxed),
            cut: self.cut.load(Relaxed),
            puts: self.puts.load(Relaxed),
            received_bytes: self.received_bytes.load(Relaxed),
        }
    }
}
