//! The devices of a node, and the choice among them.

use std::sync::Arc;

use longshore_types::{Code, Error, Result};

use crate::device::Device;
use crate::id::{DeviceKind, DeviceRequest};

/// The devices of this node. A clone is the same set.
#[derive(Clone)]
pub struct Devices {
    all: Vec<Arc<dyn Device>>,
}

impl Devices {
    /// These devices.
    pub fn new(all: Vec<Arc<dyn Device>>) -> Devices {
        Devices { all }
    }

    /// Every device.
    pub fn all(&self) -> &[Arc<dyn Device>] {
        &self.all
    }

    /// The device that was asked for. `auto` takes the GPU with the most free memory, or else the host.
    ///
    /// # Errors
    /// [`Code::Unsupported`] when there is no such device here; the message names those there are.
    pub fn choose(&self, request: &DeviceRequest) -> Result<Arc<dyn Device>> {
        let found = match request {
            DeviceRequest::Auto => self.all.iter().max_by_key(|device| {
                let info = device.info();
                (info.id.kind() == DeviceKind::Cuda, info.capacity_bytes.saturating_sub(info.used_bytes))
            }),
            DeviceRequest::Id(id) => self.all.iter().find(|device| device.info().id == *id),
        };
        found.cloned().ok_or_else(|| {
            let message = format!("there is no device {request} here; {}", self.describe());
            Error::new(Code::Unsupported, message)
        })
    }

    fn describe(&self) -> String {
        let names: Vec<String> = self.all.iter().map(|device| device.info().id.to_string()).collect();
        if names.is_empty() { "there is none at all".into() } else { format!("there is {}", names.join(", ")) }
    }
}

impl std::fmt::Debug for Devices {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.all.iter().map(|device| device.info())).finish()
    }
}
