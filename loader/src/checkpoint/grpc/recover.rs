//! The answer to `RecoverCheckpoint`: how many bytes came about ten times a second, and what was found at the end.

use std::sync::Arc;
use std::time::Duration;

use longshore_checkpoint::{Recovery, RecoveryProgress};
use longshore_proto::status::to_status;
use longshore_proto::v1;
use longshore_types::{Code, Error, Result};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_stream::wrappers::ReceiverStream;

use super::{Boxed, CheckpointsGrpc};
use crate::checkpoint::stream::passed;

/// Time between two messages of progress.
const PROGRESS_PERIOD: Duration = Duration::from_millis(100);

impl CheckpointsGrpc {
    pub(super) async fn do_recover(
        &self,
        message: v1::RecoverCheckpointRequest,
        deadline: Option<Duration>,
    ) -> Result<Boxed<v1::RecoverCheckpointResponse>> {
        let uri = self.url_to_change("RecoverCheckpoint", &message.uri)?;
        let permit = self.stream_permit()?;
        let engine = Arc::clone(self.checkpoints.engine().await?);
        let (sender, receiver) = mpsc::channel(1);
        let ends = deadline.and_then(|deadline| Instant::now().checked_add(deadline));
        tokio::spawn(async move {
            let _permit = permit;
            let (progress, seen) = watch::channel(RecoveryProgress::default());
            let recovered = tokio::select! {
                recovered = engine.recover(&uri, message.step, &progress) => recovered,
                () = show(&seen, &sender) => return,
                () = passed(ends) => Err(Error::new(Code::Timeout, "the copies did not come within the deadline")),
            };
            let last = recovered.map(|recovery| last(recovery, *seen.borrow()));
            // The client may have gone in this moment; the attempt goes on.
            let _ = sender.send(last.map_err(|error| to_status(&error))).await;
        });
        Ok(Box::pin(ReceiverStream::new(receiver)))
    }
}

type Message = Result<v1::RecoverCheckpointResponse, tonic::Status>;

/// Sends progress until the client has gone.
async fn show(seen: &watch::Receiver<RecoveryProgress>, sender: &mpsc::Sender<Message>) {
    let mut ticks = tokio::time::interval(PROGRESS_PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = sender.closed() => return,
            _ = ticks.tick() => {
                let message = message(*seen.borrow());
                // A client that reads slowly gets fewer messages, not a queue of them.
                let _ = sender.try_send(Ok(message));
            }
        }
    }
}

fn message(progress: RecoveryProgress) -> v1::RecoverCheckpointResponse {
    v1::RecoverCheckpointResponse {
        bytes_done: progress.bytes_done,
        bytes_total: progress.bytes_total,
        ..v1::RecoverCheckpointResponse::default()
    }
}

fn last(recovery: Recovery, progress: RecoveryProgress) -> v1::RecoverCheckpointResponse {
    v1::RecoverCheckpointResponse {
        done: true,
        attempt: recovery.attempt.to_string(),
        url: recovery.url,
        committed: recovery.is_committed,
        recovered_ranks: recovery.recovered,
        own_ranks: recovery.here,
        stored_ranks: recovery.stored,
        left_ranks: recovery.left,
        ..message(progress)
    }
}
