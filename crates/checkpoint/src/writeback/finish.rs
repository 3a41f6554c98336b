//! From stored to committed, and what follows: the hint, the rank records, retention.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use longshore_types::checkpoint::{Commit, RankRecord, StoredObject, rank_record_name};
use longshore_types::{Code, Error, Result};

use super::Writeback;
use super::objects::blocking;
use crate::attempt::{Attempt, Record};
use crate::commit::{assemble, object_path};
use crate::failpoint;
use crate::plan::INDEX_NAME;
use crate::retention::retain;

/// Tries for what is good to have and not part of the checkpoint.
const EXTRA_TRIES: u32 = 3;
/// Longest that one of these tries may take before the save is said to be committed.
const EXTRA_TIMEOUT: Duration = Duration::from_secs(10);

impl Writeback {
    /// Index, claim, commit. `None` when objects of this node are gone from the origin: they have to be sent again.
    pub(super) async fn commit(&self, epoch: u64, records: Vec<RankRecord>) -> Result<Option<Commit>> {
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
        if !self.is_all_there(&commit).await? {
            return Ok(None);
        }
        self.retry.run("the origin to show the intent", || self.run.check_claim(plan)).await?;
        failpoint::hit("before_commit");
        attempt.record(Record::CommitSent).await?;
        self.retry.run("the origin to take the commit", || self.run.create_commit(&commit)).await?;
        failpoint::hit("commit_sent");
        Ok(Some(commit))
    }

    /// Whether everything that the commit refers to is in the origin. An attempt that rested for long may have been taken for
    /// dead and swept: objects of this node are sent again then, without others there is no checkpoint.
    async fn is_all_there(&self, commit: &Commit) -> Result<bool> {
        let folders: BTreeSet<&str> =
            commit.objects.iter().filter_map(|object| object.path.split_once('/')).map(|(folder, _)| folder).collect();
        let mut there: HashMap<String, u64> = HashMap::new();
        for folder in folders {
            let url = self.run.url_of(folder);
            let listed = self.retry.run("the origin to list objects", || self.run.origins.list_below(&url)).await?;
            there.extend(listed.into_iter().map(|object| (format!("{folder}/{}", object.name), object.size_bytes)));
        }
        let gone = missing(commit, &there);
        if gone.is_empty() {
            return Ok(true);
        }
        let attempt = &self.attempt;
        let own = own_objects(attempt);
        for object in gone {
            attempt.note(format!("{} was deleted before the commit", object.path));
            match own.get(&object.path) {
                Some(object) => attempt.record(Record::UploadDropped { object: *object }).await?,
                // Made for the commit: it is made again.
                None if object.attempt == attempt.id() && object.path.ends_with(INDEX_NAME) => {}
                None => {
                    return Err(Error::new(
                        Code::FailedPrecondition,
                        format!("{} needs {}, which was deleted before the commit", attempt.url(), object.path),
                    ));
                }
            }
        }
        Ok(false)
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
        // A rank that was recovered here may have come after the record of another one.
        let has_shown = attempt.state().ranks.values().any(|rank| rank.stored);
        if has_shown || !attempt.has_all_ranks() {
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

/// The objects of a commit that are not there, or have another size.
fn missing(commit: &Commit, there: &HashMap<String, u64>) -> Vec<StoredObject> {
    let is_gone = |object: &&StoredObject| there.get(&object.path) != Some(&object.size_bytes);
    commit.objects.iter().filter(is_gone).cloned().collect()
}

/// The objects of the ranks of this node, by path.
fn own_objects(attempt: &Attempt) -> HashMap<String, u32> {
    let objects = attempt.ranks().into_iter().flat_map(|rank| attempt.objects_of(rank));
    objects.map(|object| (object_path(attempt, object), object)).collect()
}
