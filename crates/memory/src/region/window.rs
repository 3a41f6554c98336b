//! Exclusive access to a part of a region that is being filled.

use std::ops::{Deref, DerefMut, Range};
use std::sync::Arc;

use longshore_types::{Code, Error, Result};

use super::Shared;

/// Exclusive bytes of a region; keeps the mapping alive, and frees its range for another claim on drop.
pub struct Window {
    shared: Arc<Shared>,
    /// Within the region, and in its set of claims while this window lives.
    range: Range<u64>,
}

impl Window {
    pub(super) fn claim(shared: &Arc<Shared>, range: Range<u64>) -> Result<Window> {
        if range.start > range.end || range.end > shared.len {
            let message = format!("window {range:?} is not within a region of {} bytes", shared.len);
            return Err(Error::new(Code::Internal, message));
        }
        shared.claims.lock().insert(range.clone()).map_err(|other| {
            let message = format!("window {range:?} overlaps {other:?}, which is being written");
            Error::new(Code::Internal, message)
        })?;
        Ok(Window { shared: Arc::clone(shared), range })
    }

    /// The bytes of the region this window covers.
    pub fn range(&self) -> Range<u64> {
        self.range.clone()
    }

    /// Whether the memory is known to be made of small pages.
    pub(crate) fn has_small_pages(&self) -> bool {
        self.shared.has_small_pages
    }

    fn start(&self) -> *mut u8 {
        // SAFETY: the range was checked against the length of the mapping.
        unsafe { self.shared.map.start().as_ptr().add(self.range.start as usize) }
    }

    fn len_bytes(&self) -> usize {
        (self.range.end - self.range.start) as usize
    }
}

impl Deref for Window {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: within the mapping, which `shared` keeps alive; the claim excludes every other window, and `&self`
        // excludes writing through this one.
        unsafe { std::slice::from_raw_parts(self.start(), self.len_bytes()) }
    }
}

impl DerefMut for Window {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: within the mapping, which `shared` keeps alive and writable while claims exist; the claim excludes
        // every other window, and `&mut self` excludes other uses of this one.
        unsafe { std::slice::from_raw_parts_mut(self.start(), self.len_bytes()) }
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        self.shared.claims.lock().remove(&self.range);
    }
}

impl std::fmt::Debug for Window {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Window({:?})", self.range)
    }
}
