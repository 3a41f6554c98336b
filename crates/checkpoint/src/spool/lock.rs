//! The lock that keeps a second process out of a folder.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use longshore_types::{Code, Error, Result};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::disk_error;

pub(super) const LOCK_NAME: &str = "lock";

/// Held while the folder is in use; the kernel drops it with the process, however that ends.
#[derive(Debug)]
pub(super) struct FolderLock {
    file: File,
    path: PathBuf,
}

impl FolderLock {
    /// Takes the lock of `folder`, which must exist.
    ///
    /// # Errors
    /// `FailedPrecondition` naming the process that holds it.
    pub(super) fn take(folder: &Path) -> Result<FolderLock> {
        let path = folder.join(LOCK_NAME);
        let opened = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let mut file = opened.map_err(|error| disk_error("open", &path, &error))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Err(held(folder, &mut file)),
            Err(errno) => return Err(disk_error("lock", &path, &errno.into())),
        }
        let named = file.set_len(0).and_then(|()| write!(file, "{}", std::process::id()));
        named.map_err(|error| disk_error("write", &path, &error))?;
        Ok(FolderLock { file, path })
    }

    /// Lets the next process have the folder, although this one lives on.
    pub(super) fn release(&self) {
        if let Err(errno) = flock(&self.file, FlockOperation::Unlock) {
            tracing::warn!(path = %self.path.display(), %errno, "the lock stays until this process ends");
        }
    }

    /// Whether the name still leads to the file that is locked: somebody may have removed the folder in between.
    pub(super) fn is_held(&self) -> bool {
        match (self.file.metadata(), std::fs::metadata(&self.path)) {
            (Ok(ours), Ok(named)) => (ours.dev(), ours.ino()) == (named.dev(), named.ino()),
            _ => false,
        }
    }
}

fn held(folder: &Path, file: &mut File) -> Error {
    let mut pid = String::new();
    // The holder may not have written its id yet: the error is the same without it.
    let holder = match file.take(20).read_to_string(&mut pid) {
        Ok(_) if !pid.is_empty() => format!("process {pid}"),
        _ => "another process".to_owned(),
    };
    Error::new(
        Code::FailedPrecondition,
        format!(
            "checkpoint folder {} is in use by {holder}; stop it or choose another --checkpoint-dir",
            folder.display()
        ),
    )
}
