//! The state folder: the device memory of all processes of a test, as files.
//!
//! An allocation is a file, held by a shared lock on one open file description. That description is what handles, mappings
//! and exported descriptors of all processes refer to, so the kernel drops the lock with the last of them, also when
//! processes are killed; whoever then gets the exclusive lock knows that the memory is free. Files are made, probed and
//! removed only under the folder's own lock.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use rustix::fs::{FlockOperation, flock};

/// Bytes behind the memory in each file, with the allocation's name: whoever imports a descriptor learns what it is.
const TRAILER_BYTES: u64 = 4096;
const TRAILER_START: &str = "longshore fake cuda memory\n";
const PAGE_BYTES: u64 = 4096;

/// How an allocation was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `cuMemCreate`, exportable
    Shareable,
    /// `cuMemCreate`, not exportable
    Private,
    /// `cuMemAlloc`
    Plain,
}

/// Device memory that somebody holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Allocation {
    /// The device, as all processes number it.
    pub device: u32,
    /// Its size.
    pub size_bytes: u64,
    /// How it was made.
    pub kind: Kind,
    /// The process that made it.
    pub creator: u32,
    number: u64,
}

impl Allocation {
    /// Its file's name.
    pub(crate) fn name(&self) -> String {
        let kind = match self.kind {
            Kind::Shareable => "shareable",
            Kind::Private => "private",
            Kind::Plain => "plain",
        };
        format!("{}-{}-{kind}-{}-{}", self.device, self.size_bytes, self.creator, self.number)
    }

    pub(crate) fn of_name(name: &str) -> Option<Allocation> {
        let mut parts = name.split('-');
        let mut next = || parts.next();
        let (device, size_bytes) = (next()?.parse().ok()?, next()?.parse().ok()?);
        let kind = match next()? {
            "shareable" => Kind::Shareable,
            "private" => Kind::Private,
            "plain" => Kind::Plain,
            _ => return None,
        };
        let (creator, number) = (next()?.parse().ok()?, next()?.parse().ok()?);
        Some(Allocation { device, size_bytes, kind, creator, number })
    }

    /// What the memory behind a descriptor is.
    pub(crate) fn of_file(file: &File) -> Option<Allocation> {
        let at = file.metadata().ok()?.len().checked_sub(TRAILER_BYTES)?;
        let mut trailer = vec![0; TRAILER_BYTES as usize];
        file.read_exact_at(&mut trailer, at).ok()?;
        let text = String::from_utf8_lossy(&trailer);
        let name = text.strip_prefix(TRAILER_START)?.split('\n').next()?;
        Allocation::of_name(name)
    }
}

/// A state folder. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Folder {
    path: PathBuf,
}

/// Nobody else makes, probes or removes allocations while it lives.
pub struct FolderLock {
    file: File,
}

impl Drop for FolderLock {
    fn drop(&mut self) {
        // By hand: a child that is being started may have the description as well.
        let unlocked = flock(&self.file, FlockOperation::Unlock);
        debug_assert!(unlocked.is_ok(), "a lock that was held cannot be given back");
    }
}

impl Folder {
    /// The folder at this path, which must be there.
    ///
    /// # Errors
    /// When files cannot be made in it.
    pub fn open(path: &Path) -> io::Result<Folder> {
        for inner in ["memory", "processes"] {
            fs::create_dir_all(path.join(inner))?;
        }
        Ok(Folder { path: path.to_owned() })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Waits until nobody else has the lock.
    pub(crate) fn lock(&self) -> io::Result<FolderLock> {
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(self.path.join("lock"))?;
        flock(&file, FlockOperation::LockExclusive)?;
        Ok(FolderLock { file })
    }

    /// All memory that any process still has a handle, mapping or descriptor of. Files of the other memory are removed.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn live(&self) -> io::Result<Vec<Allocation>> {
        let lock = self.lock()?;
        self.live_under(&lock)
    }

    fn live_under(&self, _lock: &FolderLock) -> io::Result<Vec<Allocation>> {
        let mut live = Vec::new();
        for entry in fs::read_dir(self.path.join("memory"))? {
            let entry = entry?;
            let Some(allocation) = entry.file_name().to_str().and_then(Allocation::of_name) else { continue };
            let file = File::open(entry.path())?;
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => fs::remove_file(entry.path())?,
                Err(_) => live.push(allocation),
            }
        }
        Ok(live)
    }

    /// Bytes of a device that are taken.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn used_bytes(&self, device: u32) -> io::Result<u64> {
        Ok(sum(&self.live()?, device))
    }

    /// New zeroed memory, unless the device has less than that left: then nothing.
    pub(crate) fn create(
        &self,
        device: u32,
        size_bytes: u64,
        kind: Kind,
        capacity_bytes: u64,
    ) -> io::Result<Option<(File, Allocation)>> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let lock = self.lock()?;
        let used_bytes = sum(&self.live_under(&lock)?, device);
        if used_bytes.saturating_add(size_bytes) > capacity_bytes {
            return Ok(None);
        }
        let number = NUMBER.fetch_add(1, Relaxed);
        let allocation = Allocation { device, size_bytes, kind, creator: std::process::id(), number };
        let path = self.path.join("memory").join(allocation.name());
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(path)?;
        flock(&file, FlockOperation::NonBlockingLockShared)?;
        let trailer_at = size_bytes.next_multiple_of(PAGE_BYTES);
        file.set_len(trailer_at + TRAILER_BYTES)?;
        file.write_all_at(format!("{TRAILER_START}{}\n", allocation.name()).as_bytes(), trailer_at)?;
        Ok(Some((file, allocation)))
    }

    /// Memory of another process by its name, held from now on by this one too. Nothing when it is gone.
    pub(crate) fn open_memory(&self, name: &str) -> io::Result<Option<(File, Allocation)>> {
        let lock = self.lock()?;
        let Some(allocation) = Allocation::of_name(name) else { return Ok(None) };
        if !self.live_under(&lock)?.contains(&allocation) {
            return Ok(None);
        }
        let path = self.path.join("memory").join(allocation.name());
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        flock(&file, FlockOperation::NonBlockingLockShared)?;
        Ok(Some((file, allocation)))
    }
}

fn sum(live: &[Allocation], device: u32) -> u64 {
    live.iter().filter(|allocation| allocation.device == device).map(|allocation| allocation.size_bytes).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    const CAPACITY: u64 = 8 << 20;

    #[test]
    fn memory_lives_as_long_as_its_last_descriptor_or_mapping() {
        let temporary = tempfile::tempdir().unwrap();
        let folder = Folder::open(temporary.path()).unwrap();
        let (file, allocation) = folder.create(1, 2 << 20, Kind::Shareable, CAPACITY).unwrap().unwrap();
        assert_eq!(Allocation::of_file(&file), Some(allocation.clone()));
        assert_eq!(folder.live().unwrap(), [allocation]);
        assert_eq!((folder.used_bytes(0).unwrap(), folder.used_bytes(1).unwrap()), (0, 2 << 20));
        let copy = file.try_clone().unwrap();
        drop(file);
        let map = memmap2::MmapOptions::new().len(4096).map_raw(&copy).unwrap();
        drop(copy);
        assert_eq!(folder.used_bytes(1).unwrap(), 2 << 20, "a mapping holds it");
        drop(map);
        assert_eq!(folder.live().unwrap(), []);
        assert_eq!(std::fs::read_dir(temporary.path().join("memory")).unwrap().count(), 0);
    }

    #[test]
    fn a_device_has_its_capacity_and_no_more() {
        let temporary = tempfile::tempdir().unwrap();
        let folder = Folder::open(temporary.path()).unwrap();
        let first = folder.create(0, CAPACITY - 4096, Kind::Plain, CAPACITY).unwrap().unwrap();
        assert!(folder.create(0, 8192, Kind::Plain, CAPACITY).unwrap().is_none());
        let other_device = folder.create(1, 8192, Kind::Plain, CAPACITY).unwrap();
        assert!(other_device.is_some());
        drop(first);
        assert!(folder.create(0, 8192, Kind::Plain, CAPACITY).unwrap().is_some());
    }

    #[test]
    fn memory_is_opened_by_name_while_it_lives_and_foreign_files_are_no_memory() {
        let temporary = tempfile::tempdir().unwrap();
        let folder = Folder::open(temporary.path()).unwrap();
        let (file, allocation) = folder.create(0, 4096, Kind::Plain, CAPACITY).unwrap().unwrap();
        let (opened, same) = folder.open_memory(&allocation.name()).unwrap().unwrap();
        assert_eq!(same, allocation);
        drop(file);
        assert_eq!(folder.live().unwrap().len(), 1);
        drop(opened);
        assert!(folder.open_memory(&allocation.name()).unwrap().is_none());
        assert!(folder.open_memory("../../etc/passwd").unwrap().is_none());
        assert_eq!(Allocation::of_file(&tempfile::tempfile().unwrap()), None);
    }
}
