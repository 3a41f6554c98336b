//! A finished region on a GPU.

use std::os::fd::AsFd;
use std::sync::Arc;

use longshore_memory::OwnedSegment;
use longshore_types::{Code, Error, Result};

use super::client::link::Link;
use super::device::Shared;
use super::protocol::Request;
use super::read_back::ReadBack;
use crate::device::{DeviceRegion, Segment};

/// Memory that nobody writes any more and that is mapped nowhere on our side. Dropping it lets the keeper free it,
/// unless it was published.
pub(super) struct CudaRegion {
    shared: Arc<Shared>,
    label: String,
    size_bytes: u64,
    segments: Vec<OwnedSegment>,
}

impl CudaRegion {
    pub(super) fn new(shared: &Arc<Shared>, label: &str, size_bytes: u64, segments: Vec<OwnedSegment>) -> CudaRegion {
        CudaRegion { shared: Arc::clone(shared), label: label.into(), size_bytes, segments }
    }

    fn read_by(&self, link: &Link, offset_bytes: u64, out: &mut [u8]) -> Result<()> {
        let region = self.shared.map(link, &self.segments)?;
        let read = self.read_mapped(link, region, offset_bytes, out);
        let unmapped = link.call(Vec::new(), |id| Request::Unmap { id, region });
        read.and(unmapped.map(|_| ()))
    }

    /// Reads through a mapping of the copier, in portions of what both share.
    fn read_mapped(&self, link: &Link, region: u64, offset_bytes: u64, out: &mut [u8]) -> Result<()> {
        let piece = self.shared.read_back_piece();
        let mut offset_bytes = offset_bytes;
        for portion in out.chunks_mut(ReadBack::BYTES as usize) {
            let len_bytes = portion.len() as u64;
            let reading = self.shared.read_back.lock();
            link.call(Vec::new(), |id| Request::Read { id, region, offset_bytes, len_bytes, piece })?;
            reading.copy_to(portion);
            offset_bytes += len_bytes;
        }
        Ok(())
    }
}

impl DeviceRegion for CudaRegion {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn segments(&self) -> Vec<Segment<'_>> {
        self.segments.iter().map(|owned| Segment { fd: owned.fd.as_fd(), len_bytes: owned.len_bytes }).collect()
    }

    fn host_bytes(&self) -> Option<&[u8]> {
        None
    }

    fn read(&self, offset_bytes: u64, out: &mut [u8]) -> Result<()> {
        let len_bytes = out.len() as u64;
        if offset_bytes.checked_add(len_bytes).is_none_or(|end| end > self.size_bytes) {
            let message =
                format!("{len_bytes} bytes from {offset_bytes} on are not within a region of {}", self.size_bytes);
            return Err(Error::new(Code::InvalidArgument, message));
        }
        if out.is_empty() {
            return Ok(());
        }
        let link = self.shared.link()?;
        match self.read_by(&link, offset_bytes, out) {
            // The copier died, of something else or of this; the memory did not.
            Err(error) if error.code() == Code::Unavailable && !link.is_alive() => {
                drop(link);
                self.read_by(&*self.shared.link()?, offset_bytes, out)
            }
            result => result,
        }
    }
}

impl Drop for CudaRegion {
    fn drop(&mut self) {
        // The keeper's descriptors and handles are the last ones then.
        self.segments.clear();
        if self.size_bytes > 0 {
            self.shared.keeper.release(&self.label);
        }
    }
}
