//! One attempt to save a step, as far as this node has part in it: its plan, its journal, what the records add up to, and the
//! status that is watched.
//!
//! Everything that changes the [`AttemptState`] is a [`Record`], which is synced first. The folder is
//! `attempts/<attempt>/{journal, objects/<k>, parent.json, commit.json}`.

mod delta;
mod durable;
mod objects;
mod open;
mod record;
mod show;
mod staging;
mod state;
mod sums;
mod totals;
mod uploaded;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use longshore_types::checkpoint::{AttemptId, object_url, step_folder};
use longshore_types::{Code, Error, Result};
use parking_lot::{Mutex, RwLock, RwLockReadGuard};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub(crate) use self::delta::keep_parent;
pub(crate) use self::durable::record_durable;
pub(crate) use self::objects::Room;
pub(crate) use self::open::Surroundings;
pub use self::record::{DeltaBase, FlushedSlab, Record, StoredHow};
pub(crate) use self::staging::Sealed;

pub(crate) use self::state::rank_files;
pub use self::state::{AttemptState, ChunkPlace, DeltaChoice, FileState, RankState, UploadState};
pub use self::totals::FileTotals;
pub(crate) use self::uploaded::Arrived;
use crate::journal::Journal;
use crate::metrics::Metrics;
use crate::plan::SavePlan;
use crate::slab_count;
use crate::spool::Spool;
use crate::status::{SaveState, SaveStatus};

/// One attempt on this node. Shared by the engine, the flush threads and the write-back.
pub struct Attempt {
    plan: Arc<SavePlan>,
    folder: PathBuf,
    journal: Journal,
    spool: Arc<Spool>,
    metrics: Arc<Metrics>,
    state: RwLock<AttemptState>,
    /// Counts records: what waits for the state to change watches it.
    version: watch::Sender<u64>,
    status: watch::Sender<Arc<SaveStatus>>,
    /// Contiguous flushed bytes by object.
    flushed: Mutex<HashMap<u32, watch::Sender<u64>>>,
    staging: Mutex<staging::Staging>,
    uploaded: Mutex<uploaded::Uploaded>,
    objects: objects::Objects,
    delta: RwLock<Option<Arc<longshore_types::checkpoint::Commit>>>,
    /// The commit as a local load sees it, and whether it is the one in the origin.
    commit: Mutex<Option<(Arc<longshore_types::checkpoint::Commit>, bool)>>,
    /// Slabs and bytes of each rank of the plan.
    sizes: BTreeMap<u32, RankSize>,
    /// Ends with the attempt or with the engine.
    token: CancellationToken,
    /// Why it is given up, from before the journal has it.
    stopped: Mutex<Option<Error>>,
    /// One rank is taken charge of at a time: the same call may come twice at once.
    starting: tokio::sync::Mutex<()>,
    /// What was written and waits in memory to be uploaded.
    warm: crate::warm::Warm,
    is_suspended: AtomicBool,
    is_driven: AtomicBool,
    is_touched: AtomicBool,
    durable_ranks: Mutex<HashSet<u32>>,
}

/// How much a rank writes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct RankSize {
    pub(crate) slabs: u64,
    pub(crate) bytes: u64,
}

impl Attempt {
    /// The id.
    pub fn id(&self) -> AttemptId {
        self.plan.attempt
    }

    /// What is saved.
    pub fn plan(&self) -> &Arc<SavePlan> {
        &self.plan
    }

    /// URL of the checkpoint.
    pub fn url(&self) -> String {
        checkpoint_url(&self.plan)
    }

    /// The attempt's folder on this node.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The ranks of this node.
    pub fn ranks(&self) -> Vec<u32> {
        self.state().ranks.keys().copied().collect()
    }

    /// Whether all ranks of the save are of this node.
    pub fn has_all_ranks(&self) -> bool {
        self.state().ranks.len() == self.plan.world_size as usize
    }

    /// Replayed and live state. Hold it for as short as any lock.
    pub fn state(&self) -> RwLockReadGuard<'_, AttemptState> {
        self.state.read()
    }

    /// Waits until the state is as wanted.
    ///
    /// # Errors
    /// [`Code::Cancelled`] when the attempt ends or the engine closes before.
    pub async fn until(&self, mut is_reached: impl FnMut(&AttemptState) -> bool) -> Result<()> {
        let mut versions = self.version.subscribe();
        loop {
            versions.mark_unchanged();
            if is_reached(&self.state()) {
                return Ok(());
            }
            tokio::select! {
                () = self.token.cancelled() => return Err(self.why_stopped()),
                _ = versions.changed() => {}
            }
        }
    }

    /// Appends a record to the journal, syncs it, and takes it into the state.
    ///
    /// # Errors
    /// What writing reports. The attempt cannot go on then.
    pub async fn record(self: &Arc<Self>, record: Record) -> Result<()> {
        let attempt = Arc::clone(self);
        tokio::task::spawn_blocking(move || attempt.record_blocking(record)).await.map_err(|error| {
            Error::new(Code::Internal, format!("the thread that wrote a journal record ended: {error}"))
        })?
    }

    /// [`Attempt::record`] on this thread.
    pub(crate) fn record_blocking(&self, record: Record) -> Result<()> {
        self.record_all(vec![record])
    }

    /// Records that share a sync. Blocks the thread.
    pub(crate) fn record_all(&self, records: Vec<Record>) -> Result<()> {
        let wait_for_room = || self.wait_for_journal_room();
        self.journal.append(records, &|records| self.take_in(records), &wait_for_room)
    }

    fn take_in(&self, records: &[Record]) {
        let mut state = self.state.write();
        for record in records {
            state.apply(record, &self.plan);
            self.metrics.journal_records.inc();
        }
        self.show(&state, records);
        drop(state);
        self.version.send_modify(|version| *version += 1);
    }

    /// A full disk: true after a while in which room may have come.
    fn wait_for_journal_room(&self) -> bool {
        self.waits_for(&format!("room on the disk for {}", self.journal.path().display()));
        let is_wanted = !self.token.is_cancelled() && !self.is_failing() && !self.plan.options.refuse_when_full;
        is_wanted && self.spool.wait_for_room()
    }

    /// The status now.
    pub fn status(&self) -> Arc<SaveStatus> {
        self.status.borrow().clone()
    }

    /// The status at each change; slow readers see the newest.
    pub fn watch(&self) -> watch::Receiver<Arc<SaveStatus>> {
        self.status.subscribe()
    }

    /// Changes the status.
    pub fn update(&self, change: impl FnOnce(&mut SaveStatus)) {
        self.status.send_modify(|status| change(Arc::make_mut(status)));
    }

    /// Adds a note to the status and to the log, each once.
    pub fn note(&self, note: impl Into<String>) {
        let note = note.into();
        let mut is_new = false;
        self.update(|status| is_new = status.note(note.as_str()));
        if is_new {
            tracing::info!(attempt = %self.id(), url = %self.url(), note, "checkpoint");
        }
    }

    /// Says what the save waits for; empty when it goes on.
    pub fn waits_for(&self, what: &str) {
        if self.status.borrow().waiting_for != what {
            self.update(|status| what.clone_into(&mut status.waiting_for));
        }
    }

    /// Ends when the attempt is given up or the engine closes: stop at the next record then.
    pub fn token(&self) -> &CancellationToken {
        &self.token
    }

    /// Whether it was cancelled, or has failed for ever.
    pub(crate) fn is_stopped(&self) -> bool {
        let state = self.state();
        state.cancelled || state.failed.is_some()
    }

    /// Why the token is cancelled.
    pub fn why_stopped(&self) -> Error {
        let state = self.state();
        if let Some(error) = &state.failed {
            return error.clone();
        }
        if state.cancelled {
            return Error::new(Code::Cancelled, format!("saving {} was cancelled", self.url()));
        }
        drop(state);
        self.stopped.lock().clone().unwrap_or_else(|| {
            Error::new(Code::Cancelled, format!("saving {} goes on when the loader is started again", self.url()))
        })
    }

    /// Gives the attempt up for ever: nothing of it becomes visible. Safe to call from any thread, and more than once. The
    /// token is cancelled once the journal has it.
    pub fn fail(self: &Arc<Self>, error: Error) {
        if self.state().is_ended() {
            return;
        }
        {
            let mut stopped = self.stopped.lock();
            if stopped.is_some() {
                return;
            }
            *stopped = Some(error.clone());
        }
        tracing::warn!(attempt = %self.id(), url = %self.url(), %error, "checkpoint failed");
        let attempt = Arc::clone(self);
        let write = move || {
            let (code, message) = (error.code().as_str().to_owned(), error.message().to_owned());
            if let Err(unwritten) = attempt.record_blocking(Record::Failed { code, message }) {
                // The status tells; after a restart the attempt is tried again, or fails again.
                attempt.show_failed(&error);
                attempt.note(format!("the failure is not in the journal: {unwritten}"));
            }
            attempt.token.cancel();
        };
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(write)),
            Err(_) => write(),
        }
    }

    /// Shows a failure that a later try may overcome: the journal does not have it, the bytes stay, and what is not synced yet
    /// goes on to the disk.
    pub fn suspend(&self, error: Error) {
        if self.state().is_ended() || self.is_failing() {
            return;
        }
        tracing::warn!(attempt = %self.id(), url = %self.url(), %error, "checkpoint stays on this node");
        self.is_suspended.store(true, Ordering::Release);
        self.show_failed(&error);
        self.note("its bytes stay on this node; the save goes on when the loader is started again");
    }

    /// Whether a suspended attempt goes on now.
    pub(crate) fn take_suspended(&self) -> bool {
        if !self.is_suspended.swap(false, Ordering::AcqRel) {
            return false;
        }
        self.show_state();
        true
    }

    /// Whether it is given up for ever, or about to be.
    pub(crate) fn is_failing(&self) -> bool {
        self.stopped.lock().is_some()
    }

    fn show_failed(&self, error: &Error) {
        self.update(|status| {
            status.state = SaveState::Failed;
            status.error = Some(error.clone());
            status.waiting_for.clear();
        });
    }

    /// What was written and waits in memory to be uploaded.
    pub(crate) fn warm(&self) -> &crate::warm::Warm {
        &self.warm
    }

    pub(crate) fn starting(&self) -> &tokio::sync::Mutex<()> {
        &self.starting
    }

    /// True for the first who asks: its write-back is started once.
    pub(crate) fn begin_driving(&self) -> bool {
        !self.is_driven.swap(true, Ordering::AcqRel)
    }

    /// Whether its write-back runs.
    pub(crate) fn is_driven(&self) -> bool {
        self.is_driven.load(Ordering::Acquire)
    }

    pub(crate) fn end_driving(&self) {
        self.is_driven.store(false, Ordering::Release);
    }

    /// A client asked for a slab of it.
    pub(crate) fn touch(&self) {
        self.is_touched.store(true, Ordering::Relaxed);
    }

    /// Whether one did since the last question.
    pub(crate) fn take_touched(&self) -> bool {
        self.is_touched.swap(false, Ordering::Relaxed)
    }

    /// True once for a rank all of whose slabs are flushed: its durability is to be recorded now.
    pub(crate) fn claim_durable(&self, rank: u32) -> bool {
        let is_flushed = {
            let state = self.state();
            let known = state.ranks.get(&rank);
            known.is_some_and(|known| !known.durable && known.flushed_slabs >= self.size_of(rank).slabs)
        };
        is_flushed && self.durable_ranks.lock().insert(rank)
    }

    pub(crate) fn size_of(&self, rank: u32) -> RankSize {
        self.sizes.get(&rank).copied().unwrap_or_default()
    }

    pub(crate) fn spool(&self) -> &Arc<Spool> {
        &self.spool
    }

    /// Seconds since the plan was made.
    pub(crate) fn seconds(&self) -> f64 {
        now_ms().saturating_sub(self.plan.created_ms) as f64 / 1e3
    }
}

impl std::fmt::Debug for Attempt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Attempt").field("id", &self.id()).field("url", &self.url()).finish_non_exhaustive()
    }
}

/// URL of the checkpoint that a plan makes.
pub(crate) fn checkpoint_url(plan: &SavePlan) -> String {
    object_url(&plan.uri, &step_folder(plan.step))
}

/// Milliseconds since 1970.
pub(crate) fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

fn sizes_of(plan: &SavePlan) -> BTreeMap<u32, RankSize> {
    let mut sizes: BTreeMap<u32, RankSize> = BTreeMap::new();
    for file in &plan.files {
        let size = sizes.entry(file.rank).or_default();
        size.slabs += u64::from(slab_count(file.size_bytes));
        size.bytes = size.bytes.saturating_add(file.size_bytes);
    }
    sizes
}
