//! Every `LONGSHORE_*` variable, in one place. Code refers to these constants, never to the text.
//!
//! Variables of other systems that we honour (`AWS_*`, `GOOGLE_*`, `AZURE_*`, `HF_ENDPOINT`, `HF_TOKEN`) are declared
//! where they are read, in the origin's options. A test of the command line holds this list and the options together.

macro_rules! variables {
    ($($(#[doc = $meaning:literal])+ $name:ident;)+) => {
        $($(#[doc = $meaning])+ pub const $name: &str = concat!("LONGSHORE_", stringify!($name));)+

        /// Name and meaning of each variable, in the order of the reference page.
        pub const ALL: &[(&str, &str)] = &[$(($name, concat!($($meaning),+))),+];
    };
}

variables! {
    /// Path of the configuration file (TOML).
    CONFIG;
    /// Log format: `text` or `json`.
    LOG_FORMAT;
    /// Log level or filter, for instance `info` or `warn,longshore_worker=debug`.
    LOG_LEVEL;
    /// Where to send traces: the URL of an OTLP/HTTP endpoint.
    OTLP_ENDPOINT;

    /// Folder of cached chunks; also used by the command line when no daemon runs.
    CACHE_DIR;
    /// Folder of the loader's unix sockets.
    SOCKET_DIR;
    /// Address of the node's loader: `unix:///path/loader.sock` or `http://host:port`.
    LOADER;
    /// The `longshore` binary that the Python client starts.
    BIN;

    /// Id of the loaded model, set for the child of `longshore exec`.
    MODEL_ID;
    /// URI of the loaded model, set for the child of `longshore exec`.
    MODEL_URI;
    /// Revision of the loaded model, set for the child of `longshore exec`.
    REVISION;
    /// Unix socket where the model's memory is handed over, set for the child of `longshore exec`.
    ATTACH_SOCKET;
    /// Device: `host`, `cuda:N`, the UUID of a GPU or `auto`. Set for the child of `longshore exec`, and the default of `--device`.
    DEVICE;

    /// Id of this machine, the same for all its processes and for no other machine's: durable copies go to other ids. The kernel's boot id when not set.
    HOST_ID;
    /// Comma-separated `host:port` addresses of the cache workers.
    WORKERS;
    /// Budget of a worker's memory tier.
    WORKER_MEMORY;
    /// Budget of a worker's disk tier.
    WORKER_DISK;
    /// Free space that a worker leaves on its disk.
    WORKER_DISK_FREE_FLOOR;
    /// When a worker's writes reach the disk.
    WORKER_FSYNC;
    /// Address of a worker's data plane.
    WORKER_DATA_LISTEN;
    /// Address of a worker's gRPC control service.
    WORKER_CONTROL_LISTEN;
    /// Address of a worker's metrics and health pages.
    WORKER_OPS_LISTEN;
    /// Unix socket of a worker's data plane.
    WORKER_UNIX_SOCKET;
    /// Host name or address that a worker tells others to reach it at.
    WORKER_ADVERTISE;
    /// Weight in GiB that a worker's share of the chunks is computed from; its capacity when not set.
    WORKER_WEIGHT;
    /// Owners of each chunk.
    WORKER_REPLICAS;
    /// How long metadata of the origin stays fresh, in milliseconds.
    WORKER_METADATA_TTL_MS;
    /// How long the absence of an object stays fresh, in milliseconds.
    WORKER_NEGATIVE_TTL_MS;
    /// Connections a worker's data plane accepts at once.
    WORKER_CONNECTIONS_MAX;
    /// Fills that run at once.
    WORKER_FILLS_MAX;
    /// How long a worker waits for requests in flight when it shuts down, in milliseconds.
    WORKER_DRAIN_TIMEOUT_MS;

    /// Budget of a loader's arena: everything that holds model bytes in host memory.
    LOADER_MEMORY;
    /// Host memory that a loader keeps touched for the next load.
    LOADER_PREFAULT;
    /// Address of a loader's gRPC service.
    LOADER_LISTEN;
    /// Address of a loader's metrics and health pages.
    LOADER_OPS_LISTEN;
    /// Chunks that a loader fetches at once.
    LOADER_FETCHES_MAX;
    /// How long a loader waits for a byte from one source before it asks the next, in milliseconds.
    LOADER_STALL_TIMEOUT_MS;
    /// Loads that run at once.
    LOADER_LOADS_MAX;
    /// GPUs that a loader uses: `all`, `none`, or ordinals and UUIDs.
    LOADER_GPUS;
    /// Budget for models on each GPU: a size, or a share such as `90%`.
    LOADER_GPU_MEMORY;
    /// Page-locked host memory of a loader.
    LOADER_PINNED_MEMORY;
    /// Whether GPUs read local files by themselves, where they can.
    LOADER_GPUDIRECT_STORAGE;
    /// When a loader reads local files past the page cache: `auto`, `always` or `never`.
    LOADER_DIRECT_IO;
    /// Socket of the holder that keeps models when a loader ends.
    LOADER_HOLDER_SOCKET;
    /// Whether a loader refuses to start without a holder.
    LOADER_REQUIRE_HOLDER;

    /// Folder where checkpoints that are being saved lie until they are in the origin.
    CHECKPOINT_DIR;
    /// Shared memory that checkpoints are staged in.
    CHECKPOINT_MEMORY;
    /// Budget on the disk for checkpoints that are being saved, and for those that are kept there.
    CHECKPOINT_DISK;
    /// Folder of the shared memory that training processes copy checkpoints into.
    CHECKPOINT_SLAB_DIR;
    /// Committed checkpoints whose bytes stay on the node.
    CHECKPOINT_KEEP_LOCAL;
    /// Parts of checkpoints that are uploaded at once.
    CHECKPOINT_UPLOADS;
    /// Size of an uploaded part of a checkpoint.
    CHECKPOINT_PART_BYTES;

    /// Time limit for opening a connection to an origin, in milliseconds.
    ORIGIN_CONNECT_TIMEOUT_MS;
    /// Time limit from a request to the head of its response, in milliseconds.
    ORIGIN_FIRST_BYTE_TIMEOUT_MS;
    /// Longest time without a byte while a body is read, in milliseconds.
    ORIGIN_STALL_TIMEOUT_MS;
    /// Most attempts of one request without progress.
    ORIGIN_ATTEMPTS_MAX;
    /// Longest time that one request is repeated without progress, in milliseconds.
    ORIGIN_RETRY_TIME_MS_MAX;
    /// Upper bound of the pause before the first retry, in milliseconds.
    ORIGIN_RETRY_PAUSE_MS;
    /// Most connections to one bucket or server.
    ORIGIN_CONNECTIONS_MAX;
    /// URL of an S3-compatible server.
    ORIGIN_S3_ENDPOINT;
    /// S3 region.
    ORIGIN_S3_REGION;
    /// S3 access key.
    ORIGIN_S3_ACCESS_KEY_ID;
    /// S3 secret key.
    ORIGIN_S3_SECRET_ACCESS_KEY;
    /// Send no signature to S3.
    ORIGIN_S3_SKIP_SIGNATURE;
    /// URL of a server that speaks Google's XML API.
    ORIGIN_GCS_ENDPOINT;
    /// Send no token to Google Cloud Storage.
    ORIGIN_GCS_SKIP_SIGNATURE;
    /// URL of an Azure blob account or emulator.
    ORIGIN_AZURE_ENDPOINT;
    /// Azure storage account.
    ORIGIN_AZURE_ACCOUNT;
    /// Azure access key.
    ORIGIN_AZURE_ACCESS_KEY;
    /// Other settings of cloud stores, as comma-separated KEY=VALUE.
    ORIGIN_STORE_OPTIONS;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_carry_the_prefix_and_a_meaning() {
        assert_eq!(CACHE_DIR, "LONGSHORE_CACHE_DIR");
        assert!(ALL.iter().all(|(name, meaning)| name.starts_with("LONGSHORE_") && meaning.trim().ends_with('.')));
    }
}
