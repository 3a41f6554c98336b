//! What the blocks of a chunk must be, from what is known of the file.

use std::ops::Range;
use std::sync::Arc;

use longshore_types::{BLOCK_BYTES, BLOCKS_PER_CHUNK, BlockChecksum, CHUNK_BYTES, ChunkKey, ModelFile};

/// What is known of one chunk of a file, wherever the chunk lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expected {
    /// Index into the files of the manifest.
    pub file: usize,
    /// The chunk, in the file.
    index: u64,
    /// Of all blocks of the file.
    checksums: Arc<[BlockChecksum]>,
    /// The file's last block, when it is in this chunk and what it lies in goes on behind it, with zeros.
    padded: Option<(usize, BlockChecksum)>,
}

impl Expected {
    /// What is known of chunk `index` of a file that is the beginning of `key`; `None` when nothing is.
    pub(super) fn new(position: usize, file: &ModelFile, index: u64, key: &ChunkKey) -> Option<Expected> {
        let checksums = file.checksums.clone()?;
        let padded = padded(&checksums, file.artifact.size_bytes(), index, key);
        Some(Expected { file: position, index, checksums, padded })
    }

    /// What a block of the chunk must be; `None` for one that is not the file's.
    pub fn block(&self, block: usize) -> Option<BlockChecksum> {
        match self.padded {
            Some((padded, checksum)) if padded == block => Some(checksum),
            _ => {
                let first = usize::try_from(self.index).ok()?.checked_mul(BLOCKS_PER_CHUNK)?;
                self.checksums.get(first.checked_add(block)?).copied()
            }
        }
    }

    /// What some blocks must be; `None` when not all of them are the file's.
    pub fn blocks(&self, blocks: Range<usize>) -> Option<Arc<[BlockChecksum]>> {
        blocks.map(|block| self.block(block)).collect()
    }

    /// Where a block lies in the file, in bytes.
    pub fn file_range(&self, block: usize) -> Range<u64> {
        let start = self.index * CHUNK_BYTES + block as u64 * BLOCK_BYTES;
        start..start + BLOCK_BYTES
    }
}

fn padded(checksums: &[BlockChecksum], size_bytes: u64, index: u64, key: &ChunkKey) -> Option<(usize, BlockChecksum)> {
    let last = checksums.last()?;
    let start = (size_bytes - 1) / BLOCK_BYTES * BLOCK_BYTES;
    let within = start.checked_sub(index * CHUNK_BYTES).filter(|within| *within < CHUNK_BYTES)?;
    let stored_bytes = BLOCK_BYTES.min(key.len_bytes().saturating_sub(within));
    let zeros = stored_bytes.checked_sub(size_bytes - start).filter(|zeros| *zeros > 0)?;
    let checksum = last.combine(BlockChecksum::of(&vec![0; zeros as usize]), zeros);
    Some(((within / BLOCK_BYTES) as usize, checksum))
}

#[cfg(test)]
mod tests {
    use longshore_types::{Artifact, Version};

    use super::*;

    #[test]
    fn a_last_block_in_a_longer_chunk_is_followed_by_zeros() {
        let artifact = |size| {
            let version = Version::new("attempt:x").unwrap();
            Arc::new(Artifact::new("s3://b/f", version, size).unwrap())
        };
        let size = CHUNK_BYTES + BLOCK_BYTES + 5;
        let bytes: Vec<u8> = (0..size).map(|at| ((at * 7) >> 3) as u8).collect();
        let mut file = ModelFile::plain("f", artifact(size), false);
        let key = |size| ChunkKey::new(artifact(size), 1).unwrap();
        assert_eq!(Expected::new(3, &file, 1, &key(size)), None);
        file.checksums = Some(BlockChecksum::of_blocks(&bytes).into());

        // Alone in its object: as it is.
        let exact = Expected::new(3, &file, 1, &key(size)).unwrap();
        assert_eq!(exact.block(1), Some(BlockChecksum::of(&bytes[(CHUNK_BYTES + BLOCK_BYTES) as usize..])));
        assert_eq!((exact.block(2), exact.blocks(0..3)), (None, None));
        assert_eq!(exact.file_range(1), CHUNK_BYTES + BLOCK_BYTES..CHUNK_BYTES + 2 * BLOCK_BYTES);

        let mut block = bytes[(CHUNK_BYTES + BLOCK_BYTES) as usize..].to_vec();
        block.resize(BLOCK_BYTES as usize, 0);
        let padded = Expected::new(3, &file, 1, &key(2 * CHUNK_BYTES)).unwrap();
        assert_eq!(padded.block(1), Some(BlockChecksum::of(&block)));
        assert_eq!(padded.block(0), exact.block(0));
        let first = Expected::new(3, &file, 0, &ChunkKey::new(artifact(2 * CHUNK_BYTES), 0).unwrap()).unwrap();
        assert_eq!(first.blocks(0..16).unwrap()[..], BlockChecksum::of_blocks(&bytes)[..16]);
    }
}
