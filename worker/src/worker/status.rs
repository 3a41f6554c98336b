//! What a worker says of itself: status for people, metrics for machines.

use std::path::PathBuf;
use std::time::Duration;

use longshore_cluster::{Member, MemberId};
use longshore_memory::shared_memory;
use longshore_types::Result;

use super::notes::Facts;
use super::{VERSION, Worker};
use crate::metrics;
use crate::store::hold::HeldAttempt;

/// Capacity and use of one tier.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TierUsage {
    /// Its budget.
    pub capacity_bytes: u64,
    /// What it holds.
    pub used_bytes: u64,
    /// Chunks that it holds.
    pub chunks: u64,
}

impl From<(u64, u64, u64)> for TierUsage {
    fn from((capacity_bytes, used_bytes, chunks): (u64, u64, u64)) -> Self {
        TierUsage { capacity_bytes, used_bytes, chunks }
    }
}

/// What a worker says of itself.
#[derive(Debug, Clone)]
pub struct WorkerStatus {
    /// Kept in the cache folder.
    pub id: MemberId,
    /// Of the binary.
    pub version: String,
    /// Where its data plane is, or empty in process.
    pub data_address: String,
    /// `None` when the cache is in memory only.
    pub cache_dir: Option<PathBuf>,
    /// The memory tier.
    pub memory: TierUsage,
    /// The disk tier.
    pub disk: Option<TierUsage>,
    /// What is held for checkpoints; part of the disk tier's budget.
    pub held: Option<TierUsage>,
    /// Of each of those, oldest first.
    pub holds: Vec<HeldAttempt>,
    /// Why the disk tier takes no writes.
    pub disk_error: Option<String>,
    /// Fills that are running.
    pub fills_in_flight: u64,
    /// Bytes of the ranges that were answered since the start.
    pub served_bytes: u64,
    /// Bytes of objects received from origins since the start.
    pub origin_bytes: u64,
    /// Copies with a wrong checksum, here or at others, since the start.
    pub checksum_mismatches: u64,
    /// What was not done in the first way, why, and what can be done about it. Empty where all is well.
    pub notes: Vec<String>,
    /// The members of the view, and whether each answered when it was last asked.
    pub members: Vec<(Member, bool)>,
    /// Since the start.
    pub uptime: Duration,
}

impl Worker {
    /// Identity, capacity and use.
    pub fn status(&self) -> WorkerStatus {
        let store = &self.chunks.store;
        let health = &self.peers.health;
        let members = self.peers.members().into_iter().map(|member| {
            let answers = !health.is_troubled(member.id());
            (member, answers)
        });
        WorkerStatus {
            id: self.peers.me(),
            version: VERSION.to_owned(),
            data_address: self.identity.get().map(|identity| identity.data.clone()).unwrap_or_default(),
            cache_dir: self.cache_folder.clone(),
            memory: store.memory.usage().into(),
            disk: store.disk.as_ref().map(|disk| disk.usage().into()),
            held: store.holds.as_ref().map(|holds| holds.usage().into()),
            holds: store.holds.as_ref().map(|holds| holds.list()).unwrap_or_default(),
            disk_error: store.disk.as_ref().and_then(|disk| disk.failure()),
            fills_in_flight: self.chunks.fills_in_flight() as u64,
            served_bytes: metrics::sum(&self.metrics.served_bytes),
            origin_bytes: self.chunks.origins.stats().bytes,
            checksum_mismatches: metrics::sum(&self.metrics.checksum_mismatches),
            notes: self.notes(),
            members: members.collect(),
            uptime: self.started.elapsed(),
        }
    }

    fn notes(&self) -> Vec<String> {
        let lent = self.options.unix_socket.as_ref().map(|_| shared_memory());
        Facts { lent, cache_folder: self.cache_folder.as_deref(), metrics: &self.metrics }.notes()
    }

    /// The metrics, brought up to date.
    ///
    /// # Errors
    /// [`longshore_types::Code::Internal`] when they cannot be written.
    pub fn render_metrics(&self) -> Result<Vec<u8>> {
        self.update_metrics();
        self.registry.render()
    }

    /// Copies what others count into our metrics.
    pub(crate) fn update_metrics(&self) {
        let store = &self.chunks.store;
        let held = store.holds.as_ref().map(|holds| holds.usage());
        let disk = store.disk.as_ref().map(|disk| disk.usage());
        let tiers = [("memory", Some(store.memory.usage())), ("disk", disk), ("held", held)];
        for (name, usage) in tiers {
            let usage = TierUsage::from(usage.unwrap_or_default());
            self.metrics.capacity_bytes.with_label_values(&[name]).set(usage.capacity_bytes as i64);
            self.metrics.used_bytes.with_label_values(&[name]).set(usage.used_bytes as i64);
            self.metrics.chunks.with_label_values(&[name]).set(usage.chunks as i64);
        }
        self.metrics.arena_used_bytes.set(store.memory.arena().used_bytes() as i64);
        self.metrics.holds.set(store.holds.as_ref().map_or(0, |holds| holds.list().len()) as i64);
        self.metrics.members.set(self.peers.members().len() as i64);
        self.metrics.copy_origin(&self.chunks.origins.stats());
    }
}
