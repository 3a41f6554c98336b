//! How much of a file is in the page cache.

use std::fs::File;
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;

use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use crate::sys;

/// Bytes looked at in one go where the kernel must be asked page by page.
const MAPPED_BYTES_MAX: u64 = 256 << 20;

/// The part of `range` of the file that is in the page cache, from 0 to 1. What lies beyond the end of the file does not
/// count.
///
/// `None` where the kernel does not say: it only tells those who own the file or may write it.
pub fn residency(file: &File, range: Range<u64>) -> Option<f64> {
    let end = range.end.min(file.metadata().ok()?.len());
    let page = rustix::param::page_size() as u64;
    if range.start >= end {
        return None;
    }
    let pages = end.div_ceil(page) - range.start / page;
    let cached = match sys::cached_pages(file.as_fd(), range.start, end - range.start) {
        Ok(cached) => cached,
        // The call is not there. A container's filter may also say that it is not permitted, for all files.
        Err(error) if error.raw_os_error() == Some(Errno::NOSYS.raw_os_error()) && is_owned(file)? => {
            mapped_cached_pages(file, range.start / page * page..end, page)?
        }
        Err(_) => return None,
    };
    Some(cached as f64 / pages as f64)
}

/// Whether what the older call says is to be believed: to others than the owner everything seems cached.
fn is_owned(file: &File) -> Option<bool> {
    let (us, owner) = (rustix::process::geteuid(), file.metadata().ok()?.uid());
    Some(us.is_root() || us.as_raw() == owner)
}

/// Asks by way of a mapping, which reads nothing. `range` starts on a page.
fn mapped_cached_pages(file: &File, range: Range<u64>, page: u64) -> Option<u64> {
    let mut cached = 0;
    let mut at = range.start;
    while at < range.end {
        let len = (range.end - at).min(MAPPED_BYTES_MAX) as usize;
        let hint = std::ptr::null_mut();
        // SAFETY: without MAP_FIXED the kernel chooses free addresses; the mapping is never read.
        let start = unsafe { mmap(hint, len, ProtFlags::READ, MapFlags::SHARED, file, at) }.ok()?;
        let mut pages = vec![0u8; len.div_ceil(page as usize)];
        let looked = sys::in_core(start.cast(), len, &mut pages);
        // SAFETY: the mapping just made, which nobody refers to.
        let unmapped = unsafe { munmap(start, len) };
        debug_assert!(unmapped.is_ok(), "munmap of our own mapping failed");
        looked.then_some(())?;
        cached += pages.iter().filter(|page| **page & 1 == 1).count() as u64;
        at += len as u64;
    }
    Some(cached)
}

#[cfg(test)]
#[cfg(not(miri))]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn what_was_just_written_is_there() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&vec![1; 100_000]).unwrap();
        for range in [0..100_000, 5000..5001, 90_000..u64::MAX] {
            assert_eq!(residency(&file, range), Some(1.0));
        }
        assert_eq!(mapped_cached_pages(&file, 4096..100_000, 4096), Some(24));
        assert_eq!(residency(&file, 100_000..200_000), None);
        assert_eq!(residency(&file, Range { start: 9, end: 2 }), None);
    }

    #[test]
    fn older_kernels_are_asked_page_by_page_and_those_that_refuse_are_believed() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&vec![1; 100_000]).unwrap();
        let answers = [libc::ENOSYS, libc::EPERM].map(|errno| {
            let file = &file;
            let ask = move || {
                sys::tests::forbid(451, errno);
                residency(file, 0..100_000)
            };
            std::thread::scope(|scope| scope.spawn(ask).join().unwrap())
        });
        assert_eq!(answers, [Some(1.0), None]);
    }

    #[test]
    fn older_kernels_are_not_believed_by_others_than_the_owner() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: needs root, to become somebody else");
            return;
        }
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[1; 5000]).unwrap();
        let ask = || {
            let nobody: libc::uid_t = 65534;
            // SAFETY: without the library around it, the call changes this thread alone.
            let changed = unsafe { libc::syscall(libc::SYS_setresuid, nobody, nobody, nobody) };
            assert_eq!(changed, 0, "{}", std::io::Error::last_os_error());
            sys::tests::forbid(451, libc::ENOSYS);
            residency(&file, 0..5000)
        };
        assert_eq!(std::thread::scope(|scope| scope.spawn(ask).join().unwrap()), None);
    }

    #[test]
    fn holes_are_not_there_until_they_are_read() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 20).unwrap();
        assert_eq!(residency(&file, 0..1 << 20), Some(0.0));
        assert_eq!(mapped_cached_pages(&file, 0..1 << 20, 4096), Some(0));
    }
}
