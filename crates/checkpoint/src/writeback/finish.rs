//! From stored to committed, and what follows: the hint, the rank records, retention.

use std::sync::Arc;
use std::time::Duration;

use longshore_types::checkpoint::{Commit, RankRecord, rank_record_name};
use longshore_types::{Code, Error, Result};

use super::Writeback;
use super::objects::blocking;
use crate::attempt::Record;
use crate::commit::assemble;
use crate::failpoint;
use crate::retention::retain;

/// Tries for what is good to have and not part of the checkpoint.
const EXTRA_TRIES: u32 = 3;
/// Longest that one of these tries may take before the save is said to be committed.
const EXTRA_TIMEOUT: Duration = Duration::from_secs(10);

impl Writeback {
    /// Index, claim, commit.
    pub(super) async fn commit(&self, epoch: u64, records: Vec<RankRecord>) -> Result<Commit> {
        let attempt = &self.attempt;
        let plan = attempt.plan();
        let is_delta = records.iter().any(|record| record.parent.is_some());
        let made = self.write_index(is_delta).await?;
        let commit = {
            let plan = Arc::clone(plan);
            blocking(move || assemble(&plan, epoch, &records, &made)).await?
        };
        if let Some(parent) = commit.parent {
            self.check_parent(parent).await?;
        }
        self.retry.run("the origin to show the intent", || self.run.check_claim(plan)).await?;
        failpoint::hit("before_commit");
        attempt.record(Record::CommitSent).await?;
        self.retry.run("the origin to take the commit", || self.run.create_commit(&commit)).await?;
        failpoint::hit("commit_sent");
        Ok(commit)
    }

    /// The commit is visible: nothing that fails from here on makes the save fail.
    pub(super) async fn after_commit(&self, commit: &Commit) -> Result<()> {
        failpoint::hit("after_commit");
        let attempt = &self.attempt;
        let (keeper, kept) = (Arc::clone(attempt), commit.clone());
        if let Err(error) = blocking(move || keeper.keep_commit(&kept)).await {
            attempt.note(format!("the commit is not kept on this node: {error}"));
        }
        failpoint::hit("before_latest");
        self.extra("the hint to the newest checkpoint was not moved", || self.run.point_latest(commit)).await;
        attempt.record(Record::Committed).await?;
        self.sink.release(&attempt.id()).await;
        if !attempt.has_all_ranks() {
            let names = (0..commit.world_size).map(|rank| rank_record_name(&commit.attempt, rank));
            let urls: Vec<String> = names.map(|name| self.run.step_url(commit.step, &name)).collect();
            self.extra("records of ranks are left for the sweep", || async {
                self.run.delete(&urls).await.map(|_| ())
            })
            .await;
        }
        let keep = attempt.plan().options.keep;
        self.extra("old checkpoints are left for the next save to delete", || async {
            retain(&self.run, keep).await.map(|_| ())
        })
        .await;
        Ok(())
    }

    /// Tries something a few times; what fails is a note.
    async fn extra<F: Future<Output = Result<()>>>(&self, note: &str, mut work: impl FnMut() -> F) {
        let mut pause = Duration::from_millis(200);
        for tried in 1..=EXTRA_TRIES {
            let result = if self.attempt.state().committed {
                work().await
            } else {
                tokio::time::timeout(EXTRA_TIMEOUT, work()).await.unwrap_or_else(|_| {
                    Err(Error::new(Code::Timeout, format!("the origin did not answer within {EXTRA_TIMEOUT:?}")))
                })
            };
            let error = match result {
                Ok(()) => return,
                Err(error) => error,
            };
            if tried == EXTRA_TRIES || self.attempt.token().is_cancelled() {
                self.attempt.note(format!("{note}: {error}"));
                return;
            }
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
    }
}
