//! What a client does after hello: acquire, seal, discard.

use std::sync::Arc;
use std::time::Duration;

use longshore_memory::slabs::{ControlPage, SlabPiece, SlabState};
use longshore_types::{Code, Error, Result};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

use super::grow;
use super::key::{SessionId, SlabKey};
use super::shared::{Shared, closing};
use super::table::{Place, Use};
use super::{SLAB_WAIT_MAX, SealedSlab, SlabEvent, SlabWanted};

/// How often those who wait look for what nobody announces.
const LOOK_AGAIN: Duration = Duration::from_millis(250);
/// How long who does not want to wait for room waits for room that is being prepared.
const GROWTH_PATIENCE: Duration = Duration::from_secs(10);

/// A slab to be filled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SlabGranted {
    /// The bytes are durable: nothing to do.
    AlreadyDurable {
        /// Bytes of the file that belong there.
        length_bytes: u64,
    },
    /// Copy them here.
    Slab {
        /// Its number, and that of its record in the control page.
        slab: u32,
        /// Index into [`SlabSession::pieces`].
        piece: u32,
        /// In the piece.
        offset_bytes: u64,
        /// Bytes of the file that belong there.
        length_bytes: u64,
    },
}

/// A client's session. Dropping it says that the client is gone for good: what it did not seal is lost at once, and the
/// memory is freed as soon as what it did seal is flushed.
pub struct SlabSession {
    shared: Arc<Shared>,
    id: SessionId,
    connections: u64,
    control: Arc<ControlPage>,
    changed: Arc<Notify>,
    has_left: bool,
}

impl SlabSession {
    pub(super) fn new(
        shared: &Arc<Shared>,
        id: SessionId,
        connections: u64,
        control: Arc<ControlPage>,
        changed: Arc<Notify>,
    ) -> SlabSession {
        SlabSession { shared: shared.clone(), id, connections, control, changed, has_left: false }
    }

    /// Its name.
    pub fn id(&self) -> SessionId {
        self.id
    }

    /// The control page, for the client.
    pub fn control(&self) -> &ControlPage {
        &self.control
    }

    /// The pieces from number `first` on, for the client. Pieces are only ever added.
    pub fn pieces(&self, first: usize) -> Vec<Arc<SlabPiece>> {
        let tables = self.shared.tables.lock();
        let pieces = tables.sessions.get(&self.id).and_then(|held| held.pieces.get(first..));
        pieces.map(<[_]>::to_vec).unwrap_or_default()
    }

    /// A slab for the bytes of `key`. Those who wait are served in the order they came.
    ///
    /// # Errors
    /// What [`super::SlabPlans::look_up`] says; [`Code::FailedPrecondition`] when the key is granted already,
    /// [`Code::Exhausted`] when there was no slab within `wait`, or none now and the save does not want to wait.
    pub async fn acquire(&self, key: SlabKey, wait: Duration) -> Result<SlabGranted> {
        let start = Instant::now();
        let mut deadline = start + wait.min(SLAB_WAIT_MAX);
        let mut turn: Option<Turn<'_>> = None;
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            // Registered before looking, so that a change between the look and the wait is not missed.
            changed.as_mut().enable();
            if self.shared.is_closing() {
                return Err(closing());
            }
            let wanted = self.look_up(&key)?;
            let SlabWanted { length_bytes, is_durable, refuse_when_full } = wanted;
            if is_durable {
                return Ok(SlabGranted::AlreadyDurable { length_bytes });
            }
            let ticket = turn.as_ref().map(|turn| turn.ticket);
            if let Some(Place { slab, piece, offset_bytes }) = self.try_grant(key, wanted, ticket)? {
                return Ok(SlabGranted::Slab { slab, piece, offset_bytes, length_bytes });
            }
            if refuse_when_full {
                // Room that is being prepared is no lack of room.
                deadline = if self.is_growing() { start + GROWTH_PATIENCE } else { start };
            }
            let now = Instant::now();
            if now >= deadline {
                return Err(self.exhausted(&key, start.elapsed()));
            }
            if turn.is_none() {
                turn = Some(self.stand_in_line());
            }
            // What cannot be announced is looked for: memory of others, and room in the file system.
            let _ = timeout_at(deadline.min(now + LOOK_AGAIN), changed).await;
        }
    }

    fn stand_in_line(&self) -> Turn<'_> {
        let mut tables = self.shared.tables.lock();
        let ticket = tables.sessions.get_mut(&self.id).map_or(0, |held| {
            held.next_ticket += 1;
            held.queue.push_back(held.next_ticket);
            held.next_ticket
        });
        Turn { session: self, ticket }
    }

    /// The bytes are there and the record says so: from now on they are the service's.
    ///
    /// # Errors
    /// [`Code::FailedPrecondition`] when the slab was not granted or its record is not sealed; what
    /// [`super::SlabPlans::look_up`] says when the attempt has ended: the slab is free then.
    pub fn seal(&self, slab: u32) -> Result<()> {
        let (key, length_bytes, piece, control) = self.shared.tables.lock().filling(self.id, slab)?;
        if self.shared.is_closing() {
            return Err(closing());
        }
        let wanted = self.look_up(&key).and_then(|wanted| match wanted.length_bytes == length_bytes {
            true => Ok(wanted),
            false => Err(Error::new(Code::Internal, format!("{key} has another length than when it was granted"))),
        });
        let wanted = wanted.inspect_err(|_| self.shared.tables.lock().release(self.id, slab, key))?;
        if wanted.is_durable {
            self.shared.tables.lock().release(self.id, slab, key);
            return Ok(());
        }
        if control.state_word(slab)? != SlabState::Sealed as u32 {
            let message = format!("the record of slab {slab} is not sealed: write 2 to its first word, then seal it");
            return Err(Error::new(Code::FailedPrecondition, message));
        }
        if let Err(error) = piece.check() {
            let mut tables = self.shared.tables.lock();
            tables.release(self.id, slab, key);
            tables.session(self.id)?.is_closed_to_grants = true;
            return Err(error);
        }
        self.pass_on(slab, key, length_bytes, piece)
    }

    fn pass_on(&self, slab: u32, key: SlabKey, length_bytes: u64, piece: Arc<SlabPiece>) -> Result<()> {
        let mut tables = self.shared.tables.lock();
        let permit = self.shared.events.try_reserve().map_err(|_| {
            Error::new(
                Code::Unavailable,
                "sealed slabs are not taken at present: the loader is shutting down or failed",
            )
        })?;
        let held = tables.session(self.id)?;
        // It may have been discarded, or sealed by another request, in the meantime.
        let entry = held.slabs.get_mut(slab as usize).filter(|entry| entry.used == Use::Filling { key, length_bytes });
        let entry = entry
            .ok_or_else(|| Error::new(Code::FailedPrecondition, format!("slab {slab} is not granted any more")))?;
        entry.used = Use::Sealed { key };
        let offset_bytes = entry.offset_bytes;
        // Without the lock: where nobody takes events any more, the slab is dropped here.
        drop(tables);
        let shared = self.shared.clone();
        let sealed = SealedSlab { shared, session: self.id, key, slab, piece, offset_bytes, length_bytes };
        permit.send(SlabEvent::Sealed(sealed));
        Ok(())
    }

    /// Gives a slab back that was granted and not sealed.
    ///
    /// # Errors
    /// [`Code::FailedPrecondition`] when it was not granted.
    pub fn discard(&self, slab: u32) -> Result<()> {
        let mut tables = self.shared.tables.lock();
        let (key, ..) = tables.filling(self.id, slab)?;
        tables.release(self.id, slab, key);
        Ok(())
    }

    /// The connection is gone. What is not sealed is lost at once; the memory stays until the [`Absence`] ends, because a
    /// client that lives may still be copying there, or come back.
    pub fn disconnect(mut self) -> Absence {
        self.has_left = true;
        self.shared.disconnect(self.id);
        Absence { shared: self.shared.clone(), id: self.id, connections: self.connections, has_left: false }
    }

    /// Not the client leaves, but this service: the client may go on with the next one.
    pub fn leave(mut self) {
        self.has_left = true;
        self.shared.leave(self.id);
    }

    fn look_up(&self, key: &SlabKey) -> Result<SlabWanted> {
        let wanted = self.shared.plans.look_up(key)?;
        if wanted.length_bytes == 0 || wanted.length_bytes > self.shared.slab_bytes {
            let message = format!("{key} cannot have {} bytes", wanted.length_bytes);
            return Err(Error::new(Code::Internal, message));
        }
        Ok(wanted)
    }

    /// Takes a slab; without one, sees to it that there will be one if that may be.
    fn try_grant(&self, key: SlabKey, wanted: SlabWanted, ticket: Option<u64>) -> Result<Option<Place>> {
        let mut tables = self.shared.tables.lock();
        if tables.is_sealed(&key)? {
            // Of an earlier session of this client, perhaps: it will be durable soon.
            return Ok(None);
        }
        let place = tables.grant(self.id, key, wanted, ticket)?;
        if place.is_none() {
            let held = tables.session(self.id)?;
            if held.is_closed_to_grants {
                let message = "this session's shared memory was damaged; begin a new session";
                return Err(Error::new(Code::FailedPrecondition, message));
            }
            if held.slabs.iter().all(|slab| slab.used != Use::Free) {
                grow::start(&self.shared, &mut tables, self.id);
            }
        }
        Ok(place)
    }

    fn is_growing(&self) -> bool {
        self.shared.tables.lock().sessions.get(&self.id).is_some_and(|held| held.growth.is_running)
    }

    fn exhausted(&self, key: &SlabKey, waited: Duration) -> Error {
        let mut tables = self.shared.tables.lock();
        tables.counts.refusals += 1;
        let stats = tables.stats();
        let held = tables.sessions.get(&self.id);
        let own = held.map_or(0, |held| held.slabs.len());
        let why = held.and_then(|held| held.growth.error.as_ref()).map(|(error, _)| format!(" ({error})"));
        let message = format!(
            "no free slab for {key} within {} ms: all {own} slabs of this session are being filled or wait for the disk, \
             and {} sessions share memory for {}{}; wait longer, or raise --checkpoint-memory",
            waited.as_millis(),
            stats.sessions,
            self.shared.budget.capacity,
            why.unwrap_or_default()
        );
        Error::new(Code::Exhausted, message)
    }
}

/// A place in the line of those who wait. Left when this is dropped.
struct Turn<'a> {
    session: &'a SlabSession,
    ticket: u64,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut tables = self.session.shared.tables.lock();
        if let Some(held) = tables.sessions.get_mut(&self.session.id) {
            held.queue.retain(|ticket| *ticket != self.ticket);
            // The next one may find a slab.
            held.changed.notify_waiters();
        }
    }
}

impl Drop for SlabSession {
    fn drop(&mut self) {
        if !self.has_left {
            self.shared.disconnect(self.id);
            self.shared.end(self.id, self.connections);
        }
    }
}

/// A session whose client is not connected. Dropping it says that the client does not come back, if it has not: its memory
/// is freed, under a client that still touches it.
pub struct Absence {
    shared: Arc<Shared>,
    id: SessionId,
    connections: u64,
    has_left: bool,
}

impl Absence {
    /// This service goes meanwhile: the client may come back to the next one.
    pub fn leave(mut self) {
        self.has_left = true;
    }
}

impl Drop for Absence {
    fn drop(&mut self) {
        if !self.has_left {
            self.shared.end(self.id, self.connections);
        }
    }
}
