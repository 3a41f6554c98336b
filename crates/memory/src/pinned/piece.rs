//! Pieces of the arena: a file of memory each, allocated to the last page, mapped, and sealed in its size where that can be.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};

use longshore_types::{CHUNK_BYTES, format_bytes};
use rustix::fs::{FallocateFlags, MemfdFlags, SealFlags, fallocate, fcntl_add_seals};
use rustix::io::{Errno, retry_on_intr};
use rustix::mm::{Advice, madvise};

use super::PageKind;
use super::nodes::PiecePlan;
use crate::memfd::create_memfd;
use crate::raw::{HUGE_PAGE_BYTES, RawMemory};
use crate::shared::{SharedPages, shared_memory};
use crate::sys;

/// Threads that allocate at once at most: zeroing pages is bound by memory, not by cores, long before this.
const THREADS_MAX: usize = 16;

/// A piece of memory, all of it there.
#[derive(Debug)]
pub(super) struct Piece {
    pub(super) memory: RawMemory,
    pub(super) fd: OwnedFd,
    pub(super) node: Option<u32>,
}

/// Makes all pieces, of pages that were set aside if there are enough of them, else of ordinary ones.
pub(super) fn create_all(plan: &[PiecePlan]) -> io::Result<(Vec<Piece>, PageKind)> {
    let bytes = plan.iter().map(|piece| piece.slots * CHUNK_BYTES).sum::<u64>();
    if free_huge_pages() >= bytes.div_ceil(HUGE_PAGE_BYTES as u64) {
        // Others may take them in the meantime, or a cgroup may deny them: then ordinary pages do.
        if let Ok(pieces) = create_each(plan, true) {
            return Ok((pieces, PageKind::Hugetlb));
        }
    }
    // Beyond this the kernel does not refuse, it kills.
    let available = available_bytes();
    if available < bytes {
        let message = format!("only {} of memory are available", format_bytes(available));
        return Err(io::Error::new(io::ErrorKind::OutOfMemory, message));
    }
    let pieces = create_each(plan, false)?;
    let pages = if mostly_huge(&pieces) { PageKind::Transparent } else { PageKind::Small };
    Ok((pieces, pages))
}

/// Several threads, each piece by one of them. On an error what was made is freed.
fn create_each(plan: &[PiecePlan], hugetlb: bool) -> io::Result<Vec<Piece>> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from).clamp(1, THREADS_MAX).min(plan.len());
    let next = AtomicUsize::new(0);
    let work = || -> io::Result<Vec<(usize, Piece)>> {
        let mut made = Vec::new();
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(piece) = plan.get(index) else { return Ok(made) };
            let piece = Piece::create(piece, hugetlb).inspect_err(|_| {
                // The others stop as well.
                next.fetch_add(plan.len(), Ordering::Relaxed);
            })?;
            made.push((index, piece));
        }
    };
    let answers: Vec<_> = std::thread::scope(|scope| {
        let spawn = |_| std::thread::Builder::new().name("pinned-memory".into()).spawn_scoped(scope, work);
        let helpers: Vec<_> = (1..threads).map_while(|at| spawn(at).ok()).collect();
        let own = work();
        let died = |_| Err(io::Error::other("a thread that allocates memory panicked"));
        helpers.into_iter().map(|helper| helper.join().unwrap_or_else(died)).chain([own]).collect()
    });
    let mut made = Vec::with_capacity(plan.len());
    for answer in answers {
        made.extend(answer?);
    }
    made.sort_unstable_by_key(|(index, _)| *index);
    Ok(made.into_iter().map(|(_, piece)| piece).collect())
}

impl Piece {
    fn create(plan: &PiecePlan, hugetlb: bool) -> io::Result<Piece> {
        let len_bytes = plan.slots * CHUNK_BYTES;
        let len = usize::try_from(len_bytes).map_err(|_| io::ErrorKind::OutOfMemory)?;
        // Our copiers write to it, so that of a file of the private mount they get the descriptor that may.
        let file = match hugetlb {
            true => create_memfd("longshore-pinned", MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB)?,
            false => shared_memory().file("longshore-pinned")?.file,
        };
        file.set_len(len_bytes)?;
        match fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL) {
            // Files of the private mount cannot be sealed.
            Err(Errno::PERM) if shared_memory().pages() == SharedPages::HugePrivateMount && !hugetlb => {}
            sealed => sealed?,
        }
        let memory = RawMemory::shared(file.as_fd(), len)?;
        let start = memory.start();
        // SAFETY: our own mapping, that nobody refers to yet.
        let bound = plan.node.map(|node| unsafe { sys::prefer_node(start, len, node) });
        // Containers may forbid it; then nothing is claimed about where the memory is.
        let node = plan.node.filter(|_| matches!(bound, Some(Ok(()))));
        memory.advise();
        allocate(&file, &memory)?;
        Ok(Piece { memory, fd: file.into(), node })
    }
}

/// Allocates every page: by touching the mapping, which respects its policies and fails where a write would raise
/// SIGBUS; before Linux 5.14 by extending the file.
fn allocate(file: &File, memory: &RawMemory) -> io::Result<()> {
    let start = memory.start().as_ptr().cast();
    // SAFETY: the range is our own mapping; populating writes nothing but zeros to pages that did not exist.
    let populated = retry_on_intr(|| unsafe { madvise(start, memory.len(), Advice::LinuxPopulateWrite) });
    match populated {
        Ok(()) => Ok(()),
        Err(Errno::INVAL) => Ok(retry_on_intr(|| fallocate(file, FallocateFlags::empty(), 0, memory.len() as u64))?),
        // What a fault would have been SIGBUS for: the file system is out of pages.
        Err(Errno::FAULT | Errno::NOMEM) => Err(io::ErrorKind::OutOfMemory.into()),
        Err(errno) => Err(errno.into()),
    }
}

/// Pages of 2 MiB that are set aside and not promised to anybody.
fn free_huge_pages() -> u64 {
    let read = |name| -> Option<u64> {
        let text = fs::read_to_string(format!("/sys/kernel/mm/hugepages/hugepages-2048kB/{name}")).ok()?;
        text.trim().parse().ok()
    };
    let promised = read("resv_hugepages").unwrap_or(0);
    read("free_hugepages").unwrap_or(0).saturating_sub(promised)
}

/// Memory the kernel can give without swapping, and at most what this process may use.
fn available_bytes() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    kib_field(&text, "MemAvailable:").unwrap_or(u64::MAX).min(crate::memory_limit_bytes())
}

/// Whether at least half of the memory is mapped by huge pages.
fn mostly_huge(pieces: &[Piece]) -> bool {
    // Where the settings rule them out nobody needs to count, which takes time with many small pages.
    if shared_memory().pages() == SharedPages::Small {
        return false;
    }
    let Ok(mappings) = fs::read_to_string("/proc/self/smaps") else { return false };
    let total: u64 = pieces.iter().map(|piece| piece.memory.len() as u64).sum();
    let starts: Vec<usize> = pieces.iter().map(|piece| piece.memory.start().as_ptr() as usize).collect();
    huge_bytes(&mappings, &starts) >= total / 2
}

/// Bytes mapped by huge pages in the mappings that begin at `starts`.
fn huge_bytes(mappings: &str, starts: &[usize]) -> u64 {
    let mut ours = false;
    let mut bytes = 0;
    for line in mappings.lines() {
        let first = line.split_ascii_whitespace().next().unwrap_or_default();
        if let Some((start, end)) = first.split_once('-')
            && let (Ok(start), Ok(_)) = (usize::from_str_radix(start, 16), usize::from_str_radix(end, 16))
        {
            ours = starts.contains(&start);
        } else if ours {
            bytes += kib_field(line, "ShmemPmdMapped:").unwrap_or(0);
        }
    }
    bytes
}

/// The value of `name` in the kernel's `name: N kB` lines, in bytes.
fn kib_field(text: &str, name: &str) -> Option<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix(name))?;
    value.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
#[cfg(not(miri))]
mod tests;
