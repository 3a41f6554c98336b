//! The driver itself, and its devices.

use std::ffi::{c_char, c_int, c_uint};

use super::entry_points;
use super::types::{Out, set_text};
use crate::codes::{self, Code};
use crate::config;

/// CUDA 13.0
const VERSION: c_int = 13_000;
/// On a bus that no machine has, so that nobody takes a real device for this one.
const PCI_DOMAIN: c_int = 0xfa6e;
const PCI_BUS_FROM: u32 = 0x10;

entry_points! {
    Start fn cuInit(call, flags: c_uint) {
        if flags != 0 {
            return Err(codes::INVALID_VALUE);
        }
        call.driver.initialise()
    }

    Nothing fn cuDriverGetVersion(call, version: Out<c_int>) {
        let _ = call;
        version.set(VERSION)
    }

    Init fn cuDeviceGetCount(call, count: Out<c_int>) {
        count.set(call.driver.config.visible.len() as c_int)
    }

    Init fn cuDeviceGet(call, device: Out<c_int>, ordinal: c_int) {
        call.driver.device(ordinal)?;
        device.set(ordinal)
    }

    Init fn cuDeviceGetName(call, name: *mut c_char, len: c_int, device: c_int) {
        call.driver.device(device)?;
        set_text(name, len, "Longshore Fake GPU")
    }

    Init fn cuDeviceGetUuid(call, uuid: Out<[u8; 16]>, device: c_int) {
        uuid.set(config::uuid(call.driver.physical(call.driver.device(device)?)))
    }

    Init fn cuDeviceGetUuid_v2(call, uuid: Out<[u8; 16]>, device: c_int) {
        uuid.set(config::uuid(call.driver.physical(call.driver.device(device)?)))
    }

    Init fn cuDeviceTotalMem_v2(call, bytes: Out<usize>, device: c_int) {
        call.driver.device(device)?;
        bytes.set(call.driver.config.memory_bytes as usize)
    }

    Init fn cuDeviceGetAttribute(call, value: Out<c_int>, attribute: c_uint, device: c_int) {
        let device = call.driver.device(device)?;
        value.set(attribute_of(attribute, call.driver.physical(device))?)
    }

    Init fn cuDeviceGetPCIBusId(call, text: *mut c_char, len: c_int, device: c_int) {
        let device = call.driver.physical(call.driver.device(device)?);
        set_text(text, len, &format!("{PCI_DOMAIN:04X}:{:02X}:00.0", PCI_BUS_FROM + device))
    }

    Init fn cuDeviceCanAccessPeer(call, can: Out<c_int>, device: c_int, peer: c_int) {
        let (device, peer) = (call.driver.device(device)?, call.driver.device(peer)?);
        can.set(c_int::from(device != peer))
    }
}

/// What a Hopper card on the first NUMA node says.
fn attribute_of(attribute: c_uint, device: u32) -> Result<c_int, Code> {
    Ok(match attribute {
        // CU_DEVICE_ATTRIBUTE_MAX_PITCH
        11 => c_int::MAX,
        // GPU_OVERLAP, CAN_MAP_HOST_MEMORY, UNIFIED_ADDRESSING
        15 | 19 | 41 => 1,
        // MULTIPROCESSOR_COUNT
        16 => 132,
        // ECC_ENABLED
        32 => 1,
        // PCI_BUS_ID, PCI_DEVICE_ID, PCI_DOMAIN_ID
        33 => (PCI_BUS_FROM + device) as c_int,
        34 => 0,
        50 => PCI_DOMAIN,
        // ASYNC_ENGINE_COUNT
        40 => 3,
        // COMPUTE_CAPABILITY_MAJOR, COMPUTE_CAPABILITY_MINOR
        75 => 9,
        76 => 0,
        // CAN_USE_HOST_POINTER_FOR_REGISTERED_MEM, HOST_REGISTER_SUPPORTED
        91 | 99 => 1,
        // VIRTUAL_ADDRESS_MANAGEMENT_SUPPORTED, HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED
        102 | 103 => 1,
        // READ_ONLY_HOST_REGISTER_SUPPORTED
        113 => 1,
        // HOST_NUMA_ID
        134 => 0,
        // NUMA_ID: its memory is no node of the host.
        131 => -1,
        0 => return Err(codes::INVALID_VALUE),
        _ => 0,
    })
}
