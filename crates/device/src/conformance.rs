//! What every backend must do, as tests over a [`Bench`]. A backend's own module calls [`conformance_suite!`], and the
//! suite for its way in: [`landing_suite!`] or [`upload_suite!`].

mod common;
mod land;
mod upload;

pub(crate) use self::common::*;
pub(crate) use self::land::*;
pub(crate) use self::upload::*;

use std::sync::Arc;
use std::time::Duration;

use longshore_memory::{Claim, PinnedArena, PinnedChunk};
use longshore_types::{BlockChecksum, Code, Result};

use crate::device::{Device, DeviceRegion, Intake, Land, Part, RegionBuilder, Upload};

/// A device under test.
pub(crate) struct Bench {
    pub(crate) device: Arc<dyn Device>,
    /// What uploads come from, for devices that take them.
    pub(crate) pinned: Option<PinnedArena>,
}

/// Makes a device with at least so many bytes free.
pub(crate) type Make = fn(u64) -> Bench;

/// Bytes that the devices under test have.
const CAPACITY: u64 = 64 << 20;

macro_rules! tests_of {
    ($make:expr; $($check:ident),* $(,)?) => {
        $(#[test] fn $check() { $crate::conformance::$check($make); })*
    };
}
pub(crate) use tests_of;

/// One test for each check that concerns every device, over the one that `$make` makes.
macro_rules! conformance_suite {
    ($make:expr) => {
        $crate::conformance::tests_of!($make;
            describes_itself, bytes_go_where_the_parts_say, threads_fill_one_region,
            pieces_of_a_column_slice_are_gathered, rows_are_gathered, small_tensors_keep_their_neighbours,
            the_rest_of_a_region_is_zero, wrong_parts_are_refused_and_claim_nothing, memory_is_bounded_and_comes_back,
            a_region_outlives_its_device, segments_make_up_the_region, reads_are_checked, an_empty_region_is_a_region,
            a_finished_region_is_adopted, wrong_segments_are_not_adopted,
        );
    };
}
pub(crate) use conformance_suite;

/// As [`conformance_suite!`], for devices that bytes land on.
macro_rules! landing_suite {
    ($make:expr) => {
        $crate::conformance::tests_of!($make;
            a_failed_fetch_can_be_repeated, landings_of_one_place_exclude_each_other,
            a_region_is_finished_once_all_landings_are_in, a_landing_belongs_to_its_region, segments_cannot_be_written,
        );
    };
}
pub(crate) use landing_suite;

/// As [`conformance_suite!`], for devices that bytes are copied to.
macro_rules! upload_suite {
    ($make:expr) => {
        $crate::conformance::tests_of!($make;
            only_filled_blocks_are_uploaded, nothing_is_sent_twice, a_chunk_is_held_until_it_is_copied,
            bytes_may_follow_where_padding_was,
        );
    };
}
pub(crate) use upload_suite;

pub(crate) fn place(offset_bytes: u64, len_bytes: u64) -> Part {
    Part::Place { offset_bytes, len_bytes }
}

pub(crate) fn discard(len_bytes: u64) -> Part {
    Part::Discard { len_bytes }
}

pub(crate) fn rows(offset_bytes: u64, row_bytes: u64, skip_bytes: u64, rows: u64) -> Part {
    Part::Rows { offset_bytes, row_bytes, skip_bytes, rows }
}

pub(crate) fn run_of(len: u64, seed: u64) -> Vec<u8> {
    (0..len).map(|at| ((at + 1).wrapping_mul(2_654_435_761).wrapping_mul(seed * 2 + 1) >> 9) as u8).collect()
}

impl Bench {
    pub(crate) fn reserve(&self, label: &str, size_bytes: u64) -> Box<dyn RegionBuilder> {
        self.device.reserve(label, size_bytes).unwrap()
    }

    /// Brings a run of bytes in, as a load does; returns the run.
    pub(crate) fn load(&self, builder: &dyn RegionBuilder, parts: &[Part], seed: u64) -> Vec<u8> {
        self.try_load(builder, parts, seed).unwrap()
    }

    pub(crate) fn try_load(&self, builder: &dyn RegionBuilder, parts: &[Part], seed: u64) -> Result<Vec<u8>> {
        // Absurd lengths must be refused before anybody has such a run.
        let len = parts.iter().fold(0u64, |sum, part| sum.saturating_add(part.len_bytes())).min(15 << 20);
        let run = run_of(len, seed);
        match builder.intake() {
            Intake::Land(land) => {
                let mut landing = land.landing(parts)?;
                assert_eq!(landing.len(), run.len());
                for (index, block) in run.chunks(1 << 20).enumerate() {
                    let at = index << 20;
                    landing.copy_in(at, block);
                    assert_eq!(landing.checksum(at..at + block.len()), BlockChecksum::of(block));
                }
                land.submit(landing)?;
            }
            Intake::Upload(upload) => {
                // Not always at the start of the chunk.
                let start_bytes = seed % 5 * 1001;
                upload.upload(&self.chunk(start_bytes, &run), start_bytes, parts)?;
            }
        }
        Ok(run)
    }

    /// A chunk with `run` at `start_bytes`, all of it filled.
    pub(crate) fn chunk(&self, start_bytes: u64, run: &[u8]) -> PinnedChunk {
        let len_bytes = start_bytes + run.len() as u64;
        let chunk = self.empty_chunk(len_bytes);
        while let Claim::Fill(mut window) = chunk.claim(0..u32::MAX) {
            let range = window.range_bytes();
            window.fill(0xee);
            let from = range.start.max(start_bytes);
            if from < range.end {
                let bytes = &run[(from - start_bytes) as usize..(range.end - start_bytes) as usize];
                window[(from - range.start) as usize..].copy_from_slice(bytes);
            }
            window.commit();
        }
        chunk
    }

    /// A slot, once one is free: copies hold theirs for a while.
    pub(crate) fn empty_chunk(&self, len_bytes: u64) -> PinnedChunk {
        let pinned = self.pinned.as_ref().expect("a device that takes uploads");
        for _ in 0..1000 {
            if let Some(chunk) = pinned.try_chunk(len_bytes, None) {
                return chunk;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        panic!("no slot became free: {pinned:?}");
    }
}

pub(crate) fn land(builder: &dyn RegionBuilder) -> &dyn Land {
    match builder.intake() {
        Intake::Land(land) => land,
        Intake::Upload(_) => panic!("not a device that bytes land on"),
    }
}

pub(crate) fn upload(builder: &dyn RegionBuilder) -> &dyn Upload {
    match builder.intake() {
        Intake::Upload(upload) => upload,
        Intake::Land(_) => panic!("not a device that bytes are copied to"),
    }
}

/// What the region must hold after `run` was brought in by `parts`.
pub(crate) fn apply(expected: &mut [u8], parts: &[Part], run: &[u8]) {
    let mut rest = run;
    for part in parts {
        let (bytes, next) = rest.split_at(part.len_bytes() as usize);
        rest = next;
        match *part {
            Part::Place { offset_bytes, len_bytes } => {
                expected[offset_bytes as usize..(offset_bytes + len_bytes) as usize].copy_from_slice(bytes);
            }
            Part::Rows { offset_bytes, row_bytes, skip_bytes, rows } => {
                for row in 0..rows {
                    let (to, from) =
                        ((offset_bytes + row * row_bytes) as usize, (row * (row_bytes + skip_bytes)) as usize);
                    let len = row_bytes as usize;
                    expected[to..to + len].copy_from_slice(&bytes[from..from + len]);
                }
            }
            Part::Discard { .. } => {}
        }
    }
}

pub(crate) fn assert_holds(region: &dyn DeviceRegion, expected: &[u8]) {
    assert_eq!(region.size_bytes(), expected.len() as u64);
    let mut read = vec![0xaa; expected.len()];
    region.read(0, &mut read).unwrap();
    let differs = read.iter().zip(expected).position(|(read, expected)| read != expected);
    assert!(differs.is_none(), "read gives another byte at {differs:?}");
    if let Some(bytes) = region.host_bytes() {
        assert!(bytes == expected, "the host sees other bytes");
    }
}

pub(crate) fn code<T>(result: Result<T>) -> Code {
    result.err().expect("should have failed").code()
}
