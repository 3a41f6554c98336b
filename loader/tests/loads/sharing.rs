//! One load for many callers, attaching again, and giving up.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use longshore_loader::{FallbackKind, LoadProgress, LoadRequest, Step};
use longshore_testkit::FakeOrigin;
use longshore_testkit::modelgen::ModelSpec;
use longshore_types::Code;
use longshore_wire::{DataServer, Endpoint, ServerOptions};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::fixture::{Fixture, Setup, assert_loaded, eventually};
use crate::workers::{Behaviour, TestWorker};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_at_once_share_one_load_and_see_its_progress() {
    let fixture = Arc::new(Fixture::new(Setup { workers: 1, ..Setup::default() }));
    let model = ModelSpec::sized(1, 100 << 20, 30).build();
    let request = fixture.put("m", &model);
    let chunks = model.chunks();
    let worker = fixture.workers[0].clone();
    worker.set(Behaviour::Gated);
    let callers: Vec<_> = (0..8)
        .map(|_| {
            let (fixture, request) = (fixture.clone(), request.clone());
            let (progress, seen) = watch::channel(LoadProgress::default());
            (tokio::spawn(async move { fixture.loader.load(request, Some(progress)).await.unwrap() }), seen)
        })
        .collect();
    let all_joined = || callers.iter().all(|(_, seen)| seen.has_changed().unwrap());
    eventually("all callers joined the load", || all_joined() && worker.waiting() > 0).await;
    assert_eq!(fixture.loader.status().loads_in_flight, 1);
    worker.open_gate();
    let mut ids = Vec::new();
    for (caller, seen) in callers {
        let loaded = caller.await.unwrap();
        assert_loaded(&loaded, &model);
        let last = *seen.borrow();
        assert!(last.bytes_total > 0 && last.step >= Step::Fetch, "{last:?}");
        ids.push(loaded.id.clone());
    }
    ids.dedup();
    assert_eq!(ids.len(), 1);
    assert_eq!(worker.requests(), chunks, "every chunk was fetched once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_load_attaches_again_and_moves_nothing() {
    let fixture = Fixture::new(Setup::default());
    let model = ModelSpec::small(1).build();
    let request = fixture.put("m", &model);
    let first = fixture.load(request.clone()).await.unwrap();
    let before = fixture.workers.iter().map(|worker| worker.requests()).sum::<u64>();
    let second = fixture.load(request.clone()).await.unwrap();
    assert!(second.is_reattached() && second.id == first.id);
    assert_eq!(fixture.workers.iter().map(|worker| worker.requests()).sum::<u64>(), before);

    // Nobody can be asked which revision is current: what is in memory is served, and that is said.
    fixture.cluster.is_down.store(true, Ordering::SeqCst);
    let third = fixture.load(request).await.unwrap();
    assert_eq!(third.id, first.id);
    assert_eq!(third.report().fallback_count(FallbackKind::NotRevalidated), 1);
    let unknown = fixture.load(LoadRequest::new("s3://bucket/other")).await.unwrap_err();
    assert_eq!(unknown.code(), Code::Unavailable);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_load_is_cancelled_when_its_last_caller_left_and_its_memory_is_free() {
    let fixture = Arc::new(Fixture::new(Setup { workers: 1, memory_bytes: 150 << 20, ..Setup::default() }));
    let model = ModelSpec::sized(1, 100 << 20, 30).build();
    let other = ModelSpec::sized(2, 100 << 20, 30).build();
    let request = fixture.put("m", &model);
    let other_request = fixture.put("other", &other);
    let worker = fixture.workers[0].clone();
    worker.set(Behaviour::Gated);
    let start = |request: LoadRequest| {
        let fixture = fixture.clone();
        let (progress, seen) = watch::channel(LoadProgress::default());
        (tokio::spawn(async move { fixture.loader.load(request, Some(progress)).await }), seen)
    };
    let has_joined = |seen: &watch::Receiver<LoadProgress>| seen.has_changed().unwrap();
    let ((first, first_seen), (second, second_seen)) = (start(request.clone()), start(request));
    eventually("the load runs for both", || {
        worker.waiting() > 0 && has_joined(&first_seen) && has_joined(&second_seen)
    })
    .await;
    first.abort();
    assert!(first.await.unwrap_err().is_cancelled());
    assert_eq!(fixture.loader.status().loads_in_flight, 1, "one caller is left");
    second.abort();
    assert!(second.await.unwrap_err().is_cancelled());
    assert_eq!(fixture.loader.status().loads_in_flight, 0);

    // The memory of the load that was given up is waited for, not missed.
    let (third, third_seen) = start(other_request);
    eventually("the other load waits", || has_joined(&third_seen)).await;
    worker.open_gate();
    assert_loaded(&third.await.unwrap().unwrap(), &other);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_worker_does_not_keep_the_memory_of_a_load_that_was_given_up() {
    let origin = Arc::new(FakeOrigin::start());
    let worker = TestWorker::new(origin.clone());
    worker.set(Behaviour::Stalls);
    let token = CancellationToken::new();
    let options = ServerOptions { tcp: Some(([127, 0, 0, 1], 0).into()), ..ServerOptions::default() };
    let server = DataServer::bind(options, worker.clone()).unwrap().spawn(token.clone()).unwrap();
    let over_tcp = Endpoint::Tcp(server.tcp_addr().unwrap().to_string());
    for endpoint in [over_tcp, Endpoint::InProcess(worker.clone())] {
        let setup = Setup { stall_ms: 600_000, ..Setup::default() };
        let fixture = Arc::new(Fixture::over(setup, origin.clone(), vec![worker.clone()], vec![endpoint]));
        let request = fixture.put("m", &ModelSpec::sized(1, 40 << 20, 20).build());
        let (of_load, before) = (fixture.clone(), worker.requests());
        let loading = tokio::spawn(async move { of_load.load(request).await });
        eventually("the worker is asked", || worker.requests() > before).await;
        assert!(fixture.arena.used_bytes() > 0);
        loading.abort();
        // The stall timeout is far longer than this waits.
        eventually("the memory is free", || fixture.arena.used_bytes() == 0).await;
    }
    token.cancel();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn models_with_another_selection_are_other_models() {
    let fixture = Fixture::new(Setup::default());
    let model = ModelSpec::small(1).build();
    let request = fixture.put("m", &model);
    let all = fixture.load(request.clone()).await.unwrap();
    let some = fixture.load(LoadRequest { include: vec!["config.json".into()], ..request.clone() }).await.unwrap();
    assert_ne!(all.id, some.id);
    assert!(some.manifest.tensors.is_empty() && some.layout.files.len() == 1);
    let unloaded = fixture.loader.unload_uri(&request.uri).await.unwrap();
    assert_eq!((unloaded.models, unloaded.bytes_freed), (2, 0), "both are leased by the answers");
    assert_eq!(fixture.loader.unload(&all.id).await.unwrap_err().code(), Code::NotFound);
    drop((all, some));
    eventually("the memory is free", || fixture.arena.used_bytes() == 0).await;
}
