//! Random reads of 4 kB of an object that a worker of this host has, beside `pread` of the same file. The aim: within twice
//! its time, every byte verified, after the first touch of a block. The bytes are in the page cache.

use std::fs::File;
use std::hint::black_box;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::Criterion;
use longshore_types::{Artifact, BlockChecksum, CHUNK_BYTES, ChunkKey, Error, Result, Version};
use longshore_wire::{
    ChunkBody, ChunkReply, ChunkRequest, ChunkService, ClientOptions, DataClient, DataServer, Endpoint, FileReader,
    Mode, Page, ReaderOptions, ServerOptions, Tier,
};
use tokio_util::sync::CancellationToken;

/// 512 MiB.
const CHUNKS: u64 = 32;
const READ_BYTES: usize = 4000;

/// A worker with one object, a chunk a file, as workers have them.
struct Worker {
    files: Vec<Arc<File>>,
    checksums: Arc<[BlockChecksum]>,
}

impl ChunkService for Worker {
    fn get(&self, request: &ChunkRequest) -> Result<ChunkReply> {
        let file = self.files.get(request.key.index() as usize).cloned();
        let file = file.ok_or_else(|| Error::new(longshore_types::Code::NotFound, "no such chunk"))?;
        let body = ChunkBody::File { file, offset_bytes: 0, checksums: self.checksums.clone() };
        Ok(ChunkReply { tier: Tier::Disk, body })
    }

    fn page(&self, _: &str) -> Option<Page> {
        None
    }
}

/// Places spread over the object.
struct Places(u64);

impl Places {
    fn next(&mut self) -> u64 {
        // xorshift64.
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % (CHUNKS * CHUNK_BYTES - READ_BYTES as u64)
    }
}

/// The time of `turns` reads by each of so many threads.
fn timed(threads: u64, turns: u64, read: &(impl Fn(u64, &mut [u8]) + Sync)) -> Duration {
    let begin = Instant::now();
    std::thread::scope(|scope| {
        for thread in 0..threads {
            scope.spawn(move || {
                let (mut places, mut out) = (Places(0x9e37_79b9_7f4a_7c15 + thread), [0; READ_BYTES]);
                for _ in 0..turns {
                    read(places.next(), &mut out);
                    black_box(&mut out);
                }
            });
        }
    });
    begin.elapsed()
}

pub fn benches(criterion: &mut Criterion) {
    let folder = tempfile::tempdir().expect("a folder");
    let chunk: Vec<u8> = (0..CHUNK_BYTES as u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let whole = File::create_new(folder.path().join("whole")).expect("a file");
    let files = (0..CHUNKS).map(|index| {
        whole.write_all_at(&chunk, index * CHUNK_BYTES).expect("room");
        let path = folder.path().join(index.to_string());
        std::fs::write(&path, &chunk).expect("room");
        Arc::new(File::open(path).expect("a file"))
    });
    let worker = Worker { files: files.collect(), checksums: BlockChecksum::of_blocks(&chunk).into() };
    let whole = File::open(folder.path().join("whole")).expect("a file");

    let unix = folder.path().join("data.sock");
    let options = ServerOptions { unix: Some(unix.clone()), ..ServerOptions::default() };
    let token = CancellationToken::new();
    let server = DataServer::bind(options, Arc::new(worker)).and_then(|server| server.spawn(token.clone()));
    let server = server.expect("a server");
    let version = Version::new("etag:1").expect("a version");
    let artifact = Artifact::new("s3://bucket/object", version, CHUNKS * CHUNK_BYTES).expect("an artifact");
    let artifact = Arc::new(artifact);
    let reader = || {
        let unix = unix.clone();
        let places = move |_: &ChunkKey| vec![(Endpoint::Unix(unix.clone()), Mode::OnlyIfCached)];
        FileReader::new(DataClient::new(ClientOptions::default()), artifact.clone(), &ReaderOptions::default(), places)
    };

    let mut group = criterion.benchmark_group("random");
    let plain = |at: u64, out: &mut [u8]| whole.read_exact_at(out, at).expect("bytes");
    let warm = reader();
    let verified = |at: u64, out: &mut [u8]| assert_eq!(warm.read_at(at, out).expect("bytes"), READ_BYTES);
    // Every block once.
    let mut out = vec![0; 1 << 20];
    (0..CHUNKS * 16).for_each(|block| assert!(warm.read_at(block << 20, &mut out).is_ok()));
    for threads in [1, 4] {
        group.bench_function(format!("random-4k-pread-{threads}"), |b| {
            b.iter_custom(|turns| timed(threads, turns, &plain));
        });
        group.bench_function(format!("random-4k-verified-{threads}"), |b| {
            b.iter_custom(|turns| timed(threads, turns, &verified));
        });
    }
    group.bench_function("random-4k-first-touch", |b| {
        let (mut fresh, mut block) = (reader(), 0);
        b.iter(|| {
            if block == CHUNKS * 16 {
                (fresh, block) = (reader(), 0);
            }
            block += 1;
            fresh.read_at((block - 1) << 20, &mut out[..READ_BYTES]).expect("bytes")
        });
    });
    group.finish();
    token.cancel();
    server.join();
}
