//! `longshore checkpoints URI --recover STEP`: a save whose node is gone, from the copies that peers hold, up to its commit.
//!
//! An interruption leaves what came to the node: it goes on like any save there. Nothing is cancelled, since that would let go
//! of the copies.

use std::fmt::Write;

use longshore_proto::v1;
use longshore_types::{Code, Error, Result, format_bytes, redact_url};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::args::WaitFor;
use crate::output::Output;
use crate::progress::Progress;
use crate::save::follow;
use crate::saver::{Saver, failed, to_json};

/// Runs it.
///
/// # Errors
/// [`Code::FailedPrecondition`] when there is nothing to recover from, or another attempt has the step; what the save failed of.
pub(super) async fn recover(uri: String, step: u64, saver: &mut Saver, output: Output) -> Result<()> {
    let found = bring(&uri, step, saver, output).await?;
    if found.committed {
        let value = to_value(&uri, step, &found, None);
        return output.result(&value, |text| {
            let _ = writeln!(text, "{} is committed already, by attempt {}", redact_url(&found.url), found.attempt);
        });
    }
    if !found.left_ranks.is_empty() {
        let message = format!(
            "rank {} of {} are deltas of another checkpoint than the others: recover on a further node, too; {}",
            names(&found.left_ranks),
            redact_url(&found.url),
            saver.goes_on()
        );
        return Err(Error::new(Code::FailedPrecondition, message));
    }
    let watch = v1::WatchSaveRequest { attempt: found.attempt.clone() };
    let stream = saver.client.watch_save(watch).await.map_err(failed)?.into_inner();
    let status = follow(saver, stream, WaitFor::Committed, output, &CancellationToken::new()).await?;
    output.result(&to_value(&uri, step, &found, Some(&status)), |text| {
        let (url, size) = (redact_url(&status.url), format_bytes(status.bytes_total));
        let _ = writeln!(text, "recovered {url}: {size}");
        let _ = writeln!(text, "attempt   {}", status.attempt);
        let _ = writeln!(text, "ranks     {}", describe(&found));
        for note in &status.notes {
            let _ = writeln!(text, "note      {note}");
        }
    })
}

/// Lets the loader bring the copies to its node.
async fn bring(uri: &str, step: u64, saver: &mut Saver, output: Output) -> Result<v1::RecoverCheckpointResponse> {
    let request = v1::RecoverCheckpointRequest { uri: uri.to_owned(), step };
    let mut stream = saver.client.recover_checkpoint(request).await.map_err(failed)?.into_inner();
    let mut progress = Progress::new(output);
    let mut last = None;
    while let Some(message) = stream.message().await.map_err(failed)? {
        progress.update("fetching", message.bytes_done, message.bytes_total);
        last = Some(message);
    }
    if let Some(found) = last.as_ref().filter(|last| last.done && !last.committed) {
        progress.line(&format!("rank {}", describe(found)));
    }
    progress.finish();
    last.filter(|last| last.done).ok_or_else(|| {
        Error::new(Code::Unavailable, format!("recovering step {step} of {} broke off; try again", redact_url(uri)))
    })
}

/// Where each rank was found.
fn describe(found: &v1::RecoverCheckpointResponse) -> String {
    let parts = [
        (&found.recovered_ranks, "from copies"),
        (&found.own_ranks, "on this node already"),
        (&found.stored_ranks, "in the origin already"),
    ];
    let told = parts.into_iter().filter(|(ranks, _)| !ranks.is_empty());
    let told: Vec<String> = told.map(|(ranks, place)| format!("{} {place}", names(ranks))).collect();
    told.join("; ")
}

fn names(ranks: &[u32]) -> String {
    const NAMED_MAX: usize = 16;
    let first: Vec<String> = ranks.iter().take(NAMED_MAX).map(u32::to_string).collect();
    match ranks.len() {
        ..=NAMED_MAX => first.join(", "),
        count => format!("{} and {} more", first.join(", "), count - NAMED_MAX),
    }
}

fn to_value(uri: &str, step: u64, found: &v1::RecoverCheckpointResponse, status: Option<&v1::SaveStatus>) -> Value {
    json!({
        "uri": redact_url(uri),
        "url": redact_url(&found.url),
        "step": step,
        "attempt": found.attempt,
        "committed_before": found.committed,
        "bytes_fetched": found.bytes_done,
        "recovered_ranks": found.recovered_ranks,
        "own_ranks": found.own_ranks,
        "stored_ranks": found.stored_ranks,
        "save": status.map(to_json),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_each_rank_was_is_told() {
        let found = v1::RecoverCheckpointResponse {
            recovered_ranks: (0..18).collect(),
            own_ranks: vec![18],
            url: "https://user:secret@host/run/step-7".into(),
            ..Default::default()
        };
        let told = describe(&found);
        assert!(told.ends_with("15 and 2 more from copies; 18 on this node already"), "{told}");
        let value = to_value("https://user:secret@host/run", 7, &found, None);
        assert!(!value.to_string().contains("secret"), "{value}");
        assert_eq!((&value["own_ranks"][0], &value["save"]), (&18.into(), &Value::Null));
    }
}
