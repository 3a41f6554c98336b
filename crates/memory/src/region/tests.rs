//! Claims, seals and accounting of regions, as seen from this process; `tests/other_process.rs` has the other view.

use std::os::unix::fs::FileExt;

use rustix::fs::{FallocateFlags, MemfdFlags, fallocate, fcntl_get_seals};
use rustix::io::{FdFlags, fcntl_getfd};

use super::*;
use crate::Arena;
use crate::memfd::create_memfd;
use crate::shared::tests::{SharedKind, kinds};

fn writer(len: u64) -> (Arena, RegionWriter) {
    let arena = Arena::new(64 << 20);
    let reservation = arena.try_reserve(len).unwrap();
    let writer = RegionWriter::create("a test's region", len, reservation).unwrap();
    (arena, writer)
}

#[test]
fn windows_are_exclusive_and_may_be_claimed_again() {
    let (_arena, writer) = writer(100);
    let mut front = writer.claim(0..40).unwrap();
    for overlapping in [0..1, 39..41, 10..20, 0..100] {
        let error = writer.claim(overlapping).unwrap_err();
        assert_eq!(error.code(), Code::Internal);
        assert!(error.message().contains("0..40"), "{error}");
    }
    let mut back = writer.claim(40..100).unwrap();
    front.fill(1);
    back.fill(2);
    assert_eq!((front.len(), back.range()), (40, 40..100));
    for outside in [100..101, 0..u64::MAX, Range { start: 50, end: 40 }] {
        assert_eq!(writer.claim(outside).unwrap_err().code(), Code::Internal);
    }
    drop(front);
    let mut again = writer.claim(10..20).unwrap();
    assert_eq!(again[0], 1);
    again.fill(3);
    drop((again, back));
    let region = writer.finish().unwrap();
    let expected: Vec<u8> = [vec![1; 10], vec![3; 10], vec![1; 20], vec![2; 60]].concat();
    assert_eq!(region.as_slice(), expected);
}

#[test]
fn threads_fill_disjoint_windows() {
    const PART: u64 = 100_003;
    let (_arena, writer) = writer(8 * PART);
    std::thread::scope(|scope| {
        for part in 0..8 {
            let writer = &writer;
            scope.spawn(move || writer.claim(part * PART..(part + 1) * PART).unwrap().fill(part as u8 + 1));
        }
    });
    let region = writer.finish().unwrap();
    for (part, bytes) in region.as_slice().chunks(PART as usize).enumerate() {
        assert!(bytes.iter().all(|byte| *byte == part as u8 + 1));
    }
}

#[test]
fn an_open_window_forbids_finishing_and_outlives_the_writer() {
    let (arena, writer) = writer(4096);
    let mut window = writer.claim(0..10).unwrap();
    assert_eq!(writer.finish().unwrap_err().code(), Code::Internal);
    // The writer is gone, the mapping is not, and it is still paid for.
    assert_eq!(arena.leased_bytes(), 4096);
    window.fill(9);
    assert_eq!(*window, [9; 10]);
    drop(window);
    assert_eq!(arena.used_bytes(), 0);
}

#[test]
fn a_finished_region_cannot_be_changed_through_its_descriptor() {
    for (kind, memory) in kinds() {
        let arena = Arena::new(1 << 20);
        let writer = RegionWriter::create_in(&memory, "one", 10_000, arena.try_reserve(10_000).unwrap()).unwrap();
        writer.claim(0..5).unwrap().copy_from_slice(b"hello");
        let region = writer.finish().unwrap();
        let file = File::from(region.fd().try_clone_to_owned().unwrap());
        assert_eq!(fcntl_get_seals(&file).unwrap().contains(seals()), kind == SharedKind::Memfd);
        assert!(fcntl_getfd(region.fd()).unwrap().contains(FdFlags::CLOEXEC));
        // A sealed memfd is open to write, and says that it is not permitted; the other one was never open to write.
        let denied = |result: std::io::Result<()>| {
            let error = result.unwrap_err();
            let refusals = [Errno::PERM, Errno::BADF, Errno::INVAL, Errno::ROFS].map(|errno| errno.raw_os_error());
            assert!(refusals.contains(&error.raw_os_error().unwrap()), "{kind:?}: {error}");
        };
        denied(file.write_at(b"x", 0).map(drop));
        denied(file.set_len(0));
        denied(file.set_len(20_000));
        let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        denied(fallocate(&file, hole, 0, 4096).map_err(Into::into));
        denied(fcntl_add_seals(&file, SealFlags::WRITE).map_err(Into::into));
        assert_eq!(&region.as_slice()[..6], b"hello\0");
    }
}

#[test]
fn nothing_here_holds_a_finished_region_of_the_private_mount_writable() {
    let Some((_, memory)) = kinds().into_iter().find(|(kind, _)| *kind == SharedKind::Mount) else { return };
    let arena = Arena::new(1 << 20);
    let writer = RegionWriter::create_in(&memory, "held-once", 10_000, arena.try_reserve(10_000).unwrap()).unwrap();
    let mode = || {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let line = maps.lines().find(|line| line.contains(":held-once:")).unwrap().to_owned();
        line.split_ascii_whitespace().nth(1).unwrap().to_owned()
    };
    assert_eq!(mode(), "rw-s");
    let region = writer.finish().unwrap();
    assert_eq!(mode(), "r--s");
    // Nor could the mapping be made writable: the descriptor it was made of cannot write.
    let map = &region.inner.shared.map;
    // SAFETY: expected to be refused; were it allowed, nobody writes.
    let made = unsafe { rustix::mm::mprotect(map.start().as_ptr().cast(), 4096, rustix::mm::MprotectFlags::WRITE) };
    assert_eq!(made, Err(Errno::ACCESS));
    let links = std::fs::read_dir("/proc/self/fd").unwrap();
    let open = links.filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok());
    let descriptors = open.filter(|target| target.to_string_lossy().contains(":held-once:")).count();
    assert_eq!(descriptors, 1, "a region is one descriptor");
}

#[test]
fn memory_is_charged_until_the_last_clone_is_gone() {
    let (arena, writer) = writer(1 << 20);
    let region = writer.finish().unwrap();
    let other = region.clone();
    drop(region);
    assert_eq!((arena.leased_bytes(), other.len()), (1 << 20, 1 << 20));
    drop(other);
    assert_eq!(arena.leased_bytes(), 0);
}

#[test]
fn odd_regions() {
    let (arena, writer) = writer(0);
    drop(writer.claim(0..0).unwrap());
    let region = writer.finish().unwrap();
    assert!(region.is_empty() && region.as_slice().is_empty());

    let reservation = arena.try_reserve(10).unwrap();
    assert_eq!(RegionWriter::create("small", 11, reservation).unwrap_err().code(), Code::Internal);
    assert_eq!(arena.used_bytes(), 0);

    let name = "\0 \u{e4}\n".to_owned() + &"n".repeat(1000);
    assert!(RegionWriter::create(&name, 1, arena.try_reserve(1).unwrap()).is_ok());
}

#[test]
fn a_finished_region_is_adopted_with_its_bytes() {
    for (kind, memory) in kinds() {
        let arena = Arena::new(1 << 20);
        let writer = RegionWriter::create_in(&memory, "one", 10_000, arena.try_reserve(10_000).unwrap()).unwrap();
        writer.claim(9_998..10_000).unwrap().copy_from_slice(b"ok");
        let region = writer.finish().unwrap();
        let fd = region.fd().try_clone_to_owned().unwrap();
        let adopted = Region::adopt(fd, 10_000, arena.try_reserve(10_000).unwrap()).unwrap();
        // Nothing but the adopted descriptor keeps the bytes, and with them the mount.
        drop((region, memory));
        assert_eq!((adopted.len(), &adopted.as_slice()[9_998..]), (10_000, &b"ok"[..]), "{kind:?}");
        assert_eq!(arena.leased_bytes(), 10_000);
        drop(adopted);
        assert_eq!(arena.leased_bytes(), 0);
    }
}

#[test]
fn what_is_no_sealed_region_is_not_adopted() {
    let arena = Arena::new(1 << 20);
    let adopt = |file: File, len, reserved| {
        Region::adopt(file.into(), len, arena.try_reserve(reserved).unwrap()).unwrap_err().code()
    };
    let memory = |added: SealFlags| {
        let file = create_memfd("test", MemfdFlags::empty()).unwrap();
        file.set_len(4096).unwrap();
        fcntl_add_seals(&file, added).unwrap();
        file
    };
    let sealed = || memory(seals());
    assert_eq!(adopt(sealed(), 4096, 4095), Code::Internal);
    assert_eq!(adopt(sealed(), 4095, 4096), Code::InvalidArgument);
    assert_eq!(adopt(sealed(), 8192, 8192), Code::InvalidArgument);
    assert_eq!(adopt(memory(seals().difference(SealFlags::FUTURE_WRITE)), 4096, 4096), Code::InvalidArgument);
    assert_eq!(adopt(memory(SealFlags::FUTURE_WRITE | SealFlags::GROW), 4096, 4096), Code::InvalidArgument);
    assert_eq!(adopt(tempfile::tempfile().unwrap(), 0, 0), Code::InvalidArgument);
    for (kind, memory) in kinds() {
        let SharedFile { file, read_only } = memory.file("unfinished").unwrap();
        file.set_len(4096).unwrap();
        assert_eq!(adopt(file, 4096, 4096), Code::InvalidArgument, "{kind:?}: it may be written");
        if let Some(read_only) = read_only {
            assert_eq!(adopt(read_only.try_clone().unwrap(), 4095, 4096), Code::InvalidArgument);
            assert!(Region::adopt(read_only.into(), 4096, arena.try_reserve(4096).unwrap()).is_ok());
        }
    }
    let written = memory(SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW);
    assert!(Region::adopt(written.into(), 4096, arena.try_reserve(4096).unwrap()).is_ok());
    assert_eq!(arena.leased_bytes(), 0);
}
