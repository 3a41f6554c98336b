//! Loads the fake driver into this process, ahead of a real one.

use std::ffi::{CStr, CString, c_char, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::config::Config;

/// How the driver is told what it is: folder, devices, bytes of each, rate, faults. Answers 0, or 1 when it was told before.
pub(crate) type Configure = extern "C" fn(*const c_char, u32, u64, f64, *const c_char) -> u32;
pub(crate) const CONFIGURE: &CStr = c"fake_cuda_configure";

/// Loads the library at this path and tells it what it is. Whoever looks for `libcuda.so` in this process from now on finds it.
///
/// # Errors
/// A text that says what could not be done.
pub fn preload(library: &Path, config: &Config) -> Result<(), String> {
    let c_string = |bytes: &[u8]| CString::new(bytes).map_err(|_| "a text with a zero in it".to_owned());
    let path = c_string(library.as_os_str().as_bytes())?;
    // SAFETY: `path` is a C string; what the library runs when it is loaded is what every Rust library runs: nothing of ours.
    let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
    if handle.is_null() {
        return Err(format!("{} cannot be loaded: {}", library.display(), last_error()));
    }
    // SAFETY: the handle is that of a loaded library, which is never unloaded.
    let configure = unsafe { libc::dlsym(handle, CONFIGURE.as_ptr()) };
    if configure.is_null() {
        return Err(format!("{} is not the fake driver", library.display()));
    }
    // SAFETY: in the fake driver, and there alone, this symbol is a function of exactly this type (`driver.rs`).
    let configure = unsafe { std::mem::transmute::<*mut c_void, Configure>(configure) };
    let folder = c_string(config.folder.as_os_str().as_bytes())?;
    let faults: Vec<String> = config.faults.iter().map(ToString::to_string).collect();
    let faults = c_string(faults.join(",").as_bytes())?;
    match configure(folder.as_ptr(), config.devices, config.memory_bytes, config.h2d_gbps, faults.as_ptr()) {
        0 => Ok(()),
        _ => Err("the fake driver was told before what it is".to_owned()),
    }
}

fn last_error() -> String {
    // SAFETY: no arguments; the answer is a C string that stays until this thread's next call.
    let text = unsafe { libc::dlerror() };
    if text.is_null() {
        return "for no reason that is known".to_owned();
    }
    // SAFETY: checked not to be null, see above.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}
