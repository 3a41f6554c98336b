//! Chunks that are saved here, to the workers: to the caches of their owners on the ring, and as durable copies to nodes
//! other than this one.
//!
//! A cache that cannot be reached is passed over for the chunk's next owner, which loads ask next. A durable copy goes to a
//! host that has no other copy of the chunk, in the order of the ring from the chunk on, so that copies of a checkpoint
//! spread over the hosts. Whatever fails is counted, and told to whoever put it. The way back is in `sink/held.rs`.

mod held;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use longshore_checkpoint::{ChunkSink, HeldRecords, SinkHow};
use longshore_types::checkpoint::AttemptId;
use longshore_types::{BlockChecksum, ChunkId, ChunkKey, Code, Error, Result, redact_url};
use longshore_wire::{DataClient, PutMode};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use crate::cluster::{Cluster, Holder, Source};

/// Owners of a chunk whose caches are tried.
const CACHES_TRIED: usize = 2;
/// Copies of which it is remembered where they are; those of attempts that ended are forgotten.
const PLACES_MAX: usize = 1 << 20;
/// Members that are told at once that an attempt has ended.
const RELEASES_AT_ONCE: usize = 16;

/// [`ChunkSink`] over the workers of the cluster.
pub struct ClusterSink {
    cluster: Arc<dyn Cluster>,
    client: DataClient,
    /// The hosts that have, or are being sent, a copy.
    places: Mutex<HashMap<(AttemptId, ChunkId), Vec<Place>>>,
    counts: Counts,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Place {
    copy: u32,
    host: String,
}

#[derive(Debug, Default)]
struct Counts {
    cached: AtomicU64,
    cache_failures: AtomicU64,
    held: AtomicU64,
    hold_failures: AtomicU64,
    release_failures: AtomicU64,
}

/// What a sink did so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SinkStats {
    /// Chunks that a cache took, or had.
    pub cached: u64,
    /// Puts into a cache that failed.
    pub cache_failures: u64,
    /// Copies that a peer holds.
    pub held: u64,
    /// Puts of copies that failed.
    pub hold_failures: u64,
    /// Members that could not be told that an attempt has ended: they find out by themselves, days later.
    pub release_failures: u64,
}

impl ClusterSink {
    /// Puts over the connections of `client`.
    pub fn new(cluster: Arc<dyn Cluster>, client: DataClient) -> Arc<ClusterSink> {
        Arc::new(ClusterSink { cluster, client, places: Mutex::default(), counts: Counts::default() })
    }

    /// What was done so far.
    pub fn stats(&self) -> SinkStats {
        let counts = &self.counts;
        SinkStats {
            cached: counts.cached.load(Relaxed),
            cache_failures: counts.cache_failures.load(Relaxed),
            held: counts.held.load(Relaxed),
            hold_failures: counts.hold_failures.load(Relaxed),
            release_failures: counts.release_failures.load(Relaxed),
        }
    }

    async fn cache(&self, chunk: &Chunk) -> Result<()> {
        let owners = self.cluster.sources(&chunk.key).to_ask;
        let mut refusal = None;
        for owner in owners.iter().take(CACHES_TRIED) {
            match self.send(owner, chunk, PutMode::Cache).await {
                Ok(()) => {
                    self.counts.cached.fetch_add(1, Relaxed);
                    return Ok(());
                }
                Err(error) => {
                    self.counts.cache_failures.fetch_add(1, Relaxed);
                    refusal = Some(error);
                }
            }
        }
        match refusal {
            Some(error) => Err(error),
            // Nobody to ask: no workers at all, or all of them are being left alone.
            None if !self.cluster.has_workers() => Ok(()),
            None => {
                self.counts.cache_failures.fetch_add(1, Relaxed);
                Err(Error::new(
                    Code::Unavailable,
                    format!("no worker answers at present that could cache {}", chunk.name()),
                ))
            }
        }
    }

    async fn hold(&self, chunk: &Chunk, attempt: AttemptId, copy: u32) -> Result<()> {
        let holders = self.cluster.holders(&chunk.key);
        let key = (attempt, chunk.key.id());
        let mut refusal = None;
        let mut tried: Vec<&str> = Vec::new();
        while let Some(holder) = self.choose(&holders, key, copy, &tried) {
            match self.send(&holder.source, chunk, PutMode::Hold { attempt }).await {
                Ok(()) => {
                    self.counts.held.fetch_add(1, Relaxed);
                    return Ok(());
                }
                Err(error) => {
                    self.counts.hold_failures.fetch_add(1, Relaxed);
                    tried.push(&holder.host);
                    refusal = Some(error);
                }
            }
        }
        Err(refusal.unwrap_or_else(|| {
            let hosts = holders.len();
            let why = format!("{hosts} nodes can hold copies, none is left for copy {copy} of {}", chunk.name());
            Error::new(Code::FailedPrecondition, why)
        }))
    }

    /// The next host for a copy, taken for it; what was taken for it before is free again.
    fn choose<'a>(
        &self,
        holders: &'a [Holder],
        key: (AttemptId, ChunkId),
        copy: u32,
        tried: &[&str],
    ) -> Option<&'a Holder> {
        let mut places = self.places.lock();
        if places.len() >= PLACES_MAX && !places.contains_key(&key) {
            return None;
        }
        let taken = places.entry(key).or_default();
        taken.retain(|place| place.copy != copy);
        let first = usize::try_from(copy).unwrap_or(0) % holders.len().max(1);
        let mut in_order = holders[first.min(holders.len())..].iter().chain(&holders[..first.min(holders.len())]);
        let is_free = |holder: &&Holder| {
            !tried.contains(&holder.host.as_str()) && taken.iter().all(|place| place.host != holder.host)
        };
        let chosen = in_order.find(is_free);
        match chosen {
            Some(holder) => taken.push(Place { copy, host: holder.host.clone() }),
            None if taken.is_empty() => drop(places.remove(&key)),
            None => {}
        }
        chosen
    }

    /// Sends on a blocking thread; given up when the caller leaves.
    async fn send(&self, to: &Source, chunk: &Chunk, mode: PutMode) -> Result<()> {
        let (client, endpoint, chunk) = (self.client.clone(), to.endpoint.clone(), chunk.clone());
        let stop = CancellationToken::new();
        let _stopped_with_the_caller = stop.clone().drop_guard();
        let send = move || client.put_until(&endpoint, &chunk.key, &chunk.bytes, &chunk.blocks, mode, &stop);
        let sent = tokio::task::spawn_blocking(send).await;
        let sent = sent.unwrap_or_else(|error| Err(Error::new(Code::Internal, format!("a put broke off: {error}"))));
        // A refusal is an answer: the worker is well.
        let is_well = !sent.as_ref().is_err_and(|error| matches!(error.code(), Code::Unavailable | Code::Timeout));
        self.cluster.report(to, is_well);
        sent
    }
}

/// A chunk and what it is.
#[derive(Clone)]
struct Chunk {
    key: ChunkKey,
    bytes: Bytes,
    blocks: Arc<[BlockChecksum]>,
}

impl Chunk {
    fn name(&self) -> String {
        format!("chunk {} of {}", self.key.index(), redact_url(self.key.artifact().url()))
    }
}

#[async_trait]
impl ChunkSink for ClusterSink {
    async fn put(&self, key: &ChunkKey, bytes: Bytes, blocks: &[BlockChecksum], how: SinkHow) -> Result<()> {
        let chunk = Chunk { key: key.clone(), bytes, blocks: blocks.into() };
        match how {
            SinkHow::Cache => self.cache(&chunk).await,
            SinkHow::Hold { attempt, copy } => self.hold(&chunk, attempt, copy).await,
        }
    }

    async fn release(&self, attempt: &AttemptId) {
        self.places.lock().retain(|(of, _), _| of != attempt);
        // All of them: which ones hold something is forgotten by a restart.
        let tell = self.cluster.everyone().into_iter().map(|member| {
            let (client, attempt) = (self.client.clone(), *attempt);
            async move {
                let tell = move || client.release(&member.endpoint, &attempt);
                let told = tokio::task::spawn_blocking(tell).await;
                told.unwrap_or_else(|error| Err(Error::new(Code::Internal, format!("a release broke off: {error}"))))
            }
        });
        let told: Vec<Result<()>> = futures::stream::iter(tell).buffer_unordered(RELEASES_AT_ONCE).collect().await;
        for error in told.into_iter().filter_map(Result::err) {
            self.counts.release_failures.fetch_add(1, Relaxed);
            tracing::warn!(%attempt, %error, "a worker goes on holding copies of a checkpoint until they are too old");
        }
    }

    fn peers(&self) -> usize {
        self.cluster.holder_count()
    }

    async fn held(&self, step_url: &str) -> Result<HeldRecords> {
        self.held_of(step_url).await
    }

    async fn fetch(&self, key: &ChunkKey, blocks: Option<&[BlockChecksum]>) -> Result<Bytes> {
        self.fetch_held(key, blocks).await
    }
}

#[cfg(test)]
mod tests;
