//! Single chunks for who writes them on: from the cache, and from the origin itself when no worker can give them.
//!
//! A chunk arrives in one buffer of a small arena, verified. What did not go as it should is counted.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::TryStreamExt;
use longshore_loader::{Cluster, Source, Sources};
use longshore_memory::{Arena, Buffer, Landing};
use longshore_origin::Origins;
use longshore_types::{CHUNK_BYTES, ChunkKey, Code, Error, Result};
use longshore_wire::{ChunkRequest, ClientOptions, DataClient};

/// Chunks in flight at once.
pub const CHUNKS_IN_FLIGHT: usize = 6;
/// How long a chunk may wait for a free buffer: others have theirs, and give them back when they are written.
const BUFFER_TIMEOUT: Duration = Duration::from_secs(600);

/// Reads chunks.
pub struct ChunkReader {
    cluster: Arc<dyn Cluster>,
    client: DataClient,
    origins: Origins,
    arena: Arena,
    runtime: tokio::runtime::Handle,
    counts: Counts,
}

/// What happened so far.
#[derive(Debug, Default)]
pub struct Counts {
    by_tier: parking_lot::Mutex<BTreeMap<&'static str, u64>>,
    retries: AtomicU64,
    mismatches: AtomicU64,
    origin_direct: AtomicU64,
    worker_avoided: AtomicU64,
}

impl Counts {
    /// Bytes by the tier they came from.
    pub fn bytes_by_tier(&self) -> BTreeMap<&'static str, u64> {
        self.by_tier.lock().clone()
    }

    /// Reads that were repeated at another source.
    pub fn retries(&self) -> u64 {
        self.retries.load(Ordering::Relaxed)
    }

    /// Chunks whose checksum did not match.
    pub fn checksum_mismatches(&self) -> u64 {
        self.mismatches.load(Ordering::Relaxed)
    }

    /// Chunks that were read from the origin although there are workers.
    pub fn origin_direct(&self) -> u64 {
        self.origin_direct.load(Ordering::Relaxed)
    }

    /// Chunks that were not asked of their owner, because it failed a moment ago.
    pub fn worker_avoided(&self) -> u64 {
        self.worker_avoided.load(Ordering::Relaxed)
    }

    fn add(&self, tier: &'static str, bytes: u64) {
        *self.by_tier.lock().entry(tier).or_default() += bytes;
    }

    fn failed(&self, error: &Error) {
        self.retries.fetch_add(1, Ordering::Relaxed);
        if error.code() == Code::Corrupt {
            self.mismatches.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl ChunkReader {
    /// Reads through `cluster`, and from `origins` when that fails. Call it inside the runtime.
    pub fn new(cluster: Arc<dyn Cluster>, origins: Origins) -> Self {
        ChunkReader {
            cluster,
            client: DataClient::new(ClientOptions::default()),
            origins,
            arena: Arena::new(CHUNKS_IN_FLIGHT as u64 * CHUNK_BYTES),
            runtime: tokio::runtime::Handle::current(),
            counts: Counts::default(),
        }
    }

    /// What happened so far.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// The bytes of a chunk, when `check` finds them right; those that it does not are read anew. Blocks: call it on a
    /// blocking thread.
    ///
    /// # Errors
    /// Those of the origin, which is asked last, and then that of `check`.
    pub fn read(&self, key: &ChunkKey, check: &dyn Fn(&[u8]) -> Result<()>) -> Result<Buffer> {
        // A file of this machine is not the workers' business: they may not even have it.
        let is_local = Origins::local_path(key.artifact().url()).is_some();
        let Sources { to_ask: sources, avoided } =
            if is_local { Sources::default() } else { self.cluster.sources(key) };
        self.counts.worker_avoided.fetch_add(avoided.len() as u64, Ordering::Relaxed);
        for source in &sources {
            // A wrong checksum: the same source once more, which then checks its copy and reads it anew.
            for recheck in [false, true] {
                let read = self.read_from(source, key, recheck);
                match read.and_then(|buffer| check(&buffer).map(|()| buffer)) {
                    Ok(buffer) => return Ok(buffer),
                    Err(error) => {
                        tracing::warn!(source = %source.label, %error, "reading the chunk again");
                        self.failed(source, &error);
                        if error.code() != Code::Corrupt {
                            break;
                        }
                    }
                }
            }
        }
        if !is_local && (!sources.is_empty() || self.cluster.has_workers()) {
            self.counts.origin_direct.fetch_add(1, Ordering::Relaxed);
        }
        let buffer = self.read_origin(key)?;
        check(&buffer).inspect_err(|_| _ = self.counts.mismatches.fetch_add(1, Ordering::Relaxed))?;
        Ok(buffer)
    }

    fn failed(&self, source: &Source, error: &Error) {
        self.counts.failed(error);
        // A worker that says clearly why it cannot is not a sick one.
        self.cluster.report(source, !error.is_retryable());
    }

    fn read_from(&self, source: &Source, key: &ChunkKey, recheck: bool) -> Result<Buffer> {
        let len = key.len_bytes() as usize;
        let buffer = self.arena.buffer(len, BUFFER_TIMEOUT)?;
        let mut landing = Landing::builder().buffer(buffer, std::iter::once(0..len).collect()).build()?;
        let request = ChunkRequest { recheck, ..ChunkRequest::whole(key.clone()) };
        let fetched = self.client.fetch(&source.endpoint, &request, &mut landing)?;
        self.cluster.report(source, true);
        self.counts.add(fetched.tier.as_str(), fetched.bytes);
        let buffer = landing.into_buffers().pop();
        buffer.ok_or_else(|| Error::new(Code::Internal, "the landing of a chunk lost its buffer"))
    }

    fn read_origin(&self, key: &ChunkKey) -> Result<Buffer> {
        let range = key.range();
        let mut buffer = self.arena.buffer(key.len_bytes() as usize, BUFFER_TIMEOUT)?;
        let mut body = self.origins.read(key.artifact(), range.clone());
        let mut at = 0;
        while let Some(piece) = self.runtime.block_on(body.try_next())? {
            let Some(place) = buffer.get_mut(at..at + piece.len()) else {
                return Err(Error::new(Code::Corrupt, "the origin sent more than was asked for"));
            };
            place.copy_from_slice(&piece);
            at += piece.len();
        }
        if at != buffer.len() {
            return Err(Error::new(Code::Corrupt, "the origin sent less than was asked for"));
        }
        self.counts.add("origin", at as u64);
        Ok(buffer)
    }
}
