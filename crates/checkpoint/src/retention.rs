//! Keeping only the newest checkpoints of a run.

use longshore_types::Result;
use longshore_types::checkpoint::Commit;

use crate::catalog::{Steps, delete_step, read_commits};
use crate::commit::{Run, newer};
use crate::failpoint;

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
    for commit in &commits[..surplus] {
        delete_step(run, commit).await?;
    }
    Ok(surplus)
}
