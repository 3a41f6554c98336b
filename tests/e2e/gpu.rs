//! What the topics about GPUs share: a node with cards that are not there, and what must be true of it at any time.

use std::path::PathBuf;

use longshore_proto::v1;
use longshore_testkit::cluster::{Cluster, Daemon};
use longshore_testkit::fake_cuda::{Role, Usage};
use longshore_testkit::modelgen::Model;
use longshore_testkit::{FakeCuda, FakeCudaOptions};
use longshore_tests::{Attached, Client, Loaded};
use longshore_types::Result;
use tempfile::TempDir;

use crate::common::{check, wait_until};

pub const MIB: u64 = 1 << 20;

/// How a node is set up.
pub struct NodeSpec {
    pub cards: FakeCudaOptions,
    /// Whether a holder process keeps the models.
    pub holder: bool,
    env: Vec<(String, String)>,
}

impl NodeSpec {
    /// Two cards of 256 MiB, a holder, little page-locked memory.
    pub fn new() -> NodeSpec {
        let cards = FakeCudaOptions { devices: 2, memory_mib: 256, ..FakeCudaOptions::default() };
        let spec = NodeSpec { cards, holder: true, env: Vec::new() };
        spec.env("LONGSHORE_LOADER_MEMORY", "512MiB")
            .env("LONGSHORE_LOADER_PINNED_MEMORY", "256MiB")
            .env("LONGSHORE_LOADER_FETCHES_MAX", "2")
    }

    pub fn env(mut self, name: &str, value: &str) -> NodeSpec {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    pub fn envs(mut self, env: Vec<(String, String)>) -> NodeSpec {
        self.env.extend(env);
        self
    }

    /// With the workers of this cluster.
    pub fn workers(self, cluster: &Cluster) -> NodeSpec {
        let addresses: Vec<&str> = cluster.workers().iter().map(Daemon::data_plane).collect();
        self.env("LONGSHORE_WORKERS", &addresses.join(","))
    }

    pub fn without_holder(self) -> NodeSpec {
        NodeSpec { holder: false, ..self }
    }

    pub fn cards(self, cards: FakeCudaOptions) -> NodeSpec {
        NodeSpec { cards, ..self }
    }
}

/// A loader on a machine with cards, and a holder beside it. All processes are killed when it is dropped.
pub struct Node {
    pub loader: Daemon,
    holder: Option<Daemon>,
    pub cuda: FakeCuda,
    folder: TempDir,
}

impl Node {
    pub fn start(spec: NodeSpec) -> Node {
        let folder = tempfile::Builder::new().prefix("longshore-node-").tempdir().unwrap();
        let cuda = FakeCuda::install(spec.cards);
        let sockets = folder.path().join("sockets");
        let mut env = cuda.env();
        env.push(("LONGSHORE_SOCKET_DIR".to_owned(), sockets.display().to_string()));
        env.push(("LONGSHORE_LOADER_LISTEN".to_owned(), "none".to_owned()));
        env.extend(spec.env);
        let daemon = |kind: &str| Daemon::new(kind, kind, folder.path()).envs(&env);
        let mut node = Node { loader: daemon("loader"), holder: None, cuda, folder };
        if spec.holder {
            node.loader = Daemon::new("loader", "loader", node.folder.path())
                .envs(&env)
                .env("LONGSHORE_LOADER_REQUIRE_HOLDER", "true".to_owned());
            let mut holder = Daemon::new("holder", "holder", node.folder.path()).envs(&env);
            holder.spawn();
            let socket = sockets.join("holder.sock");
            wait_until("a holder that answers", || std::os::unix::net::UnixStream::connect(&socket).is_ok());
            node.holder = Some(holder);
        }
        node.loader.spawn();
        node.loader.wait_ready();
        node
    }

    pub fn holder(&self) -> &Daemon {
        self.holder.as_ref().expect("a node with a holder")
    }

    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("sockets/loader.sock")
    }

    pub fn client(&self) -> Client {
        Client::connect(&self.socket()).unwrap()
    }

    pub fn load(&self, uri: &str, device: &str) -> Result<Loaded> {
        let request = v1::LoadModelRequest { uri: uri.to_owned(), device: device.to_owned(), ..Default::default() };
        self.client().load_with(request)
    }

    /// Loads, attaches, and compares every byte; the model stays leased while the answer lives.
    pub fn load_and_check(&self, uri: &str, device: &str, model: &Model) -> (Loaded, Attached) {
        let loaded = self.load(uri, device).unwrap_or_else(|error| self.fail(&format!("{uri}: {error}")));
        let attached = check(&loaded, model);
        (loaded, attached)
    }

    pub fn status(&self) -> v1::LoaderStatus {
        self.client().status().unwrap()
    }

    /// The card of that number, as the loader sees it.
    pub fn card(&self, number: u32) -> v1::DeviceStatus {
        let name = format!("cuda:{number}");
        self.status().devices.into_iter().find(|device| device.device == name).unwrap()
    }

    /// What the copiers that run have of the driver.
    pub fn copiers(&self) -> Vec<Usage> {
        let copiers = self.cuda.processes().into_iter().filter(|usage| usage.role == Role::Copier);
        copiers.filter(|usage| PathBuf::from(format!("/proc/{}", usage.pid)).exists()).collect()
    }

    /// Ends the test with what the processes have logged.
    pub fn fail(&self, why: &str) -> ! {
        panic!(
            "{why}\n--- loader ---\n{}\n{}",
            self.loader.log_tail(40),
            self.holder.as_ref().map_or(String::new(), |holder| format!("--- holder ---\n{}", holder.log_tail(40)))
        )
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.loader.kill();
        if let Some(holder) = &mut self.holder {
            holder.kill();
        }
        if std::thread::panicking() {
            return;
        }
        let logs = self.loader.log() + &self.holder.as_ref().map_or(String::new(), Daemon::log);
        assert!(!logs.contains("panicked at"), "a daemon panicked:\n{logs}");
        assert_eq!(self.cuda.pageable_copies(), 0, "copies come from page-locked memory");
        assert!(!self.cuda.calls(Role::Holder).contains_key("cuDevicePrimaryCtxRetain"), "a holder has no context");
        assert!(!self.cuda.calls(Role::Loader).contains_key("cuDevicePrimaryCtxRetain"), "a loader has no context");
        // Nobody is left: whatever is still taken was leaked to a process that should be gone.
        for device in 0..2 {
            self.cuda.wait_used_bytes(device, 0);
        }
    }
}
