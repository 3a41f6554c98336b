//! A region on a GPU that is being filled.

use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use longshore_memory::{OwnedSegment, PinnedChunk};
use longshore_types::{BLOCK_BYTES, Code, Error, Result};
use parking_lot::Mutex;

use super::client::link::Link;
use super::client::{CopyTicket, Progress};
use super::device::Shared;
use super::protocol::{RUNS_MAX, Request};
use super::ranges::Ranges;
use super::region::CudaRegion;
use super::steps::{self, Step};
use crate::device::{DeviceRegion, FromStorage, Intake, Part, RegionBuilder, StorageFile, Upload};

/// Takes uploads until it is finished. Belongs to one copier: when that ends, so does this.
pub(super) struct CudaBuilder {
    shared: Arc<Shared>,
    label: String,
    size_bytes: u64,
    segments: Vec<OwnedSegment>,
    link: Arc<Link>,
    /// The copier's number for the region while it is mapped there.
    mapped: Option<u64>,
    progress: Arc<Progress>,
    sent: Mutex<Sent>,
    /// The number of the next file that the copier is shown.
    next_file: AtomicU64,
    /// The memory is somebody else's now.
    finished: bool,
}

/// Where bytes of the region were sent to so far; in the end all others are zeroed, whatever tenant had them before.
#[derive(Default)]
struct Sent {
    bytes: Ranges,
    /// Zeros that came along between small tensors. Bytes may still be sent there.
    padding: Ranges,
}

impl CudaBuilder {
    pub(super) fn new(
        shared: &Arc<Shared>,
        label: &str,
        size_bytes: u64,
        segments: Vec<OwnedSegment>,
        link: Arc<Link>,
    ) -> CudaBuilder {
        CudaBuilder {
            shared: Arc::clone(shared),
            label: label.into(),
            size_bytes,
            segments,
            link,
            mapped: None,
            progress: Arc::default(),
            sent: Mutex::default(),
            next_file: AtomicU64::new(1),
            finished: false,
        }
    }

    /// Maps the memory in the copier; an empty region has none.
    pub(super) fn map(&mut self) -> Result<()> {
        if self.segments.is_empty() {
            return Ok(());
        }
        let mapped = match self.shared.map(&self.link, &self.segments) {
            // The copier had died before anybody noticed. Nothing is lost yet.
            Err(error) if error.code() == Code::Unavailable && !self.link.is_alive() => {
                self.link = self.shared.link()?;
                self.shared.map(&self.link, &self.segments)
            }
            mapped => mapped,
        };
        self.mapped = Some(mapped?);
        Ok(())
    }

    fn unmap(&mut self) -> Result<()> {
        match self.mapped.take() {
            Some(region) => self.link.call(Vec::new(), |id| Request::Unmap { id, region }).map(|_| ()),
            None => Ok(()),
        }
    }

    fn wait_idle(&self) -> Result<()> {
        self.progress.wait_idle(|| self.link.give_up())
    }

    /// Zeroes what nothing was sent to, up to the end of the memory.
    fn zero_the_rest(&self) -> Result<()> {
        let Some(region) = self.mapped else { return Ok(()) };
        let total = self.segments.iter().map(|segment| segment.len_bytes).sum();
        let gaps = {
            let mut sent = self.sent.lock();
            let Sent { bytes, padding } = &mut *sent;
            for range in padding.iter() {
                // Disjoint: what bytes were sent to was taken out.
                let _ = bytes.insert(range);
            }
            bytes.gaps(total)
        };
        for gaps in gaps.chunks(RUNS_MAX) {
            let ranges = gaps.iter().map(|gap| (gap.start, gap.end - gap.start)).collect();
            self.link.call(Vec::new(), |id| Request::Zero { id, region, ranges })?;
        }
        Ok(())
    }
}

impl RegionBuilder for CudaBuilder {
    fn intake(&self) -> Intake<'_> {
        Intake::Upload(self)
    }

    fn finish(mut self: Box<Self>) -> Result<Arc<dyn DeviceRegion>> {
        self.wait_idle()?;
        self.zero_the_rest()?;
        self.unmap()?;
        self.finished = true;
        let segments = std::mem::take(&mut self.segments);
        Ok(Arc::new(CudaRegion::new(&self.shared, &self.label, self.size_bytes, segments)))
    }
}

impl Upload for CudaBuilder {
    fn upload(&self, chunk: &PinnedChunk, start_bytes: u64, parts: &[Part]) -> Result<()> {
        self.progress.check()?;
        check_run(chunk, start_bytes, parts)?;
        let (piece, offset_bytes) = chunk.place();
        let piece =
            u32::try_from(piece).map_err(|_| Error::new(Code::Internal, "a page-locked piece without number"))?;
        let runs = steps::runs(parts, offset_bytes + start_bytes, self.size_bytes)?;
        // Only an empty region is not mapped, and nothing can be sent to it.
        let Some(region) = self.mapped else { return Ok(()) };
        let messages = {
            let mut sent = self.sent.lock();
            let ranges: Vec<Range<u64>> = runs.iter().map(|run| run.to..run.end()).collect();
            if sent.claim(&ranges)? {
                // The zeros there must not come after the bytes. Nothing new is announced while this waits.
                self.wait_idle()?;
            }
            let (steps, padding) = steps::steps(runs, |gap| sent.bytes.is_free(gap) && sent.padding.is_free(gap));
            for gap in padding {
                // Free, as the planner was told; the gaps of one plan are disjoint.
                let _ = sent.padding.insert(gap);
            }
            let messages = messages(steps);
            self.progress.begin(messages.len());
            messages
        };
        for steps in messages {
            let ticket = CopyTicket::new(chunk.clone(), Arc::clone(&self.progress));
            self.link.copy(ticket, |id| Request::Copy { id, region, piece, steps });
        }
        Ok(())
    }

    fn node(&self) -> Option<u32> {
        self.shared.gpu.node
    }

    fn storage(&self) -> Option<&dyn FromStorage> {
        Some(self)
    }
}

impl FromStorage for CudaBuilder {
    fn open(&self, file: BorrowedFd<'_>) -> Result<StorageFile> {
        self.progress.check()?;
        let Some(region) = self.mapped else {
            return Err(Error::new(Code::InvalidArgument, "files do not go to an empty region"));
        };
        let number = self.next_file.fetch_add(1, Ordering::Relaxed);
        self.link.call(vec![(file, 1)], |id| Request::OpenFile { id, region, file: number })?;
        Ok(StorageFile(number))
    }

    fn read(&self, file: StorageFile, file_offset_bytes: u64, len_bytes: u64, offset_bytes: u64) -> Result<()> {
        self.progress.check()?;
        let end = offset_bytes.checked_add(len_bytes).filter(|end| *end <= self.size_bytes && len_bytes > 0);
        let (Some(end), Some(region)) = (end, self.mapped) else {
            let message = format!("{len_bytes} bytes at {offset_bytes} are not within a region of {}", self.size_bytes);
            return Err(Error::new(Code::InvalidArgument, message));
        };
        let range = offset_bytes..end;
        {
            let mut sent = self.sent.lock();
            if sent.claim(std::slice::from_ref(&range))? {
                // As for uploads: the zeros there must not come after the bytes.
                self.wait_idle()?;
            }
        }
        let (file, from, to) = (file.0, file_offset_bytes, offset_bytes);
        let read = self.link.call(Vec::new(), |id| Request::ReadFile { id, region, file, from, len_bytes, to });
        read.map(drop).inspect_err(|error| {
            if error.code() == Code::Unsupported {
                self.sent.lock().bytes.remove(&range);
            }
        })
    }
}

impl Sent {
    /// Claims all of the ranges or none; says whether padding is in the way.
    fn claim(&mut self, ranges: &[Range<u64>]) -> Result<bool> {
        for (at, range) in ranges.iter().enumerate() {
            if let Err(other) = self.bytes.insert(range.clone()) {
                for range in &ranges[..at] {
                    self.bytes.remove(range);
                }
                let message = format!("bytes {range:?} of the region overlap {other:?}, which were sent already");
                return Err(Error::new(Code::Internal, message));
            }
        }
        let mut in_the_way = false;
        for range in ranges {
            while let Some(padding) = self.padding.overlap(range) {
                self.padding.remove(&(padding.start.max(range.start)..padding.end.min(range.end)));
                in_the_way = true;
            }
        }
        Ok(in_the_way)
    }
}

impl Drop for CudaBuilder {
    fn drop(&mut self) {
        if self.finished {
            return;
        }
        // Nobody hears of errors here: the copies do not matter any more, and a copier that fails has unmapped it all.
        let _ = self.wait_idle();
        let _ = self.unmap();
        if !self.segments.is_empty() {
            self.segments.clear();
            self.shared.keeper.release(&self.label);
        }
    }
}

/// Whether the run of these parts is within the chunk, and there.
fn check_run(chunk: &PinnedChunk, start_bytes: u64, parts: &[Part]) -> Result<()> {
    let len = parts.iter().try_fold(0u64, |sum, part| sum.checked_add(part.len_bytes()));
    let end = len.and_then(|len| start_bytes.checked_add(len)).filter(|end| *end <= chunk.len_bytes());
    let Some(end) = end else {
        let message = format!("a run of {len:?} bytes at {start_bytes} is not within a chunk of {}", chunk.len_bytes());
        return Err(Error::new(Code::InvalidArgument, message));
    };
    let blocks = (start_bytes / BLOCK_BYTES) as u32..end.div_ceil(BLOCK_BYTES) as u32;
    if end > start_bytes && !chunk.is_ready(blocks.clone()) {
        let message = format!("blocks {blocks:?} of the chunk are not filled yet");
        return Err(Error::new(Code::FailedPrecondition, message));
    }
    Ok(())
}

/// Steps in portions that fit in a message. No step has more runs than one message may.
fn messages(steps: Vec<Step>) -> Vec<Vec<Step>> {
    let mut messages: Vec<Vec<Step>> = Vec::new();
    let mut runs = RUNS_MAX;
    for step in steps {
        runs += step.runs().len();
        if runs > RUNS_MAX {
            runs = step.runs().len();
            messages.push(Vec::new());
        }
        if let Some(last) = messages.last_mut() {
            last.push(step);
        }
    }
    messages
}
