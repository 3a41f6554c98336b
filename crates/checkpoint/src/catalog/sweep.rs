//! Removing what dead attempts left behind. Nothing that is young, committed, referred to or known to be alive is touched.

use std::collections::HashMap;

use longshore_types::Result;
use longshore_types::checkpoint::{
    AttemptId, COMMIT_NAME, INTENT_NAME, attempt_in_name, object_url, parse_step_folder,
};

use super::delete::{Kept, uncommitted_intents};
use super::{Steps, Swept, read_commits};
use crate::attempt::now_ms;
use crate::commit::Run;

/// Age of what is swept, when the caller does not say: a day.
const OLDER_THAN_MS: u64 = 86_400_000;

pub(super) async fn sweep(run: &Run, older_than_ms: u64, alive: &[AttemptId]) -> Result<Swept> {
    let bound_ms = now_ms().saturating_sub(if older_than_ms == 0 { OLDER_THAN_MS } else { older_than_ms });
    // Uploads first: one that is completed after this listing is in the listing of objects, or is young.
    let uploads = run.origins.open_uploads(&run.url).await?.unwrap_or_default();
    let steps = Steps::read(run).await?;
    let commits = read_commits(run, steps.committed.keys().copied()).await?;
    let intents = uncommitted_intents(run, &steps).await?;
    let owner_of_step: HashMap<u64, AttemptId> = intents.iter().map(|intent| (intent.step, intent.attempt)).collect();
    let owner = |step: u64, name: &str| attempt_in_name(name).or_else(|| owner_of_step.get(&step).copied());

    let mut living = Living { known: alive, bound_ms, newest: HashMap::new() };
    for intent in &intents {
        living.saw(intent.attempt, intent.created_ms);
    }
    for (step, name, object) in steps.in_folders() {
        if let Some(attempt) = owner(step, name) {
            living.saw(attempt, object.modified_ms);
        }
    }
    // Intents of the dead keep nothing.
    let mut kept = Kept::find(run, &steps, &commits, &[]).await?;
    let is_awaited = |parent: &AttemptId| !commits.iter().any(|commit| commit.attempt == *parent);
    kept.set_all(intents.iter().any(|intent| {
        living.is_alive(&intent.attempt) && intent.parent.is_some_and(|parent| is_awaited(&parent.attempt))
    }));

    let mut swept = Swept::default();
    let (mut urls, mut last) = (vec![], vec![]);
    for (step, name, object) in steps.in_folders() {
        if kept.holds(&object.name) || name == COMMIT_NAME || object.modified_ms > bound_ms {
            continue;
        }
        // What is under a committed step and not named by an attempt may be anybody's, and so may be what has no owner.
        let Some(owner) = owner(step, name) else { continue };
        if living.is_alive(&owner) || (steps.committed.contains_key(&step) && attempt_in_name(name).is_none()) {
            continue;
        }
        swept.bytes_freed = swept.bytes_freed.saturating_add(object.size_bytes);
        let list = if name == INTENT_NAME { &mut last } else { &mut urls };
        list.push(object_url(&run.url, &object.name));
    }
    swept.objects_deleted = run.delete(&urls).await? + run.delete(&last).await?;
    for upload in uploads {
        let Some(name) = upload.url.strip_prefix(&format!("{}/", run.url)) else { continue };
        let in_step = name.split_once('/').is_some_and(|(folder, _)| parse_step_folder(folder).is_some());
        let Some(attempt) = attempt_in_name(name).filter(|_| in_step) else { continue };
        if !living.is_alive(&attempt) && upload.started_ms <= bound_ms {
            run.origins.upload_abort(&upload.url, &upload.id).await?;
            swept.uploads_aborted += 1;
        }
    }
    Ok(swept)
}

/// When each attempt last wrote something.
struct Living<'a> {
    known: &'a [AttemptId],
    bound_ms: u64,
    newest: HashMap<AttemptId, u64>,
}

impl Living<'_> {
    fn saw(&mut self, attempt: AttemptId, at_ms: u64) {
        let newest = self.newest.entry(attempt).or_default();
        *newest = (*newest).max(at_ms);
    }

    fn is_alive(&self, attempt: &AttemptId) -> bool {
        self.known.contains(attempt) || self.newest.get(attempt).is_some_and(|newest| *newest > self.bound_ms)
    }
}
