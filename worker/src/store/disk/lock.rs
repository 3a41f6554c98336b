//! The lock that keeps a second daemon out of a cache folder.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::Path;

use longshore_types::{Code, Error, Result};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

/// Held while the folder is in use; the kernel drops it with the process, however that ends.
#[derive(Debug)]
pub struct FolderLock {
    _file: File,
}

impl FolderLock {
    /// Takes the lock of `folder`, which must exist.
    ///
    /// # Errors
    /// [`Code::FailedPrecondition`] naming the process that holds it, [`Code::PermissionDenied`] when the folder cannot
    /// be written.
    pub fn take(folder: &Path) -> Result<FolderLock> {
        let path = folder.join("lock");
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(|error| super::not_writable(folder, error))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Err(held(folder, &mut file)),
            Err(error) => {
                return Err(Error::new(Code::Internal, format!("cannot lock {}: {error}", path.display())));
            }
        }
        file.set_len(0)
            .and_then(|()| write!(file, "{}", std::process::id()))
            .map_err(|error| super::not_writable(folder, error))?;
        Ok(FolderLock { _file: file })
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
        format!("cache folder {} is in use by {holder}; stop it or choose another --cache-dir", folder.display()),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_daemon_is_told_who_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let first = FolderLock::take(folder.path()).unwrap();
        let error = FolderLock::take(folder.path()).unwrap_err();
        assert_eq!(error.code(), Code::FailedPrecondition);
        assert!(error.message().contains(&format!("process {}", std::process::id())), "{error}");
        drop(first);
        FolderLock::take(folder.path()).unwrap();
    }
}
