use std::time::Instant;

use rustix::fs::fstat;

use super::*;
use crate::region::RegionWriter;
use crate::shared::shared_memory;

const MIB: u64 = 1 << 20;
const LONG: Duration = Duration::from_secs(20);

/// Waits until so many bytes are ready.
fn until_ready(arena: &Arena, bytes: u64) {
    let (mut slot, changed) = arena.shared.ready.slot();
    let deadline = Instant::now() + LONG;
    while arena.stats().ready_bytes != bytes {
        assert!(Instant::now() < deadline, "{:?} instead of {bytes} ready", arena.stats());
        changed.wait_for(&mut slot, Duration::from_millis(5));
    }
}

fn region(arena: &Arena, bytes: u64) -> RegionWriter {
    RegionWriter::create("test", bytes, arena.try_reserve_region(bytes).unwrap()).unwrap()
}

fn pages_bytes(writer: RegionWriter) -> u64 {
    let region = writer.finish().unwrap();
    let stat = fstat(region.fd()).unwrap();
    assert_eq!(stat.st_size as u64, region.len());
    assert!(region.as_slice().iter().all(|byte| *byte == 0));
    stat.st_blocks as u64 * 512
}

/// The memory that what is ready really has.
fn ready_pages_bytes(arena: &Arena) -> u64 {
    let (slot, _) = arena.shared.ready.slot();
    slot.as_ref().map_or(0, |ready| ready.pages_bytes())
}

#[test]
fn the_next_region_is_made_of_what_is_ready() {
    let arena = Arena::new(64 * MIB);
    let prefaulter = Prefaulter::start(&arena, shared_memory(), 10 * MIB).unwrap();
    until_ready(&arena, 10 * MIB);
    let stats = arena.stats();
    assert_eq!((stats.leased_bytes, stats.ready_bytes, arena.used_bytes()), (0, 10 * MIB, 10 * MIB));

    let quiet = prefaulter.quiet();
    let taken = region(&arena, 10 * MIB);
    let stats = arena.stats();
    assert_eq!((stats.leased_bytes, stats.ready_bytes), (10 * MIB, 0));
    assert_eq!(arena.ready_used_bytes(), 10 * MIB);
    // Its pages were there before anybody wrote.
    assert_eq!(pages_bytes(taken), 10 * MIB);
    drop(quiet);
    until_ready(&arena, 10 * MIB);

    drop(prefaulter);
    assert_eq!(arena.used_bytes(), 0);
}

#[test]
fn shorter_and_longer_regions_take_it_as_well_and_small_ones_leave_it() {
    for (bytes, there_bytes) in [(6 * MIB, 6 * MIB), (30 * MIB, 20 * MIB)] {
        let arena = Arena::new(64 * MIB);
        let prefaulter = Prefaulter::start(&arena, shared_memory(), 20 * MIB).unwrap();
        until_ready(&arena, 20 * MIB);
        let _quiet = prefaulter.quiet();
        let taken = region(&arena, bytes);
        assert_eq!((arena.leased_bytes(), arena.stats().ready_bytes), (bytes, 0));
        assert_eq!(arena.ready_used_bytes(), there_bytes);
        assert!(pages_bytes(taken) >= there_bytes);
        assert_eq!(arena.used_bytes(), 0);
    }
    let arena = Arena::new(64 * MIB);
    let _prefaulter = Prefaulter::start(&arena, shared_memory(), 20 * MIB).unwrap();
    until_ready(&arena, 20 * MIB);
    let small = region(&arena, 4 * MIB);
    assert_eq!((arena.leased_bytes(), arena.stats().ready_bytes, arena.ready_used_bytes()), (4 * MIB, 20 * MIB, 0));
    drop(small);
}

#[test]
fn whoever_does_not_fit_gets_its_room() {
    let arena = Arena::new(24 * MIB);
    let prefaulter = Prefaulter::start(&arena, shared_memory(), 16 * MIB).unwrap();
    until_ready(&arena, 16 * MIB);
    let quiet = prefaulter.quiet();
    // What fits beside it leaves it.
    let beside = arena.try_reserve(8 * MIB).unwrap();
    assert_eq!(arena.stats().ready_bytes, 16 * MIB);
    // What never could, too.
    assert!(arena.try_reserve(17 * MIB).is_none());
    assert_eq!(arena.stats().ready_bytes, 16 * MIB);
    // Who needs a part of it gets that part, in whole pages.
    let in_a_part = arena.try_reserve(5 * MIB).unwrap();
    assert_eq!((arena.leased_bytes(), arena.stats().ready_bytes), (13 * MIB, 10 * MIB));
    assert_eq!(ready_pages_bytes(&arena), 10 * MIB);
    let in_its_place = arena.try_reserve(11 * MIB).unwrap();
    assert_eq!((arena.leased_bytes(), arena.stats().ready_bytes), (24 * MIB, 0));
    drop((beside, in_a_part, in_its_place, quiet));

    until_ready(&arena, 16 * MIB);
    assert_eq!(ready_pages_bytes(&arena), 16 * MIB);
    let _quiet = prefaulter.quiet();
    // Who would wait does not wait for it.
    let waited = arena.wait_reserve(20 * MIB, LONG).unwrap();
    assert_eq!((arena.leased_bytes(), arena.stats().ready_bytes), (20 * MIB, 4 * MIB));
    // A region of more than there is gets nothing, and nothing is left behind.
    assert!(arena.try_reserve_region(8 * MIB).is_none());
    drop(waited);
    assert_eq!(arena.used_bytes(), 0);
}

#[test]
fn what_is_left_when_a_part_went_is_a_region_s() {
    let arena = Arena::new(16 * MIB);
    let prefaulter = Prefaulter::start(&arena, shared_memory(), 16 * MIB).unwrap();
    until_ready(&arena, 16 * MIB);
    let quiet = prefaulter.quiet();
    let other = arena.try_reserve(MIB).unwrap();
    let taken = region(&arena, 15 * MIB);
    assert_eq!((arena.leased_bytes(), arena.ready_used_bytes()), (16 * MIB, 14 * MIB));
    assert!(pages_bytes(taken) >= 14 * MIB);
    drop((other, quiet));
    // What went is made ready again.
    until_ready(&arena, 16 * MIB);
    drop(arena.try_reserve(MIB).unwrap());
    until_ready(&arena, 16 * MIB);
    assert_eq!(ready_pages_bytes(&arena), 16 * MIB);
}

#[test]
fn several_who_wait_have_its_room_between_them() {
    let arena = Arena::new(32 * MIB);
    let _prefaulter = Prefaulter::start(&arena, shared_memory(), 32 * MIB).unwrap();
    until_ready(&arena, 32 * MIB);
    std::thread::scope(|scope| {
        let waiters: Vec<_> = (0..4).map(|_| scope.spawn(|| arena.wait_reserve(6 * MIB, LONG).unwrap())).collect();
        let taken: Vec<_> = waiters.into_iter().map(|waiter| waiter.join().unwrap()).collect();
        assert_eq!((arena.leased_bytes(), arena.stats().ready_bytes), (24 * MIB, 8 * MIB));
        drop(taken);
    });
}

#[test]
fn who_waits_in_vain_has_had_its_room() {
    let arena = Arena::new(16 * MIB);
    let other = arena.try_reserve(8 * MIB).unwrap();
    let prefaulter = Prefaulter::start(&arena, shared_memory(), 16 * MIB).unwrap();
    // As far as there is room.
    until_ready(&arena, 8 * MIB);
    let _quiet = prefaulter.quiet();
    let error = arena.wait_reserve(12 * MIB, Duration::from_millis(10)).unwrap_err();
    assert_eq!((error.code(), arena.stats().ready_bytes), (Code::Exhausted, 0));
    drop(other);
    assert_eq!(arena.used_bytes(), 0);
}

#[test]
fn a_region_that_does_not_fit_even_so_leaves_nothing() {
    let arena = Arena::new(32 * MIB);
    let other = arena.try_reserve(12 * MIB).unwrap();
    let prefaulter = Prefaulter::start(&arena, shared_memory(), 16 * MIB).unwrap();
    until_ready(&arena, 16 * MIB);
    let _quiet = prefaulter.quiet();
    assert!(arena.try_reserve_region(24 * MIB).is_none());
    drop(other);
    assert_eq!(arena.used_bytes(), 0);
    assert_eq!(arena.ready_used_bytes(), 0);
}

#[test]
fn nothing_is_touched_while_somebody_wants_quiet() {
    let arena = Arena::new(64 * MIB);
    let prefaulter = Prefaulter::start(&arena, shared_memory(), 16 * MIB).unwrap();
    let quiet = [prefaulter.quiet(), prefaulter.quiet()];
    // A step that is under way ends.
    let before = {
        let (_slot, _) = arena.shared.ready.slot();
        arena.stats().ready_bytes
    };
    // The thread looks again as soon as it is told to, and still finds it busy.
    for _ in 0..50 {
        let (mut slot, changed) = arena.shared.ready.slot();
        changed.notify_all();
        MutexGuard::bump(&mut slot);
        assert_eq!(arena.stats().ready_bytes, before);
    }
    drop(quiet);
    until_ready(&arena, 16 * MIB);
}

#[test]
fn more_than_the_budget_is_refused() {
    let arena = Arena::new(MIB);
    let error = Prefaulter::start(&arena, shared_memory(), 2 * MIB).err().unwrap();
    assert_eq!(error.code(), Code::InvalidArgument);
    assert!(error.message().contains("prefault"), "{error}");
}

#[test]
fn many_who_take_and_give_back_never_exceed_the_budget() {
    let arena = Arena::new(32 * MIB);
    let prefaulter = Prefaulter::start(&arena, shared_memory(), 12 * MIB).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4_u64 {
            let (arena, prefaulter) = (&arena, &prefaulter);
            scope.spawn(move || {
                for round in 0..60 {
                    let bytes = MIB * (1 + (thread * 7 + round * 5) % 20);
                    let _quiet = prefaulter.quiet();
                    let taken = arena.try_reserve_region(bytes);
                    let stats = arena.stats();
                    let held = stats.leased_bytes + stats.recycled_bytes + stats.ready_bytes;
                    assert!(held <= stats.capacity_bytes, "{stats:?}");
                    if let Some(taken) = taken {
                        assert_eq!(RegionWriter::create("test", bytes, taken).unwrap().len(), bytes);
                    }
                    if let Some(short) = arena.try_buffer(16 << 20) {
                        assert_eq!(short.len(), 16 << 20);
                    }
                }
            });
        }
    });
    drop(prefaulter);
    assert_eq!(arena.leased_bytes() + arena.stats().ready_bytes, 0);
}

#[test]
fn nobody_is_refused_what_would_fit_without_it() {
    let arena = Arena::new(32 * MIB);
    let prefaulter = Prefaulter::start(&arena, shared_memory(), 32 * MIB).unwrap();
    std::thread::scope(|scope| {
        // Eight at most take 4 MiB each.
        for thread in 0..8 {
            let arena = &arena;
            scope.spawn(move || {
                for round in 0..200_u64 {
                    let bytes = MIB * (1 + (round + thread) % 4);
                    let taken =
                        if thread % 2 == 0 { arena.try_reserve_region(bytes) } else { arena.try_reserve(bytes) };
                    assert!(taken.is_some(), "{:?}", arena.stats());
                }
            });
        }
    });
    drop(prefaulter);
    assert_eq!(arena.used_bytes(), 0);
}

#[test]
fn who_needed_the_room_has_it_for_a_while() {
    let arena = Arena::new(16 * MIB);
    let _prefaulter = Prefaulter::start(&arena, shared_memory(), 16 * MIB).unwrap();
    until_ready(&arena, 16 * MIB);
    let begin = Instant::now();
    drop(arena.try_reserve(MIB).unwrap());
    until_ready(&arena, 16 * MIB);
    assert!(begin.elapsed() >= REST);
}
