//! Which blocks of a chunk are missing, being filled, or ready.
//!
//! Each block goes from missing to filling, and from there to ready or back to missing; ready is final. All changes
//! happen under one lock; whether a block is ready can also be read without it.

use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use longshore_types::BLOCKS_PER_CHUNK;
use parking_lot::{Condvar, Mutex};

const _: () = assert!(BLOCKS_PER_CHUNK < 32, "a set of blocks is one word, and a range of them a shift of it");

/// The states of the blocks of one chunk.
#[derive(Debug)]
pub(super) struct Blocks {
    count: u32,
    /// One bit a block. Bits are only ever set, with release ordering, after the block's bytes were written.
    ready: AtomicU32,
    /// One bit a block that somebody fills. Never a bit that is also in `ready`.
    filling: Mutex<u32>,
    /// Somebody stopped filling.
    changed: Condvar,
}

/// What [`Blocks::claim`] found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Answer {
    Ready,
    Busy,
    /// These are now the caller's, until [`Blocks::finish`].
    Fill(Range<u32>),
}

impl Blocks {
    /// `count` missing blocks, at most [`BLOCKS_PER_CHUNK`].
    pub(super) fn new(count: u32) -> Blocks {
        debug_assert!(count as usize <= BLOCKS_PER_CHUNK);
        Blocks { count, ready: AtomicU32::new(0), filling: Mutex::new(0), changed: Condvar::new() }
    }

    /// The blocks that are ready, one bit each. What was written to them before is visible to the caller.
    pub(super) fn ready(&self) -> u32 {
        self.ready.load(Ordering::Acquire)
    }

    /// Whether all of `blocks` that exist are ready.
    pub(super) fn are_ready(&self, blocks: &Range<u32>) -> bool {
        let wanted = self.bits(blocks);
        self.ready() & wanted == wanted
    }

    /// Takes the first run of missing blocks of `blocks`.
    pub(super) fn claim(&self, blocks: &Range<u32>) -> Answer {
        let wanted = self.bits(blocks);
        let mut filling = self.filling.lock();
        let missing = wanted & !(self.ready() | *filling);
        if missing == 0 {
            return if wanted & *filling == 0 { Answer::Ready } else { Answer::Busy };
        }
        let first = missing.trailing_zeros();
        let run = first..first + (missing >> first).trailing_ones();
        *filling |= self.bits(&run);
        Answer::Fill(run)
    }

    /// Gives back `blocks`, which [`Blocks::claim`] gave to the caller: `ready` for everybody, or missing again.
    pub(super) fn finish(&self, blocks: &Range<u32>, ready: bool) {
        let bits = self.bits(blocks);
        let mut filling = self.filling.lock();
        debug_assert_eq!(*filling & bits, bits, "gave back what was not claimed");
        *filling &= !bits;
        if ready {
            self.ready.fetch_or(bits, Ordering::Release);
        }
        drop(filling);
        self.changed.notify_all();
    }

    /// Waits until nobody fills any of `blocks`, at most `timeout`. Blocks the thread.
    pub(super) fn wait(&self, blocks: &Range<u32>, timeout: Duration) {
        let wanted = self.bits(blocks);
        let deadline = Instant::now().checked_add(timeout);
        let mut filling = self.filling.lock();
        while *filling & wanted != 0 {
            match deadline {
                Some(deadline) if self.changed.wait_until(&mut filling, deadline).timed_out() => return,
                Some(_) => {}
                None => self.changed.wait(&mut filling),
            }
        }
    }

    /// One bit for each block of the range that exists.
    fn bits(&self, blocks: &Range<u32>) -> u32 {
        let below = |end: u32| (1u32 << end.min(self.count)) - 1;
        below(blocks.end) & !below(blocks.start)
    }
}

#[cfg(test)]
mod tests;
