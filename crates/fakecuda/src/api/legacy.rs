//! Legacy handles between processes: only memory of `cuMemAlloc`, always writable, not within one process.

use std::ffi::c_uint;

use super::entry_points;
use super::types::{IpcHandle, Out};
use crate::codes;
use crate::folder::Allocation;
use crate::memory::Origin;

/// `CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS`
const LAZY_PEER_ACCESS: c_uint = 1;

entry_points! {
    Context fn cuIpcGetMemHandle(call, handle: Out<IpcHandle>, address: u64) {
        let space = call.driver.space.read();
        let (_, range) = space.range_of(address).ok_or(codes::INVALID_VALUE)?;
        if !matches!(range.origin, Origin::Allocated(_)) {
            return Err(codes::INVALID_VALUE);
        }
        let name = range.memory.allocation.name();
        let mut bytes = [0; 64];
        bytes.get_mut(..name.len()).ok_or(codes::INVALID_VALUE)?.copy_from_slice(name.as_bytes());
        handle.set(IpcHandle(bytes))
    }

    Context fn cuIpcOpenMemHandle_v2(call, address: Out<u64>, handle: IpcHandle, flags: c_uint) {
        let name = String::from_utf8_lossy(&handle.0).trim_end_matches('\0').to_owned();
        let allocation = Allocation::of_name(&name).ok_or(codes::INVALID_VALUE)?;
        if flags != LAZY_PEER_ACCESS {
            return Err(codes::INVALID_VALUE);
        }
        if allocation.creator == std::process::id() {
            return Err(codes::INVALID_CONTEXT);
        }
        let opened = call.driver.space.write().open(call.driver, call.device()?, &name)?;
        address.set(opened)
    }

    Context fn cuIpcCloseMemHandle(call, address: u64) {
        call.driver.streams.drain(call.device()?, false);
        let is_opened = |origin| matches!(origin, Origin::Opened(_));
        call.driver.space.write().free(address, is_opened, &call.driver.usage)
    }
}
