//! What a holder keeps: memory that is being filled, and published models with their leases.
//!
//! One mutex, never held while memory is made or freed. Memory that is being filled belongs to the session of a loader
//! and goes with it; a published model stays until it is removed and its last lease has ended.

mod checks;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use longshore_memory::OwnedSegment;
use longshore_types::{Code, Error, Result};
use parking_lot::Mutex;
use tokio::sync::watch;

use super::memory::{Account, HOST, Held, Maker};
use super::uses::{ModelUse, Uses};
use super::{Adopted, Summary};
use checks::{no_memory, not_here};

/// Models that are kept at once; what they are called and said to be is bounded with them.
pub(crate) const MODELS_MAX: usize = 16_384;
/// Descriptions and records, in bytes, over all models.
const TEXT_BYTES_MAX: u64 = 4 << 30;
/// Descriptors of one model.
pub(crate) const SEGMENTS_MAX: usize = 2048;

/// The memory of loaded models, whoever loaded them.
pub(crate) struct Holder {
    make: Maker,
    account: Arc<Account>,
    inner: Mutex<Inner>,
    /// Grows with every change.
    changes: watch::Sender<u64>,
    attached: watch::Sender<usize>,
    started: Instant,
}

#[derive(Default)]
struct Inner {
    loading: HashMap<String, Held>,
    models: HashMap<String, Entry>,
    text_bytes: u64,
    session: Option<Session>,
    sessions: u64,
}

struct Session {
    number: u64,
    pid: u32,
}

struct Entry {
    published: Arc<Published>,
    leases: u32,
    last_used: Instant,
    is_forgotten: bool,
}

/// A published model. What it is, only its loader knows.
pub(crate) struct Published {
    pub id: String,
    /// The answer to who attaches.
    pub description: Vec<u8>,
    /// What a loader needs to take it over.
    pub record: Vec<u8>,
    /// Its memory, region by region.
    pub regions: Vec<Held>,
}

/// A model to be published.
pub(crate) struct Publication {
    pub id: String,
    pub description: Vec<u8>,
    pub record: Vec<u8>,
    pub regions: Vec<Part>,
}

/// One region of it.
pub(crate) enum Part {
    /// Memory that was made here under this label.
    Made(String),
    /// Host memory that comes along.
    Host(Vec<OwnedSegment>),
}

/// When a model is removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Remove {
    /// Only when nobody is attached.
    IfUnleased,
    /// At once for new clients; its memory with the last lease.
    Forget,
}

/// What removing did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Removed {
    /// The memory is free.
    Freed,
    /// Clients are attached.
    Leased,
    /// There is no such model.
    NotFound,
}

impl Holder {
    pub(crate) fn new(make: Maker) -> Arc<Holder> {
        Arc::new(Holder {
            make,
            account: Arc::default(),
            inner: Mutex::default(),
            changes: watch::Sender::new(0),
            attached: watch::Sender::new(0),
            started: Instant::now(),
        })
    }

    pub(crate) fn uptime(&self) -> Duration {
        self.started.elapsed()
    }

    /// Changes whenever anything does.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Attach connections that are open.
    pub(crate) fn attached(&self) -> &watch::Sender<usize> {
        &self.attached
    }

    pub(crate) fn used_bytes(&self, device_uuid: &str) -> u64 {
        self.account.used_bytes(device_uuid)
    }

    pub(crate) fn uses(&self) -> Uses {
        // Read before everything else: what changes meanwhile is in a later look, too.
        let version = *self.changes.borrow();
        let inner = self.inner.lock();
        let model = |(id, entry): (&String, &Entry)| {
            let Entry { leases, last_used, is_forgotten, .. } = *entry;
            (id.clone(), ModelUse { leases, last_used, is_forgotten })
        };
        Uses {
            version,
            models: inner.models.iter().map(model).collect(),
            devices: self.account.all(),
            attached: *self.attached.borrow(),
        }
    }

    fn changed(&self) {
        self.changes.send_modify(|version| *version += 1);
    }

    /// Begins the session of a loader.
    ///
    /// # Errors
    /// [`Code::FailedPrecondition`] naming the process of the one there is.
    pub(crate) fn open_session(&self, pid: u32) -> Result<u64> {
        let mut inner = self.inner.lock();
        if let Some(session) = &inner.session {
            let message = format!("the loader with process id {} uses this holder; stop it first", session.pid);
            return Err(Error::new(Code::FailedPrecondition, message));
        }
        inner.sessions += 1;
        let number = inner.sessions;
        inner.session = Some(Session { number, pid });
        drop(inner);
        self.changed();
        Ok(number)
    }

    /// Ends it, and frees what it did not publish.
    pub(crate) fn close_session(&self, number: u64) {
        let mut inner = self.inner.lock();
        if !inner.is_session(number) {
            return;
        }
        let unpublished = std::mem::take(&mut inner.loading);
        drop(inner);
        let (count, bytes) = (unpublished.len(), unpublished.values().map(Held::bytes).sum::<u64>());
        drop(unpublished);
        // Only now is there room for another one: it finds the memory free.
        self.inner.lock().session = None;
        if count > 0 {
            tracing::info!(count, bytes, "memory of loads that did not end is freed");
        }
        self.changed();
    }

    /// Makes memory for a session's load.
    ///
    /// # Errors
    /// [`Code::Internal`] when there is memory of that label, [`Code::Cancelled`] when the session is over; otherwise
    /// those of the device.
    pub(crate) fn create(
        &self,
        session: u64,
        label: &str,
        device_uuid: &str,
        size_bytes: u64,
    ) -> Result<Vec<OwnedSegment>> {
        self.inner.lock().check_room_for(session, label)?;
        let charge = self.account.charge(device_uuid, size_bytes);
        let held = Held::new((self.make)(device_uuid, size_bytes)?, charge);
        let segments = held.duplicate()?;
        let mut inner = self.inner.lock();
        // Checked again: the session may have ended meanwhile. What is refused is freed outside of the lock.
        let checked = inner.check_room_for(session, label);
        let refused = match checked {
            Ok(()) => inner.loading.insert(label.to_owned(), held),
            Err(_) => Some(held),
        };
        drop(inner);
        drop(refused);
        self.changed();
        checked.map(|()| segments)
    }

    /// Frees memory that was not published.
    pub(crate) fn release(&self, session: u64, label: &str) {
        let mut inner = self.inner.lock();
        let held = if inner.is_session(session) { inner.loading.remove(label) } else { None };
        drop(inner);
        if held.is_some() {
            drop(held);
            self.changed();
        }
    }

    /// Takes a model in, for clients to attach to.
    ///
    /// # Errors
    /// [`Code::NotFound`] for memory that was not made here, [`Code::Exhausted`] for more models, descriptors or text
    /// than a holder keeps; [`Code::Cancelled`] when the session is over. Nothing is kept then but what was made.
    pub(crate) fn publish(&self, session: u64, publication: Publication) -> Result<()> {
        let Publication { id, description, record, regions } = publication;
        let text_bytes = (description.len() + record.len()) as u64;
        let mut inner = self.inner.lock();
        inner.check_publication(session, &id, text_bytes, &regions)?;
        let mut held = Vec::with_capacity(regions.len());
        for part in regions {
            held.push(match part {
                // It is there: that was checked, under this lock.
                Part::Made(label) => match inner.loading.remove(&label) {
                    Some(made) => made,
                    None => return Err(no_memory(&label)),
                },
                Part::Host(segments) => Held::new(Box::new(segments), self.account.charge(HOST, 0)),
            });
        }
        let published = Arc::new(Published { id: id.clone(), description, record, regions: held });
        inner.text_bytes += text_bytes;
        let entry = Entry { published, leases: 0, last_used: Instant::now(), is_forgotten: false };
        inner.models.insert(id, entry);
        drop(inner);
        self.changed();
        Ok(())
    }

    /// Takes a model away from clients to come, and its memory when nobody has it.
    pub(crate) fn remove(&self, id: &str, when: Remove) -> Removed {
        let mut inner = self.inner.lock();
        let Some(entry) = inner.models.get_mut(id) else { return Removed::NotFound };
        if entry.leases > 0 {
            entry.is_forgotten |= when == Remove::Forget;
            drop(inner);
            self.changed();
            return Removed::Leased;
        }
        let gone = inner.take(id);
        drop(inner);
        drop(gone);
        self.changed();
        Removed::Freed
    }

    /// A model for its loader, forgotten or not.
    ///
    /// # Errors
    /// [`Code::NotFound`], or [`Code::Exhausted`] when the process may have no more descriptors.
    pub(crate) fn adopt(&self, id: &str) -> Result<Adopted> {
        let inner = self.inner.lock();
        let published = inner.models.get(id).map(|entry| entry.published.clone()).ok_or_else(|| not_here(id))?;
        drop(inner);
        let region = |held: &Held| Ok((held.device_uuid().to_owned(), held.duplicate()?));
        let regions = published.regions.iter().map(region).collect::<Result<_>>()?;
        Ok(Adopted { record: published.record.clone(), regions })
    }

    /// Every model, for a loader that starts.
    pub(crate) fn list(&self) -> Vec<Summary> {
        let inner = self.inner.lock();
        let bytes = |held: &Held| (held.device_uuid().to_owned(), held.bytes());
        let summary = |(id, entry): (&String, &Entry)| Summary {
            id: id.clone(),
            bytes: entry.published.regions.iter().map(bytes).collect(),
        };
        inner.models.iter().map(summary).collect()
    }

    /// Leases a model to a client.
    ///
    /// # Errors
    /// [`Code::NotFound`] for one that is not here, or forgotten.
    pub(crate) fn lease(self: &Arc<Self>, id: &str) -> Result<HeldLease> {
        let mut inner = self.inner.lock();
        let entry = inner.models.get_mut(id).filter(|entry| !entry.is_forgotten).ok_or_else(|| not_here(id))?;
        let others = entry.leases;
        let idle = if others > 0 { Duration::ZERO } else { entry.last_used.elapsed() };
        entry.leases += 1;
        entry.last_used = Instant::now();
        let published = entry.published.clone();
        drop(inner);
        self.changed();
        let end = LeaseEnd { holder: self.clone(), id: id.to_owned() };
        Ok(HeldLease { published, others, idle, _end: end })
    }

    fn end_lease(&self, id: &str) {
        let mut inner = self.inner.lock();
        let mut gone = None;
        if let Some(entry) = inner.models.get_mut(id) {
            entry.leases = entry.leases.saturating_sub(1);
            entry.last_used = Instant::now();
            if entry.leases == 0 && entry.is_forgotten {
                gone = inner.take(id);
            }
        }
        drop(inner);
        drop(gone);
        self.changed();
    }
}

/// A client's hold on a model: nobody frees it while this lives.
pub(crate) struct HeldLease {
    published: Arc<Published>,
    /// Leases that there were before.
    pub others: u32,
    /// How long the model was not used before; zero while it was leased.
    pub idle: Duration,
    /// Dropped after the model, so that the memory of a forgotten one is free when others hear of it.
    _end: LeaseEnd,
}

struct LeaseEnd {
    holder: Arc<Holder>,
    id: String,
}

impl HeldLease {
    pub(crate) fn published(&self) -> &Published {
        &self.published
    }
}

impl Drop for LeaseEnd {
    fn drop(&mut self) {
        self.holder.end_lease(&self.id);
    }
}

#[cfg(test)]
mod tests;
