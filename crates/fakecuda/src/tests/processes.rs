//! Memory that several processes have.

use std::io::{Read, Write};
use std::os::fd::{FromRawFd, OwnedFd};
use std::process::Stdio;

use super::*;

/// In the other process, the descriptor of what it is to look at is its standard input.
const INPUT: usize = 0;

fn export(handle: u64) -> OwnedFd {
    let fd = answer(|fd| cuMemExportToShareableHandle(fd, handle, HANDLE_POSIX_FD, 0));
    // SAFETY: the driver gave us this descriptor.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

#[test]
fn an_exported_descriptor_is_the_same_memory_in_another_process_and_outlives_its_maker() {
    alone(
        "processes::an_exported_descriptor_is_the_same_memory_in_another_process_and_outlives_its_maker",
        &[],
        || {
            start(0);
            let (address, handle) = mapped(GRANULE, 3);
            ok(cuMemsetD8_v2(address, 42, GRANULE));
            let fd = export(handle);
            ok(cuMemUnmap(address, GRANULE));
            ok(cuMemRelease(handle));
            assert_eq!(live().len(), 1, "the descriptor holds it");
            let mut command = other("processes::imports_what_it_is_given");
            let mut importer = command.stdin(fd).stdout(Stdio::piped()).spawn().unwrap();
            drop(command);
            let mut said = [0; 1];
            let mut output = importer.stdout.take().unwrap();
            while said != *b"!" {
                output.read_exact(&mut said).unwrap();
            }
            assert_eq!(live().len(), 1, "the other process holds it");
            importer.kill().unwrap();
            importer.wait().unwrap();
            assert_eq!(live(), [], "killed processes hold nothing");
        },
    );
}

/// Not a test of its own: without the variable it has nothing to do.
#[test]
fn imports_what_it_is_given() {
    if std::env::var(MARK).as_deref() != Ok("processes::imports_what_it_is_given") {
        return;
    }
    ok(cuInit(0));
    assert_eq!(refused(|handle| cuMemImportFromShareableHandle(handle, INPUT, 1)), INVALID_CONTEXT);
    start(0);
    let handle = answer(|handle| cuMemImportFromShareableHandle(handle, INPUT, 1));
    let address = reserve(GRANULE);
    ok(cuMemMap(address, GRANULE, 0, handle, 0));
    ok(set_access(address, GRANULE, 0, 1));
    assert_eq!(free_bytes(), MEMORY - GRANULE);
    assert!(read(address, GRANULE).iter().all(|&byte| byte == 42));
    ok(cuMemRelease(handle));
    assert_eq!(refused(|handle| cuMemImportFromShareableHandle(handle, 1, 1)), INVALID_VALUE, "that is our output");
    std::io::stdout().write_all(b"!").unwrap();
    std::io::stdout().flush().unwrap();
    loop {
        std::thread::park();
    }
}

#[test]
fn legacy_handles_are_for_other_processes_and_plain_memory() {
    alone("processes::legacy_handles_are_for_other_processes_and_plain_memory", &[], || {
        if let Ok(name) = std::env::var("FAKE_CUDA_TEST_HANDLE") {
            start(0);
            let mut handle = IpcHandle([0; 64]);
            handle.0[..name.len()].copy_from_slice(name.as_bytes());
            let address = answer(|address| cuIpcOpenMemHandle_v2(address, handle, 1));
            assert_eq!(read(address, 4), [5; 4]);
            ok(cuIpcCloseMemHandle(address));
            return assert_eq!(cuIpcCloseMemHandle(address), INVALID_VALUE);
        }
        start(0);
        let plain = answer(|address| cuMemAlloc_v2(address, 4096));
        ok(cuMemsetD8_v2(plain, 5, 4096));
        let mut handle = IpcHandle([0; 64]);
        ok(cuIpcGetMemHandle(Out(&mut handle), plain));
        assert_eq!(refused(|address| cuIpcOpenMemHandle_v2(address, handle, 1)), INVALID_CONTEXT);
        let (shareable, _) = mapped(GRANULE, 3);
        assert_eq!(cuIpcGetMemHandle(Out(&mut handle.clone()), shareable), INVALID_VALUE);
        let name = String::from_utf8_lossy(&handle.0).trim_end_matches('\0').to_owned();
        let this = "processes::legacy_handles_are_for_other_processes_and_plain_memory";
        let done = other(this).env("FAKE_CUDA_TEST_HANDLE", name).output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stdout));
    });
}

#[test]
fn another_process_may_take_only_what_is_left() {
    alone("processes::another_process_may_take_only_what_is_left", &[], || {
        ok(cuInit(0));
        let of = properties(1);
        if std::env::var_os("FAKE_CUDA_TEST_SECOND").is_some() {
            assert_eq!(refused(|handle| cuMemCreate(handle, 2 * GRANULE, In(&of), 0)), OUT_OF_MEMORY);
            let _kept = create(1, GRANULE);
            return;
        }
        let _most = create(1, MEMORY - GRANULE);
        let mut second = other("processes::another_process_may_take_only_what_is_left");
        let done = second.env("FAKE_CUDA_TEST_SECOND", "1").output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stdout));
        assert_eq!(live().len(), 1, "what the second had went with it");
    });
}
