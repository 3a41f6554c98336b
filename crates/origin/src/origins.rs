//! The front of the crate: one object that opens each origin once and answers for all of them.

mod writing;

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use longshore_types::{Artifact, Resolved, Result};
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use crate::address::{Address, Cloud};
use crate::backend::Backend;
use crate::bucket::{Bucket, check_options};
use crate::hub::Hub;
use crate::local::Local;
use crate::options::OriginOptions;
use crate::sink::Sink;
use crate::stats::{Counters, OriginStats};
use crate::{read, resolve};

/// Most buckets and servers that are kept open; beyond it the table starts afresh (reads in progress go on).
const OPEN_MAX: usize = 256;

/// Every origin there is, opened on first use. Cloning is cheap and shares connections, bounds and counters.
#[derive(Clone)]
pub struct Origins {
    shared: Arc<Shared>,
}

struct Shared {
    options: OriginOptions,
    counters: Arc<Counters>,
    local: Arc<Local>,
    open: Mutex<HashMap<Place, Arc<dyn Backend>>>,
    /// Where conditional puts were found to work.
    conditional: Mutex<HashSet<Place>>,
}

/// What one backend serves.
#[derive(Clone, PartialEq, Eq, Hash)]
enum Place {
    Bucket(Cloud, String),
    Web(String),
    Hub,
    Local,
}

impl Place {
    fn of(address: &Address) -> Place {
        match address {
            Address::File(_) => Place::Local,
            Address::Bucket { cloud, bucket, .. } => Place::Bucket(*cloud, bucket.clone()),
            Address::Web { server, .. } => Place::Web(server.clone()),
            Address::Hub(_) => Place::Hub,
        }
    }
}

impl Origins {
    /// Takes the options and, for what they leave open, the stores' standard environment variables. Sends nothing.
    ///
    /// # Errors
    /// `InvalidArgument` for an endpoint that is no URL or a store option that is not known.
    pub fn new(options: OriginOptions) -> Result<Origins> {
        check_options(&options)?;
        let counters = Arc::new(Counters::default());
        let local = Arc::new(Local::new(&options, counters.clone()));
        let shared = Shared { options, counters, local, open: Mutex::default(), conditional: Mutex::default() };
        Ok(Origins { shared: Arc::new(shared) })
    }

    /// The one form of a URL or plain path: no trailing slash, plain and relative paths as `file:///`, a Hugging Face
    /// URL with its revision.
    ///
    /// # Errors
    /// `InvalidArgument` for an unknown scheme (the message lists the known ones) and for URLs with credentials or a
    /// query string; `Unsupported` for Hugging Face data sets and spaces.
    pub fn canonical_url(&self, text: &str) -> Result<String> {
        Address::parse(text).map(|address| address.to_string())
    }

    /// The path that a `file://` URL names; `None` for other URLs.
    pub fn local_path(url: &str) -> Option<PathBuf> {
        match url.get(..7)? {
            "file://" => match Address::parse(url) {
                Ok(Address::File(path)) => Some(path),
                _ => None,
            },
            _ => None,
        }
    }

    /// Size and version of one object: one request.
    ///
    /// # Errors
    /// `NotFound` when there is no object of that name (a folder is none), `Unauthenticated`, `PermissionDenied`,
    /// `Unavailable` and `Timeout` as the origin answers after the retry budget is spent.
    pub async fn stat(&self, url: &str) -> Result<Artifact> {
        let address = Address::parse(url)?;
        let backend = self.backend(&address)?;
        let backend = &*backend;
        backend.lane().run(|| backend.stat(&address)).await
    }

    /// The files of a model at one revision, sorted by name: the object itself, or everything below the URL.
    ///
    /// A folder costs one listing request per page (1000 keys on S3) and no other; a URL with a known file ending
    /// costs one request for the file, and a listing only when there is no such file.
    ///
    /// # Errors
    /// As [`Origins::stat`]; `Unsupported` for a folder of a plain HTTP server that cannot list;
    /// `InvalidArgument` when a listed name is not a plain relative path or there are too many.
    pub async fn resolve(&self, url: &str) -> Result<Resolved> {
        let address = Address::parse(url)?;
        let backend = self.backend(&address)?;
        resolve::resolve(&*backend, &address).await
    }

    /// Streams exactly `range` of that version of the object, in the pieces in which they arrive, and ends; or yields
    /// an error. Nothing is sent before the stream is first polled. Dropping it closes the connection.
    ///
    /// # Errors
    /// `FailedPrecondition` when the object has another version now (the message names both), `NotFound` when it is
    /// gone, otherwise as [`Origins::stat`].
    pub fn read(&self, artifact: &Arc<Artifact>, range: Range<u64>) -> BoxStream<'static, Result<Bytes>> {
        match Address::parse(artifact.url()).and_then(|address| self.backend(&address)) {
            Ok(backend) => read::read(backend, artifact.clone(), range),
            Err(error) => stream::once(async { Err(error) }).boxed(),
        }
    }

    /// Reads exactly `range` of that version of the object into the memory of `sink`, on this thread: the cheapest way
    /// there is. Bytes come straight from the connection where its server is spoken to in plain HTTP/1.1 (with TLS or
    /// without), else through the HTTP library; [`OriginStats::straight_reads`] and [`OriginStats::streamed_reads`] tell
    /// which. `runtime` is for what is not bulk: connecting, heads, pauses. Ends soon after `token` is cancelled.
    ///
    /// Blocks, so it must not be called on a thread of the runtime: use a thread of your own, or `spawn_blocking`.
    ///
    /// # Errors
    /// As [`Origins::read`], those of the sink, and `Cancelled`. What the sink was told of by then is there.
    pub fn read_into(
        &self,
        artifact: &Arc<Artifact>,
        range: Range<u64>,
        sink: &mut dyn Sink,
        runtime: &Handle,
        token: &CancellationToken,
    ) -> Result<()> {
        let backend = self.backend(&Address::parse(artifact.url())?)?;
        read::read_into(&backend, artifact, range, sink, runtime, token)
    }

    /// What has been asked of origins so far.
    pub fn stats(&self) -> OriginStats {
        self.shared.counters.snapshot()
    }

    fn backend(&self, address: &Address) -> Result<Arc<dyn Backend>> {
        let shared = &*self.shared;
        let place = Place::of(address);
        let mut open = shared.open.lock();
        if let Some(backend) = open.get(&place) {
            return Ok(backend.clone());
        }
        let backend: Arc<dyn Backend> = match &place {
            Place::Bucket(cloud, bucket) => {
                Arc::new(Bucket::cloud(*cloud, bucket, &shared.options, shared.counters.clone())?)
            }
            Place::Web(server) => Arc::new(Bucket::web(server, &shared.options, shared.counters.clone())?),
            Place::Hub => Arc::new(Hub::new(&shared.options, shared.counters.clone())?),
            Place::Local => return Ok(shared.local.clone()),
        };
        if open.len() >= OPEN_MAX {
            open.clear();
        }
        open.insert(place, backend.clone());
        Ok(backend)
    }
}

impl std::fmt::Debug for Origins {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Origins").field("stats", &self.stats()).finish_non_exhaustive()
    }
}
