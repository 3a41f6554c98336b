//! What concerns every device.

use std::sync::Arc;
use std::thread;

use longshore_memory::OwnedSegment;
use longshore_types::Code;
use rustix::io::{FdFlags, fcntl_getfd};

use super::*;
use crate::id::DeviceId;

pub(crate) fn describes_itself(make: Make) {
    let bench = make(CAPACITY);
    let info = bench.device.info();
    assert_eq!(info.id.to_string().parse::<DeviceId>().unwrap(), info.id);
    assert!(info.uuid.len() > 5 && !info.name.is_empty());
    assert!(info.capacity_bytes >= CAPACITY && info.used_bytes == 0);
    assert!(info.free_bytes > 0 && info.free_bytes <= info.capacity_bytes);
    assert!(bench.device.alignment_bytes().is_power_of_two() && bench.device.alignment_bytes() >= 256);
    assert_eq!(make(CAPACITY).device.info().uuid, info.uuid);
}

pub(crate) fn bytes_go_where_the_parts_say(make: Make) {
    const SIZE: u64 = 5_000_000;
    let bench = make(CAPACITY);
    let builder = bench.reserve("parts", SIZE);
    let mut expected = vec![0; SIZE as usize];
    let runs: [&[Part]; 5] = [
        &[place(0, 1000)],
        &[discard(10), place(4_000_000, 1_000_000), discard(2_500_000), place(1000, 1), place(0, 0), place(1001, 9)],
        &[place(3000, 700), place(2000, 700), discard(1), place(2700, 300), place(3700, 1_048_576)],
        &[discard(5)],
        &[],
    ];
    for (seed, parts) in runs.into_iter().enumerate() {
        let run = bench.load(&*builder, parts, seed as u64);
        apply(&mut expected, parts, &run);
    }
    assert_holds(&*builder.finish().unwrap(), &expected);
}

pub(crate) fn threads_fill_one_region(make: Make) {
    const PART: u64 = 300_001;
    const PARTS: u64 = 32;
    let bench = make(CAPACITY);
    let builder = bench.reserve("threads", PART * PARTS);
    let mut expected = vec![0; (PART * PARTS) as usize];
    thread::scope(|scope| {
        for worker in 0..4 {
            let (bench, builder) = (&bench, &*builder);
            scope.spawn(move || {
                for part in (worker..PARTS).step_by(4) {
                    bench.load(builder, &[discard(part), place(part * PART, PART)], part);
                }
            });
        }
    });
    for part in 0..PARTS {
        let parts = [discard(part), place(part * PART, PART)];
        apply(&mut expected, &parts, &run_of(part + PART, part));
    }
    assert_holds(&*builder.finish().unwrap(), &expected);
}

pub(crate) fn pieces_of_a_column_slice_are_gathered(make: Make) {
    const ROWS: u64 = 5000;
    let bench = make(CAPACITY);
    let builder = bench.reserve("columns", 3 * ROWS);
    let parts: Vec<Part> = (0..ROWS).flat_map(|row| [discard(200), place(row * 3, 3), discard(197)]).collect();
    let run = bench.load(&*builder, &parts, 3);
    let mut expected = vec![0; 3 * ROWS as usize];
    apply(&mut expected, &parts, &run);
    assert_holds(&*builder.finish().unwrap(), &expected);
}

pub(crate) fn rows_are_gathered(make: Make) {
    let bench = make(CAPACITY);
    let builder = bench.reserve("rows", 6_000_000);
    let runs: [&[Part]; 4] = [
        // Thin ones, of a slice that begins and ends within a row.
        &[discard(100), place(0, 5), discard(300), rows(5, 20, 300, 5000), discard(300), place(100_005, 7)],
        // Wide ones, and two slices of one matrix.
        &[rows(200_192, 2048, 2048, 1000), discard(9), rows(2_248_192, 2048, 1, 1000)],
        // One row, rows without a distance, rows of nothing.
        &[rows(4_300_000, 900, 77, 1), rows(4_301_000, 10, 0, 100), rows(0, 0, 10, 5)],
        // More thin rows than fit in a small buffer.
        &[rows(4_400_000, 3, 4, 500_000)],
    ];
    let mut expected = vec![0; 6_000_000];
    for (seed, parts) in runs.into_iter().enumerate() {
        let run = bench.load(&*builder, parts, seed as u64);
        apply(&mut expected, parts, &run);
    }
    let wrong: [&[Part]; 3] = [&[rows(5_999_000, 100, 1, 11)], &[rows(0, 1 << 60, 1, 1 << 10)], &[rows(0, 1, 1, 0)]];
    for parts in wrong {
        assert_eq!(code(bench.try_load(&*builder, parts, 0)), Code::InvalidArgument, "{parts:?}");
    }
    assert_holds(&*builder.finish().unwrap(), &expected);
}

pub(crate) fn small_tensors_keep_their_neighbours(make: Make) {
    const TENSORS: u64 = 3000;
    let bench = make(CAPACITY);
    let builder = bench.reserve("small", TENSORS * 512);
    let mut expected = vec![0; (TENSORS * 512) as usize];
    // Every other one first, then those between them.
    for odd in [0, 1] {
        let parts: Vec<Part> =
            (0..TENSORS).filter(|at| at % 2 == odd).map(|at| place(at * 512, at * 7 % 512 + 1)).collect();
        let run = bench.load(&*builder, &parts, odd);
        apply(&mut expected, &parts, &run);
    }
    assert_holds(&*builder.finish().unwrap(), &expected);
}

pub(crate) fn the_rest_of_a_region_is_zero(make: Make) {
    const SIZE: u64 = 3_000_000;
    let bench = make(CAPACITY);
    // Whatever was in the memory before.
    let builder = bench.reserve("before", SIZE);
    bench.load(&*builder, &[place(0, SIZE)], 1);
    drop(builder.finish().unwrap());
    let builder = bench.reserve("after", SIZE);
    let parts = [place(256, 4), place(512, 300), place(1_000_000, 1_000_000), place(SIZE - 1000, 4)];
    let run = bench.load(&*builder, &parts, 2);
    let mut expected = vec![0; SIZE as usize];
    apply(&mut expected, &parts, &run);
    assert_holds(&*builder.finish().unwrap(), &expected);
}

pub(crate) fn wrong_parts_are_refused_and_claim_nothing(make: Make) {
    let bench = make(CAPACITY);
    let builder = bench.reserve("wrong", 1000);
    let wrong: [&[Part]; 5] = [
        &[place(0, 1001)],
        &[place(0, 500), place(1000, 1)],
        &[place(0, 10), place(u64::MAX, 1)],
        &[place(0, 10), discard(5), place(10, u64::MAX)],
        &[place(1 << 62, 5)],
    ];
    for parts in wrong {
        assert_eq!(code(bench.try_load(&*builder, parts, 0)), Code::InvalidArgument, "{parts:?}");
    }
    assert_eq!(code(bench.try_load(&*builder, &[place(0, 10), place(5, 10)], 0)), Code::Internal);
    let run = bench.load(&*builder, &[place(0, 1000)], 1);
    assert_holds(&*builder.finish().unwrap(), &run);
}

pub(crate) fn memory_is_bounded_and_comes_back(make: Make) {
    let Bench { device, .. } = make(CAPACITY);
    let capacity = device.info().capacity_bytes;
    for size in [capacity + 1, u64::MAX] {
        assert_eq!(code(device.reserve("huge", size)), Code::Exhausted);
    }
    let builder = device.reserve("first", 40 << 20).unwrap();
    let error = device.reserve("second", capacity - (30 << 20)).err().unwrap();
    assert_eq!(error.code(), Code::Exhausted);
    assert!(error.message().contains("second"), "{error}");
    let info = device.info();
    assert!(info.used_bytes >= 40 << 20 && info.free_bytes <= capacity - (40 << 20));
    let region = builder.finish().unwrap();
    let clone = Arc::clone(&region);
    drop(region);
    assert_eq!(code(device.reserve("second", capacity - (30 << 20))), Code::Exhausted);
    drop(clone);
    assert_eq!(device.info().used_bytes, 0);
    // An abandoned builder frees its memory as well.
    drop(device.reserve("abandoned", 40 << 20).unwrap());
    assert_eq!(device.info().used_bytes, 0);
    assert!(device.reserve("last", 40 << 20).is_ok());
}

pub(crate) fn a_region_outlives_its_device(make: Make) {
    let bench = make(CAPACITY);
    let builder = bench.reserve("orphan", 4096);
    let run = bench.load(&*builder, &[place(0, 4096)], 9);
    drop(bench);
    assert_holds(&*builder.finish().unwrap(), &run);
}

pub(crate) fn segments_make_up_the_region(make: Make) {
    const SIZE: u64 = 3_000_000;
    let bench = make(CAPACITY);
    let builder = bench.reserve("segments", SIZE);
    let run = bench.load(&*builder, &[place(0, SIZE)], 4);
    let region = builder.finish().unwrap();
    let segments = region.segments();
    // A device may give memory in larger units.
    let total: u64 = segments.iter().map(|segment| segment.len_bytes).sum();
    assert!((SIZE..SIZE + (4 << 20)).contains(&total) && segments.iter().all(|segment| segment.len_bytes > 0));
    for segment in segments {
        assert!(fcntl_getfd(segment.fd).unwrap().contains(FdFlags::CLOEXEC));
    }
    assert_holds(&*region, &run);
}

pub(crate) fn reads_are_checked(make: Make) {
    let bench = make(CAPACITY);
    let builder = bench.reserve("reads", 100);
    let run = bench.load(&*builder, &[place(0, 100)], 2);
    let region = builder.finish().unwrap();
    let mut out = [0; 10];
    region.read(90, &mut out).unwrap();
    assert_eq!(out, run[90..]);
    region.read(100, &mut []).unwrap();
    for offset in [91, 100, u64::MAX - 5, u64::MAX] {
        assert_eq!(code(region.read(offset, &mut out)), Code::InvalidArgument);
    }
}

pub(crate) fn an_empty_region_is_a_region(make: Make) {
    let bench = make(CAPACITY);
    let builder = bench.reserve("empty", 0);
    bench.load(&*builder, &[place(0, 0), discard(7)], 1);
    assert_eq!(code(bench.try_load(&*builder, &[place(0, 1)], 0)), Code::InvalidArgument);
    assert_holds(&*builder.finish().unwrap(), &[]);
}

fn owned(region: &dyn DeviceRegion) -> Vec<OwnedSegment> {
    let duplicate = |segment: crate::Segment<'_>| OwnedSegment {
        fd: segment.fd.try_clone_to_owned().unwrap(),
        len_bytes: segment.len_bytes,
    };
    region.segments().into_iter().map(duplicate).collect()
}

pub(crate) fn a_finished_region_is_adopted(make: Make) {
    const SIZE: u64 = 6_000_000;
    let bench = make(CAPACITY);
    let builder = bench.reserve("left", SIZE);
    let run = bench.load(&*builder, &[place(0, SIZE)], 5);
    let region = builder.finish().unwrap();
    let segments = owned(&*region);
    drop((region, bench));
    // Another device object, as after a restart: the descriptors are what is left.
    let bench = make(CAPACITY);
    let region = bench.device.adopt("left", segments, SIZE).unwrap();
    assert_holds(&*region, &run);
    let mut tail = [0; 3];
    region.read(SIZE - 3, &mut tail).unwrap();
    assert_eq!(tail, run[SIZE as usize - 3..]);
}

pub(crate) fn wrong_segments_are_not_adopted(make: Make) {
    let bench = make(CAPACITY);
    let builder = bench.reserve("short", 4096);
    bench.load(&*builder, &[place(0, 4096)], 5);
    let region = builder.finish().unwrap();
    for (segments, size) in [(owned(&*region), 20 << 20), (Vec::new(), 10)] {
        let refused = code(bench.device.adopt("wrong", segments, size));
        assert!(matches!(refused, Code::Corrupt | Code::InvalidArgument), "{refused}");
    }
}
