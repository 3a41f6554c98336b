//! Workers and loaders as real processes, in a temporary folder, on ports of their own.
//!
//! ```no_run
//! # use longshore_testkit::cluster::{Cluster, ClusterSpec};
//! # use longshore_testkit::{FakeOrigin, modelgen::ModelSpec};
//! let origin = FakeOrigin::start();
//! ModelSpec::small(1).build().put_into(&origin, "bucket/model");
//! let mut cluster = Cluster::start(ClusterSpec::new(3, 1).origin(&origin));
//! let done = cluster.cli(0).args(["load", "s3://bucket/model", "--json"]).run();
//! assert!(done.success(), "{done}");
//! cluster.worker(0).kill();
//! ```
//!
//! Daemons are ready when `/readyz` says so. What they log lies in files and is shown when a test fails.

mod cli;
mod daemon;
mod metrics;
mod net;
mod procfs;
mod spec;

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use tempfile::TempDir;

pub use cli::{Cli, CliOutput, RunningCli};
pub use daemon::{Daemon, binary};
pub use metrics::Metrics;
pub use net::{free_port, http_get};
pub use procfs::{Memory, memory_of};
pub use spec::ClusterSpec;

use crate::proxy::FaultProxy;

/// Running processes; all are killed when it is dropped, and a test in which one of them panicked fails then.
pub struct Cluster {
    spec: ClusterSpec,
    folder: TempDir,
    shared_memory: TempDir,
    workers: Vec<Daemon>,
    loaders: Vec<Daemon>,
    proxies: Vec<FaultProxy>,
}

/// Address that proxied workers say they are at, and at which their proxies listen.
const PROXY_HOST: [u8; 4] = [127, 0, 0, 2];

impl Cluster {
    /// Starts everything and waits until all of it is ready.
    ///
    /// # Panics
    /// When the binary is not there, or a daemon ends or is not ready in time; with its log.
    pub fn start(spec: ClusterSpec) -> Cluster {
        let folder = tempfile::Builder::new().prefix("longshore-test-").tempdir().expect("a temporary folder");
        let ports: Vec<u16> = (0..spec.workers).map(|_| free_port()).collect();
        let host = if spec.proxied { IpAddr::from(PROXY_HOST) } else { IpAddr::from([127, 0, 0, 1]) };
        let proxies = match spec.proxied {
            true => ports.iter().map(|&port| proxy(SocketAddr::new(host, port))).collect(),
            false => Vec::new(),
        };
        let addresses: Vec<String> = ports.iter().map(|port| format!("{host}:{port}")).collect();
        // Without workers the variable is not there: loaders then read origins directly.
        let members: Vec<(String, String)> = match addresses.is_empty() {
            true => Vec::new(),
            false => vec![("LONGSHORE_WORKERS".to_owned(), addresses.join(","))],
        };
        let workers = ports.iter().enumerate().map(|(i, &port)| worker(&spec, folder.path(), i, port).envs(&members));
        let workers = workers.map(|worker| worker.envs(&spec.env).args(&spec.worker_args)).collect();
        let shared_memory = shared_memory();
        let loaders = (0..spec.loaders).map(|i| {
            let loader = loader(&spec, folder.path(), i).envs(&members).envs(&spec.env);
            let loader =
                if spec.checkpoints { checkpoints(loader, folder.path(), shared_memory.path(), i) } else { loader };
            loader.envs(&spec.loader_env).args(&spec.loader_args)
        });
        let loaders = loaders.collect();
        let mut cluster = Cluster { spec, folder, shared_memory, workers, loaders, proxies };
        // Workers ask each other who they are, so all start before any is waited for.
        cluster.workers.iter_mut().for_each(Daemon::spawn);
        cluster.workers.iter_mut().for_each(Daemon::wait_ready);
        cluster.loaders.iter_mut().for_each(Daemon::spawn);
        cluster.loaders.iter_mut().for_each(Daemon::wait_ready);
        cluster
    }

    /// What was started.
    pub fn spec(&self) -> &ClusterSpec {
        &self.spec
    }

    /// The folder that everything lies in.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// A worker.
    pub fn worker(&mut self, index: usize) -> &mut Daemon {
        &mut self.workers[index]
    }

    /// All workers.
    pub fn workers(&self) -> &[Daemon] {
        &self.workers
    }

    /// A loader.
    pub fn loader(&mut self, index: usize) -> &mut Daemon {
        &mut self.loaders[index]
    }

    /// All loaders.
    pub fn loaders(&self) -> &[Daemon] {
        &self.loaders
    }

    /// The proxy in front of a worker, when there are proxies.
    pub fn proxy(&self, worker: usize) -> &FaultProxy {
        &self.proxies[worker]
    }

    /// The cache folder of a worker.
    pub fn cache_folder(&self, worker: usize) -> PathBuf {
        self.folder.path().join(format!("cache-{worker}"))
    }

    /// The folder of a loader's checkpoints, with [`ClusterSpec::checkpoints`].
    pub fn checkpoint_folder(&self, loader: usize) -> PathBuf {
        checkpoint_folder(self.folder.path(), loader)
    }

    /// The folder of a loader's slabs, with [`ClusterSpec::checkpoints`]; in shared memory where there is some.
    pub fn slab_folder(&self, loader: usize) -> PathBuf {
        slab_folder(self.shared_memory.path(), loader)
    }

    /// The gRPC socket of a loader.
    pub fn loader_socket(&self, loader: usize) -> PathBuf {
        self.folder.path().join(format!("loader-{loader}")).join("loader.sock")
    }

    /// The command line, as it is used beside that loader.
    pub fn cli(&self, loader: usize) -> Cli {
        Cli::new(self.folder.path())
            .envs(&self.spec.env)
            .env("LONGSHORE_LOADER", &format!("unix://{}", self.loader_socket(loader).display()))
    }

    /// The sum of a counter over all workers.
    pub fn worker_metric(&self, name: &str) -> f64 {
        self.workers.iter().filter(|worker| worker.is_running()).map(|worker| worker.metrics().sum(name)).sum()
    }
}

fn proxy(listen: SocketAddr) -> FaultProxy {
    let target = format!("127.0.0.1:{}", listen.port());
    FaultProxy::start_at(listen, &target).unwrap_or_else(|error| panic!("no proxy at {listen}: {error}"))
}

fn worker(spec: &ClusterSpec, folder: &Path, index: usize, port: u16) -> Daemon {
    let path = |name: String| folder.join(name).display().to_string();
    let daemon = Daemon::new("worker", &format!("worker-{index}"), folder)
        .data_address(format!("127.0.0.1:{port}"))
        .env("LONGSHORE_WORKER_DATA_LISTEN", format!("127.0.0.1:{port}"))
        .env("LONGSHORE_CACHE_DIR", path(format!("cache-{index}")))
        .env("LONGSHORE_WORKER_MEMORY", spec.worker_memory.clone())
        .env("LONGSHORE_WORKER_DISK", spec.worker_disk.clone())
        .env("LONGSHORE_WORKER_DISK_FREE_FLOOR", "0".to_owned());
    let control = free_port();
    let daemon = match spec.proxied {
        // One host is told for both planes, so control listens there as well.
        true => daemon
            .env("LONGSHORE_WORKER_ADVERTISE", IpAddr::from(PROXY_HOST).to_string())
            .env("LONGSHORE_WORKER_CONTROL_LISTEN", format!("0.0.0.0:{control}")),
        false => daemon.env("LONGSHORE_WORKER_CONTROL_LISTEN", format!("127.0.0.1:{control}")),
    };
    match spec.unix_sockets {
        true => daemon.env("LONGSHORE_WORKER_UNIX_SOCKET", path(format!("worker-{index}.sock"))),
        false => daemon,
    }
}

fn loader(spec: &ClusterSpec, folder: &Path, index: usize) -> Daemon {
    Daemon::new("loader", &format!("loader-{index}"), folder)
        .env("LONGSHORE_SOCKET_DIR", folder.join(format!("loader-{index}")).display().to_string())
        .env("LONGSHORE_LOADER_LISTEN", "none".to_owned())
        .env("LONGSHORE_LOADER_MEMORY", spec.loader_memory.clone())
        // A budget of its own: how full the machine's disk is does not matter.
        .env("LONGSHORE_CHECKPOINT_DISK", "8GiB".to_owned())
}

fn checkpoint_folder(folder: &Path, loader: usize) -> PathBuf {
    folder.join(format!("checkpoints-{loader}"))
}

fn slab_folder(shared_memory: &Path, loader: usize) -> PathBuf {
    shared_memory.join(format!("slabs-{loader}"))
}

/// A folder in memory, so that what a killed daemon leaves goes with the cluster.
fn shared_memory() -> TempDir {
    let folder = tempfile::Builder::new().prefix("longshore-test-").tempdir_in("/dev/shm");
    folder.or_else(|_| tempfile::tempdir()).expect("a temporary folder")
}

fn checkpoints(daemon: Daemon, folder: &Path, shared_memory: &Path, index: usize) -> Daemon {
    daemon
        .env("LONGSHORE_CHECKPOINT_DIR", checkpoint_folder(folder, index).display().to_string())
        .env("LONGSHORE_CHECKPOINT_SLAB_DIR", slab_folder(shared_memory, index).display().to_string())
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for daemon in self.loaders.iter_mut().chain(&mut self.workers) {
            daemon.kill();
            if std::thread::panicking() {
                eprintln!("--- {} ---\n{}", daemon.name(), daemon.log_tail(60));
            }
        }
        // Whatever a test is about: no daemon of its panics.
        if !std::thread::panicking() {
            for daemon in self.loaders.iter().chain(&self.workers) {
                let log = daemon.log();
                assert!(!log.contains("panicked at"), "{} panicked:\n{log}", daemon.name());
            }
        }
    }
}
