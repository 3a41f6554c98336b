//! Memory of a card without a context: made, exported and kept, never mapped. A process that does no more than this
//! has nothing that an error of the card could take away.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::os::fd::AsFd;

use longshore_memory::OwnedSegment;
use longshore_types::{Code, Error, Result, format_bytes};
use parking_lot::Mutex;

use super::driver::driver;
use super::error::{CudaError, ErrorClass};
use super::memory::{PhysicalMemory, granularity_bytes};
use super::probe;
use crate::keeper::MemoryKeeper;

/// Memory comes in segments of this size, or larger ones where that would be more than [`SEGMENTS_GOAL`].
const SEGMENT_BYTES: u64 = 1 << 30;
/// The largest segment.
const SEGMENT_BYTES_MAX: u64 = 4 << 30;
/// All descriptors of so many segments travel in one message.
const SEGMENTS_GOAL: u64 = 64;

/// Memory of one card, as descriptors for other processes.
pub struct DeviceMemory {
    segments: Vec<OwnedSegment>,
    size_bytes: u64,
    /// Kept beside the descriptors: whether those alone keep memory alive is not written down.
    _handles: Vec<PhysicalMemory>,
}

impl DeviceMemory {
    /// Makes `size_bytes`, rounded up to what the card gives.
    ///
    /// # Errors
    /// [`Code::Exhausted`] when the card has no room, [`Code::Unsupported`] when there is no driver or no such card;
    /// otherwise [`Code::Unavailable`] or [`Code::Internal`] with the driver's error.
    pub fn create(device_uuid: &str, size_bytes: u64) -> Result<DeviceMemory> {
        let driver = driver()?;
        let device = probe::find(driver, device_uuid)?;
        let failed = |error: CudaError| about(error, device_uuid, size_bytes);
        let granularity = granularity_bytes(driver, device).map_err(failed)?;
        let lens = segment_lens(size_bytes, granularity).ok_or_else(|| {
            let message = format!("{device_uuid}: {size_bytes} bytes are more than any card has");
            Error::new(Code::Exhausted, message)
        })?;
        let mut memory = DeviceMemory { segments: Vec::new(), size_bytes: 0, _handles: Vec::new() };
        for len_bytes in lens {
            let handle = PhysicalMemory::create(driver, device, len_bytes).map_err(failed)?;
            let fd = handle.export().map_err(failed)?;
            memory._handles.push(handle);
            memory.segments.push(OwnedSegment { fd, len_bytes });
            memory.size_bytes += len_bytes;
        }
        Ok(memory)
    }

    /// The memory, in order.
    pub fn segments(&self) -> &[OwnedSegment] {
        &self.segments
    }

    /// All of it: what was asked for, rounded up.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Descriptors of the same memory for somebody else.
    ///
    /// # Errors
    /// [`Code::Exhausted`] when the process may have no more descriptors.
    pub fn duplicate(&self) -> Result<Vec<OwnedSegment>> {
        let duplicate = |segment: &OwnedSegment| {
            let fd = segment.fd.as_fd().try_clone_to_owned().map_err(|error| {
                let message = format!("cannot duplicate a descriptor of GPU memory: {error}; raise ulimit -n");
                Error::new(Code::Exhausted, message).with_source(error)
            })?;
            Ok(OwnedSegment { fd, len_bytes: segment.len_bytes })
        };
        self.segments.iter().map(duplicate).collect()
    }
}

fn about(error: CudaError, device_uuid: &str, size_bytes: u64) -> Error {
    match error.class() {
        ErrorClass::OutOfMemory => error.about(format!("{device_uuid} has no {} left", format_bytes(size_bytes))),
        _ => error.about(device_uuid),
    }
}

/// The lengths of segments that make up `size_bytes`, each a multiple of `granularity`; `None` for absurd sizes.
fn segment_lens(size_bytes: u64, granularity: u64) -> Option<Vec<u64>> {
    let granularity = granularity.max(1);
    let total = size_bytes.checked_next_multiple_of(granularity).filter(|total| *total <= 1 << 50)?;
    let segment = total.div_ceil(SEGMENTS_GOAL).clamp(SEGMENT_BYTES, SEGMENT_BYTES_MAX).next_multiple_of(granularity);
    let whole = total / segment;
    let rest = Some(total % segment).filter(|rest| *rest > 0);
    Some(std::iter::repeat_n(segment, whole as usize).chain(rest).collect())
}

/// Keeps device memory in this very process: it is gone with it.
#[derive(Default)]
pub struct OwnMemory {
    kept: Mutex<HashMap<String, (String, DeviceMemory)>>,
}

impl OwnMemory {
    /// Keeps nothing yet.
    pub fn new() -> OwnMemory {
        OwnMemory::default()
    }
}

impl MemoryKeeper for OwnMemory {
    fn create(&self, label: &str, device_uuid: &str, size_bytes: u64) -> Result<Vec<OwnedSegment>> {
        let memory = DeviceMemory::create(device_uuid, size_bytes)?;
        let segments = memory.duplicate()?;
        match self.kept.lock().entry(label.into()) {
            Entry::Occupied(_) => Err(Error::new(Code::Internal, format!("there is GPU memory for {label} already"))),
            Entry::Vacant(entry) => {
                entry.insert((device_uuid.into(), memory));
                Ok(segments)
            }
        }
    }

    fn release(&self, label: &str) {
        let removed = self.kept.lock().remove(label);
        // Freed outside of the lock.
        drop(removed);
    }

    fn used_bytes(&self, device_uuid: &str) -> u64 {
        let kept = self.kept.lock();
        kept.values().filter(|(uuid, _)| uuid == device_uuid).map(|(_, memory)| memory.size_bytes).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRANULE: u64 = 2 << 20;

    #[test]
    fn segments_are_few_and_whole_granules() {
        let lens = |size| segment_lens(size, GRANULE).unwrap();
        assert!(lens(0).is_empty());
        assert_eq!(lens(1), [GRANULE]);
        assert_eq!(lens((1 << 30) + 1), [1 << 30, GRANULE]);
        assert_eq!(lens(64 << 30).len(), 64);
        for size in [(65 << 30) + 5, 140_000_000_000, 256 << 30] {
            let lens = lens(size);
            assert!(lens.len() <= 64 && lens.iter().all(|len| len % GRANULE == 0));
            assert!((size..size + GRANULE).contains(&lens.iter().sum()));
        }
        assert_eq!(lens(300 << 30).len(), 75);
        assert_eq!(segment_lens(u64::MAX, GRANULE), None);
        assert_eq!(segment_lens(1 << 60, GRANULE), None);
    }
}
