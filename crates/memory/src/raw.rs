//! Exclusive zeroed memory behind a raw pointer: a mapping when large, heap when small.
//!
//! Only the owner of a [`RawMemory`] may create references into it; that is what makes it `Send` and `Sync`.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::io;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;

use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, MprotectFlags, ProtFlags, madvise, mmap, mmap_anonymous, mprotect, munmap};

/// Size and alignment of a huge page on the platforms we run on.
pub(crate) const HUGE_PAGE_BYTES: usize = 2 << 20;
/// Heap blocks start on a cache line.
const HEAP_ALIGN_BYTES: usize = 64;

/// An owned, initialised block of memory; freed on drop.
#[derive(Debug)]
pub(crate) struct RawMemory {
    start: NonNull<u8>,
    len: usize,
    origin: Origin,
}

#[derive(Debug)]
enum Origin {
    /// Nothing was allocated: the block is empty.
    Empty,
    /// From the global allocator with this layout.
    Heap(Layout),
    /// A mapping of this many bytes.
    Mapping(usize),
}

// SAFETY: the block is owned by this value alone; it carries no thread affinity.
unsafe impl Send for RawMemory {}
// SAFETY: a shared `RawMemory` only gives away its address and length; dereferencing is up to the owner's rules.
unsafe impl Sync for RawMemory {}

impl RawMemory {
    /// Zeroed heap memory.
    pub(crate) fn heap(len: usize) -> io::Result<RawMemory> {
        if len == 0 {
            return Ok(RawMemory { start: NonNull::dangling(), len, origin: Origin::Empty });
        }
        let layout = Layout::from_size_align(len, HEAP_ALIGN_BYTES).map_err(|_| io::ErrorKind::OutOfMemory)?;
        // SAFETY: the layout's size is not zero.
        let start = unsafe { alloc_zeroed(layout) };
        let start = NonNull::new(start).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(RawMemory { start, len, origin: Origin::Heap(layout) })
    }

    /// A zeroed, page-aligned anonymous mapping, with huge pages where the kernel has them.
    ///
    /// Under Miri, which knows no mappings, this is heap memory.
    pub(crate) fn mapping(len: usize) -> io::Result<RawMemory> {
        if len == 0 || cfg!(miri) {
            return RawMemory::heap(len);
        }
        let mapped_len =
            usize::try_from(crate::mapped_charge_bytes(len as u64)).map_err(|_| io::ErrorKind::OutOfMemory)?;
        let start = map_aligned(mapped_len)?;
        let memory = RawMemory { start, len, origin: Origin::Mapping(mapped_len) };
        memory.advise();
        Ok(memory)
    }

    /// The first `len` bytes of `file`, mapped shared and writable, from two huge pages on aligned to one. The file must
    /// never be shorter: its owner seals it, or keeps it to himself.
    pub(crate) fn shared(file: BorrowedFd<'_>, len: usize) -> io::Result<RawMemory> {
        RawMemory::of_file(file, len, ProtFlags::READ | ProtFlags::WRITE)
    }

    /// As [`RawMemory::shared`], to be read only.
    pub(crate) fn shared_read_only(file: BorrowedFd<'_>, len: usize) -> io::Result<RawMemory> {
        RawMemory::of_file(file, len, ProtFlags::READ)
    }

    /// The first `len` bytes of `file`, mapped shared and to be read only, wherever the kernel likes. Nothing says that the
    /// file keeps them: who looks at the memory must recover where they are gone.
    pub(crate) fn file_to_copy(file: BorrowedFd<'_>, len: usize) -> io::Result<RawMemory> {
        if len == 0 {
            return RawMemory::heap(0);
        }
        let page = rustix::param::page_size();
        let mapped_len = len.checked_next_multiple_of(page).ok_or(io::ErrorKind::OutOfMemory)?;
        // SAFETY: without MAP_FIXED the kernel chooses free addresses.
        let start = unsafe { mmap(std::ptr::null_mut(), mapped_len, ProtFlags::READ, MapFlags::SHARED, file, 0) }?;
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(RawMemory { start, len, origin: Origin::Mapping(mapped_len) })
    }

    fn of_file(file: BorrowedFd<'_>, len: usize, access: ProtFlags) -> io::Result<RawMemory> {
        if len == 0 {
            return RawMemory::heap(0);
        }
        let page = rustix::param::page_size();
        let mapped_len = len.checked_next_multiple_of(page).ok_or(io::ErrorKind::OutOfMemory)?;
        // The address space is found first; owned from here on, so that a failure gives it back.
        let start = map_aligned(mapped_len)?;
        let memory = RawMemory { start, len, origin: Origin::Mapping(mapped_len) };
        // SAFETY: MAP_FIXED replaces exactly the mapping that `memory` owns and nobody refers to.
        unsafe { mmap(start.as_ptr().cast(), mapped_len, access, MapFlags::SHARED | MapFlags::FIXED, file, 0) }?;
        Ok(memory)
    }

    /// Asks for huge pages, and keeps model bytes out of core dumps. Kernels without transparent huge pages say no to the
    /// first; the memory is as good, only slower to touch first.
    pub(crate) fn advise(&self) {
        let Origin::Mapping(mapped_len) = self.origin else { return };
        let start = self.start.as_ptr().cast();
        // SAFETY: the range is our own mapping, and the advice leaves its contents alone.
        let _ = unsafe { madvise(start, mapped_len, Advice::LinuxHugepage) };
        // SAFETY: as above.
        let _ = unsafe { madvise(start, mapped_len, Advice::LinuxDontDump) };
    }

    /// Has the kernel find the pages of a part of the mapping, as reads of it would, but with an error for what a read would
    /// be killed for. The part starts on a page; beyond the mapping there is nothing to find.
    pub(crate) fn populate(&self, part: Range<usize>) -> io::Result<()> {
        self.populate_as(part, Advice::LinuxPopulateRead)
    }

    /// As [`RawMemory::populate`], as writes would; what the memory holds stays.
    pub(crate) fn populate_to_write(&self, part: Range<usize>) -> io::Result<()> {
        self.populate_as(part, Advice::LinuxPopulateWrite)
    }

    fn populate_as(&self, part: Range<usize>, advice: Advice) -> io::Result<()> {
        let Origin::Mapping(mapped_len) = self.origin else { return Ok(()) };
        let end = part.end.min(mapped_len);
        if part.start >= end {
            return Ok(());
        }
        let start = self.start.as_ptr().wrapping_add(part.start).cast();
        // SAFETY: the range lies within our own mapping, and the advice leaves its contents alone.
        Ok(unsafe { madvise(start, end - part.start, advice) }?)
    }

    /// Forbids to write to the memory from now on.
    ///
    /// # Safety
    /// There must be no mutable reference into the memory, and none may be made any more.
    pub(crate) unsafe fn protect(&self) -> Result<(), Errno> {
        let Origin::Mapping(mapped_len) = self.origin else { return Ok(()) };
        // SAFETY: the range is our own mapping, which the caller writes to no more.
        unsafe { mprotect(self.start.as_ptr().cast(), mapped_len, MprotectFlags::READ) }
    }

    /// Puts a read-only mapping of `file` in the place of this mapping of the same memory, so that nothing here holds it
    /// writable any more.
    ///
    /// # Safety
    /// There must be no mutable reference into the memory, and none may be made any more. `file` must be the memory that
    /// is mapped.
    pub(crate) unsafe fn remap_read_only(&self, file: BorrowedFd<'_>) -> Result<(), Errno> {
        let Origin::Mapping(mapped_len) = self.origin else { return Ok(()) };
        let (start, flags) = (self.start.as_ptr().cast(), MapFlags::SHARED | MapFlags::FIXED);
        // SAFETY: MAP_FIXED replaces exactly the mapping that `self` owns, by the same bytes, says the caller.
        unsafe { mmap(start, mapped_len, ProtFlags::READ, flags, file, 0) }?;
        Ok(())
    }

    /// The first byte. Valid for [`RawMemory::len`] bytes while `self` lives.
    pub(crate) fn start(&self) -> NonNull<u8> {
        self.start
    }

    /// Usable length in bytes.
    pub(crate) fn len(&self) -> usize {
        self.len
    }
}

impl Drop for RawMemory {
    fn drop(&mut self) {
        match self.origin {
            Origin::Empty => {}
            // SAFETY: allocated in `heap` with this very layout, and freed once, here.
            Origin::Heap(layout) => unsafe { dealloc(self.start.as_ptr(), layout) },
            Origin::Mapping(mapped_len) => {
                // SAFETY: mapped in `mapping` with this length; no reference outlives the owner.
                let unmapped = unsafe { munmap(self.start.as_ptr().cast(), mapped_len) };
                debug_assert!(unmapped.is_ok(), "munmap of our own mapping failed");
            }
        }
    }
}

/// Maps `len` bytes; from two huge pages on, aligned to a huge page, by mapping more and giving back the ends.
fn map_aligned(len: usize) -> io::Result<NonNull<u8>> {
    let slack = if len >= HUGE_PAGE_BYTES { HUGE_PAGE_BYTES } else { 0 };
    let asked = len.checked_add(slack).ok_or(io::ErrorKind::OutOfMemory)?;
    // SAFETY: without MAP_FIXED the kernel chooses free addresses, so nobody's memory is replaced.
    let start = unsafe {
        mmap_anonymous(
            std::ptr::null_mut(),
            asked,
            ProtFlags::READ | ProtFlags::WRITE,
            MapFlags::PRIVATE | MapFlags::NORESERVE,
        )
    }?
    .cast::<u8>();
    if slack == 0 {
        return NonNull::new(start).ok_or_else(|| io::ErrorKind::OutOfMemory.into());
    }
    let head = start.align_offset(HUGE_PAGE_BYTES);
    let aligned = start.wrapping_add(head);
    if head > 0 {
        // SAFETY: `[start, aligned)` is the unused front of the mapping just made.
        unsafe { munmap(start.cast(), head) }?;
    }
    if slack > head {
        // SAFETY: `[aligned + len, start + asked)` is the unused end of the mapping just made.
        unsafe { munmap(aligned.wrapping_add(len).cast(), slack - head) }?;
    }
    NonNull::new(aligned).ok_or_else(|| io::ErrorKind::OutOfMemory.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mappings_are_aligned_and_zeroed() {
        for len in [1, 4096, 1 << 20, (2 << 20) + 1, 16 << 20] {
            let memory = RawMemory::mapping(len).unwrap();
            assert_eq!(memory.len(), len);
            if len >= HUGE_PAGE_BYTES && !cfg!(miri) {
                assert_eq!(memory.start().as_ptr() as usize % HUGE_PAGE_BYTES, 0);
            }
            // SAFETY: the block is alive, initialised and only used here.
            let bytes = unsafe { std::slice::from_raw_parts(memory.start().as_ptr(), len) };
            assert!(bytes.iter().step_by(4093).all(|byte| *byte == 0));
        }
    }

    #[test]
    fn empty_and_absurd_sizes_are_no_trouble() {
        assert_eq!(RawMemory::heap(0).unwrap().len(), 0);
        assert_eq!(RawMemory::mapping(0).unwrap().len(), 0);
        assert!(RawMemory::heap(usize::MAX).is_err());
        assert!(RawMemory::mapping(usize::MAX).is_err());
    }
}
