//! One load's chunks, as the fetch threads see them.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use longshore_device::{Intake, Land, Part, RegionBuilder, Upload};
use longshore_types::{Code, Error, Result};
use parking_lot::{Mutex, RwLock};
use tokio_util::sync::CancellationToken;

use super::reader::{ChunkReader, Wanted};
use super::stage::{self, Stage};
use super::storage::{Failure, Storage};
use crate::load::ProgressSender;
use crate::pinned::PinnedTier;
use crate::plan::{ChunkPlan, Layout, Plan};
use crate::report::Step;

/// A load in its fetch step.
pub(crate) struct Job {
    chunks: Vec<ChunkPlan>,
    layout: Mutex<Option<Layout>>,
    /// Read by the threads, taken out when the last one is done.
    builders: RwLock<Option<Vec<Box<dyn RegionBuilder>>>>,
    reader: ChunkReader,
    /// Where bytes wait for their copy, when a region takes copies.
    pinned: Option<Arc<PinnedTier>>,
    /// The device's own way to local files, when it is to be used.
    storage: Option<Storage>,
    progress: ProgressSender,
    counts: Mutex<Counts>,
    /// When the first bytes were handed to a copier, and how many there were in all.
    uploading_since: OnceLock<Instant>,
    uploaded_bytes: AtomicU64,
    /// A copy could not be begun, and repeating the load may cure that.
    device_failed: AtomicBool,
    finished: CancellationToken,
}

#[derive(Default)]
struct Counts {
    next: usize,
    /// Chunks that another load was fetching when it was their turn. Filled only while there is a next one, so that
    /// the job is in line as long as there are any.
    deferred: VecDeque<usize>,
    active: usize,
    is_closed: bool,
    error: Option<Error>,
}

/// A chunk for a thread.
#[derive(Debug, Clone, Copy)]
pub(super) struct Turn {
    index: usize,
    /// It was left for later once: now the thread waits for it.
    was_deferred: bool,
}

impl Job {
    pub(crate) fn new(
        plan: Plan,
        builders: Vec<Box<dyn RegionBuilder>>,
        reader: ChunkReader,
        pinned: Option<Arc<PinnedTier>>,
        progress: ProgressSender,
    ) -> Arc<Job> {
        let chunks = match &pinned {
            Some(tier) => stage::sort(tier, plan.chunks),
            None => plan.chunks,
        };
        Arc::new(Job {
            chunks,
            layout: Mutex::new(Some(plan.layout)),
            builders: RwLock::new(Some(builders)),
            storage: reader.gpudirect_storage().then(Storage::default),
            reader,
            pinned,
            progress,
            counts: Mutex::default(),
            uploading_since: OnceLock::new(),
            uploaded_bytes: AtomicU64::new(0),
            device_failed: AtomicBool::new(false),
            finished: CancellationToken::new(),
        })
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// Hands out the next chunk, and says whether there are more behind it.
    pub(super) fn begin_next(&self) -> Option<(Turn, bool)> {
        let mut counts = self.counts.lock();
        if counts.is_closed {
            return None;
        }
        let has_next = counts.next < self.chunks.len();
        let is_due = |&index: &usize| !has_next || self.is_there(index);
        let turn = match counts.deferred.front().copied().filter(is_due) {
            Some(index) => {
                counts.deferred.pop_front();
                Turn { index, was_deferred: true }
            }
            None if has_next => {
                counts.next += 1;
                Turn { index: counts.next - 1, was_deferred: false }
            }
            None => return None,
        };
        counts.active += 1;
        Some((turn, self.has_more(&counts)))
    }

    fn has_more(&self, counts: &Counts) -> bool {
        counts.next < self.chunks.len() || !counts.deferred.is_empty()
    }

    /// Whether another load has brought this chunk here by now.
    fn is_there(&self, index: usize) -> bool {
        self.pinned.as_ref().is_some_and(|tier| stage::is_there(tier, &self.chunks[index]))
    }

    /// Leaves a chunk for later, if there is anything else to do until then.
    fn defer(&self, turn: Turn) -> bool {
        let mut counts = self.counts.lock();
        let may_defer = !turn.was_deferred && !counts.is_closed && counts.next < self.chunks.len();
        if may_defer {
            counts.deferred.push_back(turn.index);
        }
        may_defer
    }

    /// Fetches one chunk that [`Job::begin_next`] handed out. The first error ends the job.
    pub(super) fn fetch(&self, turn: Turn, thread: u32) {
        let _span = self.reader.span().enter();
        // A panic must not leave the load waiting for this chunk for ever.
        let result = catch_unwind(AssertUnwindSafe(|| self.fetch_chunk(turn, thread)));
        let result = result.unwrap_or_else(|_| Err(Error::new(Code::Internal, "a fetch thread panicked")));
        let mut counts = self.counts.lock();
        counts.active -= 1;
        if let Err(error) = result {
            counts.is_closed = true;
            self.reader.cancel();
            // Those that follow are its consequence: cancelled by it.
            counts.error.get_or_insert(error);
        }
        self.note_end(&counts);
    }

    fn fetch_chunk(&self, turn: Turn, thread: u32) -> Result<()> {
        let chunk = &self.chunks[turn.index];
        let builders = self.builders.read();
        let builders = builders.as_ref().ok_or_else(|| Error::new(Code::Internal, "the load has ended already"))?;
        let builder = builders.get(chunk.region as usize);
        let builder = builder.ok_or_else(|| Error::new(Code::Internal, "a chunk of no region"))?;
        match builder.intake() {
            Intake::Land(land) => self.land(land, chunk, thread)?,
            Intake::Upload(upload) => {
                if !self.upload(upload, turn, thread)? {
                    return Ok(());
                }
            }
        }
        self.progress.send_modify(|progress| {
            progress.bytes_done += chunk.len_bytes();
            progress.elapsed = self.reader.recorder().elapsed();
        });
        Ok(())
    }

    /// Into the region itself.
    fn land(&self, land: &dyn Land, chunk: &ChunkPlan, thread: u32) -> Result<()> {
        let mut landing = land.landing(&chunk.parts)?;
        let wanted = Wanted { key: &chunk.key, range: chunk.range.clone(), expected: chunk.expected.as_ref() };
        self.reader.read(&wanted, &mut landing, thread)?;
        let recorder = self.reader.recorder();
        let timer = recorder.begin(Step::Upload);
        land.submit(landing)?;
        recorder.end(timer, thread, chunk.len_bytes(), "");
        Ok(())
    }

    /// To a device that is copied to. `false` when the chunk was left for later.
    fn upload(&self, upload: &dyn Upload, turn: Turn, thread: u32) -> Result<bool> {
        let chunk = &self.chunks[turn.index];
        let may_read_itself = |storage: &&Storage| !storage.leaves_to_host(chunk, &self.reader);
        let storage = self.storage.as_ref().filter(|_| !self.is_there(turn.index)).filter(may_read_itself);
        let Some(storage) = storage else {
            return self.stage(upload, chunk, || self.defer(turn), thread);
        };
        let rest = storage.bring(upload, chunk, &self.reader, thread).map_err(|failure| match failure {
            Failure::Load(error) => error,
            Failure::Device(error) => self.note_device(error),
        })?;
        match rest {
            None => self.stage(upload, chunk, || self.defer(turn), thread),
            // No part of it may be left for later: the others are there.
            Some(rest) => {
                rest.iter().try_for_each(|part| self.stage(upload, part, || false, thread).map(drop)).map(|()| true)
            }
        }
    }

    /// Into a page-locked slot, and from there on to the device. The copy may still run when this returns. `false` when
    /// the chunk was left for later.
    fn stage(&self, upload: &dyn Upload, chunk: &ChunkPlan, defer: impl Fn() -> bool, thread: u32) -> Result<bool> {
        let tier = self
            .pinned
            .as_ref()
            .ok_or_else(|| Error::new(Code::Internal, "a device that is copied to came without page-locked memory"))?;
        let stage = Stage { tier, reader: &self.reader, near: upload.node(), thread };
        let Some(staged) = stage.bring(chunk, defer)? else { return Ok(false) };
        let recorder = self.reader.recorder();
        let timer = recorder.begin(Step::Upload);
        self.uploading_since.get_or_init(Instant::now);
        upload.upload(staged.chunk(), chunk.range.start, &chunk.parts).map_err(|error| self.note_device(error))?;
        let placed_bytes = chunk.parts.iter().map(placed_bytes).sum();
        recorder.end(timer, thread, placed_bytes, "");
        self.uploaded_bytes.fetch_add(placed_bytes, Ordering::Relaxed);
        Ok(true)
    }

    /// Remembers whether repeating the load may cure what a device says.
    fn note_device(&self, error: Error) -> Error {
        if error.code() == Code::Unavailable {
            self.device_failed.store(true, Ordering::Relaxed);
        }
        error
    }

    /// No further chunk is handed out.
    pub(super) fn withdraw(&self) {
        let mut counts = self.counts.lock();
        if self.has_more(&counts) {
            let error = || Error::new(Code::Cancelled, "the load was given up");
            counts.error.get_or_insert_with(error);
        }
        counts.is_closed = true;
        self.note_end(&counts);
    }

    fn note_end(&self, counts: &Counts) {
        if counts.active == 0 && (counts.is_closed || !self.has_more(counts)) {
            self.finished.cancel();
        }
    }

    /// Waits until no thread works on the job and none will.
    pub(super) async fn finished(&self) {
        self.finished.cancelled().await;
    }

    pub(super) fn outcome(&self) -> Result<()> {
        self.counts.lock().error.clone().map_or(Ok(()), Err)
    }

    /// Bytes handed to copiers up to now, and the time since the first of them.
    pub(crate) fn uploaded(&self) -> Option<(u64, Duration)> {
        let since = self.uploading_since.get()?;
        Some((self.uploaded_bytes.load(Ordering::Relaxed), since.elapsed()))
    }

    /// Whether a device failed in a way that repeating the load may cure.
    pub(crate) fn device_failed(&self) -> bool {
        self.device_failed.load(Ordering::Relaxed)
    }

    /// The regions, after the end. Waits for a thread that is just leaving.
    pub(crate) fn take_builders(&self) -> Result<Vec<Box<dyn RegionBuilder>>> {
        let builders = self.builders.write().take();
        builders.ok_or_else(|| Error::new(Code::Internal, "the region was taken already"))
    }

    /// The layout, once.
    pub(crate) fn take_layout(&self) -> Result<Layout> {
        self.layout.lock().take().ok_or_else(|| Error::new(Code::Internal, "the layout was taken already"))
    }

    /// Counts how local files were read, once.
    pub(crate) fn count_local_reads(&self) {
        self.reader.count_local_reads();
    }

    /// Local files must still be what they were when the load began.
    pub(crate) fn check_local_files(&self) -> Result<()> {
        self.reader.check_local_files()
    }
}

/// Bytes of a part that go to the region.
fn placed_bytes(part: &Part) -> u64 {
    // A part that is malformed was refused by the device.
    part.destination().ok().flatten().map_or(0, |(_, len_bytes)| len_bytes)
}
