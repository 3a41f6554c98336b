//! One io_uring a thread, kept from read to read.
//!
//! Invariant: when [`Ring::read_all`] ends, whichever way, the kernel writes to none of the memory it was given: every
//! entry that was queued has been completed by then ([`InFlight`]).

pub(super) mod stream;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use io_uring::{IoUring, opcode, types};
use rustix::io::Errno;

use super::{BOUNCE_BYTES, Request, ends_early};
use crate::raw::RawMemory;

/// Reads in flight of one thread at most.
const DEPTH: usize = 16;
/// Bytes of one of them.
const READ_BYTES: usize = 1 << 20;
/// How often in a row the kernel may ask to come again before that is an error.
const RETRIES_MAX: u32 = 10_000;

/// What a thread keeps.
pub(super) struct Thread {
    ring: State,
    scratch: Option<Memory>,
    bounce: Option<Memory>,
}

/// Page-aligned memory of this thread alone.
pub(super) struct Memory {
    memory: RawMemory,
}

impl Memory {
    fn new(len: usize) -> io::Result<Memory> {
        Ok(Memory { memory: RawMemory::mapping(len)? })
    }

    pub(super) fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: initialised memory that is owned by this value alone, which is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.memory.start().as_ptr(), self.memory.len()) }
    }
}

enum State {
    Untried,
    Ready(Box<Ring>),
    /// This process or this thread may not have one; asking again is of no use.
    Forbidden,
}

/// What a read is done with.
pub(super) enum Used<'a> {
    Uring(&'a mut Ring),
    None,
}

thread_local! {
    static THREAD: RefCell<Thread> = const { RefCell::new(Thread { ring: State::Untried, scratch: None, bounce: None }) };
}

/// Calls `work` with what this thread keeps.
pub(super) fn with_thread<T>(work: impl FnOnce(&mut Thread) -> io::Result<T>) -> io::Result<T> {
    let refuse = || Err(io::Error::other("a direct read within a direct read, or at the end of its thread"));
    let answer = THREAD.try_with(|thread| match thread.try_borrow_mut() {
        Ok(mut thread) => work(&mut thread),
        Err(_) => refuse(),
    });
    answer.unwrap_or_else(|_| refuse())
}

impl Thread {
    /// Page-aligned memory of at least `scratch_bytes`, and the ring if there may be one.
    pub(super) fn parts(&mut self, scratch_bytes: usize) -> io::Result<(&mut [u8], Used<'_>)> {
        if matches!(self.ring, State::Untried) {
            match Ring::new() {
                Ok(ring) => self.ring = State::Ready(Box::new(ring)),
                Err(error) if is_forbidden(&error) => self.ring = State::Forbidden,
                // Too many files or too little memory at the moment: the next read tries again.
                Err(_) => {}
            }
        }
        let scratch = match self.scratch.take() {
            Some(memory) if memory.memory.len() >= scratch_bytes => memory,
            _ => Memory::new(scratch_bytes)?,
        };
        let used = match &mut self.ring {
            State::Ready(ring) => Used::Uring(ring),
            State::Untried | State::Forbidden => Used::None,
        };
        Ok((self.scratch.insert(scratch).bytes(), used))
    }

    /// Memory of [`BOUNCE_BYTES`], the thread's own or made now.
    pub(super) fn take_bounce(&mut self) -> io::Result<Memory> {
        self.bounce.take().map_or_else(|| Memory::new(BOUNCE_BYTES), Ok)
    }

    /// Keeps it for the next time.
    pub(super) fn keep_bounce(&mut self, memory: Memory) {
        self.bounce = Some(memory);
    }
}

fn is_forbidden(error: &io::Error) -> bool {
    [Errno::PERM, Errno::ACCESS, Errno::NOSYS]
        .into_iter()
        .any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

pub(super) struct Ring {
    uring: IoUring,
}

impl Ring {
    fn new() -> io::Result<Ring> {
        let entries = DEPTH as u32;
        // Completions are only looked for by this thread, when it asks (Linux 6.1); before, the plain kind.
        let uring = match IoUring::builder().setup_single_issuer().setup_defer_taskrun().build(entries) {
            Err(error) if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => IoUring::new(entries),
            other => other,
        }?;
        Ok(Ring { uring })
    }

    /// Does all `requests`. After an error none, some or all of their memory has been written.
    pub(super) fn read_all(&mut self, file: BorrowedFd<'_>, mut requests: Vec<Request<'_>>) -> io::Result<()> {
        // The memory is only known by its address until everything is completed.
        let targets: Vec<Target> = requests.iter_mut().map(Target::of).collect();
        let mut waiting: VecDeque<Part> = targets.iter().enumerate().flat_map(parts).collect();
        let mut flight = InFlight { uring: &mut self.uring, parts: [None; DEPTH], count: 0 };
        let file = types::Fd(file.as_raw_fd());
        let mut retries = 0;
        while !waiting.is_empty() || flight.count > 0 {
            while flight.count < DEPTH
                && let Some(part) = waiting.pop_front()
            {
                flight.push(file, &targets, part)?;
            }
            if !flight.submit_and_wait()? {
                retries += 1;
            }
            while let Some((part, answer)) = flight.pop() {
                match answer {
                    Ok(count) => {
                        waiting.extend(part.rest(count, targets[part.target].needed)?);
                        retries = 0;
                    }
                    Err(Errno::AGAIN | Errno::INTR) => {
                        waiting.push_front(part);
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

/// A request's memory while the kernel writes to it.
struct Target {
    start: *mut u8,
    len: usize,
    offset: u64,
    needed: usize,
}

impl Target {
    fn of(request: &mut Request<'_>) -> Target {
        Target {
            start: request.into.as_mut_ptr(),
            len: request.into.len(),
            offset: request.offset,
            needed: request.needed,
        }
    }
}

/// A part of a target, within its length.
#[derive(Debug, Clone, Copy)]
struct Part {
    target: usize,
    at: usize,
    len: usize,
}

/// A target in reads of [`READ_BYTES`] each.
fn parts((index, target): (usize, &Target)) -> impl Iterator<Item = Part> + use<> {
    let len = target.len;
    (0..len).step_by(READ_BYTES).map(move |at| Part { target: index, at, len: READ_BYTES.min(len - at) })
}

impl Part {
    /// What is left to read after `count` bytes came, of a target that needs its first `needed` bytes.
    fn rest(self, count: usize, needed: usize) -> io::Result<Option<Part>> {
        let at = self.at + count;
        if count >= self.len || at >= needed {
            return Ok(None);
        }
        if count == 0 { Err(ends_early()) } else { Ok(Some(Part { at, len: self.len - count, ..self })) }
    }
}

/// Reads that were queued and not completed. On drop it waits for them: only then may their memory be used again.
struct InFlight<'a> {
    uring: &'a mut IoUring,
    /// What each place of the queue reads.
    parts: [Option<Part>; DEPTH],
    count: usize,
}

impl InFlight<'_> {
    /// Queues a read. There must be a free place.
    fn push(&mut self, file: types::Fd, targets: &[Target], part: Part) -> io::Result<()> {
        let full = || io::Error::other("the queue of reads is full");
        let place = self.parts.iter().position(Option::is_none).ok_or_else(full)?;
        let target = &targets[part.target];
        let entry = opcode::Read::new(file, target.start.wrapping_add(part.at), part.len as u32)
            .offset(target.offset + part.at as u64)
            .build()
            .user_data(place as u64);
        // SAFETY: the part lies within its target, exclusive memory that outlives the entry: its owner is borrowed
        // mutably by `read_all`, which does not end before the entry was completed, because this value waits for that
        // on drop. The file is open as long.
        unsafe { self.uring.submission().push(&entry) }.map_err(|_| full())?;
        self.parts[place] = Some(part);
        self.count += 1;
        Ok(())
    }

    /// Gives what was queued to the kernel. What it does not take now, because it is busy, it takes the next time.
    fn submit(&mut self) -> io::Result<()> {
        match self.uring.submit() {
            Err(error) if !is_passing(&error) => Err(error),
            _ => Ok(()),
        }
    }

    /// Gives what was queued to the kernel, and waits until something is completed. False when the kernel was
    /// interrupted or busy: something may be completed even so.
    fn submit_and_wait(&mut self) -> io::Result<bool> {
        match self.uring.submit_and_wait(1) {
            Ok(_) => Ok(true),
            Err(error) if is_passing(&error) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Takes a completed read.
    fn pop(&mut self) -> Option<(Part, Result<usize, Errno>)> {
        let entry = self.uring.completion().next()?;
        let part = usize::try_from(entry.user_data()).ok().and_then(|place| self.parts.get_mut(place)?.take())?;
        self.count -= 1;
        let answer = usize::try_from(entry.result()).map_err(|_| Errno::from_raw_os_error(-entry.result()));
        Some((part, answer))
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        while self.count > 0 {
            if self.submit_and_wait().is_err() {
                // The kernel completes what it has without being asked, too; nothing else may be done before.
                std::thread::yield_now();
            }
            while self.pop().is_some() {}
        }
    }
}

fn is_passing(error: &io::Error) -> bool {
    [Errno::INTR, Errno::AGAIN, Errno::BUSY].into_iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_read_is_continued_unless_the_rest_is_not_needed() {
        let part = Part { target: 3, at: 4096, len: 8192 };
        let rest =
            |count, needed| part.rest(count, needed).map(|rest| rest.map(|rest| (rest.target, rest.at, rest.len)));
        assert_eq!(rest(8192, 20_000).unwrap(), None);
        assert_eq!(rest(4096, 20_000).unwrap(), Some((3, 8192, 4096)));
        assert_eq!(rest(4096, 8192).unwrap(), None);
        assert_eq!(rest(904, 5000).unwrap(), None);
        assert_eq!(rest(904, 5001).unwrap(), Some((3, 5000, 7288)));
        assert_eq!(rest(0, 4097).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(rest(0, 4096).unwrap(), None);
    }

    #[test]
    fn requests_are_cut_into_reads() {
        let mut memory = vec![0; 2 * READ_BYTES + 512];
        let mut request = Request { offset: 0, into: &mut memory, needed: 1 };
        let lens: Vec<_> = parts((5, &Target::of(&mut request))).map(|part| (part.target, part.at, part.len)).collect();
        assert_eq!(lens, [(5, 0, READ_BYTES), (5, READ_BYTES, READ_BYTES), (5, 2 * READ_BYTES, 512)]);
    }
}
