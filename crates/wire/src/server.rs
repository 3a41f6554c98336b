//! Serves a [`ChunkService`] on TCP and on a unix socket: one thread a connection, never more than allowed.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use longshore_types::{Code, Error, Result};
use tokio_util::sync::CancellationToken;

use crate::service::ChunkService;
use crate::stats::ServerStats;

mod accept;
mod answer;
mod bell;
mod body;
mod connection;
mod listen;
mod shared;
mod take;

use listen::{BoundTcp, BoundUnix};
use shared::Shared;

/// Where a [`DataServer`] listens, and its bounds.
#[derive(Debug, Clone)]
pub struct ServerOptions {
    /// TCP address; port 0 takes a free one.
    pub tcp: Option<SocketAddr>,
    /// Path of the unix socket. A lock file `<path>.lock` beside it keeps a second daemon away.
    pub unix: Option<PathBuf>,
    /// Connections served at once. One more is answered with 503 and closed.
    pub connections_max: usize,
    /// A connection without a request for so long is closed.
    pub idle_timeout: Duration,
    /// A request head has to be whole so long after its first byte.
    pub head_timeout: Duration,
    /// A reader that takes nothing for so long is cut off.
    pub write_timeout: Duration,
    /// The longest wait for the next block of a chunk that is being filled.
    pub fill_timeout: Duration,
    /// A chunk that is put may come without a byte for so long.
    pub put_stall_timeout: Duration,
    /// A chunk that is put has to be whole so long after its first byte.
    pub put_timeout: Duration,
    /// Requests in flight at shutdown have so long to finish.
    pub drain_timeout: Duration,
}

impl Default for ServerOptions {
    fn default() -> Self {
        ServerOptions {
            tcp: None,
            unix: None,
            connections_max: 1024,
            idle_timeout: Duration::from_secs(120),
            head_timeout: Duration::from_secs(10),
            write_timeout: Duration::from_secs(30),
            fill_timeout: Duration::from_secs(120),
            put_stall_timeout: Duration::from_secs(20),
            put_timeout: Duration::from_secs(120),
            drain_timeout: Duration::from_secs(30),
        }
    }
}

/// A bound server: its ports are taken, but nothing is answered before it runs.
pub struct DataServer {
    tcp: Option<BoundTcp>,
    unix: Option<BoundUnix>,
    shared: Arc<Shared>,
}

/// A server that runs on its own threads.
pub struct ServerHandle {
    tcp_addr: Option<SocketAddr>,
    shared: Arc<Shared>,
    thread: JoinHandle<()>,
}

impl DataServer {
    /// Takes the addresses.
    ///
    /// # Errors
    /// [`Code::FailedPrecondition`] when another daemon has one of them, [`Code::InvalidArgument`] for an address that
    /// cannot be, [`Code::PermissionDenied`] where we may not listen.
    pub fn bind(options: ServerOptions, service: Arc<dyn ChunkService>) -> Result<DataServer> {
        if options.tcp.is_none() && options.unix.is_none() {
            return Err(Error::new(Code::InvalidArgument, "a data server needs a TCP address or a unix socket"));
        }
        let tcp = options.tcp.map(listen::bind_tcp).transpose()?;
        let unix = options.unix.as_deref().map(listen::bind_unix).transpose()?;
        Ok(DataServer { tcp, unix, shared: Arc::new(Shared::new(options, service)) })
    }

    /// The TCP address with its real port.
    pub fn tcp_addr(&self) -> Option<SocketAddr> {
        self.tcp.as_ref().map(|tcp| tcp.address)
    }

    /// What the server did so far.
    pub fn stats(&self) -> ServerStats {
        self.shared.counters.snapshot()
    }

    /// Serves until `token` is cancelled; then takes no more connections, lets requests in flight finish, and returns.
    ///
    /// # Errors
    /// [`Code::Internal`] when the machine gives no event descriptor.
    pub fn run(self, token: &CancellationToken) -> Result<()> {
        let DataServer { tcp, unix, shared } = self;
        let outcome = accept::until_cancelled(tcp.as_ref(), unix.as_ref(), &shared, token);
        // Closed before the drain, so that clients which connect now are turned away by the kernel.
        drop((tcp, unix));
        shared.drain();
        outcome
    }

    /// [`DataServer::run`] on a thread of its own.
    ///
    /// # Errors
    /// [`Code::Exhausted`] when the machine gives no thread.
    pub fn spawn(self, token: CancellationToken) -> Result<ServerHandle> {
        let (tcp_addr, shared) = (self.tcp_addr(), self.shared.clone());
        let body = move || {
            if let Err(error) = self.run(&token) {
                tracing::error!(%error, "the data server stopped");
            }
        };
        let thread = std::thread::Builder::new().name("data-accept".into()).spawn(body);
        let thread =
            thread.map_err(|e| Error::new(Code::Exhausted, format!("cannot start a thread: {e}")).with_source(e))?;
        Ok(ServerHandle { tcp_addr, shared, thread })
    }
}

impl ServerHandle {
    /// The TCP address with its real port.
    pub fn tcp_addr(&self) -> Option<SocketAddr> {
        self.tcp_addr
    }

    /// What the server did so far.
    pub fn stats(&self) -> ServerStats {
        self.shared.counters.snapshot()
    }

    /// Waits until the server has drained. Blocks; cancel its token first.
    pub fn join(self) {
        if self.thread.join().is_err() {
            tracing::error!("the thread of the data server panicked");
        }
    }
}
