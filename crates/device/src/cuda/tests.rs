//! The conformance suite on the fake driver, with the copier as a thread and as a process. What goes wrong is in
//! `tests/cuda_faults.rs`, where no other test is in the way.

use std::ffi::OsString;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use longshore_memory::{Arena, OwnedSegment, PinnedArena};
use longshore_testkit::FakeCuda;
use longshore_types::Result;

use super::*;
use crate::MemoryKeeper;
use crate::conformance::Bench;

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

fn bench(budget_bytes: u64, start: CopierStart) -> Bench {
    FakeCuda::preload();
    let reservation = Arena::new(PINNED_BYTES).try_reserve(PINNED_BYTES).unwrap();
    let pinned = PinnedArena::create(PINNED_BYTES, reservation).unwrap();
    let gpu = probe().unwrap().swap_remove(0);
    let options = CudaOptions { gpu, budget_bytes, start };
    let device = CudaDevice::open(options, Arc::new(UsedMemory::default()), pinned.clone()).unwrap();
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

/// No test of its own: what [`process`] runs.
#[test]
fn copier_process() {
    if std::env::var_os(IS_COPIER).is_some() {
        if let Err(error) = copier_main(std::io::stdin().as_fd().try_clone_to_owned().unwrap()) {
            eprintln!("copier: {error}");
            std::process::exit(1);
        }
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
