//! The queue of chunks that are to be written.
//!
//! When the queue is full a fill waits a bounded time for room, so that a fast origin does not outrun a slow disk at
//! once. When that time passes the chunk is not written and the skip is counted; until the disk has finished a write
//! again nobody else waits, so that a hanging disk costs one wait, not one for each fill.
//!
//! Its bound is in bytes, so that small chunks may wait in numbers until the cores have time for them.
//!
//! Copies of one chunk are written one after the other, in the order in which they came: they have one name, and it is the
//! newest that is to keep it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use longshore_types::{ChunkId, ChunkKey};
use longshore_wire::GrowingChunk;
use parking_lot::{Condvar, Mutex};

/// What a chunk takes of the queue beside its bytes: its place here, its key, its checksums.
const CHUNK_EXTRA_BYTES: u64 = 1 << 10;

/// When a thread takes chunks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    /// As soon as there are any.
    Always,
    /// While the queue is more than half full, or somebody waits until it is empty.
    WhenPressed,
}

/// Chunks on their way to the disk.
#[derive(Debug)]
pub struct WriteQueue {
    capacity_bytes: u64,
    wait: Duration,
    state: Mutex<State>,
    room: Condvar,
    work: Condvar,
    pressed: Condvar,
    idle: Condvar,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Waiting>,
    waiting_bytes: u64,
    writing: Vec<Writing>,
    /// A wait for room has timed out and no write has ended since.
    stalled: bool,
    closed: bool,
    /// Those who wait until nothing is queued.
    flushing: usize,
}

struct Waiting {
    id: ChunkId,
    chunk: Arc<GrowingChunk>,
}

/// A chunk that a thread is writing.
struct Writing {
    id: ChunkId,
    chunk: Arc<GrowingChunk>,
    /// It was freed or replaced meanwhile: its file goes as soon as it is there, and nobody reads it.
    is_unwanted: bool,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} waiting, {} writing", self.waiting.len(), self.writing.len())
    }
}

impl State {
    fn add(&mut self, chunk: Arc<GrowingChunk>) {
        self.waiting_bytes += cost_bytes(&chunk);
        self.waiting.push_back(Waiting { id: chunk.key().id(), chunk });
    }

    fn is_idle(&self) -> bool {
        self.writing.is_empty() && self.waiting.is_empty()
    }

    /// Takes the first that waits, but for chunks of which another copy is being written.
    fn take(&mut self) -> Option<Arc<GrowingChunk>> {
        let is_free = |next: &Waiting| self.writing.iter().all(|writing| writing.id != next.id);
        let position = self.waiting.iter().position(is_free)?;
        let Waiting { id, chunk } = self.waiting.remove(position)?;
        self.waiting_bytes -= cost_bytes(&chunk);
        self.writing.push(Writing { id, chunk: chunk.clone(), is_unwanted: false });
        Some(chunk)
    }
}

fn cost_bytes(chunk: &GrowingChunk) -> u64 {
    chunk.len_bytes() + CHUNK_EXTRA_BYTES
}

impl WriteQueue {
    /// A queue that holds chunks of so many bytes, and one in any case.
    pub fn new(capacity_bytes: u64, wait: Duration) -> Self {
        WriteQueue {
            capacity_bytes,
            wait,
            state: Mutex::default(),
            room: Condvar::new(),
            work: Condvar::new(),
            pressed: Condvar::new(),
            idle: Condvar::new(),
        }
    }

    /// Adds a chunk; false when there was no room in time.
    pub fn push(&self, chunk: Arc<GrowingChunk>) -> bool {
        let deadline = Instant::now() + self.wait;
        let mut state = self.state.lock();
        while !self.has_room(&state, &chunk) && !state.closed {
            if state.stalled || self.room.wait_until(&mut state, deadline).timed_out() {
                state.stalled = true;
                return false;
            }
        }
        if state.closed {
            return false;
        }
        state.add(chunk);
        self.work.notify_one();
        if self.is_pressed(&state) {
            self.pressed.notify_one();
        }
        true
    }

    /// The next chunk; `None` when the queue is closed.
    pub(super) fn pop(&self, turn: Turn) -> Option<Arc<GrowingChunk>> {
        let mut state = self.state.lock();
        loop {
            if (turn == Turn::Always || self.is_pressed(&state))
                && let Some(chunk) = state.take()
            {
                // A large chunk may leave room for several, and too little for who would be woken alone.
                self.room.notify_all();
                return Some(chunk);
            }
            if state.closed {
                return None;
            }
            match turn {
                Turn::Always => self.work.wait(&mut state),
                Turn::WhenPressed => self.pressed.wait(&mut state),
            }
        }
    }

    fn has_room(&self, state: &State, chunk: &GrowingChunk) -> bool {
        state.waiting.is_empty() || state.waiting_bytes + cost_bytes(chunk) <= self.capacity_bytes
    }

    fn is_pressed(&self, state: &State) -> bool {
        state.flushing > 0 || state.waiting_bytes > self.capacity_bytes / 2
    }

    /// Ends a write: `conclude` makes the file known, or removes it when it is told that the chunk has become unwanted. Who
    /// discards a chunk before this finds it here, and afterwards where it was published; who waits for the queue to be idle
    /// waits for this too.
    pub(super) fn done(&self, chunk: &Arc<GrowingChunk>, conclude: impl FnOnce(bool)) {
        let mut state = self.state.lock();
        state.stalled = false;
        let position = state.writing.iter().position(|writing| Arc::ptr_eq(&writing.chunk, chunk));
        conclude(position.is_none_or(|position| !state.writing.swap_remove(position).is_unwanted));
        if state.is_idle() {
            self.idle.notify_all();
        }
        if !state.waiting.is_empty() {
            // A newer copy of it may have waited for this.
            self.work.notify_one();
            if self.is_pressed(&state) {
                self.pressed.notify_one();
            }
        }
    }

    /// Drops the chunks on their way that `matches`.
    pub fn discard(&self, matches: impl Fn(&ChunkKey) -> bool) {
        let mut state = self.state.lock();
        let State { waiting, waiting_bytes, .. } = &mut *state;
        waiting.retain(|waiting| {
            let stays = !matches(waiting.chunk.key());
            *waiting_bytes -= if stays { 0 } else { cost_bytes(&waiting.chunk) };
            stays
        });
        for writing in &mut state.writing {
            writing.is_unwanted |= matches(writing.chunk.key());
        }
        if state.is_idle() {
            self.idle.notify_all();
        }
        self.room.notify_all();
    }

    /// Waits until nothing is queued or being written.
    pub fn wait_idle(&self, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        let mut state = self.state.lock();
        state.flushing += 1;
        self.pressed.notify_all();
        let mut has_time = true;
        while has_time && !state.is_idle() {
            has_time = !self.idle.wait_until(&mut state, deadline).timed_out();
        }
        state.flushing -= 1;
        state.is_idle()
    }

    /// Ends the writers; what waits is dropped.
    pub fn close(&self) {
        let mut state = self.state.lock();
        state.closed = true;
        state.waiting.clear();
        state.waiting_bytes = 0;
        self.work.notify_all();
        self.pressed.notify_all();
        self.room.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use longshore_memory::Arena;
    use longshore_types::{Artifact, Version};

    use super::*;

    /// Long enough for any machine; nothing waits for it to pass.
    const LONG: Duration = Duration::from_secs(60);

    /// Of each of these chunks.
    const COST_BYTES: u64 = 1 + CHUNK_EXTRA_BYTES;

    fn chunk(number: u32) -> Arc<GrowingChunk> {
        chunk_of(number, 1)
    }

    fn chunk_of(number: u32, len: usize) -> Arc<GrowingChunk> {
        let artifact = Artifact::new(format!("s3://bucket/{number}"), Version::new("v").unwrap(), len as u64).unwrap();
        let buffer = Arena::new(len as u64).try_buffer(len).unwrap();
        let key = ChunkKey::new(Arc::new(artifact), 0).unwrap();
        GrowingChunk::begin(key, buffer).unwrap().1
    }

    #[test]
    fn its_bound_is_in_bytes() {
        let queue = WriteQueue::new(100 * COST_BYTES, Duration::ZERO);
        (0..50).for_each(|number| assert!(queue.push(chunk(number))));
        let large = chunk_of(50, 50 * COST_BYTES as usize);
        assert!(!queue.push(large.clone()), "no room, and no time to wait for it");
        queue.discard(|key| key.artifact().url() == "s3://bucket/49");
        let written = queue.pop(Turn::Always).unwrap();
        queue.done(&written, |_| ());
        assert!(queue.push(large), "two small ones have gone");
        assert!(!queue.push(chunk_of(51, 2 * COST_BYTES as usize)));
        assert!((0..49).all(|_| queue.pop(Turn::Always).is_some_and(|chunk| {
            queue.done(&chunk, |_| ());
            true
        })));
        assert!(queue.push(chunk_of(52, 200 * COST_BYTES as usize)), "one has room in any case");
        assert!(!queue.push(chunk(53)));
    }

    #[test]
    fn a_large_chunk_makes_room_for_all_who_fit() {
        let queue = WriteQueue::new(4 * COST_BYTES, LONG);
        assert!(queue.push(chunk_of(0, 4 * COST_BYTES as usize - CHUNK_EXTRA_BYTES as usize)));
        std::thread::scope(|scope| {
            let queue = &queue;
            let pushes: Vec<_> = (1..4).map(|number| scope.spawn(move || queue.push(chunk(number)))).collect();
            // All of them wait: who is woken early waits again.
            while queue.room.notify_all() < pushes.len() {
                std::thread::yield_now();
            }
            assert!(queue.pop(Turn::Always).is_some());
            assert!(pushes.into_iter().all(|push| push.join().unwrap()), "nobody else is taken out to make room");
        });
    }

    #[test]
    fn those_who_help_come_when_it_is_half_full_or_to_be_empty() {
        let queue = Arc::new(WriteQueue::new(4 * COST_BYTES, LONG));
        let (sender, taken) = mpsc::channel();
        let helper = std::thread::spawn({
            let queue = queue.clone();
            move || {
                while let Some(chunk) = queue.pop(Turn::WhenPressed) {
                    sender.send(chunk.clone()).unwrap();
                    queue.done(&chunk, |is_wanted| assert!(is_wanted));
                }
            }
        });
        let chunks: Vec<_> = (0..3).map(chunk).collect();
        chunks.iter().for_each(|chunk| assert!(queue.push(chunk.clone())));
        assert!(Arc::ptr_eq(&taken.recv_timeout(LONG).unwrap(), &chunks[0]));
        assert!(taken.try_recv().is_err(), "no more than half of it waits now");
        assert!(queue.wait_idle(LONG), "who waits for it to be empty is helped");
        assert_eq!(taken.try_iter().count(), 2);
        assert!(queue.push(chunk(3)));
        assert!(taken.try_recv().is_err(), "nobody waits any more");
        queue.close();
        helper.join().unwrap();
    }

    #[test]
    fn what_was_discarded_while_it_was_written_is_not_published() {
        let queue = WriteQueue::new(4 * COST_BYTES, LONG);
        let (old, new) = (chunk(0), chunk(0));
        assert!(queue.push(old.clone()));
        assert!(Arc::ptr_eq(&queue.pop(Turn::Always).unwrap(), &old));
        queue.discard(|key| key == old.key());
        // Another content of the same chunk comes after it, and another chunk after that.
        let other = chunk(1);
        assert!(queue.push(new.clone()) && queue.push(other.clone()));
        assert!(Arc::ptr_eq(&queue.pop(Turn::Always).unwrap(), &other), "the newer copy waits for the older one");
        let mut published = Vec::new();
        queue.done(&other, |is_wanted| published.push(("other", is_wanted)));
        queue.done(&old, |is_wanted| published.push(("old", is_wanted)));
        assert!(!queue.wait_idle(Duration::ZERO));
        assert!(Arc::ptr_eq(&queue.pop(Turn::Always).unwrap(), &new));
        queue.done(&new, |is_wanted| published.push(("new", is_wanted)));
        assert_eq!(published, [("other", true), ("old", false), ("new", true)]);
        assert!(queue.wait_idle(Duration::ZERO));
    }

    #[test]
    fn who_waits_for_the_older_copy_is_woken_when_it_is_written() {
        for turn in [Turn::Always, Turn::WhenPressed] {
            let queue = Arc::new(WriteQueue::new(COST_BYTES, LONG));
            let (old, new) = (chunk(0), chunk(0));
            assert!(queue.push(old.clone()));
            assert!(Arc::ptr_eq(&queue.pop(Turn::Always).unwrap(), &old));
            assert!(queue.push(new.clone()));
            let (sender, taken) = mpsc::channel();
            let thread = std::thread::spawn({
                let queue = queue.clone();
                move || sender.send(queue.pop(turn)).unwrap()
            });
            queue.done(&old, |_| ());
            assert!(Arc::ptr_eq(&taken.recv_timeout(LONG).unwrap().unwrap(), &new));
            thread.join().unwrap();
        }
    }
}
