//! A breaker for each member: one that failed is passed over for a while, then tried by one caller at a time.
//!
//! Health never changes the ring: a suspect member keeps its chunks, callers only ask the next owner first.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rand::RngExt;

use crate::id::MemberId;
use crate::member::View;

/// Pause after the first failure.
pub const PAUSE_MIN: Duration = Duration::from_millis(500);
/// Longest pause, reached after five failures in a row.
pub const PAUSE_MAX: Duration = Duration::from_secs(10);

/// What this process has found out about the members, by asking them. Share it behind an `Arc`.
#[derive(Debug, Default)]
pub struct Health {
    troubled: Mutex<HashMap<MemberId, Trouble>>,
}

/// A member that failed and has not answered since.
#[derive(Debug, Clone, Copy)]
struct Trouble {
    failures: u32,
    until: Instant,
    /// One caller has been let through and has not reported yet.
    on_trial: bool,
}

impl Health {
    /// Everybody is well.
    pub fn new() -> Self {
        Health::default()
    }

    /// The member answered as it should: forget its failures.
    pub fn report_ok(&self, id: MemberId) {
        self.troubled.lock().remove(&id);
    }

    /// The member could not be reached, or sent what it should not.
    pub fn report_failure(&self, id: MemberId) {
        self.failed_at(id, Instant::now());
    }

    /// Whether to ask others first. After its pause, one caller in each pause gets `false`: that is the trial.
    pub fn is_suspect(&self, id: MemberId) -> bool {
        self.suspect_at(id, Instant::now())
    }

    /// Whether the last report of the member was a failure. Unlike [`Health::is_suspect`] it uses up no trial: for
    /// status pages.
    pub fn is_troubled(&self, id: MemberId) -> bool {
        self.troubled.lock().contains_key(&id)
    }

    /// Forgets members that are not in `view`.
    pub fn retain(&self, view: &View) {
        self.troubled.lock().retain(|id, _| view.member(*id).is_some());
    }

    fn failed_at(&self, id: MemberId, now: Instant) {
        let mut troubled = self.troubled.lock();
        let trouble = troubled.entry(id).or_insert(Trouble { failures: 0, until: now, on_trial: false });
        // Many requests fail at once when a member dies: within one pause they count as one failure.
        if trouble.failures == 0 || now >= trouble.until || trouble.on_trial {
            trouble.failures = trouble.failures.saturating_add(1);
            trouble.until = now + pause(trouble.failures);
            trouble.on_trial = false;
        }
    }

    fn suspect_at(&self, id: MemberId, now: Instant) -> bool {
        match self.troubled.lock().get_mut(&id) {
            None => false,
            Some(trouble) if now < trouble.until => true,
            Some(trouble) => {
                // Should the trial never report, the next one starts after another pause.
                trouble.until = now + pause(trouble.failures);
                trouble.on_trial = true;
                false
            }
        }
    }
}

/// Doubles with each failure in a row, with jitter so that many loaders do not all come back in one moment.
fn pause(failures: u32) -> Duration {
    let doublings = failures.saturating_sub(1).min(16);
    let full = PAUSE_MIN.saturating_mul(1 << doublings).min(PAUSE_MAX);
    full.mul_f64(rand::rng().random_range(0.75..=1.0)).max(PAUSE_MIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_failure_pauses_then_one_caller_tries() {
        let (health, id, now) = (Health::new(), MemberId::random(), Instant::now());
        assert!(!health.suspect_at(id, now), "unknown members are well");
        health.failed_at(id, now);
        assert!(health.suspect_at(id, now + 499 * MS));
        assert!(!health.suspect_at(id, now + 501 * MS), "the trial");
        assert!(health.suspect_at(id, now + 502 * MS), "only one caller tries");
        health.report_ok(id);
        assert!(!health.suspect_at(id, now + 503 * MS));
        assert!(!health.is_troubled(id));
    }

    #[test]
    fn pauses_grow_to_their_bound_and_a_burst_counts_once() {
        let (health, id) = (Health::new(), MemberId::random());
        let mut now = Instant::now();
        for _ in 0..50 {
            health.failed_at(id, now);
        }
        assert!(!health.suspect_at(id, now + 501 * MS), "fifty failures at once are one");
        let mut longest = Duration::ZERO;
        for _ in 0..12 {
            let from = now;
            health.failed_at(id, now);
            while health.suspect_at(id, now) {
                now += 50 * MS;
            }
            longest = longest.max(now - from);
            assert!(now - from <= PAUSE_MAX + 50 * MS);
        }
        assert!(longest >= PAUSE_MAX.mul_f64(0.7), "{longest:?}");
    }

    #[test]
    fn a_trial_that_never_reports_does_not_lock_the_member_out() {
        let (health, id, now) = (Health::new(), MemberId::random(), Instant::now());
        health.failed_at(id, now);
        assert!(!health.suspect_at(id, now + 600 * MS));
        assert!(!health.suspect_at(id, now + 1200 * MS));
    }

    #[test]
    fn members_that_left_are_forgotten() {
        let (health, id) = (Health::new(), MemberId::random());
        health.report_failure(id);
        assert!(health.is_troubled(id));
        health.retain(&View::default());
        assert!(!health.is_troubled(id));
    }
}
