//! What the loader and its loads share, and how it is put together.

use std::sync::Arc;
use std::time::{Duration, Instant};

use longshore_device::Devices;
use longshore_origin::Origins;
use longshore_types::{Code, Error, Result};
use longshore_wire::{ClientOptions, DataClient};
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;

use crate::cluster::Cluster;
use crate::fetch::{ChunkReader, FetchPool, Hedging, Readers};
use crate::flight::Flights;
use crate::metrics::Metrics;
use crate::options::LoaderOptions;
use crate::registry::Registry;
use crate::report::Recorder;

/// What loads need of the loader.
pub(crate) struct Shared {
    pub options: LoaderOptions,
    pub devices: Devices,
    pub origins: Origins,
    pub registry: Arc<Registry>,
    pub flights: Arc<Flights>,
    pub pool: FetchPool,
    pub permits: Semaphore,
    pub metrics: Arc<Metrics>,
    pub attached: watch::Sender<usize>,
    pub started: Instant,
    readers: Arc<Readers>,
}

/// One attach connection.
pub(crate) struct Attached(pub Arc<Shared>);

impl Drop for Attached {
    fn drop(&mut self) {
        self.0.attached.send_modify(|count| *count -= 1);
    }
}

impl Shared {
    pub(super) fn open(
        options: LoaderOptions,
        cluster: Arc<dyn Cluster>,
        devices: Devices,
        origins: Origins,
    ) -> Result<Shared> {
        let runtime = tokio::runtime::Handle::try_current().map_err(|error| {
            Error::new(Code::FailedPrecondition, format!("a loader needs a tokio runtime: {error}"))
        })?;
        let metrics = Arc::new(Metrics::new()?);
        let registry = Registry::new(metrics.clone());
        let threads = options.fetch_threads();
        let readers = Readers {
            cluster,
            origins: origins.clone(),
            patient: DataClient::new(client_options(&options, options.stall_timeout(), threads)),
            hedging: hedging(&options, threads),
            runtime,
        };
        Ok(Shared {
            devices,
            origins,
            flights: Flights::new(registry.clone()),
            registry,
            pool: FetchPool::start(threads)?,
            permits: Semaphore::new(options.loads_max.clamp(1, Semaphore::MAX_PERMITS)),
            metrics,
            attached: watch::Sender::new(0),
            started: Instant::now(),
            readers: Arc::new(readers),
            options,
        })
    }

    pub(crate) fn reader(&self, recorder: Arc<Recorder>, token: CancellationToken) -> ChunkReader {
        ChunkReader::new(self.readers.clone(), recorder, token)
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
