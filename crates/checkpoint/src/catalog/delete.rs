//! Deleting a checkpoint: the commit first, so that nobody reads what is half gone, then data that nobody refers to, and the
//! intent last, so that a deletion that was cut off is found by a sweep.

use std::collections::HashSet;

use longshore_types::Result;
use longshore_types::checkpoint::{COMMIT_NAME, Commit, INTENT_NAME, attempt_in_name, object_url};

use super::{Deleted, Steps, read_commits, split_step};
use crate::commit::Run;
use crate::failpoint;

/// Deletes one committed checkpoint.
pub(crate) async fn delete_step(run: &Run, commit: &Commit) -> Result<Deleted> {
    run.origins.delete(&[run.step_url(commit.step, COMMIT_NAME)]).await?;
    failpoint::hit("retention_commit_deleted");
    // Listed after the commit is gone: whoever refers to its objects from now on did so before (see `referenced`).
    let steps = Steps::read(run).await?;
    let commits = read_commits(run, steps.committed.keys().copied()).await?;
    let kept = referenced(run, &steps, &commits, std::slice::from_ref(commit)).await?;
    let mut deleted = Deleted { objects_deleted: 1, ..Deleted::default() };
    let mut urls = vec![];
    for object in &steps.objects {
        // What ancestors left in the folders of steps that are deleted goes with the last checkpoint that needs it.
        let is_own = commit.objects.iter().any(|stored| stored.path == object.name);
        let in_folder = split_step(&object.name).is_some_and(|(step, name)| {
            step == commit.step
                && name != INTENT_NAME
                && attempt_in_name(name).is_some_and(|found| found == commit.attempt)
        });
        if !is_own && !in_folder {
            continue;
        }
        if kept.contains(object.name.as_str()) {
            deleted.objects_kept += 1;
            continue;
        }
        // Plain names may be those of a new attempt at the same step by now.
        urls.push(object_url(&run.url, &object.name));
        deleted.bytes_freed = deleted.bytes_freed.saturating_add(object.size_bytes);
    }
    deleted.objects_deleted += run.origins.delete(&urls).await?;
    if let Some((Some(intent), _)) = run.intent(commit.step).await?
        && intent.attempt == commit.attempt
    {
        run.origins.delete(&[run.step_url(commit.step, INTENT_NAME)]).await?;
    }
    Ok(deleted)
}

/// Paths of the objects that must stay: those of all commits, and those of the parents that deltas in progress name in their
/// intents. `gone` are commits that were just deleted: a delta may be about to refer to them.
///
/// A delta writes its intent, with its parent, before it makes sure that the parent is still committed. So a parent whose
/// commit was deleted is either seen here in the intent, or the delta sees that it is gone.
pub(crate) async fn referenced(
    run: &Run,
    steps: &Steps,
    commits: &[Commit],
    gone: &[Commit],
) -> Result<HashSet<String>> {
    let mut kept: HashSet<String> =
        commits.iter().flat_map(|commit| &commit.objects).map(|object| object.path.clone()).collect();
    for step in &steps.uncommitted {
        let Some((Some(intent), _)) = run.intent(*step).await? else { continue };
        let Some(parent) = intent.parent else { continue };
        let parent = gone.iter().find(|commit| commit.attempt == parent.attempt);
        kept.extend(parent.iter().flat_map(|commit| &commit.objects).map(|object| object.path.clone()));
    }
    Ok(kept)
}
