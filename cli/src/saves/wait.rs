//! Waits for saves to end, side by side, and says on stderr how they get on.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};

use futures::StreamExt;
use futures::stream::SelectAll;
use longshore_proto::v1;
use longshore_types::{Code, Error, Result, redact_url};
use tokio_util::sync::CancellationToken;

use super::describe;
use crate::output::Output;
use crate::progress::Progress;
use crate::save::outcome_error;
use crate::saver::{Saver, failed, is_running};

/// Waits until every one of `saves` has ended.
///
/// # Errors
/// That of the first save which failed, once all have ended; [`Code::Cancelled`] when this is interrupted.
pub async fn wait(
    saver: &Saver,
    saves: &[v1::SaveStatus],
    is_verbose: bool,
    output: Output,
    token: &CancellationToken,
) -> Result<()> {
    let mut streams = SelectAll::new();
    for save in saves {
        let attempt = save.attempt.clone();
        let request = v1::WatchSaveRequest { attempt: attempt.clone() };
        let stream = saver.client.clone().watch_save(request).await.map_err(failed)?.into_inner();
        streams.push(stream.map(move |message| (attempt.clone(), message)));
    }
    let mut told = Told::new(saves, is_verbose, output);
    let mut failure = None;
    while !told.running.is_empty() {
        let message = tokio::select! {
            message = streams.next() => message,
            () = token.cancelled() => {
                let message = format!("interrupted; what is not in the origin yet stays: {}", saver.goes_on());
                return Err(Error::new(Code::Cancelled, message));
            }
        };
        match message {
            Some((_, Ok(status))) => {
                told.update(&status);
                if matches!(status.state(), v1::SaveState::Failed | v1::SaveState::Cancelled) {
                    failure.get_or_insert_with(|| outcome_error(&status));
                }
            }
            Some((attempt, Err(status))) => {
                told.running.remove(&attempt);
                failure.get_or_insert_with(|| failed(status));
            }
            None => {
                let message = format!("{} saves were left before their end: {}", told.running.len(), saver.goes_on());
                failure.get_or_insert_with(|| Error::new(Code::Unavailable, message));
                break;
            }
        }
    }
    told.end(saves.len());
    failure.map_or(Ok(()), Err)
}

/// What was shown.
struct Told {
    progress: Progress,
    is_telling: bool,
    /// The last of each save that goes on.
    running: BTreeMap<String, v1::SaveStatus>,
    committed: usize,
}

impl Told {
    fn new(saves: &[v1::SaveStatus], is_verbose: bool, output: Output) -> Told {
        let is_telling = is_verbose || std::io::stderr().is_terminal();
        let progress = Progress::new(output);
        let told = Told { progress, is_telling, running: BTreeMap::new(), committed: 0 };
        for save in saves {
            told.line(&line(save));
        }
        Told { running: saves.iter().map(|save| (save.attempt.clone(), save.clone())).collect(), ..told }
    }

    fn update(&mut self, status: &v1::SaveStatus) {
        let before = self.running.remove(&status.attempt);
        let is_news = before.is_none_or(|before| {
            before.state() != status.state()
                || before.waiting_for.is_empty() != status.waiting_for.is_empty() && !status.waiting_for.is_empty()
        });
        if is_news {
            self.line(&line(status));
        }
        match status.state() {
            v1::SaveState::Committed => self.committed += 1,
            state if is_running(state) => {
                self.running.insert(status.attempt.clone(), status.clone());
            }
            _ => {}
        }
        let sum = |of: fn(&v1::SaveStatus) -> u64| self.running.values().map(of).fold(0, u64::saturating_add);
        let done = sum(|save| save.bytes_uploaded.saturating_add(save.bytes_unchanged));
        let total = sum(|save| save.bytes_total);
        if total > 0 {
            self.progress.update("uploading", done, total);
        }
    }

    fn end(self, saves: usize) {
        let text = match saves {
            0 => "no save is going on".to_owned(),
            saves => format!("{} of {saves} saves committed", self.committed),
        };
        self.line(&text);
        self.progress.finish();
    }

    fn line(&self, text: &str) {
        if !self.is_telling {
            return;
        }
        match std::io::stderr().is_terminal() {
            true => self.progress.line(text),
            // Asked for, whatever else goes to stdout. A line that cannot be shown is no reason to stop.
            false => drop(writeln!(std::io::stderr(), "{text}")),
        }
    }
}

/// A save and how far it is.
fn line(save: &v1::SaveStatus) -> String {
    let mut text = format!("{}: {}", redact_url(&save.url), describe(save));
    if is_running(save.state()) && !save.waiting_for.is_empty() {
        text.push_str(&format!("; waits for {}", save.waiting_for));
    }
    if save.state() == v1::SaveState::Failed {
        text.push_str(&format!("; {}: {}", save.error_code, save.error_message));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_which_save_how_far_and_why() {
        let status = v1::SaveStatus {
            url: "https://user:secret@host/run/step-7".into(),
            state: v1::SaveState::LocalDurable.into(),
            bytes_total: 4_000_000,
            bytes_uploaded: 1_000_000,
            waiting_for: "the origin".into(),
            error_code: "exhausted".into(),
            error_message: "no room".into(),
            ..Default::default()
        };
        let expected = "https://host/run/step-7: local_durable, 1.0 MB of 4.0 MB uploaded; waits for the origin";
        assert_eq!(line(&status), expected);
        let status = v1::SaveStatus { state: v1::SaveState::Failed.into(), ..status };
        assert_eq!(line(&status), "https://host/run/step-7: failed, 4.0 MB; exhausted: no room");
    }
}
