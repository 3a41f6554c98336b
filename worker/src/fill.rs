//! Fills: bringing a missing chunk in, once however many wait, and streaming it to them meanwhile.
//!
//! The first who misses leads: it takes a permit and memory on its own (data) thread, and starts a task that writes
//! into a [`GrowingChunk`]. Everybody gets that chunk as soon as it is known where the bytes come from, and follows
//! the writer. A fill that asks no other worker is one blocking call from its first byte to the queue of the disk: for
//! a small chunk each change of threads costs as much as its bytes. It goes on when all of them leave. Invariant: a
//! flight is in [`Flights`] from the miss until the complete chunk is in the store, so that a chunk is never fetched
//! twice at once. It ends with its fill, however that ends: with all bytes, an error, a panic, or the runtime.
//!
//! Fills that ask another worker to fill have permits and connections of their own: a fill from the origin, which
//! others may wait for, never waits for one of those, or two workers could wait for each other.

mod flight;
mod heads;
mod peer;
mod permits;
mod put;
mod work;

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use longshore_memory::MAPPED_FROM_BYTES;
use longshore_origin::Origins;
use longshore_types::{ChunkId, ChunkKey, Code, Error, Result, redact_url};
use longshore_wire::{
    ChunkBody, ChunkReply, ChunkRequest, ClientOptions, DataClient, GrowingChunk, GrowingWriter, Mode, Tier,
};
use moka::sync::Cache;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::metrics::Metrics;
use crate::peers::Peers;
use crate::store::Store;
use flight::{Flight, Flights, Joined};
pub use heads::HeadFills;
use permits::Permits;
use work::Fill;

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
                    self.flights.land(&id, &flight);
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
        let (chunks, flight, started) = (self.clone(), flight.clone(), Instant::now());
        let fill = Fill { chunks, id, flight, chunk, route, started, is_counted: false, _permit: permit };
        let span = tracing::info_span!("fill", chunk = %id, url, index = key.index(), bytes = key.len_bytes());
        self.metrics.fills_in_flight.inc();
        if fill.route.asks.is_empty() {
            self.runtime.spawn_blocking(move || span.in_scope(|| fill.read_origin(writer)));
        } else {
            self.runtime.spawn(fill.run(writer).instrument(span));
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
}
