//! One load's chunks, as the fetch threads see them.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use longshore_device::{Intake, RegionBuilder};
use longshore_types::{Code, Error, Result};
use parking_lot::{Mutex, RwLock};
use tokio_util::sync::CancellationToken;

use super::reader::ChunkReader;
use crate::load::ProgressSender;
use crate::plan::{ChunkPlan, Layout, Plan};
use crate::report::Step;

/// A load in its fetch step.
pub(crate) struct Job {
    chunks: Vec<ChunkPlan>,
    layout: Mutex<Option<Layout>>,
    /// Read by the threads, taken out when the last one is done.
    builders: RwLock<Option<Vec<Box<dyn RegionBuilder>>>>,
    reader: ChunkReader,
    progress: ProgressSender,
    counts: Mutex<Counts>,
    finished: CancellationToken,
}

#[derive(Default)]
struct Counts {
    next: usize,
    active: usize,
    is_closed: bool,
    error: Option<Error>,
}

impl Job {
    pub(crate) fn new(
        plan: Plan,
        builders: Vec<Box<dyn RegionBuilder>>,
        reader: ChunkReader,
        progress: ProgressSender,
    ) -> Arc<Job> {
        Arc::new(Job {
            chunks: plan.chunks,
            layout: Mutex::new(Some(plan.layout)),
            builders: RwLock::new(Some(builders)),
            reader,
            progress,
            counts: Mutex::default(),
            finished: CancellationToken::new(),
        })
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// Hands out the next chunk, and says whether there are more behind it.
    pub(super) fn begin_next(&self) -> Option<(usize, bool)> {
        let mut counts = self.counts.lock();
        if counts.is_closed || counts.next >= self.chunks.len() {
            return None;
        }
        let index = counts.next;
        counts.next += 1;
        counts.active += 1;
        Some((index, counts.next < self.chunks.len()))
    }

    /// Fetches one chunk that [`Job::begin_next`] handed out. The first error ends the job.
    pub(super) fn fetch(&self, index: usize, thread: u32) {
        let _span = self.reader.span().enter();
        // A panic must not leave the load waiting for this chunk for ever.
        let result = catch_unwind(AssertUnwindSafe(|| self.fetch_chunk(&self.chunks[index], thread)));
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

    fn fetch_chunk(&self, chunk: &ChunkPlan, thread: u32) -> Result<()> {
        let builders = self.builders.read();
        let builders = builders.as_ref().ok_or_else(|| Error::new(Code::Internal, "the load has ended already"))?;
        let builder = builders.get(chunk.region as usize);
        let builder = builder.ok_or_else(|| Error::new(Code::Internal, "a chunk of no region"))?;
        let recorder = self.reader.recorder();
        let Intake::Land(land) = builder.intake() else {
            return Err(Error::new(Code::Unsupported, "this device is not supported yet"));
        };
        let mut landing = land.landing(&chunk.parts)?;
        self.reader.read(chunk, &mut landing, thread)?;
        let timer = recorder.begin(Step::Upload);
        land.submit(landing)?;
        recorder.end(timer, thread, chunk.len_bytes(), "");
        self.progress.send_modify(|progress| {
            progress.bytes_done += chunk.len_bytes();
            progress.elapsed = recorder.elapsed();
        });
        Ok(())
    }

    /// No further chunk is handed out.
    pub(super) fn withdraw(&self) {
        let mut counts = self.counts.lock();
        if counts.next < self.chunks.len() {
            let error = || Error::new(Code::Cancelled, "the load was given up");
            counts.error.get_or_insert_with(error);
        }
        counts.is_closed = true;
        self.note_end(&counts);
    }

    fn note_end(&self, counts: &Counts) {
        if counts.active == 0 && (counts.is_closed || counts.next >= self.chunks.len()) {
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

    /// The regions, after the end. Waits for a thread that is just leaving.
    pub(crate) fn take_builders(&self) -> Result<Vec<Box<dyn RegionBuilder>>> {
        let builders = self.builders.write().take();
        builders.ok_or_else(|| Error::new(Code::Internal, "the region was taken already"))
    }

    /// The layout, once.
    pub(crate) fn take_layout(&self) -> Result<Layout> {
        self.layout.lock().take().ok_or_else(|| Error::new(Code::Internal, "the layout was taken already"))
    }

    /// Local files must still be what they were when the load began.
    pub(crate) fn check_local_files(&self) -> Result<()> {
        self.reader.check_local_files()
    }
}
