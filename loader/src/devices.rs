//! The devices of this node: host memory, and the GPUs with the page-locked memory that copies to them come from.
//!
//! [`open`] is quick: it looks for GPUs and sets budgets. What takes long, allocating page-locked memory and having a
//! copier for each GPU lock it, is done by [`NodeDevices::start`] for all GPUs, or else by the first load for one.

mod choice;

use std::collections::BTreeMap;
use std::sync::Arc;

use longshore_device::cuda::{CopierStart, CopierState, CudaDevice, CudaOptions};
use longshore_device::{Device, DeviceId, DeviceInfo, Devices, HostDevice, MemoryKeeper};
use longshore_memory::{Arena, MountHelper, PinnedArena, PinnedSource, Prefaulter, SharedMemory, choose_shared_memory};
use longshore_types::{ByteSize, Code, Error, Result, format_bytes};

use crate::options::{Gpus, LoaderOptions};

/// Slots beside those that fetch threads fill: enough for copies to follow each other without a gap on two streams.
const COPY_SLOTS: u64 = 4;
/// Without the option, page-locked memory is the memory budget divided by this.
const PINNED_DIVISOR: u64 = 4;
/// Most of it for a loader that does not live long.
const BRIEF_PINNED_BYTES: u64 = 1 << 30;

/// What a loader works on.
pub struct NodeDevices {
    /// Host memory and GPUs.
    pub devices: Devices,
    /// Those that are GPUs, for what is asked of GPUs alone.
    pub gpus: BTreeMap<DeviceId, Arc<CudaDevice>>,
    /// Where bytes wait for their copy to a GPU; `None` without one.
    pub pinned: Option<PinnedSource>,
    /// What pays for host memory; `None` for devices that were put together otherwise.
    pub arena: Option<Arena>,
    /// What keeps host memory ready for the next load, where the options ask for it.
    pub prefaulter: Option<Prefaulter>,
    /// Whether the options name the GPUs one by one: then each of them must work.
    pub is_listed: bool,
    /// What a user should know.
    pub warnings: Vec<String>,
}

/// A device at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceStatus {
    /// What it is and how full it is.
    pub info: DeviceInfo,
    /// What its copier is doing; always ready for host memory, which needs none.
    pub state: CopierState,
    /// Times that the copier had to be started again.
    pub restarts: u64,
}

impl From<Devices> for NodeDevices {
    /// Devices that bytes land on without a copy.
    fn from(devices: Devices) -> Self {
        NodeDevices {
            devices,
            gpus: BTreeMap::new(),
            pinned: None,
            arena: None,
            prefaulter: None,
            is_listed: false,
            warnings: Vec::new(),
        }
    }
}

impl NodeDevices {
    /// Every device as it is now.
    pub fn status(&self) -> Vec<DeviceStatus> {
        let state_of = |mut info: DeviceInfo| {
            if let (DeviceId::HOST, Some(arena), Some(prefaulter)) = (info.id, &self.arena, &self.prefaulter) {
                let ready = || format!("{} prefaulted", format_bytes(arena.stats().ready_bytes));
                let told = prefaulter.failure().map_or_else(ready, str::to_owned);
                info.name = format!("{}, {told}", info.name);
            }
            let gpu = self.gpus.get(&info.id);
            let state = gpu.map_or(CopierState::Ready, |gpu| gpu.state());
            DeviceStatus { info, state, restarts: gpu.map_or(0, |gpu| gpu.restarts()) }
        };
        self.devices.all().iter().map(|device| state_of(device.info())).collect()
    }

    /// Allocates page-locked memory and starts the copiers of all GPUs, which lock it. Blocks: about a second for every few
    /// GiB. Gives what a user should know.
    ///
    /// # Errors
    /// [`Code::Exhausted`] when the system does not give the memory; what the copier of a GPU says that the options
    /// list, or when no GPU at all can be used. Others stay, and are tried again when a load asks for them.
    pub fn start(&self) -> Result<Vec<String>> {
        let Some(pinned) = &self.pinned else { return Ok(Vec::new()) };
        let stats = pinned.get()?.stats();
        let results = self.start_copiers();
        let mut warnings = Vec::new();
        for (id, result) in &results {
            match result {
                Ok(()) => {}
                // A node of GPUs none of which works is no node of host memory.
                Err(error) if self.is_listed || results.iter().all(|(_, result)| result.is_err()) => {
                    return Err(error.clone());
                }
                Err(error) => warnings.push(format!("{id} cannot be used at present: {error}")),
            }
        }
        for warning in &warnings {
            tracing::warn!(warning, "not every GPU is used");
        }
        tracing::info!(
            gpus = results.len() - warnings.len(),
            pinned = format_bytes(stats.capacity_bytes),
            pages = %stats.pages,
            nodes = stats.nodes,
            "GPUs are ready"
        );
        Ok(warnings)
    }

    /// What a user should know who wants GPUs to read local files by themselves. Blocks while they try.
    pub fn storage_warnings(&self) -> Vec<String> {
        let checked = self.gpus.iter().filter_map(|(id, gpu)| Some((id, gpu.check_storage().err()?)));
        let warnings: Vec<String> = checked
            .map(|(id, error)| format!("{id} reads no local files by itself, page-locked memory is used: {error}"))
            .collect();
        for warning in &warnings {
            tracing::warn!(warning, "no GPUDirect Storage");
        }
        warnings
    }

    /// All at once: each copier locks all of the memory.
    fn start_copiers(&self) -> Vec<(DeviceId, Result<()>)> {
        std::thread::scope(|scope| {
            let start = |gpu: &Arc<CudaDevice>| {
                let gpu = gpu.clone();
                scope.spawn(move || gpu.start())
            };
            let threads: Vec<_> = self.gpus.iter().map(|(id, gpu)| (*id, start(gpu))).collect();
            let panicked = |_| Err(Error::new(Code::Internal, "starting a GPU panicked"));
            threads.into_iter().map(|(id, thread)| (id, thread.join().unwrap_or_else(panicked))).collect()
        })
    }
}

/// Copiers as processes of this very executable, which must know the commands `copier` and `huge-memory`.
///
/// # Errors
/// [`Code::Internal`] when the system does not say which executable this is.
pub fn copier_process() -> Result<CopierStart> {
    let program = std::env::current_exe().map_err(|error| {
        Error::new(Code::Internal, format!("cannot find this program to start copiers with: {error}"))
            .with_source(error)
    })?;
    Ok(CopierStart::Process { program, args: vec!["copier".into()] })
}

/// Opens host memory, which `arena` pays for, and the GPUs of the options, whose memory `keeper` makes. Blocks for as long
/// as the driver takes to start. What shared memory this process has is decided here, if it was not before.
///
/// # Errors
/// [`Code::Unsupported`] for a GPU that is listed and not there; [`Code::InvalidArgument`] and [`Code::Exhausted`] for
/// page-locked memory that is too little, or that the budget has no room for, as for memory to prefault.
pub fn open(
    options: &LoaderOptions,
    arena: &Arena,
    keeper: Arc<dyn MemoryKeeper>,
    copier: CopierStart,
) -> Result<NodeDevices> {
    let memory = choose_shared_memory(mount_helper(&copier).as_ref());
    let host: Arc<dyn Device> = Arc::new(HostDevice::new(arena.clone()));
    let choice::Choice { gpus, reason, warnings } = choice::choose(&options.gpus)?;
    if let Some(reason) = reason {
        let devices = Devices::new(vec![host]).without_gpus(reason);
        let prefaulter = prefaulter(options, arena, memory)?;
        return Ok(NodeDevices { warnings, arena: Some(arena.clone()), prefaulter, ..NodeDevices::from(devices) });
    }
    let pinned = pinned_source(options, arena)?;
    let mut opened = BTreeMap::new();
    let mut devices = vec![host];
    for gpu in gpus {
        let ordinal = gpu.ordinal;
        let options = CudaOptions { budget_bytes: options.gpu_memory.of(gpu.total_bytes), gpu, start: copier.clone() };
        let device = CudaDevice::open(options, keeper.clone(), pinned.clone())?;
        devices.push(device.clone());
        opened.insert(DeviceId::cuda(ordinal), device);
    }
    let is_listed = matches!(options.gpus, Gpus::Listed(_));
    Ok(NodeDevices {
        devices: Devices::new(devices),
        gpus: opened,
        pinned: Some(pinned),
        arena: Some(arena.clone()),
        prefaulter: prefaulter(options, arena, memory)?,
        is_listed,
        warnings,
    })
}

fn prefaulter(options: &LoaderOptions, arena: &Arena, memory: &'static SharedMemory) -> Result<Option<Prefaulter>> {
    let bytes = options.prefault.map_or(0, |size| size.0);
    (bytes > 0).then(|| Prefaulter::start(arena, memory, bytes)).transpose()
}

/// The program that starts copiers makes private mounts, too, for a loader that may not.
fn mount_helper(copier: &CopierStart) -> Option<MountHelper> {
    match copier {
        CopierStart::Process { program, .. } => {
            Some(MountHelper { program: program.clone(), args: vec!["huge-memory".into()] })
        }
        CopierStart::Thread => None,
    }
}

/// Page-locked memory that is paid for now and allocated when it is needed.
fn pinned_source(options: &LoaderOptions, arena: &Arena) -> Result<PinnedSource> {
    let bytes = pinned_bytes(options, arena.capacity_bytes())?;
    let reservation = arena.try_reserve(bytes).ok_or_else(|| {
        let stats = arena.stats();
        let message = format!(
            "{} of page-locked memory do not fit in the memory budget: {} of {} are in use; raise the memory budget or lower \
             the pinned memory",
            format_bytes(bytes),
            format_bytes(stats.leased_bytes),
            format_bytes(stats.capacity_bytes)
        );
        Error::new(Code::Exhausted, message)
    })?;
    Ok(PinnedSource::new(bytes, move || PinnedArena::create(bytes, reservation)))
}

/// Page-locked memory for a loader that does not live long: staging, and little that is kept. Allocating and locking the
/// default would take longer than what such a loader is for.
pub fn brief_pinned_memory(options: &LoaderOptions) -> ByteSize {
    let least_bytes = least_pinned_bytes(options);
    ByteSize((options.memory_bytes() / PINNED_DIVISOR).min(BRIEF_PINNED_BYTES).max(least_bytes))
}

fn least_pinned_bytes(options: &LoaderOptions) -> u64 {
    (options.staged_chunks_min() as u64 + COPY_SLOTS) * PinnedArena::SLOT_BYTES
}

/// Bytes of page-locked memory, in whole slots: what was asked for, or the default, but never less than keeps all fetch
/// threads and the link busy.
fn pinned_bytes(options: &LoaderOptions, budget_bytes: u64) -> Result<u64> {
    let threads = options.staged_chunks_min() as u64;
    let least_bytes = least_pinned_bytes(options);
    let wanted_bytes = match options.pinned_memory {
        Some(size) if size.0 < least_bytes => {
            let message = format!(
                "the pinned memory of {} is too small: {threads} chunks that are fetched at once and {COPY_SLOTS} that are copied \
                 need {}; raise --pinned-memory or lower --fetches-max",
                format_bytes(size.0),
                format_bytes(least_bytes)
            );
            return Err(Error::new(Code::InvalidArgument, message));
        }
        Some(size) => size.0,
        None => (budget_bytes / PINNED_DIVISOR).max(least_bytes),
    };
    if wanted_bytes > budget_bytes {
        let message = format!(
            "the memory budget of {} has no room for {} of page-locked memory, which copies to GPUs come from; raise --memory, \
             lower --fetches-max, or do without GPUs by --gpus none",
            format_bytes(budget_bytes),
            format_bytes(wanted_bytes)
        );
        return Err(Error::new(Code::Exhausted, message));
    }
    Ok(wanted_bytes / PinnedArena::SLOT_BYTES * PinnedArena::SLOT_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(fetches: usize, pinned: Option<u64>) -> LoaderOptions {
        let defaults = LoaderOptions::from_environment().unwrap();
        LoaderOptions { fetches_max: Some(fetches), pinned_memory: pinned.map(ByteSize), ..defaults }
    }

    const SLOT: u64 = PinnedArena::SLOT_BYTES;

    #[test]
    fn page_locked_memory_is_a_quarter_of_the_budget_and_enough_to_work_with() {
        assert_eq!(pinned_bytes(&options(4, None), 400 * SLOT + 5).unwrap(), 100 * SLOT);
        assert_eq!(pinned_bytes(&options(4, None), 16 * SLOT).unwrap(), 8 * SLOT);
        assert_eq!(pinned_bytes(&options(4, Some(9 * SLOT + 1)), 16 * SLOT).unwrap(), 9 * SLOT);
        let brief = |memory: u64| LoaderOptions { memory: Some(ByteSize(memory)), ..options(4, None) };
        assert_eq!(brief_pinned_memory(&brief(1 << 40)).0, 1 << 30);
        assert_eq!(brief_pinned_memory(&brief(40 * SLOT)).0, 10 * SLOT);
        assert_eq!(brief_pinned_memory(&brief(20 * SLOT)).0, 8 * SLOT);
    }

    #[test]
    fn what_is_too_small_is_named() {
        let error = pinned_bytes(&options(4, Some(8 * SLOT - 1)), 100 * SLOT).unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument);
        assert!(error.message().contains("--pinned-memory") && error.message().contains("4 chunks"), "{error}");
        for options in [options(4, None), options(4, Some(8 * SLOT))] {
            let error = pinned_bytes(&options, 7 * SLOT).unwrap_err();
            assert_eq!(error.code(), Code::Exhausted);
            assert!(error.message().contains("--memory"), "{error}");
        }
    }
}
