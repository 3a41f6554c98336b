//! Landings against a reference model: a plain copy of each byte to its place.

use std::ops::Range;

use longshore_types::Code;
use proptest::prelude::*;

use super::*;
use crate::Arena;
#[cfg(not(miri))]
use crate::RegionWriter;

const BLOCK: usize = BLOCK_BYTES as usize;

/// Fills the landing the way a fetch does: block by block, asking again for what a call left out.
fn fill(landing: &mut Landing, run: &[u8]) {
    assert_eq!(landing.len(), run.len());
    for block in (0..run.len()).step_by(BLOCK) {
        let end = (block + BLOCK).min(run.len());
        let mut done = block;
        while done < end {
            let slices = landing.slices_mut(done..end);
            assert!(!slices.is_empty() && slices.len() <= SLICES_MAX);
            for mut slice in slices {
                assert!(!slice.is_empty());
                let len = slice.len();
                slice.copy_from_slice(&run[done..done + len]);
                done += len;
            }
        }
        assert_eq!(landing.checksum(block..end), BlockChecksum::of(&run[block..end]));
    }
}

fn run_of(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at.wrapping_mul(2_654_435_761) >> 7) as u8).collect()
}

#[derive(Debug, Clone)]
enum Step {
    /// Pieces as (gap before, length) in a buffer of their own.
    Buffer(Vec<(usize, usize)>),
    Scratch(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let len = prop_oneof![4 => 0usize..300, 1 => 200_000usize..400_000];
    let pieces = proptest::collection::vec((0usize..20, len.clone()), 0..8);
    let step = prop_oneof![pieces.prop_map(Step::Buffer), len.prop_map(Step::Scratch)];
    proptest::collection::vec(step, 0..12)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 60, ..ProptestConfig::default() })]
    #[test]
    #[cfg_attr(miri, ignore = "too slow")]
    fn each_byte_lands_in_its_place(steps in steps(), whole: bool) {
        let arena = Arena::new(1 << 30);
        let mut builder = Landing::builder().tag(7);
        let mut expected: Vec<(Vec<u8>, Vec<Range<usize>>)> = Vec::new();
        let mut places: Vec<Option<(usize, usize)>> = Vec::new();
        for step in steps {
            match step {
                Step::Scratch(len) => {
                    builder = builder.scratch(len);
                    places.resize(places.len() + len, None);
                }
                Step::Buffer(pieces) => {
                    let mut ranges: Vec<Range<usize>> = Vec::new();
                    for (gap, len) in pieces {
                        let start = ranges.last().map_or(0, |last| last.end) + gap;
                        ranges.push(start..start + len);
                        places.extend((start..start + len).map(|at| Some((expected.len(), at))));
                    }
                    let len = ranges.last().map_or(0, |last| last.end) + 3;
                    let mut buffer = arena.try_buffer(len).unwrap();
                    buffer.fill(0xee);
                    expected.push((vec![0xee; len], ranges.clone()));
                    builder = builder.buffer(buffer, ranges);
                }
            }
        }
        let run = run_of(places.len());
        for (byte, place) in run.iter().zip(&places) {
            if let Some((buffer, at)) = *place {
                expected[buffer].0[at] = *byte;
            }
        }
        let mut landing = builder.build().unwrap();
        prop_assert_eq!((landing.tag(), landing.is_empty()), (7, run.is_empty()));
        if whole {
            landing.copy_in(0, &run);
        } else {
            fill(&mut landing, &run);
        }
        let buffers = landing.into_buffers();
        prop_assert_eq!(buffers.len(), expected.len());
        for (buffer, (bytes, _)) in buffers.iter().zip(&expected) {
            prop_assert!(**buffer == bytes[..]);
        }
    }
}

#[test]
fn small_pieces_come_in_portions() {
    let arena = Arena::new(1 << 20);
    let pieces: Vec<_> = (0..SLICES_MAX + 300).map(|at| at * 3..at * 3 + 1).collect();
    let count = pieces.len();
    let mut landing = Landing::builder().buffer(arena.try_buffer(3 * count).unwrap(), pieces).build().unwrap();
    assert_eq!(landing.slices_mut(0..count).len(), SLICES_MAX);
    assert_eq!(landing.slices_mut(SLICES_MAX..count).len(), 300);
    assert_eq!(landing.slices_mut(count..count + 5).len(), 0);
    assert_eq!(landing.slices_mut(count + 5..count).len(), 0);
    landing.copy_in(0, &vec![5; count]);
    assert_eq!(landing.checksum(0..count), BlockChecksum::of(&vec![5; count]));
    landing.copy_in(count - 1, &[6, 6, 6]);
    assert_eq!(landing.into_buffers()[0][3 * count - 3], 6);
}

#[test]
fn discarded_bytes_never_alias_within_a_call() {
    let mut landing = Landing::builder().scratch(5 * BLOCK).build().unwrap();
    let start = BLOCK / 3;
    let mut slices = landing.slices_mut(start..4 * BLOCK);
    // One block at most, cut where the ring ends.
    let lens: Vec<usize> = slices.iter().map(|slice| slice.len()).collect();
    assert_eq!(lens, [BLOCK - start, start]);
    slices[0].fill(1);
    slices[1].fill(2);
    let expected = [vec![1; BLOCK - start], vec![2; start]].concat();
    assert_eq!(landing.checksum(start..start + BLOCK), BlockChecksum::of(&expected));
}

#[test]
fn a_long_request_stops_where_discarded_bytes_would_wrap() {
    let arena = Arena::new(3 * BLOCK as u64);
    let window = 0..2 * BLOCK;
    let buffer = arena.try_buffer(window.end).unwrap();
    let mut landing = Landing::builder().scratch(10).buffer(buffer, vec![window]).scratch(10).build().unwrap();
    let len = landing.len();
    let covered: usize = landing.slices_mut(0..len).iter().map(|slice| slice.len()).sum();
    assert_eq!(covered, BLOCK);
    let covered: usize = landing.slices_mut(covered..len).iter().map(|slice| slice.len()).sum();
    assert_eq!(covered, BLOCK);
}

#[test]
fn a_discarded_part_that_wraps_does_not_exceed_the_slices() {
    let arena = Arena::new(1 << 20);
    let pieces: Vec<_> = (0..SLICES_MAX - 1).map(|at| at * 2..at * 2 + 1).collect();
    let buffer = arena.try_buffer(2 * SLICES_MAX).unwrap();
    let builder = Landing::builder().scratch(BLOCK - SLICES_MAX).buffer(buffer, pieces).scratch(100);
    let mut landing = builder.build().unwrap();
    let start = BLOCK - SLICES_MAX;
    let slices = landing.slices_mut(start..start + BLOCK);
    assert_eq!((slices.len(), slices.last().map(|slice| slice.len())), (SLICES_MAX, Some(1)));
}

#[test]
fn mistakes_of_the_maker_are_reported() {
    let arena = Arena::new(1000);
    let buffer = || arena.try_buffer(10).unwrap();
    let builders = [
        Landing::builder().buffer(buffer(), vec![0..5, 4..6]),
        Landing::builder().buffer(buffer(), vec![6..8, 0..2]),
        Landing::builder().buffer(buffer(), std::iter::once(0..11).collect()),
        Landing::builder().buffer(buffer(), vec![Range { start: 5, end: 3 }]),
        Landing::builder().take(1),
        Landing::builder().scratch(usize::MAX).scratch(1),
    ];
    for builder in builders {
        assert_eq!(builder.build().unwrap_err().code(), Code::Internal);
    }
    assert_eq!(arena.leased_bytes(), 0);
}

#[cfg(not(miri))]
#[test]
fn windows_interleave_with_discarded_bytes() {
    const ROWS: usize = 3000;
    let arena = Arena::new(64 << 20);
    let writer = RegionWriter::create("landing", 10_000, arena.try_reserve(10_000).unwrap()).unwrap();
    // A column slice: 3 bytes of each row of 700 are wanted, and are neighbours in the region.
    let mut builder = Landing::builder().open_window(writer.claim(0..3 * ROWS as u64).unwrap());
    for _ in 0..ROWS {
        builder = builder.scratch(400).take(3).scratch(297);
    }
    builder = builder.window(writer.claim(9000..10_000).unwrap());
    let mut landing = builder.build().unwrap();
    let run = run_of(700 * ROWS + 1000);
    fill(&mut landing, &run);
    assert!(writer.claim(0..1).is_err());
    assert!(landing.into_buffers().is_empty());
    let region = writer.finish().unwrap();
    let wanted: Vec<u8> = run[..700 * ROWS].chunks(700).flat_map(|row| &row[400..403]).copied().collect();
    assert!(region.as_slice()[..9000] == wanted);
    assert!(region.as_slice()[9000..] == run[700 * ROWS..]);
}

#[test]
fn a_run_in_one_piece_of_memory_is_one_slice() {
    let arena = Arena::new(1000);
    let buffer = || arena.try_buffer(10).unwrap();
    let mut whole = Landing::builder().buffer(buffer(), vec![2..5, 5..9]).build().unwrap();
    let slice = whole.contiguous_mut().unwrap();
    assert_eq!(slice.len(), 7);
    slice.fill(9);
    assert_eq!(whole.into_buffers()[0][2..9], [9; 7]);
    let builders = [
        Landing::builder(),
        Landing::builder().scratch(7),
        Landing::builder().scratch(1).buffer(buffer(), vec![0..5, 5..10]),
        Landing::builder().buffer(buffer(), vec![0..5, 6..10]),
        Landing::builder().buffer(buffer(), vec![0..4, 4..10]).buffer(buffer(), vec![0..4, 4..10]),
    ];
    for builder in builders {
        let mut landing = builder.build().unwrap();
        assert!(landing.contiguous_mut().is_none() && !landing.has_small_pages());
        assert!(landing.into_block_windows().is_empty());
    }
}
