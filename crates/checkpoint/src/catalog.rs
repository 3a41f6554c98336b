//! The checkpoints of a run as the bucket has them: list, newest, one, delete, sweep.
//!
//! Only commits count. The hint `_LATEST.json` saves reading where a run has very many steps; what it says is verified.

mod delete;
mod engine;
mod sweep;

use std::cmp::{Ordering, Reverse};
use std::collections::BTreeMap;
use std::sync::Arc;

use futures::StreamExt;
use futures::stream;
use longshore_origin::{Listed, Origins};
use longshore_types::checkpoint::{AttemptId, COMMIT_NAME, Commit, parse_step_folder};
use longshore_types::{Code, Error, Result};

use crate::commit::{Run, newer};

pub(crate) use delete::{delete_step, uncommitted_intents};

/// Commits that are read at once.
const READS_AT_ONCE: usize = 8;
/// Up to so many steps the newest is found by listing all of them.
const LISTED_STEPS_MAX: usize = 256;
/// Clocks of nodes and stores may differ by this much.
const SKEW_MS: u64 = 60_000;

/// One committed checkpoint in a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckpointSummary {
    /// The step.
    pub step: u64,
    /// URL of the checkpoint.
    pub url: String,
    /// The attempt that committed.
    pub attempt: AttemptId,
    /// When it was planned, milliseconds since 1970.
    pub created_ms: u64,
    /// Bytes of all files.
    pub size_bytes: u64,
    /// Bytes that are stored for this checkpoint alone.
    pub own_bytes: u64,
    /// Tensors.
    pub tensor_count: u32,
    /// Files.
    pub file_count: u32,
    /// The step that this delta was made from.
    pub parent_step: Option<u64>,
    /// As it was given.
    pub metadata: BTreeMap<String, String>,
}

impl CheckpointSummary {
    /// Of a commit of the run at `run_url`.
    pub fn of(commit: &Commit, run_url: &str) -> CheckpointSummary {
        let count = |len: usize| u32::try_from(len).unwrap_or(u32::MAX);
        CheckpointSummary {
            step: commit.step,
            url: longshore_types::checkpoint::object_url(
                run_url,
                &longshore_types::checkpoint::step_folder(commit.step),
            ),
            attempt: commit.attempt,
            created_ms: commit.created_ms,
            size_bytes: commit.size_bytes(),
            own_bytes: commit.own_bytes(),
            tensor_count: count(commit.tensors.len()),
            file_count: count(commit.files.len()),
            parent_step: commit.parent.map(|parent| parent.step),
            metadata: commit.metadata.clone(),
        }
    }
}

/// What a run has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CheckpointList {
    /// Committed, newest last.
    pub checkpoints: Vec<CheckpointSummary>,
    /// Steps that have an attempt and no commit, ascending.
    pub uncommitted_steps: Vec<u64>,
}

/// What was deleted with a checkpoint.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Deleted {
    /// Objects that are gone.
    pub objects_deleted: u64,
    /// Their bytes.
    pub bytes_freed: u64,
    /// Objects that stay because other checkpoints refer to them.
    pub objects_kept: u64,
}

/// What a sweep removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Swept {
    /// Objects that are gone.
    pub objects_deleted: u64,
    /// Uploads that were given up.
    pub uploads_aborted: u64,
    /// Bytes of the objects.
    pub bytes_freed: u64,
}

/// The checkpoints of the runs that one set of origins can reach.
#[derive(Debug, Clone)]
pub struct Catalog {
    origins: Origins,
}

impl Catalog {
    /// Over these origins. Sends nothing.
    pub fn new(origins: Origins) -> Catalog {
        Catalog { origins }
    }

    /// All checkpoints under a URL.
    ///
    /// # Errors
    /// What listing and reading report; `Corrupt` naming a commit that is damaged.
    pub async fn list(&self, run_url: &str) -> Result<CheckpointList> {
        let run = Run::new(&self.origins, run_url)?;
        let steps = Steps::read(&run).await?;
        let mut commits = read_commits(&run, steps.committed.keys().copied()).await?;
        commits.sort_by(newer);
        Ok(CheckpointList {
            checkpoints: commits.iter().map(|commit| CheckpointSummary::of(commit, &run.url)).collect(),
            uncommitted_steps: steps.uncommitted,
        })
    }

    /// The newest committed checkpoint; `None` when there is none.
    ///
    /// # Errors
    /// As [`Catalog::list`].
    pub async fn latest(&self, run_url: &str) -> Result<Option<Arc<Commit>>> {
        latest(&Run::new(&self.origins, run_url)?).await
    }

    /// The checkpoint of a step, or the newest one.
    ///
    /// # Errors
    /// `NotFound` when there is none; `FailedPrecondition` when the step is being saved and not committed.
    pub async fn get(&self, run_url: &str, step: Option<u64>) -> Result<Arc<Commit>> {
        let run = Run::new(&self.origins, run_url)?;
        let Some(step) = step else {
            return latest(&run).await?.ok_or_else(|| {
                Error::new(Code::NotFound, format!("there is no committed checkpoint under {}", run.url))
            });
        };
        if let Some(commit) = run.commit(step).await? {
            return Ok(Arc::new(commit));
        }
        let url = run.step_url(step, "");
        Err(match run.intent(step).await? {
            Some(_) => Error::new(
                Code::FailedPrecondition,
                format!("{url} is not committed: it is being saved, or saving it was given up"),
            ),
            None => Error::new(Code::NotFound, format!("there is no checkpoint {url}")),
        })
    }

    /// Deletes the checkpoint of a step: its commit first, its data last. Objects that other checkpoints refer to stay.
    ///
    /// # Errors
    /// `NotFound` when there is nothing; `FailedPrecondition` when the step has an attempt that is not committed.
    pub async fn delete(&self, run_url: &str, step: u64) -> Result<Deleted> {
        let run = Run::new(&self.origins, run_url)?;
        let commit = self.get(run_url, Some(step)).await?;
        delete_step(&run, &commit).await
    }

    /// Removes what attempts that are dead left under a URL: objects that no commit refers to, open uploads and intents, all
    /// of attempts of which nothing was written for `older_than_ms` (0: a day). `alive` are attempts known to go on.
    ///
    /// # Errors
    /// As [`Catalog::list`]: nothing is removed when a commit cannot be read.
    pub async fn sweep(&self, run_url: &str, older_than_ms: u64, alive: &[AttemptId]) -> Result<Swept> {
        sweep::sweep(&Run::new(&self.origins, run_url)?, older_than_ms, alive).await
    }
}

/// The steps that a listing of a run shows.
pub(crate) struct Steps {
    /// Steps with a commit, and when it was written.
    pub(crate) committed: BTreeMap<u64, u64>,
    /// Steps with other objects only.
    pub(crate) uncommitted: Vec<u64>,
    /// All objects, by name relative to the run.
    pub(crate) objects: Vec<Listed>,
}

impl Steps {
    pub(crate) async fn read(run: &Run) -> Result<Steps> {
        let objects = run.origins.list_below(&run.url).await?;
        let mut committed = BTreeMap::new();
        let mut seen = std::collections::BTreeSet::new();
        for object in &objects {
            let Some((step, name)) = split_step(&object.name) else { continue };
            if name == COMMIT_NAME {
                committed.insert(step, object.modified_ms);
            }
            // What a deleted checkpoint left for its deltas is no attempt.
            if name == longshore_types::checkpoint::INTENT_NAME {
                seen.insert(step);
            }
        }
        let uncommitted = seen.into_iter().filter(|step| !committed.contains_key(step)).collect();
        Ok(Steps { committed, uncommitted, objects })
    }

    /// The objects in folders of steps, with the step and the name in its folder.
    pub(crate) fn in_folders(&self) -> impl Iterator<Item = (u64, &str, &Listed)> {
        self.objects.iter().filter_map(|object| split_step(&object.name).map(|(step, name)| (step, name, object)))
    }
}

/// The step and the name in its folder, of a name relative to the run.
pub(crate) fn split_step(name: &str) -> Option<(u64, &str)> {
    let (folder, name) = name.split_once('/')?;
    Some((parse_step_folder(folder)?, name))
}

/// The commits of these steps; one that is deleted meanwhile is left out.
pub(crate) async fn read_commits(run: &Run, steps: impl Iterator<Item = u64>) -> Result<Vec<Commit>> {
    let mut reads = stream::iter(steps.collect::<Vec<_>>())
        .map(|step| {
            let run = run.clone();
            async move { run.commit(step).await }
        })
        .buffered(READS_AT_ONCE);
    let mut commits = vec![];
    while let Some(commit) = reads.next().await {
        commits.extend(commit?);
    }
    Ok(commits)
}

/// The newest committed checkpoint of a run.
pub(crate) async fn latest(run: &Run) -> Result<Option<Arc<Commit>>> {
    let folders = run.origins.list_folders(&run.url).await?;
    let steps: Vec<u64> = folders.iter().filter_map(|name| parse_step_folder(name.trim_end_matches('/'))).collect();
    if steps.is_empty() {
        return Ok(None);
    }
    let mut best = hinted(run).await?;
    if steps.len() > LISTED_STEPS_MAX
        && let Some(hinted) = &best
        && steps.iter().all(|step| *step <= hinted.step)
    {
        return Ok(best);
    }
    // A checkpoint is planned before it is committed: once commits are older than the plan of the best one, none is newer.
    let mut committed: Vec<(u64, u64)> = Steps::read(run).await?.committed.into_iter().collect();
    committed.sort_by_key(|(step, modified_ms)| Reverse((*modified_ms, *step)));
    for (step, modified_ms) in committed {
        if let Some(best) = &best {
            if modified_ms.saturating_add(SKEW_MS) < best.created_ms {
                break;
            }
            if best.step == step {
                continue;
            }
        }
        if let Some(commit) = run.commit(step).await?
            && best.as_ref().is_none_or(|best| newer(&commit, best) == Ordering::Greater)
        {
            best = Some(Arc::new(commit));
        }
    }
    Ok(best)
}

/// The commit that the hint points at, when it is there and of that attempt.
async fn hinted(run: &Run) -> Result<Option<Arc<Commit>>> {
    let Some((Some(hint), _)) = run.hint().await? else { return Ok(None) };
    let commit = run.commit(hint.step).await?.filter(|commit| commit.attempt == hint.attempt);
    Ok(commit.map(Arc::new))
}
