//! Memory for a new model: what is free, else what unused models hold, else an error that says who holds it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use longshore_device::{Device, DeviceId, DeviceInfo, RegionBuilder};
use longshore_types::{Code, Error, Result, format_bytes, redact_url};
use tokio_util::sync::CancellationToken;

use super::{Entry, Inner, Registry};
use crate::holder::{Remove, Removed, Uses};

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
        let deadline = Instant::now() + ENDING_WAIT;
        loop {
            if token.is_cancelled() {
                return Err(Error::new(Code::Cancelled, "the load was given up while it waited for memory"));
            }
            let refusal = match device.reserve(label, size_bytes) {
                Err(error) if error.code() == Code::Exhausted => error,
                answer => return answer,
            };
            let seen = self.holder.look()?;
            if self.settle() {
                continue;
            }
            let info = device.info();
            let mut inner = self.inner.lock();
            let is_soon = match inner.make_room(&info, size_bytes, &seen) {
                Room::Evict(entry) => {
                    drop(inner);
                    self.evict(entry)?;
                    continue;
                }
                Room::Soon => true,
                Room::None => inner.ending > 0 && Instant::now() < deadline,
            };
            if !is_soon {
                return Err(explain(&inner, &info, size_bytes, &seen).with_source(refusal));
            }
            self.freed.wait_for(&mut inner, LOOK_AGAIN);
        }
    }

    /// The holder decides: a client may have attached since it was looked at. Then the model is put back.
    fn evict(&self, entry: Arc<Entry>) -> Result<()> {
        match self.holder.remove(entry.model.id.as_str(), Remove::IfUnleased)? {
            Removed::Freed | Removed::NotFound => {
                self.metrics.evictions.inc();
                let key = &entry.model.key;
                tracing::info!(model = %entry.model.id, url = redact_url(&key.url), "evicted to make room");
            }
            Removed::Leased => {
                let mut inner = self.inner.lock();
                // It may have been loaded again in this moment: the newer one is found by its key then.
                let newer = inner.by_key.get(&entry.model.key).cloned();
                let key = entry.model.key.clone();
                inner.insert(entry);
                if let Some(newer) = newer {
                    inner.by_key.insert(key, newer);
                }
            }
        }
        Ok(())
    }
}

/// How there can be room.
enum Room {
    /// By the end of this model, which is not found any more.
    Evict(Arc<Entry>),
    /// In a moment, when a model that somebody was promised is taken or not.
    Soon,
    /// Not by anything that can go.
    None,
}

impl Inner {
    fn make_room(&mut self, info: &DeviceInfo, size_bytes: u64, seen: &Uses) -> Room {
        let on_device = self.models.values().filter(|entry| entry.model.key.device == info.id);
        let unused: Vec<&Arc<Entry>> = on_device.filter(|entry| entry.leases(seen) == 0).collect();
        let (promised, idle): (Vec<_>, Vec<_>) = unused.into_iter().partition(|entry| entry.is_promised(seen));
        let bytes_of = |entries: &[&Arc<Entry>]| entries.iter().map(|entry| bytes_on(entry, info.id)).sum::<u64>();
        // Unless the model fits once everything unused is gone, evicting would only harm.
        let without_idle = info.free_bytes.saturating_add(bytes_of(&idle));
        let (is_promised, without_promised) = (!promised.is_empty(), without_idle.saturating_add(bytes_of(&promised)));
        let oldest = idle.iter().min_by_key(|entry| entry.last_used(seen)).map(|entry| entry.model.id.clone());
        if without_idle >= size_bytes
            && let Some(oldest) = oldest
            && let Some(entry) = self.remove(&oldest)
        {
            return Room::Evict(entry);
        }
        match without_promised >= size_bytes && is_promised {
            true => Room::Soon,
            false => Room::None,
        }
    }
}

/// Bytes of a model in the memory of a device; a model on a GPU may have some on the host, too.
fn bytes_on(entry: &Entry, device: DeviceId) -> u64 {
    let is_host = device == DeviceId::HOST;
    if !is_host && entry.model.key.device != device {
        return 0;
    }
    let regions = entry.model.regions.iter().filter(|region| region.host_bytes().is_some() == is_host);
    regions.map(|region| region.size_bytes()).sum()
}

fn explain(inner: &Inner, info: &DeviceInfo, size_bytes: u64, seen: &Uses) -> Error {
    let forgotten = inner.forgotten.iter().filter_map(|forgone| forgone.entry.upgrade());
    let mut holders: Vec<(u64, String)> = inner
        .models
        .values()
        .cloned()
        .chain(forgotten)
        .map(|entry| (bytes_on(&entry, info.id), describe(&entry, info.id, seen)))
        .chain(inner.unknown.iter().map(|unknown| unknown.describe_on(info, seen)))
        .filter(|(bytes, _)| *bytes > 0)
        .collect();
    holders.sort_by_key(|(bytes, _)| std::cmp::Reverse(*bytes));
    let held: u64 = holders.iter().map(|(bytes, _)| bytes).sum();
    let mut named: Vec<String> = holders.iter().take(NAMED_MAX).map(|(_, name)| name.clone()).collect();
    if holders.len() > NAMED_MAX {
        named.push(format!("{} more models", holders.len() - NAMED_MAX));
    }
    let others = info.used_bytes.saturating_sub(held);
    if others > 0 {
        named.push(format!("loads in flight and buffers ({})", format_bytes(others)));
    }
    let within_budget = info.capacity_bytes.saturating_sub(info.used_bytes);
    let foreign = within_budget.saturating_sub(info.free_bytes);
    if foreign > 0 {
        named.push(format!("other programs on this device ({})", format_bytes(foreign)));
    }
    let holders = if named.is_empty() { "nothing".to_owned() } else { named.join(", ") };
    let (need, have, free) =
        (format_bytes(size_bytes), format_bytes(info.capacity_bytes), format_bytes(info.free_bytes));
    Error::new(
        Code::Exhausted,
        format!(
            "no room for {need} on {}: {free} of {have} are free, the rest is held by {holders}; \
             end leases, unload models or raise the memory budget",
            info.id
        ),
    )
}

fn describe(entry: &Entry, device: DeviceId, seen: &Uses) -> String {
    let (url, size) = (redact_url(&entry.model.key.url), format_bytes(bytes_on(entry, device)));
    format!("{url} ({size}, {})", leases(entry.leases(seen)))
}

/// A number of leases, for people.
pub(super) fn leases(count: u32) -> String {
    format!("{count} {}", if count == 1 { "lease" } else { "leases" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_other_programs_take_of_a_card_is_said() {
        let info = DeviceInfo {
            id: DeviceId::cuda(0),
            uuid: "GPU-0".into(),
            name: "card".into(),
            capacity_bytes: 100_000_000,
            used_bytes: 30_000_000,
            free_bytes: 10_000_000,
        };
        let seen = crate::holder::HolderHandle::local().uses();
        let error = explain(&Inner::default(), &info, 20_000_000, &seen);
        assert_eq!(error.code(), Code::Exhausted);
        for part in [
            "10.0 MB of 100.0 MB are free",
            "in flight and buffers (30.0 MB)",
            "other programs on this device (60.0 MB)",
        ] {
            assert!(error.message().contains(part), "{part:?} is not in {error}");
        }
    }
}
