//! The arena against a reference model, and under contention.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use proptest::prelude::*;

use super::*;

#[cfg(not(miri))]
mod shared;

const MIB: u64 = 1 << 20;
const CHUNK: usize = RECYCLED_LEN;
const LONG: Duration = Duration::from_secs(60);

#[derive(Debug, Clone)]
enum Step {
    Buffer(usize),
    Shared(usize),
    Reserve(u64),
    DropNth(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let sizes = vec![0usize, 1, 4096, MAPPED_FROM_BYTES - 1, MAPPED_FROM_BYTES, (5 << 20) + 1, CHUNK, CHUNK, CHUNK];
    let buffer = proptest::sample::select(sizes.clone()).prop_map(Step::Buffer);
    let shared = proptest::sample::select(sizes).prop_map(Step::Shared);
    let reserve = (0u64..80 * MIB).prop_map(Step::Reserve);
    let drop = (0usize..64).prop_map(Step::DropNth);
    proptest::collection::vec(prop_oneof![4 => buffer, 3 => shared, 1 => reserve, 4 => drop], 1..60)
}

/// What the arena must answer: two numbers and the rules of the module's comment.
struct Model {
    capacity: u64,
    leased: u64,
    /// Whether each is shared.
    recycled: Vec<bool>,
}

impl Model {
    fn take(&mut self, bytes: u64, chunk: Option<bool>) -> bool {
        if self.leased + bytes > self.capacity {
            return false;
        }
        if let Some(at) = chunk.and_then(|is_shared| self.recycled.iter().rposition(|kept| *kept == is_shared)) {
            self.recycled.remove(at);
        }
        self.leased += bytes;
        while self.leased + self.recycled_bytes() > self.capacity {
            self.recycled.pop();
        }
        true
    }

    fn give_back(&mut self, bytes: u64, chunk: Option<bool>) {
        self.leased -= bytes;
        self.recycled.extend(chunk);
    }

    fn recycled_bytes(&self) -> u64 {
        self.recycled.len() as u64 * CHUNK_BYTES
    }
}

enum Held {
    Buffer(Buffer, u8),
    Reservation(Reservation),
}

impl Held {
    /// And whether it is a chunk's, shared or not.
    fn charge(&self) -> (u64, Option<bool>) {
        match self {
            Held::Buffer(buffer, _) => {
                let is_chunk = buffer.len() == CHUNK;
                (buffer_request(buffer.len()).bytes, is_chunk.then_some(buffer.file().is_some()))
            }
            Held::Reservation(reservation) => (reservation.bytes(), None),
        }
    }
}

fn mark(buffer: &mut Buffer, with: u8) {
    if let (Some(at), step) = (buffer.len().checked_sub(1), buffer.len() / 7 + 1) {
        buffer[at] = with;
        buffer.iter_mut().step_by(step).for_each(|byte| *byte = with);
    }
}

fn is_marked(buffer: &Buffer, with: u8) -> bool {
    buffer.iter().step_by(buffer.len() / 7 + 1).chain(buffer.last()).all(|byte| *byte == with)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: if cfg!(miri) { 1 } else { 64 }, ..ProptestConfig::default() })]
    #[test]
    fn accounting_follows_the_model(capacity_mib in 0u64..100, steps in steps()) {
        let arena = match cfg!(miri) {
            true => Arena::new(capacity_mib * MIB),
            false => Arena::with_shared_buffers(capacity_mib * MIB, crate::shared_memory(), usize::MAX),
        };
        let mut model = Model { capacity: capacity_mib * MIB, leased: 0, recycled: Vec::new() };
        let mut held: Vec<Held> = Vec::new();
        let mut next_mark = 0u8;
        for step in steps {
            match step {
                Step::Buffer(len) | Step::Shared(len) => {
                    let is_shared = matches!(step, Step::Shared(_)) && !cfg!(miri);
                    let buffer = if is_shared { arena.try_shared_buffer(len) } else { arena.try_buffer(len) };
                    let chunk = (len == CHUNK).then_some(is_shared);
                    prop_assert_eq!(buffer.is_some(), model.take(buffer_request(len).bytes, chunk));
                    let has_file = is_shared && len >= MAPPED_FROM_BYTES;
                    prop_assert!(buffer.as_ref().is_none_or(|buffer| buffer.file().is_some() == has_file));
                    if let Some(mut buffer) = buffer {
                        prop_assert_eq!(buffer.len(), len);
                        next_mark = next_mark.wrapping_add(1);
                        mark(&mut buffer, next_mark);
                        held.push(Held::Buffer(buffer, next_mark));
                    }
                }
                Step::Reserve(bytes) => {
                    let reservation = arena.try_reserve(bytes);
                    prop_assert_eq!(reservation.is_some(), model.take(bytes, None));
                    held.extend(reservation.map(Held::Reservation));
                }
                Step::DropNth(n) if !held.is_empty() => {
                    let one = held.swap_remove(n % held.len());
                    let (bytes, chunk) = one.charge();
                    model.give_back(bytes, chunk);
                    drop(one);
                }
                Step::DropNth(_) => {}
            }
            let stats = arena.stats();
            prop_assert_eq!((stats.leased_bytes, stats.recycled_bytes), (model.leased, model.recycled_bytes()));
            prop_assert!(arena.used_bytes() <= arena.capacity_bytes());
            for one in &held {
                if let Held::Buffer(buffer, with) = one {
                    prop_assert!(is_marked(buffer, *with), "two buffers share memory");
                }
            }
        }
        held.clear();
        prop_assert_eq!(arena.leased_bytes(), 0);
    }
}

#[test]
fn a_chunk_buffer_is_recycled_and_makes_way() {
    let arena = Arena::new(CHUNK_BYTES);
    let mut first = arena.try_buffer(CHUNK).unwrap();
    first[7] = 42;
    let address = first.as_ptr();
    drop(first);
    assert_eq!((arena.leased_bytes(), arena.used_bytes()), (0, CHUNK_BYTES));
    let second = arena.try_buffer(CHUNK).unwrap();
    assert_eq!((second.as_ptr(), second[7]), (address, 42));
    drop(second);
    // What is kept for reuse yields to a request of another kind.
    let reservation = arena.try_reserve(CHUNK_BYTES).unwrap();
    assert_eq!(arena.stats().recycled_bytes, 0);
    assert!(arena.try_buffer(1).is_none());
    drop(reservation);
    assert_eq!(arena.used_bytes(), 0);
}

/// Until so many callers wait: the state is observed, not guessed from time.
fn until_waiting(arena: &Arena, count: usize) {
    while arena.stats().waiting < count {
        thread::yield_now();
    }
}

#[test]
fn a_waiter_is_served_before_a_newcomer_and_small_ones_pass_large_ones() {
    let arena = Arena::new(100);
    let held = arena.try_reserve(90).unwrap();
    thread::scope(|scope| {
        let large = scope.spawn(|| arena.wait_reserve(50, LONG).unwrap());
        until_waiting(&arena, 1);
        let small = scope.spawn(|| arena.wait_reserve(20, LONG).unwrap());
        until_waiting(&arena, 2);
        // 10 bytes are free and nobody waits for so few: a newcomer may have them.
        let first = arena.try_reserve(10).unwrap();
        drop(first);
        let second = arena.try_reserve(5).unwrap();
        drop(held);
        // The 95 free bytes went to both waiters in the same step.
        assert!(arena.try_reserve(30).is_none());
        let (large, small) = (large.join().unwrap(), small.join().unwrap());
        assert_eq!((large.bytes(), small.bytes(), second.bytes()), (50, 20, 5));
    });
    assert_eq!(arena.used_bytes(), 0);

    let held = arena.try_reserve(80).unwrap();
    let part = arena.try_reserve(20).unwrap();
    thread::scope(|scope| {
        let large = scope.spawn(|| arena.wait_reserve(100, LONG).unwrap());
        until_waiting(&arena, 1);
        let small = scope.spawn(|| arena.wait_reserve(20, LONG).unwrap());
        until_waiting(&arena, 2);
        drop(part);
        drop(small.join().unwrap());
        assert_eq!(arena.stats().waiting, 1);
        drop(held);
        assert_eq!(large.join().unwrap().bytes(), 100);
    });
    assert_eq!(arena.stats().waits, 4);
}

#[test]
fn waiting_in_vain_is_exhausted_and_takes_nothing() {
    let arena = Arena::new(4096);
    let error = arena.buffer(5000, LONG).unwrap_err();
    assert_eq!(error.code(), Code::Exhausted);
    assert!(error.message().contains("never fit"), "{error}");
    let held = arena.buffer(4000, Duration::ZERO).unwrap();
    let error = arena.buffer(1000, Duration::from_millis(1)).unwrap_err();
    assert_eq!(error.code(), Code::Exhausted);
    assert!(error.message().contains("1.0 kB") && error.message().contains("4.0 kB of 4.1 kB"), "{error}");
    let stats = arena.stats();
    assert_eq!((stats.timeouts, stats.waiting, stats.leased_bytes), (1, 0, 4000));
    drop(held);
    assert!(arena.wait_reserve(4096, Duration::ZERO).is_ok());
}

#[test]
fn threads_never_exceed_the_budget_and_all_get_their_turn() {
    const CAPACITY: u64 = 3 * CHUNK_BYTES + 1000;
    let rounds = if cfg!(miri) { 2 } else { 200 };
    let arena = Arena::new(CAPACITY);
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                assert!(arena.used_bytes() <= CAPACITY);
                thread::yield_now();
            }
        });
        let workers: Vec<_> = (0..6usize)
            .map(|worker| {
                let arena = &arena;
                scope.spawn(move || {
                    for round in 0..rounds {
                        match (worker + round) % 3 {
                            0 => drop(arena.wait_reserve(CHUNK_BYTES + 500, LONG).unwrap()),
                            1 => drop(arena.buffer(900, LONG).unwrap()),
                            _ => {
                                let mut buffer = arena.buffer(CHUNK, LONG).unwrap();
                                mark(&mut buffer, worker as u8);
                                thread::yield_now();
                                assert!(is_marked(&buffer, worker as u8));
                            }
                        }
                    }
                })
            })
            .collect();
        workers.into_iter().for_each(|worker| worker.join().unwrap());
        done.store(true, Ordering::Relaxed);
        watcher.join().unwrap();
    });
    let stats = arena.stats();
    assert_eq!((stats.leased_bytes, stats.waiting, stats.timeouts), (0, 0, 0));
}
