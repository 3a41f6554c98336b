//! The models in memory, and who keeps them there.
//!
//! What is in memory is what the [holder](crate::holder) keeps: a model is published there before it is found here, and
//! clients' leases are counted there. The leases of this module are the loader's own: answers that are on their way, and
//! models that this process itself uses. A model stays until it is forgotten (unloaded, or evicted because another one
//! needs its memory) and its last lease of either kind has ended. Only models without leases are evicted, the least
//! recently used first; the holder has the last word.
//!
//! Nothing that may wait is done under the registry's lock: neither calls to the holder, which may take as long as freeing
//! memory takes (a look at what is known of it takes none), nor questions to a device.

mod room;
mod takeover;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use longshore_device::DeviceRegion;
use longshore_memory::OwnedSegment;
use longshore_types::{Code, Error, Result};
use parking_lot::{Condvar, Mutex};

use crate::grpc::convert;
use crate::holder::{HolderHandle, Part, Publication, Remove, Removed, Uses, record};
use crate::metrics::Metrics;
use crate::model::{Model, ModelId, ModelKey};
pub(crate) use room::Ending;
pub(crate) use takeover::{TakenOver, Unknown};

/// How long a model that a caller was told of stays, unless it is attached to and left before.
const PROMISE: Duration = Duration::from_secs(2);

/// All models of one loader.
pub(crate) struct Registry {
    inner: Mutex<Inner>,
    /// Signalled whenever memory may have become free.
    freed: Condvar,
    metrics: Arc<Metrics>,
    holder: HolderHandle,
}

#[derive(Default)]
struct Inner {
    models: HashMap<ModelId, Arc<Entry>>,
    by_key: HashMap<ModelKey, ModelId>,
    /// Unloaded, but held by leases: their memory is still taken.
    forgotten: Vec<Forgone>,
    /// What the holder keeps and this loader cannot use.
    unknown: Vec<Unknown>,
    /// Loads that gave up and whose memory is about to be free.
    ending: usize,
    /// Times that everything was lost with the holder.
    losses: u64,
    /// Models that were taken over from an earlier loader.
    adopted: u32,
}

/// A model that is forgotten here.
struct Forgone {
    entry: Weak<Entry>,
    /// As long as clients have it: what pays for its host memory.
    _kept: Option<Arc<Entry>>,
}

struct Entry {
    model: Model,
    leases: AtomicU32,
    times: Mutex<Times>,
}

struct Times {
    last_used: Instant,
    /// When a caller was last told that the model is here.
    promised: Option<Instant>,
}

/// A model that the holder has, and that is not found here yet.
pub(crate) struct Holding {
    losses: u64,
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
    pub(crate) fn new(metrics: Arc<Metrics>, holder: HolderHandle) -> Arc<Registry> {
        Arc::new(Registry { inner: Mutex::default(), freed: Condvar::new(), metrics, holder })
    }

    pub(crate) fn holder(&self) -> &HolderHandle {
        &self.holder
    }

    /// Gives a new model to the holder. Blocks.
    ///
    /// # Errors
    /// [`Code::Unavailable`] when there is no holder any more, [`Code::Exhausted`] for a description over the limit.
    pub(crate) fn hold(&self, model: &Model) -> Result<Holding> {
        let losses = self.inner.lock().losses;
        let publication = Publication {
            id: model.id.as_str().to_owned(),
            description: convert::description(model)?,
            record: record::encode(model)?,
            regions: model.regions.iter().map(|region| part_of(model, &**region)).collect::<Result<_>>()?,
        };
        self.holder.publish(publication)?;
        Ok(Holding { losses })
    }

    /// Takes back what [`Registry::hold`] did. Blocks.
    pub(crate) fn unhold(&self, id: &ModelId) {
        if let Err(error) = self.holder.remove(id.as_str(), Remove::Forget) {
            tracing::debug!(%error, model = %id, "the holder is gone before it was told to forget");
        }
    }

    /// Takes a new model in, leased.
    ///
    /// # Errors
    /// [`Code::Unavailable`] when the holder was lost meanwhile.
    pub(crate) fn publish(self: &Arc<Self>, model: Model, holding: Holding) -> Result<Lease> {
        let mut inner = self.inner.lock();
        if inner.losses != holding.losses {
            return Err(Error::new(Code::Unavailable, "the holder ended before the load did; load again"));
        }
        let entry = Arc::new(Entry::new(model, Instant::now()));
        inner.insert(entry.clone());
        Ok(self.lease(entry))
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
        let entry = matching.max_by_key(|entry| entry.times.lock().last_used)?.clone();
        Some(self.lease(entry))
    }

    /// Every model that is not forgotten, by URL.
    pub(crate) fn list(self: &Arc<Self>) -> Vec<Use> {
        let seen = self.holder.uses();
        let inner = self.inner.lock();
        let mut uses: Vec<Use> = inner.models.values().map(|entry| self.use_of(entry, &seen)).collect();
        drop(inner);
        uses.sort_by(|a, b| a.lease.model().key.url.cmp(&b.lease.model().key.url));
        uses
    }

    pub(crate) fn use_of_lease(self: &Arc<Self>, lease: &Lease) -> Use {
        let mut of = self.use_of(&lease.entry, &self.holder.uses());
        of.leases = of.leases.saturating_sub(1);
        of
    }

    fn use_of(self: &Arc<Self>, entry: &Arc<Entry>, seen: &Uses) -> Use {
        let leases = entry.leases(seen);
        let idle = if leases > 0 { Duration::ZERO } else { entry.last_used(seen).elapsed() };
        // Looking at a model is no use of it: the lease is taken without touching the time of last use.
        Use { lease: self.lease(entry.clone()), leases, idle }
    }

    /// Forgets the models that `which` picks. Memory that leases hold stays theirs. Blocks.
    ///
    /// # Errors
    /// [`Code::Unavailable`] when the holder cannot be asked; its models are gone then.
    pub(crate) fn forget(&self, which: impl Fn(&Model) -> bool) -> Result<Forgotten> {
        let mut inner = self.inner.lock();
        let ids: Vec<ModelId> =
            inner.models.iter().filter(|(_, entry)| which(&entry.model)).map(|(id, _)| id.clone()).collect();
        let entries: Vec<Arc<Entry>> = ids.iter().filter_map(|id| inner.remove(id)).collect();
        drop(inner);
        let mut done = Forgotten::default();
        let mut outcome = Ok(());
        for entry in entries {
            done.models += 1;
            let removed = match self.holder.remove(entry.model.id.as_str(), Remove::Forget) {
                Ok(removed) => removed,
                Err(error) => {
                    outcome = Err(error);
                    Removed::NotFound
                }
            };
            let is_leased = removed == Removed::Leased;
            if is_leased || entry.leases.load(Ordering::Acquire) > 0 {
                done.bytes_leased += entry.model.size_bytes();
                self.inner.lock().forgotten.push(Forgone::new(entry, is_leased));
            } else {
                done.bytes_freed += entry.model.size_bytes();
            }
        }
        self.settle();
        outcome.map(|()| done)
    }

    /// Lets go of forgotten models that the holder has freed. Gives whether there were any.
    pub(crate) fn settle(&self) -> bool {
        let mut inner = self.inner.lock();
        // Looked at under the lock: what was forgotten before is in this look.
        let seen = self.holder.uses();
        let is_kept = |forgone: &mut Forgone| {
            let is_held =
                forgone.entry.upgrade().is_some_and(|entry| seen.models.contains_key(entry.model.id.as_str()));
            (forgone._kept.is_none() && forgone.entry.strong_count() > 0) || is_held
        };
        let gone: Vec<Forgone> = inner.forgotten.extract_if(.., |forgone| !is_kept(forgone)).collect();
        inner.unknown.retain(|unknown| seen.models.contains_key(&unknown.id));
        drop(inner);
        let is_any = !gone.is_empty();
        // Unmapping takes a while: not under the lock.
        drop(gone);
        self.freed.notify_all();
        is_any
    }

    /// Brings the gauges up to date.
    pub(crate) fn observe(&self) {
        let seen = self.holder.uses();
        let inner = self.inner.lock();
        let leases: u32 = inner.models.values().map(|entry| entry.leases(&seen)).sum();
        self.metrics.models.set(inner.models.len() as i64);
        self.metrics.leases.set(i64::from(leases));
    }

    fn lease(self: &Arc<Self>, entry: Arc<Entry>) -> Lease {
        entry.leases.fetch_add(1, Ordering::AcqRel);
        Lease { entry, registry: self.clone() }
    }
}

/// What a holder is given for a region: descriptors of host memory; it has made everything else itself.
fn part_of(model: &Model, region: &dyn DeviceRegion) -> Result<Part> {
    if region.host_bytes().is_none() {
        return Ok(Part::Made(model.id.label()));
    }
    let segments = region.segments().into_iter().map(|segment| {
        let fd = segment.fd.try_clone_to_owned().map_err(|error| {
            let message = format!("cannot duplicate a descriptor of model memory: {error}; raise ulimit -n");
            Error::new(Code::Exhausted, message).with_source(error)
        })?;
        Ok(OwnedSegment { fd, len_bytes: segment.len_bytes })
    });
    segments.collect::<Result<_>>().map(Part::Host)
}

impl Inner {
    fn insert(&mut self, entry: Arc<Entry>) {
        self.by_key.insert(entry.model.key.clone(), entry.model.id.clone());
        self.models.insert(entry.model.id.clone(), entry);
    }

    fn remove(&mut self, id: &ModelId) -> Option<Arc<Entry>> {
        let entry = self.models.remove(id)?;
        // A newer model may have taken the key.
        if self.by_key.get(&entry.model.key) == Some(id) {
            self.by_key.remove(&entry.model.key);
        }
        Some(entry)
    }
}

impl Forgone {
    fn new(entry: Arc<Entry>, is_leased: bool) -> Forgone {
        Forgone { entry: Arc::downgrade(&entry), _kept: is_leased.then_some(entry) }
    }
}

impl Entry {
    fn new(model: Model, last_used: Instant) -> Entry {
        let times = Mutex::new(Times { last_used, promised: None });
        Entry { model, leases: AtomicU32::new(0), times }
    }

    /// Leases of this process and of clients.
    fn leases(&self, seen: &Uses) -> u32 {
        self.leases.load(Ordering::Acquire).saturating_add(seen.leases(self.model.id.as_str()))
    }

    fn last_used(&self, seen: &Uses) -> Instant {
        let here = self.times.lock().last_used;
        seen.models.get(self.model.id.as_str()).map_or(here, |of| of.last_used.max(here))
    }

    /// Whether a caller that was told of the model has not had the time to attach to it.
    fn is_promised(&self, seen: &Uses) -> bool {
        let Some(promised) = self.times.lock().promised else { return false };
        let was_attached = seen.models.get(self.model.id.as_str()).is_some_and(|of| of.last_used > promised);
        !was_attached && promised.elapsed() < PROMISE
    }
}

impl Lease {
    pub(crate) fn model(&self) -> &Model {
        &self.entry.model
    }

    /// Says that the model was really used: it will be evicted later than those that were not.
    pub(crate) fn touch(&self) {
        self.entry.times.lock().last_used = Instant::now();
    }

    /// Says that somebody is told of the model and will attach to it: for a short while it is evicted for nobody.
    pub(crate) fn promise(&self) {
        let now = Instant::now();
        *self.entry.times.lock() = Times { last_used: now, promised: Some(now) };
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
