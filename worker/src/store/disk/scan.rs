//! The start-up scan: every file under `chunks/` is in the index afterwards, or gone.

use std::fs::{self, File};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use longshore_types::{ChunkId, Code, Error, Result};
use parking_lot::Mutex;

use super::not_writable;
use crate::metrics::Metrics;
use crate::store::format::{self, FormatError};
use crate::store::index::Index;

/// Most threads that scan: more do not make a disk faster.
const THREADS_MAX: usize = 16;

/// Empties `tmp/`, reads the trailer of each chunk file and drops the files that are not whole or not ours.
///
/// # Errors
/// [`Code::PermissionDenied`] when the folders cannot be listed.
pub fn rebuild(folder: &Path, metrics: &Metrics) -> Result<Index> {
    for entry in fs::read_dir(folder.join("tmp")).map_err(|error| not_writable(folder, error))?.flatten() {
        drop_file(&entry.path(), "temporary", metrics);
    }
    let index = Mutex::new(Index::default());
    let failures = in_parallel((0..=255u8).collect(), |first| {
        let fan_out = folder.join("chunks").join(format!("{first:02x}"));
        scan_folder(&fan_out, &index, metrics).err().map(|error| (fan_out, error))
    });
    if let Some((fan_out, error)) = failures.into_iter().next() {
        return Err(Error::new(Code::PermissionDenied, format!("cannot list {}: {error}", fan_out.display())));
    }
    Ok(index.into_inner())
}

fn scan_folder(folder: &Path, index: &Mutex<Index>, metrics: &Metrics) -> std::io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        match check_file(&path) {
            Ok((id, bytes)) => {
                index.lock().insert(id, bytes);
            }
            Err(reason) => drop_file(&path, reason, metrics),
        }
    }
    Ok(())
}

/// The id and size of a good chunk file, or why it is none.
fn check_file(path: &Path) -> Result<(ChunkId, u64), &'static str> {
    let name = path.file_name().and_then(|name| name.to_str()).and_then(ChunkId::parse).ok_or("foreign")?;
    let trailer = File::open(path).map_err(FormatError::from).and_then(|file| format::read(&file));
    match trailer {
        // The id covers URL, version and index: a renamed file does not become another chunk.
        Ok(trailer) if trailer.key.id() == name => Ok((name, format::file_bytes(&trailer.key))),
        Ok(_) | Err(FormatError::Foreign) => Err("foreign"),
        Err(FormatError::Torn(_)) => Err("torn"),
        Err(FormatError::Io(_)) => Err("unreadable"),
    }
}

fn drop_file(path: &Path, reason: &str, metrics: &Metrics) {
    metrics.disk_dropped.with_label_values(&[reason]).inc();
    if let Err(error) = fs::remove_file(path) {
        metrics.disk_errors.with_label_values(&["unlink"]).inc();
        tracing::warn!(path = %path.display(), reason, %error, "file in the cache folder cannot be dropped");
    } else {
        tracing::debug!(path = %path.display(), reason, "file in the cache folder dropped");
    }
}

/// Runs `work` over `items` on a few threads and collects what it gives.
pub fn in_parallel<T: Send + Sync + Copy, R: Send>(items: Vec<T>, work: impl Fn(T) -> Option<R> + Sync) -> Vec<R> {
    let threads = std::thread::available_parallelism().map_or(4, |cores| cores.get() * 4).min(THREADS_MAX);
    let next = AtomicUsize::new(0);
    let found = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..threads.min(items.len()) {
            scope.spawn(|| {
                while let Some(&item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if let Some(result) = work(item) {
                        found.lock().push(result);
                    }
                }
            });
        }
    });
    found.into_inner()
}
