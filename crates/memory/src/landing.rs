//! Where one run of bytes lands: pieces of exclusive memory, in the order of the incoming bytes.
//!
//! A fetch reads a chunk's bytes once, in order, and each byte goes where it belongs: into a window of a region, into a
//! buffer for an upload, or nowhere (but it is still checksummed). There is no `unsafe` here: pieces are cut from
//! exclusive memory with `split_at_mut`, so that they are disjoint by construction.

mod builder;
mod cuts;

use std::io::IoSliceMut;
use std::ops::Range;

use longshore_types::{BLOCK_BYTES, BlockChecksum, Checksummer};

pub use self::builder::LandingBuilder;
use self::cuts::Cuts;
use crate::arena::Buffer;
use crate::pinned::{BlockWindow, PageKind};
use crate::region::Window;

/// Slices that one call of [`Landing::slices_mut`] returns at most: what one `readv` takes (IOV_MAX).
pub const SLICES_MAX: usize = 1024;

/// Discarded bytes share one block of memory, addressed by their place in the run modulo this. A shorter run needs, and
/// has, only its own length.
const SCRATCH_BYTES: usize = BLOCK_BYTES as usize;

/// Ordered pieces of exclusive memory that together receive one contiguous run of bytes.
pub struct Landing {
    memories: Vec<Memory>,
    /// In the order of the run, without gaps; pieces of one memory ascend in it.
    pieces: Vec<Piece>,
    scratch: Box<[u8]>,
    len: usize,
    tag: u64,
}

enum Memory {
    Window(Window),
    Buffer(Buffer),
    Blocks(BlockWindow),
}

#[derive(Debug, Clone, Copy)]
struct Piece {
    /// Offset in the run.
    start: usize,
    len: usize,
    place: Place,
}

#[derive(Debug, Clone, Copy)]
enum Place {
    /// From this offset on in that memory.
    Memory {
        index: usize,
        at: usize,
    },
    Scratch,
}

impl Memory {
    fn bytes(&self) -> &[u8] {
        match self {
            Memory::Window(window) => window,
            Memory::Buffer(buffer) => buffer,
            Memory::Blocks(blocks) => blocks,
        }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        match self {
            Memory::Window(window) => window,
            Memory::Buffer(buffer) => buffer,
            Memory::Blocks(blocks) => blocks,
        }
    }
}

impl Landing {
    /// Starts a landing without pieces.
    pub fn builder() -> LandingBuilder {
        LandingBuilder::new()
    }

    /// Bytes of the run.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the run has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The number its maker gave it with [`LandingBuilder::tag`]; 0 without.
    pub fn tag(&self) -> u64 {
        self.tag
    }

    /// The memory of `range` of the run, in order. Ask block by block, and again for what was left out: the slices
    /// cover `range` from its start, but at most [`SLICES_MAX`] pieces, and at most one block (1 MiB) when bytes are
    /// discarded. A range beyond the end is cut off there.
    pub fn slices_mut(&mut self, range: Range<usize>) -> Vec<IoSliceMut<'_>> {
        let mut range = self.clip(range);
        if !self.scratch.is_empty() {
            range.end = range.end.min(range.start.saturating_add(SCRATCH_BYTES));
        }
        let mut cuts = Cuts::new(&mut self.memories, &mut self.scratch, &range);
        let mut slices = Vec::new();
        for (piece, part) in parts(&self.pieces, range) {
            if slices.len() >= SLICES_MAX {
                break;
            }
            match piece.place {
                Place::Memory { index, at } => {
                    let at = at + (part.start - piece.start);
                    slices.extend(cuts.memory(index, at..at + part.len()).map(IoSliceMut::new));
                }
                Place::Scratch => slices.extend(cuts.scratch(part).map(IoSliceMut::new)),
            }
        }
        // A discarded part may have come in two.
        slices.truncate(SLICES_MAX);
        slices
    }

    /// Copies `bytes` to their places, from `at` of the run on; what does not fit in the run is left out.
    pub fn copy_in(&mut self, at: usize, bytes: &[u8]) {
        let end = at.saturating_add(bytes.len()).min(self.len);
        let mut done = at;
        while done < end {
            for slice in &mut self.slices_mut(done..end) {
                let len = slice.len();
                slice.copy_from_slice(&bytes[done - at..done - at + len]);
                done += len;
            }
        }
    }

    /// The checksum of `range` of the run, read where it landed.
    ///
    /// # Panics
    /// When `range` is longer than a block and touches discarded bytes: those are gone by then.
    pub fn checksum(&self, range: Range<usize>) -> BlockChecksum {
        let range = self.clip(range);
        let mut sum = Checksummer::new();
        for (piece, part) in parts(&self.pieces, range.clone()) {
            match piece.place {
                Place::Memory { index, at } => {
                    let at = at + (part.start - piece.start);
                    sum.update(&self.memories[index].bytes()[at..at + part.len()]);
                }
                Place::Scratch => {
                    assert!(range.len() <= SCRATCH_BYTES, "discarded bytes are only kept for one block");
                    let at = part.start % SCRATCH_BYTES;
                    let first = part.len().min(SCRATCH_BYTES - at);
                    sum.update(&self.scratch[at..at + first]);
                    sum.update(&self.scratch[..part.len() - first]);
                }
            }
        }
        sum.finish()
    }

    /// The buffers, in the order they were given; windows are released.
    pub fn into_buffers(self) -> Vec<Buffer> {
        let buffers = self.memories.into_iter().filter_map(|memory| match memory {
            Memory::Buffer(buffer) => Some(buffer),
            Memory::Window(_) | Memory::Blocks(_) => None,
        });
        buffers.collect()
    }

    /// The windows of page-locked chunks, in the order they were given, for their commit; everything else is released.
    pub fn into_block_windows(self) -> Vec<BlockWindow> {
        let windows = self.memories.into_iter().filter_map(|memory| match memory {
            Memory::Blocks(blocks) => Some(blocks),
            Memory::Window(_) | Memory::Buffer(_) => None,
        });
        windows.collect()
    }

    /// Whether some of its memory is known to be made of small pages. A disk writes to those in small pieces, which
    /// takes virtual ones twice as long: then reading directly by way of other memory is faster, copy and all.
    pub fn has_small_pages(&self) -> bool {
        self.memories.iter().any(|memory| match memory {
            Memory::Window(window) => window.has_small_pages(),
            Memory::Blocks(blocks) => blocks.chunk().pages() == PageKind::Small,
            Memory::Buffer(_) => false,
        })
    }

    /// The whole run as one slice when it lands in one piece of memory, without discarded bytes.
    pub fn contiguous_mut(&mut self) -> Option<&mut [u8]> {
        let [Piece { len, place: Place::Memory { index, at }, .. }] = self.pieces[..] else { return None };
        self.memories.get_mut(index)?.bytes_mut().get_mut(at..at + len)
    }

    fn clip(&self, range: Range<usize>) -> Range<usize> {
        let end = range.end.min(self.len);
        range.start.min(end)..end
    }
}

/// The pieces that `range` touches, each with the part of `range` that lies in it.
fn parts(pieces: &[Piece], range: Range<usize>) -> impl Iterator<Item = (&Piece, Range<usize>)> {
    let first = pieces.partition_point(|piece| piece.start + piece.len <= range.start);
    let touched = pieces[first..].iter().take_while({
        let end = range.end;
        move |piece| piece.start < end
    });
    touched.map(move |piece| {
        let part = range.start.max(piece.start)..range.end.min(piece.start + piece.len);
        (piece, part)
    })
}

impl std::fmt::Debug for Landing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Landing({} bytes in {} pieces)", self.len, self.pieces.len())
    }
}

#[cfg(test)]
mod tests;
