//! The engine: all saves of this node, from the first slab to the commit.
//!
//! [`Engine::start`] takes charge of a rank; sealed slabs come from [`Slabs`] and go to the flush threads; the write-back of each
//! attempt is a task of its own. Whatever ends, ends at a record: the next [`Engine::open`] goes on behind it.
//!
//! `start.rs`: taking charge, giving up. `stage.rs`: slabs, sessions, time limits. `recover.rs`: opening, and copies of peers. `run.rs`: the write-back and
//! what follows it. `local.rs`: checkpoints whose bytes are here. `copy.rs`: files and folders of this node.

mod attempts;
mod copy;
mod local;
mod parts;
mod recover;
mod run;
mod stage;
mod start;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use longshore_memory::Arena;
use longshore_origin::Origins;
use longshore_types::Result;
use longshore_types::checkpoint::AttemptId;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::task::TaskTracker;

use self::attempts::Attempts;
pub use self::local::LocalCheckpoint;
pub use self::parts::Parts;
pub use self::recover::{Recovery, RecoveryProgress};
use crate::flush::Flusher;
use crate::metrics::Metrics;
use crate::options::CheckpointOptions;
use crate::plan::{PlanRequest, Planner, SavePlan};
use crate::sink::ChunkSink;
use crate::slabs::{SessionId, Slabs};
use crate::status::SaveStatus;

/// All saves of this node. Lives in a tokio runtime.
pub struct Engine {
    parts: Arc<Parts>,
    planner: Planner,
    attempts: Arc<Attempts>,
    slabs: Slabs,
    /// Of processes that were killed, until their bytes are flushed.
    adopted_slabs: Vec<Slabs>,
    /// What could not be read at the start.
    set_aside: Vec<String>,
    flusher: Flusher,
    /// Ranks that each slab session has worked for.
    sessions: Mutex<HashMap<SessionId, HashSet<(AttemptId, u32)>>>,
    /// One save is taken charge of at a time: what makes it new is decided once.
    starting: tokio::sync::Mutex<()>,
    /// One save is recovered at a time.
    recovering: tokio::sync::Mutex<()>,
    tasks: TaskTracker,
}

impl Engine {
    /// Locks the folder, replays the journals, finds sealed slabs again, and goes on with everything that had not ended.
    /// Slabs and buffers are reserved from `memory`.
    ///
    /// # Errors
    /// `FailedPrecondition` naming the process that has the folder; what the disk reports.
    pub async fn open(
        options: CheckpointOptions,
        origins: Origins,
        memory: Arena,
        cache: Arc<dyn ChunkSink>,
    ) -> Result<Arc<Engine>> {
        Engine::open_with(options, origins, memory, cache, Metrics::unregistered()?).await
    }

    /// [`Engine::open`], with metrics that are shown somewhere.
    ///
    /// # Errors
    /// As [`Engine::open`].
    pub async fn open_with(
        options: CheckpointOptions,
        origins: Origins,
        memory: Arena,
        cache: Arc<dyn ChunkSink>,
        metrics: Metrics,
    ) -> Result<Arc<Engine>> {
        recover::open(options, origins, memory, cache, metrics).await
    }

    /// Lays a checkpoint out; waits for calls with the other ranks' items.
    ///
    /// # Errors
    /// As [`Planner::plan`].
    pub async fn plan(&self, request: PlanRequest) -> Result<Arc<SavePlan>> {
        self.planner.plan(request).await
    }

    /// The status of a save, at each change.
    ///
    /// # Errors
    /// `NotFound` for an attempt that this node does not know (any more).
    pub fn watch(&self, attempt: &AttemptId) -> Result<watch::Receiver<Arc<SaveStatus>>> {
        self.attempts.get(attempt).map(|attempt| attempt.watch())
    }

    /// Running saves, and the last ones that ended; oldest first.
    pub fn saves(&self) -> Vec<Arc<SaveStatus>> {
        self.attempts.all().iter().map(|attempt| attempt.status()).collect()
    }

    /// The slabs that training processes copy into.
    pub fn slabs(&self) -> &Slabs {
        &self.slabs
    }

    /// What is shared with the write-back.
    pub fn parts(&self) -> &Arc<Parts> {
        &self.parts
    }

    /// What is not as it could be, in words: attempts that were set aside among it.
    pub fn notes(&self) -> Vec<String> {
        self.slabs.notes().into_iter().chain(self.set_aside.iter().cloned()).collect()
    }

    /// Saves that go on, and slab sessions that are open: a process that serves only its user stays as long.
    pub fn busy(&self) -> usize {
        let sessions = usize::try_from(self.slabs.stats().sessions).unwrap_or(usize::MAX);
        let busy = self.attempts.running().saturating_add(sessions);
        self.parts.metrics.busy.set(i64::try_from(busy).unwrap_or(i64::MAX));
        busy
    }

    /// Stops at the next record of each save, within `patience`; the next open goes on. Sealed slabs stay sealed.
    pub async fn close(&self, patience: Duration) {
        self.parts.token.cancel();
        self.slabs.close();
        self.adopted_slabs.iter().for_each(Slabs::close);
        self.tasks.close();
        let rest = async {
            self.tasks.wait().await;
            self.flusher.close().await;
            let mut slabs = self.adopted_slabs.clone();
            slabs.push(self.slabs.clone());
            // A piece that is being made is waited for.
            let released = tokio::task::spawn_blocking(move || slabs.iter().for_each(Slabs::release)).await;
            if let Err(error) = released {
                tracing::warn!(%error, "slab folders stay locked until this process ends");
            }
        };
        if tokio::time::timeout(patience, rest).await.is_err() {
            tracing::warn!(?patience, "checkpoint work did not come to rest in time; it goes on from its last record");
            // Something may still write: the folder is free when this process ends.
            return;
        }
        if self.attempts.is_empty() {
            self.parts.spool.tidy();
        }
        self.parts.spool.release();
    }
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").field("folder", &self.parts.spool.folder()).finish_non_exhaustive()
    }
}
