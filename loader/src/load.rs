//! One load from a manifest to a published model: plan, reserve, fetch with verify and upload, publish.
//!
//! What can block runs on blocking threads or on the fetch threads; this module only orders it. Whatever goes wrong, the
//! memory is free again before anybody hears of it.

use std::sync::Arc;
use std::time::Duration;

use longshore_device::{Device, RegionBuilder};
use longshore_types::{Code, Error, Manifest, Result, format_bytes, redact_url};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::fetch::Job;
use crate::flight::Pilot;
use crate::loader::Shared;
use crate::model::{Model, ModelId, ModelKey};
use crate::parallel::Parallel;
use crate::plan::{Layout, Plan, SideFiles};
use crate::report::{Recorder, Step};

/// How far a load is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LoadProgress {
    /// The step that runs.
    pub step: Step,
    /// Bytes that have arrived, verified.
    pub bytes_done: u64,
    /// Bytes that have to arrive; 0 until the plan is made.
    pub bytes_total: u64,
    /// Since the start of the load.
    pub elapsed: Duration,
}

impl Default for LoadProgress {
    fn default() -> Self {
        LoadProgress { step: Step::Resolve, bytes_done: 0, bytes_total: 0, elapsed: Duration::ZERO }
    }
}

/// Where a caller of [`Loader::load`](crate::Loader::load) sees the progress: always the newest, never a queue.
pub type ProgressSender = watch::Sender<LoadProgress>;

/// What a load needs to know.
pub(crate) struct Flightplan {
    pub device: Arc<dyn Device>,
    pub key: ModelKey,
    pub manifest: Manifest,
    pub recorder: Arc<Recorder>,
}

/// Carries the load out and lands its flight, well or not.
pub(crate) async fn fly(shared: Arc<Shared>, pilot: Pilot, what: Flightplan) {
    let span = tracing::info_span!(
        "load",
        url = redact_url(&what.key.url),
        revision = what.key.revision,
        device = %what.key.device,
        bytes = what.manifest.size_bytes(),
    );
    let metrics = shared.metrics.clone();
    metrics.loads_in_flight.inc();
    let recorder = what.recorder.clone();
    let result = load(&shared, &pilot, what).instrument(span.clone()).await;
    metrics.loads_in_flight.dec();
    let outcome = match &result {
        Ok(_) => "ok",
        Err(error) if error.code() == Code::Cancelled => "cancelled",
        Err(_) => "failed",
    };
    metrics.loads.with_label_values(&[outcome]).inc();
    span.in_scope(|| match &result {
        Ok(model) => {
            metrics.load_seconds.observe(recorder.elapsed().as_secs_f64());
            let bytes = format_bytes(model.report.bytes);
            tracing::info!(model = %model.id, seconds = model.report.seconds, bytes, "loaded");
        }
        Err(error) if error.code() == Code::Cancelled => tracing::info!(%error, "load cancelled"),
        Err(error) => tracing::warn!(code = %error.code(), %error, "load failed"),
    });
    pilot.land(result);
}

async fn load(shared: &Arc<Shared>, pilot: &Pilot, what: Flightplan) -> Result<Model> {
    let permit = shared.permits.acquire();
    let permit = pilot.token.run_until_cancelled(permit).await.ok_or_else(given_up)?;
    let _permit = permit.map_err(|_| Error::new(Code::Cancelled, "the loader is shutting down"))?;
    let Flightplan { device, key, manifest, recorder } = what;
    let id = ModelId::random();

    set_step(pilot, &recorder, Step::Plan);
    let reservation = Reservation {
        device: device.clone(),
        label: format!("longshore-{id}"),
        parallel: key.parallel.clone(),
        token: pilot.token.clone(),
        recorder: recorder.clone(),
    };
    let (registry, manifest) = (shared.registry.clone(), Arc::new(manifest));
    let planned = manifest.clone();
    let (plan, builders) = blocking(move || reservation.plan_and_reserve(&registry, &planned)).await?;

    set_step(pilot, &recorder, Step::Fetch);
    pilot.progress.send_modify(|progress| progress.bytes_total = plan.fetch_bytes());
    let reader = shared.reader(recorder.clone(), pilot.token.child_token());
    let job = Job::new(plan, builders, reader, pilot.progress.clone());
    let fetched = shared.pool.run(&job, &pilot.token).await;

    set_step(pilot, &recorder, Step::Publish);
    let publishing = recorder.clone();
    let regions = blocking(move || {
        let builders = job.take_builders()?;
        // Whatever failed: the memory goes with the builders, here.
        fetched.and_then(|()| job.check_local_files())?;
        let timer = publishing.begin(Step::Publish);
        let regions = builders.into_iter().map(|builder| builder.finish()).collect::<Result<Vec<_>>>()?;
        publishing.end(timer, 0, 0, "");
        Ok((regions, job.take_layout()?))
    });
    let (regions, layout) = regions.await?;
    let device_uuid = device.info().uuid;
    let manifest = Arc::try_unwrap(manifest).unwrap_or_else(|shared| (*shared).clone());
    Ok(Model { id, key, device_uuid, manifest, layout, regions, report: recorder.finish() })
}

/// The part of a load before bytes move.
struct Reservation {
    device: Arc<dyn Device>,
    label: String,
    parallel: Option<Parallel>,
    token: CancellationToken,
    recorder: Arc<Recorder>,
}

impl Reservation {
    fn plan_and_reserve(
        &self,
        registry: &crate::registry::Registry,
        manifest: &Manifest,
    ) -> Result<(Plan, Vec<Box<dyn RegionBuilder>>)> {
        let timer = self.recorder.begin(Step::Plan);
        let parallel = self.parallel.as_ref();
        let layout = Layout::new(manifest, parallel, self.device.alignment_bytes(), SideFiles::WithTensors)?;
        let info = self.device.info();
        // Before the reads are listed: a size that came over the network must not decide how long that list gets.
        let size_bytes = layout.sizes_bytes[0];
        if size_bytes > info.capacity_bytes {
            return Err(Error::new(
                Code::Exhausted,
                format!(
                    "the model has {} and {} has {} in all; load a part of it with --include, or raise the memory budget",
                    format_bytes(size_bytes),
                    info.id,
                    format_bytes(info.capacity_bytes)
                ),
            ));
        }
        let plan = Plan::from_layout(manifest, layout)?;
        // A model of nothing but empty tensors still has a region that clients can map.
        let size_bytes = size_bytes.max(self.device.alignment_bytes());
        let builder = registry.reserve(&*self.device, &self.label, size_bytes, &self.token)?;
        self.recorder.end(timer, 0, 0, "");
        Ok((plan, vec![builder]))
    }
}

fn set_step(pilot: &Pilot, recorder: &Recorder, step: Step) {
    pilot.progress.send_modify(|progress| {
        progress.step = step;
        progress.elapsed = recorder.elapsed();
    });
}

fn given_up() -> Error {
    Error::new(Code::Cancelled, "every caller left before the load began")
}

/// Runs blocking work; a panic in it is an error here.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(Error::new(Code::Internal, format!("a step of the load broke off: {error}"))),
    }
}
