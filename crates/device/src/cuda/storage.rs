//! GPUDirect Storage (cuFile): a card that reads files by itself, without host memory in between.
//!
//! The library has a mode of its own that reads through host memory when it cannot do better, and says nothing about
//! it. That is worth less than what [`super::builder`] does, so it is forbidden here ([`STRICT`]): then the library
//! refuses what the card cannot read, and whoever asked goes the usual way. Calls go through a table, for the reasons
//! that `driver.rs` gives.

use std::ffi::{c_int, c_long, c_void};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::OnceLock;

use libloading::Library;
use longshore_types::{Code, Error, Result};

/// Set for copiers: forbids cuFile to read through host memory, whatever `/etc/cufile.json` says.
pub(super) const STRICT: (&str, &str) = ("CUFILE_ALLOW_COMPAT_MODE", "false");

/// Where the library is looked for.
const NAMES: [&str; 3] = ["libcufile.so.0", "libcufile.so", "/usr/local/cuda/lib64/libcufile.so.0"];
const HANDLE_TYPE_OPAQUE_FD: c_int = 1;
/// `1 << CU_FILE_ALLOW_COMPAT_MODE`
const ALLOWS_COMPAT: u32 = 1 << 1;

/// `CUfileError_t`; the numbers are open, as those of the driver are.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct Answer {
    err: c_int,
    cu_err: c_int,
}

/// `CUfileDrvProps_t`, and room for what later versions may add to it.
#[repr(C)]
#[derive(Default)]
struct Properties {
    major_version: u32,
    minor_version: u32,
    poll_thresh_size: usize,
    max_direct_io_size: usize,
    status_flags: u32,
    control_flags: u32,
    _rest: [u64; 32],
}

/// `CUfileDescr_t`
#[repr(C)]
struct Description {
    kind: c_int,
    handle: Handle,
    operations: *const c_void,
}

#[repr(C)]
union Handle {
    fd: c_int,
    _pointer: *mut c_void,
}

type DriverOpen = unsafe extern "C" fn() -> Answer;
type GetProperties = unsafe extern "C" fn(*mut Properties) -> Answer;
type Register = unsafe extern "C" fn(*mut *mut c_void, *mut Description) -> Answer;
type Deregister = unsafe extern "C" fn(*mut c_void);
type Read = unsafe extern "C" fn(*mut c_void, *mut c_void, usize, c_long, c_long) -> isize;

/// The library, open and found to be of use. It is never closed: it closes itself with the process.
pub(super) struct CuFile {
    register: Register,
    deregister: Deregister,
    read: Read,
}

/// The first answer holds for the life of the process.
static CUFILE: OnceLock<Result<CuFile>> = OnceLock::new();

/// cuFile, when this machine can read without host memory in between. A card must have been found: without one, opening
/// the library never ends.
///
/// # Errors
/// `Unsupported` with the reason.
pub(super) fn cufile() -> Result<&'static CuFile> {
    CUFILE.get_or_init(|| CuFile::open(&NAMES)).as_ref().map_err(Clone::clone)
}

fn not_offered(reason: impl std::fmt::Display) -> Error {
    Error::new(Code::Unsupported, format!("there is no GPUDirect Storage here: {reason}"))
}

impl CuFile {
    fn open(names: &[&str]) -> Result<CuFile> {
        // SAFETY: loading the library runs its initialisers, which is what it is installed for.
        let library = names.iter().find_map(|name| unsafe { Library::new(*name) }.ok());
        let library = library.ok_or_else(|| not_offered("libcufile.so.0 was not found; install NVIDIA's gds-tools"))?;
        let open = symbol::<DriverOpen>(&library, "cuFileDriverOpen")?;
        let properties = symbol::<GetProperties>(&library, "cuFileDriverGetProperties")?;
        let cufile = CuFile {
            register: symbol::<Register>(&library, "cuFileHandleRegister")?,
            deregister: symbol::<Deregister>(&library, "cuFileHandleDeregister")?,
            read: symbol::<Read>(&library, "cuFileRead")?,
        };
        // Its threads run code of it from now on.
        std::mem::forget(library);
        // SAFETY: no arguments; there is a card, and this is the only place that opens it.
        let opened = unsafe { open() };
        check("cuFileDriverOpen", opened)
            .map_err(|reason| not_offered(format!("{reason}; is the kernel module nvidia-fs loaded?")))?;
        let mut found = Properties::default();
        // SAFETY: the pointer is to a local, larger than what any version writes.
        check("cuFileDriverGetProperties", unsafe { properties(&mut found) }).map_err(not_offered)?;
        if (found.major_version, found.minor_version) == (0, 0) {
            return Err(not_offered("the kernel module nvidia-fs is not loaded"));
        }
        if found.control_flags & ALLOWS_COMPAT != 0 {
            let (name, value) = STRICT;
            return Err(not_offered(format!(
                "cuFile may read through host memory without saying so; set {name}={value}, or allow_compat_mode to \
                 false in cufile.json"
            )));
        }
        Ok(cufile)
    }
}

fn symbol<T: Copy>(library: &Library, name: &'static str) -> Result<T> {
    // SAFETY: the name says which function it is; `T` is its type in every version that has it.
    let found = unsafe { library.get::<T>(name.as_bytes()) };
    found.map(|symbol| *symbol).map_err(|_| not_offered(format!("libcufile has no {name}; install a current one")))
}

fn check(call: &str, answer: Answer) -> Result<(), String> {
    match answer {
        Answer { err: 0, .. } => Ok(()),
        Answer { err, cu_err: 0 } => Err(format!("{call} failed with {err}")),
        Answer { err, cu_err } => Err(format!("{call} failed with {err} (error {cu_err} of the driver)")),
    }
}

/// A file that cards read.
pub(super) struct StorageFile {
    cufile: &'static CuFile,
    raw: *mut c_void,
    _fd: OwnedFd,
}

// SAFETY: all calls of cuFile may be made by any thread.
unsafe impl Send for StorageFile {}
// SAFETY: as above, and by several at once.
unsafe impl Sync for StorageFile {}

impl StorageFile {
    /// # Errors
    /// `Unsupported` when cards cannot read this file.
    pub(super) fn register(cufile: &'static CuFile, fd: OwnedFd) -> Result<StorageFile> {
        let handle = Handle { fd: fd.as_raw_fd() };
        let mut description = Description { kind: HANDLE_TYPE_OPAQUE_FD, handle, operations: std::ptr::null() };
        let mut raw = std::ptr::null_mut();
        // SAFETY: the pointers are to locals; the descriptor stays open as long as the handle.
        let registered = unsafe { (cufile.register)(&mut raw, &mut description) };
        check("cuFileHandleRegister", registered).map_err(|reason| {
            Error::new(Code::Unsupported, format!("the GPU cannot read this file by itself: {reason}"))
        })?;
        Ok(StorageFile { cufile, raw, _fd: fd })
    }

    /// Reads `len_bytes` from `from` of the file on to `base + to`. Blocks; nothing is under way any more afterwards,
    /// however it ends. The context must be current.
    ///
    /// # Errors
    /// `Unsupported` when that is not to be had; some of the bytes may have been written.
    ///
    /// # Safety
    /// The memory must be the card's and mapped for writing, from `base` to the end of what is read.
    pub(super) unsafe fn read(&self, base: u64, from: u64, len_bytes: u64, to: u64) -> Result<()> {
        let failed = |reason: String| Error::new(Code::Unsupported, format!("the GPU cannot read a file: {reason}"));
        let mut done = 0;
        while done < len_bytes {
            let offsets = c_long::try_from(from + done).ok().zip(c_long::try_from(to + done).ok());
            let (file_offset, to_offset) = offsets.ok_or_else(|| failed("it is too long".into()))?;
            let len = usize::try_from(len_bytes - done).map_err(|error| failed(error.to_string()))?;
            // SAFETY: the caller's promise, and a handle that is registered as long as `self`.
            let count = unsafe { (self.cufile.read)(self.raw, base as *mut c_void, len, file_offset, to_offset) };
            match count {
                -1 => return Err(failed(format!("cuFileRead: {}", io::Error::last_os_error()))),
                0 => return Err(failed("cuFileRead: the file ends too early".into())),
                count if count < 0 => return Err(failed(format!("cuFileRead failed with {}", count.unsigned_abs()))),
                count => done += count as u64,
            }
        }
        Ok(())
    }
}

impl Drop for StorageFile {
    fn drop(&mut self) {
        // SAFETY: registered once, deregistered once; the descriptor is closed after this.
        unsafe { (self.cufile.deregister)(self.raw) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structures_are_laid_out_as_in_c() {
        assert_eq!((size_of::<Answer>(), size_of::<Description>()), (8, 24));
        assert_eq!(std::mem::offset_of!(Description, handle), 8);
        assert_eq!(std::mem::offset_of!(Properties, control_flags), 28);
    }

    #[test]
    fn machines_without_the_library() {
        let error = CuFile::open(&["libno-such-library.so.0"]).err().unwrap();
        assert_eq!(error.code(), Code::Unsupported);
        assert!(error.message().contains("libcufile.so.0 was not found"), "{error}");
        let error = CuFile::open(&["libc.so.6"]).err().unwrap();
        assert!(error.message().contains("libcufile has no cuFileDriverOpen"), "{error}");
    }
}
