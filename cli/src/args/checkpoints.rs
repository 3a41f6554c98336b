//! What can be said about checkpoints: `save`, `saves` and `checkpoints`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use longshore_checkpoint::CheckpointOptions;
use longshore_origin::OriginOptions;
use longshore_runtime::env;
use longshore_types::ByteSize;

use super::NodeArgs;

/// Where the work is done.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Node")]
pub struct SaverArgs {
    /// The node's loader: unix:///path/loader.sock [default: loader.sock in the socket folder]
    #[arg(long, env = env::LOADER, value_name = "ADDRESS")]
    pub loader: Option<String>,
    /// Work inside this process even when a daemon runs
    #[arg(long)]
    pub embedded: bool,
    /// Memory for bytes on their way when no daemon runs [default: half of the memory there is]
    #[arg(id = "saver_memory", long = "memory", env = env::LOADER_MEMORY, value_name = "SIZE")]
    pub memory: Option<ByteSize>,
    /// Folder of the loader's sockets
    #[arg(long, env = env::SOCKET_DIR, value_name = "DIR")]
    pub socket_dir: Option<PathBuf>,
    /// Used when no daemon runs.
    #[command(flatten)]
    pub checkpoints: CheckpointOptions,
    #[command(flatten)]
    pub origin: OriginOptions,
}

impl SaverArgs {
    /// For what only looks for the node's loader.
    pub fn node(&self) -> NodeArgs {
        NodeArgs {
            loader: self.loader.clone(),
            embedded: self.embedded,
            workers: Vec::new(),
            cache_dir: None,
            disk: None,
            memory: self.memory,
            socket_dir: self.socket_dir.clone(),
            origin: self.origin.clone(),
        }
    }
}

/// `save`.
#[derive(Debug, Args)]
pub struct SaveArgs {
    /// A folder, or one file, of this node
    pub path: PathBuf,
    /// The run: the checkpoint becomes URI/step-N/ (s3://, gs://, az://, file:// or a path)
    pub uri: String,
    /// Number of the checkpoint [default: the next after the newest]
    #[arg(long, value_name = "N")]
    pub step: Option<u64>,
    /// Committed checkpoints to keep under the URI, this one among them; older ones are deleted after the commit
    /// [default: all of them]
    #[arg(long, value_name = "K", value_parser = clap::value_parser!(u32).range(1..))]
    pub keep: Option<u32>,
    /// Write only the chunks that differ from the newest checkpoint, and refer to it for the others
    #[arg(long)]
    pub delta: bool,
    /// What to wait for
    #[arg(long, value_enum, value_name = "WHAT", default_value_t = WaitFor::Committed)]
    pub wait: WaitFor,
    /// Kept in the checkpoint, and shown with it; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = key_and_value)]
    pub metadata: Vec<(String, String)>,
    /// Fail at once when there is no room on the disk, instead of waiting for it
    #[arg(long)]
    pub refuse_when_full: bool,
    #[command(flatten)]
    pub saver: SaverArgs,
}

/// Up to where a command waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum WaitFor {
    /// Copied: the files may change or go
    Staged,
    /// On this node's disk, synced: survives a crash, and is uploaded sooner or later
    Local,
    /// In the origin, whole and visible
    Committed,
}

/// `saves`.
#[derive(Debug, Args)]
pub struct SavesArgs {
    /// Give this attempt up: nothing of it becomes visible
    #[arg(long, value_name = "ATTEMPT", conflicts_with = "wait")]
    pub cancel: Option<String>,
    /// Wait until every save has ended; without a daemon this uploads what earlier commands have left to do
    #[arg(long)]
    pub wait: bool,
    /// With --wait: a line on stderr for every step of a save, as a terminal shows them
    #[arg(short, long, requires = "wait")]
    pub verbose: bool,
    #[command(flatten)]
    pub saver: SaverArgs,
}

/// `checkpoints`.
#[derive(Debug, Args)]
pub struct CheckpointsArgs {
    /// The run whose checkpoints lie in URI/step-N/
    pub uri: String,
    /// Show one checkpoint with its files and tensors; or the one to verify
    #[arg(long, value_name = "N", conflicts_with_all = ["latest", "delete", "sweep"])]
    pub step: Option<u64>,
    /// Show the newest committed checkpoint with its files and tensors
    #[arg(long, conflicts_with_all = ["delete", "sweep"])]
    pub latest: bool,
    /// Delete this step. Bytes that later deltas need stay; everything else is gone for good
    #[arg(long, value_name = "STEP", conflicts_with_all = ["sweep", "verify"])]
    pub delete: Option<u64>,
    /// Do delete
    #[arg(long, requires = "delete")]
    pub yes: bool,
    /// Remove what attempts that were never finished left in the origin
    #[arg(long, conflicts_with = "verify")]
    pub sweep: bool,
    /// Leave attempts alone that are younger, for instance 90m, 24h or 7d
    #[arg(long, value_name = "AGE", requires = "sweep", default_value = "24h")]
    pub older_than: Age,
    /// Read every byte back from the origin, past all caches, and compare it with the commit: of --step, or of the newest
    #[arg(long)]
    pub verify: bool,
    /// Finish the save of this step whose node is gone, from the copies that workers hold (peer_copies): the loader of this node
    /// takes it over, and the command waits for the commit
    #[arg(long, value_name = "STEP", conflicts_with_all = ["step", "latest", "delete", "sweep", "verify"])]
    pub recover: Option<u64>,
    #[command(flatten)]
    pub saver: SaverArgs,
}

/// A length of time with a unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Age(pub Duration);

impl std::str::FromStr for Age {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let unit_seconds = match &text[digits.len()..] {
            "s" => Some(1),
            "m" | "min" => Some(60),
            "h" => Some(3600),
            "d" => Some(86_400),
            _ => None,
        };
        let seconds = digits.parse::<u64>().ok().zip(unit_seconds).and_then(|(count, unit)| count.checked_mul(unit));
        let seconds = seconds.filter(|seconds| seconds.checked_mul(1000).is_some());
        seconds
            .map(|seconds| Age(Duration::from_secs(seconds)))
            .ok_or_else(|| format!("{text:?} is no length of time; write for instance 30s, 90m, 24h or 7d"))
    }
}

fn key_and_value(text: &str) -> Result<(String, String), String> {
    let (key, value) = text
        .split_once('=')
        .filter(|(key, _)| !key.is_empty())
        .ok_or_else(|| format!("{text:?} is no key and value; write for instance loss=0.25"))?;
    Ok((key.to_owned(), value.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_have_units() {
        for (text, seconds) in [("30s", 30), ("90m", 5400), ("5min", 300), ("24h", 86_400), ("7d", 604_800), ("0s", 0)]
        {
            assert_eq!(text.parse::<Age>().unwrap().0.as_secs(), seconds, "{text}");
        }
        for bad in ["", "h", "24", "-1h", "1w", "18446744073709551615d", "1.5h", "1é"] {
            assert!(bad.parse::<Age>().is_err(), "{bad}");
        }
    }

    #[test]
    fn metadata_is_a_key_and_any_value() {
        assert_eq!(key_and_value("a=b=c"), Ok(("a".to_owned(), "b=c".to_owned())));
        assert_eq!(key_and_value("a="), Ok(("a".to_owned(), String::new())));
        assert!(key_and_value("=b").is_err() && key_and_value("ab").is_err());
    }
}
