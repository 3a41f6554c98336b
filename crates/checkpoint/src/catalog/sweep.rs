//! Removing what dead attempts left behind. Nothing that is young, committed, referred to or known to be alive is touched.

use std::collections::{HashMap, HashSet};

use longshore_types::Result;
use longshore_types::checkpoint::{
    AttemptId, COMMIT_NAME, INTENT_NAME, Intent, attempt_in_name, object_url, parse_step_folder,
};

use super::{Steps, Swept, read_commits, split_step};
use crate::attempt::now_ms;
use crate::commit::Run;

/// Age of what is swept, when the caller does not say: a day.
const OLDER_THAN_MS: u64 = 86_400_000;

pub(super) async fn sweep(run: &Run, older_than_ms: u64, alive: &[AttemptId]) -> Result<Swept> {
    let bound_ms = now_ms().saturating_sub(if older_than_ms == 0 { OLDER_THAN_MS } else { older_than_ms });
    // Uploads first: one that is completed after this listing is in the listing of objects, or is young.
    let uploads = run.origins.open_uploads(&run.url).await?;
    let steps = Steps::read(run).await?;
    let commits = read_commits(run, steps.committed.keys().copied()).await?;
    let kept = super::referenced(run, &steps, &commits, &[]).await?;
    let committed: HashSet<AttemptId> = commits.iter().map(|commit| commit.attempt).collect();
    let mut living = Living::new(alive, bound_ms);
    let mut intents: HashMap<u64, Intent> = HashMap::new();
    for step in &steps.uncommitted {
        if let Some((Some(intent), _)) = run.intent(*step).await? {
            living.saw(intent.attempt, intent.created_ms);
            intents.insert(*step, intent);
        }
    }
    for object in &steps.objects {
        if let Some((step, name)) = split_step(&object.name)
            && let Some(attempt) = attempt_in_name(name).or_else(|| intents.get(&step).map(|intent| intent.attempt))
        {
            living.saw(attempt, object.modified_ms);
        }
    }
    // A delta in progress needs its ancestors, and which those are is only in the commit of its parent: when that is gone
    // the sweep leaves all objects of steps without a commit alone.
    let parents: HashSet<AttemptId> = intents
        .values()
        .filter(|intent| living.is_alive(&intent.attempt))
        .filter_map(|intent| intent.parent.map(|parent| parent.attempt))
        .filter(|parent| !committed.contains(parent))
        .collect();
    let mut swept = Swept::default();
    let mut urls = vec![];
    let mut last = vec![];
    for object in &steps.objects {
        let Some((step, name)) = split_step(&object.name) else { continue };
        if kept.contains(&object.name) || name == COMMIT_NAME || object.modified_ms > bound_ms {
            continue;
        }
        let owner = attempt_in_name(name).or_else(|| intents.get(&step).map(|intent| intent.attempt));
        if owner.is_some_and(|owner| living.is_alive(&owner)) || !parents.is_empty() {
            continue;
        }
        // The intent of a committed checkpoint stays with it, and so do plain files that we did not write.
        if steps.committed.contains_key(&step) && (name == INTENT_NAME || attempt_in_name(name).is_none()) {
            continue;
        }
        if owner.is_none() && !is_ours(name) {
            continue;
        }
        swept.bytes_freed = swept.bytes_freed.saturating_add(object.size_bytes);
        let list = if name == INTENT_NAME { &mut last } else { &mut urls };
        list.push(object_url(&run.url, &object.name));
    }
    swept.objects_deleted = run.origins.delete(&urls).await? + run.origins.delete(&last).await?;
    for upload in uploads.into_iter().flatten() {
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

/// Names that only checkpoints use.
fn is_ours(name: &str) -> bool {
    name == INTENT_NAME || attempt_in_name(name).is_some()
}

/// When each attempt last wrote something.
struct Living<'a> {
    known: &'a [AttemptId],
    bound_ms: u64,
    newest: HashMap<AttemptId, u64>,
}

impl<'a> Living<'a> {
    fn new(known: &'a [AttemptId], bound_ms: u64) -> Self {
        Living { known, bound_ms, newest: HashMap::new() }
    }

    fn saw(&mut self, attempt: AttemptId, at_ms: u64) {
        let newest = self.newest.entry(attempt).or_default();
        *newest = (*newest).max(at_ms);
    }

    fn is_alive(&self, attempt: &AttemptId) -> bool {
        self.known.contains(attempt) || self.newest.get(attempt).is_some_and(|newest| *newest > self.bound_ms)
    }
}
