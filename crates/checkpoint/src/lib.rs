//! Saving checkpoints: plan, slabs, journal, local durability, write-back, commit, retention.
//!
//! A training process copies its bytes into slabs (shared memory, [`slabs`]); the [`Engine`] checksums them, writes them to
//! the spool folder and says what is durable; the write-back carries them to the origin and commits there.
//!
//! Invariants: nothing is acknowledged before the record that says so is on the disk; data are synced before the record that
//! speaks of them; nothing that is not in the origin is ever evicted; every wait has a bound, a name in the status, or both.
//!
//! Start reading at [`Engine`], then [`Attempt`] (the state of one save on this node) and [`Record`] (its journal).

mod attempt;
mod catalog;
mod commit;
mod engine;
pub mod failpoint;
mod flush;
mod folder;
mod held;
mod journal;
mod metrics;
mod options;
mod plan;
mod retention;
mod sink;
mod slabs;
mod spool;
mod status;
mod upload;
mod warm;
mod writeback;

pub use attempt::{
    Attempt, AttemptState, ChunkPlace, DeltaBase, DeltaChoice, FileState, FileTotals, FlushedSlab, RankState, Record,
    StoredHow, UploadState,
};
pub use catalog::*;
pub use engine::{Engine, LocalCheckpoint, Parts, Recovery, RecoveryProgress};
pub use held::HELD_BYTES_MAX;
pub use metrics::Metrics;
pub use options::CheckpointOptions;
pub use plan::*;
pub use sink::{ChunkSink, HeldRecord, HeldRecords, NoSink, SinkHow};
pub use slabs::*;
pub use status::{RankStatus, SaveState, SaveStatus};

/// Bytes of a slab: four chunks. The last slab of a file may be shorter.
pub const SLAB_BYTES: u64 = 4 * longshore_types::CHUNK_BYTES;

/// Slabs of a file of `size_bytes`; an empty file has none.
pub fn slab_count(size_bytes: u64) -> u32 {
    u32::try_from(size_bytes.div_ceil(SLAB_BYTES)).unwrap_or(u32::MAX)
}
