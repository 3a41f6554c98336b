//! The daemon's face: gRPC over the unix socket and TCP, health, reflection, pages, drain.

use std::path::PathBuf;
use std::time::Duration;

use longshore_loader::{Listen, Listeners, serve, serve_with};
use longshore_proto::v1::load_model_response::Event;
use longshore_proto::v1::loader_client::LoaderClient;
use longshore_proto::{status, v1};
use longshore_testkit::cluster::http_get;
use longshore_testkit::modelgen::ModelSpec;
use longshore_types::{ByteSize, Code, Result};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};

use crate::fixture::{Fixture, Setup, eventually, origin_options};
use crate::workers::Behaviour;

/// A fixture whose loader is served.
pub struct Daemon {
    pub fixture: Fixture,
    pub folder: TempDir,
    pub attach_socket: PathBuf,
    pub loader_socket: PathBuf,
    pub tcp: String,
    ops: String,
    token: CancellationToken,
    serving: JoinHandle<Result<()>>,
}

fn any_port() -> Listen {
    Listen(Some(([127, 0, 0, 1], 0).into()))
}

impl Daemon {
    pub async fn start(mut setup: Setup) -> Daemon {
        let folder = tempfile::tempdir().unwrap();
        setup.options.socket_dir = Some(folder.path().to_owned());
        setup.options.listen = any_port();
        setup.options.ops_listen = any_port();
        // Of this test, and opened by who saves.
        setup.options.checkpoints.dir = Some(folder.path().join("spool"));
        setup.options.checkpoints.slab_dir = Some(folder.path().join("slabs"));
        setup.options.checkpoints.memory = Some(ByteSize(128 << 20));
        setup.options.checkpoints.disk = Some(ByteSize(4 << 30));
        setup.options.checkpoints.private = true;
        let listeners = Listeners::bind(&setup.options).await.unwrap();
        let fixture = Fixture::new(setup);
        let token = CancellationToken::new();
        Daemon {
            attach_socket: listeners.attach_socket().to_owned(),
            loader_socket: listeners.loader_socket().to_owned(),
            tcp: listeners.listen_addr().unwrap().to_string(),
            ops: listeners.ops_addr().unwrap().to_string(),
            serving: tokio::spawn(serve_with(listeners, fixture.loader.clone(), token.clone())),
            token,
            folder,
            fixture,
        }
    }

    async fn client(&self) -> LoaderClient<Channel> {
        let endpoint = Endpoint::try_from(format!("unix://{}", self.loader_socket.display())).unwrap();
        LoaderClient::new(endpoint.connect().await.unwrap())
    }

    async fn client_over_tcp(&self) -> LoaderClient<Channel> {
        LoaderClient::connect(format!("http://{}", self.tcp)).await.unwrap()
    }

    async fn page(&self, path: &str) -> (u16, String) {
        let (ops, path) = (self.ops.clone(), path.to_owned());
        tokio::task::spawn_blocking(move || http_get(&ops, &path)).await.unwrap().unwrap()
    }

    pub async fn stop(self) {
        self.token.cancel();
        self.serving.await.unwrap().unwrap();
        assert!(!self.attach_socket.exists() && !self.loader_socket.exists(), "sockets are removed");
    }
}

async fn load(client: &mut LoaderClient<Channel>, request: v1::LoadModelRequest) -> (v1::LoadedModel, usize) {
    let mut stream = client.load_model(request).await.unwrap().into_inner();
    let mut progress = 0;
    loop {
        match stream.message().await.unwrap().expect("a model before the end").event.unwrap() {
            Event::Progress(_) => progress += 1,
            Event::Model(model) => {
                assert!(stream.message().await.unwrap().is_none(), "the model is the last message");
                return (model, progress);
            }
        }
    }
}

fn request(uri: &str) -> v1::LoadModelRequest {
    v1::LoadModelRequest { uri: uri.to_owned(), device: "host".into(), trace: true, ..Default::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_service_answers_over_both_transports() {
    let daemon = Daemon::start(Setup::default()).await;
    let model = ModelSpec::sized(1, 60 << 20, 20).build();
    let uri = daemon.fixture.put("m", &model).uri;
    let mut client = daemon.client().await;
    let (loaded, _) = load(&mut client, request(&uri)).await;
    assert_eq!((loaded.uri.as_str(), loaded.device.as_str(), loaded.reattached), (uri.as_str(), "host", false));
    assert_eq!((loaded.tensors.len(), loaded.files.len()), (model.tensors.len(), 1));
    assert_eq!(loaded.attach_socket, daemon.attach_socket.to_str().unwrap());
    let report = loaded.report.as_ref().unwrap();
    assert!(!report.events.is_empty(), "a trace was asked for");
    let steps: Vec<v1::LoadStep> = report.steps.iter().map(|step| step.step()).collect();
    use v1::LoadStep::{Fetch, Plan, Publish, Resolve, Upload, Verify};
    assert_eq!(steps, [Resolve, Plan, Fetch, Verify, Upload, Publish]);

    let mut client = daemon.client_over_tcp().await;
    let (again, _) = load(&mut client, request(&uri)).await;
    assert!(again.reattached && again.model_id == loaded.model_id);
    let got = client.get_model(v1::GetModelRequest { model_id: loaded.model_id.clone() }).await.unwrap().into_inner();
    assert_eq!(got.tensors, loaded.tensors);
    let listed = client.list_models(v1::ListModelsRequest {}).await.unwrap().into_inner().models;
    assert!(listed.len() == 1 && listed[0].tensors.is_empty() && listed[0].tensor_count == loaded.tensor_count);
    let state = client.status(v1::LoaderStatusRequest {}).await.unwrap().into_inner();
    assert!(state.arena_used_bytes >= loaded.size_bytes && state.models.len() == 1 && state.devices.len() == 1);
    let unload = v1::UnloadModelRequest { model_id: loaded.model_id, uri: String::new() };
    let unloaded = client.unload_model(unload.clone()).await.unwrap().into_inner();
    assert_eq!((unloaded.models, unloaded.bytes_freed), (1, loaded.size_bytes));
    let error = status::from_status(&client.unload_model(unload).await.unwrap_err());
    assert_eq!(error.code(), Code::NotFound);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn errors_carry_their_code_and_a_deadline_is_kept() {
    let daemon = Daemon::start(Setup { workers: 1, ..Setup::default() }).await;
    let mut client = daemon.client().await;
    let mut fails = async |request: v1::LoadModelRequest| {
        let mut stream = match client.load_model(request).await {
            Ok(stream) => stream.into_inner(),
            Err(failure) => return status::from_status(&failure),
        };
        loop {
            match stream.message().await {
                Ok(message) => assert!(matches!(message.unwrap().event, Some(Event::Progress(_)))),
                Err(failure) => return status::from_status(&failure),
            }
        }
    };
    assert_eq!(fails(request("s3://bucket/none")).await.code(), Code::NotFound);
    assert_eq!(fails(request("")).await.code(), Code::InvalidArgument);
    assert_eq!(fails(request("gopher://x/y")).await.code(), Code::InvalidArgument);
    let cuda = v1::LoadModelRequest { device: "cuda:7".into(), ..request("s3://bucket/none") };
    assert_eq!(fails(cuda).await.code(), Code::Unsupported);

    let worker = daemon.fixture.workers[0].clone();
    worker.set(Behaviour::Gated);
    let uri = daemon.fixture.put("m", &ModelSpec::small(1).build()).uri;
    let mut late = tonic::Request::new(request(&uri));
    late.set_timeout(Duration::from_millis(300));
    let mut client = daemon.client().await;
    let failure = match client.load_model(late).await {
        Ok(stream) => {
            let mut stream = stream.into_inner();
            loop {
                if let Err(failure) = stream.message().await {
                    break failure;
                }
            }
        }
        Err(failure) => failure,
    };
    assert!(
        matches!(failure.code(), tonic::Code::DeadlineExceeded | tonic::Code::Cancelled),
        "{failure:?}: the server's answer and the client's own clock race"
    );
    let loader = daemon.fixture.loader.clone();
    eventually("the load was given up", || loader.status().loads_in_flight == 0).await;
    worker.open_gate();
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_goes_away_leaves_its_load() {
    let daemon = Daemon::start(Setup { workers: 1, ..Setup::default() }).await;
    let worker = daemon.fixture.workers[0].clone();
    worker.set(Behaviour::Gated);
    let uri = daemon.fixture.put("m", &ModelSpec::sized(1, 40 << 20, 4).build()).uri;
    let mut client = daemon.client().await;
    let stream = client.load_model(request(&uri)).await.unwrap();
    let loader = daemon.fixture.loader.clone();
    eventually("the load runs", || worker.waiting() > 0).await;
    drop(stream);
    drop(client);
    eventually("the load was given up", || loader.status().loads_in_flight == 0).await;
    worker.open_gate();
    let arena = daemon.fixture.arena.clone();
    eventually("its memory is free", || arena.used_bytes() == 0).await;
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_tell_and_a_drain_lets_loads_end() {
    let daemon = Daemon::start(Setup { workers: 1, ..Setup::default() }).await;
    assert_eq!(daemon.page("/healthz").await.0, 200);
    assert_eq!(daemon.page("/readyz").await.0, 200);
    let model = ModelSpec::small(1).build();
    let uri = daemon.fixture.put("m", &model).uri;
    let worker = daemon.fixture.workers[0].clone();
    worker.set(Behaviour::Gated);
    let mut client = daemon.client().await;
    let loading = tokio::spawn(async move { load(&mut client, request(&uri)).await });
    eventually("the load runs", || worker.waiting() > 0).await;
    daemon.token.cancel();
    let (code, reason) = daemon.page("/readyz").await;
    assert_eq!((code, reason.contains("shutting down")), (503, true));
    let metrics = daemon.page("/metrics").await.1;
    assert!(metrics.contains("longshore_loader_loads_in_flight 1"), "{metrics}");
    worker.open_gate();
    let (loaded, _) = loading.await.unwrap();
    assert_eq!(loaded.tensors.len(), model.tensors.len());
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_and_reflection_are_served() {
    use tonic_health::pb::HealthCheckRequest;
    use tonic_health::pb::health_client::HealthClient;
    use tonic_reflection::pb::v1::ServerReflectionRequest;
    use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
    use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
    use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

    let daemon = Daemon::start(Setup::default()).await;
    let channel = Endpoint::try_from(format!("http://{}", daemon.tcp)).unwrap().connect().await.unwrap();
    let services = ["longshore.v1.Loader", "longshore.v1.Checkpoints"];
    for service in services {
        let service = HealthCheckRequest { service: service.into() };
        let health = HealthClient::new(channel.clone()).check(service).await.unwrap().into_inner();
        assert_eq!(health.status, 1, "serving");
    }
    let ask = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut answers = ServerReflectionClient::new(channel)
        .server_reflection_info(futures::stream::iter([ask]))
        .await
        .unwrap()
        .into_inner();
    let Some(MessageResponse::ListServicesResponse(list)) = answers.message().await.unwrap().unwrap().message_response
    else {
        panic!("no list of services");
    };
    for service in services {
        assert!(list.service.iter().any(|listed| listed.name == service), "{list:?}");
    }
    drop(answers);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_daemon_on_the_sockets_is_told() {
    let daemon = Daemon::start(Setup::default()).await;
    let mut options = Setup::default().options;
    options.socket_dir = Some(daemon.folder.path().to_owned());
    options.listen = Listen(None);
    options.ops_listen = Listen(None);
    options.origin = origin_options(&daemon.fixture.origin);
    let error = serve(options, CancellationToken::new()).await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition);
    assert!(error.message().contains("loader.sock"), "{error}");
    daemon.stop().await;
}
