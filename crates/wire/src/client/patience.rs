//! How long a fetch waits for the next byte: the stall timeout, and no longer than its caller wants it.

use std::io;
use std::time::{Duration, Instant};

use longshore_types::{Code, Error, Result};
use tokio_util::sync::CancellationToken;

use crate::stream::timed_out;

/// The longest wait before it is looked whether the caller still waits. Costs a few wake-ups a second, of silent
/// connections alone.
pub(crate) const LOOK_AFTER: Duration = Duration::from_millis(200);

/// See the module.
#[derive(Clone)]
pub(crate) struct Patience {
    pub(crate) stall_timeout: Duration,
    pub(crate) stop: CancellationToken,
}

impl Patience {
    /// The read timeout of a socket whose reads go through [`Patience::read`].
    pub(crate) fn socket_timeout(stall_timeout: Duration) -> Duration {
        stall_timeout.min(LOOK_AFTER)
    }

    /// # Errors
    /// [`Code::Cancelled`].
    pub(crate) fn check(&self) -> Result<()> {
        match self.stop.is_cancelled() {
            true => Err(Error::new(Code::Cancelled, "the fetch was given up")),
            false => Ok(()),
        }
    }

    /// Repeats a read that ends in a socket timeout, up to the stall timeout or until the caller has left.
    pub(crate) fn read(&self, mut read: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
        let mut deadline = None;
        loop {
            match read() {
                Err(error) if timed_out(&error) && !self.stop.is_cancelled() => {
                    // From the first look on: so the clock is not read for each read.
                    let rest = self.stall_timeout.saturating_sub(LOOK_AFTER);
                    let deadline = *deadline.get_or_insert_with(|| Instant::now() + rest);
                    if Instant::now() >= deadline {
                        return Err(error);
                    }
                }
                other => return other,
            }
        }
    }

    /// The same for a wait that takes its own time limit.
    ///
    /// # Errors
    /// [`Code::Cancelled`], and what `wait` says.
    pub(crate) fn wait<T>(&self, mut wait: impl FnMut(Duration) -> Result<T>) -> Result<T> {
        let deadline = Instant::now() + self.stall_timeout;
        loop {
            self.check()?;
            let left = deadline.saturating_duration_since(Instant::now());
            match wait(left.min(LOOK_AFTER)) {
                Err(error) if error.code() == Code::Timeout && left > LOOK_AFTER => {}
                other => return other,
            }
        }
    }
}
