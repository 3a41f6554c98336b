//! An object that is written: past the page cache where its file system takes that.
//!
//! Direct writes reach the disk's rate with a fraction of the CPU, and leave the page cache to those who use it. Uploads take
//! what is still in memory, and read the rest back past the page cache too.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use longshore_types::CHUNK_BYTES;
use rustix::fs::OFlags;

/// What direct writes must be whole multiples of: no block device has larger blocks.
const PAGE_BYTES: usize = 4096;

/// An open object. Clone = the same one.
#[derive(Clone)]
pub(super) struct Target {
    file: Arc<File>,
    /// The same file past the page cache. `None` for small files, and where the file system cannot.
    direct: Option<Arc<File>>,
}

impl Target {
    /// `file` is at `path`, and will have `size_bytes`.
    pub(super) fn new(file: File, path: &Path, size_bytes: u64) -> Target {
        let flags = OFlags::DIRECT.bits() as i32;
        let direct = (size_bytes >= CHUNK_BYTES).then(|| File::options().write(true).custom_flags(flags).open(path));
        Target { file: Arc::new(file), direct: direct.and_then(Result::ok).map(Arc::new) }
    }

    /// Through the page cache, for syncing too.
    pub(super) fn file(&self) -> Arc<File> {
        Arc::clone(&self.file)
    }

    /// Writes `bytes`, which must lie at a page boundary in memory to go past the page cache; whether they did. Not durable
    /// before a sync.
    pub(super) fn write(&self, bytes: &[u8], at: u64) -> io::Result<bool> {
        let (whole, rest) = bytes.split_at(bytes.len() / PAGE_BYTES * PAGE_BYTES);
        let Some(direct) = self.direct.as_ref().filter(|_| at.is_multiple_of(PAGE_BYTES as u64)) else {
            return self.file.write_all_at(bytes, at).map(|()| false);
        };
        match direct.write_all_at(whole, at) {
            Ok(()) => self.file.write_all_at(rest, at + whole.len() as u64).map(|()| true),
            // Not this alignment, or not on this file system after all.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                self.file.write_all_at(bytes, at).map(|()| false)
            }
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use longshore_memory::Arena;

    use super::*;

    #[test]
    fn whole_pages_and_the_rest_arrive_wherever_they_lie() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("object");
        let arena = Arena::new(4 * CHUNK_BYTES);
        let mut buffer = arena.try_buffer(CHUNK_BYTES as usize).unwrap();
        buffer.iter_mut().enumerate().for_each(|(at, byte)| *byte = (at % 251) as u8);
        let target = Target::new(File::create(&path).unwrap(), &path, 2 * CHUNK_BYTES);
        for (length, at, skip) in [(CHUNK_BYTES as usize, 0, 0), (5000, CHUNK_BYTES, 0), (9000, 4096, 3), (10, 7, 0)] {
            let bytes = &buffer[skip..(skip + length).min(CHUNK_BYTES as usize)];
            target.write(bytes, at).unwrap();
            let mut read = vec![0; bytes.len()];
            File::open(&path).unwrap().read_exact_at(&mut read, at).unwrap();
            assert_eq!(read, bytes);
        }
    }
}
