//! What reading an object costs, way by way, beside plain GETs of the same bytes over blocking sockets.
//!
//! Hypothesis: receiving straight into the caller's memory costs what plain GETs cost, plus the checksum; the way through
//! the HTTP library, with its buffers and its runtime, twice that. The origin is a process of its own
//! (`fake-origin --generate bucket/big.bin=1GiB`), so that the CPU seconds of both sides are told apart:
//! `cargo run --release --example read_cost -p longshore-origin -- PATH/TO/fake-origin [CONNECTIONS] [ORIGIN FLAGS...]`.
//! All ways in turns, each into memory that was touched before; the best of five rounds.

// An example may fail as a test may.
#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use futures::StreamExt;
use longshore_origin::{OriginOptions, Origins};
use longshore_types::Artifact;
use tokio_util::sync::CancellationToken;

const SIZE: u64 = 1 << 30;
const CHUNK: u64 = 16 << 20;
const URL: &str = "s3://bucket/big.bin";

struct Origin {
    process: Child,
    address: String,
}

impl Origin {
    fn start(program: &str, flags: &[String]) -> Origin {
        let mut command = Command::new(program);
        command.args(["--generate", &format!("bucket/big.bin={SIZE}")]).args(flags).stdout(Stdio::piped());
        let mut process = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim().rsplit_once("http://").unwrap().1.to_owned();
        Origin { process, address }
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// CPU seconds of a process, its threads included.
fn cpu(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    ticks as f64 / 100.0
}

/// Deals the chunks to threads, each with a connection and memory of its own that were used before.
fn deal(read: impl Fn(&mut Option<TcpStream>, u64, &mut [u8]) + Sync, places: &mut [(Option<TcpStream>, Vec<u8>)]) {
    let next = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for (connection, buffer) in places {
            let (next, read) = (&next, &read);
            scope.spawn(move || {
                loop {
                    let start = next.fetch_add(CHUNK, Ordering::Relaxed);
                    if start >= SIZE {
                        return;
                    }
                    read(connection, start, buffer);
                }
            });
        }
    });
}

fn plain_get(address: &str, connection: &mut Option<TcpStream>, start: u64, buffer: &mut [u8]) {
    let stream = connection.get_or_insert_with(|| TcpStream::connect(address).unwrap());
    let last = start + buffer.len() as u64 - 1;
    write!(stream, "GET /bucket/big.bin HTTP/1.1\r\nHost: {address}\r\nRange: bytes={start}-{last}\r\n\r\n").unwrap();
    let mut head = Vec::new();
    let mut byte = [0; 1024];
    let early = loop {
        let len = stream.read(&mut byte).unwrap();
        head.extend_from_slice(&byte[..len]);
        if let Some(end) = head.windows(4).position(|window| window == b"\r\n\r\n") {
            break head.split_off(end + 4);
        }
    };
    buffer[..early.len()].copy_from_slice(&early);
    for piece in buffer[early.len()..].chunks_mut(256 << 10) {
        stream.read_exact(piece).unwrap();
    }
}

fn main() {
    let mut args = std::env::args().skip(1);
    let program = args.next().expect("the path of fake-origin");
    let threads: usize = args.next().map_or(4, |text| text.parse().unwrap());
    let flags: Vec<String> = args.collect();
    let origin = Origin::start(&program, &flags);
    let options = OriginOptions {
        s3_endpoint: Some(format!("http://{}", origin.address)),
        s3_access_key_id: Some("id".to_owned()),
        s3_secret_access_key: Some("secret".into()),
        ..OriginOptions::default()
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let origins = Origins::new(options).unwrap();
    let artifact: Arc<Artifact> = Arc::new(runtime.block_on(origins.stat(URL)).unwrap());
    let mut places: Vec<_> = (0..threads).map(|_| (None, vec![1u8; CHUNK as usize])).collect();

    let streamed = |_: &mut Option<TcpStream>, start: u64, buffer: &mut [u8]| {
        runtime.block_on(async {
            let (mut at, mut body) = (0, origins.read(&artifact, start..start + buffer.len() as u64));
            while let Some(piece) = body.next().await {
                let piece = piece.unwrap();
                buffer[at..at + piece.len()].copy_from_slice(&piece);
                at += piece.len();
            }
            assert_eq!(at, buffer.len());
        });
    };
    let plain = |connection: &mut Option<TcpStream>, start: u64, buffer: &mut [u8]| {
        plain_get(&origin.address, connection, start, buffer);
    };
    let token = CancellationToken::new();
    let straight = |_: &mut Option<TcpStream>, start: u64, mut buffer: &mut [u8]| {
        let range = start..start + buffer.len() as u64;
        origins.read_into(&artifact, range, &mut buffer, runtime.handle(), &token).unwrap();
    };
    type Read<'a> = &'a (dyn Fn(&mut Option<TcpStream>, u64, &mut [u8]) + Sync);
    let ways: [(&str, Read<'_>); 3] = [("plain GETs", &plain), ("read", &streamed), ("read_into", &straight)];
    let mut best = vec![(f64::INFINITY, 0.0, 0.0); ways.len()];
    for _ in 0..5 {
        for (index, (_, read)) in ways.iter().enumerate() {
            let before = (cpu(std::process::id()), cpu(origin.process.id()));
            let started = Instant::now();
            deal(read, &mut places);
            let seconds = started.elapsed().as_secs_f64();
            if seconds < best[index].0 {
                best[index] = (seconds, cpu(std::process::id()) - before.0, cpu(origin.process.id()) - before.1);
            }
        }
    }
    let gb = SIZE as f64 / 1e9;
    for ((name, _), (seconds, own, of_origin)) in ways.iter().zip(best) {
        let (rate, own, of_origin) = (gb / seconds, own / gb, of_origin / gb);
        println!("{name:12} {rate:6.2} GB/s, {own:.2} CPU s/GB here, {of_origin:.2} at the origin");
    }
}
