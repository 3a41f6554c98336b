//! The journal of one attempt: frames, each synced before anything that it says is acted on.
//!
//! A frame is `u32` length, `u64` CRC-64/NVME, both little-endian, and the payload: a version byte and records (postcard). Records
//! that are ready together share a frame, so that a power loss can tear at most the last one: a frame is written only after
//! the one before it was synced. Therefore a bad frame at the very end is a torn tail, which is cut; a bad frame with a
//! good one behind it is damage, which is an error.

mod frame;
mod read;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use longshore_types::{Code, Error, Result};
use parking_lot::{Condvar, Mutex};

use crate::attempt::Record;
use crate::spool::disk_error;

use self::frame::Found;
pub(crate) use self::read::{Replay, read};

/// Name of the journal in the folder of an attempt.
pub(crate) const JOURNAL_NAME: &str = "journal";

/// The only writer of a journal.
pub(crate) struct Journal {
    path: PathBuf,
    file: File,
    inner: Mutex<Inner>,
    synced: Condvar,
}

#[derive(Default)]
struct Inner {
    /// Records that no writer has taken yet.
    waiting: Vec<Record>,
    /// Number of the last record that was queued, and of the last that is on the disk.
    queued: u64,
    durable: u64,
    /// Where the next frame goes.
    end_bytes: u64,
    /// A thread is writing.
    is_writing: bool,
    /// After a failed write or sync nobody knows what is on the disk: the journal takes nothing any more.
    failed: Option<Error>,
}

impl Journal {
    /// Makes the journal of a new attempt. The caller syncs the folder.
    pub(crate) fn create(folder: &Path) -> Result<Journal> {
        let path = folder.join(JOURNAL_NAME);
        let file = File::options().write(true).create_new(true).open(&path);
        let file = file.map_err(|error| disk_error("create", &path, &error))?;
        Ok(Journal { path, file, inner: Mutex::default(), synced: Condvar::new() })
    }

    /// Reads a journal, cuts its torn tail, and goes on behind it.
    ///
    /// # Errors
    /// [`Code::Corrupt`] naming the file when it is damaged in any other way.
    pub(crate) fn open(folder: &Path) -> Result<(Journal, Replay)> {
        let path = folder.join(JOURNAL_NAME);
        let replay = read(&path)?;
        let file = File::options().write(true).open(&path).map_err(|error| disk_error("open", &path, &error))?;
        if replay.cut_bytes > 0 {
            let cut = file.set_len(replay.good_bytes).and_then(|()| file.sync_all());
            cut.map_err(|error| disk_error("cut the torn tail of", &path, &error))?;
        }
        let inner = Inner { end_bytes: replay.good_bytes, ..Inner::default() };
        Ok((Journal { path, file, inner: Mutex::new(inner), synced: Condvar::new() }, replay))
    }

    /// Appends records and syncs them. Blocks the thread. Calls from several threads share a frame and a sync where they meet.
    /// `applied` is given every record that is on the disk now, in order, before anybody is told.
    ///
    /// `wait_for_room` is asked after a write that found the disk full; while it says yes the write is tried again.
    ///
    /// # Errors
    /// What writing reports, naming the file; every later call fails, too.
    pub(crate) fn append(
        &self,
        records: Vec<Record>,
        applied: &dyn Fn(&[Record]),
        wait_for_room: &dyn Fn() -> bool,
    ) -> Result<()> {
        let mut inner = self.inner.lock();
        inner.queued += 1;
        let mine = inner.queued;
        inner.waiting.extend(records);
        loop {
            if let Some(error) = &inner.failed {
                return Err(error.clone());
            }
            if inner.durable >= mine {
                return Ok(());
            }
            if inner.is_writing {
                self.synced.wait(&mut inner);
                continue;
            }
            inner.is_writing = true;
            let (records, upto, at) = (std::mem::take(&mut inner.waiting), inner.queued, inner.end_bytes);
            let written = parking_lot::MutexGuard::unlocked(&mut inner, || {
                let bytes = self.write(at, &records, wait_for_room)?;
                applied(&records);
                Ok(bytes)
            });
            inner.is_writing = false;
            match written {
                Ok(bytes) => {
                    inner.end_bytes += bytes;
                    inner.durable = upto;
                }
                Err(error) => inner.failed = Some(error),
            }
            self.synced.notify_all();
        }
    }

    fn write(&self, at: u64, records: &[Record], wait_for_room: &dyn Fn() -> bool) -> Result<u64> {
        let frame = frame::encode(records)?;
        loop {
            match self.file.write_all_at(&frame, at).and_then(|()| self.file.sync_data()) {
                Ok(()) => return Ok(frame.len() as u64),
                // Written again at the same place; a sync that failed for lack of room has kept nothing either.
                Err(error) if error.kind() == io::ErrorKind::StorageFull && wait_for_room() => {}
                Err(error) => return Err(disk_error("write", &self.path, &error)),
            }
        }
    }

    /// The file.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

/// Records as they would lie in a journal, for others to keep.
pub(crate) fn to_bytes(records: &[Record]) -> Result<Vec<u8>> {
    frame::encode(records)
}

/// The records of [`to_bytes`]; `None` when the bytes are anything else.
pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Vec<Record>> {
    match frame::look(bytes) {
        Found::Whole(payload) if frame::HEAD_BYTES + payload.len() == bytes.len() => frame::decode(payload),
        _ => None,
    }
}

/// The error of a journal that says what cannot be.
fn corrupt(path: &Path, reason: &str) -> Error {
    Error::new(
        Code::Corrupt,
        format!("journal {} is damaged: {reason}; the attempt is set aside, its files are kept", path.display()),
    )
}

#[cfg(test)]
mod tests;
