//! What came in is kept in memory, of which there is a budget, or in a file without a name.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use super::super::stores::Failure;
use super::{Plan, UPLOAD_BYTES_MAX};
use crate::content::{Content, Segment};

/// Smaller bodies stay in memory even when there is a folder for data.
const FILE_BYTES_MIN: u64 = 256 << 10;
const WRITE_BYTES: usize = 1 << 20;

/// Memory for uploads, in bytes.
pub(in crate::origin) struct Budget {
    free: Mutex<u64>,
}

impl Budget {
    pub(in crate::origin) fn new(bytes: u64) -> Budget {
        Budget { free: Mutex::new(bytes) }
    }

    fn take(&self, bytes: u64) -> Result<(), Failure> {
        let mut free = self.free.lock();
        *free = free.checked_sub(bytes).ok_or_else(|| Failure::of_status(507))?;
        Ok(())
    }
}

/// A part of the budget, given back when it is dropped.
pub(super) struct Held {
    budget: Arc<Budget>,
    bytes: u64,
}

impl Held {
    fn grow(&mut self, bytes: u64) -> Result<(), Failure> {
        self.budget.take(bytes)?;
        self.bytes += bytes;
        Ok(())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        *self.budget.free.lock() += self.bytes;
    }
}

struct HeldBytes {
    bytes: Vec<u8>,
    _held: Held,
}

impl AsRef<[u8]> for HeldBytes {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

fn no_room(error: &io::Error) -> Failure {
    Failure::new(507, "InsufficientStorage", format!("the folder for data cannot be written: {error}"))
}

/// Where a body goes.
pub(super) enum Keeper {
    Memory { bytes: Vec<u8>, held: Held },
    File { file: Arc<File>, written: u64, pending: Vec<u8> },
}

impl Keeper {
    pub(super) fn new(plan: &Plan<'_>) -> Result<Keeper, Failure> {
        let is_large = plan.len_bytes.is_none_or(|len| len >= FILE_BYTES_MIN);
        if let Some(folder) = plan.folder.filter(|_| plan.is_content && is_large) {
            let file = tempfile::tempfile_in(folder).map_err(|error| no_room(&error))?;
            return Ok(Keeper::File { file: Arc::new(file), written: 0, pending: Vec::new() });
        }
        let mut held = Held { budget: plan.budget.clone(), bytes: 0 };
        let len = plan.len_bytes.unwrap_or(0).min(UPLOAD_BYTES_MAX);
        held.grow(len)?;
        Ok(Keeper::Memory { bytes: Vec::with_capacity(len as usize), held })
    }

    pub(super) async fn keep(&mut self, more: Bytes) -> Result<(), Failure> {
        match self {
            Keeper::Memory { bytes, held } => {
                let len = (bytes.len() + more.len()) as u64;
                held.grow(len.saturating_sub(held.bytes))?;
                bytes.extend_from_slice(&more);
                Ok(())
            }
            Keeper::File { pending, .. } => {
                pending.extend_from_slice(&more);
                if pending.len() >= WRITE_BYTES { self.write().await } else { Ok(()) }
            }
        }
    }

    /// Writes what is pending, on a thread that may wait for a disk.
    async fn write(&mut self) -> Result<(), Failure> {
        let Keeper::File { file, written, pending } = self else { return Ok(()) };
        let (file, at, bytes) = (file.clone(), *written, std::mem::take(pending));
        let len = bytes.len() as u64;
        let write = tokio::task::spawn_blocking(move || file.write_all_at(&bytes, at).map(|()| bytes));
        let done = write.await.map_err(io::Error::other).and_then(|done| done);
        let mut bytes = done.map_err(|error| no_room(&error))?;
        bytes.clear();
        *pending = bytes;
        *written += len;
        Ok(())
    }

    pub(super) async fn finish(mut self) -> Result<Content, Failure> {
        self.write().await?;
        Ok(match self {
            Keeper::Memory { mut bytes, held } => {
                bytes.shrink_to_fit();
                Content::from(Bytes::from_owner(HeldBytes { bytes, _held: held }))
            }
            Keeper::File { file, written, .. } => {
                Content::of([Segment::File { file, offset_bytes: 0, len_bytes: written }])
            }
        })
    }
}
