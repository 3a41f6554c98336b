//! The plain limits: what the machine does when a few threads move the same bytes and do nothing else.
//!
//! The limits of sockets end in buffers that are used again and again, which [`Limits`] keeps between measurements so that
//! none pays for fresh memory. Those of files come four times: into such buffers, which a large cache never lets go of; into
//! memory for all of the bytes that was touched before, which is what a load into prefaulted memory does; into fresh private
//! memory; and into fresh memory that can be shared. GETs come in the first two ways.

mod deal;
mod http;

use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use anyhow::{Context, ensure};
use longshore_memory::{Arena, Buffer, RegionWriter, Window};
use longshore_types::CHUNK_BYTES;

use self::deal::deal;
use crate::times::{Sample, measure};

/// Bytes that a socket is read for at once: larger reads measure slower where caches are small.
const READ_BYTES: usize = 256 << 10;

/// A piece of one of several files.
#[derive(Debug, Clone)]
struct Piece {
    file: usize,
    range: Range<u64>,
}

impl Piece {
    fn len(&self) -> usize {
        (self.range.end - self.range.start) as usize
    }
}

/// Files that are read.
pub struct Files {
    files: Vec<File>,
    pieces: Vec<Piece>,
    bytes: u64,
}

impl Files {
    /// Opens them.
    pub fn open(paths: &[PathBuf]) -> anyhow::Result<Files> {
        ensure!(!paths.is_empty(), "no files to read");
        let (mut files, mut sizes) = (Vec::new(), Vec::new());
        for path in paths {
            let file = File::open(path).with_context(|| format!("open {}", path.display()))?;
            sizes.push(file.metadata()?.len());
            files.push(file);
        }
        Ok(Files { files, bytes: sizes.iter().sum(), pieces: pieces(&sizes) })
    }

    fn read(&self, piece: &Piece, buffer: &mut [u8]) -> anyhow::Result<()> {
        Ok(self.files[piece.file].read_exact_at(buffer, piece.range.start)?)
    }
}

/// Pieces of 16 MiB of files of these sizes.
fn pieces(sizes: &[u64]) -> Vec<Piece> {
    let of = |(file, &size): (usize, &u64)| {
        let starts = (0..size).step_by(CHUNK_BYTES as usize);
        starts.map(move |start| Piece { file, range: start..(start + CHUNK_BYTES).min(size) }).collect::<Vec<_>>()
    };
    sizes.iter().enumerate().flat_map(of).collect()
}

/// All limits, with the memory that they use again and again.
#[derive(Default)]
pub struct Limits {
    warm: Vec<Vec<u8>>,
}

impl Limits {
    /// A buffer for each thread, touched before.
    fn warm(&mut self, threads: usize) -> &mut [Vec<u8>] {
        while self.warm.len() < threads {
            self.warm.push(vec![1u8; CHUNK_BYTES as usize]);
        }
        &mut self.warm[..threads]
    }

    /// One core copies memory to memory, both touched before.
    pub fn memcpy(&mut self, size_bytes: u64) -> anyhow::Result<Sample> {
        let buffers = self.warm(2);
        let (source, target) = buffers.split_at_mut(1);
        let (sample, ()) = measure(|| {
            for _ in 0..size_bytes.div_ceil(CHUNK_BYTES) {
                std::hint::black_box(&mut target[0]).copy_from_slice(std::hint::black_box(&source[0]));
            }
            Ok(())
        })?;
        Ok(sample)
    }

    /// Threads read files, each into one buffer over and over.
    pub fn read_warm(&mut self, files: &Files, threads: usize) -> anyhow::Result<Sample> {
        let contexts = self.warm(threads).iter_mut();
        let work = |buffer: &mut &mut Vec<u8>, piece: &mut Piece| files.read(piece, &mut buffer[..piece.len()]);
        Ok(measure(|| deal(files.pieces.clone(), contexts, work))?.0)
    }

    /// sendfile to recv over loopback, both ends in this process, one connection a thread, each into one buffer.
    pub fn tcp(&mut self, files: &Files, threads: usize) -> anyhow::Result<Sample> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        std::thread::scope(|scope| {
            let mut ends = Vec::new();
            for buffer in self.warm(threads) {
                ends.push((TcpStream::connect(address)?, buffer));
                let stream = listener.accept()?.0;
                scope.spawn(move || serve_pieces(stream, files));
            }
            let work = |end: &mut (TcpStream, &mut Vec<u8>), piece: &mut Piece| {
                let (stream, buffer) = end;
                let numbers = [piece.file as u64, piece.range.start, piece.range.end];
                stream.write_all(&numbers.map(u64::to_le_bytes).concat())?;
                read_in_pieces(stream, &mut buffer[..piece.len()])
            };
            // The senders end with their connections, which `deal` drops.
            Ok(measure(|| deal(files.pieces.clone(), ends, work))?.0)
        })
    }

    /// Parallel ranged GETs of 16 MiB from a plain HTTP server on kept-alive connections, each into one buffer.
    pub fn get(&mut self, address: &str, objects: &[http::Object], threads: usize) -> anyhow::Result<Sample> {
        let sizes: Vec<u64> = objects.iter().map(|object| object.bytes).collect();
        let ends: anyhow::Result<Vec<_>> =
            self.warm(threads).iter_mut().map(|buffer| Ok((TcpStream::connect(address)?, buffer))).collect();
        let work = |end: &mut (TcpStream, &mut Vec<u8>), piece: &mut Piece| {
            let (stream, buffer) = end;
            http::get(stream, address, &objects[piece.file].path, &piece.range, &mut buffer[..piece.len()])
        };
        let ends = ends?;
        Ok(measure(|| deal(pieces(&sizes), ends, work))?.0)
    }
}

/// Memory for each piece, touched before.
fn kept(pieces: &[Piece]) -> anyhow::Result<Vec<(Piece, Buffer)>> {
    // An arena of its own each time: a shared one would keep the memory from those who load.
    let arena = Arena::new((pieces.len() as u64 + 1) * (CHUNK_BYTES + READ_BYTES as u64));
    let touched = |piece: &Piece| {
        let mut buffer = arena.try_buffer(piece.len()).context("memory for the limit")?;
        buffer.fill(1);
        Ok((piece.clone(), buffer))
    };
    pieces.iter().map(touched).collect()
}

/// Threads read resident files into memory that was touched before and that holds all of the bytes.
pub fn read_kept(files: &Files, threads: usize) -> anyhow::Result<Sample> {
    let work = |(): &mut (), (piece, buffer): &mut (Piece, Buffer)| files.read(piece, buffer);
    let items = kept(&files.pieces)?;
    Ok(measure(|| deal(items, vec![(); threads], work))?.0)
}

/// The GETs of [`Limits::get`] into such memory.
pub fn get_kept(address: &str, objects: &[Object], threads: usize) -> anyhow::Result<Sample> {
    let sizes: Vec<u64> = objects.iter().map(|object| object.bytes).collect();
    let streams: Vec<_> = (0..threads).map(|_| TcpStream::connect(address)).collect::<Result<_, _>>()?;
    let work = |stream: &mut TcpStream, (piece, buffer): &mut (Piece, Buffer)| {
        http::get(stream, address, &objects[piece.file].path, &piece.range, buffer)
    };
    let items = kept(&pieces(&sizes))?;
    Ok(measure(|| deal(items, streams, work))?.0)
}

pub use self::http::Object;

/// Fills fresh memory and gives it back.
pub fn touch_memory(size_bytes: u64) -> anyhow::Result<Sample> {
    let (sample, _) = measure(|| {
        let arena = Arena::new(size_bytes + CHUNK_BYTES);
        let fill = |_| {
            let mut buffer = arena.try_buffer(CHUNK_BYTES as usize).context("memory to touch")?;
            buffer.fill(1);
            Ok(buffer)
        };
        (0..size_bytes / CHUNK_BYTES).map(fill).collect::<anyhow::Result<Vec<_>>>()
    })?;
    Ok(sample)
}

/// Threads read resident files into fresh memory.
pub fn read(files: &Files, threads: usize) -> anyhow::Result<Sample> {
    let work = |(): &mut (), (piece, buffer): &mut (Piece, Buffer)| files.read(piece, buffer);
    let (sample, _) = measure(|| {
        // An arena of its own each time: a shared one would hand out the memory of the round before.
        let arena = Arena::new(files.bytes + (files.pieces.len() as u64 + 2) * CHUNK_BYTES);
        let fresh = |piece: &Piece| Ok((piece.clone(), arena.try_buffer(piece.len()).context("memory for the limit")?));
        let items: Vec<_> = files.pieces.iter().map(fresh).collect::<anyhow::Result<_>>()?;
        deal(items, vec![(); threads], work)
    })?;
    Ok(sample)
}

/// Threads read resident files into fresh memory that other processes can map: a memfd, as a load's region is.
pub fn read_shared(files: &Files, threads: usize) -> anyhow::Result<Sample> {
    let work = |(): &mut (), (piece, window): &mut (Piece, Window)| files.read(piece, window);
    let (sample, _region) = measure(|| {
        let arena = Arena::new(files.bytes + 2 * CHUNK_BYTES);
        let memory = arena.try_reserve(files.bytes).context("memory for the limit")?;
        let region = RegionWriter::create("limit", files.bytes, memory)?;
        let (mut items, mut at) = (Vec::new(), 0);
        for piece in &files.pieces {
            let end = at + piece.len() as u64;
            items.push((piece.clone(), region.claim(at..end)?));
            at = end;
        }
        drop(deal(items, vec![(); threads], work)?);
        Ok(region.finish()?)
    })?;
    Ok(sample)
}

/// Fills `buffer` from a socket in pieces that stay in a core's cache.
fn read_in_pieces(stream: &mut TcpStream, buffer: &mut [u8]) -> anyhow::Result<()> {
    buffer.chunks_mut(READ_BYTES).try_for_each(|piece| Ok(stream.read_exact(piece)?))
}

/// Answers 24-byte requests (file, start, end) with those bytes, until the client leaves.
fn serve_pieces(mut stream: TcpStream, files: &Files) -> anyhow::Result<()> {
    let mut request = [[0u8; 8]; 3];
    while stream.read_exact(request.as_flattened_mut()).is_ok() {
        let [file, mut at, end] = request.map(u64::from_le_bytes);
        let file = files.files.get(file as usize).context("no such file")?;
        while at < end {
            let wanted = (end - at) as usize;
            let sent = rustix::fs::sendfile(&stream, file, Some(&mut at), wanted)?;
            ensure!(sent > 0, "the file ended early");
        }
    }
    Ok(())
}
