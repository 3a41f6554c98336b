//! Folders of private processes: making one, and taking over those of processes that were killed.

use std::path::{Path, PathBuf};

use longshore_types::checkpoint::AttemptId;
use longshore_types::{Code, Error, Result};
use uuid::Uuid;

use super::lock::{FolderLock, LOCK_NAME};
use super::{ATTEMPTS_NAME, PRIVATE_NAME, Spool, disk_error, make_folder, sync_folder};

/// Where recoveries lie until all of their bytes are synced: nothing of this was acknowledged to anybody.
const RECOVERING_NAME: &str = "recovering";

/// Between making a folder and locking it somebody may take it for one that was left: then another one is made.
const TRIES: usize = 8;

/// A new folder under `<base>/private/`, locked.
pub(super) fn private_folder(base: &Path) -> Result<(PathBuf, FolderLock)> {
    for _ in 0..TRIES {
        let folder = base.join(PRIVATE_NAME).join(Uuid::new_v4().to_string());
        make_folder(&folder)?;
        if let Ok(lock) = FolderLock::take(&folder)
            && lock.is_held()
        {
            return Ok((folder, lock));
        }
    }
    let message =
        format!("folders under {} are taken away as fast as they are made", base.join(PRIVATE_NAME).display());
    Err(Error::new(Code::Unavailable, message))
}

/// Moves the attempts of every folder in `private` that nobody holds into `attempts`. What cannot be taken over stays where
/// it is, and is told. Gives the folders that were taken over.
pub(super) fn adopt(private: &Path, own: &Path, attempts: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(private) else { return Vec::new() };
    let mut adopted = Vec::new();
    for folder in entries.flatten().map(|entry| entry.path()).filter(|folder| folder != own && folder.is_dir()) {
        // Somebody's who lives; or removed just now.
        let Ok(lock) = FolderLock::take(&folder) else { continue };
        if !lock.is_held() {
            continue;
        }
        match take_over(&folder, attempts) {
            Ok(count) => {
                if count > 0 {
                    tracing::info!(folder = %folder.display(), attempts = count, "took over checkpoints of a process that is gone");
                }
                adopted.push(folder);
            }
            Err(error) => {
                tracing::warn!(folder = %folder.display(), %error, "checkpoints of a process that is gone cannot be taken over");
            }
        }
    }
    adopted
}

impl Spool {
    /// An empty folder for a recovery, alone in the one that goes when it ends. Blocks the thread.
    pub(crate) fn new_recovery(&self, attempt: &AttemptId) -> Result<PathBuf> {
        let own = self.folder.join(RECOVERING_NAME).join(Uuid::new_v4().to_string());
        let folder = own.join(attempt.to_string());
        make_folder(&folder)?;
        Ok(folder)
    }

    /// Removes recoveries that a process did not end. Blocks the thread.
    pub(crate) fn clear_recoveries(&self) -> Result<()> {
        remove_all(&self.folder.join(RECOVERING_NAME))
    }
}

fn remove_all(folder: &Path) -> Result<()> {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(disk_error("remove", folder, &error)),
        _ => Ok(()),
    }
}

fn take_over(folder: &Path, attempts: &Path) -> Result<usize> {
    let theirs = folder.join(ATTEMPTS_NAME);
    let mut count = 0;
    for path in std::fs::read_dir(&theirs).into_iter().flatten().flatten().map(|entry| entry.path()) {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if AttemptId::parse(name).is_err() {
            continue;
        }
        std::fs::rename(&path, attempts.join(name)).map_err(|error| disk_error("take over", &path, &error))?;
        count += 1;
    }
    sync_folder(attempts)?;
    // Only what is empty goes: a damaged attempt that was set aside keeps its folder.
    let _ = std::fs::remove_dir(&theirs);
    let _ = remove_all(&folder.join(RECOVERING_NAME));
    let _ = std::fs::remove_file(folder.join(LOCK_NAME));
    let _ = std::fs::remove_dir(folder);
    Ok(count)
}
