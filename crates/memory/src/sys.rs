//! System calls that `rustix` does not have.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;

/// Asks for the pages of a mapping to be taken from one NUMA node where it has any; others serve when it has none.
///
/// # Safety
/// `start` and `len` must be a mapping of the caller's, `start` page-aligned.
pub(crate) unsafe fn prefer_node(start: NonNull<u8>, len: usize, node: u32) -> io::Result<()> {
    const WORD_BITS: usize = libc::c_ulong::BITS as usize;
    const WORDS: usize = crate::pinned::NODES_MAX as usize / WORD_BITS;
    let mut mask = [0 as libc::c_ulong; WORDS];
    let word = mask.get_mut(node as usize / WORD_BITS).ok_or(io::ErrorKind::InvalidInput)?;
    *word = 1 << (node as usize % WORD_BITS);
    // The kernel reads one bit less than it is told.
    let bits = WORDS * WORD_BITS + 1;
    // SAFETY: the mask has the bits that are announced, and the policy of a mapping says where pages come from, not
    // what they hold.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_mbind,
            start.as_ptr(),
            len,
            libc::MPOL_PREFERRED,
            mask.as_ptr(),
            bits,
            0 as libc::c_ulong,
        )
    };
    if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The number of `mount_setattr` (Linux 5.12), the same on all platforms we run on; not every libc knows it.
const MOUNT_SETATTR: libc::c_long = 442;

/// Makes a mount that is not attached anywhere read-only.
pub(crate) fn set_mount_read_only(mount: BorrowedFd<'_>) -> io::Result<()> {
    let attr = libc::mount_attr { attr_set: libc::MOUNT_ATTR_RDONLY, attr_clr: 0, propagation: 0, userns_fd: 0 };
    let (path, size) = (c"".as_ptr(), size_of::<libc::mount_attr>());
    // SAFETY: the path and the structure, of which the kernel is told the size, live through the call, which only reads
    // them.
    let answer =
        unsafe { libc::syscall(MOUNT_SETATTR, mount.as_raw_fd(), path, libc::AT_EMPTY_PATH, &raw const attr, size) };
    if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// `struct cachestat_range` of the kernel.
#[repr(C)]
struct CacheRange {
    offset: u64,
    len: u64,
}

/// `struct cachestat` of the kernel: counts of pages.
#[repr(C)]
#[derive(Default)]
struct CacheCounts {
    cached: u64,
    dirty: u64,
    writeback: u64,
    evicted: u64,
    recently_evicted: u64,
}

/// The number of `cachestat` (Linux 6.5), the same on all platforms we run on; not every libc knows it.
const CACHESTAT: libc::c_long = 451;

/// Pages of the file's `len` bytes from `offset` on that are in the page cache.
pub(crate) fn cached_pages(file: BorrowedFd<'_>, offset: u64, len: u64) -> io::Result<u64> {
    let range = CacheRange { offset, len };
    let mut counts = CacheCounts::default();
    // SAFETY: both structures are laid out as the kernel's and live through the call; `counts` is only written.
    let answer = unsafe { libc::syscall(CACHESTAT, file.as_raw_fd(), &raw const range, &raw mut counts, 0) };
    if answer == 0 { Ok(counts.cached) } else { Err(io::Error::last_os_error()) }
}

/// Sets the lowest bit of each of `pages` whose page of the mapping is in memory. False where the kernel does not say.
pub(crate) fn in_core(start: *mut u8, len: usize, pages: &mut [u8]) -> bool {
    let page = rustix::param::page_size();
    if pages.len() < len.div_ceil(page) {
        return false;
    }
    // SAFETY: the kernel checks the address, and writes one byte a page, for which there is room.
    unsafe { libc::mincore(start.cast(), len, pages.as_mut_ptr()) == 0 }
}

#[cfg(test)]
#[cfg(not(miri))]
pub(crate) mod tests {
    /// From now on the system call `number` fails with `errno` on this thread, as a container's filter does it.
    pub(crate) fn forbid(number: libc::c_long, errno: libc::c_int) {
        let statement = |code: u32, k: u32, jt, jf| libc::sock_filter { code: code as u16, jt, jf, k };
        let mut filter = [
            statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
            statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, number as u32, 0, 1),
            statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ERRNO | errno as u32, 0, 0),
            statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW, 0, 0),
        ];
        let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
        // SAFETY: only forbids this thread to gain privileges.
        let unprivileged = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
        assert_eq!(unprivileged, 0, "{}", std::io::Error::last_os_error());
        // SAFETY: the program lives through the call, which copies it.
        let filtered = unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) };
        assert_eq!(filtered, 0, "{}", std::io::Error::last_os_error());
    }
}
