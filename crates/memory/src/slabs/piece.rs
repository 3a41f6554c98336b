//! Pieces of shared memory: made whole before anybody gets them, read by copying.

use std::fs::{self, File};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicUsize, Ordering};

use longshore_types::{Code, Error, Result, format_bytes};
use rustix::fs::{FallocateFlags, fallocate, fstatvfs};
use rustix::io::{Errno, retry_on_intr};
use rustix::mm::{Advice, madvise};

use super::folder::{PieceName, SessionFolder, SlabPages, failed};
use crate::arena::Reservation;
use crate::raw::RawMemory;

/// Bytes whose pages are made in one call.
const STEP_BYTES: usize = 32 << 20;
/// Threads that make pages at once at most: the training on this node needs the cores more.
const THREADS_MAX: usize = 4;

/// A file of shared memory that a client may write, cut and grow at any time.
#[derive(Debug)]
pub struct SlabPiece {
    file: File,
    name: PieceName,
    /// Given back after the memory.
    _reservation: Option<Reservation>,
}

impl SlabPiece {
    /// Makes a piece, every page of it. Blocks: some hundred milliseconds a GiB. `reservation` pays for it until it is gone.
    ///
    /// # Errors
    /// [`Code::Exhausted`] when the file system or the machine has no room, and nothing is left behind then;
    /// [`Code::Internal`] when the reservation is too small.
    pub fn create(folder: &SessionFolder, name: PieceName, reservation: Reservation) -> Result<SlabPiece> {
        if reservation.bytes() < name.len_bytes {
            let message =
                format!("a piece of {} bytes came with a reservation of {}", name.len_bytes, reservation.bytes());
            return Err(Error::new(Code::Internal, message));
        }
        let file = folder.file(&name.to_string(), true)?;
        let made = room(folder, &file, name.len_bytes).and_then(|()| populate(folder, &file, name.len_bytes));
        match made {
            Ok(()) => Ok(SlabPiece { file, name, _reservation: Some(reservation) }),
            Err(error) => {
                folder.remove(&name.to_string());
                Err(error)
            }
        }
    }

    /// A piece that an earlier process made. `None` as reservation: its memory is used already, and nobody pays for it.
    ///
    /// # Errors
    /// [`Code::Corrupt`] when it is not as long as it was made.
    pub fn open(folder: &SessionFolder, name: PieceName, reservation: Option<Reservation>) -> Result<SlabPiece> {
        let file = folder.file(&name.to_string(), false)?;
        let piece = SlabPiece { file, name, _reservation: reservation };
        piece.check()?;
        Ok(piece)
    }

    /// Length in bytes.
    pub fn len_bytes(&self) -> u64 {
        self.name.len_bytes
    }

    /// For the client.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Whether the file still has its length: a client could have changed it.
    ///
    /// # Errors
    /// [`Code::Corrupt`] when not.
    pub fn check(&self) -> Result<()> {
        match self.file.metadata() {
            Ok(facts) if facts.len() == self.name.len_bytes => Ok(()),
            Ok(facts) => Err(changed(self.name, &format!("it has {} bytes", facts.len()))),
            Err(error) => Err(changed(self.name, &format!("its length cannot be read: {error}"))),
        }
    }

    /// Copies bytes out. What lies in the piece may change at any time, what was copied does not. Blocks.
    ///
    /// # Errors
    /// [`Code::Corrupt`] when the bytes are not there any more, [`Code::Internal`] for a range outside of the piece.
    pub fn read(&self, offset_bytes: u64, into: &mut [u8]) -> Result<()> {
        let end = offset_bytes.checked_add(into.len() as u64);
        if end.is_none_or(|end| end > self.name.len_bytes) {
            let message = format!("{} bytes at {offset_bytes} are not within {}", into.len(), self.name);
            return Err(Error::new(Code::Internal, message));
        }
        self.file.read_exact_at(into, offset_bytes).map_err(|error| changed(self.name, &error.to_string()))
    }

    /// Gives the memory back now, also where a client has it mapped: one that still touches it is ended by SIGBUS.
    ///
    /// # Errors
    /// [`Code::Unavailable`] when the file system refuses; then the memory goes with the last mapping.
    pub fn free(&self) -> Result<()> {
        self.file.set_len(0).map_err(|error| {
            Error::new(Code::Unavailable, format!("cannot free shared memory {}: {error}", self.name))
                .with_source(error)
        })
    }
}

fn changed(name: PieceName, how: &str) -> Error {
    Error::new(Code::Corrupt, format!("shared memory {name} was changed by the client that filled it: {how}"))
}

/// Whether there is room, as far as one can know before: the answer is better than that of a failure later, and beyond
/// the machine's memory the kernel does not refuse, it kills.
fn room(folder: &SessionFolder, file: &File, len_bytes: u64) -> Result<()> {
    let facts = fstatvfs(file).map_err(|errno| failed("look at the file system of", &folder.path, errno))?;
    let free = facts.f_bavail.saturating_mul(facts.f_frsize);
    // A tmpfs without a limit says that it has no blocks at all.
    if facts.f_blocks > 0 && free < len_bytes {
        return Err(no_room(folder, len_bytes, &format!("only {} are free there", format_bytes(free))));
    }
    if folder.pages == SlabPages::Tmpfs
        && let Some(free) = available_bytes()
        && free < len_bytes
    {
        return Err(no_room(folder, len_bytes, &format!("only {} of memory are available", format_bytes(free))));
    }
    Ok(())
}

fn no_room(folder: &SessionFolder, len_bytes: u64, why: &str) -> Error {
    let what = match folder.pages {
        SlabPages::Tmpfs => "enlarge it (mount -o remount,size=..., or --shm-size of the container)",
        SlabPages::Hugetlb => "set more huge pages aside (vm.nr_hugepages)",
        SlabPages::Disk => "make room on that disk",
    };
    let message = format!(
        "no {} of shared memory in {}: {why}; {what}, lower --checkpoint-memory, or choose another folder with \
         --checkpoint-slab-dir",
        format_bytes(len_bytes),
        folder.path.display()
    );
    Error::new(Code::Exhausted, message)
}

/// Memory the kernel can give without swapping.
fn available_bytes() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let value = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    value.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// Makes every page through a mapping: that is what takes huge pages where the settings ask for advice, zeroes them here
/// instead of in the client's copy, and fails where a client's write would raise SIGBUS.
pub(super) fn populate(folder: &SessionFolder, file: &File, len_bytes: u64) -> Result<()> {
    let system = |errno: Errno| match errno {
        // What a fault would have been SIGBUS for: there are no pages.
        Errno::FAULT | Errno::NOMEM | Errno::NOSPC => no_room(folder, len_bytes, "the file system is full"),
        errno => failed("allocate shared memory in", &folder.path, errno),
    };
    let other = |error: std::io::Error| system(Errno::from_io_error(&error).unwrap_or(Errno::IO));
    file.set_len(len_bytes).map_err(other)?;
    let len = usize::try_from(len_bytes).map_err(|_| system(Errno::NOMEM))?;
    let memory = RawMemory::shared(file.as_fd(), len).map_err(other)?;
    // Without huge pages the memory is as good, only slower.
    // SAFETY: the range is our own mapping, and the advice leaves its contents alone.
    let _ = unsafe { madvise(memory.start().as_ptr().cast(), len, Advice::LinuxHugepage) };
    match make_pages(&memory) {
        // Before Linux 5.14: the file system is asked for its blocks.
        Err(Errno::INVAL) => retry_on_intr(|| fallocate(file, FallocateFlags::empty(), 0, len_bytes)).map_err(system),
        other => other.map_err(system),
    }
}

/// Some threads, a step each. The first error stops all.
fn make_pages(memory: &RawMemory) -> Result<(), Errno> {
    let steps = memory.len().div_ceil(STEP_BYTES);
    let next = AtomicUsize::new(0);
    let work = || loop {
        let step = next.fetch_add(1, Ordering::Relaxed);
        if step >= steps {
            return Ok(());
        }
        let start = step * STEP_BYTES;
        let len = STEP_BYTES.min(memory.len() - start);
        // Within the mapping: `start` is below its length.
        let address = memory.start().as_ptr().wrapping_add(start);
        // SAFETY: the range is our own mapping; populating writes nothing but zeros to pages that did not exist.
        let made = retry_on_intr(|| unsafe { madvise(address.cast(), len, Advice::LinuxPopulateWrite) });
        made.inspect_err(|_| {
            next.fetch_add(steps, Ordering::Relaxed);
        })?;
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = (cores / 2).clamp(1, THREADS_MAX).min(steps);
    std::thread::scope(|scope| {
        let spawn = |_| std::thread::Builder::new().name("slab-pages".into()).spawn_scoped(scope, work);
        let helpers: Vec<_> = (1..threads).map_while(|at| spawn(at).ok()).collect();
        let own = work();
        own.and(helpers.into_iter().try_for_each(|helper| helper.join().unwrap_or(Err(Errno::IO))))
    })
}
