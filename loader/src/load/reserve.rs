//! The part of a load before bytes move: the plan, and memory for it.

use std::sync::Arc;

use longshore_device::{Device, DeviceInfo, DeviceKind, RegionBuilder};
use longshore_types::{Code, Error, Manifest, Result, format_bytes};
use tokio_util::sync::CancellationToken;

use super::attempt::Attempt;
use crate::model::ModelId;
use crate::parallel::Parallel;
use crate::plan::{Layout, Plan, SideFiles};
use crate::registry::Registry;
use crate::report::{Recorder, Step};

/// What has to be reserved where.
pub(super) struct Reservation {
    /// The device of each region that a layout may have, with the name that the region gets.
    devices: Vec<(Arc<dyn Device>, String)>,
    side_files: SideFiles,
    parallel: Option<Parallel>,
    token: CancellationToken,
    recorder: Arc<Recorder>,
}

/// A plan, and a region for each place in it.
pub(super) struct Reserved {
    pub plan: Plan,
    pub builders: Vec<Box<dyn RegionBuilder>>,
    /// Of the device of the tensors.
    pub device_uuid: String,
}

impl Reservation {
    /// Side files lie beside the tensors in host memory; for other devices they get a region of their own, in the host.
    ///
    /// # Errors
    /// [`Code::Unsupported`] when there is no host memory to put them.
    pub(super) fn new(attempt: &Attempt<'_>, id: &ModelId) -> Result<Reservation> {
        let label = format!("longshore-{id}");
        let mut devices = vec![(attempt.device.clone(), label.clone())];
        let mut side_files = SideFiles::WithTensors;
        if attempt.key.device.kind() != DeviceKind::Host {
            side_files = SideFiles::Apart;
            let is_host = |device: &&Arc<dyn Device>| device.id().kind() == DeviceKind::Host;
            let host = attempt.shared.node.devices.all().iter().find(is_host);
            let host = host.ok_or_else(|| Error::new(Code::Unsupported, "there is no host memory for plain files"))?;
            devices.push((host.clone(), format!("{label}-files")));
        }
        Ok(Reservation {
            devices,
            side_files,
            parallel: attempt.key.parallel.clone(),
            token: attempt.pilot.token.clone(),
            recorder: attempt.recorder.clone(),
        })
    }

    /// Blocks while memory comes free.
    ///
    /// # Errors
    /// Those of the layout; [`Code::Exhausted`] saying what holds the memory.
    pub(super) fn plan_and_reserve(&self, registry: &Registry, manifest: &Manifest) -> Result<Reserved> {
        let timer = self.recorder.begin(Step::Plan);
        let alignment_bytes = self.devices[0].0.alignment_bytes();
        let layout = Layout::new(manifest, self.parallel.as_ref(), alignment_bytes, self.side_files)?;
        let regions: Vec<_> = layout.sizes_bytes.clone().into_iter().zip(&self.devices).collect();
        // Before the reads are listed: a size that came over the network must not decide how long that list gets.
        for (size_bytes, (device, _)) in &regions {
            check_fits(*size_bytes, &device.info())?;
        }
        let plan = Plan::from_layout(manifest, layout)?;
        let reserve = |(size_bytes, (device, label)): (u64, &(Arc<dyn Device>, String))| {
            // A model of nothing but empty tensors still has a region that clients can map.
            let size_bytes = size_bytes.max(device.alignment_bytes());
            registry.reserve(&**device, label, size_bytes, &self.token)
        };
        let builders = regions.into_iter().map(reserve).collect::<Result<Vec<_>>>()?;
        self.recorder.end(timer, 0, 0, "");
        let device_uuid = self.devices[0].0.uuid().to_owned();
        Ok(Reserved { plan, builders, device_uuid })
    }
}

fn check_fits(size_bytes: u64, info: &DeviceInfo) -> Result<()> {
    if size_bytes <= info.capacity_bytes {
        return Ok(());
    }
    let budget = match info.id.kind() {
        DeviceKind::Host => "the memory budget",
        DeviceKind::Cuda => "--gpu-memory",
    };
    let (size, capacity) = (format_bytes(size_bytes), format_bytes(info.capacity_bytes));
    Err(Error::new(
        Code::Exhausted,
        format!(
            "the model has {size} and {} has {capacity} in all; load a part of it with --include, or raise {budget}",
            info.id
        ),
    ))
}
