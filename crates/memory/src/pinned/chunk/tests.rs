//! Chunks on heap memory, so that Miri can watch them.

use std::sync::atomic::{AtomicU32, Ordering};

use longshore_types::CHUNK_BYTES;

use super::*;
use crate::pinned::PageKind;
use crate::pinned::slots::{Bank, Slots};
use crate::raw::RawMemory;

const ALL: Range<u32> = 0..u32::MAX;

fn slots(count: usize) -> Arc<Slots> {
    let memory = RawMemory::mapping(count * CHUNK_BYTES as usize).unwrap();
    Slots::new(vec![Bank { memory, node: None }], PageKind::Small, None)
}

fn chunk(slots: &Arc<Slots>, len_bytes: u64) -> PinnedChunk {
    PinnedChunk::new(Slots::take(slots, None).unwrap(), len_bytes)
}

fn window(claim: Claim) -> BlockWindow {
    match claim {
        Claim::Fill(window) => window,
        other => panic!("nothing to fill: {other:?}"),
    }
}

#[test]
fn blocks_are_seen_once_they_are_committed() {
    let slots = slots(1);
    let chunk = chunk(&slots, 3 * BLOCK_BYTES + 10);
    let mut first = window(chunk.claim(0..2));
    assert_eq!((first.blocks(), first.range_bytes(), first.len()), (0..2, 0..2 * BLOCK_BYTES, 2 << 20));
    let mut last = window(chunk.claim(ALL));
    assert_eq!((last.blocks(), last.range_bytes()), (2..4, 2 * BLOCK_BYTES..3 * BLOCK_BYTES + 10));
    assert!(matches!(chunk.claim(ALL), Claim::Busy));
    first[5] = 7;
    let end = last.len() - 1;
    last[end] = 9;
    assert_eq!(chunk.bytes(5..6), None);
    first.commit();
    assert_eq!((chunk.bytes(5..6), chunk.ready_bytes()), (Some(&[7][..]), 2 * BLOCK_BYTES));
    assert_eq!(chunk.bytes(2 * BLOCK_BYTES - 1..2 * BLOCK_BYTES + 1), None);
    assert!(chunk.is_ready(0..2) && !chunk.is_ready(1..3));
    last.commit();
    assert_eq!(chunk.bytes(chunk.len_bytes() - 1..chunk.len_bytes()), Some(&[9][..]));
    assert_eq!(chunk.bytes(0..chunk.len_bytes()).map(<[u8]>::len), Some(3 * (1 << 20) + 10));
    assert_eq!(chunk.ready_bytes(), chunk.len_bytes());
    assert!(matches!(chunk.claim(ALL), Claim::Ready));
}

#[test]
fn a_window_that_is_dropped_leaves_its_blocks_missing() {
    let slots = slots(1);
    let chunk = chunk(&slots, CHUNK_BYTES);
    drop(window(chunk.claim(3..6)));
    assert!(!chunk.is_ready(3..4) && chunk.ready_bytes() == 0);
    assert_eq!(window(chunk.claim(ALL)).blocks(), 0..16);
}

#[test]
fn ranges_that_are_not_there() {
    let slots = slots(1);
    let chunk = chunk(&slots, 10);
    assert_eq!(chunk.bytes(4..4), Some(&[][..]));
    assert_eq!((chunk.bytes(0..11), chunk.bytes(Range { start: 3, end: 2 })), (None, None));
    assert!(matches!(chunk.claim(1..4), Claim::Ready));
    window(chunk.claim(ALL)).commit();
    assert_eq!((chunk.bytes(0..10).map(<[u8]>::len), chunk.bytes(0..u64::MAX)), (Some(10), None));
}

#[test]
fn a_chunk_without_bytes_is_ready() {
    let slots = slots(1);
    let chunk = chunk(&slots, 0);
    assert!(chunk.is_ready(ALL) && matches!(chunk.claim(ALL), Claim::Ready));
    assert_eq!((chunk.bytes(0..0), chunk.ready_bytes()), (Some(&[][..]), 0));
}

#[test]
fn the_slot_is_free_with_the_last_clone_and_its_next_chunk_sees_nothing_of_it() {
    let slots = slots(1);
    let first = chunk(&slots, CHUNK_BYTES);
    let clone = first.clone();
    window(first.claim(0..1)).commit();
    let open = window(clone.claim(ALL));
    drop((first, clone));
    assert!(Slots::take(&slots, None).is_none());
    drop(open);
    let second = chunk(&slots, CHUNK_BYTES);
    assert_eq!((second.bytes(0..1), second.ready_bytes()), (None, 0));
}

/// Every thread claims, fills (sometimes in vain), waits for the others and reads; each byte that is seen must be the
/// one that its block is to have, and each block is committed exactly once.
#[test]
fn many_threads_fill_and_read_the_same_chunks() {
    let (rounds, threads, stride) = if cfg!(miri) { (1, 3, 1 << 19) } else { (60, 8, 1 << 12) };
    let slots = slots(2);
    for round in 0..rounds {
        let chunk = chunk(&slots, CHUNK_BYTES - 5);
        let commits: Vec<AtomicU32> = (0..16).map(|_| AtomicU32::new(0)).collect();
        let byte = |block: u32| (block as u8).wrapping_mul(37) ^ round as u8;
        let work = |seed: u32| {
            let mut random = seed.wrapping_mul(2_654_435_761) | 1;
            let mut next = |below: u32| {
                random ^= random << 13;
                random ^= random >> 17;
                random ^= random << 5;
                random % below
            };
            loop {
                let start = next(16);
                let wanted = start..start + 1 + next(6);
                match chunk.claim(wanted.clone()) {
                    Claim::Fill(mut window) => {
                        for (block, bytes) in window.blocks().zip(window.chunks_mut(BLOCK_BYTES as usize)) {
                            bytes.iter_mut().step_by(stride).for_each(|at| *at = byte(block));
                        }
                        if next(3) > 0 {
                            for block in window.blocks() {
                                commits[block as usize].fetch_add(1, Ordering::Relaxed);
                            }
                            window.commit();
                        }
                    }
                    Claim::Busy => chunk.wait(wanted, Duration::from_secs(30)),
                    Claim::Ready => {
                        let blocks = wanted.start..wanted.end.min(16);
                        let end = (u64::from(blocks.end) * BLOCK_BYTES).min(chunk.len_bytes());
                        let bytes = chunk.bytes(u64::from(blocks.start) * BLOCK_BYTES..end).unwrap();
                        for (block, bytes) in blocks.zip(bytes.chunks(BLOCK_BYTES as usize)) {
                            assert!(bytes.iter().step_by(stride).all(|at| *at == byte(block)));
                        }
                        if chunk.is_ready(ALL) {
                            return;
                        }
                    }
                }
            }
        };
        std::thread::scope(|scope| {
            (0..threads).for_each(|thread| drop(scope.spawn(move || work(round * 100 + thread + 1))));
        });
        assert!(commits.iter().all(|count| count.load(Ordering::Relaxed) == 1));
    }
    assert_eq!(slots.used(), 0);
}
