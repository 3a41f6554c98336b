//! Plain device memory and page-locked host memory.

use std::ffi::c_uint;

use super::entry_points;
use super::types::Out;
use crate::codes::{self, Code};
use crate::driver::Call;
use crate::memory::{Origin, Space, system};

entry_points! {
    Context fn cuMemGetInfo_v2(call, free_bytes: Out<usize>, total_bytes: Out<usize>) {
        let device = call.driver.physical(call.device()?);
        let used = call.driver.folder.used_bytes(device).map_err(system)?;
        let total = call.driver.config.memory_bytes;
        free_bytes.set(total.saturating_sub(used) as usize)?;
        total_bytes.set(total as usize)
    }

    Context fn cuMemAlloc_v2(call, address: Out<u64>, bytes: usize) {
        let allocated = call.driver.space.write().allocate(call.driver, call.device()?, bytes)?;
        address.set(allocated)
    }

    Context fn cuMemFree_v2(call, address: u64) {
        call.driver.streams.drain(call.device()?, false);
        let is_allocated = |origin| matches!(origin, Origin::Allocated(_));
        call.driver.space.write().free(address, is_allocated, &call.driver.usage)
    }

    Context fn cuMemHostAlloc(call, address: Out<u64>, bytes: usize, flags: c_uint) {
        let _ = flags;
        let device = call.device()?;
        let allocated = change(call, |space| space.page_locked.allocate(device, bytes))?;
        address.set(allocated)
    }

    Context fn cuMemFreeHost(call, address: u64) {
        call.driver.streams.drain(call.device()?, false);
        change(call, |space| space.page_locked.free(address))
    }

    Context fn cuMemHostRegister_v2(call, address: u64, bytes: usize, flags: c_uint) {
        let device = call.device()?;
        change(call, |space| space.page_locked.register(device, address, bytes, flags))
    }

    Context fn cuMemHostUnregister(call, address: u64) {
        call.driver.streams.drain(call.device()?, false);
        change(call, |space| space.page_locked.unregister(address))
    }

    Context fn cuMemHostGetDevicePointer_v2(call, device_address: Out<u64>, address: u64, flags: c_uint) {
        let known = call.driver.space.read().page_locked.range_of(address).is_some();
        match (known, flags) {
            (true, 0) => device_address.set(address),
            _ => Err(codes::INVALID_VALUE),
        }
    }
}

/// Changes the address space and writes down what there is then.
fn change<T>(call: &Call, change: impl FnOnce(&mut Space) -> Result<T, Code>) -> Result<T, Code> {
    let mut space = call.driver.space.write();
    let changed = change(&mut space);
    space.note(&call.driver.usage);
    changed
}
