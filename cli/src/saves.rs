//! `longshore saves`: the saves that a loader, or the folder of this user, has in hand.

mod wait;

use std::fmt::Write;

use longshore_origin::Origins;
use longshore_proto::v1;
use longshore_types::{Code, Error, Result, format_bytes, redact_url};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::args::SavesArgs;
use crate::output::{Output, row, table};
use crate::saver::{Saver, failed, is_running, state_name, to_json};

/// Runs the command.
///
/// # Errors
/// Those of the loader; with `--wait`, that of the first save which failed.
pub async fn run(args: SavesArgs, output: Output, token: CancellationToken) -> Result<()> {
    let origins = Origins::new(args.saver.origin.clone())?;
    let mut saver = Saver::open(&args.saver, &origins).await?;
    let done = match (&args.cancel, args.wait) {
        (Some(attempt), _) => cancel(&mut saver, attempt, output).await,
        (None, true) => wait(&mut saver, args.verbose, output, &token).await,
        (None, false) => list(&mut saver, output).await,
    };
    saver.close().await;
    done
}

async fn statuses(saver: &mut Saver) -> Result<Vec<v1::SaveStatus>> {
    Ok(saver.client.list_saves(v1::ListSavesRequest {}).await.map_err(failed)?.into_inner().saves)
}

async fn list(saver: &mut Saver, output: Output) -> Result<()> {
    let saves = statuses(saver).await?;
    print(&saves, &saver.name, output)
}

fn print(saves: &[v1::SaveStatus], loader: &str, output: Output) -> Result<()> {
    let value = json!({"loader": loader, "saves": saves.iter().map(to_json).collect::<Vec<_>>()});
    output.result(&value, |text| match saves.is_empty() {
        true => text.push_str("no saves\n"),
        false => write_rows(text, saves),
    })
}

/// A table of saves, each with what it waits for or failed of below it.
pub fn write_rows(text: &mut String, saves: &[v1::SaveStatus]) {
    let rows: Vec<_> = saves.iter().map(|save| row([&save.attempt, &describe(save), &redact_url(&save.url)])).collect();
    for (line, save) in table(&rows).lines().zip(saves) {
        let _ = writeln!(text, "{line}");
        let error = Some(&save.error_message).filter(|_| save.state() == v1::SaveState::Failed);
        let waits = Some(&save.waiting_for).filter(|waits| is_running(save.state()) && !waits.is_empty());
        if let Some(waits) = waits {
            let _ = writeln!(text, "  waits for {waits}");
        }
        if let Some(error) = error {
            let _ = writeln!(text, "  {}: {error}", save.error_code);
        }
        for note in &save.notes {
            let _ = writeln!(text, "  note: {note}");
        }
    }
}

/// State and bytes, for instance `local_durable, 1.2 GB of 4.0 GB uploaded`.
fn describe(save: &v1::SaveStatus) -> String {
    let (state, total) = (state_name(save.state()), format_bytes(save.bytes_total));
    let uploaded = save.bytes_uploaded.saturating_add(save.bytes_unchanged);
    let of = |bytes: u64, what: &str| format!("{state}, {} of {total} {what}", format_bytes(bytes));
    match save.state() {
        v1::SaveState::Staging => of(save.bytes_staged, "copied"),
        v1::SaveState::Staged => of(save.bytes_durable, "on the disk"),
        v1::SaveState::LocalDurable => of(uploaded, "uploaded"),
        _ => format!("{state}, {total}"),
    }
}

async fn cancel(saver: &mut Saver, attempt: &str, output: Output) -> Result<()> {
    let request = v1::CancelSaveRequest { attempt: attempt.to_owned() };
    let status = saver.client.cancel_save(request).await.map_err(failed)?.into_inner();
    if status.state() == v1::SaveState::Committed {
        let message = format!(
            "the save of step {} is committed already; `longshore checkpoints URI --delete {}` removes it",
            status.step, status.step
        );
        return Err(Error::new(Code::FailedPrecondition, message));
    }
    output.result(&to_json(&status), |text| {
        let (step, uri) = (status.step, redact_url(&status.uri));
        let _ = writeln!(text, "cancelled the save of step {step} to {uri}: nothing of it is visible");
    })
}

/// Waits for every save that goes on now, and prints what became of them.
async fn wait(saver: &mut Saver, is_verbose: bool, output: Output, token: &CancellationToken) -> Result<()> {
    let found: Vec<_> = running(&statuses(saver).await?).cloned().collect();
    wait::wait(saver, &found, is_verbose, output, token).await?;
    let is_of_these = |save: &v1::SaveStatus| found.iter().any(|waited| waited.attempt == save.attempt);
    let ended: Vec<_> = statuses(saver).await?.into_iter().filter(is_of_these).collect();
    print(&ended, &saver.name, output)
}

fn running(saves: &[v1::SaveStatus]) -> impl Iterator<Item = &v1::SaveStatus> {
    saves.iter().filter(|save| is_running(save.state()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_save_says_how_far_it_is_and_what_it_waits_for() {
        let save = |attempt: &str, state: v1::SaveState| v1::SaveStatus {
            attempt: attempt.into(),
            url: "s3://bucket/run/step-7".into(),
            state: state.into(),
            bytes_total: 4_000_000,
            bytes_uploaded: 1_000_000,
            waiting_for: "the origin".into(),
            error_code: "exhausted".into(),
            error_message: "no room".into(),
            ..Default::default()
        };
        let mut text = String::new();
        write_rows(&mut text, &[save("a", v1::SaveState::LocalDurable), save("bb", v1::SaveState::Failed)]);
        let expected = [
            "a   local_durable, 1.0 MB of 4.0 MB uploaded  s3://bucket/run/step-7",
            "  waits for the origin",
            "bb  failed, 4.0 MB                            s3://bucket/run/step-7",
            "  exhausted: no room",
        ];
        assert_eq!(text.lines().collect::<Vec<_>>(), expected);
    }
}
