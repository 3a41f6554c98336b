//! One range of a file, piece by piece in order, while later pieces are still on their way.
//!
//! The pieces go round in one block of memory. A piece is handed over when its read has been completed, and its place is
//! read to again only after that: while the caller copies one, the disk has reads for all the others.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd};

use io_uring::types;
use rustix::io::Errno;

use super::{DEPTH, InFlight, Part, RETRIES_MAX, Ring, Target};

/// Bytes of one piece: small enough that some are in flight within little memory.
pub(in crate::direct) const PIECE_BYTES: usize = 512 << 10;

impl Ring {
    /// Hands the bytes of `range` to `sink`, in order. `memory` is aligned as the file asks, and holds some pieces;
    /// `block` is what offsets in the file must be multiples of.
    pub(in crate::direct) fn stream(
        &mut self,
        file: BorrowedFd<'_>,
        range: Range<u64>,
        memory: &mut [u8],
        block: usize,
        mut sink: impl FnMut(&[u8]),
    ) -> io::Result<()> {
        let places = (memory.len() / PIECE_BYTES).min(DEPTH);
        let start = memory.as_mut_ptr();
        let pieces = pieces(&range, block as u64);
        // Only known by its address until the last read is completed.
        let target = |(at, piece): (usize, &Piece)| Target {
            start: start.wrapping_add(at % places * PIECE_BYTES),
            len: piece.len,
            offset: piece.offset,
            needed: piece.wanted.end,
        };
        let targets: Vec<Target> = pieces.iter().enumerate().map(target).collect();
        let mut is_here = vec![false; pieces.len()];
        let mut flight = InFlight { uring: &mut self.uring, parts: [None; DEPTH], count: 0 };
        let file = types::Fd(file.as_raw_fd());
        let (mut asked, mut given, mut retries) = (0, 0, 0);
        let mut again = VecDeque::new();
        while given < pieces.len() {
            while flight.count < DEPTH
                && let Some(part) = again.pop_front()
            {
                flight.push(file, &targets, part)?;
            }
            while flight.count < DEPTH && asked < pieces.len() && asked < given + places {
                flight.push(file, &targets, Part { target: asked, at: 0, len: pieces[asked].len })?;
                asked += 1;
            }
            if is_here[given] {
                // What was queued is read while this piece is used.
                flight.submit()?;
                let Range { start: from, end: to } = pieces[given].wanted;
                // SAFETY: within the place of this piece, whose read is completed and filled it up to `to`; no other
                // read to this place is queued before the piece counts as given.
                let bytes = unsafe { std::slice::from_raw_parts(targets[given].start.wrapping_add(from), to - from) };
                sink(bytes);
                given += 1;
            } else if !flight.submit_and_wait()? {
                retries += 1;
            }
            while let Some((part, answer)) = flight.pop() {
                match answer {
                    Ok(count) => {
                        let rest = part.rest(count, targets[part.target].needed)?;
                        is_here[part.target] = rest.is_none();
                        again.extend(rest);
                        retries = 0;
                    }
                    Err(Errno::AGAIN | Errno::INTR) => {
                        again.push_front(part);
                        retries += 1;
                    }
                    Err(errno) => return Err(errno.into()),
                }
            }
            if retries > RETRIES_MAX {
                return Err(Errno::AGAIN.into());
            }
        }
        Ok(())
    }
}

/// What is read at once: whole blocks of the file.
#[derive(Debug, PartialEq, Eq)]
struct Piece {
    offset: u64,
    len: usize,
    /// The part of it that belongs to the range.
    wanted: Range<usize>,
}

fn pieces(range: &Range<u64>, block: u64) -> Vec<Piece> {
    if range.is_empty() {
        return Vec::new();
    }
    let first = range.start / block * block;
    let piece = |offset: u64| {
        let end = (offset + PIECE_BYTES as u64).min(range.end);
        let wanted = range.start.saturating_sub(offset) as usize..(end - offset) as usize;
        Piece { offset, len: wanted.end.next_multiple_of(block as usize), wanted }
    };
    (first..range.end).step_by(PIECE_BYTES).map(piece).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_whole_blocks_and_their_wanted_parts_are_the_range() {
        const STEP: u64 = PIECE_BYTES as u64;
        for range in [0..1, 5..5, 4095..4097, 513..STEP, 1..3 * STEP + 1, STEP..2 * STEP, 700..STEP + 4096] {
            let mut at = range.start;
            for piece in pieces(&range, 4096) {
                assert_eq!((piece.offset % 4096, piece.len % 4096), (0, 0));
                assert!(piece.len <= PIECE_BYTES && piece.wanted.end <= piece.len && !piece.wanted.is_empty());
                assert_eq!(piece.offset + piece.wanted.start as u64, at);
                at = piece.offset + piece.wanted.end as u64;
            }
            assert_eq!(at, range.end);
        }
    }
}
