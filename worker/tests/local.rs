//! One worker inside this process, over an origin that counts and misbehaves.

#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Barrier;

use common::*;
use longshore_testkit::modelgen::ModelSpec;
use longshore_testkit::{Content, FakeOrigin, Fault, FaultKind};
use longshore_types::{CHUNK_BYTES, ChunkKey, Code, Selection};
use longshore_wire::{Mode, Tier};
use longshore_worker::{Ask, WorkerOptions};

const OBJECT: &str = "bucket/model/data.bin";
const URL: &str = "s3://bucket/model/data.bin";
/// Two chunks and a bit, with a last block that is short.
const SIZE: u64 = 2 * CHUNK_BYTES + (3 << 20) + 7;

fn origin() -> (FakeOrigin, Content) {
    let origin = FakeOrigin::start();
    origin.generate(OBJECT, 7, SIZE);
    let content = origin.content(OBJECT).unwrap();
    (origin, content)
}

/// Counts: GETs and bytes of the object.
fn served(origin: &FakeOrigin) -> (u64, u64) {
    let counters = origin.counters();
    counters.keys.get(OBJECT).map_or((0, 0), |key| (key.get, key.bytes))
}

fn chunk_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for fan_out in fs::read_dir(folder.join("chunks")).unwrap() {
        files.extend(fs::read_dir(fan_out.unwrap().path()).unwrap().map(|entry| entry.unwrap().path()));
    }
    files
}

#[test]
fn however_many_wait_a_chunk_is_fetched_once() {
    let (origin, content) = origin();
    origin.fault(Fault::new(FaultKind::LatencyMs(100)));
    let folder = tempfile::tempdir().unwrap();
    let local = Local::open(options(folder.path()), &origin);
    let keys = local.chunks(URL);
    let barrier = Barrier::new(24);
    std::thread::scope(|scope| {
        for reader in 0..24 {
            let (barrier, keys, content, endpoint) = (&barrier, &keys, &content, local.endpoint());
            scope.spawn(move || {
                barrier.wait();
                for turn in 0..keys.len() {
                    fetch_whole(&endpoint, &keys[(reader + turn) % keys.len()], content).unwrap();
                }
            });
        }
    });
    assert_eq!(served(&origin), (3, SIZE));
    assert!(local.metric("longshore_worker_fill_joins_total") > 0.0);
    assert_eq!(local.metric("longshore_worker_fills_total{outcome=\"ok\",source=\"origin\"}"), 3.0);
    assert_eq!(local.metric("longshore_worker_fills_in_flight"), 0.0);
}

#[test]
fn readers_stream_while_the_chunk_is_filled() {
    let (origin, content) = origin();
    origin.fault(Fault::new(FaultKind::HangAfter(3 << 20)).times(1));
    let folder = tempfile::tempdir().unwrap();
    let local = Local::open(options(folder.path()), &origin);
    let key = &local.chunks(URL)[0];
    // The origin stops after three blocks: the first two are here all the same.
    let two = longshore_wire::ChunkRequest { range: 0..2 << 20, ..request(key, Mode::Fill, false) };
    let (bytes, tier) = fetch(&local.endpoint(), &two).unwrap();
    assert_eq!((content.first_difference(0, &bytes), tier), (None, Tier::Origin));
}

#[test]
fn a_restarted_worker_serves_what_it_had_without_the_origin() {
    let (origin, content) = origin();
    let folder = tempfile::tempdir().unwrap();
    let selection = Selection::default();
    let keys = {
        let local = Local::open(options(folder.path()), &origin);
        let manifest = local.worker.manifest("s3://bucket/model", &selection, Ask::default());
        let manifest = local.runtime.block_on(manifest).unwrap().value;
        let keys: Vec<ChunkKey> = ChunkKey::all(&manifest.files[0].artifact).collect();
        for key in &keys {
            assert_eq!(fetch_whole(&local.endpoint(), key, &content).unwrap(), Tier::Origin);
            assert_eq!(fetch_whole(&local.endpoint(), key, &content).unwrap(), Tier::Memory);
        }
        assert!(local.worker.drain(LONG));
        assert_eq!(local.worker.status().disk.unwrap().chunks, 3);
        keys
    };
    origin.reset_counters();
    origin.fault(Fault::new(FaultKind::Status(503)).any_verb());
    let local = Local::open(options(folder.path()), &origin);
    for key in &keys {
        assert_eq!(fetch_whole(&local.endpoint(), key, &content).unwrap(), Tier::Disk);
    }
    assert_eq!(origin.counters().total(), 0);
    // The listing of the earlier run stands in while the origin is away, and that is counted.
    let manifest = local.worker.manifest("s3://bucket/model", &selection, Ask::default());
    assert_eq!(local.runtime.block_on(manifest).unwrap().value.files.len(), 1);
    assert_eq!(local.metric("longshore_worker_fallbacks_total{kind=\"stale_listing\"}"), 1.0);
}

#[test]
fn a_flipped_bit_is_found_refetched_and_counted() {
    let (origin, content) = origin();
    let folder = tempfile::tempdir().unwrap();
    let keys = {
        let local = Local::open(options(folder.path()), &origin);
        let keys = local.chunks(URL);
        keys.iter().for_each(|key| _ = fetch_whole(&local.endpoint(), key, &content).unwrap());
        assert!(local.worker.drain(LONG));
        keys
    };
    let name = keys[1].id().to_string();
    let path = chunk_files(folder.path()).into_iter().find(|path| path.ends_with(&name)).unwrap();
    let file = fs::File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, 5 << 20).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], 5 << 20).unwrap();

    let local = Local::open(options(folder.path()), &origin);
    let error = fetch(&local.endpoint(), &request(&keys[1], Mode::Fill, false)).unwrap_err();
    assert_eq!(error.code(), Code::Corrupt);
    let (bytes, tier) = fetch(&local.endpoint(), &request(&keys[1], Mode::Fill, true)).unwrap();
    assert_eq!((content.first_difference(CHUNK_BYTES, &bytes), tier), (None, Tier::Origin));
    assert_eq!(local.metric("longshore_worker_checksum_mismatches_total{tier=\"disk\"}"), 1.0);
    assert_eq!(local.worker.status().checksum_mismatches, 1);
    // A good copy survives a recheck.
    let (_, tier) = fetch(&local.endpoint(), &request(&keys[0], Mode::Fill, true)).unwrap();
    assert_eq!(tier, Tier::Disk);
    assert_eq!(served(&origin).0, 4);
}

#[test]
fn failures_of_the_origin_reach_every_waiter_and_are_not_kept() {
    let (origin, content) = origin();
    let folder = tempfile::tempdir().unwrap();
    let local = Local::open(options(folder.path()), &origin);
    let keys = local.chunks(URL);
    origin.fault(Fault::new(FaultKind::Status(403)));
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..4)
            .map(|_| scope.spawn(|| fetch_whole(&local.endpoint(), &keys[0], &content).unwrap_err().code()))
            .collect();
        readers.into_iter().for_each(|reader| assert_eq!(reader.join().unwrap(), Code::PermissionDenied));
    });
    origin.clear_faults();
    fetch_whole(&local.endpoint(), &keys[0], &content).unwrap();

    // Cut off midway: resumed at the byte reached, each byte served about once.
    origin.reset_counters();
    origin.fault(Fault::new(FaultKind::CutAfter(5 << 20)).times(1));
    fetch_whole(&local.endpoint(), &keys[1], &content).unwrap();
    // What the origin had given to the network when it cut the connection may not have arrived.
    let (requests, bytes) = served(&origin);
    assert!(requests == 2 && (CHUNK_BYTES..CHUNK_BYTES + (2 << 20)).contains(&bytes), "{requests} for {bytes}");

    // Replaced since the key was made: bytes of two versions never mix.
    origin.generate(OBJECT, 8, SIZE);
    let error = fetch_whole(&local.endpoint(), &keys[2], &content).unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition);
    fetch_whole(&local.endpoint(), &keys[0], &content).unwrap();

    // Gone: remembered for a while.
    origin.remove(OBJECT);
    for _ in 0..3 {
        let error = fetch_whole(&local.endpoint(), &keys[2], &content).unwrap_err();
        assert_eq!(error.code(), Code::NotFound);
    }
    assert_eq!(local.metric("longshore_worker_fills_total{outcome=\"not_found\",source=\"origin\"}"), 1.0);
}

#[test]
fn memory_stays_within_its_budget_and_the_disk_keeps_the_rest() {
    let origin = FakeOrigin::start();
    let size = 24 * CHUNK_BYTES;
    origin.generate(OBJECT, 3, size);
    let content = origin.content(OBJECT).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let budget = 128 << 20;
    let small =
        |options: WorkerOptions| WorkerOptions { memory_bytes: Some(longshore_types::ByteSize(budget)), ..options };
    let local = Local::open(small(options(folder.path())), &origin);
    let keys = local.chunks(URL);
    for _ in 0..2 {
        std::thread::scope(|scope| {
            for lane in 0..8 {
                let (keys, content, endpoint) = (&keys, &content, local.endpoint());
                scope.spawn(move || {
                    keys.iter().skip(lane).step_by(8).for_each(|key| {
                        fetch_whole(&endpoint, key, content).unwrap();
                    });
                });
            }
        });
        assert!(local.metric("longshore_worker_arena_used_bytes") <= budget as f64);
        assert!(local.worker.drain(LONG));
    }
    assert_eq!(served(&origin), (24, size));
    assert_eq!(local.worker.status().disk.unwrap().chunks, 24);
}

#[test]
fn without_a_disk_the_cache_goes_on_in_memory() {
    let (origin, content) = origin();
    let options = WorkerOptions { memory_only: true, ..options(Path::new("/dev/null/nowhere")) };
    let local = Local::open(options, &origin);
    for key in &local.chunks(URL) {
        fetch_whole(&local.endpoint(), key, &content).unwrap();
        assert_eq!(fetch_whole(&local.endpoint(), key, &content).unwrap(), Tier::Memory);
    }
    assert!(local.worker.status().disk.is_none());
    assert_eq!(served(&origin), (3, SIZE));
}

#[test]
fn a_disk_that_fails_is_shown_and_costs_the_reader_nothing() {
    let (origin, content) = origin();
    let folder = tempfile::tempdir().unwrap();
    let local = Local::open(options(folder.path()), &origin);
    fs::remove_dir_all(folder.path().join("chunks")).unwrap();
    for key in &local.chunks(URL) {
        fetch_whole(&local.endpoint(), key, &content).unwrap();
    }
    assert!(local.worker.drain(LONG));
    let status = local.worker.status();
    assert!(status.disk_error.unwrap().contains("cannot write under"));
    assert_eq!(status.disk.unwrap().chunks, 0);
    assert_eq!(local.metric("longshore_worker_disk_writes_skipped_total{reason=\"disk_failed\"}"), 3.0);
    assert_eq!(local.metric("longshore_worker_disk_healthy"), 0.0);
}

#[test]
fn cache_folders_that_cannot_be_used_are_named() {
    let (origin, _) = origin();
    let folder = tempfile::tempdir().unwrap();
    let first = Local::open(options(folder.path()), &origin);
    let error = Local::try_open(options(folder.path()), &origin).err().unwrap();
    assert_eq!(error.code(), Code::FailedPrecondition);
    assert!(error.message().contains(&format!("in use by process {}", std::process::id())), "{error}");
    drop(first);
    fs::write(folder.path().join("file"), "").unwrap();
    let error = Local::try_open(options(&folder.path().join("file")), &origin).err().unwrap();
    assert!(error.message().contains("cannot be written") && error.message().ends_with("--cache-dir"), "{error}");
}

#[test]
fn files_of_the_machine_are_served_only_when_allowed() {
    let origin = FakeOrigin::start();
    let folder = tempfile::tempdir().unwrap();
    let model = ModelSpec::small(5).build();
    model.write_to(&folder.path().join("model")).unwrap();
    let path = folder.path().join("model").display().to_string();
    let closed = Local::open(options(&folder.path().join("closed")), &origin);
    let selection = Selection::default();
    let refused = closed.runtime.block_on(closed.worker.manifest(&path, &selection, Ask::default())).unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);

    let allowed = WorkerOptions { allow_local_origin: true, ..options(&folder.path().join("open")) };
    let open = Local::open(allowed, &origin);
    let manifest = open.runtime.block_on(open.worker.manifest(&path, &selection, Ask::default())).unwrap().value;
    assert_eq!(manifest.tensors.len(), model.tensors.len());
    let file = manifest.files.iter().find(|file| file.is_tensors).unwrap();
    for key in ChunkKey::all(&file.artifact) {
        fetch_whole(&open.endpoint(), &key, model.file(&file.name).unwrap()).unwrap();
        let error = fetch(&closed.endpoint(), &request(&key, Mode::Fill, false)).unwrap_err();
        assert_eq!(error.code(), Code::PermissionDenied);
    }
    assert!(open.worker.drain(LONG));
    assert_eq!(open.worker.status().disk.unwrap().chunks, 0, "files of this machine are not copied to its disk");
}

#[test]
fn a_manifest_costs_one_list_and_each_byte_of_its_heads_once() {
    let origin = FakeOrigin::start();
    let model = ModelSpec::sized(9, 40 << 20, 20).shards(3).build();
    model.put_into(&origin, "bucket/sharded");
    let folder = tempfile::tempdir().unwrap();
    let local = Local::open(options(folder.path()), &origin);
    let ask = |ask: Ask| {
        let selection = Selection::default();
        local.runtime.block_on(local.worker.manifest("s3://bucket/sharded", &selection, ask)).unwrap()
    };
    let first = ask(Ask::default());
    assert!(!first.cached);
    assert!(ask(Ask::default()).cached);
    assert_eq!(ask(Ask { revalidate: true, ..Ask::default() }).value, first.value);
    assert_eq!(origin.counters().list, 2, "the revalidation lists again");
    let reads = origin.counters().get;
    for file in &first.value.files {
        for key in ChunkKey::all(&file.artifact) {
            fetch_whole(&local.endpoint(), &key, model.file(&file.name).unwrap()).unwrap();
        }
    }
    let counters = origin.counters();
    assert_eq!(counters.bytes, model.size_bytes(), "the load reads no byte again that the manifest brought in");
    assert!(reads < counters.get);
    assert_eq!((counters.head, counters.list), (0, 2));

    // A new revision: revalidation finds it, and nothing else does before the TTL ends.
    ModelSpec::sized(10, 40 << 20, 20).shards(3).build().put_into(&origin, "bucket/sharded");
    assert_eq!(ask(Ask::default()).value.revision, first.value.revision);
    assert_ne!(ask(Ask { revalidate: true, ..Ask::default() }).value.revision, first.value.revision);
}

#[test]
fn what_does_not_exist_is_asked_once_and_bad_urls_are_refused() {
    let (origin, _) = origin();
    let folder = tempfile::tempdir().unwrap();
    let local = Local::open(options(folder.path()), &origin);
    for _ in 0..3 {
        let error = local.runtime.block_on(local.worker.list("s3://bucket/nothing", Ask::default())).unwrap_err();
        assert_eq!(error.code(), Code::NotFound);
    }
    assert!(origin.counters().list <= 1);
    let error = local.runtime.block_on(local.worker.stat("gopher://x/y", Ask::default())).unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
    // A request on the data plane names its URL itself: only the canonical form is opened.
    let version = longshore_types::Version::new("etag:\"1\"").unwrap();
    let artifact = longshore_types::Artifact::new("s3://bucket/model/data.bin/", version, 5).unwrap();
    let key = ChunkKey::new(artifact.into(), 0).unwrap();
    let error = fetch(&local.endpoint(), &request(&key, Mode::Fill, false)).unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
}
