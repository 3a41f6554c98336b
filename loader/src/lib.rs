//! The node loader: plans loads, fetches and verifies chunks, owns the memory that models live in, and hands it to
//! processes on the node.
//!
//! Start reading at [`Loader`] (what can be asked), then `load.rs` (one load from URL to published model), [`plan`] (what
//! goes where), `fetch.rs` (how chunks arrive) and `registry.rs` (who keeps which memory alive).

pub mod checkpoint;
pub mod cluster;
pub mod devices;
pub mod metrics;
pub mod options;
pub mod parallel;
pub mod plan;
pub mod report;

mod fetch;
mod flight;
mod grpc;
mod holder;
mod load;
mod loader;
mod model;
mod pinned;
mod registry;
mod serve;
mod sockets;

pub use cluster::{Cluster, Described, MemberState, RemoteCluster, RemoteOptions, Source, Sources, WireProbe};
pub use devices::{DeviceStatus, NodeDevices};
pub use holder::{HolderFacts, HolderHandle, HolderOptions, serve_holder};
pub use load::{LoadProgress, ProgressSender};
pub use loader::{HolderState, LoadRequest, LoadedModel, Loader, LoaderStatus, ModelState, UnknownModel, Unloaded};
pub use model::{Model, ModelId, ModelKey};
pub use options::{DirectIo, Gpus, Listen, LoaderOptions, Share, default_socket_folder};
pub use parallel::{FusedPart, Parallel, ParallelRule, Rule};
pub use pinned::PinnedUse;
pub use report::{Fallback, FallbackKind, LoadReport, SourceTier, Step, StepTime, TraceEvent};
pub use serve::{Listeners, serve, serve_with};

/// The version of this build.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
