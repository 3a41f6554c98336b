//! A load, once through: what it leaves behind when it fails is nothing.

use std::sync::Arc;

use longshore_device::{Device, DeviceRegion, Intake, RegionBuilder};
use longshore_types::{Code, Error, Manifest, Result};

use super::reserve::{Reservation, Reserved};
use super::{blocking, set_step};
use crate::fetch::{Job, NodeCopies};
use crate::flight::Pilot;
use crate::loader::Shared;
use crate::model::{ModelId, ModelKey};
use crate::plan::Layout;
use crate::report::{Recorder, Step};

/// What is to be loaded, and for whom.
pub(super) struct Attempt<'a> {
    pub shared: &'a Arc<Shared>,
    pub pilot: &'a Pilot,
    pub device: &'a Arc<dyn Device>,
    pub key: &'a ModelKey,
    pub manifest: Arc<Manifest>,
    pub recorder: &'a Arc<Recorder>,
    pub node: Option<Arc<NodeCopies>>,
}

/// The bytes are where they belong.
pub(super) struct Done {
    pub id: ModelId,
    pub device_uuid: String,
    pub layout: Layout,
    pub regions: Vec<Arc<dyn DeviceRegion>>,
}

/// Why they are not.
pub(super) struct Failure {
    pub error: Error,
    /// The device failed, in a way that is over when it is used again.
    pub may_repeat: bool,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Failure { error, may_repeat: false }
    }
}

impl Failure {
    fn of_device(error: Error) -> Self {
        Failure { may_repeat: error.code() == Code::Unavailable, error }
    }
}

impl Attempt<'_> {
    pub(super) async fn run(&self) -> Result<Done, Failure> {
        let Attempt { shared, pilot, recorder, .. } = *self;
        // Memory of an attempt that failed may be on its way out: another name, so that they are never confused.
        let id = ModelId::random();
        set_step(pilot, recorder, Step::Plan);
        let reservation = Reservation::new(self, &id)?;
        let (registry, manifest) = (shared.registry.clone(), self.manifest.clone());
        // Reserving asks nothing but devices.
        let reserved = blocking(move || reservation.plan_and_reserve(&registry, &manifest)).await;
        let Reserved { plan, builders, device_uuid } = reserved.map_err(Failure::of_device)?;

        set_step(pilot, recorder, Step::Fetch);
        pilot.progress.send_modify(|progress| {
            progress.bytes_done = 0;
            progress.bytes_total = plan.fetch_bytes();
        });
        let (manifest, node) = (self.manifest.clone(), self.node.clone());
        let reader = shared.reader(recorder.clone(), pilot.token.child_token(), manifest, node);
        let job = Job::new(plan, builders, reader, shared.pinned.clone(), pilot.progress.clone());
        let fetched = shared.pool.run(&job, &pilot.token).await;

        set_step(pilot, recorder, Step::Publish);
        let (finishing, metrics) = (recorder.clone(), shared.metrics.clone());
        let label = self.key.device.to_string();
        let finished = tokio::task::spawn_blocking(move || {
            let finished = finish(&job, fetched, &finishing);
            job.count_local_reads();
            if let Some((bytes, took)) = job.uploaded() {
                metrics.add_upload(&label, bytes, took);
            }
            (finished, job)
        });
        let broke_off = |error| Error::new(Code::Internal, format!("the last step of the load broke off: {error}"));
        let (finished, job) = finished.await.map_err(broke_off)?;
        // To unmap its files takes a while, for which nobody waits.
        drop(tokio::task::spawn_blocking(move || drop(job)));
        let (regions, layout) = finished?;
        Ok(Done { id, device_uuid, layout, regions })
    }
}

/// The end of a job, well or not. Whatever failed: the memory goes with the builders, here.
fn finish(
    job: &Job,
    fetched: Result<()>,
    recorder: &Recorder,
) -> Result<(Vec<Arc<dyn DeviceRegion>>, Layout), Failure> {
    let builders = job.take_builders()?;
    if let Err(error) = fetched {
        drop(builders);
        return Err(if job.device_failed() { Failure::of_device(error) } else { error.into() });
    }
    job.check_local_files()?;
    let regions = builders.into_iter().map(|builder| finish_region(builder, recorder));
    let regions = regions.collect::<Result<Vec<_>>>().map_err(Failure::of_device)?;
    Ok((regions, job.take_layout()?))
}

/// Waits for the copies that still run; then the region is made read-only and can be shared.
fn finish_region(builder: Box<dyn RegionBuilder>, recorder: &Recorder) -> Result<Arc<dyn DeviceRegion>> {
    let step = match builder.intake() {
        Intake::Land(_) => Step::Publish,
        Intake::Upload(_) => Step::Upload,
    };
    let timer = recorder.begin(step);
    let region = builder.finish()?;
    recorder.end(timer, 0, 0, "");
    Ok(region)
}
