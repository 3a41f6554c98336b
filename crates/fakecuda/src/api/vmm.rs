//! Virtual memory management. Memory is made, exported and released without a context, as the real driver allows.

use std::ffi::{c_int, c_uint, c_ulonglong};
use std::os::fd::{BorrowedFd, IntoRawFd};

use super::entry_points;
use super::types::{
    ALLOCATION_PINNED, AccessDescription, AllocationProperties, HANDLE_POSIX_FD, In, LOCATION_DEVICE, Location, Out,
};
use crate::codes::{self, Code};
use crate::driver::Driver;
use crate::folder::Kind;
use crate::memory::GRANULE_BYTES;
use crate::pages::Access;

entry_points! {
    Init fn cuMemGetAllocationGranularity(call, bytes: Out<usize>, of: In<AllocationProperties>, option: c_uint) {
        device_of(call.driver, &of.get()?)?;
        if option > 1 {
            return Err(codes::INVALID_VALUE);
        }
        bytes.set(GRANULE_BYTES)
    }

    Sane fn cuMemCreate(call, handle: Out<u64>, bytes: usize, of: In<AllocationProperties>, flags: c_ulonglong) {
        let of = of.get()?;
        let device = device_of(call.driver, &of)?;
        let kind = match of.handle_types {
            0 => Kind::Private,
            HANDLE_POSIX_FD => Kind::Shareable,
            _ => return Err(codes::NOT_SUPPORTED),
        };
        if flags != 0 {
            return Err(codes::INVALID_VALUE);
        }
        let created = call.driver.space.write().create(call.driver, call.driver.physical(device), bytes, kind)?;
        handle.set(created)
    }

    Sane fn cuMemRelease(call, handle: u64) {
        call.driver.space.write().release(handle, &call.driver.usage)
    }

    Sane fn cuMemAddressReserve(
        call, address: Out<u64>, bytes: usize, alignment: usize, wanted: u64, flags: c_ulonglong,
    ) {
        let _ = wanted;
        if flags != 0 {
            return Err(codes::INVALID_VALUE);
        }
        let reserved = call.driver.space.write().reserve(bytes, alignment, &call.driver.usage)?;
        address.set(reserved)
    }

    Sane fn cuMemAddressFree(call, address: u64, bytes: usize) {
        call.driver.space.write().unreserve(address, bytes, &call.driver.usage)
    }

    Context fn cuMemMap(call, address: u64, bytes: usize, offset: usize, handle: u64, flags: c_ulonglong) {
        if offset != 0 || flags != 0 {
            return Err(codes::INVALID_VALUE);
        }
        call.driver.space.write().map(address, bytes, handle, &call.driver.usage)
    }

    Sane fn cuMemUnmap(call, address: u64, bytes: usize) {
        call.driver.space.write().unmap(address, bytes, &call.driver.usage)
    }

    Context fn cuMemSetAccess(call, address: u64, bytes: usize, wanted: In<AccessDescription>, count: usize) {
        if count == 0 || count > call.driver.config.visible.len() {
            return Err(codes::INVALID_VALUE);
        }
        for index in 0..count {
            let wanted = wanted.at(index)?;
            let access = match wanted.flags {
                0 => Access::None,
                1 => Access::Read,
                3 => Access::ReadWrite,
                _ => return Err(codes::INVALID_VALUE),
            };
            let device = device_at(call.driver, wanted.location)?;
            call.driver.space.write().set_access(address, bytes, device, access)?;
        }
        Ok(())
    }

    Sane fn cuMemGetAccess(call, flags: Out<c_ulonglong>, location: In<Location>, address: u64) {
        let device = device_at(call.driver, location.get()?)?;
        let access = call.driver.space.read().access(device, address)?;
        flags.set(match access {
            Access::None => 0,
            Access::Read => 1,
            Access::ReadWrite => 3,
        })
    }

    Sane fn cuMemExportToShareableHandle(
        call, shareable: Out<c_int>, handle: u64, kind: c_uint, flags: c_ulonglong,
    ) {
        if shareable.0.is_null() || flags != 0 {
            return Err(codes::INVALID_VALUE);
        }
        if kind != HANDLE_POSIX_FD {
            return Err(codes::NOT_SUPPORTED);
        }
        let fd = call.driver.space.read().export(handle)?;
        // The descriptor is the caller's from here on.
        shareable.set(fd.into_raw_fd())
    }

    Context fn cuMemImportFromShareableHandle(call, handle: Out<u64>, shareable: usize, kind: c_uint) {
        if kind != HANDLE_POSIX_FD {
            return Err(codes::NOT_SUPPORTED);
        }
        let fd = c_int::try_from(shareable).ok().filter(|fd| *fd >= 0).ok_or(codes::INVALID_VALUE)?;
        // SAFETY: not -1; the caller passes a descriptor that is open during the call. One that is not is told by the kernel.
        let fd = unsafe { BorrowedFd::borrow_raw(fd) };
        let imported = call.driver.space.write().import(call.driver, fd)?;
        handle.set(imported)
    }

    Sane fn cuMemRetainAllocationHandle(call, handle: Out<u64>, address: u64) {
        let retained = call.driver.space.write().retain(address, &call.driver.usage)?;
        handle.set(retained)
    }

    Sane fn cuMemGetAllocationPropertiesFromHandle(call, properties: Out<AllocationProperties>, handle: u64) {
        let space = call.driver.space.read();
        let allocation = &space.memory_of(handle)?.allocation;
        let ordinal = call.driver.config.visible.iter().position(|device| *device == allocation.device);
        properties.set(AllocationProperties {
            kind: ALLOCATION_PINNED,
            handle_types: if allocation.kind == Kind::Shareable { HANDLE_POSIX_FD } else { 0 },
            location: Location { kind: LOCATION_DEVICE, id: ordinal.ok_or(codes::INVALID_DEVICE)? as c_int },
            win32_meta_data: 0,
            compression: 0,
            rdma_capable: 0,
            usage: 0,
            reserved: [0; 4],
        })
    }
}

fn device_of(driver: &Driver, of: &AllocationProperties) -> Result<usize, Code> {
    if of.kind != ALLOCATION_PINNED {
        return Err(codes::INVALID_VALUE);
    }
    device_at(driver, of.location)
}

fn device_at(driver: &Driver, location: Location) -> Result<usize, Code> {
    if location.kind != LOCATION_DEVICE {
        return Err(codes::NOT_SUPPORTED);
    }
    driver.device(location.id)
}
