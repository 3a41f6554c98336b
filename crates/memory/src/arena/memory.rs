//! What a buffer is made of, and how much of it others may read.

use std::fs::File;
use std::io;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use crate::MAPPED_FROM_BYTES;
use crate::raw::RawMemory;
use crate::shared::SharedMemory;

/// The name of shared buffers in `/proc/<pid>/maps`.
const NAME: &str = "chunk";

/// Memory of one buffer, with its own file where others may read it. Both are kept for reuse together.
#[derive(Debug)]
pub(super) struct Memory {
    raw: RawMemory,
    readable: Option<Readable>,
}

#[derive(Debug)]
struct Readable {
    /// Open to read only.
    file: File,
    _place: Place,
}

/// One of the descriptors that shared buffers may have.
#[derive(Debug)]
struct Place(Arc<AtomicUsize>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_add(1, Relaxed);
    }
}

impl Memory {
    /// Of this process alone.
    pub(super) fn own(len: usize) -> io::Result<Memory> {
        let raw = if len >= MAPPED_FROM_BYTES { RawMemory::mapping(len) } else { RawMemory::heap(len) };
        Ok(Memory { raw: raw?, readable: None })
    }

    pub(super) fn start(&self) -> NonNull<u8> {
        self.raw.start()
    }

    pub(super) fn len(&self) -> usize {
        self.raw.len()
    }

    pub(super) fn file(&self) -> Option<&File> {
        self.readable.as_ref().map(|readable| &readable.file)
    }
}

/// Where an arena takes shared buffers from.
pub(super) struct Sharing {
    memory: &'static SharedMemory,
    /// Descriptors that may still be opened.
    places: Arc<AtomicUsize>,
}

impl Sharing {
    pub(super) fn new(memory: &'static SharedMemory, files_max: usize) -> Sharing {
        Sharing { memory, places: Arc::new(AtomicUsize::new(files_max)) }
    }

    pub(super) fn is_exhausted(&self) -> bool {
        self.places.load(Relaxed) == 0
    }

    /// Memory of `len` bytes, which others may read unless there are no descriptors for it.
    pub(super) fn make(&self, len: usize) -> io::Result<Memory> {
        match self.try_make(len) {
            Some(memory) => Ok(memory),
            None => Memory::own(len),
        }
    }

    fn try_make(&self, len: usize) -> Option<Memory> {
        self.places.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1)).ok()?;
        let place = Place(self.places.clone());
        let (raw, file) = self.memory.readable(NAME, len).ok()?;
        Some(Memory { raw, readable: Some(Readable { file, _place: place }) })
    }
}
