//! Where chunks go beside the disk and the origin: the caches of the workers, and the second copies on other nodes.

use async_trait::async_trait;
use bytes::Bytes;
use longshore_types::checkpoint::AttemptId;
use longshore_types::{BlockChecksum, ChunkKey, Code, Error, Result};

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

/// Takes chunks of checkpoints that are being saved.
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
}
