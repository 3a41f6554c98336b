//! Address ranges of this process that stand for device memory. Nobody has Rust references into them: they are written and
//! read by address, as a card would.

use std::ffi::c_void;
use std::fs::File;
use std::io;
use std::ptr::null_mut;

use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap, mmap_anonymous, mprotect, munmap};

/// What a device may do with a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Access {
    None,
    Read,
    ReadWrite,
}

const EMPTY: MapFlags = MapFlags::PRIVATE.union(MapFlags::NORESERVE);

/// Reserves addresses, aligned; touching them faults.
pub(crate) fn reserve(size: usize, alignment: usize) -> io::Result<u64> {
    let asked = size.checked_add(alignment).ok_or(io::ErrorKind::OutOfMemory)?;
    // SAFETY: without MAP_FIXED the kernel chooses free addresses.
    let start = unsafe { mmap_anonymous(null_mut(), asked, ProtFlags::empty(), EMPTY) }? as usize;
    let aligned = start.next_multiple_of(alignment);
    let (head, tail) = (aligned - start, asked - size - (aligned - start));
    for (at, len) in [(start, head), (aligned + size, tail)] {
        if len > 0 {
            release(at as u64, len)?;
        }
    }
    Ok(aligned as u64)
}

/// Gives addresses back.
pub(crate) fn release(address: u64, size: usize) -> io::Result<()> {
    // SAFETY: the range is one that this module reserved or mapped, whole or an end of it, and is given back once.
    Ok(unsafe { munmap(address as *mut c_void, size) }?)
}

/// Puts the start of a file at addresses that are reserved; touching them faults until access is given.
pub(crate) fn map_at(address: u64, size: usize, file: &File) -> io::Result<()> {
    let flags = MapFlags::SHARED | MapFlags::FIXED;
    // SAFETY: the range lies in a reservation of `reserve` in which nothing is mapped.
    unsafe { mmap(address as *mut c_void, size, ProtFlags::empty(), flags, file, 0) }?;
    Ok(())
}

/// Takes what is mapped there away; the addresses stay reserved.
pub(crate) fn unmap_at(address: u64, size: usize) -> io::Result<()> {
    // SAFETY: the range is one that `map_at` mapped into a reservation of ours.
    unsafe { mmap_anonymous(address as *mut c_void, size, ProtFlags::empty(), EMPTY | MapFlags::FIXED) }?;
    Ok(())
}

/// Lets this process's CPUs do what the devices together may do.
pub(crate) fn protect(address: u64, size: usize, access: Access) -> io::Result<()> {
    let flags = match access {
        Access::None => MprotectFlags::empty(),
        Access::Read => MprotectFlags::READ,
        Access::ReadWrite => MprotectFlags::READ | MprotectFlags::WRITE,
    };
    // SAFETY: the range is one that `map_at` mapped; who writes to it against its protection is meant to fault.
    Ok(unsafe { mprotect(address as *mut c_void, size, flags) }?)
}

/// Maps the start of a file somewhere, readable and writable.
pub(crate) fn map(size: usize, file: &File) -> io::Result<u64> {
    // SAFETY: without MAP_FIXED the kernel chooses free addresses.
    let start = unsafe { mmap(null_mut(), size, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED, file, 0) }?;
    Ok(start as u64)
}

/// New host memory.
pub(crate) fn host(size: usize) -> io::Result<u64> {
    // SAFETY: without MAP_FIXED the kernel chooses free addresses.
    let start = unsafe { mmap_anonymous(null_mut(), size, ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE) }?;
    Ok(start as u64)
}
