//! Regions that another process filled and finished.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use longshore_types::{Code, Error, Result, format_bytes};
use parking_lot::Mutex;

use super::{Claims, Region, RegionInner, Shared};
use crate::arena::Reservation;
use crate::raw::RawMemory;
use crate::shared::check_unchangeable;

impl Region {
    /// Takes over `len` bytes of memory that [`crate::RegionWriter::finish`] made unchangeable in another process. `reservation`
    /// pays for them until the region is gone.
    ///
    /// The descriptor is checked, not believed: it must be memory of this very size that nobody can write, map
    /// writable or resize through it. That its maker wrote the last byte before is the maker's word.
    ///
    /// # Errors
    /// [`Code::InvalidArgument`] when it is no such memory, [`Code::Internal`] when the reservation is too small,
    /// [`Code::Exhausted`] when the system has no address space left.
    pub fn adopt(fd: OwnedFd, len: u64, reservation: Reservation) -> Result<Region> {
        if reservation.bytes() < len {
            let message = format!("a region of {len} bytes came with a reservation of {}", reservation.bytes());
            return Err(Error::new(Code::Internal, message));
        }
        let file = File::from(fd);
        check(&file, len)?;
        let failed = |error: std::io::Error| {
            let message = format!("cannot map a region of {} from another process: {error}", format_bytes(len));
            Error::new(Code::Exhausted, message).with_source(error)
        };
        let map_len = usize::try_from(len).map_err(|_| failed(std::io::ErrorKind::OutOfMemory.into()))?;
        let map = RawMemory::shared_read_only(file.as_fd(), map_len).map_err(failed)?;
        map.advise();
        let claims = Mutex::new(Claims::default());
        // Nothing is read into it any more, so that its pages do not matter.
        let shared = Shared { map, len, has_small_pages: false, claims, _reservation: reservation };
        Ok(Region { inner: Arc::new(RegionInner { shared: Arc::new(shared), file }) })
    }
}

/// Whether the memory behind `file` is `len` bytes that cannot change any more.
fn check(file: &File, len: u64) -> Result<()> {
    let refuse = |reason: String| {
        Err(Error::new(Code::InvalidArgument, format!("the descriptor is no sealed region of {len} bytes: {reason}")))
    };
    if let Err(reason) = check_unchangeable(file) {
        return refuse(reason);
    }
    match file.metadata() {
        Ok(metadata) if metadata.len() == len => Ok(()),
        Ok(metadata) => refuse(format!("it holds {} bytes", metadata.len())),
        Err(error) => refuse(format!("its size cannot be read: {error}")),
    }
}
