//! One slab: read, checked, checksummed, written. Syncing is apart, so that small ones share it.

use std::collections::BTreeMap;
use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

use longshore_memory::Buffer;
use longshore_types::{BLOCK_BYTES, BlockChecksum, CHUNK_BYTES, Code, Error, Result};

use super::delta;
use super::sums::Sums;
use super::target::Target;
use crate::SLAB_BYTES;
use crate::attempt::{Attempt, FlushedSlab};
use crate::plan::PlannedFile;
use crate::spool::disk_error;
use crate::upload::Uploads;
use crate::warm::Kept;

/// Told once a save.
const NOT_DIRECT: &str =
    "the file system of --checkpoint-dir takes no direct writes: bytes go through the page cache, which is slower";

/// Gives bytes of a slab, from an offset in it on.
pub(crate) type ReadSlab<'a> = &'a mut dyn FnMut(u64, &mut [u8]) -> Result<()>;

/// A thread's buffer, and what it wrote and did not sync yet.
pub(crate) struct Writer {
    buffer: Buffer,
    uploads: Arc<Uploads>,
    /// Chunks that stay in memory until they are uploaded, with the checksums of their blocks.
    kept: Vec<(Kept, Vec<BlockChecksum>)>,
    unsynced: BTreeMap<u32, Target>,
    has_new_names: bool,
}

impl Writer {
    /// With a buffer of a chunk, paid for by the arena.
    pub(crate) fn new(uploads: &Arc<Uploads>, timeout: Duration) -> Result<Writer> {
        let buffer = uploads.memory().buffer(CHUNK_BYTES as usize, timeout)?;
        let uploads = Arc::clone(uploads);
        Ok(Writer { buffer, uploads, kept: Vec::new(), unsynced: BTreeMap::new(), has_new_names: false })
    }

    /// Writes a slab. It is not durable before [`Writer::sync`]. After an error nothing is known of what was written since
    /// the last sync; the same slabs can be written again.
    pub(crate) fn slab(
        &mut self,
        attempt: &Attempt,
        file: u32,
        slab_index: u32,
        read: ReadSlab<'_>,
    ) -> Result<FlushedSlab> {
        self.write(attempt, file, slab_index, read).inspect_err(|_| {
            self.unsynced.clear();
            self.kept.clear();
        })
    }

    fn write(&mut self, attempt: &Attempt, file: u32, slab_index: u32, read: ReadSlab<'_>) -> Result<FlushedSlab> {
        let planned = attempt.planned(file)?;
        let length = attempt.slab_bytes(file, slab_index)?;
        let start = u64::from(slab_index) * SLAB_BYTES;
        let mut sums = Sums::new(planned, slab_index, length);
        let parent = delta::ParentFile::of(attempt, file);
        let mut places = parent.as_ref().map(|_| Vec::new());
        for at in (0..length).step_by(CHUNK_BYTES as usize) {
            let chunk = (length - at).min(CHUNK_BYTES) as usize;
            let mut is_changed = parent.is_none();
            for block in (0..chunk).step_by(BLOCK_BYTES as usize) {
                let end = (block + BLOCK_BYTES as usize).min(chunk);
                let bytes = &mut self.buffer[block..end];
                read(at + block as u64, bytes)?;
                let offset = start + at + block as u64;
                check_header(attempt, planned, offset, bytes)?;
                let sum = sums.block(bytes);
                is_changed |= parent.as_ref().is_some_and(|parent| parent.block(offset / BLOCK_BYTES) != Some(sum));
            }
            match &mut places {
                None => {
                    self.put(attempt, file, planned.size_bytes, start + at, chunk)?;
                    if planned.size_bytes >= CHUNK_BYTES {
                        self.keep(attempt, file, ((start + at) / CHUNK_BYTES) as u32, chunk, sums.blocks_from(at));
                    }
                }
                Some(places) if is_changed => {
                    let chunk_index = ((start + at) / CHUNK_BYTES) as u32;
                    let place = attempt.pack_place(planned.rank, file, chunk_index);
                    self.buffer[chunk..].fill(0);
                    let pack = attempt.pack_object(planned.rank);
                    self.put(attempt, pack, u64::MAX, u64::from(place) * CHUNK_BYTES, CHUNK_BYTES as usize)?;
                    places.push(Some(place));
                }
                Some(places) => places.push(None),
            }
        }
        Ok(sums.finish(file, slab_index, places))
    }

    /// Leaves the chunk that was just written in memory, if that is wanted and can be had, and goes on with another buffer.
    fn keep(&mut self, attempt: &Attempt, object: u32, chunk: u32, len_bytes: usize, blocks: &[BlockChecksum]) {
        if !attempt.warm().is_open() {
            return;
        }
        if let Some((fresh, room)) = self.uploads.spare() {
            let buffer = std::mem::replace(&mut self.buffer, fresh);
            self.kept.push((Kept { object, chunk, buffer, len_bytes, _room: room }, blocks.to_vec()));
        }
    }

    /// [`Writer::slab`] of a file whose bytes are in its object already: they are checksummed.
    pub(crate) fn slab_in_place(
        &mut self,
        attempt: &Attempt,
        file: u32,
        slab_index: u32,
        read: ReadSlab<'_>,
    ) -> Result<FlushedSlab> {
        let planned = attempt.planned(file)?;
        let length = attempt.slab_bytes(file, slab_index)?;
        let mut sums = Sums::new(planned, slab_index, length);
        for at in (0..length).step_by(BLOCK_BYTES as usize) {
            let bytes = &mut self.buffer[..(length - at).min(BLOCK_BYTES) as usize];
            read(at, bytes)?;
            check_header(attempt, planned, u64::from(slab_index) * SLAB_BYTES + at, bytes)?;
            sums.block(bytes);
        }
        Ok(sums.finish(file, slab_index, None))
    }

    /// The object of a file, to be written by other means; synced with the rest.
    pub(crate) fn object(&mut self, attempt: &Attempt, file: u32) -> Result<Arc<File>> {
        let target = self.open(attempt, file, attempt.planned(file)?.size_bytes)?;
        Ok(target.file())
    }

    /// The buffer's front to its place in an object. `size_bytes` is `u64::MAX` for a pack: it grows.
    fn put(&mut self, attempt: &Attempt, object: u32, size_bytes: u64, at: u64, length: usize) -> Result<()> {
        let target = self.open(attempt, object, size_bytes)?;
        if size_bytes == u64::MAX {
            attempt.allocate_pack(object, &target.file(), (at / CHUNK_BYTES) as u32)?;
        }
        let written = target.write(&self.buffer[..length], at);
        let is_direct = written.map_err(|error| disk_error("write", &attempt.object_path(object), &error))?;
        let is_large = size_bytes >= CHUNK_BYTES;
        if is_large && !is_direct && !attempt.status().notes.iter().any(|note| note == NOT_DIRECT) {
            attempt.note(NOT_DIRECT);
        }
        Ok(())
    }

    fn open(&mut self, attempt: &Attempt, object: u32, size_bytes: u64) -> Result<Target> {
        if let Some(target) = self.unsynced.get(&object) {
            return Ok(target.clone());
        }
        let (file, is_new) = attempt.object_file(object, size_bytes)?;
        self.has_new_names |= is_new;
        let target = Target::new(file, &attempt.object_path(object), size_bytes);
        self.unsynced.insert(object, target.clone());
        Ok(target)
    }

    /// Makes everything durable that was written since the last time, names included.
    pub(crate) fn sync(&mut self, attempt: &Attempt) -> Result<()> {
        let (unsynced, kept) = (std::mem::take(&mut self.unsynced), std::mem::take(&mut self.kept));
        for (object, target) in unsynced {
            target.file().sync_data().map_err(|error| sync_error(attempt, object, &error))?;
        }
        if std::mem::take(&mut self.has_new_names) {
            attempt.sync_objects()?;
        }
        // Before the record: with it the uploads come, and look here first.
        for (kept, blocks) in kept {
            attempt.warm().keep(kept, blocks);
        }
        Ok(())
    }
}

/// A sync that failed is never tried again: the kernel has dropped the pages, and a second one would say yes. Only a full
/// disk is another matter: the bytes are written again.
fn sync_error(attempt: &Attempt, object: u32, error: &std::io::Error) -> Error {
    disk_error("sync", &attempt.object_path(object), error)
}

/// A safetensors file starts with the header that all ranks agreed on: anything else would be a file that nobody can read.
pub(super) fn check_header(attempt: &Attempt, planned: &PlannedFile, offset: u64, bytes: &[u8]) -> Result<()> {
    let Some(header) = planned.header.get(usize::try_from(offset).unwrap_or(usize::MAX)..) else { return Ok(()) };
    let length = header.len().min(bytes.len());
    if header[..length] == bytes[..length] {
        return Ok(());
    }
    Err(Error::new(
        Code::Corrupt,
        format!(
            "rank {} gave {} of {} with another header than the plan's: copy the plan's header to the front of the file",
            planned.rank,
            planned.name,
            attempt.url()
        ),
    ))
}
