//! Devices: where a model's regions live, behind one trait.
//!
//! A load asks a [`Device`] for a region ([`Device::reserve`]), gets memory to land fetched bytes in
//! ([`RegionBuilder::landing`]), hands it back full ([`RegionBuilder::submit`]) and at the end gets something that other
//! processes can attach to ([`DeviceRegion`]). The host backend writes straight into a memfd region, so that `submit`
//! has nothing left to do; a backend with memory of its own lands in staging buffers and uploads after `submit`.
//! Callers cannot tell: they never learn an address, and never wait except in calls that say so.

#[cfg(test)]
mod conformance;
mod device;
mod devices;
mod host;
mod id;

pub use device::{Device, DeviceInfo, DeviceRegion, Part, RegionBuilder, Segment};
pub use devices::Devices;
pub use host::HostDevice;
pub use id::{DeviceId, DeviceKind, DeviceRequest};
