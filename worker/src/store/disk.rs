//! The disk tier: one file a chunk, under `chunks/<first two digits of the id>/<id>`.
//!
//! Invariants: a file in the index has a trailer that was whole when it was written or scanned; each opening checks
//! trailer and identity again, so a file that vanished, tore or collided is a miss, never wrong bytes. The index may
//! lag behind the folder, never the other way round for long: an entry without its file goes with the first miss.
//! Readers hold open descriptors, so unlinking a file under them is safe. No failure of the disk reaches a reader: it
//! is counted, shown in the status and the cache goes on without the disk.
//!
//! Start at [`DiskTier::open`]; writes go through `writer.rs`, the start-up scan is in `scan.rs`.

mod health;
mod lock;
mod scan;
mod space;
mod warm;
mod writer;

use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use longshore_memory::direct::residency;
use longshore_types::{BLOCK_BYTES, BlockChecksum, ChunkId, ChunkKey, Code, Error, Result};
use longshore_wire::GrowingChunk;
use parking_lot::Mutex;
use rustix::fs::{IFlags, ioctl_getflags, ioctl_setflags};

use super::format::{self, FormatError};
use super::index::Index;
use super::{Freed, covers};
use crate::metrics::Metrics;
use health::Health;
pub use lock::FolderLock;
use space::Space;
use warm::Warmer;
use writer::WriteQueue;

/// From this share on a file counts as resident.
const RESIDENT_SHARE_MIN: f64 = 0.99;

/// When the data of a chunk file is forced to the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum SyncPolicy {
    /// Never: the block checksums find what a power cut tore, and the origin has it still.
    #[default]
    None,
    /// Before the rename: a file with a name is whole on the disk.
    Data,
}

/// How the disk tier behaves.
#[derive(Debug, Clone)]
pub struct DiskOptions {
    /// Folder of the cache; its lock is held by the caller.
    pub folder: PathBuf,
    /// Most bytes of chunk files; `None` takes four fifths of what is free or ours at the start.
    pub budget_bytes: Option<u64>,
    /// Bytes of the file system that are left free; `None` takes a twentieth of it, at most 10 GiB.
    pub free_floor_bytes: Option<u64>,
    /// See [`SyncPolicy`].
    pub sync: SyncPolicy,
    /// Threads that write at low priority, and as many that help when they do not keep up.
    pub writer_threads: usize,
    /// Most bytes of chunks that wait to be written; they hold their memory.
    pub queue_bytes: u64,
    /// How long a fill waits for room in the queue before its chunk is not written.
    pub queue_wait: Duration,
    /// How long a disk that failed is left alone.
    pub retry_pause: Duration,
}

/// A chunk on disk, opened.
#[derive(Debug, Clone)]
pub struct DiskChunk {
    /// The file; the data starts at 0.
    pub file: Arc<File>,
    /// One for each block.
    pub checksums: Arc<[BlockChecksum]>,
}

impl DiskChunk {
    /// Whether the data is in the page cache, all but a few pages. A system that does not tell counts as no.
    pub fn is_resident(&self, len_bytes: u64) -> bool {
        residency(&self.file, 0..len_bytes).is_some_and(|share| share >= RESIDENT_SHARE_MIN)
    }
}

/// See the module.
#[derive(Debug)]
pub struct DiskTier {
    folder: PathBuf,
    sync: SyncPolicy,
    index: Mutex<Index>,
    space: Space,
    health: Health,
    queue: Arc<WriteQueue>,
    warmer: Warmer,
    /// Until its file system has refused a direct write.
    takes_direct: AtomicBool,
    metrics: Arc<Metrics>,
}

impl DiskTier {
    /// Makes the folders, rebuilds the index from what is there and starts the writers. Blocks while it scans.
    ///
    /// # Errors
    /// [`Code::PermissionDenied`] or [`Code::Exhausted`] when the folder cannot be written.
    pub fn open(options: DiskOptions, metrics: Arc<Metrics>) -> Result<Arc<DiskTier>> {
        make_folders(&options.folder)?;
        let index = scan::rebuild(&options.folder, &metrics)?;
        let space = Space::measure(&options, index.bytes())?;
        tracing::info!(
            folder = %options.folder.display(),
            chunks = index.len(),
            bytes = index.bytes(),
            budget_bytes = space.budget_bytes(),
            "disk tier opened"
        );
        let tier = Arc::new(DiskTier {
            sync: options.sync,
            index: Mutex::new(index),
            space,
            health: Health::new(options.retry_pause),
            queue: Arc::new(WriteQueue::new(options.queue_bytes, options.queue_wait)),
            warmer: Warmer::start(metrics.clone())?,
            takes_direct: AtomicBool::new(true),
            metrics,
            folder: options.folder,
        });
        tier.metrics.disk_healthy.set(1);
        writer::start(&tier, options.writer_threads)?;
        Ok(tier)
    }

    /// The chunk, opened and its identity compared; `None` is a miss.
    pub fn get(&self, key: &ChunkKey, id: &ChunkId) -> Option<DiskChunk> {
        if !self.index.lock().touch(id) {
            return None;
        }
        let opened = File::open(self.path(id)).map_err(FormatError::from).and_then(|file| {
            let trailer = format::read(&file)?;
            Ok((file, trailer))
        });
        let reason = match opened {
            Ok((file, trailer)) if trailer.key == *key => {
                return Some(DiskChunk { file: Arc::new(file), checksums: trailer.checksums });
            }
            // Same URL, version and index with another size, or a collision: not what is asked for, but not bad.
            Ok(_) => return None,
            Err(FormatError::Io(error)) if error.kind() == io::ErrorKind::NotFound => "vanished",
            Err(FormatError::Io(error)) => {
                self.metrics.disk_errors.with_label_values(&["read"]).inc();
                tracing::warn!(chunk = %id, %error, "chunk file cannot be read; dropped");
                "unreadable"
            }
            Err(FormatError::Torn(_)) => "torn",
            Err(FormatError::Foreign) => "foreign",
        };
        self.metrics.disk_dropped.with_label_values(&[reason]).inc();
        self.remove(id);
        None
    }

    /// Asks the disk for these bytes of a chunk at once, where the page cache lacks them: a reader asks for a little at a
    /// time. Does not wait for them.
    pub fn prefetch(&self, chunk: &DiskChunk, range: &Range<u64>) {
        self.warmer.warm(&chunk.file, range);
    }

    /// Counts a use of a chunk that was found elsewhere, so that it is not the first to go.
    pub fn touch(&self, id: &ChunkId) {
        self.index.lock().touch(id);
    }

    /// Whether files of chunks of this length are written past the page cache.
    pub fn writes_directly(&self, len_bytes: u64) -> bool {
        len_bytes >= writer::DIRECT_FROM_BYTES as u64 && self.takes_direct.load(Ordering::Relaxed)
    }

    /// Whether the chunk is in the index.
    pub fn contains(&self, id: &ChunkId) -> bool {
        self.index.lock().contains(id)
    }

    /// Reads the whole chunk and compares every block with its checksum. Memory: one block.
    pub fn is_intact(&self, chunk: &DiskChunk, key: &ChunkKey) -> bool {
        let mut block = vec![0u8; BLOCK_BYTES.min(key.len_bytes()) as usize];
        chunk.checksums.iter().enumerate().all(|(index, checksum)| {
            let start = index as u64 * BLOCK_BYTES;
            let len = BLOCK_BYTES.min(key.len_bytes() - start) as usize;
            let read = chunk.file.read_exact_at(&mut block[..len], start);
            read.is_ok() && BlockChecksum::of(&block[..len]) == *checksum
        })
    }

    /// Queues a complete chunk for writing, waiting a bounded time for room. See `writer.rs` for what is skipped.
    pub fn put(&self, chunk: Arc<GrowingChunk>) {
        if !self.health.may_write() {
            self.skip("disk_failed");
        } else if !self.queue.push(chunk) {
            self.skip("queue_full");
        }
    }

    /// Drops a chunk and says how many bytes that freed.
    pub fn remove(&self, id: &ChunkId) -> u64 {
        let Some(bytes) = self.index.lock().remove(id) else { return 0 };
        self.unlink(id);
        bytes
    }

    /// Drops a chunk that is on the disk or on its way there.
    pub fn forget(&self, id: &ChunkId) {
        self.discard(id);
        self.remove(id);
    }

    /// Drops a chunk that is on its way to the disk.
    pub fn discard(&self, id: &ChunkId) {
        self.queue.discard(|key| key.id() == *id);
    }

    /// Drops all chunks of artifacts at `url` or under it, those on their way here too. Reads every trailer: 4 KiB a chunk.
    pub fn free(&self, url: &str) -> Freed {
        self.queue.discard(|key| covers(url, key.artifact().url()));
        let ids = self.index.lock().ids();
        let matching = scan::in_parallel(ids, |id| {
            let trailer = File::open(self.path(&id)).ok().and_then(|file| format::read(&file).ok())?;
            covers(url, trailer.key.artifact().url()).then_some(id)
        });
        let mut freed = Freed::default();
        for id in matching {
            freed.add(self.remove(&id));
        }
        freed
    }

    /// Waits until what is queued has been written. False when `timeout` passes first.
    pub fn flush(&self, timeout: Duration) -> bool {
        self.queue.wait_idle(timeout)
    }

    /// Capacity, use and chunks.
    pub fn usage(&self) -> (u64, u64, u64) {
        let index = self.index.lock();
        (self.space.budget_bytes(), index.bytes(), index.len() as u64)
    }

    /// Why the disk is not written to, if so.
    pub fn failure(&self) -> Option<String> {
        self.health.reason()
    }

    fn skip(&self, reason: &str) {
        self.metrics.disk_skips.with_label_values(&[reason]).inc();
    }

    fn path(&self, id: &ChunkId) -> PathBuf {
        chunk_path(&self.folder, id)
    }

    fn unlink(&self, id: &ChunkId) {
        match fs::remove_file(self.path(id)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                self.metrics.disk_errors.with_label_values(&["unlink"]).inc();
                tracing::warn!(chunk = %id, %error, "chunk file cannot be removed");
            }
            _ => {}
        }
    }
}

impl Drop for DiskTier {
    /// The writers hold the tier weakly; they end when the queue is closed.
    fn drop(&mut self) {
        self.queue.close();
    }
}

fn chunk_path(folder: &Path, id: &ChunkId) -> PathBuf {
    let name = id.to_string();
    folder.join("chunks").join(&name[..2]).join(name)
}

fn make_folders(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder.join("tmp")).map_err(|error| not_writable(folder, error))?;
    let chunks = folder.join("chunks");
    if !chunks.exists() {
        fs::create_dir_all(&chunks).map_err(|error| not_writable(folder, error))?;
        spread(&chunks);
    }
    for first in 0..=255u8 {
        let fan_out = folder.join("chunks").join(format!("{first:02x}"));
        fs::create_dir_all(fan_out).map_err(|error| not_writable(folder, error))?;
    }
    Ok(())
}

/// Asks the file system to place the folders in `chunks` apart from each other, as it does with those at its top. Writers
/// then do not meet in one group of inodes, nor look for a free one among all that were evicted a moment ago.
fn spread(chunks: &Path) {
    let spread = || -> io::Result<()> {
        let folder = File::open(chunks)?;
        Ok(ioctl_setflags(&folder, ioctl_getflags(&folder)? | IFlags::TOPDIR)?)
    };
    if let Err(error) = spread() {
        tracing::debug!(folder = %chunks.display(), %error, "the file system takes no wish about where folders lie");
    }
}

/// The error of a cache folder that cannot be used.
pub fn not_writable(folder: &Path, error: io::Error) -> Error {
    let code = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Code::Exhausted,
        io::ErrorKind::NotADirectory | io::ErrorKind::AlreadyExists => Code::InvalidArgument,
        _ => Code::PermissionDenied,
    };
    Error::new(
        code,
        format!("cache folder {} cannot be written: {error}; choose another --cache-dir", folder.display()),
    )
    .with_source(error)
}

#[cfg(test)]
mod tests;
