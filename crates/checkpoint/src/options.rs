//! What a user can set about saving checkpoints. Flags, configuration keys and variables are declared here once.

use std::path::{Path, PathBuf};
use std::time::Duration;

use longshore_memory::memory_limit_bytes;
use longshore_runtime::env;
use longshore_types::{ByteSize, Code, Error, Result};

use crate::SLAB_BYTES;

/// Share of the memory limit that slabs take by default: a quarter, at most [`MEMORY_DEFAULT_BYTES_MAX`].
const MEMORY_DEFAULT_DIVISOR: u64 = 4;
const MEMORY_DEFAULT_BYTES_MAX: u64 = 64 << 30;
/// Two slabs are the least that can be filled and flushed in turn.
const MEMORY_BYTES_MIN: u64 = 2 * SLAB_BYTES;

/// The options of saving checkpoints.
#[derive(clap::Args, Clone, Debug)]
#[command(next_help_heading = "Checkpoints")]
pub struct CheckpointOptions {
    /// Folder where checkpoints lie until they are in the origin; a fast local disk [default: longshore/checkpoints in the user's cache folder]
    #[arg(long = "checkpoint-dir", env = env::CHECKPOINT_DIR, value_name = "DIR")]
    pub dir: Option<PathBuf>,

    /// Shared memory that checkpoints are staged in [default: a quarter of the memory, at most 64GiB]
    #[arg(long = "checkpoint-memory", env = env::CHECKPOINT_MEMORY, value_name = "SIZE")]
    pub memory: Option<ByteSize>,

    /// Budget of the checkpoint folder [default: what its disk has, less a twentieth; another twentieth, at most 10GiB, then stays free]
    #[arg(long = "checkpoint-disk", env = env::CHECKPOINT_DISK, value_name = "SIZE")]
    pub disk: Option<ByteSize>,

    /// Folder of the shared memory that training processes copy into [default: a folder in /dev/shm]
    #[arg(long = "checkpoint-slab-dir", env = env::CHECKPOINT_SLAB_DIR, value_name = "DIR")]
    pub slab_dir: Option<PathBuf>,

    /// Committed checkpoints of a run whose bytes stay on this node
    #[arg(long = "checkpoint-keep-local", env = env::CHECKPOINT_KEEP_LOCAL, value_name = "COUNT", default_value_t = 1)]
    pub keep_local: u32,

    /// Parts that are uploaded at once
    #[arg(long = "checkpoint-uploads", env = env::CHECKPOINT_UPLOADS, value_name = "COUNT", default_value_t = 8, value_parser = parse_uploads)]
    pub uploads: usize,

    /// Size of an uploaded part, in whole MiB
    #[arg(long = "checkpoint-part-bytes", env = env::CHECKPOINT_PART_BYTES, value_name = "SIZE", default_value = "32MiB")]
    pub part_bytes: ByteSize,

    /// How long a training process may take to come back after this one was restarted, in milliseconds
    #[arg(long = "checkpoint-resume-wait-ms", value_name = "MS", default_value_t = 30_000)]
    pub resume_wait_ms: u64,

    /// A process of one user's own beside a daemon: it has a folder of its own under `dir`, which others take over when it
    /// is killed.
    #[arg(skip)]
    pub private: bool,
}

fn parse_uploads(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(count @ 1..=256) => Ok(count),
        _ => Err(format!("{text:?} is not a number from 1 to 256")),
    }
}

impl Default for CheckpointOptions {
    fn default() -> Self {
        CheckpointOptions {
            dir: None,
            memory: None,
            disk: None,
            slab_dir: None,
            keep_local: 1,
            uploads: 8,
            part_bytes: ByteSize(32 << 20),
            resume_wait_ms: 30_000,
            private: false,
        }
    }
}

impl CheckpointOptions {
    /// The folder that is shared by all processes: as set, else `longshore/checkpoints` in `$XDG_CACHE_HOME` or `~/.cache`.
    ///
    /// # Errors
    /// [`Code::InvalidArgument`] when nothing names one.
    pub fn base_folder(&self) -> Result<PathBuf> {
        if let Some(folder) = &self.dir {
            return std::path::absolute(folder).map_err(|error| {
                Error::new(Code::InvalidArgument, format!("--checkpoint-dir {}: {error}", folder.display()))
            });
        }
        let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|path: &PathBuf| path.is_absolute());
        let base = absolute("XDG_CACHE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".cache")));
        base.map(|base| base.join("longshore").join("checkpoints")).ok_or_else(|| {
            Error::new(
                Code::InvalidArgument,
                "no folder for checkpoints: set --checkpoint-dir, neither HOME nor XDG_CACHE_HOME is set",
            )
        })
    }

    /// The slab budget: as set, else a share of what this process may have.
    pub fn memory_budget_bytes(&self) -> u64 {
        let default = || (memory_limit_bytes() / MEMORY_DEFAULT_DIVISOR).min(MEMORY_DEFAULT_BYTES_MAX);
        self.memory.map_or_else(default, |size| size.0).max(MEMORY_BYTES_MIN)
    }

    /// Where slabs are, for a process whose spool is `spool_folder`. The same after a restart, different for other folders.
    pub fn slab_folder(&self, spool_folder: &Path) -> PathBuf {
        let name = slab_folder_name(spool_folder);
        match &self.slab_dir {
            Some(folder) => folder.join(name),
            None => Path::new("/dev/shm").join(name),
        }
    }

    pub(crate) fn resume_wait(&self) -> Duration {
        Duration::from_millis(self.resume_wait_ms)
    }
}

/// `longshore-<uid>-<hash of the folder>`.
fn slab_folder_name(spool_folder: &Path) -> String {
    use std::os::unix::ffi::OsStrExt;
    let hash = longshore_types::BlockChecksum::of(spool_folder.as_os_str().as_bytes());
    format!("longshore-{}-{hash}", rustix::process::getuid().as_raw())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[derive(clap::Parser)]
    struct Program {
        #[command(flatten)]
        options: CheckpointOptions,
    }

    #[test]
    fn the_defaults_of_the_command_line_are_those_of_the_library() {
        let parsed = <Program as clap::Parser>::parse_from(["program"]).options;
        assert_eq!(format!("{parsed:?}"), format!("{:?}", CheckpointOptions::default()));
    }

    #[test]
    fn slab_folders_differ_by_spool() {
        let options = CheckpointOptions::default();
        let one = options.slab_folder(Path::new("/a"));
        assert_eq!(one, options.slab_folder(Path::new("/a")));
        assert_ne!(one, options.slab_folder(Path::new("/b")));
        assert!(one.starts_with("/dev/shm"));
    }
}
