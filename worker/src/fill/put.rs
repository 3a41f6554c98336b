//! Chunks that come in from who saved them, instead of being fetched: into the cache, or to be held.

use std::sync::Arc;
use std::time::{Duration, Instant};

use longshore_origin::Origins;
use longshore_types::checkpoint::AttemptId;
use longshore_types::{ChunkId, Code, Error, Result, redact_url};
use longshore_wire::{GrowingChunk, GrowingWriter, Incoming, PutMode, PutRequest, PutStart};

use super::Chunks;
use super::permits::Permit;
use crate::store::hold::{Holds, Room};

/// How long a put waits for its turn and for memory; whoever puts waits longer for an answer.
const PUT_WAIT: Duration = Duration::from_secs(10);

/// A chunk on its way in.
struct Arriving {
    chunks: Arc<Chunks>,
    id: ChunkId,
    chunk: Arc<GrowingChunk>,
    /// Taken when it is finished.
    writer: GrowingWriter,
    goal: Goal,
    started: Instant,
    _permit: Permit,
}

enum Goal {
    Cache,
    Hold { holds: Arc<Holds>, attempt: AttemptId, room: Room },
}

impl Chunks {
    /// Makes room for a chunk that comes from outside, unless it is here. Blocks for a bounded time.
    ///
    /// # Errors
    /// [`Code::PermissionDenied`] for anything but objects of checkpoints; [`Code::Exhausted`] without room;
    /// [`Code::FailedPrecondition`] for a chunk that is to be held where nothing can be.
    pub fn put(self: &Arc<Self>, request: &PutRequest) -> Result<PutStart> {
        let started = self.begin_put(request);
        let outcome = match &started {
            Ok(PutStart::There) => "there",
            // Counted when it has ended.
            Ok(PutStart::Take(_)) => return started,
            Err(error) => error.code().as_str(),
        };
        self.metrics.puts.with_label_values(&[request.mode.as_str(), outcome]).inc();
        started
    }

    /// Lets go of what is held for an attempt. Blocks.
    pub fn release(&self, attempt: &AttemptId) {
        if let Some(holds) = &self.store.holds {
            holds.release(attempt);
        }
    }

    fn begin_put(self: &Arc<Self>, request: &PutRequest) -> Result<PutStart> {
        let (key, id, artifact) = (&request.key, request.key.id(), request.key.artifact());
        let url = || redact_url(artifact.url());
        if !artifact.is_of_attempt() {
            // The origin alone says what is in its objects; a checkpoint is compared with its commit by who loads it.
            let why = format!(
                "{} at {} is no object of a checkpoint: it is only read from its origin",
                url(),
                artifact.version()
            );
            return Err(Error::new(Code::PermissionDenied, why));
        }
        if self.origins.canonical_url(artifact.url())? != artifact.url() {
            return Err(Error::new(Code::InvalidArgument, format!("{} is not in its canonical form", url())));
        }
        let held = match request.mode {
            PutMode::Cache => match self.store.checksums(key, &id) {
                Some(checksums) if checksums == request.checksums => return Ok(PutStart::There),
                Some(_) => {
                    self.metrics.fallback("put_replaced");
                    tracing::warn!(url = url(), index = key.index(), "a chunk that was put before differs; replaced");
                    self.store.forget(&id);
                    None
                }
                None => None,
            },
            PutMode::Hold { attempt } => {
                let holds = self.store.holds.clone().ok_or_else(|| {
                    Error::new(Code::FailedPrecondition, "this worker keeps no chunks on a disk, so it can hold none")
                })?;
                if holds.contains(&attempt, key, &id, &request.checksums) {
                    return Ok(PutStart::There);
                }
                Some((holds, attempt))
            }
        };
        let permit = self.put_permits.take(PUT_WAIT).ok_or_else(|| {
            let running = self.put_permits.taken();
            Error::new(Code::Exhausted, format!("{running} chunks are coming in and none ended within {PUT_WAIT:?}"))
        })?;
        let goal = match held {
            Some((holds, attempt)) => Goal::Hold { room: holds.room(&attempt, key)?, holds, attempt },
            None => Goal::Cache,
        };
        let (writer, chunk) = self.begin_chunk(key, PUT_WAIT)?;
        let (chunks, started) = (self.clone(), Instant::now());
        Ok(PutStart::Take(Box::new(Arriving { chunks, id, chunk, writer, goal, started, _permit: permit })))
    }
}

impl Incoming for Arriving {
    fn writer(&mut self) -> &mut GrowingWriter {
        &mut self.writer
    }

    fn keep(self: Box<Self>) -> Result<()> {
        let Arriving { chunks, id, chunk, writer, goal, started, _permit } = *self;
        let mode = if matches!(goal, Goal::Cache) { "cache" } else { "hold" };
        let kept = writer.finish().and_then(|()| match goal {
            Goal::Cache => {
                chunks.keep_put(id, &chunk, started);
                Ok(())
            }
            Goal::Hold { holds, attempt, room } => holds.keep(attempt, &chunk, room),
        });
        let outcome = kept.as_ref().map_or_else(|error| error.code().as_str(), |()| "ok");
        chunks.metrics.puts.with_label_values(&[mode, outcome]).inc();
        if kept.is_ok() {
            chunks.metrics.put_bytes.with_label_values(&[mode]).inc_by(chunk.len_bytes());
        }
        kept
    }
}

impl Chunks {
    /// As a chunk that was filled.
    fn keep_put(&self, id: ChunkId, chunk: &Arc<GrowingChunk>, started: Instant) {
        let url = chunk.key().artifact().url();
        self.store.memory.put(id, chunk.clone());
        self.negative.invalidate(&id);
        let is_for_disk = self.options.cache_local_origin || Origins::local_path(url).is_none();
        if let Some(disk) = self.store.disk.as_ref().filter(|_| is_for_disk) {
            disk.put(chunk.clone());
        }
        if self.store.was_freed(url, started) {
            self.store.forget(&id);
        }
    }
}
