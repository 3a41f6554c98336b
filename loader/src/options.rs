//! What a loader can be told: memory, limits, addresses.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use longshore_checkpoint::CheckpointOptions;
use longshore_origin::OriginOptions;
use longshore_runtime::config::ignore_empty_variables;
use longshore_runtime::env;
use longshore_types::{ByteSize, Code, Error, Result};

/// Options of `longshore loader` and of the loader inside the command line.
#[derive(clap::Args, Clone, Debug)]
#[command(next_help_heading = "Loader")]
pub struct LoaderOptions {
    /// Budget for everything that holds model bytes in host memory; half of the memory there is when not set
    #[arg(id = "loader_memory", long = "memory", env = env::LOADER_MEMORY, value_name = "SIZE")]
    pub memory: Option<ByteSize>,

    /// Host memory, out of the memory budget, that is touched while no load runs and becomes the next model in host memory of
    /// at least a quarter of its size: that load then waits neither for the kernel to clear memory nor, on a virtual machine,
    /// for the host to find it. It goes when something else needs the room; none when not set
    #[arg(id = "loader_prefault", long = "prefault", env = env::LOADER_PREFAULT, value_name = "SIZE")]
    pub prefault: Option<ByteSize>,

    /// Chunks of 16 MiB that are fetched at once, over all loads; one a core, from 16 to 32, when not set
    #[arg(id = "loader_fetches_max", long = "fetches-max", env = env::LOADER_FETCHES_MAX, value_name = "N")]
    pub fetches_max: Option<usize>,

    /// Loads that run at once; further ones wait
    #[arg(id = "loader_loads_max", long = "loads-max", env = env::LOADER_LOADS_MAX, value_name = "N", default_value_t = 16)]
    pub loads_max: usize,

    /// How long to wait for a byte from one worker before the next one is asked, in milliseconds
    #[arg(id = "loader_stall_timeout_ms", long = "stall-timeout-ms", env = env::LOADER_STALL_TIMEOUT_MS, value_name = "MS", default_value_t = 20_000)]
    pub stall_timeout_ms: u64,

    /// How long a worker may stay silent while others are fast, before the next one is asked, in milliseconds
    #[arg(id = "loader_hedge_after_ms", long = "hedge-after-ms", value_name = "MS", default_value_t = 2_000)]
    pub hedge_after_ms: u64,

    /// Workers are fast when the median chunk takes less than the hedging time divided by this; 0 never hedges
    #[arg(id = "loader_hedge_factor", long = "hedge-factor", value_name = "N", default_value_t = 4)]
    pub hedge_factor: u32,

    /// Time limit for a connection to a worker, in milliseconds
    #[arg(id = "loader_connect_timeout_ms", long = "connect-timeout-ms", value_name = "MS", default_value_t = 2_000)]
    pub connect_timeout_ms: u64,

    /// Time limit for the description of a model from one worker, in milliseconds
    #[arg(
        id = "loader_metadata_timeout_ms",
        long = "metadata-timeout-ms",
        value_name = "MS",
        default_value_t = 60_000
    )]
    pub metadata_timeout_ms: u64,

    /// Cache workers as host:port of their data planes, comma-separated; without any, origins are read directly
    #[arg(id = "loader_workers", long = "workers", env = env::WORKERS, value_name = "HOST:PORT", value_delimiter = ',')]
    pub workers: Vec<String>,

    /// How often the workers are asked who they are, in milliseconds
    #[arg(id = "loader_members_refresh_ms", long = "members-refresh-ms", value_name = "MS", default_value_t = 10_000)]
    pub members_refresh_ms: u64,

    /// Folder of the sockets loader.sock, attach.sock and slabs.sock; /run/longshore, the user's runtime folder or /tmp when not set
    #[arg(id = "loader_socket_dir", long = "socket-dir", env = env::SOCKET_DIR, value_name = "DIR")]
    pub socket_dir: Option<PathBuf>,

    /// Who may connect to the sockets, as an octal file mode; 666 lets every user of this machine load and attach
    #[arg(id = "loader_socket_mode", long = "socket-mode", value_name = "MODE", default_value = "660")]
    pub socket_mode: SocketMode,

    /// Address of the gRPC service beside the unix socket; "none" for the socket alone
    #[arg(id = "loader_listen", long = "listen", env = env::LOADER_LISTEN, value_name = "ADDR", default_value = "127.0.0.1:7080")]
    pub listen: Listen,

    /// Address of the metrics and health pages; "none" for no pages
    #[arg(id = "loader_ops_listen", long = "ops-listen", env = env::LOADER_OPS_LISTEN, value_name = "ADDR", default_value = "127.0.0.1:7081")]
    pub ops_listen: Listen,

    /// Clients attached at once, each of which holds one connection
    #[arg(
        id = "loader_attach_connections_max",
        long = "attach-connections-max",
        value_name = "N",
        default_value_t = 1024
    )]
    pub attach_connections_max: usize,

    /// How long loads in flight may run on after a shutdown was asked for, in milliseconds
    #[arg(id = "loader_drain_timeout_ms", long = "drain-timeout-ms", value_name = "MS", default_value_t = 30_000)]
    pub drain_timeout_ms: u64,

    /// GPUs to load onto: "all", "none", or ordinals and UUIDs, comma-separated
    #[arg(id = "loader_gpus", long = "gpus", env = env::LOADER_GPUS, value_name = "LIST", default_value = "all", help_heading = "GPUs")]
    pub gpus: Gpus,

    /// Budget for models on each GPU, as a size or a share of its memory
    #[arg(id = "loader_gpu_memory", long = "gpu-memory", env = env::LOADER_GPU_MEMORY, value_name = "SIZE|N%", default_value = "90%", help_heading = "GPUs")]
    pub gpu_memory: Share,

    /// Page-locked host memory, out of the memory budget: staging for copies to GPUs, and chunks that stay after them; a
    /// quarter of the memory budget when not set, nothing without a GPU
    #[arg(id = "loader_pinned_memory", long = "pinned-memory", env = env::LOADER_PINNED_MEMORY, value_name = "SIZE", help_heading = "GPUs")]
    pub pinned_memory: Option<ByteSize>,

    /// Let GPUs read large tensors of local files by themselves (cuFile and the kernel module nvidia-fs), past host memory;
    /// what they cannot read goes through page-locked memory, and is counted
    #[arg(id = "loader_gpudirect_storage", long = "gpudirect-storage", env = env::LOADER_GPUDIRECT_STORAGE, help_heading = "GPUs")]
    pub gpudirect_storage: bool,

    /// Read local files past the page cache: "auto" for what is not in it, "always" or "never"
    #[arg(id = "loader_direct_io", long = "direct-io", env = env::LOADER_DIRECT_IO, value_name = "WHEN", default_value = "auto")]
    pub direct_io: DirectIo,

    /// Socket of the holder, which keeps models when the loader ends; holder.sock in the socket folder when not set. When
    /// nothing listens there, models end with the loader
    #[arg(id = "loader_holder_socket", long = "holder-socket", env = env::LOADER_HOLDER_SOCKET, value_name = "PATH")]
    pub holder_socket: Option<PathBuf>,

    /// Do not start without a holder
    #[arg(id = "loader_require_holder", long = "require-holder", env = env::LOADER_REQUIRE_HOLDER)]
    pub require_holder: bool,

    /// Saving checkpoints.
    #[command(flatten)]
    pub checkpoints: CheckpointOptions,

    /// Origins.
    #[command(flatten)]
    pub origin: OriginOptions,
}

/// Which GPUs a loader uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Gpus {
    /// Every one it can see.
    All,
    /// None; the driver is not even looked for.
    None,
    /// These, by ordinal or UUID. It is an error when one is not there.
    Listed(Vec<String>),
}

impl std::str::FromStr for Gpus {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "all" | "" => return Ok(Gpus::All),
            "none" => return Ok(Gpus::None),
            _ => {}
        }
        let names: Vec<String> = text.split(',').map(|name| name.trim().to_owned()).collect();
        let is_name = |name: &String| {
            let is_ordinal = !name.is_empty() && name.len() <= 4 && name.bytes().all(|byte| byte.is_ascii_digit());
            is_ordinal || name.starts_with("GPU-") || name.starts_with("MIG-")
        };
        let stray = names.iter().find(|name| !is_name(name));
        stray.map_or(Ok(Gpus::Listed(names.clone())), |stray| {
            Err(format!(
                "{stray:?} is neither the ordinal nor the UUID of a GPU; write for instance all, none, 0,1 or GPU-..."
            ))
        })
    }
}

impl std::fmt::Display for Gpus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Gpus::All => f.write_str("all"),
            Gpus::None => f.write_str("none"),
            Gpus::Listed(names) => f.write_str(&names.join(",")),
        }
    }
}

/// A size, or a share of something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Share {
    /// So many bytes.
    Bytes(ByteSize),
    /// So many hundredths, 1 to 100.
    Percent(u8),
}

impl Share {
    /// The bytes it is of `total_bytes`, at most all of them.
    pub fn of(self, total_bytes: u64) -> u64 {
        match self {
            Share::Bytes(size) => size.0.min(total_bytes),
            Share::Percent(percent) => total_bytes / 100 * u64::from(percent.min(100)),
        }
    }
}

impl std::str::FromStr for Share {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let Some(percent) = text.strip_suffix('%') else {
            return text.parse().map(Share::Bytes);
        };
        let percent = percent.trim().parse().ok().filter(|percent| (1..=100).contains(percent));
        percent.map(Share::Percent).ok_or_else(|| format!("{text:?} is no share; write for instance 90% or 60GiB"))
    }
}

impl std::fmt::Display for Share {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Share::Bytes(size) => size.fmt(f),
            Share::Percent(percent) => write!(f, "{percent}%"),
        }
    }
}

/// When local files are read past the page cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum DirectIo {
    /// What is not in the page cache.
    Auto,
    /// Everything.
    Always,
    /// Nothing.
    Never,
}

/// An address to listen on, or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listen(pub Option<SocketAddr>);

impl std::str::FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "none" | "" => Ok(Listen(None)),
            _ => text
                .parse()
                .map(|address| Listen(Some(address)))
                .map_err(|_| format!("{text:?} is no address; write for instance 127.0.0.1:7080, [::]:7080 or none")),
        }
    }
}

impl std::fmt::Display for Listen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Some(address) => address.fmt(f),
            None => f.write_str("none"),
        }
    }
}

/// Permissions of a socket file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SocketMode(pub u32);

impl std::str::FromStr for SocketMode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mode = u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o777);
        mode.map(SocketMode).ok_or_else(|| format!("{text:?} is no file mode; write for instance 660 or 666"))
    }
}

impl std::fmt::Display for SocketMode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:o}", self.0)
    }
}

/// Most threads that fetch: each holds at most one chunk.
const FETCHES_MAX: usize = 256;
/// Fetches at once on machines of few cores: a cloud store gives each connection some 90 MB/s, whatever the machine can take.
const ORIGIN_CONNECTIONS_MIN: usize = 16;
/// Chunks under way to a GPU on machines of few cores.
const STAGED_CHUNKS_MIN: usize = 4;
/// Least memory that is of any use: a few chunks.
const MEMORY_BYTES_MIN: u64 = 64 << 20;

impl LoaderOptions {
    /// The options with no flag given. The environment still applies.
    ///
    /// # Errors
    /// [`Code::InvalidArgument`] when a variable of the environment holds no valid value.
    pub fn from_environment() -> Result<Self> {
        #[derive(clap::Parser)]
        struct Program {
            #[command(flatten)]
            options: LoaderOptions,
        }
        let command = ignore_empty_variables(<Program as clap::CommandFactory>::command());
        let matches = command.try_get_matches_from(["longshore"]);
        let parsed = matches.and_then(|matches| <Program as clap::FromArgMatches>::from_arg_matches(&matches));
        parsed.map(|program| program.options).map_err(|error| Error::new(Code::InvalidArgument, error.to_string()))
    }

    /// Bytes of the arena.
    pub fn memory_bytes(&self) -> u64 {
        memory_bytes(self.memory)
    }

    /// Threads that fetch: one a core, and never fewer than keep a cloud store busy, because a thread also waits for it.
    pub fn fetch_threads(&self) -> usize {
        self.threads_or_cores(ORIGIN_CONNECTIONS_MIN)
    }

    /// Chunks that page-locked memory must hold at least to keep the cores busy; fetch threads beyond them wait for a slot.
    pub(crate) fn staged_chunks_min(&self) -> usize {
        self.threads_or_cores(STAGED_CHUNKS_MIN)
    }

    fn threads_or_cores(&self, cores_min: usize) -> usize {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        self.fetches_max.unwrap_or_else(|| cores.clamp(cores_min, 32)).clamp(1, FETCHES_MAX)
    }

    /// How long a source may stay silent.
    pub fn stall_timeout(&self) -> Duration {
        Duration::from_millis(self.stall_timeout_ms.max(1))
    }

    /// The folder of the sockets: the first of the option, `/run/longshore` when it is or can be made writable,
    /// `$XDG_RUNTIME_DIR/longshore`, `/tmp/longshore-<uid>`.
    pub fn socket_folder(&self) -> PathBuf {
        if let Some(folder) = &self.socket_dir {
            return folder.clone();
        }
        default_socket_folder()
    }
}

/// Bytes of an arena: as set, else half of the memory there is.
pub(crate) fn memory_bytes(set: Option<ByteSize>) -> u64 {
    let half = longshore_memory::memory_limit_bytes() / 2;
    set.map_or(half, |size| size.0).max(MEMORY_BYTES_MIN)
}

/// Where loaders put their sockets, and where clients look for them, when nothing else is said.
pub fn default_socket_folder() -> PathBuf {
    use rustix::fs::{Access, access};
    let system = PathBuf::from("/run/longshore");
    let may_write =
        access(&system, Access::WRITE_OK).is_ok() || (!system.exists() && access("/run", Access::WRITE_OK).is_ok());
    if may_write {
        return system;
    }
    match std::env::var_os("XDG_RUNTIME_DIR").filter(|folder| !folder.is_empty()) {
        Some(folder) => PathBuf::from(folder).join("longshore"),
        None => PathBuf::from(format!("/tmp/longshore-{}", rustix::process::getuid().as_raw())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_parse_and_addresses_can_be_switched_off() {
        let options = LoaderOptions::from_environment().unwrap();
        assert!(options.fetch_threads() >= 1 && options.memory_bytes() >= MEMORY_BYTES_MIN);
        assert_eq!("none".parse::<Listen>().unwrap(), Listen(None));
        assert_eq!("[::1]:80".parse::<Listen>().unwrap().to_string(), "[::1]:80");
        assert!("localhost".parse::<Listen>().is_err());
    }

    #[test]
    fn gpus_and_shares_parse() {
        assert_eq!("all".parse::<Gpus>().unwrap(), Gpus::All);
        assert_eq!("none".parse::<Gpus>().unwrap().to_string(), "none");
        let listed = "0, GPU-8f3c".parse::<Gpus>().unwrap();
        assert_eq!(listed, Gpus::Listed(vec!["0".into(), "GPU-8f3c".into()]));
        assert_eq!(listed.to_string(), "0,GPU-8f3c");
        for nonsense in ["cuda:0", "0,,1", "-1", "any"] {
            assert!(nonsense.parse::<Gpus>().is_err(), "{nonsense}");
        }
        assert_eq!("50%".parse::<Share>().unwrap().of(1000), 500);
        assert_eq!("1KiB".parse::<Share>().unwrap().of(1 << 20), 1024);
        assert_eq!("1TiB".parse::<Share>().unwrap().of(5), 5);
        for nonsense in ["0%", "101%", "%", "x"] {
            assert!(nonsense.parse::<Share>().is_err(), "{nonsense}");
        }
    }
}
