//! The small files of a run in the bucket, and the rules by which they are written: the intent claims a step, the commit is
//! created once, the hint moves forward only.
//!
//! No lock is held anywhere: each rule rests on conditional puts. A conflict is always read back, since it may be what a
//! request of our own wrote whose answer was lost.

mod build;

use std::cmp::Ordering;

use bytes::Bytes;
use longshore_origin::{Origins, PutHow, PutOutcome};
use longshore_types::checkpoint::{
    AttemptId, COMMIT_BYTES_MAX, COMMIT_NAME, Commit, INTENT_NAME, Intent, LATEST_NAME, Latest, MARK_BYTES_MAX, Parent,
    object_url, step_folder,
};
use longshore_types::{Code, Error, Result, Version};

pub(crate) use build::{RankParts, assemble, object_path};

use crate::plan::SavePlan;

/// How often a conditional put is tried again after somebody else was faster.
const RACES_MAX: u32 = 8;

/// A run's place in an origin.
#[derive(Debug, Clone)]
pub(crate) struct Run {
    pub(crate) origins: Origins,
    /// Canonical.
    pub(crate) url: String,
}

/// What became of claiming a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Claim {
    /// The intent is ours.
    Ours(Intent),
    /// The step is committed by this very attempt.
    Committed(Box<Commit>),
}

impl Run {
    pub(crate) fn new(origins: &Origins, url: &str) -> Result<Run> {
        Ok(Run { origins: origins.clone(), url: origins.canonical_url(url)? })
    }

    /// URL of an object from its path relative to the run.
    pub(crate) fn url_of(&self, path: &str) -> String {
        object_url(&self.url, path)
    }

    /// URL of a file in a step's folder.
    pub(crate) fn step_url(&self, step: u64, name: &str) -> String {
        self.url_of(&format!("{}/{name}", step_folder(step)))
    }

    /// A small object with its version; `None` when it is not there.
    pub(crate) async fn read(&self, url: &str, bytes_max: u64) -> Result<Option<(Bytes, Version)>> {
        match self.origins.read_small(url, bytes_max).await {
            Ok((artifact, bytes)) => Ok(Some((bytes, artifact.version().clone()))),
            Err(error) if error.code() == Code::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Deletes objects; says how many were there.
    pub(crate) async fn delete(&self, urls: &[String]) -> Result<u64> {
        self.origins.delete(urls).await
    }

    /// Checks that the store honours conditional puts.
    pub(crate) async fn check_store(&self) -> Result<()> {
        self.origins.check_conditional_puts(&self.url).await
    }

    /// The commit of a step; `None` when there is none.
    pub(crate) async fn commit(&self, step: u64) -> Result<Option<Commit>> {
        let url = self.step_url(step, COMMIT_NAME);
        let Some((bytes, _)) = self.read(&url, COMMIT_BYTES_MAX).await? else { return Ok(None) };
        let commit = {
            let url = url.clone();
            tokio::task::spawn_blocking(move || Commit::parse(&bytes, &url)).await.map_err(|error| {
                Error::new(Code::Internal, format!("the thread that read a commit ended: {error}"))
            })??
        };
        if commit.step != step {
            return Err(Error::new(Code::Corrupt, format!("{url} is the commit of step {}", commit.step)));
        }
        Ok(Some(commit))
    }

    /// The intent of a step with its version. One that cannot be read counts as one of nobody, with epoch 0.
    pub(crate) async fn intent(&self, step: u64) -> Result<Option<(Option<Intent>, Version)>> {
        let url = self.step_url(step, INTENT_NAME);
        let Some((bytes, version)) = self.read(&url, MARK_BYTES_MAX).await? else { return Ok(None) };
        match Intent::parse(&bytes, &url) {
            Ok(intent) => Ok(Some((Some(intent), version))),
            Err(error) => {
                tracing::warn!(url, %error, "an intent cannot be read and is replaced");
                Ok(Some((None, version)))
            }
        }
    }

    /// Writes the intent, or finds that it is written. `known_epoch` is that of our intent when it was written before.
    pub(crate) async fn claim(
        &self,
        plan: &SavePlan,
        known_epoch: u64,
        is_alone: bool,
        parent: Option<Parent>,
    ) -> Result<Claim> {
        let url = self.step_url(plan.step, INTENT_NAME);
        for _ in 0..RACES_MAX {
            if let Some(commit) = self.commit(plan.step).await? {
                return if commit.attempt == plan.attempt {
                    Ok(Claim::Committed(Box::new(commit)))
                } else {
                    Err(committed_by_other(&self.step_url(plan.step, ""), &commit.attempt))
                };
            }
            let (epoch, how) = match self.intent(plan.step).await? {
                None => (known_epoch.max(1), PutHow::Create),
                Some((Some(intent), _)) if intent.attempt == plan.attempt => return Ok(Claim::Ours(intent)),
                Some((Some(intent), _)) if known_epoch > 0 || (!is_alone && is_later(&intent, plan)) => {
                    return Err(fenced(&self.step_url(plan.step, ""), &intent.attempt));
                }
                Some((intent, version)) => {
                    (intent.map_or(0, |intent| intent.epoch).saturating_add(1), PutHow::Replace(version))
                }
            };
            let intent = Intent {
                attempt: plan.attempt,
                epoch,
                step: plan.step,
                world_size: plan.world_size,
                created_ms: plan.created_ms,
                parent,
            };
            // Written or not, and by whom, is seen in the next round: an answer may be lost.
            if let PutOutcome::Written(_) = self.origins.put(&url, intent.to_bytes().into(), how).await? {
                return Ok(Claim::Ours(intent));
            }
        }
        Err(Error::new(
            Code::FailedPrecondition,
            format!("{url} could not be replaced: other attempts at the step keep writing it, or the store refuses it"),
        ))
    }

    /// Writes the intent again as it is, so that it is young: a sweep takes the attempt for alive.
    pub(crate) async fn touch(&self, plan: &SavePlan) -> Result<()> {
        if let Some((Some(intent), version)) = self.intent(plan.step).await?
            && intent.attempt == plan.attempt
        {
            let url = self.step_url(plan.step, INTENT_NAME);
            self.origins.put(&url, intent.to_bytes().into(), PutHow::Replace(version)).await?;
        }
        Ok(())
    }

    /// Checks that the intent still is this attempt's.
    pub(crate) async fn check_claim(&self, plan: &SavePlan) -> Result<()> {
        match self.intent(plan.step).await? {
            Some((Some(intent), _)) if intent.attempt == plan.attempt => Ok(()),
            Some((Some(intent), _)) => Err(fenced(&self.step_url(plan.step, ""), &intent.attempt)),
            // Somebody deleted the step, or wrote nonsense: not ours to repair.
            _ => Err(Error::new(
                Code::FailedPrecondition,
                format!(
                    "the intent of {} is gone: the step was deleted while it was saved",
                    self.step_url(plan.step, "")
                ),
            )),
        }
    }

    /// Creates `_CKPT.json`; what is there already counts when it is of the same attempt.
    pub(crate) async fn create_commit(&self, commit: &Commit) -> Result<()> {
        let url = self.step_url(commit.step, COMMIT_NAME);
        let bytes = commit.to_bytes();
        if bytes.len() as u64 > COMMIT_BYTES_MAX {
            return Err(Error::new(
                Code::InvalidArgument,
                format!("{url} would have {} bytes, at most {COMMIT_BYTES_MAX}: save fewer tensors", bytes.len()),
            ));
        }
        for _ in 0..RACES_MAX {
            match self.origins.put(&url, bytes.clone().into(), PutHow::Create).await? {
                PutOutcome::Written(_) => return Ok(()),
                PutOutcome::Conflict => {}
            }
            match self.commit(commit.step).await? {
                Some(found) if found.attempt == commit.attempt => return Ok(()),
                Some(found) => return Err(committed_by_other(&self.step_url(commit.step, ""), &found.attempt)),
                None => {}
            }
        }
        Err(Error::new(Code::Unavailable, format!("{url} can neither be created nor read")))
    }

    /// What the hint says; `None` when there is none or it is damaged.
    pub(crate) async fn hint(&self) -> Result<Option<(Option<Latest>, Version)>> {
        let url = self.url_of(LATEST_NAME);
        let Some((bytes, version)) = self.read(&url, MARK_BYTES_MAX).await? else { return Ok(None) };
        Ok(Some((Latest::parse(&bytes, &url).ok(), version)))
    }

    /// Moves the hint to this commit, unless it is at a newer one.
    pub(crate) async fn point_latest(&self, commit: &Commit) -> Result<()> {
        let url = self.url_of(LATEST_NAME);
        let latest = Latest { step: commit.step, attempt: commit.attempt };
        for _ in 0..RACES_MAX {
            let how = match self.hint().await? {
                None => PutHow::Create,
                Some((Some(hint), _)) if hint == latest => return Ok(()),
                Some((hint, version)) => {
                    let pointed = match hint {
                        Some(hint) => self.commit(hint.step).await?.filter(|found| found.attempt == hint.attempt),
                        None => None,
                    };
                    if pointed.is_some_and(|pointed| newer(&pointed, commit) == Ordering::Greater) {
                        return Ok(());
                    }
                    PutHow::Replace(version)
                }
            };
            if let PutOutcome::Written(_) = self.origins.put(&url, latest.to_bytes().into(), how).await? {
                return Ok(());
            }
        }
        Err(Error::new(Code::FailedPrecondition, format!("{url} could not be replaced")))
    }
}

/// The order of checkpoints of a run: when they were saved, then their steps.
pub(crate) fn newer(a: &Commit, b: &Commit) -> Ordering {
    (a.created_ms, a.step).cmp(&(b.created_ms, b.step))
}

/// Of two attempts that neither node knows the other's of: the one that was planned later goes on.
fn is_later(intent: &Intent, plan: &SavePlan) -> bool {
    (intent.created_ms, intent.attempt) > (plan.created_ms, plan.attempt)
}

fn committed_by_other(url: &str, attempt: &AttemptId) -> Error {
    Error::new(
        Code::FailedPrecondition,
        format!("{url} is committed already, by attempt {attempt}: save another step, or delete this one first"),
    )
}

fn fenced(url: &str, attempt: &AttemptId) -> Error {
    Error::new(Code::FailedPrecondition, format!("fenced: attempt {attempt} has taken over {url}"))
}
