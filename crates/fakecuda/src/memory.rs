//! The address space of the driver in this process: what is reserved, mapped, and page-locked.

mod shareable;

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::sync::Arc;

use crate::codes::{self, Code};
use crate::driver::Driver;
use crate::folder::{Allocation, Kind};
use crate::host::PageLocked;
use crate::pages::{self, Access};
use crate::usage::UsageFile;

pub(crate) use shareable::GRANULE_BYTES;

/// `cuMemAlloc` takes whole ones of these.
const UNIT_BYTES: usize = 512;

/// Everything that has an address.
#[derive(Default)]
pub(crate) struct Space {
    /// Reserved ranges of `cuMemAddressReserve`: start and size.
    reservations: BTreeMap<u64, usize>,
    /// Ranges with memory behind them, by start.
    ranges: BTreeMap<u64, Range>,
    handles: HashMap<u64, Handle>,
    handles_made: u64,
    pub(crate) page_locked: PageLocked,
}

/// Device memory: lives as long as one of these in some process.
pub(crate) struct Physical {
    pub(crate) file: File,
    pub(crate) allocation: Allocation,
}

struct Handle {
    memory: Arc<Physical>,
    references: u32,
}

/// A range of addresses with memory behind it.
pub(crate) struct Range {
    pub(crate) size: usize,
    pub(crate) memory: Arc<Physical>,
    pub(crate) origin: Origin,
    /// What each device may do; those that are not there may do nothing.
    access: BTreeMap<usize, Access>,
}

/// Where a range comes from, which says how it goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    /// `cuMemMap`
    Mapped,
    /// `cuMemAlloc` in the context of this device
    Allocated(usize),
    /// `cuIpcOpenMemHandle` in the context of this device
    Opened(usize),
}

impl Range {
    fn allows(&self, device: usize, write: bool) -> bool {
        let access = match self.origin {
            // Peers reach it as well.
            Origin::Allocated(_) | Origin::Opened(_) => Access::ReadWrite,
            Origin::Mapped => self.access.get(&device).copied().unwrap_or(Access::None),
        };
        access >= if write { Access::ReadWrite } else { Access::Read }
    }
}

impl Space {
    /// Whether a device may read or write all of these addresses.
    pub(crate) fn reach(&self, device: usize, address: u64, len: usize, write: bool) -> Result<(), Code> {
        let end = address.checked_add(len as u64).ok_or(codes::ILLEGAL_ADDRESS)?;
        let mut at = address;
        while at < end {
            let (start, range) = self.range_of(at).ok_or(codes::ILLEGAL_ADDRESS)?;
            if !range.allows(device, write) {
                return Err(codes::ILLEGAL_ADDRESS);
            }
            at = start + range.size as u64;
        }
        Ok(())
    }

    /// Whether the driver knows these addresses at all: what it looks at before it accepts a copy.
    pub(crate) fn knows(&self, address: u64, len: usize) -> bool {
        let reserved = self.reservations.range(..=address).next_back();
        if reserved.is_some_and(|(start, size)| contains(*start, *size, address, len)) {
            return true;
        }
        self.range_of(address).is_some_and(|(start, range)| contains(start, range.size, address, len))
    }

    /// The range that an address lies in.
    pub(crate) fn range_of(&self, address: u64) -> Option<(u64, &Range)> {
        let (start, range) = self.ranges.range(..=address).next_back()?;
        (address < start + range.size as u64).then_some((*start, range))
    }

    /// What a device may do at an address.
    pub(crate) fn access(&self, device: usize, address: u64) -> Result<Access, Code> {
        let (_, range) = self.range_of(address).ok_or(codes::INVALID_VALUE)?;
        let write = range.allows(device, true);
        Ok(if write {
            Access::ReadWrite
        } else if range.allows(device, false) {
            Access::Read
        } else {
            Access::None
        })
    }

    /// `cuMemAlloc`
    pub(crate) fn allocate(&mut self, driver: &Driver, device: usize, size: usize) -> Result<u64, Code> {
        if size == 0 {
            return Err(codes::INVALID_VALUE);
        }
        let size = size.checked_next_multiple_of(UNIT_BYTES).ok_or(codes::OUT_OF_MEMORY)?;
        let memory = new_memory(driver, driver.physical(device), size, Kind::Plain)?;
        self.add_anywhere(size, memory, Origin::Allocated(device), &driver.usage)
    }

    /// `cuIpcOpenMemHandle`
    pub(crate) fn open(&mut self, driver: &Driver, device: usize, name: &str) -> Result<u64, Code> {
        let opened = driver.folder.open_memory(name).map_err(system)?;
        let (file, allocation) = opened.ok_or(codes::INVALID_VALUE)?;
        let size = usize::try_from(allocation.size_bytes).map_err(|_| codes::INVALID_VALUE)?;
        let memory = Physical { file, allocation };
        self.add_anywhere(size, memory, Origin::Opened(device), &driver.usage)
    }

    fn add_anywhere(&mut self, size: usize, memory: Physical, origin: Origin, usage: &UsageFile) -> Result<u64, Code> {
        let address = pages::map(size, &memory.file).map_err(|_| codes::OUT_OF_MEMORY)?;
        self.ranges.insert(address, Range { size, memory: Arc::new(memory), origin, access: BTreeMap::new() });
        self.note(usage);
        Ok(address)
    }

    /// `cuMemFree` and `cuIpcCloseMemHandle`: only whole ranges of that origin go.
    pub(crate) fn free(
        &mut self,
        address: u64,
        matches: impl Fn(Origin) -> bool,
        usage: &UsageFile,
    ) -> Result<(), Code> {
        let range = self.ranges.get(&address).filter(|range| matches(range.origin)).ok_or(codes::INVALID_VALUE)?;
        pages::release(address, range.size).map_err(system)?;
        self.ranges.remove(&address);
        self.note(usage);
        Ok(())
    }

    /// All that a primary context had goes with it.
    pub(crate) fn close_context(&mut self, device: usize, usage: &UsageFile) {
        self.ranges.retain(|address, range| match range.origin {
            Origin::Allocated(of) | Origin::Opened(of) if of == device => {
                // A range that stays mapped is no harm to a process whose context is gone.
                let _ = pages::release(*address, range.size);
                false
            }
            _ => true,
        });
        self.page_locked.close_context(device);
        self.note(usage);
    }

    /// Writes down what there is.
    pub(crate) fn note(&self, usage: &UsageFile) {
        let mapped_bytes: usize = self.ranges.values().map(|range| range.size).sum();
        let (locked, locked_bytes) = self.page_locked.count();
        let counts =
            [self.handles.len(), self.ranges.len(), mapped_bytes, self.reservations.len(), locked, locked_bytes];
        usage.memory(counts.map(|count| count as u64));
    }
}

fn contains(start: u64, size: usize, address: u64, len: usize) -> bool {
    let end = address.checked_add(len as u64);
    start <= address && end.is_some_and(|end| end <= start + size as u64)
}

/// New device memory, when the device has it.
fn new_memory(driver: &Driver, device: u32, size: usize, kind: Kind) -> Result<Physical, Code> {
    let made = driver.folder.create(device, size as u64, kind, driver.config.memory_bytes).map_err(system)?;
    let (file, allocation) = made.ok_or(codes::OUT_OF_MEMORY)?;
    Ok(Physical { file, allocation })
}

/// What a call answers when the system refuses something; the reason goes to the error output.
pub(crate) fn system(error: std::io::Error) -> Code {
    eprintln!("fake CUDA driver: {error}");
    codes::OPERATING_SYSTEM
}
