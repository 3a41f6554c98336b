//! Host memory that is page-locked: registered or allocated.

use std::collections::BTreeMap;

use crate::codes::{self, Code};
use crate::memory::system;
use crate::pages;

/// `CU_MEMHOSTREGISTER_READ_ONLY`
const READ_ONLY: u32 = 8;
/// `CU_MEMHOSTREGISTER_PORTABLE | DEVICEMAP | IOMEMORY | READ_ONLY`
const FLAGS: u32 = 15;
/// Recent drivers refuse a single registration from this size on.
const REGISTER_BYTES_MAX: usize = 512 << 30;
/// Where files lie that are memory; shared mappings of others cannot be pinned for long.
const MEMORY_FILES: [&str; 5] = ["/memfd:", "/longshore:", "/dev/shm/", "/dev/zero", "/anon_hugepage"];

/// All page-locked ranges of this process, by start.
#[derive(Default)]
pub(crate) struct PageLocked {
    ranges: BTreeMap<u64, Locked>,
}

struct Locked {
    size: usize,
    device: usize,
    allocated: bool,
}

impl PageLocked {
    /// `cuMemHostRegister`
    pub(crate) fn register(&mut self, device: usize, address: u64, size: usize, flags: u32) -> Result<(), Code> {
        let end = address.checked_add(size as u64).ok_or(codes::INVALID_VALUE)?;
        if address == 0 || size == 0 || size >= REGISTER_BYTES_MAX || flags & !FLAGS != 0 {
            return Err(codes::INVALID_VALUE);
        }
        let before = self.ranges.range(..end).next_back();
        if before.is_some_and(|(start, locked)| start + locked.size as u64 > address) {
            return Err(codes::HOST_MEMORY_ALREADY_REGISTERED);
        }
        can_be_pinned(address, end, flags & READ_ONLY == 0)?;
        self.ranges.insert(address, Locked { size, device, allocated: false });
        Ok(())
    }

    /// `cuMemHostUnregister`: the start of a registered range.
    pub(crate) fn unregister(&mut self, address: u64) -> Result<(), Code> {
        match self.ranges.get(&address) {
            None => Err(codes::HOST_MEMORY_NOT_REGISTERED),
            Some(locked) if locked.allocated => Err(codes::INVALID_VALUE),
            Some(_) => {
                self.ranges.remove(&address);
                Ok(())
            }
        }
    }

    /// `cuMemHostAlloc`
    pub(crate) fn allocate(&mut self, device: usize, size: usize) -> Result<u64, Code> {
        if size == 0 {
            return Err(codes::INVALID_VALUE);
        }
        let address = pages::host(size).map_err(|_| codes::OUT_OF_MEMORY)?;
        self.ranges.insert(address, Locked { size, device, allocated: true });
        Ok(address)
    }

    /// `cuMemFreeHost`
    pub(crate) fn free(&mut self, address: u64) -> Result<(), Code> {
        let locked = self.ranges.get(&address).filter(|locked| locked.allocated).ok_or(codes::INVALID_VALUE)?;
        pages::release(address, locked.size).map_err(system)?;
        self.ranges.remove(&address);
        Ok(())
    }

    /// Whether a range is page-locked. One that begins so and ends elsewhere is refused, as the real driver does.
    pub(crate) fn covers(&self, address: u64, len: usize) -> Result<bool, Code> {
        let Some((start, locked)) = self.ranges.range(..=address).next_back() else { return Ok(false) };
        let locked_end = start + locked.size as u64;
        if address >= locked_end {
            return Ok(false);
        }
        if address.checked_add(len as u64).is_none_or(|end| end > locked_end) {
            return Err(codes::INVALID_VALUE);
        }
        Ok(true)
    }

    /// The range that an address lies in: start and size.
    pub(crate) fn range_of(&self, address: u64) -> Option<(u64, usize)> {
        let (start, locked) = self.ranges.range(..=address).next_back()?;
        (address < start + locked.size as u64).then_some((*start, locked.size))
    }

    /// All of a context goes with it.
    pub(crate) fn close_context(&mut self, device: usize) {
        self.ranges.retain(|address, locked| {
            if locked.device == device && locked.allocated {
                // Memory that stays mapped is no harm to a process whose context is gone.
                let _ = pages::release(*address, locked.size);
            }
            locked.device != device
        });
    }

    /// Ranges and their bytes.
    pub(crate) fn count(&self) -> (usize, usize) {
        (self.ranges.len(), self.ranges.values().map(|locked| locked.size).sum())
    }
}

/// Whether all of these addresses are mapped, as a card would have to pin them.
fn can_be_pinned(address: u64, end: u64, write: bool) -> Result<(), Code> {
    let maps = std::fs::read_to_string("/proc/self/maps").map_err(system)?;
    let mut at = address;
    for line in maps.lines() {
        let Some(mapping) = Mapping::of_line(line) else { continue };
        if at >= end || mapping.end <= at {
            continue;
        }
        if mapping.start > at || !mapping.readable || (write && !mapping.writable) || mapping.is_shared_file() {
            return Err(codes::INVALID_VALUE);
        }
        at = mapping.end;
    }
    if at >= end { Ok(()) } else { Err(codes::INVALID_VALUE) }
}

/// A line of `/proc/self/maps`.
#[derive(Debug, PartialEq, Eq)]
struct Mapping<'a> {
    start: u64,
    end: u64,
    readable: bool,
    writable: bool,
    shared: bool,
    path: &'a str,
}

impl<'a> Mapping<'a> {
    fn of_line(line: &'a str) -> Option<Mapping<'a>> {
        let mut words = line.splitn(6, ' ');
        let (start, end) = words.next()?.split_once('-')?;
        let mode = words.next()?.as_bytes();
        let hex = |text: &str| u64::from_str_radix(text, 16).ok();
        Some(Mapping {
            start: hex(start)?,
            end: hex(end)?,
            readable: mode.first() == Some(&b'r'),
            writable: mode.get(1) == Some(&b'w'),
            shared: mode.get(3) == Some(&b's'),
            path: words.nth(3).unwrap_or_default().trim_start(),
        })
    }

    fn is_shared_file(&self) -> bool {
        let is_memory = MEMORY_FILES.iter().any(|start| self.path.starts_with(start));
        self.shared && self.path.starts_with('/') && !is_memory
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_maps_are_read() {
        let line = "7f01-7f02 rw-s 00000000 00:01 12         /memfd:longshore (deleted)";
        let mapping = Mapping::of_line(line).unwrap();
        assert_eq!((mapping.start, mapping.end, mapping.writable, mapping.shared), (0x7f01, 0x7f02, true, true));
        assert!(!mapping.is_shared_file(), "{mapping:?}");
        assert!(Mapping::of_line("1-2 r--s 0 fe:01 12 /srv/model").unwrap().is_shared_file());
        assert!(!Mapping::of_line("1-2 rw-p 0 00:00 0").unwrap().is_shared_file());
    }
}
