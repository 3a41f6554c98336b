//! The real backend, with copiers as threads, over the fake driver.

use std::sync::Arc;

use longshore_device::cuda::CopierStart;
use longshore_loader::{FallbackKind, Gpus, HolderHandle, LoaderOptions, NodeDevices, SourceTier, devices};
use longshore_memory::Arena;
use longshore_testkit::modelgen::ModelSpec;
use longshore_testkit::{FakeCuda, FakeCudaOptions};
use longshore_types::{ByteSize, Code, Result};
use tokio::sync::Mutex;

use super::fixture::{self, MIB, assert_on_card, files_of, on, put};

/// The driver is one for the whole process: tests that count on it take turns.
static TURN: Mutex<()> = Mutex::const_new(());

fn driver() -> &'static FakeCuda {
    FakeCuda::preload_with(FakeCudaOptions { devices: 2, memory_mib: 256, ..FakeCudaOptions::default() })
}

fn options() -> LoaderOptions {
    LoaderOptions {
        memory: Some(ByteSize(512 * MIB)),
        fetches_max: Some(4),
        pinned_memory: Some(ByteSize(8 * 16 * MIB)),
        ..LoaderOptions::from_environment().unwrap()
    }
}

async fn open(options: &LoaderOptions) -> Result<(NodeDevices, HolderHandle, Arena)> {
    let (options, holder) = (options.clone(), HolderHandle::local());
    let opening = move || {
        let arena = Arena::new(options.memory_bytes());
        let node = devices::open(&options, &arena, Arc::new(holder.clone()), CopierStart::Thread)?;
        node.start()?;
        Ok((node, holder, arena))
    };
    tokio::task::spawn_blocking(opening).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn models_go_to_the_card_that_was_asked_for_and_leave_nothing_behind() {
    let _turn = TURN.lock().await;
    let cuda = driver();
    let (node, holder, arena) = open(&options()).await.unwrap();
    assert_eq!(node.devices.all().len(), 3);
    let (origin, worker, loader) = fixture::open(options(), node, holder);
    let model = ModelSpec::sized(1, 90 * MIB, 30).shards(2).build();
    let request = put(&origin, "m", &model);
    let names = [("cuda:1".to_owned(), 1), (cuda.uuid(0), 0)];
    for (name, ordinal) in names {
        let loaded = loader.load(on(&request, &name), None).await.unwrap();
        assert_on_card(&loaded, &model);
        assert_eq!(loaded.device_uuid, cuda.uuid(ordinal));
        assert!(cuda.used_bytes(ordinal) >= 90 * MIB);
    }
    let fetched = model.chunks() + files_of(&model);
    assert_eq!(worker.requests(), fetched, "the second card found all tensors in page-locked memory");
    assert_eq!(cuda.pageable_copies(), 0);
    let status = loader.status();
    assert!(status.devices.iter().all(|device| device.restarts == 0), "{:?}", status.devices);
    // It has leases on the models that it lists.
    drop(status);
    let small = ModelSpec::every_dtype(2).build();
    let loaded = loader.load(put(&origin, "small", &small), None).await.unwrap();
    assert_on_card(&loaded, &small);
    assert_ne!(loaded.key.device.to_string(), "host", "auto means a card");
    drop(loaded);
    for state in loader.list() {
        let id = state.id.clone();
        drop(state);
        loader.unload(&id).await.unwrap();
    }
    assert_eq!((cuda.used_bytes(0), cuda.used_bytes(1)), (0, 0));
    drop(loader);
    crate::fixture::eventually("the budget is whole again", || arena.leased_bytes() == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_model_that_was_evicted_comes_back_without_a_byte_from_elsewhere() {
    let _turn = TURN.lock().await;
    driver();
    let gpu_memory = longshore_loader::Share::Bytes(ByteSize(100 * MIB));
    let options = LoaderOptions { gpu_memory, gpus: "0".parse().unwrap(), ..options() };
    let (node, holder, _arena) = open(&options).await.unwrap();
    let (origin, worker, loader) = fixture::open(options, node, holder);
    let models: Vec<_> = (1..3).map(|seed| ModelSpec::sized(seed, 62 * MIB, 9).build()).collect();
    let requests: Vec<_> =
        (0..).zip(&models).map(|(i, model): (u32, _)| put(&origin, &format!("m{i}"), model)).collect();
    for round in 0..3 {
        for (request, model) in requests.iter().zip(&models) {
            let loaded = loader.load(request.clone(), None).await.unwrap();
            assert_on_card(&loaded, model);
            let report = loaded.report();
            let pinned = report.bytes_from(SourceTier::Pinned);
            // Plain files are in host memory, not in slots.
            let files: u64 = loaded.layout.files.iter().map(|(_, place)| place.length_bytes).sum();
            assert_eq!(pinned, if round > 0 { report.bytes - files } else { 0 }, "{report:?}");
            assert_eq!(loader.list().len(), 1, "there is room for one");
        }
    }
    let requests = models.iter().map(|model| model.chunks() + 2 * files_of(model)).sum::<u64>();
    assert_eq!(worker.requests(), requests, "tensors were fetched in the first round only");
    let pinned = loader.status().pinned.unwrap();
    assert_eq!((pinned.staging_bytes, pinned.cached_bytes), (0, 8 * 16 * MIB));
    let page = String::from_utf8(loader.metrics().registry().render().unwrap()).unwrap();
    for line in [
        "longshore_loader_pinned_cached_bytes 134217728",
        "longshore_loader_pinned_staging_bytes 0",
        "longshore_loader_upload_seconds_count{device=\"cuda:0\"} 6",
        "longshore_loader_device_capacity_bytes{device=\"cuda:0\"} 104857600",
    ] {
        assert!(page.contains(line), "{line} is not in\n{page}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_model_larger_than_the_page_locked_memory_comes_and_goes_within_the_budget_of_the_card() {
    let _turn = TURN.lock().await;
    driver();
    let (node, holder, _arena) = open(&options()).await.unwrap();
    let (origin, _worker, loader) = fixture::open(options(), node, holder);
    let models: Vec<_> = (1..4).map(|seed| ModelSpec::sized(seed, 150 * MIB, 7).build()).collect();
    for (number, model) in models.iter().enumerate() {
        let request = on(&put(&origin, &format!("m{number}"), model), "cuda:0");
        assert_on_card(&loader.load(request, None).await.unwrap(), model);
    }
    let leased = loader.load(on(&put(&origin, "leased", &models[0]), "cuda:0"), None).await.unwrap();
    let error = loader.load(on(&put(&origin, "more", &models[1]), "cuda:0"), None).await.unwrap_err();
    assert_eq!(error.code(), Code::Exhausted);
    assert!(error.message().contains("bucket/leased") && error.message().contains("cuda:0"), "{error}");
    assert_on_card(&leased, &models[0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copier_that_dies_in_the_middle_is_started_again_and_the_load_repeated() {
    let _turn = TURN.lock().await;
    let cuda = driver();
    let (node, holder, _arena) = open(&options()).await.unwrap();
    let (origin, worker, loader) = fixture::open(options(), node, holder);
    let model = ModelSpec::sized(1, 100 * MIB, 30).build();
    let request = on(&put(&origin, "m", &model), "cuda:0");
    cuda.disarm();
    cuda.reset_calls();
    cuda.arm("cuMemcpyHtoDAsync_v2@3=999");
    let loaded = loader.load(request, None).await.unwrap();
    cuda.disarm();
    assert_on_card(&loaded, &model);
    let report = loaded.report();
    assert_eq!(report.fallback_count(FallbackKind::DeviceRestarted), 1, "{report:?}");
    assert!(report.bytes_from(SourceTier::Pinned) > 0, "{report:?}");
    assert!(worker.requests() <= model.chunks() + files_of(&model) + 4);
    let status = loader.status();
    assert_eq!(status.devices[1].restarts, 1);
    assert_eq!(cuda.used_bytes(0), status.devices[1].info.used_bytes, "nothing is left of the first attempt");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn options_that_cannot_be_met_are_refused_before_anything_is_locked() {
    let _turn = TURN.lock().await;
    let cuda = driver();
    let defaults = options();
    let gpus = |text: &str| LoaderOptions { gpus: text.parse().unwrap(), ..options() };
    let (node, ..) = open(&LoaderOptions { gpus: Gpus::None, ..options() }).await.unwrap();
    assert!(node.pinned.is_none() && node.devices.all().len() == 1);
    let (node, ..) = open(&gpus(&cuda.uuid(1))).await.unwrap();
    assert_eq!(node.devices.all()[1].info().id.to_string(), "cuda:1");
    for (options, code, says) in [
        (gpus("0,7"), Code::Unsupported, "GPU 7"),
        (
            LoaderOptions { pinned_memory: Some(ByteSize(127 * MIB)), ..defaults.clone() },
            Code::InvalidArgument,
            "133.2 MB",
        ),
        (LoaderOptions { memory: Some(ByteSize(100 * MIB)), ..defaults }, Code::Exhausted, "--memory"),
    ] {
        let error = open(&options).await.err().unwrap();
        assert_eq!(error.code(), code, "{error}");
        assert!(error.message().contains(says), "{error}");
    }
}
