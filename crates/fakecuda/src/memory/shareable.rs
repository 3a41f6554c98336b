//! Virtual memory management: handles that cross processes, reserved addresses, and what is mapped where.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use super::{Handle, Origin, Physical, Range, Space, contains, new_memory, system};
use crate::codes::{self, Code};
use crate::driver::Driver;
use crate::folder::{Allocation, Kind};
use crate::pages::{self, Access};
use crate::usage::UsageFile;

/// Sizes and addresses are multiples of it.
pub(crate) const GRANULE_BYTES: usize = 2 << 20;
/// Handles are numbers from here on, so that other numbers are none.
const HANDLES_FROM: u64 = 0x4a00_0000;

impl Space {
    /// `cuMemCreate`
    pub(crate) fn create(&mut self, driver: &Driver, device: u32, size: usize, kind: Kind) -> Result<u64, Code> {
        if !is_whole(size) {
            return Err(codes::INVALID_VALUE);
        }
        let memory = new_memory(driver, device, size, kind)?;
        Ok(self.add_handle(Arc::new(memory), &driver.usage))
    }

    fn add_handle(&mut self, memory: Arc<Physical>, usage: &UsageFile) -> u64 {
        self.handles_made += 1;
        let handle = HANDLES_FROM + self.handles_made;
        self.handles.insert(handle, Handle { memory, references: 1 });
        self.note(usage);
        handle
    }

    /// `cuMemRelease`: what is mapped of it stays.
    pub(crate) fn release(&mut self, handle: u64, usage: &UsageFile) -> Result<(), Code> {
        let entry = self.handles.get_mut(&handle).ok_or(codes::INVALID_VALUE)?;
        entry.references -= 1;
        if entry.references == 0 {
            self.handles.remove(&handle);
        }
        self.note(usage);
        Ok(())
    }

    /// What a handle stands for.
    pub(crate) fn memory_of(&self, handle: u64) -> Result<&Physical, Code> {
        self.handles.get(&handle).map(|handle| &*handle.memory).ok_or(codes::INVALID_VALUE)
    }

    /// `cuMemExportToShareableHandle`: another descriptor of the same open file, which holds the memory like a handle.
    pub(crate) fn export(&self, handle: u64) -> Result<OwnedFd, Code> {
        let memory = self.memory_of(handle)?;
        if memory.allocation.kind != Kind::Shareable {
            return Err(codes::INVALID_VALUE);
        }
        memory.file.as_fd().try_clone_to_owned().map_err(system)
    }

    /// `cuMemImportFromShareableHandle`: the descriptor stays the caller's.
    pub(crate) fn import(&mut self, driver: &Driver, fd: BorrowedFd<'_>) -> Result<u64, Code> {
        let file: File = fd.try_clone_to_owned().map_err(|_| codes::INVALID_VALUE)?.into();
        let allocation = Allocation::of_file(&file).ok_or(codes::INVALID_VALUE)?;
        if !driver.config.visible.contains(&allocation.device) {
            return Err(codes::INVALID_DEVICE);
        }
        Ok(self.add_handle(Arc::new(Physical { file, allocation }), &driver.usage))
    }

    /// `cuMemRetainAllocationHandle`
    pub(crate) fn retain(&mut self, address: u64, usage: &UsageFile) -> Result<u64, Code> {
        let (_, range) = self.range_of(address).ok_or(codes::INVALID_VALUE)?;
        if range.origin != Origin::Mapped {
            return Err(codes::INVALID_VALUE);
        }
        let memory = Arc::clone(&range.memory);
        let known = self.handles.iter_mut().find(|(_, handle)| Arc::ptr_eq(&handle.memory, &memory));
        match known {
            Some((number, handle)) => {
                handle.references += 1;
                Ok(*number)
            }
            None => Ok(self.add_handle(memory, usage)),
        }
    }

    /// `cuMemAddressReserve`
    pub(crate) fn reserve(&mut self, size: usize, alignment: usize, usage: &UsageFile) -> Result<u64, Code> {
        if !is_whole(size) || (alignment != 0 && !alignment.is_power_of_two()) {
            return Err(codes::INVALID_VALUE);
        }
        let address = pages::reserve(size, alignment.max(GRANULE_BYTES)).map_err(|_| codes::OUT_OF_MEMORY)?;
        self.reservations.insert(address, size);
        self.note(usage);
        Ok(address)
    }

    /// `cuMemAddressFree`: whole reservations in which nothing is mapped any more.
    pub(crate) fn unreserve(&mut self, address: u64, size: usize, usage: &UsageFile) -> Result<(), Code> {
        let is_reserved = self.reservations.get(&address) == Some(&size);
        if !is_reserved || self.ranges.range(address..address + size as u64).next().is_some() {
            return Err(codes::INVALID_VALUE);
        }
        pages::release(address, size).map_err(system)?;
        self.reservations.remove(&address);
        self.note(usage);
        Ok(())
    }

    /// `cuMemMap`: the start of a handle's memory into reserved addresses. Nobody may touch it yet.
    pub(crate) fn map(&mut self, address: u64, size: usize, handle: u64, usage: &UsageFile) -> Result<(), Code> {
        let memory = Arc::clone(&self.handles.get(&handle).ok_or(codes::INVALID_VALUE)?.memory);
        let reserved = self.reservations.range(..=address).next_back();
        let is_reserved = reserved.is_some_and(|(start, reserved)| contains(*start, *reserved, address, size));
        let fits = is_whole(size) && is_granular(address) && size as u64 <= memory.allocation.size_bytes;
        if !is_reserved || !fits || self.overlaps(address, size) {
            return Err(codes::INVALID_VALUE);
        }
        pages::map_at(address, size, &memory.file).map_err(system)?;
        self.ranges.insert(address, Range { size, memory, origin: Origin::Mapped, access: BTreeMap::new() });
        self.note(usage);
        Ok(())
    }

    fn overlaps(&self, address: u64, size: usize) -> bool {
        let before = self.ranges.range(..address + size as u64).next_back();
        before.is_some_and(|(start, range)| start + range.size as u64 > address)
    }

    /// The starts of the mappings that fill these addresses exactly.
    fn whole_mappings(&self, address: u64, size: usize) -> Result<Vec<u64>, Code> {
        let end = address.checked_add(size as u64).ok_or(codes::INVALID_VALUE)?;
        let mut starts = Vec::new();
        let mut at = address;
        while at < end {
            let range = self.ranges.get(&at).filter(|range| range.origin == Origin::Mapped);
            starts.push(at);
            at += range.ok_or(codes::INVALID_VALUE)?.size as u64;
        }
        if at == end && !starts.is_empty() { Ok(starts) } else { Err(codes::INVALID_VALUE) }
    }

    /// `cuMemUnmap`: whole mappings.
    pub(crate) fn unmap(&mut self, address: u64, size: usize, usage: &UsageFile) -> Result<(), Code> {
        for start in self.whole_mappings(address, size)? {
            let size = self.ranges[&start].size;
            pages::unmap_at(start, size).map_err(system)?;
            self.ranges.remove(&start);
        }
        self.note(usage);
        Ok(())
    }

    /// `cuMemSetAccess`, for one device: whole mappings. CPUs may do what any device may.
    pub(crate) fn set_access(&mut self, address: u64, size: usize, device: usize, access: Access) -> Result<(), Code> {
        for start in self.whole_mappings(address, size)? {
            let Some(range) = self.ranges.get_mut(&start) else { continue };
            range.access.insert(device, access);
            let most = range.access.values().copied().max().unwrap_or(Access::None);
            pages::protect(start, range.size, most).map_err(system)?;
        }
        Ok(())
    }
}

fn is_whole(size: usize) -> bool {
    size != 0 && size.is_multiple_of(GRANULE_BYTES)
}

fn is_granular(address: u64) -> bool {
    address.is_multiple_of(GRANULE_BYTES as u64)
}
