//! Finding the node's loader and talking to it.
//!
//! An address that was given must answer: falling back silently would hide a broken node. Without one, the loader's
//! socket in the usual folder is tried, and when there is none the work is done inside this process.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use longshore_proto::MESSAGE_BYTES_MAX;
use longshore_proto::v1::loader_client::LoaderClient;
use longshore_types::{Code, Error, Result};
use tokio::io::DuplexStream;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tower::service_fn;

use crate::args::NodeArgs;
use crate::files::file_error;

/// Name of the loader's socket in its folder.
pub const LOADER_SOCKET: &str = "loader.sock";
/// How long a connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Where a loader listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LoaderAddress {
    /// A unix socket.
    Unix(PathBuf),
    /// `http://host:port`.
    Http(String),
}

impl LoaderAddress {
    /// `unix:///path` (of the socket or its folder), `/path`, `http://host:port` or `host:port`.
    ///
    /// # Errors
    /// [`Code::InvalidArgument`] for another form.
    pub fn parse(text: &str) -> Result<Self> {
        let path = text.strip_prefix("unix://").or_else(|| text.strip_prefix("unix:")).unwrap_or(text);
        if path.starts_with('/') {
            let path = PathBuf::from(path);
            return Ok(LoaderAddress::Unix(if path.is_dir() { path.join(LOADER_SOCKET) } else { path }));
        }
        let bare = text.strip_prefix("http://").unwrap_or(text).trim_end_matches('/');
        let port = bare.rsplit_once(':').filter(|(host, _)| !host.is_empty()).map(|(_, port)| port.parse::<u16>());
        match port {
            Some(Ok(1..)) if !bare.contains('/') => Ok(LoaderAddress::Http(format!("http://{bare}"))),
            _ => Err(Error::new(
                Code::InvalidArgument,
                format!("loader address {text:?} must be unix:///path/loader.sock or http://host:port"),
            )),
        }
    }
}

impl std::fmt::Display for LoaderAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            LoaderAddress::Unix(path) => write!(f, "unix://{}", path.display()),
            LoaderAddress::Http(url) => f.write_str(url),
        }
    }
}

/// A loader that answers.
#[derive(Debug, Clone)]
pub struct LoaderConnection {
    /// Where it is.
    pub address: LoaderAddress,
    /// Its service.
    pub client: LoaderClient<Channel>,
    /// What its other services are reached by.
    pub channel: Channel,
}

/// The node's loader, or `None` when there is none and none was asked for.
///
/// # Errors
/// [`Code::Unavailable`] when the address that was given does not answer.
pub async fn find_loader(args: &NodeArgs) -> Result<Option<LoaderConnection>> {
    if args.embedded {
        return Ok(None);
    }
    if let Some(text) = args.loader.as_deref().filter(|text| !text.is_empty()) {
        return connect_loader(LoaderAddress::parse(text)?).await.map(Some);
    }
    for folder in socket_folders(args) {
        let socket = folder.join(LOADER_SOCKET);
        if !socket.exists() {
            continue;
        }
        check_owner(&folder)?;
        match connect_loader(LoaderAddress::Unix(socket)).await {
            Ok(connection) => return Ok(Some(connection)),
            Err(error) => tracing::warn!(%error, "working without the node's loader"),
        }
    }
    Ok(None)
}

/// Where a loader may have put its sockets, the likeliest first.
fn socket_folders(args: &NodeArgs) -> Vec<PathBuf> {
    if let Some(folder) = &args.socket_dir {
        return vec![folder.clone()];
    }
    let user = std::env::var_os("XDG_RUNTIME_DIR").filter(|folder| !folder.is_empty());
    let mut folders = vec![PathBuf::from("/run/longshore")];
    folders.extend(user.map(|folder| PathBuf::from(folder).join("longshore")));
    folders.push(PathBuf::from(format!("/tmp/longshore-{}", rustix::process::getuid().as_raw())));
    folders
}

/// A folder in `/tmp` that another user could have put there would let that user hand us a model of theirs.
fn check_owner(folder: &Path) -> Result<()> {
    if folder.parent() != Some(Path::new("/tmp")) {
        return Ok(());
    }
    let metadata = std::fs::symlink_metadata(folder).map_err(|error| file_error("look at", folder, error))?;
    let own = [0, rustix::process::getuid().as_raw()].contains(&metadata.uid()) && metadata.mode() & 0o002 == 0;
    if metadata.is_dir() && own {
        return Ok(());
    }
    let message = format!("{} is not a folder of this user alone: sockets in it are not trusted", folder.display());
    Err(Error::new(Code::PermissionDenied, message))
}

/// Connects to a loader.
///
/// # Errors
/// [`Code::Unavailable`] naming the address.
pub async fn connect_loader(address: LoaderAddress) -> Result<LoaderConnection> {
    let connected = match &address {
        LoaderAddress::Unix(path) => unix_channel(path).await,
        LoaderAddress::Http(url) => http_channel(url).await,
    };
    let channel = connected.map_err(|error| {
        let why = cause(&error);
        Error::new(Code::Unavailable, format!("no loader answers at {address}: {why}; is `longshore loader` running?"))
    })?;
    let client = LoaderClient::new(channel.clone())
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    Ok(LoaderConnection { address, client, channel })
}

/// A channel to the control service of a worker at `host:port`.
///
/// # Errors
/// [`Code::Unavailable`] naming the address.
pub async fn worker_channel(address: &str) -> Result<Channel> {
    http_channel(&format!("http://{address}"))
        .await
        .map_err(|error| Error::new(Code::Unavailable, format!("no worker answers at {address}: {}", cause(&error))))
}

async fn http_channel(url: &str) -> Result<Channel, tonic::transport::Error> {
    Endpoint::from_shared(url.to_owned())?.connect_timeout(CONNECT_TIMEOUT).tcp_nodelay(true).connect().await
}

async fn unix_channel(path: &Path) -> Result<Channel, tonic::transport::Error> {
    let path = path.to_owned();
    let connector = service_fn(move |_: Uri| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    // The authority is required by HTTP/2 and means nothing on a unix socket.
    Endpoint::from_static("http://localhost").connect_timeout(CONNECT_TIMEOUT).connect_with_connector(connector).await
}

/// A channel over one open connection to a service inside this process.
///
/// # Errors
/// [`Code::Internal`] when it does not answer.
pub async fn channel_over(stream: DuplexStream) -> Result<Channel> {
    let mut stream = Some(stream);
    let connector = service_fn(move |_: Uri| {
        let stream = stream.take().map(TokioIo::new);
        async move { stream.ok_or_else(|| std::io::Error::other("the service inside this process has ended")) }
    });
    let connected = Endpoint::from_static("http://localhost").connect_with_connector(connector).await;
    connected.map_err(|error| Error::new(Code::Internal, format!("cannot talk to this process: {}", cause(&error))))
}

/// The innermost cause: tonic's own text is only "transport error".
fn cause(error: &tonic::transport::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_parse_and_print() {
        for (text, printed) in [
            ("unix:///a/b.sock", "unix:///a/b.sock"),
            ("unix:/a/b.sock", "unix:///a/b.sock"),
            ("/a", "unix:///a"),
            ("/proc", "unix:///proc/loader.sock"),
            ("http://h:1/", "http://h:1"),
            ("h:1", "http://h:1"),
        ] {
            assert_eq!(LoaderAddress::parse(text).unwrap().to_string(), printed);
        }
        for bad in ["", "host", "unix://relative", "https://h", "http://", "http://h:1/x", "h:0", ":7080"] {
            assert_eq!(LoaderAddress::parse(bad).unwrap_err().code(), Code::InvalidArgument, "{bad}");
        }
    }

    #[tokio::test]
    async fn a_silent_address_is_named() {
        let error = connect_loader(LoaderAddress::Unix("/nonexistent/loader.sock".into())).await.unwrap_err();
        assert_eq!(error.code(), Code::Unavailable);
        assert!(error.message().contains("/nonexistent/loader.sock"), "{error}");
    }
}
