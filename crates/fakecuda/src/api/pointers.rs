//! What an address is.

use std::ffi::{c_int, c_uint, c_void};

use super::entry_points;
use super::types::{In, OutAny};
use crate::codes::{self, Code};
use crate::driver::Call;

/// `CU_MEMORYTYPE_HOST`: what device memory of this driver says it is, because it can be read as such.
const HOST: c_uint = 1;

entry_points! {
    Sane fn cuPointerGetAttribute(call, data: OutAny, attribute: c_uint, address: u64) {
        answer(call, data, attribute, address)
    }

    Sane fn cuPointerGetAttributes(call, count: c_uint, attributes: In<c_uint>, data: In<*mut c_void>, address: u64) {
        for index in 0..count as usize {
            // Of an address that is nobody's the driver says nothing here, without an error.
            match answer(call, OutAny(data.at(index)?), attributes.at(index)?, address) {
                Err(code) if find(call, address).is_some() => return Err(code),
                _ => {}
            }
        }
        Ok(())
    }
}

struct Found {
    start: u64,
    size: usize,
    /// The device whose memory it is, in this process.
    device: Option<usize>,
}

fn find(call: &Call, address: u64) -> Option<Found> {
    let space = call.driver.space.read();
    if let Some((start, range)) = space.range_of(address) {
        let physical = range.memory.allocation.device;
        let device = call.driver.config.visible.iter().position(|device| *device == physical);
        return Some(Found { start, size: range.size, device });
    }
    let (start, size) = space.page_locked.range_of(address)?;
    Some(Found { start, size, device: None })
}

fn answer(call: &Call, data: OutAny, attribute: c_uint, address: u64) -> Result<(), Code> {
    let found = find(call, address).ok_or(codes::INVALID_VALUE)?;
    match attribute {
        // CU_POINTER_ATTRIBUTE_MEMORY_TYPE
        2 => data.set(HOST),
        // DEVICE_POINTER, HOST_POINTER
        3 | 4 => data.set(address),
        // IS_MANAGED, IS_LEGACY_CUDA_IPC_CAPABLE
        8 | 10 => data.set(0_u32),
        // DEVICE_ORDINAL
        9 => data.set(found.device.map_or(0, |device| device as c_int)),
        // RANGE_START_ADDR, RANGE_SIZE
        11 => data.set(found.start),
        12 => data.set(found.size),
        // MAPPED
        13 => data.set(1_u32),
        _ => Err(codes::NOT_SUPPORTED),
    }
}
