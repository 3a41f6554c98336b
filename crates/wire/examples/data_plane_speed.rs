//! How much of the machine's own speed the data plane keeps.
//!
//! Hypothesis: over TCP at least 85 % of a bare sendfile-to-recv at no more than 1.25 times its CPU seconds, and by
//! descriptor at least 90 % of a plain `pread` of the same bytes, checksums included in both.
//!
//! Warm: one file, just written, so that it lies in the page cache; both ends in this process. Each thread lands in
//! 256 MiB of its own, chunk after chunk, touched before: as in a load, the destination is in no cache. The ways take
//! turns, round by round; each line gives the median over the rounds, and the median of the ratios to the limit of
//! the same round. CPU time comes in steps of 10 ms: measure at least 4 GiB a round.
//!
//! `cargo run --release -p longshore-wire --example data_plane_speed -- [GiB a round] [threads] [rounds] [only ways with one of these,in,their,names]`
#![allow(clippy::unwrap_used)]

use std::collections::VecDeque;
use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::{Duration, Instant};

use longshore_memory::{Arena, Buffer, Landing, RegionWriter, Window};
use longshore_types::{Artifact, BLOCK_BYTES, BlockChecksum, CHUNK_BYTES, ChunkKey, Code, Error, Result, Version};
use longshore_wire::{
    ChunkBody, ChunkReply, ChunkRequest, ChunkService, ClientOptions, DataClient, DataServer, Endpoint, GrowingChunk,
    Page, ServerOptions, Tier,
};
use tokio_util::sync::CancellationToken;

const CHUNK: usize = CHUNK_BYTES as usize;
const BLOCK: usize = BLOCK_BYTES as usize;
/// Chunk buffers of a thread, used in turn.
const BUFFERS: usize = 16;

struct Bench {
    file: Arc<File>,
    artifact: Arc<Artifact>,
    checksums: Vec<Arc<[BlockChecksum]>>,
    /// The first chunks, in memory.
    memory: Vec<Arc<GrowingChunk>>,
    arena: Arena,
    threads: usize,
}

/// Serves the chunks from the file, or, asked for what is cached only, from memory.
struct Service(Arc<Bench>);

impl ChunkService for Service {
    fn get(&self, request: &ChunkRequest) -> Result<ChunkReply> {
        let index = request.key.index() as usize;
        if request.mode == longshore_wire::Mode::OnlyIfCached {
            let body = ChunkBody::Memory(self.0.memory[index % self.0.memory.len()].clone());
            return Ok(ChunkReply { tier: Tier::Memory, body });
        }
        let checksums = self.0.checksums.get(index).ok_or_else(|| Error::new(Code::NotFound, "no such chunk"))?.clone();
        let body = ChunkBody::File { file: self.0.file.clone(), offset_bytes: (index * CHUNK) as u64, checksums };
        Ok(ChunkReply { tier: Tier::Disk, body })
    }

    fn page(&self, _path: &str) -> Option<Page> {
        None
    }
}

impl Bench {
    fn new(gib: u64, threads: usize) -> Bench {
        let chunks = (gib << 30) / CHUNK_BYTES;
        let file = tempfile::tempfile_in(std::env::var("LONGSHORE_BENCH_DIR").unwrap_or("/tmp".into())).unwrap();
        let artifact = Artifact::new("bench:///model", Version::new("v").unwrap(), chunks * CHUNK_BYTES).unwrap();
        let (artifact, arena) = (Arc::new(artifact), Arena::new(((threads * BUFFERS) as u64 + 4) * CHUNK_BYTES));
        let mut bytes = vec![0u8; CHUNK];
        let mut checksums = Vec::new();
        let mut memory = Vec::new();
        for index in 0..chunks {
            for (i, word) in bytes.chunks_exact_mut(8).enumerate() {
                let value = (index << 32 | i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
                word.copy_from_slice(&value.to_le_bytes());
            }
            file.write_all_at(&bytes, index * CHUNK_BYTES).unwrap();
            checksums.push(BlockChecksum::of_blocks(&bytes).into());
            if memory.len() < 4 {
                let key = ChunkKey::new(artifact.clone(), index as u32).unwrap();
                let (mut writer, chunk) = GrowingChunk::begin(key, arena.try_buffer(CHUNK).unwrap()).unwrap();
                writer.write(&bytes).unwrap();
                writer.finish().unwrap();
                memory.push(chunk);
            }
        }
        Bench { file: Arc::new(file), artifact, checksums, memory, arena, threads }
    }

    fn chunks(&self) -> u32 {
        self.checksums.len() as u32
    }

    /// Runs `work` for every chunk on all threads, each with its own buffers; gives GB/s and CPU seconds per GB.
    fn measure<W: FnMut(u32, Buffer) -> Buffer>(&self, worker: impl Fn() -> W + Sync) -> Speed {
        let buffer = |_| {
            let mut buffer = self.arena.buffer(CHUNK, Duration::from_secs(1)).unwrap();
            buffer.fill(1);
            buffer
        };
        let rings: Vec<VecDeque<Buffer>> = (0..self.threads).map(|_| (0..BUFFERS).map(buffer).collect()).collect();
        let next = AtomicU32::new(0);
        let (cpu, start) = (cpu_seconds(), Instant::now());
        std::thread::scope(|scope| {
            for mut ring in rings {
                let (next, worker) = (&next, &worker);
                scope.spawn(move || {
                    let mut work = worker();
                    loop {
                        let chunk = next.fetch_add(1, Relaxed);
                        if chunk >= self.chunks() {
                            return;
                        }
                        let buffer = ring.pop_front().unwrap();
                        ring.push_back(work(chunk, buffer));
                    }
                });
            }
        });
        let gb = self.artifact.size_bytes() as f64 / 1e9;
        Speed { rate: gb / start.elapsed().as_secs_f64(), cpu: (cpu_seconds() - cpu) / gb }
    }

    fn fetch(&self, client: &DataClient, endpoint: &Endpoint, memory: bool) -> Speed {
        let mode = if memory { longshore_wire::Mode::OnlyIfCached } else { longshore_wire::Mode::Fill };
        self.measure(|| {
            |chunk, buffer| {
                let chunk = if memory { chunk % self.memory.len() as u32 } else { chunk };
                let key = ChunkKey::new(self.artifact.clone(), chunk).unwrap();
                let mut landing = Landing::builder().buffer(buffer, Vec::new()).take(CHUNK).build().unwrap();
                let request = ChunkRequest { mode, ..ChunkRequest::whole(key) };
                client.fetch(endpoint, &request, &mut landing).unwrap();
                landing.into_buffers().remove(0)
            }
        })
    }

    /// Runs `work` for every chunk on all threads, into a region that nobody touched before: what a load does where
    /// the memory is the host's. Both sides of the comparison pay for the kernel's zeroing of its pages.
    fn measure_fresh(&self, work: impl Fn(u32, Window) + Sync) -> Speed {
        let len = self.artifact.size_bytes();
        let arena = Arena::new(len + CHUNK_BYTES);
        let region = RegionWriter::create("speed", len, arena.try_reserve(len).unwrap()).unwrap();
        let next = AtomicU32::new(0);
        let (cpu, start) = (cpu_seconds(), Instant::now());
        std::thread::scope(|scope| {
            for _ in 0..self.threads {
                scope.spawn(|| {
                    loop {
                        let chunk = next.fetch_add(1, Relaxed);
                        if chunk >= self.chunks() {
                            return;
                        }
                        let start = u64::from(chunk) * CHUNK_BYTES;
                        work(chunk, region.claim(start..start + CHUNK_BYTES).unwrap());
                    }
                });
            }
        });
        let gb = len as f64 / 1e9;
        Speed { rate: gb / start.elapsed().as_secs_f64(), cpu: (cpu_seconds() - cpu) / gb }
    }

    fn fresh_pread(&self) -> Speed {
        self.measure_fresh(|chunk, mut window| {
            for (i, block) in window.chunks_mut(BLOCK).enumerate() {
                self.file.read_exact_at(block, u64::from(chunk) * CHUNK_BYTES + (i * BLOCK) as u64).unwrap();
            }
        })
    }

    fn fresh_fetch(&self, client: &DataClient, endpoint: &Endpoint) -> Speed {
        self.measure_fresh(|chunk, window| {
            let request = ChunkRequest::whole(ChunkKey::new(self.artifact.clone(), chunk).unwrap());
            let mut landing = Landing::builder().window(window).build().unwrap();
            client.fetch(endpoint, &request, &mut landing).unwrap();
        })
    }

    /// The limit of a local read: `pread` by blocks, no checksum.
    fn plain_pread(&self) -> Speed {
        self.measure(|| {
            |chunk, mut buffer: Buffer| {
                for (i, block) in buffer.chunks_mut(BLOCK).enumerate() {
                    self.file.read_exact_at(block, u64::from(chunk) * CHUNK_BYTES + (i * BLOCK) as u64).unwrap();
                }
                buffer
            }
        })
    }

    /// The limit of TCP: the chunk's number goes over, sendfile answers, recv by blocks, no checksum.
    fn raw_tcp(&self, address: SocketAddr) -> Speed {
        self.measure(|| {
            let mut stream = TcpStream::connect(address).unwrap();
            stream.set_nodelay(true).unwrap();
            move |chunk, mut buffer: Buffer| {
                stream.write_all(&chunk.to_le_bytes()).unwrap();
                for block in buffer.chunks_mut(BLOCK) {
                    stream.read_exact(block).unwrap();
                }
                buffer
            }
        })
    }
}

fn serve_raw(file: Arc<File>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, file) = (stream.unwrap(), file.clone());
            stream.set_nodelay(true).unwrap();
            std::thread::spawn(move || {
                let mut chunk = [0; 4];
                while stream.read_exact(&mut chunk).is_ok() {
                    let mut at = u64::from(u32::from_le_bytes(chunk)) * CHUNK_BYTES;
                    let end = at + CHUNK_BYTES;
                    while at < end {
                        let left = (end - at) as usize;
                        rustix::fs::sendfile(&stream, &file, Some(&mut at), left).unwrap();
                    }
                }
            });
        }
    });
    address
}

#[derive(Clone, Copy)]
struct Speed {
    rate: f64,
    cpu: f64,
}

/// User and system time of this process, in steps of 10 ms.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let after_name = stat.rsplit_once(')').unwrap().1;
    let ticks: f64 = after_name.split_whitespace().skip(11).take(2).map(|field| field.parse::<f64>().unwrap()).sum();
    ticks / 100.0
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() {
    let argument =
        |index: usize, default| std::env::args().nth(index).map_or(default, |number| number.parse().unwrap());
    let (gib, threads, rounds) = (argument(1, 2), argument(2, 4) as usize, argument(3, 5));
    let only = std::env::args().nth(4).unwrap_or_default();
    let bench = Arc::new(Bench::new(gib, threads));
    let folder = tempfile::tempdir().unwrap();
    let unix = folder.path().join("data.sock");
    let service: Arc<dyn ChunkService> = Arc::new(Service(bench.clone()));
    let options =
        ServerOptions { tcp: "127.0.0.1:0".parse().ok(), unix: Some(unix.clone()), ..ServerOptions::default() };
    let server = DataServer::bind(options, service.clone()).unwrap();
    let tcp = Endpoint::Tcp(server.tcp_addr().unwrap().to_string());
    let (unix, here) = (Endpoint::Unix(unix), Endpoint::InProcess(service));
    let token = CancellationToken::new();
    let handle = server.spawn(token.clone()).unwrap();
    let raw = serve_raw(bench.file.clone());
    let client = DataClient::new(ClientOptions { connections_per_endpoint_max: threads, ..ClientOptions::default() });

    type Way<'a> = (&'static str, usize, Box<dyn Fn() -> Speed + 'a>);
    let ways: Vec<Way<'_>> = vec![
        ("raw TCP: sendfile to recv", 0, Box::new(|| bench.raw_tcp(raw))),
        ("wire TCP, from a file", 0, Box::new(|| bench.fetch(&client, &tcp, false))),
        ("wire TCP, from memory", 0, Box::new(|| bench.fetch(&client, &tcp, true))),
        ("plain pread", 3, Box::new(|| bench.plain_pread())),
        ("wire unix, by descriptor", 3, Box::new(|| bench.fetch(&client, &unix, false))),
        ("wire unix, from memory", 3, Box::new(|| bench.fetch(&client, &unix, true))),
        ("wire in process, from a file", 3, Box::new(|| bench.fetch(&client, &here, false))),
        ("wire in process, from memory", 3, Box::new(|| bench.fetch(&client, &here, true))),
        ("fresh region: plain pread", 8, Box::new(|| bench.fresh_pread())),
        ("fresh region: by descriptor", 8, Box::new(|| bench.fresh_fetch(&client, &unix))),
    ];
    let mut runs: Vec<Vec<Speed>> = vec![Vec::new(); ways.len()];
    for round in 0..=rounds {
        for (runs, (name, _, way)) in
            runs.iter_mut().zip(&ways).filter(|(_, (name, ..))| only.split(',').any(|part| name.contains(part)))
        {
            let speed = way();
            eprintln!("round {round}: {name}: {:.2} GB/s, {:.3} CPU s/GB", speed.rate, speed.cpu);
            // The first round warms up.
            if round > 0 {
                runs.push(speed);
            }
        }
    }
    println!("{gib} GiB a round, {threads} threads, median of {rounds} rounds");
    println!("{:<30} {:>8} {:>10} {:>8} {:>8}", "", "GB/s", "CPU s/GB", "rate", "CPU");
    for (index, (name, limit, _)) in ways.iter().enumerate() {
        if runs[index].is_empty() || runs[*limit].is_empty() {
            continue;
        }
        let of = |value: fn(&Speed) -> f64| median(runs[index].iter().map(value).collect());
        let ratio = |value: fn(&Speed) -> f64| {
            median(runs[index].iter().zip(&runs[*limit]).map(|(a, b)| value(a) / value(b)).collect())
        };
        let (rate, cpu) = (of(|speed| speed.rate), of(|speed| speed.cpu));
        let (rate_ratio, cpu_ratio) = (ratio(|speed| speed.rate), ratio(|speed| speed.cpu));
        println!("{name:<30} {rate:>8.2} {cpu:>10.3} {:>7.0}% {cpu_ratio:>7.2}x", rate_ratio * 100.0);
    }
    token.cancel();
    handle.join();
}
