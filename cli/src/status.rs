//! `longshore status`: the node's loader and the cache workers, as they are now.

mod loader;

use std::fmt::Write;

use longshore_proto::status::from_status;
use longshore_proto::v1;
use longshore_types::{Result, format_bytes};
use serde_json::{Value, json as object};
use tokio_util::sync::CancellationToken;

use crate::args::StatusArgs;
use crate::connect::find_loader;
use crate::control::{Tier, WorkerState};
use crate::node::{Node, addresses_of};
use crate::output::{Output, json};

/// Runs the command.
///
/// # Errors
/// When an address that was given does not answer.
pub async fn run(args: StatusArgs, output: Output, token: CancellationToken) -> Result<()> {
    let loader = match find_loader(&args.node).await? {
        Some(mut connection) => {
            let status = connection.client.status(v1::LoaderStatusRequest {}).await;
            let status = status.map_err(|status| from_status(&status))?.into_inner();
            Some((connection.address.to_string(), status))
        }
        None => None,
    };
    let (workers, warnings) = workers(&args, loader.as_ref().map(|(_, status)| status), &token).await?;
    let worker_values = workers.iter().map(|(address, answer)| match answer {
        Ok(state) => worker_json(address, state),
        Err(error) => {
            let error = object!({"code": error.code().as_str(), "message": error.message()});
            Ok(object!({"address": address, "error": error}))
        }
    });
    let worker_values = worker_values.collect::<Result<Vec<Value>>>()?;
    let value = object!({
        "loader": loader.as_ref().map(|(address, status)| loader::to_json(address, status)),
        "workers": worker_values,
        "warnings": warnings,
    });
    output.result(&value, |text| {
        match &loader {
            Some((address, status)) => loader::write_text(text, address, status),
            None => text.push_str("no loader runs on this node\n"),
        }
        for (address, answer) in &workers {
            match answer {
                Ok(status) => worker_text(text, address, status),
                Err(error) => {
                    let _ = writeln!(text, "worker {address}: {error}");
                }
            }
        }
        for warning in &warnings {
            let _ = writeln!(text, "warning   {warning}");
        }
    })
}

type States = Vec<(String, Result<WorkerState>)>;

/// The workers; none for a loader that has none, because opening the cache folder is its own right then.
async fn workers(
    args: &StatusArgs,
    loader: Option<&v1::LoaderStatus>,
    token: &CancellationToken,
) -> Result<(States, Vec<String>)> {
    if args.node.workers.is_empty() && loader.is_some_and(|status| addresses_of(status).is_empty()) {
        return Ok((Vec::new(), Vec::new()));
    }
    let node = Node::open(&args.node, token).await?;
    let (states, warnings) = (node.control.states().await, node.warnings.clone());
    node.close().await;
    Ok((states, warnings))
}

fn worker_json(address: &str, state: &WorkerState) -> Result<Value> {
    let mut value = json(state)?;
    value["address"] = address.into();
    Ok(value)
}

fn worker_text(text: &mut String, address: &str, state: &WorkerState) {
    let tier = |tier: &Tier| {
        let (used, capacity) = (format_bytes(tier.used_bytes), format_bytes(tier.capacity_bytes));
        format!("{used} of {capacity} ({} chunks)", tier.chunks)
    };
    let folder = state.cache_dir.as_ref().map(|folder| format!(" in {}", folder.display())).unwrap_or_default();
    let _ = writeln!(text, "worker {address}: {}", state.id);
    let _ = writeln!(text, "  memory  {}", tier(&state.memory));
    let _ = writeln!(text, "  disk    {}{folder}", state.disk.as_ref().map_or_else(|| "off".to_owned(), tier));
    let (served, origin) = (format_bytes(state.served_bytes), format_bytes(state.origin_bytes));
    let _ = writeln!(text, "  served  {served}, from the origin {origin}");
    if let Some(error) = &state.disk_error {
        let _ = writeln!(text, "  warning {error}");
    }
    if state.checksum_mismatches > 0 {
        let _ = writeln!(text, "  corrupt {} copies found and read again", state.checksum_mismatches);
    }
    for note in &state.notes {
        let _ = writeln!(text, "  note    {note}");
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn state() -> WorkerState {
        let tier = v1::TierStatus { capacity_bytes: 4_000_000, used_bytes: 1_000_000, chunks: 3 };
        WorkerState::from(v1::WorkerStatus {
            id: "w".into(),
            cache_dir: "/cache".into(),
            memory: Some(tier),
            disk: Some(tier),
            disk_error: "the disk is full".into(),
            checksum_mismatches: 2,
            notes: vec!["chunks are copied".into(), "files go through the page cache".into()],
            ..Default::default()
        })
    }

    #[test]
    fn a_worker_shows_its_tiers_and_what_it_does_in_another_way() {
        let mut text = String::new();
        worker_text(&mut text, "host:7070", &state());
        for line in [
            "worker host:7070: w\n",
            "  disk    1.0 MB of 4.0 MB (3 chunks) in /cache\n",
            "  warning the disk is full\n",
            "  corrupt 2 copies found and read again\n",
            "  note    chunks are copied\n  note    files go through the page cache\n",
        ] {
            assert!(text.contains(line), "{line:?} is not in\n{text}");
        }
    }

    #[test]
    fn programs_get_the_notes_too() {
        let value = worker_json("host:7070", &state()).unwrap();
        assert_eq!(value["notes"], object!(["chunks are copied", "files go through the page cache"]));
        assert_eq!(value["address"], "host:7070");
    }
}
