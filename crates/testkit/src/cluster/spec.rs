//! What a cluster consists of.

use crate::origin::FakeOrigin;

/// What to start.
#[derive(Debug, Clone)]
pub struct ClusterSpec {
    /// Number of workers.
    pub workers: usize,
    /// Number of loaders.
    pub loaders: usize,
    /// Budget of each worker's memory tier, as written on a command line.
    pub worker_memory: String,
    /// Budget of each worker's disk tier.
    pub worker_disk: String,
    /// Budget of each loader's arena.
    pub loader_memory: String,
    /// Whether workers have a unix socket, over which loaders are handed descriptors; otherwise all goes over TCP.
    pub unix_sockets: bool,
    /// Whether the data plane of each worker is reached through a [`FaultProxy`].
    pub proxied: bool,
    /// Whether each loader has folders of its own for checkpoints.
    pub checkpoints: bool,
    /// Variables for every process: origins and their credentials.
    pub env: Vec<(String, String)>,
    /// Further variables for loaders.
    pub loader_env: Vec<(String, String)>,
    /// Further arguments of workers.
    pub worker_args: Vec<String>,
    /// Further arguments of loaders.
    pub loader_args: Vec<String>,
}

impl ClusterSpec {
    /// So many workers and loaders, with small budgets.
    pub fn new(workers: usize, loaders: usize) -> ClusterSpec {
        ClusterSpec {
            workers,
            loaders,
            worker_memory: "256MiB".to_owned(),
            worker_disk: "8GiB".to_owned(),
            loader_memory: "1GiB".to_owned(),
            unix_sockets: false,
            proxied: false,
            checkpoints: false,
            env: Vec::new(),
            loader_env: Vec::new(),
            worker_args: Vec::new(),
            loader_args: Vec::new(),
        }
    }

    /// With this origin; may be called for several.
    #[must_use]
    pub fn origin(mut self, origin: &FakeOrigin) -> ClusterSpec {
        self.env.extend(origin.client_env());
        self
    }

    /// With another variable for every process.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> ClusterSpec {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// With other budgets: memory of a worker, disk of a worker, memory of a loader.
    #[must_use]
    pub fn budgets(mut self, worker_memory: &str, worker_disk: &str, loader_memory: &str) -> ClusterSpec {
        self.worker_memory = worker_memory.to_owned();
        self.worker_disk = worker_disk.to_owned();
        self.loader_memory = loader_memory.to_owned();
        self
    }

    /// With unix sockets at the workers.
    #[must_use]
    pub fn unix_sockets(self) -> ClusterSpec {
        ClusterSpec { unix_sockets: true, ..self }
    }

    /// With a proxy in front of the data plane of each worker.
    #[must_use]
    pub fn proxied(self) -> ClusterSpec {
        ClusterSpec { proxied: true, ..self }
    }

    /// With folders for checkpoints at each loader.
    #[must_use]
    pub fn checkpoints(self) -> ClusterSpec {
        ClusterSpec { checkpoints: true, ..self }
    }

    /// With another variable for loaders.
    #[must_use]
    pub fn loader_env(mut self, name: &str, value: &str) -> ClusterSpec {
        self.loader_env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// With further arguments for workers.
    #[must_use]
    pub fn worker_args(mut self, args: &[&str]) -> ClusterSpec {
        self.worker_args.extend(args.iter().map(|arg| (*arg).to_owned()));
        self
    }

    /// With further arguments for loaders.
    #[must_use]
    pub fn loader_args(mut self, args: &[&str]) -> ClusterSpec {
        self.loader_args.extend(args.iter().map(|arg| (*arg).to_owned()));
        self
    }
}
