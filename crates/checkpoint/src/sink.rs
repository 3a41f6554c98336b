//! Where chunks go beside the disk and the origin: the caches of the workers, and the second copies on other nodes.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use longshore_types::checkpoint::AttemptId;
use longshore_types::{Artifact, BlockChecksum, ChunkKey, Code, Error, Result, redact_url};

/// What a chunk is put for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SinkHow {
    /// So that loads find it: may be evicted at any time.
    Cache,
    /// As a durable copy, synced on another node's disk and kept until it is released.
    Hold {
        /// The save that it belongs to.
        attempt: AttemptId,
        /// Which of the copies, from 0: each goes to another node.
        copy: u32,
    },
}

/// What peers hold of a rank beside its chunks: its presence says that all of them were held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldRecord {
    /// The record, an artifact like any other.
    pub artifact: Arc<Artifact>,
    /// The save.
    pub attempt: AttemptId,
    /// The rank.
    pub rank: u32,
}

/// What [`ChunkSink::held`] finds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HeldRecords {
    /// Each once, however many hold it.
    pub records: Vec<HeldRecord>,
    /// Workers that could not be asked, with the reason.
    pub unanswered: Vec<String>,
}

/// Takes chunks of checkpoints that are being saved, and gives back those that are held.
#[async_trait]
pub trait ChunkSink: Send + Sync {
    /// Puts one whole chunk; `blocks` are the checksums of its blocks. Returns when the other side has it as `how` says.
    ///
    /// # Errors
    /// `Exhausted` when the other side has no room, `Unavailable` when it cannot be reached.
    async fn put(&self, key: &ChunkKey, bytes: Bytes, blocks: &[BlockChecksum], how: SinkHow) -> Result<()>;

    /// The held copies of an attempt are needed no longer: it is committed, or given up.
    async fn release(&self, attempt: &AttemptId);

    /// Nodes other than this one that can hold copies.
    fn peers(&self) -> usize;

    /// Whether there are caches at all that chunks could be put into.
    fn caches(&self) -> bool {
        true
    }

    /// The records that are held of a step, by its URL.
    ///
    /// # Errors
    /// `FailedPrecondition` where no worker is known.
    async fn held(&self, step_url: &str) -> Result<HeldRecords> {
        Err(Error::new(
            Code::FailedPrecondition,
            format!(
                "copies of {} can only be asked for where workers are known: start the loader with --workers",
                redact_url(step_url)
            ),
        ))
    }

    /// A whole chunk from whoever has a copy whose blocks are `blocks`; of a record, whose blocks are not known, from whoever
    /// has one that is whole.
    ///
    /// # Errors
    /// `NotFound` when nobody has it, `Corrupt` when there are only bad copies, `Unavailable` when those who may have it do not
    /// answer; the message names them.
    async fn fetch(&self, key: &ChunkKey, blocks: Option<&[BlockChecksum]>) -> Result<Bytes> {
        let _ = blocks;
        Err(Error::new(
            Code::NotFound,
            format!("no worker is known that could hold chunk {} of {}", key.index(), redact_url(key.artifact().url())),
        ))
    }
}

/// The sink of a node without workers: nothing is cached, nobody holds copies.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoSink;

#[async_trait]
impl ChunkSink for NoSink {
    async fn put(&self, key: &ChunkKey, _bytes: Bytes, _blocks: &[BlockChecksum], how: SinkHow) -> Result<()> {
        match how {
            SinkHow::Cache => Ok(()),
            SinkHow::Hold { .. } => Err(Error::new(
                Code::FailedPrecondition,
                format!(
                    "no node can hold a copy of {}: start workers and name them with --workers",
                    key.artifact().url()
                ),
            )),
        }
    }

    async fn release(&self, _attempt: &AttemptId) {}

    fn peers(&self) -> usize {
        0
    }

    fn caches(&self) -> bool {
        false
    }
}
