//! One open file at its version: read out of the page cache, or past it.

use std::fs::File;
use std::io::ErrorKind;
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use longshore_memory::direct::{DirectFile, ReadWay, is_refusal, residency};
use longshore_memory::{Landing, MappedFile};
use longshore_types::{Artifact, Code, Error, Result};
use rustix::fs::{Advice, fadvise};
use rustix::io::{Errno, preadv};

/// A file, what it must be, and how it may be read.
pub(super) struct OpenFile {
    artifact: Arc<Artifact>,
    cached: File,
    /// Made when it is first needed; nothing when there is none to be had.
    mapped: OnceLock<Option<MappedFile>>,
    /// Opened when it is first needed; nothing when there are no direct reads of it.
    direct: OnceLock<Option<DirectFile>>,
    /// Direct reads of it failed: no more are tried.
    is_declined: AtomicBool,
}

/// What the kernel reads into the page cache beyond what it is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ReadAhead {
    /// For a file that is read through the cache, as a whole.
    Usual,
    /// For one that is read directly where it is not cached: what was read ahead would come from the disk twice, and
    /// while it does, nothing else.
    Nothing,
}

impl OpenFile {
    /// # Errors
    /// As [`super::LocalFiles::read`].
    pub(super) fn open(path: &Path, artifact: &Arc<Artifact>, may_be_direct: bool) -> Result<OpenFile> {
        let cached = File::open(path).map_err(|error| failed(path, "open", &error))?;
        let (mapped, direct, is_declined) = (OnceLock::new(), OnceLock::new(), AtomicBool::new(false));
        let file = OpenFile { artifact: artifact.clone(), cached, mapped, direct, is_declined };
        file.check_version(path)?;
        // Where the kernel does not say what is cached, nothing is read directly.
        if may_be_direct && file.cached(&(0..1)).is_some() {
            file.set_read_ahead(ReadAhead::Nothing);
        }
        Ok(file)
    }

    /// Advice alone: a file system that has none reads as it always does.
    fn set_read_ahead(&self, read_ahead: ReadAhead) {
        let advice = match read_ahead {
            ReadAhead::Usual => Advice::Normal,
            ReadAhead::Nothing => Advice::Random,
        };
        if let Err(error) = fadvise(&self.cached, 0, None, advice) {
            tracing::debug!(%error, ?read_ahead, "cannot say what to read ahead");
        }
    }

    /// The part of `range` that is in the page cache; `None` when the kernel does not say.
    pub(super) fn cached(&self, range: &Range<u64>) -> Option<f64> {
        residency(&self.cached, range.clone())
    }

    /// # Errors
    /// [`Code::FailedPrecondition`] when the file is not what was resolved.
    pub(super) fn check_version(&self, path: &Path) -> Result<()> {
        check_version(&self.cached, path, &self.artifact)
    }

    /// Reads `range` of the file to the landing's bytes from `to` on, out of the page cache.
    ///
    /// # Errors
    /// As [`super::LocalFiles::read`].
    pub(super) fn read_cached(&self, path: &Path, range: &Range<u64>, landing: &mut Landing, to: usize) -> Result<()> {
        let end = to + (range.end - range.start) as usize;
        let mut at = to;
        while at < end {
            let mut slices = landing.slices_mut(at..end);
            match preadv(self.cached.as_fd(), &mut slices, range.start + (at - to) as u64) {
                Ok(0) => return Err(self.ends_early()),
                Ok(count) => at += count,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(failed(path, "read", &errno.into())),
            }
        }
        Ok(())
    }

    /// The same by way of a mapping, which is faster where `range` is in the page cache. False when it was not to be had:
    /// then some of the bytes may have been written, and a read says what there is to say.
    pub(super) fn read_mapped(&self, path: &Path, range: &Range<u64>, landing: &mut Landing, to: usize) -> bool {
        let Some(mapped) = self.mapped.get_or_init(|| map(&self.cached, path)) else { return false };
        let end = to + (range.end - range.start) as usize;
        let mut at = to;
        while at < end {
            for slice in &mut landing.slices_mut(at..end) {
                if mapped.copy_streaming(range.start + (at - to) as u64, slice).is_err() {
                    return false;
                }
                at += slice.len();
            }
        }
        true
    }

    /// The same past the page cache; `None` when that is not to be had: then some of the bytes may have been written.
    ///
    /// # Errors
    /// As [`super::LocalFiles::read`].
    pub(super) fn read_direct(
        &self,
        path: &Path,
        range: &Range<u64>,
        landing: &mut Landing,
        to: usize,
    ) -> Result<Option<ReadWay>> {
        let Some(direct) = self.direct(path)? else { return Ok(None) };
        match read_to(direct, range, landing, to) {
            Ok(way) => Ok(Some(way)),
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => Err(self.ends_early()),
            Err(error) => {
                self.decline(path, &error);
                Ok(None)
            }
        }
    }

    /// The file, open past the page cache; `None` when that is not to be had.
    ///
    /// # Errors
    /// [`Code::FailedPrecondition`] when it is another one by now.
    pub(super) fn direct(&self, path: &Path) -> Result<Option<&DirectFile>> {
        if self.is_declined.load(Ordering::Relaxed) {
            return Ok(None);
        }
        if let Some(direct) = self.direct.get() {
            return Ok(direct.as_ref());
        }
        let opened = match DirectFile::open(path) {
            Ok(opened) => opened,
            Err(error) => {
                self.decline(path, &error);
                return Ok(None);
            }
        };
        // Opened by its name once more: it may be another file by now.
        if let Some(direct) = &opened {
            check_version(direct.file(), path, &self.artifact)?;
        }
        let init = || {
            if opened.is_none() {
                self.set_read_ahead(ReadAhead::Usual);
            }
            opened
        };
        Ok(self.direct.get_or_init(init).as_ref())
    }

    /// The page cache has the same bytes, and the last word on what is wrong with the file.
    pub(super) fn decline(&self, path: &Path, error: &std::io::Error) {
        if self.is_declined.swap(true, Ordering::Relaxed) {
            return;
        }
        self.set_read_ahead(ReadAhead::Usual);
        let path = path.display();
        match is_refusal(error) {
            true => tracing::debug!(%path, %error, "no direct reads of this file"),
            false => tracing::warn!(%path, %error, "cannot read past the page cache; reading through it"),
        }
    }

    fn ends_early(&self) -> Error {
        changed(&self.artifact, "it ends too early")
    }
}

fn map(file: &File, path: &Path) -> Option<MappedFile> {
    MappedFile::new(file).unwrap_or_else(|error| {
        tracing::debug!(path = %path.display(), %error, "no mapping of this file");
        None
    })
}

/// In place where the landing is one piece of memory that fits and that a disk writes to in large pieces; else by way
/// of memory of the thread's, which with its copy takes less than half as long as the page cache.
fn read_to(direct: &DirectFile, range: &Range<u64>, landing: &mut Landing, to: usize) -> std::io::Result<ReadWay> {
    let end = to + (range.end - range.start) as usize;
    if !landing.has_small_pages()
        && let Some(into) = landing.contiguous_mut().and_then(|whole| whole.get_mut(to..end))
        && direct.fits(range.start, into)
    {
        return direct.read(range.start, into);
    }
    let mut at = to;
    direct.read_through(range.clone(), |part| {
        landing.copy_in(at, part);
        at += part.len();
    })
}

/// The version text of a local file, exactly as the origin writes it; a test holds the two together.
///
/// An object of a checkpoint has another kind of version, which no file tells: its name is one attempt's alone, and its
/// content is compared with the commit, block by block.
fn check_version(file: &File, path: &Path, artifact: &Artifact) -> Result<()> {
    let metadata = file.metadata().map_err(|error| failed(path, "look at", &error))?;
    if artifact.is_of_attempt() {
        return match metadata.size() == artifact.size_bytes() {
            true => Ok(()),
            false => {
                let (is, was) = (metadata.size(), artifact.size_bytes());
                let why = format!("{} has {is} bytes where the commit says {was}", path.display());
                Err(Error::new(Code::Corrupt, why))
            }
        };
    }
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
