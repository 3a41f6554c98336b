//! The end of a copier: asked for, by signals, and with its daemon.

use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use longshore_device::cuda::{CopierStart, CopierState};
use longshore_device::{Device, Part};
use longshore_testkit::fake_cuda::Role;
use longshore_types::Code;
use rustix::process::{Pid, Signal, kill_process};

use crate::bench::{Bench, Driver, SIZE, copier, upload};

fn signal(pid: u32, signal: Signal) {
    kill_process(Pid::from_raw(pid as i32).unwrap(), signal).unwrap();
}

fn exists(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

#[test]
fn a_copier_gives_everything_back_and_is_reaped() {
    let driver = Driver::alone();
    let bench = Bench::open().unwrap();
    bench.load(5).unwrap();
    let pid = bench.pid();
    drop(bench);
    assert!(!exists(pid), "not even a zombie");
    let usage = driver.cuda.processes().into_iter().find(|usage| usage.pid == pid).unwrap();
    assert_eq!(usage.role, Role::Copier);
    let left = [usage.contexts, usage.handles, usage.mappings, usage.reservations, usage.registrations];
    assert_eq!((left, usage.streams, usage.events), ([0; 5], 0, 0));
    driver.assert_clean();
}

#[test]
fn killed_in_the_middle() {
    let driver = Driver::alone();
    let bench = Bench::open().unwrap();
    let builder = bench.device.reserve("torn", SIZE).unwrap();
    let pid = bench.pid();
    // It cannot finish what it gets from now on.
    signal(pid, Signal::STOP);
    let part = |offset_bytes| [Part::Place { offset_bytes, len_bytes: 1 << 20 }];
    upload(&*builder).upload(&bench.chunk(1), 0, &part(0)).unwrap();
    assert!(bench.pinned.stats().used_bytes > 0, "held until it is copied");
    signal(pid, Signal::KILL);
    let error = builder.finish().err().unwrap();
    assert_eq!(error.code(), Code::Unavailable);
    assert!(error.message().contains("the copier of cuda:0 ended: signal: 9"), "{error}");
    assert!(!exists(pid) && matches!(bench.device.state(), CopierState::Failed(_)));
    assert_eq!((bench.pinned.stats().used_bytes, bench.device.info().used_bytes), (0, 0));
    // A builder of the old copier is of no use, also when there is a new one.
    bench.load(2).unwrap();
    let builder = bench.device.reserve("old", SIZE).unwrap();
    signal(bench.pid(), Signal::KILL);
    while bench.device.state() == CopierState::Ready {
        std::thread::yield_now();
    }
    bench.load(3).unwrap();
    let chunk = bench.chunk(1);
    let first = upload(&*builder).upload(&chunk, 0, &part(0));
    let error = first.and_then(|()| builder.finish().map(drop)).unwrap_err();
    assert_eq!((error.code(), bench.device.restarts()), (Code::Unavailable, 2));
    drop(chunk);
    drop(bench);
    driver.assert_clean();
}

#[test]
fn starts_are_limited() {
    let driver = Driver::alone();
    let bench = Bench::open().unwrap();
    for round in 0..3 {
        signal(bench.pid(), Signal::KILL);
        while bench.device.state() == CopierState::Ready {
            std::thread::yield_now();
        }
        let result = bench.load(1);
        if round < 2 {
            result.unwrap();
        } else {
            let error = result.unwrap_err();
            assert_eq!(error.code(), Code::Unavailable);
            assert!(error.message().contains("signal: 9") && error.message().contains("3 starts"), "{error}");
        }
    }
    assert_eq!(bench.device.restarts(), 2);
    // The budget is known without a copier.
    assert_eq!(bench.device.info().free_bytes, 64 << 20);
    drop(bench);
    driver.assert_clean();
}

#[test]
fn signals_to_the_whole_group_do_not_end_it() {
    let driver = Driver::alone();
    let bench = Bench::open().unwrap();
    let pid = bench.pid();
    for _ in 0..100 {
        signal(pid, Signal::INT);
        signal(pid, Signal::TERM);
    }
    bench.load(6).unwrap();
    assert_eq!((bench.pid(), bench.device.restarts()), (pid, 0));
    drop(bench);
    driver.assert_clean();
}

/// A copier without a daemon: the other end of its socket is the test's.
fn alone() -> (Child, UnixStream) {
    let CopierStart::Process { program, args } = copier() else { panic!("a process") };
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut command = Command::new(program);
    command.args(args).stdin(OwnedFd::from(theirs)).stdout(Stdio::null()).stderr(Stdio::null());
    (command.spawn().unwrap(), ours)
}

#[test]
fn it_ends_with_its_daemon() {
    let driver = Driver::alone();
    let (mut child, socket) = alone();
    drop(socket);
    assert!(child.wait().unwrap().success());
    // In the middle of a message.
    let (mut child, mut socket) = alone();
    socket.write_all(&[200, 0, 0, 0, 1, 2, 3]).unwrap();
    drop(socket);
    assert!(child.wait().unwrap().success());
    driver.assert_clean();
}

#[test]
fn nonsense_ends_it() {
    let driver = Driver::alone();
    for bytes in [&[0xff; 64][..], &[1, 0, 0, 0, 99], &[3, 0, 0, 0, 0, 1, 5], &[2, 0, 0, 0, 7, 0]] {
        let (mut child, mut socket) = alone();
        socket.write_all(bytes).unwrap();
        socket.shutdown(std::net::Shutdown::Write).unwrap();
        let status = child.wait().unwrap();
        assert!(!status.success() && status.code().is_some(), "{bytes:?}: {status}");
    }
    driver.assert_clean();
}

#[test]
fn programs_that_are_no_copier() {
    let _driver = Driver::alone();
    let start = |program: &str| CopierStart::Process { program: PathBuf::from(program), args: Vec::new() };
    for (program, reason) in
        [("/bin/false", "exit status: 1"), ("/bin/true", "exit status: 0"), ("/no/such", "/no/such")]
    {
        let error = Bench::open_as(start(program)).err().unwrap();
        assert_eq!(error.code(), Code::Unavailable);
        assert!(error.message().contains("cuda:0") && error.message().contains(reason), "{error}");
    }
}
