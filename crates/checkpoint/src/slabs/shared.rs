//! What all parts of the slabs share, and how sessions end.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use longshore_memory::Arena;
use longshore_memory::slabs::SlabFolder;
use longshore_types::{Code, Error};
use parking_lot::{Condvar, Mutex};
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use super::budget::Budget;
use super::key::{SessionId, SlabKey};
use super::table::{Client, Held, Tables};
use super::{SlabEvent, SlabPlans, SlabStats};

/// See the module's comment.
pub(super) struct Shared {
    pub(super) folder: SlabFolder,
    pub(super) memory: Arena,
    pub(super) budget: Budget,
    pub(super) slab_bytes: u64,
    pub(super) plans: Arc<dyn SlabPlans>,
    pub(super) notes: Vec<String>,
    pub(super) tables: Mutex<Tables>,
    /// A session does not grow any more.
    pub(super) grown: Condvar,
    pub(super) events: mpsc::Sender<SlabEvent>,
    /// Where pieces are made and freed.
    pub(super) runtime: Handle,
    /// Looked at without the lock by those who make pieces.
    pub(super) is_closing: AtomicBool,
}

impl Shared {
    pub(super) fn stats(&self) -> SlabStats {
        let tables = self.tables.lock();
        let mut stats = tables.stats();
        drop(tables);
        stats.held_bytes = stats.held_slabs.saturating_mul(self.slab_bytes);
        stats.capacity_bytes = self.budget.capacity.saturating_mul(self.slab_bytes);
        stats
    }

    /// Slabs by which a session may grow now.
    pub(super) fn room(&self, tables: &Tables, id: SessionId) -> u64 {
        let Some(held) = tables.sessions.get(&id) else { return 0 };
        let mut leaving = tables.leaving_slabs;
        let mut others = Vec::with_capacity(tables.sessions.len());
        for (_, other) in tables.sessions.iter().filter(|(other, _)| **other != id) {
            match other.client {
                // It will not ask for more.
                Client::Gone => leaving += other.slab_count(),
                Client::Here | Client::Away => others.push(other.slab_count()),
            }
        }
        self.budget.room(held.slab_count(), &others, held.clients, leaving).min(held.records_left())
    }

    pub(super) fn wake_all(&self) {
        for held in self.tables.lock().sessions.values() {
            held.changed.notify_waiters();
        }
    }

    /// A [`super::SealedSlab`] is done with.
    pub(super) fn release_sealed(self: &Arc<Self>, id: SessionId, slab: u32, key: SlabKey) {
        let mut tables = self.tables.lock();
        if tables.is_closing {
            return;
        }
        tables.release(id, slab, key);
        drop(tables);
        self.settle(id);
    }

    /// Removes a session that has nothing to wait for any more.
    pub(super) fn settle(self: &Arc<Self>, id: SessionId) {
        let mut tables = self.tables.lock();
        let (ended, idle) = (tables.take_ended(id), tables.take_idle(id));
        drop(tables);
        if let Some(held) = ended {
            self.remove(id, held);
        }
        if let Some(held) = idle {
            self.remove_folder(&held);
        }
    }

    /// The connection is gone: what the client did not seal is lost, what it did is flushed. It may come back.
    pub(super) fn disconnect(self: &Arc<Self>, id: SessionId) {
        let mut tables = self.tables.lock();
        if tables.is_closing {
            drop(tables);
            return self.leave(id);
        }
        let lost = tables.discard_filling(id);
        if let Some(held) = tables.sessions.get_mut(&id) {
            held.client = Client::Away;
            if let Some(farewell) = held.farewell.take() {
                farewell.send(SlabEvent::SessionClosed { session: id, lost });
            }
        }
        drop(tables);
        self.wake_all();
    }

    /// The client does not come back, unless it has: `connections` is their count when it left.
    pub(super) fn end(self: &Arc<Self>, id: SessionId, connections: u64) {
        let mut tables = self.tables.lock();
        if tables.is_closing {
            return;
        }
        let Some(held) = tables.sessions.get_mut(&id) else { return };
        if held.client != Client::Away || held.connections != connections {
            return;
        }
        held.client = Client::Gone;
        held.is_closed_to_grants = true;
        if let Some(farewell) = held.farewell.take() {
            // One that an earlier process left.
            farewell.send(SlabEvent::SessionClosed { session: id, lost: Vec::new() });
        }
        drop(tables);
        self.settle(id);
        self.wake_all();
    }

    /// This process goes: the client may go on with the next one. A session with nothing in it is removed; its client keeps
    /// what it has mapped until it lets go.
    pub(super) fn leave(self: &Arc<Self>, id: SessionId) {
        if let Some(held) = self.tables.lock().sessions.get_mut(&id) {
            held.client = Client::Away;
            held.is_closed_to_grants = true;
            held.changed.notify_waiters();
        }
        self.settle(id);
    }

    pub(super) fn close(self: &Arc<Self>) {
        self.is_closing.store(true, Ordering::Release);
        let mut tables = self.tables.lock();
        tables.is_closing = true;
        let absent: Vec<SessionId> =
            tables.sessions.iter().filter(|(_, held)| held.client != Client::Here).map(|(id, _)| *id).collect();
        drop(tables);
        self.wake_all();
        absent.into_iter().for_each(|id| self.leave(id));
    }

    /// Waits for those who make pieces, then lets the next process have the folder.
    pub(super) fn release(&self) {
        let mut tables = self.tables.lock();
        while tables.sessions.values().any(|held| held.growth.is_running) {
            self.grown.wait(&mut tables);
        }
        drop(tables);
        if let Err(error) = self.folder.unlock() {
            tracing::warn!(%error, "another loader cannot take the slab folder before this process ends");
        }
    }

    pub(super) fn is_closing(&self) -> bool {
        self.is_closing.load(Ordering::Acquire)
    }

    /// Frees the memory of a session that has ended, then lets others have it.
    fn remove(self: &Arc<Self>, id: SessionId, held: Held) {
        let shared = self.clone();
        // Freeing gigabytes takes a while. A runtime that is going drops the closure: then the files stay for a later process.
        self.runtime.spawn_blocking(move || {
            let slabs = held.slabs.len() as u64;
            // Whether the client of an earlier process lives is not known here: what it has mapped is left to it.
            let ours = if held.connections > 0 { held.pieces.as_slice() } else { &[] };
            for piece in ours {
                if let Err(error) = piece.free() {
                    tracing::warn!(session = %id, %error, "memory of a session that has ended stays until its client lets go");
                }
            }
            shared.remove_folder(&held);
            // With the pieces go their reservations.
            drop(held);
            let mut tables = shared.tables.lock();
            tables.leaving_slabs = tables.leaving_slabs.saturating_sub(slabs);
            drop(tables);
            shared.wake_all();
        });
    }

    fn remove_folder(&self, held: &Held) {
        if let Err(error) = self.folder.remove_session(&held.name) {
            tracing::warn!(%error, "a session's folder stays until the next start");
        }
    }
}

/// The answer to those who come too late.
pub(super) fn closing() -> Error {
    Error::new(Code::Unavailable, "the loader is shutting down; connect again and go on with the session")
}
