//! The bytes of one chunk file on their way to the disk: past the page cache where its file system takes that.
//!
//! A write through the page cache copies each byte into fresh pages, on cores that a load is using at that moment, and the
//! copy is worth little: the memory tier still has the chunk, and whoever comes after that reads it into the page cache once,
//! for all who follow. A direct write leaves the copying to the disk. Chunks below [`DIRECT_FROM_BYTES`] are not worth it.

use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use longshore_memory::direct::is_refusal;
use longshore_types::{BlockChecksum, ChunkKey};
use rustix::fs::OFlags;
use rustix::io::{pwritev, retry_on_intr};

use crate::store::format::{self, PAGE_BYTES};

const PAGE: usize = PAGE_BYTES as usize;
/// Memory of chunks from here on lies on pages of its own, and a direct write of less waits longer than a copy takes.
pub(in crate::store::disk) const DIRECT_FROM_BYTES: usize = 1 << 20;

/// How the bytes went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WriteWay {
    /// Past the page cache.
    Direct,
    /// Through it, as everything of that size goes.
    PageCache,
    /// Through it, because the file system takes no direct writes.
    Refused,
}

/// Makes the file of a chunk, whose bytes are `data`, at a path where there is none: else that is the error, and nothing is
/// touched.
pub(super) fn create(
    path: &Path,
    key: &ChunkKey,
    data: &[u8],
    checksums: &[BlockChecksum],
    may_be_direct: bool,
) -> io::Result<(File, WriteWay)> {
    let (pages, rest) = data.split_at(data.len() / PAGE * PAGE);
    let end = End::new(rest, &format::encode(key, checksums));
    let is_large = data.len() >= DIRECT_FROM_BYTES && data.as_ptr().align_offset(PAGE) == 0;
    if is_large && may_be_direct && end.is_aligned() {
        match write_direct(path, pages, end.bytes()) {
            Ok(file) => return Ok((file, WriteWay::Direct)),
            Err(error) if is_refusal(&error) => {
                // A refused open may have left an empty file, a refused write a part of it.
                match std::fs::remove_file(path) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    _ => {}
                }
            }
            Err(error) => return Err(error),
        }
    }
    let file = OpenOptions::new().write(true).create_new(true).open(path)?;
    write_all(&file, pages, end.bytes())?;
    Ok((file, if is_large { WriteWay::Refused } else { WriteWay::PageCache }))
}

fn write_direct(path: &Path, pages: &[u8], end: &[u8]) -> io::Result<File> {
    let flags = OFlags::DIRECT.bits() as i32;
    let file = OpenOptions::new().write(true).create_new(true).custom_flags(flags).open(path)?;
    write_all(&file, pages, end).map(|()| file)
}

fn write_all(file: &File, pages: &[u8], end: &[u8]) -> io::Result<()> {
    let mut parts = [IoSlice::new(pages), IoSlice::new(end)];
    let mut parts = &mut parts[..];
    let mut at = 0;
    IoSlice::advance_slices(&mut parts, 0);
    while !parts.is_empty() {
        let written = retry_on_intr(|| pwritev(file, parts, at))?;
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        IoSlice::advance_slices(&mut parts, written);
        at += written as u64;
    }
    Ok(())
}

/// What follows the whole pages of a chunk: the rest of its bytes, padded, and the trailer. On a page of its own.
struct End {
    memory: Vec<u8>,
    start: usize,
    len: usize,
}

impl End {
    fn new(rest: &[u8], trailer: &[u8]) -> End {
        let trailer_at = rest.len().next_multiple_of(PAGE);
        let len = trailer_at + trailer.len();
        let mut memory = vec![0; len + PAGE];
        let start = memory.as_ptr().align_offset(PAGE).min(PAGE);
        memory[start..start + rest.len()].copy_from_slice(rest);
        memory[start + trailer_at..start + len].copy_from_slice(trailer);
        End { memory, start, len }
    }

    fn bytes(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.len]
    }

    fn is_aligned(&self) -> bool {
        self.bytes().as_ptr().align_offset(PAGE) == 0
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;
    use std::sync::Arc;

    use longshore_memory::Arena;
    use longshore_types::{Artifact, CHUNK_BYTES, Version};

    use super::*;
    use crate::store::disk::tests::Mounted;

    fn key(len: u64) -> ChunkKey {
        let artifact = Artifact::new("s3://bucket/m", Version::new("v").unwrap(), len).unwrap();
        ChunkKey::new(Arc::new(artifact), 0).unwrap()
    }

    #[test]
    fn every_length_and_way_gives_the_same_file() {
        let folder = tempfile::tempdir().unwrap();
        let lengths = [1, 4095, 4096, 1 << 20, (1 << 20) + 1, (3 << 20) - 1, CHUNK_BYTES - 5000, CHUNK_BYTES];
        for (number, len) in lengths.into_iter().enumerate() {
            let mut data = Arena::new(CHUNK_BYTES).try_buffer(len as usize).unwrap();
            data.iter_mut().enumerate().for_each(|(at, byte)| *byte = (at * 7 % 251) as u8);
            let checksums = BlockChecksum::of_blocks(&data);
            for may_be_direct in [true, false] {
                let path = folder.path().join(format!("{number}-{may_be_direct}"));
                let (_, way) = create(&path, &key(len), &data, &checksums, may_be_direct).unwrap();
                assert_eq!(way == WriteWay::PageCache, len < DIRECT_FROM_BYTES as u64);
                assert!(may_be_direct || way != WriteWay::Direct);
                let file = File::open(&path).unwrap();
                assert_eq!(file.metadata().unwrap().len(), format::file_bytes(&key(len)));
                let trailer = format::read(&file).unwrap();
                assert_eq!((trailer.key, &trailer.checksums[..]), (key(len), &checksums[..]));
                let mut read = vec![0; len as usize];
                file.read_exact_at(&mut read, 0).unwrap();
                assert!(read == data[..], "{len} bytes");
            }
        }
    }

    #[test]
    fn memory_off_the_page_boundary_takes_the_page_cache() {
        let folder = tempfile::tempdir().unwrap();
        let len = DIRECT_FROM_BYTES;
        let buffer = Arena::new(CHUNK_BYTES).try_buffer(len + 1).unwrap();
        let data = &buffer[1..];
        let checksums = BlockChecksum::of_blocks(data);
        let (_, way) = create(&folder.path().join("file"), &key(len as u64), data, &checksums, true).unwrap();
        assert_eq!(way, WriteWay::PageCache);
    }

    #[test]
    fn a_failure_that_is_no_refusal_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("missing/file");
        let data = Arena::new(CHUNK_BYTES).try_buffer(DIRECT_FROM_BYTES).unwrap();
        let error = create(&path, &key(data.len() as u64), &data, &BlockChecksum::of_blocks(&data), true).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_file_system_that_refuses_is_written_all_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let Some(mount) = Mounted::mount(folder.path(), "ramfs", "mode=0700") else {
            eprintln!("skipped: mounting a ramfs needs root");
            return;
        };
        let mut data = Arena::new(CHUNK_BYTES).try_buffer(DIRECT_FROM_BYTES + 5).unwrap();
        data.fill(7);
        let (key, path) = (key(data.len() as u64), mount.0.join("file"));
        let (_, way) = create(&path, &key, &data, &BlockChecksum::of_blocks(&data), true).unwrap();
        assert_eq!(way, WriteWay::Refused);
        assert_eq!(format::read(&File::open(&path).unwrap()).unwrap().key, key);
    }
}
