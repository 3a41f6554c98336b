//! The command line: what can be said, and nothing about what it does.

mod checkpoints;

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use clap::parser::ValueSource;
use clap::{Args, CommandFactory, Parser, Subcommand};
use longshore_device::DeviceRequest;
use longshore_loader::{HolderOptions, LoaderOptions};
use longshore_origin::OriginOptions;
use longshore_runtime::config::{ConfigArgs, Parsed};
use longshore_runtime::{TelemetryArgs, env};
use longshore_types::ByteSize;
use longshore_worker::WorkerOptions;

use crate::commands::Environment;
pub use checkpoints::{CheckpointsArgs, SaveArgs, SaverArgs, SavesArgs, WaitFor};

/// Loads models onto GPUs, through a cache shared by all nodes
#[derive(Debug, Parser)]
#[command(name = "longshore", version, propagate_version = true, max_term_width = 120)]
pub struct Cli {
    /// Print one JSON object (or one a line) on stdout, for programs
    #[arg(long, global = true)]
    pub json: bool,
    #[command(flatten)]
    pub config: ConfigArgs,
    #[command(flatten)]
    pub telemetry: TelemetryArgs,
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Load a model into memory, through the node's loader or inside this process
    Load(LoadArgs),
    /// Write a model's files into a folder
    Pull(PullArgs),
    /// List the files under a URI
    Ls(UriArgs),
    /// Size and version of one object
    Stat(UriArgs),
    /// Bring a model into the cache
    Warm(WarmArgs),
    /// Drop a model from the loader's memory and from the cache
    Free(UriArgs),
    /// Save a folder or a file as one checkpoint: all of it becomes visible at once, or nothing
    ///
    /// The bytes are copied to this node's disk first, then uploaded in parallel, verified, and committed as URI/step-N/.
    /// The node's loader does it, or this process when no loader runs; what is interrupted then is gone on with by the next
    /// command or loader. The first Ctrl-C cancels the save, a second one leaves it as it is.
    Save(Box<SaveArgs>),
    /// The saves that run on this node, and the last ones that ended
    Saves(Box<SavesArgs>),
    /// List the committed checkpoints of a run; show, verify, delete or recover one; remove what unfinished saves left
    Checkpoints(Box<CheckpointsArgs>),
    /// What the node's loader and the cache workers hold
    Status(StatusArgs),
    /// Which workers own which chunks of a model
    Ring(RingArgs),
    /// Run a cache worker
    Worker(Box<WorkerArgs>),
    /// Run the node's loader
    Loader(Box<LoaderArgs>),
    /// Keep the memory of loaded models for a loader that may end, and serve who attaches
    ///
    /// Start it before the loader, with the same socket folder. It makes GPU memory without a CUDA context, keeps every
    /// loaded model of the node, on GPUs and in host memory, and counts who is attached. The loader may end, crash or be
    /// upgraded: the next one takes over what the holder keeps, and attached programs notice nothing. When the holder
    /// itself ends, its models are gone, except for programs that are attached to them; the loader waits for it to come
    /// back.
    Holder(HolderArgs),
    /// Copy to one GPU, for the loader that starts this and speaks to it over standard input
    #[command(hide = true)]
    Copier,
    /// Make a private mount with huge pages in a user namespace, for the process that starts this and gets it over
    /// standard input
    #[command(hide = true)]
    HugeMemory,
    /// Load a model, then become another program that uses it
    Exec(ExecArgs),
    /// Show what the cache does, on this machine alone, in a few seconds
    Demo(DemoArgs),
    /// Print the reference of all settings as Markdown
    #[command(hide = true)]
    Reference,
}

/// Where the work is done.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Node")]
pub struct NodeArgs {
    /// The node's loader: unix:///path/loader.sock or http://host:port [default: loader.sock in the socket folder]
    #[arg(long, env = env::LOADER, value_name = "ADDRESS")]
    pub loader: Option<String>,
    /// Work inside this process even when a daemon runs
    #[arg(long)]
    pub embedded: bool,
    /// Cache workers as host:port of their data planes, comma-separated
    #[arg(long, env = env::WORKERS, value_name = "HOST:PORT", value_delimiter = ',')]
    pub workers: Vec<String>,
    /// Cache folder when no daemon runs [default: longshore in the user's cache folder]
    #[arg(long, env = env::CACHE_DIR, value_name = "DIR")]
    pub cache_dir: Option<PathBuf>,
    /// Disk budget of that folder [default: four fifths of the free space]
    #[arg(long, env = env::WORKER_DISK, value_name = "SIZE")]
    pub disk: Option<ByteSize>,
    /// Memory for model bytes when no daemon runs [default: half of the memory there is]
    #[arg(long, env = env::LOADER_MEMORY, value_name = "SIZE")]
    pub memory: Option<ByteSize>,
    /// Folder of the loader's sockets
    #[arg(long, env = env::SOCKET_DIR, value_name = "DIR")]
    pub socket_dir: Option<PathBuf>,
    #[command(flatten)]
    pub origin: OriginOptions,
}

/// One rank's part of a model.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Tensor parallelism")]
pub struct ParallelArgs {
    /// Load the part of this rank, 0 to the world size - 1
    #[arg(long, value_name = "R")]
    pub rank: Option<u32>,
    /// Number of ranks
    #[arg(long, value_name = "W")]
    pub world_size: Option<u32>,
    /// How tensors are split: a file of rules (TOML, or JSON as *.json), or llama or qwen2 for models with these names
    #[arg(long, value_name = "FILE")]
    pub parallel_rules: Option<PathBuf>,
}

/// `load`.
#[derive(Debug, Args)]
pub struct LoadArgs {
    /// s3://, gs://, az://, http(s)://, hf://org/name@revision, file:// or a path
    pub uri: String,
    /// host, cuda:N or auto
    #[arg(long, env = env::DEVICE, default_value = "auto")]
    pub device: DeviceRequest,
    /// Load only files that match this pattern (* and ?); may be repeated
    #[arg(long, value_name = "PATTERN")]
    pub include: Vec<String>,
    /// Ask the origin for the newest revision, whatever is cached
    #[arg(long)]
    pub revalidate: bool,
    /// Write a trace for Perfetto or chrome://tracing
    #[arg(long, value_name = "FILE")]
    pub trace: Option<PathBuf>,
    #[command(flatten)]
    pub parallel: ParallelArgs,
    #[command(flatten)]
    pub node: NodeArgs,
}

/// `pull`.
#[derive(Debug, Args)]
pub struct PullArgs {
    /// What to write
    pub uri: String,
    /// The folder; made when missing
    pub folder: PathBuf,
    /// Write only files that match this pattern (* and ?); may be repeated
    #[arg(long, value_name = "PATTERN")]
    pub include: Vec<String>,
    /// Ask the origin for the newest revision, whatever is cached
    #[arg(long)]
    pub revalidate: bool,
    #[command(flatten)]
    pub node: NodeArgs,
}

/// `warm`.
#[derive(Debug, Args)]
pub struct WarmArgs {
    /// The model
    pub uri: String,
    /// Only files that match this pattern (* and ?); may be repeated
    #[arg(long, value_name = "PATTERN")]
    pub include: Vec<String>,
    /// Ask the origin for the newest revision, whatever is cached
    #[arg(long)]
    pub revalidate: bool,
    #[command(flatten)]
    pub node: NodeArgs,
}

/// `ls`, `stat` and `free`.
#[derive(Debug, Args)]
pub struct UriArgs {
    /// The object, folder or model
    pub uri: String,
    /// Ask the origin, whatever is cached
    #[arg(long)]
    pub revalidate: bool,
    #[command(flatten)]
    pub node: NodeArgs,
}

/// `status`.
#[derive(Debug, Args)]
pub struct StatusArgs {
    #[command(flatten)]
    pub node: NodeArgs,
}

/// `ring`.
#[derive(Debug, Args)]
pub struct RingArgs {
    /// The model
    pub uri: String,
    /// Owners of each chunk to show
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=8))]
    pub replicas: u8,
    /// List every chunk
    #[arg(long)]
    pub chunks: bool,
    #[command(flatten)]
    pub node: NodeArgs,
}

/// `worker`.
#[derive(Debug, Args)]
pub struct WorkerArgs {
    #[command(flatten)]
    pub worker: WorkerOptions,
    #[command(flatten)]
    pub origin: OriginOptions,
}

/// `loader`.
#[derive(Debug, Args)]
pub struct LoaderArgs {
    #[command(flatten)]
    pub loader: LoaderOptions,
    /// Serve one client: with a cache inside this process, until the last client has let go. Prints a line of JSON
    /// with its sockets when it is ready
    #[arg(long, requires = "loader_socket_dir", help_heading = "Private loader")]
    pub private: bool,
    /// Remove the socket folder at the end
    #[arg(long, requires = "private", hide = true)]
    pub remove_socket_dir: bool,
    /// Cache folder of a private loader [default: longshore in the user's cache folder]
    #[arg(long, env = env::CACHE_DIR, value_name = "DIR", help_heading = "Private loader")]
    pub cache_dir: Option<PathBuf>,
    /// Disk budget of that folder [default: four fifths of the free space]
    #[arg(id = "cache_disk", long = "disk", env = env::WORKER_DISK, value_name = "SIZE", help_heading = "Private loader")]
    pub disk: Option<ByteSize>,
}

/// `holder`.
#[derive(Debug, Args)]
pub struct HolderArgs {
    #[command(flatten)]
    pub holder: HolderOptions,
}

/// `exec`.
#[derive(Debug, Args)]
pub struct ExecArgs {
    /// The model to load
    #[arg(long, value_name = "URI")]
    pub model: String,
    /// host, cuda:N or auto
    #[arg(long, env = env::DEVICE, default_value = "auto")]
    pub device: DeviceRequest,
    /// Load only files that match this pattern (* and ?); may be repeated
    #[arg(long, value_name = "PATTERN")]
    pub include: Vec<String>,
    #[command(flatten)]
    pub parallel: ParallelArgs,
    #[command(flatten)]
    pub node: NodeArgs,
    /// The program and its arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    pub command: Vec<OsString>,
}

/// `demo`.
#[derive(Debug, Args)]
pub struct DemoArgs {
    /// Size of the model that is made up
    #[arg(long, default_value = "128MiB")]
    pub size: ByteSize,
}

/// The command with its help arranged: origins fill a page, so only `--help` shows them, not `-h`.
pub fn command() -> clap::Command {
    let arrange = |arg: clap::Arg| match arg.get_help_heading() {
        Some("Origins" | "Logging and tracing" | "Configuration") => arg.hide_short_help(true),
        _ => arg,
    };
    Cli::command().mut_args(arrange).mut_subcommands(|sub| sub.mut_args(arrange))
}

/// Two flags that contradict each other. clap's own check would also count a variable, which a flag overrides.
pub fn contradiction(parsed: &mut Parsed) -> Option<clap::Error> {
    let (_, matches) = parsed.matches.subcommand()?;
    let is_flag = |id: &str| {
        let is_known = matches.try_contains_id(id).is_ok();
        is_known && matches.value_source(id) == Some(ValueSource::CommandLine)
    };
    let message = "the argument '--embedded' cannot be used with '--loader <ADDRESS>'";
    (is_flag("embedded") && is_flag("loader"))
        .then(|| parsed.command.error(clap::error::ErrorKind::ArgumentConflict, message))
}

/// The variables that say what this command line and its file say, for a private loader that is started: secrets do
/// not belong on a command line.
pub fn environment(parsed: &Parsed) -> Environment {
    let Some((name, matches)) = parsed.matches.subcommand() else { return Vec::new() };
    let Some(command) = parsed.command.find_subcommand(name) else { return Vec::new() };
    let variable = |arg: &clap::Arg| {
        let values = matches.get_raw(arg.get_id().as_str())?.collect::<Vec<_>>().join(OsStr::new(","));
        Some((arg.get_env()?.to_str()?.to_owned(), values))
    };
    let root = parsed.command.get_arguments().filter(|arg| arg.is_global_set());
    let own = command.get_arguments().filter(|arg| !arg.is_global_set());
    own.chain(root).filter_map(variable).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_is_well_formed_and_every_variable_is_listed() {
        let mut command = command();
        command.build();
        command.clone().debug_assert();
        let standard = |name: &str| ["AWS_", "GOOGLE_", "AZURE_", "HF_"].iter().any(|prefix| name.starts_with(prefix));
        let of_command =
            command.get_arguments().chain(command.get_subcommands().flat_map(clap::Command::get_arguments));
        let used: Vec<&str> = of_command.filter_map(|arg| arg.get_env()?.to_str()).collect();
        for name in &used {
            assert!(standard(name) || env::ALL.iter().any(|(known, _)| known == name), "{name} is not in env.rs");
        }
        let of_options = |name: &str| ["WORKER_", "LOADER_", "ORIGIN_"].iter().any(|part| name[10..].starts_with(part));
        for (name, _) in env::ALL.iter().filter(|(name, _)| of_options(name)) {
            assert!(used.contains(name), "{name} is in env.rs and nothing reads it");
        }
    }

    #[test]
    fn only_two_flags_contradict_each_other() {
        let contradicts = |line: &[&str]| {
            let line = line.iter().map(OsString::from).collect();
            contradiction(&mut longshore_runtime::config::parse(command(), line).unwrap()).is_some()
        };
        assert!(contradicts(&["longshore", "load", "m", "--embedded", "--loader", "h:1"]));
        assert!(!contradicts(&["longshore", "load", "m", "--embedded"]));
        assert!(!contradicts(&["longshore", "load", "m", "--loader", "h:1"]));
        assert!(!contradicts(&["longshore", "demo"]));
    }

    #[test]
    fn flags_become_variables_for_a_private_loader() {
        let line = ["longshore", "exec", "--model", "m", "--cache-dir", "/c", "--workers", "a:1,b:1", "--", "true"];
        let parsed = longshore_runtime::config::parse(command(), line.map(OsString::from).to_vec()).unwrap();
        let environment = environment(&parsed);
        let value = |name: &str| environment.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone());
        assert_eq!(value(env::CACHE_DIR), Some("/c".into()));
        assert_eq!(value(env::WORKERS), Some("a:1,b:1".into()));
        assert_eq!(value(env::LOADER_MEMORY), None);
    }

    #[test]
    fn a_program_keeps_its_own_flags() {
        let line = ["longshore", "exec", "--model", "m", "--", "prog", "--json", "--config", "x"];
        let parsed = longshore_runtime::config::parse(command(), line.map(OsString::from).to_vec()).unwrap();
        let cli = <Cli as clap::FromArgMatches>::from_arg_matches(&parsed.matches).unwrap();
        assert!(!cli.json);
        assert!(matches!(cli.command, Command::Exec(args) if args.command.len() == 4));
    }
}
