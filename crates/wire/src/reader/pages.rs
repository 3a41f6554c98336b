//! What each 4 KiB page of a block must be: computed when the block as a whole was verified, compared at each later read.

use std::cell::RefCell;
use std::fs::File;
use std::ops::Range;

use longshore_types::{BLOCK_BYTES, BlockChecksum, Checksummer, Code, Error, Result};

use crate::stream::restart;

/// The unit of later reads, in bytes. The kernel reads files by it, too.
pub(super) const PAGE_BYTES: usize = 4 << 10;
/// Bytes read at once: they stay in the core's cache until they were compared and copied.
const STRIDE_BYTES: usize = 64 << 10;
/// Pages of a full block.
const PAGES_PER_BLOCK: usize = BLOCK_BYTES as usize / PAGE_BYTES;

/// Memory of one entry, in bytes: 0.2 % of the block.
pub(super) const SUMS_BYTES: usize = PAGES_PER_BLOCK * size_of::<BlockChecksum>();

thread_local! {
    /// Where pages land before they are known to be good; never longer than a stride.
    static STRIDE: RefCell<Box<[u8]>> = RefCell::new(vec![0; STRIDE_BYTES].into());
}

/// A block that was verified once.
pub(super) struct PageSums {
    /// That of the whole block.
    pub(super) block: BlockChecksum,
    pages: Box<[BlockChecksum]>,
}

/// One block in a file.
pub(super) struct BlockInFile<'a> {
    pub(super) file: &'a File,
    /// Where the block begins in the file.
    pub(super) start: u64,
    pub(super) len: usize,
}

impl BlockInFile<'_> {
    /// Reads the whole block, compares it with what it must be, and puts the bytes at `within` of it into `out`, which mean
    /// nothing after an error.
    ///
    /// # Errors
    /// [`Code::Corrupt`] when it is something else or the file ends early.
    pub(super) fn first(&self, wanted: BlockChecksum, within: Range<usize>, out: &mut [u8]) -> Result<PageSums> {
        let mut block = Checksummer::new();
        let mut pages = Vec::with_capacity(self.len.div_ceil(PAGE_BYTES));
        self.strides(0..self.len, |at, bytes| {
            block.update(bytes);
            pages.extend(bytes.chunks(PAGE_BYTES).map(BlockChecksum::of));
            give(at, bytes, &within, out);
            Ok(())
        })?;
        match block.finish() {
            got if got == wanted => Ok(PageSums { block: wanted, pages: pages.into() }),
            got => Err(Error::new(Code::Corrupt, format!("it has checksum {got} instead of {wanted}"))),
        }
    }

    /// Reads the pages around `within`, compares them, and puts the bytes into `out`, which mean nothing after an error.
    ///
    /// # Errors
    /// [`Code::Corrupt`] naming the page that is not what it was, or the end of the file where there was none.
    pub(super) fn again(&self, sums: &PageSums, within: Range<usize>, out: &mut [u8]) -> Result<()> {
        let around = within.start / PAGE_BYTES * PAGE_BYTES..self.len.min(within.end.next_multiple_of(PAGE_BYTES));
        self.strides(around, |at, bytes| {
            let first = at / PAGE_BYTES;
            for (index, page) in (first..).zip(bytes.chunks(PAGE_BYTES)) {
                if sums.pages.get(index) != Some(&BlockChecksum::of(page)) {
                    return Err(Error::new(Code::Corrupt, format!("page {index} is not what it was")));
                }
            }
            give(at, bytes, &within, out);
            Ok(())
        })
    }

    /// Reads `range` of the block, whose start lies on a page, stride by stride.
    fn strides(&self, range: Range<usize>, mut take: impl FnMut(usize, &[u8]) -> Result<()>) -> Result<()> {
        STRIDE.with_borrow_mut(|stride| {
            for at in range.clone().step_by(STRIDE_BYTES) {
                let bytes = &mut stride[..STRIDE_BYTES.min(range.end - at)];
                self.read(at, bytes)?;
                take(at, bytes)?;
            }
            Ok(())
        })
    }

    fn read(&self, at: usize, bytes: &mut [u8]) -> Result<()> {
        let mut done = 0;
        while done < bytes.len() {
            let from = self.start.saturating_add((at + done) as u64);
            match restart(|| rustix::io::pread(self.file, &mut bytes[done..], from)) {
                Ok(0) => {
                    return Err(Error::new(
                        Code::Corrupt,
                        format!("the file ends within page {}", (at + done) / PAGE_BYTES),
                    ));
                }
                Ok(count) => done += count,
                // A disk that cannot give a sector has lost it: another copy is as good as for a wrong one.
                Err(e) => {
                    let page = (at + done) / PAGE_BYTES;
                    return Err(Error::new(Code::Corrupt, format!("page {page} cannot be read: {e}")).with_source(e));
                }
            }
        }
        Ok(())
    }
}

/// Copies what `bytes`, which begin at `at`, have of `within`, whose bytes are `out`.
pub(super) fn give(at: usize, bytes: &[u8], within: &Range<usize>, out: &mut [u8]) {
    let (start, end) = (within.start.max(at), within.end.min(at + bytes.len()));
    if start < end {
        out[start - within.start..end - within.start].copy_from_slice(&bytes[start - at..end - at]);
    }
}
