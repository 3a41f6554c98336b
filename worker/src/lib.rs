//! The cache worker: holds chunks in memory and on disk, fills them from other workers or the origin, and serves them.
//!
//! Start reading at [`Worker`]. A request for a chunk goes `worker.rs` -> `fill.rs` (a miss is filled once) ->
//! `store.rs` (the tiers); a request for metadata goes `worker.rs` -> `meta.rs`. [`serve`] is the daemon around it.

mod fill;
mod grpc;
mod meta;
pub mod metrics;
mod options;
mod peers;
mod serve;
mod store;
mod warm;
mod worker;

pub use fill::HeadFills;
pub use meta::{Answer, Ask};
pub use options::{SyncPolicy, WorkerOptions};
pub use serve::serve;
pub use store::Freed;
pub use store::hold::HeldAttempt;
/// For its benchmark alone.
#[doc(hidden)]
pub use store::index::Index as ChunkIndex;
pub use warm::WarmEvent;
pub use worker::{TierUsage, VERSION, Worker, WorkerStatus};
