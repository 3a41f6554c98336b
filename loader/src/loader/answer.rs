//! What the loader answers.

use std::ops::Deref;
use std::time::Duration;

use longshore_device::DeviceKind;

use crate::checkpoint::CheckpointsState;
use crate::cluster::MemberState;
use crate::devices::DeviceStatus;
use crate::holder::HolderFacts;
use crate::model::Model;
use crate::pinned::PinnedUse;
use crate::registry::{Forgotten, Lease, Use};
use crate::report::{Fallback, LoadReport};

/// A loaded model, leased: its memory stays as long as this value does. Reads as the [`Model`].
pub struct LoadedModel {
    lease: Lease,
    reattached: bool,
    fallbacks: Vec<Fallback>,
}

impl LoadedModel {
    pub(crate) fn loaded(lease: Lease) -> Self {
        LoadedModel { lease, reattached: false, fallbacks: Vec::new() }
    }

    pub(crate) fn reattached(lease: Lease, fallbacks: Vec<Fallback>) -> Self {
        LoadedModel { lease, reattached: true, fallbacks }
    }

    pub(crate) fn lease(&self) -> &Lease {
        &self.lease
    }

    /// The model.
    pub fn model(&self) -> &Model {
        self.lease.model()
    }

    /// Whether it was in memory already, so that nothing moved.
    pub fn is_reattached(&self) -> bool {
        self.reattached
    }

    /// How the model came here, and what went wrong when it was asked for again.
    pub fn report(&self) -> LoadReport {
        let mut report = self.model().report.clone();
        report.fallbacks.extend(self.fallbacks.iter().cloned());
        report
    }
}

impl Deref for LoadedModel {
    type Target = Model;

    fn deref(&self) -> &Model {
        self.model()
    }
}

impl std::fmt::Debug for LoadedModel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LoadedModel").field("model", self.model()).field("reattached", &self.reattached).finish()
    }
}

/// A model in memory and its use. Reads as the [`Model`]; keeps it in memory.
pub struct ModelState {
    lease: Lease,
    /// Leases of others.
    pub leases: u32,
    /// Time since its last use; zero while it is leased.
    pub idle: Duration,
}

impl ModelState {
    pub(crate) fn new(of: Use) -> Self {
        ModelState { lease: of.lease, leases: of.leases, idle: of.idle }
    }
}

impl Deref for ModelState {
    type Target = Model;

    fn deref(&self) -> &Model {
        self.lease.model()
    }
}

/// What unloading did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unloaded {
    /// Models that are forgotten now.
    pub models: u32,
    /// Memory that is free now, slots of page-locked memory among it.
    pub bytes_freed: u64,
    /// Memory that leases still hold.
    pub bytes_leased: u64,
}

impl From<Forgotten> for Unloaded {
    fn from(done: Forgotten) -> Self {
        Unloaded { models: done.models, bytes_freed: done.bytes_freed, bytes_leased: done.bytes_leased }
    }
}

/// Who keeps the models, at one moment.
#[derive(Debug, Clone)]
pub struct HolderState {
    /// What it is.
    pub facts: HolderFacts,
    /// Models that were taken over from an earlier loader.
    pub models_adopted: u32,
    /// Models that could not be.
    pub unknown: Vec<UnknownModel>,
}

/// A model that is held and that this loader cannot use. It can be unloaded by its id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnknownModel {
    /// Its id.
    pub id: String,
    /// Why it cannot be used.
    pub reason: String,
    /// Bytes of memory.
    pub size_bytes: u64,
    /// Clients that are attached.
    pub leases: u32,
}

/// A loader at one moment.
pub struct LoaderStatus {
    /// Devices and how full they are.
    pub devices: Vec<DeviceStatus>,
    /// Page-locked memory; `None` without a GPU.
    pub pinned: Option<PinnedUse>,
    /// Models in memory.
    pub models: Vec<ModelState>,
    /// Workers.
    pub members: Vec<MemberState>,
    /// Who keeps the models.
    pub holder: HolderState,
    /// What is saved on this node.
    pub checkpoints: CheckpointsState,
    /// Loads that run or wait.
    pub loads_in_flight: usize,
    /// Time since the loader was opened.
    pub uptime: Duration,
}

impl LoaderStatus {
    /// Capacity and use of the host's arena, in bytes.
    pub fn arena_bytes(&self) -> (u64, u64) {
        let host = self.devices.iter().find(|device| device.info.id.kind() == DeviceKind::Host);
        host.map_or((0, 0), |host| (host.info.capacity_bytes, host.info.used_bytes))
    }
}
