//! What the card does at best, as a line to measure loads against: plain loops of large asynchronous copies in this very
//! process, without any of the machinery of a load.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use longshore_memory::PinnedArena;
use longshore_types::{Code, Error, Result};
use memmap2::MmapOptions;

use super::context::{Context, Rows, Stream};
use super::driver::driver;
use super::error::CudaError;
use super::memory::{PlainMemory, Registration};
use super::probe::{self, GpuInfo};

/// How much is copied, and how.
#[derive(Debug, Clone, Copy)]
pub struct RawCopy {
    /// Bytes copied in each round. More than the page-locked memory is fine: it is read again.
    pub bytes: u64,
    /// Bytes of each copy.
    pub copy_bytes: u64,
    /// Streams that the copies go to in turn.
    pub streams: u32,
    /// Rounds to be timed; one more is done before them and not counted.
    pub rounds: u32,
}

impl RawCopy {
    fn check(&self) -> Result<()> {
        let sane = self.bytes > 0 && self.copy_bytes > 0 && (1..=64).contains(&self.streams);
        if sane { Ok(()) } else { Err(Error::new(Code::InvalidArgument, format!("{self:?} copies nothing"))) }
    }

    /// Every copy as offset and length.
    fn copies(&self) -> impl Iterator<Item = (u64, u64)> + use<> {
        let RawCopy { bytes, copy_bytes, .. } = *self;
        (0..bytes.div_ceil(copy_bytes)).map(move |at| (at * copy_bytes, copy_bytes.min(bytes - at * copy_bytes)))
    }
}

/// Times copies from page-locked memory to plain memory of the card.
///
/// # Errors
/// As the driver fails; `InvalidArgument` for sizes that copy nothing or are larger than the page-locked pieces.
pub fn raw_copy_rate(gpu: &GpuInfo, pinned: &PinnedArena, copy: RawCopy) -> Result<Vec<Duration>> {
    copy.check()?;
    let bench = Bench::start(gpu, copy)?;
    let _entered = bench.context.enter().map_err(|error| error.about(&gpu.uuid))?;
    let mut pieces = Vec::new();
    for piece in pinned.pieces() {
        let mapping = MmapOptions::new().len(piece.len_bytes as usize).map_raw(&piece.fd.as_fd()).map_err(|error| {
            Error::new(Code::Internal, format!("cannot map page-locked memory: {error}")).with_source(error)
        })?;
        pieces.push(Registration::create(&bench.context, mapping).map_err(|error| error.about(&gpu.uuid))?);
    }
    // Where each copy reads: one after the other, never across the end of a piece.
    let places: Vec<*const u8> = pieces
        .iter()
        .flat_map(|piece| {
            (0..piece.len_bytes() / copy.copy_bytes).map(|at| at * copy.copy_bytes).map(move |at| (piece, at))
        })
        .map(|(piece, at)| piece.start().wrapping_add(at as usize).cast_const())
        .collect();
    if places.is_empty() {
        let message = format!("copies of {} bytes do not fit in the page-locked pieces", copy.copy_bytes);
        return Err(Error::new(Code::InvalidArgument, message));
    }
    let run = |streams: &[Stream], to: u64| {
        for (at, (offset, len)) in copy.copies().enumerate() {
            let from = places[at % places.len()].cast();
            let rows = Rows { to: to + offset, from, row_bytes: len as usize, pitch_bytes: len as usize, rows: 1 };
            // SAFETY: within a registered piece and within the card's memory; both outlive the streams.
            unsafe { streams[at % streams.len()].copy_to_device(&rows) }?;
        }
        Ok(())
    };
    bench.time(1, run).map_err(|error| error.about(&gpu.uuid))
}

/// Times copies within the card's memory.
///
/// # Errors
/// As the driver fails; `InvalidArgument` for sizes that copy nothing.
pub fn device_copy_rate(gpu: &GpuInfo, copy: RawCopy) -> Result<Vec<Duration>> {
    copy.check()?;
    let bench = Bench::start(gpu, copy)?;
    let _entered = bench.context.enter().map_err(|error| error.about(&gpu.uuid))?;
    let run = |streams: &[Stream], start: u64| {
        for (at, (offset, len)) in copy.copies().enumerate() {
            let from = start + copy.bytes + offset;
            // SAFETY: both are within the card's memory, which outlives the streams.
            unsafe { streams[at % streams.len()].copy_on_device(start + offset, from, len as usize) }?;
        }
        Ok(())
    };
    bench.time(2, run).map_err(|error| error.about(&gpu.uuid))
}

struct Bench {
    context: Arc<Context>,
    copy: RawCopy,
}

impl Bench {
    fn start(gpu: &GpuInfo, copy: RawCopy) -> Result<Bench> {
        let driver = driver()?;
        let device = probe::find(driver, &gpu.uuid)?;
        let context = Context::retain(driver, device).map_err(|error| error.about(&gpu.uuid))?;
        Ok(Bench { context, copy })
    }

    /// Runs `run` over memory of `buffers` times the bytes; the context must be current.
    fn time(
        &self,
        buffers: u64,
        run: impl Fn(&[Stream], u64) -> Result<(), CudaError>,
    ) -> Result<Vec<Duration>, CudaError> {
        let memory = PlainMemory::create(&self.context, self.copy.bytes.saturating_mul(buffers))?;
        let streams =
            (0..self.copy.streams).map(|_| Stream::create(&self.context)).collect::<Result<Vec<_>, CudaError>>()?;
        let mut times = Vec::new();
        for round in 0..=self.copy.rounds {
            let start = Instant::now();
            run(&streams, memory.start())?;
            streams.iter().try_for_each(Stream::synchronize)?;
            if round > 0 {
                times.push(start.elapsed());
            }
        }
        Ok(times)
    }
}
