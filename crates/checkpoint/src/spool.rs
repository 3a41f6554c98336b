//! The folder on this node's disk where checkpoints lie until they are in the origin.
//!
//! `<folder>/{lock, attempts/<attempt>/...}`. One process at a time has it, by a lock on `lock` that the kernel drops with the
//! process. Private processes have folders of their own under `<base>/private/`; those of processes that were killed are
//! taken over by the next one that starts. Room is set aside before bytes come, against a budget, and a floor of free space when
//! nobody chose the budget.

mod adopt;
mod lock;
mod room;

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use longshore_types::checkpoint::AttemptId;
use longshore_types::{Code, Error, Result};

use self::lock::FolderLock;
pub(crate) use self::room::Reserved;
use self::room::{Limits, Space};
use crate::metrics::Metrics;
use crate::options::CheckpointOptions;

const ATTEMPTS_NAME: &str = "attempts";
const SET_ASIDE_NAME: &str = "damaged";
/// Most of them that are told.
const SET_ASIDE_NOTES_MAX: usize = 10;
const PRIVATE_NAME: &str = "private";

/// The folder, locked.
#[derive(Debug)]
pub(crate) struct Spool {
    folder: PathBuf,
    attempts: PathBuf,
    space: Arc<Space>,
    /// Folders of killed processes that were taken over: their slabs lie under names made from these.
    adopted: Vec<PathBuf>,
    is_private: bool,
    lock: FolderLock,
}

impl Spool {
    /// Locks the folder, makes what is missing in it, and takes over what killed processes left. Blocks the thread.
    ///
    /// # Errors
    /// `FailedPrecondition` naming the process that has the folder, `PermissionDenied` when it cannot be written.
    pub(crate) fn open(options: &CheckpointOptions, metrics: &Metrics) -> Result<Spool> {
        let base = options.base_folder()?;
        let (folder, lock) =
            if options.private { adopt::private_folder(&base)? } else { (base.clone(), lock_folder(&base)?) };
        let attempts = folder.join(ATTEMPTS_NAME);
        make_folder(&attempts)?;
        sync_folder(&folder)?;
        let adopted = adopt::adopt(&base.join(PRIVATE_NAME), &folder, &attempts);
        let limits = Limits::measure(&folder, options.disk.map(|size| size.0))?;
        let space = Space::new(&folder, limits, metrics);
        Ok(Spool { folder, attempts, space: Arc::new(space), adopted, is_private: options.private, lock })
    }

    /// The folder.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Folders of other processes whose attempts are here now.
    pub(crate) fn adopted(&self) -> &[PathBuf] {
        &self.adopted
    }

    pub(crate) fn attempts_folder(&self) -> &Path {
        &self.attempts
    }

    pub(crate) fn attempt_folder(&self, attempt: &AttemptId) -> PathBuf {
        self.attempts.join(attempt.to_string())
    }

    /// The folders of all attempts. Blocks the thread.
    pub(crate) fn attempt_folders(&self) -> Result<Vec<PathBuf>> {
        let listed = std::fs::read_dir(&self.attempts).and_then(|entries| {
            entries.map(|entry| entry.map(|entry| entry.path())).collect::<io::Result<Vec<PathBuf>>>()
        });
        listed.map_err(|error| disk_error("list", &self.attempts, &error))
    }

    /// Moves an attempt whose journal is damaged out of the way: nothing of it is removed.
    pub(crate) fn set_aside(&self, attempt_folder: &Path) -> Result<PathBuf> {
        let aside = self.folder.join(SET_ASIDE_NAME);
        make_folder(&aside)?;
        let name = attempt_folder.file_name().unwrap_or_default();
        let target = aside.join(name);
        let moved = std::fs::rename(attempt_folder, &target);
        moved.map_err(|error| disk_error("set aside", attempt_folder, &error))?;
        Ok(target)
    }

    /// What was set aside, at this start or an earlier one, in words: it stays until a person has looked at it.
    pub(crate) fn set_aside_notes(&self) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(self.folder.join(SET_ASIDE_NAME)) else { return Vec::new() };
        let told = |entry: std::fs::DirEntry| {
            let path = entry.path();
            format!(
                "the journal of attempt {} is damaged: it lies in {}, with its bytes; remove it when it is not needed",
                entry.file_name().to_string_lossy(),
                path.display()
            )
        };
        entries.flatten().take(SET_ASIDE_NOTES_MAX).map(told).collect()
    }

    /// Sets room aside; `None` when there is none now.
    ///
    /// # Errors
    /// `Exhausted` when so much can never fit.
    pub(crate) fn try_reserve(&self, bytes: u64) -> Result<Option<Reserved>> {
        self.space.try_reserve(bytes)
    }

    /// Why [`Spool::try_reserve`] gives nothing for so many bytes, in words. Blocks the thread for a moment.
    pub(crate) fn shortage(&self, bytes: u64) -> String {
        self.space.shortage(bytes)
    }

    /// Counts bytes that are on the disk already.
    pub(crate) fn reserve_written(&self, bytes: u64) -> Reserved {
        self.space.reserve_written(bytes)
    }

    /// Waits a moment, or until room came free; false when it is pointless. Blocks the thread.
    pub(crate) fn wait_for_room(&self) -> bool {
        self.space.wait();
        true
    }

    /// Changes whenever room comes free.
    pub(crate) fn room_freed(&self) -> tokio::sync::watch::Receiver<u64> {
        self.space.freed()
    }

    /// Nothing is written any more: the next process may have the folder.
    pub(crate) fn release(&self) {
        self.lock.release();
    }

    /// The process ends in order: a private folder that is empty goes.
    pub(crate) fn tidy(&self) {
        if self.is_private && self.lock.is_held() && std::fs::remove_dir(&self.attempts).is_ok() {
            // Its lock file and itself; when either fails, the next process finds an empty folder and removes it.
            let _ = std::fs::remove_file(self.folder.join(lock::LOCK_NAME));
            let _ = std::fs::remove_dir(&self.folder);
        }
    }
}

fn lock_folder(folder: &Path) -> Result<FolderLock> {
    make_folder(folder)?;
    FolderLock::take(folder)
}

fn make_folder(folder: &Path) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    // Checkpoints are as private as the memory they came from.
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder);
    made.map_err(|error| disk_error("create", folder, &error))
}

/// Makes the names in a folder durable. Blocks the thread.
pub(crate) fn sync_folder(folder: &Path) -> Result<()> {
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(|error| disk_error("sync", folder, &error))
}

/// An error of the disk, with what was being done to which file.
pub(crate) fn disk_error(what: &str, path: &Path, error: &io::Error) -> Error {
    let (code, advice) = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => (Code::Exhausted, "; free space on that disk"),
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            (Code::PermissionDenied, "; choose another --checkpoint-dir")
        }
        io::ErrorKind::NotFound => (Code::NotFound, ""),
        _ => (Code::Internal, ""),
    };
    let source = io::Error::new(error.kind(), error.to_string());
    Error::new(code, format!("cannot {what} {}: {error}{advice}", path.display())).with_source(source)
}

#[cfg(test)]
mod tests;
