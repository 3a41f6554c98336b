//! All regular files below a folder, following symbolic links, bounded in depth and number.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use longshore_types::{Code, names};

use super::{io_fault, temporary};
use crate::fault::{Attempt, Fault};

/// Deepest folder below the model's own.
const DEPTH_MAX: usize = 64;

/// What was found so far, and how much may be.
struct Found {
    files: Vec<(String, Metadata)>,
    files_max: usize,
}

/// Names relative to `folder`, with what they lead to. Nothing when `folder` is a file or does not exist: then the
/// caller asks for the file itself and reports that. Unfinished writes are left out. Broken links are left out, with a warning naming their target.
pub(super) fn files_below(folder: &Path, files_max: usize) -> Attempt<Vec<(String, Metadata)>> {
    let mut found = Found { files: Vec::new(), files_max };
    match std::fs::metadata(folder) {
        Ok(metadata) if metadata.is_dir() => {
            let mut trail = vec![identity(&metadata)];
            walk(folder, "", &mut trail, &mut found)?;
            Ok(found.files)
        }
        _ => Ok(found.files),
    }
}

/// Device and inode: what tells a folder that was entered before, through whatever link.
fn identity(metadata: &Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

fn walk(folder: &Path, prefix: &str, trail: &mut Vec<(u64, u64)>, found: &mut Found) -> Attempt<()> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        // Deleted between the listing above it and now, as its files may be below.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(io_fault(folder, "list", &error)),
    };
    for entry in entries {
        let path = entry.map_err(|error| io_fault(folder, "list", &error))?.path();
        let base = path.file_name().unwrap_or_default();
        let Some(base) = base.to_str() else {
            let text = format!("the name of {} is not UTF-8: rename or move it", path.display());
            return Err(Fault::fatal(Code::InvalidArgument, text));
        };
        if temporary::is_temporary(base) {
            continue;
        }
        let name = names::join(prefix, base);
        let metadata = match std::fs::metadata(&path) {
            Ok(metadata) => metadata,
            Err(error) => match std::fs::read_link(&path) {
                Ok(target) => {
                    tracing::warn!(path = %path.display(), target = %target.display(), %error, "symbolic link leads nowhere, left out of the model");
                    continue;
                }
                // Deleted between the listing and now: as if it had never been there.
                Err(_) if error.kind() == std::io::ErrorKind::NotFound => continue,
                Err(_) => return Err(io_fault(&path, "look at", &error)),
            },
        };
        if metadata.is_dir() {
            enter(&path, &name, &metadata, trail, found)?;
        } else if metadata.is_file() {
            if found.files.len() >= found.files_max {
                let text = format!("there are more than {} files below {}", found.files_max, folder.display());
                return Err(Fault::fatal(Code::InvalidArgument, text));
            }
            found.files.push((name, metadata));
        }
    }
    Ok(())
}

fn enter(path: &Path, name: &str, metadata: &Metadata, trail: &mut Vec<(u64, u64)>, found: &mut Found) -> Attempt<()> {
    let id = identity(metadata);
    if trail.contains(&id) {
        let text = format!("{} leads back into a folder that holds it: remove that symbolic link", path.display());
        return Err(Fault::fatal(Code::InvalidArgument, text));
    }
    if trail.len() > DEPTH_MAX {
        let text = format!("{} is more than {DEPTH_MAX} folders deep", path.display());
        return Err(Fault::fatal(Code::InvalidArgument, text));
    }
    trail.push(id);
    walk(path, name, trail, found)?;
    trail.pop();
    Ok(())
}
