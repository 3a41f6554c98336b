//! Ranks that plan one save call one by one, or in groups; each waits until all are there and gets the same plan.
//!
//! A call that goes away takes its ranks back, so that it can be repeated. What waits is bounded in number and in time, and
//! a time-out names the ranks that did not come.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use longshore_types::{Code, Error, Result};
use parking_lot::Mutex;
use tokio::sync::watch;

use super::names::invalid;
use super::{JOIN_TIMEOUT_MS, PlanRequest, RankItems, SavePlan, check, layout};

/// Most saves that wait for ranks at a time.
const JOINS_MAX: usize = 256;
/// Most ranks that a message names.
const NAMED_MAX: usize = 16;

type Planned = Option<Result<Arc<SavePlan>>>;

/// Joins ranks and lays out their checkpoints.
#[derive(Debug, Default)]
pub struct Planner {
    joins: Arc<Mutex<Joins>>,
}

#[derive(Debug, Default)]
struct Joins {
    open: HashMap<(String, u64), Join>,
    /// Numbers joins, so that a call never touches a later join of the same step.
    next: u64,
}

#[derive(Debug)]
struct Join {
    number: u64,
    /// What all calls must have alike; its ranks and time-out are empty.
    shared: PlanRequest,
    ranks: HashMap<u32, RankItems>,
    done: watch::Sender<Planned>,
}

impl Planner {
    /// Waits until all ranks of the step are there, and lays the checkpoint out.
    ///
    /// # Errors
    /// `InvalidArgument` when a rank is given twice, options differ (then for all ranks that wait), or what the ranks have
    /// does not make a checkpoint; `Timeout` naming the ranks that are missing; `Exhausted` when too many saves wait.
    pub async fn plan(&self, mut request: PlanRequest) -> Result<Arc<SavePlan>> {
        check::request(&request)?;
        let wait = if request.join_timeout_ms == 0 { JOIN_TIMEOUT_MS } else { request.join_timeout_ms };
        let ranks = std::mem::take(&mut request.ranks);
        request.join_timeout_ms = 0;
        if ranks.is_empty() {
            return Err(invalid("the call gives no rank's items: a rank that has nothing still takes part"));
        }
        let (guard, mut done) = self.enter(request, ranks)?;
        if let Some(full) = guard.take_when_full() {
            // The blocking task finishes even when this call goes away: the others wait for it.
            let sender = full.done.clone();
            let request = PlanRequest { ranks: full.ranks.into_values().collect(), ..full.shared };
            tokio::task::spawn_blocking(move || {
                let planned = layout(request).map(Arc::new);
                sender.send_replace(Some(planned));
            });
        }
        let waited = tokio::time::timeout(Duration::from_millis(wait), done.wait_for(Option::is_some)).await;
        match waited {
            Ok(Ok(planned)) => planned.clone().unwrap_or_else(|| Err(gone())),
            Ok(Err(_)) => Err(gone()),
            Err(_) => Err(guard.missing(wait)),
        }
    }

    /// Saves that wait for ranks.
    #[cfg(test)]
    pub(super) fn waiting(&self) -> usize {
        self.joins.lock().open.len()
    }

    /// Puts ranks into the join of their step.
    fn enter(&self, shared: PlanRequest, ranks: Vec<RankItems>) -> Result<(Guard, watch::Receiver<Planned>)> {
        let mut joins = self.joins.lock();
        let key = (shared.uri.clone(), shared.step);
        if joins.open.len() >= JOINS_MAX && !joins.open.contains_key(&key) {
            return Err(Error::new(
                Code::Exhausted,
                format!("{JOINS_MAX} saves wait for ranks already: wait until they are complete or time out"),
            ));
        }
        let number = joins.next;
        joins.next += 1;
        let join = joins.open.entry(key.clone()).or_insert_with(|| Join {
            number,
            shared: shared.clone(),
            ranks: HashMap::new(),
            done: watch::Sender::new(None),
        });
        if join.shared != shared {
            let error = invalid(format!(
                "the ranks that save step {} of {} give different options or world sizes ({} and {} ranks): all must give \
                 the same",
                shared.step, shared.uri, join.shared.world_size, shared.world_size
            ));
            join.done.send_replace(Some(Err(error.clone())));
            joins.open.remove(&key);
            return Err(error);
        }
        if let Some(twice) = ranks.iter().find(|rank| join.ranks.contains_key(&rank.rank)) {
            return Err(invalid(format!(
                "rank {} has joined the save of step {} of {} already",
                twice.rank, shared.step, shared.uri
            )));
        }
        let own = ranks.iter().map(|rank| rank.rank).collect();
        join.ranks.extend(ranks.into_iter().map(|rank| (rank.rank, rank)));
        let (number, done) = (join.number, join.done.subscribe());
        Ok((Guard { joins: self.joins.clone(), key, number, own }, done))
    }
}

fn gone() -> Error {
    Error::new(Code::Cancelled, "planning was given up: the process is ending")
}

/// The ranks of one call in a join; dropped, they leave it.
struct Guard {
    joins: Arc<Mutex<Joins>>,
    key: (String, u64),
    number: u64,
    own: Vec<u32>,
}

impl Guard {
    /// Takes the join out when all ranks are there: later calls for the step begin a new one.
    fn take_when_full(&self) -> Option<Join> {
        let mut joins = self.joins.lock();
        let join = joins.open.get(&self.key).filter(|join| join.number == self.number)?;
        if join.ranks.len() < join.shared.world_size as usize {
            return None;
        }
        joins.open.remove(&self.key)
    }

    fn missing(&self, waited_ms: u64) -> Error {
        let joins = self.joins.lock();
        let Some(join) = joins.open.get(&self.key).filter(|join| join.number == self.number) else {
            return Error::new(Code::Timeout, format!("the plan was not made within {waited_ms} ms"));
        };
        let missing: Vec<u32> = (0..join.shared.world_size).filter(|rank| !join.ranks.contains_key(rank)).collect();
        let named: Vec<String> = missing.iter().take(NAMED_MAX).map(u32::to_string).collect();
        let more =
            if missing.len() > NAMED_MAX { format!(" and {} more", missing.len() - NAMED_MAX) } else { String::new() };
        Error::new(
            Code::Timeout,
            format!(
                "not all ranks joined the save of step {} of {} within {waited_ms} ms: rank {}{more} of {} did not; check \
                 that they run and use the same URL, step and loader",
                self.key.1,
                self.key.0,
                named.join(", "),
                join.shared.world_size
            ),
        )
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let mut joins = self.joins.lock();
        let Some(join) = joins.open.get_mut(&self.key).filter(|join| join.number == self.number) else { return };
        for rank in &self.own {
            join.ranks.remove(rank);
        }
        if join.ranks.is_empty() {
            joins.open.remove(&self.key);
        }
    }
}
