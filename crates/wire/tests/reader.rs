//! Random reads through real sockets: the right bytes or an error, whatever becomes of the files behind them.
#![allow(clippy::unwrap_used)]

#[path = "data_plane/support.rs"]
#[allow(dead_code)]
mod support;

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, LazyLock, Mutex};

use longshore_types::{Artifact, BLOCK_BYTES, BlockChecksum, CHUNK_BYTES, ChunkKey, Code, Version};
use longshore_wire::{
    ChunkBody, ChunkReply, ChunkRequest, ChunkService, Endpoint, FileReader, Mode, Page, ReaderOptions, ServerOptions,
    Tier,
};
use proptest::prelude::*;

use support::{Running, client, content, not_found, start};

const CHUNK: usize = CHUNK_BYTES as usize;
const BLOCK: usize = BLOCK_BYTES as usize;
const PAGE: usize = 4096;
/// Two chunks, the second with a short block whose last page is short too.
const LEN: usize = CHUNK + 2 * BLOCK + 5000;

static CONTENT: LazyLock<Vec<u8>> = LazyLock::new(|| content(LEN));

fn artifact(len: u64) -> Arc<Artifact> {
    Arc::new(Artifact::new("s3://bucket/model.bin", Version::new("etag:1").unwrap(), len).unwrap())
}

fn good_chunk(index: usize) -> ChunkBody {
    support::file_body(&CONTENT[index * CHUNK..LEN.min((index + 1) * CHUNK)])
}

/// A worker whose copies a test can damage. With a recheck it takes a good copy from its spare ones, if there is any.
#[derive(Default)]
struct Copies {
    chunks: Mutex<HashMap<u32, ChunkBody>>,
    spare: Mutex<HashMap<u32, ChunkBody>>,
    asked: AtomicUsize,
    rechecks: AtomicUsize,
}

struct Worker(Arc<Copies>);

impl ChunkService for Worker {
    fn get(&self, request: &ChunkRequest) -> longshore_types::Result<ChunkReply> {
        self.0.asked.fetch_add(1, Relaxed);
        let index = request.key.index();
        let mut chunks = self.0.chunks.lock().unwrap();
        if request.recheck {
            self.0.rechecks.fetch_add(1, Relaxed);
            if let Some(good) = self.0.spare.lock().unwrap().remove(&index) {
                chunks.insert(index, good);
            }
        }
        let body = chunks.get(&index).cloned().ok_or_else(not_found)?;
        Ok(ChunkReply { tier: Tier::Disk, body })
    }

    fn page(&self, _: &str) -> Option<Page> {
        None
    }
}

impl Copies {
    fn of_files() -> Arc<Copies> {
        let copies = Copies::default();
        *copies.chunks.lock().unwrap() = (0..2).map(|index| (index as u32, good_chunk(index))).collect();
        Arc::new(copies)
    }

    fn start(self: &Arc<Self>) -> Running {
        start(ServerOptions::default(), Arc::new(Worker(self.clone())))
    }

    /// Turns one bit of a chunk's file, as a disk does it.
    fn flip(&self, offset: usize) {
        let chunks = self.chunks.lock().unwrap();
        let file: &File = support::file_of(&chunks[&((offset / CHUNK) as u32)]);
        // See `support::file_body`.
        let at = (offset % CHUNK + 4096) as u64;
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 0x10], at).unwrap();
    }
}

fn reader(options: &ReaderOptions, places: Vec<(Endpoint, Mode)>) -> FileReader {
    FileReader::new(client(), artifact(LEN as u64), options, move |_: &ChunkKey| places.clone())
}

fn at_once(endpoint: Endpoint) -> FileReader {
    reader(&ReaderOptions::default(), vec![(endpoint, Mode::Fill)])
}

fn check(reader: &FileReader, offset: usize, len: usize) {
    let mut out = vec![0xee; len];
    let count = reader.read_at(offset as u64, &mut out).unwrap();
    let wanted = &CONTENT[offset.min(LEN)..LEN.min(offset.saturating_add(len))];
    assert_eq!(count, wanted.len(), "{len} bytes from {offset} on");
    assert!(out[..count] == *wanted, "{len} bytes from {offset} on");
    assert!(out[count..].iter().all(|byte| *byte == 0xee), "what is beyond the end is not touched");
}

#[test]
fn any_place_gives_its_bytes_whatever_the_way() {
    let files = Copies::of_files().start();
    let memory = Copies::default();
    for index in 0..2 {
        let bytes = &CONTENT[index * CHUNK..LEN.min((index + 1) * CHUNK)];
        let key = ChunkKey::new(artifact(LEN as u64), index as u32).unwrap();
        memory.chunks.lock().unwrap().insert(index as u32, support::memory_body(&key, bytes));
    }
    let memory = Arc::new(memory);
    let of_memory = memory.start();
    let tight = ReaderOptions { open_files_max: 1, checksum_bytes_max: 4096, blocks_max: 2 };
    let places = [
        files.unix(),
        files.tcp(),
        of_memory.unix(),
        Endpoint::InProcess(Arc::new(Worker(Copies::of_files()))),
        Endpoint::InProcess(Arc::new(Worker(memory.clone()))),
    ];
    let readers: Vec<FileReader> = places
        .iter()
        .flat_map(|place| [at_once(place.clone()), reader(&tight, vec![(place.clone(), Mode::Fill)])])
        .collect();
    let offsets = prop_oneof![
        0..LEN + 10,
        LEN - 6000..LEN + 10,
        CHUNK - 9000..CHUNK + 9000,
        (0..LEN / PAGE).prop_map(|page| page * PAGE),
    ];
    let lens = prop_oneof![0usize..9000, 0usize..3 * BLOCK, Just(PAGE), Just(1usize)];
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases: 64,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    runner
        .run(&(offsets, lens), |(offset, len)| {
            readers.iter().for_each(|reader| check(reader, offset, len));
            Ok(())
        })
        .unwrap();
    readers.iter().for_each(|reader| check(reader, 0, LEN + 1));
    for (place, pair) in places.iter().zip(readers.chunks(2)) {
        let stats = pair[0].stats();
        let by_file = !matches!(place, Endpoint::Tcp(_)) && stats.blocks_fetched == 0;
        assert_eq!(stats.blocks_verified + stats.blocks_fetched, 19, "{place}: once each");
        assert_eq!(stats.open_files, if by_file { 2 } else { 0 }, "{place}");
        let stats = pair[1].stats();
        assert!(stats.open_files <= 1 && stats.blocks_held <= 2 && stats.mismatches == 0, "{place}: {stats:?}");
    }
}

#[test]
fn the_end_is_the_end() {
    let server = Copies::of_files().start();
    let reader = at_once(server.unix());
    check(&reader, 0, 0);
    assert_eq!(reader.stats().blocks_verified, 0, "nothing is read for nothing");
    check(&reader, LEN, 10);
    check(&reader, LEN - 1, 10);
    assert_eq!(reader.read_at(u64::MAX, &mut [0; 10]).unwrap(), 0);
    let empty = FileReader::new(client(), artifact(0), &ReaderOptions::default(), |_: &ChunkKey| Vec::new());
    assert_eq!(empty.read_at(0, &mut [0; 10]).unwrap(), 0);
    let nobody = self::reader(&ReaderOptions::default(), Vec::new());
    assert_eq!(nobody.read_at(0, &mut [0; 10]).unwrap_err().code(), Code::Unavailable);
}

#[test]
fn a_bit_that_flipped_is_found_before_the_first_touch() {
    let copies = Copies::of_files();
    copies.flip(CHUNK + BLOCK + 7);
    let server = copies.start();
    let reader = at_once(server.unix());
    check(&reader, CHUNK, BLOCK);
    // Far from the bit, in the same block: the block as a whole must be good once.
    let error = reader.read_at((CHUNK + 2 * BLOCK - 5) as u64, &mut [0; 5]).unwrap_err();
    assert_eq!(error.code(), Code::Corrupt);
    assert!(error.message().contains("block 1 of chunk 1 of s3://bucket/model.bin is damaged"), "{error}");
    assert_eq!(copies.rechecks.load(Relaxed), 1, "the worker was asked to look");

    copies.spare.lock().unwrap().insert(1, good_chunk(1));
    check(&reader, CHUNK + BLOCK, BLOCK);
    assert_eq!(copies.rechecks.load(Relaxed), 2);
}

#[test]
fn a_bit_that_flipped_is_found_after_the_first_touch() {
    let copies = Copies::of_files();
    let server = copies.start();
    let reader = at_once(server.unix());
    let offset = 3 * BLOCK + 17 * PAGE + 5;
    check(&reader, offset, 100);
    copies.flip(offset + 50);
    check(&reader, 3 * BLOCK, 17 * PAGE);
    check(&reader, 3 * BLOCK + 18 * PAGE, 100);
    assert_eq!(reader.stats().mismatches, 0);
    // The byte is in the page, and not in what is asked for: pages are compared whole.
    let error = reader.read_at(offset as u64, &mut [0; 10]).unwrap_err();
    assert_eq!(error.code(), Code::Corrupt);
    assert!(error.message().contains("block 3 of chunk 0") && error.message().contains("page 17"), "{error}");
    let before = reader.stats().mismatches;
    assert!(before >= 1 && copies.rechecks.load(Relaxed) >= 1);

    copies.spare.lock().unwrap().insert(0, good_chunk(0));
    check(&reader, offset, 100);
}

#[test]
fn a_copy_that_is_whole_and_something_else_is_not_taken() {
    let copies = Copies::of_files();
    let server = copies.start();
    let tight = ReaderOptions { open_files_max: 1, ..ReaderOptions::default() };
    let reader = reader(&tight, vec![(server.unix(), Mode::Fill)]);
    check(&reader, 5, 10);
    check(&reader, CHUNK, 10);
    copies.chunks.lock().unwrap().insert(0, support::file_body(&vec![7; CHUNK]));
    let error = reader.read_at(5, &mut [0; 10]).unwrap_err();
    assert!(error.code() == Code::Corrupt && error.message().contains("before"), "{error}");
}

#[test]
fn chunks_that_are_evicted_or_cut_short_are_read_all_the_same() {
    let (near, far) = (Copies::of_files(), Copies::of_files());
    let (near_server, far_server) = (near.start(), far.start());
    let places = vec![(near_server.unix(), Mode::OnlyIfCached), (far_server.tcp(), Mode::Fill)];
    let reader = reader(&ReaderOptions::default(), places);
    check(&reader, 0, 2 * BLOCK);
    let evicted = near.chunks.lock().unwrap().remove(&0).unwrap();
    // The open file outlives its name; a block that was not touched is asked for, and found elsewhere.
    check(&reader, BLOCK - 10, 20);
    assert_eq!((far.asked.load(Relaxed), reader.stats().blocks_verified), (0, 2));
    check(&reader, 5 * BLOCK, 10);
    assert_eq!((far.asked.load(Relaxed), reader.stats().blocks_fetched), (1, 1));
    // Whatever becomes of the file itself.
    support::file_of(&evicted).set_len(4096 + 100).unwrap();
    check(&reader, BLOCK - 10, 20);
    assert_eq!(reader.stats().blocks_fetched, 3);
    assert!(reader.stats().mismatches >= 1);
    drop(far_server);
    check(&reader, BLOCK - 10, 20);
}

#[test]
fn many_threads_read_within_the_bounds() {
    let copies = Copies::of_files();
    let server = copies.start();
    let tight = ReaderOptions { open_files_max: 1, checksum_bytes_max: 8 << 10, blocks_max: 3 };
    let near = reader(&tight, vec![(server.unix(), Mode::Fill)]);
    let far = reader(&tight, vec![(server.tcp(), Mode::Fill)]);
    std::thread::scope(|scope| {
        for thread in 0..8usize {
            let readers = [&near, &far];
            scope.spawn(move || {
                let mut place = thread * 999_983;
                for turn in 0..60 {
                    place = place.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(turn) % LEN;
                    check(readers[turn % 2], place, 5000);
                }
            });
        }
    });
    for stats in [near.stats(), far.stats()] {
        assert!(stats.open_files <= 1 && stats.blocks_held <= 3 && stats.mismatches == 0, "{stats:?}");
    }
}

#[test]
fn a_file_that_was_closed_for_room_is_opened_again_and_not_verified_again() {
    const CHUNKS: usize = 40;
    let blocks = vec![BlockChecksum::of(&vec![0; BLOCK]); CHUNK / BLOCK];
    let file = tempfile::tempfile().unwrap();
    file.set_len(CHUNK_BYTES).unwrap();
    let body = ChunkBody::File { file: Arc::new(file), offset_bytes: 0, checksums: blocks.into() };
    let server = start(ServerOptions::default(), support::Service::of(body));
    let unix = server.unix();
    let options = ReaderOptions { open_files_max: 4, ..ReaderOptions::default() };
    let artifact = artifact((CHUNKS * CHUNK) as u64);
    let reader = FileReader::new(client(), artifact, &options, move |_: &ChunkKey| vec![(unix.clone(), Mode::Fill)]);
    for _ in 0..2 {
        for chunk in 0..CHUNKS {
            let mut out = [1; 100];
            assert_eq!(reader.read_at((chunk * CHUNK + 5) as u64, &mut out).unwrap(), 100);
            assert_eq!(out, [0; 100]);
            assert!(reader.stats().open_files <= 4);
        }
    }
    assert_eq!((reader.stats().blocks_verified, reader.stats().mismatches), (CHUNKS as u64, 0));
    assert!(server.stats().files_handed_over > CHUNKS as u64 + 30);
}
