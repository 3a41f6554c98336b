//! Opening: everything that an earlier process left is gone on with, told, or removed. Nothing is dropped in silence.
//!
//! `recover/copies.rs` and `recover/pull.rs`: going on with what another node left, from the copies that peers hold.

mod copies;
mod pull;
mod scratch;
mod told;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use longshore_memory::Arena;
use longshore_origin::Origins;
use longshore_types::{Code, Error, Result};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use self::copies::{Recovery, RecoveryProgress};
use super::Engine;
use super::attempts::Attempts;
use super::parts::Parts;
use super::start::blocking;
use crate::SLAB_BYTES;
use crate::attempt::{Attempt, Room, Surroundings};
use crate::flush::Flusher;
use crate::metrics::Metrics;
use crate::options::CheckpointOptions;
use crate::plan::Planner;
use crate::sink::ChunkSink;
use crate::slabs::{SLAB_RETURN_GRACE, SealedSlab, SlabEvent, SlabOptions, SlabPlans, Slabs};
use crate::spool::{Spool, disk_error};
use crate::upload::Uploads;

pub(super) async fn open(
    options: CheckpointOptions,
    origins: Origins,
    memory: Arena,
    cache: Arc<dyn ChunkSink>,
    metrics: Metrics,
) -> Result<Arc<Engine>> {
    let metrics = Arc::new(metrics);
    let token = CancellationToken::new();
    let attempts = Arc::new(Attempts::default());
    let (spool, found) = {
        let (options, metrics, token) = (options.clone(), Arc::clone(&metrics), token.clone());
        let attempts = Arc::clone(&attempts);
        blocking(move || {
            let spool = Arc::new(Spool::open(&options, &metrics)?);
            spool.clear_recoveries()?;
            let around = Surroundings { spool: Arc::clone(&spool), metrics, token };
            replay(&around, &attempts)?;
            let set_aside = spool.set_aside_notes();
            let found = Found::open(&options, &spool, &memory, &attempts)?;
            Ok((spool, (found, memory, set_aside)))
        })
        .await?
    };
    let (found, memory, set_aside) = found;
    let parts = Arc::new(Parts {
        uploads: Arc::new(Uploads::new(&options, &memory)),
        options,
        origins,
        memory,
        cache,
        metrics,
        token,
        spool,
        attempts: Arc::clone(&attempts),
    });
    let engine = Arc::new(Engine {
        flusher: Flusher::start(&parts, found.slabs.clone())?,
        parts,
        planner: Planner::default(),
        attempts,
        slabs: found.slabs,
        adopted_slabs: found.adopted,
        set_aside,
        sessions: Default::default(),
        starting: Default::default(),
        recovering: Default::default(),
        tasks: TaskTracker::new(),
    });
    engine.go_on_with(found.sealed).await?;
    for events in found.events {
        engine.tasks.spawn(Arc::clone(&engine).take_events(events));
    }
    Ok(engine)
}

/// Slabs of this folder, and of those that were taken over.
struct Found {
    slabs: Slabs,
    adopted: Vec<Slabs>,
    sealed: Vec<SealedSlab>,
    events: Vec<mpsc::Receiver<SlabEvent>>,
}

impl Found {
    fn open(options: &CheckpointOptions, spool: &Spool, memory: &Arena, attempts: &Arc<Attempts>) -> Result<Found> {
        let slabs = |folder: &Path, return_grace: Duration| {
            let options = SlabOptions {
                folder: options.slab_folder(folder),
                memory: memory.clone(),
                memory_bytes: options.memory_budget_bytes(),
                slab_bytes: SLAB_BYTES,
                return_grace,
            };
            Slabs::open(options, Arc::clone(attempts) as Arc<dyn SlabPlans>)
        };
        let (own, mut sealed, events) = slabs(spool.folder(), SLAB_RETURN_GRACE)?;
        let (mut adopted, mut receivers) = (Vec::new(), vec![events]);
        for folder in spool.adopted().iter().filter(|folder| options.slab_folder(folder).is_dir()) {
            match slabs(folder, Duration::ZERO) {
                Ok((theirs, more, events)) => {
                    adopted.push(theirs);
                    sealed.extend(more);
                    receivers.push(events);
                }
                // What is missing is found so: its attempts fail as lost.
                Err(error) => {
                    tracing::warn!(folder = %folder.display(), %error, "slabs of a process that is gone are lost")
                }
            }
        }
        Ok(Found { slabs: own, adopted, sealed, events: receivers })
    }
}

/// Reads every journal. What is damaged is set aside, by name; one that cannot be read for another reason stops the start.
fn replay(around: &Surroundings, attempts: &Attempts) -> Result<()> {
    for folder in around.spool.attempt_folders()? {
        match Attempt::open(around, &folder) {
            Ok(Some(attempt)) => attempts.insert(attempt),
            Ok(None) => {
                // It was never acknowledged to anybody.
                around.metrics.recovered.with_label_values(&["unborn"]).inc();
                std::fs::remove_dir_all(&folder).map_err(|error| disk_error("remove", &folder, &error))?;
            }
            Err(error) if error.code() == Code::Corrupt => {
                let aside = around.spool.set_aside(&folder)?;
                around.metrics.set_aside.inc();
                tracing::error!(%error, aside = %aside.display(), "a checkpoint attempt is set aside; nothing of it is removed");
            }
            Err(error) if error.code() == Code::NotFound => {
                // The folder was made, the journal was not.
                std::fs::remove_dir_all(&folder).map_err(|error| disk_error("remove", &folder, &error))?;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

impl Engine {
    /// Everything that had not ended goes on from its last record.
    async fn go_on_with(self: &Arc<Self>, sealed: Vec<SealedSlab>) -> Result<()> {
        let known = self.attempts.all();
        for attempt in &known {
            attempt.take_touched();
            for rank in attempt.ranks() {
                attempt.set_room(rank, Room { reserved: self.parts.spool.reserve_written(attempt.kept_bytes(rank)) });
            }
            if !attempt.state().is_ended() && !attempt.state().delta_settled {
                self.settle_delta(attempt).await?;
            }
        }
        sealed.into_iter().for_each(|slab| self.sealed(slab));
        for attempt in known {
            let (is_ended, is_committed) = {
                let state = attempt.state();
                (state.is_ended(), state.committed)
            };
            let what = if is_ended { "ended" } else { "resumed" };
            self.parts.metrics.recovered.with_label_values(&[what]).inc();
            if is_committed {
                self.trim(&attempt).await;
                continue;
            }
            if is_ended {
                // Its process may have ended before it came to this.
                let attempt = Arc::clone(&attempt);
                blocking(move || {
                    attempt.remove_objects();
                    Ok(())
                })
                .await?;
                continue;
            }
            self.watch_end(&attempt);
            attempt.show_staged();
            let ranks = attempt.ranks();
            ranks.iter().for_each(|rank| self.finish_rank(&attempt, *rank));
            if ranks.is_empty() || !attempt.unstaged().is_empty() {
                self.watch_return(&attempt);
            }
            if !ranks.is_empty() {
                self.go_on(&attempt);
            }
        }
        Ok(())
    }

    /// A training process may come back and copy the rest. One that does not has lost what was not sealed, or was in memory
    /// that is gone.
    fn watch_return(self: &Arc<Self>, attempt: &Arc<Attempt>) {
        let (engine, attempt) = (Arc::clone(self), Arc::clone(attempt));
        let limit = Duration::from_millis(attempt.plan().options.stage_timeout_ms());
        self.tasks.spawn(async move {
            tokio::select! {
                () = attempt.token().cancelled() => return,
                () = tokio::time::sleep(engine.parts.options.resume_wait()) => {}
            }
            let unstaged = attempt.unstaged();
            if attempt.take_touched() || (unstaged.is_empty() && !attempt.ranks().is_empty()) {
                engine.watch_stage(&attempt, limit);
                return;
            }
            let lost: Vec<String> = unstaged.iter().take(16).map(|rank| lost_of(&attempt, *rank)).collect();
            let what = if lost.is_empty() { "no rank was started".to_owned() } else { lost.join(", ") };
            let message = format!(
                "{} is given up: the loader ended before these bytes were on its disk, and they are lost: {what}; nothing \
                 of them was said to be durable, and earlier checkpoints are untouched",
                attempt.url()
            );
            attempt.fail(Error::new(Code::Unavailable, message));
        });
    }
}

fn lost_of(attempt: &Attempt, rank: u32) -> String {
    let (file, missing) = attempt.missing(rank);
    let file = file.map(|file| format!(", {file} among them")).unwrap_or_default();
    format!("{missing} of {} slabs of rank {rank}{file}", attempt.size_of(rank).slabs)
}
