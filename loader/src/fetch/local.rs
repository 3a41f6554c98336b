//! Files of this machine, read straight into the landing memory: no worker, no copy on the way.
//!
//! The file is opened once a load and compared with the version that was resolved: when it is opened, after every
//! chunk, and once more when all is read. A file that is written to meanwhile is an error, never a mixture.

use std::collections::HashMap;
use std::fs::File;
use std::io::ErrorKind;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use longshore_memory::Landing;
use longshore_types::{Artifact, Code, Error, Result};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::reader::Wanted;

/// Bytes of one read: a cancelled load stops within one.
const READ_BYTES: usize = 4 << 20;
/// Open files kept by one load; beyond it they are opened for each chunk.
const OPEN_FILES_MAX: usize = 256;

/// The files that a load has open.
#[derive(Default)]
pub(super) struct LocalFiles {
    open: Mutex<HashMap<String, OpenFile>>,
}

/// What the file must be, and the file.
type OpenFile = (Arc<Artifact>, Arc<File>);

impl LocalFiles {
    /// Reads what is wanted of a chunk.
    ///
    /// # Errors
    /// [`Code::NotFound`] and [`Code::PermissionDenied`] for the file, [`Code::FailedPrecondition`] when it changed.
    pub(super) fn read(
        &self,
        path: &Path,
        wanted: &Wanted<'_>,
        landing: &mut Landing,
        token: &CancellationToken,
    ) -> Result<()> {
        let artifact = wanted.key.artifact();
        let file = self.open(path, artifact)?;
        let range = wanted.file_range();
        let len = landing.len();
        let mut at = 0;
        while at < len {
            if token.is_cancelled() {
                return Err(Error::new(Code::Cancelled, "the load was given up"));
            }
            let mut slices = landing.slices_mut(at..(at + READ_BYTES).min(len));
            match rustix::io::preadv(file.as_fd(), &mut slices, range.start + at as u64) {
                Ok(0) => return Err(changed(artifact, "it ends too early")),
                Ok(count) => at += count,
                Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(failed(path, "read", &errno.into())),
            }
        }
        check_version(&file, path, artifact)
    }

    /// Compares every open file with its version, for the last time.
    ///
    /// # Errors
    /// [`Code::FailedPrecondition`] when one changed.
    pub(super) fn check(&self) -> Result<()> {
        let open = std::mem::take(&mut *self.open.lock());
        open.iter().try_for_each(|(path, (artifact, file))| check_version(file, Path::new(path), artifact))
    }

    fn open(&self, path: &Path, artifact: &Arc<Artifact>) -> Result<Arc<File>> {
        let name = path.to_string_lossy().into_owned();
        if let Some((_, file)) = self.open.lock().get(&name) {
            return Ok(file.clone());
        }
        let file = Arc::new(File::open(path).map_err(|error| failed(path, "open", &error))?);
        check_version(&file, path, artifact)?;
        let mut open = self.open.lock();
        if open.len() < OPEN_FILES_MAX {
            open.insert(name, (artifact.clone(), file.clone()));
        }
        Ok(file)
    }
}

/// The version text of a local file, exactly as the origin writes it; a test holds the two together.
fn check_version(file: &File, path: &Path, artifact: &Artifact) -> Result<()> {
    let metadata = file.metadata().map_err(|error| failed(path, "look at", &error))?;
    let mtime_ns = i128::from(metadata.mtime()) * 1_000_000_000 + i128::from(metadata.mtime_nsec());
    let now = format!("mtime:{}-{mtime_ns}-{}", metadata.size(), metadata.ino());
    if now == artifact.version().as_str() && metadata.size() == artifact.size_bytes() {
        return Ok(());
    }
    Err(changed(artifact, &format!("it was {} and is {now}", artifact.version())))
}

fn changed(artifact: &Artifact, how: &str) -> Error {
    let url = artifact.url();
    Error::new(Code::FailedPrecondition, format!("{url} changed since it was resolved ({how}); load it again"))
}

fn failed(path: &Path, doing: &str, error: &std::io::Error) -> Error {
    let code = match error.kind() {
        ErrorKind::NotFound | ErrorKind::NotADirectory => Code::NotFound,
        ErrorKind::PermissionDenied => Code::PermissionDenied,
        _ => Code::Unavailable,
    };
    Error::new(code, format!("cannot {doing} {}: {error}", path.display()))
}
