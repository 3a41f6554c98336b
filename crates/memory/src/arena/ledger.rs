//! The arena's accounting: what is leased, what is kept for reuse, who waits.
//!
//! Waiters are served in the order they came, but one whose request does not fit is passed over by those behind it:
//! a caller that needs one more chunk to finish and free a whole load must not queue behind a request for gigabytes.
//! Memory that becomes free is handed to waiters directly, so that a newcomer cannot take it from under them.

use std::collections::VecDeque;

use longshore_types::CHUNK_BYTES;

use super::ArenaStats;
use super::memory::Memory;

/// Freed chunk buffers kept at most (1 GiB): enough for the buffers in flight of one node's loads.
const RECYCLED_MAX: usize = 64;

/// What somebody asks of the budget.
#[derive(Debug, Clone, Copy)]
pub(super) struct Request {
    pub(super) bytes: u64,
    /// Which recycled chunk buffer would do (then `bytes` is [`CHUNK_BYTES`]).
    pub(super) recycles: Recycles,
}

/// A recycled buffer that somebody asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Recycles {
    /// None: it is of another length, or no buffer at all.
    Nothing,
    /// One of this process alone. What lies in others is seen by whoever still has their descriptor.
    Own,
    /// One that others may read.
    Shared,
    /// The same, else one that they may not.
    SharedOrOwn,
}

/// Bytes that were taken, perhaps with the memory they pay for.
#[derive(Debug)]
pub(super) struct Grant {
    pub(super) bytes: u64,
    pub(super) memory: Option<Memory>,
}

struct Waiter {
    ticket: u64,
    request: Request,
    grant: Option<Grant>,
}

/// See the module's comment. Every method keeps `leased + recycled + ready <= capacity`.
pub(super) struct Ledger {
    capacity: u64,
    leased: u64,
    recycled: Vec<Memory>,
    /// Charged for memory that is touched already and nobody's yet.
    ready: u64,
    queue: VecDeque<Waiter>,
    next_ticket: u64,
    waits: u64,
    timeouts: u64,
}

impl Ledger {
    pub(super) fn new(capacity: u64) -> Ledger {
        Ledger {
            capacity,
            leased: 0,
            recycled: Vec::new(),
            ready: 0,
            queue: VecDeque::new(),
            next_ticket: 0,
            waits: 0,
            timeouts: 0,
        }
    }

    fn recycled_bytes(&self) -> u64 {
        self.recycled.len() as u64 * CHUNK_BYTES
    }

    pub(super) fn stats(&self) -> ArenaStats {
        ArenaStats {
            capacity_bytes: self.capacity,
            leased_bytes: self.leased,
            recycled_bytes: self.recycled_bytes(),
            ready_bytes: self.ready,
            waiting: self.queue.len(),
            waits: self.waits,
            timeouts: self.timeouts,
        }
    }

    /// Takes what is asked if it fits, freeing recycled buffers for it where that helps.
    pub(super) fn try_take(&mut self, request: Request) -> Option<Grant> {
        if request.bytes > self.capacity - self.leased - self.ready {
            return None;
        }
        let memory = self.take_recycled(request.recycles);
        while memory.is_none() && self.spare() < request.bytes {
            // Freed under the lock, so that the next owner of its bytes cannot map them before they are gone.
            self.recycled.pop();
        }
        self.leased += request.bytes;
        Some(Grant { bytes: request.bytes, memory })
    }

    /// Neither leased nor kept for anybody.
    fn spare(&self) -> u64 {
        self.capacity - self.leased - self.ready - self.recycled_bytes()
    }

    /// How much of what is ready has to go for a request to fit; nothing where that would not do.
    pub(super) fn lacks(&self, request: Request) -> u64 {
        let lacking_bytes = request.bytes.saturating_sub(self.capacity - self.leased - self.ready);
        if lacking_bytes <= self.ready { lacking_bytes } else { 0 }
    }

    /// How much of what is ready has to go for those who wait, be it enough for them or not.
    pub(super) fn waiters_lack(&self) -> u64 {
        let waiting = self.queue.iter().filter(|waiter| waiter.grant.is_none());
        let asked_bytes = waiting.fold(0_u64, |sum, waiter| sum.saturating_add(waiter.request.bytes));
        asked_bytes.saturating_sub(self.capacity - self.leased - self.ready).min(self.ready)
    }

    /// Charges more of the memory that is made ready; nobody is made to wait for it, and no buffer goes for it.
    pub(super) fn grow_ready(&mut self, bytes: u64) -> bool {
        let is_spare = self.queue.is_empty() && bytes <= self.spare();
        self.ready += if is_spare { bytes } else { 0 };
        is_spare
    }

    /// Of what was ready so much is somebody's now; the rest is gone. True when a waiter was served: wake them.
    pub(super) fn take_ready(&mut self, bytes: u64, leased_bytes: u64) -> bool {
        self.ready -= bytes;
        self.leased += leased_bytes;
        self.serve()
    }

    fn take_recycled(&mut self, wanted: Recycles) -> Option<Memory> {
        let find = |is_shared: bool| self.recycled.iter().rposition(|memory| memory.file().is_some() == is_shared);
        let at = match wanted {
            Recycles::Nothing => None,
            Recycles::Own => find(false),
            Recycles::Shared => find(true),
            Recycles::SharedOrOwn => find(true).or_else(|| find(false)),
        };
        at.map(|at| self.recycled.remove(at))
    }

    /// Gives bytes back whose memory is gone. True when a waiter was served: wake them.
    pub(super) fn release(&mut self, bytes: u64) -> bool {
        self.leased -= bytes;
        self.serve()
    }

    /// Gives a chunk buffer back and keeps its memory; hands the memory back when enough is kept.
    pub(super) fn recycle(&mut self, memory: Memory) -> Result<bool, Memory> {
        if self.recycled.len() >= RECYCLED_MAX {
            return Err(memory);
        }
        self.leased -= CHUNK_BYTES;
        self.recycled.push(memory);
        Ok(self.serve())
    }

    fn serve(&mut self) -> bool {
        let mut queue = std::mem::take(&mut self.queue);
        let mut served = false;
        for waiter in queue.iter_mut().filter(|waiter| waiter.grant.is_none()) {
            waiter.grant = self.try_take(waiter.request);
            served |= waiter.grant.is_some();
        }
        self.queue = queue;
        served
    }

    /// Joins the queue; the ticket is for [`Ledger::collect`] and [`Ledger::leave`].
    pub(super) fn enqueue(&mut self, request: Request) -> u64 {
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        self.waits += 1;
        self.queue.push_back(Waiter { ticket, request, grant: None });
        ticket
    }

    /// The grant if it was made; the waiter has then left the queue.
    pub(super) fn collect(&mut self, ticket: u64) -> Option<Grant> {
        let at = self.queue.iter().position(|waiter| waiter.ticket == ticket && waiter.grant.is_some())?;
        self.queue.remove(at)?.grant
    }

    /// Leaves the queue. A grant made at the last moment is not lost.
    pub(super) fn leave(&mut self, ticket: u64) -> Option<Grant> {
        let at = self.queue.iter().position(|waiter| waiter.ticket == ticket)?;
        let grant = self.queue.remove(at)?.grant;
        self.timeouts += u64::from(grant.is_none());
        grant
    }
}
