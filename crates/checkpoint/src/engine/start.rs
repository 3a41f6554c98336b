//! Taking charge of ranks, and giving saves up.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use longshore_types::checkpoint::AttemptId;
use longshore_types::{Code, Error, Result, format_bytes};

use super::Engine;
use crate::attempt::{Attempt, FlushedSlab, Record, Room};
use crate::flush;
use crate::plan::SavePlan;
use crate::spool::disk_error;
use crate::status::SaveStatus;

/// Most bytes of a file that comes along with the call, and of all of them.
const INLINE_BYTES_MAX: usize = 4 << 20;
const INLINE_TOTAL_BYTES_MAX: usize = 32 << 20;
/// How long the origin may take to show the parent of a delta; after that the save is full.
const PARENT_TIMEOUT: Duration = Duration::from_secs(30);

impl Engine {
    /// Takes charge of a rank's part: known after a restart when this returns. `inline` are small files of the rank. Without
    /// room on the disk it waits for it, or refuses, as the plan's options say. The same call again changes nothing.
    ///
    /// # Errors
    /// `InvalidArgument` for a plan or files that are not sound, `FailedPrecondition` when the attempt has ended, `Exhausted`
    /// without room, and what the disk reports.
    pub async fn start(
        self: &Arc<Self>,
        plan: SavePlan,
        rank: u32,
        inline: Vec<(u32, Bytes)>,
    ) -> Result<Arc<SaveStatus>> {
        let plan = Arc::new(plan);
        let checked = Arc::clone(&plan);
        blocking(move || checked.check()).await?;
        check_inline(&plan, rank, &inline)?;
        let attempt = self.attempt_of(plan).await?;
        let _one = attempt.starting().lock().await;
        if attempt.state().ranks.contains_key(&rank) {
            self.resume(&attempt);
            return Ok(attempt.status());
        }
        self.reserve(&attempt, rank).await?;
        let (taking, inline) = (Arc::clone(&attempt), inline);
        // A write-back that was refused meanwhile says more than the files that it took along.
        let told = |error| if attempt.is_stopped() { attempt.why_stopped() } else { error };
        blocking(move || take_charge(&taking, rank, inline)).await.map_err(told)?;
        attempt.waits_for("");
        attempt.show_staged();
        self.finish_rank(&attempt, rank);
        self.go_on(&attempt);
        Ok(attempt.status())
    }

    /// The attempt of a plan: known, or made now.
    pub(super) async fn attempt_of(self: &Arc<Self>, plan: Arc<SavePlan>) -> Result<Arc<Attempt>> {
        let _one = self.starting.lock().await;
        if self.parts.token.is_cancelled() {
            return Err(Error::new(Code::Unavailable, "the loader is shutting down; call again when it is back"));
        }
        if let Some(known) = self.attempts.find(&plan.attempt) {
            if **known.plan() != *plan {
                let message =
                    format!("attempt {} was started with another plan: all ranks pass the same one", plan.attempt);
                return Err(Error::new(Code::InvalidArgument, message));
            }
            return if known.is_stopped() { Err(known.why_stopped()) } else { Ok(known) };
        }
        let around = self.parts.surroundings();
        let attempt = blocking(move || Attempt::create(&around, plan)).await?;
        self.attempts.insert(Arc::clone(&attempt));
        self.watch_end(&attempt);
        self.settle_delta(&attempt).await?;
        self.watch_stage(&attempt, Duration::from_millis(attempt.plan().options.stage_timeout_ms()));
        Ok(attempt)
    }

    /// Decides whether the save is a delta. What keeps it from being one is a note, not a failure.
    pub(super) async fn settle_delta(&self, attempt: &Arc<Attempt>) -> Result<()> {
        let mut choice = None;
        if attempt.plan().options.delta {
            match tokio::time::timeout(PARENT_TIMEOUT, crate::writeback::delta_choice(attempt, &self.parts)).await {
                Ok(Ok(chosen)) => choice = chosen,
                Ok(Err(error)) => attempt.note(format!("saved in full: the parent cannot be read: {error}")),
                Err(_) => {
                    attempt.note(format!("saved in full: the parent could not be read within {PARENT_TIMEOUT:?}"))
                }
            }
        }
        let settled = Arc::clone(attempt);
        blocking(move || settled.settle_delta(choice)).await
    }

    /// Sets room on the disk aside for a rank, making some by removing committed checkpoints.
    pub(super) async fn reserve(&self, attempt: &Arc<Attempt>, rank: u32) -> Result<()> {
        let bytes = attempt.size_of(rank).bytes;
        let deadline = Duration::from_millis(attempt.plan().options.stage_timeout_ms());
        let found = tokio::time::timeout(deadline, self.find_room(attempt, rank, bytes)).await;
        let outcome = match found {
            Ok(outcome) => outcome,
            Err(_) => Err(no_room(attempt, rank, bytes, &shortage(attempt, bytes).await?)),
        };
        if let Err(error) = &outcome
            && attempt.ranks().is_empty()
        {
            // Nobody has a part in it: it is not kept waiting.
            attempt.fail(error.clone());
        }
        outcome
    }

    async fn find_room(&self, attempt: &Arc<Attempt>, rank: u32, bytes: u64) -> Result<()> {
        let mut freed = self.parts.spool.room_freed();
        let mut waited = false;
        loop {
            freed.mark_unchanged();
            let spool = Arc::clone(&self.parts.spool);
            if let Some(reserved) = blocking(move || spool.try_reserve(bytes)).await? {
                attempt.set_room(rank, Room { reserved });
                return Ok(());
            }
            if self.evict_one(attempt).await {
                continue;
            }
            let why = shortage(attempt, bytes).await?;
            if attempt.plan().options.refuse_when_full {
                return Err(no_room(attempt, rank, bytes, &why));
            }
            if !std::mem::replace(&mut waited, true) {
                self.parts.metrics.room_waits.inc();
                tracing::warn!(attempt = %attempt.id(), url = %attempt.url(), rank, why, "a save waits for room on the disk");
            }
            attempt.waits_for(&format!("room for {} of rank {rank} on the disk: {why}", format_bytes(bytes)));
            tokio::select! {
                () = attempt.token().cancelled() => return Err(attempt.why_stopped()),
                _ = freed.changed() => {}
                // Room that other programs give back is told by nobody.
                () = tokio::time::sleep(Duration::from_millis(500)) => {}
            }
        }
    }

    /// Gives a save up. Too late when the origin was asked to take the commit: then it ends as the origin says.
    ///
    /// # Errors
    /// `NotFound` for an attempt that is not known, and what writing the journal reports.
    pub async fn cancel(&self, attempt: &AttemptId) -> Result<Arc<SaveStatus>> {
        let attempt = self.attempts.get(attempt)?;
        let (is_ended, is_sent) = {
            let state = attempt.state();
            (state.is_ended(), state.commit_sent)
        };
        if is_sent && !is_ended {
            attempt.note("too late to cancel: the origin was asked to take the commit");
        } else if !is_ended {
            attempt.record(Record::Cancelled).await?;
            attempt.token().cancel();
        }
        Ok(attempt.status())
    }
}

async fn shortage(attempt: &Attempt, bytes: u64) -> Result<String> {
    let spool = Arc::clone(attempt.spool());
    blocking(move || Ok(spool.shortage(bytes))).await
}

fn no_room(attempt: &Attempt, rank: u32, bytes: u64, why: &str) -> Error {
    let message = format!(
        "no room for {} of rank {rank} of {} in {}: {why}",
        format_bytes(bytes),
        attempt.url(),
        attempt.spool().folder().display()
    );
    Error::new(Code::Exhausted, message)
}

fn check_inline(plan: &SavePlan, rank: u32, inline: &[(u32, Bytes)]) -> Result<()> {
    let invalid = |message: String| Err(Error::new(Code::InvalidArgument, message));
    if rank >= plan.world_size {
        return invalid(format!("there is no rank {rank}: the save has {}", plan.world_size));
    }
    let mut seen = std::collections::HashSet::new();
    let mut total = 0usize;
    for (file, content) in inline {
        let Some(planned) = plan.files.get(*file as usize) else {
            return invalid(format!("the plan has {} files, there is no file {file}", plan.files.len()));
        };
        if planned.rank != rank || !seen.insert(*file) {
            return invalid(format!("{} is not a file of rank {rank}, or came twice", planned.name));
        }
        if planned.size_bytes != content.len() as u64 || content.len() > INLINE_BYTES_MAX {
            return invalid(format!(
                "{} came with {} bytes, the plan says {}; at most {INLINE_BYTES_MAX} come with the call",
                planned.name,
                content.len(),
                planned.size_bytes
            ));
        }
        total += content.len();
    }
    if total > INLINE_TOTAL_BYTES_MAX {
        return invalid(format!("{total} bytes came with the call, may be {INLINE_TOTAL_BYTES_MAX}"));
    }
    Ok(())
}

/// Writes the small files and the empty ones, then the record.
fn take_charge(attempt: &Arc<Attempt>, rank: u32, inline: Vec<(u32, Bytes)>) -> Result<()> {
    let mut slabs: Vec<FlushedSlab> = Vec::with_capacity(inline.len());
    let mut is_any = false;
    for (file, content) in &inline {
        let (object, is_new) = attempt.object_file(*file, content.len() as u64)?;
        let path = attempt.object_path(*file);
        is_any |= is_new;
        use std::os::unix::fs::FileExt;
        let written = object.write_all_at(content, 0).and_then(|()| object.sync_data());
        written.map_err(|error| disk_error("write", &path, &error))?;
        if !content.is_empty() {
            slabs.push(flush::inline_slab(attempt, *file, content)?);
        }
    }
    for (file, size) in crate::attempt::rank_files(attempt.plan(), rank) {
        if size == 0 {
            is_any |= attempt.object_file(file, 0)?.1;
        }
    }
    if is_any {
        attempt.sync_objects()?;
    }
    attempt.record_blocking(Record::Started { rank, inline: slabs })
}

/// Runs what blocks away from the runtime's threads.
pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| Error::new(Code::Internal, format!("a thread of the checkpoint engine ended: {error}")))?
}
