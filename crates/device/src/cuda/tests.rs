//! The conformance suite on the fake driver, with the copier as a thread and as a process. What goes wrong is in
//! `tests/cuda/`, where no other test is in the way.

use std::ffi::OsString;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use longshore_memory::{Arena, OwnedSegment, PinnedArena};
use longshore_testkit::FakeCuda;
use longshore_types::{Code, Result};

use super::*;
use crate::MemoryKeeper;
use crate::conformance::{Bench, place};

const PINNED_BYTES: u64 = 32 << 20;
/// Tells a process of this very program that it is a copier.
const IS_COPIER: &str = "LONGSHORE_TEST_COPIER";

/// Memory that somebody else had before. The fake driver's descriptors are files.
#[derive(Default)]
struct UsedMemory(OwnMemory);

impl MemoryKeeper for UsedMemory {
    fn create(&self, label: &str, device_uuid: &str, size_bytes: u64) -> Result<Vec<OwnedSegment>> {
        let segments = self.0.create(label, device_uuid, size_bytes)?;
        for segment in &segments {
            let file = File::from(segment.fd.try_clone().unwrap());
            file.write_all_at(&vec![0xdb; segment.len_bytes as usize], 0).unwrap();
        }
        Ok(segments)
    }

    fn release(&self, label: &str) {
        self.0.release(label);
    }

    fn used_bytes(&self, device_uuid: &str) -> u64 {
        self.0.used_bytes(device_uuid)
    }
}

const CAPACITY: u64 = 64 << 20;

fn bench(budget_bytes: u64, start: CopierStart) -> Bench {
    bench_of(budget_bytes, start, Arc::<UsedMemory>::default())
}

fn bench_of(budget_bytes: u64, start: CopierStart, keeper: Arc<dyn MemoryKeeper>) -> Bench {
    FakeCuda::preload();
    let reservation = Arena::new(PINNED_BYTES).try_reserve(PINNED_BYTES).unwrap();
    let pinned = PinnedArena::create(PINNED_BYTES, reservation).unwrap();
    let gpu = probe().unwrap().swap_remove(0);
    let options = CudaOptions { gpu, budget_bytes, start };
    let device = CudaDevice::open(options, keeper, pinned.clone()).unwrap();
    assert_eq!((device.state(), device.restarts()), (CopierState::Starting, 0));
    device.start().unwrap();
    assert_eq!((device.state(), device.restarts()), (CopierState::Ready, 0));
    Bench { device, pinned: Some(pinned) }
}

/// This program again, as a copier on the same fake driver.
fn process() -> CopierStart {
    let mut args: Vec<OsString> = Vec::new();
    let role = [(IS_COPIER.to_owned(), "1".to_owned()), ("FAKE_CUDA_ROLE".to_owned(), "copier".to_owned())];
    for (name, value) in FakeCuda::preload().env().into_iter().chain(role) {
        args.push(format!("{name}={value}").into());
    }
    args.push(std::env::current_exe().unwrap().into());
    args.extend(["--exact", "cuda::tests::copier_process", "--nocapture"].map(OsString::from));
    CopierStart::Process { program: "/usr/bin/env".into(), args }
}

/// Memory in many segments, as that of a huge region is.
#[derive(Default)]
struct Splintered(OwnMemory);

impl Splintered {
    const SEGMENTS: u64 = 150;
    const SEGMENT_BYTES: u64 = 2 << 20;
}

impl MemoryKeeper for Splintered {
    fn create(&self, label: &str, device_uuid: &str, _size_bytes: u64) -> Result<Vec<OwnedSegment>> {
        let one = |at| self.0.create(&format!("{label} {at}"), device_uuid, Splintered::SEGMENT_BYTES);
        let all = (0..Splintered::SEGMENTS).map(one).collect::<Result<Vec<_>>>()?;
        Ok(all.into_iter().flatten().collect())
    }

    fn release(&self, label: &str) {
        (0..Splintered::SEGMENTS).for_each(|at| self.0.release(&format!("{label} {at}")));
    }

    fn used_bytes(&self, device_uuid: &str) -> u64 {
        self.0.used_bytes(device_uuid)
    }
}

#[test]
fn a_region_of_more_segments_than_fit_in_a_message() {
    const SIZE: u64 = Splintered::SEGMENTS * Splintered::SEGMENT_BYTES;
    let Bench { device, pinned } = bench_of(SIZE, process(), Arc::<Splintered>::default());
    let bench = Bench { device: device.clone(), pinned };
    let builder = bench.reserve("splinters", SIZE);
    // Across the ends of segments, the last of which are far beyond those of one message.
    let parts = [place((2 << 20) - 5, 10), place(SIZE - (4 << 20), 4 << 20)];
    let run = bench.load(&*builder, &parts, 1);
    let region = builder.finish().unwrap();
    assert_eq!(region.segments().len(), 150);
    let mut read = vec![0; 12];
    region.read((2 << 20) - 6, &mut read).unwrap();
    assert_eq!(read, [&[0], &run[..10], &[0]].concat());
    let mut read = vec![0; 4 << 20];
    region.read(SIZE - (4 << 20), &mut read).unwrap();
    assert!(read == run[10..]);
    drop(region);
    assert_eq!(device.info().used_bytes, 0);
}

#[test]
fn the_rate_of_plain_copies_is_measured() {
    let bench = bench(CAPACITY, CopierStart::Thread);
    let gpu = probe().unwrap().swap_remove(0);
    let pinned = bench.pinned.unwrap();
    let copy = RawCopy { bytes: (40 << 20) + 1, copy_bytes: 4 << 20, streams: 2, rounds: 3 };
    assert_eq!(raw_copy_rate(&gpu, &pinned, copy).unwrap().len(), 3);
    assert_eq!(device_copy_rate(&gpu, copy).unwrap().len(), 3);
    for wrong in [RawCopy { bytes: 0, ..copy }, RawCopy { copy_bytes: 1 << 30, ..copy }, RawCopy { streams: 0, ..copy }]
    {
        assert_eq!(raw_copy_rate(&gpu, &pinned, wrong).unwrap_err().code(), Code::InvalidArgument);
    }
    let too_much = RawCopy { bytes: 1 << 40, ..copy };
    assert_eq!(device_copy_rate(&gpu, too_much).unwrap_err().code(), Code::Exhausted);
}

/// No test of its own: what [`process`] runs.
#[test]
fn copier_process() {
    if std::env::var_os(IS_COPIER).is_none() {
        return;
    }
    if let Err(error) = copier_main(std::io::stdin().as_fd().try_clone_to_owned().unwrap()) {
        eprintln!("copier: {error}");
        std::process::exit(1);
    }
}

mod thread {
    use super::*;
    use crate::conformance::Make;

    const MAKE: Make = |bytes| bench(bytes, CopierStart::Thread);

    crate::conformance::conformance_suite!(MAKE);
    crate::conformance::upload_suite!(MAKE);
}

mod process {
    use super::*;
    use crate::conformance::Make;

    const MAKE: Make = |bytes| bench(bytes, process());

    crate::conformance::conformance_suite!(MAKE);
    crate::conformance::upload_suite!(MAKE);
}
