//! The memory that a holder keeps, and an account of it by device.

use std::collections::BTreeMap;
use std::sync::Arc;

use longshore_device::cuda::DeviceMemory;
use longshore_memory::OwnedSegment;
use longshore_types::{Code, Error, Result};
use parking_lot::Mutex;

/// What the account calls the memory of the host.
pub(crate) const HOST: &str = "host";

/// Memory as descriptors; freed when this is dropped, unless a client still has them.
pub(crate) trait Memory: Send + Sync {
    fn segments(&self) -> &[OwnedSegment];
}

impl Memory for DeviceMemory {
    fn segments(&self) -> &[OwnedSegment] {
        DeviceMemory::segments(self)
    }
}

impl Memory for Vec<OwnedSegment> {
    fn segments(&self) -> &[OwnedSegment] {
        self
    }
}

/// Makes memory on a device, by its UUID.
pub(crate) type Maker = Box<dyn Fn(&str, u64) -> Result<Box<dyn Memory>> + Send + Sync>;

/// Memory of GPUs, without a context.
pub(crate) fn gpu_maker() -> Maker {
    Box::new(|device_uuid, size_bytes| Ok(Box::new(DeviceMemory::create(device_uuid, size_bytes)?)))
}

/// Bytes kept on each device. What is being made counts from before, what is freed until after.
#[derive(Default)]
pub(crate) struct Account(Mutex<BTreeMap<String, u64>>);

impl Account {
    pub(super) fn used_bytes(&self, device_uuid: &str) -> u64 {
        self.0.lock().get(device_uuid).copied().unwrap_or(0)
    }

    pub(super) fn all(&self) -> BTreeMap<String, u64> {
        self.0.lock().clone()
    }

    /// Counts bytes until the guard is dropped.
    pub(super) fn charge(self: &Arc<Self>, device_uuid: &str, bytes: u64) -> Charge {
        *self.0.lock().entry(device_uuid.to_owned()).or_default() += bytes;
        Charge { account: self.clone(), device_uuid: device_uuid.to_owned(), bytes }
    }
}

pub(super) struct Charge {
    account: Arc<Account>,
    device_uuid: String,
    bytes: u64,
}

impl Charge {
    /// The real size may differ from the one that was asked for.
    fn adjust(&mut self, bytes: u64) {
        let mut all = self.account.0.lock();
        let used = all.entry(self.device_uuid.clone()).or_default();
        *used = used.saturating_sub(self.bytes).saturating_add(bytes);
        self.bytes = bytes;
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        let mut all = self.account.0.lock();
        if let Some(used) = all.get_mut(&self.device_uuid) {
            *used = used.saturating_sub(self.bytes);
            if *used == 0 {
                all.remove(&self.device_uuid);
            }
        }
    }
}

/// Memory on one device that is counted. Fields are dropped in order: first the memory, then its charge.
pub(crate) struct Held {
    memory: Box<dyn Memory>,
    charge: Charge,
}

impl Held {
    /// `charge` was taken for it before it was made.
    pub(super) fn new(memory: Box<dyn Memory>, mut charge: Charge) -> Held {
        let bytes = memory.segments().iter().fold(0, |sum: u64, segment| sum.saturating_add(segment.len_bytes));
        charge.adjust(bytes);
        Held { memory, charge }
    }

    pub(crate) fn device_uuid(&self) -> &str {
        &self.charge.device_uuid
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.charge.bytes
    }

    pub(crate) fn segments(&self) -> &[OwnedSegment] {
        self.memory.segments()
    }

    /// Descriptors of the same memory for somebody else.
    ///
    /// # Errors
    /// [`Code::Exhausted`] when the process may have no more descriptors.
    pub(crate) fn duplicate(&self) -> Result<Vec<OwnedSegment>> {
        self.segments().iter().map(duplicate).collect()
    }
}

fn duplicate(segment: &OwnedSegment) -> Result<OwnedSegment> {
    let fd = segment.fd.try_clone().map_err(|error| {
        let message = format!("cannot duplicate a descriptor of model memory: {error}; raise ulimit -n");
        Error::new(Code::Exhausted, message).with_source(error)
    })?;
    Ok(OwnedSegment { fd, len_bytes: segment.len_bytes })
}
