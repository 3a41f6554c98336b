//! Checksums of whole files, tensors and objects, put together from those of blocks: no byte is read again.

use longshore_types::{BLOCK_BYTES, BLOCKS_PER_CHUNK, BlockChecksum, CHUNK_BYTES, Code, Error, Result};

use super::{Attempt, ChunkPlace, FileState, FlushedSlab};
use crate::{SLAB_BYTES, slab_count};

/// What a file's bytes are known by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileTotals {
    /// Of the whole file.
    pub checksum: BlockChecksum,
    /// Of each 1 MiB block; the last one may be short.
    pub blocks: Vec<BlockChecksum>,
    /// Of each tensor, in the order of the plan.
    pub tensors: Vec<BlockChecksum>,
}

const CHUNKS_PER_SLAB: u32 = (SLAB_BYTES / CHUNK_BYTES) as u32;

/// Of nothing.
const EMPTY: BlockChecksum = BlockChecksum(0);

impl Attempt {
    /// Checksums of a file of this node that is flushed whole.
    ///
    /// # Errors
    /// `FailedPrecondition` when it is not.
    pub fn file_totals(&self, file: u32) -> Result<FileTotals> {
        let planned = self.planned(file)?;
        let state = self.state();
        let slabs = self.whole(state.files.get(&file), file)?;
        let blocks: Vec<BlockChecksum> = slabs.iter().flat_map(|slab| slab.blocks.iter().copied()).collect();
        let checksum = join_blocks(&blocks, planned.size_bytes);
        // Fragments come slab by slab, in each in the order of the tensors: the next one of a tensor is always in front.
        let mut fragments: Vec<std::slice::Iter<'_, BlockChecksum>> =
            slabs.iter().map(|slab| slab.fragments.iter()).collect();
        let mut tensors = Vec::with_capacity(planned.tensors.len());
        for tensor in &planned.tensors {
            let mut sum = EMPTY;
            for (slab, range) in cut(tensor.offset_bytes, tensor.length_bytes) {
                let next = fragments.get_mut(slab as usize).and_then(Iterator::next).ok_or_else(|| {
                    let message =
                        format!("{} of {} has no checksum for {}", planned.name, self.url(), tensor.tensor.name);
                    Error::new(Code::Internal, message)
                })?;
                sum = sum.combine(*next, range);
            }
            tensors.push(sum);
        }
        Ok(FileTotals { checksum, blocks, tensors })
    }

    /// Where each chunk of a delta's file is; `None` when the file is an object of its own.
    ///
    /// # Errors
    /// `FailedPrecondition` when the file is not flushed whole.
    pub fn file_chunks(&self, file: u32) -> Result<Option<Vec<ChunkPlace>>> {
        if !self.is_chunked(file) {
            return Ok(None);
        }
        let state = self.state();
        let slabs = self.whole(state.files.get(&file), file)?;
        let places = slabs.iter().flat_map(|slab| slab.chunks.iter().flatten());
        Ok(Some(places.map(|place| place.map_or(ChunkPlace::Parent, ChunkPlace::Pack)).collect()))
    }

    /// Checksum of each 1 MiB block of an object that is flushed whole; all but the last are full.
    ///
    /// # Errors
    /// `FailedPrecondition` when it is not.
    pub fn object_blocks(&self, object: u32) -> Result<Vec<BlockChecksum>> {
        if (object as usize) < self.plan().files.len() {
            let state = self.state();
            let slabs = self.whole(state.files.get(&object), object)?;
            return Ok(slabs.iter().flat_map(|slab| slab.blocks.iter().copied()).collect());
        }
        let state = self.state();
        let Some(pack) = state.packs.get(&self.rank_of_object(object)) else { return Ok(Vec::new()) };
        let zero_block = BlockChecksum::of(&vec![0; BLOCK_BYTES as usize]);
        let mut blocks = Vec::with_capacity(pack.len() * BLOCKS_PER_CHUNK);
        for (place, packed) in (0u32..).zip(pack) {
            if *packed.0 != place {
                return Err(self.not_whole(object));
            }
            let slab = packed.1.chunk / CHUNKS_PER_SLAB;
            let slab = state.files.get(&packed.1.file).and_then(|file| file.slabs.get(&slab));
            let slab = slab.ok_or_else(|| self.not_whole(object))?;
            let first = (packed.1.chunk % CHUNKS_PER_SLAB) as usize * BLOCKS_PER_CHUNK;
            let size = self.planned(packed.1.file)?.size_bytes;
            let at = u64::from(packed.1.chunk) * CHUNK_BYTES;
            for block in 0..BLOCKS_PER_CHUNK {
                let start = at + block as u64 * BLOCK_BYTES;
                let bytes = size.saturating_sub(start).min(BLOCK_BYTES);
                let sum = slab.blocks.get(first + block).copied();
                blocks.push(match (bytes, sum) {
                    (0, _) => zero_block,
                    (BLOCK_BYTES, Some(sum)) => sum,
                    (bytes, Some(sum)) => pad(sum, BLOCK_BYTES - bytes),
                    (_, None) => return Err(self.not_whole(object)),
                });
            }
        }
        Ok(blocks)
    }

    /// Checksum and size of an object that is flushed whole.
    ///
    /// # Errors
    /// `FailedPrecondition` when it is not.
    pub fn object_total(&self, object: u32) -> Result<(BlockChecksum, u64)> {
        let bytes = self.object_bytes(object).ok_or_else(|| self.not_whole(object))?;
        Ok((join_blocks(&self.object_blocks(object)?, bytes), bytes))
    }

    /// A file of the plan.
    pub(crate) fn planned(&self, file: u32) -> Result<&crate::plan::PlannedFile> {
        self.plan()
            .files
            .get(file as usize)
            .ok_or_else(|| Error::new(Code::InvalidArgument, format!("{} has no file {file}", self.url())))
    }

    fn whole<'a>(&self, state: Option<&'a FileState>, file: u32) -> Result<Vec<&'a FlushedSlab>> {
        let count = slab_count(self.planned(file)?.size_bytes) as usize;
        let slabs: Vec<&FlushedSlab> = state.map(|state| state.slabs.values().collect()).unwrap_or_default();
        if slabs.len() == count { Ok(slabs) } else { Err(self.not_whole(file)) }
    }

    fn not_whole(&self, object: u32) -> Error {
        Error::new(Code::FailedPrecondition, format!("object {object} of {} is not flushed whole", self.url()))
    }
}

/// The checksum of blocks in a row, all but the last full.
pub(crate) fn join_blocks(blocks: &[BlockChecksum], size_bytes: u64) -> BlockChecksum {
    let mut left = size_bytes;
    blocks.iter().fold(EMPTY, |sum, block| {
        let bytes = left.min(BLOCK_BYTES);
        left -= bytes;
        sum.combine(*block, bytes)
    })
}

/// The checksum of what `sum` covers with zeros behind it.
fn pad(sum: BlockChecksum, zeros: u64) -> BlockChecksum {
    sum.combine(BlockChecksum::of(&vec![0; zeros as usize]), zeros)
}

/// The pieces that a run of bytes is cut into by slabs: slab and length of each.
pub(crate) fn cut(offset_bytes: u64, length_bytes: u64) -> impl Iterator<Item = (u64, u64)> {
    let end = offset_bytes + length_bytes;
    let mut at = offset_bytes;
    std::iter::from_fn(move || {
        (at < end).then(|| {
            let slab = at / SLAB_BYTES;
            let next = ((slab + 1) * SLAB_BYTES).min(end);
            let length = next - at;
            at = next;
            (slab, length)
        })
    })
}
