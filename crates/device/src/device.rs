//! The traits a backend implements.

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use longshore_memory::{Landing, OwnedSegment, PinnedChunk};
use longshore_types::{Code, Error, Result};

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
    /// Bytes that a new region could get now: less than the rest of the capacity when others use the device too.
    pub free_bytes: u64,
}

/// Somewhere a model can live. Methods may block: call them off the async runtime.
pub trait Device: Send + Sync {
    /// Its name in requests. Never waits.
    fn id(&self) -> DeviceId;

    /// The same in every process of this machine, whatever the ordinals there. Never waits.
    fn uuid(&self) -> &str;

    /// What it is and how full it is now. May ask the device.
    fn info(&self) -> DeviceInfo;

    /// Tensors are placed at multiples of this many bytes.
    fn alignment_bytes(&self) -> u64;

    /// Sets memory for a region aside. `label` shows in the system's tools (`/proc/<pid>/maps`). The contents of
    /// bytes that are never landed are zero.
    ///
    /// # Errors
    /// `Exhausted` when it does not fit now: evict something and ask again.
    fn reserve(&self, label: &str, size_bytes: u64) -> Result<Box<dyn RegionBuilder>>;

    /// Takes over a finished region whose memory outlived the process that filled it.
    ///
    /// # Errors
    /// `Corrupt` when the segments are not what this device makes or are shorter than `size_bytes`; `Exhausted` when
    /// they are more than the capacity left.
    fn adopt(&self, label: &str, segments: Vec<OwnedSegment>, size_bytes: u64) -> Result<Arc<dyn DeviceRegion>>;
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
    /// Equal pieces at equal distances, as a slice of a matrix by columns is: to consecutive places in the region.
    Rows {
        /// Offset of the first piece in the region.
        offset_bytes: u64,
        /// Length of each piece.
        row_bytes: u64,
        /// Bytes between two pieces, which only come along; none follow the last one.
        skip_bytes: u64,
        /// Number of pieces, at least one.
        rows: u64,
    },
    /// Nowhere; the bytes only come along.
    Discard {
        /// Length of the part.
        len_bytes: u64,
    },
}

impl Part {
    /// Bytes of the run this part takes; saturates for what no run can have.
    pub fn len_bytes(&self) -> u64 {
        match *self {
            Part::Place { len_bytes, .. } | Part::Discard { len_bytes } => len_bytes,
            Part::Rows { row_bytes, skip_bytes, rows, .. } => {
                let skipped = skip_bytes.saturating_mul(rows.saturating_sub(1));
                row_bytes.saturating_mul(rows).saturating_add(skipped)
            }
        }
    }

    /// Where its bytes go in the region, as offset and length; `None` for discarded ones.
    ///
    /// # Errors
    /// `InvalidArgument` for rows that are more than a region can have, or none.
    pub fn destination(&self) -> Result<Option<(u64, u64)>> {
        match *self {
            Part::Place { offset_bytes, len_bytes } => Ok(Some((offset_bytes, len_bytes))),
            Part::Discard { .. } => Ok(None),
            Part::Rows { offset_bytes, row_bytes, skip_bytes, rows } => {
                let len_bytes = row_bytes.checked_mul(rows).filter(|_| rows > 0);
                let is_addressable = skip_bytes.checked_mul(rows).is_some();
                let len_bytes = len_bytes.filter(|_| is_addressable);
                let refused = || Error::new(Code::InvalidArgument, format!("{rows} rows of {row_bytes} bytes"));
                len_bytes.map(|len_bytes| Some((offset_bytes, len_bytes))).ok_or_else(refused)
            }
        }
    }
}

/// A region that is being filled, by many threads at once. Dropping it frees the memory (after uploads in flight).
pub trait RegionBuilder: Send + Sync {
    /// How the bytes come in.
    fn intake(&self) -> Intake<'_>;

    /// Waits until every byte is there, then makes the region read-only and shareable.
    ///
    /// # Errors
    /// `Internal` when landings are still alive, or the device failed; `Unavailable` when it failed in a way that
    /// repeating the load may cure.
    fn finish(self: Box<Self>) -> Result<Arc<dyn DeviceRegion>>;
}

/// The two ways in which a device takes bytes.
pub enum Intake<'a> {
    /// They land where they stay.
    Land(&'a dyn Land),
    /// They are copied from page-locked host memory.
    Upload(&'a dyn Upload),
}

/// A region whose memory the host can write.
pub trait Land: Send + Sync {
    /// Memory for one run of bytes. The destinations are exclusive to this landing while it lives; after a failed
    /// fetch, drop it and ask again.
    ///
    /// # Errors
    /// `InvalidArgument` when a part is not within the region; `Internal` when a destination overlaps another one of
    /// this landing or of one that is still alive.
    fn landing(&self, parts: &[Part]) -> Result<Landing>;

    /// The landing's bytes are complete and verified.
    ///
    /// # Errors
    /// `InvalidArgument` when the landing is not of this region.
    fn submit(&self, landing: Landing) -> Result<()>;
}

/// A region that bytes are copied to.
pub trait Upload: Send + Sync {
    /// Copies the run of bytes that begins at `start_bytes` of the chunk by `parts`, in order. Returns at once; the
    /// chunk is held until the copy is done. A failure shows here or in [`RegionBuilder::finish`].
    ///
    /// # Errors
    /// `InvalidArgument` when the run is not within the chunk or a part not within the region, `FailedPrecondition`
    /// when blocks of the run are not there yet; `Unavailable` when the device failed in a way that repeating the load
    /// may cure, else `Internal`: also when something was sent to the destination of a part before.
    fn upload(&self, chunk: &PinnedChunk, start_bytes: u64, parts: &[Part]) -> Result<()>;

    /// The NUMA node that the device is next to, where the machine says.
    fn node(&self) -> Option<u32>;

    /// The second way for bytes that are in a file of this machine, when the device has one.
    fn storage(&self) -> Option<&dyn FromStorage> {
        None
    }
}

/// A region that the device can bring files to by itself, without host memory in between. Everything here may be
/// `Unsupported`: then the bytes can be uploaded as others are.
pub trait FromStorage: Send + Sync {
    /// Makes a file known to the region. It must be opened past the page cache.
    ///
    /// # Errors
    /// `Unsupported` when the device, this machine or the file's file system cannot do that; `Unavailable` when the device
    /// failed in a way that repeating the load may cure.
    fn open(&self, file: BorrowedFd<'_>) -> Result<StorageFile>;

    /// Reads `len_bytes` of a file, from `file_offset_bytes` on, to the region's bytes from `offset_bytes` on. Blocks until
    /// they are there. Best in multiples of 4 KiB of the file, and large.
    ///
    /// # Errors
    /// As [`FromStorage::open`]; after `Unsupported` some of the bytes may have been written, and all of them can be
    /// uploaded. `InvalidArgument` when the bytes are not within the region, `Internal` when something was sent there
    /// before.
    fn read(&self, file: StorageFile, file_offset_bytes: u64, len_bytes: u64, offset_bytes: u64) -> Result<()>;
}

/// A file that a region knows, for as long as it is filled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct StorageFile(pub(crate) u64);

/// A finished region: it never changes again. Its memory is freed with the last reference.
pub trait DeviceRegion: Send + Sync {
    /// Its length in bytes.
    fn size_bytes(&self) -> u64;

    /// The memory as descriptors, in order; together they make up the region, and zeros after it where a device gives
    /// memory in larger units.
    fn segments(&self) -> Vec<Segment<'_>>;

    /// The bytes, where the host can address them.
    fn host_bytes(&self) -> Option<&[u8]>;

    /// Copies the bytes from `offset_bytes` on into `out`.
    ///
    /// # Errors
    /// `InvalidArgument` when the range is not within the region; `Unavailable` when the device failed in a way that another
    /// try may cure, else `Internal`.
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
