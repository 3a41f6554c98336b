//! What every backend must do, as tests over a factory. A backend's own module calls [`conformance_suite!`].

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::thread;

use longshore_types::{BlockChecksum, Code, Result};
use rustix::io::{FdFlags, fcntl_getfd};

use crate::device::{Device, DeviceRegion, Intake, Land, Part, RegionBuilder};
use crate::id::DeviceId;

/// Makes a device with at least so many bytes free.
pub(crate) type Make = fn(u64) -> Arc<dyn Device>;

/// Bytes that the devices under test have.
const CAPACITY: u64 = 64 << 20;

/// One test for each check, over the device that `$make` makes.
macro_rules! conformance_suite {
    ($make:expr) => {
        $crate::conformance::conformance_suite!($make;
            describes_itself, bytes_land_where_the_parts_say, threads_fill_one_region, rows_of_a_column_slice_are_gathered,
            a_failed_fetch_can_be_repeated, wrong_parts_are_refused_and_claim_nothing,
            landings_of_one_place_exclude_each_other, a_region_is_finished_once_all_landings_are_in,
            a_landing_belongs_to_its_region, memory_is_bounded_and_comes_back, a_region_outlives_its_device,
            segments_make_up_the_region_and_cannot_be_written, reads_are_checked, an_empty_region_is_a_region,
        );
    };
    ($make:expr; $($check:ident),* $(,)?) => {
        $(#[test] fn $check() { $crate::conformance::$check($make); })*
    };
}
pub(crate) use conformance_suite;

fn place(offset_bytes: u64, len_bytes: u64) -> Part {
    Part::Place { offset_bytes, len_bytes }
}

fn discard(len_bytes: u64) -> Part {
    Part::Discard { len_bytes }
}

fn run_of(len: u64, seed: u64) -> Vec<u8> {
    (0..len).map(|at| ((at + 1).wrapping_mul(2_654_435_761).wrapping_mul(seed * 2 + 1) >> 9) as u8).collect()
}

/// Lands, checks and submits a run of bytes, as a load does; returns the run.
fn load(builder: &dyn RegionBuilder, parts: &[Part], seed: u64) -> Vec<u8> {
    let run = run_of(parts.iter().map(Part::len_bytes).sum(), seed);
    let land = land(builder);
    let mut landing = land.landing(parts).unwrap();
    assert_eq!(landing.len(), run.len());
    for (index, block) in run.chunks(1 << 20).enumerate() {
        let at = index << 20;
        landing.copy_in(at, block);
        assert_eq!(landing.checksum(at..at + block.len()), BlockChecksum::of(block));
    }
    land.submit(landing).unwrap();
    run
}

fn land(builder: &dyn RegionBuilder) -> &dyn Land {
    match builder.intake() {
        Intake::Land(land) => land,
        Intake::Upload(_) => panic!("not a device that bytes land on"),
    }
}

/// What the region must hold after `run` was landed by `parts`.
fn apply(expected: &mut [u8], parts: &[Part], run: &[u8]) {
    let mut rest = run;
    for part in parts {
        let (bytes, next) = rest.split_at(part.len_bytes() as usize);
        rest = next;
        if let Part::Place { offset_bytes, len_bytes } = *part {
            expected[offset_bytes as usize..(offset_bytes + len_bytes) as usize].copy_from_slice(bytes);
        }
    }
}

fn assert_holds(region: &dyn DeviceRegion, expected: &[u8]) {
    assert_eq!(region.size_bytes(), expected.len() as u64);
    let mut read = vec![0xaa; expected.len()];
    region.read(0, &mut read).unwrap();
    assert!(read == expected, "read gives other bytes");
    if let Some(bytes) = region.host_bytes() {
        assert!(bytes == expected, "the host sees other bytes");
    }
}

fn code<T>(result: Result<T>) -> Code {
    result.err().expect("should have failed").code()
}

pub(crate) fn describes_itself(make: Make) {
    let device = make(CAPACITY);
    let info = device.info();
    assert_eq!(info.id.to_string().parse::<DeviceId>().unwrap(), info.id);
    assert!(info.uuid.len() > 5 && !info.name.is_empty());
    assert!(info.capacity_bytes >= CAPACITY && info.used_bytes == 0);
    assert!(device.alignment_bytes().is_power_of_two() && device.alignment_bytes() >= 256);
    assert_eq!(make(CAPACITY).info().uuid, info.uuid);
}

pub(crate) fn bytes_land_where_the_parts_say(make: Make) {
    const SIZE: u64 = 5_000_000;
    let builder = make(CAPACITY).reserve("parts", SIZE).unwrap();
    let mut expected = vec![0; SIZE as usize];
    let runs: [&[Part]; 5] = [
        &[place(0, 1000)],
        &[discard(10), place(4_000_000, 1_000_000), discard(2_500_000), place(1000, 1), place(0, 0), place(1001, 9)],
        &[place(3000, 700), place(2000, 700), discard(1), place(2700, 300), place(3700, 1_048_576)],
        &[discard(5)],
        &[],
    ];
    for (seed, parts) in runs.into_iter().enumerate() {
        let run = load(&*builder, parts, seed as u64);
        apply(&mut expected, parts, &run);
    }
    assert_holds(&*builder.finish().unwrap(), &expected);
}

pub(crate) fn threads_fill_one_region(make: Make) {
    const PART: u64 = 300_001;
    const PARTS: u64 = 32;
    let builder = make(CAPACITY).reserve("threads", PART * PARTS).unwrap();
    let mut expected = vec![0; (PART * PARTS) as usize];
    thread::scope(|scope| {
        for worker in 0..4 {
            let builder = &*builder;
            scope.spawn(move || {
                for part in (worker..PARTS).step_by(4) {
                    load(builder, &[discard(part), place(part * PART, PART)], part);
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

pub(crate) fn rows_of_a_column_slice_are_gathered(make: Make) {
    const ROWS: u64 = 5000;
    let builder = make(CAPACITY).reserve("columns", 3 * ROWS).unwrap();
    let parts: Vec<Part> = (0..ROWS).flat_map(|row| [discard(200), place(row * 3, 3), discard(197)]).collect();
    let run = load(&*builder, &parts, 3);
    let mut expected = vec![0; 3 * ROWS as usize];
    apply(&mut expected, &parts, &run);
    assert_holds(&*builder.finish().unwrap(), &expected);
}

pub(crate) fn a_failed_fetch_can_be_repeated(make: Make) {
    let builder = make(CAPACITY).reserve("retry", 1000).unwrap();
    let parts = [place(100, 500)];
    let mut torn = land(&*builder).landing(&parts).unwrap();
    torn.copy_in(0, &[0xff; 300]);
    drop(torn);
    let run = load(&*builder, &parts, 1);
    let mut expected = vec![0; 1000];
    apply(&mut expected, &parts, &run);
    assert_holds(&*builder.finish().unwrap(), &expected);
}

pub(crate) fn wrong_parts_are_refused_and_claim_nothing(make: Make) {
    let builder = make(CAPACITY).reserve("wrong", 1000).unwrap();
    let wrong: [&[Part]; 5] = [
        &[place(0, 1001)],
        &[place(0, 500), place(1000, 1)],
        &[place(0, 10), place(u64::MAX, 1)],
        &[place(0, 10), discard(5), place(10, u64::MAX)],
        &[place(1 << 62, 5)],
    ];
    for parts in wrong {
        assert_eq!(code(land(&*builder).landing(parts)), Code::InvalidArgument, "{parts:?}");
    }
    assert_eq!(code(land(&*builder).landing(&[place(0, 10), place(5, 10)])), Code::Internal);
    let run = load(&*builder, &[place(0, 1000)], 1);
    assert_holds(&*builder.finish().unwrap(), &run);
}

pub(crate) fn landings_of_one_place_exclude_each_other(make: Make) {
    let builder = make(CAPACITY).reserve("overlap", 1000).unwrap();
    let first = land(&*builder).landing(&[place(0, 500)]).unwrap();
    assert_eq!(code(land(&*builder).landing(&[place(499, 2)])), Code::Internal);
    let second = land(&*builder).landing(&[place(500, 500)]).unwrap();
    drop((first, second));
    assert!(land(&*builder).landing(&[place(499, 2)]).is_ok());
}

pub(crate) fn a_region_is_finished_once_all_landings_are_in(make: Make) {
    let device = make(CAPACITY);
    let builder = device.reserve("early", 1000).unwrap();
    let landing = land(&*builder).landing(&[place(0, 10)]).unwrap();
    assert_eq!(code(builder.finish()), Code::Internal);
    drop(landing);
    assert_eq!(device.info().used_bytes, 0);
}

pub(crate) fn a_landing_belongs_to_its_region(make: Make) {
    let device = make(CAPACITY);
    let (one, other) = (device.reserve("one", 100).unwrap(), device.reserve("other", 100).unwrap());
    let landing = land(&*one).landing(&[place(0, 100)]).unwrap();
    assert_eq!(code(land(&*other).submit(landing)), Code::InvalidArgument);
}

pub(crate) fn memory_is_bounded_and_comes_back(make: Make) {
    let device = make(CAPACITY);
    let capacity = device.info().capacity_bytes;
    for size in [capacity + 1, u64::MAX] {
        assert_eq!(code(device.reserve("huge", size)), Code::Exhausted);
    }
    let builder = device.reserve("first", 40 << 20).unwrap();
    let error = device.reserve("second", capacity - (30 << 20)).err().unwrap();
    assert_eq!(error.code(), Code::Exhausted);
    assert!(error.message().contains("second"), "{error}");
    assert!(device.info().used_bytes >= 40 << 20);
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
    let builder = make(CAPACITY).reserve("orphan", 4096).unwrap();
    let run = load(&*builder, &[place(0, 4096)], 9);
    assert_holds(&*builder.finish().unwrap(), &run);
}

pub(crate) fn segments_make_up_the_region_and_cannot_be_written(make: Make) {
    const SIZE: u64 = 3_000_000;
    let builder = make(CAPACITY).reserve("segments", SIZE).unwrap();
    let run = load(&*builder, &[place(0, SIZE)], 4);
    let region = builder.finish().unwrap();
    let segments = region.segments();
    assert_eq!(segments.iter().map(|segment| segment.len_bytes).sum::<u64>(), SIZE);
    for segment in segments {
        assert!(fcntl_getfd(segment.fd).unwrap().contains(FdFlags::CLOEXEC));
        let file = File::from(segment.fd.try_clone_to_owned().unwrap());
        assert!(file.write_at(b"x", 0).is_err());
        assert!(file.set_len(1).is_err());
    }
    assert_holds(&*region, &run);
}

pub(crate) fn reads_are_checked(make: Make) {
    let builder = make(CAPACITY).reserve("reads", 100).unwrap();
    let run = load(&*builder, &[place(0, 100)], 2);
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
    let builder = make(CAPACITY).reserve("empty", 0).unwrap();
    load(&*builder, &[place(0, 0), discard(7)], 1);
    assert_eq!(code(land(&*builder).landing(&[place(0, 1)])), Code::InvalidArgument);
    assert_holds(&*builder.finish().unwrap(), &[]);
}
