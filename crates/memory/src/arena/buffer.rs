//! Exclusive memory from an arena.

use std::mem::ManuallyDrop;
use std::ops::{Deref, DerefMut};
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr::NonNull;

use super::Lease;
use super::memory::Memory;

/// Exclusive memory of fixed length; returns to its arena on drop.
///
/// The contents are initialised but unspecified: a recycled buffer holds what its last user left in it.
pub struct Buffer {
    memory: ManuallyDrop<Memory>,
    lease: ManuallyDrop<Lease>,
}

impl Buffer {
    pub(super) fn new(memory: Memory, lease: Lease) -> Buffer {
        Buffer { memory: ManuallyDrop::new(memory), lease: ManuallyDrop::new(lease) }
    }

    /// For others to read what is in a buffer that was asked for as shared: the file that is this buffer and nothing else,
    /// from its first byte on, open to read only. Its length never changes. `None` for memory of this process alone.
    ///
    /// Who has the descriptor also sees what the memory is used for after this buffer.
    pub fn file(&self) -> Option<BorrowedFd<'_>> {
        self.memory.file().map(AsFd::as_fd)
    }

    /// The first byte, without making a reference to the contents.
    pub(crate) fn start(&self) -> NonNull<u8> {
        self.memory.start()
    }

    /// Length in bytes, without making a reference to the contents.
    pub(crate) fn len_bytes(&self) -> usize {
        self.memory.len()
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the memory is initialised, lives as long as `self`, and `&self` excludes writers.
        unsafe { std::slice::from_raw_parts(self.memory.start().as_ptr(), self.memory.len()) }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: the memory is initialised, lives as long as `self`, and `&mut self` excludes everyone else.
        unsafe { std::slice::from_raw_parts_mut(self.memory.start().as_ptr(), self.memory.len()) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: taken once, here; the field is not used again.
        let memory = unsafe { ManuallyDrop::take(&mut self.memory) };
        // SAFETY: as above.
        let lease = unsafe { ManuallyDrop::take(&mut self.lease) };
        lease.give_back(memory);
    }
}

impl std::fmt::Debug for Buffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Buffer({} bytes)", self.len_bytes())
    }
}
