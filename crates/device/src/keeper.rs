//! Who makes and keeps the memory of devices that cannot be trusted to keep it themselves.

use longshore_memory::OwnedSegment;
use longshore_types::Result;

/// Who makes and keeps device memory: a process that outlives whoever fills it, or [`crate::cuda::OwnMemory`].
pub trait MemoryKeeper: Send + Sync {
    /// Makes at least `size_bytes` of memory on a device and keeps it under `label`, which nothing else may have.
    ///
    /// # Errors
    /// `Exhausted` when the device has no room, `Unsupported` when there is no such device, `Internal` when there is
    /// memory of that label already; otherwise what the driver says.
    fn create(&self, label: &str, device_uuid: &str, size_bytes: u64) -> Result<Vec<OwnedSegment>>;

    /// Frees memory that is not published to clients; for what is, and for a label that nothing has, nothing happens.
    fn release(&self, label: &str);

    /// Bytes that are kept on a device, published or not.
    fn used_bytes(&self, device_uuid: &str) -> u64;
}
