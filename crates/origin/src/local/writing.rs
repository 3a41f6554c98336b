//! The writing side of local folders. As atomic as a bucket: see `files.rs` and `uploads.rs`.

use std::fs::Metadata;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use async_trait::async_trait;
use longshore_types::{Code, Version, names};

use super::{Local, blocking, files, io_fault, path_of, temporary, uploads, version_of, walk};
use crate::address::Address;
use crate::backend::Backend;
use crate::body::Body;
use crate::fault::{Attempt, Fault};
use crate::stats::count;
use crate::write::{
    ENTRIES_MAX, Entries, Listed, OpenUpload, PartId, PutHow, PutOutcome, Summary, UploadId, UploadLimits, Writes,
};

#[async_trait]
impl Writes for Local {
    async fn put(&self, target: &Address, body: &Body, how: &PutHow) -> Attempt<PutOutcome> {
        count(&self.lane.counters.put_requests, 1);
        let path = path_of(target)?;
        let (body, how) = (body.clone(), how.clone());
        blocking(move || {
            check_name(&path)?;
            files::put(&path, &body, &how)
        })
        .await
    }

    async fn entries(&self, folder: &Address, one_level: bool, _token: Option<&str>) -> Attempt<Entries> {
        count(&self.lane.counters.list_requests, 1);
        let path = path_of(folder)?;
        blocking(move || if one_level { level(&path) } else { below(&path) }).await
    }

    async fn delete(&self, target: &Address) -> Attempt<bool> {
        count(&self.lane.counters.delete_requests, 1);
        let path = path_of(target)?;
        blocking(move || files::delete(&path)).await
    }

    fn upload_limits(&self) -> UploadLimits {
        uploads::LIMITS
    }

    async fn upload_start(&self, target: &Address) -> Attempt<UploadId> {
        count(&self.lane.counters.upload_requests, 1);
        let path = path_of(target)?;
        blocking(move || {
            check_name(&path)?;
            uploads::start(&path)
        })
        .await
    }

    async fn upload_part(&self, target: &Address, id: &UploadId, index: u32, body: &Body) -> Attempt<PartId> {
        count(&self.lane.counters.upload_requests, 1);
        let path = path_of(target)?;
        let (id, body) = (id.clone(), body.clone());
        blocking(move || uploads::part(&path, &id, index, &body)).await
    }

    async fn upload_complete(&self, target: &Address, id: &UploadId, parts: &[PartId]) -> Attempt<Option<Version>> {
        count(&self.lane.counters.upload_requests, 1);
        let path = path_of(target)?;
        let (id, parts) = (id.clone(), parts.to_vec());
        blocking(move || uploads::complete(&path, &id, &parts)).await
    }

    async fn upload_abort(&self, target: &Address, id: &UploadId) -> Attempt<()> {
        count(&self.lane.counters.upload_requests, 1);
        let path = path_of(target)?;
        let id = id.clone();
        blocking(move || uploads::abort(&path, &id)).await
    }

    async fn open_uploads(&self, folder: &Address) -> Attempt<Option<Vec<OpenUpload>>> {
        count(&self.lane.counters.upload_requests, 1);
        let path = path_of(folder)?;
        let found = blocking(move || uploads::unfinished(&path)).await?;
        let open = found.into_iter().map(|upload| OpenUpload {
            url: folder.child(&upload.name).to_string(),
            id: upload.id,
            started_ms: upload.started_ms,
        });
        Ok(Some(open.collect()))
    }

    async fn summary(&self, target: &Address) -> Attempt<Summary> {
        let artifact = self.stat(target).await?;
        Ok(Summary { version: artifact.version().clone(), size_bytes: artifact.size_bytes(), checksum: None })
    }
}

/// A file of such a name would be left out of every listing.
fn check_name(path: &Path) -> Attempt<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    if name.is_empty() || temporary::is_temporary(&name) {
        let text = format!("{} has a name that only unfinished files have", path.display());
        return Err(Fault::fatal(Code::InvalidArgument, text));
    }
    Ok(())
}

fn below(folder: &Path) -> Attempt<Entries> {
    let mut objects = Vec::new();
    for (name, metadata) in walk::files_below(folder, ENTRIES_MAX)? {
        objects.push(listed(name, &metadata)?);
    }
    Ok(Entries { objects, folders: Vec::new(), next: None })
}

fn listed(name: String, metadata: &Metadata) -> Attempt<Listed> {
    let modified_ms = (i128::from(metadata.mtime()) * 1000 + i128::from(metadata.mtime_nsec()) / 1_000_000).max(0);
    Ok(Listed {
        name,
        size_bytes: metadata.size(),
        version: Some(version_of(metadata)?),
        modified_ms: modified_ms.try_into().unwrap_or_default(),
    })
}

/// One level: folders with nothing in them are left out, as a bucket has none.
fn level(folder: &Path) -> Attempt<Entries> {
    let mut level = Entries { objects: Vec::new(), folders: Vec::new(), next: None };
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(level),
        Err(error) => return Err(io_fault(folder, "list", &error)),
    };
    for entry in entries {
        let entry = entry.map_err(|error| io_fault(folder, "list", &error))?;
        let name = entry.file_name();
        let Some(name) = name.to_str().filter(|name| names::check_relative(name, "").is_ok()) else { continue };
        // Gone since, or a link that leads nowhere.
        let Ok(metadata) = std::fs::metadata(entry.path()) else { continue };
        if metadata.is_dir() {
            if has_files(&entry.path(), 0)? {
                level.folders.push(name.to_owned());
            }
        } else if metadata.is_file() && !temporary::is_temporary(name) {
            level.objects.push(listed(name.to_owned(), &metadata)?);
        }
    }
    Ok(level)
}

/// Deepest folder that is looked into for a file.
const DEPTH_MAX: usize = 64;

/// Whether there is any finished file below; most often the first entry is one.
fn has_files(folder: &Path, depth: usize) -> Attempt<bool> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(io_fault(folder, "list", &error)),
    };
    let mut folders = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|error| io_fault(folder, "list", &error))?;
        let Ok(metadata) = std::fs::metadata(entry.path()) else { continue };
        if metadata.is_dir() {
            folders.push(entry.path());
        } else if !entry.file_name().to_str().is_some_and(temporary::is_temporary) {
            return Ok(true);
        }
    }
    for folder in folders {
        if depth < DEPTH_MAX && has_files(&folder, depth + 1)? {
            return Ok(true);
        }
    }
    Ok(false)
}
