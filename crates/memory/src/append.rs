//! A buffer that one writer fills from the front while many readers follow.
//!
//! Invariant: bytes below `published` are never written again, and only the writer touches those above. Readers load
//! `published` with acquire ordering after the writer stored it with release ordering, so what they see is complete.
//! The buffer is only ever reached through its start address: no reference to the whole of it exists once it is shared.

use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use longshore_types::{Code, Error, Result};
use parking_lot::{Condvar, Mutex};
use tokio::sync::Notify;

use crate::arena::Buffer;

struct Shared {
    buffer: Buffer,
    published: AtomicUsize,
    /// Also the lock that waiting threads sleep under.
    state: Mutex<State>,
    changed: Condvar,
    changed_async: Notify,
}

struct State {
    /// Why nothing more will come; set once.
    end: Option<End>,
    /// The fewest bytes that wake somebody: a writer of many small portions wakes nobody who waits for more.
    wanted: usize,
}

#[derive(Clone)]
enum End {
    Finished,
    Failed(Error),
}

/// Splits `buffer` into its only writer and a reader that may be cloned. Nothing is published yet.
pub fn append_buffer(buffer: Buffer) -> (Appender, Prefix) {
    let shared = Arc::new(Shared {
        buffer,
        published: AtomicUsize::new(0),
        state: Mutex::new(State { end: None, wanted: usize::MAX }),
        changed: Condvar::new(),
        changed_async: Notify::new(),
    });
    (Appender { shared: Arc::clone(&shared) }, Prefix { shared })
}

impl Shared {
    fn published(&self) -> usize {
        self.published.load(Ordering::Acquire)
    }

    fn capacity(&self) -> usize {
        self.buffer.len_bytes()
    }

    fn end_with(&self, end: End) {
        self.state.lock().end.get_or_insert(end);
        self.wake();
    }

    fn wake(&self) {
        self.changed.notify_all();
        self.changed_async.notify_waiters();
    }

    /// Whether a wait for `len` bytes is over, and how. If not, the writer knows from here on that somebody waits.
    fn look(&self, len: usize, state: &mut State) -> Option<Result<()>> {
        let published = self.published();
        if published >= len {
            return Some(Ok(()));
        }
        match &state.end {
            None => {
                state.wanted = state.wanted.min(len);
                None
            }
            Some(End::Failed(error)) => Some(Err(error.clone())),
            Some(End::Finished) => {
                let message = format!("byte {len} was asked of a buffer that ends after {published}");
                Some(Err(Error::new(Code::Internal, message)))
            }
        }
    }

    fn timed_out(&self, len: usize, timeout: Duration) -> Error {
        let message = format!("waited {timeout:?} for byte {len}, only {} have arrived", self.published());
        Error::new(Code::Timeout, message)
    }
}

/// The writer. Dropping it without [`Appender::finish`] fails the buffer with [`Code::Cancelled`].
pub struct Appender {
    shared: Arc<Shared>,
}

impl Appender {
    /// Bytes that still fit.
    pub fn remaining(&self) -> usize {
        self.shared.capacity() - self.shared.published()
    }

    /// Appends and publishes `bytes`.
    ///
    /// # Errors
    /// [`Code::Internal`] when they do not fit; nothing is written then.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let remaining = self.remaining();
        let Some(target) = self.spare().get_mut(..bytes.len()) else {
            let message = format!("{} bytes do not fit in a buffer with room for {remaining}", bytes.len());
            return Err(Error::new(Code::Internal, message));
        };
        target.copy_from_slice(bytes);
        self.commit(bytes.len());
        Ok(())
    }

    /// The memory not published yet; its contents are unspecified. Fill its front, then [`Appender::commit`].
    pub fn spare(&mut self) -> &mut [u8] {
        let published = self.shared.published();
        let len = self.shared.capacity() - published;
        // SAFETY: `published` never exceeds the capacity.
        let start = unsafe { self.shared.buffer.start().as_ptr().add(published) };
        // SAFETY: the bytes from `published` on are initialised, belong to the writer alone, and there is one writer,
        // borrowed mutably here; the buffer lives as long as `shared`.
        unsafe { std::slice::from_raw_parts_mut(start, len) }
    }

    /// Publishes the first `len` bytes of [`Appender::spare`].
    ///
    /// # Panics
    /// When `len` is more than [`Appender::remaining`]: readers would otherwise see memory that is not there.
    pub fn commit(&mut self, len: usize) {
        assert!(len <= self.remaining(), "commit of {len} bytes, {} remain", self.remaining());
        let published = self.shared.published() + len;
        let mut state = self.shared.state.lock();
        self.shared.published.store(published, Ordering::Release);
        let is_wanted = published >= state.wanted;
        if is_wanted {
            state.wanted = usize::MAX;
        }
        drop(state);
        if is_wanted {
            self.shared.wake();
        }
    }

    /// No more bytes will come. Readers of what was published keep it.
    pub fn finish(self) {
        self.shared.end_with(End::Finished);
    }

    /// No more bytes will come because of `error`, which those who wait for more get.
    pub fn fail(self, error: Error) {
        self.shared.end_with(End::Failed(error));
    }
}

impl Drop for Appender {
    fn drop(&mut self) {
        // Without effect after `finish` or `fail`: the first end stays.
        let error = Error::new(Code::Cancelled, "the writer of this buffer gave up");
        self.shared.end_with(End::Failed(error));
    }
}

/// A reader of the published prefix. Cheap to clone; keeps the buffer alive.
#[derive(Clone)]
pub struct Prefix {
    shared: Arc<Shared>,
}

impl Prefix {
    /// Bytes published so far.
    pub fn len(&self) -> usize {
        self.shared.published()
    }

    /// The buffer as others can read it: see [`Buffer::file`]. Only published bytes mean anything.
    pub fn file(&self) -> Option<BorrowedFd<'_>> {
        self.shared.buffer.file()
    }

    /// Whether nothing is published yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes the buffer has room for.
    pub fn capacity(&self) -> usize {
        self.shared.capacity()
    }

    /// Whether the writer finished; false while it writes and after it failed.
    pub fn is_finished(&self) -> bool {
        matches!(self.shared.state.lock().end, Some(End::Finished))
    }

    /// The error the writer failed with, if it did.
    pub fn error(&self) -> Option<Error> {
        match &self.shared.state.lock().end {
            Some(End::Failed(error)) => Some(error.clone()),
            _ => None,
        }
    }

    /// The bytes of `range`; `None` unless all of them are published.
    pub fn get(&self, range: Range<usize>) -> Option<&[u8]> {
        if range.start > range.end || range.end > self.shared.published() {
            return None;
        }
        // SAFETY: the range lies within the published prefix, which lies within the buffer.
        let start = unsafe { self.shared.buffer.start().as_ptr().add(range.start) };
        // SAFETY: published bytes are initialised and never written again; the buffer lives as long as `self`.
        Some(unsafe { std::slice::from_raw_parts(start, range.end - range.start) })
    }

    /// Waits until `len` bytes are published. Blocks the thread.
    ///
    /// # Errors
    /// [`Code::Timeout`], the writer's error, or [`Code::Internal`] when the writer finished with fewer.
    pub fn wait(&self, len: usize, timeout: Duration) -> Result<()> {
        if self.shared.published() >= len {
            return Ok(());
        }
        let deadline = Instant::now().checked_add(timeout);
        let mut state = self.shared.state.lock();
        loop {
            if let Some(outcome) = self.shared.look(len, &mut state) {
                return outcome;
            }
            match deadline {
                Some(deadline) if Instant::now() >= deadline => return Err(self.shared.timed_out(len, timeout)),
                Some(deadline) => drop(self.shared.changed.wait_until(&mut state, deadline)),
                None => self.shared.changed.wait(&mut state),
            }
        }
    }

    /// [`Prefix::wait`] for async callers.
    ///
    /// # Errors
    /// As [`Prefix::wait`].
    pub async fn wait_async(&self, len: usize, timeout: Duration) -> Result<()> {
        let waiting = async {
            let mut changed = std::pin::pin!(self.shared.changed_async.notified());
            loop {
                // Registered before looking, so that a change between the look and the sleep is not missed.
                changed.as_mut().enable();
                if let Some(outcome) = self.shared.look(len, &mut self.shared.state.lock()) {
                    return outcome;
                }
                changed.as_mut().await;
                changed.set(self.shared.changed_async.notified());
            }
        };
        match tokio::time::timeout(timeout, waiting).await {
            Ok(outcome) => outcome,
            Err(_) => Err(self.shared.timed_out(len, timeout)),
        }
    }
}

impl std::fmt::Debug for Prefix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Prefix({} of {} bytes)", self.len(), self.capacity())
    }
}

impl std::fmt::Debug for Appender {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Appender({} bytes remain)", self.remaining())
    }
}

#[cfg(test)]
mod tests;
