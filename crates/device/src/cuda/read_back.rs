//! Host memory that a copier reads a region back to. Not a slot of the page-locked arena, which may all be taken.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use longshore_types::{Code, Error, Result};
use memmap2::{MmapOptions, MmapRaw};
use parking_lot::{Mutex, MutexGuard};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};

/// A few MiB that the daemon and every copier of a GPU share.
pub(super) struct ReadBack {
    fd: OwnedFd,
    memory: Mutex<MmapRaw>,
}

/// The exclusive use of it, until which the copier may write there.
pub(super) struct Reading<'a> {
    memory: MutexGuard<'a, MmapRaw>,
}

impl ReadBack {
    /// All of it; counted in no budget.
    pub(super) const BYTES: u64 = 4 << 20;

    pub(super) fn create() -> Result<ReadBack> {
        let failed = |error: std::io::Error| {
            let message = format!("cannot make memory for reading GPUs: {error}");
            Error::new(Code::Exhausted, message).with_source(error)
        };
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let fd = memfd_create("longshore-read-back", flags).map_err(|errno| failed(errno.into()))?;
        ftruncate(&fd, ReadBack::BYTES).map_err(|errno| failed(errno.into()))?;
        fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW).map_err(|errno| failed(errno.into()))?;
        let memory = MmapOptions::new().len(ReadBack::BYTES as usize).map_raw(&fd).map_err(failed)?;
        Ok(ReadBack { fd, memory: Mutex::new(memory) })
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Waits for others who read.
    pub(super) fn lock(&self) -> Reading<'_> {
        Reading { memory: self.memory.lock() }
    }
}

impl Reading<'_> {
    /// What the copier has put there, once it said so.
    pub(super) fn copy_to(&self, out: &mut [u8]) {
        let len = out.len().min(self.memory.len());
        // SAFETY: within the mapping, which is initialised memory; `out` is not part of it. The copier writes only on
        // behalf of who holds `self`, and has answered.
        unsafe { out.as_mut_ptr().copy_from_nonoverlapping(self.memory.as_ptr(), len) };
    }
}
