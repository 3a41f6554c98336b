//! The devices of a node, and the choice among them.

use std::cmp::Reverse;
use std::sync::Arc;

use longshore_types::{Code, Error, Result};

use crate::device::Device;
use crate::id::{DeviceKind, DeviceRequest};

/// The devices of this node. A clone is the same set.
#[derive(Clone)]
pub struct Devices {
    all: Vec<Arc<dyn Device>>,
    without_gpus: Option<String>,
}

impl Devices {
    /// These devices.
    pub fn new(all: Vec<Arc<dyn Device>>) -> Devices {
        Devices { all, without_gpus: None }
    }

    /// The same, with the reason why there is no GPU among them, for who asks for one.
    #[must_use]
    pub fn without_gpus(self, reason: impl Into<String>) -> Devices {
        Devices { without_gpus: Some(reason.into()), ..self }
    }

    /// Every device.
    pub fn all(&self) -> &[Arc<dyn Device>] {
        &self.all
    }

    /// The devices that a request can mean, the best first: `auto` means every GPU, the one with the most free memory
    /// first, or the host when there is no GPU; a name means one device. May ask the devices how full they are.
    ///
    /// # Errors
    /// [`Code::Unsupported`] when there is no such device here; the message names those there are.
    pub fn candidates(&self, request: &DeviceRequest) -> Result<Vec<Arc<dyn Device>>> {
        let is_meant = |device: &&Arc<dyn Device>| match request {
            DeviceRequest::Auto => device.id().kind() == self.best_kind(),
            DeviceRequest::Id(id) => device.id() == *id,
            DeviceRequest::Uuid(uuid) => is_same(device.uuid(), uuid),
        };
        let mut found: Vec<Arc<dyn Device>> = self.all.iter().filter(is_meant).cloned().collect();
        if found.len() > 1 {
            found.sort_by_cached_key(|device| (Reverse(device.info().free_bytes), device.id()));
        }
        if found.is_empty() {
            let message = format!("there is no device {request} here; {}", self.describe());
            return Err(Error::new(Code::Unsupported, message));
        }
        Ok(found)
    }

    fn best_kind(&self) -> DeviceKind {
        let has_gpu = self.all.iter().any(|device| device.id().kind() == DeviceKind::Cuda);
        if has_gpu { DeviceKind::Cuda } else { DeviceKind::Host }
    }

    fn describe(&self) -> String {
        let names: Vec<String> = self.all.iter().map(|device| device.id().to_string()).collect();
        let there = if names.is_empty() { "none at all".into() } else { names.join(", ") };
        match &self.without_gpus {
            Some(reason) => format!("there is {there}: {reason}"),
            None => format!("there is {there}"),
        }
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
    struct Card(u32, u64, String);

    impl Card {
        fn of(ordinal: u32, used_bytes: u64) -> Arc<Card> {
            Arc::new(Card(ordinal, used_bytes, format!("GPU-{ordinal}")))
        }
    }

    impl Device for Card {
        fn id(&self) -> DeviceId {
            DeviceId::cuda(self.0)
        }

        fn uuid(&self) -> &str {
            &self.2
        }

        fn info(&self) -> DeviceInfo {
            DeviceInfo {
                id: self.id(),
                uuid: self.2.clone(),
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
        devices.candidates(&request.parse()?).map(|found| found[0].id().to_string())
    }

    #[test]
    fn the_host_alone() {
        let devices = Devices::new(vec![Arc::new(HostDevice::new(Arena::new(1 << 40)))]);
        assert_eq!(chosen(&devices, "auto").unwrap(), "host");
        assert_eq!(chosen(&devices, "host").unwrap(), "host");
        let error = chosen(&devices, "cuda:1").unwrap_err();
        assert_eq!(error.code(), Code::Unsupported);
        assert_eq!(error.message(), "there is no device cuda:1 here; there is host");
        let error = chosen(&devices.without_gpus("no driver"), "cuda:1").unwrap_err();
        assert_eq!(error.message(), "there is no device cuda:1 here; there is host: no driver");
    }

    #[test]
    fn the_emptiest_card_comes_before_the_host() {
        let host = Arc::new(HostDevice::new(Arena::new(1 << 40)));
        let devices = Devices::new(vec![host, Card::of(0, 90), Card::of(1, 10), Card::of(2, 10)]);
        assert_eq!(chosen(&devices, "auto").unwrap(), "cuda:1");
        assert_eq!(chosen(&devices, "cuda:0").unwrap(), "cuda:0");
        assert_eq!(chosen(&devices, "host").unwrap(), "host");
        assert_eq!(chosen(&devices, "GPU-2").unwrap(), "cuda:2");
        assert_eq!(devices.candidates(&DeviceRequest::Auto).unwrap().len(), 3);
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
