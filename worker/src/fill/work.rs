//! One fill, from its start to the store.

use std::io::IoSliceMut;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use longshore_origin::{Origins, Sink};
use longshore_types::{ChunkId, Code, Error, Result};
use longshore_wire::{GrowingChunk, GrowingWriter, Tier};
use prometheus::IntCounter;

use super::Chunks;
use super::flight::Flight;
use super::permits::Permit;
use crate::peers::Route;

/// A fill at work. Dropped before its end it has failed: the runtime drops what it has not run yet when it shuts down.
pub(super) struct Fill {
    pub(super) chunks: Arc<Chunks>,
    pub(super) id: ChunkId,
    pub(super) flight: Arc<Flight>,
    pub(super) chunk: Arc<GrowingChunk>,
    pub(super) route: Route,
    pub(super) started: Instant,
    pub(super) is_counted: bool,
    pub(super) _permit: Permit,
}

impl Fill {
    /// Asks the other workers first; what blocks then is one call.
    pub(super) async fn run(self, mut writer: GrowingWriter) {
        let is_whole = self.chunks.write_from_peers(&self, &mut writer).await;
        let span = tracing::Span::current();
        let rest = tokio::task::spawn_blocking(move || {
            span.in_scope(|| match is_whole {
                true => self.conclude(Tier::Peer, writer, Ok(())),
                false => self.read_origin(writer),
            });
        });
        if let Err(error) = rest.await {
            tracing::error!(%error, "the end of a fill was lost");
        }
    }

    /// Brings what is missing from the origin. Blocks, until the chunk is in the queue of the disk.
    pub(super) fn read_origin(self, mut writer: GrowingWriter) {
        self.flight.reached_origin();
        self.flight.start(Ok((self.chunk.clone(), Tier::Origin)));
        let read = self.write_from_origin(&mut writer);
        self.conclude(Tier::Origin, writer, read);
    }

    /// Straight into the chunk's memory. It ends soon when the runtime shuts down.
    fn write_from_origin(&self, writer: &mut GrowingWriter) -> Result<()> {
        let (chunks, key) = (&self.chunks, &self.flight.key);
        let bytes = chunks.metrics.fill_bytes.with_label_values(&[Tier::Origin.as_str()]);
        // What was written before a panic stays as it is: the chunk fails, and nobody is given more of it.
        let read = catch_unwind(AssertUnwindSafe(|| {
            let range = key.range();
            let rest = range.start + writer.written_bytes()..range.end;
            let mut sink = Filling { writer, bytes };
            chunks.origins.read_into(key.artifact(), rest, &mut sink, &chunks.runtime, &chunks.ends)
        }));
        // What the panic said has been printed by its hook.
        match read {
            // Nothing else cancels it.
            Ok(Err(error)) if error.code() == Code::Cancelled => Err(self.shut_down()),
            Ok(read) => read,
            Err(_) => {
                Err(Error::new(Code::Internal, format!("the reading of chunk {} from its origin panicked", self.id)))
            }
        }
    }

    /// Ends a fill, well or not.
    fn conclude(mut self, source: Tier, writer: GrowingWriter, written: Result<()>) {
        let outcome = written.and_then(|()| match writer.remaining_bytes() {
            0 => Ok(()),
            missing => Err(Error::new(Code::Corrupt, format!("{source} ended {missing} bytes before the chunk did"))),
        });
        // Counted, and a failure forgotten, before the readers learn of the end: who asks next sees it.
        self.count(source, &outcome);
        match outcome {
            Ok(()) => match writer.finish() {
                Ok(()) => self.keep(source),
                Err(error) => self.give_up(&error),
            },
            Err(error) => {
                tracing::warn!(%source, code = %error.code(), %error, "fill failed");
                self.give_up(&error);
                writer.fail(error);
            }
        }
    }

    fn count(&mut self, source: Tier, outcome: &Result<()>) {
        let (metrics, seconds) = (&self.chunks.metrics, self.started.elapsed().as_secs_f64());
        metrics.fill_seconds.with_label_values(&[source.as_str()]).observe(seconds);
        let label = outcome.as_ref().map_or_else(|error| error.code().as_str(), |()| "ok");
        metrics.fills.with_label_values(&[source.as_str(), label]).inc();
        metrics.fills_in_flight.dec();
        self.is_counted = true;
    }

    fn give_up(&self, error: &Error) {
        if error.code() == Code::NotFound {
            self.chunks.negative.insert(self.id, error.clone());
        }
        self.chunks.flights.land(&self.id, &self.flight);
        self.flight.start(Err(error.clone()));
    }

    /// Puts a complete chunk into the store. The fill's permit is held until the queue of the disk has taken it: that is
    /// what keeps a fast origin from outrunning the disk at once.
    fn keep(&self, source: Tier) {
        let (chunks, id, url) = (&self.chunks, self.id, self.flight.key.artifact().url());
        chunks.store.memory.put(id, self.chunk.clone());
        chunks.flights.land(&id, &self.flight);
        // A copy of what an owner has belongs there; memory is enough for it here.
        let belongs_here = self.route.is_mine || source == Tier::Origin;
        let is_for_disk = belongs_here && (chunks.options.cache_local_origin || Origins::local_path(url).is_none());
        if let Some(disk) = chunks.store.disk.as_ref().filter(|_| is_for_disk) {
            disk.put(self.chunk.clone());
        }
        if chunks.store.was_freed(url, self.started) {
            chunks.store.forget(&id);
        }
    }

    fn shut_down(&self) -> Error {
        Error::new(Code::Cancelled, format!("chunk {} is not filled: the worker is shutting down", self.id))
    }
}

impl Drop for Fill {
    fn drop(&mut self) {
        if !self.chunks.flights.land(&self.id, &self.flight) {
            return;
        }
        // Nobody ended it. Those who read the chunk have learned of it from its writer.
        let error = match std::thread::panicking() {
            true => Error::new(Code::Internal, format!("the fill of chunk {} panicked", self.id)),
            false => self.shut_down(),
        };
        if !self.is_counted {
            let source = if self.route.asks.is_empty() { Tier::Origin } else { Tier::Peer };
            self.count(source, &Err(error.clone()));
        }
        self.flight.start(Err(error));
    }
}

/// A chunk that is being filled from its front.
struct Filling<'a> {
    writer: &'a mut GrowingWriter,
    bytes: IntCounter,
}

impl Sink for Filling<'_> {
    fn spare(&mut self, len_max: usize) -> Vec<IoSliceMut<'_>> {
        let spare = self.writer.spare();
        let len = spare.len().min(len_max);
        vec![IoSliceMut::new(&mut spare[..len])]
    }

    fn filled(&mut self, len: usize) -> Result<()> {
        self.bytes.inc_by(len as u64);
        self.writer.commit(len)
    }
}
