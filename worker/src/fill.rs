//! Fills: bringing a missing chunk in, once however many wait, and streaming it to them meanwhile.
//!
//! The first who misses leads: it takes a permit and memory on its own (data) thread, and starts a task that writes
//! into a [`GrowingChunk`]. Everybody gets that chunk as soon as it is known where the bytes come from, and follows
//! the writer. A fill that asks no other worker is one blocking call from its first byte to the queue of the disk: for
//! a small chunk each change of threads costs as much as its bytes. It goes on when all of them leave. Invariant: a
//! flight is in [`Flights`] from the miss until the complete chunk is in the store, so that a chunk is never fetched
//! twice at once.
//!
//! Fills that ask another worker to fill have permits and connections of their own: a fill from the origin, which
//! others may wait for, never waits for one of those, or two workers could wait for each other.

mod flight;
mod heads;
mod peer;
mod permits;
mod put;

use std::io::IoSliceMut;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use longshore_memory::MAPPED_FROM_BYTES;
use longshore_origin::{Origins, Sink};
use longshore_types::{ChunkId, ChunkKey, Code, Error, Result, redact_url};
use longshore_wire::{
    ChunkBody, ChunkReply, ChunkRequest, ClientOptions, DataClient, GrowingChunk, GrowingWriter, Mode, Tier,
};
use moka::sync::Cache;
use prometheus::IntCounter;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::metrics::Metrics;
use crate::peers::{Peers, Route};
use crate::store::Store;
use flight::{Flight, Flights, Joined};
pub use heads::HeadFills;
use permits::{Permit, Permits};

/// Bytes fetched from another worker at a time: four blocks.
pub const PEER_STEP_BYTES: u64 = 4 << 20;
/// Most chunks of which it is remembered that they do not exist.
const NEGATIVE_CHUNKS_MAX: u64 = 100_000;

/// What fills need to know.
#[derive(Debug, Clone)]
pub struct FillOptions {
    /// Fills from the origin (or from copies that others have) that run at once.
    pub fills_max: usize,
    /// Fills that ask another worker to fill, at once.
    pub relays_max: usize,
    /// Chunks that are put here at once.
    pub puts_max: usize,
    /// How long a request waits for a permit and memory.
    pub wait: Duration,
    /// How long a chunk that does not exist is not asked for again.
    pub negative_ttl: Duration,
    /// Whether chunks of local files go to the disk tier.
    pub cache_local_origin: bool,
    /// Whether loaders of this host are to be handed chunks in memory.
    pub lends_memory: bool,
}

/// The chunks of this worker, filled when they are missing.
pub struct Chunks {
    /// What is here.
    pub store: Store,
    /// Where everything comes from in the end.
    pub origins: Origins,
    /// The other workers.
    pub peers: Arc<Peers>,
    /// Asks them to fill.
    pub client: DataClient,
    /// Chunks fetched for their heads, when somebody wants to know.
    pub head_fills: OnceLock<Arc<HeadFills>>,
    /// Asks them for what they have.
    copies_client: DataClient,
    options: FillOptions,
    flights: Flights,
    permits: Permits,
    relay_permits: Permits,
    put_permits: Permits,
    negative: Cache<ChunkId, Error>,
    runtime: Handle,
    /// Cancelled when the runtime shuts down: what reads from an origin ends.
    ends: CancellationToken,
    /// Its watch ends with this.
    _alive: oneshot::Sender<()>,
    metrics: Arc<Metrics>,
}

/// A fill at work.
struct Fill {
    id: ChunkId,
    flight: Arc<Flight>,
    chunk: Arc<GrowingChunk>,
    route: Route,
    started: Instant,
    _permit: Permit,
}

impl Chunks {
    /// Puts the parts together; fills run on `runtime`.
    pub fn new(
        store: Store,
        origins: Origins,
        peers: Arc<Peers>,
        client_options: ClientOptions,
        options: FillOptions,
        runtime: Handle,
        metrics: Arc<Metrics>,
    ) -> Arc<Self> {
        let (alive, gone) = oneshot::channel();
        let ends = CancellationToken::new();
        let guard = ends.clone().drop_guard();
        // A runtime that shuts down drops its tasks but waits for what blocks.
        runtime.spawn(async move {
            let _guard = guard;
            // An error is what it waits for: the other half is never sent on.
            let _ = gone.await;
        });
        Arc::new(Chunks {
            store,
            origins,
            peers,
            client: DataClient::new(client_options.clone()),
            head_fills: OnceLock::new(),
            copies_client: DataClient::new(client_options),
            flights: Flights::default(),
            permits: Permits::new(options.fills_max),
            relay_permits: Permits::new(options.relays_max),
            put_permits: Permits::new(options.puts_max),
            negative: Cache::builder().max_capacity(NEGATIVE_CHUNKS_MAX).time_to_live(options.negative_ttl).build(),
            options,
            runtime,
            ends,
            _alive: alive,
            metrics,
        })
    }

    /// Finds or fills a chunk. Blocks until it is known where the bytes come from.
    ///
    /// # Errors
    /// [`Code::NotFound`] on a miss that may not be filled, [`Code::Exhausted`] when the bounds leave no room for a
    /// fill in time, else what the origin said.
    pub fn get(self: &Arc<Self>, request: &ChunkRequest) -> Result<ChunkReply> {
        let (key, id) = (&request.key, request.key.id());
        if let Some(reply) = self.store.get(request, &id) {
            return Ok(reply);
        }
        if request.mode == Mode::OnlyIfCached {
            return self.follow_origin(key, &id);
        }
        if let Some(error) = self.negative.get(&id) {
            return Err(error);
        }
        match self.flights.join(key, id, || self.store.contains(key, &id))? {
            // It came in between the two looks. Should it be gone again already, that is a miss of its own.
            None => self.store.get(&ChunkRequest { recheck: false, ..request.clone() }, &id).ok_or_else(|| {
                Error::new(Code::Unavailable, format!("chunk {id} was evicted while it was asked for; ask again"))
            }),
            Some(Joined::Follow(flight)) => {
                self.metrics.fill_joins.inc();
                let (chunk, _) = flight.wait(self.options.wait)?;
                Ok(ChunkReply { tier: Tier::Memory, body: ChunkBody::Memory(chunk) })
            }
            Some(Joined::Lead(flight)) => {
                if let Err(error) = self.begin(&flight, id, request.mode) {
                    flight.start(Err(error.clone()));
                    self.flights.land(&id);
                    return Err(error);
                }
                let (chunk, tier) = flight.wait(self.options.wait)?;
                Ok(ChunkReply { tier, body: ChunkBody::Memory(chunk) })
            }
        }
    }

    /// What is counted.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// How long a request waits for memory.
    pub fn wait(&self) -> Duration {
        self.options.wait
    }

    /// Fills that are running.
    pub fn fills_in_flight(&self) -> usize {
        self.permits.taken() + self.relay_permits.taken()
    }

    /// Waits until no fill is running; false when `timeout` passes first. Blocks.
    pub fn wait_idle(&self, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        let relayed = self.relay_permits.wait_idle(timeout);
        let put = self.put_permits.wait_idle(deadline.saturating_duration_since(Instant::now()));
        relayed & put & self.permits.wait_idle(deadline.saturating_duration_since(Instant::now()))
    }

    fn follow_origin(&self, key: &ChunkKey, id: &ChunkId) -> Result<ChunkReply> {
        let Some(flight) = self.flights.reading_origin(key, id) else {
            return Err(Error::new(Code::NotFound, format!("chunk {id} is not cached here")));
        };
        self.metrics.fill_joins.inc();
        let (chunk, _) = flight.wait(self.options.wait)?;
        Ok(ChunkReply { tier: Tier::Memory, body: ChunkBody::Memory(chunk) })
    }

    /// Takes what a fill needs and starts it.
    fn begin(self: &Arc<Self>, flight: &Arc<Flight>, id: ChunkId, mode: Mode) -> Result<()> {
        let key = &flight.key;
        let url = redact_url(key.artifact().url());
        // The request names the URL: it must be one that the origin layer would have written itself.
        if self.origins.canonical_url(key.artifact().url())? != key.artifact().url() {
            return Err(Error::new(Code::InvalidArgument, format!("{url} is not in its canonical form")));
        }
        let route = self.peers.route(&id, mode);
        let permits = if route.is_relay() { &self.relay_permits } else { &self.permits };
        let permit = permits.take(self.options.wait).ok_or_else(|| {
            let (running, waited) = (permits.taken(), self.options.wait);
            Error::new(Code::Exhausted, format!("{running} fills are running and none ended within {waited:?}"))
        })?;
        let (writer, chunk) = self.begin_chunk(key, self.options.wait)?;
        let fill = Fill { id, flight: flight.clone(), chunk, route, started: Instant::now(), _permit: permit };
        let span = tracing::info_span!("fill", chunk = %id, url, index = key.index(), bytes = key.len_bytes());
        let chunks = self.clone();
        self.metrics.fills_in_flight.inc();
        if fill.route.asks.is_empty() {
            self.runtime.spawn_blocking(move || span.in_scope(|| chunks.fill_from_origin(fill, writer)));
        } else {
            self.runtime.spawn(async move { chunks.run(fill, writer).await }.instrument(span));
        }
        Ok(())
    }

    /// Memory for a chunk that is about to be filled.
    fn begin_chunk(&self, key: &ChunkKey, wait: Duration) -> Result<(GrowingWriter, Arc<GrowingChunk>)> {
        let buffer = self.store.memory.chunk_buffer(key.len_bytes() as usize, wait)?;
        if self.options.lends_memory && buffer.file().is_none() && buffer.len() >= MAPPED_FROM_BYTES {
            self.metrics.fallback("memory_not_shared");
        }
        GrowingChunk::begin(key.clone(), buffer)
    }

    /// Asks the other workers first; what blocks then is one call.
    async fn run(self: Arc<Self>, fill: Fill, mut writer: GrowingWriter) {
        let is_whole = self.write_from_peers(&fill, &mut writer).await;
        let span = tracing::Span::current();
        let rest = tokio::task::spawn_blocking(move || {
            span.in_scope(|| match is_whole {
                true => self.conclude(&fill, Tier::Peer, Ok((writer, Ok(())))),
                false => self.fill_from_origin(fill, writer),
            });
        });
        if let Err(error) = rest.await {
            tracing::error!(%error, "the end of a fill was lost");
        }
    }

    /// Brings what is missing from the origin. Blocks, until the chunk is in the queue of the disk.
    fn fill_from_origin(&self, fill: Fill, writer: GrowingWriter) {
        fill.flight.reached_origin();
        fill.flight.start(Ok((fill.chunk.clone(), Tier::Origin)));
        let written = self.write_from_origin(&fill, writer);
        self.conclude(&fill, Tier::Origin, written);
    }

    /// Straight into the chunk's memory. It ends soon when the runtime shuts down.
    fn write_from_origin(&self, fill: &Fill, mut writer: GrowingWriter) -> Result<Written> {
        let key = &fill.flight.key;
        let bytes = self.metrics.fill_bytes.with_label_values(&[Tier::Origin.as_str()]);
        let read = catch_unwind(AssertUnwindSafe(move || {
            let range = key.range();
            let rest = range.start + writer.written_bytes()..range.end;
            let mut sink = Filling { writer: &mut writer, bytes };
            let read = self.origins.read_into(key.artifact(), rest, &mut sink, &self.runtime, &self.ends);
            (writer, read)
        }));
        // What the panic said has been printed by its hook.
        read.map_err(|_| Error::new(Code::Internal, "the reading from the origin panicked"))
    }

    /// Ends a fill, well or not.
    fn conclude(&self, fill: &Fill, source: Tier, written: Result<Written>) {
        let (writer, written) = match written {
            Ok(written) => written,
            // The writer is lost, which its readers have learned already.
            Err(error) => {
                self.count(source, fill.started, &Err(error.clone()));
                return self.give_up(fill, &error);
            }
        };
        let outcome = written.and_then(|()| match writer.remaining_bytes() {
            0 => Ok(()),
            missing => Err(Error::new(Code::Corrupt, format!("{source} ended {missing} bytes before the chunk did"))),
        });
        // Counted, and a failure forgotten, before the readers learn of the end: who asks next sees it.
        self.count(source, fill.started, &outcome);
        match outcome {
            Ok(()) => match writer.finish() {
                Ok(()) => self.keep(fill, source),
                Err(error) => self.give_up(fill, &error),
            },
            Err(error) => {
                tracing::warn!(%source, code = %error.code(), %error, "fill failed");
                self.give_up(fill, &error);
                writer.fail(error);
            }
        }
    }

    fn count(&self, source: Tier, started: Instant, outcome: &Result<()>) {
        let seconds = started.elapsed().as_secs_f64();
        self.metrics.fill_seconds.with_label_values(&[source.as_str()]).observe(seconds);
        let label = outcome.as_ref().map_or_else(|error| error.code().as_str(), |()| "ok");
        self.metrics.fills.with_label_values(&[source.as_str(), label]).inc();
        self.metrics.fills_in_flight.dec();
    }

    fn give_up(&self, fill: &Fill, error: &Error) {
        if error.code() == Code::NotFound {
            self.negative.insert(fill.id, error.clone());
        }
        self.flights.land(&fill.id);
        fill.flight.start(Err(error.clone()));
    }

    /// Puts a complete chunk into the store. The fill's permit is held until the queue of the disk has taken it: that is
    /// what keeps a fast origin from outrunning the disk at once.
    fn keep(&self, fill: &Fill, source: Tier) {
        let (id, url) = (fill.id, fill.flight.key.artifact().url());
        self.store.memory.put(id, fill.chunk.clone());
        self.flights.land(&id);
        // A copy of what an owner has belongs there; memory is enough for it here.
        let belongs_here = fill.route.is_mine || source == Tier::Origin;
        let is_for_disk = belongs_here && (self.options.cache_local_origin || Origins::local_path(url).is_none());
        if let Some(disk) = self.store.disk.as_ref().filter(|_| is_for_disk) {
            disk.put(fill.chunk.clone());
        }
        if self.store.was_freed(url, fill.started) {
            self.store.forget(&id);
        }
    }
}

/// The writer of a chunk, and how its filling went.
type Written = (GrowingWriter, Result<()>);

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
