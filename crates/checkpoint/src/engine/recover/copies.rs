//! Recovering a save from the copies that peers hold: finding them, and which ranks have to come here.
//!
//! Whoever recovers a rank has the same attempt as the node that saved it. Both write the same bytes under the same names, and
//! the commit is created once, so it does no harm when that node comes back.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use longshore_types::checkpoint::{AttemptId, Commit, Parent, rank_record_name, step_folder};
use longshore_types::{ChunkKey, Code, Error, Result, redact_url};
use tokio::sync::watch;

use super::pull::Copies;
use super::told::{not_held, nothing_held};
use crate::attempt::{Attempt, DeltaBase};
use crate::commit::{Claim, Run};
use crate::engine::Engine;
use crate::engine::start::blocking;
use crate::held::{self, HELD_BYTES_MAX, HeldRank};
use crate::plan::SavePlan;
use crate::sink::{HeldRecord, HeldRecords};

/// How far a recovery is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RecoveryProgress {
    /// Bytes that were fetched and compared.
    pub bytes_done: u64,
    /// Bytes of the ranks that come here; 0 before that is known.
    pub bytes_total: u64,
}

/// What a recovery came to. Unless it says that the step is committed, the attempt goes on here like any other save.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovery {
    /// The attempt: watch it.
    pub attempt: AttemptId,
    /// URL of the checkpoint.
    pub url: String,
    /// The step is committed already: nothing was to be done.
    pub is_committed: bool,
    /// Ranks that came here now.
    pub recovered: Vec<u32>,
    /// Ranks that were here already.
    pub here: Vec<u32>,
    /// Other ranks, whose nodes have brought them to the origin.
    pub stored: Vec<u32>,
    /// Ranks whose delta is made from another checkpoint than that of the others: for a recovery on a further node.
    pub left: Vec<u32>,
    /// Bytes that came here.
    pub bytes: u64,
}

impl Engine {
    /// Finishes a save whose node is gone, from the copies that its peers hold: brings the chunks of every rank here that is
    /// neither here nor in the origin, compares each block, and goes on with the attempt as after a restart. The same call
    /// again changes nothing. When it is dropped before the bytes are here, only the intent in the origin stays.
    ///
    /// # Errors
    /// `FailedPrecondition` naming ranks that nobody holds, or the attempt that has taken the step over; `Corrupt` and
    /// `Unavailable` naming the chunk that cannot be had, and who was asked; `Exhausted` without room on the disk; what the
    /// origin reports, which must answer.
    pub async fn recover(
        self: &Arc<Self>,
        uri: &str,
        step: u64,
        progress: &watch::Sender<RecoveryProgress>,
    ) -> Result<Recovery> {
        let _one = self.recovering.lock().await;
        let run = Run::new(&self.parts.origins, uri)?;
        run.check_store().await?;
        if let Some(commit) = run.commit(step).await? {
            return self.already_committed(&run, &commit).await;
        }
        let held = self.held(&run, step).await?;
        let id = self.choose(&run, step, &held).await?;
        let found = self.find(&run, step, id, &held).await?;
        let claim = run.claim(&found.plan, found.epoch(), false, found.base.as_ref().map(parent_of)).await?;
        let epoch = match claim {
            Claim::Committed(commit) => return self.already_committed(&run, &commit).await,
            Claim::Ours(intent) => intent.epoch,
        };
        let recovery = found.recovery(run.url_of(&step_folder(step)));
        let bytes = match found.local {
            Some(local) if found.ranks.is_empty() => {
                self.resume(&local);
                0
            }
            _ => self.bring(&run, found, epoch, progress).await?,
        };
        Ok(Recovery { bytes, ..recovery })
    }

    /// Every copy of this attempt is of no more use; those of others never were.
    async fn already_committed(&self, run: &Run, commit: &Commit) -> Result<Recovery> {
        let url = run.url_of(&step_folder(commit.step));
        let held = self.parts.cache.held(&url).await.unwrap_or_else(|error| {
            tracing::debug!(url, %error, "copies of a committed checkpoint are not looked for");
            HeldRecords::default()
        });
        let is_held = held.records.iter().any(|record| record.attempt == commit.attempt);
        match held.records.first() {
            Some(other) if !is_held => Err(Error::new(
                Code::FailedPrecondition,
                format!(
                    "fenced: {url} is committed already, by attempt {}; the copies that are held are of attempt {}, which came \
                     too late",
                    commit.attempt, other.attempt
                ),
            )),
            _ => {
                if is_held {
                    self.parts.cache.release(&commit.attempt).await;
                }
                Ok(Recovery {
                    attempt: commit.attempt,
                    url,
                    is_committed: true,
                    recovered: Vec::new(),
                    here: Vec::new(),
                    stored: (0..commit.world_size).collect(),
                    left: Vec::new(),
                    bytes: 0,
                })
            }
        }
    }

    /// The records that are held of a step. Without workers a node can still go on with what it has.
    async fn held(&self, run: &Run, step: u64) -> Result<HeldRecords> {
        match self.parts.cache.held(&run.url_of(&step_folder(step))).await {
            Err(error) if error.code() == Code::FailedPrecondition && !self.here(run, step).is_empty() => {
                tracing::debug!(url = run.url, step, %error, "held copies are not looked for");
                Ok(HeldRecords::default())
            }
            held => held,
        }
    }

    /// Attempts at the step that go on here.
    fn here(&self, run: &Run, step: u64) -> Vec<Arc<Attempt>> {
        let mut here = self.attempts.all();
        here.retain(|attempt| {
            attempt.plan().step == step && !attempt.state().is_ended() && is_of(run, &attempt.plan().uri)
        });
        here
    }

    /// Which attempt: the one that the intent names, else the one that was planned last.
    async fn choose(&self, run: &Run, step: u64, held: &HeldRecords) -> Result<AttemptId> {
        let here = self.here(run, step);
        let mut ids: BTreeSet<AttemptId> = held.records.iter().map(|record| record.attempt).collect();
        ids.extend(here.iter().map(|attempt| attempt.id()));
        if ids.len() < 2 {
            return ids.first().copied().ok_or_else(|| nothing_held(&run.url_of(&step_folder(step)), held));
        }
        if let Some((Some(intent), _)) = run.intent(step).await?
            && ids.contains(&intent.attempt)
        {
            return Ok(intent.attempt);
        }
        let mut newest: Option<(u64, AttemptId)> = None;
        for id in ids {
            let planned = match here.iter().find(|attempt| attempt.id() == id) {
                Some(attempt) => attempt.plan().created_ms,
                None => match self.read_any(run, step, id, held).await {
                    Ok(record) => record.plan.created_ms,
                    Err(error) => {
                        tracing::warn!(attempt = %id, %error, "copies of an attempt are left alone");
                        continue;
                    }
                },
            };
            newest = newest.max(Some((planned, id)));
        }
        newest.map(|(_, id)| id).ok_or_else(|| nothing_held(&run.url_of(&step_folder(step)), held))
    }

    /// Any record of an attempt that can be read.
    async fn read_any(&self, run: &Run, step: u64, id: AttemptId, held: &HeldRecords) -> Result<HeldRank> {
        let mut failed = None;
        for record in held.records.iter().filter(|record| record.attempt == id) {
            match self.read_record(run, step, record).await {
                Ok(read) => return Ok(read),
                Err(error) => failed = Some(error),
            }
        }
        Err(failed.unwrap_or_else(|| nothing_held(&run.url_of(&step_folder(step)), held)))
    }

    async fn read_record(&self, run: &Run, step: u64, record: &HeldRecord) -> Result<HeldRank> {
        let url = record.artifact.url().to_owned();
        let size_bytes = record.artifact.size_bytes();
        if size_bytes > HELD_BYTES_MAX {
            return Err(Error::new(Code::Corrupt, format!("{url} has {size_bytes} bytes, at most {HELD_BYTES_MAX}")));
        }
        let _memory = self.parts.uploads.reserve(size_bytes).await?;
        let mut bytes = Vec::with_capacity(size_bytes as usize);
        for key in ChunkKey::all(&record.artifact) {
            bytes.extend_from_slice(&self.parts.cache.fetch(&key, None).await?);
        }
        let (attempt, rank, named) = (record.attempt, record.rank, url.clone());
        let read = blocking(move || held::decode(&bytes, &attempt, rank, &named)).await?;
        if !is_of(run, &read.plan.uri) || read.plan.step != step {
            return Err(Error::new(Code::Corrupt, format!("{url} is the record of {}", redact_url(&read.url()))));
        }
        Ok(read)
    }

    /// What has to come here of an attempt.
    async fn find(self: &Arc<Self>, run: &Run, step: u64, id: AttemptId, held: &HeldRecords) -> Result<Found> {
        let local = self.attempts.find(&id);
        if let Some(local) = &local {
            if local.is_stopped() {
                let why = local.why_stopped();
                return Err(why.context(format!("attempt {id} was given up on this node; recover it on another one")));
            }
            local.until(|state| state.delta_settled).await?;
        }
        let here = local.as_ref().map(|local| local.ranks()).unwrap_or_default();
        let listed = self.parts.origins.list_below(&run.url_of(&step_folder(step))).await?;
        let names: BTreeSet<&str> = listed.iter().map(|object| object.name.as_str()).collect();
        let mut records: Vec<&HeldRecord> = held.records.iter().filter(|record| record.attempt == id).collect();
        records.sort_by_key(|record| record.rank);
        let is_stored = |rank: u32| names.contains(rank_record_name(&id, rank).as_str());
        let mut wanted: Vec<&HeldRecord> =
            records.iter().copied().filter(|record| !here.contains(&record.rank) && !is_stored(record.rank)).collect();
        if wanted.is_empty() && here.is_empty() {
            // All is in the origin but the commit: whoever has one rank writes it.
            wanted.extend(records.first());
        }
        let mut ranks = Copies::new();
        let mut bases: BTreeMap<u32, Option<DeltaBase>> = BTreeMap::new();
        let mut unusable: Vec<String> = Vec::new();
        let mut plan: Option<Arc<SavePlan>> = local.as_ref().map(|local| Arc::clone(local.plan()));
        for record in wanted {
            let read = match self.read_record(run, step, record).await {
                Ok(read) => read,
                Err(error) => {
                    unusable.push(format!("the record of rank {} cannot be used: {error}", record.rank));
                    continue;
                }
            };
            let HeldRank { rank, plan: theirs, base, slabs } = read;
            if *plan.get_or_insert_with(|| Arc::new((*theirs).clone())).as_ref() != *theirs {
                unusable.push(format!("the record of rank {rank} has another plan"));
                continue;
            }
            bases.insert(rank, base);
            ranks.insert(rank, slabs);
        }
        let plan = plan
            .filter(|_| local.is_some() || !ranks.is_empty())
            .ok_or_else(|| Error::new(Code::FailedPrecondition, unusable.join("; ")))?;
        let is_known = |rank: &u32| here.contains(rank) || ranks.contains_key(rank) || is_stored(*rank);
        let missing: Vec<u32> = (0..plan.world_size).filter(|rank| !is_known(rank)).collect();
        if !missing.is_empty() {
            return Err(not_held(&run.url_of(&step_folder(step)), &missing, &unusable, held));
        }
        // One journal, one parent: the local one's, or that of the first rank.
        let base = match &local {
            Some(local) => local.state().delta.clone(),
            None => bases.first_key_value().and_then(|(_, base)| base.clone()),
        };
        let left: Vec<u32> = bases.iter().filter(|(_, of)| **of != base).map(|(rank, _)| *rank).collect();
        ranks.retain(|rank, _| !left.contains(rank));
        let stored = (0..plan.world_size).filter(|rank| is_stored(*rank) && !here.contains(rank)).collect();
        Ok(Found { local, plan, base, ranks, here, stored, left })
    }
}

/// What is known of an attempt before anything of it is brought here.
pub(super) struct Found {
    /// The attempt, when this node has a part in it.
    pub(super) local: Option<Arc<Attempt>>,
    pub(super) plan: Arc<SavePlan>,
    pub(super) base: Option<DeltaBase>,
    /// The slabs of each rank that has to come.
    pub(super) ranks: Copies,
    here: Vec<u32>,
    stored: Vec<u32>,
    left: Vec<u32>,
}

impl Found {
    fn epoch(&self) -> u64 {
        self.local.as_ref().map_or(0, |local| local.state().epoch)
    }

    fn recovery(&self, url: String) -> Recovery {
        Recovery {
            attempt: self.plan.attempt,
            url,
            is_committed: false,
            recovered: self.ranks.keys().copied().collect(),
            here: self.here.clone(),
            stored: self.stored.iter().copied().filter(|rank| !self.ranks.contains_key(rank)).collect(),
            left: self.left.clone(),
            bytes: 0,
        }
    }
}

fn parent_of(base: &DeltaBase) -> Parent {
    Parent { step: base.step, attempt: base.attempt }
}

fn is_of(run: &Run, uri: &str) -> bool {
    run.origins.canonical_url(uri).is_ok_and(|url| url == run.url)
}
