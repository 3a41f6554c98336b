//! Memory that this process goes on writing while others may read it.
//!
//! Others get a descriptor that was opened to read. On a private mount nobody can make more of it. A memfd cannot be sealed
//! against writes, since it is mapped to be written; its length is, so that it never shrinks under a reader, and its mode
//! lets none open it anew to write but the user who owns it and root, who may write the memory of this process in any
//! case. Whoever reads compares checksums where the bytes landed.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};

use rustix::fs::{CWD, Mode, OFlags, SealFlags, fchmod, fcntl_add_seals, openat};

use super::{SharedFile, SharedMemory};
use crate::raw::RawMemory;

impl SharedMemory {
    /// `len` zero bytes to write, and the descriptor for those who may read them. No other descriptor of it stays open.
    pub(crate) fn readable(&self, name: &str, len: usize) -> io::Result<(RawMemory, File)> {
        let SharedFile { file, read_only } = self.file(name)?;
        file.set_len(len as u64)?;
        let map = RawMemory::shared(file.as_fd(), len)?;
        map.advise();
        let read_only = match read_only {
            Some(read_only) => read_only,
            None => sealed_and_reopened(&file)?,
        };
        Ok((map, read_only))
    }
}

fn sealed_and_reopened(memfd: &File) -> io::Result<File> {
    fchmod(memfd, Mode::RUSR)?;
    fcntl_add_seals(memfd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
    let path = format!("/proc/self/fd/{}", memfd.as_raw_fd());
    Ok(openat(CWD, path.as_str(), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?.into())
}
