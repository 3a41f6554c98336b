//! Models that outlived the loader that loaded them, and the loss of all of them with their holder.

use std::collections::HashMap;
use std::sync::Arc;

use longshore_device::{Device, DeviceInfo, DeviceKind, DeviceRegion, Devices};
use longshore_types::{Code, Error, Result, format_bytes, redact_url};

use super::room::leases;
use super::{Entry, Forgone, Forgotten, Inner, Registry};
use crate::holder::record::{self, Record};
use crate::holder::{HOST, ModelUse, Remove, Removed, Summary, Uses};
use crate::loader::{HolderState, UnknownModel};
use crate::model::{Model, ModelId, ModelKey};

/// A model that the holder keeps and that this loader cannot use. It is left alone: clients may use it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Unknown {
    pub id: String,
    /// Why it cannot be used.
    pub reason: String,
    /// Bytes by device: `host`, or the UUID of a GPU.
    pub bytes: Vec<(String, u64)>,
}

/// What taking over did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct TakenOver {
    pub models: u32,
    pub bytes: u64,
    pub unknown: u32,
    /// Models that nobody uses and for which there is no room.
    pub dropped: u32,
}

impl Registry {
    /// Takes over what the holder keeps of an earlier loader. No byte of a model moves. Blocks.
    ///
    /// What does not fit in a budget that has become smaller is dropped when nobody is attached to it, and else left as
    /// it is, as is what cannot be read or is on a device that is not here.
    ///
    /// # Errors
    /// [`Code::Unavailable`] when the holder cannot be asked.
    pub(crate) fn take_over(&self, devices: &Devices) -> Result<TakenOver> {
        // Asked once: a card may take its time to answer.
        let devices: Vec<Found> = devices.all().iter().map(|device| (device.info(), device.clone())).collect();
        let mut held = self.holder.list()?;
        let seen = self.holder.uses();
        let use_of = |summary: &Summary| seen.models.get(&summary.id).copied();
        // When not everything fits: what is used comes first.
        held.sort_by_key(|summary| std::cmp::Reverse(use_of(summary).map(|of| (of.leases > 0, of.last_used))));
        let mut done = TakenOver::default();
        for summary in held {
            let Some(of) = use_of(&summary) else { continue };
            match self.take_over_one(&devices, &summary, of) {
                Ok(bytes) => {
                    done.models += 1;
                    done.bytes += bytes;
                }
                Err(error) if error.code() == Code::Unavailable => return Err(error),
                Err(error) if error.code() == Code::Exhausted && self.drop_unused(&summary, of)? => {
                    tracing::warn!(model = summary.id, %error, "a model that nobody uses is dropped");
                    done.dropped += 1;
                }
                Err(error) => {
                    let Summary { id, bytes } = summary;
                    tracing::warn!(model = id, %error, leases = of.leases, "a model is kept that cannot be taken over");
                    self.inner.lock().unknown.push(Unknown { id, reason: error.message().to_owned(), bytes });
                    done.unknown += 1;
                }
            }
        }
        self.inner.lock().adopted += done.models;
        Ok(done)
    }

    /// Whether it is gone.
    fn drop_unused(&self, summary: &Summary, of: ModelUse) -> Result<bool> {
        if of.leases > 0 {
            return Ok(false);
        }
        Ok(self.holder.remove(&summary.id, Remove::IfUnleased)? != Removed::Leased)
    }

    fn take_over_one(&self, devices: &[Found], summary: &Summary, of: ModelUse) -> Result<u64> {
        let held = self.holder.adopt(&summary.id)?;
        let Record { id, selection, parallel, device_uuid, is_on_gpu, manifest, layout, region_bytes, report } =
            record::decode(&held.record)?;
        if id.as_str() != summary.id || held.regions.len() != region_bytes.len() {
            return Err(Error::new(Code::Corrupt, "its record is that of another model"));
        }
        let (DeviceInfo { id: device, uuid: device_uuid, .. }, _) =
            device_of(devices, if is_on_gpu { &device_uuid } else { HOST })?.clone();
        let mut regions: Vec<Arc<dyn DeviceRegion>> = Vec::with_capacity(held.regions.len());
        for ((region_device, segments), size_bytes) in held.regions.into_iter().zip(region_bytes) {
            let (_, owner) = device_of(devices, &region_device)?;
            regions.push(owner.adopt(&id.label(), segments, size_bytes)?);
        }
        let key =
            ModelKey { url: manifest.url.clone(), revision: manifest.revision.clone(), selection, device, parallel };
        let entry =
            Arc::new(Entry::new(Model { id, key, device_uuid, manifest, layout, regions, report }, of.last_used));
        let bytes = entry.model.size_bytes();
        let mut inner = self.inner.lock();
        match of.is_forgotten {
            true => inner.forgotten.push(Forgone::new(entry, true)),
            false => inner.insert(entry),
        }
        Ok(bytes)
    }

    /// The holder is gone, and with it every model. Gives how many there were.
    pub(crate) fn lose(&self) -> usize {
        let mut inner = self.inner.lock();
        inner.losses += 1;
        inner.adopted = 0;
        let Inner { models, by_key, forgotten, unknown, .. } = &mut *inner;
        let lost: HashMap<ModelId, Arc<Entry>> = std::mem::take(models);
        by_key.clear();
        unknown.clear();
        let forgotten = std::mem::take(forgotten);
        drop(inner);
        for entry in lost.values() {
            let key = &entry.model.key;
            tracing::error!(model = %entry.model.id, url = redact_url(&key.url), "lost with its holder");
        }
        let count = lost.len();
        drop((lost, forgotten));
        self.freed.notify_all();
        count
    }

    /// Who keeps the models, and what of it this loader has.
    pub(crate) fn holder_state(&self) -> HolderState {
        let seen = self.holder.uses();
        let inner = self.inner.lock();
        let unknown = |unknown: &Unknown| UnknownModel {
            id: unknown.id.clone(),
            reason: unknown.reason.clone(),
            size_bytes: unknown.bytes.iter().map(|(_, bytes)| bytes).sum(),
            leases: seen.leases(&unknown.id),
        };
        HolderState {
            facts: self.holder.facts(),
            models_adopted: inner.adopted,
            unknown: inner.unknown.iter().map(unknown).collect(),
        }
    }

    /// Forgets a model that could not be taken over, as [`Registry::forget`] does others. Blocks.
    ///
    /// # Errors
    /// As there.
    pub(crate) fn forget_unknown(&self, id: &ModelId) -> Result<Forgotten> {
        let inner = self.inner.lock();
        let known = inner.unknown.iter().find(|unknown| unknown.id == id.as_str()).cloned();
        drop(inner);
        let Some(unknown) = known else { return Ok(Forgotten::default()) };
        let bytes = unknown.bytes.iter().map(|(_, bytes)| bytes).sum();
        let done = match self.holder.remove(&unknown.id, Remove::Forget)? {
            Removed::Freed => Forgotten { models: 1, bytes_freed: bytes, bytes_leased: 0 },
            Removed::Leased => Forgotten { models: 1, bytes_freed: 0, bytes_leased: bytes },
            Removed::NotFound => Forgotten::default(),
        };
        self.settle();
        Ok(done)
    }
}

/// A device and what it was when it was asked.
type Found = (DeviceInfo, Arc<dyn Device>);

fn device_of<'a>(devices: &'a [Found], name: &str) -> Result<&'a Found> {
    let is_it = |info: &DeviceInfo| match name {
        HOST => info.id.kind() == DeviceKind::Host,
        uuid => info.uuid.eq_ignore_ascii_case(uuid),
    };
    let found = devices.iter().find(|(info, _)| is_it(info));
    found.ok_or_else(|| Error::new(Code::Unsupported, format!("its device {name} is not used by this loader")))
}

impl Unknown {
    /// Bytes on a device, and what to call it.
    pub(super) fn describe_on(&self, info: &DeviceInfo, seen: &Uses) -> (u64, String) {
        let is_here = |device: &str| match info.id.kind() {
            DeviceKind::Host => device == HOST,
            DeviceKind::Cuda => device == info.uuid,
        };
        let bytes = self.bytes.iter().filter(|(device, _)| is_here(device)).map(|(_, bytes)| bytes).sum();
        let (id, leases) = (&self.id, leases(seen.leases(&self.id)));
        (bytes, format!("model {id}, which this loader cannot use ({}, {leases})", format_bytes(bytes)))
    }
}

#[cfg(test)]
mod tests;
