//! Errors of the card and what becomes of a load, its copier, and the next load.

use longshore_device::Device;
use longshore_device::cuda::{CopierState, DeviceMemory};
use longshore_types::Code;

use crate::bench::{Bench, Driver, SIZE, upload};

#[test]
fn a_lost_context_ends_the_copier_and_the_next_load_works() {
    let driver = Driver::alone();
    // Illegal address, ECC, NVLink, unknown, and a number that no list has.
    for code in [700, 214, 220, 999, 123_456] {
        driver.cuda.disarm();
        driver.cuda.reset_calls();
        let bench = Bench::open().unwrap();
        driver.cuda.arm(&format!("copier/cuMemcpyHtoDAsync_v2~1={code}"));
        let error = bench.load(7).unwrap_err();
        assert_eq!(error.code(), Code::Unavailable, "{error}");
        assert!(error.message().contains("cuda:0") && error.message().contains(&format!("({code})")), "{error}");
        assert_eq!(driver.cuda.fired().len(), 1);
        assert_eq!(bench.pinned.stats().used_bytes, 0);
        bench.load(8).unwrap();
        assert_eq!((bench.device.state(), bench.device.restarts()), (CopierState::Ready, 1));
        drop(bench);
        driver.assert_clean();
    }
}

#[test]
fn a_copy_that_is_refused_fails_its_load_alone() {
    let driver = Driver::alone();
    let bench = Bench::open().unwrap();
    let pid = bench.pid();
    for call in ["cuMemcpyHtoDAsync_v2", "cuMemcpy2DAsync_v2", "cuMemsetD8Async", "cuMemMap", "cuEventRecord"] {
        driver.cuda.disarm();
        driver.cuda.reset_calls();
        driver.cuda.arm(&format!("copier/{call}@1=1"));
        let error = bench.load(3).unwrap_err();
        assert_eq!(error.code(), Code::Internal, "{error}");
        assert!(error.message().contains(&format!("{call} failed with CUDA_ERROR_INVALID_VALUE (1)")), "{error}");
        assert_eq!((bench.pinned.stats().used_bytes, bench.device.info().used_bytes), (0, 0));
        bench.load(4).unwrap();
    }
    assert_eq!((bench.pid(), bench.device.restarts()), (pid, 0));
    drop(bench);
    driver.assert_clean();
}

#[test]
fn a_full_card_is_exhausted() {
    let driver = Driver::alone();
    let bench = Bench::open().unwrap();
    driver.cuda.arm("cuMemCreate@1=2");
    let error = bench.load(1).unwrap_err();
    assert_eq!(error.code(), Code::Exhausted);
    assert!(error.message().contains("model") && error.message().contains("CUDA_ERROR_OUT_OF_MEMORY"), "{error}");
    assert_eq!((bench.device.info().used_bytes, driver.cuda.used_bytes(0)), (0, 0));
    // Others fill the card: less is free than the budget says.
    let uuid = bench.device.info().uuid;
    let others = DeviceMemory::create(&uuid, 1000 << 20).unwrap();
    let info = bench.device.info();
    assert!(info.free_bytes <= 24 << 20 && info.capacity_bytes == 64 << 20, "{info:?}");
    assert_eq!(bench.device.reserve("large", 40 << 20).err().unwrap().code(), Code::Exhausted);
    drop(others);
    assert_eq!(bench.device.info().free_bytes, 64 << 20);
    bench.load(2).unwrap();
    // The copier may run out of memory as well.
    driver.cuda.reset_calls();
    driver.cuda.arm("copier/cuMemSetAccess@1=2");
    assert_eq!(bench.load(3).unwrap_err().code(), Code::Exhausted);
    bench.load(4).unwrap();
    drop(bench);
    driver.assert_clean();
}

#[test]
fn memory_cannot_be_made() {
    let driver = Driver::alone();
    let bench = Bench::open().unwrap();
    for (fault, expected) in [
        ("cuMemCreate@1=999", Code::Unavailable),
        ("cuMemCreate@1=801", Code::Unsupported),
        ("cuMemExportToShareableHandle@1=1", Code::Internal),
        ("cuMemGetAllocationGranularity@1=77777", Code::Unavailable),
    ] {
        driver.cuda.disarm();
        driver.cuda.reset_calls();
        driver.cuda.arm(fault);
        assert_eq!(bench.load(1).unwrap_err().code(), expected, "{fault}");
        driver.cuda.wait_used_bytes(0, 0);
    }
    bench.load(2).unwrap();
    drop(bench);
    driver.assert_clean();
}

#[test]
fn a_copier_that_does_not_start_says_why() {
    let driver = Driver::alone();
    for (fault, expected) in [
        ("copier/cuInit@1=100", Code::Unsupported),
        ("copier/cuInit@1=999", Code::Unavailable),
        ("copier/cuDevicePrimaryCtxRetain@1=2", Code::Exhausted),
        ("copier/cuDevicePrimaryCtxRetain@1=214", Code::Unavailable),
        ("copier/cuMemHostRegister_v2@2=2", Code::Exhausted),
        ("copier/cuStreamCreate@1=304", Code::Internal),
    ] {
        driver.cuda.disarm();
        driver.cuda.reset_calls();
        driver.cuda.arm(fault);
        let error = Bench::open().err().unwrap();
        assert_eq!(error.code(), expected, "{fault}: {error}");
        assert!(error.message().starts_with("cuda:0: "), "{error}");
    }
    driver.assert_clean();
}

#[test]
fn a_region_is_read_although_its_copier_is_lost() {
    let driver = Driver::alone();
    let bench = Bench::open().unwrap();
    let builder = bench.device.reserve("kept", SIZE).unwrap();
    let part = longshore_device::Part::Place { offset_bytes: 0, len_bytes: SIZE };
    upload(&*builder).upload(&bench.chunk(9), 0, &[part]).unwrap();
    let region = builder.finish().unwrap();
    driver.cuda.arm("copier/cuMemcpyDtoHAsync_v2~1=700");
    let mut read = vec![0; SIZE as usize];
    region.read(0, &mut read).unwrap();
    assert!(read.iter().all(|byte| *byte == 9));
    assert_eq!((driver.cuda.fired().len(), bench.device.restarts()), (1, 1));
    drop((region, bench));
    driver.assert_clean();
}
