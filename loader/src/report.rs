//! What happened in a load: step times, bytes by tier, everything that was not the first choice, and a trace.
//!
//! [`Recorder`] is written by many threads while the load runs; [`LoadReport`] is the immutable result. Nothing here
//! grows without a bound: fallbacks are kept by kind, events up to a limit behind which they are counted.

mod recorder;

use std::fmt;

use serde::Serialize;

pub use recorder::{Recorder, StepTimer};

/// Most trace events that a load keeps.
pub const EVENTS_MAX: usize = 100_000;

/// The steps of a load, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// URL to manifest.
    Resolve,
    /// Manifest to layout and reads, and the memory for them.
    Plan,
    /// Bytes from sources into the landing memory.
    Fetch,
    /// Block checksums, as the bytes land. Runs inside [`Step::Fetch`].
    Verify,
    /// From page-locked memory to a GPU, until the last copy is done. Nothing for the host, where bytes land in place.
    Upload,
    /// Sealing the memory and registering the model.
    Publish,
}

impl Step {
    /// All, in order.
    pub const ALL: [Step; 6] = [Step::Resolve, Step::Plan, Step::Fetch, Step::Verify, Step::Upload, Step::Publish];

    /// Lower-case name.
    pub fn as_str(self) -> &'static str {
        match self {
            Step::Resolve => "resolve",
            Step::Plan => "plan",
            Step::Fetch => "fetch",
            Step::Verify => "verify",
            Step::Upload => "upload",
            Step::Publish => "publish",
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Where bytes of a load came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SourceTier {
    /// Memory of another device.
    Device,
    /// Page-locked memory of this loader: what another load, or an earlier one, brought there.
    Pinned,
    /// Memory of a worker.
    Memory,
    /// Disk of a worker.
    Disk,
    /// Another worker, through the one that answered.
    Peer,
    /// The origin, through a worker, directly, or a local file.
    Origin,
}

impl SourceTier {
    /// All, nearest first.
    pub const ALL: [SourceTier; 6] = [
        SourceTier::Device,
        SourceTier::Pinned,
        SourceTier::Memory,
        SourceTier::Disk,
        SourceTier::Peer,
        SourceTier::Origin,
    ];

    /// Lower-case name, as in metrics and JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            SourceTier::Device => "device",
            SourceTier::Pinned => "pinned",
            SourceTier::Memory => "memory",
            SourceTier::Disk => "disk",
            SourceTier::Peer => "peer",
            SourceTier::Origin => "origin",
        }
    }
}

impl From<longshore_wire::Tier> for SourceTier {
    fn from(tier: longshore_wire::Tier) -> Self {
        match tier {
            longshore_wire::Tier::Memory => SourceTier::Memory,
            longshore_wire::Tier::Disk => SourceTier::Disk,
            longshore_wire::Tier::Peer => SourceTier::Peer,
            longshore_wire::Tier::Origin => SourceTier::Origin,
        }
    }
}

/// A way of doing something that was not the first choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FallbackKind {
    /// A worker did not answer, or refused the connection.
    WorkerUnreachable,
    /// A worker answered, but no byte came for too long.
    WorkerStalled,
    /// A worker answered with an error.
    WorkerFailed,
    /// A worker's copy did not match its checksum, twice.
    WorkerCorrupt,
    /// A worker was much slower than the others.
    WorkerSlow,
    /// A worker was not asked for what it owns, because it failed a moment ago.
    WorkerAvoided,
    /// A chunk was read from the origin although there are workers.
    OriginDirect,
    /// A file that this machine should have was read through workers instead.
    LocalFileUnreadable,
    /// The owner of a URL did not answer for its metadata.
    MetadataOwner,
    /// No worker answered for metadata: the origin was listed directly.
    MetadataDirect,
    /// Neither workers nor the origin could be reached: the model in memory was served without asking.
    NotRevalidated,
    /// What copies to a device broke down, and the load was repeated.
    DeviceRestarted,
    /// Local files were to be read past the page cache, and their file system cannot do that.
    DirectReadDeclined,
    /// GPUs were to read local files by themselves, and did not, or not all of them.
    StorageNotDirect,
    /// This node's own copy of a checkpoint could not be used, or not all of it.
    NodeCopy,
    /// What was kept in page-locked memory was not what it must be, and was fetched again.
    PinnedCorrupt,
}

impl FallbackKind {
    /// All of them; the labels of the metric.
    pub const ALL: [FallbackKind; 16] = [
        FallbackKind::WorkerUnreachable,
        FallbackKind::WorkerStalled,
        FallbackKind::WorkerFailed,
        FallbackKind::WorkerCorrupt,
        FallbackKind::WorkerSlow,
        FallbackKind::WorkerAvoided,
        FallbackKind::OriginDirect,
        FallbackKind::LocalFileUnreadable,
        FallbackKind::MetadataOwner,
        FallbackKind::MetadataDirect,
        FallbackKind::NotRevalidated,
        FallbackKind::DeviceRestarted,
        FallbackKind::DirectReadDeclined,
        FallbackKind::StorageNotDirect,
        FallbackKind::NodeCopy,
        FallbackKind::PinnedCorrupt,
    ];

    /// The stable name, for instance `worker_unreachable`.
    pub fn as_str(self) -> &'static str {
        match self {
            FallbackKind::WorkerUnreachable => "worker_unreachable",
            FallbackKind::WorkerStalled => "worker_stalled",
            FallbackKind::WorkerFailed => "worker_failed",
            FallbackKind::WorkerCorrupt => "worker_corrupt",
            FallbackKind::WorkerSlow => "worker_slow",
            FallbackKind::WorkerAvoided => "worker_avoided",
            FallbackKind::OriginDirect => "origin_direct",
            FallbackKind::LocalFileUnreadable => "local_file_unreadable",
            FallbackKind::MetadataOwner => "metadata_owner",
            FallbackKind::MetadataDirect => "metadata_direct",
            FallbackKind::NotRevalidated => "not_revalidated",
            FallbackKind::DeviceRestarted => "device_restarted",
            FallbackKind::DirectReadDeclined => "direct_read_declined",
            FallbackKind::StorageNotDirect => "storage_not_direct",
            FallbackKind::NodeCopy => "node_copy",
            FallbackKind::PinnedCorrupt => "pinned_corrupt",
        }
    }
}

/// Fallbacks of one kind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Fallback {
    /// Which.
    pub kind: FallbackKind,
    /// How often.
    pub count: u64,
    /// The last one, in words.
    pub last_detail: String,
}

/// When a step ran, in seconds since the start of the load.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct StepTime {
    /// Which.
    pub step: Step,
    /// First start.
    pub start_seconds: f64,
    /// Last end.
    pub end_seconds: f64,
    /// Summed over all threads that worked on it.
    pub busy_seconds: f64,
}

/// One timed event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TraceEvent {
    /// What was done, for instance `fetch`.
    pub name: &'static str,
    /// The step it is part of.
    pub category: Step,
    /// Number of the thread; 0 is the load itself.
    pub thread: u32,
    /// Microseconds since the start of the load.
    pub start_us: u64,
    /// Length in microseconds.
    pub duration_us: u64,
    /// Bytes moved.
    pub bytes: u64,
    /// Where from, for instance a worker's address.
    pub source: String,
}

/// The report of one load.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct LoadReport {
    /// Wall time of the whole load.
    pub seconds: f64,
    /// Bytes read from all tiers.
    pub bytes: u64,
    /// The same, by tier; tiers that gave nothing are absent.
    pub bytes_by_tier: Vec<(SourceTier, u64)>,
    /// Everything that was not the first choice.
    pub fallbacks: Vec<Fallback>,
    /// Reads that were repeated, at the same source or another.
    pub retries: u64,
    /// Blocks or copies whose checksum did not match.
    pub checksum_mismatches: u64,
    /// The waterfall.
    pub steps: Vec<StepTime>,
    /// Timed events; empty unless asked for.
    pub events: Vec<TraceEvent>,
    /// Events beyond [`EVENTS_MAX`].
    pub events_dropped: u64,
}

impl LoadReport {
    /// Bytes that came from one tier.
    pub fn bytes_from(&self, tier: SourceTier) -> u64 {
        self.bytes_by_tier.iter().find(|(t, _)| *t == tier).map_or(0, |(_, bytes)| *bytes)
    }

    /// How often a fallback of one kind happened.
    pub fn fallback_count(&self, kind: FallbackKind) -> u64 {
        self.fallbacks.iter().find(|fallback| fallback.kind == kind).map_or(0, |fallback| fallback.count)
    }
}
