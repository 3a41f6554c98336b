//! The last resort: a chunk's range from the origin itself, received straight into the landing memory.

use std::io::IoSliceMut;

use longshore_memory::Landing;
use longshore_origin::Sink;
use longshore_types::{BLOCK_BYTES, BlockChecksum, Checksummer, Code, Error, Result};
use tokio_util::sync::CancellationToken;

use super::{Readers, Wanted};

/// Reads on the calling thread, which is none of the runtime's. The read is conditional on the version. Gives what the
/// blocks are, where that is of interest.
pub(super) fn read(
    readers: &Readers,
    wanted: &Wanted<'_>,
    landing: &mut Landing,
    token: &CancellationToken,
) -> Result<Vec<BlockChecksum>> {
    if landing.len() as u64 != wanted.len_bytes() {
        let text = format!("{} bytes are to land in {}", wanted.len_bytes(), landing.len());
        return Err(Error::new(Code::Internal, text));
    }
    let blocks = wanted.expected.is_some().then(Blocks::default);
    let mut sink = Landed { landing, at: 0, blocks };
    let artifact = wanted.key.artifact();
    let read = readers.origins.read_into(artifact, wanted.file_range(), &mut sink, &readers.runtime, token);
    read.map_err(|error| match error.code() {
        Code::Cancelled => Error::new(Code::Cancelled, "the load was given up"),
        _ => error,
    })?;
    Ok(sink.blocks.map(Blocks::finish).unwrap_or_default())
}

/// A landing, filled from its front.
struct Landed<'a> {
    landing: &'a mut Landing,
    at: usize,
    blocks: Option<Blocks>,
}

impl Sink for Landed<'_> {
    fn spare(&mut self, len_max: usize) -> Vec<IoSliceMut<'_>> {
        self.landing.slices_mut(self.at..self.at.saturating_add(len_max))
    }

    fn filled(&mut self, len: usize) -> Result<()> {
        let (start, end) = (self.at, self.at + len);
        self.at = end;
        let Some(blocks) = &mut self.blocks else { return Ok(()) };
        let mut at = start;
        while at < end {
            let slices = self.landing.slices_mut(at..end);
            if slices.is_empty() {
                return Err(Error::new(Code::Internal, "a landing that ends before its end"));
            }
            for slice in &slices {
                blocks.add(slice);
                at += slice.len();
            }
        }
        Ok(())
    }
}

/// The checksums of blocks, from pieces of any length.
#[derive(Default)]
struct Blocks {
    done: Vec<BlockChecksum>,
    open: Checksummer,
    /// Bytes in the open one.
    at: usize,
}

impl Blocks {
    fn add(&mut self, mut piece: &[u8]) {
        while !piece.is_empty() {
            let (front, rest) = piece.split_at(piece.len().min(BLOCK_BYTES as usize - self.at));
            self.open.update(front);
            self.at += front.len();
            if self.at == BLOCK_BYTES as usize {
                self.done.push(std::mem::take(&mut self.open).finish());
                self.at = 0;
            }
            piece = rest;
        }
    }

    fn finish(mut self) -> Vec<BlockChecksum> {
        if self.at > 0 {
            self.done.push(self.open.finish());
        }
        self.done
    }
}
