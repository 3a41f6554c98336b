//! Cuts the pieces that one call asks for out of a landing's memories, front to back.

use std::iter::Enumerate;
use std::ops::Range;
use std::slice::IterMut;

use super::{Memory, SCRATCH_BYTES};

/// The memories of a landing while slices are cut from them. Both the memories and the pieces within one are asked for
/// in the order of the run, so that each cut takes from the front of what is left.
pub(super) struct Cuts<'a> {
    /// Memories not reached yet.
    ahead: Enumerate<IterMut<'a, Memory>>,
    current: Option<(usize, Rest<'a>)>,
    /// The scratch memory from the place that belongs to the first byte of the call, then what precedes that place.
    scratch: [Rest<'a>; 2],
}

impl<'a> Cuts<'a> {
    /// `run` is what the call asks for; when there is scratch memory, no longer than that.
    pub(super) fn new(memories: &'a mut [Memory], scratch: &'a mut [u8], run: &Range<usize>) -> Cuts<'a> {
        let cut = (run.start % SCRATCH_BYTES).min(scratch.len());
        let (before, after) = scratch.split_at_mut(cut);
        let turn = run.start + after.len();
        let scratch = [Rest { at: run.start, bytes: after }, Rest { at: turn, bytes: before }];
        Cuts { ahead: memories.iter_mut().enumerate(), current: None, scratch }
    }

    /// This range of the memory with this index.
    pub(super) fn memory(&mut self, index: usize, range: Range<usize>) -> Option<&'a mut [u8]> {
        if self.current.as_ref().is_none_or(|(current, _)| *current != index) {
            let (_, memory) = self.ahead.find(|(ahead, _)| *ahead == index)?;
            self.current = Some((index, Rest { at: 0, bytes: memory.bytes_mut() }));
        }
        let (_, rest) = self.current.as_mut()?;
        rest.take(range)
    }

    /// The scratch memory for `part` of the run: one slice, or two where the memory wraps around.
    pub(super) fn scratch(&mut self, part: Range<usize>) -> impl Iterator<Item = &'a mut [u8]> {
        self.scratch.iter_mut().filter_map(move |half| {
            let wanted = part.start.max(half.at)..part.end.min(half.at + half.bytes.len());
            if wanted.is_empty() { None } else { half.take(wanted) }
        })
    }
}

/// What is left of one exclusive memory.
struct Rest<'a> {
    /// The offset that the first byte of `bytes` has.
    at: usize,
    bytes: &'a mut [u8],
}

impl<'a> Rest<'a> {
    /// Cuts out `range`, which must not precede what was cut out before.
    fn take(&mut self, range: Range<usize>) -> Option<&'a mut [u8]> {
        let skip = range.start.checked_sub(self.at)?;
        let bytes = std::mem::take(&mut self.bytes).get_mut(skip..)?;
        let (taken, left) = bytes.split_at_mut_checked(range.len())?;
        *self = Rest { at: range.end, bytes: left };
        Some(taken)
    }
}
