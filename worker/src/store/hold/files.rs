//! The files of what is held: found, opened, removed.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use longshore_types::checkpoint::AttemptId;
use longshore_types::{ChunkId, ChunkKey, Result};

use crate::metrics::Metrics;
use crate::store::disk::{DiskChunk, not_writable};
use crate::store::format;

/// A good file.
pub struct Found {
    pub attempt: AttemptId,
    pub id: ChunkId,
    pub bytes: u64,
    pub modified: SystemTime,
}

/// What lies in the folder. Files that are not whole are dropped; what is not ours is left alone.
///
/// # Errors
/// When the folder cannot be made or listed.
pub fn scan(folder: &Path, metrics: &Metrics) -> Result<Vec<Found>> {
    fs::create_dir_all(folder).map_err(|error| not_writable(folder, error))?;
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(|error| not_writable(folder, error))?.flatten() {
        let name = entry.file_name();
        let Some(attempt) = name.to_str().and_then(|name| AttemptId::parse(name).ok()) else { continue };
        let files = fs::read_dir(entry.path()).map_err(|error| not_writable(&entry.path(), error))?;
        let before = found.len();
        for file in files.flatten() {
            match check(&file.path()) {
                Some((id, bytes, modified)) => found.push(Found { attempt, id, bytes, modified }),
                None => {
                    tracing::warn!(path = %file.path().display(), "a held chunk is not whole; dropped");
                    metrics.disk_dropped.with_label_values(&["torn_hold"]).inc();
                    remove(&file.path(), metrics);
                }
            }
        }
        if found.len() == before {
            // Empty: it is of no use, and fails when it is not.
            let _ = fs::remove_dir(entry.path());
        }
    }
    Ok(found)
}

fn check(path: &Path) -> Option<(ChunkId, u64, SystemTime)> {
    let id = ChunkId::parse(path.file_name()?.to_str()?)?;
    let file = File::open(path).ok()?;
    let trailer = format::read(&file).ok()?;
    let modified = file.metadata().ok()?.modified().ok()?;
    (trailer.key.id() == id).then(|| (id, format::file_bytes(&trailer.key), modified))
}

/// Which chunk a file says that it is.
pub fn identify(path: &Path) -> Option<ChunkKey> {
    File::open(path).ok().and_then(|file| format::read(&file).ok()).map(|trailer| trailer.key)
}

/// The file of a chunk, its identity compared.
pub fn open(path: &Path, key: &ChunkKey) -> Option<DiskChunk> {
    let file = File::open(path).ok()?;
    let trailer = format::read(&file).ok()?;
    (trailer.key == *key).then(|| DiskChunk { file: Arc::new(file), checksums: trailer.checksums })
}

/// Whether this is the file that has the name.
pub fn is_at(file: &File, path: &Path) -> bool {
    match (file.metadata(), fs::metadata(path)) {
        (Ok(open), Ok(named)) => (open.dev(), open.ino()) == (named.dev(), named.ino()),
        _ => false,
    }
}

/// Removes a file; one that is gone already is as good.
pub fn remove(path: &Path, metrics: &Metrics) {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            metrics.disk_errors.with_label_values(&["unlink"]).inc();
            tracing::warn!(path = %path.display(), %error, "a held chunk cannot be removed");
        }
        _ => {}
    }
}

/// Removes the files of an attempt and its folder.
pub fn remove_folder<'a>(folder: &Path, ids: impl Iterator<Item = &'a ChunkId>, metrics: &Metrics) {
    ids.for_each(|id| remove(&folder.join(id.to_string()), metrics));
    // A chunk that is coming in just now removes its file by itself, and leaves an empty folder to the next start.
    let _ = fs::remove_dir(folder);
}
