//! Memory of the next region, touched before anybody waits for it.
//!
//! It is charged to the arena and yet nobody's: whoever does not fit gets as much of its room as he lacks. It is one file
//! with all of it, because a region is one file; a region that is shorter cuts the rest off, one that is longer grows it.
//!
//! Locks: the slot comes before the ledger. It is held while memory is touched, a few milliseconds at most, and until what
//! was taken out of it is accounted for: who is refused meanwhile waits for the slot, and asks again.

use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};
use rustix::fs::{FallocateFlags, fallocate};

use super::Shared;
use super::ledger::Ledger;
use crate::raw::{HUGE_PAGE_BYTES, RawMemory};
use crate::shared::{SharedFile, SharedMemory};

/// What is touched at once: a huge page, for which the host of a virtual machine may take ten milliseconds.
const STEP_BYTES: u64 = HUGE_PAGE_BYTES as u64;
/// A region takes what is ready when it has at least this part of it: cutting off the rest is work thrown away.
const USEFUL_DIVISOR: u64 = 4;

/// The place of the memory that is ready.
#[derive(Default)]
pub(super) struct Ready {
    slot: Mutex<Option<Prefaulted>>,
    /// Signalled when the slot has become empty, and when who fills it should look for another reason.
    changed: Condvar,
    used_bytes: AtomicU64,
    /// When somebody last needed the room, or the quiet.
    disturbed: Mutex<Option<Instant>>,
}

/// Memory of which a front part has been touched.
pub(super) struct Prefaulted {
    map: RawMemory,
    file: ReadyFile,
    touched_bytes: u64,
}

/// A file of memory that is made of pages already.
pub(super) struct ReadyFile {
    file: SharedFile,
    memory: &'static SharedMemory,
}

/// What a step came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    Touched,
    /// All of it is ready.
    Full,
    /// The budget has no room for more at present.
    NoRoom,
}

impl Ready {
    pub(super) fn count_used(&self, bytes: u64) {
        self.used_bytes.fetch_add(bytes, Relaxed);
    }

    pub(super) fn used_bytes(&self) -> u64 {
        self.used_bytes.load(Relaxed)
    }

    /// Somebody needs what touching memory takes, now.
    pub(super) fn disturb(&self) {
        *self.disturbed.lock() = Some(Instant::now());
    }

    /// Whether nobody did for so long.
    pub(super) fn has_rested(&self, long: Duration) -> bool {
        self.disturbed.lock().is_none_or(|since| since.elapsed() >= long)
    }

    /// The slot, for who fills it, and how he hears that it changed.
    pub(super) fn slot(&self) -> (MutexGuard<'_, Option<Prefaulted>>, &Condvar) {
        (self.slot.lock(), &self.changed)
    }
}

impl Shared {
    /// The memory for a region of `bytes`, cut off where that ends, and how much of it is leased now. `None` without any that
    /// is of use.
    pub(super) fn take_ready(&self, bytes: u64) -> Option<(ReadyFile, u64)> {
        let mut slot = self.ready.slot.lock();
        let touched_bytes = slot.as_ref()?.touched_bytes;
        if touched_bytes == 0 || bytes < touched_bytes / USEFUL_DIVISOR {
            return None;
        }
        let Prefaulted { map, file, .. } = slot.take()?;
        drop(map);
        let is_cut = file.file.file.set_len(bytes).is_ok();
        let (file, leased_bytes) = if is_cut { (Some(file), bytes.min(touched_bytes)) } else { (None, 0) };
        if self.ledger.lock().take_ready(touched_bytes, leased_bytes) {
            self.granted.notify_all();
        }
        self.ready.changed.notify_all();
        Some((file?, leased_bytes))
    }

    /// Frees all of the memory.
    pub(super) fn end_ready(&self) {
        self.shed_ready(|ledger| ledger.stats().ready_bytes);
    }

    /// Frees as much of the memory as `lacking` finds that somebody lacks, whole pages of it.
    pub(super) fn shed_ready(&self, lacking: impl Fn(&Ledger) -> u64) {
        let mut slot = self.ready.slot.lock();
        let lacking_bytes = lacking(&self.ledger.lock());
        let Some(ready) = slot.as_mut().filter(|_| lacking_bytes > 0) else { return };
        self.ready.disturb();
        let before_bytes = ready.touched_bytes;
        let left_bytes = ready.cut(lacking_bytes);
        if left_bytes == 0 {
            *slot = None;
        }
        if self.ledger.lock().take_ready(before_bytes - left_bytes, 0) {
            self.granted.notify_all();
        }
        self.ready.changed.notify_all();
    }

    /// Touches some more of what is to be ready, `target_bytes` in all.
    ///
    /// # Errors
    /// The kernel's: before Linux 5.14 it does not know how; it may have no memory. What was ready is gone then.
    pub(super) fn touch(
        &self,
        slot: &mut Option<Prefaulted>,
        memory: &'static SharedMemory,
        target_bytes: u64,
    ) -> io::Result<Step> {
        let touched_bytes = slot.as_ref().map_or(0, |ready| ready.touched_bytes);
        let step_bytes = STEP_BYTES.min(target_bytes.saturating_sub(touched_bytes));
        if step_bytes == 0 {
            return Ok(Step::Full);
        }
        if !self.ledger.lock().grow_ready(step_bytes) {
            return Ok(Step::NoRoom);
        }
        let done = match slot {
            Some(ready) => ready.touch(step_bytes),
            None => Prefaulted::new(memory, target_bytes).and_then(|fresh| slot.insert(fresh).touch(step_bytes)),
        };
        if let Err(error) = done {
            *slot = None;
            if self.ledger.lock().take_ready(touched_bytes + step_bytes, 0) {
                self.granted.notify_all();
            }
            return Err(error);
        }
        Ok(Step::Touched)
    }
}

impl Prefaulted {
    fn new(memory: &'static SharedMemory, len: u64) -> io::Result<Prefaulted> {
        let file = memory.file("region")?;
        file.file.set_len(len)?;
        let map_len = usize::try_from(len).map_err(|_| io::ErrorKind::OutOfMemory)?;
        let map = RawMemory::shared(file.file.as_fd(), map_len)?;
        map.advise();
        Ok(Prefaulted { map, file: ReadyFile { file, memory }, touched_bytes: 0 })
    }

    fn touch(&mut self, bytes: u64) -> io::Result<()> {
        // What it was made with fits the address space.
        let (start, end) = (self.touched_bytes as usize, (self.touched_bytes + bytes) as usize);
        self.map.populate_to_write(start..end)?;
        self.touched_bytes += bytes;
        Ok(())
    }

    /// Frees the last `bytes` of what is touched, and what lies between them and the end of a page. What is left; nothing
    /// where a part cannot be freed.
    fn cut(&mut self, bytes: u64) -> u64 {
        let left_bytes = self.touched_bytes.saturating_sub(bytes) / STEP_BYTES * STEP_BYTES;
        let how = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let gone_bytes = (self.touched_bytes - left_bytes).next_multiple_of(STEP_BYTES);
        let is_cut = left_bytes > 0 && fallocate(&self.file.file.file, how, left_bytes, gone_bytes).is_ok();
        self.touched_bytes = if is_cut { left_bytes } else { 0 };
        self.touched_bytes
    }

    /// The memory that the file really has.
    #[cfg(test)]
    pub(super) fn pages_bytes(&self) -> u64 {
        rustix::fs::fstat(&self.file.file.file).unwrap().st_blocks as u64 * 512
    }
}

impl ReadyFile {
    /// The file, when it is of the memory that is asked for.
    pub(super) fn into_file(self, memory: &SharedMemory) -> Option<SharedFile> {
        std::ptr::eq(self.memory, memory).then_some(self.file)
    }
}
