//! What all calls to one bucket or server share: how many run at once, and how fast failures may be repeated.
//!
//! A call has a budget of its own (attempts and time, renewed by progress); beside it a token bucket per origin bounds
//! the retries of all calls together, so that a dead origin sees a trickle and not every waiter's full budget.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use longshore_types::{Error, Result};
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::fault::{Attempt, Fault, Retry};
use crate::options::{Limits, OriginOptions};
use crate::stats::{Counters, count};

/// Longest single pause between two attempts, unless the server asks for more.
const PAUSE_MAX: Duration = Duration::from_secs(10);
/// Attempts at an origin that has never answered anything: a mistyped endpoint must not take minutes to report.
const ATTEMPTS_UNTIL_REACHED: u32 = 3;
/// Retries that all calls together may make at once.
const BURST_RETRIES: f64 = 64.0;
/// Retries per second of all calls together once the burst is spent.
const RETRIES_PER_SECOND: f64 = 8.0;
/// Bytes that count as progress and renew the budget of a read.
const PROGRESS_BYTES: u64 = 1 << 20;

/// The retry policy and bounds of one origin. Shared by all calls to it.
pub(crate) struct Lane {
    pub limits: Limits,
    pub counters: Arc<Counters>,
    attempts_max: u32,
    retry_time_max: Duration,
    pause: Duration,
    connections: Arc<Semaphore>,
    tokens: Mutex<Tokens>,
    /// Whether the origin has ever sent a response.
    reached: AtomicBool,
}

struct Tokens {
    level: f64,
    at: Instant,
}

impl Lane {
    pub(crate) fn new(options: &OriginOptions, counters: Arc<Counters>) -> Self {
        Lane {
            limits: options.limits(),
            counters,
            attempts_max: options.attempts_max.max(1),
            retry_time_max: Duration::from_millis(options.retry_time_ms_max),
            pause: Duration::from_millis(options.retry_pause_ms.max(1)),
            connections: Arc::new(Semaphore::new(options.connections_max.clamp(1, 4096) as usize)),
            tokens: Mutex::new(Tokens { level: BURST_RETRIES, at: Instant::now() }),
            reached: AtomicBool::new(false),
        }
    }

    /// Notes that the origin answered, whatever it said.
    pub(crate) fn reached(&self) {
        self.reached.store(true, Ordering::Relaxed);
    }

    /// Waits for a free connection; it is held until the permit is dropped.
    pub(crate) async fn connection(&self) -> Option<OwnedSemaphorePermit> {
        // The semaphore is never closed, so this is always Some.
        self.connections.clone().acquire_owned().await.ok()
    }

    /// A fresh budget for one call.
    pub(crate) fn budget(&self) -> Budget {
        Budget { attempts: 0, since: Instant::now(), progress_bytes: 0 }
    }

    /// Runs `attempt` until it succeeds, fails for good, or its budget is spent.
    pub(crate) async fn run<T, F>(&self, mut attempt: impl FnMut() -> F) -> Result<T>
    where
        F: Future<Output = Attempt<T>>,
    {
        let mut budget = self.budget();
        loop {
            let permit = self.connection().await;
            let result = attempt().await;
            drop(permit);
            match result {
                Ok(value) => return Ok(value),
                Err(fault) => self.pause(&mut budget, fault).await?,
            }
        }
    }

    /// Waits before the next attempt, or gives the final error.
    pub(crate) async fn pause(&self, budget: &mut Budget, fault: Fault) -> Result<()> {
        match self.plan(budget, &fault) {
            Some(wait) => {
                tracing::debug!(error = %fault.error, attempt = budget.attempts, ?wait, "origin request is repeated");
                count(&self.counters.retries, 1);
                tokio::time::sleep(wait).await;
                Ok(())
            }
            None => {
                count(&self.counters.errors, 1);
                Err(budget.give_up(fault.error))
            }
        }
    }

    /// How long to wait before the next attempt; `None` when there must be none.
    fn plan(&self, budget: &mut Budget, fault: &Fault) -> Option<Duration> {
        if budget.attempts == 0 {
            // Time starts to count at the first failure, not while bytes flow.
            budget.since = Instant::now();
        }
        budget.attempts += 1;
        let Retry::After(asked) = fault.retry else { return None };
        let reached = self.reached.load(Ordering::Relaxed);
        let attempts_max = if reached { self.attempts_max } else { self.attempts_max.min(ATTEMPTS_UNTIL_REACHED) };
        if budget.attempts >= attempts_max {
            return None;
        }
        let left = self.retry_time_max.checked_sub(budget.since.elapsed())?;
        let bound = self.pause.saturating_mul(1 << (budget.attempts - 1).min(16)).min(PAUSE_MAX);
        let own = bound.mul_f64(rand::random::<f64>());
        let wait = own.max(asked.unwrap_or_default());
        if wait > left {
            return None;
        }
        self.take_token(wait, left)
    }

    /// Takes one retry from the shared bucket: the wait grows when the bucket is in debt, and nothing is taken when
    /// that would exceed `left`.
    fn take_token(&self, wait: Duration, left: Duration) -> Option<Duration> {
        let mut tokens = self.tokens.lock();
        let now = Instant::now();
        let refill = now.duration_since(tokens.at).as_secs_f64() * RETRIES_PER_SECOND;
        tokens.level = (tokens.level + refill).min(BURST_RETRIES);
        tokens.at = now;
        let debt = Duration::from_secs_f64((1.0 - tokens.level).max(0.0) / RETRIES_PER_SECOND);
        let wait = wait.max(debt);
        if wait > left {
            return None;
        }
        tokens.level -= 1.0;
        Some(wait)
    }
}

/// What one call has used up since its last progress.
pub(crate) struct Budget {
    attempts: u32,
    since: Instant,
    progress_bytes: u64,
}

impl Budget {
    /// Notes received bytes; a mebibyte of them renews the budget, so that only an origin that makes no headway
    /// exhausts it.
    pub(crate) fn progressed(&mut self, bytes: u64) {
        if self.attempts == 0 {
            return;
        }
        self.progress_bytes += bytes;
        if self.progress_bytes >= PROGRESS_BYTES {
            *self = Budget { attempts: 0, since: Instant::now(), progress_bytes: 0 };
        }
    }

    fn give_up(&self, error: Error) -> Error {
        if self.attempts <= 1 {
            return error;
        }
        let text = format!(
            "{}; gave up after {} attempts in {:.1} s",
            error.message(),
            self.attempts,
            self.since.elapsed().as_secs_f64()
        );
        Error::new(error.code(), text)
    }
}

#[cfg(test)]
mod tests {
    use longshore_types::Code;

    use super::*;

    fn lane(options: OriginOptions) -> Lane {
        let lane = Lane::new(&options, Arc::default());
        lane.reached();
        lane
    }

    #[test]
    fn pauses_double_and_end_with_the_attempts() {
        let lane = lane(OriginOptions { attempts_max: 5, retry_pause_ms: 100, ..OriginOptions::default() });
        let fault = Fault::passing(Code::Unavailable, "503");
        let mut budget = lane.budget();
        for bound_ms in [100, 200, 400, 800] {
            assert!(lane.plan(&mut budget, &fault).unwrap() <= Duration::from_millis(bound_ms));
        }
        assert_eq!(lane.plan(&mut budget, &fault), None);
    }

    #[test]
    fn a_server_that_asks_for_a_pause_gets_it_unless_it_is_too_long() {
        let lane = lane(OriginOptions { retry_time_ms_max: 5_000, ..OriginOptions::default() });
        let asks = |seconds| Fault {
            retry: Retry::After(Some(Duration::from_secs(seconds))),
            ..Fault::passing(Code::Unavailable, "429")
        };
        assert!(lane.plan(&mut lane.budget(), &asks(2)).unwrap() >= Duration::from_secs(2));
        assert_eq!(lane.plan(&mut lane.budget(), &asks(60)), None);
        assert_eq!(lane.plan(&mut lane.budget(), &Fault::fatal(Code::NotFound, "404")), None);
    }

    #[test]
    fn an_origin_that_never_answered_is_given_up_soon() {
        let lane = Lane::new(&OriginOptions::default(), Arc::default());
        let mut budget = lane.budget();
        let fault = Fault::passing(Code::Unavailable, "refused");
        assert!(lane.plan(&mut budget, &fault).is_some());
        assert!(lane.plan(&mut budget, &fault).is_some());
        assert!(lane.plan(&mut budget, &fault).is_none());
    }

    #[test]
    fn all_calls_together_are_slowed_down_once_the_burst_is_spent() {
        let lane = lane(OriginOptions { retry_pause_ms: 1, retry_time_ms_max: 2_000, ..OriginOptions::default() });
        let fault = Fault::passing(Code::Unavailable, "503");
        let waits: Vec<_> = (0..200).map(|_| lane.plan(&mut lane.budget(), &fault)).collect();
        assert!(waits[..60].iter().all(|wait| wait.unwrap() < Duration::from_millis(100)));
        // 64 at once, then eight a second for the two seconds that the budget has.
        let allowed = waits.iter().flatten().count();
        assert!((70..=90).contains(&allowed), "{allowed} of 200 retries were allowed");
    }

    #[test]
    fn a_mebibyte_of_progress_renews_the_budget() {
        let lane = lane(OriginOptions { attempts_max: 2, ..OriginOptions::default() });
        let fault = Fault::passing(Code::Unavailable, "cut");
        let mut budget = lane.budget();
        for _ in 0..10 {
            assert!(lane.plan(&mut budget, &fault).is_some());
            budget.progressed(PROGRESS_BYTES);
        }
        assert!(lane.plan(&mut budget, &fault).is_some());
        budget.progressed(10);
        assert!(lane.plan(&mut budget, &fault).is_none());
    }
}
