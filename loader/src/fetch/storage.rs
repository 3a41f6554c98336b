//! Local files that the device reads by itself: whole blocks that go to one place. What is left of a chunk, small
//! tensors, rows and the ends of large ones, is staged as ever.
//!
//! The first refusal, by the machine, the file system or a read, ends this way for the load: it is counted, and the rest
//! is staged. Bytes that came this way are not in page-locked memory for the next load.

use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use longshore_device::{FromStorage, Part, StorageFile, Upload};
use longshore_origin::Origins;
use longshore_types::{BLOCK_BYTES, Code, Error, Result};
use parking_lot::Mutex;

use super::reader::ChunkReader;
use crate::plan::ChunkPlan;
use crate::report::{FallbackKind, SourceTier, Step};

/// How this way is called in traces.
const SOURCE: &str = "local file, by GPUDirect Storage";

/// This way, for one load.
#[derive(Default)]
pub(super) struct Storage {
    is_refused: AtomicBool,
    /// Files that the region of a number knows.
    files: Mutex<HashMap<(u32, PathBuf), StorageFile>>,
}

/// Whole blocks that go to one place.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Extent {
    /// Bytes within the chunk.
    range: Range<u64>,
    /// Offset in the region.
    to: u64,
}

/// Why a chunk did not come this way.
pub(super) enum Failure {
    /// The load fails.
    Load(Error),
    /// The device failed.
    Device(Error),
}

impl Storage {
    /// Lets the device read what it can of a chunk, and gives what is left of it; `None` when that is all of it.
    pub(super) fn bring(
        &self,
        upload: &dyn Upload,
        chunk: &ChunkPlan,
        reader: &ChunkReader,
        thread: u32,
    ) -> Result<Option<Vec<ChunkPlan>>, Failure> {
        let artifact = chunk.key.artifact();
        let (Some(path), false) = (Origins::local_path(artifact.url()), self.is_refused.load(Ordering::Relaxed)) else {
            return Ok(None);
        };
        let extents = extents(chunk);
        if extents.is_empty() {
            return Ok(None);
        }
        let Some((from, file)) = self.open(upload, chunk, &path, reader)? else { return Ok(None) };
        let recorder = reader.recorder();
        let timer = recorder.begin(Step::Fetch);
        let start = Instant::now();
        let mut done = Vec::new();
        for extent in extents {
            if reader.token().is_cancelled() {
                return Err(Failure::Load(Error::new(Code::Cancelled, "the load was given up")));
            }
            let file_offset_bytes = chunk.key.range().start + extent.range.start;
            match from.read(file, file_offset_bytes, extent.range.end - extent.range.start, extent.to) {
                Ok(()) => done.push(extent),
                Err(error) if error.code() == Code::Unsupported => {
                    self.refused(reader, &path, &error);
                    break;
                }
                Err(error) => return Err(Failure::Device(error)),
            }
        }
        reader.local().check_version(&path, artifact).map_err(Failure::Load)?;
        let bytes = done.iter().map(|extent| extent.range.end - extent.range.start).sum();
        if bytes > 0 {
            recorder.end(timer, thread, bytes, SOURCE);
            recorder.add_chunk(SourceTier::Origin, bytes, start.elapsed());
            reader.local().count_gpudirect(bytes);
        }
        Ok(Some(rest(chunk, &done)))
    }

    /// Whether the blocks of a chunk must be compared with what is known of them, which takes the host.
    pub(super) fn leaves_to_host(&self, chunk: &ChunkPlan, reader: &ChunkReader) -> bool {
        let is_checked = chunk.expected.is_some();
        if is_checked && !self.is_refused.swap(true, Ordering::Relaxed) {
            let detail = "blocks of checkpoints are compared on the host before they go to a GPU";
            reader.recorder().add_fallback(FallbackKind::StorageNotDirect, detail);
        }
        is_checked
    }

    /// The way and the file in it; `None` when the chunk has to be staged.
    fn open<'a>(
        &self,
        upload: &'a dyn Upload,
        chunk: &ChunkPlan,
        path: &Path,
        reader: &ChunkReader,
    ) -> Result<Option<(&'a dyn FromStorage, StorageFile)>, Failure> {
        let Some(from) = upload.storage() else {
            let error = Error::new(Code::Unsupported, "the device reads no files by itself");
            self.refused(reader, path, &error);
            return Ok(None);
        };
        // Held meanwhile: others wait for the same file, or learn that there is no use in asking.
        let mut files = self.files.lock();
        if self.is_refused.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let key = (chunk.region, path.to_owned());
        if let Some(file) = files.get(&key) {
            return Ok(Some((from, *file)));
        }
        let shown = match reader.local().with_direct(path, chunk.key.artifact(), |fd| from.open(fd)) {
            Ok(Some(shown)) => shown,
            Ok(None) => Err(Error::new(Code::Unsupported, "its file system has no direct reads")),
            // Staging knows what to do without the file.
            Err(error) if matches!(error.code(), Code::NotFound | Code::PermissionDenied) => return Ok(None),
            Err(error) => return Err(Failure::Load(error)),
        };
        match shown {
            Ok(file) => {
                files.insert(key, file);
                Ok(Some((from, file)))
            }
            Err(error) if error.code() == Code::Unsupported => {
                self.refused(reader, path, &error);
                Ok(None)
            }
            Err(error) => Err(Failure::Device(error)),
        }
    }

    /// Ends this way for the load; counted once.
    fn refused(&self, reader: &ChunkReader, path: &Path, error: &Error) {
        if !self.is_refused.swap(true, Ordering::Relaxed) {
            let detail = format!("{}: {}", path.display(), error.message());
            reader.recorder().add_fallback(FallbackKind::StorageNotDirect, detail);
        }
    }
}

/// The whole blocks of a chunk that go to one place, neighbours joined.
fn extents(chunk: &ChunkPlan) -> Vec<Extent> {
    let mut runs: Vec<Extent> = Vec::new();
    let mut at = chunk.range.start;
    for part in &chunk.parts {
        let end = at + part.len_bytes();
        if let Part::Place { offset_bytes, .. } = *part {
            match runs.last_mut() {
                Some(last) if last.range.end == at && last.to + (at - last.range.start) == offset_bytes => {
                    last.range.end = end;
                }
                _ => runs.push(Extent { range: at..end, to: offset_bytes }),
            }
        }
        at = end;
    }
    let whole_blocks = |run: Extent| {
        let start = run.range.start.next_multiple_of(BLOCK_BYTES);
        let end = run.range.end / BLOCK_BYTES * BLOCK_BYTES;
        (start < end).then(|| Extent { range: start..end, to: run.to + (start - run.range.start) })
    };
    runs.into_iter().filter_map(whole_blocks).collect()
}

/// What is left of a chunk without some of its extents, in whole blocks; nothing where nothing is placed.
fn rest(chunk: &ChunkPlan, done: &[Extent]) -> Vec<ChunkPlan> {
    let starts = std::iter::once(chunk.range.start).chain(done.iter().map(|extent| extent.range.end));
    let ends = done.iter().map(|extent| extent.range.start).chain(std::iter::once(chunk.range.end));
    let gaps = starts.zip(ends).filter(|(start, end)| start < end);
    let plans = gaps.map(|(start, end)| ChunkPlan {
        region: chunk.region,
        key: chunk.key.clone(),
        range: start..end,
        parts: cut(chunk, &(start..end)),
        expected: chunk.expected.clone(),
    });
    plans.filter(|plan| !plan.parts.iter().all(|part| matches!(part, Part::Discard { .. }))).collect()
}

/// The parts of a chunk within a range that begins and ends between parts, or within a [`Part::Place`].
fn cut(chunk: &ChunkPlan, range: &Range<u64>) -> Vec<Part> {
    let mut at = chunk.range.start;
    let mut parts = Vec::new();
    for part in &chunk.parts {
        let (start, end) = (at, at + part.len_bytes());
        at = end;
        let within = start.max(range.start)..end.min(range.end);
        if within.start >= within.end {
            continue;
        }
        parts.push(match *part {
            Part::Place { offset_bytes, .. } => Part::Place {
                offset_bytes: offset_bytes + (within.start - start),
                len_bytes: within.end - within.start,
            },
            whole => whole,
        });
    }
    parts
}

#[cfg(test)]
mod tests;
