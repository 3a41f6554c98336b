//! One read under construction.

use longshore_device::Part;
use longshore_types::chunk::block_aligned;

use super::ChunkPlan;
use crate::plan::layout::CopyRange;

/// Rows within one chunk that go to consecutive places.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Piece {
    /// The first byte, within the chunk.
    pub start_bytes: u64,
    pub row_bytes: u64,
    /// Between two rows.
    pub skip_bytes: u64,
    pub rows: u64,
    /// The first byte in the region.
    pub region_offset_bytes: u64,
}

impl Piece {
    /// The end of the last row, within the chunk.
    fn end_bytes(&self) -> u64 {
        self.start_bytes + self.row_bytes * self.rows + self.skip_bytes * (self.rows - 1)
    }

    fn part(&self) -> Part {
        let (offset_bytes, Piece { row_bytes, skip_bytes, rows, .. }) = (self.region_offset_bytes, *self);
        match rows {
            1 => Part::Place { offset_bytes, len_bytes: row_bytes },
            _ => Part::Rows { offset_bytes, row_bytes, skip_bytes, rows },
        }
    }
}

pub(super) struct Run {
    file: usize,
    /// The chunk in the file; the plan's key may be of another object.
    index: u64,
    plan: ChunkPlan,
    /// How far the parts reach, within the chunk.
    at: u64,
}

impl Run {
    /// Begins a plan that has nothing but its chunk.
    pub(super) fn open(copy: &CopyRange, index: u64, mut plan: ChunkPlan, piece: Piece) -> Run {
        plan.range = block_aligned(piece.start_bytes..piece.end_bytes(), plan.key.len_bytes());
        let at = plan.range.start;
        let mut run = Run { file: copy.file, index, plan, at };
        run.extend(piece);
        run
    }

    /// Whether a piece at `start` of that chunk begins in, or right behind, the blocks already asked for.
    pub(super) fn reaches(&self, file: usize, index: u64, start: u64) -> bool {
        self.file == file && self.index == index && start <= self.plan.range.end
    }

    pub(super) fn extend(&mut self, piece: Piece) {
        let end = piece.end_bytes();
        let aligned = block_aligned(piece.start_bytes..end, self.plan.key.len_bytes());
        self.plan.range.end = self.plan.range.end.max(aligned.end);
        self.discard_to(piece.start_bytes);
        match (self.plan.parts.last_mut(), piece.part()) {
            (Some(Part::Place { offset_bytes: last, len_bytes }), Part::Place { offset_bytes, len_bytes: more })
                if *last + *len_bytes == offset_bytes =>
            {
                *len_bytes += more
            }
            (_, part) => self.plan.parts.push(part),
        }
        self.at = end;
    }

    fn discard_to(&mut self, to: u64) {
        if to > self.at {
            self.plan.parts.push(Part::Discard { len_bytes: to - self.at });
            self.at = to;
        }
    }

    pub(super) fn close(mut self) -> ChunkPlan {
        self.discard_to(self.plan.range.end);
        self.plan
    }
}
