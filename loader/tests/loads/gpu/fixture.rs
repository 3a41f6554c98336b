//! A loader with cards.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};

use longshore_device::{Device, DeviceRegion, Devices, HostDevice};
use longshore_loader::{HolderHandle, LoadRequest, LoadedModel, Loader, LoaderOptions, NodeDevices};
use longshore_memory::{Arena, PinnedArena};
use longshore_origin::Origins;
use longshore_testkit::FakeOrigin;
use longshore_testkit::modelgen::Model;
use longshore_types::Result;
use longshore_wire::Endpoint;

use super::card::Card;
use crate::fixture::origin_options;
use crate::workers::{TestCluster, TestWorker};

pub const MIB: u64 = 1 << 20;

pub struct Setup {
    /// Memory of each card.
    pub cards: Vec<u64>,
    pub memory_bytes: u64,
    pub slots: u64,
    pub fetches: usize,
}

impl Default for Setup {
    fn default() -> Self {
        Setup { cards: vec![256 * MIB], memory_bytes: 512 * MIB, slots: 12, fetches: 4 }
    }
}

pub struct Fixture {
    pub origin: Arc<FakeOrigin>,
    pub worker: Arc<TestWorker>,
    pub cards: Vec<Arc<Card>>,
    pub arena: Arena,
    pub loader: Arc<Loader>,
}

impl Fixture {
    /// Must run inside a tokio runtime.
    pub fn new(setup: Setup) -> Fixture {
        let arena = Arena::new(setup.memory_bytes);
        let pinned_bytes = setup.slots * PinnedArena::SLOT_BYTES;
        let pinned = PinnedArena::create(pinned_bytes, arena.try_reserve(pinned_bytes).unwrap()).unwrap();
        let cards: Vec<Arc<Card>> = (0..).zip(setup.cards).map(|(ordinal, bytes)| Card::new(ordinal, bytes)).collect();
        let mut devices: Vec<Arc<dyn Device>> = vec![Arc::new(HostDevice::new(arena.clone()))];
        devices.extend(cards.iter().map(|card| card.clone() as Arc<dyn Device>));
        let node = NodeDevices { pinned: Some(pinned.into()), ..NodeDevices::from(Devices::new(devices)) };
        let options = LoaderOptions { fetches_max: Some(setup.fetches), ..LoaderOptions::from_environment().unwrap() };
        let (origin, worker, loader) = open(options, node, HolderHandle::local());
        Fixture { origin, worker, cards, arena, loader }
    }

    pub fn put(&self, name: &str, model: &Model) -> LoadRequest {
        put(&self.origin, name, model)
    }

    pub async fn load(&self, request: &LoadRequest) -> Result<Arc<LoadedModel>> {
        self.loader.load(request.clone(), None).await
    }
}

/// A loader over these devices, and one worker that has everything its origin has.
pub fn open(
    options: LoaderOptions,
    node: NodeDevices,
    holder: HolderHandle,
) -> (Arc<FakeOrigin>, Arc<TestWorker>, Arc<Loader>) {
    let origin = Arc::new(FakeOrigin::start());
    let worker = TestWorker::new(origin.clone());
    let origins = Origins::new(origin_options(&origin)).unwrap();
    let cluster = Arc::new(TestCluster {
        origins: origins.clone(),
        endpoints: vec![Endpoint::InProcess(worker.clone())],
        reports: Default::default(),
        manifests: AtomicU64::new(0),
        is_down: AtomicBool::new(false),
        nearby: Default::default(),
    });
    let loader = Loader::open(options, holder, cluster, node, origins).unwrap();
    (origin, worker, loader)
}

/// Puts a model behind the origin and asks for it on any GPU.
pub fn put(origin: &FakeOrigin, name: &str, model: &Model) -> LoadRequest {
    let path = format!("bucket/{name}");
    model.put_into(origin, &path);
    LoadRequest::new(origin.model_url(&path))
}

pub fn on(request: &LoadRequest, device: &str) -> LoadRequest {
    LoadRequest { device: device.parse().unwrap(), ..request.clone() }
}

/// Files that are no tensor files: each is one chunk here.
pub fn files_of(model: &Model) -> u64 {
    model.files.iter().filter(|(name, _)| !name.ends_with(".safetensors")).count() as u64
}

pub fn bytes_of(region: &dyn DeviceRegion) -> Vec<u8> {
    let mut bytes = vec![0; region.size_bytes() as usize];
    region.read(0, &mut bytes).unwrap();
    bytes
}

/// Every tensor on the card, and every file in host memory, against what was generated.
pub fn assert_on_card(loaded: &LoadedModel, expected: &Model) {
    let regions: Vec<Vec<u8>> = loaded.regions.iter().map(|region| bytes_of(&**region)).collect();
    let bytes = |place: longshore_loader::plan::Place| {
        let region = &regions[place.region as usize];
        &region[place.offset_bytes as usize..(place.offset_bytes + place.length_bytes) as usize]
    };
    assert_eq!(loaded.tensors().len(), expected.tensors.len());
    for placed in loaded.tensors() {
        let wanted = expected.tensor(&placed.tensor.name).unwrap();
        assert_eq!(placed.place.region, 0);
        assert!(wanted.content.equals(bytes(placed.place)), "{} differs", placed.tensor.name);
    }
    for &(file, place) in &loaded.layout.files {
        let name = &loaded.manifest.files[file].name;
        assert_eq!(place.region, 1);
        assert!(expected.file(name).unwrap().equals(bytes(place)), "{name} differs");
    }
}
