//! Every `LONGSHORE_*` variable, in one place. Code refers to these constants, never to the text.
//!
//! Variables of other systems that we honour (`AWS_*`, `GOOGLE_*`, `AZURE_*`, `HF_ENDPOINT`, `HF_TOKEN`) are declared
//! where they are read, in the origin's options.

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
    /// Device: `host`, `cuda:N` or `auto`. Set for the child of `longshore exec`, and the default of `--device`.
    DEVICE;

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
    /// Capacity in GiB that a worker's share of the chunks is computed from.
    WORKER_WEIGHT;
    /// Owners of each chunk.
    WORKER_REPLICAS;
    /// How long metadata of the origin stays fresh.
    WORKER_METADATA_TTL;
    /// How long "there is no such object" stays fresh.
    WORKER_NEGATIVE_TTL;
    /// Connections a worker's data plane accepts at once.
    WORKER_CONNECTIONS_MAX;
    /// Fills that run at once.
    WORKER_FILLS_MAX;
    /// How long a worker waits for requests in flight when it shuts down.
    WORKER_DRAIN_TIMEOUT;

    /// Budget of a loader's arena: everything that holds model bytes in host memory.
    LOADER_MEMORY;
    /// Address of a loader's gRPC service.
    LOADER_LISTEN;
    /// Address of a loader's metrics and health pages.
    LOADER_OPS_LISTEN;
    /// Chunks that a loader fetches at once.
    LOADER_FETCHES_MAX;
    /// How long a loader waits for a byte from one source before it asks the next.
    LOADER_STALL_TIMEOUT;
    /// Loads that run at once.
    LOADER_LOADS_MAX;
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
