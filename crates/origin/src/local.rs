//! Folders and files of this machine. Blocking calls run on tokio's blocking threads, in pieces of bounded size; a
//! buffer is moved into each call and comes back with its bytes, so a dropped read leaves nothing half-written.
//!
//! Symbolic links are followed, also out of the folder: a Hugging Face cache keeps `snapshots/<sha>/<file>` as links
//! into `blobs/`. The version of a file is its size, modification time and inode, taken from the open descriptor.

mod files;
mod temporary;
mod uploads;
mod walk;
mod writing;

use std::fs::{File, Metadata};
use std::io::ErrorKind;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream;
use longshore_types::manifest::FILES_MAX;
use longshore_types::{Artifact, Code, Error, Version};
use rustix::fs::{Advice, fadvise};
use tokio::task::JoinHandle;

use crate::address::Address;
use crate::backend::{Backend, Body, Page};
use crate::fault::{Attempt, Fault};
use crate::lane::Lane;
use crate::options::OriginOptions;
use crate::stats::{Counters, count};
use crate::version::is_attempt;
use crate::write::Writes;

/// Bytes read by one blocking call; at most two such buffers are alive for each read.
const PIECE_BYTES: u64 = 1 << 20;
/// For a shorter range, such as a header, the kernel reads nothing ahead: what is behind it is read by others, and past the
/// page cache.
const READ_AHEAD_BYTES: u64 = 8 << 20;

/// The local disk.
pub(crate) struct Local {
    lane: Lane,
}

impl Local {
    pub(crate) fn new(options: &OriginOptions, counters: Arc<Counters>) -> Self {
        let lane = Lane::new(options, counters);
        lane.reached();
        Local { lane }
    }
}

#[async_trait]
impl Backend for Local {
    async fn stat(&self, target: &Address) -> Attempt<Artifact> {
        count(&self.lane.counters.stat_requests, 1);
        let path = path_of(target)?;
        let url = target.to_string();
        blocking(move || {
            let metadata = std::fs::metadata(&path).map_err(|error| io_fault(&path, "look at", &error))?;
            if metadata.is_dir() {
                return Err(Fault::fatal(Code::NotFound, format!("{} is a folder without any file", path.display())));
            }
            if !metadata.is_file() {
                let text = format!("{} is neither a file nor a folder", path.display());
                return Err(Fault::fatal(Code::InvalidArgument, text));
            }
            Ok(Artifact::new(url, version_of(&metadata)?, metadata.size())?)
        })
        .await
    }

    async fn list(&self, folder: &Address, _token: Option<&str>) -> Attempt<Page> {
        count(&self.lane.counters.list_requests, 1);
        let path = path_of(folder)?;
        let folder = folder.clone();
        blocking(move || {
            let mut files = Vec::new();
            for (name, metadata) in walk::files_below(&path, FILES_MAX)? {
                let artifact = Artifact::new(folder.child(&name).to_string(), version_of(&metadata)?, metadata.size())?;
                files.push((name, artifact));
            }
            Ok(Page { files, next: None, revision: None })
        })
        .await
    }

    async fn open(&self, artifact: &Artifact, range: Range<u64>) -> Attempt<Body> {
        count(&self.lane.counters.read_requests, 1);
        let path = path_of(&Address::parse(artifact.url())?)?;
        let source = Source { path, artifact: artifact.clone() };
        let first = blocking(move || {
            let file = File::open(&source.path).map_err(|error| io_fault(&source.path, "open", &error))?;
            source.check(&file)?;
            if range.end - range.start < READ_AHEAD_BYTES {
                // A hint: without it more is read than was asked for.
                let _ = fadvise(&file, 0, None, Advice::Random);
            }
            Ok(Cursor { file, source, range })
        })
        .await?;
        // One piece is read ahead while the caller works on the one before.
        let pieces = stream::try_unfold(first.read_piece(), |pending| async move {
            match join(pending).await? {
                Some((piece, cursor)) => Ok(Some((piece, cursor.read_piece()))),
                None => Ok(None),
            }
        });
        Ok(pieces.boxed())
    }

    fn lane(&self) -> &Lane {
        &self.lane
    }

    fn writer(&self) -> Option<&dyn Writes> {
        Some(self)
    }
}

/// The file that is read and what it must be.
struct Source {
    path: PathBuf,
    artifact: Artifact,
}

impl Source {
    /// Compares the open file with the version that was resolved.
    fn check(&self, file: &File) -> Attempt<()> {
        let metadata = file.metadata().map_err(|error| io_fault(&self.path, "look at", &error))?;
        let now = version_of(&metadata)?;
        let is_same = if is_attempt(self.artifact.version()) {
            // What is read is compared with the checksums of the commit.
            metadata.size() == self.artifact.size_bytes()
        } else {
            &now == self.artifact.version()
        };
        if is_same {
            return Ok(());
        }
        let text = format!(
            "{} changed since it was resolved: it was {} of {} bytes and is {now}; resolve the model again",
            self.artifact.url(),
            self.artifact.version(),
            self.artifact.size_bytes()
        );
        Err(Fault::fatal(Code::FailedPrecondition, text))
    }
}

/// An open file, and what is still to be read of it.
struct Cursor {
    file: File,
    source: Source,
    range: Range<u64>,
}

type PieceRead = JoinHandle<Attempt<Option<(Bytes, Cursor)>>>;

impl Cursor {
    /// Starts to read the next piece; the version is checked again after each, so bytes of a file that was written to
    /// meanwhile are not handed out.
    fn read_piece(mut self) -> PieceRead {
        tokio::task::spawn_blocking(move || {
            if self.range.is_empty() {
                return Ok(None);
            }
            let len = (self.range.end - self.range.start).min(PIECE_BYTES);
            let mut piece = vec![0; len as usize];
            let read = self.file.read_exact_at(&mut piece, self.range.start);
            let is_short = read.as_ref().is_err_and(|error| error.kind() == ErrorKind::UnexpectedEof);
            if !is_short {
                read.map_err(|error| io_fault(&self.source.path, "read", &error))?;
            }
            self.source.check(&self.file)?;
            if is_short {
                let (url, size) = (self.source.artifact.url(), self.source.artifact.size_bytes());
                return Err(Fault::fatal(Code::Corrupt, format!("{url} ended before its size of {size} bytes")));
            }
            self.range.start += len;
            Ok(Some((Bytes::from(piece), self)))
        })
    }
}

fn path_of(address: &Address) -> Attempt<PathBuf> {
    match address {
        Address::File(path) => Ok(path.clone()),
        other => Err(Fault::fatal(Code::Internal, format!("{other} is not a local path"))),
    }
}

/// `mtime:<size>-<modification time in ns>-<inode>`.
fn version_of(metadata: &Metadata) -> Result<Version, Error> {
    let mtime_ns = i128::from(metadata.mtime()) * 1_000_000_000 + i128::from(metadata.mtime_nsec());
    Version::new(format!("mtime:{}-{mtime_ns}-{}", metadata.size(), metadata.ino()))
}

fn io_fault(path: &Path, doing: &str, error: &std::io::Error) -> Fault {
    let name = path.display();
    match error.kind() {
        ErrorKind::NotFound | ErrorKind::NotADirectory => match std::fs::read_link(path) {
            Ok(target) => Fault::fatal(
                Code::NotFound,
                format!("{name} is a symbolic link to {}, which does not exist", target.display()),
            ),
            Err(_) => Fault::fatal(Code::NotFound, format!("{name} does not exist")),
        },
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => {
            Fault::fatal(Code::Exhausted, format!("cannot {doing} {name}: {error}; make room"))
        }
        ErrorKind::IsADirectory | ErrorKind::AlreadyExists => {
            Fault::fatal(Code::FailedPrecondition, format!("cannot {doing} {name}: something else is there already"))
        }
        ErrorKind::ReadOnlyFilesystem => {
            Fault::fatal(Code::PermissionDenied, format!("cannot {doing} {name}: its file system is read-only"))
        }
        ErrorKind::PermissionDenied => Fault::fatal(
            Code::PermissionDenied,
            format!("cannot {doing} {name}: permission denied; check its mode and owner"),
        ),
        ErrorKind::Interrupted | ErrorKind::TimedOut => {
            Fault::passing(Code::Unavailable, format!("cannot {doing} {name}: {error}"))
        }
        _ => Fault::fatal(Code::Internal, format!("cannot {doing} {name}: {error}")),
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Attempt<T> + Send + 'static) -> Attempt<T> {
    join(tokio::task::spawn_blocking(work)).await
}

async fn join<T>(handle: JoinHandle<Attempt<T>>) -> Attempt<T> {
    match handle.await {
        Ok(result) => result,
        Err(error) if error.is_cancelled() => Err(Fault::fatal(Code::Cancelled, "the read was cancelled at shutdown")),
        Err(error) => Err(Fault::fatal(Code::Internal, format!("a reading thread failed: {error}"))),
    }
}
