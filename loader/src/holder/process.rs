//! `longshore holder`: the holder as a process of its own.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use longshore_runtime::env;
use longshore_types::{Code, Error, Result, format_bytes};
use rustix::process::{Resource, getrlimit, setrlimit};
use tokio_util::sync::CancellationToken;

use super::keep::Holder;
use super::memory::gpu_maker;
use super::{HOLDER_SOCKET, attach, control};
use crate::options::{SocketMode, default_socket_folder};
use crate::sockets::{self, BoundSocket};

/// Who may speak to the holder about more than attaching: its user, and root.
const CONTROL_MODE: u32 = 0o600;

/// Options of `longshore holder`.
#[derive(clap::Args, Clone, Debug)]
#[command(next_help_heading = "Holder")]
pub struct HolderOptions {
    /// Folder of the sockets holder.sock and attach.sock, the same as the loader's; /run/longshore, the user's runtime
    /// folder or /tmp when not set
    #[arg(id = "holder_socket_dir", long = "socket-dir", env = env::SOCKET_DIR, value_name = "DIR")]
    pub socket_dir: Option<PathBuf>,

    /// Who may attach to models, as an octal file mode; 666 lets every user of this machine attach
    #[arg(id = "holder_socket_mode", long = "socket-mode", value_name = "MODE", default_value = "660")]
    pub socket_mode: SocketMode,

    /// Socket for the loader; holder.sock in the socket folder when not set. Only this user and root may connect
    #[arg(id = "holder_holder_socket", long = "holder-socket", env = env::LOADER_HOLDER_SOCKET, value_name = "PATH")]
    pub holder_socket: Option<PathBuf>,

    /// Clients attached at once, each of which holds one connection
    #[arg(
        id = "holder_attach_connections_max",
        long = "attach-connections-max",
        value_name = "N",
        default_value_t = 1024
    )]
    pub attach_connections_max: usize,
}

/// Runs the holder until the token is cancelled. Then its models are gone, but for what clients are attached to.
///
/// # Errors
/// When a socket cannot be bound, naming it.
pub async fn serve_holder(options: HolderOptions, token: CancellationToken) -> Result<()> {
    let folder = options.socket_dir.clone().unwrap_or_else(default_socket_folder);
    sockets::prepare_folder(&folder)?;
    let BoundSocket { listener: control, guard: control_file } = match &options.holder_socket {
        None => sockets::bind(&folder, HOLDER_SOCKET, CONTROL_MODE)?,
        Some(path) => bind_at(path)?,
    };
    let attach = sockets::bind(&folder, "attach.sock", options.socket_mode.0).map_err(|error| {
        let hint = "a loader that runs without a holder listens there itself; start the holder before the loader";
        Error::new(error.code(), format!("{error}; {hint}")).with_source(error)
    })?;
    let BoundSocket { listener: attach, guard: attach_file } = attach;
    raise_descriptor_limit();
    let holder = Holder::new(gpu_maker());
    let attach_path: Arc<Path> = Arc::from(attach_file.path());
    let clients_max = options.attach_connections_max;
    let clients = attach::serve(attach, holder.clone(), attach_path.clone(), clients_max, token.clone());
    let loaders = control::serve(control, holder.clone(), attach_path, token.clone());
    tokio::spawn(clients);
    tokio::spawn(loaders);
    tracing::info!(
        socket = %control_file.path().display(),
        attach = %attach_file.path().display(),
        clients_max,
        "holder is ready"
    );
    token.cancelled().await;
    let uses = holder.uses();
    let bytes: u64 = uses.devices.values().sum();
    if uses.models.is_empty() {
        tracing::info!("holder has ended; it kept no model");
    } else {
        let clients: u32 = uses.models.values().map(|of| of.leases).sum();
        let (models, bytes) = (uses.models.len(), format_bytes(bytes));
        tracing::warn!(
            models,
            bytes,
            clients,
            "holder has ended, and its models with it; attached clients keep theirs"
        );
    }
    Ok(())
}

fn bind_at(path: &Path) -> Result<BoundSocket> {
    let name = path.file_name().and_then(|name| name.to_str());
    let (Some(folder), Some(name)) = (path.parent(), name) else {
        let message = format!("--holder-socket {} is no path of a socket", path.display());
        return Err(Error::new(Code::InvalidArgument, message));
    };
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    sockets::prepare_folder(folder)?;
    sockets::bind(folder, name, CONTROL_MODE)
}

/// Every GiB of a GPU and every client is a descriptor.
pub(crate) fn raise_descriptor_limit() {
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current == limit.maximum {
        return;
    }
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
}
