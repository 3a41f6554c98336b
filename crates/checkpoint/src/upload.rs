//! How many parts are on their way at once, and the memory that they take.
//!
//! All saves of a node share the permits: the number of connections and the bytes in buffers are bounded whatever happens.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use longshore_memory::{Arena, Buffer, Reservation};
use longshore_types::{CHUNK_BYTES, Code, Error, Result};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::options::CheckpointOptions;

/// How long one look for free memory takes; then the caller's token is looked at.
const MEMORY_WAIT: Duration = Duration::from_millis(500);

/// What may wait to be uploaded however small parts are.
const KEPT_MIN_BYTES: u64 = 2 * CHUNK_BYTES;

/// The uploads of one node.
#[derive(Debug)]
pub(crate) struct Uploads {
    permits: Arc<Semaphore>,
    memory: Arena,
    /// Taken by who takes several buffers: two with half of theirs each would wait for one another.
    taking: tokio::sync::Mutex<()>,
    /// In buffers that wait to be uploaded, of all saves.
    kept_bytes: AtomicU64,
    /// Parts at once.
    pub(crate) count: usize,
    /// Wanted size of a part.
    pub(crate) part_bytes: u64,
}

/// Room for one part, whose memory is apart.
pub(crate) struct Permit {
    _permit: OwnedSemaphorePermit,
}

/// Room for one part and its memory.
pub(crate) struct Slot {
    _permit: Permit,
    _memory: Reservation,
}

/// A chunk's share of what may wait to be uploaded; given back when dropped.
#[derive(Debug)]
pub(crate) struct KeptRoom(Arc<Uploads>);

impl Drop for KeptRoom {
    fn drop(&mut self) {
        self.0.kept_bytes.fetch_sub(CHUNK_BYTES, Ordering::Relaxed);
    }
}

impl Uploads {
    /// Bounded as the options say.
    pub(crate) fn new(options: &CheckpointOptions, memory: &Arena) -> Uploads {
        let count = options.uploads.clamp(1, 256);
        Uploads {
            permits: Arc::new(Semaphore::new(count)),
            memory: memory.clone(),
            taking: tokio::sync::Mutex::default(),
            kept_bytes: AtomicU64::new(0),
            count,
            part_bytes: options.part_bytes.0.max(1),
        }
    }

    /// Waits for a permit.
    pub(crate) async fn permit(&self) -> Result<Permit> {
        // The semaphore is never closed.
        let permit = Arc::clone(&self.permits).acquire_owned().await;
        let permit = permit.map_err(|error| Error::new(Code::Internal, format!("uploads have ended: {error}")))?;
        Ok(Permit { _permit: permit })
    }

    /// Waits for a permit and for `bytes` of memory.
    pub(crate) async fn slot(&self, bytes: u64) -> Result<Slot> {
        let permit = self.permit().await?;
        let memory = self.reserve(bytes).await?;
        Ok(Slot { _permit: permit, _memory: memory })
    }

    /// What pays for buffers.
    pub(crate) fn memory(&self) -> &Arena {
        &self.memory
    }

    /// Bytes that wait to be uploaded.
    #[cfg(test)]
    pub(crate) fn kept_bytes(&self) -> u64 {
        self.kept_bytes.load(Ordering::Relaxed)
    }

    /// A further buffer of a chunk, for who keeps the one that was filled until it is uploaded. Never waits: `None` when enough
    /// is kept, or when memory is not plenty.
    pub(crate) fn spare(self: &Arc<Self>) -> Option<(Buffer, KeptRoom)> {
        let stats = self.memory.stats();
        if stats.leased_bytes.saturating_add(CHUNK_BYTES) > stats.capacity_bytes / 2 {
            return None;
        }
        let bytes_max = (self.count as u64).saturating_mul(self.part_bytes).max(KEPT_MIN_BYTES);
        let more = |kept: u64| kept.checked_add(CHUNK_BYTES).filter(|kept| *kept <= bytes_max);
        self.kept_bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok()?;
        let room = KeptRoom(Arc::clone(self));
        Some((self.memory.try_buffer(CHUNK_BYTES as usize)?, room))
    }

    /// Buffers of these lengths, now, if all of them are to be had.
    pub(crate) fn try_buffers(&self, lengths: &[usize]) -> Option<Vec<Buffer>> {
        let _turn = self.taking.try_lock().ok()?;
        lengths.iter().map(|length| self.memory.try_buffer(*length)).collect()
    }

    /// Waits for buffers of these lengths.
    pub(crate) async fn buffers(&self, lengths: &[usize]) -> Result<Vec<Buffer>> {
        let bytes = lengths.iter().fold(0u64, |sum, length| sum.saturating_add(*length as u64));
        self.check_fits(bytes)?;
        let _turn = self.taking.lock().await;
        let mut buffers = Vec::with_capacity(lengths.len());
        while let Some(length) = lengths.get(buffers.len()).copied() {
            let memory = self.memory.clone();
            let waited = tokio::task::spawn_blocking(move || memory.buffer(length, MEMORY_WAIT)).await;
            match waited {
                Ok(Ok(buffer)) => buffers.push(buffer),
                Ok(Err(_)) => {}
                Err(error) => return Err(Error::new(Code::Internal, format!("waiting for memory ended: {error}"))),
            }
        }
        Ok(buffers)
    }

    fn check_fits(&self, bytes: u64) -> Result<()> {
        let capacity_bytes = self.memory.capacity_bytes();
        if bytes <= capacity_bytes {
            return Ok(());
        }
        let message = format!(
            "a part of {bytes} bytes does not fit the memory budget of {capacity_bytes} bytes: lower \
             --checkpoint-part-bytes"
        );
        Err(Error::new(Code::Exhausted, message))
    }

    /// Waits for memory alone.
    pub(crate) async fn reserve(&self, bytes: u64) -> Result<Reservation> {
        self.check_fits(bytes)?;
        loop {
            if let Some(memory) = self.memory.try_reserve(bytes) {
                return Ok(memory);
            }
            let arena = self.memory.clone();
            let waited = tokio::task::spawn_blocking(move || arena.wait_reserve(bytes, MEMORY_WAIT)).await;
            match waited {
                Ok(Ok(memory)) => return Ok(memory),
                Ok(Err(_)) => {}
                Err(error) => return Err(Error::new(Code::Internal, format!("waiting for memory ended: {error}"))),
            }
        }
    }
}
