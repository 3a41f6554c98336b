//! What the driver does, called as C calls it. Each test runs in a process of its own, because the driver is one a process.

mod memory;
mod order;
mod processes;

use std::process::Command;
use std::ptr::null_mut;

use crate::api::all::*;
use crate::codes::*;
use crate::folder::{Allocation, Folder};

const MIB: usize = 1 << 20;
const GRANULE: usize = 2 * MIB;
/// Memory of each of the two devices of a test.
const MEMORY: usize = 64 * MIB;
const MARK: &str = "FAKE_CUDA_TEST";

/// Runs a test in a new process with a new state folder: this process has nothing of the driver.
fn alone(test: &str, env: &[(&str, &str)], body: impl FnOnce()) {
    if std::env::var(MARK).is_ok_and(|running| running == test) {
        return body();
    }
    let folder = tempfile::tempdir().unwrap();
    let mut command = other(test);
    command.env("FAKE_CUDA_DIR", folder.path()).env("FAKE_CUDA_DEVICES", "2").env("FAKE_CUDA_MEM_MIB", "64");
    let done = command.envs(env.iter().copied()).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(done.status.success(), "{}{}", text(&done.stdout), text(&done.stderr));
    assert!(text(&done.stdout).contains("1 passed"), "no test is called {test}");
    let live = Folder::open(folder.path()).unwrap().live().unwrap();
    assert_eq!(live, [], "processes that ended hold nothing");
}

/// This program again, for one test; with the state folder of this one, when it has one.
fn other(test: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", &format!("tests::{test}"), "--nocapture", "--test-threads=1"]).env(MARK, test);
    command
}

fn ok(code: Code) {
    assert_eq!(code, SUCCESS);
}

/// The answer of a call.
fn answer<T: Default>(call: impl FnOnce(Out<T>) -> Code) -> T {
    let mut value = T::default();
    ok(call(Out(&mut value)));
    value
}

fn refused<T: Default>(call: impl FnOnce(Out<T>) -> Code) -> Code {
    let mut value = T::default();
    call(Out(&mut value))
}

/// The driver with the context of a device.
fn start(device: i32) {
    ok(cuInit(0));
    let context = answer(|context| cuDevicePrimaryCtxRetain(context, device));
    ok(cuCtxSetCurrent(context));
}

fn properties(device: i32) -> AllocationProperties {
    AllocationProperties {
        kind: ALLOCATION_PINNED,
        handle_types: HANDLE_POSIX_FD,
        location: Location { kind: LOCATION_DEVICE, id: device },
        win32_meta_data: 0,
        compression: 0,
        rdma_capable: 0,
        usage: 0,
        reserved: [0; 4],
    }
}

fn create(device: i32, bytes: usize) -> u64 {
    let of = properties(device);
    answer(|handle| cuMemCreate(handle, bytes, In(&of), 0))
}

fn reserve(bytes: usize) -> u64 {
    answer(|address| cuMemAddressReserve(address, bytes, 0, 0, 0))
}

fn set_access(address: u64, bytes: usize, device: i32, flags: u32) -> Code {
    let wanted = AccessDescription { location: Location { kind: LOCATION_DEVICE, id: device }, flags };
    cuMemSetAccess(address, bytes, In(&wanted), 1)
}

/// New memory, mapped with access (1 or 3) for device 0, and its handle.
fn mapped(bytes: usize, flags: u32) -> (u64, u64) {
    let (handle, address) = (create(0, bytes), reserve(bytes));
    ok(cuMemMap(address, bytes, 0, handle, 0));
    ok(set_access(address, bytes, 0, flags));
    (address, handle)
}

/// Page-locked memory of this process, with these bytes.
fn page_locked(bytes: usize, value: u8) -> &'static mut [u8] {
    let address = answer(|address| cuMemHostAlloc(address, bytes, 0));
    // SAFETY: the driver gave us this memory, and nobody gives it back.
    let memory = unsafe { std::slice::from_raw_parts_mut(address as *mut u8, bytes) };
    memory.fill(value);
    memory
}

fn read(address: u64, bytes: usize) -> Vec<u8> {
    let mut read = vec![0; bytes];
    ok(cuMemcpyDtoH_v2(read.as_mut_ptr() as u64, address, bytes));
    read
}

fn live() -> Vec<Allocation> {
    crate::driver::Driver::get().unwrap().folder.live().unwrap()
}

fn free_bytes() -> usize {
    let (mut free, mut total) = (0, 0);
    ok(cuMemGetInfo_v2(Out(&mut free), Out(&mut total)));
    assert_eq!(total, MEMORY);
    free
}

#[test]
fn nothing_goes_before_init_nor_without_a_context() {
    alone("nothing_goes_before_init_nor_without_a_context", &[], || {
        assert_eq!(refused(|out| cuDeviceGetCount(out)), NOT_INITIALIZED);
        assert_eq!(answer(|out| cuDriverGetVersion(out)), 13_000);
        ok(cuInit(0));
        assert_eq!(answer(|out| cuDeviceGetCount(out)), 2);
        assert_eq!(refused(|device| cuDeviceGet(device, 2)), INVALID_DEVICE);
        assert_eq!(refused(|address| cuMemAlloc_v2(address, 1)), INVALID_CONTEXT);
        let of = properties(0);
        let handle = answer(|handle| cuMemCreate(handle, GRANULE, In(&of), 0));
        ok(cuMemRelease(handle));
        let context = answer(|context| cuDevicePrimaryCtxRetain(context, 1));
        assert_eq!(answer(|out| cuCtxGetCurrent(out)), 0);
        ok(cuCtxPushCurrent_v2(context));
        assert_eq!(answer(|out| cuCtxGetDevice(out)), 1);
        ok(cuDevicePrimaryCtxRelease_v2(1));
        assert_eq!(refused(|address| cuMemAlloc_v2(address, 1)), CONTEXT_IS_DESTROYED);
        assert_eq!(cuDevicePrimaryCtxRelease_v2(1), INVALID_CONTEXT);
        ok(cuCtxPopCurrent_v2(Out(null_mut())));
        assert_eq!(cuCtxPopCurrent_v2(Out(null_mut())), INVALID_CONTEXT);
    });
}

#[test]
fn devices_are_those_that_are_visible() {
    let uuid = crate::config::uuid_text(1);
    alone("devices_are_those_that_are_visible", &[("CUDA_VISIBLE_DEVICES", &uuid)], || {
        start(0);
        assert_eq!(answer(|out| cuDeviceGetCount(out)), 1);
        assert_eq!(answer::<[u8; 16]>(|uuid| cuDeviceGetUuid_v2(uuid, 0))[15], 1);
        let mut name = [0; 8];
        ok(cuDeviceGetName(name.as_mut_ptr(), 8, 0));
        assert_eq!(name.map(|byte| byte as u8), *b"Longsho\0");
        let of_device: Vec<i32> =
            [102, 103, 134].map(|kind| answer(|value| cuDeviceGetAttribute(value, kind, 0))).into();
        assert_eq!(of_device, [1, 1, 0]);
        let _handle = create(0, GRANULE);
        assert_eq!(live()[0].device, 1, "it is made on the device that is meant");
    });
}

#[test]
fn entry_points_are_found_by_name_and_errors_have_names() {
    alone("entry_points_are_found_by_name_and_errors_have_names", &[], || {
        let found = |name: &std::ffi::CStr| {
            let (mut address, mut status) = (std::ptr::null(), 7);
            ok(cuGetProcAddress_v2(Text(name.as_ptr()), Out(&mut address), 13_000, 0, Out(&mut status)));
            (address, status)
        };
        assert_eq!(found(c"cuMemAlloc"), (cuMemAlloc_v2 as *const std::ffi::c_void, 0));
        assert_eq!(found(c"cuInit"), (cuInit as *const std::ffi::c_void, 0));
        assert_eq!(found(c"cuLaunchKernel"), (std::ptr::null(), 1));
        let mut name = std::ptr::null();
        ok(cuGetErrorName(OUT_OF_MEMORY, Out(&mut name)));
        assert_eq!(Text(name).get(), Ok("CUDA_ERROR_OUT_OF_MEMORY"));
        assert_eq!(cuGetErrorString(9999, Out(&mut name)), INVALID_VALUE);
        assert!(name.is_null());
    });
}

#[test]
fn faults_happen_once_and_sticky_ones_end_the_context() {
    let faults = "cuMemCreate@2=2,cuMemAlloc_v2@1=9999,cuMemcpyHtoDAsync_v2~2=214";
    alone("faults_happen_once_and_sticky_ones_end_the_context", &[("FAKE_CUDA_FAULTS", faults)], || {
        start(0);
        let of = properties(0);
        let codes: Vec<Code> = (0..3).map(|_| refused(|handle| cuMemCreate(handle, GRANULE, In(&of), 0))).collect();
        assert_eq!(codes, [SUCCESS, OUT_OF_MEMORY, SUCCESS]);
        assert_eq!(refused(|address| cuMemAlloc_v2(address, 8)), 9999);
        let (to, from) = (answer(|address| cuMemAlloc_v2(address, 8)), page_locked(8, 1));
        ok(cuMemcpyHtoDAsync_v2(to, from.as_ptr() as u64, 8, 0));
        ok(cuCtxSynchronize());
        ok(cuMemcpyHtoDAsync_v2(to, from.as_ptr() as u64, 8, 0));
        assert_eq!(cuCtxSynchronize(), ECC_UNCORRECTABLE);
        assert_eq!(refused(|address| cuMemAlloc_v2(address, 8)), ECC_UNCORRECTABLE);
        let other = answer(|context| cuDevicePrimaryCtxRetain(context, 1));
        ok(cuCtxSetCurrent(other));
        assert_eq!(free_bytes(), MEMORY, "the other device's context is as good as before");
    });
}
