//! What each process has of the driver at the moment, for tests to look at: what grows with every load is a leak.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use crate::faults::Role;
use crate::folder::Folder;
use crate::shared::{Plain, Shared};

/// What a process has. After its end: what it had then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// The process.
    pub pid: u32,
    /// What it is.
    pub role: Role,
    /// Primary contexts that it retains.
    pub contexts: u64,
    /// Handles of `cuMemCreate` and imports that were not released.
    pub handles: u64,
    /// Mapped ranges: `cuMemMap`, `cuMemAlloc`, legacy handles.
    pub mappings: u64,
    /// Their sum.
    pub mapped_bytes: u64,
    /// Reserved address ranges.
    pub reservations: u64,
    /// Page-locked ranges: registered or allocated.
    pub registrations: u64,
    /// Their sum.
    pub registered_bytes: u64,
    /// Streams, without the default ones.
    pub streams: u64,
    /// Events.
    pub events: u64,
}

const FIELDS: usize = 10;

#[repr(C)]
struct Cells {
    fields: [AtomicU64; FIELDS],
}

// SAFETY: `repr(C)`, atomics alone; zeros mean "has nothing".
unsafe impl Plain for Cells {}

/// Where this process writes down what it has.
pub(crate) struct UsageFile {
    cells: Shared<Cells>,
}

impl UsageFile {
    /// A new file for this process.
    pub(crate) fn create(folder: &Folder, role: Role) -> io::Result<UsageFile> {
        let path = folder.path().join("processes").join(std::process::id().to_string());
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            // A process of the same number that is gone.
            _ => {}
        }
        let cells: Shared<Cells> = Shared::open(&path)?;
        cells.fields[0].store(role as u64, SeqCst);
        Ok(UsageFile { cells })
    }

    pub(crate) fn contexts(&self, count: u64) {
        self.cells.fields[1].store(count, SeqCst);
    }

    /// Handles, mapped ranges and their bytes, reservations, page-locked ranges and their bytes.
    pub(crate) fn memory(&self, counts: [u64; 6]) {
        self.cells.fields[2..8].iter().zip(counts).for_each(|(field, count)| field.store(count, SeqCst));
    }

    pub(crate) fn streams(&self, count: u64) {
        self.cells.fields[8].store(count, SeqCst);
    }

    pub(crate) fn events(&self, count: u64) {
        self.cells.fields[9].store(count, SeqCst);
    }
}

/// What all processes of a folder have, or had when they ended.
///
/// # Errors
/// When the folder cannot be read.
pub fn processes(folder: &Folder) -> io::Result<Vec<Usage>> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(folder.path().join("processes"))? {
        let entry = entry?;
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let cells: Shared<Cells> = Shared::existing(&entry.path())?;
        let field = |index: usize| cells.fields[index].load(SeqCst);
        let role = usize::try_from(field(0)).ok().and_then(|role| Role::ALL.get(role));
        all.push(Usage {
            pid,
            role: *role.unwrap_or(&Role::Other),
            contexts: field(1),
            handles: field(2),
            mappings: field(3),
            mapped_bytes: field(4),
            reservations: field(5),
            registrations: field(6),
            registered_bytes: field(7),
            streams: field(8),
            events: field(9),
        });
    }
    all.sort_by_key(|usage| usage.pid);
    Ok(all)
}
