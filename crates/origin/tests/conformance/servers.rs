//! Real servers, started as processes of this test and ended with it. `make setup` installs them; a missing one is a
//! failure, not a skip.

mod azurite;
mod moto;
mod nginx;
mod s3s_fs;

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use object_store::path::Path as Key;
use object_store::{ObjectStore, ObjectStoreExt};
use std::sync::Arc;

pub use azurite::azurite;
pub use moto::moto;
pub use nginx::nginx;
pub use s3s_fs::s3s_fs;

use crate::prepared::{Put, Remove};

/// How long a server may take to answer its first connection.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// A server process; killed and waited for when dropped.
pub struct Server {
    child: Child,
    pub address: SocketAddr,
}

impl Server {
    /// Starts `command` and waits until it accepts connections at `address`.
    ///
    /// # Panics
    /// When it ends before that or takes too long; its output is in the message.
    pub async fn start(mut command: Command, address: SocketAddr, log: &Path) -> Server {
        let out = std::fs::File::create(log).unwrap();
        command.stdin(Stdio::null()).stderr(out.try_clone().unwrap()).stdout(out);
        let child = command.spawn().unwrap_or_else(|error| panic!("{command:?} does not start: {error}"));
        let mut server = Server { child, address };
        let deadline = Instant::now() + START_TIMEOUT;
        while TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_err() {
            let ended = server.child.try_wait().unwrap();
            if ended.is_some() || Instant::now() > deadline {
                let output = std::fs::read_to_string(log).unwrap_or_default();
                panic!("{command:?} does not listen at {address} ({ended:?}):\n{output}");
            }
            // Nothing tells when another program starts to listen, so it is asked again.
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        server
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Both fail only when the process has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A port that is free now, for programs that cannot choose one and say which.
pub fn free_address() -> SocketAddr {
    TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap()
}

/// A program that `make setup` installs below `.cache/tools`.
pub fn tool(path: &str) -> PathBuf {
    let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.cache/tools");
    let program = tools.join(path);
    assert!(program.exists(), "{} is missing: run `make setup`", program.display());
    program.canonicalize().unwrap()
}

/// A program of the system.
pub fn system_program(name: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain([PathBuf::from("/usr/sbin")]);
    let found = folders.map(|folder| folder.join(name)).find(|program| program.exists());
    found.unwrap_or_else(|| panic!("{name} is missing: run `make setup`"))
}

/// `put` and `remove` through a store, below `prefix`.
pub fn through_store(store: Arc<dyn ObjectStore>, prefix: &'static str) -> (Put, Remove) {
    let for_remove = store.clone();
    let put: Put = Box::new(move |name, bytes| {
        let store = store.clone();
        Box::pin(async move {
            let key = Key::parse(format!("{prefix}/{name}")).unwrap();
            store.put(&key, bytes.into()).await.unwrap();
        })
    });
    let remove: Remove = Box::new(move |name| {
        let store = for_remove.clone();
        Box::pin(async move {
            let key = Key::parse(format!("{prefix}/{name}")).unwrap();
            store.delete(&key).await.unwrap();
        })
    });
    (put, remove)
}
