//! From this node's disk to the origin: intent, objects, verification, index, commit, hint, retention.
//!
//! [`run`] goes on from any state that the journal may have. Each step is either idempotent in the bucket (a part, a put under
//! a name of the attempt) or decided by reading back (the intent, the commit). An origin that is down is waited for; one that
//! refuses is asked again for a while, then the attempt is suspended: its bytes stay here and it goes on at the next start.
//!
//! Start reading at [`run`], then [`objects`](mod@objects) (one object), [`finish`](mod@finish) (from stored to committed) and `retry.rs`.

mod delta;
mod finish;
mod index;
mod objects;
mod parts;
mod peers;
mod pieces;
mod ranks;
mod retry;

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use longshore_types::checkpoint::Commit;
use longshore_types::{Code, Error, Result};
use parking_lot::Mutex;
use tokio::task::JoinSet;

pub(crate) use delta::delta_choice;

use retry::Retry;

use crate::attempt::{Attempt, Record};
use crate::commit::{Claim, Run};
use crate::engine::Parts;
use crate::failpoint;
use crate::metrics::Metrics;
use crate::sink::ChunkSink;
use crate::upload::Uploads;

/// How often the intent is written again, so that nobody takes an attempt that uploads for days for dead.
const TOUCH_EVERY: Duration = Duration::from_secs(3600);
/// How often objects are uploaded that somebody deleted before the commit.
const CARRIES_MAX: u32 = 3;

/// What the steps of a write-back share.
struct Writeback {
    attempt: Arc<Attempt>,
    run: Run,
    sink: Arc<dyn ChunkSink>,
    uploads: Arc<Uploads>,
    retry: Retry,
    metrics: Arc<Metrics>,
    /// Chunks, by object, that the caches have taken.
    cached: Mutex<HashSet<(u32, u32)>>,
    /// A cache failed or was slow: chunks go there when their objects are verified, not on the way.
    is_cache_slow: AtomicBool,
}

/// Carries the attempt's ranks of this node to the origin, and commits when all ranks are there. Returns when the attempt is
/// committed (and retention is done), was given up, is suspended, or the engine closes; what went wrong is in its status.
pub(crate) async fn run(attempt: Arc<Attempt>, parts: &Parts) -> Result<()> {
    if attempt.state().is_ended() {
        return Ok(());
    }
    let writeback = Arc::new(Writeback::new(&attempt, parts)?);
    let result = Arc::clone(&writeback).carry().await;
    attempt.warm().close();
    if let Err(error) = &result {
        writeback.give_up(error).await;
    }
    result
}

impl Writeback {
    fn new(attempt: &Arc<Attempt>, parts: &Parts) -> Result<Writeback> {
        Ok(Writeback {
            attempt: Arc::clone(attempt),
            run: Run::new(&parts.origins, &attempt.plan().uri)?,
            sink: Arc::clone(&parts.cache),
            uploads: Arc::clone(&parts.uploads),
            retry: Retry::new(attempt),
            metrics: Arc::clone(&parts.metrics),
            cached: Mutex::default(),
            is_cache_slow: AtomicBool::new(false),
        })
    }

    /// Boxed: what is in it is more than the compiler sees through when it is asked whether the task may change threads.
    fn carry(self: Arc<Self>) -> BoxFuture<'static, Result<()>> {
        let steps = async move {
            let claim = tokio::select! {
                claim = self.claim() => claim?,
                stopped = self.hold_meanwhile() => return stopped,
            };
            let commit = match claim {
                Claim::Committed(commit) => *commit,
                Claim::Ours(intent) => self.carry_and_commit(intent.epoch).await?,
            };
            self.after_commit(&commit).await
        };
        steps.boxed()
    }

    async fn carry_and_commit(self: &Arc<Self>, epoch: u64) -> Result<Commit> {
        let mut alive = tokio::time::interval_at(tokio::time::Instant::now() + TOUCH_EVERY, TOUCH_EVERY);
        for _ in 0..CARRIES_MAX {
            let carried = self.carry_ranks();
            tokio::pin!(carried);
            let stored = loop {
                tokio::select! {
                    stored = &mut carried => break stored?,
                    _ = alive.tick() => self.touch().await,
                }
            };
            let records = match stored {
                ranks::Stored::Committed(commit) => return Ok(*commit),
                ranks::Stored::Records(records) => records,
            };
            if let Some(commit) = self.commit(epoch, records).await? {
                return Ok(commit);
            }
        }
        Err(Error::new(
            Code::Unavailable,
            format!(
                "objects of {} were deleted {CARRIES_MAX} times before the commit: is a sweep too eager?",
                self.attempt.url()
            ),
        ))
    }

    async fn touch(&self) {
        if let Err(error) = self.run.touch(self.attempt.plan()).await {
            tracing::debug!(attempt = %self.attempt.id(), %error, "the intent could not be written again");
        }
    }

    /// Makes sure that the store can hold a checkpoint, and that the step is ours.
    async fn claim(&self) -> Result<Claim> {
        let attempt = &self.attempt;
        let plan = attempt.plan();
        let claim = self
            .retry
            .run("the origin to take the intent", || async {
                self.run.check_store().await?;
                let (epoch, parent) = {
                    let state = attempt.state();
                    let parent = state.delta.as_ref().map(delta::parent_of);
                    (state.epoch, parent)
                };
                let is_alone = plan.world_size == 1 || attempt.has_all_ranks();
                self.run.claim(plan, epoch, is_alone, parent).await
            })
            .await?;
        failpoint::hit("after_intent");
        // Only now: nothing is kept for an origin that does not answer.
        attempt.warm().open();
        if let Claim::Ours(intent) = &claim {
            if attempt.state().epoch == intent.epoch {
                self.touch().await;
            } else {
                attempt.record(Record::IntentWritten { epoch: intent.epoch }).await?;
            }
        }
        Ok(claim)
    }

    /// Uploads all ranks of this node, those that start later too, until the records of all ranks of the save are there.
    async fn carry_ranks(self: &Arc<Self>) -> Result<ranks::Stored> {
        let world = self.attempt.plan().world_size as usize;
        let mut started: std::collections::BTreeSet<u32> = std::collections::BTreeSet::new();
        let mut tasks: JoinSet<Result<()>> = JoinSet::new();
        loop {
            for rank in self.attempt.ranks() {
                if started.insert(rank) {
                    let this = Arc::clone(self);
                    tasks.spawn(async move { this.carry_rank(rank).await });
                }
            }
            let is_idle = tasks.is_empty();
            if is_idle && started.len() == world {
                return self.own_records().await.map(ranks::Stored::Records);
            }
            let known = started.clone();
            let more = self.attempt.until(move |state| state.ranks.keys().any(|rank| !known.contains(rank)));
            tokio::select! {
                // Either the attempt ends or a further rank of this node starts.
                more = more => more?,
                Some(done) = tasks.join_next() => match done {
                    Ok(done) => done?,
                    Err(error) => return Err(Error::new(Code::Internal, format!("a rank's upload ended: {error}"))),
                },
                stored = self.other_ranks(&started), if is_idle && !started.is_empty() => return stored,
            }
        }
    }

    /// One rank: its objects, and its copies on peers.
    async fn carry_rank(self: &Arc<Self>, rank: u32) -> Result<()> {
        let delta_known = self.attempt.until(|state| state.delta_settled);
        delta_known.await?;
        let (objects, copies) = tokio::join!(self.carry_objects(rank), self.hold_copies(rank));
        objects.and(copies)
    }

    /// What is left of a write-back that failed: who is told, and what stays.
    async fn give_up(&self, error: &Error) {
        let attempt = &self.attempt;
        if attempt.token().is_cancelled() {
            let is_over = attempt.state().cancelled || attempt.state().failed.is_some();
            if is_over {
                self.clean_up().await;
            }
            return;
        }
        if error.code() == Code::FailedPrecondition {
            // Another attempt has the step: nothing of this one can ever become visible.
            attempt.fail(error.clone());
            self.clean_up().await;
        } else {
            // A person may repair it: the bytes stay, and the save goes on when it is asked for or at the next start.
            attempt.suspend(error.clone());
        }
    }

    /// Open uploads cost money and hold no bytes that anybody reads. Objects are left for the sweep.
    async fn clean_up(&self) {
        let open: Vec<_> = {
            let state = self.attempt.state();
            let open = state.uploads.iter().filter(|(_, upload)| upload.verified.is_none() && !upload.complete_sent);
            open.filter_map(|(object, upload)| Some((*object, upload.id.clone()?))).collect()
        };
        for (object, id) in open {
            let url = self.object_url(object);
            if let Err(error) = self.run.origins.upload_abort(&url, &id).await {
                tracing::debug!(url, %error, "an upload is left for the sweep");
            }
        }
        self.sink.release(&self.attempt.id()).await;
    }

    fn object_url(&self, object: u32) -> String {
        self.run.url_of(&crate::commit::object_path(&self.attempt, object))
    }
}

#[cfg(test)]
mod tests;
