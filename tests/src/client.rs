//! A loader's gRPC service, called from a thread that may block.

use std::path::{Path, PathBuf};

use hyper_util::rt::TokioIo;
use longshore_proto::v1::loader_client::LoaderClient;
use longshore_proto::{MESSAGE_BYTES_MAX, status, v1};
use longshore_types::{Code, Error, Result};
use tokio::net::UnixStream;
use tokio::runtime::Runtime;
use tonic::transport::{Channel, Endpoint, Uri};
use tower::service_fn;

/// A connection to a loader.
pub struct Client {
    runtime: Runtime,
    client: LoaderClient<Channel>,
}

/// A load that succeeded.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The last message.
    pub model: v1::LoadedModel,
    /// The messages before it.
    pub progress: Vec<v1::LoadProgress>,
}

impl Client {
    /// Connects to the loader at that socket.
    ///
    /// # Errors
    /// [`Code::Unavailable`] when nobody answers.
    pub fn connect(socket: &Path) -> Result<Client> {
        let internal = |error: std::io::Error| Error::new(Code::Internal, error.to_string());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(internal)?;
        let path = PathBuf::from(socket);
        let connector = service_fn(move |_: Uri| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        });
        let endpoint = Endpoint::from_static("http://localhost");
        let channel = runtime.block_on(endpoint.connect_with_connector(connector)).map_err(|error| {
            Error::new(Code::Unavailable, format!("no loader at {}: {error}", socket.display())).with_source(error)
        })?;
        let client = LoaderClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
        Ok(Client { runtime, client })
    }

    /// Loads a model into host memory.
    ///
    /// # Errors
    /// Those of the loader.
    pub fn load(&mut self, uri: &str) -> Result<Loaded> {
        self.load_with(v1::LoadModelRequest { uri: uri.to_owned(), device: "host".to_owned(), ..Default::default() })
    }

    /// Loads a model as told.
    ///
    /// # Errors
    /// Those of the loader.
    pub fn load_with(&mut self, request: v1::LoadModelRequest) -> Result<Loaded> {
        let client = &mut self.client;
        self.runtime.block_on(async move {
            let stream = client.load_model(request).await.map_err(|error| status::from_status(&error))?;
            let mut stream = stream.into_inner();
            let mut progress = Vec::new();
            while let Some(message) = stream.message().await.map_err(|error| status::from_status(&error))? {
                match message.event {
                    Some(v1::load_model_response::Event::Progress(step)) => progress.push(step),
                    Some(v1::load_model_response::Event::Model(model)) => return Ok(Loaded { model, progress }),
                    None => return Err(Error::new(Code::Internal, "empty message in the stream of a load")),
                }
            }
            Err(Error::new(Code::Internal, "the stream of a load ended without a model"))
        })
    }

    /// The models in memory.
    ///
    /// # Errors
    /// Those of the loader.
    pub fn models(&mut self) -> Result<Vec<v1::LoadedModel>> {
        let call = self.client.list_models(v1::ListModelsRequest {});
        let answer = self.runtime.block_on(call).map_err(|error| status::from_status(&error))?;
        Ok(answer.into_inner().models)
    }

    /// Forgets every model of a URI.
    ///
    /// # Errors
    /// Those of the loader.
    pub fn unload(&mut self, uri: &str) -> Result<v1::UnloadModelResponse> {
        let request = v1::UnloadModelRequest { uri: uri.to_owned(), ..Default::default() };
        let call = self.client.unload_model(request);
        let answer = self.runtime.block_on(call).map_err(|error| status::from_status(&error))?;
        Ok(answer.into_inner())
    }

    /// Memory, devices and members.
    ///
    /// # Errors
    /// Those of the loader.
    pub fn status(&mut self) -> Result<v1::LoaderStatus> {
        let call = self.client.status(v1::LoaderStatusRequest {});
        let answer = self.runtime.block_on(call).map_err(|error| status::from_status(&error))?;
        Ok(answer.into_inner())
    }
}

impl Loaded {
    /// Bytes that came from a tier, by the load's own report.
    pub fn tier_bytes(&self, tier: v1::Tier) -> u64 {
        let report = self.model.report.as_ref();
        let entries = report.map(|report| report.bytes_by_tier.as_slice()).unwrap_or_default();
        entries.iter().filter(|entry| entry.tier() == tier).map(|entry| entry.bytes).sum()
    }

    /// How often a fallback of that kind was taken, by the load's own report.
    pub fn fallbacks(&self, kind: &str) -> u64 {
        let report = self.model.report.as_ref();
        let entries = report.map(|report| report.fallbacks.as_slice()).unwrap_or_default();
        entries.iter().filter(|entry| entry.kind == kind).map(|entry| entry.count).sum()
    }
}
