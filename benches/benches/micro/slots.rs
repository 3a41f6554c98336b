//! A slot of page-locked memory, taken and given back.

use std::time::{Duration, Instant};

use criterion::Criterion;
use longshore_memory::{Arena, PinnedArena};

const SLOTS: u64 = 8;

pub fn benches(criterion: &mut Criterion) {
    let bytes = SLOTS * PinnedArena::SLOT_BYTES;
    let arena = Arena::new(bytes);
    let reservation = arena.try_reserve(bytes).expect("room");
    let slots = PinnedArena::create(bytes, reservation).expect("memory");
    let mut group = criterion.benchmark_group("slots");
    for threads in [1, 4] {
        group.bench_function(format!("slot-take-give-{threads}"), |b| {
            b.iter_custom(|turns| contend(&slots, threads, turns));
        });
    }
    group.finish();
}

/// The time of `turns` turns by each of so many threads.
fn contend(slots: &PinnedArena, threads: u32, turns: u64) -> Duration {
    let begin = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                for _ in 0..turns {
                    drop(slots.try_chunk(PinnedArena::SLOT_BYTES, None).expect("a free slot"));
                }
            });
        }
    });
    begin.elapsed()
}
