//! Memory behind a descriptor, made the same way everywhere, and what one piece of it is called between crates.

use std::fs::File;
use std::os::fd::OwnedFd;

use rustix::fs::{MemfdFlags, memfd_create};
use rustix::io::Errno;

/// Longest name a memfd takes (the kernel's limit less its own prefix); names only show in `/proc`.
const NAME_BYTES_MAX: usize = 200;

/// One descriptor's memory, host or device, owned.
#[derive(Debug)]
pub struct OwnedSegment {
    /// The descriptor; what it may be used for is its maker's affair.
    pub fd: OwnedFd,
    /// Bytes of memory behind it.
    pub len_bytes: u64,
}

/// Closed on exec, sealable, and never executable where the kernel knows how (Linux 6.3). `extra` says which pages.
pub(crate) fn create_memfd(name: &str, extra: MemfdFlags) -> Result<File, Errno> {
    let name: String = name.chars().filter(|c| c.is_ascii_graphic()).take(NAME_BYTES_MAX).collect();
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING | extra;
    let fd = match memfd_create(name.as_str(), flags | MemfdFlags::NOEXEC_SEAL) {
        Err(Errno::INVAL) => memfd_create(name.as_str(), flags),
        other => other,
    }?;
    Ok(File::from(fd))
}
