//! The budget for everything that holds model bytes in host memory.
//!
//! Invariant: what is leased, recycled and [ready](ready) never exceeds the capacity. All accounting is in [`ledger`],
//! under one lock; this file turns grants into memory. Waiting blocks the thread: from async code use `spawn_blocking`.

mod buffer;
mod ledger;
mod memory;
mod prefault;
mod ready;

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use longshore_types::{CHUNK_BYTES, Code, Error, Result, format_bytes};
use parking_lot::{Condvar, Mutex, MutexGuard};

pub use self::buffer::Buffer;
use self::ledger::{Grant, Ledger, Recycles, Request};
use self::memory::{Memory, Sharing};
pub use self::prefault::{Prefaulter, Quiet};
use self::ready::{Ready, ReadyFile};
use crate::shared::{SharedFile, SharedMemory};
use crate::{MAPPED_FROM_BYTES, mapped_charge_bytes};

/// A full chunk's buffer, the only size that is recycled.
const RECYCLED_LEN: usize = CHUNK_BYTES as usize;

/// A hard budget in bytes. A clone is the same arena.
#[derive(Clone)]
pub struct Arena {
    shared: Arc<Shared>,
}

struct Shared {
    ledger: Mutex<Ledger>,
    granted: Condvar,
    ready: Ready,
    /// Where shared buffers come from.
    sharing: Option<Sharing>,
}

/// What an arena's budget is used for at one moment. All sizes in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ArenaStats {
    /// The budget.
    pub capacity_bytes: u64,
    /// Held by buffers and reservations.
    pub leased_bytes: u64,
    /// Held by freed buffers kept for the next one who needs their size.
    pub recycled_bytes: u64,
    /// Held by memory that a [`Prefaulter`] made ready for the next region.
    pub ready_bytes: u64,
    /// Callers waiting for memory now.
    pub waiting: usize,
    /// Callers that had to wait, since the start.
    pub waits: u64,
    /// Callers that waited in vain, since the start.
    pub timeouts: u64,
}

impl Arena {
    /// An arena of `capacity_bytes`. Nothing is allocated yet.
    pub fn new(capacity_bytes: u64) -> Arena {
        Arena::make(capacity_bytes, None)
    }

    /// As [`Arena::new`], with [shared buffers](Arena::shared_buffer) of `memory`, each of which has a descriptor: at most
    /// `files_max` of them are open, those of buffers kept for reuse among them.
    pub fn with_shared_buffers(capacity_bytes: u64, memory: &'static SharedMemory, files_max: usize) -> Arena {
        Arena::make(capacity_bytes, Some(Sharing::new(memory, files_max)))
    }

    fn make(capacity_bytes: u64, sharing: Option<Sharing>) -> Arena {
        let ledger = Mutex::new(Ledger::new(capacity_bytes));
        let shared = Shared { ledger, granted: Condvar::new(), ready: Ready::default(), sharing };
        Arena { shared: Arc::new(shared) }
    }

    /// The budget in bytes.
    pub fn capacity_bytes(&self) -> u64 {
        self.stats().capacity_bytes
    }

    /// Bytes held now: by buffers, by reservations, by freed buffers that are kept for reuse, and by what is ready for the
    /// next region. Never above the capacity. The last two are given back as soon as someone needs them: see
    /// [`Arena::leased_bytes`].
    pub fn used_bytes(&self) -> u64 {
        let stats = self.stats();
        stats.leased_bytes + stats.recycled_bytes + stats.ready_bytes
    }

    /// Bytes held by live buffers and reservations: what would have to be freed to empty the arena.
    pub fn leased_bytes(&self) -> u64 {
        self.stats().leased_bytes
    }

    /// What the budget is used for.
    pub fn stats(&self) -> ArenaStats {
        self.shared.ledger.lock().stats()
    }

    /// A zeroed or recycled buffer of `len` bytes; `None` when it does not fit now. Its contents are unspecified.
    pub fn try_buffer(&self, len: usize) -> Option<Buffer> {
        let grant = self.shared.try_take(buffer_request(len))?;
        self.make_buffer(len, grant, None).ok()
    }

    /// As [`Arena::try_buffer`], of memory that others may read: see [`Buffer::file`]. Where the arena has no such memory, no
    /// descriptor is left for it, or the buffer is too small to be worth one, it is an ordinary buffer.
    pub fn try_shared_buffer(&self, len: usize) -> Option<Buffer> {
        let sharing = self.sharing(len);
        let grant = self.shared.try_take(shared_request(len, sharing))?;
        self.make_buffer(len, grant, sharing).ok()
    }

    /// Like [`Arena::try_buffer`], but waits until the buffer fits. Blocks the thread.
    ///
    /// # Errors
    /// [`Code::Exhausted`] when it did not fit within `timeout`, or when the system has no memory.
    pub fn buffer(&self, len: usize, timeout: Duration) -> Result<Buffer> {
        let grant = self.wait(buffer_request(len), timeout)?;
        self.make_buffer(len, grant, None).map_err(|error| unmapped(len, error))
    }

    /// As [`Arena::buffer`], of the memory that [`Arena::try_shared_buffer`] gives.
    ///
    /// # Errors
    /// As [`Arena::buffer`].
    pub fn shared_buffer(&self, len: usize, timeout: Duration) -> Result<Buffer> {
        let sharing = self.sharing(len);
        let grant = self.wait(shared_request(len, sharing), timeout)?;
        self.make_buffer(len, grant, sharing).map_err(|error| unmapped(len, error))
    }

    /// Where a shared buffer of `len` bytes comes from.
    fn sharing(&self, len: usize) -> Option<&Sharing> {
        self.shared.sharing.as_ref().filter(|_| len >= MAPPED_FROM_BYTES)
    }

    /// Sets `bytes` aside for memory made elsewhere (a region); `None` when they do not fit now.
    pub fn try_reserve(&self, bytes: u64) -> Option<Reservation> {
        let grant = self.shared.try_take(Request { bytes, recycles: Recycles::Nothing })?;
        Some(Reservation::of(self.lease(grant.bytes)))
    }

    /// As [`Arena::try_reserve`], for a region: where a [`Prefaulter`] has made memory ready that is of use for so many bytes,
    /// the region gets it.
    pub fn try_reserve_region(&self, bytes: u64) -> Option<Reservation> {
        let Some((file, ready_bytes)) = self.shared.take_ready(bytes) else { return self.try_reserve(bytes) };
        let mut reservation = Reservation { ready: Some(file), lease: self.lease(ready_bytes) };
        if bytes > ready_bytes {
            let missing = Request { bytes: bytes - ready_bytes, recycles: Recycles::Nothing };
            reservation.lease.bytes += self.shared.try_take(missing)?.bytes;
        }
        self.shared.ready.count_used(ready_bytes);
        Some(reservation)
    }

    /// Bytes of regions that were ready when they were asked for, since the start.
    pub fn ready_used_bytes(&self) -> u64 {
        self.shared.ready.used_bytes()
    }

    /// Like [`Arena::try_reserve`], but waits until the bytes fit. Blocks the thread.
    ///
    /// # Errors
    /// [`Code::Exhausted`] when they did not fit within `timeout`.
    pub fn wait_reserve(&self, bytes: u64, timeout: Duration) -> Result<Reservation> {
        let grant = self.wait(Request { bytes, recycles: Recycles::Nothing }, timeout)?;
        Ok(Reservation::of(self.lease(grant.bytes)))
    }

    fn lease(&self, bytes: u64) -> Lease {
        Lease { shared: Arc::clone(&self.shared), bytes }
    }

    /// Turns a grant into memory. The lease is made first, so that a failed mapping gives its bytes back.
    fn make_buffer(&self, len: usize, grant: Grant, sharing: Option<&Sharing>) -> io::Result<Buffer> {
        let lease = self.lease(grant.bytes);
        let memory = match (grant.memory, sharing) {
            (Some(recycled), _) => recycled,
            (None, Some(sharing)) => sharing.make(len)?,
            (None, None) => Memory::own(len)?,
        };
        Ok(Buffer::new(memory, lease))
    }

    fn wait(&self, request: Request, timeout: Duration) -> Result<Grant> {
        let mut ledger = self.shared.ledger.lock();
        if let Some(grant) = ledger.try_take(request) {
            return Ok(grant);
        }
        if request.bytes > ledger.stats().capacity_bytes {
            return Err(exhausted(request, &ledger.stats(), None));
        }
        let deadline = Instant::now().checked_add(timeout);
        let ticket = ledger.enqueue(request);
        loop {
            if let Some(grant) = ledger.collect(ticket) {
                return Ok(grant);
            }
            // Nothing more is made ready while somebody waits.
            if ledger.waiters_lack() > 0 {
                MutexGuard::unlocked(&mut ledger, || self.shared.shed_ready(Ledger::waiters_lack));
                continue;
            }
            match deadline {
                Some(deadline) if self.shared.granted.wait_until(&mut ledger, deadline).timed_out() => {
                    let stats = ledger.stats();
                    return ledger.leave(ticket).ok_or_else(|| exhausted(request, &stats, Some(timeout)));
                }
                Some(_) => {}
                None => self.shared.granted.wait(&mut ledger),
            }
        }
    }
}

/// What a buffer of `len` bytes is charged with: its mapping, or its very length on the heap.
fn buffer_request(len: usize) -> Request {
    let bytes = if len >= MAPPED_FROM_BYTES { mapped_charge_bytes(len as u64) } else { len as u64 };
    let recycles = if len == RECYCLED_LEN { Recycles::Own } else { Recycles::Nothing };
    Request { bytes, recycles }
}

fn shared_request(len: usize, sharing: Option<&Sharing>) -> Request {
    let request = buffer_request(len);
    let recycles = match (request.recycles, sharing) {
        (Recycles::Own, Some(sharing)) if sharing.is_exhausted() => Recycles::SharedOrOwn,
        (Recycles::Own, Some(_)) => Recycles::Shared,
        (recycles, _) => recycles,
    };
    Request { recycles, ..request }
}

fn unmapped(len: usize, error: io::Error) -> Error {
    let message = format!("cannot map {} of memory: {error}; lower the memory budget", format_bytes(len as u64));
    Error::new(Code::Exhausted, message).with_source(error)
}

fn exhausted(request: Request, stats: &ArenaStats, waited: Option<Duration>) -> Error {
    let asked = format_bytes(request.bytes);
    let capacity = format_bytes(stats.capacity_bytes);
    let message = match waited {
        None => format!("{asked} of host memory can never fit in a budget of {capacity}: raise the memory budget"),
        Some(waited) => format!(
            "no room for {asked} of host memory within {waited:?}: {} of {capacity} are in use; \
             unload something or raise the memory budget",
            format_bytes(stats.leased_bytes),
        ),
    };
    Error::new(Code::Exhausted, message)
}

/// Bytes taken from an arena; given back on drop.
struct Lease {
    shared: Arc<Shared>,
    bytes: u64,
}

impl Lease {
    /// Gives the bytes back together with the memory they paid for, which is kept for reuse when it may be.
    fn give_back(mut self, memory: Memory) {
        let bytes = std::mem::take(&mut self.bytes);
        let memory = if memory.len() == RECYCLED_LEN { self.shared.recycle(memory) } else { Some(memory) };
        if let Some(memory) = memory {
            // Freed before its bytes are: the budget counts what is really held.
            drop(memory);
            self.shared.release(bytes);
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.shared.release(self.bytes);
    }
}

impl Shared {
    /// What is asked for, if it fits, be it in the place of what is ready.
    fn try_take(&self, request: Request) -> Option<Grant> {
        let mut ledger = self.ledger.lock();
        loop {
            let grant = ledger.try_take(request);
            if grant.is_some() || ledger.lacks(request) == 0 {
                return grant;
            }
            // Some more may be made ready before the lock is held again.
            MutexGuard::unlocked(&mut ledger, || self.shed_ready(|ledger| ledger.lacks(request)));
        }
    }

    fn release(&self, bytes: u64) {
        if bytes > 0 && self.ledger.lock().release(bytes) {
            self.granted.notify_all();
        }
    }

    /// Keeps `memory` for the next buffer, or hands it back when enough is kept.
    fn recycle(&self, memory: Memory) -> Option<Memory> {
        match self.ledger.lock().recycle(memory) {
            Ok(granted) => {
                if granted {
                    self.granted.notify_all();
                }
                None
            }
            Err(memory) => Some(memory),
        }
    }
}

/// A part of the budget set aside for memory that is made elsewhere; given back on drop.
pub struct Reservation {
    /// Freed before its bytes are given back.
    ready: Option<ReadyFile>,
    lease: Lease,
}

impl Reservation {
    fn of(lease: Lease) -> Reservation {
        Reservation { ready: None, lease }
    }

    /// Memory for a region that is there already, if it is of this kind.
    pub(crate) fn take_ready(&mut self, memory: &SharedMemory) -> Option<SharedFile> {
        self.ready.take().and_then(|ready| ready.into_file(memory))
    }

    /// The bytes set aside.
    pub fn bytes(&self) -> u64 {
        self.lease.bytes
    }
}

impl std::fmt::Debug for Reservation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Reservation({})", format_bytes(self.bytes()))
    }
}

impl std::fmt::Debug for Arena {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.stats().fmt(f)
    }
}

#[cfg(test)]
mod tests;
