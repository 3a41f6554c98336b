//! What the loader and its loads share, and how it is put together.

use std::sync::Arc;
use std::time::{Duration, Instant};

use longshore_checkpoint::{ChunkSink, NoSink};
use longshore_device::{DeviceInfo, DeviceKind};
use longshore_memory::Arena;
use longshore_origin::Origins;
use longshore_types::{Code, Error, Manifest, Result};
use longshore_wire::{ClientOptions, DataClient};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::checkpoint::Checkpoints;
use crate::checkpoint::sink::ClusterSink;
use crate::cluster::Cluster;
use crate::devices::NodeDevices;
use crate::fetch::{ChunkReader, FetchPool, Hedging, NodeCopies, Readers};
use crate::flight::Flights;
use crate::holder::HolderHandle;
use crate::metrics::Metrics;
use crate::options::LoaderOptions;
use crate::pinned::PinnedTier;
use crate::registry::Registry;
use crate::report::Recorder;

/// Chunks on their way to one worker at once.
const PUTS_PER_WORKER: usize = 8;

/// What loads need of the loader.
pub(crate) struct Shared {
    pub options: LoaderOptions,
    pub node: NodeDevices,
    /// Where bytes wait for their copy to a GPU; `None` without one.
    pub pinned: Option<Arc<PinnedTier>>,
    pub origins: Origins,
    pub registry: Arc<Registry>,
    pub flights: Arc<Flights>,
    pub pool: FetchPool,
    pub permits: Semaphore,
    pub metrics: Arc<Metrics>,
    /// What is saved on this node.
    pub checkpoints: Arc<Checkpoints>,
    pub started: Instant,
    /// What takes chunks of checkpoints to the workers; `None` without any.
    sink: Option<Arc<ClusterSink>>,
    readers: Arc<Readers>,
}

impl Shared {
    pub(super) fn open(
        options: LoaderOptions,
        holder: HolderHandle,
        cluster: Arc<dyn Cluster>,
        node: NodeDevices,
        origins: Origins,
    ) -> Result<Shared> {
        let runtime = tokio::runtime::Handle::try_current().map_err(|error| {
            Error::new(Code::FailedPrecondition, format!("a loader needs a tokio runtime: {error}"))
        })?;
        let metrics = Arc::new(Metrics::new()?);
        let registry = Registry::new(metrics.clone(), holder);
        let threads = options.fetch_threads();
        // Connections of their own: a put waits for a disk, and loads should not wait behind it.
        let puts = DataClient::new(client_options(&options, options.stall_timeout(), PUTS_PER_WORKER));
        // A cache in this process would only have a second copy on the same disk.
        let sink = cluster.has_workers().then(|| ClusterSink::new(cluster.clone(), puts));
        let to_workers: Arc<dyn ChunkSink> = match &sink {
            Some(sink) => sink.clone(),
            None => Arc::new(NoSink),
        };
        let readers = Readers {
            cluster,
            origins: origins.clone(),
            patient: DataClient::new(client_options(&options, options.stall_timeout(), threads)),
            hedging: hedging(&options, threads),
            runtime,
            direct_io: options.direct_io,
            gpudirect_storage: options.gpudirect_storage,
        };
        let arena = node.arena.clone().unwrap_or_else(|| Arena::new(options.memory_bytes()));
        let checkpoints = Checkpoints::new(
            options.checkpoints.clone(),
            origins.clone(),
            arena,
            to_workers,
            metrics.checkpoints.clone(),
        );
        Ok(Shared {
            checkpoints,
            sink,
            pinned: node.pinned.clone().map(PinnedTier::new),
            node,
            origins,
            flights: Flights::new(registry.clone()),
            registry,
            pool: FetchPool::start(threads)?,
            permits: Semaphore::new(options.loads_max.clamp(1, Semaphore::MAX_PERMITS)),
            metrics,
            started: Instant::now(),
            readers: Arc::new(readers),
            options,
        })
    }

    pub(crate) fn reader(
        &self,
        recorder: Arc<Recorder>,
        token: CancellationToken,
        manifest: Arc<Manifest>,
        node: Option<Arc<NodeCopies>>,
    ) -> ChunkReader {
        ChunkReader::new(self.readers.clone(), recorder, token, manifest, node)
    }

    /// Brings the gauges of devices, of prefaulted and of page-locked memory up to date.
    pub(super) fn observe_devices(&self) {
        let metrics = &self.metrics;
        for status in self.node.status() {
            let DeviceInfo { id, capacity_bytes, used_bytes, free_bytes, .. } = status.info;
            let label = id.to_string();
            metrics.device_capacity_bytes.with_label_values(&[&label]).set(capacity_bytes as i64);
            metrics.device_used_bytes.with_label_values(&[&label]).set(used_bytes as i64);
            metrics.device_free_bytes.with_label_values(&[&label]).set(free_bytes as i64);
            if id.kind() == DeviceKind::Cuda {
                let restarts = metrics.copier_restarts.with_label_values(&[&label]);
                restarts.inc_by(status.restarts.saturating_sub(restarts.get()));
            }
        }
        if let Some(arena) = &self.node.arena {
            metrics.prefaulted_bytes.set(arena.stats().ready_bytes as i64);
        }
        let failure = self.node.prefaulter.as_ref().and_then(|prefaulter| prefaulter.failure());
        metrics.prefault_failed.set(i64::from(failure.is_some()));
        if let Some(pinned) = &self.pinned {
            metrics.set_pinned(&pinned.usage());
        }
    }

    /// Brings over what is counted elsewhere.
    pub(super) fn copy_counters(&self) {
        let sink = self.sink.as_ref().map(|sink| sink.stats()).unwrap_or_default();
        let prefaulted_used_bytes = self.node.arena.as_ref().map_or(0, |arena| arena.ready_used_bytes());
        self.metrics.copy(&self.origins.stats(), &sink, prefaulted_used_bytes);
    }

    /// Lets the chunks of a model's files leave page-locked memory; gives the bytes that are free there now.
    pub(super) fn forget_pinned(&self, url: &str) -> u64 {
        self.pinned.as_ref().map_or(0, |pinned| pinned.forget(|chunk_url| longshore_origin::covers(url, chunk_url)))
    }

    pub(super) fn cluster(&self) -> &dyn Cluster {
        &*self.readers.cluster
    }
}

fn client_options(options: &LoaderOptions, stall_timeout: Duration, threads: usize) -> ClientOptions {
    ClientOptions {
        connect_timeout: Duration::from_millis(options.connect_timeout_ms.max(1)),
        stall_timeout,
        connections_per_endpoint_max: threads,
        ..ClientOptions::default()
    }
}

fn hedging(options: &LoaderOptions, threads: usize) -> Option<Hedging> {
    let after = Duration::from_millis(options.hedge_after_ms.max(1));
    let median_below = after.checked_div(options.hedge_factor)?;
    let client = DataClient::new(client_options(options, after.min(options.stall_timeout()), threads));
    Some(Hedging { client, median_below })
}
