//! The models in memory, and who keeps them there.
//!
//! A model stays until it is forgotten (unloaded, or evicted because another one needs its memory) and its last lease
//! has ended. Only models without leases are evicted, the least recently used first. Leases are taken under the
//! registry's lock, or from a lease that is already held, so a model cannot be evicted between being found and leased.

mod room;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::metrics::Metrics;
use crate::model::{Model, ModelId, ModelKey};
pub(crate) use room::Ending;

/// All models of one loader.
pub(crate) struct Registry {
    inner: Mutex<Inner>,
    /// Signalled whenever memory may have become free.
    freed: Condvar,
    metrics: Arc<Metrics>,
}

#[derive(Default)]
struct Inner {
    models: HashMap<ModelId, Arc<Entry>>,
    by_key: HashMap<ModelKey, ModelId>,
    /// Unloaded, but held by leases: their memory is still taken.
    forgotten: Vec<Weak<Entry>>,
    /// Loads that gave up and whose memory is about to be free.
    ending: usize,
}

struct Entry {
    model: Model,
    leases: AtomicU32,
    last_used: Mutex<Instant>,
}

/// Keeps a model in memory as long as it exists. A clone is another lease.
pub(crate) struct Lease {
    entry: Arc<Entry>,
    registry: Arc<Registry>,
}

/// A model and its use, for listings.
pub(crate) struct Use {
    pub lease: Lease,
    /// Without the one above.
    pub leases: u32,
    pub idle: Duration,
}

/// What forgetting models did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Forgotten {
    pub models: u32,
    pub bytes_freed: u64,
    pub bytes_leased: u64,
}

impl Registry {
    pub(crate) fn new(metrics: Arc<Metrics>) -> Arc<Registry> {
        Arc::new(Registry { inner: Mutex::default(), freed: Condvar::new(), metrics })
    }

    /// Takes a new model in, leased.
    pub(crate) fn publish(self: &Arc<Self>, model: Model) -> Lease {
        let (id, key) = (model.id.clone(), model.key.clone());
        let entry = Arc::new(Entry { model, leases: AtomicU32::new(0), last_used: Mutex::new(Instant::now()) });
        let mut inner = self.inner.lock();
        inner.models.insert(id.clone(), entry.clone());
        inner.by_key.insert(key, id);
        self.lease(entry)
    }

    pub(crate) fn find(self: &Arc<Self>, key: &ModelKey) -> Option<Lease> {
        let inner = self.inner.lock();
        let entry = inner.models.get(inner.by_key.get(key)?)?.clone();
        Some(self.lease(entry))
    }

    pub(crate) fn get(self: &Arc<Self>, id: &ModelId) -> Option<Lease> {
        let inner = self.inner.lock();
        let entry = inner.models.get(id)?.clone();
        Some(self.lease(entry))
    }

    /// The newest model that is as `wanted` but for its revision: for when nobody can be asked which one is current.
    pub(crate) fn newest(self: &Arc<Self>, wanted: &ModelKey) -> Option<Lease> {
        let inner = self.inner.lock();
        let matching = inner.models.values().filter(|entry| entry.model.key.differs_only_in_revision(wanted));
        let entry = matching.max_by_key(|entry| *entry.last_used.lock())?.clone();
        Some(self.lease(entry))
    }

    /// Every model that is not forgotten, by URL.
    pub(crate) fn list(self: &Arc<Self>) -> Vec<Use> {
        let inner = self.inner.lock();
        let mut uses: Vec<Use> = inner.models.values().map(|entry| self.use_of(entry)).collect();
        drop(inner);
        uses.sort_by(|a, b| a.lease.model().key.url.cmp(&b.lease.model().key.url));
        uses
    }

    pub(crate) fn use_of_lease(self: &Arc<Self>, lease: &Lease) -> Use {
        let mut of = self.use_of(&lease.entry);
        of.leases = of.leases.saturating_sub(1);
        of
    }

    fn use_of(self: &Arc<Self>, entry: &Arc<Entry>) -> Use {
        let leases = entry.leases.load(Ordering::Acquire);
        let idle = if leases > 0 { Duration::ZERO } else { entry.last_used.lock().elapsed() };
        // Looking at a model is no use of it: the lease is taken without touching the time of last use.
        Use { lease: self.lease(entry.clone()), leases, idle }
    }

    /// Forgets the models that `which` picks. Memory that leases hold stays theirs.
    pub(crate) fn forget(&self, which: impl Fn(&Model) -> bool) -> Forgotten {
        let mut done = Forgotten::default();
        let mut dropped = Vec::new();
        let mut inner = self.inner.lock();
        let ids: Vec<ModelId> =
            inner.models.iter().filter(|(_, entry)| which(&entry.model)).map(|(id, _)| id.clone()).collect();
        for id in ids {
            let Some(entry) = inner.remove(&id) else { continue };
            done.models += 1;
            if entry.leases.load(Ordering::Acquire) > 0 {
                done.bytes_leased += entry.model.size_bytes();
                inner.forgotten.push(Arc::downgrade(&entry));
            } else {
                done.bytes_freed += entry.model.size_bytes();
            }
            dropped.push(entry);
        }
        drop(inner);
        // Unmapping takes a while: not under the lock.
        drop(dropped);
        self.freed.notify_all();
        done
    }

    /// Brings the gauges up to date.
    pub(crate) fn observe(&self) {
        let inner = self.inner.lock();
        let leases: u32 = inner.models.values().map(|entry| entry.leases.load(Ordering::Relaxed)).sum();
        self.metrics.models.set(inner.models.len() as i64);
        self.metrics.leases.set(i64::from(leases));
    }

    fn lease(self: &Arc<Self>, entry: Arc<Entry>) -> Lease {
        entry.leases.fetch_add(1, Ordering::AcqRel);
        Lease { entry, registry: self.clone() }
    }
}

impl Inner {
    fn remove(&mut self, id: &ModelId) -> Option<Arc<Entry>> {
        let entry = self.models.remove(id)?;
        // A newer model may have taken the key.
        if self.by_key.get(&entry.model.key) == Some(id) {
            self.by_key.remove(&entry.model.key);
        }
        Some(entry)
    }
}

impl Lease {
    pub(crate) fn model(&self) -> &Model {
        &self.entry.model
    }

    /// Says that the model was really used: it will be evicted later than those that were not.
    pub(crate) fn touch(&self) {
        *self.entry.last_used.lock() = Instant::now();
    }
}

impl Clone for Lease {
    fn clone(&self) -> Self {
        // One is held, so the model cannot be evicted meanwhile.
        self.registry.lease(self.entry.clone())
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if self.entry.leases.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.registry.freed.notify_all();
        }
    }
}

#[cfg(test)]
mod tests;
