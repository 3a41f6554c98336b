//! `longshore save`: a folder or a file of this node as one checkpoint.

mod follow;

use std::fmt::Write;
use std::time::Instant;

use longshore_origin::Origins;
use longshore_proto::v1;
use longshore_types::{Code, Error, Result, format_bytes, redact_url};
use tokio_util::sync::CancellationToken;

use crate::args::{SaveArgs, WaitFor};
use crate::output::{Output, seconds};
use crate::saver::{Saver, failed, is_running, to_json};
pub use follow::follow;

/// Runs the command.
///
/// # Errors
/// What the save failed of; [`Code::Cancelled`] when it was interrupted.
pub async fn run(args: SaveArgs, output: Output, token: CancellationToken) -> Result<()> {
    let begun = Instant::now();
    let origins = Origins::new(args.saver.origin.clone())?;
    // Relative paths mean this process's folder, not the daemon's.
    let uri = origins.canonical_url(&args.uri)?;
    let path = std::path::absolute(&args.path)
        .map_err(|error| Error::new(Code::InvalidArgument, format!("{} is no path: {error}", args.path.display())))?;
    let path = path
        .into_os_string()
        .into_string()
        .map_err(|path| Error::new(Code::InvalidArgument, format!("the path {} is not UTF-8", path.display())))?;
    let mut saver = Saver::open(&args.saver, &origins).await?;
    let step = match args.step {
        Some(step) => step,
        None => token.run_until_cancelled(next_step(&mut saver, &uri)).await.unwrap_or_else(interrupted)?,
    };
    let request = v1::SaveFolderRequest {
        uri: uri.clone(),
        step,
        path,
        options: Some(v1::SaveOptions {
            keep: args.keep.unwrap_or(0),
            delta: args.delta,
            refuse_when_full: args.refuse_when_full,
            metadata: args.metadata.into_iter().collect(),
            ..v1::SaveOptions::default()
        }),
    };
    let outcome = save(&mut saver, request, args.wait, output, &token).await;
    let printed = outcome.and_then(|status| print(&status, &saver, begun.elapsed().as_secs_f64(), output));
    saver.close().await;
    printed
}

fn interrupted<T>() -> Result<T> {
    Err(Error::new(Code::Cancelled, "interrupted before anything was saved"))
}

/// The step after the newest that there is or that an attempt is made for.
async fn next_step(saver: &mut Saver, uri: &str) -> Result<u64> {
    let request = v1::ListCheckpointsRequest { uri: uri.to_owned() };
    let found = saver.client.list_checkpoints(request).await.map_err(failed)?.into_inner();
    let running = saver.client.list_saves(v1::ListSavesRequest {}).await.map_err(failed)?.into_inner().saves;
    let committed = found.checkpoints.iter().map(|checkpoint| checkpoint.step);
    let attempted = running.iter().filter(|save| save.uri == uri && is_running(save.state())).map(|save| save.step);
    let newest = committed.chain(found.uncommitted_steps.iter().copied()).chain(attempted).max();
    let Some(newest) = newest else { return Ok(0) };
    newest.checked_add(1).ok_or_else(|| {
        let message = format!("the newest step of {} has no next one; give another by --step", redact_url(uri));
        Error::new(Code::InvalidArgument, message)
    })
}

async fn save(
    saver: &mut Saver,
    request: v1::SaveFolderRequest,
    wait: WaitFor,
    output: Output,
    token: &CancellationToken,
) -> Result<v1::SaveStatus> {
    let (uri, step) = (request.uri.clone(), request.step);
    let mut client = saver.client.clone();
    let begun = tokio::select! {
        begun = client.save_folder(request) => begun.map_err(failed)?,
        () = token.cancelled() => return Err(cancel_by_name(saver, &uri, step).await),
    };
    follow(saver, begun.into_inner(), wait, output, token).await
}

/// Gives up an attempt whose id is not known yet.
async fn cancel_by_name(saver: &mut Saver, uri: &str, step: u64) -> Error {
    let saves = saver.client.list_saves(v1::ListSavesRequest {}).await.map(|saves| saves.into_inner().saves);
    let ours = saves.unwrap_or_default().into_iter();
    for save in ours.filter(|save| save.uri == uri && save.step == step && is_running(save.state())) {
        if let Err(status) = saver.client.cancel_save(v1::CancelSaveRequest { attempt: save.attempt }).await {
            return failed(status);
        }
    }
    let message = format!("the save of step {step} to {} was interrupted: nothing of it stays", redact_url(uri));
    Error::new(Code::Cancelled, message)
}

fn print(status: &v1::SaveStatus, saver: &Saver, took: f64, output: Output) -> Result<()> {
    let left_to_do = is_running(status.state()).then(|| saver.goes_on());
    let mut value = to_json(status);
    value["seconds"] = took.into();
    value["loader"] = saver.name.as_str().into();
    value["left_to_do"] = left_to_do.as_deref().into();
    output.result(&value, |text| write_text(text, status, left_to_do.as_deref(), took))
}

fn write_text(text: &mut String, status: &v1::SaveStatus, left_to_do: Option<&str>, took: f64) {
    let rate = status.bytes_total as f64 / took.max(1e-9) / 1e9;
    let (url, size) = (redact_url(&status.url), format_bytes(status.bytes_total));
    let what = match status.state() {
        v1::SaveState::Committed => "saved",
        v1::SaveState::LocalDurable => "on this node's disk:",
        _ => "copied:",
    };
    let _ = writeln!(text, "{what} {url}: {size} in {} ({rate:.2} GB/s)", seconds(took));
    let _ = writeln!(text, "attempt   {}", status.attempt);
    let steps = [
        ("staged", status.staged_seconds),
        ("local", status.local_durable_seconds),
        ("peer", status.peer_durable_seconds),
        ("committed", status.committed_seconds),
    ];
    let steps: Vec<String> = steps
        .into_iter()
        .filter(|(_, at)| *at > 0.0)
        .map(|(name, at)| format!("{name} after {}", seconds(at)))
        .collect();
    let _ = writeln!(text, "reached   {}", steps.join(", "));
    if status.bytes_unchanged > 0 {
        let (same, sent) = (format_bytes(status.bytes_unchanged), format_bytes(status.bytes_uploaded));
        let _ = writeln!(text, "delta     {same} unchanged, {sent} uploaded");
    }
    if status.retries > 0 {
        let _ = writeln!(text, "retries   {}", status.retries);
    }
    for note in &status.notes {
        let _ = writeln!(text, "note      {note}");
    }
    if let Some(left_to_do) = left_to_do {
        let _ = writeln!(text, "left      not in the origin yet: {left_to_do}");
    }
}

/// The failure of a save as this command's.
pub fn outcome_error(status: &v1::SaveStatus) -> Error {
    let step = status.step;
    let uri = redact_url(&status.uri);
    match status.state() {
        v1::SaveState::Cancelled => {
            let message = format!("the save of step {step} to {uri} was cancelled: nothing of it is visible");
            Error::new(Code::Cancelled, message)
        }
        _ => Error::new(Code::from_name(&status.error_code), status.error_message.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::saver;

    fn status(state: v1::SaveState) -> v1::SaveStatus {
        v1::SaveStatus {
            attempt: "0a1b".into(),
            uri: "https://user:secret@host/run".into(),
            url: "https://user:secret@host/run/step-7".into(),
            step: 7,
            state: state.into(),
            bytes_total: 3_000_000,
            bytes_uploaded: 1_000_000,
            bytes_unchanged: 2_000_000,
            staged_seconds: 0.5,
            notes: vec!["read back for lack of a checksum".into()],
            ..Default::default()
        }
    }

    #[test]
    fn people_and_programs_learn_what_is_reached_and_what_is_left() {
        let mut text = String::new();
        write_text(&mut text, &status(v1::SaveState::Staged), Some("the loader goes on with it"), 2.0);
        for part in [
            "copied: https://host/run/step-7: 3.0 MB in 2.0 s",
            "reached   staged after 500 ms\n",
            "delta     2.0 MB unchanged, 1.0 MB uploaded",
            "note      read back",
            "left      not in the origin yet: the loader goes on with it",
        ] {
            assert!(text.contains(part), "{part:?} is not in\n{text}");
        }
        let value = saver::to_json(&status(v1::SaveState::Staged));
        assert_eq!((&value["state"], &value["staged_seconds"]), (&"staged".into(), &0.5.into()));
        assert!(value["committed_seconds"].is_null() && value["error"].is_null(), "{value}");
        assert!(!value.to_string().contains("secret") && !text.contains("secret"), "{value}");
    }

    #[test]
    fn a_save_that_ended_badly_keeps_its_code() {
        let failed = v1::SaveStatus {
            error_code: "exhausted".into(),
            error_message: "the quota is full".into(),
            ..status(v1::SaveState::Failed)
        };
        let error = outcome_error(&failed);
        assert_eq!((error.code(), error.message()), (Code::Exhausted, "the quota is full"));
        assert_eq!(outcome_error(&status(v1::SaveState::Cancelled)).code(), Code::Cancelled);
    }
}
