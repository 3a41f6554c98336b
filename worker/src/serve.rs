//! The daemon: open, bind, serve, drain.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use longshore_cluster::{Identity, Membership, Probe, StaticMembership, host_id};
use longshore_origin::Origins;
use longshore_proto::v1::worker_server::WorkerServer;
use longshore_proto::{FILE_DESCRIPTOR_SET, MESSAGE_BYTES_MAX};
use longshore_runtime::pages;
use longshore_types::checkpoint::AttemptId;
use longshore_types::{Code, Error, Result};
use longshore_wire::{
    ChunkReply, ChunkRequest, ChunkService, ClientOptions, DataClient, DataServer, Endpoint, Page, PutRequest,
    PutStart, ServerOptions,
};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;
use tonic_health::server::HealthReporter;

use crate::grpc::Grpc;
use crate::options::WorkerOptions;
use crate::worker::{VERSION, Worker};

/// Largest `/v1/identity` that is read, in bytes.
const IDENTITY_BYTES_MAX: usize = 16 << 10;
/// How often the members are asked who they are.
const MEMBERS_REFRESH: Duration = Duration::from_secs(10);
/// How long a start waits for the other workers.
const FULL_VIEW_WAIT: Duration = Duration::from_secs(5);
/// For a connection to a member that is asked who it is.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

/// Runs a worker until `token` is cancelled, then drains it.
///
/// # Errors
/// What kept it from starting: an address that is taken, a cache folder that cannot be used.
pub async fn serve(options: WorkerOptions, origins: Origins, token: CancellationToken) -> Result<()> {
    let ops = pages::bind(options.ops_listen).await?;
    let control = bind_control(options.control_listen).await?;
    let drain_timeout = Duration::from_millis(options.drain_timeout_ms);
    let gate = Arc::new(Gate::default());
    let server = DataServer::bind(data_options(&options, drain_timeout), gate.clone())?;
    let opened = tokio::task::spawn_blocking(move || Worker::open(options, origins, None)).await;
    let opened = opened.map_err(|error| Error::new(Code::Internal, format!("opening the cache ended: {error}")))?;
    let worker = opened.map_err(advise)?;
    worker.introduce(identity(&worker, server.tcp_addr(), control.local_addr().ok()));
    gate.install(worker.clone());

    // What drains last is stopped by tokens of its own.
    let (data_token, pages_token) = (CancellationToken::new(), CancellationToken::new());
    let state = Arc::new(State { worker: worker.clone(), ready: AtomicBool::new(false) });
    let pages = tokio::spawn(pages::serve(ops, state.clone().pages(), pages_token.clone()));
    let data = server.spawn(data_token.clone())?;
    let (health, health_service) = tonic_health::server::health_reporter();
    let grpc = tokio::spawn(serve_control(control, worker.clone(), health_service, token.clone()));
    join_cluster(&worker, &token).await?;
    gate.open();
    health.set_serving::<WorkerServer<Grpc>>().await;
    state.ready.store(true, Ordering::Release);
    tracing::info!(id = %worker.peers().me(), data = ?data.tcp_addr(), "worker is ready");

    token.cancelled().await;
    tracing::info!("worker is draining");
    state.ready.store(false, Ordering::Release);
    not_serving(&health).await;
    data_token.cancel();
    let drained = tokio::task::spawn_blocking(move || {
        data.join();
        worker.drain(drain_timeout)
    });
    let flushed = drained.await.unwrap_or(false);
    if !flushed {
        tracing::warn!(?drain_timeout, "fills or writes were cut off by the drain time limit");
    }
    let controlled = tokio::time::timeout(drain_timeout, grpc).await;
    pages_token.cancel();
    let _ = pages.await;
    match controlled {
        Ok(Ok(outcome)) => outcome,
        Ok(Err(error)) => Err(Error::new(Code::Internal, format!("the control service ended: {error}"))),
        Err(_) => {
            tracing::warn!(?drain_timeout, "control calls were cut off by the drain time limit");
            Ok(())
        }
    }
}

/// What else a daemon can do without its folder; a cache inside another command has no such flag.
fn advise(error: Error) -> Error {
    let source = std::error::Error::source(&error);
    if !source.is_some_and(|source| source.is::<std::io::Error>()) {
        return error;
    }
    Error::new(error.code(), format!("{error}, or keep the cache in memory with --memory-only")).with_source(error)
}

/// Stands before the worker on the data plane: the port is taken before the cache is opened, `/v1/identity` is answered
/// before the others are known, and chunks are served only then, or two workers could read the origin for one chunk.
#[derive(Default)]
struct Gate {
    worker: OnceLock<Arc<Worker>>,
    is_open: AtomicBool,
}

impl Gate {
    fn install(&self, worker: Arc<Worker>) {
        let _ = self.worker.set(worker);
    }

    fn open(&self) {
        self.is_open.store(true, Ordering::Release);
    }
}

impl ChunkService for Gate {
    fn get(&self, request: &ChunkRequest) -> Result<ChunkReply> {
        match self.worker.get() {
            Some(worker) if self.is_open.load(Ordering::Acquire) => worker.get(request),
            _ => Err(starting()),
        }
    }

    fn put(&self, request: &PutRequest) -> Result<PutStart> {
        self.worker.get().filter(|_| self.is_open.load(Ordering::Acquire)).ok_or_else(starting)?.put(request)
    }

    fn release(&self, attempt: &AttemptId) -> Result<()> {
        self.worker.get().ok_or_else(starting)?.release(attempt)
    }

    fn page(&self, path: &str) -> Option<Page> {
        self.worker.get()?.page(path)
    }
}

fn starting() -> Error {
    Error::new(Code::Unavailable, "the worker is starting and does not know the others yet")
}

/// What the pages tell.
struct State {
    worker: Arc<Worker>,
    ready: AtomicBool,
}

impl State {
    fn pages(self: Arc<Self>) -> pages::Handler {
        let worker = self.worker.clone();
        let ready = Arc::new(move || match self.ready.load(Ordering::Acquire) {
            true => Ok(()),
            false => Err("starting or draining".to_owned()),
        });
        let standard = pages::standard(worker.registry().clone(), ready);
        Arc::new(move |path| {
            if path == "/metrics" {
                worker.update_metrics();
            }
            standard(path)
        })
    }
}

async fn bind_control(address: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|error| {
        let message = format!("cannot listen on {address} for the control service: {error}");
        Error::new(Code::Unavailable, message).with_source(error)
    })
}

fn data_options(options: &WorkerOptions, drain_timeout: Duration) -> ServerOptions {
    ServerOptions {
        tcp: Some(options.data_listen),
        unix: options.unix_socket.clone(),
        connections_max: options.connections_max,
        drain_timeout,
        ..ServerOptions::default()
    }
}

async fn serve_control(
    listener: TcpListener,
    worker: Arc<Worker>,
    health: impl tonic::codegen::Service<
        tonic::codegen::http::Request<tonic::body::Body>,
        Response = tonic::codegen::http::Response<tonic::body::Body>,
        Error = std::convert::Infallible,
        Future: Send,
    > + tonic::server::NamedService
    + Clone
    + Send
    + Sync
    + 'static,
    token: CancellationToken,
) -> Result<()> {
    let failed = |what: String| Error::new(Code::Internal, format!("the control service failed: {what}"));
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()
        .map_err(|error| failed(error.to_string()))?;
    let service = WorkerServer::new(Grpc::new(worker)).max_encoding_message_size(MESSAGE_BYTES_MAX);
    tonic::transport::Server::builder()
        .add_service(health)
        .add_service(reflection)
        .add_service(service)
        .serve_with_incoming_shutdown(TcpListenerStream::new(listener), token.cancelled_owned())
        .await
        .map_err(|error| failed(error.to_string()))
}

async fn not_serving(health: &HealthReporter) {
    health.set_not_serving::<WorkerServer<Grpc>>().await;
}

/// Finds the others, when there are any. The data plane answers `/v1/identity` by now: this worker is one of them.
async fn join_cluster(worker: &Arc<Worker>, token: &CancellationToken) -> Result<()> {
    let addresses = worker.options().workers.clone();
    if addresses.is_empty() {
        return Ok(());
    }
    let probe = Arc::new(WireProbe::new());
    let membership = StaticMembership::start(addresses, probe, MEMBERS_REFRESH, token.clone()).await?;
    wait_for_all(&*membership, worker.options().workers.len()).await;
    let view = membership.view();
    if view.member(worker.peers().me()).is_none() {
        tracing::warn!("this worker is not among the --workers that answer: it owns no chunks");
    }
    worker.join(membership);
    Ok(())
}

/// Gives workers that start together the time to see each other: with half a view, two of them may both believe that
/// they own a chunk, and read the origin twice.
async fn wait_for_all(membership: &dyn Membership, count: usize) {
    let mut views = membership.watch();
    let complete = views.wait_for(|view| view.members.len() >= count);
    if tokio::time::timeout(FULL_VIEW_WAIT, complete).await.is_err() {
        tracing::warn!(listed = count, seen = membership.view().members.len(), "not all workers answer; starting");
    }
}

/// Asks workers who they are, over the data plane.
struct WireProbe {
    client: DataClient,
}

impl WireProbe {
    fn new() -> Self {
        let options =
            ClientOptions { connect_timeout: PROBE_TIMEOUT, stall_timeout: PROBE_TIMEOUT, ..ClientOptions::default() };
        WireProbe { client: DataClient::new(options) }
    }
}

#[async_trait]
impl Probe for WireProbe {
    async fn identity(&self, address: &str) -> Result<Identity> {
        let (client, endpoint) = (self.client.clone(), Endpoint::Tcp(address.to_owned()));
        let page = tokio::task::spawn_blocking(move || client.page(&endpoint, "/v1/identity", IDENTITY_BYTES_MAX));
        let page = page.await.map_err(|error| Error::new(Code::Internal, format!("a probe ended: {error}")))??;
        serde_json::from_slice(&page)
            .map_err(|error| Error::new(Code::Unavailable, format!("{address} gave no identity: {error}")))
    }
}

fn identity(worker: &Worker, data: Option<SocketAddr>, control: Option<SocketAddr>) -> Identity {
    let options = worker.options();
    let place = |bound: Option<SocketAddr>, asked: SocketAddr| {
        let bound = bound.unwrap_or(asked);
        let host = options.advertise.clone().unwrap_or_else(|| reachable_host(bound.ip()));
        format!("{host}:{}", bound.port())
    };
    Identity {
        id: worker.peers().me(),
        weight: worker.weight(),
        data: place(data, options.data_listen),
        control: place(control, options.control_listen),
        unix_socket: options.unix_socket.as_deref().and_then(|path| std::path::absolute(path).ok()),
        host_id: host_id(),
        version: VERSION.to_owned(),
    }
}

/// The address as others can use it: the one we listen on, or for "all addresses" that of the default route.
fn reachable_host(listen: IpAddr) -> String {
    let ip = if listen.is_unspecified() { default_route_ip(listen).unwrap_or(loopback(listen)) } else { listen };
    match ip {
        IpAddr::V4(ip) => ip.to_string(),
        IpAddr::V6(ip) => format!("[{ip}]"),
    }
}

/// Asks the kernel which source address it would use. Connecting a UDP socket sends nothing.
fn default_route_ip(listen: IpAddr) -> Option<IpAddr> {
    // Documentation addresses: routed like any other, owned by nobody.
    let (any, far): (SocketAddr, SocketAddr) = match listen {
        IpAddr::V4(_) => ((Ipv4Addr::UNSPECIFIED, 0).into(), (Ipv4Addr::new(192, 0, 2, 1), 9).into()),
        IpAddr::V6(_) => {
            ((Ipv6Addr::UNSPECIFIED, 0).into(), (Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1), 9).into())
        }
    };
    let socket = UdpSocket::bind(any).ok()?;
    socket.connect(far).ok()?;
    let ip = socket.local_addr().ok()?.ip();
    (!ip.is_unspecified()).then_some(ip)
}

fn loopback(listen: IpAddr) -> IpAddr {
    match listen {
        IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
    }
}
