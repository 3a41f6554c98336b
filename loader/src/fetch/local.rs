//! Files of this machine, read straight into the landing memory: no worker, no copy on the way.
//!
//! The file is opened once a load and compared with the version that was resolved: when it is opened, after every
//! chunk, and once more when all is read. A file that is written to meanwhile is an error, never a mixture.
//!
//! What is in the page cache is copied from there, by way of a mapping where nobody looks at it next; the rest is read past
//! it, which takes a fraction of the CPU time and leaves the cache to others. What was done is counted ([`Ways`]).

mod file;

use std::collections::HashMap;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::sync::Arc;

use longshore_memory::Landing;
use longshore_memory::direct::ReadWay;
use longshore_types::{Artifact, BLOCK_BYTES, BlockChecksum, Code, Error, Result};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use self::file::OpenFile;
use super::reader::Wanted;
use crate::options::DirectIo;

/// Open files kept by one load; beyond it they are opened for each chunk.
const OPEN_FILES_MAX: usize = 256;
/// The part of a file that is looked at as a whole: either its cached copy is read, or the disk.
const EXTENT_BYTES: u64 = 4 << 20;
/// The part of an extent that must be cached for its copy to be read.
const CACHED_MIN: f64 = 0.5;
/// The part that must be for it to be read by way of a mapping. What is missing comes from the disk in small reads.
const MAPPED_MIN: f64 = 0.95;

/// The files that a load has open.
pub(super) struct LocalFiles {
    direct_io: DirectIo,
    open: Mutex<HashMap<String, Arc<OpenFile>>>,
    ways: Mutex<Ways>,
}

/// Bytes of files by the way in which they were read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Ways {
    /// Copied out of the page cache, by the kernel.
    pub page_cache_bytes: u64,
    /// Copied out of a mapping of it.
    pub mapped_bytes: u64,
    /// Read past it, many reads at once.
    pub direct_uring_bytes: u64,
    /// Read past it, one after the other: io_uring is not to be had.
    pub direct_bytes: u64,
    /// Read by a GPU itself.
    pub gpudirect_bytes: u64,
    /// Of those out of the page cache: they were to be read past it, and could not.
    pub declined_bytes: u64,
}

impl Ways {
    fn add(&mut self, way: ReadWay, bytes: u64) {
        *match way {
            ReadWay::Mapped => &mut self.mapped_bytes,
            ReadWay::PageCache => &mut self.page_cache_bytes,
            ReadWay::DirectUring => &mut self.direct_uring_bytes,
            ReadWay::Direct => &mut self.direct_bytes,
        } += bytes;
    }
}

/// How a part of a file is to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Plan {
    /// Out of a mapping of the page cache.
    Mapped,
    /// Through the page cache.
    Cached,
    /// Past it.
    Direct,
}

impl LocalFiles {
    pub(super) fn new(direct_io: DirectIo) -> LocalFiles {
        LocalFiles { direct_io, open: Mutex::default(), ways: Mutex::default() }
    }

    /// What was read so far, and how.
    pub(super) fn ways(&self) -> Ways {
        *self.ways.lock()
    }

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
        let file = self.open(path, wanted.key.artifact())?;
        let from = wanted.file_range().start;
        let mut read = Read { files: self, file: &file, path, from, may_map: true, token };
        read.part(0..landing.len(), landing)?;
        file.check_version(path)
    }

    /// As [`LocalFiles::read`], and gives what the blocks are that landed.
    ///
    /// # Errors
    /// As [`LocalFiles::read`].
    pub(super) fn read_summed(
        &self,
        path: &Path,
        wanted: &Wanted<'_>,
        landing: &mut Landing,
        token: &CancellationToken,
    ) -> Result<Vec<BlockChecksum>> {
        let file = self.open(path, wanted.key.artifact())?;
        let from = wanted.file_range().start;
        let mut read = Read { files: self, file: &file, path, from, may_map: false, token };
        let len = landing.len();
        // Bytes that are discarded on the way are there for one block only.
        let is_kept = landing.contiguous_mut().is_some();
        if is_kept {
            read.part(0..len, landing)?;
        }
        let mut checksums = Vec::with_capacity(len.div_ceil(BLOCK_BYTES as usize));
        for start in (0..len).step_by(BLOCK_BYTES as usize) {
            let block = start..len.min(start + BLOCK_BYTES as usize);
            if !is_kept {
                read.part(block.clone(), landing)?;
            }
            checksums.push(landing.checksum(block));
        }
        file.check_version(path)?;
        Ok(checksums)
    }

    /// Counts what a GPU read by itself.
    pub(super) fn count_gpudirect(&self, bytes: u64) {
        self.ways.lock().gpudirect_bytes += bytes;
    }

    /// Does something with a file that is open past the page cache, at its version; `None` when its file system has no
    /// such reads.
    ///
    /// # Errors
    /// As [`LocalFiles::read`].
    pub(super) fn with_direct<T>(
        &self,
        path: &Path,
        artifact: &Arc<Artifact>,
        act: impl FnOnce(BorrowedFd<'_>) -> T,
    ) -> Result<Option<T>> {
        let file = self.open(path, artifact)?;
        Ok(file.direct(path)?.map(|direct| act(direct.file().as_fd())))
    }

    /// Compares one file with its version.
    ///
    /// # Errors
    /// [`Code::FailedPrecondition`] when it changed.
    pub(super) fn check_version(&self, path: &Path, artifact: &Arc<Artifact>) -> Result<()> {
        self.open(path, artifact)?.check_version(path)
    }

    /// Compares every open file with its version, for the last time.
    ///
    /// # Errors
    /// [`Code::FailedPrecondition`] when one changed.
    pub(super) fn check(&self) -> Result<()> {
        let open = self.open.lock();
        if !open.is_empty() {
            tracing::debug!(ways = ?self.ways(), "local files are read");
        }
        open.iter().try_for_each(|(path, file)| file.check_version(Path::new(path)))
    }

    /// The front of `range` that is read in one way, and which. A part out of the cache is one extent at most, so that a
    /// load that is given up stops soon; a direct read of a chunk takes no longer.
    fn next_part(&self, file: &OpenFile, range: Range<u64>) -> (Plan, Range<u64>) {
        let extent = |from: u64| from..range.end.min((from / EXTENT_BYTES + 1) * EXTENT_BYTES);
        let first = extent(range.start);
        let plan = self.plan(file, &first);
        let mut end = first.end;
        while plan == Plan::Direct && end < range.end && self.plan(file, &extent(end)) == Plan::Direct {
            end = extent(end).end;
        }
        (plan, range.start..end)
    }

    fn plan(&self, file: &OpenFile, extent: &Range<u64>) -> Plan {
        if self.direct_io == DirectIo::Always {
            return Plan::Direct;
        }
        match file.cached(extent) {
            Some(cached) if cached >= MAPPED_MIN => Plan::Mapped,
            Some(cached) if cached < CACHED_MIN && self.direct_io == DirectIo::Auto => Plan::Direct,
            _ => Plan::Cached,
        }
    }

    fn open(&self, path: &Path, artifact: &Arc<Artifact>) -> Result<Arc<OpenFile>> {
        let name = path.to_string_lossy().into_owned();
        if let Some(file) = self.open.lock().get(&name) {
            return Ok(file.clone());
        }
        let file = Arc::new(OpenFile::open(path, artifact, self.direct_io != DirectIo::Never)?);
        let mut open = self.open.lock();
        if open.len() < OPEN_FILES_MAX {
            open.insert(name, file.clone());
        }
        Ok(file)
    }
}

/// One read of a file into a landing.
struct Read<'a> {
    files: &'a LocalFiles,
    file: &'a OpenFile,
    path: &'a Path,
    /// Where the landing begins in the file.
    from: u64,
    /// Nobody looks at the bytes next: they may go past the caches of this core.
    may_map: bool,
    token: &'a CancellationToken,
}

impl Read<'_> {
    /// Fills a part of the landing, in one way or another.
    fn part(&mut self, within: Range<usize>, landing: &mut Landing) -> Result<()> {
        let end = self.from + within.end as u64;
        let mut at = self.from + within.start as u64;
        while at < end {
            if self.token.is_cancelled() {
                return Err(Error::new(Code::Cancelled, "the load was given up"));
            }
            let (plan, part) = self.files.next_part(self.file, at..end);
            self.one_way(plan, &part, (part.start - self.from) as usize, landing)?;
            at = part.end;
        }
        Ok(())
    }

    /// Reads `part` of the file to the landing's bytes from `to` on, as planned if that is to be had.
    fn one_way(&self, plan: Plan, part: &Range<u64>, to: usize, landing: &mut Landing) -> Result<()> {
        let done = match plan {
            Plan::Direct => self.file.read_direct(self.path, part, landing, to)?,
            Plan::Mapped if self.may_map => {
                self.file.read_mapped(self.path, part, landing, to).then_some(ReadWay::Mapped)
            }
            Plan::Mapped | Plan::Cached => None,
        };
        if done.is_none() {
            self.file.read_cached(self.path, part, landing, to)?;
        }
        let bytes = part.end - part.start;
        let mut ways = self.files.ways.lock();
        ways.add(done.unwrap_or(ReadWay::PageCache), bytes);
        ways.declined_bytes += if plan == Plan::Direct && done.is_none() { bytes } else { 0 };
        Ok(())
    }
}

#[cfg(test)]
mod tests;
