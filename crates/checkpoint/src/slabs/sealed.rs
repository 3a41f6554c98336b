//! Bytes that a client has sealed.

use std::sync::Arc;

use longshore_memory::slabs::SlabPiece;
use longshore_types::{Code, Error, Result};

use super::key::{SessionId, SlabKey};
use super::shared::Shared;

/// A slab whose bytes are complete. Dropping it frees the slab, so drop it once they are durable or not wanted; after
/// [`super::Slabs::close`] it stays sealed for the next process.
///
/// The client still has the memory mapped and could change it. So bytes are copied out, once: compute checksums from the
/// copy and write that same copy, and what the checksums cover is what was written, whatever the client does.
pub struct SealedSlab {
    pub(super) shared: Arc<Shared>,
    pub(super) session: SessionId,
    pub(super) key: SlabKey,
    pub(super) slab: u32,
    pub(super) piece: Arc<SlabPiece>,
    pub(super) offset_bytes: u64,
    pub(super) length_bytes: u64,
}

impl SealedSlab {
    /// What it holds.
    pub fn key(&self) -> &SlabKey {
        &self.key
    }

    /// How many bytes.
    pub fn length_bytes(&self) -> u64 {
        self.length_bytes
    }

    /// Whose it is.
    pub fn session(&self) -> SessionId {
        self.session
    }

    /// Copies bytes out, from `offset_bytes` of the slab on. Blocks for as long as the copy takes: off the runtime.
    ///
    /// # Errors
    /// [`Code::Corrupt`] when the client has cut the memory off: the slab is lost. [`Code::Internal`] for a range outside.
    pub fn read(&self, offset_bytes: u64, into: &mut [u8]) -> Result<()> {
        let end = offset_bytes.checked_add(into.len() as u64);
        if end.is_none_or(|end| end > self.length_bytes) {
            let message =
                format!("{} bytes at {offset_bytes} are not within {} of {}", into.len(), self.length_bytes, self.key);
            return Err(Error::new(Code::Internal, message));
        }
        self.piece.read(self.offset_bytes + offset_bytes, into).map_err(|error| error.context(self.key))
    }
}

impl Drop for SealedSlab {
    fn drop(&mut self) {
        self.shared.release_sealed(self.session, self.slab, self.key);
    }
}

impl std::fmt::Debug for SealedSlab {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SealedSlab({}, {} bytes, session {})", self.key, self.length_bytes, self.session)
    }
}
