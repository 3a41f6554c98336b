//! One load from a manifest to a published model: plan, reserve, fetch with verify and upload, publish.
//!
//! What can block runs on blocking threads or on the fetch threads; this module only orders it. Whatever goes wrong, the
//! memory is free again before anybody hears of it. A load whose device broke down is repeated once, as a whole.

mod attempt;
pub(crate) mod node;
mod reserve;

use std::sync::Arc;
use std::time::Duration;

use longshore_device::Device;
use longshore_memory::Prefaulter;
use longshore_types::{Code, Error, Manifest, Result, format_bytes, redact_url};
use tokio::sync::watch;
use tracing::Instrument;

use crate::fetch::NodeCopies;
use crate::flight::Pilot;
use crate::loader::Shared;
use crate::model::{Model, ModelKey};
use crate::report::{FallbackKind, Recorder, Step};
use attempt::{Attempt, Done};

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
    /// Objects that lie on this node's disk.
    pub node: Option<Arc<NodeCopies>>,
}

/// Carries the load out and lands its flight, well or not.
pub(crate) async fn fly(shared: Arc<Shared>, pilot: Pilot, what: Flightplan) {
    let span = tracing::info_span!(
        "load",
        url = redact_url(&what.key.url),
        revision = what.key.revision,
        device = %what.key.device,
        part = what.key.parallel.as_ref().map(tracing::field::display),
        bytes = what.manifest.size_bytes(),
    );
    let metrics = shared.metrics.clone();
    let _quiet = shared.node.prefaulter.as_ref().map(Prefaulter::quiet);
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
    let Flightplan { device, key, manifest, recorder, node } = what;
    let manifest = Arc::new(manifest);
    let attempt = Attempt { shared, pilot, device: &device, key: &key, manifest, recorder: &recorder, node };
    let done = match attempt.run().await {
        Err(failure) if failure.may_repeat && !pilot.token.is_cancelled() => {
            // What was fetched is still in page-locked memory, as long as that is large enough.
            recorder.add_fallback(FallbackKind::DeviceRestarted, format!("{}: {}", key.device, failure.error));
            attempt.run().await
        }
        ended => ended,
    };
    let Done { id, device_uuid, layout, regions } = done.map_err(|failure| failure.error)?;
    let mut manifest = Arc::try_unwrap(attempt.manifest).unwrap_or_else(|shared| (*shared).clone());
    // What was compared while the bytes landed is of no more use: 8 MB for each TB.
    manifest.files.iter_mut().for_each(|file| file.checksums = None);
    Ok(Model { id, key, device_uuid, manifest, layout, regions, report: recorder.finish() })
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
