//! Each kind of memory on this machine, and what is said where one is not to be had.

use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{AtFlags, Mode, OFlags, openat, statat};
use rustix::io::Errno;

use super::*;
use crate::raw::{HUGE_PAGE_BYTES, RawMemory};

/// A kind as the tests of this crate choose among them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SharedKind {
    Memfd,
    Mount,
}

/// All kinds that this machine has. Where it has no private mount it must say so.
pub(crate) fn kinds() -> Vec<(SharedKind, SharedMemory)> {
    let mut kinds = vec![(SharedKind::Memfd, SharedMemory::memfd())];
    match SharedMemory::private_mount(None) {
        Ok(memory) => kinds.push((SharedKind::Mount, memory)),
        Err(error) => {
            assert!(!is_root(), "root may mount: {error}");
            tells_why(&SharedMemory::choose(None));
        }
    }
    kinds
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Nothing better than memfds was to be had: their pages are what the settings say, or there is advice.
fn tells_why(chosen: &SharedMemory) {
    let (setting, advice) = (region_page_advice(), chosen.advice());
    assert_eq!(setting.is_some(), advice.is_some());
    if let (Some(setting), Some(advice)) = (setting, advice) {
        assert!(advice.starts_with(&setting) && advice.contains("a private mount was tried: "), "{advice}");
        assert_eq!(chosen.pages(), SharedPages::Small);
        assert_eq!(chosen.describe(), format!("4 KiB pages: {advice}"));
    }
}

/// Does `work` on a thread that may not call `number`, as in a container.
fn without<T: Send>(number: libc::c_long, work: impl FnOnce() -> T + Send) -> T {
    let forbidden = || {
        crate::sys::tests::forbid(number, libc::EPERM);
        work()
    };
    std::thread::scope(|scope| scope.spawn(forbidden).join().unwrap())
}

fn filled(memory: &SharedMemory, len: usize) -> (File, RawMemory) {
    let SharedFile { file, .. } = memory.file("filled").unwrap();
    file.set_len(len as u64).unwrap();
    let map = RawMemory::shared(file.as_fd(), len).unwrap();
    map.advise();
    for at in (0..len).step_by(4096) {
        // SAFETY: within the mapping, which nobody else knows of.
        unsafe { map.start().as_ptr().wrapping_add(at).write(7) };
    }
    (file, map)
}

#[test]
fn the_private_mount_gives_huge_pages_and_no_more_memory_than_was_asked_for() {
    let Some((_, memory)) = kinds().into_iter().find(|(kind, _)| *kind == SharedKind::Mount) else { return };
    let len = 8 * HUGE_PAGE_BYTES + 12_345;
    let (file, map) = filled(&memory, len);
    assert_eq!(map.start().as_ptr().align_offset(HUGE_PAGE_BYTES), 0);
    let allocated = file.metadata().unwrap().blocks() * 512;
    assert_eq!(allocated, (len as u64).next_multiple_of(4096));
    // What the file has is one thing, what the mapping's entries are another.
    let start = format!("{:x}-", map.start().as_ptr() as usize);
    let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let ours = maps.lines().skip_while(|line| !line.starts_with(&start));
    let huge = ours.into_iter().find_map(|line| line.strip_prefix("ShmemPmdMapped:")).unwrap();
    let kib: usize = huge.trim().trim_end_matches(" kB").parse().unwrap();
    // One may be missing where memory is in pieces.
    assert!(kib << 10 >= 6 * HUGE_PAGE_BYTES, "{kib} KiB of {len} bytes are mapped by huge pages");
}

#[test]
fn what_is_chosen_is_the_best_there_is_and_says_so() {
    let chosen = SharedMemory::choose(None);
    match (region_page_advice(), is_root()) {
        (None, _) => assert_eq!(chosen.pages(), SharedPages::HugeBySetting),
        (Some(_), true) => assert_eq!(chosen.pages(), SharedPages::HugePrivateMount),
        (Some(_), false) => tells_why(&chosen),
    }
    assert_eq!(chosen.advice().is_some(), chosen.pages() == SharedPages::Small);
    let memfd = SharedMemory::memfd();
    assert_eq!(memfd.pages() == SharedPages::Small, region_page_advice().is_some());
    for pages in [SharedPages::HugeBySetting, SharedPages::HugePrivateMount, SharedPages::Small] {
        assert!(pages.to_string().contains("pages"));
    }
}

#[test]
fn whichever_step_is_not_permitted_there_are_memfds_and_the_reason() {
    for (number, step) in
        [(430, "fsopen"), (431, "fsconfig"), (432, "fsmount"), (428, "open_tree"), (442, "mount_setattr")]
    {
        let (error, chosen) =
            without(number, || (SharedMemory::private_mount(None).unwrap_err(), SharedMemory::choose(None)));
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied, "{step}");
        tells_why(&chosen);
        if is_root() {
            assert!(error.to_string().starts_with(step), "{error}");
            assert!(chosen.advice().is_none_or(|advice| advice.contains(step)));
        }
    }
}

#[test]
fn helpers_that_are_of_no_help_are_named_in_the_reason() {
    let helper = |program: &str, args: &[&str]| MountHelper {
        program: program.into(),
        args: args.iter().map(Into::into).collect(),
    };
    let cases = [
        (helper("/no/such/program", &[]), "/no/such/program"),
        (helper("/bin/true", &[]), "without an answer"),
        (helper("/bin/sh", &["-c", "echo it cannot be done >&0"]), "it cannot be done"),
    ];
    for (helper, expected) in cases {
        let ask = || (SharedMemory::private_mount(Some(&helper)).unwrap_err(), SharedMemory::choose(Some(&helper)));
        let (error, chosen) = without(430, ask);
        let text = error.to_string();
        assert!(text.contains("fsopen") && text.contains(expected), "{text}");
        tells_why(&chosen);
    }
}

#[test]
fn files_of_the_private_mount_have_no_name_and_cannot_be_opened_to_write() {
    let Some((_, memory)) = kinds().into_iter().find(|(kind, _)| *kind == SharedKind::Mount) else { return };
    let SharedFile { file, read_only } = memory.file("a name / with \u{e4}\0 odd signs").unwrap();
    let read_only = read_only.unwrap();
    file.set_len(4096).unwrap();
    assert_eq!((read_only.metadata().unwrap().nlink(), read_only.metadata().unwrap().len()), (0, 4096));
    let Kind::Mount(mount) = &memory.kind else { panic!("not a mount") };
    let [writable, read_only_mount] = mount.fds();
    let name = "longshore:anamewithoddsigns:1";
    assert_eq!(statat(writable, name, AtFlags::empty()).unwrap_err(), Errno::NOENT);
    let link = Path::new("/proc/self/fd").join(std::os::fd::AsRawFd::as_raw_fd(&read_only).to_string());
    assert!(std::fs::read_link(&link).unwrap().to_string_lossy().starts_with(&format!("/{name}")));
    for flags in [OFlags::RDWR, OFlags::WRONLY, OFlags::RDONLY | OFlags::TRUNC] {
        let opened = openat(rustix::fs::CWD, &link, flags, Mode::empty());
        assert_eq!(opened.unwrap_err(), Errno::ROFS, "{flags:?}");
    }
    let create = OFlags::CREATE | OFlags::RDWR;
    assert_eq!(openat(read_only_mount, "new", create, Mode::RUSR).unwrap_err(), Errno::ROFS);
}
