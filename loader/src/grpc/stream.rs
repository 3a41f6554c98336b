//! The answer to `LoadModel`: progress about ten times a second, and the model at the end.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures::Stream;
use longshore_proto::status::to_status;
use longshore_proto::v1;
use longshore_proto::v1::load_model_response::Event;
use longshore_types::{Code, Error, Result};
use tokio::sync::{OwnedSemaphorePermit, mpsc, watch};
use tokio::time::MissedTickBehavior;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::convert::{self, Detail};
use crate::load::LoadProgress;
use crate::loader::{LoadRequest, LoadedModel, Loader};

/// Time between two messages of progress.
const PROGRESS_PERIOD: Duration = Duration::from_millis(100);

type Message = Result<v1::LoadModelResponse, Status>;

/// Loads on behalf of a client. The load is left when the client goes away or its deadline passes.
pub(super) fn load(
    loader: Arc<Loader>,
    attach_socket: Arc<Path>,
    request: LoadRequest,
    deadline: Option<Duration>,
    permit: OwnedSemaphorePermit,
) -> impl Stream<Item = Message> + Send {
    let (sender, receiver) = mpsc::channel(1);
    tokio::spawn(async move {
        let _permit = permit;
        let answer = tokio::select! {
            answer = with_deadline(deadline, run(&loader, request, &sender)) => answer,
            () = sender.closed() => return,
        };
        let last = match answer {
            Ok(model) => {
                model.lease().promise();
                let model = convert::model(&model, &loader.state_of(&model), &attach_socket, Detail::Full);
                Ok(v1::LoadModelResponse { event: Some(Event::Model(model)) })
            }
            Err(error) => Err(to_status(&error)),
        };
        // The client may have gone in this moment; nothing is left to do for it.
        let _ = sender.send(last).await;
    });
    ReceiverStream::new(receiver)
}

async fn with_deadline(
    deadline: Option<Duration>,
    work: impl Future<Output = Result<Arc<LoadedModel>>>,
) -> Result<Arc<LoadedModel>> {
    let Some(deadline) = deadline else { return work.await };
    tokio::time::timeout(deadline, work).await.unwrap_or_else(|_| {
        Err(Error::new(Code::Timeout, format!("the model was not loaded within the deadline of {deadline:?}")))
    })
}

async fn run(loader: &Loader, request: LoadRequest, sender: &mpsc::Sender<Message>) -> Result<Arc<LoadedModel>> {
    let (progress, mut seen) = watch::channel(LoadProgress::default());
    let work = loader.load(request, Some(progress));
    tokio::pin!(work);
    let mut ticks = tokio::time::interval(PROGRESS_PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            answer = &mut work => return answer,
            _ = ticks.tick() => {
                if seen.has_changed().unwrap_or(false) {
                    let message = convert::progress(&seen.borrow_and_update());
                    // A client that reads slowly gets fewer messages, not a queue of them.
                    let _ = sender.try_send(Ok(v1::LoadModelResponse { event: Some(Event::Progress(message)) }));
                }
            }
        }
    }
}
