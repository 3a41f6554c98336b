//! Sources that fail, stall, lie and die: the load ends well, with right bytes, and says what happened.

use std::sync::Arc;
use std::time::Duration;

use longshore_loader::{FallbackKind, SourceTier};
use longshore_testkit::modelgen::ModelSpec;
use longshore_testkit::origin::{Fault, FaultKind};
use longshore_testkit::proxy::ProxyFaults;
use longshore_testkit::{FakeOrigin, FaultProxy};
use longshore_types::Code;
use longshore_wire::{DataServer, Endpoint, ServerOptions};
use tokio_util::sync::CancellationToken;

use crate::fixture::{Fixture, Setup, assert_loaded, eventually};
use crate::workers::{Behaviour, TestWorker};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_corrupt_copy_is_rechecked_then_passed_over() {
    let fixture = Fixture::new(Setup::default());
    fixture.workers[0].set(Behaviour::CorruptUntilRecheck);
    let model = ModelSpec::sized(1, 90 << 20, 20).build();
    let loaded = fixture.load(fixture.put("healed", &model)).await.unwrap();
    assert_loaded(&loaded, &model);
    let report = loaded.report();
    assert!(report.checksum_mismatches >= 1 && report.retries == report.checksum_mismatches, "{report:?}");
    assert!(report.fallbacks.is_empty(), "the recheck gave a good copy: {report:?}");

    fixture.workers[0].set(Behaviour::Corrupt);
    let model = ModelSpec::sized(2, 90 << 20, 20).build();
    let loaded = fixture.load(fixture.put("passed-over", &model)).await.unwrap();
    assert_loaded(&loaded, &model);
    let report = loaded.report();
    let passed_over = report.fallback_count(FallbackKind::WorkerCorrupt);
    assert!(passed_over >= 1 && report.checksum_mismatches == 2 * passed_over, "{report:?}");
    assert_eq!(report.fallback_count(FallbackKind::OriginDirect), 0);
    assert!(fixture.cluster.reports.lock().contains(&("worker 0".to_owned(), false)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failing_and_stalling_workers_are_passed_over() {
    let fixture = Fixture::new(Setup { stall_ms: 100, ..Setup::default() });
    fixture.workers[0].set(Behaviour::Fails(Code::Internal));
    fixture.workers[1].set(Behaviour::Stalls);
    let model = ModelSpec::sized(1, 60 << 20, 20).build();
    let loaded = fixture.load(fixture.put("m", &model)).await.unwrap();
    assert_loaded(&loaded, &model);
    let report = loaded.report();
    assert!(report.fallback_count(FallbackKind::WorkerFailed) >= 1, "{report:?}");
    assert!(report.fallback_count(FallbackKind::WorkerStalled) >= 1, "{report:?}");
    assert_eq!(report.fallback_count(FallbackKind::OriginDirect), 0, "{report:?}");
    assert!(report.fallbacks.iter().all(|fallback| fallback.last_detail.contains("worker ")), "{report:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_no_worker_helps_the_origin_does_and_when_it_fails_so_does_the_load() {
    let fixture = Fixture::new(Setup::default());
    fixture.workers.iter().for_each(|worker| worker.set(Behaviour::Fails(Code::Unavailable)));
    let model = ModelSpec::sized(1, 40 << 20, 20).build();
    let loaded = fixture.load(fixture.put("m", &model)).await.unwrap();
    assert_loaded(&loaded, &model);
    let report = loaded.report();
    assert_eq!(report.fallback_count(FallbackKind::OriginDirect), model.chunks(), "{report:?}");
    assert_eq!(report.bytes_from(SourceTier::Origin), report.bytes);

    let request = fixture.put("broken", &ModelSpec::sized(2, 40 << 20, 20).build());
    // The header is read well, then the origin is down for whole chunks.
    fixture.origin.fault(Fault::new(FaultKind::Status(503)).on("bucket/broken/*.safetensors").skip(1));
    let used = fixture.arena.used_bytes();
    let error = fixture.load(request).await.unwrap_err();
    assert_eq!(error.code(), Code::Unavailable, "{error}");
    assert_eq!(fixture.arena.used_bytes(), used, "nothing half-loaded stays");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_object_replaced_between_resolve_and_read_is_a_clear_error() {
    let fixture = Fixture::new(Setup { workers: 0, ..Setup::default() });
    let request = fixture.put("m", &ModelSpec::sized(1, 40 << 20, 20).build());
    fixture.origin.fault(Fault::new(FaultKind::Replace).on("bucket/m/*.safetensors").skip(2).times(1));
    let error = fixture.load(request).await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
    assert!(error.message().contains("model.safetensors"), "{error}");
    assert_eq!(fixture.arena.used_bytes(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_dies_in_the_middle_of_a_load_does_not_matter() {
    let origin = Arc::new(FakeOrigin::start());
    let token = CancellationToken::new();
    let workers: Vec<_> = (0..3).map(|_| TestWorker::new(origin.clone())).collect();
    let servers: Vec<_> = workers
        .iter()
        .map(|worker| {
            let tcp = Some(([127, 0, 0, 1], 0).into());
            let options = ServerOptions { tcp, ..ServerOptions::default() };
            DataServer::bind(options, worker.clone()).unwrap().spawn(token.clone()).unwrap()
        })
        .collect();
    let dying = FaultProxy::start(&servers[0].tcp_addr().unwrap().to_string()).unwrap();
    let endpoints = vec![
        Endpoint::Tcp(dying.address().to_string()),
        Endpoint::Tcp(servers[1].tcp_addr().unwrap().to_string()),
        Endpoint::Tcp(servers[2].tcp_addr().unwrap().to_string()),
    ];
    let fixture = Fixture::over(Setup::default(), origin, workers.clone(), endpoints);
    let model = ModelSpec::sized(1, 200 << 20, 20).build();
    let request = fixture.put("m", &model);
    dying.set(ProxyFaults { delay: Duration::from_millis(20), ..ProxyFaults::default() });
    let loading = fixture.load(request);
    let killing = async {
        eventually("bytes came from the worker that dies", || dying.bytes() > 1 << 20).await;
        dying.set(ProxyFaults { refuses: true, ..ProxyFaults::default() });
        dying.cut_all();
    };
    let (loaded, ()) = tokio::join!(loading, killing);
    let loaded = loaded.unwrap();
    assert_loaded(&loaded, &model);
    let report = loaded.report();
    assert!(report.fallback_count(FallbackKind::WorkerUnreachable) >= 1, "{report:?}");
    assert_eq!(report.fallback_count(FallbackKind::OriginDirect), 0, "{report:?}");
    token.cancel();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_worker_is_left_early_when_the_others_are_fast() {
    let mut setup = Setup { workers: 2, stall_ms: 60_000, hedge_after_ms: 500, fetches: 2, ..Setup::default() };
    setup.memory_bytes = 1 << 30;
    let fixture = Fixture::new(setup);
    let model = ModelSpec::sized(1, 30 * (16 << 20), 60).build();
    let request = fixture.put("m", &model);
    // Fast for the first chunks, which set the pace; then silent.
    let worker = fixture.workers[0].clone();
    let loading = fixture.load(request);
    let silencing = async {
        eventually("the pace is known", || worker.requests() >= 10).await;
        worker.set(Behaviour::Stalls);
    };
    let (loaded, ()) = tokio::time::timeout(Duration::from_secs(50), async { tokio::join!(loading, silencing) })
        .await
        .expect("the load does not wait for the stall timeout");
    let loaded = loaded.unwrap();
    assert_loaded(&loaded, &model);
    assert!(loaded.report().fallback_count(FallbackKind::WorkerSlow) >= 1, "{:?}", loaded.report());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_on_this_host_is_asked_for_copies_until_it_has_missed_a_few() {
    let fixture = Fixture::new(Setup { fetches: 1, ..Setup::default() });
    let nearby = TestWorker::new(fixture.origin.clone());
    *fixture.cluster.nearby.lock() = Some(nearby.clone());
    let model = ModelSpec::sized(1, 200 << 20, 20).build();
    let loaded = fixture.load(fixture.put("m", &model)).await.unwrap();
    assert_loaded(&loaded, &model);
    assert_eq!(nearby.requests(), 4, "four misses in a row are enough");
    let report = loaded.report();
    assert!(report.fallbacks.is_empty() && report.retries == 0, "a miss is no failure: {report:?}");

    nearby.has_copies.store(true, std::sync::atomic::Ordering::SeqCst);
    let before = fixture.workers.iter().map(|worker| worker.requests()).sum::<u64>();
    let model = ModelSpec::sized(2, 60 << 20, 20).build();
    assert_loaded(&fixture.load(fixture.put("copies", &model)).await.unwrap(), &model);
    assert_eq!(nearby.requests(), 4 + model.chunks());
    assert_eq!(fixture.workers.iter().map(|worker| worker.requests()).sum::<u64>(), before);
}
