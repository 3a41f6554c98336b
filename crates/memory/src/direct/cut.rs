//! Cuts a range of a file into what can be read in place, whole blocks, and its ends, which need memory of their own.

use super::Request;

/// The reads that make up one range.
pub(super) struct Cut<'a> {
    pub(super) requests: Vec<Request<'a>>,
    pub(super) head: Option<End>,
    pub(super) tail: Option<End>,
}

/// A part of the range that arrives in scratch memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct End {
    /// Where in the scratch memory, where in the range, and how many bytes.
    from: usize,
    to: usize,
    len: usize,
}

impl End {
    pub(super) fn copy_out(self, scratch: &[u8], into: &mut [u8]) {
        into[self.to..self.to + self.len].copy_from_slice(&scratch[self.from..self.from + self.len]);
    }
}

/// `scratch` has room for two blocks.
pub(super) fn cut<'a>(offset: u64, into: &'a mut [u8], scratch: &'a mut [u8], block: usize) -> Cut<'a> {
    let len = into.len();
    let before = (offset % block as u64) as usize;
    let (head_memory, tail_memory) = scratch.split_at_mut(block);
    let mut requests = Vec::with_capacity(3);
    // The part of the first block that is wanted, unless that block is wanted whole.
    let head_len = if before == 0 { 0 } else { len.min(block - before) };
    let head = (head_len > 0).then(|| {
        let needed = before + head_len;
        requests.push(Request { offset: offset - before as u64, into: head_memory, needed });
        End { from: before, to: 0, len: head_len }
    });
    let tail_len = (len - head_len) % block;
    let middle = &mut into[head_len..len - tail_len];
    if !middle.is_empty() {
        let needed = middle.len();
        requests.push(Request { offset: offset + head_len as u64, into: middle, needed });
    }
    let tail = (tail_len > 0).then(|| {
        let to = len - tail_len;
        requests.push(Request { offset: offset + to as u64, into: &mut tail_memory[..block], needed: tail_len });
        End { from: block, to, len: tail_len }
    });
    Cut { requests, head, tail }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, cases: if cfg!(miri) { 8 } else { 512 }, ..ProptestConfig::default() })]
        /// A file whose byte at each offset is known: the pieces put together are the range, and all reads are whole
        /// blocks.
        #[test]
        fn the_pieces_make_up_the_range(offset in 0u64..200, len in 0usize..200, block in 0u32..6) {
            let block = 1usize << block;
            let byte = |at: u64| (at as u8).wrapping_mul(31);
            let (mut into, mut scratch) = (vec![0; len], vec![0; 2 * block]);
            let Cut { requests, head, tail } = cut(offset, &mut into, &mut scratch, block);
            for request in requests {
                prop_assert!(request.offset.is_multiple_of(block as u64) && request.into.len().is_multiple_of(block));
                prop_assert!(request.needed <= request.into.len() && request.needed > 0);
                prop_assert!(request.offset + request.needed as u64 <= offset + len as u64);
                for (at, to) in (request.offset..).zip(request.into.iter_mut()) {
                    *to = byte(at);
                }
            }
            for end in [head, tail].into_iter().flatten() {
                end.copy_out(&scratch, &mut into);
            }
            let expected: Vec<u8> = (offset..offset + len as u64).map(byte).collect();
            prop_assert_eq!(into, expected);
        }
    }
}
