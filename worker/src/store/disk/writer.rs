//! Write-behind: a bounded queue (`writer/queue.rs`) and a few threads that turn complete chunks into files
//! (`writer/file.rs`).
//!
//! Nobody waits for these files while the queue has room: half of the threads work at low priority, so that a load gets
//! the cores first. The others help when the queue is half full, or when somebody waits for it to be empty.

mod file;
mod queue;

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Instant;

use longshore_types::{BlockChecksum, ChunkId, Code, Error, Result};
use longshore_wire::GrowingChunk;

pub(super) use self::file::DIRECT_FROM_BYTES;
use self::file::WriteWay;
use self::queue::Turn;
pub use self::queue::WriteQueue;
use super::{DiskTier, SyncPolicy};
use crate::store::format;

/// Of the threads that write while a load runs on the same cores, perhaps: it comes first.
const NICE: i32 = 15;

/// Starts the writer threads, so many of each kind. They end when the tier is dropped.
///
/// # Errors
/// [`Code::Internal`] when a thread cannot be started.
pub fn start(tier: &Arc<DiskTier>, threads: usize) -> Result<()> {
    for number in 0..2 * threads.max(1) {
        let turn = if number < threads.max(1) { Turn::Always } else { Turn::WhenPressed };
        let (queue, tier) = (tier.queue.clone(), Arc::downgrade(tier));
        std::thread::Builder::new()
            .name(format!("disk-write-{number}"))
            .spawn(move || write_loop(&queue, &tier, turn))
            .map_err(|error| Error::new(Code::Internal, format!("cannot start a disk thread: {error}")))?;
    }
    Ok(())
}

fn write_loop(queue: &WriteQueue, tier: &Weak<DiskTier>, turn: Turn) {
    // No process means this thread.
    if turn == Turn::Always
        && let Err(error) = rustix::process::setpriority_process(None, NICE)
    {
        tracing::debug!(%error, "chunk files are written at the process's own priority");
    }
    while let Some(chunk) = queue.pop(turn) {
        match tier.upgrade() {
            Some(tier) => tier.write_behind(queue, &chunk),
            None => queue.done(&chunk, |_| ()),
        }
    }
}

/// Why a chunk was not written.
enum Unwritten {
    /// Budget or floor leave no room.
    NoRoom,
    Failed(io::Error),
}

impl From<io::Error> for Unwritten {
    fn from(error: io::Error) -> Self {
        Unwritten::Failed(error)
    }
}

impl DiskTier {
    /// Writes a chunk that the queue gave out, and ends its write there.
    fn write_behind(&self, queue: &WriteQueue, chunk: &Arc<GrowingChunk>) {
        let (id, bytes) = (chunk.key().id(), format::file_bytes(chunk.key()));
        let is_written = self.write_within_room(id, bytes, chunk);
        self.conclude(queue, chunk, is_written);
    }

    /// Makes a file known, or removes it when its chunk was freed or replaced meanwhile.
    fn conclude(&self, queue: &WriteQueue, chunk: &Arc<GrowingChunk>, is_written: bool) {
        let (id, bytes) = (chunk.key().id(), format::file_bytes(chunk.key()));
        queue.done(chunk, |is_wanted| {
            if !is_written {
                return;
            }
            if is_wanted {
                self.index.lock().insert(id, bytes);
            } else {
                // What replaced it is written after this.
                self.unlink(&id);
            }
            self.space.settle(bytes);
        });
    }

    /// Whether there is a file now that the index does not know yet, and whose room is still to be settled.
    fn write_within_room(&self, id: ChunkId, bytes: u64, chunk: &GrowingChunk) -> bool {
        let Some(checksums) = chunk.checksums() else { return false };
        if self.get(chunk.key(), &id).is_some_and(|there| there.checksums == checksums) {
            return false;
        }
        // Another content under its name is older: who came first was written first.
        self.remove(&id);
        if !self.health.may_write() {
            self.skip("disk_failed");
            return false;
        }
        let started = Instant::now();
        let written = self.make_room(bytes).and_then(|()| {
            let written = self.write_file(&id, chunk, &checksums);
            if written.is_err() {
                self.space.settle(bytes);
            }
            written
        });
        match &written {
            Ok(()) => {
                self.metrics.disk_writes.inc();
                self.metrics.disk_written_bytes.inc_by(bytes);
                self.metrics.disk_write_seconds.observe(started.elapsed().as_secs_f64());
                if self.health.succeeded() {
                    tracing::info!(folder = %self.folder.display(), "cache disk takes writes again");
                    self.metrics.disk_healthy.set(1);
                }
            }
            Err(Unwritten::NoRoom) => self.skip("no_room"),
            Err(Unwritten::Failed(error)) => self.write_failed(error),
        }
        written.is_ok()
    }

    fn write_failed(&self, error: &io::Error) {
        self.metrics.disk_errors.with_label_values(&["write"]).inc();
        self.metrics.disk_healthy.set(0);
        self.skip("disk_failed");
        let reason = format!("cannot write under {}: {error}", self.folder.display());
        if self.health.failed(reason) {
            tracing::error!(folder = %self.folder.display(), %error, "cache disk failed; going on without it");
        }
    }

    /// Evicts until `bytes` fit the budget and the floor, and takes them. Evicts no more than that: when others fill
    /// the disk, the cache does not empty itself for nothing.
    fn make_room(&self, bytes: u64) -> Result<(), Unwritten> {
        let mut shortfall = self.space.shortfall_bytes(bytes);
        let short_before = shortfall > 0;
        if bytes > self.space.budget_bytes() || shortfall > self.index.lock().bytes() {
            return Err(Unwritten::NoRoom);
        }
        loop {
            let victim = {
                let mut index = self.index.lock();
                if shortfall == 0 && self.space.reserve(index.bytes(), bytes) {
                    break;
                }
                let Some(victim) = index.victim() else { return Err(Unwritten::NoRoom) };
                let freed = index.remove(&victim).unwrap_or(0);
                shortfall = shortfall.saturating_sub(freed);
                victim
            };
            self.metrics.disk_evictions.inc();
            self.unlink(&victim);
        }
        if short_before && self.space.shortfall_bytes(bytes) > 0 {
            self.space.settle(bytes);
            return Err(Unwritten::NoRoom);
        }
        Ok(())
    }

    /// Writes a chunk outside of the index, and returns when it is on the disk: its data, its name and its folder's name.
    ///
    /// # Errors
    /// [`Code::Exhausted`] for a full disk, else [`Code::Unavailable`].
    pub(in crate::store) fn write_held(&self, chunk: &GrowingChunk, path: &Path) -> Result<()> {
        let checksums = chunk.checksums().ok_or_else(|| Error::new(Code::Internal, "the chunk is not complete"))?;
        let temporary = self.temporary_path();
        let write = || -> io::Result<()> {
            let folder = path.parent().ok_or_else(|| io::Error::other("a file without a folder"))?;
            if !folder.exists() {
                fs::create_dir_all(folder)?;
                sync_folder(folder.parent().unwrap_or(folder))?;
            }
            self.write_new(&temporary, chunk, &checksums)?;
            File::open(&temporary)?.sync_all()?;
            fs::rename(&temporary, path)?;
            sync_folder(folder)
        };
        write().map_err(|error| {
            // The write's error is what matters; a file left behind goes at the next start.
            let _ = fs::remove_file(&temporary);
            self.metrics.disk_errors.with_label_values(&["write"]).inc();
            let code = match error.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Code::Exhausted,
                _ => Code::Unavailable,
            };
            Error::new(code, format!("cannot write {}: {error}", path.display())).with_source(error)
        })
    }

    /// Takes room that is not the cache's until [`DiskTier::settle_held`]; chunks of the cache go for it.
    ///
    /// # Errors
    /// [`Code::Exhausted`].
    pub(in crate::store) fn take_held(&self, bytes: u64) -> Result<()> {
        self.make_room(bytes).map_err(|_| {
            Error::new(
                Code::Exhausted,
                format!("the disk of {} has no room for a chunk to hold", self.folder.display()),
            )
        })
    }

    /// Counts what is there already.
    pub(in crate::store) fn adopt_held(&self, bytes: u64) {
        self.space.adopt(bytes);
    }

    /// Gives that room back to the cache.
    pub(in crate::store) fn settle_held(&self, bytes: u64) {
        self.space.settle(bytes);
    }

    /// Writes the file of a chunk under its own name where there is none: the index does not know it before it is whole, and
    /// a scan knows by its trailer what was cut short. Names and renames across folders exclude each other in the kernel,
    /// and for a small chunk they cost as much as its bytes. What is there already is replaced at once instead, for
    /// those who read it; so is everything where a file with a name has been promised to be on the disk.
    fn write_file(&self, id: &ChunkId, chunk: &GrowingChunk, checksums: &[BlockChecksum]) -> Result<(), Unwritten> {
        let path = self.path(id);
        if self.sync == SyncPolicy::None {
            match self.write_new(&path, chunk, checksums) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => {
                    let _ = fs::remove_file(&path);
                    return Err(error.into());
                }
                Ok(()) => return Ok(()),
            }
        }
        let temporary = self.temporary_path();
        let written = self.write_new(&temporary, chunk, checksums);
        let named = written.and_then(|()| fs::rename(&temporary, path));
        if named.is_err() {
            // The write's error is what matters; a file left behind goes at the next start.
            let _ = fs::remove_file(&temporary);
        }
        Ok(named?)
    }

    fn write_new(&self, path: &Path, chunk: &GrowingChunk, checksums: &[BlockChecksum]) -> io::Result<()> {
        let data = chunk.get(0..chunk.len_bytes()).ok_or_else(|| io::Error::other("the chunk is not complete"))?;
        let may_be_direct = self.takes_direct.load(Ordering::Relaxed);
        let (file, way) = file::create(path, chunk.key(), data, checksums, may_be_direct)?;
        if way == WriteWay::Refused {
            self.metrics.fallback("disk_write_cached");
            if self.takes_direct.swap(false, Ordering::Relaxed) {
                let folder = self.folder.display();
                tracing::info!(%folder, "the cache's file system takes no direct writes: they go through the page cache");
            }
        }
        match self.sync {
            SyncPolicy::None => Ok(()),
            SyncPolicy::Data => file.sync_data(),
        }
    }

    /// A name that no other write of this process has; `tmp/` is empty at the start.
    fn temporary_path(&self) -> PathBuf {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        self.folder.join("tmp").join(format!("{}-{number}", std::process::id()))
    }
}

fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests;
