//! What is counted.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use crate::Args;

/// Findings that are kept word for word.
const FINDINGS_MAX: usize = 20;

/// Counts of one lane or of all.
#[derive(Debug, Default)]
pub struct Tally {
    /// Kills amid saves.
    pub iterations: u64,
    /// SIGKILLs, those while the loader was starting again among them.
    pub kills: u64,
    /// How far the save was, as the trainer knew, when the kill came.
    pub at_kill: BTreeMap<&'static str, u64>,
    /// How the save ended after the restart.
    pub ended: BTreeMap<&'static str, u64>,
    /// Iterations in which the shared memory was lost too.
    pub memory_losses: u64,
    /// Iterations in which the trainer came back.
    pub comebacks: u64,
    /// Checkpoints with a commit that were read back whole.
    pub whole: u64,
    /// Checkpoints with a commit that were not.
    pub torn: u64,
    /// Acknowledgements that did not hold.
    pub lost: u64,
    /// Saves that were said to be committed and are not to be seen, or the other way round.
    pub untold: u64,
    /// Parts that came in.
    pub parts: u64,
    /// Of them, those that came in again.
    pub parts_again: u64,
    /// Most of them in one iteration, for each of its kills.
    pub again_a_kill_max: u64,
    /// What was found wrong.
    pub findings: Vec<String>,
    /// Time from the start of the process to its readiness, in all.
    pub restarting: Duration,
}

impl Tally {
    /// Something is not as it must be.
    pub fn find(&mut self, what: String) {
        eprintln!("FOUND: {what}");
        if self.findings.len() < FINDINGS_MAX {
            self.findings.push(what);
        }
    }

    pub fn add(&mut self, other: Tally) {
        self.iterations += other.iterations;
        self.kills += other.kills;
        self.memory_losses += other.memory_losses;
        self.comebacks += other.comebacks;
        self.whole += other.whole;
        self.torn += other.torn;
        self.lost += other.lost;
        self.untold += other.untold;
        self.parts += other.parts;
        self.parts_again += other.parts_again;
        self.again_a_kill_max = self.again_a_kill_max.max(other.again_a_kill_max);
        self.restarting += other.restarting;
        other.at_kill.into_iter().for_each(|(state, count)| *self.at_kill.entry(state).or_default() += count);
        other.ended.into_iter().for_each(|(state, count)| *self.ended.entry(state).or_default() += count);
        self.findings.extend(other.findings);
        self.findings.truncate(FINDINGS_MAX);
    }

    pub fn is_good(&self, streams: u64) -> bool {
        self.torn + self.lost + self.untold == 0 && self.again_a_kill_max <= streams && self.findings.is_empty()
    }

    pub fn json(&self, args: &Args, elapsed: Duration) -> Value {
        json!({
            "what": "random SIGKILLs of a loader that saves",
            "build": if cfg!(debug_assertions) { "debug" } else { "release" },
            "seed": args.seed,
            "lanes": args.lanes,
            "checkpoint_mib": args.mib,
            "streams": args.streams,
            "seconds": elapsed.as_secs_f64(),
            "iterations": self.iterations,
            "kills": self.kills,
            "kills_by_state": self.at_kill,
            "ended": self.ended,
            "shared_memory_lost": self.memory_losses,
            "trainer_came_back": self.comebacks,
            "checkpoints_read_back_whole": self.whole,
            "torn": self.torn,
            "lost_acknowledgements": self.lost,
            "told_otherwise_than_it_is": self.untold,
            "parts_received": self.parts,
            "parts_sent_twice": self.parts_again,
            "parts_sent_twice_a_kill_max": self.again_a_kill_max,
            "restart_milliseconds_mean": self.restarting.as_secs_f64() * 1e3 / self.kills.max(1) as f64,
            "findings": self.findings,
        })
    }
}
