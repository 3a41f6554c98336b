//! Copying out of the page cache by way of a mapping: half the trips to memory that a read takes.
//!
//! A read has the kernel copy page by page, through the core's caches, so that each line of the target is first read and
//! later written. A copy out of a mapping writes past the caches ([`MappedFile::copy_streaming`]), and looks ahead over the
//! ends of pages. It is for bytes that are in the page cache, and that nobody reads again soon.
//!
//! A file may become shorter, or its disk fail, while it is mapped; the kernel kills who then looks at a page that is not
//! there. [`copy`] looks in a way that it recovers from. Nothing else looks at the mapping, and no reference into it is
//! ever made: others may write to the file.

mod copy;

use std::fs::File;
use std::io;
use std::os::fd::AsFd;

use crate::raw::RawMemory;

/// A file, mapped to be copied from.
#[derive(Debug)]
pub struct MappedFile {
    memory: RawMemory,
}

impl MappedFile {
    /// Maps the whole file as it is now, and reads none of it. One mapping for many copies, from many threads: making and
    /// ending one stops all of them. `None` on platforms where nobody recovers from pages that are not there.
    ///
    /// Until it is dropped, the kernel keeps 8 bytes for each page that was copied from.
    ///
    /// # Errors
    /// The kernel's: a file system without mappings, no address space.
    pub fn new(file: &File) -> io::Result<Option<MappedFile>> {
        if !copy::recovers() {
            return Ok(None);
        }
        let len = usize::try_from(file.metadata()?.len()).map_err(|_| io::ErrorKind::OutOfMemory)?;
        Ok(Some(MappedFile { memory: RawMemory::file_to_copy(file.as_fd(), len)? }))
    }

    /// Copies as many bytes as `to` has, from `offset` of the file on, past the core's caches: for bytes that the one who
    /// copies does not look at. What is not in the page cache is read from the disk.
    ///
    /// # Errors
    /// `UnexpectedEof` when the file was not that long, and when some of it is not there any more: a file that became
    /// shorter, a disk that failed. A read says which. Some of `to` may have been written.
    pub fn copy_streaming(&self, offset: u64, to: &mut [u8]) -> io::Result<()> {
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        if offset.checked_add(to.len()).is_none_or(|end| end > self.memory.len()) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let from = self.memory.start().as_ptr().wrapping_add(offset);
        // SAFETY: the bytes lie within the mapping, which lives as long as `self`.
        let is_whole = unsafe { copy::copy_streaming(to, from) };
        if is_whole { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }
}

#[cfg(test)]
#[cfg(all(target_arch = "x86_64", not(miri)))]
mod tests;
