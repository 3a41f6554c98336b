//! Listings kept in the cache folder: after a restart, what is cached can be served also while the origin is away.
//!
//! One JSON file a URL under `meta/`, at most [`FILES_MAX`]. They are never fresh: the origin is asked first. Saving is
//! best effort; a file that cannot be read or is not valid is as if it were not there.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use longshore_types::{Artifact, BlockChecksum, Resolved, ResolvedFile, names};
use serde::{Deserialize, Serialize};

/// Most listings that are kept; the oldest go at the next start.
const FILES_MAX: usize = 10_000;
/// Largest file that is written or read, in bytes: a listing of 100,000 files.
const FILE_BYTES_MAX: u64 = 64 << 20;

#[derive(Serialize, Deserialize)]
struct SavedList {
    url: String,
    revision: String,
    files: Vec<SavedFile>,
}

#[derive(Serialize, Deserialize)]
struct SavedFile {
    name: String,
    artifact: Artifact,
}

/// The folder of saved listings.
#[derive(Debug, Clone)]
pub struct SavedLists {
    folder: PathBuf,
}

impl SavedLists {
    /// Opens `meta/` in the cache folder and drops what is too much.
    pub fn open(cache_folder: &Path) -> std::io::Result<SavedLists> {
        let folder = cache_folder.join("meta");
        fs::create_dir_all(&folder)?;
        let mut files: Vec<_> = fs::read_dir(&folder)?
            .flatten()
            .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
            .collect();
        if files.len() > FILES_MAX {
            files.sort();
            for (_, path) in files.iter().take(files.len() - FILES_MAX) {
                fs::remove_file(path)?;
            }
        }
        Ok(SavedLists { folder })
    }

    /// Writes a listing. Blocks.
    pub fn save(&self, resolved: &Resolved) -> std::io::Result<()> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let files = resolved
            .files
            .iter()
            .map(|file| SavedFile { name: file.name.clone(), artifact: (*file.artifact).clone() })
            .collect();
        let list = SavedList { url: resolved.url.clone(), revision: resolved.revision.clone(), files };
        let json = serde_json::to_vec(&list)?;
        if json.len() as u64 > FILE_BYTES_MAX {
            return Ok(());
        }
        let temporary = self.folder.join(format!("tmp-{}", NUMBER.fetch_add(1, Ordering::Relaxed)));
        fs::write(&temporary, json)?;
        fs::rename(temporary, self.path(&resolved.url))
    }

    /// Reads the listing of a URL. Blocks.
    pub fn load(&self, url: &str) -> Option<Resolved> {
        let path = self.path(url);
        if fs::metadata(&path).ok()?.len() > FILE_BYTES_MAX {
            return None;
        }
        let list: SavedList = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
        let is_valid = list.url == url
            && list.files.iter().all(|file| {
                let checked =
                    Artifact::new(file.artifact.url(), file.artifact.version().clone(), file.artifact.size_bytes());
                names::check_relative(&file.name, url).is_ok() && checked.is_ok()
            });
        let file = |file: SavedFile| ResolvedFile { name: file.name, artifact: Arc::new(file.artifact) };
        is_valid.then(|| Resolved {
            url: list.url,
            revision: list.revision,
            files: list.files.into_iter().map(file).collect(),
        })
    }

    /// Drops the listing of a URL.
    pub fn remove(&self, url: &str) {
        // Not there is as good as removed; a listing that stays is asked for anew before it is used.
        let _ = fs::remove_file(self.path(url));
    }

    /// The URL is written in the file too, so two URLs with one checksum do not serve each other.
    fn path(&self, url: &str) -> PathBuf {
        self.folder.join(format!("{}.json", BlockChecksum::of(url.as_bytes())))
    }
}

#[cfg(test)]
mod tests {
    use longshore_types::Version;

    use super::*;

    #[test]
    fn listings_survive_and_damage_is_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let saved = SavedLists::open(folder.path()).unwrap();
        let artifact = Artifact::new("s3://b/m/x", Version::new("etag:\"1\"").unwrap(), 5).unwrap();
        let file = ResolvedFile { name: "x".to_owned(), artifact: Arc::new(artifact) };
        let list = Resolved { url: "s3://b/m".to_owned(), revision: "r".to_owned(), files: vec![file] };
        saved.save(&list).unwrap();
        assert_eq!(SavedLists::open(folder.path()).unwrap().load("s3://b/m"), Some(list));
        assert_eq!(saved.load("s3://b/other"), None);
        let text = fs::read_to_string(saved.path("s3://b/m")).unwrap();
        fs::write(saved.path("s3://b/m"), text.replace("\"name\":\"x\"", "\"name\":\"../x\"")).unwrap();
        assert_eq!(saved.load("s3://b/m"), None);
        fs::write(saved.path("s3://b/m"), "{").unwrap();
        assert_eq!(saved.load("s3://b/m"), None);
        saved.remove("s3://b/m");
    }
}
