//! `longshore loader --private`: a loader for one client, which ends with that client's last lease, and when all that the
//! client saved is in the origin.
//!
//! It listens on unix sockets alone, in a folder that only its user can enter, and brings its own cache along, so that
//! one process is the whole product on one machine. It prints one line of JSON when it is ready.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use longshore_checkpoint::CheckpointOptions;
use longshore_loader::options::SocketMode;
use longshore_loader::{Cluster, Listen, Listeners, Loader, LoaderOptions, RemoteCluster, RemoteOptions};
use longshore_origin::Origins;
use longshore_types::Result;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::args::LoaderArgs;
use crate::embedded::{self, EmbeddedOptions, EmbeddedWorker};
use crate::node::membership;
use crate::output::Output;

/// How often loads are looked at; clients that come and go are noticed at once.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// How long it waits for a first lease when nothing is being loaded: whoever started it is gone.
const UNUSED_MAX: Duration = Duration::from_secs(30);
/// How long it stays after the last lease: a client may be between two models.
const LINGER: Duration = Duration::from_millis(500);

/// Runs it until it is not needed any more.
///
/// # Errors
/// What kept it from starting.
pub async fn run(args: LoaderArgs, output: Output, token: CancellationToken) -> Result<()> {
    let folder = args.loader.socket_folder();
    let options =
        LoaderOptions { listen: Listen(None), ops_listen: Listen(None), socket_mode: SocketMode(0o600), ..args.loader };
    let checkpoints = CheckpointOptions { private: true, ..options.checkpoints };
    let options = LoaderOptions { checkpoints, ..options };
    let listeners = Listeners::bind(&options).await?;
    let token = token.child_token();
    let origins = Origins::new(options.origin.clone())?;
    let cache = EmbeddedOptions { cache_dir: args.cache_dir, disk: args.disk };
    let (cluster, worker) = cluster(&options, cache, &origins, &token).await?;
    // What a user should know about the devices is in the log.
    let (loader, _) = embedded::open_loader(options, cluster, origins).await?;
    output.line(&ready(&listeners))?;

    let watch = tokio::spawn(end_when_unused(loader.clone(), token.clone()));
    let served = longshore_loader::serve_with(listeners, loader, token.clone()).await;
    token.cancel();
    if let Err(error) = watch.await {
        tracing::warn!(%error, "the watch over leases broke off");
    }
    if let Some(worker) = worker {
        worker.close().await;
    }
    if args.remove_socket_dir {
        remove(&folder);
    }
    served
}

/// The workers that are named, or a cache in this process.
async fn cluster(
    options: &LoaderOptions,
    cache: EmbeddedOptions,
    origins: &Origins,
    token: &CancellationToken,
) -> Result<(Arc<dyn Cluster>, Option<EmbeddedWorker>)> {
    if options.workers.is_empty() {
        let worker = EmbeddedWorker::open(cache, origins.clone()).await?;
        return Ok((worker.cluster(), Some(worker)));
    }
    let members = membership(options.workers.clone(), token).await?;
    let limits = RemoteOptions {
        connect_timeout: Duration::from_millis(options.connect_timeout_ms),
        metadata_timeout: Duration::from_millis(options.metadata_timeout_ms),
    };
    Ok((RemoteCluster::new(Some(members), origins.clone(), limits), None))
}

/// The line of JSON that says where the sockets are.
fn ready(listeners: &Listeners) -> String {
    json!({
        "loader_socket": listeners.loader_socket(),
        "attach_socket": listeners.attach_socket(),
        "slabs_socket": listeners.slabs_socket(),
        "pid": std::process::id(),
        "version": env!("CARGO_PKG_VERSION"),
    })
    .to_string()
}

/// Cancels the token when the last client has let go, or when there never was one.
async fn end_when_unused(loader: Arc<Loader>, token: CancellationToken) {
    let mut attached = loader.attached();
    let mut was_attached = false;
    let mut idle_since = Instant::now();
    loop {
        let is_attached = *attached.borrow_and_update() > 0;
        was_attached |= is_attached;
        // A save goes on when its client has gone: it is uploaded as soon as the origin takes it.
        if is_attached || loader.loads_in_flight() > 0 || loader.checkpoints().busy() > 0 {
            idle_since = Instant::now();
        } else if idle_since.elapsed() >= if was_attached { LINGER } else { UNUSED_MAX } {
            tracing::info!(was_attached, "nobody holds a model any more, and nothing is being saved");
            return token.cancel();
        }
        tokio::select! {
            () = token.cancelled() => return,
            // Also for a client that has come and gone since the last look.
            changed = attached.changed() => was_attached |= changed.is_ok(),
            () = tokio::time::sleep(LOOK_INTERVAL) => {}
        }
    }
}

/// Removes the folder and what the daemon left in it, but nothing of anybody else's.
fn remove(folder: &Path) {
    for lock in ["loader.sock.lock", "attach.sock.lock", "slabs.sock.lock"] {
        // What is not there need not be removed.
        let _ = std::fs::remove_file(folder.join(lock));
    }
    if let Err(error) = std::fs::remove_dir(folder) {
        tracing::warn!(%error, "cannot remove the socket folder {}", folder.display());
    }
}
