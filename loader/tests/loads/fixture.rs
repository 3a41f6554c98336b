//! An origin, workers and a loader in one process.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::{Duration, Instant};

use longshore_device::{Devices, HostDevice};
use longshore_loader::devices::NodeDevices;
use longshore_loader::plan::PlacedTensor;
use longshore_loader::{HolderHandle, LoadRequest, LoadedModel, Loader, LoaderOptions};
use longshore_memory::{Arena, Prefaulter, shared_memory};
use longshore_origin::{OriginOptions, Origins};
use longshore_testkit::FakeOrigin;
use longshore_testkit::modelgen::Model;
use longshore_types::{ByteSize, Result};
use longshore_wire::Endpoint;

use crate::workers::{TestCluster, TestWorker};

pub struct Fixture {
    pub origin: Arc<FakeOrigin>,
    pub workers: Vec<Arc<TestWorker>>,
    pub cluster: Arc<TestCluster>,
    pub loader: Arc<Loader>,
    pub arena: Arena,
}

pub struct Setup {
    pub workers: usize,
    pub memory_bytes: u64,
    pub fetches: usize,
    pub stall_ms: u64,
    pub hedge_after_ms: u64,
    pub options: LoaderOptions,
}

impl Default for Setup {
    fn default() -> Self {
        Setup {
            workers: 3,
            memory_bytes: 512 << 20,
            fetches: 4,
            stall_ms: 10_000,
            hedge_after_ms: 10_000,
            options: LoaderOptions::from_environment().unwrap(),
        }
    }
}

pub fn origin_options(origin: &FakeOrigin) -> OriginOptions {
    OriginOptions {
        s3_endpoint: Some(origin.url()),
        s3_access_key_id: Some("any".to_owned()),
        s3_secret_access_key: Some("any".into()),
        retry_pause_ms: 1,
        attempts_max: 3,
        ..OriginOptions::default()
    }
}

impl Fixture {
    /// Must run inside a tokio runtime.
    pub fn new(setup: Setup) -> Fixture {
        let origin = Arc::new(FakeOrigin::start());
        let workers: Vec<_> = (0..setup.workers).map(|_| TestWorker::new(origin.clone())).collect();
        let endpoints = workers.iter().map(|worker| Endpoint::InProcess(worker.clone())).collect();
        Fixture::over(setup, origin, workers, endpoints)
    }

    pub fn over(
        setup: Setup,
        origin: Arc<FakeOrigin>,
        workers: Vec<Arc<TestWorker>>,
        endpoints: Vec<Endpoint>,
    ) -> Fixture {
        let origins = Origins::new(origin_options(&origin)).unwrap();
        let cluster = Arc::new(TestCluster {
            origins: origins.clone(),
            endpoints,
            reports: Default::default(),
            manifests: AtomicU64::new(0),
            is_down: AtomicBool::new(false),
            nearby: Default::default(),
        });
        let arena = Arena::new(setup.memory_bytes);
        let devices = Devices::new(vec![Arc::new(HostDevice::new(arena.clone()))]);
        let mut options = setup.options;
        options.hedge_after_ms = setup.hedge_after_ms;
        options.hedge_factor = 1;
        options.fetches_max = Some(setup.fetches);
        options.stall_timeout_ms = setup.stall_ms;
        let mut node = NodeDevices::from(devices);
        if let Some(ByteSize(bytes)) = options.prefault {
            node.arena = Some(arena.clone());
            node.prefaulter = Some(Prefaulter::start(&arena, shared_memory(), bytes).unwrap());
        }
        let loader = Loader::open(options, HolderHandle::local(), cluster.clone(), node, origins).unwrap();
        Fixture { origin, workers, cluster, loader, arena }
    }

    pub fn put(&self, name: &str, model: &Model) -> LoadRequest {
        let path = format!("bucket/{name}");
        model.put_into(&self.origin, &path);
        LoadRequest::new(self.origin.model_url(&path))
    }

    pub async fn load(&self, request: LoadRequest) -> Result<Arc<LoadedModel>> {
        self.loader.load(request, None).await
    }
}

/// Every tensor and every file of the region against what was generated.
pub fn assert_equal(loaded: &longshore_loader::Model, region: &[u8], expected: &Model) {
    assert_eq!(loaded.tensors().len(), expected.tensors.len());
    for PlacedTensor { tensor, shape, place } in loaded.tensors() {
        let wanted = expected.tensor(&tensor.name).unwrap_or_else(|| panic!("{} is not expected", tensor.name));
        assert_eq!((tensor.dtype_name.as_str(), shape), (wanted.dtype.as_str(), &*wanted.shape), "{}", tensor.name);
        let bytes = &region[place.offset_bytes as usize..(place.offset_bytes + place.length_bytes) as usize];
        assert!(wanted.content.equals(bytes), "{} differs", tensor.name);
        assert!(place.offset_bytes.is_multiple_of(256));
    }
    for &(file, place) in &loaded.layout.files {
        let name = &loaded.manifest.files[file].name;
        let bytes = &region[place.offset_bytes as usize..(place.offset_bytes + place.length_bytes) as usize];
        assert!(expected.file(name).unwrap().equals(bytes), "{name} differs");
    }
}

pub fn assert_loaded(loaded: &LoadedModel, expected: &Model) {
    assert_equal(loaded.model(), loaded.regions[0].host_bytes().unwrap(), expected);
}

/// Waits for something that another thread is about to do; fails the test when it does not.
pub async fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !is_so() {
        assert!(Instant::now() < deadline, "{what} did not happen");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
