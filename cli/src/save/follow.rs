//! Follows one save up to where the command waits, showing how far it is. The first interruption cancels the save, a
//! second one ends the command and leaves the save to whoever goes on with it.

use std::time::{Duration, Instant};

use longshore_proto::v1;
use longshore_types::{Code, Error, Result, redact_url};
use tokio_util::sync::CancellationToken;
use tonic::Streaming;

use super::outcome_error;
use crate::args::WaitFor;
use crate::output::Output;
use crate::progress::Progress;
use crate::saver::{Saver, failed, is_running};

/// A wait that is longer is told.
const WAIT_TOLD_AFTER: Duration = Duration::from_secs(5);
/// How often that is looked at while the status does not change.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Reads the statuses until `wait` is reached, and gives the one that says so.
///
/// # Errors
/// What the save failed of, [`Code::Cancelled`] when it was cancelled, by this command or by others.
pub async fn follow(
    saver: &Saver,
    mut stream: Streaming<v1::SaveStatus>,
    wait: WaitFor,
    output: Output,
    token: &CancellationToken,
) -> Result<v1::SaveStatus> {
    let mut shown = Shown::new(output);
    let mut last: Option<v1::SaveStatus> = None;
    let mut is_cancelling = false;
    let outcome = loop {
        tokio::select! {
            message = stream.message() => match message.map_err(failed) {
                Ok(Some(status)) => {
                    shown.update(&status);
                    let state = status.state();
                    let is_over = matches!(state, v1::SaveState::Failed | v1::SaveState::Cancelled);
                    // Who cancels waits for the end, whichever it is.
                    let is_reached = is_reached(state, wait) && (!is_cancelling || !is_running(state));
                    if is_over {
                        break Err(outcome_error(&status));
                    }
                    if is_reached {
                        break Ok(status);
                    }
                    last = Some(status);
                }
                Ok(None) => break Err(broke_off(saver, last.as_ref())),
                Err(error) => break Err(error),
            },
            () = token.cancelled(), if !is_cancelling && last.is_some() => {
                is_cancelling = true;
                let Some(status) = &last else { continue };
                shown.line(&format!(
                    "cancelling the save of step {} to {}; interrupt again to leave it: {}",
                    status.step, redact_url(&status.uri), saver.goes_on()
                ));
                let cancel = v1::CancelSaveRequest { attempt: status.attempt.clone() };
                if let Err(status) = saver.client.clone().cancel_save(cancel).await {
                    break Err(failed(status));
                }
            }
            () = tokio::time::sleep(LOOK_INTERVAL) => shown.tell_wait(),
        }
    };
    shown.progress.finish();
    outcome
}

/// Whether a save in `state` is as far as `wait` asks.
fn is_reached(state: v1::SaveState, wait: WaitFor) -> bool {
    let at = match state {
        v1::SaveState::Staged => WaitFor::Staged,
        v1::SaveState::LocalDurable => WaitFor::Local,
        v1::SaveState::Committed => WaitFor::Committed,
        _ => return false,
    };
    at >= wait
}

fn broke_off(saver: &Saver, last: Option<&v1::SaveStatus>) -> Error {
    let whose = last.map_or_else(|| "the save".to_owned(), |status| format!("the save of step {}", status.step));
    Error::new(Code::Unavailable, format!("{whose} was left before its end: {}", saver.goes_on()))
}

/// What a terminal shows of a save.
struct Shown {
    progress: Progress,
    waiting_for: String,
    since: Instant,
    is_told: bool,
}

impl Shown {
    fn new(output: Output) -> Self {
        let progress = Progress::new(output);
        Shown { progress, waiting_for: String::new(), since: Instant::now(), is_told: false }
    }

    fn update(&mut self, status: &v1::SaveStatus) {
        let total = status.bytes_total;
        let (step, done) = match status.state() {
            v1::SaveState::Staging => ("copying", status.bytes_staged),
            v1::SaveState::Staged => ("writing", status.bytes_durable),
            _ => ("uploading", status.bytes_uploaded.saturating_add(status.bytes_unchanged)),
        };
        self.progress.update(step, done, total);
        if self.waiting_for != status.waiting_for {
            (self.waiting_for, self.since, self.is_told) = (status.waiting_for.clone(), Instant::now(), false);
        }
        self.tell_wait();
    }

    /// Says once what is waited for, when it takes long.
    fn tell_wait(&mut self) {
        if !self.waiting_for.is_empty() && !self.is_told && self.since.elapsed() >= WAIT_TOLD_AFTER {
            self.is_told = true;
            self.line(&format!("waiting for {}", self.waiting_for));
        }
    }

    fn line(&self, line: &str) {
        self.progress.line(line);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_reaches_all_that_come_before_it() {
        use v1::SaveState as S;
        assert!(is_reached(S::Staged, WaitFor::Staged) && is_reached(S::Committed, WaitFor::Staged));
        assert!(!is_reached(S::Staged, WaitFor::Local) && is_reached(S::LocalDurable, WaitFor::Local));
        assert!(!is_reached(S::LocalDurable, WaitFor::Committed) && is_reached(S::Committed, WaitFor::Committed));
        assert!(!is_reached(S::Staging, WaitFor::Staged) && !is_reached(S::Failed, WaitFor::Staged));
    }
}
