//! `longshore checkpoints`: what is committed under a URI; one checkpoint in detail, verified, deleted or recovered; the
//! sweep.

mod recover;
mod show;

use std::fmt::Write;

use longshore_origin::Origins;
use longshore_proto::v1;
use longshore_types::{Code, Error, Result, format_bytes, redact_url};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::args::CheckpointsArgs;
use crate::output::Output;
use crate::progress::Progress;
use crate::saver::{Saver, failed};

/// Runs the command.
///
/// # Errors
/// Those of the origin; [`Code::Corrupt`] when a checkpoint is not what its commit says.
pub async fn run(args: CheckpointsArgs, output: Output, token: CancellationToken) -> Result<()> {
    let origins = Origins::new(args.saver.origin.clone())?;
    let uri = origins.canonical_url(&args.uri)?;
    let mut saver = Saver::open(&args.saver, &origins).await?;
    let done = token.run_until_cancelled(act(&args, uri, &mut saver, output)).await;
    saver.close().await;
    done.unwrap_or_else(|| Err(Error::new(Code::Cancelled, "interrupted")))
}

async fn act(args: &CheckpointsArgs, uri: String, saver: &mut Saver, output: Output) -> Result<()> {
    let CheckpointsArgs { step, latest, delete, yes, sweep, verify, recover, .. } = *args;
    if let Some(step) = recover {
        return recover::recover(uri, step, saver, output).await;
    }
    match (delete, sweep, verify) {
        (Some(step), ..) if yes => self::delete(uri, step, saver, output).await,
        (Some(step), ..) => refuse(uri, step, saver).await,
        (None, true, _) => self::sweep(uri, args, saver, output).await,
        (None, false, true) => self::verify(uri, step, saver, output).await,
        (None, false, false) if latest || step.is_some() => {
            let checkpoint = get(uri, step, saver).await?;
            output.result(&show::details_json(&checkpoint), |text| show::write_details(text, &checkpoint))
        }
        (None, false, false) => {
            let request = v1::ListCheckpointsRequest { uri: uri.clone() };
            let found = saver.client.list_checkpoints(request).await.map_err(failed)?.into_inner();
            output.result(&show::list_json(&uri, &found), |text| show::write_list(text, &uri, &found))
        }
    }
}

async fn get(uri: String, step: Option<u64>, saver: &mut Saver) -> Result<v1::Checkpoint> {
    Ok(saver.client.get_checkpoint(v1::GetCheckpointRequest { uri, step }).await.map_err(failed)?.into_inner())
}

/// Says what would be deleted.
async fn refuse(uri: String, step: u64, saver: &mut Saver) -> Result<()> {
    let summary = get(uri, Some(step), saver).await?.summary.unwrap_or_default();
    let (url, size) = (redact_url(&summary.url), format_bytes(summary.size_bytes));
    let message = format!("{url} ({size}) would be deleted for good; add --yes to do it");
    Err(Error::new(Code::InvalidArgument, message))
}

async fn delete(uri: String, step: u64, saver: &mut Saver, output: Output) -> Result<()> {
    let request = v1::DeleteCheckpointRequest { uri: uri.clone(), step };
    let done = saver.client.delete_checkpoint(request).await.map_err(failed)?.into_inner();
    let value = json!({
        "uri": redact_url(&uri),
        "step": step,
        "objects_deleted": done.objects_deleted,
        "bytes_freed": done.bytes_freed,
        "objects_kept": done.objects_kept,
    });
    output.result(&value, |text| {
        let (uri, freed, count) = (redact_url(&uri), format_bytes(done.bytes_freed), done.objects_deleted);
        let _ = writeln!(text, "deleted step {step} of {uri}: {count} objects, {freed}");
        if done.objects_kept > 0 {
            let _ = writeln!(text, "kept      {} objects that later deltas need", done.objects_kept);
        }
    })
}

async fn sweep(uri: String, args: &CheckpointsArgs, saver: &mut Saver, output: Output) -> Result<()> {
    // Nothing said is a day for the service, so no age at all is the shortest that can be said.
    let older_than_ms = u64::try_from(args.older_than.0.as_millis()).unwrap_or(u64::MAX).max(1);
    let request = v1::SweepCheckpointsRequest { uri: uri.clone(), older_than_ms };
    let done = saver.client.sweep_checkpoints(request).await.map_err(failed)?.into_inner();
    let value = json!({
        "uri": redact_url(&uri),
        "objects_deleted": done.objects_deleted,
        "uploads_aborted": done.uploads_aborted,
        "bytes_freed": done.bytes_freed,
    });
    output.result(&value, |text| {
        let (uri, freed) = (redact_url(&uri), format_bytes(done.bytes_freed));
        let (objects, uploads) = (done.objects_deleted, done.uploads_aborted);
        let _ = writeln!(text, "swept {uri}: {objects} objects, {freed}; {uploads} uploads aborted");
    })
}

async fn verify(uri: String, step: Option<u64>, saver: &mut Saver, output: Output) -> Result<()> {
    let request = v1::VerifyCheckpointRequest { uri: uri.clone(), step };
    let mut stream = saver.client.verify_checkpoint(request).await.map_err(failed)?.into_inner();
    let mut progress = Progress::new(output);
    let mut last = None;
    while let Some(message) = stream.message().await.map_err(failed)? {
        progress.update("verify", message.bytes_done, message.bytes_total);
        last = Some(message);
    }
    progress.finish();
    let done = last
        .filter(|last| last.done)
        .ok_or_else(|| Error::new(Code::Unavailable, format!("verifying {} broke off; try again", redact_url(&uri))))?;
    output.result(&show::verified_json(&uri, &done), |text| show::write_verified(text, &uri, &done))?;
    match done.problem_count {
        0 => Ok(()),
        count => {
            let message =
                format!("{count} objects of step {} of {} are not what was saved", done.step, redact_url(&uri));
            Err(Error::new(Code::Corrupt, message))
        }
    }
}
