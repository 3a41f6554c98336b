//! What the threads of one server share: who is connected, whether we drain, and the counters.

use std::collections::HashMap;
use std::net::Shutdown;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::server::ServerOptions;
use crate::service::ChunkService;
use crate::stats::ServerCounters;
use crate::stream::Stream;

/// After the drain's time is over and all sockets are shut, threads have so long to notice.
const ABORT_TIMEOUT: Duration = Duration::from_secs(2);

pub(crate) struct Shared {
    pub(crate) options: ServerOptions,
    pub(crate) service: Arc<dyn ChunkService>,
    pub(crate) counters: ServerCounters,
    draining: AtomicBool,
    connections: Mutex<Connections>,
    left: Condvar,
}

#[derive(Default)]
struct Connections {
    next: u64,
    open: HashMap<u64, Arc<Stream>>,
}

/// A place among the connections; given up when dropped, however its thread ends.
pub(crate) struct Seat {
    shared: Arc<Shared>,
    number: u64,
    pub(crate) stream: Arc<Stream>,
}

impl Shared {
    pub(crate) fn new(options: ServerOptions, service: Arc<dyn ChunkService>) -> Self {
        Shared {
            options,
            service,
            counters: ServerCounters::default(),
            draining: AtomicBool::new(false),
            connections: Mutex::default(),
            left: Condvar::new(),
        }
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// A place for one more connection, or the stream back when all are taken.
    pub(crate) fn seat(self: &Arc<Self>, stream: Stream) -> Result<Seat, Stream> {
        let mut connections = self.connections.lock();
        if connections.open.len() >= self.options.connections_max {
            return Err(stream);
        }
        let (number, stream) = (connections.next, Arc::new(stream));
        connections.next += 1;
        connections.open.insert(number, stream.clone());
        self.counters.connections.store(connections.open.len() as u64, Ordering::Relaxed);
        Ok(Seat { shared: self.clone(), number, stream })
    }

    /// Lets requests in flight finish and ends all connections.
    pub(crate) fn drain(&self) {
        self.draining.store(true, Ordering::Release);
        // A connection that waits for a request now sees its end; one that answers goes on sending.
        self.shut_all(Shutdown::Read);
        if !self.wait_empty(self.options.drain_timeout) {
            self.shut_all(Shutdown::Both);
            if !self.wait_empty(ABORT_TIMEOUT) {
                let count = self.connections.lock().open.len();
                tracing::warn!(count, "connections are still busy after the drain, leaving them");
            }
        }
    }

    fn shut_all(&self, how: Shutdown) {
        for stream in self.connections.lock().open.values() {
            // Fails when the peer is gone already, which is as good.
            let _ = stream.shutdown(how);
        }
    }

    fn wait_empty(&self, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        let mut connections = self.connections.lock();
        while !connections.open.is_empty() {
            if self.left.wait_until(&mut connections, deadline).timed_out() {
                return connections.open.is_empty();
            }
        }
        true
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let _ = self.stream.shutdown(Shutdown::Both);
        let mut connections = self.shared.connections.lock();
        connections.open.remove(&self.number);
        self.shared.counters.connections.store(connections.open.len() as u64, Ordering::Relaxed);
        drop(connections);
        self.shared.left.notify_all();
    }
}
