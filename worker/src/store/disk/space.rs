//! How much may be written: a byte budget of our own, and a floor of free space that others may need.

use std::path::PathBuf;

use longshore_types::Result;
use parking_lot::Mutex;
use rustix::fs::statvfs;

use super::{DiskOptions, not_writable};

/// Default floor of free space, at most.
const FREE_FLOOR_BYTES_MAX: u64 = 10 << 30;

/// Budget, floor and what is being written.
#[derive(Debug)]
pub struct Space {
    folder: PathBuf,
    budget_bytes: u64,
    free_floor_bytes: u64,
    /// Bytes of files that are not in the index: those that are being written, and those that are held.
    pending_bytes: Mutex<u64>,
}

impl Space {
    /// Takes the options, or shares of the file system where they say nothing. `held_bytes` are in chunk files now.
    ///
    /// # Errors
    /// When the file system cannot be asked.
    pub fn measure(options: &DiskOptions, held_bytes: u64) -> Result<Space> {
        let file_system = statvfs(&options.folder).map_err(|error| not_writable(&options.folder, error.into()))?;
        let free_bytes = file_system.f_bavail * file_system.f_frsize;
        let total_bytes = file_system.f_blocks * file_system.f_frsize;
        Ok(Space {
            folder: options.folder.clone(),
            budget_bytes: options.budget_bytes.unwrap_or((free_bytes + held_bytes) / 5 * 4),
            free_floor_bytes: options.free_floor_bytes.unwrap_or((total_bytes / 20).min(FREE_FLOOR_BYTES_MAX)),
            pending_bytes: Mutex::new(0),
        })
    }

    /// Most bytes of chunk files.
    pub fn budget_bytes(&self) -> u64 {
        self.budget_bytes
    }

    /// Takes `need_bytes` when they fit beside `held_bytes`; give them back with [`Space::settle`].
    pub fn reserve(&self, held_bytes: u64, need_bytes: u64) -> bool {
        let mut pending = self.pending_bytes.lock();
        let fits = held_bytes + *pending + need_bytes <= self.budget_bytes;
        if fits {
            *pending += need_bytes;
        }
        fits
    }

    /// Takes bytes of files that are there already, whether they fit or not.
    pub fn adopt(&self, bytes: u64) {
        *self.pending_bytes.lock() += bytes;
    }

    /// The file is in the index, or will never be.
    pub fn settle(&self, bytes: u64) {
        *self.pending_bytes.lock() -= bytes;
    }

    /// Bytes that must go before `need_bytes` can be written above the floor. 0 also when the file system cannot be
    /// asked: then the write itself tells.
    pub fn shortfall_bytes(&self, need_bytes: u64) -> u64 {
        let Ok(file_system) = statvfs(&self.folder) else { return 0 };
        let free_bytes = file_system.f_bavail * file_system.f_frsize;
        (self.free_floor_bytes + need_bytes).saturating_sub(free_bytes)
    }
}
