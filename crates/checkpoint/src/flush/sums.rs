//! Checksums of blocks and of the parts of tensors, in one walk over the bytes.

use longshore_types::{BLOCK_BYTES, BlockChecksum, Result};

use crate::SLAB_BYTES;
use crate::attempt::{Attempt, FlushedSlab};
use crate::plan::{PlannedFile, PlannedTensor};

/// Takes a slab's bytes block by block, in order.
pub(super) struct Sums<'a> {
    /// Tensors that are not passed yet; the first may be begun.
    tensors: &'a [PlannedTensor],
    /// End of the slab in the file.
    end: u64,
    /// Where the next byte is in the file.
    at: u64,
    /// Of the first tensor, as far as it was given.
    fragment: Option<BlockChecksum>,
    blocks: Vec<BlockChecksum>,
    fragments: Vec<BlockChecksum>,
}

impl<'a> Sums<'a> {
    pub(super) fn new(file: &'a PlannedFile, slab_index: u32, length: u64) -> Sums<'a> {
        let at = u64::from(slab_index) * SLAB_BYTES;
        // Sorted by offset: those that end in front of the slab are passed.
        let first = file.tensors.partition_point(|tensor| tensor.offset_bytes + tensor.length_bytes <= at);
        Sums {
            tensors: &file.tensors[first..],
            end: at + length,
            at,
            fragment: None,
            blocks: Vec::with_capacity(length.div_ceil(BLOCK_BYTES) as usize),
            fragments: Vec::new(),
        }
    }

    /// The next block: full, but for the last one.
    pub(super) fn block(&mut self, bytes: &[u8]) -> BlockChecksum {
        let sum = BlockChecksum::of(bytes);
        self.blocks.push(sum);
        let block_end = self.at + bytes.len() as u64;
        let mut at = self.at;
        while let Some(tensor) = self.tensors.first() {
            let tensor_end = tensor.offset_bytes + tensor.length_bytes;
            if tensor.offset_bytes >= block_end && tensor.length_bytes > 0 {
                break;
            }
            if tensor.length_bytes > 0 {
                let start = tensor.offset_bytes.max(at);
                let end = tensor_end.min(block_end);
                let part = &bytes[(start - self.at) as usize..(end - self.at) as usize];
                let part_sum = if part.len() == bytes.len() { sum } else { BlockChecksum::of(part) };
                self.fragment = Some(match self.fragment {
                    Some(fragment) => fragment.combine(part_sum, end - start),
                    None => part_sum,
                });
                at = end;
                if tensor_end > block_end {
                    break;
                }
                self.fragments.extend(self.fragment.take());
            }
            self.tensors = &self.tensors[1..];
        }
        self.at = block_end;
        sum
    }

    /// Checksums of the blocks from an offset in the slab on.
    pub(super) fn blocks_from(&self, offset_bytes: u64) -> &[BlockChecksum] {
        self.blocks.get((offset_bytes / BLOCK_BYTES) as usize..).unwrap_or_default()
    }

    /// What the slab is known by.
    pub(super) fn finish(mut self, file: u32, slab_index: u32, chunks: Option<Vec<Option<u32>>>) -> FlushedSlab {
        debug_assert_eq!(self.at, self.end, "all blocks of the slab were given");
        self.fragments.extend(self.fragment);
        FlushedSlab { file, slab_index, blocks: self.blocks, fragments: self.fragments, chunks }
    }
}

/// A file that is one slab and is written already.
pub(crate) fn inline_slab(attempt: &Attempt, file: u32, content: &[u8]) -> Result<FlushedSlab> {
    let planned = attempt.planned(file)?;
    super::write::check_header(attempt, planned, 0, content)?;
    let mut sums = Sums::new(planned, 0, content.len() as u64);
    for block in content.chunks(BLOCK_BYTES as usize) {
        sums.block(block);
    }
    Ok(sums.finish(file, 0, None))
}
