//! Page-locked buffers in which small runs are gathered on their way to the card.

use std::sync::Arc;

use longshore_types::{Code, Error, Result};
use memmap2::MmapOptions;
use parking_lot::{Condvar, Mutex};

use crate::cuda::context::Context;
use crate::cuda::memory::Registration;
use crate::cuda::steps::{PACK_BYTES_MAX, Run};

/// Packs on their way at once.
const SLOTS: usize = 8;

/// The buffers. A slot that is taken comes back by itself.
pub(super) struct PackBuffers {
    memory: Registration,
    free: Mutex<Vec<usize>>,
    returned: Condvar,
}

/// The exclusive use of one buffer.
pub(super) struct PackSlot {
    buffers: Arc<PackBuffers>,
    index: usize,
}

impl PackBuffers {
    pub(super) fn create(context: &Arc<Context>, subject: &str) -> Result<Arc<PackBuffers>> {
        let len = SLOTS * PACK_BYTES_MAX as usize;
        let memory = MmapOptions::new().len(len).map_anon().map(memmap2::MmapRaw::from).map_err(|error| {
            Error::new(Code::Exhausted, format!("cannot map {len} bytes: {error}")).with_source(error)
        })?;
        let memory = Registration::create(context, memory).map_err(|error| error.about(subject))?;
        Ok(Arc::new(PackBuffers { memory, free: Mutex::new((0..SLOTS).collect()), returned: Condvar::new() }))
    }

    /// A free buffer; waits for one.
    pub(super) fn take(self: &Arc<Self>) -> PackSlot {
        let mut free = self.free.lock();
        loop {
            if let Some(index) = free.pop() {
                return PackSlot { buffers: Arc::clone(self), index };
            }
            self.returned.wait(&mut free);
        }
    }
}

impl PackSlot {
    pub(super) fn start(&self) -> *mut u8 {
        let offset = self.index * PACK_BYTES_MAX as usize;
        // SAFETY: there are as many buffers as indices.
        unsafe { self.buffers.memory.start().add(offset) }
    }

    /// Gathers `runs` and zeroes what is between them.
    ///
    /// # Safety
    /// The runs must have passed [`len_bytes`], and be readable at `piece` for all of their rows.
    pub(super) unsafe fn gather(&mut self, piece: *const u8, runs: &[Run]) {
        let start = self.start();
        let first = runs.first().map_or(0, |run| run.to);
        let mut filled = 0;
        for run in runs {
            let at = (run.to - first) as usize;
            // SAFETY: the runs ascend and end within the buffer, so this does.
            let gap = unsafe { start.add(filled) };
            // SAFETY: from the end of the last run to the start of this one.
            unsafe { gap.write_bytes(0, at - filled) };
            filled = at;
            for row in 0..run.rows {
                // SAFETY: within the piece, as the caller promises.
                let from = unsafe { piece.add((run.from + row * run.pitch_bytes) as usize) };
                // SAFETY: within the buffer: the run ends there.
                let to = unsafe { start.add(filled) };
                // SAFETY: both are valid for a row, and the buffer is no part of the piece.
                unsafe { to.copy_from_nonoverlapping(from, run.row_bytes as usize) };
                filled += run.row_bytes as usize;
            }
        }
    }
}

/// How long the pack of these runs is; `None` unless they ascend and fit in a buffer.
pub(super) fn len_bytes(runs: &[Run]) -> Option<u64> {
    let first = runs.first()?.to;
    let mut end = first;
    for run in runs {
        if run.to < end {
            return None;
        }
        end = run.to.checked_add(run.row_bytes.checked_mul(run.rows)?)?;
    }
    Some(end - first).filter(|len| *len <= PACK_BYTES_MAX)
}

impl Drop for PackSlot {
    fn drop(&mut self) {
        self.buffers.free.lock().push(self.index);
        self.buffers.returned.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packs_are_checked() {
        let run = |to, len| Run { from: 0, row_bytes: len, pitch_bytes: len, rows: 1, to };
        assert_eq!(len_bytes(&[]), None);
        assert_eq!(len_bytes(&[run(256, 4), run(512, 4)]), Some(260));
        assert_eq!(len_bytes(&[run(256, 4), run(259, 4)]), None);
        assert_eq!(len_bytes(&[run(256, 4), run(0, 4)]), None);
        assert_eq!(len_bytes(&[run(0, 4), run(PACK_BYTES_MAX, 1)]), None);
        assert_eq!(len_bytes(&[run(u64::MAX, 4)]), None);
        assert_eq!(len_bytes(&[Run { rows: u64::MAX, ..run(0, 4) }]), None);
    }
}
