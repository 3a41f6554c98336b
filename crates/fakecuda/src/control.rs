//! What all processes of a state folder share: how often each call was made, and which calls are to fail.
//!
//! It is a mapped file of atomic counters, so that a test can look and arm faults while daemons run.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};

use crate::calls::NAMES;
use crate::faults::{Fault, Role};
use crate::folder::Folder;
use crate::shared::{Plain, Shared};

/// Faults that fit; more at a time is a mistake of the test.
const FAULTS_MAX: usize = 256;
/// Changes with the layout below: a process with another build of the fake must not misread it.
const LAYOUT: u64 = 0x1005_0000 + NAMES.len() as u64;

const EMPTY: u32 = 0;
const ARMED: u32 = 1;
const FIRED: u32 = 2;

#[repr(C)]
struct Cells {
    layout: AtomicU64,
    pageable_copies: AtomicU64,
    armed: AtomicU64,
    calls: [Row; Role::ALL.len()],
    faults: [Slot; FAULTS_MAX],
}

/// The counters of a role: all calls, then one a name.
#[repr(C)]
struct Row {
    any: AtomicU64,
    by_name: [AtomicU64; NAMES.len()],
}

#[repr(C)]
struct Slot {
    state: AtomicU32,
    role: AtomicU32,
    /// 0 for any, else 1 + the index of the name.
    call: AtomicU32,
    sticky: AtomicU32,
    nth: AtomicU64,
    code: AtomicU64,
}

// SAFETY: `repr(C)` throughout, atomics alone, and zeros mean "nothing counted, no faults".
unsafe impl Plain for Cells {}

/// The counters and faults of a state folder.
pub struct Control {
    cells: Shared<Cells>,
    folder: Folder,
}

impl Control {
    /// Those of this folder.
    ///
    /// # Errors
    /// When the file cannot be made or is of another build.
    pub fn open(folder: &Folder) -> io::Result<Control> {
        let cells: Shared<Cells> = Shared::open(&folder.path().join("control"))?;
        let before = cells.layout.compare_exchange(0, LAYOUT, SeqCst, SeqCst).unwrap_or_else(|other| other);
        if before != 0 && before != LAYOUT {
            return Err(io::Error::other("the state folder was made by another build of the fake driver"));
        }
        Ok(Control { cells, folder: folder.clone() })
    }

    /// Counts a call; the answer is the fault that it meets. Calls that are not `counted` among "any" meet only their own.
    pub(crate) fn count(&self, role: Role, call: usize, among_any: bool) -> Option<Fault> {
        let rows = [Role::All, role];
        let mut counts = [(0, 0); 2];
        for (row, count) in rows.iter().zip(&mut counts) {
            let row = &self.cells.calls[*row as usize];
            let any = if among_any { row.any.fetch_add(1, SeqCst) + 1 } else { 0 };
            *count = (any, row.by_name[call].fetch_add(1, SeqCst) + 1);
        }
        if self.cells.armed.load(SeqCst) == 0 {
            return None;
        }
        let meets = |fault: &Fault| {
            let at = rows.iter().position(|&row| row == fault.role);
            at.is_some_and(|at| match fault.call {
                None => fault.nth == counts[at].0,
                Some(wanted) => wanted == call && fault.nth == counts[at].1,
            })
        };
        let mut armed = self.cells.faults.iter().filter(|slot| slot.state.load(SeqCst) == ARMED);
        armed.find_map(|slot| {
            let fault = slot.fault().filter(&meets)?;
            slot.state.compare_exchange(ARMED, FIRED, SeqCst, SeqCst).ok()?;
            self.cells.armed.fetch_sub(1, SeqCst);
            Some(fault)
        })
    }

    /// Arms faults. One that is there already, armed or fired, stays as it is.
    ///
    /// # Errors
    /// When the folder cannot be locked or there are too many.
    pub fn arm(&self, faults: &[Fault]) -> io::Result<()> {
        let _lock = self.folder.lock()?;
        for fault in faults {
            if self.slots(|state| state != EMPTY).contains(fault) {
                continue;
            }
            let slot = self.cells.faults.iter().find(|slot| slot.state.load(SeqCst) == EMPTY);
            let slot = slot.ok_or_else(|| io::Error::other("there are too many faults in this state folder"))?;
            slot.put(fault);
            self.cells.armed.fetch_add(1, SeqCst);
            slot.state.store(ARMED, SeqCst);
        }
        Ok(())
    }

    /// Forgets all faults, armed and fired.
    ///
    /// # Errors
    /// When the folder cannot be locked.
    pub fn disarm(&self) -> io::Result<()> {
        let _lock = self.folder.lock()?;
        for slot in &self.cells.faults {
            if slot.state.swap(EMPTY, SeqCst) == ARMED {
                self.cells.armed.fetch_sub(1, SeqCst);
            }
        }
        Ok(())
    }

    /// Faults that happened.
    pub fn fired(&self) -> Vec<Fault> {
        self.slots(|state| state == FIRED)
    }

    fn slots(&self, wanted: impl Fn(u32) -> bool) -> Vec<Fault> {
        let slots = self.cells.faults.iter().filter(|slot| wanted(slot.state.load(SeqCst)));
        slots.filter_map(Slot::fault).collect()
    }

    /// How often each call was made by processes of this role; calls that were not made are left out.
    pub fn calls(&self, role: Role) -> BTreeMap<&'static str, u64> {
        let counts = self.cells.calls[role as usize].by_name.iter().map(|count| count.load(SeqCst));
        NAMES.into_iter().zip(counts).filter(|(_, count)| *count > 0).collect()
    }

    /// How many calls of any name were made by processes of this role: what `*` in a fault counts.
    pub fn calls_of_any(&self, role: Role) -> u64 {
        self.cells.calls[role as usize].any.load(SeqCst)
    }

    /// Starts counting calls from zero again.
    pub fn reset_calls(&self) {
        for row in &self.cells.calls {
            row.any.store(0, SeqCst);
            row.by_name.iter().for_each(|count| count.store(0, SeqCst));
        }
    }

    /// Copies from host memory that was not page-locked.
    pub fn pageable_copies(&self) -> u64 {
        self.cells.pageable_copies.load(SeqCst)
    }

    pub(crate) fn count_pageable_copy(&self) {
        self.cells.pageable_copies.fetch_add(1, Relaxed);
    }
}

impl Slot {
    fn put(&self, fault: &Fault) {
        self.role.store(fault.role as u32, SeqCst);
        self.call.store(fault.call.map_or(0, |call| call as u32 + 1), SeqCst);
        self.sticky.store(fault.sticky.into(), SeqCst);
        self.nth.store(fault.nth, SeqCst);
        self.code.store(fault.code.into(), SeqCst);
    }

    fn fault(&self) -> Option<Fault> {
        Some(Fault {
            role: *Role::ALL.get(self.role.load(SeqCst) as usize)?,
            call: (self.call.load(SeqCst) as usize).checked_sub(1),
            nth: self.nth.load(SeqCst),
            code: u32::try_from(self.code.load(SeqCst)).ok()?,
            sticky: self.sticky.load(SeqCst) != 0,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::calls::index_of;

    const INIT: usize = index_of("cuInit");
    const CREATE: usize = index_of("cuMemCreate");

    fn control() -> (tempfile::TempDir, Control) {
        let temporary = tempfile::tempdir().unwrap();
        let control = Control::open(&Folder::open(temporary.path()).unwrap()).unwrap();
        (temporary, control)
    }

    fn arm(control: &Control, faults: &str) {
        control.arm(&Fault::parse_list(faults).unwrap()).unwrap();
    }

    #[test]
    fn the_nth_call_of_a_name_meets_its_fault_once() {
        let (_temporary, control) = control();
        arm(&control, "cuMemCreate@2=2,copier/cuInit@1=3");
        assert_eq!(control.count(Role::Holder, CREATE, true), None);
        assert_eq!(control.count(Role::Holder, INIT, true), None);
        assert_eq!(control.count(Role::Copier, CREATE, true).map(|fault| fault.code), Some(2));
        assert_eq!(control.count(Role::Copier, INIT, true).map(|fault| fault.code), Some(3));
        control.reset_calls();
        control.count(Role::Holder, CREATE, true);
        assert_eq!(control.count(Role::Holder, CREATE, true), None, "it has fired");
        assert_eq!(control.fired().len(), 2);
    }

    #[test]
    fn any_call_counts_over_names_but_only_of_its_role() {
        let (_temporary, control) = control();
        arm(&control, "holder/*@3=999");
        control.count(Role::Holder, CREATE, true);
        control.count(Role::Copier, CREATE, true);
        control.count(Role::Holder, INIT, false);
        assert_eq!(control.count(Role::Holder, INIT, true), None);
        assert!(control.count(Role::Holder, CREATE, true).is_some());
        assert_eq!((control.calls_of_any(Role::Holder), control.calls_of_any(Role::All)), (3, 4));
        assert_eq!(control.calls(Role::Holder)["cuInit"], 2);
    }

    #[test]
    fn a_fault_is_armed_once_by_however_many_processes_until_it_is_forgotten() {
        let (temporary, control) = control();
        arm(&control, "cuInit@1=3");
        let other = Control::open(&Folder::open(temporary.path()).unwrap()).unwrap();
        arm(&other, "cuInit@1=3");
        assert!(other.count(Role::Other, INIT, true).is_some());
        control.reset_calls();
        arm(&other, "cuInit@1=3");
        assert!(control.count(Role::Other, INIT, true).is_none());
        control.disarm().unwrap();
        control.reset_calls();
        arm(&other, "cuInit@1=3");
        assert!(control.count(Role::Other, INIT, true).is_some());
    }
}
