//! Puts a landing together, piece by piece, in the order of the incoming bytes.

use std::ops::Range;

use longshore_types::{Code, Error, Result};

use super::{Landing, Memory, Piece, Place, SCRATCH_BYTES};
use crate::arena::Buffer;
use crate::pinned::BlockWindow;
use crate::region::Window;

/// Collects the pieces of a [`Landing`]. A mistake (pieces that overlap or leave their memory) is kept and reported by
/// [`LandingBuilder::build`].
#[derive(Default)]
pub struct LandingBuilder {
    memories: Vec<Memory>,
    pieces: Vec<Piece>,
    len: usize,
    /// Bytes of the last memory that pieces have taken or skipped.
    taken: usize,
    discards: bool,
    tag: u64,
    mistake: Option<String>,
}

impl LandingBuilder {
    pub(super) fn new() -> LandingBuilder {
        LandingBuilder::default()
    }

    /// The next bytes fill the whole of `window`.
    #[must_use]
    pub fn window(self, window: Window) -> LandingBuilder {
        let len = window.len();
        self.open_window(window).take(len)
    }

    /// Adds `window` without a piece: [`LandingBuilder::take`] cuts pieces from its front, also between discarded
    /// bytes, so that one claim serves many small pieces that are neighbours in the region.
    #[must_use]
    pub fn open_window(self, window: Window) -> LandingBuilder {
        self.open(Memory::Window(window))
    }

    /// The next bytes fill the whole of `window`, blocks of a page-locked chunk.
    /// [`Landing::into_block_windows`] gives it back.
    #[must_use]
    pub fn block_window(self, window: BlockWindow) -> LandingBuilder {
        let len = window.len();
        self.open(Memory::Blocks(window)).take(len)
    }

    /// The next bytes fill `pieces` of `buffer`, which ascend and do not overlap.
    #[must_use]
    pub fn buffer(self, buffer: Buffer, pieces: Vec<Range<usize>>) -> LandingBuilder {
        pieces.into_iter().fold(self.open(Memory::Buffer(buffer)), LandingBuilder::piece)
    }

    /// The next `len` bytes fill the next `len` bytes of the memory added last.
    #[must_use]
    pub fn take(self, len: usize) -> LandingBuilder {
        let start = self.taken;
        self.piece(start..start.saturating_add(len))
    }

    /// The next `len` bytes are checksummed and dropped. A landing that discards anything has a block of heap memory for
    /// it (at most 1 MiB, not charged to an arena).
    #[must_use]
    pub fn scratch(mut self, len: usize) -> LandingBuilder {
        self.discards |= len > 0;
        self.push(len, Place::Scratch);
        self
    }

    /// A number for whoever gets the landing back, see [`Landing::tag`].
    #[must_use]
    pub fn tag(mut self, tag: u64) -> LandingBuilder {
        self.tag = tag;
        self
    }

    /// The landing.
    ///
    /// # Errors
    /// [`Code::Internal`] when pieces overlap, do not ascend or leave their memory.
    pub fn build(self) -> Result<Landing> {
        if let Some(mistake) = self.mistake {
            return Err(Error::new(Code::Internal, mistake));
        }
        let scratch =
            if self.discards { vec![0; SCRATCH_BYTES.min(self.len)].into_boxed_slice() } else { Box::default() };
        Ok(Landing { memories: self.memories, pieces: self.pieces, scratch, len: self.len, tag: self.tag })
    }

    fn open(mut self, memory: Memory) -> LandingBuilder {
        self.memories.push(memory);
        self.taken = 0;
        self
    }

    fn piece(mut self, range: Range<usize>) -> LandingBuilder {
        let room = self.memories.last().map_or(0, |memory| memory.bytes().len());
        if range.start < self.taken || range.end < range.start || range.end > room {
            let taken = self.taken;
            let mistake = format!("piece {range:?} does not follow byte {taken} within a memory of {room} bytes");
            self.mistake.get_or_insert(mistake);
            return self;
        }
        self.taken = range.end;
        let index = self.memories.len().saturating_sub(1);
        self.push(range.len(), Place::Memory { index, at: range.start });
        self
    }

    /// Appends to the run; neighbours in one memory become one piece.
    fn push(&mut self, len: usize, place: Place) {
        let Some(end) = self.len.checked_add(len) else {
            self.mistake.get_or_insert_with(|| "a landing longer than the address space".into());
            return;
        };
        if len == 0 {
            return;
        }
        let start = std::mem::replace(&mut self.len, end);
        if let Some(last) = self.pieces.last_mut()
            && last.continues_as(place)
        {
            last.len += len;
            return;
        }
        self.pieces.push(Piece { start, len, place });
    }
}

impl Piece {
    fn continues_as(&self, next: Place) -> bool {
        match (self.place, next) {
            (Place::Scratch, Place::Scratch) => true,
            (Place::Memory { index, at }, Place::Memory { index: next_index, at: next_at }) => {
                index == next_index && at + self.len == next_at
            }
            _ => false,
        }
    }
}
