//! The gRPC service: converts, calls the engine, converts back.

mod recover;
mod verify;

use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::Stream;
use longshore_checkpoint::Engine;
use longshore_proto::status::to_status;
use longshore_proto::v1::checkpoints_server::{Checkpoints as Service, CheckpointsServer};
use longshore_proto::{MESSAGE_BYTES_MAX, v1};
use longshore_types::checkpoint::AttemptId;
use longshore_types::{Code, Error, Result, redact_url};
use prost::Message as _;
use tokio::io::DuplexStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::transport::Server;
use tonic::{Request, Response, Status};

use super::{Access, Checkpoints, convert, shutting_down, stream};
use crate::grpc::deadline;

/// Status streams open at once, over all connections of one way in.
const STREAMS_MAX: usize = 1024;
/// Verifications that run at once: each reads a whole checkpoint.
const VERIFICATIONS_MAX: usize = 2;
/// Bytes of plan requests that wait for other ranks.
const PLAN_BYTES_MAX: usize = 1 << 30;
/// What they are counted in: permits of a semaphore are 32 bits.
const PLAN_UNIT_BYTES: usize = 1 << 10;
/// Largest file that comes with StartSave.
const INLINE_FILE_BYTES_MAX: usize = 4 << 20;
/// Most bytes of all such files of a call.
const INLINE_BYTES_MAX: usize = 32 << 20;
/// Bytes in flight between a command and the service inside its process.
const IN_PROCESS_BYTES: usize = 1 << 20;

type Boxed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The service over the checkpoints of one loader, for callers that come one way.
pub(crate) struct CheckpointsGrpc {
    checkpoints: Arc<Checkpoints>,
    access: Access,
    streams: Arc<Semaphore>,
    verifications: Arc<Semaphore>,
    plan_units: Arc<Semaphore>,
}

impl CheckpointsGrpc {
    /// The service with its limits on messages.
    pub(crate) fn server(checkpoints: Arc<Checkpoints>, access: Access) -> CheckpointsServer<CheckpointsGrpc> {
        let service = CheckpointsGrpc {
            checkpoints,
            access,
            streams: Arc::new(Semaphore::new(STREAMS_MAX)),
            verifications: Arc::new(Semaphore::new(VERIFICATIONS_MAX)),
            plan_units: Arc::new(Semaphore::new(PLAN_BYTES_MAX / PLAN_UNIT_BYTES)),
        };
        CheckpointsServer::new(service)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
    }

    /// The one form of a run's URL, when the caller may look there.
    fn url(&self, uri: &str) -> Result<String> {
        if uri.is_empty() {
            return Err(Error::new(Code::InvalidArgument, "the request names no uri"));
        }
        let url = self.checkpoints.origins().canonical_url(uri)?;
        self.access.check_url(&url)?;
        Ok(url)
    }

    /// The URL for a call that changes what is there.
    fn url_to_change(&self, call: &str, uri: &str) -> Result<String> {
        self.access.check_node(call)?;
        self.url(uri)
    }

    fn stream_permit(&self) -> Result<OwnedSemaphorePermit> {
        self.streams.clone().try_acquire_owned().map_err(|_| {
            Error::new(Code::Exhausted, format!("{STREAMS_MAX} callers watch saves already, ask again later"))
        })
    }

    fn plan_permit(&self, bytes: usize) -> Result<OwnedSemaphorePermit> {
        let units = u32::try_from(bytes.div_ceil(PLAN_UNIT_BYTES)).unwrap_or(u32::MAX);
        self.plan_units.clone().try_acquire_many_owned(units).map_err(|_| {
            Error::new(Code::Exhausted, "too many ranks wait for plans already, ask again when some have theirs")
        })
    }

    /// The engine, for a call about an attempt: without one there is none.
    async fn engine_with(&self, attempt: &AttemptId) -> Result<&Arc<Engine>> {
        let engine = self.checkpoints.existing().await?;
        engine.ok_or_else(|| Error::new(Code::NotFound, format!("no save {attempt} is known to this loader")))
    }

    async fn watch(
        &self,
        engine: &Engine,
        attempt: &AttemptId,
        deadline: Option<Duration>,
    ) -> Result<Boxed<v1::SaveStatus>> {
        let permit = self.stream_permit()?;
        let closed = self.checkpoints.closed.clone();
        Ok(Box::pin(stream::follow(engine.watch(attempt)?, closed, deadline, permit)))
    }

    async fn do_plan(&self, message: v1::PlanSaveRequest) -> Result<v1::SavePlan> {
        let _permit = self.plan_permit(message.encoded_len())?;
        let uri = self.url(&message.uri)?;
        let request = convert::plan_request(v1::PlanSaveRequest { uri, ..message });
        let engine = self.checkpoints.engine().await?;
        let planned = self.checkpoints.closing.run_until_cancelled(engine.plan(request)).await;
        let plan = planned.unwrap_or_else(|| Err(shutting_down()))?;
        checked(convert::plan(&plan), "the plan")
    }

    async fn do_start(&self, message: v1::StartSaveRequest) -> Result<v1::SaveStatus> {
        let plan = message.plan.ok_or_else(|| Error::new(Code::InvalidArgument, "the request holds no plan"))?;
        let uri = self.url_to_change("StartSave", &plan.uri)?;
        let mut inline_bytes = 0usize;
        for v1::InlineFile { file, content } in &message.inline {
            inline_bytes = inline_bytes.saturating_add(content.len());
            if content.len() > INLINE_FILE_BYTES_MAX || inline_bytes > INLINE_BYTES_MAX {
                let message = format!(
                    "file {file} comes with the call, and files do so only up to {INLINE_FILE_BYTES_MAX} bytes each and \
                     {INLINE_BYTES_MAX} together; use slabs"
                );
                return Err(Error::new(Code::InvalidArgument, message));
            }
        }
        let inline = message.inline.into_iter().map(|inline| (inline.file, inline.content.into()));
        let plan = convert::plan_from(v1::SavePlan { uri, ..plan })?;
        let status = self.checkpoints.engine().await?.start(plan, message.rank, inline.collect()).await?;
        Ok(convert::status(&status))
    }

    async fn do_save_folder(
        &self,
        message: v1::SaveFolderRequest,
        deadline: Option<Duration>,
    ) -> Result<Boxed<v1::SaveStatus>> {
        let uri = self.url_to_change("SaveFolder", &message.uri)?;
        let path = PathBuf::from(message.path);
        if !path.is_absolute() {
            let message = format!("the path {:?} to save is not absolute", path.display().to_string());
            return Err(Error::new(Code::InvalidArgument, message));
        }
        let engine = self.checkpoints.engine().await?;
        let options = convert::options(message.options);
        let attempt = engine.save_folder(uri, message.step, path, options).await?;
        self.watch(engine, &attempt, deadline).await
    }

    async fn do_get(&self, message: v1::GetCheckpointRequest) -> Result<v1::Checkpoint> {
        let url = self.url(&message.uri)?;
        let found = self.checkpoints.catalog().get(&url, message.step).await?;
        checked(convert::checkpoint(&found, &url), "the description of the checkpoint")
    }
}

/// A message that fits in one.
fn checked<M: prost::Message>(message: M, what: &str) -> Result<M> {
    match message.encoded_len() {
        ..=MESSAGE_BYTES_MAX => Ok(message),
        bytes => Err(Error::new(
            Code::Exhausted,
            format!("{what} has {bytes} bytes, over the {MESSAGE_BYTES_MAX} of a message"),
        )),
    }
}

fn answer<T>(result: Result<T>) -> Result<Response<T>, Status> {
    result.map(Response::new).map_err(|error| to_status(&error))
}

/// Serves one caller inside this process, who has the other end: commands work alike with and without a daemon.
pub fn serve_in_process(checkpoints: Arc<Checkpoints>) -> DuplexStream {
    let (ours, theirs) = tokio::io::duplex(IN_PROCESS_BYTES);
    let service = CheckpointsGrpc::server(checkpoints, Access::Node);
    let incoming = tokio_stream::once(Ok::<_, std::io::Error>(ours));
    tokio::spawn(async move {
        if let Err(error) = Server::builder().add_service(service).serve_with_incoming(incoming).await {
            tracing::error!(%error, "the checkpoint service inside this process ended");
        }
    });
    theirs
}

#[tonic::async_trait]
impl Service for CheckpointsGrpc {
    type WatchSaveStream = Boxed<v1::SaveStatus>;
    type SaveFolderStream = Boxed<v1::SaveStatus>;
    type VerifyCheckpointStream = Boxed<v1::VerifyCheckpointResponse>;
    type RecoverCheckpointStream = Boxed<v1::RecoverCheckpointResponse>;

    async fn plan_save(&self, request: Request<v1::PlanSaveRequest>) -> Result<Response<v1::SavePlan>, Status> {
        answer(self.do_plan(request.into_inner()).await)
    }

    async fn start_save(&self, request: Request<v1::StartSaveRequest>) -> Result<Response<v1::SaveStatus>, Status> {
        answer(self.do_start(request.into_inner()).await)
    }

    async fn watch_save(
        &self,
        request: Request<v1::WatchSaveRequest>,
    ) -> Result<Response<Self::WatchSaveStream>, Status> {
        let deadline = deadline::of(request.metadata());
        let watch = async {
            let attempt = convert::attempt(&request.into_inner().attempt)?;
            let engine = self.engine_with(&attempt).await?;
            self.watch(engine, &attempt, deadline).await
        };
        answer(watch.await)
    }

    async fn cancel_save(&self, request: Request<v1::CancelSaveRequest>) -> Result<Response<v1::SaveStatus>, Status> {
        let cancel = async {
            self.access.check_node("CancelSave")?;
            let attempt = convert::attempt(&request.into_inner().attempt)?;
            let status = self.engine_with(&attempt).await?.cancel(&attempt).await?;
            Ok(convert::status(&status))
        };
        answer(cancel.await)
    }

    async fn save_folder(
        &self,
        request: Request<v1::SaveFolderRequest>,
    ) -> Result<Response<Self::SaveFolderStream>, Status> {
        let deadline = deadline::of(request.metadata());
        answer(self.do_save_folder(request.into_inner(), deadline).await)
    }

    async fn list_saves(
        &self,
        _request: Request<v1::ListSavesRequest>,
    ) -> Result<Response<v1::ListSavesResponse>, Status> {
        let engine = self.checkpoints.existing().await.map_err(|error| to_status(&error))?;
        let saves = engine.map(|engine| engine.saves()).unwrap_or_default();
        let saves = saves.iter().map(|status| convert::status(status)).collect();
        Ok(Response::new(v1::ListSavesResponse { saves }))
    }

    async fn list_checkpoints(
        &self,
        request: Request<v1::ListCheckpointsRequest>,
    ) -> Result<Response<v1::ListCheckpointsResponse>, Status> {
        let list = async {
            let url = self.url(&request.into_inner().uri)?;
            checked(convert::list(&self.checkpoints.catalog().list(&url).await?), "the list of checkpoints")
        };
        answer(list.await)
    }

    async fn get_checkpoint(
        &self,
        request: Request<v1::GetCheckpointRequest>,
    ) -> Result<Response<v1::Checkpoint>, Status> {
        answer(self.do_get(request.into_inner()).await)
    }

    async fn delete_checkpoint(
        &self,
        request: Request<v1::DeleteCheckpointRequest>,
    ) -> Result<Response<v1::DeleteCheckpointResponse>, Status> {
        let v1::DeleteCheckpointRequest { uri, step } = request.into_inner();
        let delete = async {
            let url = self.url_to_change("DeleteCheckpoint", &uri)?;
            let deleted = self.checkpoints.catalog().delete(&url, step).await?;
            tracing::info!(url = redact_url(&url), step, "a checkpoint was deleted");
            Ok(convert::deleted(&deleted))
        };
        answer(delete.await)
    }

    async fn sweep_checkpoints(
        &self,
        request: Request<v1::SweepCheckpointsRequest>,
    ) -> Result<Response<v1::SweepCheckpointsResponse>, Status> {
        let v1::SweepCheckpointsRequest { uri, older_than_ms } = request.into_inner();
        let sweep = async {
            let url = self.url_to_change("SweepCheckpoints", &uri)?;
            // Saves that this node goes on with are not dead, however long they take.
            let swept = match self.checkpoints.existing().await? {
                Some(engine) => engine.sweep(&url, older_than_ms).await?,
                None => self.checkpoints.catalog().sweep(&url, older_than_ms, &[]).await?,
            };
            Ok(convert::swept(&swept))
        };
        answer(sweep.await)
    }

    async fn verify_checkpoint(
        &self,
        request: Request<v1::VerifyCheckpointRequest>,
    ) -> Result<Response<Self::VerifyCheckpointStream>, Status> {
        let deadline = deadline::of(request.metadata());
        answer(self.do_verify(request.into_inner(), deadline).await)
    }

    async fn recover_checkpoint(
        &self,
        request: Request<v1::RecoverCheckpointRequest>,
    ) -> Result<Response<Self::RecoverCheckpointStream>, Status> {
        let deadline = deadline::of(request.metadata());
        answer(self.do_recover(request.into_inner(), deadline).await)
    }
}
