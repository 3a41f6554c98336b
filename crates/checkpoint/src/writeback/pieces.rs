//! Bytes to send: from memory where they still are, else from this node's disk. And into the caches of the workers with the
//! same bytes, so that nothing is read for them alone.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use longshore_memory::Buffer;
use longshore_origin::Body;
use longshore_types::{BlockChecksum, CHUNK_BYTES, ChunkKey, Result};

use super::Writeback;
use super::objects::blocking;
use super::peers::CACHE_TIMEOUT;
use crate::sink::SinkHow;
use crate::warm::{Piece, by_chunk};

/// How long the memory of other parts of this save is waited for before what is kept of it is given up.
const PATIENCE: Duration = Duration::from_millis(100);

/// Memory that only its reader has had.
struct Memory(Buffer);

impl AsRef<[u8]> for Memory {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// The pieces as they are sent, with the checksum of all.
pub(super) fn body_of(pieces: &[Piece]) -> (Body, BlockChecksum) {
    let checksum =
        pieces.iter().fold(BlockChecksum::of(&[]), |sum, piece| sum.combine(piece.checksum, piece.bytes.len() as u64));
    (Body::checked(pieces.iter().map(|piece| piece.bytes.clone()).collect(), checksum), checksum)
}

impl Writeback {
    /// A range of an object, cut at its chunks. Waits for the memory it takes.
    pub(super) async fn pieces(&self, object: u32, range: Range<u64>) -> Result<Vec<Piece>> {
        let mut found: Vec<(Range<u64>, Option<Piece>)> =
            by_chunk(range).map(|range| (range.clone(), self.attempt.warm().take(object, &range))).collect();
        let warm: u64 = found.iter().flat_map(|(_, piece)| piece).map(|piece| piece.bytes.len() as u64).sum();
        self.metrics.uploaded_memory_bytes.inc_by(warm);
        let missing: Vec<Range<u64>> =
            found.iter().filter(|(_, piece)| piece.is_none()).map(|(range, _)| range.clone()).collect();
        let mut read = self.read_pieces(object, missing).await?.into_iter();
        Ok(found.iter_mut().filter_map(|(_, piece)| piece.take().or_else(|| read.next())).collect())
    }

    async fn read_pieces(&self, object: u32, ranges: Vec<Range<u64>>) -> Result<Vec<Piece>> {
        if ranges.is_empty() {
            return Ok(Vec::new());
        }
        let lengths: Vec<usize> = ranges.iter().map(|range| (range.end - range.start) as usize).collect();
        let buffers = match self.uploads.try_buffers(&lengths) {
            Some(buffers) => buffers,
            None => {
                let waiting = self.uploads.buffers(&lengths);
                tokio::pin!(waiting);
                match tokio::time::timeout(PATIENCE, &mut waiting).await {
                    Ok(buffers) => buffers?,
                    Err(_) => {
                        self.attempt.warm().clear();
                        waiting.await?
                    }
                }
            }
        };
        let attempt = Arc::clone(&self.attempt);
        blocking(move || {
            let mut pieces = Vec::with_capacity(ranges.len());
            for (range, mut buffer) in ranges.into_iter().zip(buffers) {
                attempt.read_into(object, range.start, &mut buffer)?;
                pieces.push(Piece::of(Bytes::from_owner(Memory(buffer)), range.start));
            }
            Ok(pieces)
        })
        .await
    }

    /// Offers pieces that the origin has taken to the workers' caches, those that are whole chunks. One that does not take them
    /// is asked again when the object is verified, not here.
    pub(super) async fn cache_pieces(&self, object: u32, size_bytes: u64, pieces: Vec<Piece>) {
        if !self.sink.caches() || self.is_cache_slow.load(Ordering::Relaxed) {
            return;
        }
        let Ok(artifact) = self.artifact(object, size_bytes) else { return };
        let artifact = Arc::new(artifact);
        for piece in pieces {
            let end = (u64::from(piece.chunk) + 1).saturating_mul(CHUNK_BYTES).min(size_bytes);
            let is_whole = u64::from(piece.chunk) * CHUNK_BYTES + piece.bytes.len() as u64 == end;
            let Some(blocks) = piece.blocks.filter(|_| is_whole) else { continue };
            let Ok(key) = ChunkKey::new(Arc::clone(&artifact), piece.chunk) else { continue };
            let put = self.sink.put(&key, piece.bytes, &blocks, SinkHow::Cache);
            match tokio::time::timeout(CACHE_TIMEOUT, put).await {
                Ok(Ok(())) => {
                    self.cached.lock().insert((object, piece.chunk));
                    self.count_chunk("cached");
                }
                _ => {
                    self.count_chunk("failed");
                    self.is_cache_slow.store(true, Ordering::Relaxed);
                    return;
                }
            }
        }
    }
}
