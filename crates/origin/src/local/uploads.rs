//! Uploads into a folder: a file of the object's name and an id, into which parts are written at their places. All of it
//! blocks. What [`part`] has answered for is on the disk.

use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use longshore_types::{Code, Version};

use super::temporary::{self, Kind};
use super::{files, io_fault};
use crate::body::Body;
use crate::fault::{Attempt, Fault};
use crate::write::{PartId, UploadId, UploadLimits};

/// The size of every part but the last: the place of a part follows from its index.
pub(super) const PART_BYTES: u64 = 32 << 20;

/// Parts may come in any order, so their size is fixed.
pub(super) const LIMITS: UploadLimits =
    UploadLimits { part_bytes_min: PART_BYTES, part_bytes_max: PART_BYTES, parts_max: 1 << 20 };

/// Deepest folder that is looked into for unfinished uploads.
const DEPTH_MAX: usize = 64;

/// Begins an upload.
pub(super) fn start(target: &Path) -> Attempt<UploadId> {
    let id = temporary::new_id();
    files::create_beside(target, &id, Kind::Upload)?;
    files::sync_folder_of(target)?;
    Ok(UploadId(id))
}

/// What the id of a whole object begins with, which a process left unfinished: it can only be dropped.
const LEFT_OVER: &str = "left-";

fn path_of(target: &Path, id: &UploadId) -> Attempt<PathBuf> {
    let (text, kind) = match id.0.strip_prefix(LEFT_OVER) {
        Some(text) => (text, Kind::Object),
        None => (id.0.as_str(), Kind::Upload),
    };
    if !temporary::is_id(text) {
        let text = format!("the upload of {} is not one that a local folder gave", target.display());
        return Err(Fault::fatal(Code::InvalidArgument, text));
    }
    Ok(temporary::path_of(target, text, kind))
}

/// Writes one part.
pub(super) fn part(target: &Path, id: &UploadId, index: u32, body: &Body) -> Attempt<PartId> {
    let path = path_of(target, id)?;
    files::write_at(&path, u64::from(index) * PART_BYTES, body.pieces())?;
    Ok(PartId(body.len_bytes().to_string()))
}

/// Makes the file of its parts; `None` when there is no such upload any more.
pub(super) fn complete(target: &Path, id: &UploadId, parts: &[PartId]) -> Attempt<Option<Version>> {
    let path = path_of(target, id)?;
    let size = size_of(target, parts)?;
    let metadata = match std::fs::metadata(&path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io_fault(&path, "look at", &error)),
    };
    if metadata.size() != size {
        let text = format!(
            "the parts of {} have {size} bytes together and {} were written: send them again",
            target.display(),
            metadata.size()
        );
        return Err(Fault::fatal(Code::FailedPrecondition, text));
    }
    files::rename(&path, target).map(Some)
}

/// The size of the object, when the parts are what these uploads take.
fn size_of(target: &Path, parts: &[PartId]) -> Attempt<u64> {
    let mut size = 0;
    for (index, part) in parts.iter().enumerate() {
        let len: Option<u64> = part.0.parse().ok();
        let is_last = index + 1 == parts.len();
        match len {
            Some(len) if len == PART_BYTES || (is_last && len < PART_BYTES) => size += len,
            _ => {
                let text = format!(
                    "part {index} of {} is {} bytes long and must be {PART_BYTES} (the last may be shorter)",
                    target.display(),
                    len.map_or_else(|| "an unknown number of".to_owned(), |len| len.to_string())
                );
                return Err(Fault::fatal(Code::InvalidArgument, text));
            }
        }
    }
    Ok(size)
}

/// Drops an upload; one that is not there is dropped already.
pub(super) fn abort(target: &Path, id: &UploadId) -> Attempt<()> {
    files::delete(&path_of(target, id)?).map(|_| ())
}

/// An upload that was begun below a folder.
pub(super) struct Unfinished {
    /// Relative to the folder.
    pub name: String,
    pub id: UploadId,
    pub started_ms: u64,
}

/// All uploads below a folder, and whole objects that a process that ended left unfinished. Symbolic links are not followed: no upload is begun behind one.
pub(super) fn unfinished(folder: &Path) -> Attempt<Vec<Unfinished>> {
    let mut found = Vec::new();
    look_into(folder, "", 0, &mut found)?;
    Ok(found)
}

fn look_into(folder: &Path, prefix: &str, depth: usize, found: &mut Vec<Unfinished>) -> Attempt<()> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(()),
        Err(error) => return Err(io_fault(folder, "list", &error)),
    };
    for entry in entries {
        let entry = entry.map_err(|error| io_fault(folder, "list", &error))?;
        let name = entry.file_name();
        let (Some(name), Ok(kind)) = (name.to_str(), entry.file_type()) else { continue };
        if kind.is_dir() && depth < DEPTH_MAX {
            look_into(&entry.path(), &longshore_types::names::join(prefix, name), depth + 1, found)?;
        } else if let Some((target, id, kind)) = temporary::parse(name) {
            let id = match kind {
                Kind::Upload => id.to_owned(),
                Kind::Object => format!("{LEFT_OVER}{id}"),
            };
            found.push(Unfinished {
                name: longshore_types::names::join(prefix, target),
                id: UploadId(id),
                started_ms: entry.metadata().map(|metadata| started_ms(&metadata)).unwrap_or_default(),
            });
        }
    }
    Ok(())
}

/// When a file was made, where the file system knows it, else when it was last written.
fn started_ms(metadata: &std::fs::Metadata) -> u64 {
    let time = metadata.created().or_else(|_| metadata.modified());
    let since = time.ok().and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok());
    since.and_then(|since| since.as_millis().try_into().ok()).unwrap_or_default()
}
