//! Whole files that are there completely or not at all, also after a power failure: written beside their place, synced,
//! put there by a link or a rename, and the folder is synced as well. All of it blocks.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use longshore_types::{Code, Version};
use rustix::fs::{FlockOperation, RenameFlags, flock, renameat_with};

use super::temporary::{self, Kind};
use super::{io_fault, version_of};
use crate::body::Body;
use crate::fault::{Attempt, Fault};
use crate::write::{PutHow, PutOutcome};

/// How often a folder may vanish while a file is put into it: deletions remove empty folders.
const FOLDERS_MAX: u32 = 16;
/// How often the file to be replaced may be replaced by others while we wait for our turn.
const TURNS_MAX: u32 = 1024;

/// A file under a temporary name; removed unless it is put in its place.
struct Temporary {
    path: PathBuf,
    file: File,
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // After a rename there is none, and what cannot be removed is left out of listings.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Writes `bytes` to `path` under a condition.
pub(super) fn put(path: &Path, body: &Body, how: &PutHow) -> Attempt<PutOutcome> {
    if path.is_dir() {
        return Err(io_fault(path, "write", &io::Error::from(ErrorKind::IsADirectory)));
    }
    if *how == PutHow::Create && path.symlink_metadata().is_ok() {
        return Ok(PutOutcome::Conflict);
    }
    let temporary = write_beside(path, body)?;
    let version = |file: &File| {
        let metadata = file.metadata().map_err(|error| io_fault(path, "look at", &error))?;
        Ok::<_, Fault>(version_of(&metadata)?)
    };
    let done = match how {
        PutHow::Overwrite => {
            // In turn with those who replace, who else could miss this write between their look and their rename.
            let _turn = lock_current(path)?;
            std::fs::rename(&temporary.path, path).map(|()| true)
        }
        PutHow::Create => create(&temporary.path, path),
        PutHow::Replace(expected) => match lock_current(path)? {
            Some(current) if &version(&current)? == expected => std::fs::rename(&temporary.path, path).map(|()| true),
            _ => return Ok(PutOutcome::Conflict),
        },
    };
    if !done.map_err(|error| io_fault(path, "write", &error))? {
        return Ok(PutOutcome::Conflict);
    }
    sync_folder_of(path)?;
    Ok(PutOutcome::Written(version(&temporary.file)?))
}

fn write_beside(path: &Path, body: &Body) -> Attempt<Temporary> {
    let (at, file) = create_beside(path, &temporary::new_id(), Kind::Object)?;
    let mut temporary = Temporary { path: at, file };
    let mut pieces = body.pieces().iter();
    let written = pieces.try_for_each(|piece| temporary.file.write_all(piece)).and_then(|()| temporary.file.sync_all());
    written.map_err(|error| io_fault(path, "write", &error))?;
    Ok(temporary)
}

/// Makes a file beside `path`, and the folders above it.
pub(super) fn create_beside(path: &Path, id: &str, kind: Kind) -> Attempt<(PathBuf, File)> {
    let at = temporary::path_of(path, id, kind);
    let folder = path.parent().unwrap_or(Path::new("/"));
    let mut tries = 0;
    loop {
        let opened = OpenOptions::new().write(true).create_new(true).open(&at);
        match opened {
            Ok(file) => return Ok((at, file)),
            Err(error)
                if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) && tries < FOLDERS_MAX =>
            {
                tries += 1;
                create_folders(folder)?;
            }
            Err(error) => return Err(io_fault(path, "write", &error)),
        }
    }
}

/// Makes the folders that are missing; each is synced into the one above it.
fn create_folders(folder: &Path) -> Attempt<()> {
    let missing: Vec<&Path> = folder.ancestors().take_while(|folder| !folder.exists()).collect();
    std::fs::create_dir_all(folder).map_err(|error| match error.kind() {
        ErrorKind::NotADirectory => {
            let text = format!("cannot make the folder {}: a part of its path is a file", folder.display());
            Fault::fatal(Code::FailedPrecondition, text)
        }
        _ => io_fault(folder, "make the folder", &error),
    })?;
    for folder in missing.into_iter().rev() {
        sync_folder_of(folder)?;
    }
    Ok(())
}

/// Puts a file in its place if there is none: `false` when there is.
fn create(from: &Path, to: &Path) -> io::Result<bool> {
    let cwd = rustix::fs::CWD;
    match renameat_with(cwd, from, cwd, to, RenameFlags::NOREPLACE) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::EXIST) => Ok(false),
        // Some file systems cannot do that, but links do the same.
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS | rustix::io::Errno::OPNOTSUPP) => {
            match std::fs::hard_link(from, to) {
                Ok(()) => Ok(true),
                Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(false),
                Err(error) => Err(error),
            }
        }
        Err(error) => Err(error.into()),
    }
}

/// The file at `path`, locked against other processes that replace it; `None` when there is none. The lock is that of
/// the file, so after waiting for it the file may have been replaced, and then it is the next one's turn.
fn lock_current(path: &Path) -> Attempt<Option<File>> {
    let fault = |error: &io::Error| io_fault(path, "replace", error);
    for _ in 0..TURNS_MAX {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(fault(&error)),
        };
        flock(&file, FlockOperation::LockExclusive).map_err(|error| fault(&error.into()))?;
        let locked = file.metadata().map_err(|error| fault(&error))?;
        let is_current = match std::fs::metadata(path) {
            Ok(now) => (now.dev(), now.ino()) == (locked.dev(), locked.ino()),
            Err(error) if error.kind() == ErrorKind::NotFound => false,
            Err(error) => return Err(fault(&error)),
        };
        if is_current {
            return Ok(Some(file));
        }
    }
    Err(fault(&io::Error::from(ErrorKind::TimedOut)))
}

/// Makes a name in a folder survive a power failure.
pub(super) fn sync_folder_of(path: &Path) -> Attempt<()> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    let synced = File::open(folder).and_then(|folder| folder.sync_all());
    match synced {
        Ok(()) => Ok(()),
        // The folder went together with what was in it.
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(io_fault(folder, "sync", &error)),
    }
}

/// Deletes a file, and its folder when nothing else is in it; a bucket has no empty folders either. `false` when there
/// was no such file.
pub(super) fn delete(path: &Path) -> Attempt<bool> {
    match std::fs::remove_file(path) {
        Ok(()) => {}
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(false),
        Err(error) => return Err(io_fault(path, "delete", &error)),
    }
    sync_folder_of(path)?;
    if let Some(folder) = path.parent() {
        // Fails when it is not empty, and then it stays.
        let _ = std::fs::remove_dir(folder);
    }
    Ok(true)
}

/// Writes bytes at an offset and waits until the disk has them.
pub(super) fn write_at(path: &Path, mut offset: u64, pieces: &[Bytes]) -> Attempt<()> {
    let written = OpenOptions::new().write(true).open(path).and_then(|file| {
        for piece in pieces {
            file.write_all_at(piece, offset)?;
            offset += piece.len() as u64;
        }
        file.sync_data()
    });
    written.map_err(|error| io_fault(path, "write", &error))
}

/// Puts a complete file in its place, whatever was there, and gives its version.
pub(super) fn rename(from: &Path, to: &Path) -> Attempt<Version> {
    let renamed = File::open(from).and_then(|file| {
        file.sync_all()?;
        std::fs::rename(from, to)?;
        file.metadata()
    });
    let metadata = renamed.map_err(|error| io_fault(to, "write", &error))?;
    sync_folder_of(to)?;
    Ok(version_of(&metadata)?)
}

#[cfg(test)]
mod tests {
    use longshore_types::Code;

    use super::*;

    #[test]
    fn a_full_disk_is_told_apart() {
        for kind in [ErrorKind::StorageFull, ErrorKind::QuotaExceeded] {
            let fault = io_fault(Path::new("/x/y"), "write", &io::Error::from(kind));
            assert_eq!(fault.code(), Code::Exhausted);
            assert!(fault.error.message().contains("cannot write /x/y"), "{}", fault.error);
        }
    }

    #[test]
    fn nothing_is_left_of_a_conflict() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/b/x");
        assert!(matches!(
            put(&path, &Bytes::from_static(b"1").into(), &PutHow::Create).unwrap(),
            PutOutcome::Written(_)
        ));
        assert_eq!(put(&path, &Bytes::from_static(b"2").into(), &PutHow::Create).unwrap(), PutOutcome::Conflict);
        let other = Version::new("mtime:0-0-0").unwrap();
        assert_eq!(
            put(&path, &Bytes::from_static(b"2").into(), &PutHow::Replace(other)).unwrap(),
            PutOutcome::Conflict
        );
        assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
        assert!(delete(&path).unwrap() && !delete(&path).unwrap());
        assert!(!folder.path().join("a/b").exists());
    }

    #[test]
    fn a_dangling_link_is_something_that_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        std::os::unix::fs::symlink("nowhere", &path).unwrap();
        assert_eq!(put(&path, &Bytes::from_static(b"1").into(), &PutHow::Create).unwrap(), PutOutcome::Conflict);
        assert!(matches!(
            put(&path, &Bytes::from_static(b"1").into(), &PutHow::Overwrite).unwrap(),
            PutOutcome::Written(_)
        ));
        assert_eq!(std::fs::read(&path).unwrap(), b"1");
    }
}
