//! A GPU as a device: a budget, memory that somebody else keeps, and a copier that fills it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use longshore_memory::{OwnedSegment, PinnedSource};
use longshore_types::{Code, Error, Result, format_bytes};
use parking_lot::Mutex;

use super::builder::CudaBuilder;
use super::client::link::{Link, Segments};
use super::client::supervisor::Supervisor;
use super::client::{CopierStart, CopierState};
use super::probe::GpuInfo;
use super::protocol::{Answer, Request, SEGMENTS_MAX};
use super::read_back::ReadBack;
use super::region::CudaRegion;
use super::steps::ALIGNMENT_BYTES;
use crate::device::{Device, DeviceInfo, DeviceRegion, RegionBuilder};
use crate::id::DeviceId;
use crate::keeper::MemoryKeeper;

/// How long [`Device::info`] waits for what the card says.
const INFO_TIME_MAX: Duration = Duration::from_millis(200);

/// Which GPU, and how.
#[derive(Debug, Clone)]
pub struct CudaOptions {
    /// The GPU, as [`super::probe`] found it.
    pub gpu: GpuInfo,
    /// Bytes of its memory that regions may take in all.
    pub budget_bytes: u64,
    /// How the copier is started.
    pub start: CopierStart,
}

/// A GPU whose memory somebody else keeps.
pub struct CudaDevice {
    shared: Arc<Shared>,
}

/// What regions need of their device; they may outlive it.
pub(super) struct Shared {
    pub(super) id: DeviceId,
    pub(super) gpu: GpuInfo,
    budget_bytes: u64,
    pub(super) keeper: Arc<dyn MemoryKeeper>,
    supervisor: Supervisor,
    pub(super) read_back: ReadBack,
    next_region: AtomicU64,
    /// Held between a look at what is free and taking it.
    reserving: Mutex<()>,
}

impl CudaDevice {
    /// A GPU without a copier yet: [`CudaDevice::start`], or the first use, starts it.
    ///
    /// # Errors
    /// `Exhausted` when there is no memory to read regions back to.
    pub fn open(
        options: CudaOptions,
        keeper: Arc<dyn MemoryKeeper>,
        pinned: impl Into<PinnedSource>,
    ) -> Result<Arc<CudaDevice>> {
        let CudaOptions { gpu, budget_bytes, start } = options;
        let id = DeviceId::cuda(gpu.ordinal);
        let supervisor = Supervisor::new(start, id.to_string(), gpu.uuid.clone(), pinned.into());
        let shared = Shared {
            id,
            gpu,
            budget_bytes,
            keeper,
            supervisor,
            read_back: ReadBack::create()?,
            next_region: AtomicU64::new(1),
            reserving: Mutex::new(()),
        };
        Ok(Arc::new(CudaDevice { shared: Arc::new(shared) }))
    }

    /// Starts the copier if there is none, which page-locks the memory: about a second for every few GiB.
    ///
    /// # Errors
    /// What the copier reports, or why it cannot be started: `Unsupported` when there is no such GPU or its driver is too
    /// old, `Exhausted` when there is no page-locked memory, `Unavailable` when the GPU failed in a way that another try
    /// may cure.
    pub fn start(&self) -> Result<()> {
        self.shared.link().map(drop)
    }

    /// Whether it can read files of this machine by itself. Asks the copier, and starts it if there is none.
    ///
    /// # Errors
    /// `Unsupported` with what is missing; otherwise as [`CudaDevice::start`].
    pub fn check_storage(&self) -> Result<()> {
        self.shared.link()?.call(Vec::new(), |id| Request::Storage { id }).map(drop)
    }

    /// What the copier is doing.
    pub fn state(&self) -> CopierState {
        self.shared.supervisor.state()
    }

    /// Copiers that were started after the first one.
    pub fn restarts(&self) -> u64 {
        self.shared.supervisor.starts().saturating_sub(1)
    }

    /// The process of the copier there is, if it is one.
    pub fn copier_pid(&self) -> Option<u32> {
        self.shared.supervisor.idle_link()?.pid()
    }
}

impl Shared {
    /// The copier; starts one if there is none.
    pub(super) fn link(&self) -> Result<Arc<Link>> {
        self.supervisor.link(&self.read_back)
    }

    /// The copier's number for the memory that it reads regions back to.
    pub(super) fn read_back_piece(&self) -> u32 {
        self.supervisor.read_back_piece()
    }

    /// Maps memory in the copier, as a region with the number that is returned.
    pub(super) fn map(&self, link: &Link, segments: &[OwnedSegment]) -> Result<u64> {
        use std::os::fd::AsFd;
        let region = self.next_region.fetch_add(1, Ordering::Relaxed);
        let segments: Segments<'_> = segments.iter().map(|segment| (segment.fd.as_fd(), segment.len_bytes)).collect();
        link.call(segments, |id| Request::Map { id, region })?;
        Ok(region)
    }

    /// Takes memory for a region from the keeper, within the budget.
    fn create(&self, label: &str, size_bytes: u64) -> Result<Vec<OwnedSegment>> {
        if size_bytes == 0 {
            return Ok(Vec::new());
        }
        let _reserving = self.reserving.lock();
        let used = self.keeper.used_bytes(&self.gpu.uuid);
        if used.checked_add(size_bytes).is_none_or(|after| after > self.budget_bytes) {
            let message = format!(
                "{label} needs {} on {}, {} of {} are in use; unload something or raise the GPU memory",
                format_bytes(size_bytes),
                self.id,
                format_bytes(used),
                format_bytes(self.budget_bytes),
            );
            return Err(Error::new(Code::Exhausted, message));
        }
        let segments = self.keeper.create(label, &self.gpu.uuid, size_bytes).map_err(|error| error.context(label))?;
        if let Err(error) = check(label, &segments, size_bytes) {
            drop(segments);
            self.keeper.release(label);
            return Err(error);
        }
        Ok(segments)
    }
}

/// Whether the segments can be a region of `size_bytes`.
fn check(label: &str, segments: &[OwnedSegment], size_bytes: u64) -> Result<()> {
    let total = segments.iter().try_fold(0u64, |sum, segment| sum.checked_add(segment.len_bytes));
    let is_whole = segments.iter().all(|segment| segment.len_bytes > 0);
    if segments.len() > SEGMENTS_MAX || !is_whole || total.is_none_or(|total| total < size_bytes) {
        let message = format!("{label}: {} segments of {total:?} bytes are no region of {size_bytes}", segments.len());
        return Err(Error::new(Code::Corrupt, message));
    }
    Ok(())
}

impl Device for CudaDevice {
    fn id(&self) -> DeviceId {
        self.shared.id
    }

    fn uuid(&self) -> &str {
        &self.shared.gpu.uuid
    }

    fn info(&self) -> DeviceInfo {
        let shared = &self.shared;
        let used_bytes = shared.keeper.used_bytes(&shared.gpu.uuid);
        let budget_left = shared.budget_bytes.saturating_sub(used_bytes);
        let link = shared.supervisor.idle_link();
        let card = match link.and_then(|link| link.ask(INFO_TIME_MAX, |id| Request::Info { id })) {
            Some(Answer::Memory { free_bytes, .. }) => free_bytes,
            // A card that no copier could be started for gives nothing, as far as is known.
            _ if shared.supervisor.start_failed() => 0,
            // A copier that is starting, gone or busy: the budget is what is known.
            _ => u64::MAX,
        };
        DeviceInfo {
            id: shared.id,
            uuid: shared.gpu.uuid.clone(),
            name: shared.gpu.name.clone(),
            capacity_bytes: shared.budget_bytes,
            used_bytes,
            free_bytes: budget_left.min(card),
        }
    }

    fn alignment_bytes(&self) -> u64 {
        ALIGNMENT_BYTES
    }

    fn reserve(&self, label: &str, size_bytes: u64) -> Result<Box<dyn RegionBuilder>> {
        // Before any memory is made: without a copier it is of no use.
        let link = self.shared.link()?;
        let segments = self.shared.create(label, size_bytes)?;
        // From here on dropping the builder frees them.
        let mut builder = CudaBuilder::new(&self.shared, label, size_bytes, segments, link);
        builder.map()?;
        Ok(Box::new(builder))
    }

    fn adopt(&self, label: &str, segments: Vec<OwnedSegment>, size_bytes: u64) -> Result<Arc<dyn DeviceRegion>> {
        check(label, &segments, size_bytes)?;
        Ok(Arc::new(CudaRegion::new(&self.shared, label, size_bytes, segments)))
    }
}
