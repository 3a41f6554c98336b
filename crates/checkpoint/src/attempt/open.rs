//! Attempts come to be: new ones with a plan, old ones by the replay of their journal.

use std::path::Path;
use std::sync::Arc;

use longshore_types::checkpoint::AttemptId;
use longshore_types::{CHUNK_BYTES, Code, Error, Result};
use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::objects::Objects;
use super::staging::Staging;
use super::{Attempt, AttemptState, Record, checkpoint_url, rank_files, sizes_of};
use crate::journal::Journal;
use crate::metrics::Metrics;
use crate::plan::SavePlan;
use crate::slab_count;
use crate::spool::{Spool, disk_error, sync_folder};
use crate::status::{SaveState, SaveStatus};

/// What attempts share.
#[derive(Clone)]
pub(crate) struct Surroundings {
    pub(crate) spool: Arc<Spool>,
    pub(crate) metrics: Arc<Metrics>,
    /// Of the engine.
    pub(crate) token: CancellationToken,
}

impl Attempt {
    /// Makes the folder and the journal of a new attempt; its plan is durable when this returns. Blocks the thread.
    pub(crate) fn create(around: &Surroundings, plan: Arc<SavePlan>) -> Result<Arc<Attempt>> {
        let folder = around.spool.attempt_folder(&plan.attempt);
        std::fs::create_dir(&folder).map_err(|error| disk_error("create", &folder, &error))?;
        let journal = Journal::create(&folder)?;
        let attempt = Attempt::with(around, Arc::clone(&plan), &folder, journal, AttemptState::default());
        attempt.objects.create_folder()?;
        sync_folder(&folder)?;
        sync_folder(around.spool.attempts_folder())?;
        attempt.record_blocking(Record::Planned { plan: Box::new(plan.as_ref().clone()) })?;
        crate::failpoint::hit("after_planned");
        Ok(Arc::new(attempt))
    }

    /// Replays the journal in `folder`. `None`: it ends before its plan, nothing was acknowledged. Blocks the thread.
    ///
    /// # Errors
    /// `Corrupt`, naming the journal, when it is damaged or does not belong here.
    pub(crate) fn open(around: &Surroundings, folder: &Path) -> Result<Option<Arc<Attempt>>> {
        let (journal, replay) = Journal::open(folder)?;
        let mut records = replay.records.iter();
        let Some(first) = records.next() else { return Ok(None) };
        let Record::Planned { plan } = first else { return Err(damaged(&journal, "its first record is no plan")) };
        plan.check().map_err(|error| damaged(&journal, error.message()))?;
        let name = folder.file_name().and_then(|name| name.to_str());
        if name.and_then(|name| AttemptId::parse(name).ok()) != Some(plan.attempt) {
            return Err(damaged(&journal, &format!("it is of attempt {}", plan.attempt)));
        }
        let plan = Arc::new(plan.as_ref().clone());
        let mut state = AttemptState::default();
        for record in records {
            check(record, &plan).map_err(|reason| damaged(&journal, &reason))?;
            state.apply(record, &plan);
        }
        let attempt = Attempt::with(around, plan, folder, journal, state);
        attempt.load_parent()?;
        if replay.cut_bytes > 0 {
            around.metrics.journal_cuts.inc();
            attempt.note(format!("{} bytes at the end of the journal were torn, and are cut", replay.cut_bytes));
        }
        attempt.show_replayed();
        Ok(Some(Arc::new(attempt)))
    }

    /// Makes the folder of the objects, for an attempt whose journal did not come about here.
    pub(crate) fn make_objects(&self) -> Result<()> {
        self.objects.create_folder()
    }

    fn with(
        around: &Surroundings,
        plan: Arc<SavePlan>,
        folder: &Path,
        journal: Journal,
        state: AttemptState,
    ) -> Attempt {
        let status = SaveStatus {
            attempt: plan.attempt,
            uri: plan.uri.clone(),
            step: plan.step,
            state: SaveState::Staging,
            ranks: Vec::new(),
            world_size: plan.world_size,
            bytes_total: 0,
            bytes_staged: 0,
            bytes_durable: 0,
            bytes_peer: 0,
            bytes_uploaded: 0,
            bytes_unchanged: 0,
            error: None,
            notes: Vec::new(),
            retries: 0,
            staged_seconds: 0.0,
            local_durable_seconds: 0.0,
            peer_durable_seconds: 0.0,
            committed_seconds: 0.0,
            waiting_for: String::new(),
            url: checkpoint_url(&plan),
        };
        Attempt {
            sizes: sizes_of(&plan),
            folder: folder.to_owned(),
            journal,
            spool: Arc::clone(&around.spool),
            metrics: Arc::clone(&around.metrics),
            state: RwLock::new(state),
            version: watch::Sender::new(0),
            status: watch::Sender::new(Arc::new(status)),
            flushed: Mutex::default(),
            staging: Mutex::new(Staging::default()),
            uploaded: Mutex::default(),
            objects: Objects::new(folder),
            delta: RwLock::default(),
            commit: Mutex::default(),
            token: around.token.child_token(),
            stopped: Mutex::default(),
            starting: Default::default(),
            warm: Default::default(),
            is_suspended: Default::default(),
            is_driven: Default::default(),
            is_touched: Default::default(),
            durable_ranks: Mutex::default(),
            plan,
        }
    }
}

fn damaged(journal: &Journal, reason: &str) -> Error {
    Error::new(Code::Corrupt, format!("journal {} is not what it should be: {reason}", journal.path().display()))
}

/// Whether a record speaks of what the plan has. The checksum says that we wrote it; a plan of another build may still differ.
fn check(record: &Record, plan: &SavePlan) -> Result<(), String> {
    let slab = |slab: &super::FlushedSlab| -> Result<(), String> {
        let file = plan.files.get(slab.file as usize).ok_or_else(|| format!("there is no file {}", slab.file))?;
        if slab.slab_index >= slab_count(file.size_bytes) {
            return Err(format!("{} has no slab {}", file.name, slab.slab_index));
        }
        let most = plan.files.len() as u64 + file.size_bytes.div_ceil(CHUNK_BYTES) * plan.files.len() as u64;
        match slab.chunks.iter().flatten().flatten().find(|place| u64::from(**place) > most) {
            Some(place) => Err(format!("no pack has a chunk {place}")),
            None => Ok(()),
        }
    };
    let rank = |rank: u32| if rank < plan.world_size { Ok(()) } else { Err(format!("there is no rank {rank}")) };
    let object = |object: u32| {
        let count = plan.files.len() as u64 + u64::from(plan.world_size);
        if u64::from(object) < count { Ok(()) } else { Err(format!("there is no object {object}")) }
    };
    match record {
        Record::Planned { .. } => Err("it has two plans".to_owned()),
        Record::Started { rank: of, inline } => rank(*of).and_then(|()| inline.iter().try_for_each(slab)),
        Record::Flushed(flushed) => slab(flushed),
        Record::RankDurable { rank: of } | Record::PeerDurable { rank: of } | Record::RankStored { rank: of } => {
            rank(*of)
        }
        Record::UploadStarted { object: of, .. }
        | Record::PartDone { object: of, .. }
        | Record::UploadDropped { object: of }
        | Record::CompleteSent { object: of }
        | Record::Verified { object: of, .. } => object(*of),
        Record::Delta { base: Some(base) } => {
            let is_sorted = base.files.is_sorted_by(|a, b| a.0 < b.0);
            let is_known = base.files.iter().all(|pair| (pair.0 as usize) < plan.files.len());
            if is_sorted && is_known { Ok(()) } else { Err("its delta names files that are not there".to_owned()) }
        }
        Record::Delta { base: None }
        | Record::IntentWritten { .. }
        | Record::CommitSent
        | Record::Committed
        | Record::Cancelled
        | Record::Failed { .. } => Ok(()),
    }
}

/// Bytes of the slabs that are flushed, and of those in them that a delta left to its parent.
pub(super) fn flushed_bytes(state: &AttemptState, plan: &SavePlan, rank: u32) -> (u64, u64) {
    let mut sum = (0, 0);
    for (file, size) in rank_files(plan, rank) {
        for slab in state.files.get(&file).into_iter().flat_map(|file| file.slabs.values()) {
            let (bytes, unchanged) = super::staging::slab_sizes(slab, size);
            sum = (sum.0 + bytes, sum.1 + unchanged);
        }
    }
    sum
}
