//! The control page: one record a slab. The daemon writes records, the client only the word that seals one.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{Ordering, fence};

use longshore_types::{BlockChecksum, Code, Error, Result};
use rustix::fs::MemfdFlags;

use super::folder::{SessionFolder, SlabPages, failed};
use crate::arena::Reservation;
use crate::memfd::create_memfd;
use crate::raw::RawMemory;

/// Bytes of a record.
pub const CONTROL_RECORD_BYTES: u64 = 128;
const RECORD: usize = CONTROL_RECORD_BYTES as usize;
const NAME: &str = "control";
/// A control page of more is none of ours.
const CONTROL_BYTES_MAX: u64 = 64 << 20;
/// The part of a record that its checksum covers: all fields but the state.
const COVERED: std::ops::Range<usize> = 4..48;

/// The first word of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SlabState {
    /// Nobody's.
    Free = 0,
    /// Granted to the client.
    Filling = 1,
    /// The client says that its bytes are there.
    Sealed = 2,
}

impl SlabState {
    fn parse(word: u32) -> Option<SlabState> {
        [SlabState::Free, SlabState::Filling, SlabState::Sealed].into_iter().find(|state| *state as u32 == word)
    }
}

/// What a slab holds. In the page (little-endian): state `u32` at 0, slab `u32` at 4, attempt at 8, file `u32` at 24, slab
/// index `u32` at 28, length `u64` at 32, generation `u64` at 40, CRC-64/NVME of bytes 4 to 47 at 48, zeros up to 128.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlabRecord {
    /// Its own number: a record that was copied elsewhere is not valid there.
    pub slab: u32,
    /// The UUID of the attempt.
    pub attempt: [u8; 16],
    /// Index into the files of the attempt's plan.
    pub file: u32,
    /// Which slab of the file.
    pub slab_index: u32,
    /// Bytes of the file that belong here.
    pub length_bytes: u64,
    /// Counts the grants of the session.
    pub generation: u64,
}

impl SlabRecord {
    /// The bytes of the record.
    pub fn encode(&self, state: SlabState) -> [u8; RECORD] {
        let mut bytes = [0; RECORD];
        let mut at = 0;
        let mut put = |field: &[u8]| {
            if let Some(place) = bytes.get_mut(at..at + field.len()) {
                place.copy_from_slice(field);
            }
            at += field.len();
        };
        put(&(state as u32).to_le_bytes());
        put(&self.slab.to_le_bytes());
        put(&self.attempt);
        put(&self.file.to_le_bytes());
        put(&self.slab_index.to_le_bytes());
        put(&self.length_bytes.to_le_bytes());
        put(&self.generation.to_le_bytes());
        let checksum = BlockChecksum::of(&bytes[COVERED]).0;
        bytes[COVERED.end..COVERED.end + 8].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    /// The record of slab `slab`; `None` for one that is free or that is not as the daemon wrote it.
    pub fn decode(bytes: &[u8; RECORD], slab: u32) -> Option<(SlabState, SlabRecord)> {
        let mut rest = &bytes[..];
        let mut take = |len: usize| -> Option<&[u8]> {
            let (field, after) = rest.split_at_checked(len)?;
            rest = after;
            Some(field)
        };
        let state = SlabState::parse(u32::from_le_bytes(take(4)?.try_into().ok()?))?;
        let record = SlabRecord {
            slab: u32::from_le_bytes(take(4)?.try_into().ok()?),
            attempt: take(16)?.try_into().ok()?,
            file: u32::from_le_bytes(take(4)?.try_into().ok()?),
            slab_index: u32::from_le_bytes(take(4)?.try_into().ok()?),
            length_bytes: u64::from_le_bytes(take(8)?.try_into().ok()?),
            generation: u64::from_le_bytes(take(8)?.try_into().ok()?),
        };
        let checksum = u64::from_le_bytes(take(8)?.try_into().ok()?);
        let is_whole = BlockChecksum::of(&bytes[COVERED]).0 == checksum && record.slab == slab;
        (is_whole && state != SlabState::Free).then_some((state, record))
    }
}

/// The control page of a session.
#[derive(Debug)]
pub struct ControlPage {
    file: File,
    slabs: u32,
    /// Where files cannot be written by a call.
    copier: Option<Copier>,
    _reservation: Option<Reservation>,
}

impl ControlPage {
    /// Length of the page of a session of so many slabs.
    pub fn len_bytes(slabs: u32, page_bytes: u64) -> u64 {
        (u64::from(slabs) * CONTROL_RECORD_BYTES).next_multiple_of(page_bytes.max(1))
    }

    /// A page for `slabs` slabs, all of them free.
    ///
    /// # Errors
    /// [`Code::Exhausted`] when the file system has no room.
    pub fn create(folder: &SessionFolder, slabs: u32, reservation: Reservation) -> Result<ControlPage> {
        let file = folder.file(NAME, true)?;
        let len_bytes = ControlPage::len_bytes(slabs, folder.page_bytes);
        let made = file.set_len(len_bytes).and_then(|()| {
            let allocated = rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, len_bytes);
            Ok(allocated?)
        });
        made.map_err(|error| failed_io("allocate", folder, &error))?;
        ControlPage::with(folder, file, slabs, len_bytes, Some(reservation))
    }

    /// The page that an earlier process made. Its length is what it is: records that are missing are free.
    ///
    /// # Errors
    /// [`Code::NotFound`] when there is none, [`Code::Corrupt`] for one that cannot be one.
    pub fn open(folder: &SessionFolder, reservation: Option<Reservation>) -> Result<ControlPage> {
        let file = folder.file(NAME, false)?;
        let len_bytes = file.metadata().map_err(|error| failed_io("look at", folder, &error))?.len();
        let slabs = u32::try_from(len_bytes / CONTROL_RECORD_BYTES).ok();
        let is_page = len_bytes > 0 && len_bytes <= CONTROL_BYTES_MAX && len_bytes.is_multiple_of(folder.page_bytes);
        let Some(slabs) = slabs.filter(|_| is_page) else {
            let message = format!("{} is no control page: it has {len_bytes} bytes", folder.path.join(NAME).display());
            return Err(Error::new(Code::Corrupt, message));
        };
        ControlPage::with(folder, file, slabs, len_bytes, reservation)
    }

    fn with(
        folder: &SessionFolder,
        file: File,
        slabs: u32,
        len_bytes: u64,
        reservation: Option<Reservation>,
    ) -> Result<ControlPage> {
        let copier = match folder.pages {
            SlabPages::Hugetlb => {
                Some(Copier::new(&file, len_bytes).map_err(|error| failed_io("map", folder, &error))?)
            }
            SlabPages::Tmpfs | SlabPages::Disk => None,
        };
        Ok(ControlPage { file, slabs, copier, _reservation: reservation })
    }

    /// Records in it.
    pub fn slabs(&self) -> u32 {
        self.slabs
    }

    /// For the client.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Writes the record of a slab that is granted.
    ///
    /// # Errors
    /// [`Code::Unavailable`] when it cannot be written; so it is with the following.
    pub fn grant(&self, record: &SlabRecord) -> Result<()> {
        self.write(record.slab, &record.encode(SlabState::Filling))
    }

    /// Writes that a slab is free.
    ///
    /// # Errors
    /// See [`ControlPage::grant`].
    pub fn release(&self, slab: u32) -> Result<()> {
        self.write(slab, &[0; RECORD])
    }

    /// The first word of the slab's record, whatever the client wrote there.
    ///
    /// # Errors
    /// See [`ControlPage::grant`].
    pub fn state_word(&self, slab: u32) -> Result<u32> {
        let mut word = [0; 4];
        self.file.read_exact_at(&mut word, self.place(slab)?).map_err(|error| unusable(slab, &error))?;
        // What the client wrote before this word is seen by whoever reads after it.
        fence(Ordering::Acquire);
        Ok(u32::from_le_bytes(word))
    }

    /// The record of a slab that is in use; `None` when it is free or not as the daemon wrote it.
    pub fn record(&self, slab: u32) -> Option<(SlabState, SlabRecord)> {
        let mut bytes = [0; RECORD];
        self.file.read_exact_at(&mut bytes, self.place(slab).ok()?).ok()?;
        fence(Ordering::Acquire);
        SlabRecord::decode(&bytes, slab)
    }

    fn place(&self, slab: u32) -> Result<u64> {
        if slab >= self.slabs {
            let message = format!("slab {slab} has no record in a control page of {}", self.slabs);
            return Err(Error::new(Code::Internal, message));
        }
        Ok(u64::from(slab) * CONTROL_RECORD_BYTES)
    }

    fn write(&self, slab: u32, bytes: &[u8; RECORD]) -> Result<()> {
        let place = self.place(slab)?;
        let written = match &self.copier {
            None => self.file.write_all_at(bytes, place),
            Some(copier) => copier.write(bytes, place),
        };
        written.map_err(|error| unusable(slab, &error))
    }
}

/// Writes a mapped file without touching the mapping: the kernel copies, and where the file was cut by somebody it
/// answers with an error instead of a signal.
#[derive(Debug)]
struct Copier {
    map: RawMemory,
    scratch: File,
}

impl Copier {
    fn new(file: &File, len_bytes: u64) -> io::Result<Copier> {
        let len = usize::try_from(len_bytes).map_err(|_| io::ErrorKind::OutOfMemory)?;
        let map = RawMemory::shared(file.as_fd(), len)?;
        Ok(Copier { map, scratch: create_memfd("longshore-control", MemfdFlags::empty())? })
    }

    /// `place` has a scratch place of its own, so that writers of different records do not meet.
    fn write(&self, bytes: &[u8; RECORD], place: u64) -> io::Result<()> {
        self.scratch.write_all_at(bytes, place)?;
        let (at, offset) = (usize::try_from(place), libc::off_t::try_from(place));
        let (Ok(at), Ok(offset)) = (at, offset) else { return Err(io::ErrorKind::InvalidInput.into()) };
        if at.checked_add(RECORD).is_none_or(|end| end > self.map.len()) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let target = self.map.start().as_ptr().wrapping_add(at);
        // SAFETY: `target` has room for a record within our own mapping, which lives through the call; nobody in this
        // process has a reference into it.
        let copied = unsafe { libc::pread(self.scratch.as_raw_fd(), target.cast(), RECORD, offset) };
        match usize::try_from(copied) {
            Ok(RECORD) => Ok(()),
            Ok(_) => Err(io::ErrorKind::WriteZero.into()),
            Err(_) => Err(io::Error::last_os_error()),
        }
    }
}

fn unusable(slab: u32, error: &io::Error) -> Error {
    let message =
        format!("the record of slab {slab} in the control page cannot be used: {error}; the client changed it");
    Error::new(Code::Unavailable, message)
}

fn failed_io(doing: &str, folder: &SessionFolder, error: &io::Error) -> Error {
    failed(doing, &folder.path.join(NAME), rustix::io::Errno::from_io_error(error).unwrap_or(rustix::io::Errno::IO))
}
