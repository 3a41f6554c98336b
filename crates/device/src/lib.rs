//! Devices: where a model's regions live, behind one trait.
//!
//! A load asks a [`Device`] for a region ([`Device::reserve`]), brings bytes in by its [`Intake`], and at the end gets
//! something that other processes can attach to ([`DeviceRegion`]). The host backend lets bytes land where they stay, in
//! a region ([`Land`]); a backend with memory of its own copies them from page-locked chunks ([`Upload`]), as [`cuda`]
//! does. Callers never learn an address, and never wait except in calls that say so.
//!
//! Memory of such a backend is made and kept by a [`MemoryKeeper`], which may be another process: it outlives whoever
//! filled it, and [`Device::adopt`] takes it over.
//!
//! `unsafe` is for the calls to the CUDA driver and for what they read and write; it stays in `cuda/`.

#[cfg(test)]
mod conformance;
pub mod cuda;
mod device;
mod devices;
mod host;
mod id;
mod keeper;

pub use device::{
    Device, DeviceInfo, DeviceRegion, FromStorage, Intake, Land, Part, RegionBuilder, Segment, StorageFile, Upload,
};
pub use devices::Devices;
pub use host::HostDevice;
pub use id::{DeviceId, DeviceKind, DeviceRequest};
pub use keeper::MemoryKeeper;
