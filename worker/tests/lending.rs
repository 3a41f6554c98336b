//! A worker whose loaders are on its host: chunks in memory are read where they lie, within the budget, and never changed
//! under a reader.

#![allow(clippy::unwrap_used)]

mod common;

use std::path::Path;
use std::sync::Arc;

use common::*;
use longshore_memory::{Arena, Landing, SharedPages, shared_memory};
use longshore_testkit::{Content, FakeOrigin, Fault, FaultKind};
use longshore_types::{ByteSize, CHUNK_BYTES, ChunkKey, Code};
use longshore_wire::{DataServer, Endpoint, Mode, ServerHandle, ServerOptions};
use longshore_worker::WorkerOptions;
use tokio_util::sync::CancellationToken;

const OBJECT: &str = "bucket/model/data.bin";
const URL: &str = "s3://bucket/model/data.bin";
/// More than the memory tier holds, with a short end.
const SIZE: u64 = 12 * CHUNK_BYTES + (3 << 20) + 7;
const MEMORY: u64 = 192 << 20;

struct Node {
    local: Local,
    server: Option<ServerHandle>,
    token: CancellationToken,
    endpoint: Endpoint,
}

impl Node {
    fn start(folder: &Path, origin: &FakeOrigin) -> Node {
        let socket = folder.join("worker.sock");
        let options = WorkerOptions {
            memory_only: true,
            memory_bytes: Some(ByteSize(MEMORY)),
            unix_socket: Some(socket.clone()),
            ..options(folder)
        };
        let local = Local::open(options, origin);
        let server = ServerOptions { unix: Some(socket.clone()), ..ServerOptions::default() };
        let token = CancellationToken::new();
        let server = DataServer::bind(server, local.worker.clone()).unwrap().spawn(token.clone()).unwrap();
        Node { local, server: Some(server), token, endpoint: Endpoint::Unix(socket) }
    }

    /// Fetches a whole chunk over the socket, compares it, and says whether it was handed over.
    fn fetch(&self, client: &longshore_wire::DataClient, key: &ChunkKey, content: &Content) -> bool {
        let len = key.len_bytes() as usize;
        let buffer = Arena::new(CHUNK_BYTES).try_buffer(len).unwrap();
        let mut landing = Landing::builder().buffer(buffer, std::iter::once(0..len).collect()).build().unwrap();
        let fetched = client.fetch(&self.endpoint, &request(key, Mode::Fill, false), &mut landing).unwrap();
        let bytes = &landing.into_buffers()[0];
        assert_eq!(content.first_difference(key.range().start, bytes), None, "chunk {}", key.index());
        fetched.via_fd
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.token.cancel();
        if let Some(server) = self.server.take() {
            server.join();
        }
    }
}

fn lends() -> bool {
    shared_memory().pages() != SharedPages::Small
}

#[test]
fn readers_take_turns_with_evictions_and_every_byte_is_right() {
    let origin = FakeOrigin::start();
    origin.generate(OBJECT, 7, SIZE);
    let content = origin.content(OBJECT).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let node = Node::start(folder.path(), &origin);
    let keys = Arc::new(node.local.chunks(URL));
    let client = client();
    std::thread::scope(|scope| {
        for reader in 0..4 {
            let (node, keys, content, client) = (&node, &keys, &content, &client);
            scope.spawn(move || {
                for turn in 0..2 * keys.len() {
                    // All readers follow the same fill, or another one is a chunk ahead of them.
                    let key = &keys[(reader / 2 + turn) % keys.len()];
                    assert_eq!(node.fetch(client, key, content), lends(), "chunk {}", key.index());
                    assert!(node.local.metric("longshore_worker_arena_used_bytes") <= MEMORY as f64);
                }
            });
        }
    });
    let stats = node.server.as_ref().unwrap().stats();
    let fetches = 4 * 2 * keys.len() as u64;
    assert_eq!(stats.memory_handed_over, if lends() { fetches } else { 0 });
    assert_eq!((stats.sent_bytes == 0, stats.cut), (lends(), 0));
    let not_shared = node.local.metric("longshore_worker_fallbacks_total{kind=\"memory_not_shared\"}");
    assert_eq!(not_shared > 0.0, !lends(), "nothing is done in silence");
    assert_eq!(node.local.metric("longshore_worker_checksum_mismatches_total{tier=\"memory\"}"), 0.0);
}

#[test]
fn a_fill_that_fails_fails_its_readers_and_the_next_one_is_good() {
    let origin = FakeOrigin::start();
    origin.generate(OBJECT, 7, CHUNK_BYTES);
    let content = origin.content(OBJECT).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let node = Node::start(folder.path(), &origin);
    let key = &node.local.chunks(URL)[0];
    origin.fault(Fault::new(FaultKind::CutAfter(5 << 20)).times(1));
    origin.fault(Fault::new(FaultKind::Status(403)).skip(1));
    let client = client();
    let len = key.len_bytes() as usize;
    let buffer = Arena::new(CHUNK_BYTES).try_buffer(len).unwrap();
    let mut landing = Landing::builder().buffer(buffer, std::iter::once(0..len).collect()).build().unwrap();
    let fetched = client.fetch(&node.endpoint, &request(key, Mode::Fill, false), &mut landing);
    assert_eq!(fetched.unwrap_err().code(), Code::Unavailable);
    origin.clear_faults();
    assert_eq!(node.fetch(&client, key, &content), lends());
}
