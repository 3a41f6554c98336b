//! How often the origin is asked again. Down: for ever, with growing pauses. Refusing (no permission, quota, bucket gone): for
//! a while, since people repair these; then the caller suspends the attempt.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use longshore_types::{Code, Error, Result};

use crate::attempt::Attempt;

/// First and longest pause.
const PAUSE_MIN: Duration = if cfg!(test) { Duration::from_millis(10) } else { Duration::from_millis(500) };
const PAUSE_MAX: Duration = if cfg!(test) { Duration::from_millis(200) } else { Duration::from_secs(30) };
/// How long a refusal may last.
const REFUSED_MAX: Duration = if cfg!(test) { Duration::from_secs(1) } else { Duration::from_secs(15 * 60) };

/// What to do about an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    /// It passes: wait as long as it takes.
    Down,
    /// Somebody has to do something: wait for a while.
    Refused,
    /// Asking again cannot help.
    Final,
}

fn class(error: &Error) -> Class {
    match error.code() {
        Code::Unavailable | Code::Timeout => Class::Down,
        // S3 answers a HEAD with expired credentials with a bare 400.
        Code::InvalidArgument
        | Code::Unauthenticated
        | Code::PermissionDenied
        | Code::NotFound
        | Code::Exhausted
        | Code::Internal => Class::Refused,
        Code::FailedPrecondition | Code::Corrupt | Code::Cancelled | Code::Unsupported => Class::Final,
    }
}

/// Repeats requests for one attempt.
pub(crate) struct Retry {
    attempt: Arc<Attempt>,
}

impl Retry {
    pub(crate) fn new(attempt: &Arc<Attempt>) -> Retry {
        Retry { attempt: Arc::clone(attempt) }
    }

    /// Runs `work` until it succeeds or cannot. `what` is what the save waits for meanwhile.
    pub(crate) async fn run<T, F: Future<Output = Result<T>>>(&self, what: &str, work: impl FnMut() -> F) -> Result<T> {
        self.run_but(what, &[], work).await
    }

    /// As [`Retry::run`], but errors of these codes are the caller's.
    pub(crate) async fn run_but<T, F: Future<Output = Result<T>>>(
        &self,
        what: &str,
        handed_back: &[Code],
        mut work: impl FnMut() -> F,
    ) -> Result<T> {
        let mut pause = PAUSE_MIN;
        let mut refused_since: Option<Instant> = None;
        let mut waited = false;
        loop {
            let result = tokio::select! {
                () = self.attempt.token().cancelled() => return Err(self.attempt.why_stopped()),
                result = work() => result,
            };
            let error = match result {
                Ok(value) => {
                    if waited {
                        self.attempt.waits_for("");
                    }
                    return Ok(value);
                }
                Err(error) => error,
            };
            if handed_back.contains(&error.code()) {
                return Err(error);
            }
            match class(&error) {
                Class::Final => return Err(error),
                Class::Down => refused_since = None,
                Class::Refused => {
                    if refused_since.get_or_insert_with(Instant::now).elapsed() >= REFUSED_MAX {
                        return Err(error);
                    }
                }
            }
            waited = true;
            // Others may need the memory while nothing moves.
            self.attempt.warm().clear();
            self.attempt.waits_for(&format!("{what}: {error}"));
            self.attempt.update(|status| status.retries += 1);
            tracing::debug!(attempt = %self.attempt.id(), what, %error, ?pause, "asked again");
            self.pause(pause).await?;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    /// Waits up to `pause`, at least half of it, so that many who wait do not come back together.
    pub(crate) async fn pause(&self, pause: Duration) -> Result<()> {
        let pause = pause.mul_f64(0.5 + rand::random::<f64>() / 2.0);
        tokio::select! {
            () = self.attempt.token().cancelled() => Err(self.attempt.why_stopped()),
            () = tokio::time::sleep(pause) => Ok(()),
        }
    }
}
