//! What another process can do with a region's descriptor: read it, and nothing else.
//!
//! The other process is this test binary started again with a variable set; it gets the descriptor by SCM_RIGHTS.

#![cfg(not(miri))]
#![allow(clippy::unwrap_used)]

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::Command;

use longshore_memory::{Arena, Region, RegionWriter, SharedMemory, fdpass};
use memmap2::{Mmap, MmapOptions};
use rustix::fs::{FallocateFlags, SealFlags, fallocate, fcntl_add_seals};
use rustix::io::Errno;
use rustix::mm::{Advice, MprotectFlags, madvise, mprotect};

const SOCKET: &str = "LONGSHORE_MEMORY_TEST_SOCKET";
/// Set where the region is a file of the private mount; else it is a memfd.
const IS_MOUNT: &str = "LONGSHORE_MEMORY_TEST_IS_MOUNT";
const LEN: usize = (4 << 20) + 123;

fn contents(at: usize) -> u8 {
    (at.wrapping_mul(7919) >> 5) as u8
}

fn region(arena: &Arena, memory: &SharedMemory) -> Region {
    let reservation = arena.try_reserve(LEN as u64).unwrap();
    let writer = RegionWriter::create_in(memory, "shared", LEN as u64, reservation).unwrap();
    let mut window = writer.claim(0..LEN as u64).unwrap();
    window.iter_mut().enumerate().for_each(|(at, byte)| *byte = contents(at));
    drop(window);
    writer.finish().unwrap()
}

#[test]
fn a_received_memfd_can_be_read_and_nothing_else() {
    another_process_reads(SharedMemory::memfd(), false);
}

#[test]
fn a_received_file_of_the_private_mount_can_be_read_and_nothing_else() {
    match SharedMemory::private_mount(None) {
        Ok(memory) => another_process_reads(memory, true),
        Err(error) => {
            assert!(!rustix::process::geteuid().is_root(), "{error}");
            let chosen = SharedMemory::choose(None);
            assert_eq!(chosen.advice().is_some(), longshore_memory::region_page_advice().is_some());
        }
    }
}

fn another_process_reads(memory: SharedMemory, is_mount: bool) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("attach.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let arena = Arena::new(64 << 20);
    let region = region(&arena, &memory);
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "the_other_process", "--nocapture", "--test-threads=1"]).env(SOCKET, &path);
    if is_mount {
        child.env(IS_MOUNT, "1");
    }
    let mut child = child.spawn().unwrap();
    let (mut stream, _) = listener.accept().unwrap();
    assert_eq!(fdpass::send_with_fds(stream.as_fd(), b"r", &[region.fd()]).unwrap(), 1);
    // The child maps the region and answers; then we let go of ours, and of the mount, while it still looks.
    wait_for_byte(&stream);
    drop((region, memory));
    assert_eq!(arena.used_bytes(), 0);
    stream.write_all(b"g").unwrap();
    assert!(child.wait().unwrap().success(), "the other process found something it could do");
}

fn wait_for_byte(stream: &UnixStream) {
    let mut fds = Vec::new();
    assert_eq!(fdpass::recv_with_fds(stream.as_fd(), &mut [0], &mut fds).unwrap(), 1);
    assert!(fds.is_empty());
}

/// Not a test of its own: without the variable it has nothing to do.
#[test]
fn the_other_process() {
    let Some(path) = std::env::var_os(SOCKET) else { return };
    let is_mount = std::env::var_os(IS_MOUNT).is_some();
    let mut stream = UnixStream::connect(Path::new(&path)).unwrap();
    let mut fds: Vec<OwnedFd> = Vec::new();
    assert_eq!(fdpass::recv_with_fds(stream.as_fd(), &mut [0], &mut fds).unwrap(), 1);
    let file = File::from(fds.pop().unwrap());
    assert_eq!(file.metadata().unwrap().len(), LEN as u64);
    // SAFETY: the region is finished: nobody can change or truncate it.
    let map = unsafe { Mmap::map(&file) }.unwrap();
    cannot_change(&file, &map, is_mount);
    stream.write_all(b"m").unwrap();
    wait_for_byte(&stream);
    assert!(map.iter().enumerate().all(|(at, byte)| *byte == contents(at)));
    if is_mount {
        // It can be taken over as well, from a process that has no mount of its own.
        let arena = Arena::new(64 << 20);
        let adopted = Region::adopt(file.into(), LEN as u64, arena.try_reserve(LEN as u64).unwrap()).unwrap();
        assert!(adopted.as_slice() == &map[..]);
    }
}

fn cannot_change(file: &File, map: &Mmap, is_mount: bool) {
    let denied = |what: &str, result: std::io::Result<()>| match result {
        Ok(()) => panic!("{what} was allowed"),
        // What is not open to write, and lies on a read-only mount, is refused in other words.
        Err(error) if is_mount => {
            let refusals = [Errno::BADF, Errno::INVAL, Errno::ROFS, Errno::ACCESS, Errno::PERM];
            assert!(refusals.iter().any(|errno| Some(errno.raw_os_error()) == error.raw_os_error()), "{what}: {error}");
        }
        Err(error) => assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{what}: {error}"),
    };
    let start = map.as_ptr().cast_mut().cast();
    // SAFETY: expected to be refused; were it allowed, the memory is still ours to use.
    denied("mapping it writable", unsafe { MmapOptions::new().map_mut(file) }.map(drop));
    // SAFETY: expected to be refused; were it allowed, nobody writes through the mapping.
    denied("making the mapping writable", unsafe { mprotect(start, 4096, MprotectFlags::WRITE) }.map_err(Into::into));
    // SAFETY: expected to be refused; were it allowed, the panic that follows is all that looks at the mapping.
    denied("dropping its pages", unsafe { madvise(start, 4096, Advice::LinuxRemove) }.map_err(Into::into));
    denied("writing", file.write_at(b"x", 0).map(drop));
    denied("truncating", file.set_len(0));
    denied("growing", file.set_len(2 * LEN as u64));
    let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    denied("punching a hole", fallocate(file, hole, 0, 4096).map_err(Into::into));
    denied("zeroing a range", fallocate(file, FallocateFlags::ZERO_RANGE, 0, 4096).map_err(|_| Errno::PERM.into()));
    denied("adding a seal", fcntl_add_seals(file, SealFlags::WRITE).map_err(Into::into));
    // Opening it anew gives a new description, but the seals belong to the memory, and the mount is read-only.
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    denied("truncating on open", OpenOptions::new().write(true).truncate(true).open(&path).map(drop));
    let again = OpenOptions::new().read(true).write(true).open(&path);
    if is_mount {
        return denied("opening it anew to write", again.map(drop));
    }
    let again = again.unwrap();
    denied("writing after opening anew", again.write_at(b"x", 0).map(drop));
    // SAFETY: expected to be refused; were it allowed, the memory is still ours to use.
    denied("mapping it writable after opening anew", unsafe { MmapOptions::new().map_mut(&again) }.map(drop));
}
