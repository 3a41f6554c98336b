//! Saving at one moment, for the status page.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use longshore_checkpoint::SaveStatus;
use longshore_types::Error;

use super::Checkpoints;

/// See the module.
#[derive(Debug, Clone, Default)]
pub struct CheckpointsState {
    /// Where training processes get slabs.
    pub slabs_socket: Option<PathBuf>,
    /// Where saves lie until they are in the origin.
    pub folder: Option<PathBuf>,
    /// Whether the engine is open.
    pub is_open: bool,
    /// Why it could not be opened, the last time.
    pub failure: Option<Error>,
    /// Budget of the slabs.
    pub slab_capacity_bytes: u64,
    /// Shared memory that sessions hold.
    pub slab_used_bytes: u64,
    /// Budget of the folder.
    pub disk_capacity_bytes: u64,
    /// Of it, what saves and checkpoints that are kept take.
    pub disk_used_bytes: u64,
    /// Training processes that are connected.
    pub sessions: u32,
    /// Running saves, and the last ones that ended.
    pub saves: Vec<Arc<SaveStatus>>,
}

impl Checkpoints {
    /// As it is now. Opens nothing.
    pub fn state(&self) -> CheckpointsState {
        let closed = CheckpointsState {
            slabs_socket: self.slabs_socket().map(Path::to_owned),
            folder: self.folder().ok(),
            failure: self.failure.lock().clone(),
            slab_capacity_bytes: self.options.memory_budget_bytes(),
            ..CheckpointsState::default()
        };
        let Some(engine) = self.opened() else { return closed };
        let slabs = engine.slabs().stats();
        CheckpointsState {
            is_open: true,
            slab_capacity_bytes: slabs.capacity_bytes,
            slab_used_bytes: slabs.held_bytes,
            disk_capacity_bytes: u64::try_from(self.metrics.disk_budget_bytes.get()).unwrap_or(0),
            disk_used_bytes: u64::try_from(self.metrics.disk_used_bytes.get()).unwrap_or(0),
            sessions: u32::try_from(slabs.sessions).unwrap_or(u32::MAX),
            saves: engine.saves(),
            ..closed
        }
    }
}
