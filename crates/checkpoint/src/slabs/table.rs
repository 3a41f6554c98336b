//! Who has which slab: the tables behind the lock. No file is touched here but control pages, and nothing waits.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use longshore_memory::slabs::{ControlPage, SessionFolder, SlabPiece, SlabRecord};
use longshore_types::{Code, Error, Result};
use tokio::sync::{Notify, mpsc};

use super::key::{SessionId, SlabKey};
use super::{SlabEvent, SlabStats, SlabWanted};

/// What a slab is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Use {
    Free,
    Filling { key: SlabKey, length_bytes: u64 },
    Sealed { key: SlabKey },
}

/// A slab of a session, and where it lies.
#[derive(Debug, Clone, Copy)]
pub(super) struct Slab {
    pub(super) piece: u32,
    pub(super) offset_bytes: u64,
    pub(super) used: Use,
}

/// Where a session's client is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Client {
    /// Connected.
    Here,
    /// It may come back.
    Away,
    /// It left; what it sealed is still being flushed.
    Gone,
}

/// A session.
pub(super) struct Held {
    /// Name of its folder.
    pub(super) name: String,
    pub(super) uid: u32,
    pub(super) client: Client,
    pub(super) folder: Arc<SessionFolder>,
    pub(super) control: Arc<ControlPage>,
    pub(super) pieces: Vec<Arc<SlabPiece>>,
    pub(super) slabs: Vec<Slab>,
    /// Nothing more is granted: a piece was damaged, or is not paid for.
    pub(super) is_closed_to_grants: bool,
    pub(super) generation: u64,
    /// What the client said it will stage at a time.
    pub(super) expected_slabs: u64,
    /// How many sessions its client expects.
    pub(super) clients: u64,
    pub(super) growth: Growth,
    /// Tickets of those who wait, in order.
    pub(super) queue: VecDeque<u64>,
    pub(super) next_ticket: u64,
    pub(super) changed: Arc<Notify>,
    /// Counts connections: who waits for the return of a client must not end a session that has been gone on with.
    pub(super) connections: u64,
    /// The place in the channel for the event of its end.
    pub(super) farewell: Option<mpsc::OwnedPermit<SlabEvent>>,
}

/// How a session gets more memory.
#[derive(Default)]
pub(super) struct Growth {
    /// A thread is at it.
    pub(super) is_running: bool,
    /// Slabs that are being made: they count as if they were there.
    pub(super) slabs: u64,
    /// Why it did not grow the last time, and when it is tried again.
    pub(super) error: Option<(Error, Instant)>,
}

/// A slab that was granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) slab: u32,
    pub(super) piece: u32,
    pub(super) offset_bytes: u64,
}

/// All sessions.
#[derive(Default)]
pub(super) struct Tables {
    pub(super) sessions: BTreeMap<SessionId, Held>,
    /// Every key that is being filled or sealed.
    pub(super) keys: HashMap<SlabKey, (SessionId, u32)>,
    /// Slabs of sessions that are gone and whose memory is being freed.
    pub(super) leaving_slabs: u64,
    pub(super) is_closing: bool,
    pub(super) counts: SlabStats,
}

impl Held {
    /// Adds a piece's slabs.
    pub(super) fn add_piece(&mut self, piece: Arc<SlabPiece>, slab_bytes: u64) {
        let index = self.pieces.len() as u32;
        let count = piece.len_bytes() / slab_bytes.max(1);
        let slabs = (0..count).map(|at| Slab { piece: index, offset_bytes: at * slab_bytes, used: Use::Free });
        self.slabs.extend(slabs);
        self.pieces.push(piece);
    }

    pub(super) fn has_sealed(&self) -> bool {
        self.slabs.iter().any(|slab| matches!(slab.used, Use::Sealed { .. }))
    }

    /// Nothing in it would be missed.
    pub(super) fn is_idle(&self) -> bool {
        self.slabs.iter().all(|slab| slab.used == Use::Free)
    }

    /// The first free slab, if it is this ticket's turn.
    pub(super) fn free_slab(&self, ticket: Option<u64>) -> Option<u32> {
        let is_turn = self.queue.front().is_none_or(|first| Some(*first) == ticket);
        let free = self.slabs.iter().position(|slab| slab.used == Use::Free)?;
        u32::try_from(free).ok().filter(|_| is_turn && !self.is_closed_to_grants)
    }

    /// Slabs, those included that are being made.
    pub(super) fn slab_count(&self) -> u64 {
        self.slabs.len() as u64 + self.growth.slabs
    }

    /// Slabs that the control page has records for, beyond those.
    pub(super) fn records_left(&self) -> u64 {
        u64::from(self.control.slabs()).saturating_sub(self.slab_count())
    }

    fn is_sealed(&self, slab: u32) -> bool {
        self.slabs.get(slab as usize).is_some_and(|slab| matches!(slab.used, Use::Sealed { .. }))
    }

    /// Marks a slab free, here and for a later process.
    pub(super) fn release(&mut self, slab: u32) {
        if let Some(slab) = self.slabs.get_mut(slab as usize) {
            slab.used = Use::Free;
        }
        if let Err(error) = self.control.release(slab) {
            // Only a later process would be misled, and it asks whether the bytes are wanted.
            tracing::warn!(session = %self.name, slab, %error, "a freed slab could not be marked so");
        }
    }
}

impl Tables {
    pub(super) fn session(&mut self, id: SessionId) -> Result<&mut Held> {
        self.sessions
            .get_mut(&id)
            .ok_or_else(|| Error::new(Code::FailedPrecondition, format!("session {id} has ended; begin a new one")))
    }

    /// Whether the bytes of `key` wait for the disk.
    ///
    /// # Errors
    /// [`Code::FailedPrecondition`] when somebody is filling them.
    pub(super) fn is_sealed(&self, key: &SlabKey) -> Result<bool> {
        let Some((id, slab)) = self.keys.get(key) else { return Ok(false) };
        if self.sessions.get(id).is_some_and(|held| held.is_sealed(*slab)) {
            return Ok(true);
        }
        let message = format!("{key} was granted already, as slab {slab} of session {id}; seal or discard it");
        Err(Error::new(Code::FailedPrecondition, message))
    }

    /// Grants a free slab to the session, if there is one and it is the ticket's turn. The key must not be in use.
    pub(super) fn grant(
        &mut self,
        id: SessionId,
        key: SlabKey,
        wanted: SlabWanted,
        ticket: Option<u64>,
    ) -> Result<Option<Place>> {
        let held = self.session(id)?;
        let Some(number) = held.free_slab(ticket) else { return Ok(None) };
        let Some(slab) = held.slabs.get_mut(number as usize) else { return Ok(None) };
        held.generation += 1;
        let record = SlabRecord {
            slab: number,
            attempt: *key.attempt.as_bytes(),
            file: key.file,
            slab_index: key.slab_index,
            length_bytes: wanted.length_bytes,
            generation: held.generation,
        };
        held.control.grant(&record)?;
        slab.used = Use::Filling { key, length_bytes: wanted.length_bytes };
        let place = Place { slab: number, piece: slab.piece, offset_bytes: slab.offset_bytes };
        self.keys.insert(key, (id, number));
        self.counts.grants += 1;
        self.counts.waits += u64::from(ticket.is_some());
        Ok(Some(place))
    }

    /// What is being filled in a slab of the session.
    pub(super) fn filling(
        &mut self,
        id: SessionId,
        slab: u32,
    ) -> Result<(SlabKey, u64, Arc<SlabPiece>, Arc<ControlPage>)> {
        let held = self.session(id)?;
        let entry = held.slabs.get(slab as usize).copied();
        let piece = entry.and_then(|entry| held.pieces.get(entry.piece as usize));
        match (entry.map(|entry| entry.used), piece) {
            (Some(Use::Filling { key, length_bytes }), Some(piece)) => {
                Ok((key, length_bytes, piece.clone(), held.control.clone()))
            }
            (Some(_), _) => {
                Err(Error::new(Code::FailedPrecondition, format!("slab {slab} is not granted: acquire it first")))
            }
            (None, _) => Err(Error::new(Code::InvalidArgument, format!("this session has no slab {slab}"))),
        }
    }

    /// Frees a slab that is being filled with `key`, or was sealed with it.
    pub(super) fn release(&mut self, id: SessionId, slab: u32, key: SlabKey) {
        let Some(held) = self.sessions.get_mut(&id) else { return };
        let is_its = held.slabs.get(slab as usize).is_some_and(|slab| match slab.used {
            Use::Filling { key: other, .. } | Use::Sealed { key: other } => other == key,
            Use::Free => false,
        });
        if is_its {
            held.release(slab);
            held.changed.notify_waiters();
            self.keys.remove(&key);
        }
    }

    /// Frees what the session's client was filling, and says what that was.
    pub(super) fn discard_filling(&mut self, id: SessionId) -> Vec<SlabKey> {
        let Some(held) = self.sessions.get_mut(&id) else { return Vec::new() };
        let mut lost = Vec::new();
        for slab in 0..held.slabs.len() as u32 {
            if let Some(Use::Filling { key, .. }) = held.slabs.get(slab as usize).map(|slab| slab.used) {
                held.release(slab);
                lost.push(key);
            }
        }
        for key in &lost {
            self.keys.remove(key);
        }
        self.counts.lost += lost.len() as u64;
        lost
    }

    /// Takes a session out whose client is gone and that has nothing sealed. Its slabs count until they are freed.
    pub(super) fn take_ended(&mut self, id: SessionId) -> Option<Held> {
        let is_ended = |held: &Held| held.client == Client::Gone && !held.has_sealed() && !held.growth.is_running;
        let held = self.sessions.get(&id).is_some_and(is_ended).then(|| self.sessions.remove(&id)).flatten()?;
        self.leaving_slabs += held.slabs.len() as u64;
        Some(held)
    }

    /// Takes a session out that nobody will miss when this process goes.
    pub(super) fn take_idle(&mut self, id: SessionId) -> Option<Held> {
        let is_closing = self.is_closing;
        let is_idle =
            |held: &Held| is_closing && held.client != Client::Here && held.is_idle() && !held.growth.is_running;
        self.sessions.get(&id).is_some_and(is_idle).then(|| self.sessions.remove(&id)).flatten()
    }

    pub(super) fn stats(&self) -> SlabStats {
        let mut stats = self.counts;
        stats.sessions = self.sessions.len() as u64;
        stats.held_slabs = self.leaving_slabs;
        for held in self.sessions.values() {
            stats.waiting += held.queue.len() as u64;
            stats.held_slabs += held.slab_count();
            for slab in &held.slabs {
                *match slab.used {
                    Use::Free => &mut stats.free_slabs,
                    Use::Filling { .. } => &mut stats.filling_slabs,
                    Use::Sealed { .. } => &mut stats.sealed_slabs,
                } += 1;
            }
        }
        stats
    }
}
