//! Which checkpoint a delta is made from.
//!
//! The intent names the parent **before** it is made sure that the parent is committed. Whoever deletes the parent deletes
//! its commit first and looks at intents then: so either the deletion sees the intent and leaves the objects, or the delta
//! sees that the commit is gone. All nodes of a save take the parent that the intent names.

use std::collections::HashMap;
use std::sync::Arc;

use longshore_types::checkpoint::{Commit, Parent};
use longshore_types::{Code, Error, Result};

use super::Writeback;
use crate::attempt::{Attempt, DeltaBase, DeltaChoice};
use crate::catalog::latest;
use crate::commit::{Claim, Run};
use crate::engine::Parts;
use crate::plan::{PLAIN_FILE_BYTES_MAX, SavePlan};

/// A delta that stored more than this share of its bytes anew is no better than a full checkpoint: the next one is.
const CHANGED_PERCENT_MAX: u64 = 70;

/// Files up to this size are always stored whole: a chunk of a pack has 16 MiB.
const WHOLE_BYTES_MAX: u64 = 4 << 20;

/// What the attempt may be a delta of; `None` when it is to be full, with the reason in its notes.
///
/// # Errors
/// What the origin reports; then the save is full, too.
pub(crate) async fn delta_choice(attempt: &Arc<Attempt>, parts: &Parts) -> Result<Option<DeltaChoice>> {
    let run = Run::new(&parts.origins, &attempt.plan().uri)?;
    match choose(&run, attempt, parts).await? {
        Ok(choice) => Ok(Some(choice)),
        Err(note) => {
            attempt.note(format!("saved in full: {note}"));
            Ok(None)
        }
    }
}

pub(super) fn parent_of(base: &DeltaBase) -> Parent {
    Parent { step: base.step, attempt: base.attempt }
}

async fn choose(run: &Run, attempt: &Arc<Attempt>, parts: &Parts) -> Result<Result<DeltaChoice, String>> {
    let plan = attempt.plan();
    let Some(newest) = latest(run).await? else {
        return Ok(Err("there is no committed checkpoint to build on".to_owned()));
    };
    let proposal = propose(plan, &newest).map(|_| Parent { step: newest.step, attempt: newest.attempt });
    let is_alone = plan.world_size == 1;
    let epoch = attempt.state().epoch;
    let claim = run.claim(plan, epoch, is_alone, proposal.clone().ok()).await?;
    let Claim::Ours(intent) = claim else {
        return Ok(Err("the step is committed".to_owned()));
    };
    let Some(parent) = intent.parent else {
        let reason = proposal.err().unwrap_or_else(|| "another node of this save made it a full one".to_owned());
        return Ok(Err(reason));
    };
    let commit = committed(run, parts, parent).await?;
    let Some(commit) = commit else {
        return Ok(Err(format!("step {} was deleted meanwhile", parent.step)));
    };
    Ok(propose(plan, &commit).map(|base| DeltaChoice { base, commit }))
}

/// The parent's commit, from the origin: that it is there now is what matters.
async fn committed(run: &Run, parts: &Parts, parent: Parent) -> Result<Option<Arc<Commit>>> {
    let here = parts.committed_here(&run.url).into_iter().find(|attempt| attempt.id() == parent.attempt);
    if let Some(here) = here {
        let url = run.step_url(parent.step, longshore_types::checkpoint::COMMIT_NAME);
        if run.origins.stat(&url).await.is_ok()
            && let Ok(Ok(commit)) = tokio::task::spawn_blocking(move || here.kept_commit()).await
        {
            return Ok(Some(Arc::new(commit)));
        }
    }
    Ok(run.commit(parent.step).await?.filter(|commit| commit.attempt == parent.attempt).map(Arc::new))
}

/// The files of the plan that the parent has with the same layout, or why a full checkpoint is better.
fn propose(plan: &SavePlan, parent: &Commit) -> Result<DeltaBase, String> {
    let depth = parent.delta_depth.saturating_add(1);
    if depth > plan.options.delta_depth_max() {
        return Err(format!(
            "there are {} deltas in a row, at most {} may be",
            parent.delta_depth,
            plan.options.delta_depth_max()
        ));
    }
    if parent.parent.is_some() {
        let (own, all) = (u128::from(parent.own_bytes()), u128::from(parent.size_bytes()));
        if own * 100 > all * u128::from(CHANGED_PERCENT_MAX) {
            return Err(format!("more than {CHANGED_PERCENT_MAX} % had changed in step {}", parent.step));
        }
    }
    let theirs: HashMap<(&str, u64), u32> =
        parent.files.iter().zip(0u32..).map(|(file, index)| ((file.name.as_str(), file.size_bytes), index)).collect();
    let mut files = vec![];
    for (file, index) in plan.files.iter().zip(0u32..) {
        // Small plain files keep their plain names, for tools that read the bucket; small files of any kind may come with
        // the call instead of in slabs.
        if file.size_bytes <= WHOLE_BYTES_MAX || (!file.is_tensors() && file.size_bytes <= PLAIN_FILE_BYTES_MAX) {
            continue;
        }
        match theirs.get(&(file.name.as_str(), file.size_bytes)) {
            Some(their) => files.push((index, *their)),
            None if file.is_tensors() => {
                return Err(format!("{} has another layout than in step {}", file.name, parent.step));
            }
            None => {}
        }
    }
    if files.is_empty() {
        return Err(format!("it has no file in common with step {}", parent.step));
    }
    Ok(DeltaBase { step: parent.step, attempt: parent.attempt, depth, files })
}

impl Writeback {
    /// Before the commit: everything that it refers to is there. It stays there, see above.
    pub(super) async fn check_parent(&self, parent: Parent) -> Result<()> {
        let named =
            self.retry.run("the origin to show the intent", || self.run.intent(self.attempt.plan().step)).await?;
        if let Some((Some(intent), _)) = named
            && intent.attempt == self.attempt.id()
            && intent.parent != Some(parent)
        {
            return Err(Error::new(
                Code::FailedPrecondition,
                format!("the intent of {} names another parent than step {}", self.attempt.url(), parent.step),
            ));
        }
        Ok(())
    }
}
