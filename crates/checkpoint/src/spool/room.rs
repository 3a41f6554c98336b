//! Room on the disk: a budget of our own, and a floor of free space that others may need.

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

/// Floor of free space, at most; below that a twentieth of the disk.
const FREE_FLOOR_BYTES_MAX: u64 = 10 << 30;
/// How often free space that others gave back is looked for.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

#[derive(Debug)]
pub(super) struct Space {
    folder: PathBuf,
    budget_bytes: u64,
    floor_bytes: u64,
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
    /// Takes the budget, or what the disk has less a twentieth. What is in the folder already counts as room.
    pub(super) fn measure(folder: &Path, budget_bytes: Option<u64>, metrics: &Metrics) -> Result<Space> {
        let disk = statvfs(folder).map_err(|errno| disk_error("look at", folder, &errno.into()))?;
        let total_bytes = disk.f_blocks.saturating_mul(disk.f_frsize);
        let budget_bytes = budget_bytes.unwrap_or(total_bytes - total_bytes / 20);
        metrics.disk_budget_bytes.set(i64::try_from(budget_bytes).unwrap_or(i64::MAX));
        Ok(Space {
            folder: folder.to_owned(),
            budget_bytes,
            floor_bytes: (total_bytes / 20).min(FREE_FLOOR_BYTES_MAX),
            ledger: Mutex::default(),
            condvar: Condvar::new(),
            freed: watch::Sender::new(0),
            used: metrics.disk_used_bytes.clone(),
        })
    }

    pub(super) fn try_reserve(self: &Arc<Self>, bytes: u64) -> Result<Option<Reserved>> {
        if bytes > self.budget_bytes {
            return Err(Error::new(
                Code::Exhausted,
                format!(
                    "{} can never fit in {}, which has a budget of {}: raise --checkpoint-disk",
                    format_bytes(bytes),
                    self.folder.display(),
                    format_bytes(self.budget_bytes)
                ),
            ));
        }
        let disk = statvfs(&self.folder).map_err(|errno| disk_error("look at", &self.folder, &errno.into()))?;
        let free_bytes = disk.f_bavail.saturating_mul(disk.f_frsize);
        let mut ledger = self.ledger.lock();
        let in_budget = ledger.reserved.saturating_add(bytes) <= self.budget_bytes;
        let on_disk = ledger.unwritten.saturating_add(bytes).saturating_add(self.floor_bytes) <= free_bytes;
        if !in_budget || !on_disk {
            return Ok(None);
        }
        ledger.reserved += bytes;
        ledger.unwritten += bytes;
        self.show(&ledger);
        Ok(Some(Reserved { space: Arc::clone(self), bytes, unwritten: bytes }))
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
