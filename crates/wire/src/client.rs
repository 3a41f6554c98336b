//! Fetches chunks into memory of the caller, from whatever side of a socket they are.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use longshore_memory::Landing;
use longshore_types::checkpoint::AttemptId;
use longshore_types::{BlockChecksum, ChunkKey, Code, Error, Result, redact_url};
use tokio_util::sync::CancellationToken;

use crate::service::{ChunkRequest, ChunkService, PutMode, PutRequest, Tier};
use crate::stats::{ClientCounters, ClientStats};
use patience::Patience;

mod connection;
mod local;
mod patience;
mod pool;
mod receive;
mod remote;

pub(crate) use remote::Opened;

/// Where a data plane can be reached.
#[derive(Clone)]
pub enum Endpoint {
    /// `host:port`. A name is looked up at each connect.
    Tcp(String),
    /// A unix socket of this host; files are handed over instead of copied through it.
    Unix(PathBuf),
    /// This very process: no socket at all.
    InProcess(Arc<dyn ChunkService>),
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Endpoint::Tcp(address) => f.write_str(address),
            Endpoint::Unix(path) => write!(f, "unix:{}", path.display()),
            Endpoint::InProcess(_) => f.write_str("this process"),
        }
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Endpoint({self})")
    }
}

/// The bounds of a [`DataClient`].
#[derive(Debug, Clone)]
pub struct ClientOptions {
    /// For one connection attempt, over all addresses of a name.
    pub connect_timeout: Duration,
    /// The longest time without a byte, in the head and in the body, and the longest wait for a free connection.
    pub stall_timeout: Duration,
    /// Connections to one endpoint, in use or idle. More fetches at once wait for one.
    pub connections_per_endpoint_max: usize,
    /// Idle connections older than this are closed rather than used. Keep it under the server's.
    pub idle_timeout: Duration,
}

impl Default for ClientOptions {
    fn default() -> Self {
        ClientOptions {
            connect_timeout: Duration::from_secs(3),
            stall_timeout: Duration::from_secs(30),
            connections_per_endpoint_max: 16,
            idle_timeout: Duration::from_secs(30),
        }
    }
}

/// What a fetch brought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetched {
    /// Where the server had the bytes from.
    pub tier: Tier,
    /// Bytes landed and verified: the whole range.
    pub bytes: u64,
    /// The server handed over its file, and the bytes crossed no socket.
    pub via_fd: bool,
    /// Time spent on checksums, on this thread.
    pub verify: Duration,
    /// What each block of the range was, as it landed.
    pub checksums: Vec<BlockChecksum>,
}

/// Fetches with pooled connections. A clone shares pool and counters. Calls block.
#[derive(Clone)]
pub struct DataClient {
    inner: Arc<Inner>,
}

struct Inner {
    options: ClientOptions,
    pool: pool::Pool,
    counters: ClientCounters,
}

impl DataClient {
    /// Makes a client; nothing is connected yet.
    pub fn new(options: ClientOptions) -> Self {
        let pool = pool::Pool::new(options.clone());
        DataClient { inner: Arc::new(Inner { options, pool, counters: ClientCounters::default() }) }
    }

    /// Fetches the request's range, which must be of whole blocks, into `landing`, which must be exactly as long.
    /// Each block is verified where it landed. After an error the content of the landing means nothing.
    ///
    /// # Errors
    /// [`Code::Corrupt`] for a wrong checksum, [`Code::Timeout`] when no byte comes for the stall timeout,
    /// [`Code::Unavailable`] when the endpoint cannot be reached, breaks off or breaks the protocol, and the server's
    /// own code for what it refuses.
    pub fn fetch(&self, endpoint: &Endpoint, request: &ChunkRequest, landing: &mut Landing) -> Result<Fetched> {
        self.fetch_until(endpoint, request, landing, &CancellationToken::new())
    }

    /// As [`DataClient::fetch`], but gives up soon after `stop` is cancelled, also while the peer is silent. Only an
    /// attempt to connect, and a service of this process that has not answered yet, are waited for.
    ///
    /// # Errors
    /// [`Code::Cancelled`] once it is, else as [`DataClient::fetch`].
    pub fn fetch_until(
        &self,
        endpoint: &Endpoint,
        request: &ChunkRequest,
        landing: &mut Landing,
        stop: &CancellationToken,
    ) -> Result<Fetched> {
        let patience = self.patience(stop);
        let result = check(request, landing).and_then(|()| match endpoint {
            Endpoint::InProcess(service) => local::fetch(service.as_ref(), request, landing, &patience),
            _ => remote::fetch(&self.inner.pool, &self.inner.counters, endpoint, request, landing, &patience),
        });
        self.inner.counters.fetched(&result);
        result.map_err(|error| error.context(format_args!("{request} from {endpoint}")))
    }

    /// Puts a whole chunk; `blocks` are the checksums of its blocks, and the other side compares each as it lands. A chunk
    /// that is there already is not sent.
    ///
    /// # Errors
    /// [`Code::Corrupt`] when bytes and checksums disagree there, [`Code::Exhausted`] when there is no room,
    /// [`Code::PermissionDenied`] for a chunk that nobody may put; else as [`DataClient::fetch`].
    pub fn put(
        &self,
        endpoint: &Endpoint,
        key: &ChunkKey,
        bytes: &[u8],
        blocks: &[BlockChecksum],
        mode: PutMode,
    ) -> Result<()> {
        self.put_until(endpoint, key, bytes, blocks, mode, &CancellationToken::new())
    }

    /// As [`DataClient::put`], but gives up soon after `stop` is cancelled while the peer is silent.
    ///
    /// # Errors
    /// [`Code::Cancelled`] once it is, else as [`DataClient::put`].
    pub fn put_until(
        &self,
        endpoint: &Endpoint,
        key: &ChunkKey,
        bytes: &[u8],
        blocks: &[BlockChecksum],
        mode: PutMode,
        stop: &CancellationToken,
    ) -> Result<()> {
        let patience = self.patience(stop);
        let result = PutRequest::new(key.clone(), blocks.into(), mode).and_then(|request| {
            if bytes.len() as u64 != key.len_bytes() {
                let why = format!("{} bytes are not {request}, which has {}", bytes.len(), key.len_bytes());
                return Err(Error::new(Code::InvalidArgument, why));
            }
            match endpoint {
                Endpoint::InProcess(service) => local::put(service.as_ref(), &request, bytes, &patience),
                _ => remote::put(&self.inner.pool, &self.inner.counters, endpoint, &request, bytes, &patience),
            }
        });
        self.inner.counters.put(&result, bytes.len());
        let named = || format!("chunk {} of {} to {endpoint}", key.index(), redact_url(key.artifact().url()));
        result.map(drop).map_err(|error| error.context(named()))
    }

    /// Tells an endpoint that what it holds of an attempt is needed no longer.
    ///
    /// # Errors
    /// As [`DataClient::fetch`].
    pub fn release(&self, endpoint: &Endpoint, attempt: &AttemptId) -> Result<()> {
        let result = match endpoint {
            Endpoint::InProcess(service) => service.release(attempt),
            _ => {
                let patience = self.patience(&CancellationToken::new());
                remote::release(&self.inner.pool, &self.inner.counters, endpoint, attempt, &patience)
            }
        };
        result.map_err(|error| error.context(format_args!("release of attempt {attempt} at {endpoint}")))
    }

    /// The body of a small page, at most `len_max` bytes.
    ///
    /// # Errors
    /// [`Code::NotFound`] for an unknown page, [`Code::Exhausted`] for a longer one, else as [`DataClient::fetch`].
    pub fn page(&self, endpoint: &Endpoint, path: &str, len_max: usize) -> Result<Vec<u8>> {
        let result = match endpoint {
            Endpoint::InProcess(service) => local::page(service.as_ref(), path, len_max),
            _ => {
                let patience = self.patience(&CancellationToken::new());
                remote::page(&self.inner.pool, &self.inner.counters, endpoint, path, len_max, &patience)
            }
        };
        result.map_err(|error| error.context(format_args!("{path} from {endpoint}")))
    }

    fn patience(&self, stop: &CancellationToken) -> Patience {
        Patience { stall_timeout: self.inner.options.stall_timeout, stop: stop.clone() }
    }

    /// What the client did so far.
    pub fn stats(&self) -> ClientStats {
        self.inner.counters.snapshot()
    }
}

fn check(request: &ChunkRequest, landing: &Landing) -> Result<()> {
    request.check()?;
    let range = &request.range;
    let aligned = longshore_types::chunk::block_aligned(range.clone(), request.key.len_bytes());
    let len = landing.len() as u64;
    if *range == aligned && len == range.end - range.start {
        return Ok(());
    }
    let why = format!("bytes {}..{} into a landing of {len}: whole blocks must land whole", range.start, range.end);
    Err(Error::new(Code::Internal, why))
}
