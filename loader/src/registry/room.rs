//! Memory for a new model: what is free, else what unused models hold, else an error that says who holds it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use longshore_device::{Device, DeviceId, RegionBuilder};
use longshore_types::{Code, Error, Result, format_bytes, redact_url};
use tokio_util::sync::CancellationToken;

use super::{Entry, Inner, Registry};

/// How long to wait for loads that gave up to hand back their memory: one may still wait for a silent worker.
const ENDING_WAIT: Duration = Duration::from_secs(30);
/// How often to look again meanwhile: memory is free a moment after it is signalled.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// Models that an error names.
const NAMED_MAX: usize = 8;

/// A load that gave up and still holds memory, until this is dropped.
pub(crate) struct Ending(Arc<Registry>);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.inner.lock().ending -= 1;
        self.0.freed.notify_all();
    }
}

impl Registry {
    /// Announces that memory will be free soon, so that nobody is refused for lack of it meanwhile.
    pub(crate) fn ending(self: &Arc<Self>) -> Ending {
        self.inner.lock().ending += 1;
        Ending(self.clone())
    }

    /// Sets memory aside, evicting models without leases as far as needed. Blocks.
    ///
    /// # Errors
    /// [`Code::Exhausted`] naming what holds the memory; then nothing was evicted that could not have helped.
    pub(crate) fn reserve(
        &self,
        device: &dyn Device,
        label: &str,
        size_bytes: u64,
        token: &CancellationToken,
    ) -> Result<Box<dyn RegionBuilder>> {
        let id = device.info().id;
        let deadline = Instant::now() + ENDING_WAIT;
        loop {
            if token.is_cancelled() {
                return Err(Error::new(Code::Cancelled, "the load was given up while it waited for memory"));
            }
            let refusal = match device.reserve(label, size_bytes) {
                Err(error) if error.code() == Code::Exhausted => error,
                answer => return answer,
            };
            let mut inner = self.inner.lock();
            if eviction_helps(&inner, device, size_bytes)
                && let Some(entry) = inner.take_least_recently_used(id)
            {
                drop(inner);
                self.metrics.evictions.inc();
                let key = &entry.model.key;
                tracing::info!(model = %entry.model.id, url = redact_url(&key.url), "evicted to make room");
                continue;
            }
            if inner.ending == 0 || Instant::now() >= deadline {
                return Err(explain(&mut inner, device, size_bytes).with_source(refusal));
            }
            self.freed.wait_for(&mut inner, LOOK_AGAIN);
        }
    }
}

impl Inner {
    fn unused(&self, device: DeviceId) -> impl Iterator<Item = &Arc<Entry>> {
        let unused =
            move |entry: &&Arc<Entry>| entry.model.key.device == device && entry.leases.load(Ordering::Acquire) == 0;
        self.models.values().filter(unused)
    }

    fn take_least_recently_used(&mut self, device: DeviceId) -> Option<Arc<Entry>> {
        let oldest = self.unused(device).min_by_key(|entry| *entry.last_used.lock())?.model.id.clone();
        self.remove(&oldest)
    }
}

/// Whether the model fits once everything unused is gone. Otherwise evicting would only harm.
fn eviction_helps(inner: &Inner, device: &dyn Device, size_bytes: u64) -> bool {
    let info = device.info();
    let unused: u64 = inner.unused(info.id).map(|entry| entry.model.size_bytes()).sum();
    info.used_bytes.saturating_sub(unused).saturating_add(size_bytes) <= info.capacity_bytes
}

fn explain(inner: &mut Inner, device: &dyn Device, size_bytes: u64) -> Error {
    let info = device.info();
    inner.forgotten.retain(|entry| entry.strong_count() > 0);
    let forgotten: Vec<Arc<Entry>> = inner.forgotten.iter().filter_map(std::sync::Weak::upgrade).collect();
    let mut holders: Vec<&Arc<Entry>> = inner.models.values().chain(&forgotten).collect();
    holders.retain(|entry| entry.model.key.device == info.id);
    holders.sort_by_key(|entry| std::cmp::Reverse(entry.model.size_bytes()));
    let held: u64 = holders.iter().map(|entry| entry.model.size_bytes()).sum();
    let mut named: Vec<String> = holders.iter().take(NAMED_MAX).map(|entry| describe(entry)).collect();
    if holders.len() > NAMED_MAX {
        named.push(format!("{} more models", holders.len() - NAMED_MAX));
    }
    let others = info.used_bytes.saturating_sub(held);
    if others > 0 {
        named.push(format!("loads in flight and buffers ({})", format_bytes(others)));
    }
    let holders = if named.is_empty() { "nothing".to_owned() } else { named.join(", ") };
    let (need, have, free) = (
        format_bytes(size_bytes),
        format_bytes(info.capacity_bytes),
        format_bytes(info.capacity_bytes.saturating_sub(info.used_bytes)),
    );
    Error::new(
        Code::Exhausted,
        format!(
            "no room for {need} on {}: {free} of {have} are free, the rest is held by {holders}; \
             end leases, unload models or raise the memory budget",
            info.id
        ),
    )
}

fn describe(entry: &Entry) -> String {
    let leases = entry.leases.load(Ordering::Acquire);
    let plural = if leases == 1 { "lease" } else { "leases" };
    let (url, size) = (redact_url(&entry.model.key.url), format_bytes(entry.model.size_bytes()));
    format!("{url} ({size}, {leases} {plural})")
}
