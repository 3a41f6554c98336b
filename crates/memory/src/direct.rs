//! Reading files past the page cache: one range, straight into the caller's memory, with many reads in flight.
//!
//! A read through the page cache costs a copy by the CPU and pushes other data out of memory; a direct one lets the
//! disk write where the bytes are to be. It blocks the calling thread, whose ring is kept for the next read.
//!
//! What was really done is always said, by [`ReadWay`]: containers often forbid io_uring, and some file systems have
//! no direct reads. Deliberately absent: writing.

mod cut;
mod populate;
mod residency;
mod ring;

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::{AtFlags, OFlags, StatxFlags, statx};
use rustix::io::{Errno, pread, retry_on_intr};

use self::cut::{Cut, cut};
pub use self::populate::populate;
pub use self::residency::residency;
use self::ring::Used;
use self::ring::stream::PIECE_BYTES;

/// What [`DirectFile::read_through`] reads at once. A thread that calls it keeps this much, two huge pages, not charged
/// to an arena.
const BOUNCE_BYTES: usize = 4 << 20;
const _: () =
    assert!(BOUNCE_BYTES.is_multiple_of(PIECE_BYTES) && PIECE_BYTES.is_multiple_of(Alignment::MAX.offset_bytes));

/// How bytes of a file were read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ReadWay {
    /// Copied out of a mapping of the page cache.
    Mapped,
    /// Copied out of the page cache by the kernel.
    PageCache,
    /// Past the page cache, many reads at once.
    DirectUring,
    /// Past the page cache, one read after the other: io_uring is not to be had here.
    Direct,
}

/// What a file system asks of a direct read. Both are powers of two, that of offsets the larger one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Alignment {
    /// Of the address of the memory.
    pub memory_bytes: usize,
    /// Of the offset in the file and of the length.
    pub offset_bytes: usize,
}

impl Alignment {
    /// What every file system with direct reads we know of accepts.
    const USUAL: Alignment = Alignment { memory_bytes: 4096, offset_bytes: 4096 };
    /// Memory is page-aligned at best, and a thread keeps two blocks of this size for the ends of a range.
    const MAX: Alignment = Alignment { memory_bytes: 4096, offset_bytes: 64 << 10 };

    /// From what the kernel says, zeros meaning that there are no direct reads.
    fn of(memory: u32, offset: u32) -> Option<Alignment> {
        let memory_bytes = memory as usize;
        // Blocks are no smaller than the alignment of memory, so that a whole number of them keeps it.
        let offset_bytes = (offset as usize).max(memory_bytes);
        let is_usable = memory_bytes.is_power_of_two()
            && offset.is_power_of_two()
            && memory_bytes <= Alignment::MAX.memory_bytes
            && offset_bytes <= Alignment::MAX.offset_bytes;
        is_usable.then_some(Alignment { memory_bytes, offset_bytes })
    }
}

/// A file that is read past the page cache.
#[derive(Debug)]
pub struct DirectFile {
    file: File,
    align: Alignment,
}

impl DirectFile {
    /// Opens a file; `None` when its file system has no direct reads.
    ///
    /// # Errors
    /// What opening or looking at it reports.
    pub fn open(path: &Path) -> io::Result<Option<DirectFile>> {
        let file = match File::options().read(true).custom_flags(OFlags::DIRECT.bits() as i32).open(path) {
            Ok(file) => file,
            Err(error) if is_refusal(&error) => return Ok(None),
            Err(error) => return Err(error),
        };
        let align = match statx(&file, "", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN) {
            Ok(found) if found.stx_mask & StatxFlags::DIOALIGN.bits() != 0 => {
                Alignment::of(found.stx_dio_mem_align, found.stx_dio_offset_align)
            }
            // Before Linux 6.1, and file systems that do not say.
            Ok(_) | Err(Errno::NOSYS | Errno::INVAL | Errno::PERM) => Some(Alignment::USUAL),
            Err(errno) => return Err(errno.into()),
        };
        Ok(align.map(|align| DirectFile { file, align }))
    }

    /// The open file. Ordinary reads of it are direct as well.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// What its file system asks for.
    pub fn alignment(&self) -> Alignment {
        self.align
    }

    /// Whether the bytes from `offset` on can be read straight into `into`: whole blocks of the file must come to lie on
    /// aligned addresses. Memory as aligned as the offset always fits.
    pub fn fits(&self, offset: u64, into: &[u8]) -> bool {
        let head = (offset.wrapping_neg() % self.align.offset_bytes as u64) as usize;
        // A range without a whole block only touches memory of ours.
        head + self.align.offset_bytes > into.len()
            || into.as_ptr().wrapping_add(head).align_offset(self.align.memory_bytes) == 0
    }

    /// Fills `into` with the bytes from `offset` on. Blocks the thread.
    ///
    /// # Errors
    /// `UnexpectedEof` when the file ends before; `InvalidInput` when the memory does not fit ([`DirectFile::fits`]);
    /// what the kernel reports, [`is_refusal`] among it: then read in another way.
    pub fn read(&self, offset: u64, into: &mut [u8]) -> io::Result<ReadWay> {
        ring::with_thread(|thread| self.read_on(thread, offset, into))
    }

    /// Hands the bytes of `range` to `sink`, in order, by way of memory that the thread keeps. `sink` must not read
    /// directly itself. With io_uring the disk goes on reading meanwhile.
    ///
    /// # Errors
    /// As [`DirectFile::read`]; what came before an error was handed over.
    pub fn read_through(&self, range: Range<u64>, sink: impl FnMut(&[u8])) -> io::Result<ReadWay> {
        let block = self.align.offset_bytes;
        ring::with_thread(|thread| {
            let mut bounce = thread.take_bounce()?;
            let memory = bounce.bytes();
            let (_, ring) = thread.parts(2 * block)?;
            let way = match ring {
                Used::Uring(ring) => {
                    ring.stream(self.file.as_fd(), range, memory, block, sink)?;
                    ReadWay::DirectUring
                }
                Used::None => {
                    self.read_in_turn(range, memory, sink)?;
                    ReadWay::Direct
                }
            };
            thread.keep_bounce(bounce);
            Ok(way)
        })
    }

    /// Without io_uring: reads and uses the bytes of `range` by turns.
    fn read_in_turn(&self, range: Range<u64>, memory: &mut [u8], mut sink: impl FnMut(&[u8])) -> io::Result<()> {
        let block = self.align.offset_bytes as u64;
        let mut at = range.start;
        while at < range.end {
            let offset = at / block * block;
            let stop = range.end.min(offset + memory.len() as u64);
            let needed = (stop - offset) as usize;
            let into = &mut memory[..needed.next_multiple_of(block as usize)];
            read_one(self.file.as_fd(), Request { offset, into, needed })?;
            sink(&memory[(at - offset) as usize..needed]);
            at = stop;
        }
        Ok(())
    }

    fn read_on(&self, thread: &mut ring::Thread, offset: u64, into: &mut [u8]) -> io::Result<ReadWay> {
        if !self.fits(offset, into) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the memory is not aligned as the file is"));
        }
        let (scratch, ring) = thread.parts(2 * self.align.offset_bytes)?;
        let Cut { requests, head, tail } = cut(offset, into, scratch, self.align.offset_bytes);
        let way = match ring {
            Used::Uring(ring) => {
                ring.read_all(self.file.as_fd(), requests)?;
                ReadWay::DirectUring
            }
            Used::None => {
                requests.into_iter().try_for_each(|request| read_one(self.file.as_fd(), request))?;
                ReadWay::Direct
            }
        };
        for end in [head, tail].into_iter().flatten() {
            end.copy_out(scratch, into);
        }
        Ok(way)
    }
}

/// Whether the error says that direct reads, or these ones, are not for this file.
pub fn is_refusal(error: &io::Error) -> bool {
    [Errno::INVAL, Errno::OPNOTSUPP].into_iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

/// One read of a range: whole blocks of a file into memory that is aligned for it.
#[derive(Debug)]
struct Request<'a> {
    offset: u64,
    into: &'a mut [u8],
    /// Bytes that must come; the file may end behind them.
    needed: usize,
}

fn ends_early() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "the file ends too early")
}

/// A request without io_uring.
fn read_one(file: BorrowedFd<'_>, request: Request<'_>) -> io::Result<()> {
    let mut done = 0;
    while done < request.needed {
        let offset = request.offset + done as u64;
        match retry_on_intr(|| pread(file, &mut request.into[done..], offset))? {
            0 => return Err(ends_early()),
            count => done += count,
        }
    }
    Ok(())
}

#[cfg(test)]
#[cfg(not(miri))]
mod tests;
