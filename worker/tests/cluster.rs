//! Several workers as the daemon runs them, over sockets.

#![allow(clippy::unwrap_used)]

mod common;

use std::collections::HashMap;
use std::sync::Arc;

use common::*;
use longshore_cluster::{Member, Ring};
use longshore_proto::v1;
use longshore_proto::v1::worker_client::WorkerClient;
use longshore_testkit::modelgen::{Model, ModelSpec};
use longshore_testkit::{Content, FakeOrigin, Fault, FaultKind};
use longshore_types::{Artifact, CHUNK_BYTES, ChunkKey, Code, Manifest};
use longshore_wire::{Mode, Tier};
use longshore_worker::WorkerOptions;
use tonic::transport::Channel;

const URL: &str = "s3://bucket/model";

fn model(origin: &FakeOrigin) -> Model {
    let model = ModelSpec::sized(3, 100 << 20, 40).shards(3).build();
    model.put_into(origin, "bucket/model");
    model
}

async fn control(worker: &Served) -> WorkerClient<Channel> {
    WorkerClient::connect(format!("http://{}", worker.control)).await.unwrap()
}

fn manifest(runtime: &tokio::runtime::Runtime, worker: &Served) -> Manifest {
    let request = v1::GetManifestRequest { url: URL.to_owned(), ..Default::default() };
    let response = runtime.block_on(async { control(worker).await.get_manifest(request).await }).unwrap();
    longshore_proto::convert::manifest_from_proto(response.into_inner().manifest.unwrap()).unwrap()
}

fn member(worker: &Served) -> Member {
    let identity = client().page(&worker.endpoint(), "/v1/identity", 1 << 14).unwrap();
    Member { identity: serde_json::from_slice(&identity).unwrap(), address: worker.data.clone() }
}

fn keys(manifest: &Manifest) -> Vec<(String, ChunkKey)> {
    let files = manifest.files.iter();
    files.flat_map(|file| ChunkKey::all(&file.artifact).map(|key| (file.name.clone(), key))).collect()
}

#[test]
fn three_workers_read_the_origin_once_whoever_is_asked() {
    let origin = FakeOrigin::start();
    let model = model(&origin);
    let folder = tempfile::tempdir().unwrap();
    let workers = serve(3, folder.path(), &origin, |_, options| options);
    let runtime = runtime();
    let manifests: Vec<_> = workers.iter().map(|worker| manifest(&runtime, worker)).collect();
    assert!(manifests.iter().all(|manifest| *manifest == manifests[0]));
    assert_eq!(origin.counters().list, 1, "the owner of the URL answers for all");
    std::thread::scope(|scope| {
        for reader in 0..6 {
            let (model, keys, endpoint) = (&model, keys(&manifests[0]), workers[reader % 3].endpoint());
            scope.spawn(move || {
                for (file, key) in keys {
                    fetch_whole(&endpoint, &key, model.file(&file).unwrap()).unwrap();
                }
            });
        }
    });
    let counters = origin.counters();
    assert_eq!((counters.bytes, counters.list, counters.head), (model.size_bytes(), 1, 0));
    assert_eq!(counters.get, model.chunks());
    let peer_fills = |worker: &Served| worker.metric("longshore_worker_fills_total{outcome=\"ok\",source=\"peer\"}");
    assert!(workers.iter().map(peer_fills).sum::<f64>() > 0.0);
    assert_eq!(workers.iter().map(|worker| worker.metric("longshore_worker_members")).sum::<f64>(), 9.0);
}

#[test]
fn replicas_fill_from_each_other() {
    let origin = FakeOrigin::start();
    let model = model(&origin);
    let folder = tempfile::tempdir().unwrap();
    let workers = serve(3, folder.path(), &origin, |_, options| WorkerOptions { replicas: 2, ..options });
    let runtime = runtime();
    let keys = keys(&manifest(&runtime, &workers[0]));
    std::thread::scope(|scope| {
        for worker in &workers {
            let (model, keys, endpoint) = (&model, &keys, worker.endpoint());
            scope.spawn(move || {
                for (file, key) in keys {
                    fetch_whole(&endpoint, key, model.file(file).unwrap()).unwrap();
                }
            });
        }
    });
    assert_eq!(origin.counters().bytes, model.size_bytes());
}

#[test]
fn workers_that_fill_from_each_other_do_not_wait_for_each_other() {
    let origin = FakeOrigin::start();
    let model = model(&origin);
    let folder = tempfile::tempdir().unwrap();
    // One fill at a time on each side, and every chunk asked of the worker that does not own it.
    let workers = serve(2, folder.path(), &origin, |_, options| WorkerOptions {
        fills_max: 1,
        memory_bytes: Some(longshore_types::ByteSize(128 << 20)),
        ..options
    });
    let runtime = runtime();
    let keys = keys(&manifest(&runtime, &workers[0]));
    let ring = Ring::new(&workers.iter().map(member).collect::<Vec<_>>());
    // Long enough that each side has begun before the other has ended.
    origin.fault(Fault::new(FaultKind::LatencyMs(50)));
    std::thread::scope(|scope| {
        for (file, key) in &keys {
            let owner = &ring.owners(key.id().as_bytes(), 1)[0].address;
            let other = workers.iter().find(|worker| worker.data != *owner).unwrap();
            scope.spawn(|| fetch_whole(&other.endpoint(), key, model.file(file).unwrap()).unwrap());
        }
    });
    assert_eq!(origin.counters().bytes, model.size_bytes(), "no fill ran into its time limit");
    let failed = |worker: &Served| worker.metric("longshore_worker_fallbacks_total{kind=\"peer_failed\"}");
    assert_eq!(workers.iter().map(failed).sum::<f64>(), 0.0);
}

#[test]
fn warming_fills_the_owners_and_freeing_empties_them() {
    let origin = FakeOrigin::start();
    let model = model(&origin);
    let folder = tempfile::tempdir().unwrap();
    let workers = serve(3, folder.path(), &origin, |_, options| options);
    let runtime = runtime();
    let warm = || {
        runtime.block_on(async {
            let request = v1::WarmRequest { url: URL.to_owned(), ..Default::default() };
            let mut events = control(&workers[0]).await.warm(request).await.unwrap().into_inner();
            let mut last = v1::WarmProgress::default();
            while let Some(event) = events.message().await.unwrap() {
                assert!(event.bytes_done >= last.bytes_done && event.bytes_total == model.size_bytes());
                last = event;
            }
            assert!(last.done && !last.revision.is_empty());
            assert_eq!(last.bytes_done, last.bytes_total);
            last
        })
    };
    assert!(warm().bytes_cached < model.size_bytes());
    assert_eq!(origin.counters().bytes, model.size_bytes());
    origin.reset_counters();
    assert_eq!(warm().bytes_cached, model.size_bytes());
    assert_eq!(origin.counters().total(), 0, "what is warm asks the origin nothing");

    let freed = runtime.block_on(async {
        let request = v1::FreeRequest { url: URL.to_owned(), local_only: false };
        control(&workers[1]).await.free(request).await.unwrap().into_inner()
    });
    assert!(freed.chunks_freed as u64 >= model.chunks() && freed.unreachable.is_empty());
    assert!(freed.bytes_freed >= model.size_bytes());
    // The heads of the three shards come in while the manifest is made, so they count as there already.
    assert!(warm().bytes_cached <= 4 * CHUNK_BYTES);
    assert_eq!(origin.counters().bytes, model.size_bytes());
}

#[test]
fn a_dead_worker_is_passed_over_and_counted() {
    let origin = FakeOrigin::start();
    let model = model(&origin);
    // So many that the dead one owns several, wherever it lies on the ring.
    let small: HashMap<String, Content> =
        (0..40).map(|number| (format!("notes-{number}.txt"), Content::generated(number, 1000))).collect();
    small.iter().for_each(|(name, content)| origin.put_content(&format!("bucket/model/{name}"), content.clone()));
    let folder = tempfile::tempdir().unwrap();
    let mut workers = serve(3, folder.path(), &origin, |_, options| options);
    let dead = workers.remove(0);
    let port = dead.data.clone();
    drop(dead);
    assert!(std::net::TcpStream::connect(port).is_err());
    let runtime = runtime();
    for worker in &workers {
        for (file, key) in keys(&manifest(&runtime, worker)) {
            let content = small.get(&file).or_else(|| model.file(&file)).unwrap();
            fetch_whole(&worker.endpoint(), &key, content).unwrap();
        }
    }
    let fallbacks = |kind: &str| -> f64 {
        let name = format!("longshore_worker_fallbacks_total{{kind=\"{kind}\"}}");
        workers.iter().map(|worker| worker.metric(&name)).sum()
    };
    assert!(fallbacks("peer_failed") + fallbacks("head_owner_failed") > 0.0);
    assert!(fallbacks("peer_suspect") + fallbacks("head_owner_suspect") > 0.0);
}

#[test]
fn shutting_down_finishes_what_is_in_flight_and_flushes() {
    let origin = FakeOrigin::start();
    origin.generate("bucket/slow", 1, CHUNK_BYTES);
    origin.fault(Fault::new(FaultKind::BytesPerSecond(12 << 20)));
    let content = origin.content("bucket/slow").unwrap();
    let folder = tempfile::tempdir().unwrap();
    let mut workers = serve(1, folder.path(), &origin, |_, options| options);
    let worker = &mut workers[0];
    let runtime = runtime();
    let artifact = runtime.block_on(async {
        let request = v1::StatRequest { url: "s3://bucket/slow".to_owned(), ..Default::default() };
        control(worker).await.stat(request).await.unwrap().into_inner().artifact
    });
    let artifact: Artifact = longshore_proto::convert::artifact_from_proto(artifact).unwrap();
    let key = ChunkKey::new(Arc::new(artifact), 0).unwrap();
    std::thread::scope(|scope| {
        let (endpoint, key, content) = (worker.endpoint(), &key, &content);
        let reader = scope.spawn(move || fetch_whole(&endpoint, key, content));
        until("the fill runs", || worker.metric("longshore_worker_fills_in_flight") > 0.0);
        worker.terminate();
        until("it is not ready any more", || !worker.ready());
        assert_eq!(reader.join().unwrap().unwrap(), Tier::Origin);
    });
    worker.ended().unwrap();
    drop(workers);

    origin.reset_counters();
    let workers = serve(1, folder.path(), &origin, |_, options| options);
    assert_eq!(fetch_whole(&workers[0].endpoint(), &key, &content).unwrap(), Tier::Disk);
    assert_eq!(origin.counters().get, 0);
}

#[test]
fn the_control_service_tells_its_state_health_and_methods() {
    let origin = FakeOrigin::start();
    let folder = tempfile::tempdir().unwrap();
    let workers = serve(2, folder.path(), &origin, |_, options| options);
    let runtime = runtime();
    let status = runtime.block_on(async {
        let mut client = control(&workers[0]).await;
        let error = client.list(v1::ListRequest { url: "/etc".to_owned(), ..Default::default() }).await.unwrap_err();
        assert_eq!(longshore_proto::status::from_status(&error).code(), Code::PermissionDenied);
        client.get_status(v1::GetWorkerStatusRequest {}).await.unwrap().into_inner()
    });
    assert_eq!(status.members.len(), 2);
    assert!(status.members.iter().all(|member| member.reachable));
    assert!(status.members.iter().any(|member| member.id == status.id && member.address == status.data_address));
    assert_eq!(status.disk.unwrap().capacity_bytes, 4 << 30);
    assert!(status.disk_error.is_empty());
    let serving = runtime.block_on(async {
        let channel = Channel::from_shared(format!("http://{}", workers[0].control)).unwrap();
        let mut health = tonic_health::pb::health_client::HealthClient::new(channel.connect().await.unwrap());
        let request = tonic_health::pb::HealthCheckRequest { service: "longshore.v1.Worker".to_owned() };
        health.check(request).await.unwrap().into_inner().status()
    });
    assert_eq!(serving, tonic_health::pb::health_check_response::ServingStatus::Serving);
    let identity = client().page(&workers[1].endpoint(), "/v1/identity", 1 << 14).unwrap();
    let identity: serde_json::Value = serde_json::from_slice(&identity).unwrap();
    assert_eq!(identity["data"], workers[1].data);
    assert_eq!(identity["weight"], 100);
    // On the data plane too, a path of the machine is refused.
    let version = longshore_types::Version::new("mtime:1").unwrap();
    let passwd = Artifact::new("file:///etc/passwd", version, 5).unwrap();
    let key = ChunkKey::new(Arc::new(passwd), 0).unwrap();
    let error = fetch(&workers[0].endpoint(), &request(&key, Mode::Fill, false)).unwrap_err();
    assert_eq!(error.code(), Code::PermissionDenied);
}
