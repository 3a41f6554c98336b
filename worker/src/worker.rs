//! One worker: its chunks, its metadata, its place in the cluster. Used by the daemon and, in process, by the command
//! line when no daemon runs.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use longshore_cluster::{Identity, Member, MemberId, Membership, load_or_create_id};
use longshore_memory::Arena;
use longshore_origin::Origins;
use longshore_runtime::metrics::Metrics as Registry;
use longshore_types::{Artifact, CHUNK_BYTES, Code, Error, Manifest, Resolved, Result, Selection, redact_url};
use longshore_wire::{ChunkReply, ChunkRequest, ChunkService, ClientOptions, DataClient, Page, Tier};
use tokio::runtime::Handle;

use crate::fill::{Chunks, FillOptions, PEER_STEP_BYTES};
use crate::grpc::Control;
use crate::meta::{Answer, Ask, Meta, MetaOptions, is_local};
use crate::metrics::{self, Metrics};
use crate::options::WorkerOptions;
use crate::peers::Peers;
use crate::store::disk::{DiskOptions, DiskTier, FolderLock, not_writable};
use crate::store::memory::MemoryTier;
use crate::store::{Freed, Store};

/// The version of this binary.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
/// Chunks of the memory budget that are left to readers when all fills and writes run.
const READER_CHUNKS: u64 = 1;

/// Capacity and use of one tier.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TierUsage {
    /// Its budget.
    pub capacity_bytes: u64,
    /// What it holds.
    pub used_bytes: u64,
    /// Chunks that it holds.
    pub chunks: u64,
}

impl From<(u64, u64, u64)> for TierUsage {
    fn from((capacity_bytes, used_bytes, chunks): (u64, u64, u64)) -> Self {
        TierUsage { capacity_bytes, used_bytes, chunks }
    }
}

/// What a worker says of itself.
#[derive(Debug, Clone)]
pub struct WorkerStatus {
    /// Kept in the cache folder.
    pub id: MemberId,
    /// Of the binary.
    pub version: String,
    /// Where its data plane is, or empty in process.
    pub data_address: String,
    /// `None` when the cache is in memory only.
    pub cache_dir: Option<PathBuf>,
    /// The memory tier.
    pub memory: TierUsage,
    /// The disk tier.
    pub disk: Option<TierUsage>,
    /// Why the disk tier takes no writes.
    pub disk_error: Option<String>,
    /// Fills that are running.
    pub fills_in_flight: u64,
    /// Bytes of the ranges that were answered since the start.
    pub served_bytes: u64,
    /// Bytes of objects received from origins since the start.
    pub origin_bytes: u64,
    /// Copies with a wrong checksum, here or at others, since the start.
    pub checksum_mismatches: u64,
    /// The members of the view, and whether each answered when it was last asked.
    pub members: Vec<(Member, bool)>,
    /// Since the start.
    pub uptime: Duration,
}

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
    /// The view is not known yet: answering now could read the origin twice.
    waits_for_view: AtomicBool,
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
        let memory = MemoryTier::new(Arena::new(budget.total_bytes), budget.head_room_bytes);
        let store = Store::new(memory, disk, metrics.clone());
        let fill = FillOptions {
            fills_max: budget.fills,
            wait: Duration::from_millis(options.fill_wait_ms),
            negative_ttl: Duration::from_millis(options.negative_ttl_ms),
            cache_local_origin: options.cache_local_origin,
        };
        let client = DataClient::new(ClientOptions::default());
        let chunks = Chunks::new(store, origins, peers.clone(), client, fill, runtime, metrics.clone());
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
            waits_for_view: AtomicBool::new(false),
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

    /// Identity, capacity and use.
    pub fn status(&self) -> WorkerStatus {
        let store = &self.chunks.store;
        let health = &self.peers.health;
        let members = self.peers.members().into_iter().map(|member| {
            let answers = !health.is_troubled(member.id());
            (member, answers)
        });
        WorkerStatus {
            id: self.peers.me(),
            version: VERSION.to_owned(),
            data_address: self.identity.get().map(|identity| identity.data.clone()).unwrap_or_default(),
            cache_dir: self.cache_folder.clone(),
            memory: store.memory.usage().into(),
            disk: store.disk.as_ref().map(|disk| disk.usage().into()),
            disk_error: store.disk.as_ref().and_then(|disk| disk.failure()),
            fills_in_flight: self.chunks.fills_in_flight() as u64,
            served_bytes: metrics::sum(&self.metrics.served_bytes),
            origin_bytes: self.chunks.origins.stats().bytes,
            checksum_mismatches: metrics::sum(&self.metrics.checksum_mismatches),
            members: members.collect(),
            uptime: self.started.elapsed(),
        }
    }

    /// Waits until fills have ended and the disk has what was queued for it; false when `timeout` passes first. Call
    /// it before the process ends, or the last chunks are fetched again by the next one. Blocks.
    pub fn drain(&self, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        let filled = self.chunks.wait_idle(timeout);
        filled & self.chunks.store.flush(deadline.saturating_duration_since(Instant::now()))
    }

    /// The metrics, with the gauges brought up to date.
    ///
    /// # Errors
    /// [`Code::Internal`] when they cannot be written.
    pub fn render_metrics(&self) -> Result<Vec<u8>> {
        self.update_gauges();
        self.registry.render()
    }

    pub(crate) fn update_gauges(&self) {
        let store = &self.chunks.store;
        let tiers = [("memory", Some(store.memory.usage())), ("disk", store.disk.as_ref().map(|disk| disk.usage()))];
        for (name, usage) in tiers {
            let usage = TierUsage::from(usage.unwrap_or_default());
            self.metrics.capacity_bytes.with_label_values(&[name]).set(usage.capacity_bytes as i64);
            self.metrics.used_bytes.with_label_values(&[name]).set(usage.used_bytes as i64);
            self.metrics.chunks.with_label_values(&[name]).set(usage.chunks as i64);
        }
        self.metrics.arena_used_bytes.set(store.memory.arena().used_bytes() as i64);
        self.metrics.members.set(self.peers.members().len() as i64);
        let origin = self.chunks.origins.stats();
        let kinds = [("list", origin.list_requests), ("stat", origin.stat_requests), ("read", origin.read_requests)];
        for (kind, count) in kinds {
            self.metrics.origin_requests.with_label_values(&[kind]).set(count as i64);
        }
        self.metrics.origin_retries.set(origin.retries as i64);
        self.metrics.origin_bytes.set(origin.bytes as i64);
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

    /// Refuses chunks until [`Worker::join`].
    pub(crate) fn wait_for_view(&self) {
        self.waits_for_view.store(true, Ordering::Release);
    }

    /// Takes its place in the cluster.
    pub(crate) fn join(&self, membership: Arc<dyn Membership>) {
        self.peers.join(membership);
        self.waits_for_view.store(false, Ordering::Release);
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
        if self.waits_for_view.load(Ordering::Acquire) {
            return Err(Error::new(Code::Unavailable, "the worker is starting and does not know the others yet"));
        }
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

    fn page(&self, path: &str) -> Option<Page> {
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

/// Keeps the four highest bits: free space that is a little different at each start moves no chunks.
fn rounded(weight: u64) -> u64 {
    let dropped_bits = (u64::BITS - weight.leading_zeros()).saturating_sub(4);
    weight >> dropped_bits << dropped_bits
}

/// How the memory budget is divided.
struct MemoryBudget {
    total_bytes: u64,
    fills: usize,
    queue_chunks: usize,
    head_room_bytes: u64,
}

impl MemoryBudget {
    /// As many fills as asked for, but no more than a quarter of the memory; as much again may wait for the disk. The
    /// rest, about half, is the memory tier.
    fn split(total_bytes: u64, fills_max: usize) -> Self {
        let per_fill = CHUNK_BYTES + PEER_STEP_BYTES;
        let fills = ((total_bytes / 4 / per_fill) as usize).clamp(1, fills_max.max(1));
        let queue_chunks = fills;
        let head_room_bytes = fills as u64 * per_fill + (queue_chunks as u64 + READER_CHUNKS) * CHUNK_BYTES;
        MemoryBudget { total_bytes, fills, queue_chunks, head_room_bytes }
    }
}

fn disk_options(options: &WorkerOptions, folder: PathBuf, budget: &MemoryBudget) -> DiskOptions {
    DiskOptions {
        folder,
        budget_bytes: options.disk_bytes.map(|size| size.0),
        free_floor_bytes: options.disk_free_floor.map(|size| size.0),
        sync: options.fsync,
        writer_threads: options.disk_threads,
        queue_chunks: budget.queue_chunks,
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
