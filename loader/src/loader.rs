//! The node loader as one object: load, get, list, unload, status.

mod answer;
mod follow;
mod shared;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use longshore_device::{Device, DeviceRequest};
use longshore_origin::Origins;
use longshore_types::{Code, Error, Manifest, Result, Selection, redact_url};
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::checkpoint::Checkpoints;
use crate::cluster::Cluster;
use crate::devices::NodeDevices;
use crate::fetch::NodeCopies;
use crate::flight::{Boarding, Seat};
use crate::holder::{HolderHandle, attach};
use crate::load::{Flightplan, ProgressSender, fly, node};
use crate::metrics::Metrics;
use crate::model::{ModelId, ModelKey};
use crate::options::LoaderOptions;
use crate::parallel::Parallel;
use crate::registry::Lease;
use crate::report::{FallbackKind, Recorder, Step};
pub use answer::{HolderState, LoadedModel, LoaderStatus, ModelState, UnknownModel, Unloaded};
pub(crate) use shared::Shared;

/// Loads that wait for their turn, for each that may run.
const WAITING_PER_LOAD: usize = 16;

/// A request to load a model.
#[derive(Debug, Clone, Default)]
pub struct LoadRequest {
    /// URL or path, as the user wrote it.
    pub uri: String,
    /// Where to.
    pub device: DeviceRequest,
    /// Patterns of file names; empty means safetensors and side files.
    pub include: Vec<String>,
    /// Ask the origin for the newest revision.
    pub revalidate: bool,
    /// Keep timed events in the report.
    pub trace: bool,
    /// One rank's part of the model; `None` for the whole.
    pub parallel: Option<Parallel>,
    /// A checkpoint that this node is saving may be loaded before it is committed, once it is durable here.
    pub allow_uncommitted: bool,
}

impl LoadRequest {
    /// A request with defaults for everything but the URI.
    pub fn new(uri: impl Into<String>) -> Self {
        LoadRequest { uri: uri.into(), ..LoadRequest::default() }
    }
}

/// The loader of a node, or of one process. Clone the `Arc`.
pub struct Loader {
    shared: Arc<Shared>,
}

impl Loader {
    /// Starts the fetch threads. Call it inside a tokio runtime, which origin reads will run on. `holder` keeps the
    /// models; it must be the one that makes the memory of `devices`.
    ///
    /// # Errors
    /// [`Code::FailedPrecondition`] outside of a runtime, [`Code::Exhausted`] when there are no threads to be had.
    pub fn open(
        options: LoaderOptions,
        holder: HolderHandle,
        cluster: Arc<dyn Cluster>,
        devices: impl Into<NodeDevices>,
        origins: Origins,
    ) -> Result<Arc<Loader>> {
        let shared = Arc::new(Shared::open(options, holder, cluster, devices.into(), origins)?);
        follow::follow(&shared.registry);
        Ok(Arc::new(Loader { shared }))
    }

    /// Does now what the first load onto each GPU would have to wait for, see [`NodeDevices::start`]. Gives what a user
    /// should know.
    ///
    /// # Errors
    /// As [`NodeDevices::start`].
    pub async fn start_devices(&self) -> Result<Vec<String>> {
        let shared = self.shared.clone();
        let start = move || {
            let mut warnings = shared.node.start()?;
            if shared.options.gpudirect_storage {
                warnings.extend(shared.node.storage_warnings());
            }
            Ok(warnings)
        };
        crate::load::blocking(start).await
    }

    /// Loads a model, joins the load of it that runs, or attaches to the one in memory. Dropping the future leaves the
    /// load; it goes on as long as another caller waits for it.
    ///
    /// # Errors
    /// The origin's when it fails; [`Code::Exhausted`] naming what holds the memory; [`Code::Corrupt`] naming the
    /// file; [`Code::Unsupported`] for a device that is not here.
    pub async fn load(&self, request: LoadRequest, progress: Option<ProgressSender>) -> Result<Arc<LoadedModel>> {
        let shared = &self.shared;
        let recorder = Arc::new(Recorder::new(request.trace, shared.metrics.clone()));
        let candidates = self.candidates(request.device).await?;
        let url = shared.origins.canonical_url(&request.uri)?;
        let selection = Selection::new(request.include)?;
        let keys = candidates.iter().map(|device| ModelKey {
            url: url.clone(),
            revision: String::new(),
            selection: selection.clone(),
            device: device.id(),
            parallel: request.parallel.clone(),
        });
        let mut keys: Vec<ModelKey> = keys.collect();
        let resolved = self.resolve(&recorder, &keys, request.revalidate, request.allow_uncommitted).await?;
        let (manifest, node) = match resolved {
            Resolution::Described(manifest, node) => (manifest, node),
            Resolution::Kept(lease) => return Ok(self.reattach(lease, &recorder)),
        };
        check_schemes(&manifest, &url)?;
        keys.iter_mut().for_each(|key| key.revision.clone_from(&manifest.revision));
        // Where it is already, or on its way; else on the best device.
        let place = keys.iter().position(|key| shared.flights.knows(key)).unwrap_or(0);
        let (device, key) = (candidates[place].clone(), keys.swap_remove(place));
        let flights_max = shared.options.loads_max.saturating_mul(1 + WAITING_PER_LOAD).max(1);
        match shared.flights.board(&key, flights_max)? {
            Boarding::Loaded(lease) => Ok(self.reattach(lease, &recorder)),
            Boarding::Seat(seat, pilot) => {
                if let Some(pilot) = pilot {
                    let what = Flightplan { device, key, manifest, recorder, node };
                    tokio::spawn(fly(shared.clone(), pilot, what));
                }
                let lease = wait(seat, progress).await?;
                lease.touch();
                Ok(Arc::new(LoadedModel::loaded(lease)))
            }
        }
    }

    /// The devices that a request can mean, the best first; at least one.
    async fn candidates(&self, request: DeviceRequest) -> Result<Vec<Arc<dyn Device>>> {
        let devices = self.shared.node.devices.clone();
        match request {
            // How full GPUs are is asked of them.
            DeviceRequest::Auto => crate::load::blocking(move || devices.candidates(&request)).await,
            _ => devices.candidates(&request),
        }
    }

    /// The manifest, or, when nobody can be asked, the model in memory on one of the devices of `keys`, which differ in
    /// nothing else. A checkpoint that this node saved needs nobody else, unless its origin is to be asked.
    async fn resolve(
        &self,
        recorder: &Recorder,
        keys: &[ModelKey],
        revalidate: bool,
        allow_uncommitted: bool,
    ) -> Result<Resolution> {
        let Some(wanted) = keys.first() else { return Err(Error::new(Code::Internal, "a load onto no device")) };
        let timer = recorder.begin(Step::Resolve);
        let here = match self.shared.checkpoints.opened() {
            Some(engine) => node::find(engine, &wanted.url, &wanted.selection, allow_uncommitted).await?,
            None => None,
        };
        let node = match here {
            Some(here) if !revalidate || here.is_uncommitted => {
                recorder.end(timer, 0, 0, "this node");
                return Ok(Resolution::Described(here.manifest, Some(here.copies)));
            }
            here => here.map(|here| here.copies),
        };
        let described = self.shared.cluster().describe(&wanted.url, &wanted.selection, revalidate).await;
        recorder.end(timer, 0, 0, "");
        match described {
            Ok(described) => {
                for (kind, detail) in described.fallbacks {
                    recorder.add_fallback(kind, detail);
                }
                Ok(Resolution::Described(described.manifest, node))
            }
            Err(error) if matches!(error.code(), Code::Unavailable | Code::Timeout) => {
                let kept = keys.iter().find_map(|key| self.shared.registry.newest(key)).ok_or(error.clone())?;
                let (revision, url) = (&kept.model().key.revision, redact_url(&wanted.url));
                let detail = format!("{url} at {revision} is served from memory without asking: {error}");
                recorder.add_fallback(FallbackKind::NotRevalidated, detail);
                Ok(Resolution::Kept(kept))
            }
            Err(error) => Err(error),
        }
    }

    fn reattach(&self, lease: Lease, recorder: &Recorder) -> Arc<LoadedModel> {
        self.shared.metrics.reattached.inc();
        lease.touch();
        Arc::new(LoadedModel::reattached(lease, recorder.finish().fallbacks))
    }

    /// A model in memory, leased as long as the answer lives.
    ///
    /// # Errors
    /// [`Code::NotFound`].
    pub fn get(&self, id: &ModelId) -> Result<Arc<LoadedModel>> {
        let lease = self.shared.registry.get(id).ok_or_else(|| {
            Error::new(
                Code::NotFound,
                format!("no model {id:?} is in memory; it was unloaded or evicted: load it again"),
            )
        })?;
        Ok(Arc::new(LoadedModel::reattached(lease, Vec::new())))
    }

    /// The models in memory.
    pub fn list(&self) -> Vec<ModelState> {
        self.shared.registry.list().into_iter().map(ModelState::new).collect()
    }

    /// Forgets one model. Memory that leases hold stays theirs until they end.
    ///
    /// # Errors
    /// [`Code::NotFound`].
    pub async fn unload(&self, id: &ModelId) -> Result<Unloaded> {
        let wanted = id.clone();
        let mut unloaded = self.forget(move |model| model.id == wanted).await?;
        if unloaded.models == 0 {
            let (registry, wanted) = (self.shared.registry.clone(), id.clone());
            unloaded = crate::load::blocking(move || registry.forget_unknown(&wanted)).await?.into();
        }
        match unloaded.models {
            0 => Err(Error::new(Code::NotFound, format!("no model {id:?} is in memory"))),
            _ => Ok(unloaded),
        }
    }

    /// Forgets every model of a URI, at any revision, with any selection, on any device, and its chunks in page-locked
    /// memory.
    ///
    /// # Errors
    /// [`Code::InvalidArgument`] for what is no URI, [`Code::NotFound`] when nothing of it is in memory.
    pub async fn unload_uri(&self, uri: &str) -> Result<Unloaded> {
        let url = self.shared.origins.canonical_url(uri)?;
        let wanted = url.clone();
        let mut unloaded = self.forget(move |model| model.key.url == wanted).await?;
        let pinned_bytes = self.shared.forget_pinned(&url);
        if unloaded.models == 0 && pinned_bytes == 0 {
            return Err(Error::new(Code::NotFound, format!("no model of {} is in memory", redact_url(&url))));
        }
        unloaded.bytes_freed += pinned_bytes;
        Ok(unloaded)
    }

    async fn forget(&self, which: impl Fn(&crate::model::Model) -> bool + Send + 'static) -> Result<Unloaded> {
        let registry = self.shared.registry.clone();
        // Freeing gigabytes takes a while.
        let forgotten = crate::load::blocking(move || registry.forget(which)).await?;
        Ok(forgotten.into())
    }

    /// Loads that run or wait.
    pub fn loads_in_flight(&self) -> usize {
        self.shared.flights.count()
    }

    /// Memory, devices, models, members. Asks GPUs how full they are: call it off the async runtime.
    pub fn status(&self) -> LoaderStatus {
        let shared = &self.shared;
        LoaderStatus {
            devices: shared.node.status(),
            pinned: shared.pinned.as_ref().map(|pinned| pinned.usage()),
            models: self.list(),
            members: shared.cluster().members(),
            holder: shared.registry.holder_state(),
            checkpoints: shared.checkpoints.state(),
            loads_in_flight: self.loads_in_flight(),
            uptime: shared.started.elapsed(),
        }
    }

    /// What is saved on this node.
    pub fn checkpoints(&self) -> &Arc<Checkpoints> {
        &self.shared.checkpoints
    }

    /// Its options.
    pub fn options(&self) -> &LoaderOptions {
        &self.shared.options
    }

    /// Its metrics, with the gauges brought up to date. Asks GPUs how full they are: call it off the async runtime.
    pub fn metrics(&self) -> &Metrics {
        let shared = &self.shared;
        shared.registry.observe();
        shared.metrics.attach_connections.set(shared.registry.holder().uses().attached as i64);
        shared.observe_devices();
        shared.copy_counters();
        // Sets its gauge.
        shared.checkpoints.busy();
        &shared.metrics
    }

    /// Takes over what the holder kept of an earlier loader, then goes on following the holder: when it ends, its models
    /// are lost, loads fail until it is back, and then what it keeps is taken over again. Nothing to do for a holder
    /// inside this process. Call it once, before requests are answered.
    ///
    /// # Errors
    /// [`Code::Unavailable`] when the holder ended meanwhile.
    pub async fn take_over(&self) -> Result<()> {
        follow::take_over(&self.shared).await
    }

    /// Serves the attach socket of the holder inside this process.
    ///
    /// # Errors
    /// [`Code::FailedPrecondition`] when the holder is another process, which does that itself.
    pub(crate) fn serve_attach(&self, listener: UnixListener, path: Arc<Path>, token: CancellationToken) -> Result<()> {
        let Some(holder) = self.shared.registry.holder().in_process() else {
            return Err(Error::new(Code::FailedPrecondition, "the holder is a process and serves the attach socket"));
        };
        let clients_max = self.options().attach_connections_max;
        tokio::spawn(attach::serve(listener, holder.clone(), path, clients_max, token));
        Ok(())
    }

    /// The number of attach connections that are open.
    pub fn attached(&self) -> watch::Receiver<usize> {
        self.shared.registry.holder().attached()
    }

    /// Waits until no load runs, at most `timeout`, then cancels those that still do.
    pub async fn drain(&self, timeout: Duration) {
        let flights = &self.shared.flights;
        if tokio::time::timeout(timeout, flights.idle()).await.is_err() {
            tracing::warn!(loads = flights.count(), "loads are cancelled because the time to drain is over");
            flights.cancel_all();
        }
    }

    /// A model and its use now.
    pub(crate) fn state_of(&self, model: &LoadedModel) -> ModelState {
        ModelState::new(self.shared.registry.use_of_lease(model.lease()))
    }
}

enum Resolution {
    /// With the objects that lie on this node.
    Described(Manifest, Option<Arc<NodeCopies>>),
    Kept(Lease),
}

/// The files of a model lie in the store that was asked for: a manifest from the network must not turn a bucket into
/// files of this machine.
fn check_schemes(manifest: &Manifest, url: &str) -> Result<()> {
    let scheme = |url: &str| url.split_once("://").map(|(scheme, _)| scheme.to_owned());
    let mut artifacts = manifest.files.iter().flat_map(|file| std::iter::once(&file.artifact).chain(file.artifacts()));
    let stray = artifacts.find(|artifact| scheme(artifact.url()) != scheme(url));
    stray.map_or(Ok(()), |artifact| {
        let (model, stray) = (redact_url(url), redact_url(artifact.url()));
        Err(Error::new(Code::Corrupt, format!("the manifest of {model} names {stray}, which is in another store")))
    })
}

/// Waits for the end of a flight, passing its progress on.
async fn wait(mut seat: Box<Seat>, progress: Option<ProgressSender>) -> Result<Lease> {
    let Some(progress) = progress else { return seat.outcome().await };
    let mut seen = seat.progress.clone();
    progress.send_replace(*seen.borrow_and_update());
    let outcome = seat.outcome();
    tokio::pin!(outcome);
    loop {
        tokio::select! {
            outcome = &mut outcome => return outcome,
            Ok(()) = seen.changed() => { progress.send_replace(*seen.borrow_and_update()); }
        }
    }
}
