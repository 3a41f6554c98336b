//! Several nodes that save one checkpoint: each writes a record for its ranks; whoever sees all of them commits.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use longshore_origin::{PutHow, PutOutcome};
use longshore_types::checkpoint::{COMMIT_BYTES_MAX, Commit, RankRecord, rank_record_name, step_folder};
use longshore_types::{Code, Error, Result};

use super::Writeback;
use super::objects::blocking;
use crate::attempt::Record;
use crate::commit::RankParts;

/// How often the folder of the step is looked at.
const LOOK_MIN: Duration = if cfg!(test) { Duration::from_millis(50) } else { Duration::from_millis(500) };
const LOOK_MAX: Duration = if cfg!(test) { Duration::from_millis(200) } else { Duration::from_secs(5) };
/// Nothing that other nodes do shows for this many times of the staging time: they are gone.
const SILENCE_FACTOR: u64 = 6;
/// Ranks that a message names.
const NAMED_MAX: usize = 16;

/// What the ranks of a save came to.
pub(super) enum Stored {
    /// The records of all ranks.
    Records(Vec<RankRecord>),
    /// Another node has committed.
    Committed(Box<Commit>),
}

impl Writeback {
    /// The records of the ranks of this node.
    pub(super) async fn own_records(&self) -> Result<Vec<RankRecord>> {
        let attempt = Arc::clone(&self.attempt);
        blocking(move || attempt.ranks().into_iter().map(|rank| RankParts::record(&attempt, rank)).collect()).await
    }

    /// Shows the other nodes that `own` ranks are stored, and waits for theirs.
    pub(super) async fn other_ranks(&self, own: &BTreeSet<u32>) -> Result<Stored> {
        self.show_ranks(own).await?;
        let plan = self.attempt.plan();
        let folder = self.run.url_of(&step_folder(plan.step));
        let silence_max = Duration::from_millis(plan.options.stage_timeout_ms().saturating_mul(SILENCE_FACTOR));
        let mut seen = (Instant::now(), 0);
        let mut pause = LOOK_MIN;
        loop {
            let listed = self.retry.run("the origin to list the step", || self.run.origins.list_below(&folder)).await?;
            let names: BTreeSet<&str> = listed.iter().map(|object| object.name.as_str()).collect();
            let missing: Vec<u32> = (0..plan.world_size)
                .filter(|rank| !names.contains(rank_record_name(&plan.attempt, *rank).as_str()))
                .collect();
            // Looked for after the listing: whoever commits deletes the records afterwards.
            let commit = self.retry.run("the origin to show the commit", || self.run.commit(plan.step)).await?;
            if let Some(commit) = commit {
                if commit.attempt == plan.attempt {
                    return Ok(Stored::Committed(Box::new(commit)));
                }
                self.run.check_claim(plan).await?;
            }
            if missing.is_empty() {
                match self.all_records().await? {
                    Some(records) => return Ok(Stored::Records(records)),
                    None => continue,
                }
            }
            if seen.1 != listed.len() {
                seen = (Instant::now(), listed.len());
                self.retry.run("the origin to show the intent", || self.run.check_claim(plan)).await?;
            }
            if seen.0.elapsed() > silence_max {
                return Err(Error::new(
                    Code::Timeout,
                    format!(
                        "{} of other nodes wrote nothing of {} within {silence_max:?}",
                        named(&missing),
                        self.attempt.url()
                    ),
                ));
            }
            self.attempt.waits_for(&format!("{} of other nodes", named(&missing)));
            self.retry.pause(pause).await?;
            pause = (pause * 2).min(LOOK_MAX);
        }
    }

    async fn show_ranks(&self, own: &BTreeSet<u32>) -> Result<()> {
        let shown: BTreeMap<u32, bool> =
            self.attempt.state().ranks.iter().map(|(rank, state)| (*rank, state.stored)).collect();
        if own.iter().all(|rank| shown.get(rank) == Some(&true)) {
            return Ok(());
        }
        for record in self.own_records().await? {
            if shown.get(&record.rank) == Some(&true) || !own.contains(&record.rank) {
                continue;
            }
            let url = self.run.step_url(record.step, &rank_record_name(&record.attempt, record.rank));
            let bytes = Bytes::from(record.to_bytes());
            self.retry
                .run("the origin to take the record of a rank", || async {
                    let put = self.run.origins.put(&url, bytes.clone(), PutHow::Create).await?;
                    if put == PutOutcome::Conflict {
                        // Ours, from before a restart or a lost answer: only this node has this rank.
                        let found = self.run.read(&url, COMMIT_BYTES_MAX).await?;
                        if found.is_some_and(|(found, _)| found != bytes) {
                            self.run.origins.put(&url, bytes.clone(), PutHow::Overwrite).await?;
                        }
                    }
                    Ok(())
                })
                .await?;
            self.attempt.record(Record::RankStored { rank: record.rank }).await?;
        }
        Ok(())
    }

    /// The records of all ranks; `None` when one is gone again, because the checkpoint was just committed.
    async fn all_records(&self) -> Result<Option<Vec<RankRecord>>> {
        let plan = self.attempt.plan();
        let mut records = Vec::with_capacity(plan.world_size as usize);
        for rank in 0..plan.world_size {
            let url = self.run.step_url(plan.step, &rank_record_name(&plan.attempt, rank));
            let read = self
                .retry
                .run("the origin to show the record of a rank", || self.run.read(&url, COMMIT_BYTES_MAX))
                .await?;
            let Some((bytes, _)) = read else { return Ok(None) };
            let record = {
                let url = url.clone();
                blocking(move || RankRecord::parse(&bytes, &url)).await?
            };
            if (record.attempt, record.step, record.rank) != (plan.attempt, plan.step, rank) {
                return Err(Error::new(Code::Corrupt, format!("{url} is the record of another rank or attempt")));
            }
            records.push(record);
        }
        Ok(Some(records))
    }
}

fn named(ranks: &[u32]) -> String {
    let first: Vec<String> = ranks.iter().take(NAMED_MAX).map(u32::to_string).collect();
    let more = if ranks.len() > NAMED_MAX { format!(" and {} more", ranks.len() - NAMED_MAX) } else { String::new() };
    format!("rank {}{more}", first.join(", "))
}
