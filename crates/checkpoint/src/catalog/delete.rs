//! Deleting a checkpoint: the commit first, so that nobody reads what is half gone, then data that nobody refers to, and the
//! intent last, so that a deletion that was cut off is found by a sweep.

use std::collections::HashSet;

use longshore_types::Result;
use longshore_types::checkpoint::{COMMIT_NAME, Commit, INTENT_NAME, Intent, attempt_in_name, object_url};

use super::{Deleted, Steps, read_commits, split_step};
use crate::commit::Run;
use crate::failpoint;

/// Deletes one committed checkpoint.
pub(crate) async fn delete_step(run: &Run, commit: &Commit) -> Result<Deleted> {
    run.delete(&[run.step_url(commit.step, COMMIT_NAME)]).await?;
    failpoint::hit("retention_commit_deleted");
    // Listed after the commit is gone: whoever refers to its objects from now on did so before (see `Kept`).
    let steps = Steps::read(run).await?;
    let commits = read_commits(run, steps.committed.keys().copied()).await?;
    let kept = Kept::find(run, &steps, &commits, std::slice::from_ref(commit)).await?;
    let intent = run.intent(commit.step).await?.and_then(|(intent, _)| intent);
    let is_taken = intent.as_ref().is_some_and(|intent| intent.attempt != commit.attempt);
    let mut deleted = Deleted { objects_deleted: 1, ..Deleted::default() };
    let mut urls = vec![];
    for object in &steps.objects {
        let attempt = split_step(&object.name).and_then(|(_, name)| attempt_in_name(name));
        // What ancestors left in the folders of deleted steps goes with the last checkpoint that refers to it.
        let is_ours = attempt == Some(commit.attempt) || commit.objects.iter().any(|stored| stored.path == object.name);
        // A plain name may be that of a file of a new attempt at the step by now.
        if !is_ours || (attempt.is_none() && is_taken) {
            continue;
        }
        if kept.holds(&object.name) {
            deleted.objects_kept += 1;
            continue;
        }
        urls.push(object_url(&run.url, &object.name));
        deleted.bytes_freed = deleted.bytes_freed.saturating_add(object.size_bytes);
    }
    deleted.objects_deleted += run.delete(&urls).await?;
    if intent.is_some() && !is_taken {
        run.delete(&[run.step_url(commit.step, INTENT_NAME)]).await?;
    }
    Ok(deleted)
}

/// Objects that must stay: those of all commits, and those of the parents that deltas in progress name in their intents.
///
/// A delta writes its intent, with its parent, before it makes sure that the parent is still committed. So for a parent whose
/// commit was deleted, either the intent is seen here, or the delta sees that the commit is gone.
#[derive(Debug)]
pub(crate) struct Kept {
    paths: HashSet<String>,
    /// A delta in progress refers to a checkpoint whose commit is not known any more: any object may be its.
    all: bool,
}

impl Kept {
    /// `gone` are commits that were just deleted.
    pub(crate) async fn find(run: &Run, steps: &Steps, commits: &[Commit], gone: &[Commit]) -> Result<Kept> {
        let mut kept = Kept {
            paths: commits.iter().flat_map(|commit| &commit.objects).map(|object| object.path.clone()).collect(),
            all: false,
        };
        for intent in uncommitted_intents(run, steps).await? {
            let Some(parent) = intent.parent else { continue };
            // Of a deleted checkpoint the intent goes last.
            if gone.iter().any(|commit| commit.attempt == intent.attempt) {
                continue;
            }
            if commits.iter().any(|commit| commit.attempt == parent.attempt) {
                continue;
            }
            match gone.iter().find(|commit| commit.attempt == parent.attempt) {
                Some(commit) => kept.paths.extend(commit.objects.iter().map(|object| object.path.clone())),
                None => kept.all = true,
            }
        }
        Ok(kept)
    }

    /// For a caller that knows which intents count.
    pub(crate) fn set_all(&mut self, all: bool) {
        self.all = all;
    }

    pub(crate) fn holds(&self, path: &str) -> bool {
        self.all || self.paths.contains(path)
    }
}

/// The intents of the steps that are not committed.
pub(crate) async fn uncommitted_intents(run: &Run, steps: &Steps) -> Result<Vec<Intent>> {
    let mut intents = vec![];
    for step in &steps.uncommitted {
        if let Some((Some(intent), _)) = run.intent(*step).await?
            && intent.step == *step
        {
            intents.push(intent);
        }
    }
    Ok(intents)
}
