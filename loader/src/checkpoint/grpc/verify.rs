//! The answer to `VerifyCheckpoint`: how far it is about ten times a second, and what was found at the end.

use std::sync::Arc;
use std::time::Duration;

use longshore_proto::status::to_status;
use longshore_proto::v1;
use longshore_types::checkpoint::Commit;
use longshore_types::{Code, Error, Result};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_stream::wrappers::ReceiverStream;

use super::{Boxed, CheckpointsGrpc, VERIFICATIONS_MAX};
use crate::checkpoint::stream::passed;
use crate::checkpoint::verify::{self, Findings, Progress};

/// Time between two messages of progress.
const PROGRESS_PERIOD: Duration = Duration::from_millis(100);

impl CheckpointsGrpc {
    pub(super) async fn do_verify(
        &self,
        message: v1::VerifyCheckpointRequest,
        deadline: Option<Duration>,
    ) -> Result<Boxed<v1::VerifyCheckpointResponse>> {
        let url = self.url_to_change("VerifyCheckpoint", &message.uri)?;
        let permit = self.verifications.clone().try_acquire_owned().map_err(|_| {
            Error::new(Code::Exhausted, format!("{VERIFICATIONS_MAX} checkpoints are being verified, try again later"))
        })?;
        let commit = self.checkpoints.catalog().get(&url, message.step).await?;
        let origins = self.checkpoints.origins().clone();
        let (sender, receiver) = mpsc::channel(1);
        let ends = deadline.and_then(|deadline| Instant::now().checked_add(deadline));
        tokio::spawn(async move {
            let _permit = permit;
            let (progress, seen) = watch::channel(Progress::default());
            let verified = tokio::select! {
                verified = verify::verify(&commit, &url, &origins, &progress) => verified,
                () = show(&commit, &seen, &sender) => return,
                () = passed(ends) => Err(Error::new(Code::Timeout, "the checkpoint was not verified within the deadline")),
            };
            let last = verified.map(|findings| last(&commit, &seen.borrow(), findings));
            // The client may have gone in this moment; nothing is left to do for it.
            let _ = sender.send(last.map_err(|error| to_status(&error))).await;
        });
        Ok(Box::pin(ReceiverStream::new(receiver)))
    }
}

type Message = Result<v1::VerifyCheckpointResponse, tonic::Status>;

/// Sends progress until the client has gone.
async fn show(commit: &Arc<Commit>, seen: &watch::Receiver<Progress>, sender: &mpsc::Sender<Message>) {
    let mut ticks = tokio::time::interval(PROGRESS_PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = sender.closed() => return,
            _ = ticks.tick() => {
                let message = message(commit, &seen.borrow());
                // A client that reads slowly gets fewer messages, not a queue of them.
                let _ = sender.try_send(Ok(message));
            }
        }
    }
}

fn message(commit: &Commit, progress: &Progress) -> v1::VerifyCheckpointResponse {
    v1::VerifyCheckpointResponse {
        step: commit.step,
        bytes_done: progress.bytes_done,
        bytes_total: progress.bytes_total,
        objects_done: progress.objects_done,
        objects_total: progress.objects_total,
        ..v1::VerifyCheckpointResponse::default()
    }
}

fn last(commit: &Commit, progress: &Progress, findings: Findings) -> v1::VerifyCheckpointResponse {
    let problem = |problem: verify::Problem| v1::VerifyProblem {
        object: problem.object,
        code: problem.error.code().as_str().to_owned(),
        message: problem.error.message().to_owned(),
    };
    v1::VerifyCheckpointResponse {
        done: true,
        problem_count: findings.count,
        problems: findings.problems.into_iter().map(problem).collect(),
        ..message(commit, progress)
    }
}
