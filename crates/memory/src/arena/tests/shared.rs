//! Buffers that others may read.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileExt, MetadataExt};

use rustix::fs::{CWD, FallocateFlags, Mode, OFlags, fallocate, fcntl_getfl, openat};
use rustix::io::{FdFlags, fcntl_getfd};

use super::*;
use crate::shared::tests::{SharedKind, kinds};

/// Each kind of shared memory of this machine, for the rest of the process.
fn memories() -> Vec<(SharedKind, &'static SharedMemory)> {
    kinds().into_iter().map(|(kind, memory)| (kind, &*Box::leak(Box::new(memory)))).collect()
}

fn file_of(buffer: &Buffer) -> File {
    buffer.file().unwrap().try_clone_to_owned().unwrap().into()
}

#[test]
fn others_read_what_is_written_and_change_nothing() {
    for (kind, memory) in memories() {
        for len in [MAPPED_FROM_BYTES, (3 << 20) + 12_345, CHUNK] {
            let arena = Arena::with_shared_buffers(CHUNK_BYTES, memory, 1);
            let mut buffer = arena.shared_buffer(len, LONG).unwrap();
            assert!(buffer.iter().step_by(4093).all(|byte| *byte == 0));
            assert_eq!(arena.leased_bytes(), crate::mapped_charge_bytes(len as u64));
            let file = file_of(&buffer);
            let facts = file.metadata().unwrap();
            assert_eq!((facts.len(), facts.nlink()), (len as u64, 0), "{kind:?}");
            for at in [0, len / 2, len - 1] {
                buffer[at] = 42;
                let mut byte = [0];
                assert_eq!(file.read_at(&mut byte, at as u64).unwrap(), 1);
                assert_eq!(byte, [42], "{kind:?} at {at}");
            }
            assert_eq!(file.read_at(&mut [0], len as u64).unwrap(), 0);
            assert!(fcntl_getfd(&file).unwrap().contains(FdFlags::CLOEXEC));
            assert_eq!(fcntl_getfl(&file).unwrap() & OFlags::RWMODE, OFlags::RDONLY);
            assert!(file.write_at(b"x", 0).is_err() && file.set_len(0).is_err(), "{kind:?}");
            let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            assert!(fallocate(file.as_fd(), hole, 0, 4096).is_err(), "{kind:?}");
            let path = format!("/proc/self/fd/{}", file.as_raw_fd());
            match (kind, openat(CWD, path.as_str(), OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())) {
                (SharedKind::Mount, reopened) => assert!(reopened.is_err(), "nobody can write, not even root"),
                // Root can open anything; even so, nothing is cut off under a reader.
                (SharedKind::Memfd, Ok(reopened)) => assert!(File::from(reopened).set_len(0).is_err()),
                (SharedKind::Memfd, Err(error)) => assert_eq!(error, rustix::io::Errno::ACCESS),
            }
            assert_eq!(buffer[0], 42);
        }
    }
}

#[test]
fn a_buffer_and_its_file_are_recycled_together_and_never_given_to_who_did_not_ask_for_a_file() {
    for (_, memory) in memories() {
        let arena = Arena::with_shared_buffers(2 * CHUNK_BYTES, memory, 8);
        let mut first = arena.try_shared_buffer(CHUNK).unwrap();
        first[7] = 42;
        let (address, inode) = (first.as_ptr(), file_of(&first).metadata().unwrap().ino());
        let held = file_of(&first);
        drop(first);
        assert_eq!((arena.leased_bytes(), arena.used_bytes()), (0, CHUNK_BYTES));
        let own = arena.try_buffer(CHUNK).unwrap();
        assert!(own.file().is_none() && own.as_ptr() != address);
        let mut second = arena.try_shared_buffer(CHUNK).unwrap();
        assert_eq!((second.as_ptr(), second[7]), (address, 42));
        assert_eq!(file_of(&second).metadata().unwrap().ino(), inode);
        // Who kept the descriptor sees the next use of the memory: it must compare checksums.
        second[7] = 43;
        let mut byte = [0];
        held.read_exact_at(&mut byte, 7).unwrap();
        assert_eq!(byte, [43]);
        // And the other way round: an own buffer is not handed out as a shared one.
        drop(own);
        assert!(arena.try_shared_buffer(CHUNK).unwrap().file().is_some());
        assert_eq!(arena.stats().recycled_bytes, CHUNK_BYTES);
        drop(second);
        assert_eq!((arena.leased_bytes(), arena.used_bytes()), (0, 2 * CHUNK_BYTES));
    }
}

#[test]
fn without_memory_descriptors_or_size_a_buffer_is_an_ordinary_one() {
    assert!(Arena::new(CHUNK_BYTES).try_shared_buffer(CHUNK).unwrap().file().is_none());
    let (_, memory) = memories().remove(0);
    let arena = Arena::with_shared_buffers(8 * CHUNK_BYTES, memory, 2);
    assert!(arena.try_shared_buffer(MAPPED_FROM_BYTES - 1).unwrap().file().is_none());
    let held = [(); 2].map(|()| arena.shared_buffer(CHUNK, LONG).unwrap());
    assert!(held.iter().all(|buffer| buffer.file().is_some()));
    let third = arena.shared_buffer(CHUNK, LONG).unwrap();
    assert!(third.file().is_none());
    // While there are no descriptors, memory that was kept will do.
    let address = third.as_ptr();
    drop(third);
    let fourth = arena.try_shared_buffer(CHUNK).unwrap();
    assert_eq!((fourth.file().is_none(), fourth.as_ptr()), (true, address));
    // Those that are kept for reuse count until they make way.
    drop(held);
    assert!(arena.try_shared_buffer(MAPPED_FROM_BYTES).unwrap().file().is_none());
    drop(arena.try_reserve(7 * CHUNK_BYTES).unwrap());
    assert!(arena.try_shared_buffer(MAPPED_FROM_BYTES).unwrap().file().is_some());
}
