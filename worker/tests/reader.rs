//! Random reads of what a worker caches, through the reader that clients use.
#![allow(clippy::unwrap_used)]

mod common;

use std::time::Instant;

use common::*;
use longshore_testkit::{Content, FakeOrigin};
use longshore_types::{CHUNK_BYTES, ChunkKey};
use longshore_wire::{FileReader, Mode, ReaderOptions};

const OBJECT: &str = "bucket/model/data.bin";
const URL: &str = "s3://bucket/model/data.bin";
/// Two chunks and a bit, with a last block that is short.
const SIZE: u64 = 2 * CHUNK_BYTES + (3 << 20) + 7;

fn reader(local: &Local, key: &ChunkKey) -> FileReader {
    let endpoint = local.endpoint();
    let places = move |_: &ChunkKey| vec![(endpoint.clone(), Mode::Fill)];
    FileReader::new(client(), key.artifact().clone(), &ReaderOptions::default(), places)
}

/// Reads at places all over the object, the last of them at its end.
fn check(reader: &FileReader, content: &Content) {
    let mut out = [0; 5000];
    for at in (0..SIZE).step_by(777_777).chain([SIZE - 3000]) {
        let count = reader.read_at(at, &mut out).unwrap();
        assert_eq!(count as u64, (SIZE - at).min(5000));
        assert_eq!(content.first_difference(at, &out[..count]), None, "from {at} on");
    }
}

#[test]
fn a_miss_is_filled_and_a_chunk_in_memory_is_read_out_of_its_file() {
    let origin = FakeOrigin::start();
    origin.generate(OBJECT, 7, SIZE);
    let content = origin.content(OBJECT).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let local = Local::open(options(folder.path()), &origin);
    let key = &local.chunks(URL)[0];
    check(&reader(&local, key), &content);
    let deadline = Instant::now() + LONG;
    while local.worker.status().disk.unwrap().chunks < 3 {
        assert!(Instant::now() < deadline, "the chunks were never written");
        std::thread::yield_now();
    }
    // It is in memory still: whoever reads a whole chunk gets it from there.
    let later = reader(&local, key);
    check(&later, &content);
    check(&later, &content);
    let stats = later.stats();
    assert_eq!((stats.open_files, stats.blocks_fetched, stats.mismatches), (3, 0, 0), "{stats:?}");
    assert_eq!(stats.blocks_verified, 36, "each block was verified once");
}
