//! Blocks on their way into a landing: read in pieces that stay in the core's cache, checksummed piece by piece.

use std::fs::File;
use std::io::IoSliceMut;
use std::time::{Duration, Instant};

use longshore_memory::Landing;
use longshore_types::{BLOCKS_PER_CHUNK, BlockChecksum, Checksummer, Code, Error, Result};

use crate::client::Fetched;
use crate::service::{ChunkRequest, Tier};
use crate::stream::restart;

/// Bytes read at most before they are checksummed. Half of a small level-2 cache: the checksum then costs no trip
/// to memory.
const PIECE_BYTES: usize = 256 << 10;

/// Fills one landing with the blocks of one request, in order.
pub(crate) struct Receiver<'a> {
    landing: &'a mut Landing,
    request: &'a ChunkRequest,
    at: usize,
    verify: Duration,
    checksums: Vec<BlockChecksum>,
}

impl<'a> Receiver<'a> {
    pub(crate) fn new(landing: &'a mut Landing, request: &'a ChunkRequest) -> Self {
        Receiver { landing, request, at: 0, verify: Duration::ZERO, checksums: Vec::with_capacity(BLOCKS_PER_CHUNK) }
    }

    /// What was landed and verified, out of `tier`.
    pub(crate) fn fetched(self, tier: Tier, via_fd: bool) -> Fetched {
        Fetched { tier, bytes: self.at as u64, via_fd, verify: self.verify, checksums: self.checksums }
    }

    /// Bytes of block `index` of the chunk.
    pub(crate) fn block_len(&self, index: usize) -> u64 {
        let range = crate::block_range(index, self.request.key.len_bytes());
        range.end - range.start
    }

    /// Lands the next block, number `index`. `read` gets memory and the position of its first byte in the block, and
    /// says how many bytes it put there.
    ///
    /// # Errors
    /// [`Code::Corrupt`] when the block has another checksum than `wanted`, and whatever `read` says.
    pub(crate) fn block(
        &mut self,
        index: usize,
        wanted: BlockChecksum,
        mut read: impl FnMut(&mut [IoSliceMut<'_>], usize) -> Result<usize>,
    ) -> Result<()> {
        let (start, end) = (self.at, self.at + self.block_len(index) as usize);
        let mut checksum = Checksummer::new();
        while self.at < end {
            let mut slices = self.landing.slices_mut(self.at..end.min(self.at + PIECE_BYTES));
            let room: usize = slices.iter().map(|slice| slice.len()).sum();
            let count = read(&mut slices, self.at - start)?;
            if count == 0 || count > room {
                return Err(Error::new(Code::Internal, format!("a read of {count} bytes into {room} bytes of memory")));
            }
            let began = Instant::now();
            update(&mut checksum, &slices, count);
            self.verify += began.elapsed();
            self.at += count;
        }
        let got = checksum.finish();
        if got == wanted {
            self.checksums.push(got);
            return Ok(());
        }
        Err(Error::new(Code::Corrupt, format!("block {index} has checksum {got} instead of {wanted}")))
    }

    /// Lands all blocks of the request from a file that holds the chunk from `offset_bytes` on.
    ///
    /// # Errors
    /// [`Code::Corrupt`] when the file ends early or a block does not match.
    pub(crate) fn file(&mut self, file: &File, offset_bytes: u64, checksums: &[BlockChecksum]) -> Result<()> {
        for (index, wanted) in self.request.blocks().zip(checksums) {
            self.block_of_file(file, offset_bytes, index, *wanted)?;
        }
        Ok(())
    }

    /// Lands the next block, number `index`, from such a file.
    ///
    /// # Errors
    /// As [`Receiver::file`].
    pub(crate) fn block_of_file(
        &mut self,
        file: &File,
        offset_bytes: u64,
        index: usize,
        wanted: BlockChecksum,
    ) -> Result<()> {
        let block = offset_bytes.saturating_add(crate::block_range(index, u64::MAX).start);
        self.block(index, wanted, |slices, at| {
            match restart(|| rustix::io::preadv(file, slices, block.saturating_add(at as u64))) {
                Ok(0) => Err(Error::new(Code::Corrupt, format!("the file ends within block {index}"))),
                Ok(count) => Ok(count),
                Err(e) => Err(Error::new(Code::Unavailable, format!("cannot read block {index}: {e}")).with_source(e)),
            }
        })
    }
}

/// Copies as much of `from` as fits, and says how much that was.
pub(crate) fn scatter(mut from: &[u8], slices: &mut [IoSliceMut<'_>]) -> usize {
    let whole = from.len();
    for slice in slices {
        let count = slice.len().min(from.len());
        slice[..count].copy_from_slice(&from[..count]);
        from = &from[count..];
    }
    whole - from.len()
}

fn update(checksum: &mut Checksummer, slices: &[IoSliceMut<'_>], mut count: usize) {
    for slice in slices {
        let piece = &slice[..slice.len().min(count)];
        checksum.update(piece);
        count -= piece.len();
    }
}
