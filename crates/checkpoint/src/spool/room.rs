//! Room on the disk: a budget of our own. One that nobody chose also leaves a floor of free space that others may need.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use longshore_types::{Code, Error, Result, format_bytes};
use parking_lot::{Condvar, Mutex};
use prometheus::IntGauge;
use rustix::fs::statvfs;
use tokio::sync::watch;

use super::disk_error;
use crate::metrics::Metrics;

/// Floor of free space beside the default budget, at most; below that a twentieth of the disk.
const FREE_FLOOR_BYTES_MAX: u64 = 10 << 30;
/// How often free space that others gave back is looked for.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// How much may be set aside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Limits {
    pub(super) budget_bytes: u64,
    /// Stays free for others.
    pub(super) floor_bytes: u64,
}

impl Limits {
    /// The budget as it was set, or what the disk has less a twentieth, and then a floor.
    pub(super) fn measure(folder: &Path, budget_bytes: Option<u64>) -> Result<Limits> {
        if let Some(budget_bytes) = budget_bytes {
            // Whoever names a budget has decided what is left to others.
            return Ok(Limits { budget_bytes, floor_bytes: 0 });
        }
        let disk = statvfs(folder).map_err(|errno| disk_error("look at", folder, &errno.into()))?;
        let total_bytes = disk.f_blocks.saturating_mul(disk.f_frsize);
        let twentieth = total_bytes / 20;
        Ok(Limits { budget_bytes: total_bytes - twentieth, floor_bytes: twentieth.min(FREE_FLOOR_BYTES_MAX) })
    }
}

#[derive(Debug)]
pub(super) struct Space {
    folder: PathBuf,
    limits: Limits,
    ledger: Mutex<Ledger>,
    condvar: Condvar,
    freed: watch::Sender<u64>,
    used: IntGauge,
}

#[derive(Debug, Default)]
struct Ledger {
    /// Everything that is set aside.
    reserved: u64,
    /// Of this, what the file system does not know of yet.
    unwritten: u64,
}

/// Room that is set aside; free again when dropped.
#[derive(Debug)]
pub(crate) struct Reserved {
    space: Arc<Space>,
    bytes: u64,
    unwritten: u64,
}

impl Space {
    /// Nothing is taken at first; what is in the folder already is told by [`Space::reserve_written`].
    pub(super) fn new(folder: &Path, limits: Limits, metrics: &Metrics) -> Space {
        metrics.disk_budget_bytes.set(i64::try_from(limits.budget_bytes).unwrap_or(i64::MAX));
        Space {
            folder: folder.to_owned(),
            limits,
            ledger: Mutex::default(),
            condvar: Condvar::new(),
            freed: watch::Sender::new(0),
            used: metrics.disk_used_bytes.clone(),
        }
    }

    pub(super) fn try_reserve(self: &Arc<Self>, bytes: u64) -> Result<Option<Reserved>> {
        if bytes > self.limits.budget_bytes {
            return Err(Error::new(
                Code::Exhausted,
                format!(
                    "{} can never fit in {}, which has a budget of {}: raise --checkpoint-disk",
                    format_bytes(bytes),
                    self.folder.display(),
                    format_bytes(self.limits.budget_bytes)
                ),
            ));
        }
        let free_bytes = self.free_bytes()?;
        let mut ledger = self.ledger.lock();
        if !ledger.is_in_budget(bytes, self.limits) || !ledger.is_on_disk(bytes, self.limits, free_bytes) {
            return Ok(None);
        }
        ledger.reserved += bytes;
        ledger.unwritten += bytes;
        self.show(&ledger);
        Ok(Some(Reserved { space: Arc::clone(self), bytes, unwritten: bytes }))
    }

    /// Which bound leaves no room for so many bytes, with its numbers and what to do about it.
    pub(super) fn shortage(&self, bytes: u64) -> String {
        let free_bytes = match self.free_bytes() {
            Ok(free_bytes) => free_bytes,
            Err(error) => return error.message().to_owned(),
        };
        let ledger = self.ledger.lock();
        let mut why = Vec::new();
        if !ledger.is_in_budget(bytes, self.limits) {
            why.push(format!(
                "{} of the budget of {} are taken: raise --checkpoint-disk, or wait until earlier checkpoints are in the origin",
                format_bytes(ledger.reserved),
                format_bytes(self.limits.budget_bytes)
            ));
        }
        if !ledger.is_on_disk(bytes, self.limits, free_bytes) {
            let promised = match ledger.unwritten {
                0 => String::new(),
                unwritten => format!(", {} of them promised to other saves", format_bytes(unwritten)),
            };
            let floor = match self.limits.floor_bytes {
                0 => "free space on that disk".to_owned(),
                floor => format!(
                    "{} of them are left to others as long as --checkpoint-disk is not set: free space on that disk, or set it",
                    format_bytes(floor)
                ),
            };
            why.push(format!("its disk has {} free{promised}: {floor}", format_bytes(free_bytes)));
        }
        if why.is_empty() { "there is room by now".to_owned() } else { why.join("; ") }
    }

    /// What ordinary users may still write: less than root may.
    fn free_bytes(&self) -> Result<u64> {
        let disk = statvfs(&self.folder).map_err(|errno| disk_error("look at", &self.folder, &errno.into()))?;
        Ok(disk.f_bavail.saturating_mul(disk.f_frsize))
    }

    pub(super) fn reserve_written(self: &Arc<Self>, bytes: u64) -> Reserved {
        let mut ledger = self.ledger.lock();
        ledger.reserved = ledger.reserved.saturating_add(bytes);
        self.show(&ledger);
        Reserved { space: Arc::clone(self), bytes, unwritten: 0 }
    }

    pub(super) fn wait(&self) {
        // Room that other programs give back is told by nobody: look again after a while.
        self.condvar.wait_for(&mut self.ledger.lock(), LOOK_AGAIN);
    }

    pub(super) fn freed(&self) -> watch::Receiver<u64> {
        self.freed.subscribe()
    }

    fn show(&self, ledger: &Ledger) {
        self.used.set(i64::try_from(ledger.reserved).unwrap_or(i64::MAX));
    }

    fn release(&self, bytes: u64, unwritten: u64) {
        let mut ledger = self.ledger.lock();
        ledger.reserved = ledger.reserved.saturating_sub(bytes);
        ledger.unwritten = ledger.unwritten.saturating_sub(unwritten);
        self.show(&ledger);
        drop(ledger);
        if bytes > 0 {
            self.condvar.notify_all();
            self.freed.send_modify(|times| *times += 1);
        }
    }
}

impl Ledger {
    fn is_in_budget(&self, bytes: u64, limits: Limits) -> bool {
        self.reserved.saturating_add(bytes) <= limits.budget_bytes
    }

    fn is_on_disk(&self, bytes: u64, limits: Limits, free_bytes: u64) -> bool {
        self.unwritten.saturating_add(bytes).saturating_add(limits.floor_bytes) <= free_bytes
    }
}

impl Reserved {
    /// The file system has given blocks for so many more bytes.
    pub(crate) fn written(&mut self, bytes: u64) {
        let bytes = bytes.min(self.unwritten);
        self.unwritten -= bytes;
        self.space.release(0, bytes);
    }

    /// Less was needed.
    pub(crate) fn shrink_to(&mut self, bytes: u64) {
        if bytes < self.bytes {
            let (less, unwritten) = (self.bytes - bytes, self.unwritten);
            (self.bytes, self.unwritten) = (bytes, 0);
            self.space.release(less, unwritten);
        }
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.space.release(self.bytes, self.unwritten);
    }
}
