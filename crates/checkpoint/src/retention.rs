//! Keeping only the newest checkpoints of a run.

use longshore_types::Result;
use longshore_types::checkpoint::Commit;

use crate::attempt::now_ms;
use crate::catalog::{Steps, delete_step, read_commits, uncommitted_intents};
use crate::commit::{Run, newer};
use crate::failpoint;

/// An intent of an attempt that was planned longer ago keeps nothing from being deleted: it is dead, or its delta loses its
/// parent's commit but none of its objects.
const INTENT_AGE_MS_MAX: u64 = 86_400_000;

/// Deletes the oldest checkpoints while `keep` newer ones are committed; 0 keeps all. Returns how many were deleted.
pub(crate) async fn retain(run: &Run, keep: u32) -> Result<usize> {
    if keep == 0 {
        return Ok(0);
    }
    failpoint::hit("before_retention");
    let steps = Steps::read(run).await?;
    if steps.committed.len() <= keep as usize {
        return Ok(0);
    }
    let mut commits: Vec<Commit> = read_commits(run, steps.committed.keys().copied()).await?;
    commits.sort_by(newer);
    let surplus = commits.len().saturating_sub(keep as usize);
    // The parent of a delta in progress stays until that is committed: the next save deletes it.
    let young = now_ms().saturating_sub(INTENT_AGE_MS_MAX);
    let mut parents = uncommitted_intents(run, &steps).await?;
    parents.retain(|intent| intent.created_ms > young);
    let mut deleted = 0;
    for commit in &commits[..surplus] {
        if parents.iter().any(|intent| intent.parent.is_some_and(|parent| parent.attempt == commit.attempt)) {
            continue;
        }
        delete_step(run, commit).await?;
        deleted += 1;
    }
    Ok(deleted)
}
