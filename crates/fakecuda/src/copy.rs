//! Copies and fills: what streams execute. Addresses are looked at when the work is done, as a card does, and host memory is
//! read then: who writes to it too early gets wrong bytes.

use std::ptr;

use crate::codes::Code;
use crate::driver::Driver;
use crate::memory::Space;

/// Bytes that are moved at a time: the address space is not changed meanwhile, and other streams get their share of a link.
const STEP_BYTES: usize = 1 << 20;

/// One end of a copy: where it starts.
#[derive(Debug)]
pub(crate) enum End {
    /// Device memory.
    Device(u64),
    /// Host memory, which the caller keeps as it is until the copy is done.
    Host(u64),
    /// Host memory that the driver has copied away: it was not page-locked.
    Staged(Box<[u8]>),
}

impl End {
    fn address(&self) -> u64 {
        match self {
            End::Device(address) | End::Host(address) => *address,
            End::Staged(bytes) => bytes.as_ptr() as u64,
        }
    }

    fn is_device(&self) -> bool {
        matches!(self, End::Device(_))
    }
}

/// So many rows of so many bytes, each this far from the one before.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rows {
    pub(crate) count: usize,
    pub(crate) bytes: usize,
    pub(crate) from_pitch: usize,
    pub(crate) to_pitch: usize,
}

impl Rows {
    /// Bytes without gaps.
    pub(crate) fn plain(bytes: usize) -> Rows {
        Rows { count: 1, bytes, from_pitch: bytes, to_pitch: bytes }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.count == 0 || self.bytes == 0
    }

    /// Bytes from the first to the last at one end.
    pub(crate) fn extent(&self, pitch: usize) -> Option<usize> {
        if self.is_empty() {
            return Some(0);
        }
        (self.count - 1).checked_mul(pitch)?.checked_add(self.bytes)
    }
}

/// A copy.
#[derive(Debug)]
pub(crate) struct Transfer {
    pub(crate) device: usize,
    pub(crate) from: End,
    pub(crate) to: End,
    pub(crate) rows: Rows,
}

impl Transfer {
    /// Moves the bytes.
    pub(crate) fn execute(&self, driver: &Driver) -> Result<(), Code> {
        let to_device = !self.from.is_device() && self.to.is_device();
        let mut row = 0;
        while row < self.rows.count && self.rows.bytes > 0 {
            if self.rows.bytes >= STEP_BYTES {
                self.long_row(driver, row, to_device)?;
                row += 1;
                continue;
            }
            let count = (STEP_BYTES / self.rows.bytes).min(self.rows.count - row);
            if to_device {
                driver.pass_link(self.device, count * self.rows.bytes);
            }
            let space = driver.space.read();
            for row in row..row + count {
                self.step(&space, row, 0, self.rows.bytes)?;
            }
            row += count;
        }
        Ok(())
    }

    fn long_row(&self, driver: &Driver, row: usize, to_device: bool) -> Result<(), Code> {
        for at in (0..self.rows.bytes).step_by(STEP_BYTES) {
            let len = STEP_BYTES.min(self.rows.bytes - at);
            if to_device {
                driver.pass_link(self.device, len);
            }
            self.step(&driver.space.read(), row, at, len)?;
        }
        Ok(())
    }

    fn step(&self, space: &Space, row: usize, at: usize, len: usize) -> Result<(), Code> {
        let from = self.from.address() + (row * self.rows.from_pitch + at) as u64;
        let to = self.to.address() + (row * self.rows.to_pitch + at) as u64;
        if self.from.is_device() {
            space.reach(self.device, from, len, false)?;
        }
        if self.to.is_device() {
            space.reach(self.device, to, len, true)?;
        }
        // SAFETY: device addresses are mapped with the access that is needed, and stay so while `space` is locked; host
        // addresses are the caller's, who by the driver's contract keeps them until the copy is done; staged bytes are ours.
        unsafe { ptr::copy(from as *const u8, to as *mut u8, len) };
        Ok(())
    }
}

/// A fill of device memory with one byte.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fill {
    pub(crate) device: usize,
    pub(crate) address: u64,
    pub(crate) bytes: usize,
    pub(crate) value: u8,
}

impl Fill {
    /// Writes the bytes.
    pub(crate) fn execute(&self, driver: &Driver) -> Result<(), Code> {
        let space = driver.space.read();
        space.reach(self.device, self.address, self.bytes, true)?;
        // SAFETY: the addresses are mapped and writable, and stay so while `space` is locked.
        unsafe { ptr::write_bytes(self.address as *mut u8, self.value, self.bytes) };
        Ok(())
    }
}

/// Rows of host memory, taken now. They lie as far apart as they did.
pub(crate) fn stage(address: u64, rows: &Rows, extent: usize) -> Box<[u8]> {
    let mut staged = vec![0; extent].into_boxed_slice();
    for row in 0..rows.count {
        let at = row * rows.from_pitch;
        let into = &mut staged[at..at + rows.bytes];
        let from = (address as usize + at) as *const u8;
        // SAFETY: the caller says that these rows are readable memory; `into` is as long, and nobody else's.
        unsafe { ptr::copy_nonoverlapping(from, into.as_mut_ptr(), rows.bytes) };
    }
    staged
}
