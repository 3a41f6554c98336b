//! Ranges of real files, in every way this machine has.

use std::fs;
use std::path::PathBuf;

use proptest::prelude::*;
use rustix::fs::{FallocateFlags, fallocate};

use super::*;
use crate::{Arena, Buffer};

const MIB: usize = 1 << 20;

struct Files {
    folder: tempfile::TempDir,
    bytes: Vec<u8>,
}

/// A file of `len` bytes. `None` where temporary files cannot be read directly: nothing to test then.
fn file(len: usize) -> Option<(Files, DirectFile)> {
    let folder = tempfile::tempdir().unwrap();
    let bytes: Vec<u8> = (0..len).map(|at| (at.wrapping_mul(2_654_435_761) >> 9) as u8).collect();
    let path = folder.path().join("file");
    fs::write(&path, &bytes).unwrap();
    let Some(file) = DirectFile::open(&path).unwrap() else {
        eprintln!("skipped: no direct reads in {}", folder.path().display());
        return None;
    };
    Some((Files { folder, bytes }, file))
}

/// Page-aligned memory, full of what nobody wrote.
fn memory(len: usize) -> Buffer {
    let arena = Arena::new(1 << 30);
    let mut buffer = arena.try_buffer(len.max(MIB)).unwrap();
    buffer.fill(0xee);
    buffer
}

/// Runs `work` on a thread that may not make rings, as in many containers.
fn without_io_uring<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let forbidden = scope.spawn(|| {
            crate::sys::tests::forbid(libc::SYS_io_uring_setup, libc::EPERM);
            work()
        });
        forbidden.join().unwrap()
    })
}

#[test]
fn ranges_with_and_without_whole_blocks_arrive() {
    let Some((files, file)) = file(5 * MIB + 1234) else { return };
    let end = files.bytes.len();
    let ranges =
        [0..MIB, 0..end, 1..end - 1, 4095..4097, 4096..4097, 513..514, end - 1..end, 7..7, MIB + 3..5 * MIB + 3];
    let read_all = || {
        let ways = ranges.clone().map(|range| {
            let skip = range.start % 4096;
            let mut memory = memory(skip + range.len() + 1);
            let way = file.read(range.start as u64, &mut memory[skip..skip + range.len()]).unwrap();
            assert!(memory[skip..skip + range.len()] == files.bytes[range.clone()], "{range:?}");
            // Neither before nor behind the memory that was given.
            assert!(memory[..skip].iter().chain(&memory[skip + range.len()..]).all(|byte| *byte == 0xee), "{range:?}");
            way
        });
        assert!(ways.iter().all(|way| *way == ways[0]));
        ways[0]
    };
    let way = read_all();
    assert!(matches!(way, ReadWay::DirectUring | ReadWay::Direct));
    assert_eq!(without_io_uring(read_all), ReadWay::Direct);
}

#[test]
fn a_range_of_more_reads_than_fit_in_the_queue_arrives() {
    let Some((files, file)) = file(20 * MIB + 7) else { return };
    let mut memory = memory(files.bytes.len());
    let range = 700..files.bytes.len();
    file.read(700, &mut memory[range.clone()]).unwrap();
    assert!(memory[range.clone()] == files.bytes[range]);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 12, ..ProptestConfig::default() })]
    #[test]
    fn every_range_arrives_by_way_of_other_memory(
        start in 0usize..6 * MIB, len in 0usize..6 * MIB, has_ring: bool,
    ) {
        let Some((files, file)) = file(6 * MIB + 99) else { return Ok(()) };
        let range = start..(start + len).min(files.bytes.len());
        let read = || {
            let mut seen = Vec::new();
            let way = file.read_through(range.start as u64..range.end as u64, |part| seen.extend_from_slice(part));
            (seen, way.unwrap())
        };
        let (seen, _) = if has_ring { read() } else { without_io_uring(read) };
        prop_assert!(seen == files.bytes[range]);
    }
}

#[test]
fn a_range_beyond_the_end_is_an_error_and_the_next_read_is_none() {
    let Some((files, file)) = file(2 * MIB + 10) else { return };
    let read = || {
        let mut memory = memory(8 * MIB);
        for (offset, len) in [(0, 2 * MIB + 11), (2 * MIB, 11), (8 * MIB, 4096), (0, 8 * MIB), (2 * MIB, 5 * MIB)] {
            let error = file.read(offset as u64, &mut memory[..len]).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "{offset} {len}");
            file.read(0, &mut memory[..MIB]).unwrap();
            assert!(memory[..MIB] == files.bytes[..MIB]);
        }
    };
    read();
    without_io_uring(read);
}

#[test]
fn memory_that_does_not_fit_is_refused_before_anything_is_read() {
    let Some((_files, file)) = file(MIB) else { return };
    let mut memory = memory(MIB);
    assert!(file.fits(0, &memory) && file.fits(5, &memory[5..]) && file.fits(5, &memory[..100]));
    if file.alignment().memory_bytes > 1 {
        assert!(!file.fits(0, &memory[1..]));
        let error = file.read(0, &mut memory[1..MIB]).unwrap_err();
        assert!(error.kind() == io::ErrorKind::InvalidInput && !is_refusal(&error));
    }
}

#[test]
fn many_threads_read_the_same_file() {
    let Some((files, file)) = file(9 * MIB + 5) else { return };
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let (files, file) = (&files, &file);
            scope.spawn(move || {
                let mut memory = memory(3 * MIB);
                for round in 0..10 {
                    let start = (thread * 701 + round * 97) * 4096 % (6 * MIB);
                    let len = 2 * MIB + thread * 1000;
                    file.read(start as u64, &mut memory[..len]).unwrap();
                    assert!(memory[..len] == files.bytes[start..start + len]);
                }
            });
        }
    });
}

#[test]
fn holes_are_zeros_and_empty_files_have_an_end() {
    let Some((_files, direct)) = file(MIB) else { return };
    drop(direct);
    let folder = tempfile::tempdir().unwrap();
    let path: PathBuf = folder.path().join("holes");
    let written = fs::File::create(&path).unwrap();
    written.set_len(MIB as u64).unwrap();
    // Allocated but never written, where the file system knows of that.
    let _ = fallocate(&written, FallocateFlags::empty(), 0, MIB as u64 / 2);
    let direct = DirectFile::open(&path).unwrap().unwrap();
    let mut memory = memory(MIB);
    direct.read(0, &mut memory[..MIB]).unwrap();
    assert!(memory[..MIB].iter().all(|byte| *byte == 0));
    written.set_len(0).unwrap();
    assert_eq!(direct.read(0, &mut memory[..1]).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
}

#[test]
fn a_missing_file_is_an_error_and_no_refusal() {
    let folder = tempfile::tempdir().unwrap();
    let error = DirectFile::open(&folder.path().join("none")).unwrap_err();
    assert!(error.kind() == io::ErrorKind::NotFound && !is_refusal(&error));
    // /proc has no direct reads, on any machine.
    assert!(DirectFile::open(Path::new("/proc/self/status")).unwrap().is_none());
}

#[test]
fn direct_reads_see_what_was_just_written_and_leave_no_cache() {
    let Some((files, direct)) = file(MIB) else { return };
    let path = files.folder.path().join("file");
    let mut memory = memory(MIB);
    fs::write(&path, vec![3; MIB]).unwrap();
    direct.read(0, &mut memory[..MIB]).unwrap();
    assert!(memory[..MIB].iter().all(|byte| *byte == 3));
}

#[test]
fn what_file_systems_ask_for() {
    let usable = |memory, offset| Alignment::of(memory, offset).map(|align| (align.memory_bytes, align.offset_bytes));
    assert_eq!(usable(512, 512), Some((512, 512)));
    assert_eq!(usable(4, 4096), Some((4, 4096)));
    assert_eq!(usable(4096, 512), Some((4096, 4096)));
    for (memory, offset) in [(0, 0), (0, 512), (512, 0), (3, 512), (512, 1000), (8192, 8192), (512, 1 << 20)] {
        assert_eq!(usable(memory, offset), None);
    }
}
