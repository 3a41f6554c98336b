//! How an artifact is cut: chunks of 16 MiB (placement, fill, eviction) made of blocks of 1 MiB (checksum).

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use sha2::{Digest, Sha256};

use crate::artifact::Artifact;
use crate::error::{Code, Error, Result};

/// Bytes of a chunk; the last chunk of an artifact may be shorter.
pub const CHUNK_BYTES: u64 = 16 << 20;
/// Bytes of a block; the last block of an artifact may be shorter.
pub const BLOCK_BYTES: u64 = 1 << 20;
/// Blocks of a full chunk.
pub const BLOCKS_PER_CHUNK: usize = (CHUNK_BYTES / BLOCK_BYTES) as usize;

/// 128 bits of SHA-256 over URL, version and index. The key of a chunk on the ring and on disk.
///
/// The digest covers `"longshore-chunk-1\0" url "\0" version "\0" index-as-decimal`. The Python client has the same
/// golden vectors. Identity is also written out in each chunk file, so a collision is found, not served.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChunkId([u8; 16]);

impl ChunkId {
    /// The raw 16 bytes, as they are hashed on to the ring.
    pub fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// Parses the 32 lower-case hex digits that [`fmt::Display`] writes.
    pub fn parse(text: &str) -> Option<Self> {
        let digits = text.as_bytes();
        if digits.len() != 32 || !digits.iter().all(|d| matches!(d, b'0'..=b'9' | b'a'..=b'f')) {
            return None;
        }
        let mut id = [0u8; 16];
        for (byte, pair) in id.iter_mut().zip(digits.chunks_exact(2)) {
            *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
        }
        Some(ChunkId(id))
    }
}

impl fmt::Display for ChunkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ChunkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ChunkId({self})")
    }
}

/// A chunk by what it is: the `index`-th 16 MiB of an artifact.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ChunkKey {
    artifact: Arc<Artifact>,
    index: u32,
}

impl ChunkKey {
    /// # Errors
    /// [`Code::InvalidArgument`] when the artifact has no such chunk.
    pub fn new(artifact: Arc<Artifact>, index: u32) -> Result<Self> {
        let count = chunk_count(artifact.size_bytes());
        if u64::from(index) >= count {
            return Err(Error::new(
                Code::InvalidArgument,
                format!("{} has {count} chunks, there is no chunk {index}", artifact.url()),
            ));
        }
        Ok(ChunkKey { artifact, index })
    }

    /// The artifact the chunk is part of.
    pub fn artifact(&self) -> &Arc<Artifact> {
        &self.artifact
    }

    /// Position of the chunk in the artifact, from 0.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// Digest of the identity; about half a microsecond, keep it when it is needed often.
    pub fn id(&self) -> ChunkId {
        let mut hash = Sha256::new();
        hash.update(b"longshore-chunk-1\0");
        hash.update(self.artifact.url().as_bytes());
        hash.update([0]);
        hash.update(self.artifact.version().as_str().as_bytes());
        hash.update([0]);
        hash.update(self.index.to_string().as_bytes());
        let digest = hash.finalize();
        let mut id = [0u8; 16];
        id.copy_from_slice(&digest[..16]);
        ChunkId(id)
    }

    /// Where the chunk lies in the artifact, in bytes.
    pub fn range(&self) -> Range<u64> {
        let start = u64::from(self.index) * CHUNK_BYTES;
        start..(start + CHUNK_BYTES).min(self.artifact.size_bytes())
    }

    /// Bytes of this chunk: [`CHUNK_BYTES`] but for the last.
    pub fn len_bytes(&self) -> u64 {
        let range = self.range();
        range.end - range.start
    }

    /// Number of blocks, the last of which may be short.
    pub fn block_count(&self) -> usize {
        self.len_bytes().div_ceil(BLOCK_BYTES) as usize
    }

    /// All chunks of an artifact, in order. An empty artifact has none.
    pub fn all(artifact: &Arc<Artifact>) -> impl ExactSizeIterator<Item = ChunkKey> + use<> {
        let artifact = artifact.clone();
        let count = u32::try_from(chunk_count(artifact.size_bytes())).unwrap_or(u32::MAX);
        (0..count).map(move |index| ChunkKey { artifact: artifact.clone(), index })
    }
}

/// Number of chunks of an object of `size_bytes`.
pub fn chunk_count(size_bytes: u64) -> u64 {
    size_bytes.div_ceil(CHUNK_BYTES)
}

/// Widens a byte range within a chunk of `chunk_len_bytes` to whole blocks: what must be read to verify it.
pub fn block_aligned(range: Range<u64>, chunk_len_bytes: u64) -> Range<u64> {
    let start = range.start / BLOCK_BYTES * BLOCK_BYTES;
    let end = (range.end.div_ceil(BLOCK_BYTES) * BLOCK_BYTES).min(chunk_len_bytes);
    start..end
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::artifact::Version;

    fn artifact(size_bytes: u64) -> Arc<Artifact> {
        let version = Version::new("etag:\"abc\"").unwrap();
        Arc::new(Artifact::new("s3://bucket/model.safetensors", version, size_bytes).unwrap())
    }

    #[test]
    fn ids_are_the_golden_vectors_shared_with_python() {
        let artifact = artifact(40 << 20);
        let ids: Vec<String> = ChunkKey::all(&artifact).map(|key| key.id().to_string()).collect();
        let golden: Vec<serde_json::Value> = serde_json::from_str(include_str!("../testdata/chunk-ids.json")).unwrap();
        let wanted: Vec<&str> = golden.iter().map(|v| v["id"].as_str().unwrap()).collect();
        assert_eq!(ids, wanted);
        assert_eq!(ChunkId::parse(&ids[0]).unwrap().to_string(), ids[0]);
        assert!(ChunkId::parse("zz").is_none());
    }

    #[test]
    fn chunks_tile_the_artifact() {
        for size in [0, 1, BLOCK_BYTES, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 5 * CHUNK_BYTES + 7] {
            let artifact = artifact(size);
            let mut at = 0;
            for key in ChunkKey::all(&artifact) {
                assert_eq!(key.range().start, at);
                at = key.range().end;
                assert_eq!(key.block_count() as u64, key.len_bytes().div_ceil(BLOCK_BYTES));
            }
            assert_eq!(at, size);
            assert!(ChunkKey::new(artifact, chunk_count(size) as u32).is_err());
        }
    }

    #[test]
    fn ranges_widen_to_blocks_and_stop_at_the_end() {
        assert_eq!(block_aligned(5..6, 100), 0..100);
        assert_eq!(block_aligned(BLOCK_BYTES..BLOCK_BYTES + 1, CHUNK_BYTES), BLOCK_BYTES..2 * BLOCK_BYTES);
    }
}
