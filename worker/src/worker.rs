//! One worker: its chunks, its metadata, its place in the cluster. Used by the daemon and, in process, by the command
//! line when no daemon runs.

mod budget;
mod holds_page;
mod notes;
mod status;

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use longshore_cluster::{Identity, MemberId, Membership, load_or_create_id};
use longshore_origin::Origins;
use longshore_runtime::metrics::Metrics as Registry;
use longshore_types::checkpoint::AttemptId;
use longshore_types::{Artifact, Code, Error, Manifest, Resolved, Result, Selection, redact_url};
use longshore_wire::{
    ChunkReply, ChunkRequest, ChunkService, ClientOptions, DataClient, Page, PutRequest, PutStart, Tier,
};
use tokio::runtime::Handle;

use crate::fill::{Chunks, FillOptions, HeadFills};
use crate::grpc::Control;
use crate::meta::{Answer, Ask, Meta, MetaOptions, is_local};
use crate::metrics::Metrics;
use crate::options::WorkerOptions;
use crate::peers::Peers;
use crate::store::disk::{DiskOptions, DiskTier, FolderLock, not_writable};
use crate::store::hold::{HoldOptions, Holds};
use crate::store::lending::chunk_arena;
use crate::store::memory::MemoryTier;
use crate::store::{Freed, Store};
use budget::{MemoryBudget, rounded};
pub use status::{TierUsage, WorkerStatus};

/// The version of this binary.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// See the module.
pub struct Worker {
    chunks: Arc<Chunks>,
    meta: Arc<Meta>,
    control: Arc<Control>,
    peers: Arc<Peers>,
    identity: OnceLock<Identity>,
    options: WorkerOptions,
    cache_folder: Option<PathBuf>,
    metrics: Arc<Metrics>,
    registry: Registry,
    started: Instant,
    _lock: Option<FolderLock>,
}

impl Worker {
    /// Opens the cache folder and rebuilds its index. Call it inside a tokio runtime (of several threads): fills run
    /// there. It blocks while it scans the folder.
    ///
    /// # Errors
    /// [`Code::FailedPrecondition`] when another process has the folder, [`Code::PermissionDenied`] when it cannot be
    /// written.
    pub fn open(
        options: WorkerOptions,
        origins: Origins,
        membership: Option<Arc<dyn Membership>>,
    ) -> Result<Arc<Worker>> {
        let runtime = Handle::try_current().map_err(|error| {
            Error::new(Code::Internal, format!("a worker must be opened inside a tokio runtime: {error}"))
        })?;
        let registry = Registry::for_process("longshore_worker", VERSION)?;
        let metrics = Arc::new(Metrics::new(&registry)?);
        let (cache_folder, lock, id) = open_folder(&options)?;
        let peers = Arc::new(Peers::new(id, usize::from(options.replicas.max(1))));
        if let Some(membership) = membership {
            peers.join(membership);
        }
        let budget = MemoryBudget::split(options.memory_budget_bytes(), options.fills_max);
        let disk = cache_folder
            .as_ref()
            .map(|folder| DiskTier::open(disk_options(&options, folder.clone(), &budget), metrics.clone()))
            .transpose()?;
        let has_socket = options.unix_socket.is_some();
        let memory = MemoryTier::new(chunk_arena(budget.total_bytes, has_socket), budget.head_room_bytes);
        let holds = match (&cache_folder, &disk) {
            (Some(folder), Some(disk)) => {
                let hold_options = HoldOptions {
                    budget_bytes: options.hold_disk.map(|size| size.0),
                    ttl: Duration::from_secs(options.hold_ttl_hours.saturating_mul(3600)),
                };
                Some(Holds::open(folder.join("holds"), &hold_options, disk.clone(), metrics.clone())?)
            }
            _ => None,
        };
        let store = Store::new(memory, disk, holds, metrics.clone());
        let fill = FillOptions {
            fills_max: budget.fills,
            relays_max: budget.relays,
            puts_max: budget.puts,
            wait: Duration::from_millis(options.fill_wait_ms),
            negative_ttl: Duration::from_millis(options.negative_ttl_ms),
            cache_local_origin: options.cache_local_origin,
            lends_memory: has_socket,
        };
        let chunks =
            Chunks::new(store, origins, peers.clone(), ClientOptions::default(), fill, runtime, metrics.clone());
        let control = Arc::new(Control::default());
        let meta_options = MetaOptions {
            ttl: Duration::from_millis(options.metadata_ttl_ms),
            negative_ttl: Duration::from_millis(options.negative_ttl_ms),
            memory_bytes: options.metadata_memory.0,
        };
        let meta = Meta::new(chunks.clone(), control.clone(), meta_options, cache_folder.as_deref(), metrics.clone());
        Ok(Arc::new(Worker {
            chunks,
            meta,
            control,
            peers,
            identity: OnceLock::new(),
            options,
            cache_folder,
            metrics,
            registry,
            started: Instant::now(),
            _lock: lock,
        }))
    }

    /// The manifest of a model, and whether it came from the cache.
    ///
    /// # Errors
    /// As the origin says; [`Code::Corrupt`] or [`Code::NotFound`] naming the file that makes it impossible.
    pub async fn manifest(&self, url: &str, selection: &Selection, ask: Ask) -> Result<Answer<Arc<Manifest>>> {
        self.meta.manifest(&self.admit(url)?, selection, ask).await
    }

    /// Size and version of one object.
    ///
    /// # Errors
    /// As the origin says.
    pub async fn stat(&self, url: &str, ask: Ask) -> Result<Answer<Artifact>> {
        self.meta.stat(&self.admit(url)?, ask).await
    }

    /// The objects under a URL, sorted by name.
    ///
    /// # Errors
    /// As the origin says.
    pub async fn list(&self, url: &str, ask: Ask) -> Result<Answer<Arc<Resolved>>> {
        self.meta.list(&self.admit(url)?, ask).await
    }

    /// Drops chunks and metadata of everything at `url` or under it, here and, unless `local_only`, on all members.
    /// Gives what that freed and the addresses of members that could not be reached.
    ///
    /// # Errors
    /// [`Code::InvalidArgument`] for a URL that is none.
    pub async fn free(&self, url: &str, local_only: bool) -> Result<(Freed, Vec<String>)> {
        let url = self.chunks.origins.canonical_url(url)?;
        self.meta.forget(&url);
        let (chunks, own_url) = (self.chunks.clone(), url.clone());
        let freed = tokio::task::spawn_blocking(move || chunks.store.free(&own_url)).await;
        let mut freed = freed.map_err(|error| Error::new(Code::Internal, format!("freeing ended: {error}")))?;
        let mut unreachable = Vec::new();
        if !local_only {
            let others = self.peers.others();
            let asked = others.iter().map(async |member| (member, self.control.free(member, &url).await));
            for (member, answer) in futures::future::join_all(asked).await {
                match answer {
                    Ok(more) => {
                        freed.bytes += more.bytes;
                        freed.chunks += more.chunks;
                    }
                    Err(error) => {
                        tracing::warn!(member = %member.address, %error, "member could not free");
                        unreachable.push(member.address.clone());
                    }
                }
            }
        }
        Ok((freed, unreachable))
    }

    /// The chunks that reading manifests fetches from the origin, noted from the first call on.
    pub fn head_fills(&self) -> Arc<HeadFills> {
        self.chunks.head_fills.get_or_init(Arc::default).clone()
    }

    /// Waits until fills have ended and the disk has what was queued for it; false when `timeout` passes first. Call
    /// it before the process ends, or the last chunks are fetched again by the next one. Blocks.
    pub fn drain(&self, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        let filled = self.chunks.wait_idle(timeout);
        filled & self.chunks.store.flush(deadline.saturating_duration_since(Instant::now()))
    }

    pub(crate) fn registry(&self) -> &Registry {
        &self.registry
    }

    pub(crate) fn options(&self) -> &WorkerOptions {
        &self.options
    }

    pub(crate) fn peers(&self) -> &Arc<Peers> {
        &self.peers
    }

    pub(crate) fn client(&self) -> &DataClient {
        &self.chunks.client
    }

    /// Sets what `/v1/identity` says; before that, and in process, there is no such page.
    pub(crate) fn introduce(&self, identity: Identity) {
        let _ = self.identity.set(identity);
    }

    /// Takes its place in the cluster.
    pub(crate) fn join(&self, membership: Arc<dyn Membership>) {
        self.peers.join(membership);
    }

    /// Placement weight in GiB: as set, or the capacity of the cache.
    pub(crate) fn weight(&self) -> u64 {
        let store = &self.chunks.store;
        let capacity_bytes = store.disk.as_ref().map_or_else(|| store.memory.usage().0, |disk| disk.usage().0);
        self.options.weight.unwrap_or_else(|| rounded(capacity_bytes >> 30)).max(1)
    }

    /// The canonical form of a URL that this worker may open.
    fn admit(&self, url: &str) -> Result<String> {
        let url = self.chunks.origins.canonical_url(url)?;
        self.check_local(&url)?;
        Ok(url)
    }

    fn check_local(&self, url: &str) -> Result<()> {
        if !is_local(url) || self.options.allow_local_origin {
            return Ok(());
        }
        Err(Error::new(
            Code::PermissionDenied,
            format!(
                "{} names a path on the worker's machine, not on yours; start the worker with --allow-local-origin \
                 when its files may be read by everybody who reaches it",
                redact_url(url)
            ),
        ))
    }

    fn answer(&self, request: &ChunkRequest) -> Result<ChunkReply> {
        self.check_local(request.key.artifact().url())?;
        self.chunks.get(request)
    }
}

impl ChunkService for Worker {
    fn get(&self, request: &ChunkRequest) -> Result<ChunkReply> {
        let reply = self.answer(request);
        match &reply {
            Ok(reply) => self.count(reply.tier, request.range.end.saturating_sub(request.range.start)),
            Err(error) => self.metrics.request_errors.with_label_values(&[error.code().as_str()]).inc(),
        }
        reply
    }

    fn put(&self, request: &PutRequest) -> Result<PutStart> {
        self.check_local(request.key.artifact().url())?;
        self.chunks.put(request)
    }

    fn release(&self, attempt: &AttemptId) -> Result<()> {
        self.chunks.release(attempt);
        Ok(())
    }

    fn page(&self, path: &str) -> Option<Page> {
        if let Some(page) = self.chunks.store.holds.as_ref().and_then(|holds| holds_page::page(holds, path)) {
            return Some(page);
        }
        let identity = self.identity.get().filter(|_| path == "/v1/identity")?;
        let body = serde_json::to_vec(identity).ok()?;
        Some(Page { status: 200, content_type: "application/json".to_owned(), body })
    }
}

impl Worker {
    fn count(&self, tier: Tier, bytes: u64) {
        self.metrics.requests.with_label_values(&[tier.as_str()]).inc();
        self.metrics.served_bytes.with_label_values(&[tier.as_str()]).inc_by(bytes);
    }
}

fn disk_options(options: &WorkerOptions, folder: PathBuf, budget: &MemoryBudget) -> DiskOptions {
    DiskOptions {
        folder,
        budget_bytes: options.disk_bytes.map(|size| size.0),
        free_floor_bytes: options.disk_free_floor.map(|size| size.0),
        sync: options.fsync,
        writer_threads: options.disk_threads,
        queue_bytes: budget.queue_bytes,
        queue_wait: Duration::from_millis(options.disk_wait_ms),
        retry_pause: Duration::from_millis(options.disk_retry_pause_ms),
    }
}

/// Makes and locks the cache folder; nothing of that when the cache is in memory only.
fn open_folder(options: &WorkerOptions) -> Result<(Option<PathBuf>, Option<FolderLock>, MemberId)> {
    if options.memory_only {
        return Ok((None, None, MemberId::random()));
    }
    let folder = options.cache_folder()?;
    std::fs::create_dir_all(&folder).map_err(|error| not_writable(&folder, error))?;
    let lock = FolderLock::take(&folder)?;
    let id = load_or_create_id(&folder)?;
    Ok((Some(folder), Some(lock), id))
}
