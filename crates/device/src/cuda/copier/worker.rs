//! The device thread: makes every call that starts work. Requests are checked before anything is started, so that
//! wrong ones fail alone.

use std::collections::HashMap;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::mpsc::Receiver;

use longshore_memory::OwnedSegment;
use longshore_types::{Code, Error, Result};
use memmap2::{Advice, MmapOptions};

use super::lanes::Lane;
use super::pack::{self, PackBuffers};
use super::storage::Storage;
use super::{Command, Replies, check};
use crate::cuda::context::{Context, Rows};
use crate::cuda::driver::driver;
use crate::cuda::error::CudaError;
use crate::cuda::memory::{Mapping, PhysicalMemory, Registration};
use crate::cuda::probe;
use crate::cuda::protocol::{Answer, RUNS_MAX, Request};
use crate::cuda::steps::Step;

/// One copies while the next one's descriptors are prepared.
const LANES: usize = 2;

/// Why a request was not carried out.
enum Refusal {
    /// It is wrong; nothing was started.
    Wrong(Error),
    /// The driver said no; nothing is under way.
    Cuda(CudaError),
    /// The driver said no, and nobody knows what is under way.
    Lost(CudaError),
}

impl From<CudaError> for Refusal {
    fn from(error: CudaError) -> Refusal {
        Refusal::Cuda(error)
    }
}

fn wrong<T>(message: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal::Wrong(Error::new(Code::InvalidArgument, message)))
}

/// Carries out commands until there are no more.
pub(super) fn run(commands: &Receiver<Command>, replies: &Arc<Replies>) -> Result<()> {
    let Ok(Command { request, segments }) = commands.recv() else { return Ok(()) };
    let Request::Start { id, gpu } = request else {
        return Err(Error::new(Code::Internal, "the first request was not to start"));
    };
    let worked = work(id, gpu, segments, commands, replies);
    // An error here is always one of the start: later ones are answered one by one.
    worked.inspect_err(|error| replies.reply(id, Err(error.clone())))
}

fn work(
    start_id: u64,
    gpu: String,
    segments: Vec<OwnedSegment>,
    commands: &Receiver<Command>,
    replies: &Arc<Replies>,
) -> Result<()> {
    let context = open(&gpu)?;
    // Declared first, so left last: everything below needs the context to be current when it is released.
    let _entered = context.enter().map_err(|error| error.about(&gpu))?;
    let mut worker = Worker::start(&context, gpu, &segments, replies)?;
    drop(segments);
    replies.reply(start_id, Ok(Answer::Done));
    for command in commands {
        worker.serve(command);
    }
    Ok(())
}

fn open(gpu: &str) -> Result<Arc<Context>> {
    let driver = driver()?;
    let device = probe::find(driver, gpu)?;
    Context::retain(driver, device).map_err(|error| error.about(gpu))
}

/// Everything the copier has on the card. Released from the first field to the last: work in flight ends before what
/// it uses goes.
struct Worker {
    storage: Storage,
    lanes: Vec<Lane>,
    next_lane: usize,
    regions: HashMap<u64, Arc<Mapping>>,
    packs: Arc<PackBuffers>,
    pieces: Vec<Registration>,
    replies: Arc<Replies>,
    gpu: String,
    context: Arc<Context>,
}

impl Worker {
    fn start(context: &Arc<Context>, gpu: String, segments: &[OwnedSegment], replies: &Arc<Replies>) -> Result<Worker> {
        let pieces = segments.iter().map(|segment| page_lock(context, segment, &gpu)).collect::<Result<Vec<_>>>()?;
        let packs = PackBuffers::create(context, &gpu)?;
        let lanes = (0..LANES).map(|_| Lane::start(context, replies, &gpu)).collect::<Result<Vec<_>>>()?;
        let storage = Storage::new(context, replies, &gpu);
        let (context, replies) = (Arc::clone(context), Arc::clone(replies));
        Ok(Worker { storage, lanes, next_lane: 0, regions: HashMap::new(), packs, pieces, replies, gpu, context })
    }

    fn serve(&mut self, Command { request, segments }: Command) {
        let (id, result) = match request {
            Request::Map { id, region } => (id, self.map(region, segments).map(Some)),
            Request::Unmap { id, region } => (id, self.unmap(region).map(Some)),
            Request::Info { id } => (id, self.info().map(Some)),
            // The lane answers these.
            Request::Copy { id, region, piece, steps } => (id, self.copy(id, region, piece, &steps).map(|()| None)),
            Request::Zero { id, region, ranges } => (id, self.zero(id, region, &ranges).map(|()| None)),
            Request::Read { id, region, offset_bytes, len_bytes, piece } => {
                (id, self.read(id, region, offset_bytes, len_bytes, piece).map(|()| None))
            }
            // The threads for files answer these.
            Request::Storage { id } | Request::OpenFile { id, .. } | Request::ReadFile { id, .. } => {
                (id, self.storage.take(request, segments, &self.regions).map(|()| None).map_err(Refusal::Wrong))
            }
            Request::Start { id, .. } => (id, wrong("it was started already")),
            // The listener keeps these.
            Request::Segments { .. } => return,
        };
        match result {
            Ok(None) => {}
            Ok(Some(answer)) => self.replies.reply(id, Ok(answer)),
            Err(Refusal::Wrong(error)) => self.replies.reply(id, Err(error.context(&self.gpu))),
            Err(Refusal::Cuda(error)) => self.replies.failed(id, error, &self.gpu),
            Err(Refusal::Lost(error)) => self.replies.lost(Some(id), error, &self.gpu),
        }
    }

    fn map(&mut self, region: u64, segments: Vec<OwnedSegment>) -> Result<Answer, Refusal> {
        let total = segments.iter().try_fold(0u64, |sum, segment| sum.checked_add(segment.len_bytes));
        if segments.is_empty() || total.is_none_or(|total| total > 1 << 50) {
            return wrong(format!("{} segments of {total:?} bytes are no region", segments.len()));
        }
        if self.regions.contains_key(&region) {
            return wrong(format!("region {region} is mapped already"));
        }
        let import = |segment: &OwnedSegment| {
            let memory = PhysicalMemory::import(self.context.driver(), segment.fd.as_fd())?;
            Ok((memory, segment.len_bytes))
        };
        let parts = segments.iter().map(import).collect::<Result<Vec<_>, CudaError>>()?;
        // The mapping keeps the memory; handles and descriptors have served.
        let mapping = Mapping::create(&self.context, &parts)?;
        self.regions.insert(region, Arc::new(mapping));
        Ok(Answer::Done)
    }

    fn unmap(&mut self, region: u64) -> Result<Answer, Refusal> {
        let Some(mapping) = self.regions.remove(&region) else {
            return wrong(format!("region {region} is not mapped"));
        };
        match Arc::try_unwrap(mapping) {
            // Memory that stays mapped would stay taken, until this process ends.
            Ok(mapping) => {
                self.storage.forget(region);
                mapping.release().map(|()| Answer::Done).map_err(Refusal::Lost)
            }
            Err(in_use) => {
                self.regions.insert(region, in_use);
                wrong(format!("region {region} is being copied to"))
            }
        }
    }

    fn info(&self) -> Result<Answer, Refusal> {
        let (free_bytes, total_bytes) = self.context.memory_info()?;
        Ok(Answer::Memory { free_bytes, total_bytes })
    }

    fn region(&self, region: u64) -> Result<Arc<Mapping>, Refusal> {
        match self.regions.get(&region) {
            Some(mapping) => Ok(Arc::clone(mapping)),
            None => wrong(format!("region {region} is not mapped")),
        }
    }

    fn piece(&self, piece: u32) -> Result<&Registration, Refusal> {
        match self.pieces.get(piece as usize) {
            Some(registration) => Ok(registration),
            None => wrong(format!("there is no page-locked piece {piece}")),
        }
    }

    fn lane(&mut self) -> usize {
        self.next_lane = (self.next_lane + 1) % self.lanes.len();
        self.next_lane
    }

    fn copy(&mut self, id: u64, region: u64, piece: u32, steps: &[Step]) -> Result<(), Refusal> {
        let lane = self.lane();
        let mapping = self.region(region)?;
        let piece = self.piece(piece)?;
        if !check::are_within(steps, piece.len_bytes(), mapping.len_bytes()) {
            return wrong("copies that are not within the page-locked piece and the region");
        }
        let lane = &self.lanes[lane];
        let submitted = self.submit(lane, &mapping, piece.start(), steps);
        finish(lane, submitted, id, &mapping)
    }

    /// Starts the copies; the steps were checked.
    fn submit(&self, lane: &Lane, mapping: &Arc<Mapping>, piece: *const u8, steps: &[Step]) -> Result<(), CudaError> {
        for step in steps {
            match step {
                Step::Copy(run) => {
                    let rows = Rows {
                        to: mapping.start() + run.to,
                        from: piece.wrapping_add(run.from as usize).cast(),
                        row_bytes: run.row_bytes as usize,
                        pitch_bytes: run.pitch_bytes as usize,
                        rows: run.rows as usize,
                    };
                    // SAFETY: checked to lie within the piece and the mapping. The lane keeps the mapping, this thread
                    // the piece, the daemon its bytes until the answer.
                    unsafe { lane.stream.copy_to_device(&rows) }?;
                }
                Step::Pack(runs) => {
                    let mut slot = self.packs.take();
                    // SAFETY: checked to fit in a buffer and to lie within the piece.
                    unsafe { slot.gather(piece, runs) };
                    let (to, len) = (runs.first().map_or(0, |run| run.to), pack::len_bytes(runs).unwrap_or(0) as usize);
                    let from = slot.start().cast_const().cast();
                    let rows = Rows { to: mapping.start() + to, from, row_bytes: len, pitch_bytes: len, rows: 1 };
                    // SAFETY: as above, and the lane keeps the buffer.
                    let started = unsafe { lane.stream.copy_to_device(&rows) };
                    started.and_then(|()| lane.push(None, mapping, Some(slot)))?;
                }
            }
        }
        Ok(())
    }

    fn zero(&mut self, id: u64, region: u64, ranges: &[(u64, u64)]) -> Result<(), Refusal> {
        let lane = self.lane();
        let mapping = self.region(region)?;
        let is_within = |(offset, len): &(u64, u64)| {
            *len > 0 && offset.checked_add(*len).is_some_and(|end| end <= mapping.len_bytes())
        };
        if ranges.len() > RUNS_MAX || !ranges.iter().all(is_within) {
            return wrong(format!("ranges to zero that are not within region {region}"));
        }
        let lane = &self.lanes[lane];
        let submitted = ranges.iter().try_for_each(|(offset, len)| {
            // SAFETY: checked to lie within the mapping, which stays until it is done.
            unsafe { lane.stream.zero(mapping.start() + offset, *len as usize) }
        });
        finish(lane, submitted, id, &mapping)
    }

    fn read(&mut self, id: u64, region: u64, offset: u64, len: u64, piece: u32) -> Result<(), Refusal> {
        let lane = self.lane();
        let mapping = self.region(region)?;
        let piece = self.piece(piece)?;
        let is_within = offset.checked_add(len).is_some_and(|end| end <= mapping.len_bytes());
        if !is_within || len > piece.len_bytes() || len == 0 {
            return wrong(format!("{len} bytes at {offset} cannot be read from region {region}"));
        }
        let lane = &self.lanes[lane];
        // SAFETY: checked to lie within the mapping and the piece, which nobody else uses until the answer.
        let submitted =
            unsafe { lane.stream.copy_to_host(piece.start().cast(), mapping.start() + offset, len as usize) };
        finish(lane, submitted, id, &mapping)
    }
}

/// Leaves the answer to the lane. After a failure nothing may be under way any more when it is reported: the daemon takes
/// the memory for free then.
fn finish(lane: &Lane, submitted: Result<(), CudaError>, id: u64, mapping: &Arc<Mapping>) -> Result<(), Refusal> {
    let pushed = submitted.and_then(|()| lane.push(Some(id), mapping, None));
    pushed.map_err(|error| match lane.stream.synchronize() {
        Ok(()) => Refusal::Cuda(error),
        Err(_) => Refusal::Lost(error),
    })
}

/// Maps and page-locks a segment of host memory.
fn page_lock(context: &Arc<Context>, segment: &OwnedSegment, gpu: &str) -> Result<Registration> {
    let failed = |reason: String| Error::new(Code::Internal, format!("{gpu}: cannot map page-locked memory: {reason}"));
    let have = rustix::fs::fstat(&segment.fd).map_err(|errno| failed(errno.to_string()))?.st_size;
    // Touching what is beyond the end of a file raises SIGBUS.
    if segment.len_bytes == 0 || u64::try_from(have).unwrap_or(0) < segment.len_bytes {
        return Err(failed(format!("the piece has {have} bytes, not {}", segment.len_bytes)));
    }
    let len = usize::try_from(segment.len_bytes).map_err(|error| failed(error.to_string()))?;
    let memory = MmapOptions::new().len(len).map_raw(&segment.fd).map_err(|error| failed(error.to_string()))?;
    // Keeps model bytes out of core dumps; a kernel that does not know this is no trouble.
    let _ = memory.advise(Advice::DontDump);
    Registration::create(context, memory).map_err(|error| error.about(gpu))
}
