//! The files on this node's disk that hold what will be objects.
//!
//! Object `k` is file `k` of the plan, object `files + r` the pack of rank `r`. A checkpoint may have a hundred thousand of
//! them: none is kept open.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use longshore_types::checkpoint::step_folder;
use longshore_types::names::join;
use longshore_types::{CHUNK_BYTES, Code, Error, Result};
use parking_lot::Mutex;
use rustix::fs::{FallocateFlags, OFlags};
use rustix::io::Errno;

use super::{Attempt, rank_files};
use crate::plan::INDEX_NAME;
use crate::spool::{Reserved, disk_error, sync_folder};

const FOLDER_NAME: &str = "objects";
/// Smaller files are written at once: asking for blocks first would only cost.
const PREALLOCATED_FROM_BYTES: u64 = 1 << 20;
/// Fewer bytes are not worth a second open file.
const DIRECT_FROM_BYTES: usize = 1 << 20;
/// What direct reads must be whole multiples of: no block device has larger blocks.
const PAGE_BYTES: usize = 4096;
/// Chunks by which a pack grows.
const PACK_STEP_CHUNKS: u32 = 16;
/// A thread may be making a file in the folder that is being removed.
const REMOVAL_TRIES: usize = 3;

/// Room on the disk that is set aside for a rank.
#[derive(Debug)]
pub(crate) struct Room {
    pub(crate) reserved: Reserved,
}

/// File and chunk of each place of a pack.
type Places = BTreeMap<u32, (u32, u32)>;

#[derive(Debug)]
pub(super) struct Objects {
    folder: PathBuf,
    /// Bytes from the start of each object that the file system has given blocks for.
    allocated: Mutex<HashMap<u32, u64>>,
    /// By rank.
    rooms: Mutex<HashMap<u32, Room>>,
    /// Which chunk of which file each place of a rank's pack is for, flushed or not.
    places: Mutex<HashMap<u32, Places>>,
}

impl Objects {
    pub(super) fn new(attempt_folder: &Path) -> Objects {
        Objects {
            folder: attempt_folder.join(FOLDER_NAME),
            allocated: Mutex::default(),
            rooms: Mutex::default(),
            places: Mutex::default(),
        }
    }

    pub(super) fn create_folder(&self) -> Result<()> {
        std::fs::create_dir(&self.folder).map_err(|error| disk_error("create", &self.folder, &error))
    }

    fn path(&self, object: u32) -> PathBuf {
        self.folder.join(object.to_string())
    }
}

impl Attempt {
    /// The number of the pack of a rank among the objects.
    pub fn pack_object(&self, rank: u32) -> u32 {
        (self.plan().files.len() as u32).saturating_add(rank)
    }

    /// Whether a file's bytes lie in chunks of packs and of the parent, not in an object of its own.
    pub fn is_chunked(&self, file: u32) -> bool {
        self.parent_file(file).is_some()
    }

    /// The objects of a rank of this node: its files that are stored whole, and its pack when it may have one. A pack that
    /// ends up empty ([`Attempt::object_bytes`] says 0) is none.
    pub fn objects_of(&self, rank: u32) -> Vec<u32> {
        let (chunked, whole): (Vec<_>, Vec<_>) =
            rank_files(self.plan(), rank).map(|(file, _)| file).partition(|file| self.is_chunked(*file));
        let pack = (!chunked.is_empty()).then(|| self.pack_object(rank));
        whole.into_iter().chain(pack).collect()
    }

    /// The rank that an object belongs to.
    pub fn rank_of_object(&self, object: u32) -> u32 {
        let files = &self.plan().files;
        files.get(object as usize).map_or_else(|| object.saturating_sub(files.len() as u32), |file| file.rank)
    }

    /// Size of an object; `None` for a pack that still grows.
    pub fn object_bytes(&self, object: u32) -> Option<u64> {
        if let Some(file) = self.plan().files.get(object as usize) {
            return Some(file.size_bytes);
        }
        let rank = self.rank_of_object(object);
        let state = self.state();
        let is_done = state.ranks.get(&rank).is_some_and(|rank| rank.durable);
        is_done.then(|| state.packs.get(&rank).map_or(0, |pack| pack.len() as u64) * CHUNK_BYTES)
    }

    /// The file on this node's disk that holds an object.
    pub fn object_path(&self, object: u32) -> PathBuf {
        self.objects.path(object)
    }

    /// Bytes of an object from this node's disk. Blocks the thread; the caller bounds the size.
    ///
    /// # Errors
    /// What reading reports, naming the file; `Corrupt` when the file is shorter.
    pub fn read(&self, object: u32, range: Range<u64>) -> Result<Bytes> {
        let mut bytes = vec![0; range.end.saturating_sub(range.start) as usize];
        self.read_into(object, range.start, &mut bytes)?;
        Ok(Bytes::from(bytes))
    }

    /// [`Attempt::read`] into memory of the caller's.
    pub(crate) fn read_into(&self, object: u32, at: u64, into: &mut [u8]) -> Result<()> {
        let path = self.objects.path(object);
        match read_direct(&path, into, at) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                let end = at.saturating_add(into.len() as u64);
                let message = format!("{} ends before byte {end}: the checkpoint folder was changed", path.display());
                Err(Error::new(Code::Corrupt, message))
            }
            Err(error) => Err(disk_error("read", &path, &error)),
        }
    }

    /// An object's file, to be written; made, with room for `size_bytes` (`u64::MAX` for a pack, which grows), when it is not
    /// there. The second says that it is new: sync the folder then.
    ///
    /// Each call opens it anew: an error of the disk is told once to each open file, so a shared one could tell it to the
    /// thread whose bytes are well.
    pub(crate) fn object_file(&self, object: u32, size_bytes: u64) -> Result<(File, bool)> {
        let path = self.objects.path(object);
        let open = File::options().write(true).open(&path);
        let (file, is_new) = match open {
            Ok(file) => (file, false),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                // Two threads may come here for one object: both are told that it is new.
                let file = File::options().write(true).create(true).truncate(false).open(&path);
                (file.map_err(|error| disk_error("create", &path, &error))?, true)
            }
            Err(error) => return Err(disk_error("open", &path, &error)),
        };
        if size_bytes >= PREALLOCATED_FROM_BYTES && size_bytes != u64::MAX {
            self.allocate(object, &file, size_bytes)?;
        }
        Ok((file, is_new))
    }

    /// Room for a chunk of a pack, and for some that follow it.
    pub(crate) fn allocate_pack(&self, object: u32, file: &File, place: u32) -> Result<()> {
        let end = (u64::from(place / PACK_STEP_CHUNKS) + 1) * u64::from(PACK_STEP_CHUNKS) * CHUNK_BYTES;
        self.allocate(object, file, end)
    }

    /// Takes the blocks up to `end`, once: a full disk is found before the bytes come, and buffered writes that are synced
    /// slab by slab are several times faster into blocks that are there.
    fn allocate(&self, object: u32, file: &File, end: u64) -> Result<()> {
        let mut allocated = self.objects.allocated.lock();
        let known = allocated.entry(object).or_default();
        if *known >= end {
            return Ok(());
        }
        let path = self.objects.path(object);
        // After a restart the blocks are there: taking them again changes nothing.
        preallocate(file, *known, end).map_err(|error| disk_error("make room for", &path, &error))?;
        let taken = end - *known;
        *known = end;
        drop(allocated);
        if let Some(room) = self.objects.rooms.lock().get_mut(&self.rank_of_object(object)) {
            room.reserved.written(taken);
        }
        Ok(())
    }

    /// Makes names of new objects durable.
    pub(crate) fn sync_objects(&self) -> Result<()> {
        sync_folder(&self.objects.folder)
    }

    pub(crate) fn set_room(&self, rank: u32, room: Room) {
        self.objects.rooms.lock().insert(rank, room);
        self.version.send_modify(|version| *version += 1);
    }

    /// Bytes of a rank that are, or will be, on the disk.
    pub(crate) fn kept_bytes(&self, rank: u32) -> u64 {
        let objects = self.objects_of(rank);
        match self.state().ranks.get(&rank) {
            Some(known) if known.durable => {}
            _ => return self.size_of(rank).bytes,
        }
        objects.into_iter().filter_map(|object| self.object_bytes(object)).fold(0, u64::saturating_add)
    }

    /// The rank is durable: a delta wrote less than what was set aside, and the rest is free.
    pub(crate) fn settle_room(&self, rank: u32) {
        let bytes = self.kept_bytes(rank);
        self.cut_pack(rank);
        if let Some(room) = self.objects.rooms.lock().get_mut(&rank) {
            room.reserved.shrink_to(bytes);
        }
    }

    /// Blocks behind the end of a pack that is complete go back.
    fn cut_pack(&self, rank: u32) {
        let pack = self.pack_object(rank);
        let path = self.objects.path(pack);
        let Some(bytes) = self.object_bytes(pack).filter(|_| path.exists()) else { return };
        if let Err(error) = File::options().write(true).open(&path).and_then(|file| file.set_len(bytes)) {
            tracing::debug!(path = %path.display(), %error, "a pack keeps room that it does not need");
        }
    }

    /// The place in the rank's pack for a changed chunk: the one it has, when it is written again after a failure, else the
    /// lowest free one, so that after a restart no hole stays.
    pub(crate) fn pack_place(&self, rank: u32, file: u32, chunk: u32) -> u32 {
        let mut places = self.objects.places.lock();
        let places = places.entry(rank).or_insert_with(|| {
            let state = self.state();
            let known = state.packs.get(&rank).into_iter().flatten();
            known.map(|(place, packed)| (*place, (packed.file, packed.chunk))).collect()
        });
        if let Some((place, _)) = places.iter().find(|(_, of)| **of == (file, chunk)) {
            return *place;
        }
        let place =
            (0u32..).zip(places.keys()).find(|(at, place)| at != *place).map_or(places.len() as u32, |(at, _)| at);
        places.insert(place, (file, chunk));
        place
    }

    /// Where an object lies here, by its path relative to the run.
    pub(crate) fn path_of(&self, object_path: &str) -> Option<PathBuf> {
        let plan = self.plan();
        let file = (0u32..).zip(&plan.files).find(|(_, file)| plan.object_path(file) == object_path);
        let object = match file {
            Some((file, _)) => file,
            None if object_path == join(&step_folder(plan.step), INDEX_NAME) => {
                return Some(self.folder().join(INDEX_NAME));
            }
            None => self.pack_object(self.ranks().into_iter().find(|rank| plan.pack_path(*rank) == object_path)?),
        };
        Some(self.object_path(object))
    }

    /// Removes the folder with the journal: nothing of the attempt is known any more after a restart.
    pub(crate) fn remove_folder(&self) {
        if let Err(error) = std::fs::remove_dir_all(self.folder())
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(folder = %self.folder().display(), %error, "the journal of an attempt that ended stays");
        }
    }

    /// Removes the bytes, not the journal, and gives the room back. Blocks the thread.
    pub(crate) fn remove_objects(&self) {
        self.objects.allocated.lock().clear();
        let removed = (0..REMOVAL_TRIES)
            .map(|_| std::fs::remove_dir_all(&self.objects.folder))
            .find(|removed| removed.as_ref().err().is_none_or(|error| error.kind() == io::ErrorKind::NotFound));
        match removed {
            Some(_) => self.objects.rooms.lock().clear(),
            // The room stays taken: it is.
            None => {
                let folder = self.objects.folder.display();
                tracing::warn!(%folder, "bytes of a checkpoint cannot be removed; the next start tries again");
            }
        }
    }

    /// Whether the bytes are (still) on this node.
    pub(crate) fn has_objects(&self) -> bool {
        self.objects.folder.is_dir()
    }
}

/// Past the page cache, as the bytes were written: they are needed once. What does not lie at whole pages, and file systems that
/// cannot, go through it.
fn read_direct(path: &Path, into: &mut [u8], at: u64) -> io::Result<()> {
    let whole = into.len() / PAGE_BYTES * PAGE_BYTES;
    let mut done = 0;
    let is_aligned = at.is_multiple_of(PAGE_BYTES as u64) && into.as_ptr().addr().is_multiple_of(PAGE_BYTES);
    if whole >= DIRECT_FROM_BYTES && is_aligned {
        let flags = OFlags::DIRECT.bits() as i32;
        let direct = File::options().read(true).custom_flags(flags).open(path);
        if direct.and_then(|file| file.read_exact_at(&mut into[..whole], at)).is_ok() {
            done = whole;
        }
    }
    File::open(path)?.read_exact_at(&mut into[done..], at + done as u64)
}

/// A file system that cannot give blocks ahead gives them when the bytes come.
fn preallocate(file: &File, start: u64, end: u64) -> io::Result<()> {
    match rustix::fs::fallocate(file, FallocateFlags::empty(), start, end - start) {
        Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}
