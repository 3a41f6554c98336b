//! GPUDirect Storage: the part of `libcufile.so` that Longshore uses, in the same library under a second name.
//!
//! `FAKE_CUDA_NVFS` says whether the kernel has `nvidia-fs`, by its major version; without it there is only the mode in
//! which the library reads through host memory, unless `CUFILE_ALLOW_COMPAT_MODE` forbids that.

use std::collections::BTreeMap;
use std::ffi::{c_int, c_void};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use parking_lot::Mutex;

use super::Entry;
use super::types::{In, Out};
use crate::calls::index_of;
use crate::codes::{self, Code};
use crate::copy::{End, Rows, Transfer};
use crate::driver::{Call, Needs, enter};

/// `CU_FILE_DRIVER_NOT_INITIALIZED` and others of `CUfileOpError`
const NOT_OPEN: Code = 5001;
const CUDA_DRIVER_ERROR: Code = 5011;
const INVALID_FILE_TYPE: Code = 5018;
const DIO_NOT_SET: Code = 5020;
const INVALID_VALUE: Code = 5022;
const ALREADY_OPEN: Code = 5026;
const HANDLE_NOT_REGISTERED: Code = 5027;
const NVFS_SETUP_ERROR: Code = 5033;
/// The first of them: codes below are those of the driver, or of the system.
const OWN_FROM: Code = 5000;
/// `CU_FILE_HANDLE_TYPE_OPAQUE_FD`
const OPAQUE_FD: c_int = 1;
/// `1 << CU_FILE_ALLOW_COMPAT_MODE`
const ALLOWS_COMPAT: u32 = 2;
/// Bytes that are read at a time.
const STEP_BYTES: usize = 1 << 20;

/// `CUfileError_t`
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Answer {
    err: u32,
    cu_err: u32,
}

/// The front of `CUfileDrvProps_t`
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Properties {
    major_version: u32,
    minor_version: u32,
    poll_thresh_size: usize,
    max_direct_io_size: usize,
    status_flags: u32,
    control_flags: u32,
}

/// `CUfileDescr_t` of a descriptor
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct Description {
    kind: c_int,
    // A union with a pointer in C.
    _gap: u32,
    fd: c_int,
    _rest: u32,
    operations: *const c_void,
}

struct Library {
    is_open: bool,
    next: u64,
    files: BTreeMap<u64, Arc<File>>,
}

static LIBRARY: Mutex<Library> = Mutex::new(Library { is_open: false, next: 1, files: BTreeMap::new() });

fn nvfs_version() -> u32 {
    std::env::var("FAKE_CUDA_NVFS").ok().and_then(|version| version.parse().ok()).unwrap_or(0)
}

fn allows_compat() -> bool {
    !std::env::var("CUFILE_ALLOW_COMPAT_MODE").is_ok_and(|value| value == "false" || value == "0")
}

fn answer(code: Code) -> Answer {
    match code {
        code if code == codes::SUCCESS || code > OWN_FROM => Answer { err: code, cu_err: 0 },
        code => Answer { err: CUDA_DRIVER_ERROR, cu_err: code },
    }
}

#[unsafe(no_mangle)]
#[allow(non_snake_case)]
pub(crate) extern "C" fn cuFileDriverOpen() -> Answer {
    answer(enter(const { index_of("cuFileDriverOpen") }, Needs::Init, |call| {
        // The real one never comes back then.
        call.driver.device(0)?;
        let mut library = LIBRARY.lock();
        if library.is_open {
            return Err(ALREADY_OPEN);
        }
        if nvfs_version() == 0 && !allows_compat() {
            return Err(NVFS_SETUP_ERROR);
        }
        library.is_open = true;
        Ok(())
    }))
}

#[unsafe(no_mangle)]
#[allow(non_snake_case)]
pub(crate) extern "C" fn cuFileDriverGetProperties(properties: Out<Properties>) -> Answer {
    answer(enter(const { index_of("cuFileDriverGetProperties") }, Needs::Init, |_| {
        let control_flags = if allows_compat() { ALLOWS_COMPAT } else { 0 };
        properties.set(Properties { major_version: nvfs_version(), control_flags, ..Properties::default() })
    }))
}

#[unsafe(no_mangle)]
#[allow(non_snake_case)]
pub(crate) extern "C" fn cuFileHandleRegister(handle: Out<u64>, description: In<Description>) -> Answer {
    answer(enter(const { index_of("cuFileHandleRegister") }, Needs::Init, |_| {
        let description = description.get()?;
        if description.kind != OPAQUE_FD || !description.operations.is_null() {
            return Err(INVALID_VALUE);
        }
        let mut library = LIBRARY.lock();
        if !library.is_open {
            return Err(NOT_OPEN);
        }
        // SAFETY: no pointers; a descriptor that is not open is an error.
        let flags = unsafe { libc::fcntl(description.fd, libc::F_GETFL) };
        if flags < 0 {
            return Err(INVALID_FILE_TYPE);
        }
        if flags & libc::O_DIRECT == 0 {
            return Err(DIO_NOT_SET);
        }
        // The same file, read in the plain way: the bytes are the same, and no memory has to be aligned.
        let file = File::open(format!("/proc/self/fd/{}", description.fd)).map_err(|_| INVALID_FILE_TYPE)?;
        let number = library.next;
        library.next += 1;
        library.files.insert(number, Arc::new(file));
        handle.set(number)
    }))
}

#[unsafe(no_mangle)]
#[allow(non_snake_case)]
pub(crate) extern "C" fn cuFileHandleDeregister(handle: u64) {
    // There is no answer.
    let _ = enter(const { index_of("cuFileHandleDeregister") }, Needs::Init, |_| {
        LIBRARY.lock().files.remove(&handle).map(drop).ok_or(HANDLE_NOT_REGISTERED)
    });
}

/// The bytes that were read; else a code of this library's with a minus, or -1 and an error of the system.
#[unsafe(no_mangle)]
#[allow(non_snake_case)]
pub(crate) extern "C" fn cuFileRead(handle: u64, base: u64, len: usize, from: i64, to: i64) -> isize {
    let mut count = 0;
    let code = enter(const { index_of("cuFileRead") }, Needs::Context, |call| {
        let file = LIBRARY.lock().files.get(&handle).cloned().ok_or(HANDLE_NOT_REGISTERED)?;
        let from = u64::try_from(from).map_err(|_| INVALID_VALUE)?;
        let to = base.checked_add_signed(to).ok_or(INVALID_VALUE)?;
        if !call.driver.space.read().knows(to, len) {
            return Err(INVALID_VALUE);
        }
        count = read(call, &file, from, to, len)?;
        Ok(())
    });
    match code {
        codes::SUCCESS => count as isize,
        code if code > OWN_FROM => -(code as isize),
        code => {
            // SAFETY: the address of this thread's own errno.
            let errno = unsafe { libc::__errno_location() };
            // SAFETY: as above.
            unsafe { *errno = code as c_int };
            -1
        }
    }
}

fn read(call: &Call, file: &File, from: u64, to: u64, len: usize) -> Result<usize, Code> {
    let mut done = 0;
    while done < len {
        let mut bytes = vec![0; STEP_BYTES.min(len - done)].into_boxed_slice();
        let count = match file.read_at(&mut bytes, from + done as u64) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error.raw_os_error().map_or(codes::UNKNOWN, |errno| errno as Code)),
        };
        let (from, to) = (End::Staged(bytes), End::Device(to + done as u64));
        Transfer { device: call.device()?, from, to, rows: Rows::plain(count) }.execute(call.driver)?;
        done += count;
    }
    Ok(done)
}

/// The entry points of this file.
pub(super) const ENTRIES: &[Entry] = &[
    Entry { name: "cuFileDriverGetProperties", address: cuFileDriverGetProperties as *const c_void },
    Entry { name: "cuFileDriverOpen", address: cuFileDriverOpen as *const c_void },
    Entry { name: "cuFileHandleDeregister", address: cuFileHandleDeregister as *const c_void },
    Entry { name: "cuFileHandleRegister", address: cuFileHandleRegister as *const c_void },
    Entry { name: "cuFileRead", address: cuFileRead as *const c_void },
];
