//! The loader as a daemon: binds everything, opens the loader, serves, drains.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use longshore_cluster::membership::PROBE_TIMEOUT;
use longshore_cluster::{Membership, StaticMembership};
use longshore_memory::{Arena, shared_memory};
use longshore_origin::Origins;
use longshore_proto::v1::checkpoints_server::CheckpointsServer;
use longshore_proto::v1::loader_server::LoaderServer;
use longshore_proto::{FILE_DESCRIPTOR_SET, MESSAGE_BYTES_MAX};
use longshore_runtime::{Page, pages};
use longshore_types::{Code, Error, Result, format_bytes};
use longshore_wire::{ClientOptions, DataClient};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_stream::wrappers::{TcpListenerStream, UnixListenerStream};
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::transport::Server;

use crate::checkpoint::{Access, CheckpointsGrpc, slab_socket};
use crate::cluster::{RemoteCluster, RemoteOptions, WireProbe};
use crate::devices;
use crate::grpc::Grpc;
use crate::holder::{HolderHandle, raise_descriptor_limit};
use crate::loader::Loader;
use crate::options::LoaderOptions;
use crate::sockets::{self, BoundSocket};

/// Calls that one connection may have open.
const CALLS_PER_CONNECTION_MAX: usize = 256;
/// How long the last answers may take once nothing runs any more.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// Runs the daemon until the token is cancelled, then drains: no new connections, loads in flight may end.
///
/// # Errors
/// When an address or socket cannot be bound, naming it; when an option is not valid.
pub async fn serve(options: LoaderOptions, token: CancellationToken) -> Result<()> {
    raise_descriptor_limit();
    let holder = HolderHandle::find(&options).await?;
    let listeners = Listeners::bind_held(&options, &holder).await?;
    let loader = open(&options, holder, &token).await?;
    serve_and_start(listeners, loader, token, true).await
}

/// As [`serve`], over a loader that was opened before, for instance over a cache inside this process. GPUs are started
/// by the first load for each.
///
/// # Errors
/// When a server ends on its own.
pub async fn serve_with(listeners: Listeners, loader: Arc<Loader>, token: CancellationToken) -> Result<()> {
    serve_and_start(listeners, loader, token, false).await
}

/// Models that were taken over are served at once. Locking memory for GPUs takes seconds, so it is done meanwhile; loads
/// onto a GPU wait for it, and the daemon is ready after it.
async fn serve_and_start(
    listeners: Listeners,
    loader: Arc<Loader>,
    token: CancellationToken,
    start_devices: bool,
) -> Result<()> {
    let attach_path: Arc<Path> = Arc::from(listeners.attach_socket());
    let Listeners { grpc, attach, slabs, tcp, ops } = listeners;
    let BoundSocket { listener: grpc, guard: grpc_file } = grpc;
    loader.take_over().await?;
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<LoaderServer<Grpc>>().await;
    health.set_serving::<CheckpointsServer<CheckpointsGrpc>>().await;
    let routes = |access| Ok::<_, Error>(routes(&loader, &attach_path, access)?.add_service(health_service.clone()));

    let mut tasks = JoinSet::new();
    let over_unix = server().add_routes(routes(Access::Node)?);
    let stop = token.clone().cancelled_owned();
    tasks.spawn(over_unix.serve_with_incoming_shutdown(UnixListenerStream::new(grpc), stop));
    if let Some(listener) = tcp {
        let over_tcp = server().add_routes(routes(Access::Network)?);
        let stop = token.clone().cancelled_owned();
        tasks.spawn(over_tcp.serve_with_incoming_shutdown(TcpListenerStream::new(listener), stop));
    }
    // Pages go last: while the loader drains, they say so.
    let closing = CancellationToken::new();
    let _close_pages = closing.clone().drop_guard();
    let is_started = Arc::new(AtomicBool::new(!start_devices));
    if let Some(listener) = ops {
        tokio::spawn(pages::serve(listener, ops_pages(loader.clone(), token.clone(), is_started.clone()), closing));
    }
    let _attach_file = match attach {
        Attach::Here(BoundSocket { listener, guard }) => {
            loader.serve_attach(listener, attach_path, token.clone())?;
            Some(guard)
        }
        Attach::Elsewhere(_) => None,
    };
    let checkpoints = loader.checkpoints().clone();
    let BoundSocket { listener: slabs, guard: slabs_file } = slabs;
    checkpoints.set_slabs_socket(slabs_file.path());
    tokio::spawn(slab_socket::serve(slabs, checkpoints.clone(), token.clone()));
    if let Some(advice) = shared_memory().advice() {
        tracing::warn!(advice, "loading is slower than it could be");
    }
    let options = loader.options();
    tracing::info!(
        socket = %grpc_file.path().display(),
        listen = %options.listen,
        ops = %options.ops_listen,
        memory = format_bytes(options.memory_bytes()),
        host_pages = %shared_memory().pages(),
        workers = options.workers.len(),
        "loader is ready"
    );

    let starting = async {
        // What an earlier loader did not finish goes on while memory is locked.
        tokio::try_join!(checkpoints.start(), async {
            match start_devices {
                true => loader.start_devices().await.map(drop),
                false => Ok(()),
            }
        })?;
        is_started.store(true, Ordering::Relaxed);
        std::future::pending::<Result<()>>().await
    };
    tokio::select! {
        // Once cancelled, servers end one by one: that is the drain, not their failure.
        biased;
        () = token.cancelled() => {}
        ended = tasks.join_next() => return served(ended),
        failed = starting => return failed,
    }
    health.set_not_serving::<LoaderServer<Grpc>>().await;
    health.set_not_serving::<CheckpointsServer<CheckpointsGrpc>>().await;
    let patience = Duration::from_millis(options.drain_timeout_ms);
    tokio::join!(loader.drain(patience), checkpoints.close(patience));
    let closed = tokio::time::timeout(CLOSE_TIMEOUT, async { while tasks.join_next().await.is_some() {} }).await;
    if closed.is_err() {
        tracing::info!("connections that clients keep open are closed");
    }
    tracing::info!("loader has ended");
    Ok(())
}

/// Where clients attach.
enum Attach {
    /// At this process, which is its own holder.
    Here(BoundSocket),
    /// At the holder's process.
    Elsewhere(PathBuf),
}

/// Everything a daemon listens on, bound before any serious work.
pub struct Listeners {
    grpc: BoundSocket,
    attach: Attach,
    slabs: BoundSocket,
    tcp: Option<TcpListener>,
    ops: Option<TcpListener>,
}

impl Listeners {
    /// Binds the sockets `loader.sock`, `attach.sock` and `slabs.sock` and the addresses of the options, for a loader that holds its
    /// models itself. Must run inside a runtime.
    ///
    /// # Errors
    /// [`Code::FailedPrecondition`] when another daemon listens on a socket, [`Code::Unavailable`] for an address that
    /// is taken, [`Code::PermissionDenied`] for a folder that is not ours.
    pub async fn bind(options: &LoaderOptions) -> Result<Listeners> {
        let attach = || sockets::bind(&options.socket_folder(), "attach.sock", options.socket_mode.0).map(Attach::Here);
        Listeners::bind_with(options, attach).await
    }

    /// As [`Listeners::bind`], for a loader with this holder: one that is a process listens on `attach.sock` itself.
    ///
    /// # Errors
    /// As [`Listeners::bind`].
    pub async fn bind_held(options: &LoaderOptions, holder: &HolderHandle) -> Result<Listeners> {
        match holder.link() {
            None => Listeners::bind(options).await,
            Some(link) => Listeners::bind_with(options, || Ok(Attach::Elsewhere(link.attach_socket()))).await,
        }
    }

    async fn bind_with(options: &LoaderOptions, attach: impl FnOnce() -> Result<Attach>) -> Result<Listeners> {
        let folder = options.socket_folder();
        sockets::prepare_folder(&folder)?;
        let grpc = sockets::bind(&folder, "loader.sock", options.socket_mode.0)?;
        let attach = attach()?;
        let slabs = sockets::bind(&folder, "slabs.sock", options.socket_mode.0)?;
        let tcp = match options.listen.0 {
            Some(address) => Some(TcpListener::bind(address).await.map_err(|error| {
                let hint = "stop what listens there, or choose another address with --listen";
                let message = format!("cannot listen on {address}: {error}; {hint}");
                Error::new(Code::Unavailable, message).with_source(error)
            })?),
            None => None,
        };
        let ops = match options.ops_listen.0 {
            Some(address) => Some(pages::bind(address).await?),
            None => None,
        };
        Ok(Listeners { grpc, attach, slabs, tcp, ops })
    }

    /// Path of the gRPC socket.
    pub fn loader_socket(&self) -> &Path {
        self.grpc.guard.path()
    }

    /// Path of the attach socket.
    pub fn attach_socket(&self) -> &Path {
        match &self.attach {
            Attach::Here(socket) => socket.guard.path(),
            Attach::Elsewhere(path) => path,
        }
    }

    /// Path of the socket where training processes get slabs.
    pub fn slabs_socket(&self) -> &Path {
        self.slabs.guard.path()
    }

    /// Address of the gRPC service, when it has one beside the socket.
    pub fn listen_addr(&self) -> Option<SocketAddr> {
        self.tcp.as_ref().and_then(|listener| listener.local_addr().ok())
    }

    /// Address of the metrics and health pages.
    pub fn ops_addr(&self) -> Option<SocketAddr> {
        self.ops.as_ref().and_then(|listener| listener.local_addr().ok())
    }
}

async fn open(options: &LoaderOptions, holder: HolderHandle, token: &CancellationToken) -> Result<Arc<Loader>> {
    let origins = Origins::new(options.origin.clone())?;
    let (with, keeper) = (options.clone(), holder.clone());
    // The driver takes its time to start.
    let devices = crate::load::blocking(move || {
        let arena = Arena::new(with.memory_bytes());
        devices::open(&with, &arena, Arc::new(keeper), devices::copier_process()?)
    });
    let devices = devices.await?;
    if !holder.facts().is_process && !devices.gpus.is_empty() {
        tracing::warn!(
            "models on GPUs end with this loader, because no holder runs; start `longshore holder` before it"
        );
    }
    let membership = membership(options, token).await?;
    let remote = RemoteOptions {
        connect_timeout: Duration::from_millis(options.connect_timeout_ms.max(1)),
        metadata_timeout: Duration::from_millis(options.metadata_timeout_ms.max(1)),
    };
    let cluster = RemoteCluster::new(membership, origins.clone(), remote);
    Loader::open(options.clone(), holder, cluster, devices, origins)
}

async fn membership(options: &LoaderOptions, token: &CancellationToken) -> Result<Option<Arc<dyn Membership>>> {
    // An empty variable is no worker.
    let workers: Vec<String> = options.workers.iter().filter(|address| !address.is_empty()).cloned().collect();
    if workers.is_empty() {
        return Ok(None);
    }
    let client = DataClient::new(ClientOptions {
        connect_timeout: PROBE_TIMEOUT,
        stall_timeout: PROBE_TIMEOUT,
        connections_per_endpoint_max: 1,
        ..ClientOptions::default()
    });
    let refresh = Duration::from_millis(options.members_refresh_ms);
    let probe = Arc::new(WireProbe::new(client));
    let membership = StaticMembership::start(workers, probe, refresh, token.clone()).await?;
    Ok(Some(membership))
}

fn routes(loader: &Arc<Loader>, attach_path: &Arc<Path>, access: Access) -> Result<Routes> {
    let service =
        LoaderServer::new(Grpc::new(loader.clone(), attach_path.clone())).max_encoding_message_size(MESSAGE_BYTES_MAX);
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let failed = |error| Error::new(Code::Internal, format!("gRPC reflection: {error}"));
    let v1 = reflection().build_v1().map_err(failed)?;
    let v1alpha = reflection().build_v1alpha().map_err(failed)?;
    let checkpoints = CheckpointsGrpc::server(loader.checkpoints().clone(), access);
    Ok(Routes::new(service).add_service(checkpoints).add_service(v1).add_service(v1alpha))
}

fn server() -> Server {
    Server::builder()
        .concurrency_limit_per_connection(CALLS_PER_CONNECTION_MAX)
        .max_concurrent_streams(CALLS_PER_CONNECTION_MAX as u32)
        .http2_keepalive_interval(Some(Duration::from_secs(30)))
}

/// Ready from when its GPUs are until it drains: without workers it reads origins directly.
fn ops_pages(loader: Arc<Loader>, token: CancellationToken, is_started: Arc<AtomicBool>) -> pages::Handler {
    let registry = loader.metrics().registry().clone();
    let ready: pages::Ready = Arc::new(move || match (token.is_cancelled(), is_started.load(Ordering::Relaxed)) {
        (true, _) => Err("shutting down".to_owned()),
        (false, false) => Err("locking memory for GPUs".to_owned()),
        (false, true) => Ok(()),
    });
    let standard = pages::standard(registry, ready);
    Arc::new(move |path: &str| -> Option<Page> {
        if path == "/metrics" {
            // Gauges are brought up to date when they are looked at.
            loader.metrics();
        }
        standard(path)
    })
}

type Served = std::result::Result<std::result::Result<(), tonic::transport::Error>, tokio::task::JoinError>;

fn served(ended: Option<Served>) -> Result<()> {
    match ended {
        Some(Ok(Err(error))) => {
            Err(Error::new(Code::Internal, format!("the gRPC server ended: {error}")).with_source(error))
        }
        Some(Err(error)) => Err(Error::new(Code::Internal, format!("the gRPC server broke off: {error}"))),
        Some(Ok(Ok(()))) | None => Ok(()),
    }
}
