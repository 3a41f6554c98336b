//! The embedded default: cache and loader inside this process, over a cache folder.
//!
//! This is the only place that knows both the worker and the loader: [`EmbeddedCluster`] is the loader's view of a
//! cluster of one worker that is called directly, without a socket.

mod convert;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use longshore_device::{DeviceId, DeviceRequest};
use longshore_loader::{Cluster, Gpus, HolderHandle, Loader, LoaderOptions, MemberState, Source, Sources, devices};
use longshore_memory::{Arena, memory_limit_bytes};
use longshore_origin::Origins;
use longshore_types::{ByteSize, ChunkKey, Code, Error, Manifest, Result, Selection};
use longshore_wire::{ChunkReply, ChunkRequest, ChunkService, Endpoint, Page, Tier};
use longshore_worker::{Ask, HeadFills, Worker, WorkerOptions};

use crate::args::NodeArgs;

pub use convert::to_message;

/// Memory of the cache inside this process: it only has to hold what is in flight, the model itself is the loader's.
const CACHE_MEMORY_BYTES_MAX: u64 = 1 << 30;
const CACHE_MEMORY_DIVISOR: u64 = 16;
/// How long chunks on their way to the disk may take when the process ends.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(60);
/// How the worker is called in reports.
const LABEL: &str = "cache in this process";

/// What a user can set about the embedded parts.
#[derive(Debug, Clone, Default)]
pub struct EmbeddedOptions {
    /// The cache folder; the user's when not set.
    pub cache_dir: Option<PathBuf>,
    /// Its budget.
    pub disk: Option<ByteSize>,
}

impl From<&NodeArgs> for EmbeddedOptions {
    fn from(args: &NodeArgs) -> Self {
        EmbeddedOptions { cache_dir: args.cache_dir.clone(), disk: args.disk }
    }
}

/// The worker inside this process.
pub struct EmbeddedWorker {
    worker: Arc<Worker>,
    warnings: Vec<String>,
}

impl EmbeddedWorker {
    /// Opens the cache folder. When another process has it, the cache is in memory only, with a warning: two loads at
    /// the same time are both right, and one of them is not faster for the cache.
    ///
    /// # Errors
    /// [`Code::PermissionDenied`] or [`Code::Exhausted`] naming a folder that cannot be used.
    pub async fn open(options: EmbeddedOptions, origins: Origins) -> Result<Self> {
        let mut worker_options = WorkerOptions {
            cache_dir: options.cache_dir,
            disk_bytes: options.disk,
            // Whoever names a budget has decided what is left to others: there is no option for a floor here.
            disk_free_floor: options.disk.map(|_| ByteSize(0)),
            memory_bytes: Some(ByteSize((memory_limit_bytes() / CACHE_MEMORY_DIVISOR).min(CACHE_MEMORY_BYTES_MAX))),
            allow_local_origin: true,
            ..WorkerOptions::default()
        };
        let mut warnings = Vec::new();
        let worker = match open(worker_options.clone(), origins.clone()).await {
            Err(error) if error.code() == Code::FailedPrecondition => {
                tracing::warn!(%error, "the cache of this process is in memory only");
                warnings.push(format!("{error}: this process did without the cache folder"));
                worker_options.memory_only = true;
                open(worker_options, origins).await?
            }
            opened => opened?,
        };
        Ok(EmbeddedWorker { worker, warnings })
    }

    /// The worker.
    pub fn worker(&self) -> &Arc<Worker> {
        &self.worker
    }

    /// What a user should know.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// The loader's view of it.
    pub fn cluster(&self) -> Arc<dyn Cluster> {
        let (worker, head_fills) = (self.worker.clone(), self.worker.head_fills());
        Arc::new(EmbeddedCluster { worker: worker.clone(), chunks: Arc::new(HonestChunks { worker, head_fills }) })
    }

    /// Writes what is on its way to the disk.
    pub async fn close(self) {
        let drained = tokio::task::spawn_blocking(move || self.worker.drain(FLUSH_TIMEOUT)).await;
        if !drained.unwrap_or(false) {
            tracing::warn!("some chunks did not reach the cache folder in time and will be fetched again");
        }
    }
}

async fn open(options: WorkerOptions, origins: Origins) -> Result<Arc<Worker>> {
    match tokio::task::spawn_blocking(move || Worker::open(options, origins, None)).await {
        Ok(opened) => opened,
        Err(error) => Err(Error::new(Code::Internal, format!("opening the cache broke off: {error}"))),
    }
}

/// Files of this machine are always looked at anew: that costs nothing, and their owner has just changed them.
pub fn ask(url: &str, revalidate: bool) -> Ask {
    Ask { revalidate: revalidate || Origins::local_path(url).is_some(), forwarded: false }
}

/// A cluster of one worker, called directly.
struct EmbeddedCluster {
    worker: Arc<Worker>,
    chunks: Arc<HonestChunks>,
}

/// The worker's chunks. One that was fetched a moment ago, for the head in it, comes from the origin as far as the user
/// is concerned, although the cache has it by now.
struct HonestChunks {
    worker: Arc<Worker>,
    head_fills: Arc<HeadFills>,
}

impl ChunkService for HonestChunks {
    fn get(&self, request: &ChunkRequest) -> Result<ChunkReply> {
        let reply = self.worker.get(request)?;
        match self.head_fills.take(&request.key.id()) {
            true => Ok(ChunkReply { tier: Tier::Origin, ..reply }),
            false => Ok(reply),
        }
    }

    fn page(&self, path: &str) -> Option<Page> {
        self.worker.page(path)
    }
}

#[async_trait]
impl Cluster for EmbeddedCluster {
    async fn manifest(&self, url: &str, selection: &Selection, revalidate: bool) -> Result<(Manifest, bool)> {
        let answer = self.worker.manifest(url, selection, ask(url, revalidate)).await?;
        Ok((Manifest::clone(&answer.value), answer.cached))
    }

    fn sources(&self, _key: &ChunkKey) -> Sources {
        let endpoint = Endpoint::InProcess(self.chunks.clone());
        vec![Source { endpoint, label: LABEL.to_owned(), member: None }].into()
    }

    /// There is no other worker to prefer.
    fn report(&self, _source: &Source, _ok: bool) {}

    fn members(&self) -> Vec<MemberState> {
        let status = self.worker.status();
        let weight = status.disk.unwrap_or(status.memory).capacity_bytes >> 30;
        let (id, address) = (status.id.to_string(), LABEL.to_owned());
        vec![MemberState { id, address, weight: weight.max(1), is_reachable: true }]
    }
}

/// Opens a loader inside this process over `cluster`, and gives what a user should know about its devices. It listens
/// nowhere.
///
/// # Errors
/// For options that are not valid, or when there are no threads to be had; for GPUs that cannot be used.
pub async fn open_loader(
    options: LoaderOptions,
    cluster: Arc<dyn Cluster>,
    origins: Origins,
) -> Result<(Arc<Loader>, Vec<String>)> {
    let brief = devices::brief_pinned_memory(&options);
    // Whose first load is its only one has no time to touch memory before.
    let options = LoaderOptions { pinned_memory: options.pinned_memory.or(Some(brief)), prefault: None, ..options };
    let holder = HolderHandle::local();
    let (with, keeper) = (options.clone(), holder.clone());
    let opening = tokio::task::spawn_blocking(move || {
        let arena = Arena::new(with.memory_bytes());
        devices::open(&with, &arena, Arc::new(keeper), devices::copier_process()?)
    });
    let broke_off = |error| Error::new(Code::Internal, format!("opening the devices broke off: {error}"));
    let mut node = opening.await.map_err(broke_off)??;
    let warnings = std::mem::take(&mut node.warnings);
    Ok((Loader::open(options, holder, cluster, node, origins)?, warnings))
}

/// The loader's options for a command: what its flags say, and the environment for the rest. GPUs are only looked for
/// when the model may go to one: the driver takes its time to start.
///
/// # Errors
/// [`Code::InvalidArgument`] for a variable that holds no valid value.
pub fn loader_options(args: &NodeArgs, device: &DeviceRequest) -> Result<LoaderOptions> {
    let mut options = LoaderOptions::from_environment()?;
    if *device == DeviceRequest::Id(DeviceId::HOST) {
        options.gpus = Gpus::None;
    }
    Ok(LoaderOptions { memory: args.memory, origin: args.origin.clone(), ..options })
}
