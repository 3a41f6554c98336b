//! Chunks that are put into a worker: cached or held, verified, bounded, and found again.

#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Arc;

use common::*;
use longshore_testkit::FakeOrigin;
use longshore_types::checkpoint::AttemptId;
use longshore_types::{Artifact, BlockChecksum, ByteSize, CHUNK_BYTES, ChunkKey, Code, Result, Version};
use longshore_wire::{ChunkService, Endpoint, Mode, PutMode, PutRequest, PutStart, Tier};
use longshore_worker::WorkerOptions;

const LEN: u64 = (1 << 20) + 77;

fn attempt(number: u8) -> AttemptId {
    AttemptId::from_bytes([number; 16])
}

fn hold(number: u8) -> PutMode {
    PutMode::Hold { attempt: attempt(number) }
}

/// A chunk of a checkpoint's object.
struct Chunk {
    key: ChunkKey,
    bytes: Vec<u8>,
    blocks: Vec<BlockChecksum>,
}

fn chunk(name: &str, version: &str) -> Chunk {
    chunk_of(&format!("s3://bucket/run/step-1/{name}"), version)
}

fn chunk_of(url: &str, version: &str) -> Chunk {
    let artifact = Artifact::new(url, Version::new(version).unwrap(), LEN).unwrap();
    let bytes: Vec<u8> = (0..LEN).map(|at| (at.wrapping_mul(2_654_435_761) >> 7) as u8 ^ url.len() as u8).collect();
    let blocks = BlockChecksum::of_blocks(&bytes);
    Chunk { key: ChunkKey::new(Arc::new(artifact), 0).unwrap(), bytes, blocks }
}

fn of_attempt() -> String {
    format!("attempt:{}", attempt(1))
}

impl Chunk {
    fn put(&self, to: &Endpoint, mode: PutMode) -> Result<()> {
        client().put(to, &self.key, &self.bytes, &self.blocks, mode)
    }

    fn get(&self, from: &Endpoint, recheck: bool) -> Result<(Vec<u8>, Tier)> {
        fetch(from, &request(&self.key, Mode::OnlyIfCached, recheck))
    }

    /// Whether the worker would not have the bytes again.
    fn is_there(&self, worker: &dyn ChunkService, mode: PutMode) -> bool {
        let request = PutRequest::new(self.key.clone(), self.blocks.clone().into(), mode).unwrap();
        matches!(worker.put(&request), Ok(PutStart::There))
    }
}

#[test]
fn what_is_put_is_served_without_the_origin_also_after_a_restart() {
    let (origin, folder) = (FakeOrigin::start(), tempfile::tempdir().unwrap());
    let chunk = chunk("model.safetensors", &of_attempt());
    {
        let local = Local::open(options(folder.path()), &origin);
        chunk.put(&local.endpoint(), PutMode::Cache).unwrap();
        assert!(chunk.is_there(&*local.worker, PutMode::Cache));
        assert_eq!(chunk.get(&local.endpoint(), true).unwrap().0, chunk.bytes);
        chunk.put(&local.endpoint(), PutMode::Cache).unwrap();
        assert_eq!(local.metric("longshore_worker_puts_total{mode=\"cache\",outcome=\"ok\"}"), 1.0);
        assert!(local.metric("longshore_worker_puts_total{mode=\"cache\",outcome=\"there\"}") >= 1.0);
        assert_eq!(local.metric("longshore_worker_put_bytes_total{mode=\"cache\"}"), LEN as f64);
        assert!(local.worker.drain(LONG));
    }
    let local = Local::open(options(folder.path()), &origin);
    assert_eq!(chunk.get(&local.endpoint(), false).unwrap(), (chunk.bytes.clone(), Tier::Disk));
    assert!(chunk.is_there(&*local.worker, PutMode::Cache));
    assert_eq!(origin.counters().total(), 0);
    // Freed like everything else in the cache.
    local.runtime.block_on(local.worker.free("s3://bucket/run", true)).unwrap();
    assert_eq!(chunk.get(&local.endpoint(), false).unwrap_err().code(), Code::NotFound);
}

#[test]
fn nobody_writes_what_belongs_to_an_origin() {
    let (origin, folder) = (FakeOrigin::start(), tempfile::tempdir().unwrap());
    let local = Local::open(options(folder.path()), &origin);
    for version in
        ["etag:\"1\"", "attempt:", "attempt:not-an-id", "generation:7", "attempt:ABCDEFAB-CDEF-ABCD-EFAB-CDEFABCDEFAB"]
    {
        for mode in [PutMode::Cache, hold(1)] {
            let chunk = chunk("model.safetensors", version);
            let error = chunk.put(&local.endpoint(), mode).unwrap_err();
            assert_eq!(error.code(), Code::PermissionDenied, "{version}: {error}");
            assert_eq!(chunk.get(&local.endpoint(), false).unwrap_err().code(), Code::NotFound);
        }
    }
    let local_file = chunk_of("file:///tmp/run/step-1/x", &of_attempt());
    assert_eq!(local_file.put(&local.endpoint(), PutMode::Cache).unwrap_err().code(), Code::PermissionDenied);
    let odd = chunk_of("S3://bucket/run/step-1/x", &of_attempt());
    assert_eq!(odd.put(&local.endpoint(), PutMode::Cache).unwrap_err().code(), Code::InvalidArgument);
}

#[test]
fn another_content_replaces_what_was_put_and_a_recheck_drops_what_is_not_expected() {
    let (origin, folder) = (FakeOrigin::start(), tempfile::tempdir().unwrap());
    let local = Local::open(options(folder.path()), &origin);
    let mut chunk = chunk("model.safetensors", &of_attempt());
    chunk.put(&local.endpoint(), PutMode::Cache).unwrap();
    let first = chunk.blocks.clone();
    chunk.bytes[5] ^= 1;
    chunk.blocks = BlockChecksum::of_blocks(&chunk.bytes);
    chunk.put(&local.endpoint(), PutMode::Cache).unwrap();
    assert_eq!(chunk.get(&local.endpoint(), false).unwrap().0, chunk.bytes);
    assert_eq!(local.metric("longshore_worker_fallbacks_total{kind=\"put_replaced\"}"), 1.0);
    // It is whole, and not what the asker's commit says: it goes, and the origin is asked.
    let mut ask = request(&chunk.key, Mode::Fill, true);
    ask.expected = Some(chunk.blocks.clone().into());
    assert!(fetch(&local.endpoint(), &ask).is_ok());
    ask.expected = Some(first.into());
    let error = fetch(&local.endpoint(), &ask).unwrap_err();
    assert_eq!(error.code(), Code::NotFound, "the origin has no such object: {error}");
    assert_eq!(chunk.get(&local.endpoint(), false).unwrap_err().code(), Code::NotFound);
    assert!(local.metric("longshore_worker_checksum_mismatches_total{tier=\"memory\"}") >= 1.0);
}

#[test]
fn what_is_held_survives_restarts_eviction_and_freeing_until_it_is_released() {
    let (origin, folder) = (FakeOrigin::start(), tempfile::tempdir().unwrap());
    let chunk = chunk("model.safetensors", &of_attempt());
    {
        let local = Local::open(options(folder.path()), &origin);
        chunk.put(&local.endpoint(), hold(1)).unwrap();
        assert!(chunk.is_there(&*local.worker, hold(1)) && !chunk.is_there(&*local.worker, hold(2)));
        let status = local.worker.status();
        assert_eq!(status.held.unwrap().chunks, 1);
        assert_eq!(status.holds[0].attempt, attempt(1));
        local.runtime.block_on(local.worker.free("s3://bucket/run", true)).unwrap();
    }
    let local = Local::open(options(folder.path()), &origin);
    assert_eq!(chunk.get(&local.endpoint(), true).unwrap(), (chunk.bytes.clone(), Tier::Disk));
    assert_eq!(local.metric("longshore_worker_chunks{tier=\"held\"}"), 1.0);
    assert_eq!(local.metric("longshore_worker_holds"), 1.0);
    // Somebody who says that it should be something else does not get it, and does not take it from others.
    let mut ask = request(&chunk.key, Mode::OnlyIfCached, true);
    ask.expected = Some(vec![BlockChecksum(1), BlockChecksum(2)].into());
    assert_eq!(fetch(&local.endpoint(), &ask).unwrap_err().code(), Code::NotFound);
    assert!(chunk.is_there(&*local.worker, hold(1)));

    client().release(&local.endpoint(), &attempt(2)).unwrap();
    assert!(chunk.is_there(&*local.worker, hold(1)));
    client().release(&local.endpoint(), &attempt(1)).unwrap();
    assert_eq!(chunk.get(&local.endpoint(), false).unwrap_err().code(), Code::NotFound);
    assert_eq!(local.worker.status().holds, []);
    assert_eq!(chunk.put(&local.endpoint(), hold(1)).unwrap_err().code(), Code::FailedPrecondition);
}

#[test]
fn room_for_holds_is_bounded_and_none_without_a_disk() {
    let (origin, folder) = (FakeOrigin::start(), tempfile::tempdir().unwrap());
    let hold_disk = Some(ByteSize(2 * LEN + 3 * 8192));
    let local = Local::open(WorkerOptions { hold_disk, ..options(folder.path()) }, &origin);
    let chunks = ["one", "two", "three"].map(|name| chunk(name, &of_attempt()));
    chunks[0].put(&local.endpoint(), hold(1)).unwrap();
    chunks[1].put(&local.endpoint(), hold(2)).unwrap();
    let error = chunks[2].put(&local.endpoint(), hold(2)).unwrap_err();
    assert_eq!(error.code(), Code::Exhausted, "{error}");
    assert!(error.message().contains("--hold-disk"), "{error}");
    chunks[2].put(&local.endpoint(), PutMode::Cache).unwrap();
    client().release(&local.endpoint(), &attempt(1)).unwrap();
    chunks[2].put(&local.endpoint(), hold(3)).unwrap();
    assert!(local.metric("longshore_worker_puts_total{mode=\"hold\",outcome=\"exhausted\"}") >= 1.0);

    let memory_only = WorkerOptions { cache_dir: None, memory_only: true, ..options(folder.path()) };
    let local = Local::open(memory_only, &origin);
    chunks[0].put(&local.endpoint(), PutMode::Cache).unwrap();
    assert_eq!(chunks[0].put(&local.endpoint(), hold(1)).unwrap_err().code(), Code::FailedPrecondition);
    assert_eq!(local.worker.status().held, None);
    client().release(&local.endpoint(), &attempt(1)).unwrap();
}

#[test]
fn many_at_once_stay_within_memory_and_number_and_all_arrive() {
    let (origin, folder) = (FakeOrigin::start(), tempfile::tempdir().unwrap());
    let memory_bytes = Some(ByteSize(160 << 20));
    let local = Local::open(WorkerOptions { memory_bytes, ..options(folder.path()) }, &origin);
    let bytes: Vec<u8> = (0..CHUNK_BYTES).map(|at| (at.wrapping_mul(31) >> 3) as u8).collect();
    let blocks = BlockChecksum::of_blocks(&bytes);
    let version = Version::new(of_attempt()).unwrap();
    let artifact = Artifact::new("s3://bucket/run/step-1/large", version, 24 * CHUNK_BYTES).unwrap();
    let keys: Vec<ChunkKey> = ChunkKey::all(&Arc::new(artifact)).collect();
    std::thread::scope(|scope| {
        for part in keys.chunks(3) {
            let (bytes, blocks, endpoint) = (&bytes, &blocks, local.endpoint());
            scope.spawn(move || {
                for key in part {
                    client().put(&endpoint, key, bytes, blocks, PutMode::Cache).unwrap();
                }
            });
        }
    });
    assert!(local.worker.drain(LONG));
    for key in &keys {
        assert_eq!(fetch(&local.endpoint(), &request(key, Mode::OnlyIfCached, false)).unwrap().0, bytes);
    }
    assert_eq!(origin.counters().total(), 0);
}

#[test]
fn a_daemon_takes_puts_over_its_sockets_and_tells_of_what_it_holds() {
    let (origin, folder) = (FakeOrigin::start(), tempfile::tempdir().unwrap());
    let chunk = chunk("model.safetensors", &of_attempt());
    let workers = serve(2, folder.path(), &origin, |_, options| options);
    for mode in [PutMode::Cache, hold(1)] {
        chunk.put(&workers[0].endpoint(), mode).unwrap();
        chunk.put(&workers[0].endpoint(), mode).unwrap();
    }
    assert_eq!(chunk.get(&workers[0].endpoint(), true).unwrap().0, chunk.bytes);
    let status = runtime().block_on(async {
        let address = format!("http://{}", workers[0].control);
        let mut control = longshore_proto::v1::worker_client::WorkerClient::connect(address).await.unwrap();
        control.get_status(longshore_proto::v1::GetWorkerStatusRequest {}).await.unwrap().into_inner()
    });
    assert_eq!((status.held.unwrap().chunks, status.holds.len()), (1, 1));
    assert_eq!((status.holds[0].attempt.as_str(), status.holds[0].chunks), (&*attempt(1).to_string(), 1));
    let mut flipped = chunk;
    flipped.bytes[LEN as usize - 1] ^= 1;
    assert_eq!(flipped.put(&workers[1].endpoint(), hold(1)).unwrap_err().code(), Code::Corrupt);
    client().release(&workers[0].endpoint(), &attempt(1)).unwrap();
    client().release(&workers[1].endpoint(), &attempt(1)).unwrap();
}

#[test]
fn what_is_held_is_listed_and_fetched_by_its_name_also_after_a_restart() {
    let (origin, folder) = (FakeOrigin::start(), tempfile::tempdir().unwrap());
    let (one, two) = (chunk("one.safetensors", &of_attempt()), chunk("sub/two.bin", &of_attempt()));
    let page = |local: &Local, path: &str| -> Result<serde_json::Value> {
        let body = client().page(&local.endpoint(), path, 1 << 16)?;
        Ok(serde_json::from_slice(&body).unwrap())
    };
    let of_one = format!("/v1/holds/{}", attempt(1));
    {
        let local = Local::open(options(folder.path()), &origin);
        assert_eq!(page(&local, "/v1/holds").unwrap(), serde_json::json!({ "attempts": [] }));
        one.put(&local.endpoint(), hold(1)).unwrap();
        two.put(&local.endpoint(), hold(1)).unwrap();
        // Cached is not held.
        chunk("three.bin", &of_attempt()).put(&local.endpoint(), PutMode::Cache).unwrap();
    }
    let local = Local::open(options(folder.path()), &origin);
    let attempts = page(&local, "/v1/holds").unwrap();
    assert_eq!(attempts["attempts"][0]["attempt"], attempt(1).to_string());
    assert_eq!((attempts["attempts"].as_array().unwrap().len(), &attempts["attempts"][0]["chunks"]), (1, &2.into()));

    let listed = page(&local, &of_one).unwrap();
    assert_eq!(listed["objects_left_out"], 0);
    let objects = listed["objects"].as_array().unwrap();
    assert_eq!(objects.len(), 2, "{listed}");
    for (object, chunk) in objects.iter().zip([&one, &two]) {
        // The listing alone is enough to ask for the bytes.
        let text = |name: &str| object[name].as_str().unwrap();
        let version = Version::new(text("version")).unwrap();
        let artifact = Artifact::new(text("url"), version, object["size_bytes"].as_u64().unwrap()).unwrap();
        assert_eq!(object["chunks"], serde_json::json!([0]));
        let key = ChunkKey::new(Arc::new(artifact), 0).unwrap();
        assert_eq!(key, chunk.key);
        let (bytes, _) = fetch(&local.endpoint(), &request(&key, Mode::OnlyIfCached, true)).unwrap();
        assert_eq!(bytes, chunk.bytes);
    }
    let records = format!("{of_one}/records");
    assert_eq!(page(&local, &records).unwrap()["objects"], serde_json::json!([]));
    let record = chunk(&longshore_types::checkpoint::held_record_name(&attempt(1), 3), &of_attempt());
    record.put(&local.endpoint(), hold(1)).unwrap();
    let listed = page(&local, &records).unwrap();
    let urls: Vec<&str> = listed["objects"].as_array().unwrap().iter().map(|o| o["url"].as_str().unwrap()).collect();
    assert_eq!(urls, [record.key.artifact().url()]);

    for unknown in [format!("/v1/holds/{}", attempt(2)), "/v1/holds/x".to_owned(), "/v1/holdsx".to_owned()] {
        assert_eq!(page(&local, &unknown).unwrap_err().code(), Code::NotFound, "{unknown}");
    }
    client().release(&local.endpoint(), &attempt(1)).unwrap();
    assert_eq!(page(&local, &of_one).unwrap_err().code(), Code::NotFound);
}
