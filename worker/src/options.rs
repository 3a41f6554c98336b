//! What a user can set about a worker. Flags, configuration keys and variables are declared here once.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::builder::RangedU64ValueParser;
use longshore_memory::memory_limit_bytes;
use longshore_runtime::env;
use longshore_types::{ByteSize, CHUNK_BYTES, Code, Error, Result};

pub use crate::store::disk::SyncPolicy;

/// Share of the memory limit that the memory tier takes by default: an eighth, at most [`MEMORY_DEFAULT_BYTES_MAX`].
const MEMORY_DEFAULT_DIVISOR: u64 = 8;
const MEMORY_DEFAULT_BYTES_MAX: u64 = 8 << 30;
/// Below this nothing would be left beside one fill of each kind: eight chunks.
const MEMORY_BYTES_MIN: u64 = 8 * CHUNK_BYTES;

/// Most threads that write chunk files. No disk is faster with more, and each has a stack and a buffer of its own.
const DISK_THREADS_MAX: u64 = 64;

/// The options of a worker.
#[derive(clap::Args, Clone, Debug)]
#[command(next_help_heading = "Worker")]
pub struct WorkerOptions {
    /// Folder of the chunk files; a fast local disk [default: longshore in the user's cache folder]
    #[arg(long, env = env::CACHE_DIR, value_name = "DIR")]
    pub cache_dir: Option<PathBuf>,

    /// Keep chunks in memory only: no disk tier, nothing survives a restart
    #[arg(long)]
    pub memory_only: bool,

    /// Budget of the memory tier with all chunks in flight, for instance 4GiB [default: an eighth of the memory, at most 8GiB]
    #[arg(long = "memory", env = env::WORKER_MEMORY, value_name = "SIZE")]
    pub memory_bytes: Option<ByteSize>,

    /// Budget of the disk tier [default: four fifths of the free space]
    #[arg(long = "disk", env = env::WORKER_DISK, value_name = "SIZE")]
    pub disk_bytes: Option<ByteSize>,

    /// Part of the disk tier's budget that chunks may take which are held for checkpoints until they are in their origin [default: a quarter]
    #[arg(long, value_name = "SIZE")]
    pub hold_disk: Option<ByteSize>,

    /// How long chunks are held that nobody releases, in hours after the last one of their checkpoint came
    #[arg(long, value_name = "HOURS", default_value_t = 168, value_parser = clap::value_parser!(u64).range(1..))]
    pub hold_ttl_hours: u64,

    /// Space that is left free on the disk [default: a twentieth of it, at most 10GiB]
    #[arg(long, env = env::WORKER_DISK_FREE_FLOOR, value_name = "SIZE")]
    pub disk_free_floor: Option<ByteSize>,

    /// When chunk files are forced to the disk; checksums find torn ones either way
    #[arg(long, env = env::WORKER_FSYNC, value_enum, default_value = "none")]
    pub fsync: SyncPolicy,

    /// Address of the data plane; port 0 takes a free one
    #[arg(long, env = env::WORKER_DATA_LISTEN, value_name = "ADDRESS", default_value = "0.0.0.0:7070")]
    pub data_listen: SocketAddr,

    /// Address of the gRPC control service
    #[arg(long, env = env::WORKER_CONTROL_LISTEN, value_name = "ADDRESS", default_value = "0.0.0.0:7071")]
    pub control_listen: SocketAddr,

    /// Address of the pages /metrics, /healthz and /readyz
    #[arg(long, env = env::WORKER_OPS_LISTEN, value_name = "ADDRESS", default_value = "0.0.0.0:7072")]
    pub ops_listen: SocketAddr,

    /// Unix socket of the data plane, where loaders on this host are handed file descriptors
    #[arg(long, env = env::WORKER_UNIX_SOCKET, value_name = "PATH")]
    pub unix_socket: Option<PathBuf>,

    /// Host name or address that others reach this worker at [default: the listen address, or that of the default route]
    #[arg(long, env = env::WORKER_ADVERTISE, value_name = "HOST")]
    pub advertise: Option<String>,

    /// Data plane addresses of all workers, this one among them; none means that it works alone
    #[arg(long, env = env::WORKERS, value_name = "HOST:PORT", value_delimiter = ',')]
    pub workers: Vec<String>,

    /// Placement weight in GiB [default: the capacity of the cache]
    #[arg(long, env = env::WORKER_WEIGHT, value_name = "GIB", value_parser = clap::value_parser!(u64).range(1..))]
    pub weight: Option<u64>,

    /// Owners of each chunk; with more than one, they fill from each other before they ask the origin
    #[arg(long, env = env::WORKER_REPLICAS, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=8))]
    pub replicas: u8,

    /// How long listings and sizes stay fresh, in milliseconds
    #[arg(long, env = env::WORKER_METADATA_TTL_MS, value_name = "MS", default_value_t = 60_000)]
    pub metadata_ttl_ms: u64,

    /// How long "there is no such object" stays fresh
    #[arg(long, env = env::WORKER_NEGATIVE_TTL_MS, value_name = "MS", default_value_t = 5_000)]
    pub negative_ttl_ms: u64,

    /// Memory for cached metadata
    #[arg(long, value_name = "SIZE", default_value = "64MiB")]
    pub metadata_memory: ByteSize,

    /// Connections that the data plane accepts at once
    #[arg(long, env = env::WORKER_CONNECTIONS_MAX, default_value_t = 1024)]
    pub connections_max: usize,

    /// Fills that run at once; the memory budget may allow fewer
    #[arg(long, env = env::WORKER_FILLS_MAX, default_value_t = 32)]
    pub fills_max: usize,

    /// How long a request waits for its fill to begin, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 60_000)]
    pub fill_wait_ms: u64,

    /// Threads that write chunk files, at low priority, at most 64; as many again help when many chunks wait
    #[arg(long, default_value_t = 2, value_parser = RangedU64ValueParser::<usize>::new().range(1..=DISK_THREADS_MAX))]
    pub disk_threads: usize,

    /// How long a fill waits for a slow disk before its chunk is kept in memory only, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 2_000)]
    pub disk_wait_ms: u64,

    /// How long a disk that failed is left alone, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 30_000)]
    pub disk_retry_pause_ms: u64,

    /// How long a shutdown waits for requests, fills and writes in flight, in milliseconds
    #[arg(long, env = env::WORKER_DRAIN_TIMEOUT_MS, value_name = "MS", default_value_t = 20_000)]
    pub drain_timeout_ms: u64,

    /// Serve file:// URLs and plain paths, which name files on this worker's machine
    #[arg(long)]
    pub allow_local_origin: bool,

    /// Copy chunks of file:// URLs into the disk tier too; useful when they lie on a slow network file system
    #[arg(long)]
    pub cache_local_origin: bool,
}

impl Default for WorkerOptions {
    fn default() -> Self {
        let any = |port| SocketAddr::from(([0, 0, 0, 0], port));
        WorkerOptions {
            cache_dir: None,
            memory_only: false,
            memory_bytes: None,
            disk_bytes: None,
            hold_disk: None,
            hold_ttl_hours: 168,
            disk_free_floor: None,
            fsync: SyncPolicy::None,
            data_listen: any(7070),
            control_listen: any(7071),
            ops_listen: any(7072),
            unix_socket: None,
            advertise: None,
            workers: Vec::new(),
            weight: None,
            replicas: 1,
            metadata_ttl_ms: 60_000,
            negative_ttl_ms: 5_000,
            metadata_memory: ByteSize(64 << 20),
            connections_max: 1024,
            fills_max: 32,
            fill_wait_ms: 60_000,
            disk_threads: 2,
            disk_wait_ms: 2_000,
            disk_retry_pause_ms: 30_000,
            drain_timeout_ms: 20_000,
            allow_local_origin: false,
            cache_local_origin: false,
        }
    }
}

impl WorkerOptions {
    /// The cache folder: as set, else `longshore` in `$XDG_CACHE_HOME` or `~/.cache`.
    ///
    /// # Errors
    /// [`Code::InvalidArgument`] when nothing names one.
    pub fn cache_folder(&self) -> Result<PathBuf> {
        if let Some(folder) = &self.cache_dir {
            return Ok(folder.clone());
        }
        let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|path: &PathBuf| path.is_absolute());
        let base = absolute("XDG_CACHE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".cache")));
        base.map(|base| base.join("longshore")).ok_or_else(|| {
            Error::new(
                Code::InvalidArgument,
                "no cache folder: set --cache-dir, neither HOME nor XDG_CACHE_HOME is set",
            )
        })
    }

    /// The memory budget: as set, else a share of what this process may have.
    pub fn memory_budget_bytes(&self) -> u64 {
        let default = || (memory_limit_bytes() / MEMORY_DEFAULT_DIVISOR).min(MEMORY_DEFAULT_BYTES_MAX);
        self.memory_bytes.map_or_else(default, |size| size.0).max(MEMORY_BYTES_MIN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(clap::Parser)]
    struct Program {
        #[command(flatten)]
        worker: WorkerOptions,
    }

    #[test]
    fn the_defaults_of_the_command_line_are_those_of_the_library() {
        let parsed = <Program as clap::Parser>::parse_from(["program"]).worker;
        let built = WorkerOptions {
            cache_dir: parsed.cache_dir.clone(),
            workers: parsed.workers.clone(),
            ..WorkerOptions::default()
        };
        assert_eq!(format!("{parsed:?}"), format!("{built:?}"));
    }

    #[test]
    fn the_number_of_threads_is_bounded() {
        let parse = |threads: &str| <Program as clap::Parser>::try_parse_from(["program", "--disk-threads", threads]);
        assert_eq!(parse("64").ok().map(|program| program.worker.disk_threads), Some(64));
        for refused in ["0", "65", "18446744073709551615"] {
            let message = parse(refused).err().map(|error| error.to_string()).unwrap_or_default();
            assert!(message.contains("--disk-threads") && message.contains("1..=64"), "{refused}: {message}");
        }
    }
}
