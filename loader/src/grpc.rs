//! The gRPC service: converts, calls the loader, converts back. Generated types stop here and at the attach socket.

pub(crate) mod convert;
pub(crate) mod deadline;
mod stream;

use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;

use futures::Stream;
use longshore_proto::status::to_status;
use longshore_proto::v1;
use longshore_proto::v1::loader_server::Loader as LoaderService;
use longshore_types::{Code, Error, Result};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::{Request, Response, Status};

use crate::loader::{LoadRequest, Loader};
use crate::model::ModelId;
use crate::parallel::Parallel;
use convert::Detail;

/// The service over one loader.
pub(crate) struct Grpc {
    loader: Arc<Loader>,
    attach_socket: Arc<Path>,
    load_streams: Arc<Semaphore>,
}

/// `LoadModel` streams open at once, over all connections.
const LOAD_STREAMS_MAX: usize = 1024;

impl Grpc {
    pub(crate) fn new(loader: Arc<Loader>, attach_socket: Arc<Path>) -> Self {
        Grpc { loader, attach_socket, load_streams: Arc::new(Semaphore::new(LOAD_STREAMS_MAX)) }
    }

    fn load_stream(&self) -> Result<OwnedSemaphorePermit> {
        self.load_streams.clone().try_acquire_owned().map_err(|_| {
            Error::new(Code::Exhausted, format!("{LOAD_STREAMS_MAX} callers wait for loads already, ask again later"))
        })
    }
}

#[tonic::async_trait]
impl LoaderService for Grpc {
    type LoadModelStream = Pin<Box<dyn Stream<Item = Result<v1::LoadModelResponse, Status>> + Send>>;

    async fn load_model(
        &self,
        request: Request<v1::LoadModelRequest>,
    ) -> Result<Response<Self::LoadModelStream>, Status> {
        let deadline = deadline::of(request.metadata());
        let request = load_request(request.into_inner()).map_err(|error| to_status(&error))?;
        let permit = self.load_stream().map_err(|error| to_status(&error))?;
        let stream = stream::load(self.loader.clone(), self.attach_socket.clone(), request, deadline, permit);
        Ok(Response::new(Box::pin(stream)))
    }

    async fn get_model(&self, request: Request<v1::GetModelRequest>) -> Result<Response<v1::LoadedModel>, Status> {
        let id = ModelId::from_client(request.into_inner().model_id);
        let model = self.loader.get(&id).map_err(|error| to_status(&error))?;
        let state = self.loader.state_of(&model);
        model.lease().promise();
        Ok(Response::new(convert::model(&model, &state, &self.attach_socket, Detail::Full)))
    }

    async fn list_models(
        &self,
        _request: Request<v1::ListModelsRequest>,
    ) -> Result<Response<v1::ListModelsResponse>, Status> {
        let models = self.loader.list();
        let models = models.iter().map(|state| convert::listed(state, &self.attach_socket)).collect();
        Ok(Response::new(v1::ListModelsResponse { models }))
    }

    async fn unload_model(
        &self,
        request: Request<v1::UnloadModelRequest>,
    ) -> Result<Response<v1::UnloadModelResponse>, Status> {
        let v1::UnloadModelRequest { model_id, uri } = request.into_inner();
        let unloaded = match (model_id.is_empty(), uri.is_empty()) {
            (false, true) => self.loader.unload(&ModelId::from_client(model_id)).await,
            (true, false) => self.loader.unload_uri(&uri).await,
            _ => Err(Error::new(Code::InvalidArgument, "give either a model_id or a uri to unload")),
        };
        let unloaded = unloaded.map_err(|error| to_status(&error))?;
        Ok(Response::new(v1::UnloadModelResponse {
            models: unloaded.models,
            bytes_freed: unloaded.bytes_freed,
            bytes_leased: unloaded.bytes_leased,
        }))
    }

    async fn status(&self, _request: Request<v1::LoaderStatusRequest>) -> Result<Response<v1::LoaderStatus>, Status> {
        let loader = self.loader.clone();
        let status = crate::load::blocking(move || Ok(loader.status())).await.map_err(|error| to_status(&error))?;
        Ok(Response::new(convert::status(&status, &self.attach_socket)))
    }
}

fn load_request(message: v1::LoadModelRequest) -> Result<LoadRequest> {
    if message.uri.is_empty() {
        return Err(Error::new(Code::InvalidArgument, "the request names no uri"));
    }
    let device = if message.device.is_empty() { "auto" } else { &message.device };
    Ok(LoadRequest {
        device: device.parse()?,
        uri: message.uri,
        include: message.include,
        revalidate: message.revalidate,
        trace: message.trace,
        parallel: message.parallel.map(Parallel::try_from).transpose()?,
        allow_uncommitted: message.allow_uncommitted,
    })
}
