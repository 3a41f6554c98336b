//! Chunks to other nodes: to the caches of the workers once they are verified, and as durable copies when asked for.
//!
//! Neither may keep a checkpoint from being committed: what does not work is a note.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use longshore_types::checkpoint::{held_record_name, object_url};
use longshore_types::{Artifact, BLOCKS_PER_CHUNK, BlockChecksum, ChunkKey, Error, Result, Version};

use super::Writeback;
use super::objects::blocking;
use crate::attempt::Record;
use crate::sink::SinkHow;

/// Chunks that may fail in a row before the caches are left alone.
const CACHE_FAILURES_MAX: u32 = 3;
/// Longest that one chunk may take to a cache.
pub(super) const CACHE_TIMEOUT: Duration = Duration::from_secs(20);
/// How long peers are asked again for durable copies.
const HOLD_PATIENCE: Duration = if cfg!(test) { Duration::from_millis(500) } else { Duration::from_secs(300) };

/// An object by its chunks.
struct Chunks {
    object: u32,
    artifact: Arc<Artifact>,
    blocks: Vec<BlockChecksum>,
}

impl Chunks {
    fn blocks_of(&self, key: &ChunkKey) -> &[BlockChecksum] {
        let first = key.index() as usize * BLOCKS_PER_CHUNK;
        self.blocks.get(first..first + key.block_count()).unwrap_or_default()
    }
}

impl Writeback {
    /// An object as caches and peers know it.
    pub(super) fn artifact(&self, object: u32, size_bytes: u64) -> Result<Artifact> {
        let version = Version::new(format!("attempt:{}", self.attempt.id()))?;
        let path = crate::commit::object_path(&self.attempt, object);
        Artifact::new(object_url(&self.run.url, &path), version, size_bytes)
    }

    async fn chunks(&self, object: u32) -> Result<Chunks> {
        let attempt = Arc::clone(&self.attempt);
        let found = blocking(move || Ok((attempt.object_total(object)?.1, attempt.object_blocks(object)?))).await?;
        Ok(Chunks { object, artifact: Arc::new(self.artifact(object, found.0)?), blocks: found.1 })
    }

    async fn put_chunk(&self, chunks: &Chunks, key: &ChunkKey, how: SinkHow) -> Result<()> {
        let _memory = self.uploads.reserve(key.len_bytes()).await?;
        let (bytes, _) = self.read(chunks.object, key.range()).await?;
        self.sink.put(key, bytes, chunks.blocks_of(key), how).await
    }

    /// Offers a verified object to the workers' caches.
    pub(super) async fn cache(&self, object: u32) {
        if !self.sink.caches() {
            return;
        }
        let mut failures = 0;
        let result: Result<()> = async {
            let chunks = self.chunks(object).await?;
            for key in ChunkKey::all(&chunks.artifact) {
                if self.cached.lock().contains(&(object, key.index())) {
                    continue;
                }
                let put = tokio::time::timeout(CACHE_TIMEOUT, self.put_chunk(&chunks, &key, SinkHow::Cache)).await;
                match put.unwrap_or_else(|_| Err(timed_out(&key))) {
                    Ok(()) => {
                        failures = 0;
                        self.count_chunk("cached");
                    }
                    Err(error) => {
                        self.count_chunk("failed");
                        failures += 1;
                        if failures >= CACHE_FAILURES_MAX {
                            return Err(error);
                        }
                    }
                }
            }
            Ok(())
        }
        .await;
        if let Err(error) = result {
            self.attempt.note(format!("not all chunks are in the workers' caches: {error}"));
        }
    }

    /// Puts durable copies of every rank that becomes durable, while the origin does not take the intent: copies are for when it is
    /// down. Ends only when the attempt does; whoever drops it goes on with [`Writeback::hold_copies`].
    pub(super) async fn hold_meanwhile(&self) -> Result<()> {
        let mut tried = BTreeSet::new();
        loop {
            let mut next = None;
            self.attempt
                .until(|state| {
                    let mut durable = state.ranks.iter().filter(|(_, known)| known.durable);
                    next = durable.find(|(rank, _)| !tried.contains(*rank)).map(|(rank, _)| *rank);
                    state.delta_settled && next.is_some()
                })
                .await?;
            if let Some(rank) = next {
                tried.insert(rank);
                self.hold_copies(rank).await?;
            }
        }
    }

    /// Offers a small object that was made for the bucket to the workers' caches.
    pub(super) async fn cache_made(&self, path: &str, bytes: Bytes, blocks: &[BlockChecksum]) {
        let put = async {
            let version = Version::new(format!("attempt:{}", self.attempt.id()))?;
            let artifact = Arc::new(Artifact::new(object_url(&self.run.url, path), version, bytes.len() as u64)?);
            for (key, blocks) in ChunkKey::all(&artifact).zip(blocks.chunks(BLOCKS_PER_CHUNK)) {
                let range = key.range();
                let chunk = bytes.slice(range.start as usize..range.end as usize);
                self.sink.put(&key, chunk, blocks, SinkHow::Cache).await?;
                self.count_chunk("cached");
            }
            Ok::<_, Error>(())
        };
        let done = tokio::time::timeout(CACHE_TIMEOUT, put).await;
        if !matches!(done, Ok(Ok(()))) {
            self.count_chunk("failed");
        }
    }

    /// Puts durable copies of a rank's objects on other nodes, as many as asked for, and of what makes a save of them again.
    pub(super) async fn hold_copies(&self, rank: u32) -> Result<()> {
        let copies = self.attempt.plan().options.peer_copies;
        if copies == 0 || self.attempt.state().ranks.get(&rank).is_some_and(|rank| rank.peer_durable) {
            return Ok(());
        }
        self.attempt.until(|state| state.ranks.get(&rank).is_some_and(|rank| rank.durable)).await?;
        if (self.sink.peers() as u64) < u64::from(copies) {
            self.attempt.note(format!(
                "not peer-durable: {copies} further nodes are asked for, {} can hold copies",
                self.sink.peers()
            ));
            return Ok(());
        }
        match self.hold(rank, copies).await {
            Ok(()) => self.attempt.record(Record::PeerDurable { rank }).await,
            Err(_) if self.attempt.token().is_cancelled() => Err(self.attempt.why_stopped()),
            Err(error) => {
                self.attempt.note(format!("rank {rank} is not peer-durable: {error}"));
                Ok(())
            }
        }
    }

    async fn hold(&self, rank: u32, copies: u32) -> Result<()> {
        for object in self.attempt.objects_of(rank) {
            if self.attempt.object_bytes(object) == Some(0) {
                continue;
            }
            let chunks = self.chunks(object).await?;
            for key in ChunkKey::all(&chunks.artifact) {
                for copy in 0..copies {
                    self.hold_chunk(&chunks, &key, SinkHow::Hold { attempt: self.attempt.id(), copy }).await?;
                }
            }
        }
        self.hold_record(rank, copies).await
    }

    /// The record of the rank. Last: who finds it knows that the chunks are held.
    async fn hold_record(&self, rank: u32, copies: u32) -> Result<()> {
        let attempt = Arc::clone(&self.attempt);
        let url = self.run.step_url(attempt.plan().step, &held_record_name(&attempt.id(), rank));
        let version = Version::new(format!("attempt:{}", attempt.id()))?;
        let (bytes, blocks) = blocking(move || {
            let bytes = crate::held::encode(&attempt, rank)?;
            let blocks = BlockChecksum::of_blocks(&bytes);
            Ok((Bytes::from(bytes), blocks))
        })
        .await?;
        let _memory = self.uploads.reserve(bytes.len() as u64).await?;
        let artifact = Arc::new(Artifact::new(url, version, bytes.len() as u64)?);
        for (key, blocks) in ChunkKey::all(&artifact).zip(blocks.chunks(BLOCKS_PER_CHUNK)) {
            let range = key.range();
            let chunk = bytes.slice(range.start as usize..range.end as usize);
            for copy in 0..copies {
                let how = SinkHow::Hold { attempt: self.attempt.id(), copy };
                self.hold_until(|| self.sink.put(&key, chunk.clone(), blocks, how)).await?;
            }
        }
        Ok(())
    }

    async fn hold_chunk(&self, chunks: &Chunks, key: &ChunkKey, how: SinkHow) -> Result<()> {
        self.hold_until(|| self.put_chunk(chunks, key, how)).await
    }

    /// Puts something until a peer has it, or the patience is over.
    async fn hold_until<F: Future<Output = Result<()>>>(&self, mut put: impl FnMut() -> F) -> Result<()> {
        let since = Instant::now();
        let mut pause = Duration::from_millis(50);
        loop {
            let error = match put().await {
                Ok(()) => {
                    self.count_chunk("held");
                    return Ok(());
                }
                Err(error) => error,
            };
            self.count_chunk("hold_failed");
            if since.elapsed() > HOLD_PATIENCE {
                return Err(error);
            }
            self.attempt.update(|status| status.retries += 1);
            self.retry.pause(pause).await?;
            pause = (pause * 2).min(Duration::from_secs(10));
        }
    }

    pub(super) fn count_chunk(&self, result: &str) {
        self.metrics.sink_chunks.with_label_values(&[result]).inc();
    }

    pub(super) fn count_uploaded(&self, bytes: u64) {
        self.metrics.uploaded_bytes.inc_by(bytes);
    }
}

fn timed_out(key: &ChunkKey) -> Error {
    Error::new(
        longshore_types::Code::Timeout,
        format!("chunk {} of {} took more than {CACHE_TIMEOUT:?} to a cache", key.index(), key.artifact().url()),
    )
}
