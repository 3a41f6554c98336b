//! Small files that are written, and wait to be made durable together.
//!
//! A pull has promised that a file with a name is whole, also after a power cut. To force each of many small files to the
//! disk by itself means to wait for the disk as many times. So they keep their temporary names for a while, and the file
//! system is asked once to write everything; that takes what others have written with it, so few files go one by one.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use longshore_types::Result;
use rustix::fs::{Mode, OFlags, fsync, openat, syncfs};

use crate::files::file_error;

/// Most files of a batch: their names are in memory.
pub(super) const FILES_MAX: usize = 2048;
/// Most bytes of a batch: what an interrupted pull has to bring again.
const BYTES_MAX: u64 = 256 << 20;
/// Up to so many files, each is forced to the disk by itself.
const SINGLE_MAX: usize = 32;

/// A complete file under its temporary name.
pub(super) struct Written {
    pub(super) folder: Arc<OwnedFd>,
    pub(super) temporary: String,
    pub(super) base: String,
    pub(super) len_bytes: u64,
}

/// See the module.
#[derive(Default)]
pub(super) struct Batch {
    pub(super) files: Vec<Written>,
    bytes: u64,
}

impl Batch {
    /// Adds a file; gives the batch away, and begins another one, when it is full.
    pub(super) fn add(&mut self, file: Written) -> Option<Batch> {
        self.bytes += file.len_bytes;
        self.files.push(file);
        (self.files.len() >= FILES_MAX || self.bytes >= BYTES_MAX).then(|| std::mem::take(self))
    }

    /// Forces the files of the batch to the disk; all are below `folder`, which is at `path`.
    pub(super) fn sync(&self, folder: &OwnedFd, path: &Path) -> Result<()> {
        if self.files.len() > SINGLE_MAX {
            return syncfs(folder).map_err(|error| file_error("write to the disk what is in", path, error.into()));
        }
        self.files.iter().try_for_each(|file| {
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            openat(&*file.folder, &file.temporary, flags, Mode::empty())
                .and_then(|opened| fsync(File::from(opened).as_fd()))
                .map_err(|error| file_error("finish", &path.join(&file.base), error.into()))
        })
    }

    /// Forces the names that the files have now to the disk.
    pub(super) fn sync_folders(&self, path: &Path) -> Result<()> {
        let mut synced: Option<&Arc<OwnedFd>> = None;
        for file in &self.files {
            // Those of one folder follow each other.
            if synced.is_some_and(|synced| Arc::ptr_eq(synced, &file.folder)) {
                continue;
            }
            fsync(&*file.folder).map_err(|error| file_error("finish folder", path, error.into()))?;
            synced = Some(&file.folder);
        }
        Ok(())
    }
}
