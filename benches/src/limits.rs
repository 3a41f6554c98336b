//! The plain limits: what the machine does when a few threads move the same bytes and do nothing else.
//!
//! The limits of sockets end in buffers that are used again and again; those of files come three times: into such
//! buffers, into fresh private memory, and into fresh memory that can be shared, which is what a load needs.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use longshore_memory::{Arena, Buffer, RegionWriter, Window};
use longshore_types::CHUNK_BYTES;

use crate::system::own_cpu_seconds;

/// Bytes that a socket is read for at once.
const READ_BYTES: usize = 256 << 10;

/// One measurement.
#[derive(Debug, Clone, Copy)]
pub struct Sample {
    /// Wall-clock seconds.
    pub seconds: f64,
    /// CPU seconds of every process that took part.
    pub cpu_seconds: f64,
}

/// Times `work` with the CPU of this process.
pub fn measure<T>(work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<(Sample, T)> {
    let (cpu, start) = (own_cpu_seconds(), Instant::now());
    let value = work()?;
    let sample = Sample { seconds: start.elapsed().as_secs_f64(), cpu_seconds: own_cpu_seconds() - cpu };
    Ok((sample, value))
}

/// Fresh memory for a whole model, one buffer a chunk.
fn fresh(size_bytes: u64) -> anyhow::Result<Vec<(Range<u64>, Buffer)>> {
    // An arena of its own each time: a shared one would hand out the memory of the round before.
    let arena = Arena::new(size_bytes + 2 * CHUNK_BYTES);
    chunks_of(size_bytes)
        .into_iter()
        .map(|range| {
            let buffer = arena.try_buffer((range.end - range.start) as usize).context("memory for the limit")?;
            Ok((range, buffer))
        })
        .collect()
}

/// Deals `items` to `threads` threads, each with what `make` gives it.
fn deal<I: Send, C>(
    items: Vec<I>,
    threads: u8,
    make: impl Fn() -> anyhow::Result<C> + Sync,
    work: impl Fn(&mut C, &mut I) -> anyhow::Result<()> + Sync,
) -> anyhow::Result<Vec<I>> {
    let queue = std::sync::Mutex::new(items.into_iter());
    let next = || queue.lock().ok().and_then(|mut queue| queue.next());
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|_| {
                scope.spawn(|| {
                    let (mut context, mut done) = (make()?, Vec::new());
                    while let Some(mut item) = next() {
                        work(&mut context, &mut item)?;
                        done.push(item);
                    }
                    Ok(done)
                })
            })
            .collect();
        let mut all = Vec::new();
        for worker in workers {
            let done: anyhow::Result<Vec<I>> =
                worker.join().map_err(|_| anyhow::anyhow!("a limit's thread panicked"))?;
            all.extend(done?);
        }
        Ok(all)
    })
}

/// One core copies memory to memory, both touched before.
pub fn memcpy(size_bytes: u64) -> anyhow::Result<Sample> {
    let source = vec![7u8; 64 << 20];
    let mut target = vec![1u8; 64 << 20];
    let (sample, ()) = measure(|| {
        for _ in 0..size_bytes.div_ceil(source.len() as u64) {
            std::hint::black_box(&mut target).copy_from_slice(std::hint::black_box(&source));
        }
        Ok(())
    })?;
    Ok(sample)
}

/// Threads read a resident file into fresh memory.
pub fn read_file(path: &Path, threads: u8) -> anyhow::Result<Sample> {
    let file = File::open(path)?;
    let size = file.metadata()?.len();
    let (sample, _) = measure(|| {
        deal(fresh(size)?, threads, || Ok(()), |(), (range, buffer)| Ok(file.read_exact_at(buffer, range.start)?))
    })?;
    Ok(sample)
}

/// Threads read a resident file into fresh memory that other processes can map: a memfd, as a load's region is.
pub fn read_file_shared(path: &Path, threads: u8) -> anyhow::Result<Sample> {
    let file = File::open(path)?;
    let size = file.metadata()?.len();
    let (sample, _region) = measure(|| {
        let arena = Arena::new(size + 2 * CHUNK_BYTES);
        let region = RegionWriter::create("limit", size, arena.try_reserve(size).context("memory for the limit")?)?;
        let claim = |range: Range<u64>| Ok((range.start, region.claim(range)?));
        let windows: Vec<(u64, Window)> = chunks_of(size).into_iter().map(claim).collect::<anyhow::Result<_>>()?;
        drop(deal(windows, threads, || Ok(()), |(), (start, window)| Ok(file.read_exact_at(window, *start)?))?);
        Ok(region.finish()?)
    })?;
    Ok(sample)
}

/// Threads read a resident file, each into one buffer that it uses again and again.
pub fn read_file_warm(path: &Path, threads: u8) -> anyhow::Result<Sample> {
    let file = File::open(path)?;
    let size = file.metadata()?.len();
    let (sample, _) = measure(|| {
        deal(
            chunks_of(size),
            threads,
            || Ok(warm_buffer()),
            |buffer, range| Ok(file.read_exact_at(&mut buffer[..(range.end - range.start) as usize], range.start)?),
        )
    })?;
    Ok(sample)
}

/// sendfile from a resident file to recv over loopback, both ends in this process, each thread into one buffer.
pub fn raw_tcp(path: &Path, threads: u8) -> anyhow::Result<Sample> {
    let file = File::open(path)?;
    let size = file.metadata()?.len();
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let (sample, _) = measure(|| {
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..threads {
                    let Ok((stream, _)) = listener.accept() else { return };
                    let file = &file;
                    scope.spawn(move || serve_ranges(stream, file));
                }
            });
            let make = || Ok((TcpStream::connect(address)?, warm_buffer()));
            deal(chunks_of(size), threads, make, |(stream, buffer), range| {
                let request = [range.start.to_le_bytes(), range.end.to_le_bytes()].concat();
                stream.write_all(&request)?;
                read_in_pieces(stream, &mut buffer[..(range.end - range.start) as usize])
            })
        })
    })?;
    Ok(sample)
}

/// Memory that was touched before.
fn warm_buffer() -> Vec<u8> {
    vec![1u8; CHUNK_BYTES as usize]
}

fn chunks_of(size_bytes: u64) -> Vec<Range<u64>> {
    let starts = (0..size_bytes).step_by(CHUNK_BYTES as usize);
    starts.map(|start| start..(start + CHUNK_BYTES).min(size_bytes)).collect()
}

/// Fills `buffer` from a socket in pieces that stay in a core's cache: larger reads measure slower here.
fn read_in_pieces(stream: &mut TcpStream, buffer: &mut [u8]) -> anyhow::Result<()> {
    buffer.chunks_mut(READ_BYTES).try_for_each(|piece| Ok(stream.read_exact(piece)?))
}

/// Answers 16-byte requests (start, end) with those bytes of the file, until the client leaves.
fn serve_ranges(mut stream: TcpStream, file: &File) -> anyhow::Result<()> {
    let mut request = [0u8; 16];
    while stream.read_exact(&mut request).is_ok() {
        let (start, end) = request.split_at(8);
        let (mut at, end) = (u64::from_le_bytes(start.try_into()?), u64::from_le_bytes(end.try_into()?));
        while at < end {
            let wanted = (end - at) as usize;
            let sent = rustix::fs::sendfile(&stream, file, Some(&mut at), wanted)?;
            ensure!(sent > 0, "the file ended early");
        }
    }
    Ok(())
}

/// Parallel ranged GETs of 16 MiB from a plain HTTP server on kept-alive connections, each thread into one buffer.
pub fn raw_get(address: &str, path: &str, size_bytes: u64, threads: u8) -> anyhow::Result<Sample> {
    let (sample, _) = measure(|| {
        let make = || Ok((TcpStream::connect(address)?, warm_buffer()));
        deal(chunks_of(size_bytes), threads, make, |(stream, buffer), range| {
            let (start, last, wanted) = (range.start, range.end - 1, (range.end - range.start) as usize);
            write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nRange: bytes={start}-{last}\r\n\r\n")?;
            let (status, length, early) = read_head(stream)?;
            ensure!(status == 206 && length == wanted, "GET {path} answered {status} with {length} bytes");
            buffer[..early.len()].copy_from_slice(&early);
            read_in_pieces(stream, &mut buffer[early.len()..wanted])
        })
    })?;
    Ok(sample)
}

/// Status of a GET.
pub fn http_status(address: &str, path: &str) -> anyhow::Result<u16> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    Ok(read_head(&mut stream)?.0)
}

/// Reads a response head: status, Content-Length, and the bytes of the body that came with it.
fn read_head(stream: &mut TcpStream) -> anyhow::Result<(u16, usize, Vec<u8>)> {
    let mut head = Vec::with_capacity(4096);
    let end = loop {
        if let Some(end) = head.windows(4).position(|window| window == b"\r\n\r\n") {
            break end + 4;
        }
        ensure!(head.len() < 64 << 10, "a response head of more than 64 KiB");
        let mut piece = [0u8; 4096];
        match stream.read(&mut piece)? {
            0 => bail!("the server closed the connection"),
            len => head.extend_from_slice(&piece[..len]),
        }
    };
    let text = std::str::from_utf8(&head[..end])?;
    let status = text.split(' ').nth(1).and_then(|status| status.parse().ok()).context("a status line")?;
    let length = text.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse().ok()).flatten()
    });
    Ok((status, length.unwrap_or(0), head.split_off(end)))
}
