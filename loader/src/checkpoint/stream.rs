//! The answer to `WatchSave` and `SaveFolder`: the status now and at each change, until nothing changes any more.

use std::sync::Arc;
use std::time::Duration;

use longshore_checkpoint::SaveStatus;
use longshore_proto::status::to_status;
use longshore_proto::v1;
use longshore_types::{Code, Error, Result};
use tokio::sync::{OwnedSemaphorePermit, mpsc, watch};
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::convert;

/// Least time between two messages, but for the last.
const STATUS_PERIOD: Duration = Duration::from_millis(50);

pub(super) type Message = Result<v1::SaveStatus, Status>;

/// Follows a save for a client. The save goes on when the client goes away or its deadline passes.
pub(super) fn follow(
    statuses: watch::Receiver<Arc<SaveStatus>>,
    closed: CancellationToken,
    deadline: Option<Duration>,
    permit: OwnedSemaphorePermit,
) -> ReceiverStream<Message> {
    // A client that reads slowly gets fewer messages, not a queue of them.
    let (sender, receiver) = mpsc::channel(1);
    let ends = deadline.and_then(|deadline| Instant::now().checked_add(deadline));
    tokio::spawn(async move {
        let _permit = permit;
        let last = tokio::select! {
            last = run(statuses, &sender) => last,
            () = sender.closed() => return,
            () = closed.cancelled() => Err(super::shutting_down()),
            () = passed(ends) => Err(Error::new(
                Code::Timeout,
                format!("the save did not end within the deadline of {:?}; it goes on", deadline.unwrap_or_default()),
            )),
        };
        // The client may have gone in this moment; nothing is left to do for it.
        let _ = sender.send(last.map_err(|error| to_status(&error))).await;
    });
    ReceiverStream::new(receiver)
}

pub(super) async fn passed(ends: Option<Instant>) {
    match ends {
        Some(ends) => tokio::time::sleep_until(ends).await,
        None => std::future::pending().await,
    }
}

/// Sends every status but the last, which it gives.
async fn run(mut statuses: watch::Receiver<Arc<SaveStatus>>, sender: &mpsc::Sender<Message>) -> Result<v1::SaveStatus> {
    loop {
        let status = statuses.borrow_and_update().clone();
        let message = convert::status(&status);
        if status.state.is_ended() {
            return Ok(message);
        }
        if sender.send(Ok(message)).await.is_err() {
            return Err(Error::new(Code::Cancelled, "the client has gone"));
        }
        // What is reached is told at once, how many bytes were moved now and then.
        let reached = |newer: &Arc<SaveStatus>| (newer.state, &newer.ranks) != (status.state, &status.ranks);
        let reached = tokio::time::timeout(STATUS_PERIOD, statuses.wait_for(reached)).await;
        let changed = match reached.map(|reached| reached.map(drop)) {
            Ok(changed) => changed,
            // The wait has looked at what came meanwhile, so that it does not count as a change any more.
            Err(_) if !Arc::ptr_eq(&statuses.borrow(), &status) => Ok(()),
            Err(_) => statuses.changed().await,
        };
        if changed.is_err() {
            return Err(super::shutting_down());
        }
    }
}
