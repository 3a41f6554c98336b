//! The folder that a pull writes into. No name from outside can lead out of it, and no file is seen half-written.
//!
//! Every step into the tree is taken relative to the open folder above it, without following symbolic links, so that
//! neither `..` nor a link that lies there (or is put there meanwhile) is a way out. A file is written under a
//! temporary name in its own folder and renamed when it is complete and on the disk. Who is interrupted calls
//! [`Target::abandon`]: threads that still wait for bytes then write into files that have no name any more.
//!
//! Small files are made durable many at once ([`batch`]): to wait for the disk for each takes longer than to bring it.

mod batch;

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use longshore_types::{Code, Error, Result, names};
use parking_lot::Mutex;
use rustix::fs::{AtFlags, CWD, FallocateFlags, Mode, OFlags, fallocate, fsync, mkdirat, openat, renameat, unlinkat};
use rustix::io::Errno;

use crate::files::file_error;
use batch::{Batch, Written};

/// The folder.
pub struct Target {
    folder: Arc<OwnedFd>,
    path: PathBuf,
    /// Tells the temporary names of this pull from those of others in the same folder.
    mark: String,
    count: AtomicU64,
    /// Where the last file went: the next one mostly goes there too.
    latest: Mutex<(String, Arc<OwnedFd>)>,
    batch: Mutex<Batch>,
    unfinished: Arc<Mutex<Unfinished>>,
}

/// The temporary names that exist now.
#[derive(Default)]
struct Unfinished {
    names: HashMap<String, Arc<OwnedFd>>,
    is_abandoned: bool,
}

/// A file that is being written. Dropped before [`Pending::commit`], it leaves nothing behind.
pub struct Pending {
    file: File,
    folder: Arc<OwnedFd>,
    temporary: String,
    base: String,
    path: PathBuf,
    len_bytes: u64,
    unfinished: Arc<Mutex<Unfinished>>,
    /// Somebody else gives it its name, or removes it.
    is_handed_on: bool,
}

const FOLDER_FLAGS: OFlags = OFlags::DIRECTORY.union(OFlags::CLOEXEC);

impl Target {
    /// Opens the folder, and makes it when it is missing.
    ///
    /// # Errors
    /// The code of the failure, naming the folder.
    pub fn open(path: &Path) -> Result<Target> {
        let opened = std::fs::create_dir_all(path)
            .and_then(|()| openat(CWD, path, OFlags::RDONLY | FOLDER_FLAGS, Mode::empty()).map_err(io::Error::from));
        let folder = Arc::new(opened.map_err(|error| file_error("open folder", path, error))?);
        Ok(Target {
            latest: Mutex::new((String::new(), folder.clone())),
            folder,
            path: path.to_owned(),
            mark: uuid::Uuid::new_v4().simple().to_string(),
            count: AtomicU64::new(0),
            batch: Mutex::default(),
            unfinished: Arc::default(),
        })
    }

    /// Begins the file `name` of `len_bytes`, and takes the space for it.
    ///
    /// # Errors
    /// [`Code::InvalidArgument`] for a name that is no plain relative path, [`Code::FailedPrecondition`] where a link
    /// or a file is in the way, [`Code::Exhausted`] when the disk is full.
    pub fn begin(&self, name: &str, len_bytes: u64) -> Result<Pending> {
        let pending = self.create(name, len_bytes)?;
        pending.allocate()?;
        Ok(pending)
    }

    /// Writes the small file `name`, all of it. Its name comes with those of others, at the latest with
    /// [`Target::finish`].
    ///
    /// # Errors
    /// As [`Target::begin`] and [`Pending::write_at`], and for others those of [`Target::finish`].
    pub fn write_small(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let pending = self.create(name, bytes.len() as u64)?;
        pending.write_at(bytes, 0)?;
        let full = self.batch.lock().add(pending.written());
        full.map_or(Ok(()), |full| self.settle(full))
    }

    /// Gives the small files their names that have none yet.
    ///
    /// # Errors
    /// The code of the failure, naming a file.
    pub fn finish(&self) -> Result<()> {
        let rest = std::mem::take(&mut *self.batch.lock());
        self.settle(rest)
    }

    /// Makes files durable, then gives each its name.
    fn settle(&self, batch: Batch) -> Result<()> {
        batch.sync(&self.folder, &self.path)?;
        for file in &batch.files {
            let mut unfinished = self.unfinished.lock();
            renameat(&*file.folder, &file.temporary, &*file.folder, &file.base)
                .map_err(|error| file_error("finish", &self.path.join(&file.base), error.into()))?;
            unfinished.names.remove(&file.temporary);
        }
        batch.sync_folders(&self.path)
    }

    fn create(&self, name: &str, len_bytes: u64) -> Result<Pending> {
        names::check_relative(name, &self.path.display().to_string())?;
        let path = self.path.join(name);
        let failed = |error: Errno| file_error("write", &path, error.into());
        let folder = self.folder_of(names::folder_of(name)).map_err(failed)?;
        let base = names::base_of(name).to_owned();
        // Short, so that a name of the longest length still has a temporary one.
        let number = self.count.fetch_add(1, Ordering::Relaxed);
        let temporary = format!(".longshore-{}-{number}.part", self.mark);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = {
            // Made and noted in one step, so that none is overlooked when all are abandoned.
            let mut unfinished = self.unfinished.lock();
            if unfinished.is_abandoned {
                return Err(Error::new(Code::Cancelled, "the pull was interrupted"));
            }
            let file = openat(&*folder, &temporary, flags, Mode::from_raw_mode(0o644)).map_err(failed)?;
            unfinished.names.insert(temporary.clone(), folder.clone());
            File::from(file)
        };
        let unfinished = self.unfinished.clone();
        Ok(Pending { file, folder, temporary, base, path, len_bytes, unfinished, is_handed_on: false })
    }

    /// Removes every unfinished file, and lets no further one begin.
    pub fn abandon(&self) {
        let mut unfinished = self.unfinished.lock();
        unfinished.is_abandoned = true;
        unfinished.names.drain().for_each(|(name, folder)| remove(&folder, &name));
    }

    /// The folder of a file, opened.
    fn folder_of(&self, relative: &str) -> Result<Arc<OwnedFd>, Errno> {
        {
            let latest = self.latest.lock();
            if latest.0 == relative {
                return Ok(latest.1.clone());
            }
        }
        let folder = Arc::new(self.descend(relative)?);
        *self.latest.lock() = (relative.to_owned(), folder.clone());
        Ok(folder)
    }

    /// Opens the folders on the way to a file, making those that are missing.
    fn descend(&self, relative: &str) -> Result<OwnedFd, Errno> {
        let mut folder =
            self.folder.try_clone().map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::MFILE))?;
        for part in relative.split('/').filter(|part| !part.is_empty()) {
            match mkdirat(&folder, part, Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(error),
            }
            folder = openat(&folder, part, OFlags::RDONLY | OFlags::NOFOLLOW | FOLDER_FLAGS, Mode::empty())?;
        }
        Ok(folder)
    }
}

impl Pending {
    /// Takes the space before the first byte is fetched, so that a full disk shows at once. File systems that cannot
    /// still get the length, without the promise.
    fn allocate(&self) -> Result<()> {
        if self.len_bytes == 0 {
            return Ok(());
        }
        match fallocate(&self.file, FallocateFlags::empty(), 0, self.len_bytes) {
            Err(Errno::NOTSUP | Errno::NOSYS | Errno::INVAL) => self.file.set_len(self.len_bytes),
            other => other.map_err(io::Error::from),
        }
        .map_err(|error| file_error("take the space for", &self.path, error))
    }

    /// Writes bytes at an offset; several threads may, each its own part.
    ///
    /// # Errors
    /// [`Code::Internal`] beyond the file's length, else the code of the failed write.
    pub fn write_at(&self, bytes: &[u8], offset_bytes: u64) -> Result<()> {
        let end = offset_bytes.checked_add(bytes.len() as u64);
        if end.is_none_or(|end| end > self.len_bytes) {
            return Err(Error::new(Code::Internal, format!("write beyond the end of {}", self.path.display())));
        }
        self.file.write_all_at(bytes, offset_bytes).map_err(|error| file_error("write", &self.path, error))
    }

    /// What is left to be done for a file that is complete. Its descriptor is closed.
    fn written(mut self) -> Written {
        self.is_handed_on = true;
        let (temporary, base) = (std::mem::take(&mut self.temporary), std::mem::take(&mut self.base));
        Written { folder: self.folder.clone(), temporary, base, len_bytes: self.len_bytes }
    }

    /// Makes the file durable and gives it its name, in place of a file that had it.
    ///
    /// # Errors
    /// [`Code::Corrupt`] when the length is not what was announced, else the code of the failure.
    pub fn commit(self) -> Result<()> {
        let failed = |error: io::Error| file_error("finish", &self.path, error);
        let len_bytes = self.file.metadata().map_err(failed)?.len();
        if len_bytes != self.len_bytes {
            let message = format!("{} has {len_bytes} bytes, should have {}", self.path.display(), self.len_bytes);
            return Err(Error::new(Code::Corrupt, message));
        }
        self.file.sync_all().map_err(failed)?;
        // Under the lock: either it is renamed, or it has been abandoned and there is nothing to rename.
        let mut unfinished = self.unfinished.lock();
        renameat(&*self.folder, &self.temporary, &*self.folder, &self.base)
            .map_err(|error| file_error("finish", &self.path, error.into()))?;
        unfinished.names.remove(&self.temporary);
        drop(unfinished);
        fsync(&*self.folder).map_err(|error| file_error("finish", &self.path, error.into()))
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if self.is_handed_on {
            return;
        }
        if let Some(folder) = self.unfinished.lock().names.remove(&self.temporary) {
            remove(&folder, &self.temporary);
        }
    }
}

fn remove(folder: &OwnedFd, name: &str) {
    if let Err(error) = unlinkat(folder, name, AtFlags::empty()) {
        tracing::warn!(%error, "cannot remove the unfinished file {name}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names_in(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_appears_whole_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let target = Target::open(&folder.path().join("new/deep")).unwrap();
        let pending = target.begin("sub/dir/file.bin", 6).unwrap();
        pending.write_at(b"def", 3).unwrap();
        pending.write_at(b"abc", 0).unwrap();
        let sub = folder.path().join("new/deep/sub/dir");
        assert!(!sub.join("file.bin").exists());
        pending.commit().unwrap();
        assert_eq!(std::fs::read(sub.join("file.bin")).unwrap(), b"abcdef");

        let given_up = target.begin("sub/dir/other", 3).unwrap();
        given_up.write_at(b"x", 0).unwrap();
        drop(given_up);
        assert_eq!(names_in(&sub), ["file.bin"]);
    }

    #[test]
    fn abandoned_files_are_gone_whoever_still_writes() {
        let folder = tempfile::tempdir().unwrap();
        let target = Target::open(folder.path()).unwrap();
        let (first, second) = (target.begin("a", 3).unwrap(), target.begin("b", 3).unwrap());
        target.abandon();
        assert!(names_in(folder.path()).is_empty());
        first.write_at(b"abc", 0).unwrap();
        assert_eq!(first.commit().unwrap_err().code(), Code::NotFound);
        drop(second);
        assert_eq!(target.begin("c", 3).err().unwrap().code(), Code::Cancelled);
        assert!(names_in(folder.path()).is_empty());
    }

    #[test]
    fn small_files_get_their_names_together() {
        let folder = tempfile::tempdir().unwrap();
        let target = Target::open(folder.path()).unwrap();
        std::fs::write(folder.path().join("b"), "an older one").unwrap();
        for name in ["a", "sub/a", "b", "sub/b"] {
            target.write_small(name, name.as_bytes()).unwrap();
        }
        assert_eq!(std::fs::read(folder.path().join("b")).unwrap(), b"an older one");
        assert!(!folder.path().join("sub/a").exists());
        target.finish().unwrap();
        for name in ["a", "sub/a", "b", "sub/b"] {
            assert_eq!(std::fs::read(folder.path().join(name)).unwrap(), name.as_bytes());
        }
        assert_eq!((names_in(folder.path()).len(), names_in(&folder.path().join("sub")).len()), (3, 2));
    }

    #[test]
    fn many_small_files_do_not_wait_for_the_last_one() {
        let folder = tempfile::tempdir().unwrap();
        let target = Target::open(folder.path()).unwrap();
        for number in 0..batch::FILES_MAX {
            assert!(!folder.path().join("0").exists());
            target.write_small(&number.to_string(), b"x").unwrap();
        }
        assert_eq!(names_in(folder.path()).len(), batch::FILES_MAX);
        assert!(folder.path().join("0").exists());
        target.write_small("another", b"x").unwrap();
        target.abandon();
        assert_eq!(names_in(folder.path()).len(), batch::FILES_MAX);
        assert_eq!(target.write_small("one more", b"x").unwrap_err().code(), Code::Cancelled);
    }

    #[test]
    fn an_older_file_is_replaced_and_an_empty_one_is_fine() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("a"), "a longer old content").unwrap();
        let target = Target::open(folder.path()).unwrap();
        target.begin("a", 0).unwrap().commit().unwrap();
        assert_eq!(std::fs::read(folder.path().join("a")).unwrap(), b"");
    }

    #[test]
    fn names_and_links_that_lead_out_are_refused() {
        let (folder, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let target = Target::open(folder.path()).unwrap();
        for name in ["../x", "/etc/x", "a/../../x", "", "a//b"] {
            assert_eq!(target.begin(name, 1).err().unwrap().code(), Code::InvalidArgument, "{name}");
        }
        std::os::unix::fs::symlink(outside.path(), folder.path().join("link")).unwrap();
        assert!(target.begin("link/x", 1).is_err());
        assert!(names_in(outside.path()).is_empty());
        // A link in the place of the file itself is replaced, not followed.
        std::fs::write(outside.path().join("victim"), "untouched").unwrap();
        std::os::unix::fs::symlink(outside.path().join("victim"), folder.path().join("file")).unwrap();
        let pending = target.begin("file", 3).unwrap();
        pending.write_at(b"new", 0).unwrap();
        pending.commit().unwrap();
        assert_eq!(std::fs::read(outside.path().join("victim")).unwrap(), b"untouched");
        assert_eq!(std::fs::read(folder.path().join("file")).unwrap(), b"new");
    }

    #[test]
    fn writes_stay_within_the_announced_length() {
        let folder = tempfile::tempdir().unwrap();
        let pending = Target::open(folder.path()).unwrap().begin("a", 3).unwrap();
        assert_eq!(pending.write_at(b"xx", 2).unwrap_err().code(), Code::Internal);
        assert_eq!(pending.write_at(b"x", u64::MAX).unwrap_err().code(), Code::Internal);
    }
}
