//! The traits a backend implements.

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use longshore_memory::Landing;
use longshore_types::Result;

use crate::id::DeviceId;

/// A device and how full it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Its name in requests.
    pub id: DeviceId,
    /// The same in every process of this machine, whatever the ordinals there.
    pub uuid: String,
    /// For people.
    pub name: String,
    /// Bytes that regions may take in all.
    pub capacity_bytes: u64,
    /// Bytes of it that are taken.
    pub used_bytes: u64,
}

/// Somewhere a model can live. Methods may block: call them off the async runtime.
pub trait Device: Send + Sync {
    /// What it is and how full it is now.
    fn info(&self) -> DeviceInfo;

    /// Tensors are placed at multiples of this many bytes.
    fn alignment_bytes(&self) -> u64;

    /// Sets memory for a region aside. `label` shows in the system's tools (`/proc/<pid>/maps`). The contents of
    /// bytes that are never landed are zero.
    ///
    /// # Errors
    /// `Exhausted` when it does not fit now: evict something and ask again.
    fn reserve(&self, label: &str, size_bytes: u64) -> Result<Box<dyn RegionBuilder>>;
}

/// Where a part of an incoming run of bytes goes. A list of parts is in the order of the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// To this place in the region.
    Place {
        /// Offset in the region.
        offset_bytes: u64,
        /// Length of the part.
        len_bytes: u64,
    },
    /// Nowhere; the bytes only come along.
    Discard {
        /// Length of the part.
        len_bytes: u64,
    },
}

impl Part {
    /// Bytes of the run this part takes.
    pub fn len_bytes(&self) -> u64 {
        match *self {
            Part::Place { len_bytes, .. } | Part::Discard { len_bytes } => len_bytes,
        }
    }
}

/// A region that is being filled, by many threads at once. Dropping it frees the memory (after uploads in flight).
pub trait RegionBuilder: Send + Sync {
    /// Memory for one run of bytes. May wait for a staging buffer. The destinations are exclusive to this landing while
    /// it lives; after a failed fetch, drop it and ask again.
    ///
    /// # Errors
    /// `InvalidArgument` when a part is not within the region; `Internal` when a destination overlaps another one of
    /// this landing or of one that is still alive; `Exhausted` when no staging buffer became free in time.
    fn landing(&self, parts: &[Part]) -> Result<Landing>;

    /// The landing's bytes are complete and verified: bring them to the device. Returns at once where that takes time;
    /// a failure then shows here or in [`RegionBuilder::finish`].
    ///
    /// # Errors
    /// `InvalidArgument` when the landing is not of this region; `Internal` when the device failed.
    fn submit(&self, landing: Landing) -> Result<()>;

    /// Waits until every submitted byte is there, then makes the region read-only and shareable.
    ///
    /// # Errors
    /// `Internal` when landings are still alive, or the device failed.
    fn finish(self: Box<Self>) -> Result<Arc<dyn DeviceRegion>>;
}

/// A finished region: it never changes again. Its memory is freed with the last reference.
pub trait DeviceRegion: Send + Sync {
    /// Its length in bytes.
    fn size_bytes(&self) -> u64;

    /// The memory as descriptors, in order; together they make up the region.
    fn segments(&self) -> Vec<Segment<'_>>;

    /// The bytes, where the host can address them.
    fn host_bytes(&self) -> Option<&[u8]>;

    /// Copies the bytes from `offset_bytes` on into `out`.
    ///
    /// # Errors
    /// `InvalidArgument` when the range is not within the region; `Internal` when the device failed.
    fn read(&self, offset_bytes: u64, out: &mut [u8]) -> Result<()>;
}

/// A part of a region that one descriptor stands for.
#[derive(Debug, Clone, Copy)]
pub struct Segment<'a> {
    /// To be sent to the client, which can only map it for reading.
    pub fd: BorrowedFd<'a>,
    /// Bytes of the region behind it.
    pub len_bytes: u64,
}
