//! NVIDIA GPUs.
//!
//! Three processes have a part in a region, so that none of them can lose what another one has:
//!
//! * A [`MemoryKeeper`](crate::MemoryKeeper) makes the memory ([`DeviceMemory`]). It never has a CUDA context, so an
//!   error of the card cannot take anything from it.
//! * A **copier** ([`copier_main`]), one for each card, is the only process with a context. It maps a region while it is
//!   filled, copies page-locked memory there, and unmaps it. An error that poisons its context ends it, nothing else.
//! * The daemon has a [`CudaDevice`], which makes no call to the driver: it talks to the copier over a socket, and
//!   starts a new one when it died.
//!
//! Clients get the memory as descriptors. They are asked to map it for reading only; the driver has no way to force
//! that on them, unlike the kernel with sealed host memory.
//!
//! Nothing here panics when there is no driver, or a strange one: see [`probe`]. Start reading in `device.rs` and
//! `copier.rs`; `protocol.rs` is what they say to each other.

mod builder;
mod client;
mod context;
mod copier;
mod device;
mod driver;
mod error;
mod keep;
mod measure;
mod memory;
mod probe;
mod protocol;
mod ranges;
mod read_back;
mod region;
mod steps;
mod storage;
#[cfg(test)]
mod tests;

pub use client::{CopierStart, CopierState};
pub use copier::copier_main;
pub use device::{CudaDevice, CudaOptions};
pub use error::{CudaError, ErrorClass, Unavailable};
pub use keep::{DeviceMemory, OwnMemory};
pub use measure::{RawCopy, device_copy_rate, raw_copy_rate};
pub use probe::{GpuInfo, probe};
