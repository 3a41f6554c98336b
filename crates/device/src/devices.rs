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
                (info.id.kind() == DeviceKind::Cuda, info.free_bytes)
            }),
            DeviceRequest::Id(id) => self.all.iter().find(|device| device.info().id == *id),
            DeviceRequest::Uuid(uuid) => self.all.iter().find(|device| is_same(&device.info().uuid, uuid)),
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

/// A part of a GPU has the same digits under either prefix, depending on who prints them.
fn is_same(one: &str, other: &str) -> bool {
    let digits = |uuid| str::strip_prefix(uuid, "GPU-").or_else(|| uuid.strip_prefix("MIG-")).unwrap_or(uuid);
    digits(one).eq_ignore_ascii_case(digits(other))
}

impl std::fmt::Debug for Devices {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.all.iter().map(|device| device.info())).finish()
    }
}

#[cfg(test)]
mod tests {
    use longshore_memory::{Arena, OwnedSegment};

    use super::*;
    use crate::device::{DeviceInfo, DeviceRegion, RegionBuilder};
    use crate::host::HostDevice;
    use crate::id::DeviceId;

    /// A card as far as choosing goes.
    struct Card(u32, u64);

    impl Device for Card {
        fn info(&self) -> DeviceInfo {
            let uuid = format!("GPU-{}", self.0);
            DeviceInfo {
                id: DeviceId::cuda(self.0),
                uuid,
                name: "card".into(),
                capacity_bytes: 100,
                used_bytes: self.1,
                free_bytes: 100 - self.1,
            }
        }

        fn alignment_bytes(&self) -> u64 {
            256
        }

        fn reserve(&self, _label: &str, _size_bytes: u64) -> Result<Box<dyn RegionBuilder>> {
            Err(Error::new(Code::Exhausted, "a card for choosing only"))
        }

        fn adopt(&self, _label: &str, _segments: Vec<OwnedSegment>, _size_bytes: u64) -> Result<Arc<dyn DeviceRegion>> {
            Err(Error::new(Code::Exhausted, "a card for choosing only"))
        }
    }

    fn chosen(devices: &Devices, request: &str) -> Result<String> {
        devices.choose(&request.parse()?).map(|device| device.info().id.to_string())
    }

    #[test]
    fn the_host_alone() {
        let devices = Devices::new(vec![Arc::new(HostDevice::new(Arena::new(1 << 40)))]);
        assert_eq!(chosen(&devices, "auto").unwrap(), "host");
        assert_eq!(chosen(&devices, "host").unwrap(), "host");
        let error = chosen(&devices, "cuda:1").unwrap_err();
        assert_eq!(error.code(), Code::Unsupported);
        assert_eq!(error.message(), "there is no device cuda:1 here; there is host");
    }

    #[test]
    fn the_emptiest_card_comes_before_the_host() {
        let host = Arc::new(HostDevice::new(Arena::new(1 << 40)));
        let devices = Devices::new(vec![host, Arc::new(Card(0, 90)), Arc::new(Card(1, 10))]);
        assert_eq!(chosen(&devices, "auto").unwrap(), "cuda:1");
        assert_eq!(chosen(&devices, "cuda:0").unwrap(), "cuda:0");
        assert_eq!(chosen(&devices, "host").unwrap(), "host");
        assert_eq!(devices.all().len(), 3);
    }

    #[test]
    fn nothing_at_all() {
        let error = chosen(&Devices::new(Vec::new()), "auto").unwrap_err();
        assert_eq!(
            (error.code(), error.message()),
            (Code::Unsupported, "there is no device auto here; there is none at all")
        );
    }
}
