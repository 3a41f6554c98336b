//! Who saves checkpoints for a command: the node's loader, or an engine inside this process. Both are talked to by the
//! same calls.
//!
//! What an engine inside this process does not finish stays in its folder, synced; the next command or loader with that
//! folder goes on with it.

use std::sync::Arc;
use std::time::Duration;

use longshore_loader::checkpoint::{Checkpoints, serve_in_process};
use longshore_origin::Origins;
use longshore_proto::status::from_status;
use longshore_proto::v1::checkpoints_client::CheckpointsClient;
use longshore_proto::{MESSAGE_BYTES_MAX, v1};
use longshore_types::{Error, Result, redact_url};
use tonic::transport::Channel;

use crate::args::SaverArgs;
use crate::connect::{channel_over, find_loader};

/// How long an engine inside this process may take to come to rest at the end of a command.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);

/// See the module.
pub struct Saver {
    /// The service.
    pub client: CheckpointsClient<Channel>,
    /// Address of the loader, or `embedded`.
    pub name: String,
    embedded: Option<Arc<Checkpoints>>,
}

impl Saver {
    /// Finds the node's loader, or prepares to work inside this process.
    ///
    /// # Errors
    /// When an address that was given does not answer, or an option is not valid.
    pub async fn open(args: &SaverArgs, origins: &Origins) -> Result<Saver> {
        let (channel, name, embedded) = match find_loader(&args.node()).await? {
            Some(connection) => (connection.channel, connection.address.to_string(), None),
            None => {
                let checkpoints = Checkpoints::embedded(args.checkpoints.clone(), origins.clone(), args.memory)?;
                let channel = channel_over(serve_in_process(checkpoints.clone())).await?;
                (channel, "embedded".to_owned(), Some(checkpoints))
            }
        };
        let client = CheckpointsClient::new(channel)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        Ok(Saver { client, name, embedded })
    }

    /// Who goes on with what is not in the origin yet, when this command ends.
    pub fn goes_on(&self) -> String {
        match &self.embedded {
            None => format!("the loader at {} goes on with it", self.name),
            Some(checkpoints) => format!(
                "it lies in {}; `longshore saves --wait`, or a loader with this --checkpoint-dir, goes on with it",
                // It is there: something was saved into it.
                checkpoints.folder().unwrap_or_default().display()
            ),
        }
    }

    /// Lets an engine inside this process come to rest: what is synced stays for the next one.
    pub async fn close(self) {
        if let Some(checkpoints) = self.embedded {
            checkpoints.close(CLOSE_TIMEOUT).await;
        }
    }
}

/// A failed call as an error of ours.
pub fn failed(status: tonic::Status) -> Error {
    from_status(&status)
}

/// The name of a state, as it is printed.
pub fn state_name(state: v1::SaveState) -> &'static str {
    match state {
        v1::SaveState::Unspecified => "unknown",
        v1::SaveState::Staging => "staging",
        v1::SaveState::Staged => "staged",
        v1::SaveState::LocalDurable => "local_durable",
        v1::SaveState::Committed => "committed",
        v1::SaveState::Failed => "failed",
        v1::SaveState::Cancelled => "cancelled",
    }
}

/// Whether a save in this state goes on.
pub fn is_running(state: v1::SaveState) -> bool {
    !matches!(state, v1::SaveState::Committed | v1::SaveState::Failed | v1::SaveState::Cancelled)
}

/// A save as JSON. Keys are only ever added.
pub fn to_json(status: &v1::SaveStatus) -> serde_json::Value {
    let error = (!status.error_code.is_empty())
        .then(|| serde_json::json!({"code": status.error_code, "message": status.error_message}));
    let rank = |rank: &v1::RankStatus| {
        serde_json::json!({
            "rank": rank.rank, "staged": rank.staged, "local_durable": rank.local_durable,
            "peer_durable": rank.peer_durable,
        })
    };
    serde_json::json!({
        "attempt": status.attempt,
        "uri": redact_url(&status.uri),
        "url": redact_url(&status.url),
        "step": status.step,
        "state": state_name(status.state()),
        "world_size": status.world_size,
        "ranks": status.ranks.iter().map(rank).collect::<Vec<_>>(),
        "bytes": status.bytes_total,
        "bytes_staged": status.bytes_staged,
        "bytes_durable": status.bytes_durable,
        "bytes_peer": status.bytes_peer,
        "bytes_uploaded": status.bytes_uploaded,
        "bytes_unchanged": status.bytes_unchanged,
        "staged_seconds": reached(status.staged_seconds),
        "local_durable_seconds": reached(status.local_durable_seconds),
        "peer_durable_seconds": reached(status.peer_durable_seconds),
        "committed_seconds": reached(status.committed_seconds),
        "retries": status.retries,
        "waiting_for": status.waiting_for,
        "notes": status.notes,
        "error": error,
    })
}

/// Zero is not reached.
fn reached(seconds: f64) -> Option<f64> {
    Some(seconds).filter(|seconds| *seconds > 0.0)
}
