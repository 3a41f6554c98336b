//! The CUDA driver as a table of functions.
//!
//! cudarc finds the library and has the C types; the calls go through this table, because
//! * a missing library or symbol must be an error at the start, not a panic in the middle of a load;
//! * a result code that the bindings do not know must be a number: as a Rust enum it would be undefined behaviour.

use std::ffi::{CStr, c_char, c_int, c_uint, c_ulonglong, c_void};
use std::sync::OnceLock;

use cudarc::driver::sys::{self, CUDA_MEMCPY2D, CUcontext, CUevent, CUmemAccessDesc, CUmemAllocationProp, CUstream};

use super::error::{CudaError, Unavailable};

/// The oldest driver that is served, as `cuDriverGetVersion` counts: 12.0, of the R525 branch. All symbols of the table
/// are older, but no branch before that one knows the cards that this is for.
pub(super) const DRIVER_VERSION_MIN: i32 = 12_000;

macro_rules! table {
    ($($name:ident($($arg:ident: $kind:ty),* $(,)?);)*) => {
        /// Every entry point that is used.
        #[allow(non_snake_case)]
        pub(super) struct Driver {
            $($name: unsafe extern "C" fn($($kind),*) -> c_uint,)*
        }

        impl Driver {
            fn resolve() -> Result<Driver, Unavailable> {
                // SAFETY: loading the driver runs its initialisers, which is what it is installed for.
                if !unsafe { sys::is_culib_present() } {
                    return Err(Unavailable::NoLibrary);
                }
                // SAFETY: as above; it was found a moment ago, and from now on it stays loaded.
                let library = unsafe { sys::culib() };
                Ok(Driver {
                    $($name: {
                        // SAFETY: the symbol has this signature in every driver since it exists; the name says which.
                        let symbol = unsafe {
                            library.get::<unsafe extern "C" fn($($kind),*) -> c_uint>(concat!(stringify!($name), "\0").as_bytes())
                        };
                        *symbol.map_err(|_| Unavailable::MissingSymbol(stringify!($name)))?
                    },)*
                })
            }

            $(
                /// The call of this name; its code as an error unless it is zero.
                ///
                /// # Safety
                /// As the driver's documentation of the call says: pointers must be valid for what it does to them.
                #[allow(non_snake_case, clippy::too_many_arguments)]
                pub(super) unsafe fn $name(&self, $($arg: $kind),*) -> Result<(), CudaError> {
                    // SAFETY: the caller's promise.
                    match unsafe { (self.$name)($($arg),*) } {
                        0 => Ok(()),
                        code => Err(CudaError { call: stringify!($name), code }),
                    }
                }
            )*
        }
    };
}

table! {
    cuInit(flags: c_uint);
    cuDriverGetVersion(version: *mut c_int);
    cuGetErrorName(code: c_uint, name: *mut *const c_char);
    cuGetErrorString(code: c_uint, text: *mut *const c_char);
    cuDeviceGetCount(count: *mut c_int);
    cuDeviceGet(device: *mut c_int, ordinal: c_int);
    cuDeviceGetName(name: *mut c_char, len: c_int, device: c_int);
    cuDeviceTotalMem_v2(bytes: *mut usize, device: c_int);
    cuDeviceGetUuid_v2(uuid: *mut [u8; 16], device: c_int);
    cuDeviceGetPCIBusId(id: *mut c_char, len: c_int, device: c_int);
    cuDevicePrimaryCtxRetain(context: *mut CUcontext, device: c_int);
    cuDevicePrimaryCtxRelease_v2(device: c_int);
    cuCtxPushCurrent_v2(context: CUcontext);
    cuCtxPopCurrent_v2(context: *mut CUcontext);
    cuMemGetInfo_v2(free: *mut usize, total: *mut usize);
    cuMemHostRegister_v2(start: *mut c_void, len: usize, flags: c_uint);
    cuMemHostUnregister(start: *mut c_void);
    cuMemAlloc_v2(address: *mut u64, len: usize);
    cuMemFree_v2(address: u64);
    cuMemcpyHtoDAsync_v2(to: u64, from: *const c_void, len: usize, stream: CUstream);
    cuMemcpyDtoHAsync_v2(to: *mut c_void, from: u64, len: usize, stream: CUstream);
    cuMemcpyDtoDAsync_v2(to: u64, from: u64, len: usize, stream: CUstream);
    cuMemcpy2DAsync_v2(copy: *const CUDA_MEMCPY2D, stream: CUstream);
    cuMemsetD8Async(to: u64, value: u8, len: usize, stream: CUstream);
    cuStreamCreate(stream: *mut CUstream, flags: c_uint);
    cuStreamDestroy_v2(stream: CUstream);
    cuStreamSynchronize(stream: CUstream);
    cuEventCreate(event: *mut CUevent, flags: c_uint);
    cuEventRecord(event: CUevent, stream: CUstream);
    cuEventSynchronize(event: CUevent);
    cuEventDestroy_v2(event: CUevent);
    cuMemGetAllocationGranularity(bytes: *mut usize, prop: *const CUmemAllocationProp, option: c_uint);
    cuMemCreate(handle: *mut u64, len: usize, prop: *const CUmemAllocationProp, flags: c_ulonglong);
    cuMemRelease(handle: u64);
    cuMemExportToShareableHandle(out: *mut c_void, handle: u64, kind: c_uint, flags: c_ulonglong);
    cuMemImportFromShareableHandle(handle: *mut u64, os_handle: *mut c_void, kind: c_uint);
    cuMemAddressReserve(address: *mut u64, len: usize, alignment: usize, wish: u64, flags: c_ulonglong);
    cuMemAddressFree(address: u64, len: usize);
    cuMemMap(address: u64, len: usize, offset: usize, handle: u64, flags: c_ulonglong);
    cuMemUnmap(address: u64, len: usize);
    cuMemSetAccess(address: u64, len: usize, desc: *const CUmemAccessDesc, count: usize);
}

/// The driver once it was found complete; failures are not kept, a driver may be installed later.
static DRIVER: OnceLock<Driver> = OnceLock::new();

/// The driver, new enough and initialised.
pub(super) fn driver() -> Result<&'static Driver, Unavailable> {
    let driver = match DRIVER.get() {
        Some(driver) => driver,
        None => {
            let resolved = Driver::resolve()?;
            DRIVER.get_or_init(|| resolved)
        }
    };
    let mut have = 0;
    // SAFETY: the pointer is to a local of the right type.
    unsafe { driver.cuDriverGetVersion(&mut have) }?;
    check_version(have)?;
    // SAFETY: no pointers; it may be called any number of times.
    unsafe { driver.cuInit(0) }?;
    Ok(driver)
}

fn check_version(have: i32) -> Result<(), Unavailable> {
    if have < DRIVER_VERSION_MIN {
        return Err(Unavailable::DriverTooOld { have, need: DRIVER_VERSION_MIN });
    }
    Ok(())
}

/// The driver's name and text for a code; both fall back to something readable for codes that it does not know either.
pub(super) fn describe(code: u32) -> (String, String) {
    type Lookup = unsafe fn(&Driver, c_uint, *mut *const c_char) -> Result<(), CudaError>;
    let ask = |lookup: Lookup| {
        let mut text: *const c_char = std::ptr::null();
        // SAFETY: the pointer is to a local, which receives a pointer to a constant of the driver.
        unsafe { lookup(DRIVER.get()?, code, &mut text) }.ok()?;
        if text.is_null() {
            return None;
        }
        // SAFETY: a null-terminated constant of the driver, which stays loaded.
        Some(unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned())
    };
    let name = ask(Driver::cuGetErrorName).unwrap_or_else(|| "an error the driver has no name for".into());
    let text = ask(Driver::cuGetErrorString).unwrap_or_else(|| "no description".into());
    (name, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_drivers_are_refused() {
        assert!(check_version(12_000).is_ok() && check_version(13_020).is_ok());
        for have in [0, 11_080] {
            assert_eq!(check_version(have), Err(Unavailable::DriverTooOld { have, need: 12_000 }));
        }
    }
}
