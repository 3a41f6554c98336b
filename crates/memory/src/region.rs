//! Host memory behind a descriptor: written through exclusive windows, then made unchangeable and shared read-only.
//!
//! Invariants: two live [`Window`]s never overlap ([`claims`]); a [`Region`] only exists once no window does, its
//! mapping is read-only, and its descriptor is a sealed memfd or one of a read-only mount, so that none of its holders
//! can write the memory, map it writable, punch holes in it or truncate it. Readers can therefore neither see a change
//! nor get SIGBUS.
//!
//! Deliberately absent: touching memory when a region is made. With 4 KiB pages, allocating a block in one call before it is
//! written took the same CPU as one fault each; what helps is huge pages, see [`SharedMemory`], and memory that was touched
//! before anybody asked, see [`Prefaulter`](crate::Prefaulter).

mod adopt;
mod claims;
mod window;

use std::fs::File;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use longshore_types::{Code, Error, Result, format_bytes};
use parking_lot::Mutex;
use rustix::fs::{SealFlags, fcntl_add_seals};
use rustix::io::Errno;

use self::claims::Claims;
pub use self::window::Window;
use crate::arena::Reservation;
use crate::raw::RawMemory;
use crate::shared::{SharedFile, SharedMemory, SharedPages, shared_memory};

/// The mapping, which the writer, its windows and the region keep alive, and with it what pays for it.
struct Shared {
    map: RawMemory,
    len: u64,
    /// Fresh pages come one by one: see [`SharedPages::Small`].
    has_small_pages: bool,
    claims: Mutex<Claims>,
    _reservation: Reservation,
}

/// A region while it is being filled.
pub struct RegionWriter {
    shared: Arc<Shared>,
    file: SharedFile,
}

impl RegionWriter {
    /// Makes `len` zero bytes of [this process's shared memory](shared_memory); pages are allocated as they are first written, but for
    /// those that are [ready](crate::Arena::try_reserve_region). `reservation`
    /// pays for them and is held until the region is gone. `name` shows in `/proc/<pid>/maps`.
    ///
    /// # Errors
    /// [`Code::Internal`] when the reservation is too small, [`Code::Exhausted`] when the system has no descriptor or
    /// address space left.
    pub fn create(name: &str, len: u64, reservation: Reservation) -> Result<RegionWriter> {
        RegionWriter::create_in(shared_memory(), name, len, reservation)
    }

    /// As [`RegionWriter::create`], of the memory given.
    ///
    /// # Errors
    /// As [`RegionWriter::create`].
    pub fn create_in(
        memory: &SharedMemory,
        name: &str,
        len: u64,
        mut reservation: Reservation,
    ) -> Result<RegionWriter> {
        if reservation.bytes() < len {
            let message = format!("region {name} of {len} bytes came with a reservation of {}", reservation.bytes());
            return Err(Error::new(Code::Internal, message));
        }
        let failed = |what: &str, error: std::io::Error| {
            let message = format!("cannot {what} host memory of {} for {name}: {error}", format_bytes(len));
            Error::new(Code::Exhausted, message).with_source(error)
        };
        let map_len = usize::try_from(len).map_err(|_| failed("address", std::io::ErrorKind::OutOfMemory.into()))?;
        let file = match reservation.take_ready(memory) {
            Some(ready) => ready,
            None => memory.file(name).map_err(|error| failed("create", error))?,
        };
        file.file.set_len(len).map_err(|error| failed("size", error))?;
        let map = RawMemory::shared(file.file.as_fd(), map_len).map_err(|error| failed("map", error))?;
        map.advise();
        let has_small_pages = memory.pages() == SharedPages::Small;
        let claims = Mutex::new(Claims::default());
        let shared = Arc::new(Shared { map, len, has_small_pages, claims, _reservation: reservation });
        Ok(RegionWriter { shared, file })
    }

    /// Length in bytes.
    pub fn len(&self) -> u64 {
        self.shared.len
    }

    /// Whether the region has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Exclusive access to `range` until the window is dropped; then the range may be claimed again (a retry).
    ///
    /// # Errors
    /// [`Code::Internal`] when the range is not within the region or overlaps a live window.
    pub fn claim(&self, range: Range<u64>) -> Result<Window> {
        Window::claim(&self.shared, range)
    }

    /// Makes the memory unchangeable, and shareable.
    ///
    /// # Errors
    /// [`Code::Internal`] while windows are alive, or when the kernel refuses a seal.
    pub fn finish(self) -> Result<Region> {
        let windows = self.shared.claims.lock().len();
        if windows > 0 {
            let message = format!("region of {} bytes finished while {windows} windows are open", self.shared.len);
            return Err(Error::new(Code::Internal, message));
        }
        let len = self.shared.len;
        // No window can appear any more: making one takes the writer, which is consumed here.
        let file = make_unchangeable(&self.shared.map, self.file).map_err(|errno| {
            let message = format!("cannot seal a region of {len} bytes: {errno}");
            Error::new(Code::Internal, message).with_source(std::io::Error::from(errno))
        })?;
        Ok(Region { inner: Arc::new(RegionInner { shared: self.shared, file }) })
    }
}

/// Takes every way of writing from us and from those who get the descriptor that is returned. No window may be open.
fn make_unchangeable(map: &RawMemory, file: SharedFile) -> Result<File, Errno> {
    match file {
        SharedFile { file, read_only: None } => {
            // SAFETY: no window, hence no mutable reference, into the mapping exists or will.
            unsafe { map.protect() }?;
            fcntl_add_seals(&file, seals())?;
            Ok(file)
        }
        // The descriptor that could write is closed on return; the mapping that was made of it goes here.
        SharedFile { file: _, read_only: Some(read_only) } => {
            // SAFETY: as above; both descriptors are of one file.
            unsafe { map.remap_read_only(read_only.as_fd()) }?;
            Ok(read_only)
        }
    }
}

/// FUTURE_WRITE rather than WRITE: our own mapping exists and stays, made read-only.
fn seals() -> SealFlags {
    SealFlags::SHRINK | SealFlags::GROW | SealFlags::FUTURE_WRITE | SealFlags::SEAL
}

struct RegionInner {
    shared: Arc<Shared>,
    file: File,
}

/// A region that nobody can change any more. A clone is the same region; its memory is charged until the last clone is gone.
///
/// A process that received the descriptor keeps the memory alive after that, uncharged: hand regions out under a lease.
#[derive(Clone)]
pub struct Region {
    inner: Arc<RegionInner>,
}

impl Region {
    /// Length in bytes.
    pub fn len(&self) -> u64 {
        self.inner.shared.len
    }

    /// Whether the region has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        let shared = &self.inner.shared;
        // SAFETY: the mapping has this length, lives as long as `self`, and is read-only, as every other mapping of
        // the memory is: nobody writes these bytes.
        unsafe { std::slice::from_raw_parts(shared.map.start().as_ptr(), shared.map.len()) }
    }

    /// The descriptor, to be sent to another process: it can read and map the memory, no more.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.inner.file.as_fd()
    }
}

impl std::fmt::Debug for RegionWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RegionWriter({} bytes)", self.len())
    }
}

impl std::fmt::Debug for Region {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Region({} bytes)", self.len())
    }
}

#[cfg(test)]
#[cfg(not(miri))]
mod tests;
