//! System calls that `rustix` does not have.

use std::io;
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
