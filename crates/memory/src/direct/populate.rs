//! Bringing a range of a file into the page cache in large pages.
//!
//! Reads and `POSIX_FADV_WILLNEED` bring small pages, and each copy out of those costs more for as long as they stay. A fault
//! in a mapping that asks for huge pages brings those, where the file system has them. The mapping's bytes are never touched
//! by pointer, so it does not matter who shortens the file meanwhile.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsFd;

use crate::raw::{HUGE_PAGE_BYTES, RawMemory};

/// Reads `range` of the file into the page cache, in huge pages where they are to be had, and waits for it. `range` grows to
/// where a huge page starts; what lies beyond the end of the file is left out.
///
/// # Errors
/// The kernel's: before Linux 5.14 it does not know how, a disk may fail, a file may have become shorter meanwhile.
pub fn populate(file: &File, range: Range<u64>) -> io::Result<()> {
    let end = range.end.min(file.metadata()?.len());
    let len = usize::try_from(end).map_err(|_| io::ErrorKind::OutOfMemory)?;
    let start = usize::try_from(range.start).map_err(|_| io::ErrorKind::OutOfMemory)?;
    let start = start / HUGE_PAGE_BYTES * HUGE_PAGE_BYTES;
    if start >= len {
        return Ok(());
    }
    let mapping = RawMemory::shared_read_only(file.as_fd(), len)?;
    mapping.advise();
    // In steps: who unlinks or shortens the file, or ends the process, does not wait for the rest.
    for at in (start..len).step_by(HUGE_PAGE_BYTES) {
        mapping.populate(at..len.min(at + HUGE_PAGE_BYTES))?;
    }
    Ok(())
}

#[cfg(test)]
#[cfg(not(miri))]
mod tests {
    use std::io::Write;

    use rustix::fs::{Advice, fadvise};

    use super::*;
    use crate::direct::residency;

    const LEN: usize = 2 * HUGE_PAGE_BYTES + 5000;

    fn forgotten() -> Option<File> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&vec![1; LEN]).unwrap();
        file.sync_all().unwrap();
        fadvise(&file, 0, None, Advice::DontNeed).unwrap();
        let is_gone = residency(&file, 0..LEN as u64) == Some(0.0);
        if !is_gone {
            eprintln!("skipped: this file system keeps no pages, or does not let them go");
        }
        is_gone.then_some(file)
    }

    #[test]
    fn what_was_asked_for_is_there_afterwards() {
        let Some(file) = forgotten() else { return };
        let middle = HUGE_PAGE_BYTES as u64 + 5..HUGE_PAGE_BYTES as u64 + 9;
        populate(&file, middle.clone()).unwrap();
        assert_eq!(residency(&file, middle), Some(1.0));
        populate(&file, 0..u64::MAX).unwrap();
        assert_eq!(residency(&file, 0..LEN as u64), Some(1.0));
    }

    #[test]
    fn beyond_the_end_there_is_nothing_to_bring() {
        let file = tempfile::tempfile().unwrap();
        populate(&file, 0..1 << 30).unwrap();
        file.set_len(5000).unwrap();
        populate(&file, 1 << 30..u64::MAX).unwrap();
        populate(&file, Range { start: 9, end: 2 }).unwrap();
    }

    #[test]
    fn a_file_cut_short_under_the_mapping_is_an_error() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(LEN as u64).unwrap();
        let mapping = RawMemory::shared_read_only(file.as_fd(), LEN).unwrap();
        file.set_len(HUGE_PAGE_BYTES as u64).unwrap();
        mapping.populate(0..HUGE_PAGE_BYTES).unwrap();
        assert!(mapping.populate(HUGE_PAGE_BYTES..LEN).is_err());
    }
}
